/* The plan of one rank: its stage, built and run over the measuring backend. */
#include <stdlib.h>
#include <string.h>

#include "plan_impl.h"

size_t rank_plan_life(const struct rank_plan *p) {
    return p->weights + p->gradients + p->tables + p->optimizer + p->caches + p->logits;
}

size_t rank_plan_step(const struct rank_plan *p) {
    return p->activations + p->messages;
}

size_t rank_plan_total(const struct rank_plan *p) {
    return rank_plan_life(p) + rank_plan_step(p) + p->scratch + p->workspace + p->snapshot;
}

void plan_layout_from_config(const struct config *cfg, const int64_t *split,
                             struct plan_layout *out) {
    bool full = cfg->training.recompute_granularity == RECOMPUTE_FULL;
    *out = (struct plan_layout){
        .tp = (int)cfg->parallel.tensor_model_parallel_size,
        .pp = (int)cfg->parallel.pipeline_model_parallel_size,
        .dp = (int)cfg->derived.data_parallel_size,
        .tp_pp_dp = cfg->parallel.use_tp_pp_dp_mapping,
        .split = split,
        .dtype = cfg->training.bf16   ? DTYPE_BF16
                 : cfg->training.fp16 ? DTYPE_F16
                                      : DTYPE_F32,
        .recompute = !full                                               ? REPEAT_NOTHING
                     : cfg->training.recompute_method == RECOMPUTE_BLOCK ? REPEAT_BLOCK
                                                                         : REPEAT_UNIFORM,
        .recompute_layers = cfg->training.recompute_num_layers,
        .pipeline = {.schedule = cfg->parallel.schedule == SCHEDULE_GPIPE ? SCHEDULE_LIST_GPIPE
                                                                          : SCHEDULE_LIST_1F1B,
                     .micro_batches = (int)cfg->derived.n_micro_batches,
                     .overlap_p2p = cfg->parallel.overlap_p2p_comm,
                     .run_key = rng_run_key(cfg->training.seed)},
        .optim = {.kind = cfg->optimizer.optimizer == OPTIMIZER_SGD ? OPTIM_SGD : OPTIM_ADAM,
                  .beta1 = cfg->optimizer.adam_beta1,
                  .beta2 = cfg->optimizer.adam_beta2,
                  .eps = cfg->optimizer.adam_eps,
                  .momentum = cfg->optimizer.sgd_momentum,
                  .weight_decay = cfg->optimizer.weight_decay,
                  .clip_grad = cfg->optimizer.clip_grad,
                  .distributed = cfg->parallel.use_distributed_optimizer},
        .snapshot = cfg->checkpoint.async_save && cfg->checkpoint.save != NULL,
        .save_moments = !cfg->checkpoint.no_save_optim};
}

int plan_first_layer(const struct plan_layout *l, int pp) {
    int64_t first = 0;
    for (int i = 0; i < pp; i++) first += l->split[i];
    return (int)first;
}

