/* The public collectives: they check shapes, answer groups of one, and hand device tensors to the
 * group's transport. Host values always travel by MPI, through a buffer of the group. */
#include <string.h>

#include "comm_impl.h"

int group_rank(const struct group *g) {
    return g->rank;
}

int group_size(const struct group *g) {
    return g->size;
}

bool group_measuring(const struct group *g) {
    return g->grid->measuring;
}

size_t group_workspace_needed(const struct group *g) {
    return g->state->needed;
}

int64_t group_bytes(const struct group *g) {
    return g->state->bytes;
}

int64_t group_calls(const struct group *g) {
    return g->state->calls;
}

void group_reserve(const struct group *g, struct backend *be, size_t bytes) {
    struct group_state *s = g->state;
    if (g->grid->measuring || g->size == 1 || bytes <= s->workspace_bytes) return;
    if (s->workspace != NULL) s->be->ops->mem_free(s->be, s->workspace);
    s->be = be;
    s->workspace = be->ops->mem_alloc(be, bytes);
    s->workspace_bytes = bytes;
    if (s->workspace == NULL)
        error_fatal(EXIT_UNAVAILABLE,
                    "rank %d: %zu bytes for the messages of group %s are not available",
                    comm_world_rank(), bytes, group_name(g));
}

/* ---- device tensors ---- */

static void check_pair(const struct group *g, const struct tensor *local,
                       const struct tensor *full) {
    bool sums = full->dtype == DTYPE_F32 || full->dtype == DTYPE_F64;
    CHECK(local->dtype == full->dtype && (sums || g->grid->measuring), "group %s: %s against %s",
          group_name(g), dtype_name(local->dtype), dtype_name(full->dtype));
    CHECK(tensor_contiguous(local) && tensor_contiguous(full), "group %s: a column slice",
          group_name(g));
}

static void check_rows(const struct group *g, const struct tensor *local, const struct tensor *full,
                       const int64_t *offset) {
    check_pair(g, local, full);
    int64_t mine = offset[g->rank + 1] - offset[g->rank];
    CHECK(offset[0] == 0 && offset[g->size] == full->rows && local->rows == mine &&
              local->cols == full->cols,
          "group %s: [%lld, %lld] of [%lld, %lld], offsets say %lld of %lld rows", group_name(g),
          (long long)local->rows, (long long)local->cols, (long long)full->rows,
          (long long)full->cols, (long long)mine, (long long)offset[g->size]);
}

static void copy_whole(const struct group *g, struct backend *be, const struct tensor *from,
                       const struct tensor *to) {
    if (g->grid->measuring || to->data == from->data || tensor_count(to) == 0) return;
    be->ops->copy(be, to->data, from->data, tensor_bytes(to));
}

void comm_allreduce(const struct group *g, struct backend *be, const struct tensor *t,
                    enum reduce_op op) {
    check_pair(g, t, t);
    if (g->size == 1 || tensor_count(t) == 0) return;
    g->transport->allreduce(g, be, t->data, tensor_count(t), t->dtype, op);
}

void comm_gather_rows(const struct group *g, struct backend *be, const struct tensor *local,
                      const struct tensor *full, const int64_t *offset) {
    check_rows(g, local, full, offset);
    if (g->size == 1) {
        copy_whole(g, be, local, full);
        return;
    }
    g->transport->gather(g, be, local->data, full->data, full->dtype, offset, full->cols);
}

void comm_reduce_rows(const struct group *g, struct backend *be, const struct tensor *full,
                      const struct tensor *local, const int64_t *offset) {
    check_rows(g, local, full, offset);
    if (g->size == 1) {
        copy_whole(g, be, full, local);
        return;
    }
    g->transport->reduce_scatter(g, be, full->data, local->data, full->dtype, offset, full->cols);
}

void comm_gather_columns(const struct group *g, struct backend *be, const struct tensor *local,
                         const struct tensor *full, const struct cut *cut) {
    check_pair(g, local, full);
    int64_t mine = cut_part(cut, g->size, g->rank).total;
    CHECK(local->rows == full->rows && local->cols == mine && full->cols == cut_size(cut),
          "group %s: [%lld, %lld] of [%lld, %lld], the cut says %lld of %lld columns",
          group_name(g), (long long)local->rows, (long long)local->cols, (long long)full->rows,
          (long long)full->cols, (long long)mine, (long long)cut_size(cut));
    if (g->size == 1 || cut->axis < 0) {
        copy_whole(g, be, local, full);
        return;
    }
    g->transport->gather_columns(g, be, local, full, cut);
}

void comm_reduce_scatter_flat(const struct group *g, struct backend *be, void *full,
                              enum dtype dtype, const int64_t *offset) {
    if (g->size == 1) return;
    g->transport->reduce_scatter(
        g, be, full, byte_at(full, offset[g->rank] * (int64_t)dtype_size(dtype)), dtype, offset, 1);
}

