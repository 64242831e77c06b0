/* The write plan: which rank writes which boxes. A pure function of the parameter table and the
 * layout, so no rank has to ask another one. */
#include <stdlib.h>
#include <string.h>

#include "ckpt_impl.h"

static const char *const role_name[CKPT_ROLES] = {"weight", "master", "moment1", "moment2"};
static const char *const role_folder[CKPT_ROLES] = {"model", "optimizer/master", "optimizer/m",
                                                    "optimizer/v"};

const char *ckpt_role_name(enum ckpt_role role) {
    return role_name[role];
}

void part_tensor_name(const struct param *p, enum ckpt_role role, char *name, size_t size) {
    const char *rest = strncmp(p->name, "model/", 6) == 0 ? p->name + 6 : p->name;
    int w = snprintf(name, size, "%s/%s", role_folder[role], rest);
    CHECK(w > 0 && (size_t)w < size && ckpt_tensor_name_legal(name), "tensor name \"%s\"", name);
}

void part_list_free(struct part_list *list) {
    free(list->part);
    *list = (struct part_list){0};
}

static void part_add(struct part_list *list, const struct part *p) {
    if (list->n == list->capacity) {
        list->capacity = list->capacity ? 2 * list->capacity : 64;
        list->part = xrealloc(list->part, (size_t)list->capacity * sizeof *list->part);
    }
    list->part[list->n++] = *p;
}

int64_t part_bytes(const struct part *p) {
    return box_volume(&p->box) * (int64_t)dtype_size(p->dtype);
}

int64_t part_list_largest(const struct part_list *list) {
    int64_t largest = 0;
    for (int64_t i = 0; i < list->n; i++) {
        int64_t bytes = part_bytes(&list->part[i]);
        if (bytes > largest) largest = bytes;
    }
    return largest;
}

void param_extent(const struct param *p, int size, int rank, int64_t *extent) {
    for (int d = 0; d < p->ndim; d++) extent[d] = p->shape[d];
    if (p->cut.axis >= 0) extent[p->cut.axis] = cut_part(&p->cut, size, rank).total;
}

/* Adds the parts of box `local` (coordinates of this rank's local array): one for each block of a
 * fused cut that it touches. */
static void add_local_box(const struct param *p, const struct box *local, struct part proto,
                          struct part_list *list) {
    int n_blocks = 1, axis = p->cut.axis;
    struct cut_part c = {0};
    if (axis >= 0) {
        c = cut_part(&p->cut, p->tp_size, p->tp_rank);
        n_blocks = c.n_blocks;
    }
    param_extent(p, p->tp_size, p->tp_rank, proto.extent);
    for (int b = 0; b < n_blocks; b++) {
        struct box whole = {.n = p->ndim}, mine;
        for (int d = 0; d < p->ndim; d++) whole.count[d] = proto.extent[d];
        if (axis >= 0) {
            whole.offset[axis] = c.local[b];
            whole.count[axis] = c.count[b];
        }
        if (box_volume(&whole) == 0 || !box_intersect(&whole, local, &mine)) continue;
        struct part q = proto;
        q.box = mine;
        for (int d = 0; d < p->ndim; d++) q.local[d] = mine.offset[d];
        if (axis >= 0) q.box.offset[axis] += c.global[b] - c.local[b];
        part_add(list, &q);
    }
}

static struct part weight_part(const struct ckpt_state *s, int i) {
    const struct tensor *w = &s->set->param[i].w;
    CHECK(tensor_contiguous(w), "weight %s is not contiguous", s->set->param[i].name);
    return (struct part){.param = i, .role = CKPT_WEIGHT, .dtype = w->dtype, .data = w->data};
}

static struct part moment_part(const struct ckpt_state *s, const struct state_piece *piece,
                               enum ckpt_role role) {
    return (struct part){.param = piece->param,
                         .role = role,
                         .dtype = s->be->acc,
                         .first = piece->first,
                         .data = role == CKPT_MOMENT1 ? piece->m : piece->v};
}

static void add_piece(const struct ckpt_state *s, const struct state_piece *piece,
                      enum ckpt_role role, struct part_list *list) {
    if (piece->count == 0 || (role == CKPT_MOMENT2 && !piece->v)) return;
    const struct param *p = &s->set->param[piece->param];
    int64_t extent[CKPT_DIMS];
    param_extent(p, p->tp_size, p->tp_rank, extent);
    struct box box[BOX_FLAT_MAX];
    int n = box_from_flat(p->ndim, extent, piece->first, piece->count, box);
    for (int i = 0; i < n; i++) add_local_box(p, &box[i], moment_part(s, piece, role), list);
}

/* Rows [first, first+count) of axis 0 of the local array. */
static void add_rows(const struct param *p, int64_t first, int64_t count, struct part proto,
                     struct part_list *list) {
    struct box local = {.n = p->ndim};
    param_extent(p, p->tp_size, p->tp_rank, local.count);
    local.offset[0] = first;
    local.count[0] = count;
    if (box_volume(&local) > 0) add_local_box(p, &local, proto, list);
}

