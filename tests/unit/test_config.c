/* config: every key in every wrong form, suggestions, rules, the echo's round trip, split_spec. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/config/config_impl.h"

static char dir[] = "/tmp/strata_config_XXXXXX";
static char job[64], echo[64];

/* A small llava that loads; each test changes it. */
static const struct {
    const char *section, *key, *value;
} base[] = {
    {"run", "family", "llava"},
    {"run", "run_dir", "run"},
    {"language", "num_layers", "32"},
    {"language", "hidden_size", "4096"},
    {"language", "num_attention_heads", "32"},
    {"language", "position_embedding_type", "rope"},
    {"language", "untie_embeddings_and_output_weights", "true"},
    {"language", "decoder_seq_length", "2048"},
    {"training", "micro_batch_size", "1"},
    {"training", "train_iters", "100"},
    {"optimizer", "lr", "1e-3"},
    {"data", "data_format", "captioned_folder"},
    {"data", "data_path", "captions"},
    {"data", "tokenizer_type", "Llama2Tokenizer"},
    {"data", "tokenizer_model", "tok.model"},
};
#define N_BASE (int)(sizeof base / sizeof *base)

static void write_file(const char *path, const void *text, size_t bytes) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
}

/* The base without [section] key, then `extra`; the number of the last line of extra. */
static int write_job(const char *section, const char *key, const char *extra) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    for (int i = 0; i < N_BASE; i++)
        if (strcmp(base[i].section, section) != 0 || strcasecmp(base[i].key, key) != 0)
            fprintf(f, "[%s]\n%s = %s\n", base[i].section, base[i].key, base[i].value);
    fprintf(f, "%s\n", extra);
    fclose(f);
    int n_lines = 0;
    for (size_t i = 0; i < bytes; i++) n_lines += text[i] == '\n';
    write_file(job, text, bytes);
    free(text);
    return n_lines;
}

static struct config *load(int n, char **overrides) {
    struct config *cfg = NULL;
    error_clear();
    config_load(job, n, overrides, &cfg);
    return cfg;
}

/* [section] line must be refused in the last line of the file, with `word` in the sentence. */
static void refused(const char *section, const char *key, const char *line, const char *word) {
    char *extra = xasprintf("[%s]\n%s", section, line);
    int n_lines = write_job(section, key, extra);
    struct config *cfg = load(0, NULL);
    char *place = xasprintf("%s:%d: ", job, n_lines);
    if (cfg != NULL || strstr(error_text(), place) == NULL || strstr(error_text(), word) == NULL)
        fail_msg("[%s] %s: expected %s...%s, got: %s", section, line, place, word, error_text());
    assert_int_equal(error_code(), EXIT_USAGE);
    free(place);
    free(extra);
}

static void refused_value(const struct config_key *key, const char *value, const char *word) {
    char *line = xasprintf("%s = %s", key->name, value);
    refused(key->section, key->name, line, word);
    free(line);
}

/* Some value that the parser takes. */
static const char *legal_value(const struct config_key *key) {
    static char text[64];
    switch (key->type) {
    case TYPE_INT:
    case TYPE_INTS:
        snprintf(text, sizeof text, "%lld", key->low == INT64_MIN ? 1LL : (long long)key->low);
        return text;
    case TYPE_REAL:
    case TYPE_REALS:
        snprintf(text, sizeof text, "%.17g", key->real_high);
        return text;
    case TYPE_BOOL:
        return "true";
    case TYPE_ENUM:
        return key->choices[0].text;
    default:
        return "text";
    }
}

static void sweep_values(const struct config_key *key) {
    char *garbage = xasprintf("%sx!", legal_value(key));
    refused_value(key, "", "empty");
    if (key->type != TYPE_TEXT && key->type != TYPE_PATH) {
        refused_value(key, garbage, "allowed: ");
        refused_value(key, "nonsense", "allowed: ");
        refused_value(key, "1e999", "allowed: ");
    }
    free(garbage);
    if (key->type == TYPE_INT || key->type == TYPE_INTS) {
        refused_value(key, "99999999999999999999", "too large; allowed: ");
        refused_value(key, "1e3", "not a whole number");
        refused_value(key, "1.0", "not a whole number");
        if (key->low > INT64_MIN) {
            char *below = xasprintf("%lld", (long long)key->low - 1);
            refused_value(key, below, "out of range");
            free(below);
        }
    }
    if (key->type == TYPE_REAL || key->type == TYPE_REALS) {
        refused_value(key, "nan", "not a number");
        refused_value(key, "inf", "not a number");
        refused_value(key, "-1e-9", "out of range");
        refused_value(key, "1e30001", "allowed: ");
    }
}