void comm_gather_flat(const struct group *g, struct backend *be, void *full, enum dtype dtype,
                      const int64_t *offset) {
    if (g->size == 1) return;
    g->transport->gather(g, be, byte_at(full, offset[g->rank] * (int64_t)dtype_size(dtype)), full,
                         dtype, offset, 1);
}

/* ---- host values ---- */

static void host_allreduce(const struct group *g, void *values, int64_t n, enum dtype dtype,
                           enum reduce_op op) {
    if (g->size == 1 || n == 0) return;
    int64_t size = (int64_t)dtype_size(dtype);
    int64_t step = (int64_t)g->state->host_bytes / ((g->size - 1) * size);
    exchange_begin(g, OP_ALLREDUCE);
    for (int64_t first = 0; first < n; first += step) {
        int64_t count = n - first < step ? n - first : step;
        allreduce_direct(g, byte_at(values, first * size), count, dtype, op, g->state->host);
    }
}

void comm_allreduce_f64(const struct group *g, double *values, int64_t n, enum reduce_op op) {
    host_allreduce(g, values, n, DTYPE_F64, op);
}

void comm_allreduce_i64(const struct group *g, int64_t *values, int64_t n, enum reduce_op op) {
    host_allreduce(g, values, n, DTYPE_I64, op);
}

/* Along a binomial tree, seen from the root: rank v hears from v without its lowest set bit and
 * tells v + b for all b below that bit. */
static void broadcast_part(const struct group *g, void *data, size_t bytes, int root) {
    int v = (g->rank - root + g->size) % g->size;
    int low = 1;
    while (low < g->size && (v & low) == 0) low <<= 1;
    if (v != 0) {
        exchange_recv(g, (v - low + root) % g->size, data, bytes);
        if (!g->grid->measuring) exchange_wait(g);
    }
    for (int b = low >> 1; b > 0; b >>= 1)
        if (v + b < g->size) exchange_send(g, (v + b + root) % g->size, data, bytes);
    if (!g->grid->measuring) exchange_wait(g);
}

void comm_broadcast(const struct group *g, void *host, size_t bytes, int root) {
    CHECK(root >= 0 && root < g->size, "broadcast from %d of %d", root, g->size);
    if (g->size == 1 || bytes == 0) return;
    exchange_begin(g, OP_BROADCAST);
    for (size_t first = 0; first < bytes; first += g->grid->part_bytes) {
        size_t count = bytes - first < g->grid->part_bytes ? bytes - first : g->grid->part_bytes;
        broadcast_part(g, (char *)host + first, count, root);
    }
}

void comm_gather(const struct group *g, const void *mine, size_t bytes, void *all) {
    if (bytes == 0) return;
    memmove((char *)all + (size_t)g->rank * bytes, mine, bytes);
    if (g->size == 1) return;
    if (g->grid->measuring) /* as if all members had said the same */
        for (int q = 0; q < g->size; q++) memmove((char *)all + (size_t)q * bytes, mine, bytes);
    exchange_begin(g, OP_GATHER);
    for (size_t first = 0; first < bytes; first += g->grid->part_bytes) {
        size_t count = bytes - first < g->grid->part_bytes ? bytes - first : g->grid->part_bytes;
        for (int k = 1; k < g->size; k++) {
            int peer = (g->rank + g->size - k) % g->size;
            exchange_recv(g, peer, (char *)all + (size_t)peer * bytes + first, count);
        }
        for (int k = 1; k < g->size; k++)
            exchange_send(g, (g->rank + k) % g->size, (char *)all + (size_t)g->rank * bytes + first,
                          count);
        if (!g->grid->measuring) exchange_wait(g);
    }
}

void comm_barrier(const struct group *g) {
    if (g->size == 1) return;
    exchange_begin(g, OP_BARRIER);
    for (int k = 1; k < g->size; k++) exchange_signal(g, (g->rank + k) % g->size);
    if (!g->grid->measuring) exchange_wait(g);
}

void comm_pass(const struct group *g, int from, int to, void *host, size_t bytes) {
    CHECK(from != to && (g->rank == from || g->rank == to), "member %d hands over from %d to %d",
          g->rank, from, to);
    if (bytes == 0) return;
    exchange_begin(g, OP_PASS);
    for (size_t first = 0; first < bytes; first += g->grid->part_bytes) {
        size_t count = bytes - first < g->grid->part_bytes ? bytes - first : g->grid->part_bytes;
        if (g->rank == from)
            exchange_send(g, to, (char *)host + first, count);
        else
            exchange_recv(g, from, (char *)host + first, count);
        if (!g->grid->measuring) exchange_wait(g);
    }
}

int comm_vote(const struct group *g, int rc) {
    int64_t worst = rc;
    comm_allreduce_i64(g, &worst, 1, REDUCE_MAX);
    return (int)worst;
}
