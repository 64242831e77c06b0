/* act_*, glu_*: gradients, and the functions themselves against the C library. */
#include "op/kit.h"

static const enum act_kind kinds[] = {ACT_GELU, ACT_QUICK_GELU, ACT_SILU};

/* variant / 2: kind; variant % 2: in place. */
static void act_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(big ? 131 : 3, big ? 1003 : 21, 5, 1);
}

static struct mat act_forward(struct kit_case *c) {
    struct tensor x = kit_tensor(c->k, c->in[0]);
    struct tensor y = c->variant % 2 ? x : kit_output(c->k, x.rows, x.cols);
    c->k->be->ops->act_forward(c->k->be, kinds[c->variant / 2], &x, &y);
    return kit_download(c->k, y);
}

static void act_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    struct tensor x = kit_tensor(c->k, c->in[0]), g = kit_tensor(c->k, dy);
    struct tensor dx = c->variant % 2 ? g : kit_output(c->k, x.rows, x.cols);
    c->k->be->ops->act_backward(c->k->be, kinds[c->variant / 2], &x, &g, &dx);
    grad[0] = kit_download(c->k, dx);
}

static void test_act(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"act", 6, 0, 0, act_inputs, act_forward, act_backward});
}

static void glu_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(big ? 131 : 3, big ? 2006 : 14, 3, 1);
}

static struct mat glu_forward(struct kit_case *c) {
    struct tensor ab = kit_tensor(c->k, c->in[0]), y = kit_output(c->k, ab.rows, ab.cols / 2);
    c->k->be->ops->glu_forward(c->k->be, kinds[c->variant / 2], &ab, &y);
    return kit_download(c->k, y);
}

static void glu_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    struct tensor ab = kit_tensor(c->k, c->in[0]), g = kit_tensor(c->k, dy);
    struct tensor dab = c->variant % 2 ? ab : kit_output(c->k, ab.rows, ab.cols);
    c->k->be->ops->glu_backward(c->k->be, kinds[c->variant / 2], &ab, &g, &dab);
    grad[0] = kit_download(c->k, dab);
}

static void test_glu(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"glu", 6, 0, 0, glu_inputs, glu_forward, glu_backward});
}

static double act_exact(enum act_kind kind, double x) {
    switch (kind) {
    case ACT_GELU:
        return x * 0.5 * erfc(-x * sqrt(0.5));
    case ACT_QUICK_GELU:
        return x / (1 + exp(-1.702 * x));
    case ACT_SILU:
        return x / (1 + exp(-x));
    }
    return NAN;
}

/* Every value within a few units in its last place, the negative tail included, where erf in the
 * usual formula would cancel; results below 1e-30 may be flushed. */
static void test_accuracy(void **state) {
    (void)state;
    enum { N = 40001 };
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (int kind = 0; kind < 3; kind++) {
            struct kit *k = kit_open(&kit_backends[b], 1);
            struct kit_case c = {.k = k, .variant = 2 * kind, .in = {mat_make(1, N)}};
            for (int i = 0; i < N; i++) c.in[0].v[i] = (double)(float)((i - N / 2) * 6e-4);
            struct mat y = act_forward(&c);
            for (int i = 0; i < N; i++) {
                double x = c.in[0].v[i], e = act_exact(kinds[kind], x);
                double tol = (k->be->dtype == DTYPE_F64 ? 1e-15 : 4e-7) * (2 + x * x) * fabs(e);
                if (!(fabs(y.v[i] - e) <= tol + 1e-30))
                    fail_msg("kind %d at %.9g: %.9g instead of %.9g", kind, x, y.v[i], e);
            }
            mat_free(&y);
            kit_case_free(&c);
            kit_close(k);
        }
}

/* Far out, infinite, NaN. */
static void test_ends(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (int kind = 0; kind < 3; kind++) {
            struct kit *k = kit_open(&kit_backends[b], 1);
            double x[] = {1e4, -1e4, 1e30, 0, NAN};
            struct kit_case c = {.k = k, .variant = 2 * kind, .in = {{1, 5, x}}};
            struct mat y = act_forward(&c);
            assert_true(y.v[0] == 1e4 && fabs(y.v[2] - 1e30) <= 1e24);
            assert_true(fabs(y.v[1]) <= 1e-30 && y.v[3] == 0 && isnan(y.v[4]));
            mat_free(&y);
            kit_close(k);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_act),
        cmocka_unit_test(test_glu),
        cmocka_unit_test(test_accuracy),
        cmocka_unit_test(test_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
