/* The measuring backend: counts FLOPs and touches no memory. The planner runs the layers' own code
 * over it. */
#include <stdlib.h>

#include "../backend_impl.h"

/* Most operations ignore everything they are given; that is what they are for. */
#pragma GCC diagnostic ignored "-Wunused-parameter"

static void destroy_measure(struct backend *be) {
    free(be);
}
static void *mem_alloc_measure(struct backend *be, size_t bytes) {
    return (void *)(uintptr_t)ARENA_ALIGN; /* an address of no memory */
}
static void mem_free_measure(struct backend *be, void *p) {
}
static void upload_measure(struct backend *be, void *device, const void *host, size_t bytes) {
}
static void download_measure(struct backend *be, void *host, const void *device, size_t bytes) {
}
static void copy_measure(struct backend *be, void *to, const void *from, size_t bytes) {
}
static void zero_measure(struct backend *be, void *p, size_t bytes) {
}
static void synchronize_measure(struct backend *be) {
}
static void linear_forward_measure(struct backend *be, const struct tensor *x,
                                   const struct tensor *w, const struct tensor *bias,
                                   const struct tensor *y) {
    count_gemm(be, y->rows, y->cols, x->cols);
}
static void linear_dgrad_measure(struct backend *be, const struct tensor *dy,
                                 const struct tensor *w, const struct tensor *dx, bool accumulate) {
    count_gemm(be, dx->rows, dx->cols, dy->cols);
}
static void linear_wgrad_measure(struct backend *be, const struct tensor *dy,
                                 const struct tensor *x, const struct tensor *dw) {
    count_gemm(be, dw->rows, dw->cols, x->rows);
}
static void bias_grad_measure(struct backend *be, const struct tensor *dy,
                              const struct tensor *db) {
}
static void norm_forward_measure(struct backend *be, enum norm_kind kind, double eps,
                                 const struct tensor *x, const struct tensor *gamma,
                                 const struct tensor *beta, const struct tensor *y,
                                 const struct tensor *stats) {
}
static void norm_backward_measure(struct backend *be, enum norm_kind kind, const struct tensor *dy,
                                  const struct tensor *x, const struct tensor *gamma,
                                  const struct tensor *stats, const struct tensor *dx,
                                  bool accumulate, const struct tensor *dgamma,
                                  const struct tensor *dbeta) {
}
static void act_forward_measure(struct backend *be, enum act_kind kind, const struct tensor *x,
                                const struct tensor *y) {
}
static void act_backward_measure(struct backend *be, enum act_kind kind, const struct tensor *x,
                                 const struct tensor *dy, const struct tensor *dx) {
}
static void glu_forward_measure(struct backend *be, enum act_kind kind, const struct tensor *ab,
                                const struct tensor *y) {
}
static void glu_backward_measure(struct backend *be, enum act_kind kind, const struct tensor *ab,
                                 const struct tensor *dy, const struct tensor *dab) {
}
static void rope_table_measure(struct backend *be, const float *frequency, double scale,
                               const struct tensor *table) {
}
static void rope_measure(struct backend *be, const struct tensor *x, int64_t heads,
                         int64_t head_dim, const struct tensor *table, const int32_t *position,
                         bool inverse) {
}
static void attention_forward_measure(struct backend *be, const struct attention *a,
                                      const struct tensor *q, const struct tensor *k,
                                      const struct tensor *v, const struct tensor *o,
                                      const struct tensor *lse) {
    count_attention(be, a, 4);
}
static void attention_backward_measure(struct backend *be, const struct attention *a,
                                       const struct tensor *q, const struct tensor *k,
                                       const struct tensor *v, const struct tensor *o,
                                       const struct tensor *lse, const struct tensor *d_o,
                                       const struct tensor *delta, const struct tensor *dq,
                                       const struct tensor *dk, const struct tensor *dv) {
    count_attention(be, a, 8);
}
static void bias_dropout_add_measure(struct backend *be, const struct tensor *x,
                                     const struct tensor *bias, const struct tensor *residual,
                                     const struct dropout *drop, const struct tensor *y) {
}
static void dropout_backward_measure(struct backend *be, const struct tensor *dy,
                                     const struct dropout *drop, const struct tensor *dx) {
}
static void add_measure(struct backend *be, const struct tensor *x, const struct tensor *y) {
}
static void rows_gather_measure(struct backend *be, const struct tensor *x, const int32_t *index,
                                const struct tensor *y) {
}
static void rows_scatter_measure(struct backend *be, const struct tensor *x, const int32_t *index,
                                 const struct tensor *y) {
}
static void rows_scatter_add_measure(struct backend *be, const struct tensor *x,
                                     const int32_t *index, const struct tensor *y) {
}
static void patchify_measure(struct backend *be, const float *pixels, int64_t tiles,
                             int64_t channels, int64_t height, int64_t width, int64_t patch,
                             const struct tensor *y) {
}
static void class_position_forward_measure(struct backend *be, const struct tensor *patches,
                                           const struct tensor *cls, const struct tensor *pos,
                                           const struct tensor *y) {
}
static void class_position_backward_measure(struct backend *be, const struct tensor *dy,
                                            const struct tensor *dpatches,
                                            const struct tensor *dcls, const struct tensor *dpos) {
}
static void cross_entropy_max_measure(struct backend *be, const struct tensor *z,
                                      const struct tensor *max) {
}
static void cross_entropy_sums_measure(struct backend *be, const struct cross_entropy *c,
                                       const struct tensor *z, const struct tensor *max,
                                       const int32_t *target, const struct tensor *sums) {
}
static void cross_entropy_finish_measure(struct backend *be, const struct cross_entropy *c,
                                         const struct tensor *z, const struct tensor *max,
                                         const struct tensor *sums, const int32_t *target,
                                         bool gradient, const struct tensor *loss) {
}
static double sum_f64_measure(struct backend *be, const struct tensor *x) {
    return 0;
}
static double sum_squares_measure(struct backend *be, const struct tensor *x) {
    return 0;
}
static void scale_measure(struct backend *be, const struct tensor *x, double factor) {
}
static void convert_measure(struct backend *be, const struct tensor *from,
                            const struct tensor *to) {
}
static void adamw_step_measure(struct backend *be, const struct adamw *s, int64_t n, void *w,
                               void *master, const void *g, void *m, void *v) {
}
static void sgd_step_measure(struct backend *be, double lr, double momentum, double weight_decay,
                             double grad_scale, int64_t n, void *w, void *master, const void *g,
                             void *m) {
}

