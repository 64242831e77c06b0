/* strata import: foreign weights -> a checkpoint of strata, a job file, the tokenizer. Every rank reads
 * and writes its share of the weights; rank 0 does the rest. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hf_impl.h"

static const char usage[] =
    "strata import SRC DST [options] [section:key=value ...]: SRC is a LLaVA folder; or "
    "--language DIR --vision DIR and --projector DIR or --fresh-projector in place of SRC; "
    "--dry-run, --job FILE, --follow-links";

struct import {
    const char *from[3];       /* language, vision, projector: the last NULL if fresh */
    const char *to, *job_file; /* job_file: one more copy of the job file, NULL: none */
    bool fresh, dry_run, follow_links;
    char **override;
    int n_overrides;
    struct safetensors *files[3]; /* equal paths share one */
    struct hf_source source[3];
    int n_sources;
    struct hf_keys keys;
    char *job;
    struct hf_model model;
    struct hf_map map;
    struct grid *grid;
    bool first_rank, made; /* made: the folder `to` was not there before */
    float *first_values;   /* of what no source has, tensor after tensor */
};
enum { LANGUAGE, VISION, PROJECTOR };

/* ---- command line ------------------------------------------------------------------------------------ */
static int take_option(struct import *m, int argc, char **argv, int *i) {
    static const char *const part[] = {"--language", "--vision", "--projector"};
    for (int k = 0; k < 3; k++)
        if (strcmp(argv[*i], part[k]) == 0) return hf_option_value(argc, argv, i, &m->from[k]);
    if (strcmp(argv[*i], "--job") == 0) return hf_option_value(argc, argv, i, &m->job_file);
    if (strcmp(argv[*i], "--fresh-projector") == 0)
        m->fresh = true;
    else if (strcmp(argv[*i], "--dry-run") == 0)
        m->dry_run = true;
    else if (strcmp(argv[*i], "--follow-links") == 0)
        m->follow_links = true;
    else
        return error_raise(EXIT_USAGE, "strata import has no option %s. %s", argv[*i], usage);
    return 0;
}

static int take_arguments(struct import *m, int argc, char **argv) {
    const char *plain[2];
    int n = 0;
    m->override = xcalloc((size_t)argc + 1, sizeof *m->override);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0)
            TRY(take_option(m, argc, argv, &i));
        else if (strchr(argv[i], '=') != NULL && strchr(argv[i], ':') != NULL &&
                 access(argv[i], F_OK) != 0)
            m->override[m->n_overrides++] = argv[i];
        else if (n < 2)
            plain[n++] = argv[i];
        else
            return error_raise(EXIT_USAGE, "%s is one word too many. %s", argv[i], usage);
    }
    bool whole = m->from[LANGUAGE] != NULL && m->from[VISION] != NULL;
    int needed = (whole ? 0 : 1) + (m->dry_run ? 0 : 1);
    if (n < needed || (whole && n > 1)) return error_raise(EXIT_USAGE, "%s", usage);
    if (m->fresh && m->from[PROJECTOR] != NULL)
        return error_raise(EXIT_USAGE, "--projector and --fresh-projector: one of them");
    for (int k = 0; k < 3 && !whole; k++)
        if (m->from[k] == NULL && !(k == PROJECTOR && m->fresh)) m->from[k] = plain[0];
    if (whole && m->from[PROJECTOR] == NULL && !m->fresh) m->from[PROJECTOR] = m->from[LANGUAGE];
    if (n > (whole ? 0 : 1)) m->to = plain[whole ? 0 : 1];
    return 0;
}

/* ---- sources --------------------------------------------------------------------------------------------- */
static int open_sources(struct import *m) {
    static const int part[3] = {HF_LANGUAGE, HF_VISION, HF_PROJECTOR | HF_IMAGE_NEWLINE};
    struct safetensors_options o = {.follow_links = m->follow_links};
    for (int k = 0; k < 3; k++) {
        int same = -1;
        if (m->from[k] == NULL) continue;
        for (int i = 0; i < m->n_sources; i++)
            if (strcmp(safetensors_path(m->source[i].files), m->from[k]) == 0) same = i;
        if (same < 0) {
            same = m->n_sources;
            TRY(safetensors_open(m->from[k], &o, &m->source[same].files));
            m->n_sources++;
        }
        m->files[k] = m->source[same].files;
        m->source[same].parts |= part[k];
    }
    return 0;
}

