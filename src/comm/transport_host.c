/* Collectives over host memory by MPI messages. Every member gets the same bits: an element is
 * summed in rank order, either by everyone alike or by one member that sends the result to all.
 * Bytes sent per rank, p ranks, B bytes: all-reduce 2 (p-1)/p B ((p-1) B where that is at most
 * DIRECT_BYTES), all-gather and reduce-scatter (p-1)/p B; with uneven parts exactly
 * (p-1) mine and B - mine. */
#include <string.h>

#include "comm_impl.h"

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* How many of n elements lie in the round that starts at `first` and takes `step` of them. */
static int64_t round_count(int64_t n, int64_t first, int64_t step) {
    return n <= first ? 0 : min64(n - first, step);
}

static int64_t part_max(const int64_t *offset, int size) {
    int64_t n = 0;
    for (int q = 0; q < size; q++)
        if (offset[q + 1] - offset[q] > n) n = offset[q + 1] - offset[q];
    return n;
}

static void copy_unless_same(const struct group *g, void *to, const void *from, size_t bytes) {
    if (!g->grid->measuring && to != from && bytes > 0) memcpy(to, from, bytes);
}

void allreduce_direct(const struct group *g, void *data, int64_t n, enum dtype dtype,
                      enum reduce_op op, void *buffer) {
    int64_t bytes = n * (int64_t)dtype_size(dtype);
    if (g->grid->measuring) {
        exchange_count(g, (g->size - 1) * bytes);
        return;
    }
    const void **source = g->state->source;
    for (int k = 1; k < g->size; k++) {
        int peer = (g->rank + k) % g->size;
        source[peer] = byte_at(buffer, (k - 1) * bytes);
        exchange_recv(g, peer, byte_at(buffer, (k - 1) * bytes), (size_t)bytes);
    }
    for (int k = 1; k < g->size; k++)
        exchange_send(g, (g->rank + k) % g->size, data, (size_t)bytes);
    exchange_wait(g);
    source[g->rank] = data;
    reduce_in_order(source, g->size, data, n, dtype, op);
}

/* Round by round: receive everybody's version of a slab of my part, sum, put it into mine. */
static void scatter_reduce(const struct group *g, const void *full, void *mine, enum dtype dtype,
                           enum reduce_op op, const int64_t *offset, int64_t unit) {
    struct group_state *s = g->state;
    int64_t size = (int64_t)dtype_size(dtype), others = g->size - 1;
    int64_t slab = (int64_t)s->slab_bytes / (others * size);
    if (slab < 1) slab = 1;
    int64_t n_mine = (offset[g->rank + 1] - offset[g->rank]) * unit;
    int64_t slot = min64(slab, n_mine) * size;
    void *buffer = group_workspace(g, (size_t)(others * slot));
    if (g->grid->measuring) {
        exchange_count(g, ((offset[g->size] - offset[0]) * unit - n_mine) * size);
        return;
    }
    int64_t n_max = part_max(offset, g->size) * unit;
    for (int64_t first = 0; first < n_max; first += slab) {
        int64_t count = round_count(n_mine, first, slab);
        for (int k = 1; k < g->size; k++) {
            int peer = (g->rank + k) % g->size;
            s->source[peer] = byte_at(buffer, (k - 1) * slot);
            exchange_recv(g, peer, byte_at(buffer, (k - 1) * slot), (size_t)(count * size));
        }
        for (int k = 1; k < g->size; k++) {
            int peer = (g->rank + k) % g->size;
            int64_t theirs = round_count((offset[peer + 1] - offset[peer]) * unit, first, slab);
            exchange_send(g, peer, byte_at(full, (offset[peer] * unit + first) * size),
                          (size_t)(theirs * size));
        }
        exchange_wait(g);
        s->source[g->rank] = byte_at(full, (offset[g->rank] * unit + first) * size);
        reduce_in_order(s->source, g->size, byte_at(mine, first * size), count, dtype, op);
    }
}

/* My part lies in its place. */
static void gather_in_place(const struct group *g, void *full, int64_t size, const int64_t *offset,
                            int64_t unit) {
    int64_t step = (int64_t)g->grid->part_bytes / size;
    int64_t n_mine = (offset[g->rank + 1] - offset[g->rank]) * unit;
    if (g->grid->measuring) {
        exchange_count(g, (g->size - 1) * n_mine * size);
        return;
    }
    int64_t n_max = part_max(offset, g->size) * unit;
    for (int64_t first = 0; first < n_max; first += step) {
        for (int k = 1; k < g->size; k++) {
            int peer = (g->rank + g->size - k) % g->size;
            int64_t count = round_count((offset[peer + 1] - offset[peer]) * unit, first, step);
            exchange_recv(g, peer, byte_at(full, (offset[peer] * unit + first) * size),
                          (size_t)(count * size));
        }
        for (int k = 1; k < g->size; k++)
            exchange_send(g, (g->rank + k) % g->size,
                          byte_at(full, (offset[g->rank] * unit + first) * size),
                          (size_t)(round_count(n_mine, first, step) * size));
        exchange_wait(g);
    }
}

/* The two halves of a large sum, from this rank's part alone: the planner measures the collectives of
 * thousands of ranks, and a walk over the members of each would make that quadratic. */
