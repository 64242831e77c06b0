/* kernels: all */
/* ranks: 1 2 3 4 */
/* Against Hugging Face transformers: the tiny models of tests/golden/hf/values, whose losses,
 * logits, gradients and greedy tokens transformers computed in fp64 (make_hf.py there). Loss,
 * log-probabilities and logits agree within 1e-5, every gradient within 1e-4, greedy tokens exactly;
 * on one rank and cut over tensor and pipeline ranks. Those of odd/ (make_odd.py) have the weights of
 * llama_last_full and are built from their config.json, as an import would. */
#include <unistd.h>

#include "data.h"
#include "hf_config.h"
#include "model_kit.h"
#include "safetensors.h"

#define GOLDEN "tests/golden/hf/"
#define ODD_WEIGHTS "values/llama_last_full"
#define VOCAB 97
#define IMAGE_ID 5
#define MOST_ROWS 256

static int failures;

static void verdict(bool good, const char *model, const char *layout, const char *what) {
    int64_t bad = !good;
    failures += !good;
    if (comm_world_rank() == 0)
        printf("%s - %s, %s: %s\n", bad ? "not ok" : "ok", model, layout, what);
}

/* ---- the golden files ---------------------------------------------------------------------------- */
static struct safetensors *open_file(const char *model, const char *file) {
    struct safetensors_options options = {0};
    struct safetensors *s;
    char path[256];
    snprintf(path, sizeof path, GOLDEN "%s/%s.safetensors", model, file);
    if (safetensors_open(path, &options, &s) != 0) error_exit();
    return s;
}

static float *read_floats(const struct safetensors *s, const char *name, int64_t *n) {
    const struct safetensor *t = safetensors_find(s, name);
    CHECK(t != NULL, "%s lacks %s", safetensors_path(s), name);
    *n = safetensor_count(t);
    float *out = xmalloc((size_t)*n * sizeof *out + 1);
    if (safetensors_read(s, t, 0, *n, out) != 0) error_exit();
    return out;
}

/* The reader converts floating types only: integers and doubles are taken from the file itself. */
static void *read_raw(const struct safetensors *s, const char *name, int64_t *n) {
    const struct safetensor *t = safetensors_find(s, name);
    CHECK(t != NULL, "%s lacks %s", safetensors_path(s), name);
    char *data;
    size_t bytes;
    if (file_read(safetensors_path(s), 1 << 24, &data, &bytes) != 0) error_exit();
    void *out = xmalloc((size_t)t->bytes + 1);
    memcpy(out, data + t->begin, (size_t)t->bytes);
    free(data);
    *n = safetensor_count(t);
    return out;
}

struct golden {
    const char *name;
    int64_t n_ids, n_samples, n_pixels, n_logits, n_loss, n_greedy;
    int64_t *ids, *labels, *lengths, *images, *greedy; /* greedy: [samples][n_greedy / samples] */
    struct kit_map *map;                               /* of each image; NULL: one tile */
    float *pixels, *logits;
    double *loss;
    struct safetensors *weights, *gradients; /* gradients: NULL for those of odd/ */
    struct safetensors *extra;               /* weights that come before those, or NULL */
};

static bool is_odd(const char *model) {
    return strncmp(model, "odd/", 4) == 0;
}

/* Resolutions of mistral_next, tiles of 21 x 21 pixels; its config.json has height before width. */
#define NEXT_EDGE 21
#define NEXT_PATCHES 3
static int64_t next_list[] = {42, 21, 21, 42, 42, 42, 21, 63};

static struct kit_map *read_maps(const struct safetensors *s) {
    struct anyres a = {.n = 4,
                       .img_w = NEXT_EDGE,
                       .img_h = NEXT_EDGE,
                       .patches_w = NEXT_PATCHES,
                       .patches_h = NEXT_PATCHES};
    int64_t n;
    if (safetensors_find(s, "image_sizes") == NULL) return NULL;
    int64_t *size = read_raw(s, "image_sizes", &n);
    struct kit_map *map = xcalloc((size_t)n, sizeof *map);
    for (int i = 0; i < a.n; i++) {
        a.width[i] = (int)next_list[2 * i];
        a.height[i] = (int)next_list[2 * i + 1];
    }
    for (int64_t i = 0; i < n / 2; i++) {
        struct image_layout l;
        anyres_layout(&a, (int)size[2 * i], (int)size[2 * i + 1], &l);
        map[i] = (struct kit_map){l.grid_h, l.grid_w, l.top, l.left, l.rows, l.cols};
    }
    free(size);
    return map;
}

