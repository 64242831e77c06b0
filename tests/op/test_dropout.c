/* bias_dropout_add, dropout_backward, add. */
#include "op/kit.h"

#define PROB 0.3

/* in: x, bias, residual. variant bit 0: bias; 1: residual; 2: dropout; 3: y is x (or residual). */
static void dropout_inputs(struct kit_case *c, bool big) {
    int64_t r = big ? 67 : 3, h = big ? 2309 : 70;
    c->in[0] = mat_random(r, h, 2, 1);
    if (c->variant & 1) c->in[1] = mat_random(1, h, 2, 2);
    if (c->variant & 2) c->in[2] = mat_random(r, h, 2, 3);
}

static int32_t drop_row(int64_t i) {
    return (int32_t)(3 + i * 5 % 17);
}
static int32_t drop_sample(int64_t i) {
    return (int32_t)(i / 2 + 40);
}

static struct dropout dropout_make(struct kit_case *c, int64_t rows) {
    struct dropout d = {.prob = c->variant & 4 ? PROB : 0,
                        .key = rng_drop_key(rng_run_key(8), RNG_DROP_MLP_OUT, 3, 12)};
    int32_t *row = xmalloc((size_t)rows * sizeof *row), *sample = xmalloc((size_t)rows * 4);
    for (int64_t i = 0; i < rows; i++) row[i] = drop_row(i), sample[i] = drop_sample(i);
    d.row = kit_ints(c->k, row, rows);
    d.sample = kit_ints(c->k, sample, rows);
    free(row);
    free(sample);
    return d;
}

static struct mat dropout_forward(struct kit_case *c) {
    struct tensor x = kit_tensor(c->k, c->in[0]), bias, residual;
    if (c->in[1].v) bias = kit_tensor(c->k, c->in[1]);
    if (c->in[2].v) residual = kit_tensor(c->k, c->in[2]);
    struct dropout d = dropout_make(c, x.rows);
    struct tensor y = !(c->variant & 8) ? kit_output(c->k, x.rows, x.cols)
                      : c->in[2].v      ? residual
                                        : x;
    c->k->be->ops->bias_dropout_add(c->k->be, &x, c->in[1].v ? &bias : NULL,
                                    c->in[2].v ? &residual : NULL, c->variant & 4 ? &d : NULL, &y);
    return kit_download(c->k, y);
}

static void dropout_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    const struct backend_ops *ops = c->k->be->ops;
    struct tensor g = kit_tensor(c->k, dy);
    struct dropout d = dropout_make(c, g.rows);
    struct tensor dx = c->variant & 8 ? kit_tensor(c->k, dy) : kit_output(c->k, g.rows, g.cols);
    ops->dropout_backward(c->k->be, c->variant & 8 ? &dx : &g, &d, &dx);
    grad[0] = kit_download(c->k, dx);
    if (c->in[1].v) {
        struct tensor db = kit_zeros(c->k, 1, g.cols);
        ops->bias_grad(c->k->be, &dx, &db);
        grad[1] = kit_download(c->k, db);
    }
    if (c->in[2].v) grad[2] = mat_copy(dy);
}

static void test_dropout(void **state) {
    (void)state;
    kit_check(
        &(struct kit_op){"dropout", 16, 0, 0, dropout_inputs, dropout_forward, dropout_backward});
}

/* Bit for bit the words of rng_drop_word, and 30 % of them. */
static void test_words(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        struct kit_case c = {.k = k, .variant = 4};
        dropout_inputs(&c, true);
        struct dropout d = dropout_make(&c, c.in[0].rows);
        struct mat y = dropout_forward(&c);
        int64_t dropped = 0;
        double keep = (double)(float)(1 / (1 - PROB));
        for (int64_t r = 0; r < y.rows; r++)
            for (int64_t j = 0; j < y.cols; j++) {
                uint32_t word = rng_drop_word(d.key, (uint32_t)j, (uint32_t)drop_row(r),
                                              (uint32_t)drop_sample(r), 0);
                bool drop = (double)word < floor(PROB * 4294967296.0);
                double x = *mat_at(&c.in[0], r, j), got = *mat_at(&y, r, j);
                dropped += drop;
                if (k->be->dtype == DTYPE_F64)
                    assert_true(got == (drop ? 0 : x * keep));
                else
                    assert_true(got == (drop ? 0 : (double)((float)x * (float)keep)));
            }
        assert_true(fabs((double)dropped / (double)(y.rows * y.cols) - PROB) < 0.01);
        mat_free(&y);
        kit_case_free(&c);
        kit_close(k);
    }
}

static void test_add(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        struct mat a = mat_random(70, 1031, 1, 1), e = mat_random(70, 1031, 1, 2);
        struct tensor x = kit_tensor(k, a), y = kit_tensor(k, e);
        k->be->ops->add(k->be, &x, &y);
        struct mat got = kit_download(k, y);
        for (int64_t i = 0; i < e.rows * e.cols; i++) e.v[i] += a.v[i];
        KIT_NEAR(got, e, 1e-7, "sum");
        mat_free(&a);
        mat_free(&e);
        mat_free(&got);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_add),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
