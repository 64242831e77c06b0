/* cross_entropy_max, _sums, _finish; the vocabulary also cut in two. */
#include "op/kit.h"

struct setting {
    double smoothing, z_loss;
    int parts; /* vocabulary parts, summed as a group would */
};
static const struct setting settings[] = {
    {0, 0, 1}, {0.1, 0, 1}, {0, 0.01, 1}, {0.2, 0.03, 1}, {0.1, 0.01, 2}, {0, 0, 3},
};
#define N_SETTINGS (sizeof settings / sizeof settings[0])

/* in: logits. The result is [1, R]: the losses of the rows. */
static void loss_inputs(struct kit_case *c, bool big) {
    c->in[0] = mat_random(big ? 33 : 4, big ? 3001 : 11, 3, 1);
}

static int32_t target_of(int64_t row, int64_t vocab) {
    return (int32_t)((row * 37 + 5) % vocab);
}

static struct mat columns(struct mat m, int64_t first, int64_t n) {
    struct mat part = mat_make(m.rows, n);
    for (int64_t r = 0; r < m.rows; r++)
        for (int64_t j = 0; j < n; j++) *mat_at(&part, r, j) = *mat_at(&m, r, first + j);
    return part;
}

/* What the group does between the operations: maximum of the maxima, sum of the sums. */
static void combine(struct kit *k, struct tensor *t, int parts, bool max) {
    struct mat all = kit_download(k, t[0]);
    for (int p = 1; p < parts; p++) {
        struct mat m = kit_download(k, t[p]);
        for (int64_t i = 0; i < m.rows * m.cols; i++)
            all.v[i] = max ? fmax(all.v[i], m.v[i]) : all.v[i] + m.v[i];
        mat_free(&m);
    }
    for (int p = 0; p < parts; p++) t[p] = kit_tensor(k, all);
    mat_free(&all);
}

/* scale is a quarter; gradient: dz is written, else losses are returned. */
static struct mat loss_run(struct kit_case *c, bool gradient) {
    const struct setting *s = &settings[c->variant];
    struct backend *be = c->k->be;
    int64_t rows = c->in[0].rows, vocab = c->in[0].cols, first[4] = {0};
    int32_t *target = xmalloc((size_t)rows * sizeof *target);
    for (int64_t r = 0; r < rows; r++) target[r] = target_of(r, vocab);
    int32_t *on_device = kit_ints(c->k, target, rows);
    free(target);
    struct tensor z[3], max[3], sums[3], loss;
    struct cross_entropy ce = {0, vocab, s->smoothing, s->z_loss, 0.25};
    for (int p = 0; p < s->parts; p++) {
        first[p + 1] = vocab * (p + 1) / s->parts;
        struct mat part = columns(c->in[0], first[p], first[p + 1] - first[p]);
        z[p] = kit_tensor(c->k, part);
        mat_free(&part);
        max[p] = kit_output(c->k, 1, rows);
        be->ops->cross_entropy_max(be, &z[p], &max[p]);
    }
    combine(c->k, max, s->parts, true);
    for (int p = 0; p < s->parts; p++) {
        ce.first_id = first[p];
        sums[p] = kit_output(c->k, rows, 3);
        be->ops->cross_entropy_sums(be, &ce, &z[p], &max[p], on_device, &sums[p]);
    }
    combine(c->k, sums, s->parts, false);
    struct mat dz = mat_make(rows, vocab), zeros = mat_make(1, rows);
    loss = kit_tensor_of(c->k, zeros, DTYPE_F64);
    for (int p = 0; p < s->parts; p++) {
        ce.first_id = first[p];
        be->ops->cross_entropy_finish(be, &ce, &z[p], &max[p], &sums[p], on_device, gradient,
                                      &loss);
        struct mat part = kit_download(c->k, z[p]);
        for (int64_t r = 0; r < rows; r++)
            for (int64_t j = 0; j < part.cols; j++)
                *mat_at(&dz, r, first[p] + j) = *mat_at(&part, r, j);
        mat_free(&part);
    }
    mat_free(&zeros);
    struct mat losses = kit_download(c->k, loss);
    mat_free(gradient ? &losses : &dz);
    return gradient ? dz : losses;
}