static struct golden golden_open(const char *model) {
    struct golden g = {.name = model};
    bool odd = is_odd(model);
    const char *base = odd ? ODD_WEIGHTS : model;
    struct safetensors *s = open_file(base, "expected"), *own = open_file(model, "expected");
    g.ids = read_raw(s, "ids", &g.n_ids);
    g.labels = read_raw(s, "labels", &g.n_ids);
    g.lengths = read_raw(s, "lengths", &g.n_samples);
    g.images = read_raw(s, "images", &g.n_samples);
    g.greedy = read_raw(own, "greedy", &g.n_greedy);
    g.loss = read_raw(own, "loss", &g.n_loss);
    g.pixels = read_floats(s, "pixels", &g.n_pixels);
    g.map = read_maps(s);
    g.logits = read_floats(own, "logits", &g.n_logits);
    safetensors_close(s);
    safetensors_close(own);
    g.weights = open_file(base, "model");
    char path[256];
    snprintf(path, sizeof path, GOLDEN "%s/extra.safetensors", model);
    if (!odd) g.gradients = open_file(model, "gradients");
    if (access(path, F_OK) == 0) g.extra = open_file(model, "extra");
    return g;
}

static void golden_close(struct golden *g) {
    free(g->ids);
    free(g->labels);
    free(g->lengths);
    free(g->images);
    free(g->greedy);
    free(g->map);
    free(g->loss);
    free(g->pixels);
    free(g->logits);
    safetensors_close(g->weights);
    if (g->gradients != NULL) safetensors_close(g->gradients);
    if (g->extra != NULL) safetensors_close(g->extra);
}

/* ---- the same model here ---------------------------------------------------------------------------- */
static void load_job(const struct hf_keys *keys, struct config *out) {
    static const char *const section[] = {"vision", "projector", "language"};
    char path[] = "/tmp/strata_golden_XXXXXX";
    int fd = mkstemp(path);
    FILE *to = fd >= 0 ? fdopen(fd, "w") : NULL;
    struct config *cfg;
    CHECK(to != NULL, "no file %s", path);
    fprintf(
        to,
        "[run]\nfamily = llava\nrun_dir = .\n[training]\nmicro_batch_size = 1\ntrain_iters = 1\n"
        "[optimizer]\nlr = 1\n[data]\ndata_format = mock\n[language]\ndecoder_seq_length = %d\n",
        MOST_ROWS);
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < keys->n; i++)
            if (strcmp(keys->key[i].section, section[s]) == 0 && keys->key[i].value[0] != 0)
                fprintf(to, "[%s]\n%s = %s\n", section[s], keys->key[i].key, keys->key[i].value);
    fclose(to);
    if (config_load(path, 0, NULL, &cfg) != 0) error_exit();
    unlink(path);
    *out = *cfg; /* its texts stay until the end of the program */
}

/* The job that an import of odd/NAME writes. */
static struct config odd_config(const char *model) {
    struct safetensors *files = open_file(ODD_WEIGHTS, "model");
    char path[256];
    struct hf_keys keys;
    struct config c;
    snprintf(path, sizeof path, GOLDEN "%s", model);
    struct hf_folder folder = {path, files};
    if (hf_model_keys(&folder, &folder, &folder, &keys) != 0) error_exit();
    CHECK(keys.tied == (strcmp(model, "odd/tied") == 0), "%s: tied is %d", model, keys.tied);
    load_job(&keys, &c);
    safetensors_close(files);
    return c;
}