static size_t align_up(size_t n) {
    return (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

static void count_params(const struct param_set *s, struct rank_plan *out) {
    for (int i = 0; i < s->n; i++) {
        int64_t n = param_local_count(&s->param[i]);
        out->parameters += n;
        if (s->param[i].trainable) out->trainable += n;
    }
}

static int create_optimizer(struct stage *st, const struct plan_layout *l, const struct grid *grid,
                            struct optim **o) {
    int *index = xcalloc((size_t)st->params.n + 1, sizeof *index);
    for (int i = 0; i < st->params.n; i++) index[i] = st->stack->first_param[st->first] + i;
    int rc = optim_create(&l->optim, &st->params, index, st->stack->n_params, grid, o);
    free(index);
    return rc;
}

/* Bytes that a rank saves, or that pass through it on their way to the rank that writes for it. */
static size_t saved_bytes(const struct stage *st, const struct plan_layout *l,
                          const struct grid *grid, struct backend *be, const struct optim *o,
                          bool passing) {
    struct ckpt_state s = {
        .grid = grid, .set = &st->params, .be = be, .sharded_optimizer = l->optim.distributed};
    s.piece = optim_pieces(o, &s.n_pieces);
    return passing ? ckpt_passing_bytes(&s, l->save_moments)
                   : ckpt_snapshot_bytes(&s, l->save_moments);
}

/* What another rank saves. */
static int measure_guest(const struct stack *s, const struct plan_layout *l, int tp, int pp, int dp,
                         size_t *bytes) {
    int first = plan_first_layer(l, pp);
    struct stage st;
    struct arena arena;
    struct optim *o;
    TRY(stage_build(s, first, first + (int)l->split[pp], l->tp, tp, l->recompute,
                    l->recompute_layers, &st));
    struct grid *grid = grid_create_measuring(l->tp, l->pp, l->dp, l->tp_pp_dp, tp, pp, dp);
    struct backend *be = backend_create_measuring(l->dtype);
    arena_init_measuring(&arena, "guest");
    stage_allocate(&st, be, &arena);
    int rc = create_optimizer(&st, l, grid, &o);
    if (rc == 0) {
        rc = optim_layout(o, be, &arena);
        if (rc == 0) *bytes += saved_bytes(&st, l, grid, be, o, false);
        optim_destroy(o);
    }
    backend_destroy(be);
    grid_destroy(grid);
    stage_free(&st);
    return rc;
}

/* What the copy of an asynchronous save takes: of all ranks that this one writes for. */
static int measure_snapshot(const struct stage *st, const struct plan_layout *l,
                            const struct grid *grid, struct backend *be, const struct optim *o,
                            struct rank_plan *out) {
    int me = grid_rank_at(grid, out->tp, out->pp, out->dp);
    bool passing = l->writer != NULL && l->writer[me] != me;
    size_t bytes = saved_bytes(st, l, grid, be, o, passing);
    for (int pp = 0; l->writer != NULL && pp < l->pp; pp++)
        for (int dp = 0; dp < l->dp; dp++)
            for (int tp = 0; tp < l->tp; tp++) {
                int rank = grid_rank_at(grid, tp, pp, dp);
                if (rank != me && l->writer[rank] == me)
                    TRY(measure_guest(st->stack, l, tp, pp, dp, &bytes));
            }
    out->snapshot = align_up(bytes);
    return 0;
}

/* States and the workspace of one update; the measuring groups note what the update would need. */
static int measure_optimizer(struct stage *st, const struct plan_layout *l, const struct grid *grid,
                             struct backend *be, struct arena *life, struct rank_plan *out) {
    struct optim *o;
    size_t before = life->peak;
    int rc = create_optimizer(st, l, grid, &o);
    if (rc == 0) {
        struct optim_input in = {.grad_scale = 1.0};
        struct optim_result result;
        rc = optim_layout(o, be, life);
        if (rc == 0) rc = optim_step(o, &in, &result);
        if (rc == 0 && l->snapshot) rc = measure_snapshot(st, l, grid, be, o, out);
        optim_destroy(o);
    }
    out->optimizer = align_up(life->peak) - align_up(before);
    return rc;
}

static int measure_stage(struct stage *st, const struct plan_layout *l, const struct grid *grid,
                         struct backend *be, const struct microbatch *largest,
                         struct rank_plan *out) {
    struct arena life;
    arena_init_measuring(&life, "life");
    stage_allocate(st, be, &life);
    out->weights = align_up((size_t)st->params.weight_elements * dtype_size(be->dtype));
    out->gradients = align_up((size_t)st->params.grad_elements * dtype_size(be->acc));
    out->tables = align_up(life.peak) - out->weights - out->gradients;
    count_params(&st->params, out);
    if (l->cache_rows > 0) {
        size_t before = align_up(life.peak);
        stage_allocate_caches(st, be, l->cache_rows, &life);
        out->caches = align_up(life.peak) - before;
        before = align_up(life.peak);
        if (out->pp == l->pp - 1) stage_allocate_logits(st, be, &life);
        out->logits = align_up(life.peak) - before;
    }
    pipeline_measure(st, be, grid, l->pp, out->pp, &l->pipeline, largest, &out->pipeline);
    TRY(measure_optimizer(st, l, grid, be, &life, out));
    const struct pipeline_memory *m = &out->pipeline;
    out->activations = (size_t)m->n_slots * m->slot_bytes;
    out->scratch = m->scratch_bytes;
    out->messages = pipeline_memory_bytes(m) - out->activations - out->scratch - m->workspace_bytes;
    for (int g = 0; g < GROUP_COUNT; g++) {
        out->group_workspace[g] =
            align_up(group_workspace_needed(grid_group(grid, (enum group_id)g)));
        out->workspace += out->group_workspace[g];
    }
    return 0;
}

int plan_rank(const struct stack *s, const struct plan_layout *layout, int tp, int pp, int dp,
              const struct microbatch *largest, struct rank_plan *out) {
    memset(out, 0, sizeof *out);
    out->tp = tp;
    out->pp = pp;
    out->dp = dp;
    out->first = plan_first_layer(layout, pp);
    out->end = out->first + (int)layout->split[pp];
    struct stage st;
    TRY(stage_build(s, out->first, out->end, layout->tp, tp, layout->recompute,
                    layout->recompute_layers, &st));
    struct grid *grid =
        grid_create_measuring(layout->tp, layout->pp, layout->dp, layout->tp_pp_dp, tp, pp, dp);
    struct backend *be = backend_create_measuring(layout->dtype);
    int rc = measure_stage(&st, layout, grid, be, largest, out);
    backend_destroy(be);
    grid_destroy(grid);
    stage_free(&st);
    return rc;
}
