/* The trainer's descriptors and tables against the kit's, which come from a plain list of rows: for
 * every rank of several tensor sizes, with and without sequence parallelism; and what a rank gets of
 * the global batch, whatever the number of data ranks. The data set is made up in this file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "../../src/train/train_impl.h"
#include "model_kit.h"

/* ---- a data set and a prefetcher of our own -------------------------------------------------------- */

#define SAMPLES 9
static const struct kit_sample kinds[SAMPLES] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2},
    {.length = 12, .images = 2, .at = {0, 6}, .first_target = 0},
    {.length = 24, .images = 1, .at = {21}, .first_target = 5},
    {.length = 4, .images = 1, .at = {3}, .first_target = KIT_NO_TARGET},
    {.length = 30, .images = 2, .at = {3, 29}, .first_target = 4},
    {.length = 1, .first_target = 0},
    {.length = 26, .first_target = 0},
    {.length = 8, .images = 3, .at = {1, 2, 5}, .first_target = 1}};
/* Maps of 2 x 3 patches a tile for those that have images, where images are maps. */
static const struct kit_map maps[SAMPLES][KIT_IMAGES] = {
    [1] = {{2, 2, 0, 1, 4, 4}},
    [2] = {{1, 2, 0, 0, 2, 6}, {2, 1, 1, 0, 2, 3}},
    [3] = {{2, 2, 1, 0, 2, 6}},
    [4] = {{1, 1, 1, 0, 0, 3}},
    [5] = {{2, 1, 0, 0, 4, 3}, {1, 1, 0, 0, 2, 3}},
    [8] = {{1, 1, 0, 1, 2, 1}, {1, 2, 0, 2, 2, 2}, {2, 2, 0, 0, 4, 6}}};

struct dataset {
    const struct stack *stack;
    struct kit_text text[SAMPLES];
    int32_t *ids[SAMPLES], *labels[SAMPLES];
    struct image_layout layout[SAMPLES][KIT_IMAGES];
    int64_t image[SAMPLES][KIT_IMAGES], merged[SAMPLES], targets[SAMPLES];
};

int64_t dataset_count(const struct dataset *d) {
    (void)d;
    return SAMPLES;
}

void dataset_sample(const struct dataset *d, int64_t i, struct sample *out) {
    *out = (struct sample){.id = i,
                           .text_len = kinds[i].length,
                           .n_images = kinds[i].images,
                           .ids = d->ids[i],
                           .labels = d->labels[i],
                           .image = d->image[i],
                           .layout = d->stack->shape.newline ? d->layout[i] : NULL,
                           .merged_len = d->merged[i],
                           .n_targets = d->targets[i]};
}

static float pixel_of(int64_t image, size_t i) {
    return (float)kit_uniform((uint64_t)image, 8, i);
}

static int64_t tiles_of(const struct dataset *d, int64_t image) {
    for (int i = 0; i < SAMPLES; i++)
        for (int k = 0; k < kinds[i].images; k++)
            if (d->image[i][k] == image)
                return kit_map_tiles(d->text[i].map == NULL ? NULL : &d->text[i].map[k]);
    fail_msg("image %lld", (long long)image);
    return 0;
}

struct prefetch { /* decodes at once, and counts what was not fetched */
    const struct dataset *d;
    size_t floats;
    int64_t given, outstanding;
};

struct prefetch *prefetch_create(const struct dataset *d, int n_threads, int max_tickets,
                                 int64_t max_images_per_ticket) {
    (void)n_threads, (void)max_tickets, (void)max_images_per_ticket;
    const struct vision_config *v = &d->stack->shape.vision;
    struct prefetch *p = xcalloc(1, sizeof *p);
    p->d = d;
    p->floats = (size_t)(v->channels * v->img_h * v->img_w);
    return p;
}

