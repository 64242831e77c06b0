/* optim: learning rates, gradient reduction, clipping, AdamW and SGD, sharded optimizer states.
 *
 * Works on a param_set: its flat gradients and flat weights. Weights of fp32 or fp64 are their own
 * master copy; narrower ones have a master in the acc dtype beside m and v, planned but not yet
 * updated. Letters: D data size, T tensor size, N target rows of the global batch.
 */
#ifndef STRATA_OPTIM_H
#define STRATA_OPTIM_H

#include "nn.h"

/* ---- learning rate ---------------------------------------------------------------------------
 * A pure function of the count s (iterations or samples done; the first update uses s = 0). */
enum lr_style { LR_CONSTANT, LR_LINEAR, LR_COSINE, LR_INVERSE_SQRT, LR_WSD };
enum lr_wsd_style { LR_WSD_EXPONENTIAL, LR_WSD_LINEAR, LR_WSD_COSINE, LR_WSD_MINUS_SQRT };
struct lr_schedule {
    enum lr_style style;
    enum lr_wsd_style wsd_style;
    double init;       /* rate at s = 0 of the warm-up */
    double min;        /* rate from s > decay on */
    int64_t warmup;    /* W */
    int64_t decay;     /* L, warm-up included */
    int64_t wsd_decay; /* A: length of the last phase of WSD */
};
/* With x = (s-W)/(L-W): s <= W (if W > 0): init + (base-init) s/W; constant: base; s > L: min;
 * inverse square root: max(min, base sqrt(max(W,1)/s)); else min + c (base-min) with c = 1-x, or
 * (1+cos pi x)/2; WSD: c = 1 until L-A, then with y = (s-L+A)/A: 2*0.5^y-1, 1-y, (1+cos pi y)/2,
 * 1-sqrt y. base is the rate of the parameter group. */
double lr_at(const struct lr_schedule *s, double base, int64_t count);
/* fraction * decay, rounded up; what differs from a whole number by rounding only is that number. */
int64_t lr_warmup_of_fraction(double fraction, int64_t decay);
/* EXIT_USAGE, one sentence per violated rule. key: the job-file key of base, for the sentence. */
int lr_schedule_check(const struct lr_schedule *s, double base, const char *key);

/* ---- optimizer ------------------------------------------------------------------------------ */
enum optim_kind { OPTIM_ADAM /* AdamW, arXiv 1711.05101 */, OPTIM_SGD };
struct optim_settings {
    enum optim_kind kind;
    double beta1, beta2, eps; /* Adam */
    double momentum;          /* SGD */
    double weight_decay;      /* of parameters with param.decay */
    double clip_grad;         /* largest global norm; 0: no clipping */
    bool distributed;         /* states sharded over DP: each rank updates its part */
};
struct optim;

/* set is laid out (param_set_layout); global_index[set->n] is the number of each parameter in the
 * whole stack, the same on every rank that holds it, below n_global. No device memory yet.
 * The shard of a DP rank is a contiguous range of the flat gradients, as even as possible; it may
 * end inside a parameter. set, grid must outlive the optimizer. */
int optim_create(const struct optim_settings *settings, struct param_set *set,
                 const int *global_index, int n_global, const struct grid *grid,
                 struct optim **out);
/* Takes states and workspace from `arena`, zeroes the states; a measuring arena counts the same
 * bytes. EXIT_UNAVAILABLE where the working dtype is not fp32 or fp64, unless arena measures. */
int optim_layout(struct optim *o, struct backend *be, struct arena *arena);
void optim_destroy(struct optim *o);

#define OPTIM_GROUPS 3 /* enum param_group */
struct optim_input {
    double grad_scale; /* factor of all gradients: 1/N, with 1/loss_scale; finite, > 0 */
    double lr[OPTIM_GROUPS];
};
struct optim_result {
    bool finite;        /* all gradients were; if not, nothing was updated */
    double grad_norm;   /* global, after grad_scale, before clipping; not finite if !finite */
    double clip_factor; /* min(1, clip_grad/(grad_norm + 1e-6)) */
};
/* One update. Collective over the world. set->grads holds this rank's sums over its micro-batches
 * and is used up. In this order (each sum in natural rank order):
 *   1 sum over tp of the gradients marked partial_tp, in one flat call. Before the dp sum, since
 *     shards of tp peers do not begin at the same parameter where cuts are uneven;
 *   2 sum over dp: all-reduce, or reduce-scatter if distributed;
 *   3 sums of squares per parameter in double, into a table indexed by global parameter number, in
 *     which each logical element counts once, with one place for the non-finite flag; the table is
 *     summed over the world and added in its order, so the norm does not depend on the cuts;
 *   4 update of this rank's part with the factor grad_scale * clip_factor; weights gathered.
 * Without clipping sharded and unsharded states give the same bits; with it, the norm of a parameter
 * that lies on two shards differs by the rounding of a double. */
int optim_step(struct optim *o, const struct optim_input *in, struct optim_result *out);

/* What this rank owns, ascending; the array lives in the optimizer. Not distributed: every DP rank
 * owns everything. m and v are NULL before optim_layout. */
const struct state_piece *optim_pieces(const struct optim *o, int64_t *n);
/* Updates done so far: t of the bias correction 1 - beta^t. */
int64_t optim_updates(const struct optim *o);
void optim_set_updates(struct optim *o, int64_t updates);

#endif
