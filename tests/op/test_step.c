/* adamw_step, sgd_step, sum_squares, sum_f64, scale. */
#include "op/kit.h"

enum { ADAMW, ADAMW_MASTER, SGD, SGD_MASTER };

/* in: w, g, m, v. The result is w', m', v' one below the other; with a master, w' is its copy. */
static void step_inputs(struct kit_case *c, bool big) {
    int64_t n = big ? 100003 : 37;
    for (int i = 0; i < 4; i++) c->in[i] = mat_random(1, n, 1, i + 1);
    for (int64_t i = 0; i < n; i++) c->in[3].v[i] = fabs(c->in[3].v[i]) + 0.01;
}

static const struct adamw setting = {.lr = 0.01,
                                     .beta1 = 0.9,
                                     .beta2 = 0.95,
                                     .eps = 1e-8,
                                     .weight_decay = 0.1,
                                     .correction1 = 1 - 0.9 * 0.9,
                                     .correction2 = 1 - 0.95 * 0.95,
                                     .grad_scale = 0.5};

static struct mat step_forward(struct kit_case *c) {
    struct backend *be = c->k->be;
    int64_t n = c->in[0].cols;
    struct tensor t[4], copy = kit_output(c->k, 1, n);
    for (int i = 0; i < 4; i++) t[i] = kit_tensor(c->k, c->in[i]);
    bool master = c->variant == ADAMW_MASTER || c->variant == SGD_MASTER;
    struct tensor w = master ? copy : t[0];
    if (c->variant <= ADAMW_MASTER)
        be->ops->adamw_step(be, &setting, n, w.data, t[0].data, t[1].data, t[2].data, t[3].data);
    else
        be->ops->sgd_step(be, 0.01, 0.9, 0.1, 0.5, n, w.data, t[0].data, t[1].data, t[2].data);
    struct mat out = mat_make(3, n);
    struct tensor rows[3] = {w, t[2], t[3]};
    for (int r = 0; r < 3; r++) {
        struct mat m = kit_download(c->k, rows[r]);
        memcpy(mat_at(&out, r, 0), m.v, (size_t)n * sizeof(double));
        mat_free(&m);
    }
    struct mat after = kit_download(c->k, t[0]);
    assert_memory_equal(after.v, out.v, (size_t)n * sizeof(double));
    mat_free(&after);
    return out;
}

static void test_step(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"optimizer step", 4, 0, 0, step_inputs, step_forward, NULL});
}

static void test_definition(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (int64_t variant = 0; variant < 4; variant++) {
            struct kit *k = kit_open(&kit_backends[b], 1);
            struct kit_case c = {.k = k, .variant = variant};
            step_inputs(&c, false);
            struct mat got = step_forward(&c), e = mat_make(3, c.in[0].cols);
            for (int64_t i = 0; i < e.cols; i++) {
                double w = c.in[0].v[i], g = 0.5 * c.in[1].v[i], m = c.in[2].v[i], v = c.in[3].v[i];
                if (variant <= ADAMW_MASTER) {
                    m = 0.9 * m + 0.1 * g;
                    v = 0.95 * v + 0.05 * g * g;
                    w -= 0.01 * 0.1 * w;
                    w -= 0.01 / 0.19 * m / (sqrt(v / 0.0975) + 1e-8);
                } else {
                    m = 0.9 * m + (g + 0.1 * w);
                    w -= 0.01 * m;
                }
                e.v[i] = w, e.v[e.cols + i] = m, e.v[2 * e.cols + i] = v;
            }
            KIT_NEAR(got, e, k->be->dtype == DTYPE_F64 ? 1e-14 : 1e-6, "step");
            mat_free(&got);
            mat_free(&e);
            kit_case_free(&c);
            kit_close(k);
        }
}

/* in: x. The result is the sum of squares. */
static void squares_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(c->variant ? 1 : 40, big ? 70001 : 13, 1, 1);
}

static struct mat squares_forward(struct kit_case *c) {
    struct tensor x = kit_tensor(c->k, c->in[0]);
    struct mat sum = mat_make(1, 1);
    sum.v[0] = c->k->be->ops->sum_squares(c->k->be, &x);
    double exact = 0;
    for (int64_t i = 0; i < x.rows * x.cols; i++) exact += c->in[0].v[i] * c->in[0].v[i];
    assert_true(fabs(sum.v[0] - exact) <= 1e-12 * exact);
    return sum;
}

static void test_squares(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"sum of squares", 2, 0, 0, squares_inputs, squares_forward, NULL});
}

/* Squares that overflow fp32 do not overflow the sum; NaN and infinity come through; nothing is 0. */
static void test_squares_ends(void **state) {
    (void)state;
    double bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        const struct backend_ops *ops = k->be->ops;
        struct mat m = mat_make(3, 50), none = mat_make(0, 5);
        m.v[70] = 1e30;
        struct tensor x = kit_tensor(k, m), empty = kit_tensor(k, none);
        assert_true(fabs(ops->sum_squares(k->be, &x) / 1e60 - 1) < 1e-6);
        assert_true(ops->sum_squares(k->be, &empty) == 0);
        for (int i = 0; i < 3; i++) {
            m.v[149] = bad[i];
            x = kit_tensor(k, m);
            assert_false(isfinite(ops->sum_squares(k->be, &x)));
        }
        mat_free(&m);
        mat_free(&none);
        kit_close(k);
    }
}

static void test_scale_and_sum(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        struct mat m = mat_random(5, 70001, 1, 1);
        struct tensor x = kit_tensor(k, m), d = kit_tensor_of(k, m, DTYPE_F64);
        k->be->ops->scale(k->be, &x, -0.25);
        struct mat got = kit_download(k, x);
        double sum = 0;
        for (int64_t i = 0; i < m.rows * m.cols; i++) sum += m.v[i], m.v[i] *= -0.25;
        KIT_NEAR(got, m, 0.0, "scaled by a power of two");
        assert_true(fabs(k->be->ops->sum_f64(k->be, &d) - sum) < 1e-9);
        mat_free(&got);
        mat_free(&m);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step),          cmocka_unit_test(test_definition),
        cmocka_unit_test(test_squares),       cmocka_unit_test(test_squares_ends),
        cmocka_unit_test(test_scale_and_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
