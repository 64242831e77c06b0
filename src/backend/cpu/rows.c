/* Rows picked, put and summed by index; patches; class token and positions. */
#include "real_impl.h"

/* Scatters are cut by columns, so that rows meet one target in their order. */
#define SCATTER_COLUMNS 512

struct row_move {
    const struct tensor *x, *y;
    const int32_t *index;
    struct tiles tiles;
};

static int64_t index_at(const struct row_move *p, int64_t i, int64_t rows) {
    CHECK(p->index[i] < rows, "row %ld has index %d; the table has %ld rows", (long)i, p->index[i],
          (long)rows);
    return p->index[i];
}

static void gather_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct row_move *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    size_t bytes = (size_t)p->y->cols * sizeof(real);
    for (int64_t r = t.row; r < t.row_end; r++) {
        int64_t from = index_at(p, r, p->x->rows);
        if (from >= 0)
            memcpy(row_of(p->y, r), row_of(p->x, from), bytes);
        else
            memset(row_of(p->y, r), 0, bytes);
    }
}

static void scatter_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct row_move *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = 0; r < p->x->rows; r++) {
        int64_t to = index_at(p, r, p->y->rows);
        if (to >= 0)
            memcpy(row_of(p->y, to) + t.col, row_of(p->x, r) + t.col,
                   (size_t)(t.col_end - t.col) * sizeof(real));
    }
}

static void scatter_add_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct row_move *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    for (int64_t r = 0; r < p->x->rows; r++) {
        int64_t to = index_at(p, r, p->y->rows);
        if (to < 0) continue;
        const real *x = row_of(p->x, r);
        real *y = row_of(p->y, to);
        EACH (int64_t j = t.col; j < t.col_end; j++) y[j] += x[j];
    }
}

void NAME(rows_gather)(struct backend *be, const struct tensor *x, const int32_t *index,
                       const struct tensor *y) {
    NEED(x, x->rows, y->cols);
    NEED(y, y->rows, x->cols);
    struct row_move p = {x, y, index, tiles_rows(y->rows, y->cols)};
    cpu_parallel(be, p.tiles.n, gather_body, &p);
}

void NAME(rows_scatter)(struct backend *be, const struct tensor *x, const int32_t *index,
                        const struct tensor *y) {
    NEED(x, x->rows, y->cols);
    NEED(y, y->rows, x->cols);
    struct row_move p = {x, y, index, tiles_make(1, x->cols, 1, SCATTER_COLUMNS)};
    cpu_parallel(be, p.tiles.n, scatter_body, &p);
}

void NAME(rows_scatter_add)(struct backend *be, const struct tensor *x, const int32_t *index,
                            const struct tensor *y) {
    NEED(x, x->rows, y->cols);
    NEED(y, y->rows, x->cols);
    struct row_move p = {x, y, index, tiles_make(1, x->cols, 1, SCATTER_COLUMNS)};
    cpu_parallel(be, p.tiles.n, scatter_add_body, &p);
}

/* ---- patches ------------------------------------------------------------------------------- */

struct patches {
    const float *pixels;
    int64_t channels, height, width, patch;
    const struct tensor *y;
    struct tiles tiles;
};

static void patchify_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct patches *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t across = p->width / p->patch, per_tile = p->height / p->patch * across;
    for (int64_t r = t.row; r < t.row_end; r++) {
        int64_t image = r / per_tile, down = r % per_tile / across, right = r % across;
        real *y = row_of(p->y, r);
        for (int64_t channel = 0; channel < p->channels; channel++)
            for (int64_t line = 0; line < p->patch; line++) {
                const float *from =
                    p->pixels +
                    ((image * p->channels + channel) * p->height + down * p->patch + line) *
                        p->width +
                    right * p->patch;
                for (int64_t c = 0; c < p->patch; c++) *y++ = (real)from[c];
            }
    }
}