void parts_held(const struct ckpt_state *s, bool weights, bool moments, struct part_list *list) {
    for (int i = 0; weights && i < s->set->n; i++) {
        const struct param *p = &s->set->param[i];
        int64_t extent[CKPT_DIMS];
        param_extent(p, p->tp_size, p->tp_rank, extent);
        add_rows(p, 0, extent[0], weight_part(s, i), list);
    }
    for (int64_t i = 0; moments && i < s->n_pieces; i++) {
        add_piece(s, &s->piece[i], CKPT_MOMENT1, list);
        add_piece(s, &s->piece[i], CKPT_MOMENT2, list);
    }
}

/* ---- dealing what several ranks hold --------------------------------------------------------------
 * A unit is the local array of one tensor-parallel rank (or the whole tensor where it is not cut);
 * its holders are the ranks that have it. A large unit is cut along axis 0 into equal shares, a
 * small one goes to the holder with the fewest bytes so far, the lower rank on a tie. */
struct deal {
    struct plan_layout layout;
    int64_t *load; /* [dp * tp] bytes dealt so far; holder (t, d) at d*tp + t */
    int64_t large; /* bytes from which a unit is shared out */
};
#define DEAL_SMALL 16384

static int64_t unit_bytes(const struct param *p, int tp, int t, size_t element) {
    int64_t extent[CKPT_DIMS] = {0}, n = 1;
    param_extent(p, tp, t, extent);
    for (int d = 0; d < p->ndim; d++) n *= extent[d];
    return n * (int64_t)element;
}

/* Rows [*first, +*count) of axis 0 of unit (p, t) that this rank writes. */
static void deal_unit(struct deal *deal, const struct param *p, int t, size_t element,
                      int64_t *first, int64_t *count) {
    int tp = deal->layout.tp, dp = deal->layout.dp, best = -1;
    int mine = deal->layout.dp_rank * tp + deal->layout.tp_rank;
    bool cut = p->cut.axis >= 0;
    int n_holders = cut ? dp : tp * dp;
    int64_t extent[CKPT_DIMS] = {0}, bytes = unit_bytes(p, tp, t, element);
    param_extent(p, tp, t, extent);
    int64_t row_bytes = extent[0] > 0 ? bytes / extent[0] : 0;
    bool share = n_holders > 1 && bytes >= deal->large;
    *first = *count = 0;
    for (int h = 0; h < n_holders; h++) {
        int at = cut ? h * tp + t : h;
        if (share) {
            int64_t f, c;
            rows_share(extent[0], n_holders, h, &f, &c);
            deal->load[at] += c * row_bytes;
            if (at == mine) *first = f, *count = c;
        } else if (best < 0 || deal->load[at] < deal->load[best]) {
            best = at;
        }
    }
    if (share) return;
    deal->load[best] += bytes;
    if (best == mine) *count = extent[0];
}

static void deal_tensor(struct deal *deal, const struct param *p, struct part proto,
                        struct part_list *list) {
    int units = p->cut.axis >= 0 ? deal->layout.tp : 1;
    for (int t = 0; t < units; t++) {
        int64_t first, count;
        deal_unit(deal, p, t, dtype_size(proto.dtype), &first, &count);
        if (count > 0) add_rows(p, first, count, proto, list);
    }
}

/* Mean bytes of a writer of this stage. */
static int64_t mean_load(const struct ckpt_state *s, const struct plan_layout *layout,
                         const bool *stored_elsewhere, bool moments) {
    int64_t total = 0;
    for (int i = 0; i < s->set->n; i++) {
        const struct param *p = &s->set->param[i];
        if (stored_elsewhere && stored_elsewhere[i]) continue;
        total += param_global_count(p) * (int64_t)dtype_size(p->w.dtype);
    }
    for (int64_t i = 0; moments && i < s->n_pieces; i++) {
        const struct state_piece *piece = &s->piece[i];
        if (stored_elsewhere && stored_elsewhere[piece->param]) continue;
        total += param_global_count(&s->set->param[piece->param]) * (piece->v ? 2 : 1) *
                 (int64_t)dtype_size(s->be->acc);
    }
    return total / (layout->tp * layout->dp);
}

/* Sharded pieces have one holder over DP; a tensor that TP does not cut has the same piece on all
 * TP ranks, which take turns. */
static void add_sharded(const struct ckpt_state *s, const struct plan_layout *layout,
                        const bool *stored_elsewhere, struct part_list *list) {
    for (int64_t i = 0; i < s->n_pieces; i++) {
        const struct state_piece *piece = &s->piece[i];
        if (stored_elsewhere && stored_elsewhere[piece->param]) continue;
        const struct param *p = &s->set->param[piece->param];
        if (p->cut.axis < 0 && piece->param % layout->tp != layout->tp_rank) continue;
        add_piece(s, piece, CKPT_MOMENT1, list);
        add_piece(s, piece, CKPT_MOMENT2, list);
    }
}

