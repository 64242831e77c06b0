/* schedule: the operations of a pipeline stage as data. Pure: no communication, no device.
 *
 * The runner executes a list, the planner simulates the same list, the tests check it.
 * Letters: P stages, r stage, M micro-batches per step, w warm-up (doc/architecture.md).
 */
#ifndef STRATA_SCHEDULE_H
#define STRATA_SCHEDULE_H

#include "base.h"

enum schedule_kind { SCHEDULE_LIST_1F1B, SCHEDULE_LIST_GPIPE };
enum op_kind {
    OP_RECV_ACT,  /* blocking: the activation of a micro-batch from stage r-1 */
    OP_FORWARD,   /* F */
    OP_SEND_ACT,  /* non-blocking: to stage r+1 */
    OP_RECV_GRAD, /* blocking: from stage r+1 */
    OP_BACKWARD,  /* B */
    OP_SEND_GRAD, /* non-blocking: to stage r-1 */
    OP_KIND_COUNT
};
const char *op_name(enum op_kind kind);

struct schedule_op {
    enum op_kind kind;
    int micro_batch;
};
struct schedule {
    int n_ops;
    struct schedule_op *op;
    int in_flight; /* largest number of micro-batches between their F and the end of their B, >= 1 */
};

/* What crosses the cuts of a stage (from the frozen flags). Gradients cross an output cut exactly
 * where the stage has a backward, but for the last stage, whose gradient starts in its own head. */
struct schedule_flow {
    bool backward;     /* the stage has a backward */
    bool gradient_in;  /* a gradient leaves through its input cut: it has SEND_GRAD */
    bool gradient_out; /* a gradient arrives through its output cut: it has RECV_GRAD */
};

/* The list of stage r. 1F1B: w = min(P-r-1, M) times (recv act, F, send act), then M-w times
 * (F; send act; recv grad; B; send grad; recv act of the next), then w times (recv grad, B, send
 * grad); at most min(P-r, M) in flight (arXiv 2104.04473). GPipe: all F, then all B; M in flight.
 * Backwards run in ascending order in both, so gradients add in one order. The first stage receives
 * no activation, the last sends none; a stage without backward, and forward_only, run F alone.
 * EXIT_INTERNAL if the arguments contradict each other. */
int schedule_build(enum schedule_kind kind, int P, int r, int M, bool backward, bool gradient_in,
                   bool gradient_out, bool forward_only, struct schedule *out);
void schedule_free(struct schedule *s);
/* What in_flight has to be. */
int schedule_in_flight(enum schedule_kind kind, int P, int r, int M, bool runs_backward);

/* Is list[0..P) a correct set? Each operation once; what an operation needs comes before it; F and
 * B ascending; the order of sends is the order of receives on every directed pair; all stages reach
 * the end with blocking receives and non-blocking sends, where a stage without B has two output
 * buffers (F(i) waits until i-2 was received); the peak in flight is the formula's and in_flight.
 * EXIT_INTERNAL with a sentence naming stage, operation and micro-batch. */
int schedule_check(enum schedule_kind kind, int P, int M, const struct schedule_flow *flow,
                   bool forward_only, const struct schedule *list);

/* Durations in any one unit. n_mb is 1 (all micro-batches alike) or M; entry r*n_mb + i. Stage
 * arrays have P stages; act[r] and grad[r] are the messages of the cut between stages r and r+1
 * (P-1 cuts; unused if P = 1). Messages of one cut and direction follow each other on the wire. */
struct schedule_cost {
    int n_mb;
    const double *forward, *backward;
    const double *act, *grad;
};
/* Runs the lists on a virtual clock. makespan: when the last stage is done; idle[P] (or NULL): the
 * time in it that a stage does not compute. EXIT_INTERNAL if the lists deadlock. */
int schedule_simulate(int P, int M, const struct schedule *list, const struct schedule_cost *cost,
                      double *makespan, double *idle);

#endif
