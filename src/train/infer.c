/* A run with weights alone: what evaluation of a checkpoint and generation begin with. */
#include <stdlib.h>

#include "run_impl.h"

int train_infer_stack(const struct config *cfg, struct stack *s) {
    TRY(stack_build(cfg, s));
    s->sequence_parallel = false;
    return stack_freeze(s);
}

void train_infer_layout(const struct config *cfg, const int64_t *split, int micro_batches,
                        int64_t cache_rows, struct plan_layout *out) {
    plan_layout_from_config(cfg, split, out);
    out->pipeline.micro_batches = micro_batches;
    out->recompute = REPEAT_NOTHING;
    out->snapshot = false; /* nothing is saved */
    out->cache_rows = cache_rows;
}

int infer_grid(struct run *r, struct config *cfg) {
    TRY(setup_grid(r, cfg));
    TRY(train_resolve_vocabulary(cfg));
    return train_infer_stack(cfg, &r->stack);
}

int infer_stage(struct run *r, int micro_batches, int64_t cache_rows, const char *checkpoint) {
    const struct config_checkpoint *c = &r->cfg->checkpoint;
    const char *from = checkpoint != NULL ? checkpoint : c->load != NULL ? c->load : c->save;
    if (from == NULL) from = c->pretrained_checkpoint;
    if (from == NULL)
        return error_raise(EXIT_USAGE, "no checkpoint: name one behind the job file, or set "
                                       "[checkpoint] load, save or pretrained_checkpoint");
    TRY(setup_agree(r, train_split(r->cfg, &r->stack, r->largest, &r->split)));
    train_infer_layout(r->cfg, r->split, micro_batches, cache_rows, &r->layout);
    TRY(setup_agree(r, setup_stage(r)));
    return save_load_weights(r, from, &r->loaded);
}

/* ---- strata eval ------------------------------------------------------------------------------- */
static int evaluate(struct run *r, const char *checkpoint) {
    if (!train_has_data(r->cfg, DATA_VALID))
        return error_raise(EXIT_USAGE, "[data] valid_data_path is not set: there are no held-out "
                                       "data to evaluate on");
    TRY(train_open_data(r->cfg, DATA_VALID, r->grid, &r->valid));
    r->largest = train_largest_evaluated(r->cfg, r->valid, &r->stack);
    TRY(infer_stage(r, (int)r->cfg->derived.n_micro_batches, 0, checkpoint));
    TRY(setup_agree(r, evaluation_begin(r)));
    return evaluation_run(r, true);
}

int train_evaluate(struct config *cfg, const char *checkpoint) {
    struct run r;
    TRY(infer_grid(&r, cfg));
    TRY(evaluate(&r, checkpoint)); /* after an error memory is left: others may be in a message */
    run_end(&r);
    return 0;
}
