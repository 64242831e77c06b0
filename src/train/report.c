/* What a run tells: the plan, the log line (Megatron-LM's fields), metrics.csv, status.json. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "run_impl.h"
#include "fault.h"

#define METRICS_HEADER                                                                             \
    "iteration,consumed_samples,lm_loss,grad_norm,learning_rate,target_tokens,elapsed_ms,"         \
    "samples_per_s,tokens_per_s"

static double mib(size_t bytes) {
    return (double)bytes / (1024.0 * 1024.0);
}

/* The plan of a rank, and what its arenas have really handed out before the first step. */
struct rank_memory {
    struct rank_plan plan;
    size_t life, step, snapshot;
};

static void report_rank(const struct rank_memory *m, int rank) {
    const struct rank_plan *p = &m->plan;
    log_info("  rank %3d  tp %d pp %d dp %d  layers %2d..%2d  weights %.1f gradients %.1f states "
             "%.1f tables %.1f activations %.1f messages %.1f snapshot %.1f scratch %.1f workspace "
             "%.1f = "
             "%.1f MiB"
             " (without the last two %zu bytes, taken %zu)",
             rank, p->tp, p->pp, p->dp, p->first, p->end - 1, mib(p->weights), mib(p->gradients),
             mib(p->optimizer), mib(p->tables), mib(p->activations), mib(p->messages),
             mib(p->snapshot), mib(p->scratch), mib(p->workspace), mib(rank_plan_total(p)),
             rank_plan_life(p) + rank_plan_step(p) + p->snapshot, m->life + m->step + m->snapshot);
}

void report_plan(const struct run *r) {
    const struct config *c = r->cfg;
    const struct group *world = grid_group(r->grid, GROUP_WORLD);
    int n = group_size(world);
    struct rank_memory *all = xcalloc((size_t)n, sizeof *all);
    struct rank_memory mine = {r->plan, r->life.peak, r->step.peak, r->saving.host_bytes};
    comm_gather(world, &mine, sizeof mine, all);
    log_info("strata %s: %s, %" PRId64 " parameters, %" PRId64 " trained, %d layers = %d vision + "
             "%d projector + %d language, fp32 on cpu, %d threads per rank",
             STRATA_VERSION, r->stack.family->name, r->stack.n_parameters, r->stack.n_trainable,
             r->stack.n_layers, r->stack.kind_count[0], r->stack.kind_count[1],
             r->stack.kind_count[2], r->be->threads);
    machine_report_threads(r);
    char split[256];
    for (int i = 0, at = 0; i < r->layout.pp && at < (int)sizeof split; i++)
        at += snprintf(split + at, sizeof split - (size_t)at, "%s%lld", i > 0 ? "," : "",
                       (long long)r->split[i]);
    log_info("%d ranks = tensor %d x pipeline %d x data %d, split_spec = %s, %d micro-batches of "
             "%" PRId64 " samples per data rank and step",
             n, r->layout.tp, r->layout.pp, r->layout.dp, split, r->layout.pipeline.micro_batches,
             c->training.micro_batch_size);
    for (int i = 0; i < n; i++) report_rank(&all[i], i);
    struct dataset_report d;
    dataset_report(r->data, &d);
    log_info("data: %" PRId64 " samples (%" PRId64 " without image), %" PRId64
             " images, longest %" PRId64 " merged rows, %" PRId64 " cut at %" PRId64,
             d.samples, d.text_only, d.images, d.longest, d.cut_samples,
             c->language.decoder_seq_length);
    free(all);
}

/* ---- metrics.csv ------------------------------------------------------------------------------- */
int report_begin(struct run *r) {
    TRY(report_status(r, "running", 0, ""));
    if (!r->first_rank) return 0;
    return table_open(r->cfg->run.run_dir, "metrics.csv", METRICS_HEADER, r->at.step, &r->metrics);
}

void report_end(struct run *r) {
    if (r->metrics != NULL) fclose(r->metrics);
    r->metrics = NULL;
}

static double tokens_per_second(const struct step_numbers *n) {
    return (double)n->tokens / n->seconds;
}

static int write_metrics(struct run *r, const struct step_numbers *n) {
    int done = fprintf(r->metrics,
                       "%" PRId64 ",%" PRId64 ",%.17g,%.17g,%.17g,%" PRId64 ",%.17g,%.17g,%.17g\n",
                       r->at.step, r->at.consumed_samples, n->loss, n->grad_norm, n->lr, n->targets,
                       1e3 * n->seconds, (double)r->cfg->training.global_batch_size / n->seconds,
                       tokens_per_second(n));
    fault_point("step.report.in");
    if (done < 0 || fflush(r->metrics) != 0)
        return error_raise(EXIT_IO, "%s/metrics.csv cannot be written", r->cfg->run.run_dir);
    return 0;
}

