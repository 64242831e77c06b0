/* kernels: all */
/* linear_*, bias_grad. */
#include "op/kit.h"

/* in: x, w, bias; variant 0 with bias, 1 without, 2 gradients added to what is there. */
static void linear_inputs(struct kit_case *c, bool big) {
    int64_t r = big ? 391 : 5, i = big ? 130 : 7, o = big ? 777 : 4;
    c->in[0] = mat_random(r, i, 1, 1);
    c->in[1] = mat_random(o, i, 0.3, 2);
    if (c->variant != 1) c->in[2] = mat_random(1, o, 1, 3);
}

static struct mat linear_forward(struct kit_case *c) {
    struct tensor x = kit_tensor(c->k, c->in[0]), w = kit_tensor(c->k, c->in[1]), bias;
    if (c->in[2].v) bias = kit_tensor(c->k, c->in[2]);
    struct tensor y = kit_output(c->k, x.rows, w.rows);
    c->k->be->ops->linear_forward(c->k->be, &x, &w, c->in[2].v ? &bias : NULL, &y);
    return kit_download(c->k, y);
}

static struct mat minus(struct mat a, const struct mat *b) {
    for (int64_t i = 0; i < a.rows * a.cols; i++) a.v[i] -= b->v[i];
    return a;
}

/* Accumulating variant: begins with known values, which are taken off again. */
static void linear_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    const struct backend_ops *ops = c->k->be->ops;
    bool add = c->variant == 2;
    struct tensor g = kit_tensor(c->k, dy), x = kit_tensor(c->k, c->in[0]);
    struct tensor w = kit_tensor(c->k, c->in[1]);
    struct mat before[3] = {mat_random(x.rows, x.cols, 1, 11), mat_random(w.rows, w.cols, 1, 12),
                            mat_random(1, w.rows, 1, 13)};
    struct tensor dx = add ? kit_tensor(c->k, before[0]) : kit_output(c->k, x.rows, x.cols);
    struct tensor dw = add ? kit_tensor(c->k, before[1]) : kit_zeros(c->k, w.rows, w.cols);
    struct tensor db = add ? kit_tensor(c->k, before[2]) : kit_zeros(c->k, 1, w.rows);
    ops->linear_dgrad(c->k->be, &g, &w, &dx, add);
    ops->linear_wgrad(c->k->be, &g, &x, &dw);
    ops->bias_grad(c->k->be, &g, &db);
    struct tensor out[3] = {dx, dw, db};
    for (int i = 0; i < 3; i++) {
        grad[i] = kit_download(c->k, out[i]);
        if (add) grad[i] = minus(grad[i], &before[i]);
        mat_free(&before[i]);
    }
}

static void test_linear(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"linear", 3, 0, 0, linear_inputs, linear_forward, linear_backward});
}

/* [1 2; 3 4] [1 1; 0 2; -1 3]^T + [10 20 30] */
static void test_golden(void **state) {
    (void)state;
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *k = kit_open(&kit_backends[i], 1);
        struct kit_case c = {.k = k,
                             .in = {{2, 2, (double[]){1, 2, 3, 4}},
                                    {3, 2, (double[]){1, 1, 0, 2, -1, 3}},
                                    {1, 3, (double[]){10, 20, 30}}}};
        struct mat y = linear_forward(&c), e = {2, 3, (double[]){13, 24, 35, 17, 28, 39}};
        KIT_NEAR(y, e, 0.0, "linear");
        assert_true(k->be->gemm_flops == 2.0 * 2 * 3 * 2);
        mat_free(&y);
        kit_close(k);
    }
}

/* 0 rows, 0 inputs: legal, no product. */
static void test_empty(void **state) {
    (void)state;
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *k = kit_open(&kit_backends[i], 2);
        const struct backend_ops *ops = k->be->ops;
        struct mat none = mat_make(0, 3), w = mat_random(2, 3, 1, 1), no_inputs = mat_make(2, 0);
        struct tensor x = kit_tensor(k, none), wt = kit_tensor(k, w), y = kit_output(k, 0, 2);
        ops->linear_forward(k->be, &x, &wt, NULL, &y);
        struct tensor dw = kit_tensor(k, w), db = kit_zeros(k, 1, 2);
        ops->linear_wgrad(k->be, &y, &x, &dw);
        ops->bias_grad(k->be, &y, &db);
        struct mat same = kit_download(k, dw);
        KIT_NEAR(same, w, 0.0, "dw without rows");
        struct tensor x0 = kit_tensor(k, no_inputs), out = kit_output(k, 2, 2);
        ops->linear_forward(k->be, &x0, &x0, NULL, &out);
        struct mat zero = kit_download(k, out), expected = mat_make(2, 2);
        KIT_NEAR(zero, expected, 0.0, "product over no inputs");
        struct mat *all[] = {&none, &w, &no_inputs, &same, &zero, &expected};
        for (size_t j = 0; j < sizeof all / sizeof all[0]; j++) mat_free(all[j]);
        kit_close(k);
    }
}

static void count_call(void *arg) {
    ++*(int *)arg;
}

static void test_progress(void **state) {
    (void)state;
    struct kit *k = kit_open(&kit_backends[1], 2);
    struct kit_case c = {.k = k};
    int calls = 0;
    k->be->progress = count_call;
    k->be->progress_arg = &calls;
    linear_inputs(&c, true);
    struct mat y = linear_forward(&c);
    assert_true(calls > 0);
    mat_free(&y);
    kit_case_free(&c);
    kit_close(k);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
