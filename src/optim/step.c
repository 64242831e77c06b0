/* optim: one update (pipeline finalisation): sums over tp and dp, norm, clip, update, gather. */
#include <math.h>
#include <string.h>

#include "optim_impl.h"
#include "fault.h"

static void *element(void *base, int64_t i, enum dtype dtype) {
    return (char *)base + (size_t)i * dtype_size(dtype);
}

/* Moves the gradients marked partial_tp between their places and the flat workspace. */
static void copy_partial(struct optim *o, bool to_workspace) {
    enum dtype acc = o->be->acc;
    int64_t at = 0;
    for (int i = 0; i < o->set->n; i++) {
        const struct param *p = &o->set->param[i];
        if (!p->trainable || !p->partial_tp) continue;
        int64_t n = param_local_count(p);
        void *place = element(o->partial, at, acc);
        o->be->ops->copy(o->be, to_workspace ? place : p->g.data, to_workspace ? p->g.data : place,
                         (size_t)n * dtype_size(acc));
        at += n;
    }
}

static void sum_over_tp(struct optim *o) {
    if (o->partial_elements == 0) return;
    struct tensor flat = tensor_view(o->partial, 1, o->partial_elements, o->be->acc);
    copy_partial(o, true);
    comm_allreduce(o->tp, o->be, &flat, REDUCE_SUM);
    copy_partial(o, false);
}

static void sum_over_dp(struct optim *o) {
    int64_t n = o->set->grad_elements;
    if (n == 0 || group_size(o->dp) == 1) return;
    struct tensor flat = tensor_view(o->set->grads, 1, n, o->be->acc);
    if (o->settings.distributed)
        comm_reduce_scatter_flat(o->dp, o->be, o->set->grads, o->be->acc, o->shard);
    else
        comm_allreduce(o->dp, o->be, &flat, REDUCE_SUM);
}

static void *piece_gradient(const struct optim *o, const struct state_piece *piece) {
    return element(o->set->param[piece->param].g.data, piece->first, o->be->acc);
}

/* Every rank looks at all it holds for non-finite values, but adds only what nobody else adds:
 * tp-replicated parameters count on tp 0, unsharded states on dp 0. */
static void fill_table(struct optim *o) {
    memset(o->table, 0, ((size_t)o->n_global + 1) * sizeof *o->table);
    bool dp_counts = o->settings.distributed || group_rank(o->dp) == 0;
    for (int64_t i = 0; i < o->n_pieces; i++) {
        const struct state_piece *piece = &o->piece[i];
        const struct param *p = &o->set->param[piece->param];
        struct tensor g = tensor_view(piece_gradient(o, piece), 1, piece->count, o->be->acc);
        double squares = o->be->ops->sum_squares(o->be, &g);
        bool tp_counts = p->cut.axis >= 0 || p->tp_rank == 0;
        if (!isfinite(squares)) o->table[o->n_global] += 1;
        if (dp_counts && tp_counts) o->table[o->global_index[piece->param]] += squares;
    }
}

static void global_norm(struct optim *o, double grad_scale, struct optim_result *out) {
    fill_table(o);
    comm_allreduce_f64(o->world, o->table, o->n_global + 1, REDUCE_SUM);
    double sum = 0;
    for (int i = 0; i < o->n_global; i++) sum += o->table[i];
    out->grad_norm = o->table[o->n_global] == 0 ? grad_scale * sqrt(sum) : NAN;
    out->finite = isfinite(out->grad_norm);
    double limit = o->settings.clip_grad;
    out->clip_factor = limit > 0 ? fmin(1, limit / (out->grad_norm + 1e-6)) : 1;
}

static void update_piece(struct optim *o, const struct state_piece *piece,
                         const struct optim_input *in, struct adamw *a) {
    const struct optim_settings *s = &o->settings;
    const struct param *p = &o->set->param[piece->param];
    void *w = element(p->w.data, piece->first, o->be->dtype);
    const void *g = piece_gradient(o, piece);
    CHECK((unsigned)p->group < OPTIM_GROUPS, "%s is in group %d", p->name, (int)p->group);
    a->lr = in->lr[p->group];
    a->weight_decay = p->decay ? s->weight_decay : 0;
    if (s->kind == OPTIM_ADAM)
        o->be->ops->adamw_step(o->be, a, piece->count, w, w, g, piece->m, piece->v);
    else
        o->be->ops->sgd_step(o->be, a->lr, s->momentum, a->weight_decay, a->grad_scale,
                             piece->count, w, w, g, piece->m);
}

static void update(struct optim *o, const struct optim_input *in, double clip_factor) {
    o->updates++;
    struct adamw a = {.beta1 = o->settings.beta1,
                      .beta2 = o->settings.beta2,
                      .eps = o->settings.eps,
                      .correction1 = 1 - pow(o->settings.beta1, (double)o->updates),
                      .correction2 = 1 - pow(o->settings.beta2, (double)o->updates),
                      .grad_scale = in->grad_scale * clip_factor};
    for (int64_t i = 0; i < o->n_pieces; i++) {
        update_piece(o, &o->piece[i], in, &a);
        fault_point("step.update.in");
    }
}

static void gather_weights(struct optim *o) {
    if (!o->settings.distributed || group_size(o->dp) == 1) return;
    for (int i = 0; i < o->n_stretches; i++) {
        const struct stretch *s = &o->stretch[i];
        comm_gather_flat(o->dp, o->be, element(o->set->weights, s->weight_first, o->be->dtype),
                         o->be->dtype, s->offset);
    }
}

int optim_step(struct optim *o, const struct optim_input *in, struct optim_result *out) {
    CHECK(o->be, "optim_layout comes before optim_step");
    CHECK(in->grad_scale > 0 && isfinite(in->grad_scale), "grad_scale = %g", in->grad_scale);
    sum_over_tp(o);
    fault_point("step.reduce.before");
    sum_over_dp(o);
    fault_point("step.reduce.after");
    if (o->be->measuring) { /* the norm and the update take no workspace; the gather may */
        *out = (struct optim_result){.finite = true, .clip_factor = 1};
        gather_weights(o);
        return 0;
    }
    global_norm(o, in->grad_scale, out);
    if (!out->finite) return 0;
    fault_point("step.norm.after");
    update(o, in, out->clip_factor);
    fault_point("step.gather.before");
    gather_weights(o);
    fault_point("step.gather.after");
    return 0;
}
