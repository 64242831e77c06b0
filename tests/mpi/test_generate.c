/* ranks: 1 2 3 4 6 */
/* timeout: 200 */
/* Generation against evaluation: the logits of each row, made one row at a time over the caches of
 * keys and values, are those of a forward of the whole sequence, in any layout; and the logits and
 * the tokens chosen are those of one rank. */
#include "../../src/train/generate_impl.h"
#include "model_kit.h"

static int failures;

static void verdict(bool good, const char *name) {
    int64_t bad = good ? 0 : 1;
    struct grid *g;
    if (grid_create(1, 1, false, 2, &g) != 0) error_exit();
    comm_allreduce_i64(grid_group(g, GROUP_WORLD), &bad, 1, REDUCE_MAX);
    grid_destroy(g);
    failures += bad != 0;
    if (comm_world_rank() == 0) printf("%s - %s\n", bad ? "not ok" : "ok", name);
    fflush(stdout);
}

#define LENGTH 10 /* text ids of the sequence, a marker among them */
#define VOCAB 401
static const int32_t ids[LENGTH] = {1, 17, DATA_IMAGE_MARKER, 400, 5, 93, 200, 201, 3, 250};

struct job {
    struct arena room; /* of the caches; nothing without them */
    struct stack stack;
    struct grid *grid;
    struct kit_rank k;
    struct tables_source tables;
    struct descriptor d;
    struct sample sample;
    struct tensor logits; /* device, [rows, my columns], on the last stage */
    int64_t rows;
    bool last;
    float *out; /* [rows, VOCAB], every rank */
};

static void read_sample(void *arg, int64_t id, struct sample *out) {
    (void)id;
    *out = ((struct job *)arg)->sample;
}
static const struct microbatch *descriptor_of(void *arg, int k) {
    (void)k;
    return &((struct job *)arg)->d.mb;
}
static int tables_of(void *arg, int k, struct backend *be, struct arena *arena,
                     struct batch_tables *out) {
    (void)k;
    struct job *j = arg;
    tables_fill(&j->tables, &j->d, be, arena, out);
    return 0;
}
static double scale_of(void *arg, int k) {
    (void)arg, (void)k;
    return 1.0;
}

/* One pass over ids [first, first + n); the logits of its target rows go to row `to` on. */
static void run_pass(struct job *j, int first, int n, int64_t past, int64_t to, int64_t count) {
    static const int64_t image[1] = {0};
    struct microbatch_source source = {j, descriptor_of, tables_of, scale_of};
    struct tensor part = tensor_rows(j->logits, to, count);
    double loss = 0;
    int64_t rows = 0;
    struct pipeline_result result = {&loss, &rows, j->last ? &part : NULL};
    bool whole = first == 0 && n > 2;
    j->sample = (struct sample){.text_len = n,
                                .ids = ids + first,
                                .image = image,
                                .n_images = whole,
                                .merged_len = n + (whole ? kit_rows_per_image(&j->stack) - 1 : 0)};
    descriptor_begin(&j->d, past, 0, 0);
    descriptor_add(&j->d, 0, &j->sample, false);
    j->d.mb.targets = 1;
    j->d.mb.past = past;
    descriptor_end(&j->d);
    if (pipeline_run(j->k.pl, &source, past, false, &result) != 0) error_exit();
}

/* Logits of the last stage's ranks, put together, on every rank. */
static void share_logits(struct job *j) {
    struct cut cut = vocabulary_cut(&j->stack.shape.language);
    const struct group *tp = grid_group(j->grid, GROUP_TP), *pp = grid_group(j->grid, GROUP_PP);
    struct cut_part part = cut_part(&cut, group_size(tp), group_rank(tp));
    double *all = xcalloc((size_t)(j->rows * VOCAB), sizeof *all);
    for (int64_t r = 0; j->last && r < j->rows; r++)
        for (int64_t i = 0; i < part.total; i++)
            all[r * VOCAB + part.global[0] + i] =
                (double)((float *)j->logits.data)[r * j->logits.ld + i];
    comm_allreduce_f64(tp, all, j->rows * VOCAB, REDUCE_SUM);
    comm_allreduce_f64(pp, all, j->rows * VOCAB, REDUCE_SUM);
    j->out = xcalloc((size_t)(j->rows * VOCAB), sizeof *j->out);
    for (int64_t i = 0; i < j->rows * VOCAB; i++) j->out[i] = (float)all[i];
    free(all);
}