static void test_every_key_in_every_wrong_form(void **state) {
    (void)state;
    for (int k = 0; k < config_n_keys; k++) {
        const struct config_key *key = &config_table[k];
        if (key->type == TYPE_LATER) {
            refused_value(key, "1", "known, not in this version");
            continue;
        }
        sweep_values(key);
        char *twice =
            xasprintf("%s = %s\n%s = %s", key->name, legal_value(key), key->name, legal_value(key));
        refused(key->section, key->name, twice, "given twice");
        free(twice);
        char *line = xasprintf("%s = %s", key->name, legal_value(key));
        const char *elsewhere = strcmp(key->section, "generate") == 0 ? "eval" : "generate";
        refused(elsewhere, key->name, line, "belongs in");
        free(line);
        char *typo = xasprintf("%.*sq%s = 1", 1, key->name, key->name + 1);
        refused(key->section, "", typo, "did you mean");
        free(typo);
    }
}

static void ask(const struct config_key *key, const char *typo, int *n, int *n_right) {
    if (typo[0] == '\0' || config_find(key->section, typo) >= 0) return;
    char *right = xasprintf("did you mean [%s] %s?", key->section, key->name);
    error_clear();
    config_raise_unknown("x", key->section, typo);
    *n += 1;
    *n_right += strstr(error_text(), right) != NULL;
    free(right);
}

/* All losses, changes, additions and swaps of one letter, at every place of every key. */
static void test_suggestions(void **state) {
    (void)state;
    int n = 0, n_right = 0;
    for (int k = 0; k < config_n_keys; k++) {
        const struct config_key *key = &config_table[k];
        int length = (int)strlen(key->name);
        for (int i = 0; i < length; i++) {
            const char *s = key->name;
            char swapped[128];
            snprintf(swapped, sizeof swapped, "%s", s);
            swapped[i] = s[i + 1], swapped[i + 1] = s[i];
            char *typo[] = {xasprintf("%.*s%s", i, s, s + i + 1), xasprintf("%.*sk%s", i, s, s + i),
                            xasprintf("%.*sz%s", i, s, s + i + 1)};
            for (int j = 0; j < 3; j++) {
                ask(key, typo[j], &n, &n_right);
                free(typo[j]);
            }
            if (i + 1 < length && s[i] != s[i + 1]) ask(key, swapped, &n, &n_right);
        }
    }
    print_message("%d of %d one-letter slips answered with the right key\n", n_right, n);
    assert_true(n > 10000 && n_right >= 0.95 * n);
}

static void raw_refused(const char *text, size_t bytes, const char *place, const char *word) {
    write_file(job, text, bytes);
    struct config *cfg = load(0, NULL);
    char *full = xasprintf("%s:%s: ", job, place);
    if (cfg != NULL || strstr(error_text(), full) == NULL || strstr(error_text(), word) == NULL)
        fail_msg("expected %s...%s, got: %s", full, word, error_text());
    free(full);
}