int64_t prefetch_submit(struct prefetch *p, const int64_t *image, int64_t n, float *out) {
    for (int64_t k = 0; k < n; k++) {
        size_t floats = p->floats * (size_t)tiles_of(p->d, image[k]);
        for (size_t i = 0; i < floats; i++) *out++ = pixel_of(image[k], i);
    }
    p->outstanding++;
    return p->given++;
}

int prefetch_wait(struct prefetch *p, int64_t ticket) {
    assert_in_range(ticket, 0, p->given - 1);
    p->outstanding--;
    return 0;
}

void prefetch_destroy(struct prefetch *p) {
    assert_in_range(p->outstanding, 0, 8);
    free(p);
}

static struct dataset data_make(const struct stack *s) {
    struct dataset d = {.stack = s};
    int64_t images = 0, limit = s->shape.language.max_positions;
    for (int i = 0; i < SAMPLES; i++) {
        d.text[i] = kit_text_make(s, &kinds[i], 100 + (uint64_t)i);
        d.text[i].map = s->shape.newline ? maps[i] : NULL;
        for (int k = 0; k < kinds[i].images; k++) {
            const struct kit_map *m = &maps[i][k];
            d.layout[i][k] = (struct image_layout){
                (int32_t)kit_map_tiles(m), m->grid_h, m->grid_w, m->top, m->left, m->rows, m->cols};
        }
        d.ids[i] = xcalloc((size_t)kinds[i].length, sizeof(int32_t));
        d.labels[i] = xcalloc((size_t)kinds[i].length, sizeof(int32_t));
        for (int32_t j = 0; j < kinds[i].length; j++) {
            d.ids[i][j] = d.text[i].ids[j] < 0 ? DATA_IMAGE_MARKER : d.text[i].ids[j];
            d.labels[i][j] = d.text[i].labels[j] < 0 ? DATA_NO_TARGET : d.text[i].labels[j];
        }
        for (int k = 0; k < kinds[i].images; k++) d.image[i][k] = images++;
        struct kit_batch one = kit_batch_begin(s, 1, 0, 0);
        kit_batch_append(s, &one, 0, &d.text[i]);
        d.merged[i] = one.mb.tokens;
        d.targets[i] = one.mb.targets;
        assert_true(one.mb.tokens <= limit && one.mb.images == kinds[i].images);
        kit_batch_free(&one);
    }
    return d;
}

static void data_free(struct dataset *d) {
    for (int i = 0; i < SAMPLES; i++) {
        kit_text_free(&d->text[i]);
        free(d->ids[i]);
        free(d->labels[i]);
    }
}

/* The kit's micro-batch of the samples that stand at its place of the global batch. */
static struct kit_batch expected_batch(const struct dataset *d, int n, int64_t step,
                                       int64_t consumed, int64_t index) {
    const struct stack *s = d->stack;
    const struct vision_config *v = &s->shape.vision;
    size_t floats = (size_t)(v->channels * v->img_h * v->img_w), at = 0;
    struct kit_batch b = kit_batch_begin(s, n, step, index);
    for (int i = 0; i < n; i++) {
        b.sample_id[i] = (consumed + index * n + i) % SAMPLES;
        kit_batch_append(s, &b, i, &d->text[b.sample_id[i]]);
    }
    kit_batch_end(s, &b, 0);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < kinds[b.sample_id[i]].images; k++) {
            int64_t image = d->image[b.sample_id[i]][k];
            for (size_t j = 0; j < floats * (size_t)tiles_of(d, image); j++)
                b.pixels[at++] = pixel_of(image, j);
        }
    return b;
}

/* ---- comparing ---------------------------------------------------------------------------------------- */

#define EQUAL(a, b, n)                                                                             \
    do {                                                                                           \
        assert_true(((a) == NULL) == ((b) == NULL));                                               \
        if ((a) != NULL && (n) > 0) assert_memory_equal(a, b, (size_t)(n) * sizeof *(a));          \
    } while (0)

