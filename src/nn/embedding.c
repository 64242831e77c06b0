/* Token embedding and merge of image and text rows, the head of the first language layer:
 *   y[row] = E[token of row] for text rows, the projected patch for image rows, image_newline at the
 * end of each row of a map of tiles (LLaVA-1.6); then dropout.
 * E is cut by vocabulary rows: a rank looks up its own, the others' rows are zero, and the sum over
 * TP completes them (arXiv 1909.08053). Image rows and newlines are written after the sum. Backward:
 * patches that were dropped, cut off or padding, get no gradient; that of image_newline is the sum
 * over its rows, which every rank takes of all rows alike. */
#include <math.h>

#include "nn_impl.h"

enum slot { TABLE, NEWLINE };

struct cut vocabulary_cut(const struct language_config *c) {
    return cut_even(0, c->vocab, feature_granule(c->vocab));
}

static void merge_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                        int64_t *cols) {
    const struct model_shape *m = b->config;
    *rows = rows_held(ROWS_TEXT, mb, 0, false, b->sequence_parallel, b->tp_size, b->tp_rank);
    *cols = m->language.hidden;
}

struct merge_rows {
    struct row_split text, image;
    int64_t first; /* my first merged row */
};

static void merge_split(const struct block *b, const struct microbatch *mb, struct merge_rows *r) {
    const struct model_shape *m = b->config;
    r->first = 0;
    if (!b->sequence_parallel) return;
    rows_split(ROWS_TEXT, mb, 0, false, b->tp_size, &r->text);
    rows_split(ROWS_IMAGE, mb, vision_patches(&m->vision) + 1, m->vision.drop_class, b->tp_size,
               &r->image);
    r->first = r->text.offset[b->tp_rank];
}

static void lookup(struct block *b, struct pass *p, const struct merge_rows *r,
                   const struct tensor *y) {
    struct tensor table = block_weight(b, TABLE, 1);
    if (!b->sequence_parallel) {
        p->be->ops->rows_gather(p->be, &table, p->tab->token, y);
        comm_allreduce(p->tp, p->be, y, REDUCE_SUM);
        return;
    }
    struct tensor full = scratch_tensor(p, p->mb->tokens, y->cols);
    p->be->ops->rows_gather(p->be, &table, p->tab->token, &full);
    comm_reduce_rows(p->tp, p->be, &full, y, r->text.offset);
}

static void write_newlines(struct block *b, struct pass *p, const struct tensor *y) {
    if (p->mb->newlines == 0) return;
    struct tensor newline = block_weight(b, NEWLINE, 1);
    struct tensor rows = scratch_tensor(p, p->mb->newlines, y->cols);
    tensor_zero(p, &rows);
    p->be->ops->bias_dropout_add(p->be, &rows, &newline, NULL, NULL, &rows);
    p->be->ops->rows_scatter(p->be, &rows, p->tab->my_newline_row, y);
}

static void newline_gradient(struct block *b, struct pass *p, const struct tensor *full) {
    struct tensor g = block_grad(b, NEWLINE, 1);
    if (g.data == NULL || p->mb->newlines == 0) return;
    struct tensor rows = scratch_tensor(p, p->mb->newlines, full->cols);
    p->be->ops->rows_gather(p->be, full, p->tab->newline_row, &rows);
    p->be->ops->bias_grad(p->be, &rows, &g);
}

static void merge_forward(struct block *b, struct pass *p, const struct tensor *x,
                          const struct tensor *y, struct saved *s) {
    (void)s;
    const struct model_shape *m = b->config;
    struct merge_rows r;
    merge_split(b, p->mb, &r);
    size_t mark = arena_mark(p->scratch);
    lookup(b, p, &r, y);
    if (p->mb->image_rows > 0) {
        struct tensor image = *x;
        if (b->sequence_parallel) {
            image = scratch_tensor(p, p->mb->image_rows, x->cols);
            comm_gather_rows(p->tp, p->be, x, &image, r.image.offset);
        }
        p->be->ops->rows_scatter(p->be, &image, p->tab->image_to_row, y);
        write_newlines(b, p, y);
    }
    struct dropout drop;
    const struct dropout *on = pass_dropout(p, m->language.hidden_dropout, RNG_DROP_EMBEDDING,
                                            b->stack_layer, r.first, &drop);
    if (on != NULL) p->be->ops->bias_dropout_add(p->be, y, NULL, NULL, on, y);
    arena_release(p->scratch, mark);
}

static void merge_backward(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                           const struct tensor *dy, const struct tensor *dx) {
    (void)x, (void)s;
    const struct model_shape *m = b->config;
    struct merge_rows r;
    merge_split(b, p->mb, &r);
    size_t mark = arena_mark(p->scratch);
    struct tensor d = *dy;
    struct dropout drop;
    const struct dropout *on = pass_dropout(p, m->language.hidden_dropout, RNG_DROP_EMBEDDING,
                                            b->stack_layer, r.first, &drop);
    if (on != NULL) {
        d = scratch_tensor(p, dy->rows, dy->cols);
        p->be->ops->dropout_backward(p->be, dy, on, &d);
    }
    struct tensor full = d;
    if (b->sequence_parallel) {
        full = scratch_tensor(p, p->mb->tokens, d.cols);
        comm_gather_rows(p->tp, p->be, &d, &full, r.text.offset);
    }
    struct tensor dtable = block_grad(b, TABLE, 1);
    if (dtable.data != NULL) p->be->ops->rows_scatter_add(p->be, &full, p->tab->token, &dtable);
    newline_gradient(b, p, &full);
    if (dx != NULL) p->be->ops->rows_gather(p->be, &full, p->tab->my_image_row, dx);
    arena_release(p->scratch, mark);
}

static const struct block_ops merge_ops = {.name = "embed_merge",
                                           .out_shape = merge_shape,
                                           .forward = merge_forward,
                                           .backward = merge_backward};

void block_embed_merge(struct block *b, const struct model_shape *m) {
    const struct language_config *c = &m->language;
    b->ops = &merge_ops;
    b->config = m;
    struct param_home home = {"model/language_model/", "language_model.model.", -1, PARAM_LANGUAGE,
                              c->frozen};
    block_declare(b, TABLE, &home, vocabulary_spec("embed_tokens/weight", c));
    if (!m->newline) return;
    home.prefix = "model/";
    home.hf_prefix = "";
    block_declare(b, NEWLINE, &home,
                  (struct param_spec){.name = "image_newline",
                                      .hf_name = "image_newline",
                                      .dims = "features",
                                      .ndim = 1,
                                      .shape = {c->hidden},
                                      .cut = cut_none(),
                                      .init = INIT_NORMAL,
                                      .scale = 1.0 / sqrt((double)c->hidden)});
}
