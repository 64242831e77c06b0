/* strata export: a checkpoint of any layout -> a folder that transformers loads. Every rank writes its
 * share of the bytes, and holds one slice of one tensor at a time. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hf_impl.h"

static const char usage[] =
    "strata export CHECKPOINT DST [--step N] [--dtype fp32|fp16|bf16] [--max-shard-gb X] "
    "[--tokenizer DIR] [--names hf|original] [--projector-only] [--image-token ID] [--vocab-size "
    "N] [data:key=value ...]";

struct export {
    struct hf_export o;
    char *own_tokenizer; /* what o.tokenizer points to, if the job file said it */
    struct ckpt_settings settings;
    struct ckpt_found found;
    char *job, *tokenizer_model, *tokenizer_type, *conversation;
    char *notes;
    size_t notes_bytes;
    struct tokenizer *pieces; /* NULL: there is no model file */
    struct hf_model model;
    struct safetensor *tensor;  /* to write, in the order of the layers */
    const struct param **param; /* of each; NULL: a bias of zeros */
    int64_t n;
};

/* ---- command line ------------------------------------------------------------------------------------ */
static int take_number(const char *option, const char *word, int64_t *out) {
    if (parse_int64(word, out) && *out >= 0) return 0;
    return error_raise(EXIT_USAGE, "%s %s: a whole number is expected", option, word);
}

static int take_dtype(const char *word, enum safetensors_dtype *out) {
    static const struct {
        const char *word;
        enum safetensors_dtype type;
    } known[] = {{"fp32", ST_F32}, {"fp16", ST_F16}, {"bf16", ST_BF16}};
    for (int i = 0; i < 3; i++)
        if (strcmp(word, known[i].word) == 0) {
            *out = known[i].type;
            return 0;
        }
    return error_raise(EXIT_USAGE, "--dtype %s: allowed are fp32, fp16, bf16", word);
}

static int take_value(struct hf_export *o, const char *option, const char *word) {
    double gb;
    if (strcmp(option, "--step") == 0) return take_number(option, word, &o->step);
    if (strcmp(option, "--image-token") == 0) return take_number(option, word, &o->image_token);
    if (strcmp(option, "--vocab-size") == 0) return take_number(option, word, &o->vocab_size);
    if (strcmp(option, "--dtype") == 0) return take_dtype(word, &o->dtype);
    if (strcmp(option, "--tokenizer") == 0) {
        o->tokenizer = word;
        return 0;
    }
    if (strcmp(option, "--max-shard-gb") == 0) {
        if (!parse_real(word, &gb) || !(gb > 0) || !(gb < 1e9))
            return error_raise(EXIT_USAGE, "--max-shard-gb %s: a number above 0 is expected", word);
        o->max_bytes = (int64_t)(gb * 1e9) > 0 ? (int64_t)(gb * 1e9) : 1;
        return 0;
    }
    if (strcmp(option, "--names") != 0)
        return error_raise(EXIT_USAGE, "strata export has no option %s. %s", option, usage);
    o->original = strcmp(word, "original") == 0;
    if (o->original || strcmp(word, "hf") == 0) return 0;
    return error_raise(EXIT_USAGE, "--names %s: allowed are hf, original", word);
}

/* data:key=value: how images and text are made is for the export to say, the model is not. */
static int take_override(struct hf_export *o, char *word) {
    char key[40] = "";
    snprintf(key, sizeof key, "%.*s", (int)strcspn(word + 5, "="), word + 5);
    if (!hf_key_is_input("data", key))
        return error_raise(EXIT_USAGE,
                           "%s: an export takes keys of [data] about images and text; the others "
                           "are the checkpoint's",
                           word);
    o->override[o->n_overrides++] = word;
    return 0;
}

static int take_arguments(struct hf_export *o, int argc, char **argv) {
    const char *value;
    *o =
        (struct hf_export){.step = -1, .max_bytes = 5000000000, .image_token = -1, .dtype = ST_F16};
    o->override = xcalloc((size_t)argc + 1, sizeof *o->override);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "data:", 5) == 0 && strchr(argv[i], '=') != NULL) {
            TRY(take_override(o, argv[i]));
        } else if (strcmp(argv[i], "--projector-only") == 0) {
            o->projector_only = true;
        } else if (strncmp(argv[i], "--", 2) == 0) {
            const char *option = argv[i];
            TRY(hf_option_value(argc, argv, &i, &value));
            TRY(take_value(o, option, value));
        } else if (o->to != NULL) {
            return error_raise(EXIT_USAGE, "%s is one word too many. %s", argv[i], usage);
        } else {
            *(o->from == NULL ? &o->from : &o->to) = argv[i];
        }
    }
    return o->to != NULL ? 0 : error_raise(EXIT_USAGE, "%s", usage);
}