/* Deals what several ranks hold. deal->load is the caller's to free. */
static void deal_all(const struct ckpt_state *s, const struct plan_layout *layout,
                     const bool *stored_elsewhere, bool dealt_moments, struct deal *deal,
                     struct part_list *list) {
    int64_t mean = mean_load(s, layout, stored_elsewhere, dealt_moments);
    *deal =
        (struct deal){.layout = *layout,
                      .load = xcalloc((size_t)layout->tp * (size_t)layout->dp, sizeof *deal->load),
                      .large = mean / 20 > DEAL_SMALL ? mean / 20 : DEAL_SMALL};
    for (int i = 0; i < s->set->n; i++) {
        if (stored_elsewhere && stored_elsewhere[i]) continue;
        deal_tensor(deal, &s->set->param[i], weight_part(s, i), list);
    }
    for (int64_t i = 0; dealt_moments && i < s->n_pieces; i++) {
        const struct state_piece *piece = &s->piece[i];
        const struct param *p = &s->set->param[piece->param];
        CHECK(piece->first == 0 && piece->count == param_local_count(p),
              "%s: a piece of unsharded optimizer state must be the whole local tensor", p->name);
        if (stored_elsewhere && stored_elsewhere[piece->param]) continue;
        deal_tensor(deal, p, moment_part(s, piece, CKPT_MOMENT1), list);
        if (piece->v) deal_tensor(deal, p, moment_part(s, piece, CKPT_MOMENT2), list);
    }
}

void parts_to_write(const struct ckpt_state *s, const struct plan_layout *layout,
                    const bool *stored_elsewhere, bool moments, struct part_list *list) {
    struct deal deal;
    deal_all(s, layout, stored_elsewhere, moments && !s->sharded_optimizer, &deal, list);
    if (moments && s->sharded_optimizer) add_sharded(s, layout, stored_elsewhere, list);
    free(deal.load);
}

/* The deal gives every holder's bytes at once, so that a planner need not repeat it for each rank. */
void ckpt_dealt_bytes(const struct ckpt_state *s, bool moments, size_t *bytes) {
    const struct group *tp = grid_group(s->grid, GROUP_TP), *dp = grid_group(s->grid, GROUP_DP);
    struct plan_layout layout = {.tp = group_size(tp),
                                 .dp = group_size(dp),
                                 .tp_rank = group_rank(tp),
                                 .dp_rank = group_rank(dp)};
    struct part_list list = {0};
    struct deal deal;
    deal_all(s, &layout, NULL, moments && !s->sharded_optimizer, &deal, &list);
    for (int64_t i = 0; i < (int64_t)layout.tp * layout.dp; i++) bytes[i] = (size_t)deal.load[i];
    part_list_free(&list);
    free(deal.load);
}

size_t ckpt_sharded_bytes(const struct ckpt_state *s, bool moments) {
    const struct group *tp = grid_group(s->grid, GROUP_TP);
    struct plan_layout layout = {.tp = group_size(tp), .tp_rank = group_rank(tp)};
    struct part_list list = {0};
    int64_t bytes = 0;
    if (moments && s->sharded_optimizer) add_sharded(s, &layout, NULL, &list);
    for (int64_t i = 0; i < list.n; i++) bytes += part_bytes(&list.part[i]);
    part_list_free(&list);
    return (size_t)bytes;
}

/* ---- between the local array and a packed host buffer ------------------------------------------- */
static void copy_runs(const struct part *p, const struct box *sub, struct backend *be, char *host,
                      bool to_host) {
    int n = sub->n, k = n - 1;
    while (k > 0 && sub->count[k] == p->extent[k]) k--;
    int64_t element = (int64_t)dtype_size(p->dtype), run = element, runs = 1;
    for (int d = k; d < n; d++) run *= sub->count[d];
    for (int d = 0; d < k; d++) runs *= sub->count[d];
    for (int64_t i = 0; i < runs; i++) {
        int64_t at[CKPT_DIMS] = {0}, rest = i, flat = 0;
        for (int d = k - 1; d >= 0; d--) {
            at[d] = rest % sub->count[d];
            rest /= sub->count[d];
        }
        for (int d = 0; d < n; d++)
            flat = flat * p->extent[d] + p->local[d] + sub->offset[d] - p->box.offset[d] + at[d];
        char *device = p->data + (flat - p->first) * element;
        if (to_host)
            be->ops->download(be, host + i * run, device, (size_t)run);
        else
            be->ops->upload(be, device, host + i * run, (size_t)run);
    }
}

void part_download(const struct part *p, const struct box *sub, struct backend *be, void *host) {
    copy_runs(p, sub, be, host, true);
}

void part_upload(const struct part *p, const struct box *sub, struct backend *be,
                 const void *host) {
    copy_runs(p, sub, be, (char *)(uintptr_t)host, false);
}
