/* Shared by the files of the planner. */
#ifndef STRATA_PLAN_IMPL_H
#define STRATA_PLAN_IMPL_H

#include "checkpoint.h"
#include "plan.h"

/* Layers before stage pp. */
int plan_first_layer(const struct plan_layout *l, int pp);
/* FLOPs of a stage built with TP = 1. */
void plan_stage_cost(struct stage *st, const struct microbatch *mb, struct layer_cost *out);

#endif
