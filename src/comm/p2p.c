/* Point to point between the stages of one pipeline line. */
#include <limits.h>
#include <string.h>

#include "comm_impl.h"

_Static_assert(sizeof(MPI_Request) <= sizeof(void *), "struct transfer holds an MPI_Request");

/* An empty message is one part, so that it arrives. */
static int count_parts(const struct grid *grid, size_t bytes) {
    size_t n = bytes / grid->part_bytes + (bytes % grid->part_bytes != 0);
    CHECK(n <= TRANSFER_PARTS_MAX, "a message of %zu bytes is longer than %d parts of %zu", bytes,
          TRANSFER_PARTS_MAX, grid->part_bytes);
    return n == 0 ? 1 : (int)n;
}

static void transfer_init(const struct grid *grid, int direction, bool sending, int stage, int tag,
                          size_t expected, struct transfer *t) {
    CHECK(direction == 0 || direction == 1, "direction %d", direction);
    CHECK(stage >= 0 && stage < grid->pipeline && stage != grid->pp, "stage %d of %d to stage %d",
          grid->pp, grid->pipeline, stage);
    CHECK(!t->active, "a transfer record with tag %d is in use", t->tag);
    *t = (struct transfer){.n_parts = count_parts(grid, expected),
                           .active = !grid->measuring,
                           .sending = sending,
                           .direction = direction,
                           .peer = stage,
                           .tag = tag,
                           .expected = expected};
    if (grid->measuring) t->bytes = expected;
}

static void request_store(struct transfer *t, int part, MPI_Request request) {
    memcpy(&t->request[part], &request, sizeof request);
}

void comm_send_begin(const struct grid *grid, int direction, int to_stage, int tag, const void *buf,
                     size_t bytes, struct transfer *t) {
    transfer_init(grid, direction, true, to_stage, tag, bytes, t);
    grid->state->p2p_bytes[direction] += (int64_t)bytes;
    grid->state->p2p_messages[direction]++;
    if (grid->measuring) return;
    for (int i = 0; i < t->n_parts; i++) {
        size_t first = (size_t)i * grid->part_bytes;
        size_t count = bytes - first < grid->part_bytes ? bytes - first : grid->part_bytes;
        MPI_Request request;
        mpi_check(MPI_Isend(byte_at(buf, (int64_t)first), (int)count, MPI_BYTE, to_stage, tag,
                            grid->p2p[direction], &request),
                  "MPI_Isend");
        request_store(t, i, request);
    }
}

void comm_recv_begin(const struct grid *grid, int direction, int from_stage, int tag, void *buf,
                     size_t expected, size_t capacity, struct transfer *t) {
    CHECK(expected <= capacity, "%zu bytes expected into a buffer of %zu", expected, capacity);
    transfer_init(grid, direction, false, from_stage, tag, expected, t);
    if (grid->measuring) return;
    for (int i = 0; i < t->n_parts; i++) {
        size_t first = (size_t)i * grid->part_bytes, count = grid->part_bytes;
        if (i == t->n_parts - 1) count = capacity - first;
        MPI_Request request;
        mpi_check(MPI_Irecv(byte_at(buf, (int64_t)first), count > INT_MAX ? INT_MAX : (int)count,
                            MPI_BYTE, from_stage, tag, grid->p2p[direction], &request),
                  "MPI_Irecv");
        request_store(t, i, request);
    }
}

static void part_arrived(struct transfer *t, int rc, MPI_Status *status) {
    if (rc != MPI_SUCCESS && !t->sending) {
        int class;
        MPI_Error_class(rc, &class);
        if (class == MPI_ERR_TRUNCATE)
            error_fatal(EXIT_INTERNAL,
                        "rank %d: the message of stage %d (%s, tag %d) is longer than the buffer "
                        "for it; %zu bytes were expected",
                        comm_world_rank(), t->peer, t->direction == 0 ? "activations" : "gradients",
                        t->tag, t->expected);
    }
    mpi_check(rc, "MPI_Test");
    int count = 0;
    if (!t->sending) MPI_Get_count(status, MPI_BYTE, &count);
    t->bytes += (size_t)count;
}

bool comm_test(struct transfer *t) {
    if (!t->active) return true;
    bool done = true;
    for (int i = 0; i < t->n_parts; i++) {
        MPI_Request request;
        MPI_Status status;
        int flag = 0;
        memcpy(&request, &t->request[i], sizeof request);
        if (request == MPI_REQUEST_NULL) continue;
        int rc = MPI_Test(&request, &flag, &status);
        if (rc != MPI_SUCCESS || flag) part_arrived(t, rc, &status);
        request_store(t, i, request);
        if (!flag) done = false;
    }
    if (!done) return false;
    t->active = false;
    if (t->sending) t->bytes = t->expected;
    return true;
}

_Noreturn static void transfer_timed_out(const struct grid *grid, const struct transfer *t,
                                         void (*describe)(void *arg, char *text, size_t size),
                                         void *arg) {
    char me[160], peer[160], what[512] = "";
    const struct group *pp = &grid->group[GROUP_PP];
    grid_describe_rank(grid, pp->world_rank[pp->rank], me, sizeof me);
    grid_describe_rank(grid, pp->world_rank[t->peer], peer, sizeof peer);
    if (describe != NULL) describe(arg, what, sizeof what);
    error_fatal(EXIT_HANG,
                "%s: stage %d waited more than %g s to %s %zu bytes of %s (tag %d) %s stage %d, "
                "%s%s%s; the limit is distributed_timeout_minutes",
                me, grid->pp, grid->timeout_seconds, t->sending ? "send" : "receive", t->expected,
                t->direction == 0 ? "activations" : "gradients", t->tag, t->sending ? "to" : "from",
                t->peer, peer, what[0] != '\0' ? ": " : "", what);
}

size_t comm_wait(const struct grid *grid, struct transfer *t,
                 void (*describe)(void *arg, char *text, size_t size), void *arg) {
    double start = clock_seconds();
    while (!comm_test(t))
        if (!comm_pause(start, grid->timeout_seconds)) transfer_timed_out(grid, t, describe, arg);
    return t->bytes;
}

int64_t comm_p2p_bytes(const struct grid *grid, int direction) {
    return grid->state->p2p_bytes[direction];
}

int64_t comm_p2p_messages(const struct grid *grid, int direction) {
    return grid->state->p2p_messages[direction];
}
