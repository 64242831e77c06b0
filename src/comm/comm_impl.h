/* Inside comm: grid and group records, the transport table, the bounded exchange under it. */
#ifndef STRATA_COMM_IMPL_H
#define STRATA_COMM_IMPL_H

#include <mpi.h>

#include "comm.h"

#define HOST_NAME_MAX_BYTES 64
/* The largest single MPI message: counts are int. */
#define MESSAGE_PART_BYTES ((size_t)1 << 30)
/* Up to so many bytes sent, an all-reduce gathers everything and sums on every rank: one round. */
#define DIRECT_BYTES ((size_t)32 << 10)
/* Larger sums receive in slabs, so that the workspace does not grow with the tensor. */
#define SLAB_BYTES ((size_t)4 << 20)
/* Host values travel through a buffer of the group itself. */
#define HOST_BYTES ((size_t)16 << 10)

/* One outstanding message of a collective: kept so that a time-out can say what is missing. */
struct message {
    int peer; /* rank in the group */
    bool sending;
    size_t bytes;
};

/* What changes under a `const struct group`. */
struct group_state {
    int64_t bytes, calls;
    size_t needed; /* largest workspace asked for */
    struct backend *be;
    void *workspace;
    size_t workspace_bytes;
    size_t slab_bytes, direct_bytes, host_bytes;
    void *host;
    const char *operation; /* of the collective in progress */
    int tag;
    int n_messages;
    MPI_Request *request;    /* [2 size] */
    MPI_Status *status;      /* [2 size] */
    struct message *message; /* [2 size] */
    int64_t *offset;         /* [size+1] */
    const void **source;     /* [size] */
};

struct group {
    const struct grid *grid;
    const struct transport *transport;
    enum group_id id;
    int rank, size;
    int *world_rank; /* [size]; NULL while measuring */
    MPI_Comm comm;   /* MPI_COMM_NULL while measuring */
    struct group_state *state;
};

struct grid_state {
    int64_t p2p_bytes[2], p2p_messages[2];
};

struct grid {
    int tensor, pipeline, data;
    int tp, pp, dp;    /* coordinates of this rank */
    bool pp_before_dp; /* use_tp_pp_dp_mapping */
    bool measuring;
    double timeout_seconds;
    size_t part_bytes; /* MESSAGE_PART_BYTES; tests make it small */
    struct group group[GROUP_COUNT];
    MPI_Comm p2p[2];                   /* duplicates of pp: activations, gradients */
    char (*host)[HOST_NAME_MAX_BYTES]; /* [world], NULL while measuring */
    int *node;                         /* [world], NULL while measuring */
    struct grid_state *state;
};

/* How device tensors of a group travel. The one here moves host memory by MPI, which is what the
 * CPU backend's device memory is; another kind of memory adds a table in a file of its own.
 * Part r of `full` is elements [offset[r] unit, offset[r+1] unit). Called with size > 1 only. On a
 * measuring group a transport follows no pointer: it counts bytes and asks for its workspace, in a
 * time that does not grow with the group. */
struct transport {
    const char *name;
    void (*allreduce)(const struct group *g, struct backend *be, void *data, int64_t n,
                      enum dtype dtype, enum reduce_op op);
    /* mine may lie in its place in full */
    void (*gather)(const struct group *g, struct backend *be, const void *mine, void *full,
                   enum dtype dtype, const int64_t *offset, int64_t unit);
    /* sum; mine may be its place in full */
    void (*reduce_scatter)(const struct group *g, struct backend *be, const void *full, void *mine,
                           enum dtype dtype, const int64_t *offset, int64_t unit);
    void (*gather_columns)(const struct group *g, struct backend *be, const struct tensor *local,
                           const struct tensor *full, const struct cut *cut);
};
extern const struct transport transport_host;

/* Operations of collectives; the value is the tag, so that members in different calls never match
 * each other's messages. */
enum operation {
    OP_ALLREDUCE = 1,
    OP_GATHER,
    OP_REDUCE_SCATTER,
    OP_COLUMNS,
    OP_BROADCAST,
    OP_BARRIER,
    OP_PASS,
    OP_COUNT
};

static inline void *byte_at(const void *base, int64_t bytes) {
    return (void *)((uintptr_t)base + (uintptr_t)bytes); /* base may be an address of no memory */
}

/* exchange.c: a round of messages between members, with one bounded wait at its end. Peers are
 * ranks in the group. Zero bytes are not sent. begin counts a call. */
void exchange_begin(const struct group *g, enum operation op);
/* Bytes that this rank would send, on a measuring group. */
void exchange_count(const struct group *g, int64_t bytes);
void exchange_send(const struct group *g, int peer, const void *data, size_t bytes);
void exchange_recv(const struct group *g, int peer, void *data, size_t bytes);
void exchange_signal(const struct group *g, int peer); /* an empty message each way */
void exchange_wait(const struct group *g);
/* Workspace of the group; CHECK names what is missing. NULL while measuring. */
void *group_workspace(const struct group *g, size_t bytes);

/* Between two polls: yields, later sleeps in proportion to the time waited since `start`. False
 * once `limit` seconds are over. */
bool comm_pause(double start, double limit);
/* Ends the job if rc is an MPI error. */
void mpi_check(int rc, const char *call);
/* "rank 5 (host a, tp 1 pp 0 dp 1)" */
void grid_describe_rank(const struct grid *grid, int world_rank, char *text, size_t size);
void grid_coordinates(const struct grid *grid, int world_rank, int *tp, int *pp, int *dp);
const char *group_name(const struct group *g);
int grid_world(const struct grid *grid);

/* reduce.c: out[i] = source[0][i] op source[1][i] op ..., in this order; fp32, fp64, int64. out may
 * be one of the sources. MAX hands a NaN on. */
void reduce_in_order(const void *const *source, int n_sources, void *out, int64_t n,
                     enum dtype dtype, enum reduce_op op);
/* transport_host.c: every member sends its n elements to all and sums; buffer holds (size-1) n. */
void allreduce_direct(const struct group *g, void *data, int64_t n, enum dtype dtype,
                      enum reduce_op op, void *buffer);

#endif
