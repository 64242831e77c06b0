/* Output head, the tail of the last layer: final norm, vocabulary-parallel logits and cross entropy,
 * on target rows only (arXiv 1909.08053; doc/mathematics.md "Loss"). Rows go through the head in
 * chunks, and a chunk's gradient is taken while its logits are there, so that no [rows, vocabulary]
 * matrix is kept: the forward adds the head's weight gradient and saves the gradient of the normed
 * rows. Micro-batches pass in increasing order in every schedule, so the sum's order is fixed. */
#include "nn_impl.h"

enum slot { NORM_W, NORM_B, HEAD_W };
enum kept { ROWS, STATS, DNORM };

#define CHUNK_LOGITS (1 << 22) /* elements of a chunk of logits, of the whole vocabulary */

static int64_t chunk_rows(int64_t vocab, int64_t rows) {
    int64_t n = CHUNK_LOGITS / vocab;
    n = n < 16 ? 16 : n > 1024 ? 1024 : n;
    return n < rows ? n : rows;
}

static void head_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                       int64_t *cols) {
    (void)b, (void)mb;
    *rows = *cols = 0; /* nothing leaves the head but the loss */
}

static void head_save(const struct block *b, const struct pass *p, struct arena *arena,
                      struct saved *s) {
    const struct model_shape *m = b->config;
    s->t[ROWS] = tensor_alloc(arena, p->mb->targets, m->language.hidden, p->be->dtype);
    s->t[STATS] = tensor_alloc(arena, p->mb->targets, 2, p->be->acc);
    s->t[DNORM] = tensor_alloc(arena, p->mb->targets, m->language.hidden, p->be->dtype);
}

/* Logits, row losses and, if a backward follows, gradients of one chunk of normed rows. */
static double chunk_loss(struct block *b, struct pass *p, const struct tensor *n,
                         const struct tensor *dn, const int32_t *target) {
    const struct model_shape *m = b->config;
    struct backend *be = p->be;
    const struct param *head = block_param(b, HEAD_W);
    struct tensor w = block_weight(b, HEAD_W, 1), dw = block_grad(b, HEAD_W, 1);
    struct cross_entropy ce = {.first_id = cut_part(&head->cut, b->tp_size, b->tp_rank).global[0],
                               .vocab = m->language.vocab,
                               .smoothing = m->language.label_smoothing,
                               .z_loss = m->language.z_loss,
                               .scale = p->loss_scale};
    struct tensor z = scratch_tensor(p, n->rows, w.rows);
    struct tensor max = tensor_alloc(p->scratch, 1, n->rows, be->acc);
    struct tensor sums = tensor_alloc(p->scratch, n->rows, 3, be->acc);
    struct tensor loss = tensor_alloc(p->scratch, 1, n->rows, DTYPE_F64);
    be->ops->linear_forward(be, n, &w, NULL, &z);
    be->ops->cross_entropy_max(be, &z, &max);
    comm_allreduce(p->tp, be, &max, REDUCE_MAX);
    be->ops->cross_entropy_sums(be, &ce, &z, &max, target, &sums);
    comm_allreduce(p->tp, be, &sums, REDUCE_SUM);
    be->ops->cross_entropy_finish(be, &ce, &z, &max, &sums, target, p->gradient, &loss);
    if (p->gradient) {
        be->ops->linear_dgrad(be, &z, &w, dn, false);
        if (dw.data != NULL) be->ops->linear_wgrad(be, &z, n, &dw);
    }
    return be->ops->sum_f64(be, &loss);
}

static void target_rows(struct block *b, struct pass *p, const struct tensor *x,
                        const struct tensor *rows) {
    struct tensor full = *x;
    if (b->sequence_parallel) {
        struct row_split split;
        rows_split(ROWS_TEXT, p->mb, 0, false, b->tp_size, &split);
        full = scratch_tensor(p, p->mb->tokens, x->cols);
        comm_gather_rows(p->tp, p->be, x, &full, split.offset);
    }
    p->be->ops->rows_gather(p->be, &full, p->tab->target_row, rows);
}

