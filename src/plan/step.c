/* The step of a layout: what each stage holds and does, and the schedule's own lists on a virtual
 * clock. */
#include <stdlib.h>
#include <string.h>

#include "plan_impl.h"

static int survey_stage(const struct stack *s, const struct plan_layout *l,
                        const struct microbatch *mb, int pp, int first, struct stage_plan *out) {
    struct stage st;
    memset(out, 0, sizeof *out);
    out->first = first;
    out->end = out->first + (int)l->split[pp];
    TRY(stage_build(s, out->first, out->end, 1, 0, l->recompute, l->recompute_layers, &st));
    for (int i = 0; i < st.params.n; i++) {
        int64_t n = param_global_count(&st.params.param[i]);
        out->parameters += n;
        if (st.params.param[i].trainable) out->trainable += n;
    }
    out->flow = (struct schedule_flow){.backward = st.backward,
                                       .gradient_in = out->first > 0 && st.input_gradient,
                                       .gradient_out = st.output_gradient};
    plan_stage_cost(&st, mb, &out->cost);
    stage_free(&st);
    return 0;
}

static int simulate(const struct plan_layout *l, const struct schedule *list,
                    struct stage_plan *stage, struct step_plan *step) {
    int P = l->pp, M = l->pipeline.micro_batches;
    double *number = xcalloc(5 * (size_t)P, sizeof *number);
    double *forward = number, *backward = number + P, *idle = number + 2 * P;
    for (int r = 0; r < P; r++) {
        forward[r] = stage[r].cost.forward;
        backward[r] = stage[r].cost.backward;
    }
    struct schedule_cost cost = {.n_mb = 1,
                                 .forward = forward,
                                 .backward = backward,
                                 .act = number + 3 * P,
                                 .grad = number + 4 * P};
    int rc = schedule_simulate(P, M, list, &cost, &step->makespan, idle);
    double work = 0, slowest = 0;
    for (int r = 0; r < P; r++) {
        double one = forward[r] + backward[r];
        work += one;
        slowest = one > slowest ? one : slowest;
        stage[r].in_flight = list[r].in_flight;
        stage[r].idle = step->makespan > 0 ? idle[r] / step->makespan : 0;
    }
    step->bubble = step->makespan > 0 ? 1 - work * M / (P * step->makespan) : 0;
    step->imbalance = work > 0 ? slowest * P / work : 1;
    free(number);
    return rc;
}

int plan_step(const struct stack *s, const struct plan_layout *l, const struct microbatch *mb,
              struct stage_plan *stage, struct step_plan *step) {
    struct schedule *list = xcalloc((size_t)l->pp, sizeof *list);
    int rc = 0;
    memset(step, 0, sizeof *step);
    for (int r = 0; r < l->pp && rc == 0; r++) {
        rc = survey_stage(s, l, mb, r, r > 0 ? stage[r - 1].end : 0, &stage[r]);
        const struct schedule_flow *f = &stage[r].flow;
        if (rc == 0)
            rc = schedule_build(l->pipeline.schedule, l->pp, r, l->pipeline.micro_batches,
                                f->backward, f->gradient_in, f->gradient_out, false, &list[r]);
    }
    if (rc == 0) rc = simulate(l, list, stage, step);
    for (int r = 0; r < l->pp; r++) schedule_free(&list[r]);
    free(list);
    return rc;
}
