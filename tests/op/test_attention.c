/* kernels: all */
/* attention_forward, attention_backward: segments, causal mask, window, grouped heads, dropout. */
#include "op/kit.h"

struct shape {
    int64_t heads, kv_heads, d, window;
    bool causal;
    double drop;
};
static const struct shape shapes[] = {
    {2, 2, 3, 0, false, 0},   {4, 2, 4, 0, true, 0},   {4, 1, 4, 3, true, 0},
    {2, 2, 3, 3, false, 0},   {4, 2, 4, 0, true, 0.3}, {2, 1, 2, 4, true, 0.5},
    {3, 3, 4, 0, false, 0.1},
};
#define N_SHAPES (sizeof shapes / sizeof shapes[0])

/* Segments of 0 and 1 rows are among them; the big ones need several blocks. */
static const int32_t small_cu[] = {0, 4, 4, 5, 11}, big_cu[] = {0, 300, 300, 301, 841, 1100};
static const int32_t samples[] = {5, 6, 7, 90, 3};

static void attention_inputs(struct kit_case *c, bool big) {
    const struct shape *s = &shapes[c->variant];
    int64_t rows = big ? 1100 : 11;
    c->in[0] = mat_random(rows, s->heads * s->d, 2, 1);
    c->in[1] = mat_random(rows, s->kv_heads * s->d, 2, 2);
    c->in[2] = mat_random(rows, s->kv_heads * s->d, 1, 3);
}

static double visible_pairs(const struct attention *a, const int32_t *cu) {
    double pairs = 0;
    for (int64_t s = 0; s < a->n_segments; s++)
        for (int64_t i = 0, n = cu[s + 1] - cu[s]; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                pairs += (!a->causal || j <= i) && (a->window == 0 || i - j < a->window);
    return pairs;
}

static struct attention attention_make(struct kit_case *c) {
    const struct shape *s = &shapes[c->variant];
    bool big = c->in[0].rows > 11;
    const int32_t *cu = big ? big_cu : small_cu;
    struct attention a = {.heads = s->heads,
                          .kv_heads = s->kv_heads,
                          .head_dim = s->d,
                          .scale = 1 / sqrt((double)s->d),
                          .causal = s->causal,
                          .window = big ? s->window * 50 : s->window,
                          .n_segments = big ? 5 : 4,
                          .max_segment = big ? 540 : 6,
                          .drop_prob = s->drop,
                          .drop_key = rng_drop_key(rng_run_key(3), RNG_DROP_ATTENTION, 2, 9),
                          .first_head = 10};
    a.cu = kit_ints(c->k, cu, a.n_segments + 1);
    a.drop_sample = kit_ints(c->k, samples, a.n_segments);
    a.pairs = visible_pairs(&a, cu);
    return a;
}

struct run {
    struct attention a;
    struct tensor q, k, v, o, lse;
};

static struct run attention_run(struct kit_case *c) {
    struct run r = {.a = attention_make(c),
                    .q = kit_tensor(c->k, c->in[0]),
                    .k = kit_tensor(c->k, c->in[1]),
                    .v = kit_tensor(c->k, c->in[2])};
    r.o = kit_output(c->k, r.q.rows, r.q.cols);
    r.lse = kit_output(c->k, r.a.heads, r.q.rows);
    c->k->be->ops->attention_forward(c->k->be, &r.a, &r.q, &r.k, &r.v, &r.o, &r.lse);
    return r;
}

static struct mat attention_forward(struct kit_case *c) {
    return kit_download(c->k, attention_run(c).o);
}

static void attention_backward(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]) {
    struct run r = attention_run(c);
    struct tensor d_o = kit_tensor(c->k, dy), delta = kit_output(c->k, r.a.heads, r.q.rows);
    struct tensor dq = kit_output(c->k, r.q.rows, r.q.cols);
    struct tensor dk = kit_output(c->k, r.k.rows, r.k.cols);
    struct tensor dv = kit_output(c->k, r.v.rows, r.v.cols);
    c->k->be->ops->attention_backward(c->k->be, &r.a, &r.q, &r.k, &r.v, &r.o, &r.lse, &d_o, &delta,
                                      &dq, &dk, &dv);
    grad[0] = kit_download(c->k, dq);
    grad[1] = kit_download(c->k, dk);
    grad[2] = kit_download(c->k, dv);
}