static void test_raw_file(void **state) {
    (void)state;
#define RAW(text, line, word) raw_refused(text, sizeof(text) - 1, line, word)
    RAW("\xef\xbb\xbf[run]\nfamily = llava\n", "1", "byte-order mark");
    RAW("[run]\r\nfamily = llava\r\n", "2", "carriage return");
    RAW("[run]\nfamily = ll\xff\n", "2", "not UTF-8");
    RAW("[run]\n; \xed\xa0\x80\n", "2", "not UTF-8");
    RAW("[run]\nfamily = ll\0va\n", "2", "NUL");
    RAW("\xff\xfe[\0r\0u\0n\0]\0", "1", "the file is UTF-16 text; write it as UTF-8");
    RAW("[\0r\0u\0n\0]\0", "1", "the file is UTF-16 text");
    RAW("family = llava\n[run]\n", "1", "before the first [section]");
    RAW("[run]\nfamily\n", "2", "neither");
    RAW("[run\nfamily = llava\n", "1", "alone on its line");
    RAW("[run] ; x\n", "1", "alone on its line");
    RAW("[runn]\nfamily = llava\n", "1", "did you mean [run]?");
    RAW("[run]\nrun_dir = a;b\n", "2", "would be cut");
    RAW("[run]\nrun_dir = a #b\n", "2", "would be cut");
    RAW("[run]\nrun_dir = \"a\" b\n", "2", "would be lost");
    RAW("[run]\nrun_dir = \"a\n", "2", "not closed");
    RAW("[run]\nrun_dir = a\\\n", "2", "backslash");
    RAW("[run]\n; a comment\\ \n", "2", "backslash");
    RAW("[run]\nrun_dir = ; nothing\n", "2", "empty");
    RAW("[run]\nrun_dir = \"\"\n", "2", "empty");
    RAW("[run]\nrun dir = a\n", "2", "no key name");
    RAW("[run]\nrun_dir = a\n[RUN]\nRun_Dir = b\n", "4", "first time in line 2");
    char line[1100] = "[run]\n;";
    memset(line + 7, 'x', 1022);
    raw_refused(line, 7 + 1022, "2", "longer than 1022");
    write_job("run", "run_dir", "[Run]\nRUN_dir = \"a;b #c\" ; fine\n[vision]\nfreeze_vit=YES");
    struct config *cfg = load(0, NULL);
    assert_non_null(cfg);
    assert_non_null(strstr(cfg->run.run_dir, "/a;b #c"));
    assert_true(cfg->run.run_dir[0] == '/' && cfg->vision.freeze_vit);
    config_free(cfg);
    error_clear();
    assert_int_equal(config_load("/nowhere/job.ini", 0, NULL, &cfg), EXIT_NO_INPUT);
    assert_null(cfg);
}

static void test_defaults_and_derived(void **state) {
    (void)state;
    write_job("", "", "[language]\nswiglu = true\nnum_query_groups = 8");
    struct config *cfg = load(0, NULL);
    assert_non_null(cfg);
    assert_int_equal(cfg->language.ffn_hidden_size, 10880);
    assert_int_equal(cfg->language.kv_channels, 128);
    assert_int_equal(cfg->vision.vision_feature_layer, -2);
    assert_int_equal(cfg->derived.n_layers, 58);
    assert_int_equal(cfg->training.seed, 1234);
    assert_true(cfg->optimizer.projector_lr == 1e-3 && cfg->optimizer.clip_grad == 1.0);
    assert_int_equal(cfg->optimizer.lr_decay_iters, 100);
    assert_int_equal(cfg->run.distributed_backend, DISTRIBUTED_MPI);
    assert_int_equal(cfg->data.conversation_template, CONVERSATION_PLAIN);
    assert_string_equal(cfg->data.data_cache_path, cfg->run.run_dir);
    assert_null(cfg->checkpoint.save);
    assert_int_equal(cfg->checkpoint.ckpt_step, -1);
    assert_int_equal(cfg->checkpoint.most_recent_k, -1);
    assert_true(cfg->data.image_std.n == 3 && cfg->data.image_std.v[2] == 0.27577711);
    assert_true(cfg->parallel.split_spec.n == 0 && cfg->data.image_background.n == 0);
    assert_string_equal(config_choice(cfg, &cfg->data.tokenizer_type), "Llama2Tokenizer");
    assert_true(config_given(cfg, &cfg->optimizer.lr) && !config_given(cfg, &cfg->run.device));
    assert_int_equal(config_check_world(cfg, 3), 0);
    assert_int_equal(cfg->training.global_batch_size, 3);
    assert_int_equal(config_check_world(cfg, 4), 0);
    assert_int_equal(cfg->training.global_batch_size, 4);
    assert_int_equal(cfg->derived.n_micro_batches, 1);
    assert_int_equal(config_check_trainable(cfg), 0);
    assert_int_equal(config_resolve_vocab(cfg, 32000), 0);
    assert_int_equal(cfg->language.vocab_size, 32000);
    config_free(cfg);
}

/* section:key=value with a sentence, NULL: legal. */
static void with(int n, char **overrides, int n_ranks, const char *word) {
    write_job("", "", "");
    struct config *cfg = load(n, overrides);
    if (cfg != NULL && n_ranks > 0) config_check_world(cfg, n_ranks);
    if (word == NULL ? error_count() > 0 : strstr(error_text(), word) == NULL)
        fail_msg("%s: expected %s, got: %s", overrides[0], word != NULL ? word : "no fault",
                 error_text());
    config_free(cfg);
}
#define WITH(n_ranks, word, ...)                                                                   \
    with((int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__},         \
         n_ranks, word)