static struct config model_config(const char *model) {
    if (is_odd(model)) return odd_config(model);
    bool last = strcmp(model, "values/llama_last_full") == 0;
    struct config c = kit_config();
    c.vision.num_layers = 3;
    c.vision.hidden_size = 24;
    c.vision.ffn_hidden_size = 40;
    c.vision.num_attention_heads = 3;
    c.vision.img_h = c.vision.img_w = 28;
    c.vision.patch_dim = 7;
    c.vision.vision_feature_layer = last ? -1 : -2;
    c.vision.disable_vision_class_token = !last;
    c.projector.projector_hidden_size = 48;
    c.language.num_layers = 2;
    c.language.hidden_size = 48;
    c.language.ffn_hidden_size = 60;
    c.language.num_attention_heads = 6;
    c.language.num_query_groups = 2;
    c.language.kv_channels = 10;
    c.language.rotary_base = last ? 1e6 : 1e4;
    c.language.vocab_size = VOCAB;
    c.language.decoder_seq_length = MOST_ROWS;
    if (strcmp(model, "values/mistral_next") != 0) return c;
    c.vision.img_h = c.vision.img_w = NEXT_EDGE;
    c.data.image_aspect_ratio = IMAGE_ASPECT_ANYRES;
    c.data.image_grid_pinpoints = (struct config_list){8, next_list};
    return c;
}

/* Rows of that image (of all samples) in the merged sequence. */
static int64_t rows_of(const struct stack *s, const struct golden *g, int64_t image) {
    int64_t k = kit_rows_per_image(s);
    return g->map == NULL ? k : k + g->map[image].rows * (g->map[image].cols + 1);
}

/* One micro-batch of all samples. transformers repeats the image id once per row: a run is one
 * marker here. only >= 0: the one row (of all samples) that has a target, `target`. */
static struct kit_batch make_batch(const struct stack *s, const struct golden *g, int64_t only,
                                   int32_t target) {
    struct kit_batch b = kit_batch_begin(s, (int)g->n_samples, 0, 0);
    for (int64_t i = 0, at = 0, seen = 0; i < g->n_samples; at += g->lengths[i++]) {
        int32_t ids[MOST_ROWS], labels[MOST_ROWS];
        struct kit_text t = {0, ids, labels, g->map == NULL ? NULL : g->map + seen};
        for (int64_t j = at; j < at + g->lengths[i]; t.length++) {
            bool image = g->ids[j] == IMAGE_ID;
            ids[t.length] = image ? -1 : (int32_t)g->ids[j];
            labels[t.length] = only < 0        ? (g->labels[j] < 0 ? -1 : (int32_t)g->labels[j])
                               : j == only + 1 ? target
                                               : -1;
            j += image ? rows_of(s, g, seen++) : 1;
        }
        kit_batch_append(s, &b, (int)i, &t);
    }
    kit_batch_end(s, &b, 1);
    CHECK(b.mb.tokens == g->n_ids, "%lld merged rows, transformers has %lld",
          (long long)b.mb.tokens, (long long)g->n_ids);
    memcpy(b.pixels, g->pixels, (size_t)g->n_pixels * sizeof *b.pixels);
    return b;
}

/* Prompts of all samples, each with the first n ids that transformers generated after it. */
static struct kit_batch make_prompts(const struct stack *s, const struct golden *g, int64_t n) {
    struct kit_batch b = kit_batch_begin(s, (int)g->n_samples, 0, 0);
    int64_t most = g->n_greedy / g->n_samples;
    for (int64_t i = 0, at = 0, seen = 0; i < g->n_samples; at += g->lengths[i++]) {
        int32_t ids[MOST_ROWS], labels[MOST_ROWS];
        struct kit_text t = {0, ids, labels, g->map == NULL ? NULL : g->map + seen};
        for (int64_t j = at; g->labels[j] < 0; t.length++) {
            bool image = g->ids[j] == IMAGE_ID;
            ids[t.length] = image ? -1 : (int32_t)g->ids[j];
            j += image ? rows_of(s, g, seen++) : 1;
        }
        for (int64_t j = 0; j < n; j++) ids[t.length++] = (int32_t)g->greedy[i * most + j];
        for (int32_t j = 0; j < t.length; j++) labels[j] = -1;
        kit_batch_append(s, &b, (int)i, &t);
    }
    kit_batch_end(s, &b, 1);
    memcpy(b.pixels, g->pixels, (size_t)g->n_pixels * sizeof *b.pixels);
    return b;
}