static void job_begin(struct job *j, int T, int P, const int *split, bool caches, int64_t window) {
    memset(j, 0, sizeof *j);
    struct config c = kit_config();
    c.language.window_size = window;
    j->stack = kit_stack(&c);
    if (stack_freeze(&j->stack) != 0 || grid_create(T, P, false, 2, &j->grid) != 0) error_exit();
    j->rows = LENGTH - 1 + kit_rows_per_image(&j->stack);
    struct kit_layout l = {
        .P = P, .dtype = DTYPE_F32, .settings = {.micro_batches = 1, .run_key = rng_run_key(3)}};
    memcpy(l.split, split, (size_t)P * sizeof *split);
    struct microbatch *most = plan_microbatch_sized(&j->stack, 1, 1, j->rows, j->rows, 1);
    kit_rank_begin(&j->k, &j->stack, j->grid, &l, most);
    tables_source_init(&j->tables, &j->k.st, most);
    plan_microbatch_free(most);
    j->tables.arg = j;
    j->tables.sample = read_sample;
    j->tables.predict_next = true;
    descriptor_init(&j->d, 1, 1, kit_rows_per_image(&j->stack));
    const struct vision_config *v = &j->stack.shape.vision;
    int64_t pixels = v->channels * v->img_h * v->img_w;
    j->d.pixels = xcalloc((size_t)pixels, sizeof(float));
    for (int64_t i = 0; i < pixels; i++) j->d.pixels[i] = (float)kit_uniform(4, 5, (uint64_t)i);
    j->last = j->k.st.end == j->stack.n_layers;
    struct cut cut = vocabulary_cut(&j->stack.shape.language);
    int64_t cols = cut_part(&cut, T, group_rank(grid_group(j->grid, GROUP_TP))).total;
    j->logits =
        tensor_view(xcalloc((size_t)(j->rows * cols), sizeof(float)), j->rows, cols, DTYPE_F32);
    if (!caches) return;
    arena_init_measuring(&j->room, "caches");
    stage_allocate_caches(&j->k.st, j->k.be, j->rows, &j->room);
    kit_arena(&j->room, "caches", j->room.peak);
    stage_allocate_caches(&j->k.st, j->k.be, j->rows, &j->room);
}

static void job_end(struct job *j) {
    kit_rank_end(&j->k);
    grid_destroy(j->grid);
    backend_destroy(j->k.be);
    descriptor_free(&j->d);
    free(j->tables.staging);
    free(j->logits.data);
    free(j->room.base);
    free(j->out);
    stack_free(&j->stack);
}

/* Rows of the logits that follow prefixes of 4 .. LENGTH ids; index n - 4. */
#define FIRST 4
static void whole_prefixes(struct job *j) {
    for (int n = FIRST; n <= LENGTH; n++) run_pass(j, 0, n, 0, n - FIRST, 1);
    share_logits(j);
}

static void incremental(struct job *j) {
    int64_t image = kit_rows_per_image(&j->stack) - 1;
    run_pass(j, 0, FIRST, 0, 0, 1);
    for (int n = FIRST + 1; n <= LENGTH; n++) run_pass(j, n - 1, 1, n - 1 + image, n - FIRST, 1);
    share_logits(j);
}

static double difference(const float *a, const float *b, int64_t n) {
    double diff = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]), m = fabs((double)b[i]);
        if (isnan(d)) return d;
        diff = d > diff ? d : diff;
        size = m > size ? m : size;
    }
    return diff / size;
}

static int64_t count_of(void) {
    return (int64_t)(LENGTH - FIRST + 1) * VOCAB;
}

/* The reference: one rank alone, each prefix from the start without caches. */
static float *reference(int64_t window) {
    static const int all[1] = {9};
    struct job j;
    job_begin(&j, 1, 1, all, false, window);
    whole_prefixes(&j);
    float *out = xcalloc((size_t)(j.rows * VOCAB), sizeof *out);
    memcpy(out, j.out, (size_t)count_of() * sizeof *out);
    job_end(&j);
    return out;
}

struct layout {
    int ranks, T, P, split[4];
    bool exact; /* no tensor parallelism: the same bits */
};
static const struct layout layouts[] = {{1, 1, 1, {9}, true},          {2, 1, 2, {5, 4}, true},
                                        {2, 2, 1, {9}, false},         {3, 1, 3, {2, 4, 3}, true},
                                        {3, 3, 1, {9}, false},         {4, 2, 2, {6, 3}, false},
                                        {4, 1, 4, {1, 2, 4, 2}, true}, {4, 4, 1, {9}, false},
                                        {6, 3, 2, {3, 6}, false},      {6, 2, 3, {5, 2, 2}, false}};