/* ---- the checkpoint's own job ----------------------------------------------------------------------------- */
struct job_writer {
    struct export *x;
    FILE *to;
    char section[32];
};

static const char *overridden(const struct hf_export *o, const char *key, const char *value) {
    for (int i = 0; i < o->n_overrides; i++) {
        size_t n = strlen(key);
        const char *word = o->override[i] + 5;
        if (strncmp(word, key, n) == 0 && word[n] == '=') value = word + n + 1;
    }
    return value;
}

static void put_key(void *arg, const char *section, const char *key, const char *value,
                    bool defaulted) {
    struct job_writer *w = arg;
    bool model = strcmp(section, "vision") == 0 || strcmp(section, "projector") == 0 ||
                 strcmp(section, "language") == 0;
    bool data = strcmp(section, "data") == 0;
    bool image = data && strncmp(key, "image_", 6) == 0 && strcmp(key, "image_folder") != 0;
    if (data) value = overridden(&w->x->o, key, value);
    if (data && strcmp(key, "tokenizer_model") == 0) w->x->tokenizer_model = xstrdup(value);
    if (data && strcmp(key, "tokenizer_type") == 0) w->x->tokenizer_type = xstrdup(value);
    if (data && strcmp(key, "conversation_template") == 0) w->x->conversation = xstrdup(value);
    (void)defaulted; /* a default may have followed from the tokenizer */
    if (value[0] == 0 || !(model || image)) return;
    if (strcmp(w->section, section) != 0) fprintf(w->to, "[%s]\n", section);
    if (strcmp(section, "data") == 0 && strcmp(w->section, section) != 0)
        fprintf(w->to, "data_format = mock\n");
    snprintf(w->section, sizeof w->section, "%s", section);
    fprintf(w->to, "%s = %s\n", key, value);
}

/* Of the job only what shapes the model and its images; the rest is as small as the rules allow. */
static int read_job(struct export *x, const struct grid *grid) {
    size_t bytes;
    struct job_writer w = {.x = x};
    w.to = open_memstream(&x->job, &bytes);
    CHECK(w.to != NULL, "no memory for the job file");
    fputs(HF_SMALL_JOB, w.to);
    int rc = ckpt_config(&x->settings, &x->found, grid, put_key, &w);
    if (strcmp(w.section, "data") != 0) fprintf(w.to, "[data]\ndata_format = mock\n");
    fclose(w.to);
    if (!rc) rc = hf_model_build(x->found.dir, NULL, x->job, &x->model);
    return rc;
}

/* ---- tokenizer and special ids ------------------------------------------------------------------------------- */
static int read_tokenizer(struct export *x) {
    struct hf_export *o = &x->o;
    if (o->tokenizer == NULL && x->tokenizer_model != NULL) {
        char *slash = strrchr(x->tokenizer_model, '/');
        x->own_tokenizer =
            slash != NULL ? xasprintf("%.*s", (int)(slash - x->tokenizer_model), x->tokenizer_model)
                          : xstrdup(".");
        o->tokenizer = x->own_tokenizer;
    }
    o->trained = x->found.step > 0;
    o->conversation = x->conversation;
    TRY(hf_source_read(o));
    if (x->tokenizer_model == NULL || access(x->tokenizer_model, R_OK) != 0) return 0;
    TRY(tokenizer_open(x->tokenizer_type != NULL ? x->tokenizer_type : "Llama2Tokenizer",
                       x->tokenizer_model, &x->pieces));
    if (o->bos < 0) o->bos = tokenizer_bos(x->pieces);
    if (o->eos < 0) o->eos = tokenizer_eos(x->pieces);
    return 0;
}

