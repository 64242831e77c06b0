/* strata check: the report for people. */
#include <inttypes.h>
#include <string.h>

#include "check_impl.h"

int check_rank_at(const struct check_report *r, int tp, int pp, int dp) {
    return grid_rank_at(r->grid, tp, pp, dp);
}

#define ROWS_MAX 64 /* ranks and data ranks written out one by one */

static double mib(size_t bytes) {
    return (double)bytes / (1024.0 * 1024.0);
}

static double gflop(double flops) {
    return flops / 1e9;
}

/* ---- what runs ------------------------------------------------------------------------------------ */
static void print_job(const struct check_report *r, FILE *to) {
    const struct stack *s = &r->stack;
    const struct config *c = r->cfg;
    fprintf(to,
            "model    %s, %d layers = %d vision + %d projector + %d language; %" PRId64
            " parameters, %" PRId64 " trained; %s on %s\n",
            s->family->name, s->n_layers, s->kind_count[LAYER_VISION],
            s->kind_count[LAYER_PROJECTOR], s->kind_count[LAYER_LANGUAGE], s->n_parameters,
            s->n_trainable, dtype_name(r->layout.dtype), config_choice(c, &c->run.device));
    fprintf(to, "ranks    %d = tensor %d x pipeline %d x data %d; split_spec = ", r->n_ranks,
            r->layout.tp, r->layout.pp, r->layout.dp);
    for (int i = 0; i < r->layout.pp; i++) fprintf(to, "%s%" PRId64, i > 0 ? "," : "", r->split[i]);
    fprintf(to, "%s\n", r->split_auto ? " (auto)" : "");
    fprintf(to,
            "steps    %" PRId64 " of %" PRId64 " samples: %d micro-batches of %" PRId64
            " on each data rank\n",
            c->derived.train_iters, c->training.global_batch_size, r->layout.pipeline.micro_batches,
            c->training.micro_batch_size);
}

static void print_threads(const struct check_report *r, FILE *to) {
    if (r->threads > 0)
        fprintf(to, "threads  %d per rank on this machine: %s\n", r->threads, r->threads_how);
}

static void print_micro_batch(const struct check_report *r, FILE *to) {
    const struct microbatch *mb = r->largest;
    char tiles[48] = "";
    if (r->stack.shape.newline) snprintf(tiles, sizeof tiles, " of %" PRId64 " tiles", mb->tiles);
    fprintf(to,
            "planned  for the largest micro-batch: %" PRId64 " images%s, %" PRId64
            " merged rows (longest sample %" PRId64 "), %" PRId64 " targets\n",
            mb->images, tiles, mb->tokens, mb->max_segment, mb->targets);
    if (r->data != NULL)
        fprintf(to, "         from the data set's index, %" PRId64 " samples, in the run's order\n",
                dataset_count(r->data));
    else
        fprintf(to, "         ASSUMED, since the data set has no index yet: every sample has one "
                    "image and fills decoder_seq_length\n");
}

/* ---- the layout, drawn ----------------------------------------------------------------------------- */
/* "vision 0..23 + projector 0..1 + language 0..6" */
static void print_kinds(const struct check_report *r, const struct stage_plan *s, FILE *to) {
    for (int i = s->first; i < s->end;) {
        const struct layer *l = &r->stack.layer[i];
        int end = i;
        while (end < s->end && r->stack.layer[end].kind == l->kind) end++;
        fprintf(to, "%s%s %d", i > s->first ? " + " : "", layer_kind_name(l->kind), l->number);
        if (end - i > 1) fprintf(to, "..%d", l->number + end - i - 1);
        i = end;
    }
}

static void print_hangers(const struct check_report *r, const struct stage_plan *s, FILE *to) {
    int first_language = r->stack.n_layers - r->stack.kind_count[LAYER_LANGUAGE];
    if (s->first == 0 && r->stack.kind_count[LAYER_VISION] > 0) fprintf(to, " [patch embedding]");
    if (s->first <= first_language && first_language < s->end) fprintf(to, " [token embedding]");
    if (s->end == r->stack.n_layers) fprintf(to, " [head]");
}

static void print_stage_ranks(const struct check_report *r, int pp, FILE *to) {
    for (int dp = 0; dp < r->layout.dp; dp++) {
        if (dp >= ROWS_MAX / 8 && dp + 1 < r->layout.dp) continue;
        if (dp >= ROWS_MAX / 8) fprintf(to, "  |        ...\n");
        fprintf(to, "  |        dp %d: rank", dp);
        for (int tp = 0; tp < r->layout.tp; tp++) fprintf(to, " %d", check_rank_at(r, tp, pp, dp));
        fprintf(to, "\n");
    }
}

/* The cuts lie in the order of their stages; *next is the first that is not printed yet. */
static void print_cut(const struct check_report *r, int from, int *next, FILE *to) {
    for (; *next < r->n_cuts && r->cut[*next].from == from; ++*next) {
        const struct cut_plan *c = &r->cut[*next];
        size_t bytes = (size_t)(c->stream.rows * c->stream.cols) * dtype_size(c->stream.dtype);
        fprintf(to, "  v cut %d: %s [%" PRId64 ", %" PRId64 "] %s, %.2f MiB, %s\n", c->cut,
                c->stream.name, c->stream.rows, c->stream.cols, dtype_name(c->stream.dtype),
                mib(bytes), c->stream.gradient ? "a gradient comes back" : "no gradient");
    }
}

