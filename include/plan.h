/* plan: what a rank will need and do, computed by the code that will need and do it, over the
 * measuring backend. Allocates nothing on a device; `strata check` prints it and `train` takes
 * exactly these bytes. */
#ifndef STRATA_PLAN_H
#define STRATA_PLAN_H

#include "optim.h"
#include "partition.h"
#include "pipeline.h"

/* Bytes by kind. */
struct rank_plan {
    int tp, pp, dp;
    int first, end;     /* layers */
    int64_t parameters; /* held by this rank, shards of cut tensors */
    int64_t trainable;
    size_t weights, gradients, tables, optimizer; /* of the life of the run */
    size_t caches, logits; /* of generation, life of the run too: keys and values, one row */
    size_t activations;    /* slots of the micro-batches in flight */
    size_t messages, scratch, workspace;
    size_t snapshot;                     /* host copy of what this rank saves, with async_save */
    size_t group_workspace[GROUP_COUNT]; /* of the collectives of each group; sum: workspace */
    struct pipeline_memory pipeline;
};
/* weights + gradients + tables + optimizer + caches + logits */
size_t rank_plan_life(const struct rank_plan *p);
size_t rank_plan_step(const struct rank_plan *p); /* activations + messages */
size_t rank_plan_total(const struct rank_plan *p);

struct plan_layout { /* one grid and what runs on it */
    int tp, pp, dp;
    bool tp_pp_dp;        /* rank order */
    const int64_t *split; /* [pp] */
    enum dtype dtype;
    enum recompute recompute;
    int64_t recompute_layers;
    int64_t cache_rows; /* generation: longest sequence, 0: no caches, no row of logits */
    struct pipeline_settings pipeline;
    struct optim_settings optim;
    bool snapshot, save_moments; /* async_save; the optimizer's state is saved too */
    const int *writer;           /* [ranks] who writes for each world rank; NULL: each for itself */
};
/* The layout that a checked job file describes (config_check_world was called). split: resolved. */
void plan_layout_from_config(const struct config *cfg, const int64_t *split,
                             struct plan_layout *out);
/* EXIT_USAGE if what a plan counts for this model and micro-batch might not fit into 64 bits; comes
 * before all that follows here. */
int plan_check_size(const struct config *cfg, const struct stack *s, const struct microbatch *mb);
/* Memory of one rank when `largest` is the largest micro-batch. EXIT_USAGE where a tensor cannot be
 * cut that often. */
int plan_rank(const struct stack *s, const struct plan_layout *layout, int tp, int pp, int dp,
              const struct microbatch *largest, struct rank_plan *out);
/* The same of all ranks of the grid, out[] by world rank. What ranks have alike is measured once: the
 * time grows with the ranks and with the layers, not with their product. */
int plan_ranks(const struct stack *s, const struct plan_layout *layout,
               const struct microbatch *largest, struct rank_plan *out);

/* FLOPs of each layer for one micro-batch with TP = 1, forward and backward as the frozen flags
 * have it: matrix products and visible attention pairs, counted from the layers' own code. The
 * projector's two layers, which no cut parts, are counted on the first. The head's two gradient
 * products run in its forward and count there. `how` REPEAT_UNIFORM: the backward of a layer runs
 * its forward once more; REPEAT_BLOCK, which depends on the cuts, counts as REPEAT_NOTHING. */
struct layer_cost {
    double forward, backward;
};
int plan_layer_costs(const struct stack *s, const struct microbatch *mb, enum recompute how,
                     struct layer_cost *cost);
/* split_spec = auto: exact min-max partition of forward + backward. split[pp] is written. */
int plan_split(const struct stack *s, const struct microbatch *mb, enum recompute how, int pp,
               int64_t *split);

/* What a stage holds and does; parameters and FLOPs as with TP = 1, of one micro-batch,
 * recomputation in the backward. */
struct stage_plan {
    int first, end; /* layers */
    int64_t parameters, trainable;
    struct layer_cost cost;
    struct schedule_flow flow;
    int in_flight; /* micro-batches between their forward and the end of their backward */
    double idle;   /* share of the step in which the stage does not compute */
};
/* One step of the layout's schedule, all micro-batches like mb, messages free of charge. */
struct step_plan {
    double makespan;  /* FLOPs that one stage could have done in the time of the step */
    double bubble;    /* share of it that stages wait, on average: 1 - work / (P makespan) */
    double imbalance; /* slowest stage / mean */
};
/* stage[layout->pp] is written. */
int plan_step(const struct stack *s, const struct plan_layout *layout, const struct microbatch *mb,
              struct stage_plan *stage, struct step_plan *step);

/* A descriptor of the largest micro-batch when no data set is at hand: every sample has one image of
 * the most tiles there can be and fills decoder_seq_length, every row behind a single tile is a
 * target. Owned by the caller: free with plan_microbatch_free. */
struct microbatch *plan_microbatch_worst(const struct stack *s, int64_t samples,
                                         int64_t seq_length);
/* The same from sizes: `samples` segments, together `tokens` rows, the longest max_segment; images of
 * one tile. */
struct microbatch *plan_microbatch_sized(const struct stack *s, int64_t samples, int64_t images,
                                         int64_t tokens, int64_t max_segment, int64_t targets);
/* From samples, images, tiles, tokens, newlines, max_segment and targets of `sizes`. */
struct microbatch *plan_microbatch_of(const struct stack *s, const struct microbatch *sizes);
void plan_microbatch_free(struct microbatch *mb);

#endif