/* transformers looks the image's own token up in the embedding: it must be a row. */
static int check_ids(struct export *x) {
    struct hf_export *o = &x->o;
    int64_t vocab = x->model.cfg->language.vocab_size;
    int64_t pieces = x->pieces != NULL ? tokenizer_vocab_size(x->pieces) : vocab;
    if (o->vocab_size == 0) o->vocab_size = vocab;
    if (o->vocab_size < vocab)
        return error_raise(EXIT_USAGE, "--vocab-size %lld: the model has %lld rows",
                           (long long)o->vocab_size, (long long)vocab);
    if (o->image_token < 0 && o->vocab_size > pieces) o->image_token = pieces;
    if (o->image_token < 0 && o->vocab_size > 32000) o->image_token = 32000;
    if (o->pad >= o->vocab_size) o->pad = -1;
    o->image_piece = "<image>";
    if (x->pieces != NULL && o->image_token >= 0 && o->image_token < pieces)
        o->image_piece = tokenizer_piece(x->pieces, (int32_t)o->image_token);
    if (o->original || o->projector_only || (o->image_token >= 0 && o->image_token < o->vocab_size))
        return 0;
    return error_raise(
        EXIT_USAGE,
        "the model has %lld rows of vocabulary and none for <image>: --vocab-size N "
        "adds rows (LLaVA's folders have 32064), or --image-token ID names one that is "
        "there and unused",
        (long long)vocab);
}

/* ---- names ------------------------------------------------------------------------------------------------------ */
static const struct {
    const char *from, *to;
} original_prefix[] = {
    {"language_model.model.", "model."},
    {"language_model.", ""},
    {"vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."},
    {"multi_modal_projector.linear_1.", "model.mm_projector.0."},
    {"multi_modal_projector.linear_2.", "model.mm_projector.2."},
    {"multi_modal_projector.linear.", "model.mm_projector."},
    {"image_newline", "model.image_newline"},
};

static char *out_name(const struct export *x, const char *hf_name) {
    if (!x->o.original && !x->o.projector_only) return xstrdup(hf_name);
    for (size_t i = 0; i < sizeof original_prefix / sizeof *original_prefix; i++) {
        size_t n = strlen(original_prefix[i].from);
        if (strncmp(hf_name, original_prefix[i].from, n) == 0)
            return xasprintf("%s%s", original_prefix[i].to, hf_name + n);
    }
    CHECK(false, "%s has no original name", hf_name);
}

static void add_tensor(struct export *x, const struct param *p, char *name, int ndim,
                       const int64_t *shape) {
    struct safetensor *t = &x->tensor[x->n];
    *t = (struct safetensor){.name = name, .dtype = x->o.dtype, .n_dims = ndim};
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    if (strcmp(name, "language_model.model.embed_tokens.weight") == 0 ||
        strcmp(name, "language_model.lm_head.weight") == 0)
        t->shape[0] = x->o.vocab_size;
    x->param[x->n++] = p;
}

static void list_tensors(struct export *x) {
    const struct param_set *set = &x->model.stage.params;
    bool zeros = !x->model.stack.shape.projector.bias && x->o.original;
    x->tensor = xcalloc(2 * (size_t)set->n, sizeof *x->tensor);
    x->param = xcalloc(2 * (size_t)set->n, sizeof *x->param);
    for (int i = 0; i < set->n; i++) {
        const struct param *p = &set->param[i];
        if (x->o.projector_only && p->group != PARAM_PROJECTOR) continue;
        add_tensor(x, p, out_name(x, p->hf_name), p->ndim, p->shape);
        if (p->group != PARAM_PROJECTOR || !zeros) continue;
        /* The original's class has biases: of zeros it is the same function. */
        char *bias = xasprintf("%.*sbias", (int)strlen(p->hf_name) - 6, p->hf_name);
        add_tensor(x, NULL, out_name(x, bias), 1, p->shape);
        free(bias);
    }
}

/* ---- the whole ------------------------------------------------------------------------------------------------------- */
/* The configurations lie in a folder of their own until they have been read back; config.json gets its
 * place last: a folder without one is not taken for a whole one. */
#define UNREAD ".unread"

static int take_place(const struct export *x, const char *unread) {
    int rc = 0;
    for (int i = 0; !rc && hf_config_files[i] != NULL; i++) {
        char *from = xasprintf("%s/%s", unread, hf_config_files[i]),
             *to = xasprintf("%s/%s", x->o.to, hf_config_files[i]);
        if (access(from, F_OK) == 0 && rename(from, to) != 0)
            rc = error_raise(EXIT_IO, "%s cannot be renamed: %s", from, strerror(errno));
        free(from);
        free(to);
    }
    return rc;
}

