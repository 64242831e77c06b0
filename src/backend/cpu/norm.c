/* LayerNorm (arXiv 1607.06450) and RMSNorm (arXiv 1910.07467), row by row.
 *
 * LayerNorm: xh = (x - mean) rstd, y = xh gamma + beta;
 *   u = dy gamma, dx = rstd (u - mean(u) - xh mean(u xh)); dgamma = sum dy xh, dbeta = sum dy.
 * RMSNorm: xh = x rstd, y = gamma xh; the same without mean(u).
 */
#include "real_impl.h"

struct norm {
    enum norm_kind kind;
    double eps;
    const struct tensor *x, *gamma, *beta, *y, *stats;
    const struct tensor *dy, *dx, *dgamma, *dbeta;
    bool accumulate;
    struct tiles tiles;
    real *sums; /* [row block, {gamma, beta}, h] */
};

static void row_stats(const struct norm *p, const real *x, int64_t h, real stats[2]) {
    real mean = 0, squares;
    if (p->kind == NORM_LAYER) mean = row_sum(x, h) / (real)h;
#define TERM(at, i) ((at(x + (i)) - mean) * (at(x + (i)) - mean))
    LANES_SUM(squares, h, TERM);
#undef TERM
    stats[0] = mean;
    stats[1] = (real)(1 / sqrt((double)squares / (double)h + p->eps));
}

static void norm_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct norm *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t h = p->x->cols;
    const bool rms = p->kind == NORM_RMS;
    const real *gamma = row_of(p->gamma, 0), *beta = rms ? NULL : row_of(p->beta, 0);
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *x = row_of(p->x, r);
        real *y = row_of(p->y, r), *stats = row_of(p->stats, r);
        row_stats(p, x, h, stats);
        real mean = stats[0], rstd = stats[1];
        if (rms)
            EACH (int64_t j = 0; j < h; j++) y[j] = gamma[j] * (x[j] * rstd);
        else
            EACH (int64_t j = 0; j < h; j++) y[j] = (x[j] - mean) * rstd * gamma[j] + beta[j];
    }
}

void NAME(norm_forward)(struct backend *be, enum norm_kind kind, double eps, const struct tensor *x,
                        const struct tensor *gamma, const struct tensor *beta,
                        const struct tensor *y, const struct tensor *stats) {
    NEED(x, y->rows, gamma->cols);
    NEED(gamma, 1, x->cols);
    NEED(y, x->rows, x->cols);
    NEED(stats, x->rows, 2);
    CHECK((kind == NORM_LAYER) == (beta != NULL), "LayerNorm has a beta, RMSNorm has none");
    if (beta) NEED(beta, 1, x->cols);
    struct norm p = {.kind = kind,
                     .eps = eps,
                     .x = x,
                     .gamma = gamma,
                     .beta = beta,
                     .y = y,
                     .stats = stats,
                     .tiles = tiles_rows(x->rows, x->cols)};
    cpu_parallel(be, p.tiles.n, norm_body, &p);
}

/* dx (or dx += ) rstd (u - a - (x - mean) b), u = dy gamma */
static void row_gradient(const struct norm *p, const real *x, const real *dy, const real stats[2],
                         real *dx) {
    int64_t h = p->x->cols;
    const real *gamma = row_of(p->gamma, 0);
    real mean = stats[0], rstd = stats[1], a = 0, b;
#define TERM(at, i) (at(dy + (i)) * at(gamma + (i)))
    if (p->kind == NORM_LAYER) LANES_SUM(a, h, TERM);
#undef TERM
#define TERM(at, i) (at(dy + (i)) * at(gamma + (i)) * ((at(x + (i)) - mean) * rstd))
    LANES_SUM(b, h, TERM);
#undef TERM
    a /= (real)h;
    b /= (real)h;
    if (p->accumulate)
        EACH (int64_t j = 0; j < h; j++)
            dx[j] += rstd * (dy[j] * gamma[j] - a - (x[j] - mean) * rstd * b);
    else
        EACH (int64_t j = 0; j < h; j++)
            dx[j] = rstd * (dy[j] * gamma[j] - a - (x[j] - mean) * rstd * b);
}

static void norm_gradient_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct norm *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t h = p->x->cols;
    real *dgamma = p->sums + 2 * i * h, *dbeta = dgamma + h;
    if (p->dgamma) memset(dgamma, 0, (size_t)h * sizeof *dgamma);
    if (p->dbeta) memset(dbeta, 0, (size_t)h * sizeof *dbeta);
    for (int64_t r = t.row; r < t.row_end; r++) {
        const real *x = row_of(p->x, r), *dy = row_of(p->dy, r), *stats = row_of(p->stats, r);
        real mean = stats[0], rstd = stats[1];
        if (p->dgamma)
            EACH (int64_t j = 0; j < h; j++) dgamma[j] += dy[j] * ((x[j] - mean) * rstd);
        if (p->dbeta)
            EACH (int64_t j = 0; j < h; j++) dbeta[j] += dy[j];
        if (p->dx) row_gradient(p, x, dy, stats, row_of(p->dx, r));
    }
}

/* Adds the sums of the row blocks, in their order. */
static void add_blocks(const struct norm *p, const real *sums, const struct tensor *to) {
    real *out = row_of(to, 0);
    int64_t h = p->x->cols;
    for (int64_t j = 0; j < h; j += 128) {
        int64_t n = h - j < 128 ? h - j : 128;
        real total[128] = {0};
        for (int64_t b = 0; b < p->tiles.n; b++)
            EACH (int64_t l = 0; l < n; l++) total[l] += sums[2 * b * h + j + l];
        for (int64_t l = 0; l < n; l++) out[j + l] += total[l];
    }
}

/* Row blocks are as many as the column sums find room for, 64 at most. */
static struct tiles row_blocks(int64_t rows, int64_t h) {
    int64_t blocks = WORK_COLUMNS / (2 * h);
    CHECK(blocks >= 1, "norm of %ld columns; at most %d", (long)h, WORK_COLUMNS / 2);
    if (blocks > 64) blocks = 64;
    int64_t step = (rows + blocks - 1) / blocks;
    return tiles_make(rows, h, step > 8 ? step : 8, h);
}

void NAME(norm_backward)(struct backend *be, enum norm_kind kind, const struct tensor *dy,
                         const struct tensor *x, const struct tensor *gamma,
                         const struct tensor *stats, const struct tensor *dx, bool accumulate,
                         const struct tensor *dgamma, const struct tensor *dbeta) {
    NEED(dy, x->rows, x->cols);
    NEED(x, dy->rows, gamma->cols);
    NEED(gamma, 1, x->cols);
    NEED(stats, x->rows, 2);
    if (dx) NEED(dx, x->rows, x->cols);
    if (dgamma) NEED(dgamma, 1, x->cols);
    if (dbeta) NEED(dbeta, 1, x->cols);
    if (x->cols == 0) return;
    struct norm p = {.kind = kind,
                     .x = x,
                     .gamma = gamma,
                     .stats = stats,
                     .dy = dy,
                     .dx = dx,
                     .dgamma = dgamma,
                     .dbeta = dbeta,
                     .accumulate = accumulate,
                     .tiles = row_blocks(x->rows, x->cols),
                     .sums = ((struct cpu_state *)be->state)->columns};
    cpu_parallel(be, p.tiles.n, norm_gradient_body, &p);
    if (dgamma) add_blocks(&p, p.sums, dgamma);
    if (dbeta) add_blocks(&p, p.sums + x->cols, dbeta);
}
