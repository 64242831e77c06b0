/* kernels: all */
/* ranks: 1 2 3 4 */
/* timeout: 200 */
/* The generator against Hugging Face transformers: each model of tests/golden/hf/values is imported by
 * the program, then its golden prompts are answered token by token over the caches of keys and values.
 * The ids are those of transformers' generate(), the logits of each step (fp64 there) within 1e-5; on
 * one rank and cut over tensor and pipeline ranks. */
#include <fcntl.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "../../src/train/generate_impl.h"
#include "mpi/verdict.h"
#include "safetensors.h"

#define GOLDEN "tests/golden/hf/values/"
#define VOCAB 97
#define IMAGE_ID 5
#define MOST_ROWS 160

/* ---- the golden files ---------------------------------------------------------------------------- */
struct golden {
    const char *model;
    int64_t n_ids, n_samples, n_steps, n_pixels;
    int64_t *ids, *labels, *lengths, *images, *greedy; /* greedy: [samples][steps] */
    int64_t *sizes; /* width, height of each image where they are maps of tiles, else NULL */
    float *pixels, *logits; /* logits: [samples][steps][VOCAB] */
};

static char *golden_path(const char *model) {
    return xasprintf(GOLDEN "%s/expected.safetensors", model);
}

static int64_t *read_integers(const struct safetensors *s, const char *name, int64_t *n) {
    const struct safetensor *t = safetensors_find(s, name);
    CHECK(t != NULL && t->dtype == ST_I64, "no integers %s", name);
    char *data;
    size_t bytes;
    if (file_read(safetensors_path(s), 1 << 24, &data, &bytes) != 0) error_exit();
    int64_t *out = xmalloc((size_t)t->bytes + 1);
    memcpy(out, data + t->begin, (size_t)t->bytes);
    free(data);
    *n = safetensor_count(t);
    return out;
}

static float *read_floats(const struct safetensors *s, const char *name, int64_t *n) {
    const struct safetensor *t = safetensors_find(s, name);
    CHECK(t != NULL, "no %s", name);
    *n = safetensor_count(t);
    float *out = xmalloc((size_t)*n * sizeof *out + 1);
    if (safetensors_read(s, t, 0, *n, out) != 0) error_exit();
    return out;
}

static struct golden golden_open(const char *model) {
    struct golden g = {.model = model};
    struct safetensors_options options = {0};
    struct safetensors *s;
    char *path = golden_path(model);
    int64_t n;
    if (safetensors_open(path, &options, &s) != 0) error_exit();
    g.ids = read_integers(s, "ids", &g.n_ids);
    g.labels = read_integers(s, "labels", &n);
    g.lengths = read_integers(s, "lengths", &g.n_samples);
    g.images = read_integers(s, "images", &n);
    g.greedy = read_integers(s, "greedy", &n);
    g.n_steps = n / g.n_samples;
    if (safetensors_find(s, "image_sizes") != NULL) g.sizes = read_integers(s, "image_sizes", &n);
    g.pixels = read_floats(s, "pixels", &g.n_pixels);
    g.logits = read_floats(s, "greedy_logits", &n);
    CHECK(n == g.n_samples * g.n_steps * VOCAB, "%lld logits", (long long)n);
    safetensors_close(s);
    free(path);
    return g;
}

static void golden_close(struct golden *g) {
    free(g->ids);
    free(g->labels);
    free(g->lengths);
    free(g->images);
    free(g->greedy);
    free(g->sizes);
    free(g->pixels);
    free(g->logits);
}

/* ---- the model, imported by the program ------------------------------------------------------------- */
/* Runs the program without this job's environment, in which it would be one more rank. The models have
 * no tokenizer. */
static int spawn_import(const char *model, bool maps, const char *to) {
    char *from = xasprintf(GOLDEN "%s", model), *log = xasprintf("%s.log", to);
    const char *argv[] = {"strata",
                          "import",
                          from,
                          to,
                          "data:data_format=mock",
                          "data:data_path=",
                          "data:image_folder=",
                          "data:conversation_template=",
                          "data:tokenizer_type=",
                          "data:tokenizer_model=",
                          maps ? NULL : "data:image_aspect_ratio=",
                          NULL};
    const char *asan = getenv("ASAN_OPTIONS"), *lsan = getenv("LSAN_OPTIONS");
    char *passed[] = {xasprintf("ASAN_OPTIONS=%s", asan ? asan : ""),
                      xasprintf("LSAN_OPTIONS=%s", lsan ? lsan : "")};
    char *const environment[] = {"PATH=/usr/bin:/bin", "OMP_NUM_THREADS=1", passed[0], passed[1],
                                 NULL};
    posix_spawn_file_actions_t files;
    pid_t child;
    int status = -1;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT, 0666);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    if (posix_spawn(&child, getenv("STRATA"), &files, NULL, (char *const *)(uintptr_t)argv,
                    environment) == 0)
        waitpid(child, &status, 0);
    posix_spawn_file_actions_destroy(&files);
    free(passed[0]), free(passed[1]);
    free(from);
    free(log);
    return status;
}