/* After a failure neither the tensors nor their index may look as if they belonged to a whole. */
static void remove_rest(const struct export *x, const char *unread, bool failed) {
    static const char *const whole[] = {"model.safetensors", "model.safetensors.index.json"};
    for (int i = 0; hf_config_files[i] != NULL; i++) {
        char *path = xasprintf("%s/%s", unread, hf_config_files[i]);
        unlink(path);
        free(path);
    }
    rmdir(unread);
    for (int i = 0; failed && i < 2; i++) {
        char *path = xasprintf("%s/%s", x->o.to, whole[i]);
        unlink(path);
        free(path);
    }
}

static int write_configs(struct export *x) {
    char *unread = xasprintf("%s/" UNREAD, x->o.to);
    int rc = dir_make(unread);
    if (!rc) rc = hf_write_configs(&x->o, x->model.cfg, unread);
    if (!rc) rc = hf_read_back(&x->o, x->model.cfg, unread);
    if (!rc) rc = take_place(x, unread);
    remove_rest(x, unread, rc != 0);
    free(unread);
    return rc;
}

static int write_companions(struct export *x) {
    int n = 0;
    if (!x->o.projector_only) TRY(hf_write_tokenizer(&x->o, x->pieces, x->model.cfg, &n));
    if (!x->o.projector_only) TRY(write_configs(x));
    fflush(x->o.notes);
    printf("%swritten: %lld tensors as %s and %d files of the tokenizer in %s\n", x->notes,
           (long long)x->n, safetensors_dtype_name(x->o.dtype), n, x->o.to);
    return 0;
}

static int write_all(struct export *x, const struct group *world) {
    bool first = group_rank(world) == 0;
    const char *taken = x->o.projector_only ? "mm_projector.safetensors" : "config.json";
    TRY(comm_vote(world, first ? hf_make_folder(x->o.to, taken) : 0));
    list_tensors(x);
    struct hf_tensors t = {x->tensor, x->param, x->n};
    TRY(hf_write_tensors(&x->o, world, &x->settings, &x->found, &t));
    return comm_vote(world, first ? write_companions(x) : 0);
}

static int export_found(struct export *x) {
    struct grid *grid;
    TRY(hf_grid_create(&grid));
    const struct group *world = grid_group(grid, GROUP_WORLD);
    x->settings = (struct ckpt_settings){.load = x->o.from,
                                         .resume = CKPT_RESUME_MUST,
                                         .finetune = true,
                                         .ckpt_step = x->o.step,
                                         .verify_load = CKPT_VERIFY_ALL};
    int rc = ckpt_find(&x->settings, grid, &x->found);
    if (!rc) rc = read_job(x, grid);
    if (!rc) rc = read_tokenizer(x);
    if (!rc && !x->o.projector_only) rc = hf_check_keys(&x->o, x->model.cfg);
    if (!rc) rc = check_ids(x);
    rc = comm_vote(world, rc);
    if (!rc) rc = write_all(x, world);
    grid_destroy(grid);
    return rc;
}

static void export_free(struct export *x) {
    for (int64_t i = 0; i < x->n; i++) free(x->tensor[i].name);
    free(x->tensor);
    free(x->param);
    hf_model_free(&x->model);
    ckpt_found_free(&x->found);
    free(x->own_tokenizer);
    free(x->tokenizer_model);
    free(x->tokenizer_type);
    free(x->conversation);
    tokenizer_close(x->pieces);
    free(x->job);
    free(x->o.override);
    hf_source_free(&x->o);
    if (x->o.notes != NULL) fclose(x->o.notes);
    free(x->notes);
}

static int export(int argc, char **argv) {
    struct export x = {0};
    int rc = take_arguments(&x.o, argc, argv);
    x.o.notes = open_memstream(&x.notes, &x.notes_bytes);
    CHECK(x.o.notes != NULL, "no memory for notes");
    if (!rc) rc = export_found(&x);
    export_free(&x);
    return rc;
}

int cli_export(int argc, char **argv) {
    return cli_under_mpi(export, argc, argv);
}
