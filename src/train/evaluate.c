/* Evaluation: the loss on the held-out data of valid_data_path, forward only, without dropout, in the
 * layout of the training. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "run_impl.h"

#define VALIDATION_HEADER                                                                          \
    "iteration,consumed_samples,lm_loss,perplexity,target_tokens,samples,elapsed_ms"

struct evaluation {
    double loss, perplexity, seconds;
    int64_t targets, samples;
};

int evaluation_begin(struct run *r) {
    if (r->valid == NULL || r->cfg->eval.eval_iters == 0) return 0;
    struct batcher_settings s = setup_batcher(r);
    s.limit = dataset_count(r->valid); /* the last step is filled up with samples seen before */
    TRY(batcher_create(&s, r->valid, &r->stack, &r->valid_batcher));
    batcher_attach(r->valid_batcher, &r->stage, r->largest);
    return 0;
}

int evaluation_report(struct run *r) {
    if (!r->first_rank) return 0;
    if (r->valid_batcher == NULL && !table_exists(r->cfg->run.run_dir, "validation.csv")) return 0;
    return table_open(r->cfg->run.run_dir, "validation.csv", VALIDATION_HEADER, r->at.step,
                      &r->validation);
}

void evaluation_end(struct run *r) {
    batcher_destroy(r->valid_batcher);
    if (r->validation != NULL) fclose(r->validation);
    r->validation = NULL;
}

/* The first TP rank of each last stage speaks, as for the loss of a step. */
static int measure(struct run *r, struct evaluation *e) {
    int64_t per_step = r->cfg->training.global_batch_size,
            steps = train_eval_steps(r->cfg, r->valid);
    bool speaks = r->last_stage && group_rank(grid_group(r->grid, GROUP_TP)) == 0;
    struct microbatch_source source = batcher_source(r->valid_batcher);
    double sum[2] = {0, 0}, start = clock_seconds();
    for (int64_t i = 0; i < steps; i++) {
        batcher_begin_step(r->valid_batcher, i, i * per_step, i + 1 < steps);
        e->targets += batcher_targets(r->valid_batcher);
        TRY(pipeline_run(r->pipeline, &source, i, false, &r->result));
        for (int k = 0; speaks && k < r->layout.pipeline.micro_batches; k++) {
            sum[0] += r->result.loss_sum[k];
            sum[1] += (double)r->result.loss_rows[k];
        }
    }
    comm_allreduce_f64(grid_group(r->grid, GROUP_WORLD), sum, 2, REDUCE_SUM);
    if ((int64_t)sum[1] != e->targets)
        return error_raise(EXIT_INTERNAL,
                           "the evaluation counted %" PRId64
                           " target rows, the index says %" PRId64,
                           (int64_t)sum[1], e->targets);
    int64_t all = dataset_count(r->valid);
    e->samples = steps * per_step < all ? steps * per_step : all;
    e->loss = e->targets == 0 ? 0.0 : sum[0] / (double)e->targets;
    e->perplexity = exp(e->loss < 20 ? e->loss : 20);
    e->seconds = clock_seconds() - start;
    return 0;
}

/* Megatron-LM's lines. */
static void log_lines(const struct run *r, const struct evaluation *e, bool last) {
    char line[256], dashes[256];
    int n = snprintf(line, sizeof line,
                     " validation loss at iteration %" PRId64
                     "%s | lm loss value: %.6E | lm loss PPL: %.6E | ",
                     r->at.step, last ? " on validation set" : "", e->loss, e->perplexity);
    memset(dashes, '-', sizeof dashes);
    log_info("%.*s", n + 1, dashes);
    log_info("%s", line);
    log_info("%.*s", n + 1, dashes);
}

int evaluation_run(struct run *r, bool last) {
    if (r->valid_batcher == NULL) return 0;
    struct evaluation e = {0};
    TRY(measure(r, &e));
    log_lines(r, &e, last);
    if (r->validation == NULL) return 0;
    int done = fprintf(r->validation,
                       "%" PRId64 ",%" PRId64 ",%.17g,%.17g,%" PRId64 ",%" PRId64 ",%.17g\n",
                       r->at.step, r->at.consumed_samples, e.loss, e.perplexity, e.targets,
                       e.samples, 1e3 * e.seconds);
    if (done < 0 || fflush(r->validation) != 0)
        return error_raise(EXIT_IO, "%s/validation.csv cannot be written", r->cfg->run.run_dir);
    return 0;
}
