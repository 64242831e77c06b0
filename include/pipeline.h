/* pipeline: what crosses a cut (boundary, pure), and the runner that executes a schedule's list. */
#ifndef STRATA_PIPELINE_H
#define STRATA_PIPELINE_H

#include "model.h"
#include "schedule.h"

/* ---- boundary: a pure function of (stack, cut, micro-batch) -------------------------------------- */
#define STREAMS_MAX 4
struct stream {
    const char *name;
    int64_t rows, cols; /* of TP rank r of p: its rows under sequence parallelism, else all */
    enum dtype dtype;
    bool gradient; /* a gradient of this shape and type comes back */
};
/* Streams across the cut before layer `cut`; returns their number. */
int boundary_streams(const struct stack *s, int cut, const struct microbatch *mb, int p, int r,
                     enum dtype dtype, struct stream out[STREAMS_MAX]);

/* ---- messages ------------------------------------------------------------------------------------- */
struct message_header { /* 64 bytes, little endian */
    uint32_t magic;
    uint16_t version;
    uint8_t direction, stream;
    int64_t step;
    int32_t micro_batch, cut;
    int16_t source, destination; /* stages */
    uint8_t dtype, flags;
    uint16_t tp;
    int64_t rows;
    int32_t cols, reserved;
    int64_t payload_bytes;
    uint64_t descriptor_hash;
};
/* Compares every field; EXIT_INTERNAL with a sentence that prints both sides. */
int message_check(const struct message_header *got, const struct message_header *expected);

/* ---- where micro-batches come from ------------------------------------------------------------------ */
struct microbatch_source {
    void *arg;
    /* Descriptor of micro-batch k of this rank in the current step. */
    const struct microbatch *(*descriptor)(void *arg, int k);
    /* Device tables of it for this stage, from `arena` (stage_tables_layout), filled. Non-zero:
     * recorded error (a bad image), ends the job. */
    int (*tables)(void *arg, int k, struct backend *be, struct arena *arena,
                  struct batch_tables *out);
    double (*loss_scale)(void *arg, int k); /* factor of the head's gradient */
};

/* ---- the runner ---------------------------------------------------------------------------------------- */
struct pipeline_settings {
    enum schedule_kind schedule;
    int micro_batches; /* per step and data rank */
    bool overlap_p2p;  /* receives are posted one operation early */
    struct rng_key run_key;
};
/* Memory of one rank beside weights, gradients and states; exactly what pipeline_create takes. */
struct pipeline_memory {
    size_t slot_bytes; /* one micro-batch in flight: inputs and what backward needs */
    int n_slots;
    size_t act_recv_bytes, grad_recv_bytes, grad_send_bytes;
    int n_act_recv, n_grad_recv, n_grad_send;
    size_t scratch_bytes, workspace_bytes; /* workspace: of the collectives */
    double forward_flops, backward_flops;  /* of the micro-batch measured, attention included */
};
size_t pipeline_memory_bytes(const struct pipeline_memory *m);
/* Runs forward and backward of the largest micro-batch over the measuring backend. `st` must be
 * allocated in a measuring arena; `grid` a measuring grid with the rank's coordinates; its groups
 * then know the workspace. */
void pipeline_measure(struct stage *st, struct backend *measuring, const struct grid *grid, int P,
                      int stage, const struct pipeline_settings *settings,
                      const struct microbatch *largest, struct pipeline_memory *out);

struct pipeline;
/* Takes what `memory` says from `step` (slots, messages); scratch is its own arena. */
int pipeline_create(struct stage *st, struct backend *be, const struct grid *grid, int P, int stage,
                    const struct pipeline_settings *settings, const struct pipeline_memory *memory,
                    struct arena *step, struct arena *scratch, struct pipeline **out);
void pipeline_destroy(struct pipeline *pl);

struct pipeline_result {
    double *loss_sum;   /* [micro_batches], last stage: sum of row losses */
    int64_t *loss_rows; /* [micro_batches] */
    /* Generation: not NULL, the last stage writes logits there and takes no loss (struct pass). */
    const struct tensor *logits;
};
/* One step (gradient) or one evaluation pass (forward only, no dropout). Collective over this
 * rank's tp group and pp line. Gradients are added to the stage's. */
int pipeline_run(struct pipeline *pl, const struct microbatch_source *source, int64_t step,
                 bool gradient, const struct pipeline_result *result);

#endif
