/* Bias, dropout and residual in one pass; sums of tensors. */
#include "../philox_impl.h"
#include "real_impl.h"

/* Columns are worked on in pieces that stay in the first cache; a multiple of DROP_BATCH. */
#define PIECE 1024

struct fused_add {
    const struct tensor *x, *bias, *residual, *y;
    const struct dropout *drop; /* NULL when off */
    uint32_t drop_below;
    real keep_factor;
    struct tiles tiles;
};

static void drop_piece(const struct fused_add *p, int64_t row, int64_t col, int64_t n, real *x) {
    uint32_t word[DROP_BATCH], below = p->drop_below;
    real factor = p->keep_factor;
    for (int64_t j = 0; j < n; j += DROP_BATCH) {
        drop_words(p->drop->key, (uint32_t)(col + j), (uint32_t)p->drop->row[row],
                   (uint32_t)p->drop->sample[row], 0, word);
        real *piece = x + j;
        int64_t m = n - j < DROP_BATCH ? n - j : DROP_BATCH;
        EACH (int64_t l = 0; l < m; l++) piece[l] = word[l] < below ? 0 : piece[l] * factor;
    }
}

static void fused_piece(const struct fused_add *p, int64_t row, int64_t col, int64_t n) {
    real piece[PIECE];
    const real *x = row_of(p->x, row) + col;
    const real *bias = p->bias ? row_of(p->bias, 0) + col : NULL;
    const real *residual = p->residual ? row_of(p->residual, row) + col : NULL;
    real *y = row_of(p->y, row) + col;
    if (!p->drop && bias && residual) {
        EACH (int64_t j = 0; j < n; j++) y[j] = residual[j] + (x[j] + bias[j]);
        return;
    }
    if (!p->drop && residual) {
        EACH (int64_t j = 0; j < n; j++) y[j] = residual[j] + x[j];
        return;
    }
    if (bias)
        EACH (int64_t j = 0; j < n; j++) piece[j] = x[j] + bias[j];
    else
        memcpy(piece, x, (size_t)n * sizeof *x);
    if (p->drop) drop_piece(p, row, col, n, piece);
    if (residual)
        EACH (int64_t j = 0; j < n; j++) y[j] = residual[j] + piece[j];
    else
        memcpy(y, piece, (size_t)n * sizeof *y);
}

static void fused_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct fused_add *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = t.row; r < t.row_end; r++)
        for (int64_t c = t.col; c < t.col_end; c += PIECE)
            fused_piece(p, r, c, t.col_end - c < PIECE ? t.col_end - c : PIECE);
}

void NAME(bias_dropout_add)(struct backend *be, const struct tensor *x, const struct tensor *bias,
                            const struct tensor *residual, const struct dropout *drop,
                            const struct tensor *y) {
    NEED(x, y->rows, y->cols);
    NEED(y, x->rows, x->cols);
    if (bias) NEED(bias, 1, x->cols);
    if (residual) NEED(residual, x->rows, x->cols);
    struct fused_add p = {x, bias, residual, y, NULL, 0, 1, tiles_elements(x->rows, x->cols)};
    if (drop && drop->prob != 0) {
        p.drop = drop;
        p.drop_below = drop_threshold(drop->prob);
        p.keep_factor = (real)(float)(1 / (1 - drop->prob));
    }
    cpu_parallel(be, p.tiles.n, fused_body, &p);
}

/* The derivative of dropout is dropout. */
void NAME(dropout_backward)(struct backend *be, const struct tensor *dy, const struct dropout *drop,
                            const struct tensor *dx) {
    NAME(bias_dropout_add)(be, dy, NULL, NULL, drop, dx);
}

void NAME(add)(struct backend *be, const struct tensor *x, const struct tensor *y) {
    NAME(bias_dropout_add)(be, x, NULL, y, NULL, y);
}
