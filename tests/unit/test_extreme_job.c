/* strata check over the table of keys at extreme values, alone and together: an answer or a refusal with a
 * sentence, within a second or two, and never a broken rule of our own, exhausted memory or a signal. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/cli/cli_impl.h"
#include "../../src/config/config_impl.h"

#if defined(__SANITIZE_ADDRESS__)
#define SECONDS 30
#define MEMORY RLIM_INFINITY
#else
#define SECONDS 2
#define MEMORY ((rlim_t)8 << 30) /* of addresses: libraries map more than they use */
#endif
#define ARGS_MAX 40

static const char *job; /* a file, since paths in it count from its folder */

/* ---- one run ------------------------------------------------------------------------------------ */
struct arguments {
    int n;
    char *arg[ARGS_MAX];
};

static void give(struct arguments *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void give(struct arguments *a, const char *fmt, ...) {
    va_list args;
    assert_true(a->n < ARGS_MAX);
    va_start(args, fmt);
    assert_true(vasprintf(&a->arg[a->n++], fmt, args) >= 0);
    va_end(args);
}

static void forget(struct arguments *a) {
    while (a->n > 0) free(a->arg[--a->n]);
}

_Noreturn static void run(struct arguments *a, int errors) {
    int nowhere = open("/dev/null", O_WRONLY);
    dup2(nowhere, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    setrlimit(RLIMIT_CPU, &(struct rlimit){SECONDS, SECONDS + 1});
    setrlimit(RLIMIT_AS, &(struct rlimit){MEMORY, MEMORY});
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    int rc = cli_check(a->n, a->arg);
    error_print(stderr);
    fflush(NULL);
    _exit(rc);
}

/* The exit code; -1 after a signal. What was said is in `said`. */
static int outcome(struct arguments *a, char said[4096]) {
    int pipe_[2], status;
    size_t used = 0;
    assert_int_equal(pipe(pipe_), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) run(a, pipe_[1]);
    close(pipe_[1]);
    for (;;) {
        char rest[4096];
        ssize_t n =
            read(pipe_[0], used < 4095 ? said + used : rest, used < 4095 ? 4095 - used : 4096);
        if (n <= 0) break;
        if (used < 4095) used += (size_t)n;
    }
    said[used] = '\0';
    close(pipe_[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool allowed(int code) {
    return code == 0 || code == EXIT_USAGE || code == EXIT_BAD_DATA || code == EXIT_NO_INPUT;
}

static int planned; /* runs that ended with a plan */

static int judge(struct arguments *a) {
    char said[4096];
    int code = outcome(a, said);
    planned += code == 0;
    bool good = allowed(code) && (code == 0 || strncmp(said, "error: ", 7) == 0 ||
                                  strstr(said, "\nerror: ") != NULL);
    if (!good) {
        fprintf(stderr, "# exit %d of strata check", code);
        for (int i = 0; i < a->n; i++) fprintf(stderr, " %s", a->arg[i]);
        fprintf(stderr, "\n# %.600s\n", said);
    }
    return !good;
}

/* ---- what is drawn ------------------------------------------------------------------------------ */
static uint32_t draw(uint32_t below) {
    static uint32_t counter[4];
    uint32_t word[4];
    philox4x32(rng_run_key(22), counter, word);
    counter[0]++;
    return word[0] % below;
}

/* The lowest, the highest, and magnitudes between; false where there is no such value. */
static bool extreme(const struct config_key *key, uint32_t which, char text[64]) {
    static const int64_t magnitude[] = {2,       7,          64,        1000,          4096,
                                        65536,   1048576,    999999937, 2147483647,    2147483648,
                                        1 << 30, 4294967296, 1LL << 40, 1000000000000, 1LL << 61};
    int64_t v = which == 0 ? key->low : which == 1 ? key->high : 0;
    switch (key->type) {
    case TYPE_INT:
    case TYPE_INTS:
        if (which >= 2) v = which - 2 < 15 ? magnitude[which - 2] : key->high / (which + 1);
        if (v < key->low || v > key->high) return false;
        snprintf(text, 64, "%lld", (long long)v);
        return true;
    case TYPE_REAL:
    case TYPE_REALS:
        snprintf(text, 64, "%.17g",
                 which == 0   ? key->real_low
                 : which == 1 ? key->real_high
                 : which < 10 ? key->real_low + (key->real_high - key->real_low) / (1 << which)
                              : 1);
        return true;
    case TYPE_BOOL:
        snprintf(text, 64, "%s", which % 2 ? "true" : "false");
        return true;
    case TYPE_ENUM:
        for (uint32_t i = 0; i <= which; i++)
            if (key->choices[i].text == NULL) return false;
        snprintf(text, 64, "%s", key->choices[which].text);
        return true;
    default:
        return false;
    }
}
#define KINDS 18 /* values of `which` */

static bool usable(const struct config_key *key) {
    return key->type != TYPE_LATER && key->missing == NULL;
}

struct sizes {
    int64_t tp, pp, dp, micro, passes;
    bool batch; /* global_batch_size is given */
};

static void set(struct arguments *a, struct sizes *s, const struct config_key *key,
                const char *value) {
    int64_t n = 0;
    parse_int64(value, &n);
    if (strcmp(key->name, "tensor_model_parallel_size") == 0)
        s->tp = n;
    else if (strcmp(key->name, "pipeline_model_parallel_size") == 0)
        s->pp = n;
    else if (strcmp(key->name, "micro_batch_size") == 0)
        s->micro = n;
    else if (strcmp(key->name, "global_batch_size") == 0)
        s->batch = true;
    give(a, "%s:%s=%s", key->section, key->name, value);
}

/* Shapes that legal values of one key need from others, so that more than the first rule is met. */
static const char *const companions[][8] = {
    {"training:seed=1"},
    {"vision:num_attention_heads=1", "language:num_attention_heads=1",
     "language:num_query_groups=1", "language:kv_channels=64", "vision:patch_dim=1",
     "vision:img_h=8", "vision:img_w=8"},
    {"vision:num_attention_heads=64", "vision:hidden_size=64", "projector:projector_hidden_size=64",
     "language:num_attention_heads=65536", "language:num_query_groups=65536",
     "language:kv_channels=65536"},
    {"data:image_aspect_ratio=anyres", "data:image_grid_pinpoints=65536,65536,1,65536",
     "vision:img_h=1", "vision:img_w=1", "vision:patch_dim=1"},
    {"parallel:schedule=gpipe", "checkpoint:save=runs", "checkpoint:async_save=true",
     "parallel:use_distributed_optimizer=true", "vision:num_attention_heads=1"},
    {"training:recompute_granularity=full", "training:recompute_method=uniform",
     "training:recompute_num_layers=1", "checkpoint:save=runs", "checkpoint:writers=node"}};
#define VARIANTS (sizeof companions / sizeof *companions)

static bool names_same_key(const char *a, const char *b) {
    size_t n = strcspn(a, "=");
    return n == strcspn(b, "=") && strncmp(a, b, n) == 0;
}

static void finish(struct arguments *a, const struct sizes *s, uint32_t variant) {
    int n = a->n;
    for (int i = 0; i < 8 && companions[variant][i] != NULL; i++) {
        bool there = false;
        for (int k = 0; k < n; k++)
            there = there || names_same_key(a->arg[k], companions[variant][i]);
        if (!there) give(a, "%s", companions[variant][i]);
    }
    int64_t ranks = s->tp * s->pp * s->dp;
    if (!s->batch)
        give(a, "training:global_batch_size=%lld", (long long)(s->micro * s->dp * s->passes));
    if (ranks > 1) {
        give(a, "--ranks");
        give(a, "%lld", (long long)ranks);
    }
    if (draw(4) == 0) give(a, "--generate");
}

static struct sizes start(struct arguments *a) {
    static const int64_t dp[] = {1, 1, 1, 2, 7, 128, 4096};
    static const int64_t passes[] = {1, 1, 2, 64, 4096};
    *a = (struct arguments){0};
    give(a, "%s", job);
    return (struct sizes){
        .tp = 1, .pp = 1, .dp = dp[draw(7)], .micro = 2, .passes = passes[draw(5)]};
}

/* ---- the tests ---------------------------------------------------------------------------------- */
static void each_key_alone(void **state) {
    (void)state;
    int failed = 0, done = 0;
    bool whole = getenv("STRATA_LONG") != NULL;
    for (int k = 0; k < config_n_keys; k++)
        for (uint32_t which = 0; which < KINDS && usable(&config_table[k]); which++) {
            char value[64];
            if (!extreme(&config_table[k], which, value)) continue;
            if (!whole && which > 1 && (which + (uint32_t)k) % 12 != 0) continue;
            struct arguments a;
            struct sizes s = start(&a);
            s.dp = s.passes = 1;
            set(&a, &s, &config_table[k], value);
            finish(&a, &s, which % VARIANTS);
            failed += judge(&a);
            forget(&a);
            done++;
        }
    assert_true(done > 300 && planned > 100);
    assert_int_equal(failed, 0);
}

/* Two to six keys that decide about sizes. */
static void several_keys_together(void **state) {
    (void)state;
    int failed = 0, row[300], n_rows = 0, before = planned;
    for (int k = 0; k < config_n_keys && n_rows < 300; k++)
        if (usable(&config_table[k]) &&
            (config_table[k].type == TYPE_INT || config_table[k].type == TYPE_BOOL ||
             config_table[k].type == TYPE_ENUM) &&
            strstr("parallel vision projector language training data", config_table[k].section))
            row[n_rows++] = k;
    int cases = getenv("STRATA_LONG") != NULL ? 20000 : 150;
    for (int i = 0; i < cases; i++) {
        struct arguments a;
        struct sizes s = start(&a);
        int n = 2 + (int)draw(5);
        while (n-- > 0) {
            char value[64];
            const struct config_key *key = &config_table[row[draw((uint32_t)n_rows)]];
            if (!extreme(key, draw(KINDS), value)) continue;
            bool twice = false;
            char *start_of = xasprintf("%s:%s=", key->section, key->name);
            for (int k = 1; k < a.n; k++) twice = twice || names_same_key(a.arg[k], start_of);
            free(start_of);
            if (!twice) set(&a, &s, key, value);
        }
        finish(&a, &s, draw(VARIANTS));
        failed += judge(&a);
        forget(&a);
    }
    assert_true(planned - before > 20);
    assert_int_equal(failed, 0);
}

/* A child that breaks a rule, fails to allocate or takes too long must be seen. */
static void the_judge_can_fail(void **state) {
    (void)state;
    assert_false(allowed(EXIT_INTERNAL));
    assert_false(allowed(EXIT_AGAIN));
    assert_false(allowed(-1));
    assert_true(allowed(EXIT_USAGE));
}

static int write_job(void **state) {
    (void)state;
    static char path[4096];
    const char *tmp = getenv("TEST_TMP");
    char *text;
    size_t bytes;
    snprintf(path, sizeof path, "%s/job.ini", tmp != NULL ? tmp : ".");
    int rc = file_read("input/llava_tiny.ini", 1 << 20, &text, &bytes);
    if (rc != 0) return rc;
    FILE *f = fopen(path, "w");
    if (f == NULL) return 1;
    /* Without data every size is the worst that the keys allow. */
    for (char *line = text, *end = NULL; line != NULL && *line != '\0'; line = end) {
        end = strchr(line, '\n');
        if (end != NULL) *end++ = '\0';
        if (strncmp(line, "data_", 5) == 0 || strncmp(line, "tokenizer", 9) == 0 ||
            strncmp(line, "image_folder", 12) == 0 || strncmp(line, "conversation", 12) == 0)
            continue;
        fprintf(f, "%s\n", line);
        if (strcmp(line, "[data]") == 0) fprintf(f, "data_format = mock\n");
        if (strcmp(line, "[language]") == 0) fprintf(f, "vocab_size = 1000\n");
    }
    fclose(f);
    free(text);
    job = path;
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_judge_can_fail),
                                       cmocka_unit_test(each_key_alone),
                                       cmocka_unit_test(several_keys_together)};
    return cmocka_run_group_tests(tests, write_job, NULL);
}