static void measure_allreduce(const struct group *g, int64_t n, int64_t size) {
    struct group_state *s = g->state;
    int64_t first, mine, others = g->size - 1, slab = (int64_t)s->slab_bytes / (others * size);
    rows_share(n, g->size, g->rank, &first, &mine);
    group_workspace(g, (size_t)(others * min64(slab < 1 ? 1 : slab, mine) * size));
    /* A shorter tensor than the one measured may still go the direct way, which takes more. */
    group_workspace(g, s->direct_bytes);
    exchange_count(g, (n - mine) * size + others * mine * size);
}

static void host_allreduce(const struct group *g, struct backend *be, void *data, int64_t n,
                           enum dtype dtype, enum reduce_op op) {
    (void)be;
    struct group_state *s = g->state;
    size_t sent = (size_t)(g->size - 1) * (size_t)n * dtype_size(dtype);
    exchange_begin(g, OP_ALLREDUCE);
    if (sent <= s->direct_bytes) {
        allreduce_direct(g, data, n, dtype, op, group_workspace(g, sent));
        return;
    }
    if (g->grid->measuring) {
        measure_allreduce(g, n, (int64_t)dtype_size(dtype));
        return;
    }
    for (int q = 0; q < g->size; q++) {
        int64_t count;
        rows_share(n, g->size, q, &s->offset[q], &count);
    }
    s->offset[g->size] = n;
    int64_t size = (int64_t)dtype_size(dtype);
    scatter_reduce(g, data, byte_at(data, s->offset[g->rank] * size), dtype, op, s->offset, 1);
    gather_in_place(g, data, size, s->offset, 1);
}

static void host_gather(const struct group *g, struct backend *be, const void *mine, void *full,
                        enum dtype dtype, const int64_t *offset, int64_t unit) {
    (void)be;
    int64_t size = (int64_t)dtype_size(dtype);
    exchange_begin(g, OP_GATHER);
    copy_unless_same(g, byte_at(full, offset[g->rank] * unit * size), mine,
                     (size_t)((offset[g->rank + 1] - offset[g->rank]) * unit * size));
    gather_in_place(g, full, size, offset, unit);
}

static void host_reduce_scatter(const struct group *g, struct backend *be, const void *full,
                                void *mine, enum dtype dtype, const int64_t *offset, int64_t unit) {
    (void)be;
    exchange_begin(g, OP_REDUCE_SCATTER);
    scatter_reduce(g, full, mine, dtype, REDUCE_SUM, offset, unit);
}

/* rows x (columns of one member), packed, to their global places. */
static void columns_place(const struct tensor *full, int64_t first_row, int64_t rows,
                          const void *packed, const struct cut_part *part) {
    int64_t size = (int64_t)dtype_size(full->dtype);
    for (int64_t i = 0; i < rows; i++)
        for (int b = 0; b < part->n_blocks; b++) {
            if (part->count[b] == 0) continue;
            memcpy(byte_at(full->data, ((first_row + i) * full->ld + part->global[b]) * size),
                   byte_at(packed, (i * part->total + part->local[b]) * size),
                   (size_t)(part->count[b] * size));
        }
}

/* One round: `rows` rows of everybody's columns. A rank that holds nothing sends nothing. */
static void columns_round(const struct group *g, const struct tensor *local,
                          const struct tensor *full, const struct cut *cut, int64_t first_row,
                          int64_t rows, void *buffer) {
    int64_t size = (int64_t)dtype_size(full->dtype);
    const void *mine = byte_at(local->data, first_row * local->cols * size);
    int64_t used = 0;
    for (int q = 0; q < g->size; q++) {
        if (q == g->rank) continue;
        g->state->source[q] = byte_at(buffer, used);
        int64_t bytes = rows * cut_part(cut, g->size, q).total * size;
        exchange_recv(g, q, byte_at(buffer, used), (size_t)bytes);
        used += bytes;
    }
    for (int k = 1; k < g->size; k++)
        exchange_send(g, (g->rank + k) % g->size, mine, (size_t)(rows * local->cols * size));
    exchange_wait(g);
    g->state->source[g->rank] = mine;
    for (int q = 0; q < g->size; q++) {
        struct cut_part part = cut_part(cut, g->size, q);
        columns_place(full, first_row, rows, g->state->source[q], &part);
    }
}

static void host_gather_columns(const struct group *g, struct backend *be,
                                const struct tensor *local, const struct tensor *full,
                                const struct cut *cut) {
    (void)be;
    exchange_begin(g, OP_COLUMNS);
    int64_t row_bytes = (full->cols - local->cols) * (int64_t)dtype_size(full->dtype);
    int64_t widest = full->cols * (int64_t)dtype_size(full->dtype); /* alike on all members */
    int64_t step = widest == 0 ? full->rows : (int64_t)g->state->slab_bytes / widest;
    if (step < 1) step = 1;
    void *buffer = group_workspace(g, (size_t)(min64(step, full->rows) * row_bytes));
    if (g->grid->measuring) {
        exchange_count(g,
                       (g->size - 1) * full->rows * local->cols * (int64_t)dtype_size(full->dtype));
        return;
    }
    for (int64_t row = 0; row < full->rows; row += step)
        columns_round(g, local, full, cut, row, min64(step, full->rows - row), buffer);
}

const struct transport transport_host = {
    .name = "mpi over host memory",
    .allreduce = host_allreduce,
    .gather = host_gather,
    .reduce_scatter = host_reduce_scatter,
    .gather_columns = host_gather_columns,
};
