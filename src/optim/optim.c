/* optim: which part of the parameters a rank owns, and the memory for it. */
#include <stdlib.h>

#include "optim_impl.h"

static int64_t max64(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void create_shards(struct optim *o) {
    int D = group_size(o->dp), me = group_rank(o->dp);
    int64_t q = o->set->grad_elements / D, m = o->set->grad_elements % D;
    o->shard = xcalloc((size_t)D + 1, sizeof *o->shard);
    for (int r = 0; r < D; r++) o->shard[r + 1] = o->shard[r] + q + (r < m); /* as rows_share */
    o->first = o->settings.distributed ? o->shard[me] : 0;
    o->count = (o->settings.distributed ? o->shard[me + 1] : o->set->grad_elements) - o->first;
}

static void create_pieces(struct optim *o) {
    o->piece = xcalloc((size_t)o->set->n + 1, sizeof *o->piece);
    for (int i = 0; i < o->set->n; i++) {
        const struct param *p = &o->set->param[i];
        if (!p->trainable) continue;
        int64_t first = max64(o->first, p->grad_offset);
        int64_t end = min64(o->first + o->count, p->grad_offset + param_local_count(p));
        if (first >= end) continue;
        o->piece[o->n_pieces++] =
            (struct state_piece){.param = i, .first = first - p->grad_offset, .count = end - first};
    }
}

/* Parameters first..last. */
static void add_stretch(struct optim *o, int first, int last) {
    const struct param *p = &o->set->param[first], *q = &o->set->param[last];
    int64_t count = q->grad_offset + param_local_count(q) - p->grad_offset;
    int D = group_size(o->dp);
    struct stretch *s = &o->stretch[o->n_stretches++];
    s->weight_first = p->offset;
    s->offset = xcalloc((size_t)D + 1, sizeof *s->offset);
    for (int r = 0; r <= D; r++)
        s->offset[r] = min64(max64(o->shard[r] - p->grad_offset, 0), count);
}

static void create_stretches(struct optim *o) {
    const struct param_set *set = o->set;
    o->stretch = xcalloc((size_t)set->n + 1, sizeof *o->stretch);
    int first = -1, last = -1;
    for (int i = 0; i < set->n; i++) {
        const struct param *p = &set->param[i], *before = last < 0 ? p : &set->param[last];
        if (!p->trainable) continue;
        if (p->offset - p->grad_offset != before->offset - before->grad_offset) {
            add_stretch(o, first, last);
            first = -1;
        }
        if (first < 0) first = i;
        last = i;
    }
    if (first >= 0) add_stretch(o, first, last);
}

int optim_create(const struct optim_settings *settings, struct param_set *set,
                 const int *global_index, int n_global, const struct grid *grid,
                 struct optim **out) {
    struct optim *o = xcalloc(1, sizeof *o);
    *o = (struct optim){.settings = *settings,
                        .set = set,
                        .tp = grid_group(grid, GROUP_TP),
                        .dp = grid_group(grid, GROUP_DP),
                        .world = grid_group(grid, GROUP_WORLD),
                        .n_global = n_global};
    o->global_index = xcalloc((size_t)set->n + 1, sizeof *o->global_index);
    for (int i = 0; i < set->n; i++) {
        const struct param *p = &set->param[i];
        CHECK(global_index[i] >= 0 && global_index[i] < n_global, "%s has number %d of %d", p->name,
              global_index[i], n_global);
        o->global_index[i] = global_index[i];
        if (p->trainable && p->partial_tp && group_size(o->tp) > 1)
            o->partial_elements += param_local_count(p);
    }
    create_shards(o);
    create_pieces(o);
    create_stretches(o);
    *out = o;
    return 0;
}

void optim_destroy(struct optim *o) {
    if (!o) return;
    for (int i = 0; i < o->n_stretches; i++) free(o->stretch[i].offset);
    free(o->stretch);
    free(o->piece);
    free(o->shard);
    free(o->table);
    free(o->global_index);
    free(o);
}

int optim_layout(struct optim *o, struct backend *be, struct arena *arena) {
    bool masters = be->dtype != be->acc;
    if (masters && !arena->measuring)
        return error_raise(EXIT_UNAVAILABLE,
                           "the optimizer cannot update %s weights yet; fp32 and fp64 work",
                           dtype_name(be->dtype));
    o->be = be;
    size_t size = dtype_size(be->acc), bytes = (size_t)o->count * size;
    if (masters) arena_alloc(arena, bytes);
    char *m = arena_alloc(arena, bytes), *v = NULL;
    if (o->settings.kind == OPTIM_ADAM) v = arena_alloc(arena, bytes);
    if (o->partial_elements > 0)
        o->partial = arena_alloc(arena, (size_t)o->partial_elements * size);
    for (int64_t i = 0; i < o->n_pieces; i++) {
        struct state_piece *piece = &o->piece[i];
        int64_t at = o->set->param[piece->param].grad_offset + piece->first - o->first;
        piece->m = m + (size_t)at * size;
        piece->v = v ? v + (size_t)at * size : NULL;
    }
    if (arena->measuring) return 0;
    if (o->table == NULL) o->table = xcalloc((size_t)o->n_global + 1, sizeof *o->table);
    be->ops->zero(be, m, bytes);
    if (v) be->ops->zero(be, v, bytes);
    return 0;
}

const struct state_piece *optim_pieces(const struct optim *o, int64_t *n) {
    *n = o->n_pieces;
    return o->piece;
}

int64_t optim_updates(const struct optim *o) {
    return o->updates;
}

void optim_set_updates(struct optim *o, int64_t updates) {
    CHECK(updates >= 0, "%lld updates", (long long)updates);
    o->updates = updates;
}