static void print_layout(const struct check_report *r, FILE *to) {
    fprintf(to, "\nlayout (ranks of a stage in the order of tensor; cuts with all their rows)\n");
    for (int pp = 0, cut = 0; pp < r->layout.pp; pp++) {
        const struct stage_plan *s = &r->stage[pp];
        fprintf(to, "  stage %d  layers %d..%d: ", pp, s->first, s->end - 1);
        print_kinds(r, s, to);
        print_hangers(r, s, to);
        fprintf(to, "%s\n", s->flow.backward ? "" : ", no backward");
        print_stage_ranks(r, pp, to);
        print_cut(r, pp, &cut, to);
    }
}

/* ---- work and memory ---------------------------------------------------------------------------------- */
static void print_stages(const struct check_report *r, FILE *to) {
    double most = 0;
    for (int i = 0; i < r->layout.pp; i++) {
        double one = r->stage[i].cost.forward + r->stage[i].cost.backward;
        most = one > most ? one : most;
    }
    fprintf(to, "\nstages (GFLOP of the largest micro-batch over all tensor ranks; backward as the "
                "frozen parts and recomputation have it, that of the head in its forward)\n");
    fprintf(to, "  stage     parameters        trained      forward     backward  of slowest  "
                "in flight   idle\n");
    for (int i = 0; i < r->layout.pp; i++) {
        const struct stage_plan *s = &r->stage[i];
        fprintf(to, "  %5d %14" PRId64 " %14" PRId64 " %12.2f %12.2f %10.1f%% %10d %5.1f%%\n", i,
                s->parameters, s->trainable, gflop(s->cost.forward), gflop(s->cost.backward),
                most > 0 ? 100 * (s->cost.forward + s->cost.backward) / most : 0, s->in_flight,
                100 * s->idle);
    }
    fprintf(to,
            "  imbalance %.3f (slowest stage / mean); simulated step %.2f GFLOP per stage, "
            "bubble %.1f %% (schedule %s, messages not counted)\n",
            r->step.imbalance, gflop(r->step.makespan), 100 * r->step.bubble,
            config_choice(r->cfg, &r->cfg->parallel.schedule));
}

static void print_rank(const struct rank_plan *p, int rank, FILE *to) {
    fprintf(to,
            "  %5d %3d %3d %3d %3d..%-3d %10.2f %10.2f %10.2f %8.2f %11.2f %9.2f %9.2f %9.2f "
            "%9.2f %11.2f\n",
            rank, p->tp, p->pp, p->dp, p->first, p->end - 1, mib(p->weights), mib(p->gradients),
            mib(p->optimizer), mib(p->tables), mib(p->activations), mib(p->messages),
            mib(p->scratch), mib(p->workspace), mib(p->snapshot), mib(rank_plan_total(p)));
}

/* In place of what training alone has: gradients, optimizer, snapshot. */
static void print_generating_rank(const struct rank_plan *p, int rank, FILE *to) {
    fprintf(
        to,
        "  %5d %3d %3d %3d %3d..%-3d %10.2f %10.2f %10.2f %8.2f %11.2f %9.2f %9.2f %9.2f %11.2f\n",
        rank, p->tp, p->pp, p->dp, p->first, p->end - 1, mib(p->weights), mib(p->caches),
        mib(p->logits), mib(p->tables), mib(p->activations), mib(p->messages), mib(p->scratch),
        mib(p->workspace), mib(rank_plan_total(p)));
}

static void print_memory(const struct check_report *r, FILE *to) {
    double limit = r->cfg->run.memory_limit_gib;
    int most = 0;
    if (r->generate)
        fprintf(
            to,
            "\nmemory per rank (MiB; what generate takes for a question of %" PRId64
            " rows and one image, its answer included)\n"
            "   rank  tp  pp  dp  layers     weights keys+values     logits   tables activations"
            "  messages   scratch workspace       total\n",
            r->cfg->language.decoder_seq_length);
    else
        fprintf(to,
                "\nmemory per rank (MiB; what train takes before its first step)\n"
                "   rank  tp  pp  dp  layers     weights  gradients  optimizer   tables activations"
                "  messages   scratch workspace  snapshot       total\n");
    for (int i = 0; i < r->n_ranks; i++) {
        if (rank_plan_total(&r->rank[i]) > rank_plan_total(&r->rank[most])) most = i;
        if (i < ROWS_MAX) (r->generate ? print_generating_rank : print_rank)(&r->rank[i], i, to);
    }
    if (r->n_ranks > ROWS_MAX)
        fprintf(to, "  and %d ranks more; --json has all\n", r->n_ranks - ROWS_MAX);
    fprintf(to, "  most: rank %d, %.3f GiB", most, mib(rank_plan_total(&r->rank[most])) / 1024);
    if (limit > 0)
        fprintf(to, " of memory_limit_gib = %g\n", limit);
    else
        fprintf(to, "; memory_limit_gib is not set\n");
}

void check_print_text(const struct check_report *r, FILE *to) {
    print_job(r, to);
    print_threads(r, to);
    print_micro_batch(r, to);
    print_layout(r, to);
    print_stages(r, to);
    print_memory(r, to);
    for (int i = 0; i < r->n_warnings; i++)
        fprintf(to, "%swarning: %s\n", i == 0 ? "\n" : "", r->warning[i]);
}
