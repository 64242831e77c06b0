/* norm_forward, norm_backward. */
#include "op/kit.h"

/* in: x, gamma, beta. variant bit 0: RMS; bit 1: dx accumulates; bit 2: dx aliases dy. */
static void norm_inputs(struct kit_case *c, bool big) {
    int64_t r = big ? 137 : 4, h = big ? 1237 : 9;
    c->in[0] = mat_random(r, h, 2, 1);
    c->in[1] = mat_random(1, h, 1, 2);
    for (int64_t i = 0; i < h; i++) c->in[1].v[i] += 1;
    if (!(c->variant & 1)) c->in[2] = mat_random(1, h, 1, 3);
}

struct norm_tensors {
    struct tensor x, gamma, beta, y, stats;
};

static struct norm_tensors norm_run(struct kit_case *c) {
    bool rms = c->variant & 1;
    struct norm_tensors t = {.x = kit_tensor(c->k, c->in[0]), .gamma = kit_tensor(c->k, c->in[1])};
    if (!rms) t.beta = kit_tensor(c->k, c->in[2]);
    t.y = kit_output(c->k, t.x.rows, t.x.cols);
    t.stats = kit_output(c->k, t.x.rows, 2);
    c->k->be->ops->norm_forward(c->k->be, rms ? NORM_RMS : NORM_LAYER, 1e-5, &t.x, &t.gamma,
                                rms ? NULL : &t.beta, &t.y, &t.stats);
    return t;
}

static struct mat norm_forward(struct kit_case *c) {
    return kit_download(c->k, norm_run(c).y);
}

static void norm_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    bool rms = c->variant & 1, add = c->variant & 2, alias = c->variant & 4;
    struct norm_tensors t = norm_run(c);
    struct tensor g = kit_tensor(c->k, dy);
    struct mat before = mat_random(t.x.rows, t.x.cols, 1, 17);
    struct tensor dx = add     ? kit_tensor(c->k, before)
                       : alias ? g
                               : kit_output(c->k, t.x.rows, t.x.cols);
    struct tensor dgamma = kit_zeros(c->k, 1, t.x.cols), dbeta = kit_zeros(c->k, 1, t.x.cols);
    c->k->be->ops->norm_backward(c->k->be, rms ? NORM_RMS : NORM_LAYER, &g, &t.x, &t.gamma,
                                 &t.stats, &dx, add, &dgamma, rms ? NULL : &dbeta);
    grad[0] = kit_download(c->k, dx);
    for (int64_t i = 0; add && i < dx.rows * dx.cols; i++) grad[0].v[i] -= before.v[i];
    grad[1] = kit_download(c->k, dgamma);
    if (!rms) grad[2] = kit_download(c->k, dbeta);
    mat_free(&before);
}

static void test_norm(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"norm", 6, 0, 0, norm_inputs, norm_forward, norm_backward});
}

/* Row (1, 3): LayerNorm mean 2, variance 1; RMSNorm mean square 5. */
static void test_golden(void **state) {
    (void)state;
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *k = kit_open(&kit_backends[i], 1);
        struct kit_case c = {.k = k,
                             .in = {{1, 2, (double[]){1, 3}},
                                    {1, 2, (double[]){2, 10}},
                                    {1, 2, (double[]){0.5, 0.25}}}};
        double rstd = 1 / sqrt(1 + 1e-5), rms = 1 / sqrt(5 + 1e-5);
        struct norm_tensors t = norm_run(&c);
        struct mat y = kit_download(k, t.y), s = kit_download(k, t.stats);
        struct mat e = {1, 2, (double[]){-2 * rstd + 0.5, 10 * rstd + 0.25}};
        struct mat es = {1, 2, (double[]){2, rstd}};
        KIT_NEAR(y, e, 1e-6, "LayerNorm");
        KIT_NEAR(s, es, 1e-6, "LayerNorm statistics");
        mat_free(&y);
        mat_free(&s);
        c.variant = 1;
        t = norm_run(&c);
        y = kit_download(k, t.y);
        s = kit_download(k, t.stats);
        struct mat er = {1, 2, (double[]){2 * rms, 30 * rms}}, esr = {1, 2, (double[]){0, rms}};
        KIT_NEAR(y, er, 1e-6, "RMSNorm");
        KIT_NEAR(s, esr, 1e-6, "RMSNorm statistics");
        mat_free(&y);
        mat_free(&s);
        kit_close(k);
    }
}

/* dx NULL, dgamma NULL; no rows. */
static void test_optional(void **state) {
    (void)state;
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *k = kit_open(&kit_backends[i], 2);
        struct kit_case c = {.k = k};
        norm_inputs(&c, false);
        struct norm_tensors t = norm_run(&c);
        struct mat dy = mat_random(t.x.rows, t.x.cols, 1, 991), grad[KIT_INPUTS] = {{0}};
        norm_backward(&c, dy, grad);
        struct tensor g = kit_tensor(k, dy), dbeta = kit_zeros(k, 1, t.x.cols);
        k->be->ops->norm_backward(k->be, NORM_LAYER, &g, &t.x, &t.gamma, &t.stats, NULL, false,
                                  NULL, &dbeta);
        struct mat db = kit_download(k, dbeta);
        KIT_NEAR(db, grad[2], 0.0, "dbeta alone");
        struct tensor none = tensor_rows(t.x, 0, 0), stats = tensor_rows(t.stats, 0, 0);
        k->be->ops->norm_backward(k->be, NORM_LAYER, &none, &none, &t.gamma, &stats, &none, false,
                                  NULL, &dbeta);
        struct mat same = kit_download(k, dbeta);
        KIT_NEAR(same, db, 0.0, "dbeta after no rows");
        for (int j = 0; j < KIT_INPUTS; j++) mat_free(&grad[j]);
        mat_free(&dy);
        mat_free(&db);
        mat_free(&same);
        kit_case_free(&c);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_optional),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