static void compare_descriptors(const struct microbatch *a, const struct microbatch *b) {
    EQUAL(a->sample_id, b->sample_id, b->samples);
    EQUAL(a->cu_tokens, b->cu_tokens, b->samples + 1);
    EQUAL(a->text_len, b->text_len, b->samples);
    EQUAL(a->sample_images, b->sample_images, b->samples + 1);
    EQUAL(a->image_tiles, b->image_tiles, b->images);
    EQUAL(a->image_row, b->image_row, b->images);
    assert_true(a->step == b->step && a->index == b->index && a->first_sample == b->first_sample);
    assert_true(a->images == b->images && a->tiles == b->tiles && a->image_rows == b->image_rows);
    assert_true(a->tokens == b->tokens && a->targets == b->targets && a->newlines == b->newlines);
    assert_true(a->max_segment == b->max_segment && a->hash == b->hash);
}

static void compare_tables(const struct batch_tables *a, const struct batch_tables *b,
                           const struct microbatch *mb, int64_t my_images, size_t floats) {
    EQUAL(a->pixels, b->pixels, (size_t)mb->tiles * floats);
    EQUAL(a->tile_cu, b->tile_cu, mb->tiles + 1);
    EQUAL(a->select_row, b->select_row, my_images);
    EQUAL(a->token, b->token, mb->tokens);
    EQUAL(a->image_to_row, b->image_to_row, mb->image_rows);
    EQUAL(a->newline_row, b->newline_row, mb->newlines);
    EQUAL(a->my_newline_row, b->my_newline_row, mb->newlines);
    EQUAL(a->my_image_row, b->my_image_row, my_images);
    EQUAL(a->position, b->position, mb->tokens);
    EQUAL(a->row_sample, b->row_sample, mb->tokens);
    EQUAL(a->token_cu, b->token_cu, mb->samples + 1);
    EQUAL(a->segment_sample, b->segment_sample, mb->samples);
    EQUAL(a->target_row, b->target_row, mb->targets);
    EQUAL(a->my_target_row, b->my_target_row, mb->targets);
    EQUAL(a->target, b->target, mb->targets);
}

/* Every micro-batch of a step of data rank dp, as stage st sees it. */
static void compare_step(struct batcher *b, const struct dataset *d, const struct stage *st, int n,
                         int dp, int M, int64_t step, int64_t consumed) {
    const struct vision_config *v = &d->stack->shape.vision;
    struct microbatch_source source = batcher_source(b);
    struct backend *be;
    assert_int_equal(backend_create_cpu(DTYPE_F32, 1, 1, &be), 0);
    for (int k = 0; k < M; k++) {
        struct kit_batch e = expected_batch(d, n, step, consumed, (int64_t)dp * M + k);
        struct arena arena[2];
        struct batch_tables got, expected;
        for (int i = 0; i < 2; i++) kit_arena(&arena[i], "tables", 1 << 16);
        compare_descriptors(source.descriptor(source.arg, k), &e.mb);
        assert_int_equal(source.tables(source.arg, k, be, &arena[0], &got), 0);
        kit_tables(&e, st, be, &arena[1], &expected);
        compare_tables(&got, &expected, &e.mb,
                       rows_held(ROWS_IMAGE, &e.mb, vision_patches(v) + 1, v->drop_class,
                                 d->stack->sequence_parallel, st->tp_size, st->tp_rank),
                       (size_t)(v->channels * v->img_h * v->img_w));
        for (int i = 0; i < 2; i++) free(arena[i].base);
        kit_batch_free(&e);
    }
    backend_destroy(be);
}