static bool has_tiles(const struct hf_keys *k) {
    const char *aspect = hf_keys_get(k, "data", "image_aspect_ratio");
    return aspect != NULL && strcmp(aspect, "anyres") == 0;
}

static int read_keys(struct import *m) {
    struct hf_folder f[3];
    for (int k = 0; k < 3; k++) f[k] = (struct hf_folder){m->from[k], m->files[k]};
    TRY(hf_model_keys(&f[LANGUAGE], &f[VISION], &f[PROJECTOR], &m->keys));
    if (m->fresh) {
        hf_keys_set(&m->keys, "projector", "projector_type", "mlp");
        hf_keys_set(&m->keys, "projector", "projector_hidden_size", "%s",
                    hf_keys_get(&m->keys, "language", "hidden_size"));
    }
    if (m->n_overrides > 48)
        return error_raise(EXIT_USAGE,
                           "%d overrides: at most 48 are taken, write the others into the "
                           "job file that import makes",
                           m->n_overrides);
    for (int i = 0; i < m->n_overrides; i++) {
        char section[16], key[40];
        const char *text = m->override[i];
        size_t n = strcspn(text, ":"), k = strcspn(text + n + 1, "=");
        if (n >= sizeof section || k >= sizeof key ||
            strlen(text + n + k + 2) >= sizeof m->keys.key->value || text[n] == 0)
            return error_raise(EXIT_USAGE, "%s: section:key=value is expected", text);
        snprintf(section, sizeof section, "%.*s", (int)n, text);
        snprintf(key, sizeof key, "%.*s", (int)k, text + n + 1);
        hf_keys_set(&m->keys, section, key, "%s", text + n + k + 2);
    }
    if (!has_tiles(&m->keys) && hf_keys_get(&m->keys, "data", "image_grid_pinpoints") != NULL)
        hf_keys_set(&m->keys, "data", "image_grid_pinpoints", "%s", "");
    const char *type = hf_keys_get(&m->keys, "projector", "projector_type");
    if (type != NULL && strcmp(type, "affine") == 0) { /* it has neither */
        hf_keys_set(&m->keys, "projector", "projector_activation", "%s", "");
        hf_keys_set(&m->keys, "projector", "projector_hidden_size", "%s", "");
    }
    return 0;
}

/* ---- the job file: what the model fixes, and the published recipe for the rest ------------------------------- */
static const struct {
    const char *section, *key, *value;
} recipe[] = {
    {"run", "family", "llava"},
    {"run", "run_dir", "run"},
    {"vision", "freeze_ViT", "true"},
    {"language", "decoder_seq_length", "2048"},
    {"training", "micro_batch_size", "1"},
    {"training", "global_batch_size", "128"},
    {"training", "train_iters", "5198"},
    {"optimizer", "lr", "2e-5"},
    {"optimizer", "lr_decay_style", "cosine"},
    {"optimizer", "lr_warmup_fraction", "0.03"},
    {"optimizer", "weight_decay", "0"},
    {"optimizer", "clip_grad", "0"},
    {"data", "data_format", "llava_json"},
    {"data", "data_path", "train.json"},
    {"data", "image_folder", "images"},
    {"data", "image_aspect_ratio", "pad"},
    {"data", "tokenizer_type", "Llama2Tokenizer"},
    {"data", "tokenizer_model", HF_TOKENIZER_FOLDER "/tokenizer.model"},
    {"checkpoint", "save", "save"},
    {"checkpoint", "save_interval", "500"},
    {"checkpoint", "pretrained_checkpoint", "."},
};

/* The recipe's line would contradict one that was given. */
static bool is_replaced(const struct hf_keys *k, const char *key) {
    static const char *const pair[][2] = {{"lr_warmup_fraction", "lr_warmup_iters"},
                                          {"lr_warmup_fraction", "lr_warmup_samples"},
                                          {"train_iters", "train_samples"},
                                          {"pretrained_checkpoint", "load"}};
    static const char *const section[] = {"optimizer", "optimizer", "training", "checkpoint"};
    for (size_t i = 0; i < sizeof pair / sizeof *pair; i++)
        if (strcmp(key, pair[i][0]) == 0 && hf_keys_get(k, section[i], pair[i][1]) != NULL)
            return true;
    return false;
}

