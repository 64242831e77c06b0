/* Products of a linear layer: tiles of the result, each by one single-threaded OpenBLAS call. */
#include "real_impl.h"

/* C[m,n] = op(A) op(B) + beta C (+ bias along rows). */
struct product {
    bool trans_a, trans_b;
    const struct tensor *a, *b, *c, *bias;
    int64_t k;
    real beta;
    struct tiles tiles;
};

static void product_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct product *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    const real *a = p->trans_a ? row_of(p->a, 0) + t.row : row_of(p->a, t.row);
    const real *b = p->trans_b ? row_of(p->b, t.col) : row_of(p->b, 0) + t.col;
    int64_t n = t.col_end - t.col;
    real *c = row_of(p->c, t.row) + t.col;
    int64_t m = t.row_end - t.row;
    NAME(gemm)(p->trans_a, p->trans_b, m, n, p->k, a, p->a->ld, b, p->b->ld, p->beta, c, p->c->ld);
    if (!p->bias) return;
    const real *bias = row_of(p->bias, 0) + t.col;
    for (int64_t r = t.row; r < t.row_end; r++) {
        real *y = row_of(p->c, r) + t.col;
        EACH (int64_t j = 0; j < n; j++) y[j] += bias[j];
    }
}

/* Length of the pieces, multiples of 16, when n is cut into pieces of about `step`. */
static int64_t even_step(int64_t n, int64_t step) {
    int64_t pieces = (n + step - 1) / step;
    return ((n + pieces - 1) / pieces + 15) / 16 * 16;
}

/* 512 x 512 tiles keep OpenBLAS within 5 % of its speed on whole matrices; smaller results are cut
 * finer, so that several threads have work, as long as a tile is worth a thread's start. */
static void product_run(struct backend *be, struct product *p) {
    int64_t m = p->c->rows, n = p->c->cols;
    count_gemm(be, m, n, p->k);
    if (m == 0 || n == 0) return;
    int64_t step = 512;
    double work = (double)m * (double)n * (double)(p->k + 1);
    while (step > 64 && ((m + step - 1) / step) * ((n + step - 1) / step) < 8 &&
           work / 4 > (double)(1 << 20))
        step /= 2, work /= 4;
    p->tiles = tiles_make(m, n, even_step(m, step), even_step(n, step));
    cpu_parallel(be, p->tiles.n, product_body, p);
}

void NAME(linear_forward)(struct backend *be, const struct tensor *x, const struct tensor *w,
                          const struct tensor *bias, const struct tensor *y) {
    NEED(x, y->rows, w->cols);
    NEED(w, y->cols, x->cols);
    NEED(y, x->rows, w->rows);
    if (bias) NEED(bias, 1, w->rows);
    struct product p = {.trans_b = true, .a = x, .b = w, .c = y, .bias = bias, .k = x->cols};
    product_run(be, &p);
}

void NAME(linear_dgrad)(struct backend *be, const struct tensor *dy, const struct tensor *w,
                        const struct tensor *dx, bool accumulate) {
    NEED(dy, dx->rows, w->rows);
    NEED(w, dy->cols, dx->cols);
    NEED(dx, dy->rows, w->cols);
    struct product p = {.a = dy, .b = w, .c = dx, .k = dy->cols, .beta = accumulate ? 1 : 0};
    product_run(be, &p);
}

void NAME(linear_wgrad)(struct backend *be, const struct tensor *dy, const struct tensor *x,
                        const struct tensor *dw) {
    NEED(dy, x->rows, dw->rows);
    NEED(x, dy->rows, dw->cols);
    NEED(dw, dy->cols, x->cols);
    struct product p = {.trans_a = true, .a = dy, .b = x, .c = dw, .k = x->rows, .beta = 1};
    product_run(be, &p);
}

/* Column sums keep 128 columns in registers while the rows go by. */
#define BIAS_COLUMNS 128
struct bias_sum {
    const struct tensor *dy, *db;
    struct tiles tiles;
};

static void bias_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct bias_sum *s = ctx;
    struct tile t = tiles_at(&s->tiles, i);
    real *db = row_of(s->db, 0) + t.col, sum[BIAS_COLUMNS] = {0};
    int64_t n = t.col_end - t.col;
    for (int64_t r = 0; r < s->dy->rows; r++) {
        const real *dy = row_of(s->dy, r) + t.col;
        if (n == BIAS_COLUMNS)
            EACH (int64_t j = 0; j < BIAS_COLUMNS; j++) sum[j] += dy[j];
        else
            EACH (int64_t j = 0; j < n; j++) sum[j] += dy[j];
    }
    for (int64_t j = 0; j < n; j++) db[j] += sum[j];
}

void NAME(bias_grad)(struct backend *be, const struct tensor *dy, const struct tensor *db) {
    NEED(dy, dy->rows, db->cols);
    NEED(db, 1, dy->cols);
    struct bias_sum s = {dy, db, tiles_make(1, dy->cols, 1, BIAS_COLUMNS)};
    cpu_parallel(be, s.tiles.n, bias_body, &s);
}