#define PP "parallel:pipeline_model_parallel_size="
#define SPLIT "parallel:split_spec="
#define ANYRES "data:image_aspect_ratio=anyres"
#define AFFINE "projector:projector_type=affine"

static void test_split_spec(void **state) {
    (void)state;
    WITH(1, NULL, SPLIT "58");
    WITH(1, NULL, SPLIT "auto");
    WITH(2, NULL, PP "2", SPLIT "26,32");
    WITH(3, NULL, PP "3", SPLIT "12,14,32");
    WITH(3, NULL, PP "3", SPLIT "24,2,32");
    WITH(5, NULL, PP "5", SPLIT "10,14,2,16,16");
    WITH(4, NULL, PP "4", SPLIT "26,10,12,10");
    WITH(3, NULL, PP "3", SPLIT "24,1,32", AFFINE);
    WITH(2, NULL, PP "2", SPLIT "25,32", AFFINE);
    WITH(2, NULL, PP "2", SPLIT "010 ,\t48");
    WITH(0, "let 24 or 26 layers lie before", PP "2", SPLIT "25,33");
    WITH(0, "entry 2 (1) ends the stage after 25", PP "3", SPLIT "24,1,33");
    WITH(0, "sum to 57, but the stack has 58 layers (24 + 2 + 32", PP "2", SPLIT "29,28");
    WITH(0, "1 too few", PP "2", SPLIT "29,28");
    WITH(0, "entry 1 is 0", PP "2", SPLIT "0,58");
    WITH(0, "sum to 58, but the stack has 57 layers", PP "3", SPLIT "24,2,32", AFFINE);
    WITH(0, "has 2 entries and pipeline_model_parallel_size is 3", PP "3", SPLIT "26,32");
    WITH(0, "has 2 entries and pipeline_model_parallel_size is 1", SPLIT "26,32");
    WITH(0, "at most 57 stages", PP "58");
    WITH(57, NULL, PP "57");
    char *strict[] = {"8.0,50", "1e1,48", "+8,50", "8 8,42", ",58", "58,", "8,,50", "0x8,50"};
    for (size_t i = 0; i < sizeof strict / sizeof *strict; i++) {
        char *text = xasprintf(SPLIT "%s", strict[i]);
        WITH(0, "not a whole number", PP "2", text);
        free(text);
    }
    /* All faults of one value at once. */
    WITH(0, "has 3 entries", PP "2", SPLIT "25,0,30");
    WITH(0, "entry 2 is 0", PP "2", SPLIT "25,0,30");
    WITH(0, "sum to 55", PP "2", SPLIT "25,0,30");
    WITH(0, "between the two layers", PP "2", SPLIT "25,0,30");
    WITH(0, "too large", PP "2", SPLIT "9223372036854775807,9223372036854775807");
}

