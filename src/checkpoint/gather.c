/* writers = node: the ranks of one machine, or so many of them, share one file. The first of them
 * writes it; the others hand their parts over, slice after slice. Who does what is a pure function of
 * the machine that each rank runs on. */
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "save_impl.h"
#include "tools_impl.h"

void ckpt_writers(const int *node, int n, int64_t ranks_per_writer, int *writer) {
    int64_t *shares = xcalloc((size_t)n, sizeof *shares); /* ranks of the file of each writer */
    int *last = xmalloc((size_t)n * sizeof *last);        /* newest writer of each machine */
    for (int r = 0; r < n; r++) last[r] = -1;
    for (int r = 0; r < n; r++) {
        CHECK(node[r] >= 0 && node[r] < n, "rank %d on machine %d", r, node[r]);
        int *w = &last[node[r]];
        if (*w < 0 || (ranks_per_writer > 0 && shares[*w] == ranks_per_writer)) *w = r;
        writer[r] = *w;
        shares[*w]++;
    }
    free(shares);
    free(last);
}

int64_t writer_index(const int *writer, int rank) {
    int64_t index = 0;
    for (int r = 0; r < writer[rank]; r++) index += writer[r] == r;
    return index;
}

/* ---- what is handed over -------------------------------------------------------------------------------- */
struct param guest_param(const struct handed *h) {
    struct param p = {.dims = h->dims[0] ? h->dims : NULL,
                      .ndim = h->ndim,
                      .cut = h->cut,
                      .stack_layer = h->stack_layer};
    memcpy(p.name, h->name, sizeof p.name);
    memcpy(p.hf_name, h->hf_name, sizeof p.hf_name);
    memcpy(p.shape, h->shape, sizeof p.shape);
    return p;
}

struct part guest_part(const struct handed *h) {
    return (struct part){.role = h->role, .dtype = h->dtype, .box = h->box};
}

static struct handed describe(const struct save *s, const struct part *p) {
    const struct param *param = &s->st->set->param[p->param];
    struct handed h;
    memset(&h, 0, sizeof h);
    CHECK(!param->dims || strlen(param->dims) < sizeof h.dims, "%s: dims", param->name);
    snprintf(h.name, sizeof h.name, "%s", param->name);
    snprintf(h.hf_name, sizeof h.hf_name, "%s", param->hf_name);
    snprintf(h.dims, sizeof h.dims, "%s", param->dims ? param->dims : "");
    h.ndim = param->ndim;
    h.stack_layer = param->stack_layer;
    memcpy(h.shape, param->shape, sizeof h.shape);
    h.cut = param->cut;
    h.role = p->role;
    h.dtype = p->dtype;
    h.box = p->box;
    return h;
}

/* Both sides cut a part up alike. */
static int64_t slice_most(const struct save *s, const struct box *b, enum dtype t) {
    return box_slice_bytes(s->set->filter, b, (int64_t)dtype_size(t));
}

static int64_t count_slices(const struct save *s, const struct handed *h) {
    struct box slice;
    int64_t at = 0, n = 0, most = slice_most(s, &h->box, h->dtype);
    while (box_next_slice(&h->box, dtype_size(h->dtype), most, &at, &slice)) n++;
    return n;
}

static void meet_guest(struct save *s, int rank, int64_t n) {
    struct guest *g = &s->guest[s->n_guests++];
    *g = (struct guest){.rank = rank, .n = n};
    g->part = xcalloc((size_t)n + 1, sizeof *g->part);
    comm_pass(s->world, rank, group_rank(s->world), g->part, (size_t)n * sizeof *g->part);
    for (int64_t i = 0; i < n; i++) g->left += count_slices(s, &g->part[i]);
}

static void introduce(const struct save *s, int writer) {
    struct handed *h = xcalloc((size_t)s->part.n + 1, sizeof *h);
    for (int64_t i = 0; i < s->part.n; i++) h[i] = describe(s, &s->part.part[i]);
    comm_pass(s->world, group_rank(s->world), writer, h, (size_t)s->part.n * sizeof *h);
    free(h);
}

void guests_begin(struct save *s) {
    int n = group_size(s->world), me = group_rank(s->world);
    int *node = xcalloc((size_t)n, sizeof *node);
    int64_t *parts = xcalloc((size_t)n, sizeof *parts);
    for (int r = 0; r < n; r++) node[r] = s->set->writers_node ? grid_node(s->st->grid, r) : r;
    s->writer = xcalloc((size_t)n, sizeof *s->writer);
    ckpt_writers(node, n, s->set->writers_node ? s->set->ranks_per_writer : 1, s->writer);
    free(node);
    comm_gather(s->world, &s->part.n, sizeof s->part.n, parts);
    s->guest = xcalloc((size_t)n, sizeof *s->guest);
    CHECK(!s->st->fetch || !s->set->writers_node, "weights that are fetched are not handed over");
    if (s->writer[me] != me) introduce(s, s->writer[me]);
    for (int r = 0; r < n; r++)
        if (r != me && s->writer[r] == me) meet_guest(s, r, parts[r]);
    free(parts);
}

void guests_end(struct save *s) {
    for (int i = 0; i < s->n_guests; i++) free(s->guest[i].part);
    free(s->guest);
    free(s->writer);
}

bool save_writes(const struct save *s) {
    int me = group_rank(s->world);
    return s->writer[me] == me;
}