static void add_recipe(struct hf_keys *k) {
    if (hf_keys_get(k, "data", "conversation_template") == NULL)
        hf_keys_set(k, "data", "conversation_template", "%s", k->template);
    if (has_tiles(k) && hf_keys_get(k, "language", "decoder_seq_length") == NULL)
        hf_keys_set(k, "language", "decoder_seq_length", "4096"); /* LLaVA-1.6's */
    for (size_t i = 0; i < sizeof recipe / sizeof *recipe; i++)
        if (hf_keys_get(k, recipe[i].section, recipe[i].key) == NULL &&
            !is_replaced(k, recipe[i].key))
            hf_keys_set(k, recipe[i].section, recipe[i].key, "%s", recipe[i].value);
}

static char *job_text(const struct import *m) {
    static const char *const section[] = {"run",        "parallel", "vision",    "projector",
                                          "language",   "training", "optimizer", "data",
                                          "checkpoint", "logging",  "eval",      "generate"};
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory for the job file");
    fprintf(to,
            "; Made by strata import. [vision], [projector] and [language] follow from the "
            "weights, but for\n; freeze_ViT and decoder_seq_length%s; all else is a proposal: the "
            "second stage of LLaVA 1.5.\n",
            has_tiles(&m->keys) ? ", and so do image_aspect_ratio and image_grid_pinpoints" : "");
    for (size_t s = 0; s < sizeof section / sizeof *section; s++) {
        bool begun = false;
        for (int i = 0; i < m->keys.n; i++) {
            const struct hf_key *k = &m->keys.key[i];
            if (strcmp(k->section, section[s]) != 0 || k->value[0] == 0) continue;
            if (!begun) fprintf(to, "\n[%s]\n", section[s]);
            begun = true;
            fprintf(to, "%s = %s\n", k->key, k->value);
        }
    }
    fclose(to);
    return text;
}

/* ---- the plan ------------------------------------------------------------------------------------------------- */
static int match(struct import *m) {
    const struct language_config *l = &m->model.stack.shape.language;
    int rc = hf_match(m->source, m->n_sources, &m->model.stage.params, l->head_dim,
                      (m->fresh ? HF_PROJECTOR | HF_IMAGE_NEWLINE : 0) |
                          (m->keys.tied ? HF_TIED_HEAD : 0),
                      &m->map);
    int extra = hf_check_unexpected(&m->map);
    return rc ? rc : extra;
}

static void report_part(const struct import *m, enum param_group group, const char *name) {
    int64_t tensors = 0, elements = 0, fresh = 0, bytes[ST_DTYPES] = {0};
    for (int i = 0; i < m->model.stage.params.n; i++) {
        const struct param *p = &m->model.stage.params.param[i];
        const struct hf_piece *piece = &m->map.piece[i];
        if (p->group != group) continue;
        tensors++;
        elements += param_global_count(p);
        if (piece->tensor == NULL)
            fresh++;
        else
            bytes[piece->tensor->dtype] +=
                param_global_count(p) * (int64_t)safetensors_dtype_size(piece->tensor->dtype);
    }
    printf("  %-10s %5lld tensors  %14lld parameters", name, (long long)tensors,
           (long long)elements);
    for (int d = 0; d < ST_DTYPES; d++)
        if (bytes[d] > 0)
            printf("  %lld bytes of %s", (long long)bytes[d],
                   safetensors_dtype_name((enum safetensors_dtype)d));
    if (fresh > 0) printf("  %lld with first values", (long long)fresh);
    printf("\n");
}

/* Whether training and evaluation will find a tokenizer; strata reads SentencePiece models alone. */
static void warn_tokenizer(const struct import *m) {
    static const char *const file[] = {"tokenizer.model", "tokenizer.json", "tekken.json"};
    bool there[3];
    const char *given = hf_keys_get(&m->keys, "data", "tokenizer_model");
    for (int i = 0; i < 3; i++) {
        char *path = xasprintf("%s/%s", m->from[LANGUAGE], file[i]);
        there[i] = access(path, F_OK) == 0;
        free(path);
    }
    if (there[0] || (given != NULL && strcmp(given, HF_TOKENIZER_FOLDER "/tokenizer.model") != 0))
        return;
    log_warn(
        "%s has %s%sno tokenizer.model, which is what strata reads (SentencePiece): the model is "
        "imported, but train, eval and generate stop without one; put the tokenizer.model of the "
        "base model into %s, or name it with data:tokenizer_model=",
        m->from[LANGUAGE],
        there[1]   ? file[1]
        : there[2] ? file[2]
                   : "",
        there[1] || there[2] ? ", but " : "",
        m->to != NULL ? HF_TOKENIZER_FOLDER "/ of the new folder" : "its tokenizer folder");
}