static void test_kit(void **state) {
    (void)state;
    kit_check(&(struct kit_op){"attention", N_SHAPES, 1e-4, 1e-6, attention_inputs,
                               attention_forward, attention_backward});
}

/* One output row and its log-sum-exp, straight from the definition. */
static void naive_row(const struct kit_case *c, const struct attention *a, const int32_t *cu,
                      int64_t segment, int64_t i, int64_t head, double *o, double *lse) {
    int64_t d = a->head_dim, n = cu[segment + 1] - cu[segment], first = cu[segment];
    int64_t kv = head / (a->heads / a->kv_heads);
    double sum = 0, keep = 1 / (1 - a->drop_prob);
    for (int64_t e = 0; e < d; e++) o[e] = 0;
    for (int64_t j = 0; j < n; j++) {
        if ((a->causal && j > i) || (a->window > 0 && i - j >= a->window)) continue;
        double score = 0;
        for (int64_t e = 0; e < d; e++)
            score += *mat_at(&c->in[0], first + i, head * d + e) *
                     *mat_at(&c->in[1], first + j, kv * d + e);
        double p = exp(a->scale * score);
        uint32_t word = rng_drop_word(a->drop_key, (uint32_t)j, (uint32_t)i,
                                      (uint32_t)samples[segment], (uint32_t)(a->first_head + head));
        bool kept = (double)word >= floor(a->drop_prob * 4294967296.0);
        sum += p;
        for (int64_t e = 0; e < d; e++)
            o[e] += kept ? p * keep * *mat_at(&c->in[2], first + j, kv * d + e) : 0;
    }
    for (int64_t e = 0; e < d; e++) o[e] /= sum;
    *lse = log(sum);
}

static void check_naive(struct kit_case *c, double tolerance) {
    struct run r = attention_run(c);
    struct mat o = kit_download(c->k, r.o), lse = kit_download(c->k, r.lse);
    struct mat expected = mat_make(o.rows, o.cols), expected_lse = mat_make(lse.rows, lse.cols);
    const int32_t *cu = o.rows > 11 ? big_cu : small_cu;
    for (int64_t s = 0; s < r.a.n_segments; s++)
        for (int64_t i = 0; i < cu[s + 1] - cu[s]; i++)
            for (int64_t h = 0; h < r.a.heads; h++)
                naive_row(c, &r.a, cu, s, i, h, mat_at(&expected, cu[s] + i, h * r.a.head_dim),
                          mat_at(&expected_lse, h, cu[s] + i));
    KIT_NEAR(o, expected, tolerance, "attention");
    KIT_NEAR(lse, expected_lse, tolerance, "log-sum-exp");
    mat_free(&o);
    mat_free(&lse);
    mat_free(&expected);
    mat_free(&expected_lse);
}

static void test_definition(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (size_t shape = 0; shape < 2 * N_SHAPES; shape++) {
            struct kit *k = kit_open(&kit_backends[b], 2);
            struct kit_case c = {.k = k, .variant = (int64_t)(shape / 2)};
            attention_inputs(&c, shape % 2);
            check_naive(&c, k->be->dtype == DTYPE_F64 ? 1e-7 : 1e-5);
            kit_case_free(&c);
            kit_close(k);
        }
}

/* The last rows of a sequence against all its keys, as a cache holds them, give the rows that the
 * whole sequence gives; with the rows in one piece, one by one, and beyond a window. */
