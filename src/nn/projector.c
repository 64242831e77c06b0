/* Projector from image features to the language model's width (LLaVA, arXiv 2310.03744):
 * mlp: p = W2 act(W1 f + b1) + b2, two layers that are never separated; affine: p = W f (+ b).
 * Tensor cut: fc1 by columns, fc2 by rows; affine by columns with a gathered output. */
#include <math.h>

#include "nn_impl.h"

enum slot { WEIGHT, BIAS };
enum kept { PRE };

static int64_t image_rows(const struct block *b, const struct microbatch *mb, bool mine) {
    const struct model_shape *m = b->config;
    return rows_held(ROWS_IMAGE, mb, vision_patches(&m->vision) + 1, m->vision.drop_class,
                     mine && b->sequence_parallel, b->tp_size, b->tp_rank);
}

static struct linear half_linear(const struct block *b, const struct pass *p,
                                 struct row_split *split) {
    const struct model_shape *m = b->config;
    struct linear l =
        block_linear(b, b->variant == 1 ? LINEAR_ROW : LINEAR_COLUMN, WEIGHT, BIAS, 1);
    l.gather_output = m->projector.affine;
    if (b->sequence_parallel) {
        rows_split(ROWS_IMAGE, p->mb, vision_patches(&m->vision) + 1, m->vision.drop_class,
                   b->tp_size, split);
        l.rows = split;
    }
    return l;
}

/* ---- fc1 and activation: my features of all rows --------------------------------------------- */
static void fc1_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                      int64_t *cols) {
    *rows = image_rows(b, mb, false);
    *cols = block_param(b, WEIGHT)->rows;
}

static void fc1_save(const struct block *b, const struct pass *p, struct arena *arena,
                     struct saved *s) {
    int64_t rows, cols;
    fc1_shape(b, p->mb, &rows, &cols);
    s->t[PRE] = tensor_alloc(arena, rows, cols, p->be->dtype);
}

static void fc1_forward(struct block *b, struct pass *p, const struct tensor *x,
                        const struct tensor *y, struct saved *s) {
    const struct model_shape *m = b->config;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    linear_forward(&l, p, x, &s->t[PRE]);
    p->be->ops->act_forward(p->be, m->projector.act, &s->t[PRE], y);
}

static void fc1_backward(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                         const struct tensor *dy, const struct tensor *dx) {
    const struct model_shape *m = b->config;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    size_t mark = arena_mark(p->scratch);
    struct tensor d = scratch_tensor(p, dy->rows, dy->cols);
    p->be->ops->act_backward(p->be, m->projector.act, &s->t[PRE], dy, &d);
    linear_backward(&l, p, x, &d, dx);
    arena_release(p->scratch, mark);
}

/* ---- fc2: my rows, all features -------------------------------------------------------------- */
static void out_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                      int64_t *cols) {
    const struct model_shape *m = b->config;
    *rows = image_rows(b, mb, true);
    *cols = m->projector.out;
}

static void fc2_forward(struct block *b, struct pass *p, const struct tensor *x,
                        const struct tensor *y, struct saved *s) {
    (void)s;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    linear_forward(&l, p, x, y);
}

static void fc2_backward(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                         const struct tensor *dy, const struct tensor *dx) {
    (void)s;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    linear_backward(&l, p, x, dy, dx);
}

/* ---- affine: all features of my rows ------------------------------------------------------------
 * The gathered output is replicated over TP; under sequence parallelism a rank keeps its rows and
 * the gradient of all rows is gathered first, so that every rank holds the same full one. */
static void affine_forward(struct block *b, struct pass *p, const struct tensor *x,
                           const struct tensor *y, struct saved *s) {
    (void)s;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    if (l.rows == NULL) {
        linear_forward(&l, p, x, y);
        return;
    }
    size_t mark = arena_mark(p->scratch);
    struct tensor full = scratch_tensor(p, image_rows(b, p->mb, false), y->cols);
    linear_forward(&l, p, x, &full);
    struct tensor mine = tensor_rows(full, split.offset[b->tp_rank], y->rows);
    tensor_copy(p, &mine, y);
    arena_release(p->scratch, mark);
}

static void affine_backward(struct block *b, struct pass *p, const struct tensor *x,
                            struct saved *s, const struct tensor *dy, const struct tensor *dx) {
    (void)s;
    struct row_split split;
    struct linear l = half_linear(b, p, &split);
    size_t mark = arena_mark(p->scratch);
    struct tensor full = *dy;
    if (l.rows != NULL) {
        full = scratch_tensor(p, image_rows(b, p->mb, false), dy->cols);
        comm_gather_rows(p->tp, p->be, dy, &full, split.offset);
    }
    linear_backward(&l, p, x, &full, dx);
    arena_release(p->scratch, mark);
}

static const struct block_ops fc1_ops = {.name = "projector_fc1",
                                         .out_shape = fc1_shape,
                                         .save = fc1_save,
                                         .forward = fc1_forward,
                                         .backward = fc1_backward};
static const struct block_ops fc2_ops = {.name = "projector_fc2",
                                         .out_shape = out_shape,
                                         .forward = fc2_forward,
                                         .backward = fc2_backward};
static const struct block_ops affine_ops = {.name = "projector_affine",
                                            .out_shape = out_shape,
                                            .forward = affine_forward,
                                            .backward = affine_backward};

void block_projector(struct block *b, const struct model_shape *m, int half) {
    const struct projector_config *c = &m->projector;
    b->ops = c->affine ? &affine_ops : half == 0 ? &fc1_ops : &fc2_ops;
    b->config = m;
    b->variant = half;
    int64_t in = half == 0 ? c->in : c->hidden;
    int64_t out = half == 0 && !c->affine ? c->hidden : c->out;
    int64_t cut_size = c->affine ? c->out : c->hidden;
    struct cut cut = cut_even(half == 1 ? 1 : 0, cut_size, feature_granule(cut_size));
    const char *weight = c->affine   ? "linear/weight"
                         : half == 0 ? "linear_1/weight"
                                     : "linear_2/weight";
    const char *bias = c->affine ? "linear/bias" : half == 0 ? "linear_1/bias" : "linear_2/bias";
    struct param_home home = {"model/mm_projector/", "multi_modal_projector.", -1, PARAM_PROJECTOR,
                              c->frozen};
    double bound = 1.0 / sqrt((double)in);
    block_declare(b, WEIGHT, &home,
                  (struct param_spec){.name = weight,
                                      .hf_name = weight,
                                      .dims = "out_features,in_features",
                                      .ndim = 2,
                                      .shape = {out, in},
                                      .cut = cut,
                                      .init = c->uniform_init ? INIT_UNIFORM : INIT_NORMAL,
                                      .scale = c->uniform_init ? bound : c->init_std});
    if (!c->bias) return;
    block_declare(b, BIAS, &home,
                  (struct param_spec){.name = bias,
                                      .hf_name = bias,
                                      .dims = "out_features",
                                      .ndim = 1,
                                      .shape = {out},
                                      .cut = half == 1 ? cut_none() : cut,
                                      .init = c->uniform_init ? INIT_UNIFORM : INIT_ZERO,
                                      .scale = bound,
                                      .no_decay = true,
                                      .rows_local = half == 1});
}
