/* comm: the Cartesian grid and its groups, collectives, point-to-point.
 *
 * Control and CPU tensors travel by MPI. All collectives give the same bits on every member: sums
 * run in natural rank order ((r0 + r1) + r2 ...). Every wait is bounded by the time-out given at
 * start; then the rank says what it waits for and ends the job with EXIT_HANG.
 */
#ifndef STRATA_COMM_H
#define STRATA_COMM_H

#include "backend.h"
#include "cpus.h"

struct grid;  /* W = T*P*D ranks */
struct group; /* the ranks that share all but some coordinates */

enum group_id { GROUP_TP, GROUP_PP, GROUP_DP, GROUP_MODEL /* tp x pp */, GROUP_WORLD, GROUP_COUNT };
enum reduce_op { REDUCE_SUM, REDUCE_MAX };

/* MPI_Init_thread(FUNNELED) / MPI_Finalize; installs MPI_Abort as the error hook, the log rank.
 * A program that never called comm_init (strata keys) must not call the rest. */
int comm_init(int *argc, char ***argv);
void comm_finalize(void);
/* Name and version of the MPI library, on any process. */
void comm_library_version(char *text, size_t size);
int comm_world_rank(void);
int comm_world_size(void);
/* What the ranks of this node leave of its cores and CPU quotas for this rank, whose limits are
 * `mine`. Collective over the world. */
struct cpu_share comm_cpu_share(const struct cpu_limits *mine);

/* Collective over the world. D = W/(T*P) must be exact: EXIT_USAGE names the product and the
 * nearest legal counts. */
int grid_create(int tensor, int pipeline, bool tp_pp_dp_mapping, double timeout_minutes,
                struct grid **grid);
/* A grid of one rank's view without any communication: for planning and tests. Its groups measure
 * (count bytes and workspace); (tp, pp, dp) are the coordinates to impersonate. */
struct grid *grid_create_measuring(int tensor, int pipeline, int data, bool tp_pp_dp_mapping,
                                   int tp, int pp, int dp);
void grid_destroy(struct grid *grid); /* before the backend that group_reserve took */
const struct group *grid_group(const struct grid *grid, enum group_id id);
int group_rank(const struct group *g);
int group_size(const struct group *g);
/* World rank of (tp, pp, dp). */
int grid_rank_at(const struct grid *grid, int tp, int pp, int dp);
bool group_measuring(const struct group *g);
/* Number of the machine a world rank runs on: ranks that can share memory have the same one. Numbers
 * follow the lowest ranks. A measuring grid takes them all to be on one. */
int grid_node(const struct grid *grid, int world_rank);
/* Device bytes of workspace that the calls made so far on a measuring group would need; reserve
 * takes that much once, before the first step (the calls below never allocate). */
size_t group_workspace_needed(const struct group *g);
void group_reserve(const struct group *g, struct backend *be, size_t bytes);
/* Bytes this rank sent so far, and number of calls. p ranks, B bytes: all-reduce 2 (p-1)/p B, all-gather
 * and reduce-scatter (p-1)/p B; an all-reduce of few bytes takes one round instead and sends
 * (p-1) B (the same at p = 2). A group of one sends nothing and counts no call. */
int64_t group_bytes(const struct group *g);
int64_t group_calls(const struct group *g);

/* Collective over g; all tensors contiguous device memory, fp32 or fp64 (working or acc dtype; a
 * measuring group counts bf16 and fp16 too).
 * Size 1: nothing happens but the copy from local to full where they differ. */
void comm_allreduce(const struct group *g, struct backend *be, const struct tensor *t,
                    enum reduce_op op);
/* Rows: rank r holds rows [offset[r], offset[r+1]) of full; offset has size+1 entries. */
void comm_gather_rows(const struct group *g, struct backend *be, const struct tensor *local,
                      const struct tensor *full, const int64_t *offset);
void comm_reduce_rows(const struct group *g, struct backend *be, const struct tensor *full,
                      const struct tensor *local, const int64_t *offset); /* sum, my rows */
/* Columns cut by `cut` over g: local [R, my columns] -> full [R, all columns] in global order. */
void comm_gather_columns(const struct group *g, struct backend *be, const struct tensor *local,
                         const struct tensor *full, const struct cut *cut);
/* Flat buffers: rank r owns elements [offset[r], offset[r+1]) of full (distributed optimizer). */
void comm_reduce_scatter_flat(const struct group *g, struct backend *be, void *full,
                              enum dtype dtype, const int64_t *offset); /* my part in place */
void comm_gather_flat(const struct group *g, struct backend *be, void *full, enum dtype dtype,
                      const int64_t *offset);
/* Host values, collective over g. */
void comm_allreduce_f64(const struct group *g, double *values, int64_t n, enum reduce_op op);
void comm_allreduce_i64(const struct group *g, int64_t *values, int64_t n, enum reduce_op op);
void comm_broadcast(const struct group *g, void *host, size_t bytes, int root);
void comm_gather(const struct group *g, const void *mine, size_t bytes, void *all); /* all-gather */
void comm_barrier(const struct group *g);
/* From one member to another, which both know the size; the others have no part in it. */
void comm_pass(const struct group *g, int from, int to, void *host, size_t bytes);
/* Do all members of g agree that rc == 0? Returns the largest rc on every member. */
int comm_vote(const struct group *g, int rc);

/* ---- point to point along the pipeline ------------------------------------------------------ */
#define TRANSFER_PARTS_MAX 8
struct transfer {
    int n_parts;
    void *request[TRANSFER_PARTS_MAX]; /* MPI_Request */
    bool active;
    bool sending;
    int direction, peer, tag; /* peer: stage */
    size_t expected;          /* sent, or announced to receive */
    size_t bytes;             /* moved so far: comm_test and comm_wait add */
};
/* A record is zero before its first use and may be used again once its transfer is done.
 * direction 0 activations, 1 gradients: communicators of their own. Peers are stages of this pp
 * line. buf is host-visible memory (CPU backend). A message longer than 2^31-1 bytes goes in
 * parts. A receive says how many bytes it expects (this fixes the number of parts) and how large its
 * buffer is: a wrong size arrives, up to the capacity, and is returned by wait. */
void comm_send_begin(const struct grid *grid, int direction, int to_stage, int tag, const void *buf,
                     size_t bytes, struct transfer *t);
void comm_recv_begin(const struct grid *grid, int direction, int from_stage, int tag, void *buf,
                     size_t expected, size_t capacity, struct transfer *t);
bool comm_test(struct transfer *t); /* done? drives progress; inactive counts as done */
/* Bounded wait. describe(arg, text, size) says what was waited for, used on time-out. */
size_t comm_wait(const struct grid *grid, struct transfer *t,
                 void (*describe)(void *arg, char *text, size_t size), void *arg);
int64_t comm_p2p_bytes(const struct grid *grid, int direction);
int64_t comm_p2p_messages(const struct grid *grid, int direction);

#endif