static const struct backend_ops ops = {
    .name = "measuring",
    .destroy = destroy_measure,
    .mem_alloc = mem_alloc_measure,
    .mem_free = mem_free_measure,
    .upload = upload_measure,
    .download = download_measure,
    .copy = copy_measure,
    .zero = zero_measure,
    .synchronize = synchronize_measure,
    .linear_forward = linear_forward_measure,
    .linear_dgrad = linear_dgrad_measure,
    .linear_wgrad = linear_wgrad_measure,
    .bias_grad = bias_grad_measure,
    .norm_forward = norm_forward_measure,
    .norm_backward = norm_backward_measure,
    .act_forward = act_forward_measure,
    .act_backward = act_backward_measure,
    .glu_forward = glu_forward_measure,
    .glu_backward = glu_backward_measure,
    .rope_table = rope_table_measure,
    .rope = rope_measure,
    .attention_forward = attention_forward_measure,
    .attention_backward = attention_backward_measure,
    .bias_dropout_add = bias_dropout_add_measure,
    .dropout_backward = dropout_backward_measure,
    .add = add_measure,
    .rows_gather = rows_gather_measure,
    .rows_scatter = rows_scatter_measure,
    .rows_scatter_add = rows_scatter_add_measure,
    .patchify = patchify_measure,
    .class_position_forward = class_position_forward_measure,
    .class_position_backward = class_position_backward_measure,
    .cross_entropy_max = cross_entropy_max_measure,
    .cross_entropy_sums = cross_entropy_sums_measure,
    .cross_entropy_finish = cross_entropy_finish_measure,
    .sum_f64 = sum_f64_measure,
    .sum_squares = sum_squares_measure,
    .scale = scale_measure,
    .convert = convert_measure,
    .adamw_step = adamw_step_measure,
    .sgd_step = sgd_step_measure,
};

struct backend *backend_create_measuring(enum dtype dtype) {
    backend_check_table(&ops);
    struct backend *be = xcalloc(1, sizeof *be);
    *be = (struct backend){.ops = &ops,
                           .dtype = dtype,
                           .threads = 1,
                           .measuring = true,
                           .acc = dtype == DTYPE_F64 ? DTYPE_F64 : DTYPE_F32};
    return be;
}