static struct mat loss_forward(struct kit_case *c) {
    return loss_run(c, false);
}

/* dz carries scale and no dy; rows are independent. */
static void loss_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    grad[0] = loss_run(c, true);
    for (int64_t r = 0; r < grad[0].rows; r++)
        for (int64_t j = 0; j < grad[0].cols; j++) *mat_at(&grad[0], r, j) *= 4 * dy.v[r];
}

static void test_loss(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"cross entropy", N_SETTINGS, 0, 0, loss_inputs, loss_forward,
                               loss_backward});
}

/* The definition in double, with the target distribution spelt out. */
static double exact_loss(const double *z, int64_t vocab, int32_t target, const struct setting *s) {
    double max = -INFINITY, sum = 0, loss = 0;
    for (int64_t j = 0; j < vocab; j++) max = fmax(max, z[j]);
    for (int64_t j = 0; j < vocab; j++) sum += exp(z[j] - max);
    double lse = max + log(sum);
    for (int64_t j = 0; j < vocab; j++)
        loss +=
            (s->smoothing / (double)vocab + (j == target ? 1 - s->smoothing : 0)) * (lse - z[j]);
    return loss + s->z_loss * lse * lse;
}

/* A real vocabulary, and logits of +-1e4. */
static void test_definition(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (size_t v = 0; v < 2 * N_SETTINGS; v++) {
            struct kit *k = kit_open(&kit_backends[b], 2);
            struct kit_case c = {.k = k, .variant = (int64_t)(v / 2)};
            c.in[0] = v % 2 ? mat_random(5, 301, 1e4, 4) : mat_random(2, 50257, 4, 5);
            struct mat loss = loss_forward(&c), e = mat_make(1, c.in[0].rows);
            for (int64_t r = 0; r < e.cols; r++)
                e.v[r] = exact_loss(mat_at(&c.in[0], r, 0), c.in[0].cols,
                                    target_of(r, c.in[0].cols), &settings[c.variant]);
            KIT_NEAR(loss, e, k->be->dtype == DTYPE_F64 ? 1e-12 : 1e-6, "loss");
            struct mat dz = loss_run(&c, true);
            for (int64_t i = 0; i < dz.rows * dz.cols; i++) assert_true(isfinite(dz.v[i]));
            mat_free(&loss);
            mat_free(&e);
            mat_free(&dz);
            kit_case_free(&c);
            kit_close(k);
        }
}

/* Five equal logits and one 3 times as likely, the target: p = 3/8; dz = p/4, (p - 1)/4. */
static void test_golden(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 1);
        double z[] = {7, 7, 7, 7, 7, 7 + log(3)}; /* target_of(0, 6) = 5 */
        struct kit_case c = {.k = k, .in = {{1, 6, z}}};
        struct mat loss = loss_forward(&c), dz = loss_run(&c, true);
        assert_true(fabs(loss.v[0] - log(8.0 / 3)) < 1e-6);
        assert_true(fabs(dz.v[0] - 0.125 / 4) < 1e-7 && fabs(dz.v[5] + 0.625 / 4) < 1e-7);
        mat_free(&loss);
        mat_free(&dz);
        kit_close(k);
    }
}

/* A NaN among the logits reaches the loss. */
static void test_nan(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 1);
        struct kit_case c = {.k = k};
        loss_inputs(&c, false);
        *mat_at(&c.in[0], 1, 2) = NAN;
        struct mat loss = loss_forward(&c);
        assert_true(isnan(loss.v[1]) && isfinite(loss.v[0]) && isfinite(loss.v[2]));
        mat_free(&loss);
        kit_case_free(&c);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss),
        cmocka_unit_test(test_definition),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_nan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