static void report(const struct import *m) {
    const struct stack *s = &m->model.stack;
    printf("model: %d layers (%d vision + %d projector + %d language), %lld parameters\n",
           s->n_layers, s->kind_count[LAYER_VISION], s->kind_count[LAYER_PROJECTOR],
           s->kind_count[LAYER_LANGUAGE], (long long)s->n_parameters);
    report_part(m, PARAM_VISION, "vision");
    report_part(m, PARAM_PROJECTOR, "projector");
    report_part(m, PARAM_LANGUAGE, "language");
    printf("checkpoint: %lld bytes of fp32\n", (long long)s->n_parameters * 4);
    if (m->map.n_other > 0)
        printf("left out: %lld tensors that are no weights of this model (rotary tables, position "
               "ids, CLIP's text half%s)\n",
               (long long)m->map.n_other, m->map.newline ? ", image_newline" : "");
    if (m->map.newline)
        printf("note: the source was trained on images of several tiles; the job file says one an "
               "image\n");
    if (m->keys.tied)
        printf(
            "note: tie_word_embeddings is true: the output head is imported as a copy of the token "
            "embedding,\n      the same model, but training changes each by itself; transformers "
            "would change both as one\n");
    fflush(stdout);
    warn_tokenizer(m);
}

/* ---- first values of what no source has: those that train would give it --------------------------------------- */
static bool is_fresh(const struct import *m, int i) {
    return m->map.piece[i].tensor == NULL;
}

static int make_fresh(struct import *m) {
    const struct param_set *all = &m->model.stage.params;
    struct param_set set = {0};
    struct backend *be = NULL;
    struct arena arena;
    int64_t at = 0, total = 0;
    for (int i = 0; i < all->n; i++) {
        if (!is_fresh(m, i)) continue;
        total += param_global_count(&all->param[i]);
        param_declare(&set, all->param[i]);
    }
    int rc = param_set_layout(&set, 1, 0);
    if (!rc) rc = backend_create_cpu(DTYPE_F32, 1, 1, &be);
    if (!rc) {
        size_t bytes = (size_t)(set.weight_elements + set.grad_elements) * 8 + 4096;
        char *block = xcalloc(1, bytes + ARENA_ALIGN);
        void *base = block + (ARENA_ALIGN - (uintptr_t)block % ARENA_ALIGN) % ARENA_ALIGN;
        arena_init(&arena, "first values", base, bytes);
        param_set_allocate(&set, be, &arena);
        param_set_initialise(&set, be, rng_run_key(m->model.cfg->training.seed));
        m->first_values = xmalloc((size_t)total * sizeof *m->first_values + 1);
        for (int i = 0; i < set.n; i++) {
            int64_t count = param_global_count(&set.param[i]);
            memcpy(m->first_values + at, set.param[i].w.data, (size_t)count * sizeof(float));
            at += count;
        }
        free(block);
        backend_destroy(be);
    }
    param_set_free(&set);
    return rc;
}