/* The head gives logits of target rows: every row becomes one, or the last of each sample. */
static void ask_logits(struct kit_batch *b, bool every) {
    b->mb.targets = 0;
    for (int64_t i = 0; i < b->mb.tokens; i++) {
        bool last = i + 1 == b->mb.tokens || b->row[i + 1].sample != b->row[i].sample;
        b->row[i].target = every || last ? 0 : -1;
        b->mb.targets += b->row[i].target >= 0;
    }
    b->mb.hash = microbatch_hash(&b->mb);
}

/* My part of a tensor of the files, in the order of the local matrix. */
static float *my_part(const struct safetensors *s, const struct param *q) {
    int64_t n, local = param_local_count(q);
    float *whole = read_floats(s, q->hf_name, &n);
    CHECK(n == param_global_count(q), "%s has %lld elements", q->hf_name, (long long)n);
    float *mine = xmalloc((size_t)local * sizeof *mine + 1);
    for (int64_t e = 0; e < local; e++)
        mine[e] = whole[param_global_index(q, e / q->cols, e % q->cols)];
    free(whole);
    return mine;
}

static void load_weights(struct kit_rank *k, const struct golden *g) {
    bool tied = strcmp(g->name, "odd/tied") == 0;
    for (int i = 0; i < k->st.params.n; i++) {
        struct param *q = &k->st.params.param[i], named = *q;
        bool extra = g->extra != NULL && safetensors_find(g->extra, q->hf_name) != NULL;
        if (tied && strcmp(q->hf_name, "language_model.lm_head.weight") == 0)
            snprintf(named.hf_name, sizeof named.hf_name,
                     "language_model.model.embed_tokens.weight");
        float *mine = my_part(extra ? g->extra : g->weights, &named);
        k->be->ops->upload(k->be, q->w.data, mine, (size_t)param_local_count(q) * sizeof *mine);
        free(mine);
    }
}

/* Sum of the row losses, on every rank. */
static double run(struct kit_rank *k, const struct kit_batch *b, bool gradient) {
    struct kit_source arg = {b, &k->st, 1.0};
    struct microbatch_source source = kit_source(&arg);
    double sum = 0;
    int64_t rows = 0;
    struct pipeline_result result = {.loss_sum = &sum, .loss_rows = &rows};
    kit_zero_gradients(k);
    if (pipeline_run(k->pl, &source, 0, gradient, &result) != 0) error_exit();
    bool speaks = k->st.end == k->st.stack->n_layers && k->st.tp_rank == 0;
    if (!speaks) sum = 0;
    comm_allreduce_f64(grid_group(k->grid, GROUP_WORLD), &sum, 1, REDUCE_SUM);
    return sum;
}

/* A key bias shifts all scores of a query alike: its gradient is zero but for rounding, and what is
 * below this (the others are 1e-3 and more) is compared with it instead of with itself. */
#define SMALLEST_GRADIENT 1e-3

/* Largest relative difference (L2) of a parameter's gradient on any rank. */
static double gradient_difference(const struct kit_rank *k, const struct golden *g,
                                  double targets) {
    double worst = 0;
    for (int i = 0; i < k->st.params.n; i++) {
        const struct param *q = &k->st.params.param[i];
        int64_t n = param_local_count(q);
        float *want = my_part(g->gradients, q);
        double *got = xcalloc((size_t)n + 1, sizeof *got), far = 0, size = 0;
        if (q->trainable) kit_gradient(k, q, got);
        for (int64_t e = 0; e < n; e++) {
            double d = got[e] / targets - (double)want[e];
            far += d * d;
            size += (double)want[e] * (double)want[e];
        }
        double relative = sqrt(far) / fmax(sqrt(size), SMALLEST_GRADIENT);
        if (!(relative <= 1e-4)) printf("# %s: %.1e of %.1e\n", q->hf_name, sqrt(far), sqrt(size));
        if (!(relative <= worst)) worst = relative;
        free(want);
        free(got);
    }
    comm_allreduce_f64(grid_group(k->grid, GROUP_WORLD), &worst, 1, REDUCE_MAX);
    return worst;
}

