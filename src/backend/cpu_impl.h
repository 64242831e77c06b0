/* Private to the CPU backend; the part that does not depend on the working type. */
#ifndef STRATA_CPU_IMPL_H
#define STRATA_CPU_IMPL_H

#include "backend_impl.h"

/* Workspace, allocated at creation. Attention works on blocks of at most BLOCK_Q queries by BLOCK_K
 * keys; norm_backward collects column sums of row blocks in `columns`. */
#define BLOCK_Q 256
#define BLOCK_K 256
#define WORK_PER_THREAD (2 * BLOCK_Q * BLOCK_K + 4 * BLOCK_Q) /* elements of the working type */
#define WORK_COLUMNS (64 * 16384)
struct cpu_state {
    void *per_thread; /* threads x WORK_PER_THREAD */
    void *columns;    /* WORK_COLUMNS */
};

/* Runs body(ctx, i, thread) for i in [0, n) on the threads of the backend, in any order: the bodies
 * must write disjoint memory, and what body i computes must depend on i alone. The one place where
 * threads are made; between two bodies the main thread calls be->progress. */
void cpu_parallel(struct backend *be, int64_t n,
                  void (*body)(const void *ctx, int64_t i, int thread), const void *ctx);

/* A matrix cut into tiles, by its shape alone. */
struct tiles {
    int64_t rows, cols, row_step, col_step, n_cols, n;
};
struct tile {
    int64_t row, row_end, col, col_end;
};
static inline struct tiles tiles_make(int64_t rows, int64_t cols, int64_t row_step,
                                      int64_t col_step) {
    struct tiles t = {rows, cols, row_step, col_step, (cols + col_step - 1) / col_step, 0};
    t.n = (rows + row_step - 1) / row_step * t.n_cols;
    return t;
}
/* For element-wise work: tiles of about 32 Ki elements; of whole rows. */
#define TILE_ELEMENTS 32768
static inline struct tiles tiles_rows(int64_t rows, int64_t cols) {
    int64_t col_step = cols > 0 ? cols : 1, row_step = TILE_ELEMENTS / col_step;
    return tiles_make(rows, cols, row_step > 0 ? row_step : 1, col_step);
}
static inline struct tiles tiles_elements(int64_t rows, int64_t cols) {
    if (cols <= TILE_ELEMENTS) return tiles_rows(rows, cols);
    return tiles_make(rows, cols, 1, TILE_ELEMENTS);
}
static inline struct tile tiles_at(const struct tiles *t, int64_t i) {
    struct tile s = {.row = i / t->n_cols * t->row_step, .col = i % t->n_cols * t->col_step};
    s.row_end = s.row + t->row_step < t->rows ? s.row + t->row_step : t->rows;
    s.col_end = s.col + t->col_step < t->cols ? s.col + t->col_step : t->cols;
    return s;
}

/* The tables of the two working types (cpu/table.c, compiled twice). */
const struct backend_ops *backend_ops_cpu32(void);
const struct backend_ops *backend_ops_cpu64(void);

/* Operations that do not depend on the working type. */
void destroy_cpu(struct backend *be);
void *mem_alloc_cpu(struct backend *be, size_t bytes);
void mem_free_cpu(struct backend *be, void *p);
void upload_cpu(struct backend *be, void *device, const void *host, size_t bytes);
void download_cpu(struct backend *be, void *host, const void *device, size_t bytes);
void copy_cpu(struct backend *be, void *to, const void *from, size_t bytes);
void zero_cpu(struct backend *be, void *p, size_t bytes);
void synchronize_cpu(struct backend *be);
double sum_f64_cpu(struct backend *be, const struct tensor *x);
void convert_cpu(struct backend *be, const struct tensor *from, const struct tensor *to);

#endif
