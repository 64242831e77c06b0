/* The test kit of the backends: every operation is described once as a case (inputs, forward,
 * backward) and then checked on every backend of the table below
 *   - gradients against central finite differences, where the backend has fp64;
 *   - each working type against the fp64 CPU;
 *   - bit identity for 1, 2, 3 and 4 threads, where threads are a choice;
 *   - tensors that are column slices (ld > cols), always.
 * Host values are double matrices; they go to the device and come back through the table alone.
 */
#ifndef STRATA_TEST_KIT_H
#define STRATA_TEST_KIT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backend.h"

/* ---- host matrices ------------------------------------------------------------------------- */

struct mat {
    int64_t rows, cols;
    double *v; /* NULL: none */
};

static inline struct mat mat_make(int64_t rows, int64_t cols) {
    return (struct mat){rows, cols, xcalloc((size_t)(rows * cols + 1), sizeof(double))};
}

/* Uniform in [-size, size), rounded to fp32 so that all working types see the same numbers. */
static inline struct mat mat_random(int64_t rows, int64_t cols, double size, int64_t seed) {
    struct mat m = mat_make(rows, cols);
    struct rng_key key = rng_run_key(seed);
    for (int64_t i = 0; i < rows * cols; i++)
        m.v[i] = (double)(float)(size * rng_uniform(key, (uint64_t)i));
    return m;
}

static inline struct mat mat_copy(struct mat m) {
    struct mat c = mat_make(m.rows, m.cols);
    memcpy(c.v, m.v, (size_t)(m.rows * m.cols) * sizeof(double));
    return c;
}

static inline void mat_free(struct mat *m) {
    free(m->v);
    m->v = NULL;
}

static inline double *mat_at(const struct mat *m, int64_t row, int64_t col) {
    return m->v + row * m->cols + col;
}

/* Largest difference, relative to 1 + the largest element. NaN anywhere gives NaN. */
static inline double mat_diff(const struct mat *a, const struct mat *b) {
    double diff = 0, size = 1;
    if (a->rows != b->rows || a->cols != b->cols) return INFINITY;
    for (int64_t i = 0; i < a->rows * a->cols; i++) {
        double d = fabs(a->v[i] - b->v[i]);
        if (isnan(d)) return d;
        if (d > diff) diff = d;
        if (fabs(b->v[i]) > size) size = fabs(b->v[i]);
    }
    return diff / size;
}

#define KIT_NEAR(a, b, tol, what)                                                                  \
    do {                                                                                           \
        double diff_ = mat_diff(&(a), &(b));                                                       \
        if (!(diff_ <= (tol))) fail_msg("%s: differ by %.3g, allowed %.3g", what, diff_, tol);     \
    } while (0)

/* ---- the backends under test --------------------------------------------------------------- */

struct kit_backend {
    const char *name;
    enum dtype dtype;
    double tolerance; /* against fp64 */
    bool threads;     /* may be created with 1..4 threads, which must not change a bit */
    bool differences; /* precise enough for finite differences */
    int (*create)(enum dtype dtype, int threads, int ranks_sharing, struct backend **be);
};
static const struct kit_backend kit_backends[] = {
    {"cpu fp64", DTYPE_F64, 1e-12, true, true, backend_create_cpu},
    {"cpu fp32", DTYPE_F32, 5e-5, true, false, backend_create_cpu},
};
#define KIT_BACKENDS (sizeof kit_backends / sizeof kit_backends[0])

/* A backend with what was allocated on it. */
struct kit {
    struct backend *be;
    int n;
    void *mem[4096];
};

static inline struct kit *kit_open(const struct kit_backend *b, int threads) {
    struct kit *k = xcalloc(1, sizeof *k);
    if (b->create(b->dtype, threads, 1, &k->be) != 0) fail_msg("%s: %s", b->name, error_text());
    return k;
}

static inline void kit_free_tensors(struct kit *k) {
    for (int i = 0; i < k->n; i++) k->be->ops->mem_free(k->be, k->mem[i]);
    k->n = 0;
}

static inline void kit_close(struct kit *k) {
    kit_free_tensors(k);
    backend_destroy(k->be);
    free(k);
}

static inline void *kit_memory(struct kit *k, size_t bytes) {
    assert_true(k->n < (int)(sizeof k->mem / sizeof k->mem[0]));
    void *p = k->be->ops->mem_alloc(k->be, bytes ? bytes : 1);
    assert_non_null(p);
    k->mem[k->n++] = p;
    return p;
}