int64_t guests_largest(const struct save *s) {
    int64_t largest = 0;
    for (int i = 0; i < s->n_guests; i++)
        for (int64_t k = 0; k < s->guest[i].n; k++) {
            struct part p = guest_part(&s->guest[i].part[k]);
            if (part_bytes(&p) > largest) largest = part_bytes(&p);
        }
    return largest;
}

/* ---- slices ------------------------------------------------------------------------------------------------ */
/* The writer says for each slice whether it still wants it: after a failure nobody waits in vain. */
static void ask(const struct save *s, int from, int to, int64_t *wanted) {
    comm_pass(s->world, from, to, wanted, sizeof *wanted);
}

static void take_slice(struct save *s, struct guest *g, void *host, int64_t bytes) {
    int64_t wanted = 1;
    int me = group_rank(s->world);
    ask(s, me, g->rank, &wanted);
    comm_pass(s->world, g->rank, me, host, (size_t)bytes);
    g->left--;
}

static void dismiss(struct save *s, struct guest *g) {
    int64_t wanted = 0;
    if (g->left > 0) ask(s, group_rank(s->world), g->rank, &wanted);
    g->left = 0;
}

static int64_t slice_bytes(const struct box *slice, enum dtype t) {
    return box_volume(slice) * (int64_t)dtype_size(t);
}

void parts_hand_over(struct save *s, char *room, size_t room_bytes) {
    int me = group_rank(s->world), writer = s->writer[me];
    for (int64_t i = 0; i < s->part.n; i++) {
        const struct part *p = &s->part.part[i];
        struct box slice;
        int64_t at = 0, wanted, most = slice_most(s, &p->box, p->dtype);
        while (box_next_slice(&p->box, dtype_size(p->dtype), most, &at, &slice)) {
            size_t bytes = (size_t)slice_bytes(&slice, p->dtype);
            ask(s, writer, me, &wanted);
            if (!wanted) return;
            CHECK(bytes <= room_bytes, "%zu bytes to hand over, room for %zu", bytes, room_bytes);
            fault_point("save.copy.before");
            part_download(p, &slice, s->st->be, room);
            s->st->be->ops->synchronize(s->st->be);
            fault_point("save.copy.in");
            comm_pass(s->world, me, writer, room, bytes);
        }
    }
}

static size_t largest_slice(const struct part_list *list) {
    int64_t largest = 0;
    for (int64_t i = 0; i < list->n; i++) {
        const struct part *p = &list->part[i];
        struct box slice;
        int64_t at = 0;
        box_next_slice(&p->box, dtype_size(p->dtype), CKPT_SLICE, &at, &slice);
        int64_t bytes = slice_bytes(&slice, p->dtype);
        if (bytes > largest) largest = bytes;
    }
    return (size_t)largest;
}

/* Of all it holds: what it writes lies inside, whoever else holds the same. No filter makes a slice
 * longer. */
size_t ckpt_passing_bytes(const struct ckpt_state *state, bool weights, bool moments) {
    struct part_list list = {0};
    parts_held(state, weights, moments, &list);
    size_t bytes = largest_slice(&list);
    part_list_free(&list);
    return bytes;
}

/* ---- the writer's side -------------------------------------------------------------------------------------- */
char *guests_copy(struct save *s, char *host) {
    for (int i = 0; i < s->n_guests; i++) {
        struct guest *g = &s->guest[i];
        for (int64_t k = 0; k < g->n; k++) {
            const struct handed *h = &g->part[k];
            struct box slice;
            int64_t at = 0, most = slice_most(s, &h->box, h->dtype);
            while (box_next_slice(&h->box, dtype_size(h->dtype), most, &at, &slice)) {
                int64_t bytes = slice_bytes(&slice, h->dtype);
                take_slice(s, g, host, bytes);
                host += bytes;
            }
        }
    }
    return host;
}

static int write_part(struct save *s, struct guest *g, struct shard *shard, const struct handed *h,
                      char *room) {
    struct param param = guest_param(h);
    struct part part = guest_part(h);
    struct ckpt_tensor *t;
    struct block_writer w;
    struct box slice;
    struct ckpt_block *b = manifest_add_part(s->m, &param, &part, &t);
    int64_t at = 0, row = b->bytes / b->box.count[0], most = slice_most(s, &h->box, h->dtype);
    int rc = shard_begin_block(shard, &param, t, b, &w);
    while (!rc && box_next_slice(&h->box, dtype_size(h->dtype), most, &at, &slice)) {
        int64_t first = slice.offset[0] - h->box.offset[0];
        take_slice(s, g, room, slice_bytes(&slice, h->dtype));
        block_add_crc(b, first * row, room, slice.count[0] * row);
        rc = shard_write_rows(&w, b, first, slice.count[0], room);
    }
    return shard_end_block(rc, shard, &w, b);
}

int guests_write(int rc, struct save *s, struct shard *shard) {
    int64_t most = 0;
    for (int i = 0; i < s->n_guests; i++)
        for (int64_t k = 0; k < s->guest[i].n; k++) {
            struct part p = guest_part(&s->guest[i].part[k]);
            int64_t bytes = (int64_t)largest_slice(&(struct part_list){.part = &p, .n = 1});
            if (bytes > most) most = bytes;
        }
    char *room = xmalloc((size_t)most + 1);
    for (int i = 0; i < s->n_guests; i++) {
        struct guest *g = &s->guest[i];
        for (int64_t k = 0; !rc && k < g->n; k++) rc = write_part(s, g, shard, &g->part[k], room);
        if (rc) dismiss(s, g);
    }
    free(room);
    return rc;
}
