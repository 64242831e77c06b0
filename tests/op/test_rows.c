/* rows_gather, rows_scatter, rows_scatter_add, patchify, class_position_*. */
#include "op/kit.h"

/* in: x. Gather and scatter_add with the same index are adjoint. Rows come twice and not at all. */
static void gather_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(big ? 300 : 6, big ? 1100 : 3, 1, 1);
}

static int32_t *gather_index(struct kit_case *c, int64_t n) {
    int32_t *index = xmalloc((size_t)n * sizeof *index);
    for (int64_t i = 0; i < n; i++) index[i] = i % 4 == 3 ? -1 : (int32_t)(i * 5 % c->in[0].rows);
    int32_t *on_device = kit_ints(c->k, index, n);
    free(index);
    return on_device;
}

static struct mat gather_forward(struct kit_case *c) {
    struct tensor x = kit_tensor(c->k, c->in[0]);
    struct tensor y = kit_output(c->k, 2 * x.rows + 1, x.cols);
    c->k->be->ops->rows_gather(c->k->be, &x, gather_index(c, y.rows), &y);
    return kit_download(c->k, y);
}

static void gather_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    struct tensor g = kit_tensor(c->k, dy), dx = kit_zeros(c->k, c->in[0].rows, c->in[0].cols);
    c->k->be->ops->rows_scatter_add(c->k->be, &g, gather_index(c, g.rows), &dx);
    grad[0] = kit_download(c->k, dx);
}

static void test_gather(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"gather", 1, 0, 0, gather_inputs, gather_forward, gather_backward});
}

/* The merge of image and text rows: two scatters into one matrix; backward two gathers. */
static void merge_inputs(struct kit_case *c, bool big) {
    int64_t n = big ? 200 : 4, h = big ? 1100 : 3;
    c->in[0] = mat_random(n, h, 1, 1);
    c->in[1] = mat_random(n / 2, h, 1, 2);
}

/* Text rows go to 0 1 3 4 6 7 ..., image rows to 2 5 8 ...; the last text row nowhere. */
static int32_t *merge_index(struct kit_case *c, int which) {
    int64_t n = c->in[which].rows;
    int32_t *index = xmalloc((size_t)n * sizeof *index);
    for (int64_t i = 0; i < n; i++) index[i] = (int32_t)(which ? 3 * i + 2 : i / 2 * 3 + i % 2);
    if (which == 0) index[n - 1] = -1;
    int32_t *on_device = kit_ints(c->k, index, n);
    free(index);
    return on_device;
}

static struct mat merge_forward(struct kit_case *c) {
    struct tensor y = kit_zeros(c->k, c->in[0].rows + c->in[1].rows, c->in[0].cols);
    for (int i = 0; i < 2; i++) {
        struct tensor x = kit_tensor(c->k, c->in[i]);
        c->k->be->ops->rows_scatter(c->k->be, &x, merge_index(c, i), &y);
    }
    return kit_download(c->k, y);
}

static void merge_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    struct tensor g = kit_tensor(c->k, dy);
    for (int i = 0; i < 2; i++) {
        struct tensor dx = kit_output(c->k, c->in[i].rows, c->in[i].cols);
        c->k->be->ops->rows_gather(c->k->be, &g, merge_index(c, i), &dx);
        grad[i] = kit_download(c->k, dx);
    }
}

static void test_merge(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"merge", 1, 0, 0, merge_inputs, merge_forward, merge_backward});
}

/* in: patches, class, positions. */
static void position_inputs(struct kit_case *c, bool big) {
    int64_t tiles = 3, n = big ? 101 : 4, h = big ? 515 : 3;
    c->in[0] = mat_random(tiles * n, h, 1, 1);
    c->in[1] = mat_random(1, h, 1, 2);
    c->in[2] = mat_random(n + 1, h, 1, 3);
}

static struct mat position_forward(struct kit_case *c) {
    struct tensor patches = kit_tensor(c->k, c->in[0]), cls = kit_tensor(c->k, c->in[1]);
    struct tensor pos = kit_tensor(c->k, c->in[2]);
    struct tensor y = kit_output(c->k, 3 * pos.rows, pos.cols);
    c->k->be->ops->class_position_forward(c->k->be, &patches, &cls, &pos, &y);
    return kit_download(c->k, y);
}

/* All at once, and each output alone gives the same. */
static void position_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    const struct backend_ops *ops = c->k->be->ops;
    struct tensor g = kit_tensor(c->k, dy), out[3], alone[3];
    for (int i = 0; i < 3; i++) {
        out[i] = kit_zeros(c->k, c->in[i].rows, c->in[i].cols);
        alone[i] = kit_zeros(c->k, c->in[i].rows, c->in[i].cols);
    }
    ops->class_position_backward(c->k->be, &g, &out[0], &out[1], &out[2]);
    ops->class_position_backward(c->k->be, &g, &alone[0], NULL, NULL);
    ops->class_position_backward(c->k->be, &g, NULL, NULL, &alone[2]);
    for (int i = 0; i < 3; i++) grad[i] = kit_download(c->k, out[i]);
    for (int i = 0; i < 3; i += 2) {
        struct mat m = kit_download(c->k, alone[i]);
        KIT_NEAR(m, grad[i], 0.0, "one output alone");
        mat_free(&m);
    }
}

static void test_position(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"class and position", 1, 0, 0, position_inputs, position_forward,
                               position_backward});
}

/* Two images of 2 channels, 4 x 6, patches of 2: against the definition. */
static void test_patchify(void **state) {
    (void)state;
    enum { TILES = 2, CHANNELS = 2, HEIGHT = 4, WIDTH = 6, PATCH = 2, N = 2 * 2 * 4 * 6 };
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        float pixels[N];
        for (int i = 0; i < N; i++) pixels[i] = (float)i;
        float *on_device = kit_memory(k, sizeof pixels);
        k->be->ops->upload(k->be, on_device, pixels, sizeof pixels);
        struct tensor y = kit_output(k, TILES * 6, CHANNELS * PATCH * PATCH);
        k->be->ops->patchify(k->be, on_device, TILES, CHANNELS, HEIGHT, WIDTH, PATCH, &y);
        struct mat got = kit_download(k, y);
        for (int t = 0; t < TILES; t++)
            for (int p = 0; p < 6; p++)
                for (int c = 0; c < CHANNELS * PATCH * PATCH; c++) {
                    int channel = c / 4, row = p / 3 * PATCH + c / 2 % 2,
                        col = p % 3 * PATCH + c % 2;
                    assert_true(*mat_at(&got, t * 6 + p, c) ==
                                ((t * CHANNELS + channel) * HEIGHT + row) * WIDTH + col);
                }
        mat_free(&got);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_position),
        cmocka_unit_test(test_patchify),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
