/* tensor: dtype, matrix view, and shard: which global indices a rank holds under any grid. */
#ifndef STRATA_TENSOR_H
#define STRATA_TENSOR_H

#include "base.h"

enum dtype {
    DTYPE_F32,
    DTYPE_F64,
    DTYPE_BF16,
    DTYPE_F16,
    DTYPE_I32,
    DTYPE_I64,
    DTYPE_U8,
    DTYPE_COUNT
};
size_t dtype_size(enum dtype t);
const char *dtype_name(enum dtype t); /* "fp32", "fp64", "bf16", "fp16", "int32", ... */

/* A row-major matrix [rows, cols] with row stride ld >= cols (elements). A view: it never frees.
 * A vector is [1, n]. */
struct tensor {
    void *data;
    int64_t rows, cols, ld;
    enum dtype dtype;
};
struct tensor tensor_view(void *data, int64_t rows, int64_t cols, enum dtype dtype);
struct tensor tensor_alloc(struct arena *a, int64_t rows, int64_t cols, enum dtype dtype);
struct tensor tensor_rows(struct tensor t, int64_t first, int64_t n); /* rows [first, first+n) */
struct tensor tensor_cols(struct tensor t, int64_t first, int64_t n); /* columns, same ld */
int64_t tensor_count(const struct tensor *t);
size_t tensor_bytes(const struct tensor *t); /* rows*cols*dtype size; needs ld == cols */
static inline bool tensor_contiguous(const struct tensor *t) {
    return t->ld == t->cols || t->rows <= 1;
}

/* ---- shard (doc/mathematics.md "Cutting an axis") --------------------------------------------
 * A cut axis is a list of blocks; block b has size[b] indices in granules of granule[b]; all blocks
 * have the same number of granules G = ceil(size/granule), dealt out as evenly as possible:
 * rank r of p owns granules [r*q + min(r,m), +q + (r<m)) of every block, q = G div p, m = G mod p.
 * axis -1: not cut, every rank holds everything. */
#define CUT_BLOCKS_MAX 4
struct cut {
    int axis;
    int n_blocks;
    int64_t size[CUT_BLOCKS_MAX];
    int64_t granule[CUT_BLOCKS_MAX];
};
struct cut cut_none(void);
struct cut cut_even(int axis, int64_t size, int64_t granule);
int64_t cut_granules(const struct cut *c);
int64_t cut_size(const struct cut *c); /* sum of the blocks */
/* EXIT_USAGE with a sentence that starts with `what` if p > granules or blocks disagree. */
int cut_check(const struct cut *c, int p, const char *what);
struct cut_part {
    int n_blocks;
    int64_t total;                  /* local indices */
    int64_t global[CUT_BLOCKS_MAX]; /* first global index of each block's range */
    int64_t local[CUT_BLOCKS_MAX];  /* first local index of it */
    int64_t count[CUT_BLOCKS_MAX];
};
/* Axis not cut: one block over everything, the same for all ranks (size must be in size[0]). */
struct cut_part cut_part(const struct cut *c, int p, int r);
int64_t cut_local_to_global(const struct cut *c, int p, int r, int64_t local);
void cut_global_to_owner(const struct cut *c, int p, int64_t global, int *r, int64_t *local);
bool cut_equal(const struct cut *a, const struct cut *b); /* same granule count and shares */
/* n rows dealt to p ranks, the first n mod p get one more: [*first, *first + *count). */
void rows_share(int64_t n, int p, int r, int64_t *first, int64_t *count);

#endif
