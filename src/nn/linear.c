/* Column- and row-parallel linear layers (Megatron-LM, arXiv 1909.08053 section 3; sequence
 * parallelism arXiv 2205.05198). y = x W^T + b. */
#include "nn_impl.h"

int linear_check(const struct linear *l, const char *what) {
    if (l->kind == LINEAR_COLUMN && l->skip_bias_add && l->gather_output)
        return error_raise(EXIT_USAGE,
                           "%s: a column-parallel linear cannot both gather its output and hand "
                           "out its bias: the bias is cut, the output would not be",
                           what);
    return 0;
}

int linear_check_pair(const struct linear *producer, const struct linear *consumer,
                      const char *what) {
    TRY(linear_check(producer, what));
    TRY(linear_check(consumer, what));
    if (producer->gather_output == consumer->input_is_parallel)
        return error_raise(EXIT_USAGE,
                           "%s: the producer %s its output but the consumer takes %s input; "
                           "gather_output and input_is_parallel must differ",
                           what, producer->gather_output ? "gathers" : "cuts",
                           consumer->input_is_parallel ? "cut" : "whole");
    if (!cut_equal(&producer->cut, &consumer->cut))
        return error_raise(EXIT_USAGE, "%s: producer and consumer are cut differently", what);
    return 0;
}

static int64_t all_rows(const struct linear *l, const struct pass *p, int64_t mine) {
    return l->rows == NULL ? mine : l->rows->offset[group_size(p->tp)];
}

/* All rows of x: itself, or gathered from the row shares. */
static struct tensor whole_rows(const struct linear *l, struct pass *p, const struct tensor *x) {
    if (l->rows == NULL) return *x;
    struct tensor full = scratch_tensor(p, all_rows(l, p, x->rows), x->cols);
    comm_gather_rows(p->tp, p->be, x, &full, l->rows->offset);
    return full;
}

/* My columns of a whole x, block after block. */
static struct tensor my_columns(const struct linear *l, struct pass *p, const struct tensor *x) {
    struct cut_part part = cut_part(&l->cut, group_size(p->tp), group_rank(p->tp));
    if (part.n_blocks == 1) return tensor_cols(*x, part.global[0], part.count[0]);
    struct tensor mine = scratch_tensor(p, x->rows, part.total);
    for (int i = 0; i < part.n_blocks; i++) {
        struct tensor from = tensor_cols(*x, part.global[i], part.count[i]);
        struct tensor to = tensor_cols(mine, part.local[i], part.count[i]);
        tensor_copy(p, &from, &to);
    }
    return mine;
}

static void column_forward(const struct linear *l, struct pass *p, const struct tensor *x,
                           const struct tensor *y) {
    const struct tensor *bias = l->skip_bias_add ? NULL : tensor_or_null(&l->b);
    struct tensor full = whole_rows(l, p, x);
    if (!l->gather_output) {
        p->be->ops->linear_forward(p->be, &full, &l->w, bias, y);
        return;
    }
    struct tensor mine = scratch_tensor(p, full.rows, l->w.rows);
    p->be->ops->linear_forward(p->be, &full, &l->w, bias, &mine);
    comm_gather_columns(p->tp, p->be, &mine, y, &l->cut);
}

static void row_forward(const struct linear *l, struct pass *p, const struct tensor *x,
                        const struct tensor *y) {
    struct tensor mine = l->input_is_parallel ? *x : my_columns(l, p, x);
    if (l->rows == NULL) {
        p->be->ops->linear_forward(p->be, &mine, &l->w, NULL, y);
        comm_allreduce(p->tp, p->be, y, REDUCE_SUM);
    } else {
        struct tensor partial = scratch_tensor(p, x->rows, l->w.rows);
        p->be->ops->linear_forward(p->be, &mine, &l->w, NULL, &partial);
        comm_reduce_rows(p->tp, p->be, &partial, y, l->rows->offset);
    }
    if (l->b.data != NULL && !l->skip_bias_add)
        p->be->ops->bias_dropout_add(p->be, y, &l->b, NULL, NULL, y);
}

void linear_forward(const struct linear *l, struct pass *p, const struct tensor *x,
                    const struct tensor *y) {
    size_t mark = arena_mark(p->scratch);
    (l->kind == LINEAR_COLUMN ? column_forward : row_forward)(l, p, x, y);
    arena_release(p->scratch, mark);
}

static void column_backward(const struct linear *l, struct pass *p, const struct tensor *x,
                            const struct tensor *dy, const struct tensor *dx) {
    struct tensor mine = l->gather_output ? my_columns(l, p, dy) : *dy;
    if (dx != NULL) {
        struct tensor full =
            l->rows == NULL ? *dx : scratch_tensor(p, all_rows(l, p, dx->rows), dx->cols);
        p->be->ops->linear_dgrad(p->be, &mine, &l->w, &full, false);
        if (l->rows == NULL)
            comm_allreduce(p->tp, p->be, &full, REDUCE_SUM);
        else
            comm_reduce_rows(p->tp, p->be, &full, dx, l->rows->offset);
    }
    if (l->dw.data != NULL) {
        struct tensor full = whole_rows(l, p, x);
        p->be->ops->linear_wgrad(p->be, &mine, &full, &l->dw);
    }
    if (l->db.data != NULL) p->be->ops->bias_grad(p->be, &mine, &l->db);
}

static void row_backward(const struct linear *l, struct pass *p, const struct tensor *x,
                         const struct tensor *dy, const struct tensor *dx) {
    struct tensor full = whole_rows(l, p, dy);
    if (l->dw.data != NULL) {
        struct tensor mine = l->input_is_parallel ? *x : my_columns(l, p, x);
        p->be->ops->linear_wgrad(p->be, &full, &mine, &l->dw);
    }
    if (l->db.data != NULL) p->be->ops->bias_grad(p->be, dy, &l->db);
    if (dx == NULL) return;
    if (l->input_is_parallel) {
        p->be->ops->linear_dgrad(p->be, &full, &l->w, dx, false);
        return;
    }
    struct tensor part = scratch_tensor(p, full.rows, l->w.cols);
    p->be->ops->linear_dgrad(p->be, &full, &l->w, &part, false);
    comm_gather_columns(p->tp, p->be, &part, dx, &l->cut);
}

void linear_backward(const struct linear *l, struct pass *p, const struct tensor *x,
                     const struct tensor *dy, const struct tensor *dx) {
    size_t mark = arena_mark(p->scratch);
    (l->kind == LINEAR_COLUMN ? column_backward : row_backward)(l, p, x, dy, dx);
    arena_release(p->scratch, mark);
}
