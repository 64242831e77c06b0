/* Vocabulary-parallel cross entropy (arXiv 1909.08053), a = smoothing, c = z_loss, V global:
 *   row = log S - (1-a) T - (a/V) U + c (m + log S)^2
 *   dz_v = scale (softmax_v (1 + 2c (m + log S)) - (1-a) [v = t] - a/V)
 * with S = sum exp(z - m), T = z_t - m, U = sum (z - m). Unit of work: some rows.
 */
#include "real_impl.h"

/* Exponentials are summed in working precision over a piece, pieces in double. */
#define PIECE 1024

struct entropy {
    const struct cross_entropy *c;
    const struct tensor *z, *max, *sums, *loss;
    const int32_t *target;
    bool gradient;
    void (*row)(const struct entropy *, int64_t row);
    struct tiles tiles;
};

static void rows_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct entropy *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = t.row; r < t.row_end; r++) p->row(p, r);
}

static void rows_run(struct backend *be, struct entropy *p) {
    p->tiles = tiles_rows(p->z->rows, p->z->cols);
    cpu_parallel(be, p->tiles.n, rows_body, p);
}

/* The target's column on this rank; -1: another rank's. */
static int64_t own_column(const struct entropy *p, int64_t row) {
    int64_t id = p->target[row];
    CHECK(id >= 0 && id < p->c->vocab, "target row %ld has id %ld; the vocabulary has %ld",
          (long)row, (long)id, (long)p->c->vocab);
    int64_t column = id - p->c->first_id;
    return column >= 0 && column < p->z->cols ? column : -1;
}

static void max_row(const struct entropy *p, int64_t row) {
    row_of(p->max, 0)[row] = row_max(row_of(p->z, row), p->z->cols, -(real)INFINITY);
}

void NAME(cross_entropy_max)(struct backend *be, const struct tensor *z, const struct tensor *max) {
    NEED(z, max->cols, z->cols);
    NEED(max, 1, z->rows);
    struct entropy p = {.z = z, .max = max, .row = max_row};
    rows_run(be, &p);
}

static void sums_row(const struct entropy *p, int64_t row) {
    const real *z = row_of(p->z, row);
    real max = row_of(p->max, 0)[row], piece[PIECE], *sums = row_of(p->sums, row);
    double exps = 0, differences = 0;
    for (int64_t c = 0; c < p->z->cols; c += PIECE) {
        const real *from = z + c;
        int64_t n = p->z->cols - c < PIECE ? p->z->cols - c : PIECE;
        EACH (int64_t j = 0; j < n; j++) piece[j] = from[j] - max;
        differences += (double)row_sum(piece, n);
        EACH (int64_t j = 0; j < n; j++) piece[j] = exp_real(piece[j]);
        exps += (double)row_sum(piece, n);
    }
    int64_t own = own_column(p, row);
    sums[0] = (real)exps;
    sums[1] = own >= 0 ? z[own] - max : 0;
    sums[2] = (real)differences;
}

void NAME(cross_entropy_sums)(struct backend *be, const struct cross_entropy *c,
                              const struct tensor *z, const struct tensor *max,
                              const int32_t *target, const struct tensor *sums) {
    NEED(z, max->cols, z->cols);
    NEED(max, 1, z->rows);
    NEED(sums, z->rows, 3);
    struct entropy p = {
        .c = c, .z = z, .max = max, .sums = sums, .target = target, .row = sums_row};
    rows_run(be, &p);
}

static void finish_row(const struct entropy *p, int64_t row) {
    const struct cross_entropy *c = p->c;
    const real *sums = row_of(p->sums, row);
    real max = row_of(p->max, 0)[row];
    double a = c->smoothing, share = a / (double)c->vocab, log_sum = log((double)sums[0]);
    double lse = (double)max + log_sum;
    ((double *)p->loss->data)[row] =
        log_sum - (1 - a) * (double)sums[1] - share * (double)sums[2] + c->z_loss * lse * lse;
    if (!p->gradient) return;
    real *z = row_of(p->z, row);
    real factor = (real)(c->scale * (1 + 2 * c->z_loss * lse) / (double)sums[0]);
    real less = (real)(c->scale * share);
    EACH (int64_t j = 0; j < p->z->cols; j++) z[j] = factor * exp_real(z[j] - max) - less;
    int64_t own = own_column(p, row);
    if (own >= 0) z[own] -= (real)(c->scale * (1 - a));
}

void NAME(cross_entropy_finish)(struct backend *be, const struct cross_entropy *c,
                                const struct tensor *z, const struct tensor *max,
                                const struct tensor *sums, const int32_t *target, bool gradient,
                                const struct tensor *loss) {
    NEED(z, max->cols, z->cols);
    NEED(max, 1, z->rows);
    NEED(sums, z->rows, 3);
    CHECK(loss->dtype == DTYPE_F64 && loss->rows == 1 && loss->cols == z->rows,
          "the row losses are %s [%ld,%ld]", dtype_name(loss->dtype), (long)loss->rows,
          (long)loss->cols);
    struct entropy p = {.c = c,
                        .z = z,
                        .max = max,
                        .sums = sums,
                        .loss = loss,
                        .target = target,
                        .gradient = gradient,
                        .row = finish_row};
    rows_run(be, &p);
}
