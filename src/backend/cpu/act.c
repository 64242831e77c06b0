/* Activations and gated activations (SwiGLU, arXiv 2002.05202), element by element.
 *
 * gelu x Phi(x), gelu' Phi + x phi; quick_gelu x s, s = sigmoid(1.702 x), ' s + 1.702 x s (1 - s);
 * silu x s, s = sigmoid(x), ' s (1 + x (1 - s)).
 */
#include "real_impl.h"

static inline real sigmoid(real x) {
    return 1 / (1 + exp_real(-x));
}

/* Phi(x), the normal distribution function, from its smaller tail: exp(-x^2/2) erfcx(|x|/sqrt 2)/2.
 * *density becomes exp(-x^2/2). */
static inline real normal_cdf(real x, real *density) {
    real e = exp_real((real)-0.5 * x * x), t = (x < 0 ? -x : x) * (real)0.70710678118654752;
    *density = e;
#if STRATA_REAL == 32
    /* erfcx(t) = s Q(s), s = 1/(1 + 0.3 t): Q interpolates at the Chebyshev nodes of t in [0, 10];
     * relative error 3e-8. */
    float s = 1 / (1 + 0.3f * t), q = -0.1307708773f;
    q = __builtin_fmaf(q, s, 0.4919342706f);
    q = __builtin_fmaf(q, s, -0.5261516628f);
    q = __builtin_fmaf(q, s, 0.5645142422f);
    q = __builtin_fmaf(q, s, -0.1069833625f);
    q = __builtin_fmaf(q, s, 0.2205391691f);
    q = __builtin_fmaf(q, s, 0.1467960222f);
    q = __builtin_fmaf(q, s, 0.1709491199f);
    q = __builtin_fmaf(q, s, 0.1691730577f);
    float tail = 0.5f * e * s * q;
#else
    double tail = 0.5 * erfc(t);
#endif
    return x < 0 ? tail : 1 - tail;
}

static inline real gelu(real x) {
    real density;
    return x * normal_cdf(x, &density);
}
static inline real gelu_slope(real x) {
    real density, cdf = normal_cdf(x, &density);
    return cdf + x * (density * (real)0.39894228040143268);
}
static inline real quick_gelu(real x) {
    return x * sigmoid((real)1.702 * x);
}
static inline real quick_gelu_slope(real x) {
    real s = sigmoid((real)1.702 * x);
    return s + (real)1.702 * x * s * (1 - s);
}
static inline real silu(real x) {
    return x * sigmoid(x);
}
static inline real silu_slope(real x) {
    real s = sigmoid(x);
    return s * (1 + x * (1 - s));
}

struct act {
    enum act_kind kind;
    const struct tensor *x, *dy, *out;
    struct tiles tiles;
};

/* The loop once per kind, so that each becomes straight vector code. */
#define ACT_SWITCH(kind, LOOP)                                                                     \
    switch (kind) {                                                                                \
    case ACT_GELU:                                                                                 \
        LOOP(gelu) break;                                                                          \
    case ACT_QUICK_GELU:                                                                           \
        LOOP(quick_gelu) break;                                                                    \
    case ACT_SILU:                                                                                 \
        LOOP(silu) break;                                                                          \
    }

static void act_forward_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct act *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *x = row_of(p->x, r);
        real *y = row_of(p->out, r);
#define LOOP(f)                                                                                    \
    EACH (int64_t j = t.col; j < t.col_end; j++) y[j] = f(x[j]);
        ACT_SWITCH(p->kind, LOOP)
#undef LOOP
    }
}

static void act_backward_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct act *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *x = row_of(p->x, r), *dy = row_of(p->dy, r);
        real *dx = row_of(p->out, r);
#define LOOP(f)                                                                                    \
    EACH (int64_t j = t.col; j < t.col_end; j++) dx[j] = dy[j] * f##_slope(x[j]);
        ACT_SWITCH(p->kind, LOOP)
#undef LOOP
    }
}

static void glu_forward_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct act *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *a = row_of(p->x, r), *b = a + p->out->cols;
        real *y = row_of(p->out, r);
#define LOOP(f)                                                                                    \
    EACH (int64_t j = t.col; j < t.col_end; j++) y[j] = f(a[j]) * b[j];
        ACT_SWITCH(p->kind, LOOP)
#undef LOOP
    }
}

static void glu_backward_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct act *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t f_cols = p->dy->cols;
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *a = row_of(p->x, r), *b = a + f_cols, *dy = row_of(p->dy, r);
        real *da = row_of(p->out, r), *db = da + f_cols;
#define LOOP(f)                                                                                    \
    EACH (int64_t j = t.col; j < t.col_end; j++) {                                                 \
        real aj = a[j], bj = b[j], g = dy[j];                                                      \
        da[j] = g * bj * f##_slope(aj);                                                            \
        db[j] = g * f(aj);                                                                         \
    }
        ACT_SWITCH(p->kind, LOOP)
#undef LOOP
    }
}

void NAME(act_forward)(struct backend *be, enum act_kind kind, const struct tensor *x,
                       const struct tensor *y) {
    NEED(x, y->rows, y->cols);
    NEED(y, x->rows, x->cols);
    struct act p = {kind, x, NULL, y, tiles_elements(x->rows, x->cols)};
    cpu_parallel(be, p.tiles.n, act_forward_body, &p);
}

void NAME(act_backward)(struct backend *be, enum act_kind kind, const struct tensor *x,
                        const struct tensor *dy, const struct tensor *dx) {
    NEED(x, dx->rows, dx->cols);
    NEED(dy, x->rows, x->cols);
    NEED(dx, x->rows, x->cols);
    struct act p = {kind, x, dy, dx, tiles_elements(x->rows, x->cols)};
    cpu_parallel(be, p.tiles.n, act_backward_body, &p);
}

void NAME(glu_forward)(struct backend *be, enum act_kind kind, const struct tensor *ab,
                       const struct tensor *y) {
    NEED(ab, y->rows, 2 * y->cols);
    NEED(y, ab->rows, y->cols);
    struct act p = {kind, ab, NULL, y, tiles_elements(y->rows, y->cols)};
    cpu_parallel(be, p.tiles.n, glu_forward_body, &p);
}

void NAME(glu_backward)(struct backend *be, enum act_kind kind, const struct tensor *ab,
                        const struct tensor *dy, const struct tensor *dab) {
    NEED(ab, dy->rows, 2 * dy->cols);
    NEED(dy, ab->rows, dy->cols);
    NEED(dab, dy->rows, 2 * dy->cols);
    struct act p = {kind, ab, dy, dab, tiles_elements(dy->rows, dy->cols)};
    cpu_parallel(be, p.tiles.n, glu_backward_body, &p);
}