static int fetch(void *arg, int param, int64_t first, int64_t count, float *out) {
    const struct import *m = arg;
    const struct param_set *set = &m->model.stage.params;
    if (!is_fresh(m, param))
        return hf_fetch(&m->map, &set->param[param], &m->map.piece[param], first, count, out);
    int64_t at = 0;
    for (int i = 0; i < param; i++)
        if (is_fresh(m, i)) at += param_global_count(&set->param[i]);
    memcpy(out, m->first_values + at + first, (size_t)count * sizeof *out);
    return 0;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */
struct key_list {
    struct ckpt_key *key;
    int64_t n;
};

static void add_key(void *arg, const char *section, const char *key, const char *value,
                    bool defaulted) {
    struct key_list *l = arg;
    if (value == NULL) return;
    l->key = xrealloc(l->key, (size_t)(l->n + 1) * sizeof *l->key);
    l->key[l->n++] = (struct ckpt_key){section, key, xstrdup(value), defaulted};
}

static int save(struct import *m) {
    struct key_list keys = {0};
    struct backend *be = NULL;
    char run_uuid[37] = "", split[16];
    TRY(backend_create_cpu(DTYPE_F32, 1, 1, &be));
    config_each(m->model.cfg, add_key, &keys);
    snprintf(split, sizeof split, "%d", m->model.stack.n_layers);
    struct ckpt_settings settings = {
        .save = m->to, .ckpt_step = -1, .most_recent_k = -1, .no_save_optim = true, .index = true};
    struct ckpt_state state = {.grid = m->grid,
                               .set = &m->model.stage.params,
                               .be = be,
                               .fetch = fetch,
                               .fetch_arg = m,
                               .family = "llava",
                               .seed = m->model.cfg->training.seed,
                               .global_batch_size = m->model.cfg->training.global_batch_size,
                               .n_parameters = m->model.stack.n_parameters,
                               .split_spec = split,
                               .used_ini = m->job,
                               .run_uuid = run_uuid,
                               .key = keys.key,
                               .n_keys = keys.n};
    int rc = ckpt_save(&settings, &state);
    for (int64_t i = 0; i < keys.n; i++) free((void *)(uintptr_t)keys.key[i].value);
    free(keys.key);
    backend_destroy(be);
    return rc;
}

static int copy_companions(const struct import *m) {
    char *folder = xasprintf("%s/" HF_TOKENIZER_FOLDER, m->to);
    int n = 0, rc = dir_make(folder);
    if (!rc) rc = hf_copy_tokenizer(m->from[LANGUAGE], folder, &n);
    if (!rc) rc = hf_carry_source(m->from[LANGUAGE], m->from[VISION], folder);
    if (!rc) printf("tokenizer: %d files copied\n", n);
    free(folder);
    return rc;
}

static int write_all(struct import *m) {
    if (m->fresh) TRY(make_fresh(m));
    TRY(save(m));
    if (!m->first_rank) return 0;
    char *path = xasprintf("%s/job.ini", m->to);
    int rc = copy_companions(m);
    if (!rc) rc = file_write_atomic(path, m->job, strlen(m->job));
    if (!rc) printf("written: %s/iter_0000000 and %s\n", m->to, path);
    free(path);
    return rc;
}

static int make_folder(struct import *m) {
    if (!m->first_rank) return 0;
    m->made = access(m->to, F_OK) != 0;
    return hf_make_folder(m->to, "iter_0000000");
}

static int import_model(struct import *m, int argc, char **argv) {
    TRY(take_arguments(m, argc, argv));
    if (m->job_file != NULL && access(m->job_file, F_OK) == 0)
        return error_raise(EXIT_CANT_CREATE, "--job: %s is there already: give another name",
                           m->job_file);
    TRY(open_sources(m));
    TRY(read_keys(m));
    add_recipe(&m->keys);
    m->job = job_text(m);
    TRY(hf_grid_create(&m->grid));
    m->first_rank = comm_world_rank() == 0;
    if (!m->dry_run) TRY(comm_vote(grid_group(m->grid, GROUP_WORLD), make_folder(m)));
    TRY(hf_model_build(m->from[LANGUAGE], m->dry_run ? NULL : m->to, m->job, &m->model));
    TRY(match(m));
    if (m->first_rank) report(m);
    if (m->job_file != NULL && m->first_rank)
        TRY(file_write_atomic(m->job_file, m->job, strlen(m->job)));
    if (!m->dry_run) return comm_vote(grid_group(m->grid, GROUP_WORLD), write_all(m));
    if (m->first_rank)
        printf("dry run: nothing %swas written\n", m->job_file != NULL ? "but the job file " : "");
    return 0;
}

static int import(int argc, char **argv) {
    struct import m = {0};
    int rc = import_model(&m, argc, argv);
    if (rc && m.made) rmdir(m.to); /* which fails, as it should, once something is in it */
    grid_destroy(m.grid);
    hf_map_free(&m.map);
    hf_model_free(&m.model);
    for (int i = 0; i < m.n_sources; i++) safetensors_close(m.source[i].files);
    free(m.first_values);
    free(m.job);
    free(m.override);
    return rc;
}

int cli_import(int argc, char **argv) {
    return cli_under_mpi(import, argc, argv);
}