/* ---- the log line --------------------------------------------------------------------------------- */
/* Speed of an interval, in Megatron-LM's field and in strata's own. FLOPs are those that the devices of
 * all ranks counted in the steps (backend.h: products and attention by the shapes that were computed,
 * the vision tower included, nothing twice for recomputing); a rank's is the mean, over the whole time
 * of the steps. Megatron-LM has one digit; a CPU needs more to have any. The share is that of the
 * speed of sgemm which all ranks reached together at the start (machine.c). */
struct speed_text {
    char field[64], own[96];
};

static struct speed_text speed_text(const struct run *r) {
    const struct totals *t = &r->totals;
    struct speed_text text = {.field = "", .own = ""};
    if (!r->cfg->logging.log_throughput) return text;
    double all = t->flops / t->seconds;
    double one = all / group_size(grid_group(r->grid, GROUP_WORLD));
    snprintf(text.field, sizeof text.field, " throughput per GPU (TFLOP/s/GPU): %.*f |",
             one < 1e12 ? 4 : 1, 1e-12 * one);
    int n = snprintf(text.own, sizeof text.own, " GFLOP/s per rank: %.2f |", 1e-9 * one);
    if (r->peak > 0)
        snprintf(text.own + n, sizeof text.own - (size_t)n, " share of peak: %.1f %% |",
                 100 * all / r->peak);
    return text;
}

static void log_line(struct run *r, const struct step_numbers *n) {
    struct totals *t = &r->totals;
    struct speed_text speed = speed_text(r);
    char now[32];
    clock_utc(now, true);
    now[10] = ' ';
    now[26] = 0; /* without the zone letter */
    double per_step = t->seconds / (double)t->steps;
    log_info(
        " [%s] iteration %8" PRId64 "/%8" PRId64 " | consumed samples: %12" PRId64
        " | elapsed time per iteration (ms): %.1f |%s learning rate: %.6E | global batch size: "
        "%5" PRId64 " | lm loss: %.6E | loss scale: %.1f | grad norm: %.3f | number of skipped "
        "iterations: %3" PRId64 " | number of nan iterations: %3" PRId64
        " | target tokens: %" PRId64 " | images: %" PRId64
        " | data wait (ms): %.1f | samples without target: %" PRId64 " |%s",
        now, r->at.step, r->cfg->derived.train_iters, r->at.consumed_samples, 1e3 * per_step,
        speed.field, n->lr, r->cfg->training.global_batch_size, t->loss / (double)t->steps, 1.0,
        n->grad_norm, r->at.skipped_iterations, r->at.nan_iterations, t->targets, t->images,
        1e3 * t->data_wait, (int64_t)0, speed.own);
}

int report_step(struct run *r, const struct step_numbers *n) {
    struct totals *t = &r->totals;
    r->history[r->n_history++] = (struct ckpt_row){r->at.step, n->loss, n->lr, n->grad_norm};
    r->speed[r->n_speed++] = (struct ckpt_speed){r->at.step, tokens_per_second(n)};
    t->steps++;
    t->loss += n->loss;
    t->seconds += n->seconds;
    t->targets += n->targets;
    t->images += n->images;
    t->flops += n->flops;
    t->data_wait = batcher_wait_seconds(r->batcher) - r->wait_logged;
    if (r->at.step % r->cfg->logging.log_interval == 0 ||
        r->at.step == r->cfg->derived.train_iters || r->at.step == 1) {
        log_line(r, n);
        r->wait_logged = batcher_wait_seconds(r->batcher);
        memset(t, 0, sizeof *t);
    }
    return r->first_rank ? write_metrics(r, n) : 0;
}

/* ---- status.json ------------------------------------------------------------------------------------- */
static const char *next_action(int exit_code, const char *state) {
    if (exit_code == EXIT_AGAIN) return "start the job again: it goes on from the last checkpoint";
    if (strcmp(state, "failed") == 0) return "read the reason, mend it, start the job again";
    return "";
}

int report_status(struct run *r, const char *state, int exit_code, const char *reason) {
    bool failed = strcmp(state, "failed") == 0;
    if ((!r->first_rank && !failed) || r->cfg->run.run_dir == NULL) return 0;
    if (failed && error_count() == 0) return 0; /* another rank tells why */
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    struct json *o = json_new_object();
    json_set(o, "state", json_new_string(state));
    json_set(o, "step", json_new_integer(r->at.step));
    json_set(o, "train_iters", json_new_integer(r->cfg->derived.train_iters));
    json_set(o, "reason", json_new_string(reason));
    json_set(o, "exit_code", json_new_integer(exit_code));
    json_set(o, "rank", json_new_integer(comm_world_rank()));
    json_set(o, "host", json_new_string(host));
    json_set(o, "last_checkpoint", json_new_integer(r->last_saved));
    json_set(o, "next_action", json_new_string(next_action(exit_code, state)));
    char *text = json_text(o, 2), *path = xasprintf("%s/status.json", r->cfg->run.run_dir);
    int rc = failed && access(r->cfg->run.run_dir, W_OK) != 0
                 ? 0 /* the error itself is told anyway */
                 : file_write_atomic(path, text, strlen(text));
    free(text);
    free(path);
    json_free(o);
    return rc;
}