static void test_rules(void **state) {
    (void)state;
    WITH(0, "only 8 key/value heads", "parallel:tensor_model_parallel_size=9",
         "language:num_query_groups=8");
    WITH(0, "do not divide, and tp_uneven", "parallel:tensor_model_parallel_size=3",
         "parallel:tp_uneven=false");
    WITH(3, NULL, "parallel:tensor_model_parallel_size=3");
    WITH(0, "must divide num_attention_heads", "language:num_query_groups=7");
    WITH(0, "above 1", "parallel:sequence_parallel=true");
    WITH(0, "device = cuda", "run:distributed_backend=nccl");
    WITH(1, NULL, "run:device=cuda", "training:bf16=true");
    WITH(0, "no inner width", AFFINE, "projector:projector_hidden_size=128");
    WITH(0, "no activation", AFFINE, "projector:projector_activation=silu");
    WITH(1, NULL, AFFINE, "projector:projector_activation=gelu");
    WITH(0, "multiple of patch_dim", "vision:img_h=335");
    WITH(0, "nothing is left to train", "vision:freeze_ViT=1", "language:freeze_LM=1",
         "projector:freeze_vision_projection=1");
    WITH(0, "even whole number", "language:rotary_percent=0.01");
    WITH(0, "rope or none", "language:position_embedding_type=learned_absolute");
    /* An argument takes the place of the key of the file that it excludes; two arguments do not. */
    WITH(1, NULL, "training:train_samples=5");
    WITH(0, "one of them", "training:train_samples=5", "training:train_iters=5");
    WITH(0, "use the _iters key", "optimizer:lr_warmup_samples=5");
    WITH(0, "must not exceed lr", "optimizer:min_lr=1");
    WITH(0, "shorter than the decay", "optimizer:lr_warmup_iters=100");
    WITH(0, "lr_warmup_fraction is given", "optimizer:lr_warmup_iters=1",
         "optimizer:lr_warmup_fraction=0.1");
    WITH(0, "needs lr_wsd_decay_iters", "optimizer:lr_decay_style=WSD");
    WITH(1, NULL, "optimizer:lr_decay_style=WSD", "optimizer:lr_wsd_decay_iters=10");
    WITH(0, "bf16 is true too", "training:bf16=true", "training:fp16=true");
    WITH(0, "recompute_num_layers", "training:recompute_granularity=full");
    WITH(0, "needs recompute_granularity", "training:recompute_method=block");
    WITH(0, "needs data_format = llava_json", "data:image_folder=x");
    WITH(0, "is required with data_format = llava_json", "data:data_format=llava_json");
    WITH(0, "3 numbers", "data:image_mean=0.5,0.5");
    WITH(0, "needs image_aspect_ratio = anyres", "data:image_grid_pinpoints=336,672");
    WITH(0, "pairs width,height, at most 64", ANYRES, "data:image_grid_pinpoints=336,672,336");
    WITH(0, "pair 2 is 672 x 337: multiples of a tile", ANYRES,
         "data:image_grid_pinpoints=336,672,672,337");
    WITH(0, "entry 2, \"0\": out of range", ANYRES, "data:image_grid_pinpoints=336,0");
    WITH(0, "a class row has no place", ANYRES, "vision:disable_vision_class_token=false");
    WITH(0, "needs save", "checkpoint:save_interval=5");
    WITH(0, "at least 2", "checkpoint:save=x", "checkpoint:most_recent_k=1");
    WITH(0, "no mixture of experts", "parallel:expert_model_parallel_size=2");
    WITH(0, "known, not in this version", "parallel:schedule=zb");
    WITH(0, "known, not in this version", "run:family=gpt2");
    WITH(1, NULL, "checkpoint:async_save=false");
    WITH(6, "start 4 or 8 ranks", "parallel:tensor_model_parallel_size=2", PP "2");
    WITH(3, "start 4 ranks", "parallel:tensor_model_parallel_size=2", PP "2");
    WITH(4, "nearest: 4 or 8", "training:global_batch_size=6");
    WITH(4, NULL, "training:global_batch_size=8");
    WITH(0, "did you mean [optimizer] lr?", "optimizer:lrr=1");
    WITH(0, "given twice", "optimizer:lr=1", "optimizer:lr=1");
    WITH(0, "section:key=value", "optimizer.lr=1");
    WITH(0, "did you mean [data]", "dat:lr=1");
}

static void test_megatron_names(void **state) {
    (void)state;
    static const char *const name[] = {
        "decoder_first_pipeline_num_layers",       "num_layers_in_last_pipeline_stage",
        "account_for_embedding_in_pipeline_split", "encoder_tensor_model_parallel_size",
        "pipeline_model_parallel_split_rank",      "pipeline_model_parallel_layout"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char *line = xasprintf("%s = 1", name[i]);
        refused("parallel", "", line, "strata has split_spec");
        free(line);
    }
    refused("run", "", "mock_data = true", "data_format = mock");
    refused("checkpoint", "", "exit_on_missing_checkpoint = true", "always an error");
    refused("language", "", "fp8_margin = 1", "precisions are");
}

static void test_errors_come_together(void **state) {
    (void)state;
    write_job("", "", "[vision]\nimg_h = 12abc\nimg_w = 0\nnum_layer = 3\n[optimizer]\nmin_lr = 1");
    assert_null(load(1, (char *[]){"logging:log_interval=0"}));
    assert_int_equal(error_count(), 5);
    assert_null(load(0, NULL));
    assert_int_equal(error_count(), 4);
}