static void check_rank(const struct dataset *d, int first, int end, int p, int r, int D, int dp) {
    const struct stack *s = d->stack;
    const int n = 3, M = 4 / D;
    struct stage st;
    struct batcher *b;
    struct batcher_settings settings = {.micro_batch_size = n,
                                        .global_batch_size = 12,
                                        .dp = dp,
                                        .D = D,
                                        .M = M,
                                        .per_token_loss = true};
    struct microbatch most = {.samples = n,
                              .images = n * KIT_IMAGES,
                              .tiles = n * KIT_IMAGES * s->shape.image_tiles,
                              .image_rows =
                                  n * KIT_IMAGES * s->shape.image_tiles * kit_rows_per_image(s),
                              .tokens = n * s->shape.language.max_positions};
    assert_int_equal(stage_build(s, first, end, p, r, REPEAT_NOTHING, 0, &st), 0);
    assert_int_equal(batcher_create(&settings, d, s, &b), 0);
    batcher_attach(b, &st, &most);
    for (int64_t step = 0; step < 3; step++) { /* the second was looked ahead at, the third not */
        batcher_begin_step(b, step, step * 12, step == 0);
        compare_step(b, d, &st, n, dp, M, step, step * 12);
    }
    batcher_destroy(b);
    stage_free(&st);
}

static void check_model(bool drop_class, bool affine, bool with_maps) {
    struct config c = kit_config();
    if (with_maps) kit_anyres(&c);
    c.vision.disable_vision_class_token = drop_class;
    c.projector.projector_type = affine ? PROJECTOR_AFFINE : PROJECTOR_MLP;
    struct stack s = kit_stack(&c);
    struct dataset d = data_make(&s);
    int n = s.n_layers, language = n - 4;
    const int stage[][2] = {{0, n}, {0, 1},        {1, 3},    {3, language},
                            {3, n}, {language, n}, {n - 1, n}};
    for (size_t i = 0; i < sizeof stage / sizeof *stage; i++)
        for (int p = 1; p <= 4; p++)
            for (int r = 0; r < p; r++)
                for (int sp = 0; sp < (p > 1 ? 2 : 1); sp++) {
                    s.sequence_parallel = sp;
                    check_rank(&d, stage[i][0], stage[i][1], p, r, 1, 0);
                }
    data_free(&d);
    stack_free(&s);
}

static void test_tables(void **state) {
    (void)state;
    check_model(true, false, false);
    check_model(false, false, false);
    check_model(true, true, false);
    check_model(true, false, true);
}

/* Two and four data ranks see the same global batch. */
static void test_data_ranks(void **state) {
    (void)state;
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    struct dataset d = data_make(&s);
    for (int D = 2; D <= 4; D += 2)
        for (int dp = 0; dp < D; dp++) check_rank(&d, 0, s.n_layers, 1, 0, D, dp);
    data_free(&d);
    stack_free(&s);
}

/* What the step adds up to, and the factor of a mean of means. */
static void test_counts(void **state) {
    (void)state;
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    struct dataset d = data_make(&s);
    struct batcher *b;
    struct batcher_settings settings = {
        .micro_batch_size = 1, .global_batch_size = 12, .D = 2, .dp = 1, .M = 6};
    assert_int_equal(batcher_create(&settings, &d, &s, &b), 0);
    batcher_begin_step(b, 0, 24, false);
    int64_t targets = 0, tokens = 0, images = 0, filled = 0;
    for (int64_t i = 24; i < 36; i++) {
        targets += d.targets[i % SAMPLES];
        tokens += d.merged[i % SAMPLES];
        images += kinds[i % SAMPLES].images;
        filled += d.targets[i % SAMPLES] > 0;
    }
    assert_true(batcher_targets(b) == targets && batcher_tokens(b) == tokens);
    assert_int_equal(batcher_images(b), images);
    struct microbatch_source source = batcher_source(b);
    for (int k = 0; k < 6; k++) {
        int64_t n = d.targets[(24 + 6 + k) % SAMPLES];
        double scale = n > 0 ? 1.0 / ((double)n * (double)filled) : 1.0;
        assert_true(source.loss_scale(source.arg, k) == scale);
    }
    batcher_destroy(b);
    data_free(&d);
    stack_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_tables),
                                       cmocka_unit_test(test_data_ranks),
                                       cmocka_unit_test(test_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
