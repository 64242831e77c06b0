/* The training loop. */
#include <math.h>
#include <string.h>

#include "run_impl.h"
#include "fault.h"

static const struct group *world(const struct run *r) {
    return grid_group(r->grid, GROUP_WORLD);
}

static double useful_flops(const struct backend *be) {
    return be->gemm_flops + be->attention_flops - be->repeated_flops;
}

/* Loss of the step on every rank, and with it the FLOPs of this pass, `flops` on this rank. Only the
 * last stage's first TP rank contributes a loss; adding the zeros of the others is exact, and dp parts
 * are added in rank order. */
static int sum_loss(struct run *r, double flops, struct step_numbers *numbers) {
    const struct config *c = r->cfg;
    bool contributes = r->last_stage && group_rank(grid_group(r->grid, GROUP_TP)) == 0;
    struct microbatch_source source = batcher_source(r->batcher);
    double sum[3] = {0, 0, flops};
    for (int k = 0; contributes && k < r->layout.pipeline.micro_batches; k++) {
        double factor =
            c->training.calculate_per_token_loss ? 1.0 : source.loss_scale(r->batcher, k);
        sum[0] += factor * r->result.loss_sum[k];
        sum[1] += (double)r->result.loss_rows[k];
    }
    comm_allreduce_f64(world(r), sum, 3, REDUCE_SUM);
    int64_t n = batcher_targets(r->batcher);
    if ((int64_t)sum[1] != n)
        return error_raise(EXIT_INTERNAL, "step %lld counted %lld target rows, the index says %lld",
                           (long long)r->at.step + 1, (long long)sum[1], (long long)n);
    numbers->loss = n == 0                                 ? 0.0
                    : c->training.calculate_per_token_loss ? sum[0] / (double)n
                                                           : sum[0];
    numbers->flops += sum[2];
    return 0;
}

static double base_rate(const struct run *r, enum param_group g) {
    const struct config *c = r->cfg;
    return g == PARAM_PROJECTOR ? c->optimizer.projector_lr
           : g == PARAM_VISION  ? c->optimizer.vision_lr
                                : c->optimizer.lr;
}

static int update(struct run *r, struct step_numbers *n) {
    int64_t count = r->cfg->derived.lr_by_samples ? r->at.consumed_samples : r->at.step;
    struct optim_input in = {.grad_scale = 1.0};
    if (r->cfg->training.calculate_per_token_loss && n->targets > 0)
        in.grad_scale = 1.0 / (double)n->targets;
    for (int g = 0; g < OPTIM_GROUPS; g++)
        in.lr[g] = lr_at(&r->schedule, base_rate(r, (enum param_group)g), count);
    n->lr = in.lr[PARAM_LANGUAGE];
    struct optim_result out = {.finite = true};
    fault_point("step.update.before");
    if (n->targets > 0) TRY(optim_step(r->optim, &in, &out));
    fault_point("step.update.after");
    n->finite = out.finite;
    n->grad_norm = out.grad_norm;
    return 0;
}

static int one_pass(struct run *r, struct step_numbers *n) {
    struct microbatch_source source = batcher_source(r->batcher);
    struct param_set *set = &r->stage.params;
    r->be->ops->zero(r->be, set->grads, (size_t)set->grad_elements * dtype_size(r->be->acc));
    double flops = useful_flops(r->be);
    fault_point("step.pipeline.before");
    TRY(pipeline_run(r->pipeline, &source, r->at.step, true, &r->result));
    fault_point("step.pipeline.after");
    TRY(sum_loss(r, useful_flops(r->be) - flops, n));
    fault_point("step.loss.after");
    n->finite = isfinite(n->loss);
    n->grad_norm = NAN;
    return n->finite ? update(r, n) : 0;
}

