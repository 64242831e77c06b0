/* Optimizer steps (AdamW arXiv 1711.05101), scaling, sum of squares. */
#include "real_impl.h"

struct scaling {
    const struct tensor *x;
    real factor;
    struct tiles tiles;
};

static void scale_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct scaling *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    real factor = p->factor;
    for (int64_t r = t.row; r < t.row_end; r++) {
        real *x = row_of(p->x, r);
        EACH (int64_t j = t.col; j < t.col_end; j++) x[j] *= factor;
    }
}

void NAME(scale)(struct backend *be, const struct tensor *x, double factor) {
    NEED(x, x->rows, x->cols);
    struct scaling p = {x, (real)factor, tiles_elements(x->rows, x->cols)};
    cpu_parallel(be, p.tiles.n, scale_body, &p);
}

/* ---- sum of squares ------------------------------------------------------------------------ */

/* At most SQUARE_PARTS partial sums of consecutive tiles, added in their order. */
#define SQUARE_PARTS 1024
struct squares {
    const struct tensor *x;
    struct tiles tiles;
    int64_t tiles_per_part;
    double *part;
};

/* Eight lanes of double. */
static double tile_squares(const struct tensor *t, const struct tile *s) {
    double lane[8] = {0};
    for (int64_t r = s->row; r < s->row_end; r++) {
        const real *x = row_of(t, r);
        int64_t j = s->col;
        for (; j + 8 <= s->col_end; j += 8)
            EACH (int l = 0; l < 8; l++) lane[l] += (double)x[j + l] * (double)x[j + l];
        for (int l = 0; j < s->col_end; j++, l++) lane[l] += (double)x[j] * (double)x[j];
    }
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) +
           ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

static void squares_body(const void *ctx, int64_t part, int thread) {
    (void)thread;
    const struct squares *p = ctx;
    int64_t first = part * p->tiles_per_part, end = first + p->tiles_per_part;
    double sum = 0;
    for (int64_t i = first; i < end && i < p->tiles.n; i++) {
        struct tile t = tiles_at(&p->tiles, i);
        sum += tile_squares(p->x, &t);
    }
    p->part[part] = sum;
}

double NAME(sum_squares)(struct backend *be, const struct tensor *x) {
    NEED(x, x->rows, x->cols);
    double part[SQUARE_PARTS], sum = 0;
    struct squares p = {.x = x, .tiles = tiles_elements(x->rows, x->cols), .part = part};
    p.tiles_per_part = (p.tiles.n + SQUARE_PARTS - 1) / SQUARE_PARTS;
    if (p.tiles_per_part == 0) return 0;
    int64_t parts = (p.tiles.n + p.tiles_per_part - 1) / p.tiles_per_part;
    cpu_parallel(be, parts, squares_body, &p);
    for (int64_t i = 0; i < parts; i++) sum += part[i];
    return sum;
}

/* ---- optimizers ---------------------------------------------------------------------------- */

struct update {
    const struct adamw *adamw;
    double lr, momentum, weight_decay, grad_scale; /* SGD */
    real *w, *master, *m, *v;
    const real *g;
    struct tiles tiles;
};

/* The working copy has the type of the master here: it is a copy of bits. */
static void copy_weights(const struct update *p, const struct tile *t) {
    if (p->w != p->master)
        memcpy(p->w + t->col, p->master + t->col, (size_t)(t->col_end - t->col) * sizeof *p->w);
}

static void adamw_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct update *p = ctx;
    const struct adamw *s = p->adamw;
    struct tile t = tiles_at(&p->tiles, i);
    real b1 = (real)s->beta1, b2 = (real)s->beta2, c1 = (real)(1 - s->beta1);
    real c2 = (real)(1 - s->beta2), shrink = (real)(1 - s->lr * s->weight_decay);
    real step = (real)(s->lr / s->correction1), unbias = (real)(1 / s->correction2);
    real eps = (real)s->eps, factor = (real)s->grad_scale;
    real *w = p->master, *m = p->m, *v = p->v;
    const real *grad = p->g;
    EACH (int64_t j = t.col; j < t.col_end; j++) {
        real g = grad[j] * factor;
        real mj = b1 * m[j] + c1 * g, vj = b2 * v[j] + c2 * (g * g);
        m[j] = mj;
        v[j] = vj;
#if STRATA_REAL == 32
        real root = __builtin_sqrtf(vj * unbias);
#else
        real root = __builtin_sqrt(vj * unbias);
#endif
        w[j] = w[j] * shrink - step * mj / (root + eps);
    }
    copy_weights(p, &t);
}

void NAME(adamw_step)(struct backend *be, const struct adamw *s, int64_t n, void *w, void *master,
                      const void *g, void *m, void *v) {
    struct update p = {.adamw = s,
                       .w = w,
                       .master = master,
                       .m = m,
                       .v = v,
                       .g = g,
                       .tiles = tiles_elements(1, n)};
    cpu_parallel(be, p.tiles.n, adamw_body, &p);
}

static void sgd_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct update *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    real lr = (real)p->lr, momentum = (real)p->momentum, decay = (real)p->weight_decay;
    real factor = (real)p->grad_scale, *w = p->master, *m = p->m;
    const real *grad = p->g;
    EACH (int64_t j = t.col; j < t.col_end; j++) {
        m[j] = momentum * m[j] + (grad[j] * factor + decay * w[j]);
        w[j] -= lr * m[j];
    }
    copy_weights(p, &t);
}

void NAME(sgd_step)(struct backend *be, double lr, double momentum, double weight_decay,
                    double grad_scale, int64_t n, void *w, void *master, const void *g, void *m) {
    struct update p = {.lr = lr,
                       .momentum = momentum,
                       .weight_decay = weight_decay,
                       .grad_scale = grad_scale,
                       .w = w,
                       .master = master,
                       .m = m,
                       .g = g,
                       .tiles = tiles_elements(1, n)};
    cpu_parallel(be, p.tiles.n, sgd_body, &p);
}