static double log_probability(const struct golden *g, int64_t row, int32_t target) {
    const float *z = g->logits + row * VOCAB;
    double max = z[0], sum = 0;
    for (int v = 1; v < VOCAB; v++) max = z[v] > max ? z[v] : max;
    for (int v = 0; v < VOCAB; v++) sum += exp(z[v] - max);
    return z[target] - max - log(sum);
}

/* Log-probabilities of several ids after every fifth row that has a next row in its sample. */
static double probability_difference(struct kit_rank *k, const struct stack *s,
                                     const struct golden *g) {
    double worst = 0;
    int64_t end = 0, sample = 0;
    for (int64_t row = 0; row < g->n_ids; row += 5) {
        while (row >= end) end += g->lengths[sample++];
        if (row + 1 >= end || g->ids[row + 1] == IMAGE_ID) continue;
        for (int32_t target = (int32_t)(row % 7); target < VOCAB; target += 31) {
            struct kit_batch b = make_batch(s, g, row, target);
            double want = log_probability(g, row, target);
            double d = fabs(-run(k, &b, false) - want) / fabs(want);
            if (!(d <= worst)) worst = d;
            kit_batch_free(&b);
        }
    }
    return worst;
}

/* Logits [targets][VOCAB] on every rank; free() them. */
static double *run_logits(struct kit_rank *k, const struct kit_batch *b) {
    struct kit_source arg = {b, &k->st, 1.0};
    struct microbatch_source source = kit_source(&arg);
    struct cut cut = vocabulary_cut(&k->st.stack->shape.language);
    int64_t columns = cut_part(&cut, k->st.tp_size, k->st.tp_rank).total;
    int64_t rows = b->mb.targets, n_loss = 0;
    float *mine = xcalloc((size_t)(rows * columns) + 1, sizeof *mine);
    double *all = xcalloc((size_t)(rows * VOCAB), sizeof *all), sum = 0;
    struct tensor to = tensor_view(mine, rows, columns, DTYPE_F32);
    struct pipeline_result result = {.loss_sum = &sum, .loss_rows = &n_loss, .logits = &to};
    if (pipeline_run(k->pl, &source, 0, false, &result) != 0) error_exit();
    bool speaks = k->st.end == k->st.stack->n_layers;
    for (int64_t i = 0; speaks && i < rows * columns; i++) {
        int64_t v = cut_local_to_global(&cut, k->st.tp_size, k->st.tp_rank, i % columns);
        all[i / columns * VOCAB + v] = (double)mine[i];
    }
    comm_allreduce_f64(grid_group(k->grid, GROUP_WORLD), all, rows * VOCAB, REDUCE_SUM);
    free(mine);
    return all;
}

/* Largest relative difference (L2) of a row of logits. */
static double logits_difference(struct kit_rank *k, const struct kit_batch *b,
                                const struct golden *g) {
    double *got = run_logits(k, b), worst = 0;
    for (int64_t row = 0; row < b->mb.tokens; row++) {
        double far = 0, size = 0;
        for (int64_t v = row * VOCAB; v < (row + 1) * VOCAB; v++) {
            double want = (double)g->logits[v];
            far += (got[v] - want) * (got[v] - want);
            size += want * want;
        }
        double relative = sqrt(far / size);
        if (!(relative <= worst)) worst = relative;
    }
    free(got);
    return worst;
}