/* A step that is not finite is run once more: a passing fault of the machine does not come back. */
static int run_step(struct run *r, struct step_numbers *n) {
    memset(n, 0, sizeof *n);
    double start = clock_seconds();
    bool more = r->at.step + 1 < r->cfg->derived.train_iters;
    fault_point("step.data.before");
    batcher_begin_step(r->batcher, r->at.step, r->at.consumed_samples, more);
    fault_point("step.data.after");
    n->targets = batcher_targets(r->batcher);
    n->tokens = batcher_tokens(r->batcher);
    n->images = batcher_images(r->batcher);
    TRY(one_pass(r, n));
    if (!n->finite) {
        log_info("step %lld is not finite (loss %g, gradient norm %g): running it again",
                 (long long)r->at.step + 1, n->loss, n->grad_norm);
        TRY(one_pass(r, n));
    }
    n->seconds = clock_seconds() - start;
    if (!n->finite)
        return error_raise(EXIT_NUMERIC,
                           "step %lld is not finite, twice: loss %g, gradient norm %g; the weights "
                           "are those of step %lld ([training] on_nan = stop)",
                           (long long)r->at.step + 1, n->loss, n->grad_norm, (long long)r->at.step);
    return 0;
}

static void advance(struct run *r, const struct step_numbers *n) {
    r->at.step++;
    r->at.consumed_samples += r->cfg->training.global_batch_size;
    r->at.consumed_tokens += n->tokens;
    r->at.epoch = r->at.consumed_samples / dataset_count(r->data);
    r->at.index = r->at.consumed_samples % dataset_count(r->data);
    r->at.optimizer_step = optim_updates(r->optim);
    if (n->targets == 0) r->at.skipped_iterations++;
}

static bool multiple(int64_t step, int64_t interval) {
    return interval > 0 && step % interval == 0;
}

/* Nothing follows that would try again: a save that failed is repeated until save_max_failures. */
static int save_last(struct run *r) {
    do TRY(save_checkpoint(r, true));
    while (r->ckpt.save != NULL && r->last_saved != r->at.step);
    return 0;
}

static int finish(struct run *r, const char *state, int exit_code, const char *reason) {
    fault_point("finish.before");
    TRY(save_last(r));
    fault_point("finish.saved");
    TRY(report_status(r, state, exit_code, reason));
    fault_point("finish.told");
    save_report(r);
    log_info("%s after step %lld of %lld: %s", state, (long long)r->at.step,
             (long long)r->cfg->derived.train_iters, reason);
    return exit_code;
}

int run_steps(struct run *r) {
    const struct config *c = r->cfg;
    bool busy;
    if (stop_wanted(r, &busy) == STOP_FINISH)
        return finish(r, "stopped", EXIT_OK, "a STOP file is there");
    save_clock_begin(r);
    while (r->at.step < c->derived.train_iters) {
        struct step_numbers n;
        TRY(run_step(r, &n));
        fault_point("step.advance.before");
        advance(r, &n);
        fault_point("step.report.before");
        TRY(report_step(r, &n));
        fault_point("step.report.after");
        if (multiple(r->at.step, c->training.check_weight_hash_across_dp_replicas_interval))
            TRY(replica_check(r));
        fault_point("save.ask.before");
        enum stop_level level = stop_wanted(r, &busy);
        TRY(save_go_on(r, busy));
        fault_point("save.ask.after");
        bool last = r->at.step == c->derived.train_iters;
        if (last || multiple(r->at.step, c->eval.eval_interval)) TRY(evaluation_run(r, last));
        if (!last && (level == STOP_SAVE || multiple(r->at.step, c->checkpoint.save_interval)))
            TRY(save_checkpoint(r, false));
        if (last) break;
        if (level == STOP_FINISH) return finish(r, "stopped", EXIT_OK, "asked to stop");
        if (level == STOP_AGAIN)
            return finish(r, "interrupted", EXIT_AGAIN, "a signal or the time limit");
        if (multiple(r->at.step, c->training.exit_interval))
            return finish(r, "stopped", EXIT_OK, "exit_interval reached");
    }
    return finish(r, "finished", EXIT_OK, "all steps done");
}

int train_run(struct config *cfg) {
    struct run r;
    int rc = run_begin(&r, cfg);
    if (rc == 0) rc = run_steps(&r);
    if (rc == EXIT_NUMERIC) save_wait(&r); /* all ranks are here: what is being written is good */
    if (rc != 0 && rc != EXIT_AGAIN) {
        report_status(&r, "failed", rc, error_text());
        ckpt_unlock(&r.lock_second);
        ckpt_unlock(&r.lock); /* a start on another host could not tell that this one is over */
        return rc;            /* memory is left: other ranks may still be inside a message */
    }
    run_end(&r);
    return rc;
}
