/* A round of messages inside a collective and the bounded wait that ends it. */
#include <stdio.h>
#include <string.h>

#include "comm_impl.h"

static const char *const operation_name[OP_COUNT] = {
    [OP_ALLREDUCE] = "all-reduce",
    [OP_GATHER] = "all-gather",
    [OP_REDUCE_SCATTER] = "reduce-scatter",
    [OP_COLUMNS] = "all-gather of columns",
    [OP_BROADCAST] = "broadcast",
    [OP_BARRIER] = "barrier",
    [OP_PASS] = "hand-over",
};

void exchange_begin(const struct group *g, enum operation op) {
    struct group_state *s = g->state;
    s->operation = operation_name[op];
    s->tag = (int)op;
    s->calls++;
    s->n_messages = 0;
}

static MPI_Request *message_add(const struct group *g, int peer, bool sending, size_t bytes) {
    struct group_state *s = g->state;
    CHECK(peer >= 0 && peer < g->size && peer != g->rank, "peer %d of %d", peer, g->size);
    CHECK(s->n_messages < 2 * g->size && bytes <= MESSAGE_PART_BYTES, "%d messages, %zu bytes",
          s->n_messages, bytes);
    s->message[s->n_messages] = (struct message){.peer = peer, .sending = sending, .bytes = bytes};
    return &s->request[s->n_messages++];
}

void exchange_count(const struct group *g, int64_t bytes) {
    g->state->bytes += bytes;
}

void exchange_send(const struct group *g, int peer, const void *data, size_t bytes) {
    g->state->bytes += (int64_t)bytes;
    if (bytes == 0 || g->grid->measuring) return;
    mpi_check(MPI_Isend(data, (int)bytes, MPI_BYTE, peer, g->state->tag, g->comm,
                        message_add(g, peer, true, bytes)),
              "MPI_Isend");
}

void exchange_recv(const struct group *g, int peer, void *data, size_t bytes) {
    if (bytes == 0 || g->grid->measuring) return;
    mpi_check(MPI_Irecv(data, (int)bytes, MPI_BYTE, peer, g->state->tag, g->comm,
                        message_add(g, peer, false, bytes)),
              "MPI_Irecv");
}

void exchange_signal(const struct group *g, int peer) {
    if (g->grid->measuring) return;
    int tag = g->state->tag;
    mpi_check(MPI_Irecv(NULL, 0, MPI_BYTE, peer, tag, g->comm, message_add(g, peer, false, 0)),
              "MPI_Irecv");
    mpi_check(MPI_Isend(NULL, 0, MPI_BYTE, peer, tag, g->comm, message_add(g, peer, true, 0)),
              "MPI_Isend");
}

/* The sentence names at most this many messages. */
#define MISSING_SHOWN 4

_Noreturn static void exchange_timed_out(const struct group *g) {
    struct group_state *s = g->state;
    char missing[1024] = "", me[160], peer[160];
    size_t used = 0;
    int n_missing = 0;
    for (int i = 0; i < s->n_messages; i++) {
        int done = 0;
        MPI_Test(&s->request[i], &done, MPI_STATUS_IGNORE);
        if (done || n_missing++ >= MISSING_SHOWN) continue;
        const struct message *m = &s->message[i];
        grid_describe_rank(g->grid, g->world_rank[m->peer], peer, sizeof peer);
        int n = snprintf(missing + used, sizeof missing - used, "%s%zu bytes %s %s",
                         used > 0 ? ", " : "", m->bytes, m->sending ? "to" : "from", peer);
        used = n < 0 || used + (size_t)n >= sizeof missing ? sizeof missing - 1 : used + (size_t)n;
    }
    grid_describe_rank(g->grid, g->world_rank[g->rank], me, sizeof me);
    error_fatal(EXIT_HANG,
                "%s: %s of group %s (%d ranks, call %lld) waited more than %g s; %d of %d messages "
                "are missing: %s%s; the limit is distributed_timeout_minutes",
                me, s->operation, group_name(g), g->size, (long long)s->calls,
                g->grid->timeout_seconds, n_missing, s->n_messages, missing,
                n_missing > MISSING_SHOWN ? ", ..." : "");
}

/* Members that disagree about a size are in different calls: our own bug. */
static void exchange_check(const struct group *g, int rc) {
    struct group_state *s = g->state;
    for (int i = 0; i < s->n_messages; i++) {
        const struct message *m = &s->message[i];
        if (m->sending) continue;
        int error = rc == MPI_ERR_IN_STATUS ? s->status[i].MPI_ERROR : MPI_SUCCESS, count = -1;
        if (error == MPI_ERR_PENDING) continue;
        if (error == MPI_SUCCESS) MPI_Get_count(&s->status[i], MPI_BYTE, &count);
        CHECK(error == MPI_SUCCESS && count == (int)m->bytes,
              "%s of group %s: rank %d sent another size than the %zu bytes rank %d expects",
              s->operation, group_name(g), g->world_rank[m->peer], m->bytes,
              g->world_rank[g->rank]);
    }
}

void exchange_wait(const struct group *g) {
    struct group_state *s = g->state;
    double start = clock_seconds();
    for (int done = 0; !done;) {
        int rc = MPI_Testall(s->n_messages, s->request, &done, s->status);
        if (rc != MPI_SUCCESS) {
            exchange_check(g, rc);
            mpi_check(rc, s->operation);
        }
        if (!done && !comm_pause(start, g->grid->timeout_seconds)) exchange_timed_out(g);
    }
    exchange_check(g, MPI_SUCCESS);
    s->n_messages = 0;
}

void *group_workspace(const struct group *g, size_t bytes) {
    struct group_state *s = g->state;
    if (bytes > s->needed) s->needed = bytes;
    if (g->grid->measuring) return NULL;
    CHECK(bytes <= s->workspace_bytes,
          "%s of group %s needs %zu bytes of workspace, %zu more than the %zu reserved",
          s->operation, group_name(g), bytes, bytes - s->workspace_bytes, s->workspace_bytes);
    return s->workspace;
}