static void same_config(const struct config *a, const struct config *b) {
    for (int k = 0; k < config_n_keys; k++) {
        if (config_table[k].type == TYPE_LATER) continue;
        char *x = config_value_text(a, k), *y = config_value_text(b, k);
        const void *p = config_field(a, k), *q = config_field(b, k);
        if ((x == NULL) != (y == NULL) || (x != NULL && strcmp(x, y) != 0))
            fail_msg("[%s] %s: %s became %s", config_table[k].section, config_table[k].name, x, y);
        if (config_table[k].type == TYPE_REAL) assert_memory_equal(p, q, sizeof(double));
        free(x);
        free(y);
    }
    assert_memory_equal(&a->derived, &b->derived, sizeof a->derived);
}

static char *used_text(const struct config *cfg) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    assert_int_equal(config_write_used(cfg, f), 0);
    fclose(f);
    return text;
}

static void round_trip(int n, char **overrides, bool resolve) {
    write_job("", "", "");
    struct config *a = load(n, overrides), *b = NULL;
    if (a == NULL) fail_msg("%s", error_text());
    assert_int_equal(config_check_world(a, 4), 0);
    if (resolve) {
        assert_int_equal(config_resolve_split(a, (const int64_t[]){58}, 1), 0);
        assert_int_equal(config_resolve_vocab(a, 32000), 0);
    }
    char *text = used_text(a);
    write_file(echo, text, strlen(text));
    assert_int_equal(config_load(echo, 0, NULL, &b), 0);
    assert_int_equal(config_check_world(b, 4), 0);
    same_config(a, b);
    char *again = used_text(b);
    write_file(echo, again, strlen(again));
    struct config *c = NULL;
    assert_int_equal(config_load(echo, 0, NULL, &c), 0);
    assert_int_equal(config_check_world(c, 4), 0);
    same_config(a, c);
    config_free(a);
    config_free(b);
    config_free(c);
    free(text);
    free(again);
}
#define ROUND(resolve, ...)                                                                        \
    round_trip((int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[]){__VA_ARGS__},   \
               resolve)

static void test_used_ini_round_trip(void **state) {
    (void)state;
    ROUND(false, "run:run_dir=out");
    ROUND(true, "run:run_dir=out");
    ROUND(true, "optimizer:lr=0.1", "optimizer:adam_beta1=0.30000000000000004",
          "optimizer:adam_eps=5e-300", "optimizer:lr_warmup_fraction=0.03", "optimizer:vision_lr=0",
          "training:z_loss=3.3333333333333333e-5");
    ROUND(false, "run:run_dir=/a;b#c 'd' \\", "data:caption_prompt= a \"quoted\" ; text ",
          "data:caption_extension=", "data:image_background=1,2,255", "data:image_mean=0.1,0.2,0.3",
          "checkpoint:save=x\\");
    ROUND(false, ANYRES);
    ROUND(false, ANYRES, "data:image_grid_pinpoints=672,336,336,336");
    ROUND(false, AFFINE, "optimizer:lr_decay_style=WSD", "optimizer:lr_wsd_decay_iters=9",
          "optimizer:optimizer=sgd", "vision:freeze_ViT=true", "training:seed=9223372036854775807");
    ROUND(false, PP "4", SPLIT "20,10,20,8", "training:recompute_granularity=full",
          "training:recompute_method=block", "training:recompute_num_layers=3", "checkpoint:save=s",
          "checkpoint:ckpt_step=0", "checkpoint:most_recent_k=2");
    ROUND(false, "data:data_format=llava_json", "data:conversation_template=v1",
          "data:image_folder=../images", "data:on_bad_image=skip", "data:max_bad_images=7");
}

/* Reals keep every bit on their way in, too. */
static void test_reals_are_exact(void **state) {
    (void)state;
    write_job("", "",
              "[optimizer]\nadam_beta1 = 0.30000000000000004\nadam_eps = 5e-300\n"
              "[data]\nimage_mean = 0.1,0.30000000000000004,0.3");
    struct config *cfg = load(0, NULL);
    assert_non_null(cfg);
    assert_true(cfg->optimizer.adam_beta1 == 0.30000000000000004);
    assert_true(cfg->optimizer.adam_eps == 5e-300);
    assert_true(cfg->data.image_mean.v[1] == 0.30000000000000004);
    config_free(cfg);
}

