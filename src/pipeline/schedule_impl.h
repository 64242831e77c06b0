/* The virtual machine that runs the lists of all stages: for the simulation and the check. */
#ifndef STRATA_SCHEDULE_IMPL_H
#define STRATA_SCHEDULE_IMPL_H

#include "schedule.h"

struct machine {
    int P, M;
    const struct schedule *list;
    const struct schedule_cost *cost; /* NULL: everything takes no time */
    int *next;                        /* [P] operation a stage is at */
    int *waiting, n_waiting;          /* [P] stages that may be able to go on */
    int *is_waiting;                  /* [P] */
    bool *two_buffers;                /* [P] it has no B and sends: outputs alternate */
    double *clock, *busy;             /* [P] */
    double *arrival[2];               /* [P*M] of act (0) and grad (1) at stage r; < 0: not sent */
    double *taken;                    /* [P*M] when the activation sent by r was received; < 0 */
    double *wire_free[2];             /* [P] when the wire out of stage r is free again */
    void *memory;
};

/* Every operation of list must be one that stage r can do, with 0 <= micro_batch < M. */
void machine_init(struct machine *m, int P, int M, const struct schedule *list,
                  const struct schedule_cost *cost);
/* Runs until all stages are done (true) or none can go on (false). */
bool machine_run(struct machine *m);
/* The first stage that is not done, and what it waits for. */
int machine_stuck(const struct machine *m, struct schedule_op *op);
void machine_fini(struct machine *m);

/* Can stage r of P do this operation on one of M micro-batches? */
bool op_possible(const struct schedule_op *op, int P, int r, int M);

#endif