void NAME(patchify)(struct backend *be, const float *pixels, int64_t tiles, int64_t channels,
                    int64_t height, int64_t width, int64_t patch, const struct tensor *y) {
    CHECK(patch > 0 && height % patch == 0 && width % patch == 0, "image %ldx%ld in patches of %ld",
          (long)width, (long)height, (long)patch);
    NEED(y, tiles * (height / patch) * (width / patch), channels * patch * patch);
    struct patches p = {pixels, channels, height, width, patch, y, tiles_rows(y->rows, y->cols)};
    cpu_parallel(be, p.tiles.n, patchify_body, &p);
}

/* ---- class token and positions ------------------------------------------------------------- */

struct positions {
    const struct tensor *patches, *cls, *pos, *y; /* backward: gradients of them */
    struct tiles tiles;
};

static void position_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct positions *p = ctx;
    struct tile t = tiles_at(&p->tiles, i);
    int64_t n = p->pos->rows;
    for (int64_t r = t.row; r < t.row_end; r++) {
        int64_t at = r % n;
        const real *x = at == 0 ? row_of(p->cls, 0) : row_of(p->patches, r / n * (n - 1) + at - 1);
        const real *pos = row_of(p->pos, at);
        real *y = row_of(p->y, r);
        EACH (int64_t j = 0; j < p->y->cols; j++) y[j] = x[j] + pos[j];
    }
}

void NAME(class_position_forward)(struct backend *be, const struct tensor *patches,
                                  const struct tensor *cls, const struct tensor *pos,
                                  const struct tensor *y) {
    CHECK(pos->rows > 0 && y->rows % pos->rows == 0, "%ld rows in tiles of %ld", (long)y->rows,
          (long)pos->rows);
    NEED(patches, y->rows / pos->rows * (pos->rows - 1), y->cols);
    NEED(cls, 1, y->cols);
    NEED(pos, pos->rows, y->cols);
    NEED(y, y->rows, pos->cols);
    struct positions p = {patches, cls, pos, y, tiles_rows(y->rows, y->cols)};
    cpu_parallel(be, p.tiles.n, position_body, &p);
}

/* One position over all tiles at a time: sums in tile order. */
static void position_gradient_body(const void *ctx, int64_t at, int thread) {
    (void)thread;
    const struct positions *p = ctx;
    int64_t n = p->tiles.rows, h = p->y->cols;
    real *pos = p->pos ? row_of(p->pos, at) : NULL;
    real *cls = p->cls && at == 0 ? row_of(p->cls, 0) : NULL;
    for (int64_t r = at; r < p->y->rows; r += n) {
        const real *dy = row_of(p->y, r);
        if (pos)
            EACH (int64_t j = 0; j < h; j++) pos[j] += dy[j];
        if (cls)
            EACH (int64_t j = 0; j < h; j++) cls[j] += dy[j];
        if (p->patches && at > 0)
            memcpy(row_of(p->patches, r / n * (n - 1) + at - 1), dy, (size_t)h * sizeof *dy);
    }
}

/* Positions of a tile, from whichever output tells them. */
static int64_t positions_per_tile(const struct tensor *dy, const struct tensor *dpatches,
                                  const struct tensor *dpos) {
    CHECK(dpos || dpatches, "class_position_backward without dpos and dpatches: tiles unknown");
    if (dpos) return dpos->rows;
    int64_t tiles = dy->rows - dpatches->rows;
    CHECK(tiles > 0, "%ld patches in %ld rows", (long)dpatches->rows, (long)dy->rows);
    return dy->rows / tiles;
}

void NAME(class_position_backward)(struct backend *be, const struct tensor *dy,
                                   const struct tensor *dpatches, const struct tensor *dcls,
                                   const struct tensor *dpos) {
    NEED(dy, dy->rows, dy->cols);
    if (dy->rows == 0) return;
    int64_t n = positions_per_tile(dy, dpatches, dpos);
    CHECK(dy->rows % n == 0, "%ld rows in tiles of %ld", (long)dy->rows, (long)n);
    if (dpatches) NEED(dpatches, dy->rows / n * (n - 1), dy->cols);
    if (dcls) NEED(dcls, 1, dy->cols);
    if (dpos) NEED(dpos, n, dy->cols);
    struct positions p = {dpatches, dcls, dpos, dy, {.rows = n}};
    cpu_parallel(be, n, position_gradient_body, &p);
}