/* Does the best id after each prompt and what follows it come out as transformers' generate()? */
static bool greedy_is_same(struct kit_rank *k, const struct stack *s, const struct golden *g) {
    int64_t most = g->n_greedy / g->n_samples, wrong = 0;
    for (int64_t n = 0; n < most; n++) {
        struct kit_batch b = make_prompts(s, g, n);
        ask_logits(&b, false);
        double *z = run_logits(k, &b);
        for (int64_t i = 0; i < g->n_samples; i++) {
            int64_t best = 0;
            for (int64_t v = 1; v < VOCAB; v++)
                if (z[i * VOCAB + v] > z[i * VOCAB + best]) best = v;
            wrong += best != g->greedy[i * most + n];
        }
        free(z);
        kit_batch_free(&b);
    }
    return wrong == 0;
}

static void test_layout(const struct golden *g, const char *what, int T, int P, const int *split,
                        bool rows) {
    struct config c = model_config(g->name);
    c.parallel.sequence_parallel = rows;
    struct stack s = kit_stack(&c);
    struct grid *grid;
    if (grid_create(T, P, false, 1, &grid) != 0) error_exit();
    struct kit_layout l = {.P = P, .dtype = DTYPE_F32, .settings = {.micro_batches = 1}};
    for (int i = 0; i < P; i++) l.split[i] = split[i];
    struct kit_batch batch[3] = {make_batch(&s, g, -1, 0), make_batch(&s, g, -1, 0),
                                 make_prompts(&s, g, g->n_greedy / g->n_samples)};
    ask_logits(&batch[1], true);
    struct microbatch largest = kit_largest(batch, 3);
    struct kit_rank k;
    kit_rank_begin(&k, &s, grid, &l, &largest);
    load_weights(&k, g);
    double targets = (double)batch[0].mb.targets, loss = run(&k, &batch[0], true) / targets;
    verdict(fabs(loss - g->loss[0]) <= 1e-5 * fabs(g->loss[0]), g->name, what, "loss");
    /* Under sequence parallelism replicated gradients are partial until the update sums them. */
    if (!rows && g->gradients != NULL)
        verdict(gradient_difference(&k, g, targets) <= 1e-4, g->name, what, "every gradient");
    verdict(probability_difference(&k, &s, g) <= 1e-5, g->name, what, "log-probabilities");
    verdict(logits_difference(&k, &batch[1], g) <= 1e-5, g->name, what, "logits of every row");
    verdict(greedy_is_same(&k, &s, g), g->name, what, "greedy tokens");
    pipeline_destroy(k.pl);
    k.pl = NULL;
    grid_destroy(grid);
    kit_rank_end(&k);
    backend_destroy(k.be);
    for (int i = 0; i < 3; i++) kit_batch_free(&batch[i]);
    stack_free(&s);
}

static void test_model(const char *model) {
    struct golden g = golden_open(model);
    switch (comm_world_size()) {
    case 1:
        test_layout(&g, "one rank", 1, 1, (int[]){7}, false);
        break;
    case 2:
        test_layout(&g, "tensor 2", 2, 1, (int[]){7}, false);
        test_layout(&g, "tensor 2, sequence parallel", 2, 1, (int[]){7}, true);
        test_layout(&g, "pipeline 2", 1, 2, (int[]){2, 5}, false);
        break;
    case 3:
        test_layout(&g, "pipeline 3", 1, 3, (int[]){3, 3, 1}, false);
        break;
    default:
        test_layout(&g, "tensor 2 x pipeline 2", 2, 2, (int[]){5, 2}, false);
        break;
    }
    golden_close(&g);
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    static const char *const model[] = {"values/mistral_last_but_one",
                                        "values/llama_last_full",
                                        "values/mistral_next",
                                        "odd/linear_new",
                                        "odd/linear_old",
                                        "odd/theta_inside",
                                        "odd/llama3",
                                        "odd/yarn",
                                        "odd/yarn_factor",
                                        "odd/yarn_mscale",
                                        "odd/biases",
                                        "odd/qwen2",
                                        "odd/tied",
                                        "odd/groups_null",
                                        "odd/groups_absent"};
    for (size_t i = 0; i < sizeof model / sizeof *model; i++) test_model(model[i]);
    comm_finalize();
    return failures != 0;
}
