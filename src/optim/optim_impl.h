/* What an optimizer holds between steps. */
#ifndef STRATA_OPTIM_IMPL_H
#define STRATA_OPTIM_IMPL_H

#include "optim.h"

/* A stretch of parameters that lie in the same order and distance in weights and gradients; between
 * stretches lie frozen parameters, which nobody gathers. */
struct stretch {
    int64_t weight_first; /* element of set->weights */
    int64_t *offset;      /* [D+1] where the DP shards begin, from weight_first */
};

struct optim {
    struct optim_settings settings;
    struct param_set *set;
    const struct group *tp, *dp, *world;
    struct backend *be;
    int *global_index; /* [set->n] */
    int n_global;
    double *
        table; /* [n_global+1] sums of squares; the last place counts non-finite ones; NULL in a plan */
    int64_t *shard;       /* [D+1] where the DP shards of the flat gradients begin */
    int64_t first, count; /* this rank's part of the flat gradients */
    struct stretch *stretch;
    int n_stretches;
    struct state_piece *piece;
    int64_t n_pieces;
    int64_t partial_elements; /* of all gradients marked partial_tp; 0 if T = 1 */
    void *partial;            /* device, acc */
    int64_t updates;
};

#endif