static char *import_model(const struct grid *grid, const char *model, bool maps) {
    char *to = xasprintf("%s/%s-%d", getenv("TEST_TMP"), model, comm_world_size());
    int rc = comm_world_rank() == 0 ? spawn_import(model, maps, to) : 0;
    verdict(grid, rc == 0, "%s is imported", model);
    return to;
}

static struct config *load_job(const char *folder, int T, int P, const char *split) {
    char *path = xasprintf("%s/job.ini", folder);
    char *o[] = {xasprintf("parallel:tensor_model_parallel_size=%d", T),
                 xasprintf("parallel:pipeline_model_parallel_size=%d", P),
                 xasprintf("parallel:split_spec=%s", split), xasprintf("run:threads_per_rank=1"),
                 xasprintf("language:decoder_seq_length=%d", MOST_ROWS)};
    int n = (int)(sizeof o / sizeof *o);
    struct config *cfg;
    if (config_load(path, n, o, &cfg) != 0 || config_check_world(cfg, comm_world_size()) != 0)
        error_exit();
    for (int i = 0; i < n; i++) free(o[i]);
    free(path);
    return cfg;
}

/* ---- one prompt -------------------------------------------------------------------------------------- */
#define MOST_IMAGES 4
struct prompt {
    struct sample sample;
    int32_t ids[MOST_ROWS];
    struct image_layout layout[MOST_IMAGES];
    int64_t first_tile, tiles;
};

/* What stands for the images of a prompt; those before it count the tiles in front of its own. */
static void lay_out(const struct golden *g, int64_t sample, const struct data_settings *set,
                    struct prompt *p) {
    int64_t image = 0;
    for (int64_t i = 0; i <= sample; i++) {
        p->first_tile += p->tiles;
        p->tiles = 0;
        for (int64_t k = 0; k < g->images[i]; k++, image++) {
            if (g->sizes != NULL)
                anyres_layout(&set->anyres, (int)g->sizes[2 * image], (int)g->sizes[2 * image + 1],
                              &p->layout[k]);
            p->tiles += g->sizes != NULL ? p->layout[k].tiles : 1;
        }
    }
    p->sample.layout = g->sizes != NULL ? p->layout : NULL;
}

/* transformers repeats the image id once per row: such a run is one marker here. Sets the rows. */
static void prompt_make(const struct golden *g, int64_t sample, const struct data_settings *set,
                        struct prompt *p) {
    *p = (struct prompt){.sample = {.ids = p->ids, .n_images = (int32_t)g->images[sample]}};
    struct sample *s = &p->sample;
    int64_t at = 0, image = 0;
    lay_out(g, sample, set, p);
    for (int64_t i = 0; i < sample; i++) at += g->lengths[i];
    for (int64_t j = at; g->labels[j] < 0;) {
        bool marker = g->ids[j] == IMAGE_ID;
        int64_t rows = marker ? sample_image_rows(s, image++, set->rows_per_image) : 1;
        p->ids[s->text_len++] = marker ? DATA_IMAGE_MARKER : (int32_t)g->ids[j];
        s->merged_len += rows;
        j += rows;
    }
}

/* Relative difference (L2) of the row of logits that the decoder chose from. */
static double logits_difference(const struct decoder *d, const float *want) {
    double sum[2] = {0, 0};
    if (d->picker != NULL) {
        const struct group *tp = grid_group(d->run->grid, GROUP_TP);
        struct cut cut = vocabulary_cut(&d->run->stack.shape.language);
        struct cut_part part = cut_part(&cut, group_size(tp), group_rank(tp));
        for (int64_t i = 0; i < part.total; i++) {
            double w = (double)want[part.global[0] + i];
            double far = (double)((const float *)picker_logits(d->picker)->data)[i] - w;
            sum[0] += far * far;
            sum[1] += w * w;
        }
    }
    comm_allreduce_f64(grid_group(d->run->grid, GROUP_WORLD), sum, 2, REDUCE_SUM);
    return sqrt(sum[0] / sum[1]);
}