static void check_layout(const struct layout *l, int64_t window, const float *expected,
                         const float *one) {
    struct job j;
    char name[160];
    job_begin(&j, l->T, l->P, l->split, true, window);
    incremental(&j);
    double d = difference(j.out, expected, count_of());
    snprintf(name, sizeof name, "tensor %d x pipeline %d, window %d: row by row as whole (%.1e)",
             l->T, l->P, (int)window, d);
    verdict(d <= 1e-5, name);
    if (l->exact) {
        snprintf(name, sizeof name, "pipeline %d, window %d: the bits of one stage", l->P,
                 (int)window);
        verdict(memcmp(j.out, one, (size_t)count_of() * sizeof *one) == 0, name);
    }
    job_end(&j);
}

static void check_window(int64_t window) {
    static const int all[1] = {9};
    float *expected = reference(window);
    struct job j;
    job_begin(&j, 1, 1, all, true, window);
    incremental(&j);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++)
        if (layouts[i].ranks == comm_world_size())
            check_layout(&layouts[i], window, expected, j.out);
    job_end(&j);
    free(expected);
}

/* A choice over cut logits against the definition: ties, ids that may not be chosen, top_p. */
static void check_choice(void) {
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    int T = comm_world_size() <= 4 ? comm_world_size() : 1;
    struct grid *grid;
    struct stage st;
    struct backend *be;
    if (grid_create(T, 1, false, 2, &grid) != 0 || backend_create_cpu(DTYPE_F32, 1, 1, &be) != 0)
        error_exit();
    const struct group *tp = grid_group(grid, GROUP_TP);
    if (stage_build(&s, 8, 9, T, group_rank(tp), REPEAT_NOTHING, 0, &st) != 0) error_exit();
    bool good = true;
    struct cut cut = vocabulary_cut(&s.shape.language);
    for (int64_t trial = 0; trial < 300; trial++) {
        double z[VOCAB], share[VOCAB], temperature = trial % 3 == 0 ? 0 : 0.3 * (double)(trial % 7);
        int32_t order[VOCAB], expected = 0;
        int64_t n = trial % 2 ? VOCAB : 330;
        struct picker_settings set = {temperature, trial % 5 ? 0.8 : 1.0, n, rng_run_key(trial)};
        for (int64_t i = 0; i < VOCAB; i++) /* few values: many ties */
            z[i] = (double)(float)(int)(8 * kit_uniform(77, (uint64_t)trial, (uint64_t)i));
        for (int32_t i = 1; i < n; i++)
            if (z[i] > z[expected]) expected = i;
        struct rng_key key = rng_drop_key(set.key, RNG_SAMPLE, 0, 2);
        double u = 0.5 * (rng_uniform(key, (uint64_t)trial) + 1);
        if (temperature > 0) expected = pick_sample(z, n, temperature, set.top_p, u, order, share);
        float row[VOCAB];
        struct tensor room =
            tensor_view(row, 1, cut_part(&cut, T, group_rank(tp)).total, DTYPE_F32);
        struct picker *p = picker_create(&set, &st, tp, be, &room);
        struct cut_part part = cut_part(&cut, T, group_rank(tp));
        for (int64_t i = 0; i < part.total; i++)
            ((float *)picker_logits(p)->data)[i] = (float)z[part.global[0] + i];
        good = good && picker_choose(p, 2, trial) == expected;
        picker_destroy(p);
    }
    verdict(good, "the choice over cut logits is that over whole ones");
    stage_free(&st);
    grid_destroy(grid);
    backend_destroy(be);
    stack_free(&s);
}

static void check_sample(void) {
    const double z[4] = {log(1), log(4), log(2), log(3)}; /* shares 0.1 0.4 0.2 0.3 */
    double share[4], nan[2] = {0, NAN};
    int32_t order[4];
    int count[4] = {0};
    for (int i = 0; i < 1000; i++) count[pick_sample(z, 4, 1, 1, (i + 0.5) / 1000, order, share)]++;
    verdict(count[0] == 100 && count[1] == 400 && count[2] == 200 && count[3] == 300,
            "shares of the softmax");
    memset(count, 0, sizeof count);
    for (int i = 0; i < 700; i++)
        count[pick_sample(z, 4, 1, 0.69, (i + 0.5) / 700, order, share)]++;
    verdict(count[1] == 400 && count[3] == 300, "top_p keeps the smallest set that reaches it");
    bool cold = true;
    for (int i = 0; i < 100; i++)
        cold = cold && pick_sample(z, 4, 0.01, 1, i / 100.0, order, share) == 1;
    verdict(cold, "a low temperature takes the largest");
    verdict(pick_sample(nan, 2, 1, 1, 0.5, order, share) == -1, "a NaN is told");
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    check_sample();
    check_choice();
    check_window(0);
    check_window(5);
    comm_finalize();
    return failures == 0 ? 0 : 1;
}
