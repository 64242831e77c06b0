/* config: what a resume says to another value of a key, for every key of the table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/config/config_impl.h"

static const char job_text[] =
    "[run]\nfamily = llava\nrun_dir = run\n"
    "[language]\nnum_layers = 2\nhidden_size = 64\nnum_attention_heads = 4\n"
    "position_embedding_type = rope\nuntie_embeddings_and_output_weights = true\n"
    "decoder_seq_length = 128\n[training]\nmicro_batch_size = 1\ntrain_iters = 100\n"
    "[optimizer]\nlr = 1e-3\n"
    "[data]\ndata_format = captioned_folder\ndata_path = captions\n"
    "tokenizer_type = Llama2Tokenizer\ntokenizer_model = tok.model\n";
static char job[] = "/tmp/strata_change_XXXXXX";

static struct config *load(char *argument) {
    struct config *cfg = NULL;
    error_clear();
    if (config_load(job, argument != NULL, &argument, &cfg) != 0) fail_msg("%s", error_text());
    return cfg;
}

/* ---- a run's keys, as a checkpoint gives them back ------------------------------------------------ */
struct stored {
    struct config_stored key[512];
    int64_t n;
};

static void store(void *arg, const char *section, const char *key, const char *value,
                  bool defaulted) {
    struct stored *s = arg;
    (void)defaulted;
    if (value == NULL) return;
    assert_true(s->n < 512);
    s->key[s->n++] = (struct config_stored){section, key, xstrdup(value)};
}

static void forget(struct stored *s) {
    for (int64_t i = 0; i < s->n; i++) free((void *)s->key[i].value);
    s->n = 0;
}

struct found {
    int n;
    char key[8][96], before[8][96], now[8][96];
    enum config_change change[8];
};

static void note(void *arg, const struct config_difference *d) {
    struct found *f = arg;
    assert_true(f->n < 8);
    snprintf(f->key[f->n], 96, "%s.%s", d->section, d->key);
    snprintf(f->before[f->n], 96, "%s", d->before);
    snprintf(f->now[f->n], 96, "%s", d->now);
    f->change[f->n++] = d->change;
}

/* The differences between the run of `was` and that of `now` (arguments, or NULL). */
static struct found compare(char *was, char *now) {
    struct stored s = {.n = 0};
    struct found f = {.n = 0};
    struct config *a = load(was), *b = load(now);
    config_each(a, store, &s);
    config_compare(b, s.key, s.n, note, &f);
    forget(&s);
    config_free(a);
    config_free(b);
    return f;
}

/* ---- tests ------------------------------------------------------------------------------------------- */
static void test_each_key_has_the_class_it_should(void **state) {
    (void)state;
    static const struct {
        const char *section, *key;
        enum config_change change;
    } want[] = {
        {"logging", "log_interval", CONFIG_FREE},
        {"run", "run_dir", CONFIG_FREE},
        {"parallel", "distributed_timeout_minutes", CONFIG_FREE},
        {"data", "data_path", CONFIG_FREE},
        {"checkpoint", "save_interval", CONFIG_FREE},
        {"parallel", "tensor_model_parallel_size", CONFIG_NOTICE},
        {"parallel", "pipeline_model_parallel_size", CONFIG_NOTICE},
        {"parallel", "split_spec", CONFIG_NOTICE},
        {"parallel", "schedule", CONFIG_NOTICE},
        {"training", "micro_batch_size", CONFIG_NOTICE},
        {"training", "train_iters", CONFIG_NOTICE},
        {"optimizer", "lr", CONFIG_BY_ARGUMENT},
        {"language", "hidden_size", CONFIG_REFUSED},
        {"vision", "num_layers", CONFIG_REFUSED},
        {"projector", "projector_hidden_size", CONFIG_REFUSED},
        {"data", "conversation_template", CONFIG_REFUSED},
        {"data", "shuffle", CONFIG_REFUSED},
        {"training", "seed", CONFIG_REFUSED},
        {"training", "global_batch_size", CONFIG_REFUSED},
        {"nowhere", "nothing", CONFIG_REFUSED},
    };
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        if (config_change_of(want[i].section, want[i].key) != want[i].change)
            fail_msg("[%s] %s is %s", want[i].section, want[i].key,
                     config_change_text(config_change_of(want[i].section, want[i].key)));
}

static void test_the_same_job_has_no_difference(void **state) {
    (void)state;
    struct found f = compare(NULL, NULL);
    assert_int_equal(f.n, 0);
    f = compare("training:seed=1234", NULL); /* given at its default */
    assert_int_equal(f.n, 0);
    f = compare("optimizer:lr=0.001", NULL); /* the same number, written otherwise */
    assert_int_equal(f.n, 0);
}

static void test_one_changed_key(void **state) {
    (void)state;
    struct found f = compare(NULL, "training:seed=7");
    assert_int_equal(f.n, 1);
    assert_string_equal(f.key[0], "training.seed");
    assert_string_equal(f.before[0], "1234");
    assert_string_equal(f.now[0], "7");
    assert_int_equal(f.change[0], CONFIG_REFUSED);
    f = compare(NULL, "training:exit_interval=5");
    assert_int_equal(f.n, 1);
    assert_string_equal(f.before[0], "(unset)");
    f = compare("training:exit_interval=5", NULL);
    assert_int_equal(f.n, 1);
    assert_string_equal(f.now[0], "(unset)");
    assert_int_equal(f.change[0], CONFIG_FREE);
}

/* lr brings the two rates that follow from it. */
static void test_rates_go_by_argument(void **state) {
    (void)state;
    struct found f = compare(NULL, "optimizer:lr=2e-3");
    assert_int_equal(f.n, 3);
    for (int i = 0; i < 3; i++) assert_int_equal(f.change[i], CONFIG_NOTICE);
    f = compare("optimizer:lr=2e-3", NULL); /* now it stands in the file */
    assert_int_equal(f.n, 3);
    assert_string_equal(f.key[0], "optimizer.lr");
    assert_int_equal(f.change[0], CONFIG_BY_ARGUMENT);
    assert_int_equal(f.change[1], CONFIG_NOTICE);
}

/* A checkpoint of an older program lacks keys: at their default they are no difference. */
static void test_keys_that_came_later(void **state) {
    (void)state;
    struct stored none = {.n = 0};
    struct config *cfg = load("training:seed=1234");
    struct found f = {.n = 0};
    config_each(cfg, store, &none);
    for (int64_t i = 0; i < none.n; i++)
        if (strcmp(none.key[i].key, "seed") == 0 || strcmp(none.key[i].key, "log_interval") == 0)
            none.key[i].section = "elsewhere";
    config_compare(cfg, none.key, none.n, note, &f);
    assert_int_equal(f.n, 0);
    forget(&none);
    config_free(cfg);
}

static int set_up(void **state) {
    (void)state;
    int fd = mkstemp(job);
    if (fd < 0) return 1;
    bool fine = write(fd, job_text, sizeof job_text - 1) == (ssize_t)sizeof job_text - 1;
    return close(fd) != 0 || !fine;
}

static int tear_down(void **state) {
    (void)state;
    return unlink(job);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_key_has_the_class_it_should),
        cmocka_unit_test(test_the_same_job_has_no_difference),
        cmocka_unit_test(test_one_changed_key),
        cmocka_unit_test(test_rates_go_by_argument),
        cmocka_unit_test(test_keys_that_came_later),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