/* wrong: ids that are not transformers'; far: the largest difference of a row of logits. */
static void answer(struct decoder *d, const struct golden *g, int64_t sample,
                   const struct data_settings *set, int64_t *wrong, double *far) {
    struct prompt p;
    int64_t tile = 3 * set->img_h * set->img_w;
    prompt_make(g, sample, set, &p);
    CHECK((p.first_tile + p.tiles) * tile <= g->n_pixels, "pixels of %s", g->model);
    if (decoder_pixels(d) != NULL)
        memcpy(decoder_pixels(d), g->pixels + p.first_tile * tile,
               (size_t)(p.tiles * tile) * sizeof(float));
    if (decoder_prompt(d, &p.sample) != 0) error_exit();
    for (int64_t i = 0; i < g->n_steps; i++) {
        int64_t at = sample * g->n_steps + i;
        int32_t id = decoder_choose(d, sample, i);
        double difference = logits_difference(d, g->logits + at * VOCAB);
        if (!(difference <= *far)) *far = difference;
        *wrong += id != g->greedy[at];
        if (i + 1 < g->n_steps &&
            decoder_next(d, (int32_t)g->greedy[at], p.sample.merged_len + i) != 0)
            error_exit();
    }
}

static void test_layout(const struct golden *g, const char *folder, int T, int P,
                        const char *split) {
    struct run run;
    struct decoder d;
    struct picker_settings settings = {.n_ids = VOCAB, .top_p = 1, .key = rng_run_key(1)};
    struct config *cfg = load_job(folder, T, P, split);
    if (infer_grid(&run, cfg) != 0) error_exit();
    struct microbatch most = {.samples = 1,
                              .images = 2,
                              .tiles = 2 * run.stack.shape.image_tiles,
                              .tokens = MOST_ROWS,
                              .newlines = 2 * run.stack.shape.image_newlines,
                              .max_segment = MOST_ROWS,
                              .targets = 1};
    run.largest = plan_microbatch_of(&run.stack, &most);
    if (infer_stage(&run, 1, MOST_ROWS, folder) != 0) error_exit();
    decoder_begin(&d, &run, &settings);
    size_t taken = (run.life.peak + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    bool last = run.plan.caches > 0 && run.plan.logits > 0;
    verdict(run.grid, taken == rank_plan_life(&run.plan) && (last || !run.last_stage),
            "%s, tensor %d x pipeline %d: weights, caches and logits take the planned bytes",
            g->model, T, P);
    struct data_settings s;
    train_data_settings(cfg, DATA_TRAIN, &s);
    int64_t wrong = 0;
    double far = 0;
    for (int64_t i = 0; i < g->n_samples; i++) answer(&d, g, i, &s, &wrong, &far);
    verdict(run.grid, wrong == 0,
            "%s, tensor %d x pipeline %d: the ids of transformers' generate()", g->model, T, P);
    verdict(run.grid, far <= 1e-5, "%s, tensor %d x pipeline %d: its logits of each step (%.1e)",
            g->model, T, P, far);
    decoder_end(&d);
    run_end(&run);
    config_free(cfg);
}

static void test_model(const struct grid *grid, const char *model) {
    struct golden g = golden_open(model);
    char *folder = import_model(grid, model, g.sizes != NULL);
    if (comm_world_size() == 1) test_layout(&g, folder, 1, 1, "7");
    if (comm_world_size() == 2) test_layout(&g, folder, 2, 1, "7");
    if (comm_world_size() == 2) test_layout(&g, folder, 1, 2, "2,5");
    if (comm_world_size() == 3) test_layout(&g, folder, 1, 3, "3,3,1");
    if (comm_world_size() == 4) test_layout(&g, folder, 2, 2, "5,2");
    golden_close(&g);
    free(folder);
}

int main(int argc, char **argv) {
    struct grid *grid;
    if (comm_init(&argc, &argv) != 0 || grid_create(1, 1, false, 2, &grid) != 0) error_exit();
    log_to(stderr);
    test_model(grid, "mistral_last_but_one");
    test_model(grid, "llama_last_full");
    test_model(grid, "mistral_next");
    grid_destroy(grid);
    comm_finalize();
    return test_failures == 0 ? 0 : 1;
}