/* Row losses and, if a backward follows, gradients of all normed target rows. */
static void take_losses(struct block *b, struct pass *p, const struct tensor *n,
                        const struct tensor *dn) {
    const struct model_shape *m = b->config;
    int64_t step = chunk_rows(m->language.vocab, n->rows);
    size_t chunk = arena_mark(p->scratch);
    for (int64_t i = 0; i < n->rows; i += step) {
        int64_t count = i + step < n->rows ? step : n->rows - i;
        struct tensor part = tensor_rows(*n, i, count), dpart = tensor_rows(*dn, i, count);
        p->loss_sum += chunk_loss(b, p, &part, &dpart, p->tab->target + i);
        arena_release(p->scratch, chunk);
    }
    p->loss_rows += n->rows;
    if (p->gradient) comm_allreduce(p->tp, p->be, dn, REDUCE_SUM);
}

static void head_forward(struct block *b, struct pass *p, const struct tensor *x,
                         const struct tensor *y, struct saved *s) {
    (void)y;
    const struct model_shape *m = b->config;
    const struct language_config *c = &m->language;
    int64_t rows = p->mb->targets;
    if (rows == 0) return;
    size_t mark = arena_mark(p->scratch);
    target_rows(b, p, x, &s->t[ROWS]);
    struct tensor gamma = block_weight(b, NORM_W, 1), beta = block_weight(b, NORM_B, 1);
    struct tensor n = scratch_tensor(p, rows, c->hidden);
    p->be->ops->norm_forward(p->be, c->norm, c->eps, &s->t[ROWS], &gamma, tensor_or_null(&beta), &n,
                             &s->t[STATS]);
    if (p->logits != NULL) {
        struct tensor w = block_weight(b, HEAD_W, 1);
        p->be->ops->linear_forward(p->be, &n, &w, NULL, p->logits);
    } else {
        take_losses(b, p, &n, &s->t[DNORM]);
    }
    arena_release(p->scratch, mark);
}

static void head_backward(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                          const struct tensor *dy, const struct tensor *dx) {
    (void)x, (void)dy;
    const struct model_shape *m = b->config;
    const struct language_config *c = &m->language;
    if (dx != NULL) tensor_zero(p, dx);
    if (p->mb->targets == 0) return;
    size_t mark = arena_mark(p->scratch);
    struct tensor gamma = block_weight(b, NORM_W, 1);
    struct tensor dgamma = block_grad(b, NORM_W, 1), dbeta = block_grad(b, NORM_B, 1);
    struct tensor d = scratch_tensor(p, p->mb->targets, c->hidden);
    p->be->ops->norm_backward(p->be, c->norm, &s->t[DNORM], &s->t[ROWS], &gamma, &s->t[STATS], &d,
                              false, tensor_or_null(&dgamma), tensor_or_null(&dbeta));
    if (dx != NULL) p->be->ops->rows_scatter(p->be, &d, p->tab->my_target_row, dx);
    arena_release(p->scratch, mark);
}

static const struct block_ops head_ops = {.name = "head",
                                          .once = true,
                                          .out_shape = head_shape,
                                          .save = head_save,
                                          .forward = head_forward,
                                          .backward = head_backward};

void block_head(struct block *b, const struct model_shape *m) {
    const struct language_config *c = &m->language;
    b->ops = &head_ops;
    b->config = m;
    struct param_home home = {"model/language_model/", "language_model.model.", -1, PARAM_LANGUAGE,
                              c->frozen};
    /* On all target rows, gathered: no rows of my own. */
    struct param_spec gain = norm_spec("norm/weight", "norm/weight", c->hidden, false);
    struct param_spec bias = norm_spec("norm/bias", "norm/bias", c->hidden, true);
    gain.rows_local = bias.rows_local = false;
    block_declare(b, NORM_W, &home, gain);
    if (c->norm == NORM_LAYER) block_declare(b, NORM_B, &home, bias);
    home.hf_prefix = "language_model.";
    block_declare(b, HEAD_W, &home, vocabulary_spec("lm_head/weight", c));
}