static inline int32_t *kit_ints(struct kit *k, const int32_t *values, int64_t n) {
    int32_t *p = kit_memory(k, (size_t)n * sizeof *p);
    k->be->ops->upload(k->be, p, values, (size_t)n * sizeof *p);
    return p;
}

/* A device tensor in a wider matrix, whose other columns hold a value that would be noticed. */
#define KIT_PAD 3
static inline struct tensor kit_tensor_of(struct kit *k, struct mat m, enum dtype type) {
    int64_t ld = m.rows > 1 ? m.cols + KIT_PAD : m.cols;
    size_t size = dtype_size(type), bytes = (size_t)(m.rows * ld) * size;
    char *host = xmalloc(bytes + 1);
    for (int64_t i = 0; i < m.rows * ld; i++) {
        int64_t row = ld ? i / ld : 0, col = ld ? i % ld : 0;
        double v = col < m.cols ? *mat_at(&m, row, col) : 1e30;
        if (type == DTYPE_F64)
            memcpy(host + (size_t)i * size, &v, size);
        else
            memcpy(host + (size_t)i * size, &(float){(float)v}, size);
    }
    struct tensor t = {kit_memory(k, bytes), m.rows, m.cols, ld, type};
    k->be->ops->upload(k->be, t.data, host, bytes);
    free(host);
    return t;
}

static inline struct tensor kit_tensor(struct kit *k, struct mat m) {
    return kit_tensor_of(k, m, k->be->dtype);
}

/* Filled with a value that an operation must overwrite. */
static inline struct tensor kit_output(struct kit *k, int64_t rows, int64_t cols) {
    struct mat m = mat_make(rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) m.v[i] = -7e7;
    struct tensor t = kit_tensor(k, m);
    mat_free(&m);
    return t;
}

static inline struct tensor kit_zeros(struct kit *k, int64_t rows, int64_t cols) {
    struct mat m = mat_make(rows, cols);
    struct tensor t = kit_tensor(k, m);
    mat_free(&m);
    return t;
}

/* Also checks that the columns beside the tensor were left alone. */
static inline struct mat kit_download(struct kit *k, struct tensor t) {
    struct mat m = mat_make(t.rows, t.cols);
    size_t size = dtype_size(t.dtype), bytes = (size_t)(t.rows * t.ld) * size;
    char *host = xmalloc(bytes + 1);
    k->be->ops->synchronize(k->be);
    k->be->ops->download(k->be, host, t.data, bytes);
    for (int64_t i = 0; i < t.rows * t.ld; i++) {
        double v;
        float f;
        memcpy(&f, host + (size_t)i * size, sizeof f);
        if (t.dtype == DTYPE_F64)
            memcpy(&v, host + (size_t)i * size, sizeof v);
        else
            v = (double)f;
        if (i % t.ld < t.cols)
            m.v[i / t.ld * t.cols + i % t.ld] = v;
        else
            assert_true(v == (t.dtype == DTYPE_F64 ? 1e30 : (double)1e30f));
    }
    free(host);
    return m;
}

/* ---- operations ---------------------------------------------------------------------------- */

#define KIT_INPUTS 6
struct kit_case {
    struct kit *k;
    int64_t variant; /* which of the operation's variants; its meaning is the test's */
    struct mat in[KIT_INPUTS];
    bool fixed[KIT_INPUTS]; /* no gradient for this input */
};
struct kit_op {
    const char *name;
    int n_variants;
    double step, tolerance; /* of the differences; 0: 1e-5, 1e-7 */
    /* Fills in[]; big: several blocks of work. */
    void (*inputs)(struct kit_case *c, bool big);
    struct mat (*forward)(struct kit_case *c);
    /* grad[i] for every in[i] that is there and not fixed. */
    void (*backward)(struct kit_case *c, struct mat dy, struct mat grad[KIT_INPUTS]);
};

static inline struct kit_case kit_case_make(const struct kit_op *op, struct kit *k, int64_t variant,
                                            bool big) {
    struct kit_case c = {.k = k, .variant = variant};
    op->inputs(&c, big);
    return c;
}

static inline void kit_case_free(struct kit_case *c) {
    for (int i = 0; i < KIT_INPUTS; i++) mat_free(&c->in[i]);
    kit_free_tensors(c->k);
}

/* Output, then the gradients for a random dy. */
struct kit_result {
    struct mat y, grad[KIT_INPUTS];
};

static inline struct kit_result kit_run(const struct kit_op *op, struct kit_case *c) {
    struct kit_result r = {.y = op->forward(c)};
    if (op->backward) {
        struct mat dy = mat_random(r.y.rows, r.y.cols, 1, 991);
        op->backward(c, dy, r.grad);
        mat_free(&dy);
    }
    return r;
}