static void check_past(struct kit *k, size_t shape, int64_t total, int64_t n) {
    const struct shape *s = &shapes[shape];
    struct kit_case c = {.k = k, .variant = (int64_t)shape};
    attention_inputs(&c, true);
    int32_t all_cu[2] = {0, (int32_t)total}, last_cu[2] = {0, (int32_t)n};
    struct attention a = {.heads = s->heads,
                          .kv_heads = s->kv_heads,
                          .head_dim = s->d,
                          .scale = 0.5,
                          .causal = s->causal,
                          .window = s->window * 9,
                          .n_segments = 1,
                          .max_segment = total};
    struct tensor q = tensor_rows(kit_tensor(k, c.in[0]), 0, total);
    struct tensor key = tensor_rows(kit_tensor(k, c.in[1]), 0, total);
    struct tensor v = tensor_rows(kit_tensor(k, c.in[2]), 0, total);
    struct tensor o = kit_output(k, total, q.cols), lse = kit_output(k, s->heads, total);
    a.cu = kit_ints(k, all_cu, 2);
    k->be->ops->attention_forward(k->be, &a, &q, &key, &v, &o, &lse);
    struct tensor part = kit_output(k, n, q.cols), part_lse = kit_output(k, s->heads, n);
    struct tensor q_last = tensor_rows(q, total - n, n), o_last = tensor_rows(o, total - n, n);
    a.cu = kit_ints(k, last_cu, 2);
    a.max_segment = n;
    a.past = total - n;
    k->be->ops->attention_forward(k->be, &a, &q_last, &key, &v, &part, &part_lse);
    struct mat x = kit_download(k, o_last), y = kit_download(k, part);
    struct mat all = kit_download(k, lse), lx = mat_make(s->heads, n),
               ly = kit_download(k, part_lse);
    for (int64_t h = 0; h < s->heads; h++)
        for (int64_t r = 0; r < n; r++) *mat_at(&lx, h, r) = *mat_at(&all, h, total - n + r);
    mat_free(&all);
    double tolerance = k->be->dtype == DTYPE_F64 ? 1e-12 : 1e-5;
    KIT_NEAR(x, y, tolerance, "attention over a cache");
    KIT_NEAR(lx, ly, tolerance, "log-sum-exp over a cache");
    mat_free(&x);
    mat_free(&y);
    mat_free(&lx);
    mat_free(&ly);
    kit_case_free(&c);
}

static void test_past(void **state) {
    (void)state;
    static const int64_t size[][2] = {{1, 1}, {7, 1}, {70, 3}, {300, 1}, {700, 260}, {1100, 1}};
    for (size_t b = 0; b < KIT_BACKENDS; b++)
        for (size_t shape = 0; shape < 4; shape++)
            for (size_t i = 0; i < sizeof size / sizeof size[0]; i++) {
                struct kit *k = kit_open(&kit_backends[b], 2);
                check_past(k, shape, size[i][0], size[i][1]);
                kit_close(k);
            }
}

static void test_flops(void **state) {
    (void)state;
    struct kit *k = kit_open(&kit_backends[0], 1);
    struct kit_case c = {.k = k, .variant = 1};
    attention_inputs(&c, false);
    struct mat dy = mat_random(11, 16, 1, 4), grad[KIT_INPUTS] = {{0}};
    attention_backward(&c, dy, grad);
    /* Segments of 4, 0, 1 and 6 rows: 10 + 1 + 21 pairs, 4 heads of 4. */
    assert_true(k->be->attention_flops == 12.0 * 32 * 4 * 4);
    mat_free(&dy);
    for (int i = 0; i < KIT_INPUTS; i++) mat_free(&grad[i]);
    kit_case_free(&c);
    kit_close(k);
}

/* Scores of +-1e4 and a NaN: the softmax neither overflows nor hides it. */
static void test_extreme(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 1);
        struct kit_case c = {.k = k, .variant = 0};
        attention_inputs(&c, false);
        for (int64_t i = 0; i < c.in[0].rows * c.in[0].cols; i++) c.in[0].v[i] *= 5e3;
        struct mat o = attention_forward(&c);
        for (int64_t i = 0; i < o.rows * o.cols; i++) assert_true(fabs(o.v[i]) <= 1.0001);
        mat_free(&o);
        *mat_at(&c.in[1], 2, 0) = NAN;
        o = attention_forward(&c);
        for (int64_t i = 0; i < 4; i++) assert_true(isnan(*mat_at(&o, i, 0)));
        for (int64_t i = 4; i < o.rows; i++) assert_false(isnan(*mat_at(&o, i, 0)));
        mat_free(&o);
        kit_case_free(&c);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kit),     cmocka_unit_test(test_definition),
        cmocka_unit_test(test_past),    cmocka_unit_test(test_flops),
        cmocka_unit_test(test_extreme),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
