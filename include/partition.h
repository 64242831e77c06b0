/* partition: cutting a row of layers into stages so that the dearest stage is as cheap as can be. */
#ifndef STRATA_PARTITION_H
#define STRATA_PARTITION_H

#include "base.h"

/* Exact minimum over all legal splits of the largest stage cost, in O(n) time and memory.
 * cost[n_layers] >= 0, any unit. cut_allowed[n_layers+1]: may a cut have that many layers before it?
 * Entries 0 and n_layers are not read. layers_per_stage[P] >= 1. Among equal splits the one whose
 * list of counts is lexicographically smallest. Equal means equal as doubles: with integer costs
 * whose sum is below 2^53 the answer is exact.
 * EXIT_USAGE if no legal split has P stages. */
int plan_partition(const double *cost, int n_layers, const bool *cut_allowed, int P,
                   int64_t *layers_per_stage);

#endif