static inline void kit_result_free(struct kit_result *r) {
    mat_free(&r->y);
    for (int i = 0; i < KIT_INPUTS; i++) mat_free(&r->grad[i]);
}

/* sum of dy y */
static inline double kit_objective(const struct kit_op *op, struct kit_case *c,
                                   const struct mat *dy) {
    struct mat y = op->forward(c);
    double sum = 0;
    for (int64_t i = 0; i < y.rows * y.cols; i++) sum += y.v[i] * dy->v[i];
    mat_free(&y);
    kit_free_tensors(c->k);
    return sum;
}

static inline void kit_check_differences(const struct kit_op *op, const struct kit_backend *b,
                                         int64_t variant) {
    struct kit *k = kit_open(b, 1);
    struct kit_case c = kit_case_make(op, k, variant, false);
    struct kit_result r = kit_run(op, &c);
    struct mat dy = mat_random(r.y.rows, r.y.cols, 1, 991);
    double h = op->step > 0 ? op->step : 1e-5, tol = op->tolerance > 0 ? op->tolerance : 1e-7;
    for (int i = 0; i < KIT_INPUTS; i++) {
        if (!c.in[i].v || c.fixed[i]) continue;
        assert_non_null(r.grad[i].v);
        struct mat numeric = mat_make(c.in[i].rows, c.in[i].cols);
        for (int64_t e = 0; e < numeric.rows * numeric.cols; e++) {
            double x = c.in[i].v[e];
            c.in[i].v[e] = x + h;
            double above = kit_objective(op, &c, &dy);
            c.in[i].v[e] = x - h;
            double below = kit_objective(op, &c, &dy);
            c.in[i].v[e] = x;
            numeric.v[e] = (above - below) / (2 * h);
        }
        double diff = mat_diff(&r.grad[i], &numeric);
        if (!(diff <= tol))
            fail_msg("%s, %s, variant %ld: gradient of input %d is off by %.3g", op->name, b->name,
                     (long)variant, i, diff);
        mat_free(&numeric);
    }
    mat_free(&dy);
    kit_result_free(&r);
    kit_case_free(&c);
    kit_close(k);
}

static inline struct kit_result kit_run_on(const struct kit_op *op, const struct kit_backend *b,
                                           int threads, int64_t variant) {
    struct kit *k = kit_open(b, threads);
    struct kit_case c = kit_case_make(op, k, variant, true);
    struct kit_result r = kit_run(op, &c);
    kit_case_free(&c);
    kit_close(k);
    return r;
}

static inline void kit_compare(const struct kit_op *op, const struct kit_backend *b,
                               const struct kit_result *got, const struct kit_result *expected,
                               double tolerance, int64_t variant) {
    for (int i = -1; i < KIT_INPUTS; i++) {
        const struct mat *x = i < 0 ? &got->y : &got->grad[i];
        const struct mat *e = i < 0 ? &expected->y : &expected->grad[i];
        if (!e->v) continue;
        bool same = x->rows == e->rows && x->cols == e->cols &&
                    !memcmp(x->v, e->v, (size_t)(x->rows * x->cols) * sizeof(double));
        if (tolerance == 0 ? !same : !(mat_diff(x, e) <= tolerance))
            fail_msg("%s, %s, variant %ld: %s %d differs by %.3g, allowed %.3g", op->name, b->name,
                     (long)variant, i < 0 ? "result" : "gradient", i, mat_diff(x, e), tolerance);
    }
}

/* The whole kit for one operation. */
static inline void kit_check(const struct kit_op *op) {
    for (int64_t variant = 0; variant < op->n_variants; variant++) {
        struct kit_result exact = kit_run_on(op, &kit_backends[0], 1, variant);
        for (size_t i = 0; i < KIT_BACKENDS; i++) {
            const struct kit_backend *b = &kit_backends[i];
            if (b->differences && op->backward) kit_check_differences(op, b, variant);
            struct kit_result one = kit_run_on(op, b, 1, variant);
            kit_compare(op, b, &one, &exact, b->tolerance, variant);
            for (int threads = 2; b->threads && threads <= 4; threads++) {
                struct kit_result many = kit_run_on(op, b, threads, variant);
                kit_compare(op, b, &many, &one, 0, variant);
                kit_result_free(&many);
            }
            kit_result_free(&one);
        }
        kit_result_free(&exact);
    }
}

#endif