/* No argument could take a key of the file away: it takes the place of those that exclude it. */
static void test_argument_wins(void **state) {
    (void)state;
    write_job("", "",
              "[optimizer]\nlr_warmup_fraction = 0.1\n[checkpoint]\npretrained_checkpoint = a");
    char *steps = "optimizer:lr_warmup_iters=7", *load_from = "checkpoint:load=b";
    struct config *cfg = load(0, NULL);
    assert_non_null(cfg);
    assert_int_equal(cfg->derived.lr_warmup, 10);
    config_free(cfg);
    cfg = load(2, (char *[]){steps, load_from});
    assert_non_null(cfg);
    assert_int_equal(cfg->derived.lr_warmup, 7);
    assert_false(config_given(cfg, &cfg->optimizer.lr_warmup_fraction));
    assert_null(cfg->checkpoint.pretrained_checkpoint);
    assert_non_null(strstr(cfg->checkpoint.load, "/b"));
    config_free(cfg);
}

static void test_used_ini_with_samples(void **state) {
    (void)state;
    write_job("training", "train_iters", "[training]\ntrain_samples = 1003");
    struct config *a = load(0, NULL), *b = NULL;
    assert_non_null(a);
    assert_int_equal(config_check_world(a, 4), 0);
    assert_int_equal(a->training.train_iters, 250);
    assert_true(a->derived.lr_by_samples && a->derived.lr_decay == 1003);
    char *text = used_text(a);
    write_file(echo, text, strlen(text));
    assert_int_equal(config_load(echo, 0, NULL, &b), 0);
    assert_int_equal(config_check_world(b, 4), 0);
    same_config(a, b);
    config_free(a);
    config_free(b);
    free(text);
}

static void test_trainable(void **state) {
    (void)state;
    write_job("", "", "[run]\ndevice = cuda");
    struct config *cfg = load(0, NULL);
    error_clear();
    assert_int_equal(config_check_trainable(cfg), EXIT_UNAVAILABLE);
    assert_int_equal(error_code(), EXIT_UNAVAILABLE);
    assert_non_null(strstr(error_text(), "this binary was built without it"));
    config_free(cfg);
    write_job("", "", "[training]\nbf16 = true");
    cfg = load(0, NULL);
    assert_int_equal(config_check_trainable(cfg), EXIT_USAGE);
    config_free(cfg);
}

static char *printed(int (*print)(FILE *)) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    assert_int_equal(print(f), 0);
    fclose(f);
    return text;
}

static void test_printed_tables(void **state) {
    (void)state;
    char *keys = printed(config_print_keys), *manual = printed(config_print_markdown);
    for (int k = 0; k < config_n_keys; k++) {
        char *cell = xasprintf("| `%s` |", config_table[k].name);
        assert_non_null(strstr(manual, cell));
        assert_non_null(strstr(keys, config_table[k].name));
        free(cell);
    }
    char *template = printed(config_print_template);
    write_file(job, template, strlen(template));
    struct config *cfg = load(0, NULL);
    if (cfg == NULL) fail_msg("the template: %s", error_text());
    config_free(cfg);
    char *doc;
    size_t bytes;
    error_clear();
    if (file_read("doc/job-file.md", 1 << 20, &doc, &bytes) == 0) {
        assert_string_equal(doc, manual);
        free(doc);
    } else
        print_message("doc/job-file.md is not here: not compared\n");
    free(keys);
    free(manual);
    free(template);
}

/* The published resolutions, for tiles of any size. */
static void test_pinpoints(void **state) {
    (void)state;
    static const int64_t published[10] = {336, 672, 672, 336, 672, 672, 1008, 336, 336, 1008};
    write_job("", "", "[data]\nimage_aspect_ratio = anyres");
    struct config *cfg = load(0, NULL);
    if (cfg == NULL) fail_msg("%s", error_text());
    assert_int_equal(cfg->data.image_grid_pinpoints.n, 10);
    assert_memory_equal(cfg->data.image_grid_pinpoints.v, published, sizeof published);
    config_free(cfg);
    write_job("", "", "[data]\nimage_aspect_ratio = anyres\n[vision]\nimg_h = 28\nimg_w = 42");
    cfg = load(0, NULL);
    if (cfg == NULL) fail_msg("%s", error_text());
    assert_true(cfg->data.image_grid_pinpoints.v[0] == 42);
    assert_true(cfg->data.image_grid_pinpoints.v[1] == 56);
    config_free(cfg);
}

static int set_up(void **state) {
    (void)state;
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(job, sizeof job, "%s/job.ini", dir);
    snprintf(echo, sizeof echo, "%s/used.ini", dir);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    unlink(job);
    unlink(echo);
    return rmdir(dir);
}

/* ---- paths as a shell reads them -------------------------------------------------------------- */
/* save = value gives `path`; NULL: it is refused with `word`, in the job file and as an argument. */
static void path_becomes(const char *value, const char *path, const char *word) {
    char *line = xasprintf("[checkpoint]\nsave = \"%s\"", value);
    char *argument = xasprintf("checkpoint:save=%s", value);
    for (int i = 0; i < 2; i++) {
        int last = write_job("checkpoint", "", i == 0 ? line : "");
        struct config *cfg = load(i, &argument);
        if (path != NULL) {
            if (cfg == NULL) fail_msg("%s: %s", value, error_text());
            assert_string_equal(cfg->checkpoint.save, path);
            FILE *to = fopen(echo, "w");
            assert_int_equal(config_write_used(cfg, to), 0);
            fclose(to);
            struct config *again = NULL;
            assert_int_equal(config_load(echo, 0, NULL, &again), 0);
            assert_string_equal(again->checkpoint.save, path);
            config_free(again);
        } else {
            char *place = i == 0 ? xasprintf(":%d: [checkpoint] save", last)
                                 : xasprintf("%s\": [checkpoint] save", argument);
            assert_null(cfg);
            if (strstr(error_text(), word) == NULL || strstr(error_text(), place) == NULL)
                fail_msg("%s: %s", value, error_text());
            free(place);
        }
        config_free(cfg);
    }
    free(line);
    free(argument);
}

static void test_paths_as_in_a_shell(void **state) {
    (void)state;
    char *home = getenv("HOME") != NULL ? xstrdup(getenv("HOME")) : NULL;
    char *beside = xasprintf("%s/under/ck", dir), *literal = xasprintf("%s/~", dir);
    setenv("HOME", "/h/ome", 1);
    setenv("STRATA_T", "/scr/a$b", 1);
    setenv("STRATA_REL", "under", 1);
    setenv("STRATA_EMPTY", "", 1);
    unsetenv("STRATA_NOT_SET");
    path_becomes("~", "/h/ome", NULL);
    path_becomes("~/ck", "/h/ome/ck", NULL);
    path_becomes("$HOME/ck", "/h/ome/ck", NULL);
    path_becomes("${HOME}ck/x~", "/h/omeck/x~", NULL);
    path_becomes("$STRATA_T/ck", "/scr/a$b/ck", NULL);
    path_becomes("/a/$$HOME/c$$", "/a/$HOME/c$", NULL);
    path_becomes("$STRATA_REL/ck", beside, NULL);
    path_becomes("./~", literal, NULL);
    path_becomes("/a/~", "/a/~", NULL);
    path_becomes("~user/ck", NULL, "~NAME is not known");
    path_becomes("$STRATA_NOT_SET/ck", NULL, "variable STRATA_NOT_SET is not set");
    path_becomes("${STRATA_NOT_SET}/ck", NULL, "variable STRATA_NOT_SET is not set");
    path_becomes("$STRATA_EMPTY/ck", NULL, "variable STRATA_EMPTY is empty");
    path_becomes("/a/$/ck", NULL, "is written $$");
    path_becomes("/a/$1", NULL, "is written $$");
    path_becomes("/a/${X", NULL, "is written $$");
    path_becomes("/a/ck$", NULL, "is written $$");
    unsetenv("HOME");
    path_becomes("~/ck", NULL, "variable HOME is not set");
    if (home != NULL) setenv("HOME", home, 1);
    free(home);
    free(beside);
    free(literal);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_key_in_every_wrong_form),
        cmocka_unit_test(test_suggestions),
        cmocka_unit_test(test_raw_file),
        cmocka_unit_test(test_defaults_and_derived),
        cmocka_unit_test(test_split_spec),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_megatron_names),
        cmocka_unit_test(test_errors_come_together),
        cmocka_unit_test(test_used_ini_round_trip),
        cmocka_unit_test(test_reals_are_exact),
        cmocka_unit_test(test_argument_wins),
        cmocka_unit_test(test_used_ini_with_samples),
        cmocka_unit_test(test_trainable),
        cmocka_unit_test(test_printed_tables),
        cmocka_unit_test(test_pinpoints),
        cmocka_unit_test(test_paths_as_in_a_shell),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
