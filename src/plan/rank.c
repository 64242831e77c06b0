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
    return passing ? ckpt_passing_bytes(&s, true, l->save_moments)
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

/* What all ranks of one stage and one tensor rank have alike: weights, what the passes take, and the
 * arena of the life of the run up to the optimizer's states. */
struct common {
    struct stage st;
    struct backend *be;
    struct arena life;
    size_t group_needed[GROUP_COUNT]; /* by the passes */
    size_t
        passing_alike; /* of a snapshot that another rank writes, the same for all dp; 0: unknown */
    struct rank_plan plan;
};

/* States and the workspace of one update; the measuring groups note what the update would need. The
 * snapshot's bytes are left to the caller, whose `optim` must be destroyed. */
static int measure_optimizer(struct common *c, const struct plan_layout *l, const struct grid *grid,
                             struct rank_plan *out, struct optim **o) {
    struct arena life = c->life;
    struct optim_input in = {.grad_scale = 1.0};
    struct optim_result result;
    TRY(create_optimizer(&c->st, l, grid, o));
    int rc = optim_layout(*o, c->be, &life);
    if (rc == 0) rc = optim_step(*o, &in, &result);
    out->optimizer = align_up(life.peak) - align_up(c->life.peak);
    for (int g = 0; g < GROUP_COUNT; g++) {
        size_t needed = group_workspace_needed(grid_group(grid, (enum group_id)g));
        if (needed < c->group_needed[g]) needed = c->group_needed[g];
        out->group_workspace[g] = align_up(needed);
        out->workspace += out->group_workspace[g];
    }
    return rc;
}

static void measure_common(struct common *c, const struct plan_layout *l, const struct grid *grid,
                           const struct microbatch *largest) {
    struct stage *st = &c->st;
    struct backend *be = c->be;
    struct arena *life = &c->life;
    struct rank_plan *out = &c->plan;
    arena_init_measuring(life, "life");
    stage_allocate(st, be, life);
    out->weights = align_up((size_t)st->params.weight_elements * dtype_size(be->dtype));
    out->gradients = align_up((size_t)st->params.grad_elements * dtype_size(be->acc));
    out->tables = align_up(life->peak) - out->weights - out->gradients;
    count_params(&st->params, out);
    if (l->cache_rows > 0) {
        size_t before = align_up(life->peak);
        stage_allocate_caches(st, be, l->cache_rows, life);
        out->caches = align_up(life->peak) - before;
        before = align_up(life->peak);
        if (out->pp == l->pp - 1) stage_allocate_logits(st, be, life);
        out->logits = align_up(life->peak) - before;
    }
    pipeline_measure(st, be, grid, l->pp, out->pp, &l->pipeline, largest, &out->pipeline);
    for (int g = 0; g < GROUP_COUNT; g++)
        c->group_needed[g] = group_workspace_needed(grid_group(grid, (enum group_id)g));
    const struct pipeline_memory *m = &out->pipeline;
    out->activations = (size_t)m->n_slots * m->slot_bytes;
    out->scratch = m->scratch_bytes;
    out->messages = pipeline_memory_bytes(m) - out->activations - out->scratch - m->workspace_bytes;
}

static struct grid *measuring_grid(const struct plan_layout *l, int tp, int pp, int dp) {
    return grid_create_measuring(l->tp, l->pp, l->dp, l->tp_pp_dp, tp, pp, dp);
}

/* Do two tensor ranks of a stage hold tensors and rows of the same sizes? */
static bool alike(const struct common *a, const struct common *b) {
    const struct param_set *p = &a->st.params, *q = &b->st.params;
    if (a->st.stack->sequence_parallel || p->n != q->n) return false;
    for (int i = 0; i < p->n; i++)
        if (p->param[i].rows != q->param[i].rows || p->param[i].cols != q->param[i].cols)
            return false;
    return true;
}

/* What was measured for `before`, with this rank's own tensors. */
static void take_measured(struct common *c, const struct common *before) {
    struct arena again;
    int tp = c->plan.tp;
    arena_init_measuring(&again, "life");
    param_set_allocate(&c->st.params, c->be, &again);
    c->life = before->life;
    c->plan = before->plan;
    c->plan.tp = tp;
    memcpy(c->group_needed, before->group_needed, sizeof c->group_needed);
}

/* first: layers before stage pp; before: another tensor rank of the stage, or NULL. */
static int common_create(struct common *c, const struct stack *s, const struct plan_layout *l,
                         int tp, int pp, int first, const struct microbatch *largest,
                         const struct common *before) {
    *c = (struct common){.plan = {.tp = tp, .pp = pp, .first = first}};
    c->plan.end = first + (int)l->split[pp];
    TRY(stage_build(s, first, c->plan.end, l->tp, tp, l->recompute, l->recompute_layers, &c->st));
    c->be = backend_create_measuring(l->dtype);
    if (before != NULL && alike(c, before)) {
        take_measured(c, before);
        return 0;
    }
    struct grid *grid = measuring_grid(l, tp, pp, 0);
    measure_common(c, l, grid, largest);
    grid_destroy(grid);
    return 0;
}

static void common_destroy(struct common *c) {
    backend_destroy(c->be);
    stage_free(&c->st);
}

int plan_rank(const struct stack *s, const struct plan_layout *layout, int tp, int pp, int dp,
              const struct microbatch *largest, struct rank_plan *out) {
    struct common c;
    struct optim *o = NULL;
    TRY(common_create(&c, s, layout, tp, pp, plan_first_layer(layout, pp), largest, NULL));
    struct grid *grid = measuring_grid(layout, tp, pp, dp);
    *out = c.plan;
    out->dp = dp;
    int rc = measure_optimizer(&c, layout, grid, out, &o);
    if (rc == 0 && layout->snapshot) rc = measure_snapshot(&c.st, layout, grid, c.be, o, out);
    optim_destroy(o);
    grid_destroy(grid);
    common_destroy(&c);
    return rc;
}

/* ---- all ranks of a grid ------------------------------------------------------------------------ */
/* What measure_snapshot finds one by one: own[rank] is what a rank saves; dealt[] of this stage. */
static void note_saved(struct common *c, const struct plan_layout *l, const struct grid *grid,
                       const struct optim *o, const size_t *dealt, struct rank_plan *plan,
                       size_t *own) {
    struct ckpt_state s = {
        .grid = grid, .set = &c->st.params, .be = c->be, .sharded_optimizer = l->optim.distributed};
    int me = grid_rank_at(grid, plan->tp, plan->pp, plan->dp);
    s.piece = optim_pieces(o, &s.n_pieces);
    own[me] = dealt[plan->dp * l->tp + plan->tp] + ckpt_sharded_bytes(&s, l->save_moments);
    plan->snapshot = own[me];
    if (l->writer == NULL || l->writer[me] == me) return;
    bool sharded = l->optim.distributed;
    if (c->passing_alike == 0)
        c->passing_alike = ckpt_passing_bytes(&s, true, l->save_moments && !sharded);
    size_t shard = sharded ? ckpt_passing_bytes(&s, false, l->save_moments) : 0;
    plan->snapshot = shard > c->passing_alike ? shard : c->passing_alike;
}

static int plan_replica(struct common *c, const struct plan_layout *l, int dp, size_t *dealt,
                        struct rank_plan *out, size_t *own) {
    struct optim *o = NULL;
    struct grid *grid = measuring_grid(l, c->plan.tp, c->plan.pp, dp);
    struct rank_plan *plan = &out[grid_rank_at(grid, c->plan.tp, c->plan.pp, dp)];
    *plan = c->plan;
    plan->dp = dp;
    int rc = measure_optimizer(c, l, grid, plan, &o);
    if (rc == 0 && l->snapshot && dp == 0 && plan->tp == 0) {
        struct ckpt_state s = {.grid = grid,
                               .set = &c->st.params,
                               .be = c->be,
                               .sharded_optimizer = l->optim.distributed};
        s.piece = optim_pieces(o, &s.n_pieces);
        ckpt_dealt_bytes(&s, l->save_moments, dealt);
    }
    if (rc == 0 && l->snapshot) note_saved(c, l, grid, o, dealt, plan, own);
    optim_destroy(o);
    grid_destroy(grid);
    return rc;
}

/* Data-parallel ranks differ in the size of their share alone, of which there are two (rows_share);
 * with a snapshot also in where it lies. */
static int plan_replicas(struct common *c, const struct plan_layout *l, size_t *dealt,
                         struct rank_plan *out, size_t *own) {
    int64_t larger = c->st.params.grad_elements % l->dp; /* ranks that have one element more */
    struct grid *grid = measuring_grid(l, c->plan.tp, c->plan.pp, 0);
    int rc = 0;
    for (int dp = 0; dp < l->dp && rc == 0; dp++) {
        if (l->snapshot || dp == 0 || dp == larger) {
            rc = plan_replica(c, l, dp, dealt, out, own);
            continue;
        }
        int at = grid_rank_at(grid, c->plan.tp, c->plan.pp, dp);
        out[at] = out[grid_rank_at(grid, c->plan.tp, c->plan.pp, dp - 1)];
        out[at].dp = dp;
    }
    grid_destroy(grid);
    return rc;
}

static void add_guests(const struct plan_layout *l, const size_t *own, struct rank_plan *out) {
    int n = l->tp * l->pp * l->dp;
    for (int r = 0; r < n && l->writer != NULL; r++)
        if (l->writer[r] != r) out[l->writer[r]].snapshot += own[r];
    for (int r = 0; r < n; r++) out[r].snapshot = align_up(out[r].snapshot);
}

static int plan_stage(const struct stack *s, const struct plan_layout *l, int pp, int first,
                      const struct microbatch *largest, size_t *dealt, struct rank_plan *out,
                      size_t *own) {
    struct common c[2] = {{.be = NULL}};
    int rc = 0;
    for (int tp = 0; tp < l->tp && rc == 0; tp++) {
        struct common *now = &c[tp % 2], *before = tp > 0 ? &c[(tp + 1) % 2] : NULL;
        if (tp > 1) common_destroy(now);
        rc = common_create(now, s, l, tp, pp, first, largest, before);
        if (rc == 0) rc = plan_replicas(now, l, dealt, out, own);
    }
    for (int i = 0; i < 2; i++)
        if (c[i].be != NULL) common_destroy(&c[i]);
    return rc;
}

int plan_ranks(const struct stack *s, const struct plan_layout *l, const struct microbatch *largest,
               struct rank_plan *out) {
    size_t *own = xcalloc((size_t)l->tp * (size_t)l->pp * (size_t)l->dp, sizeof *own);
    size_t *dealt = xcalloc((size_t)l->tp * (size_t)l->dp, sizeof *dealt);
    int rc = 0, first = 0;
    for (int pp = 0; pp < l->pp && rc == 0; first += (int)l->split[pp++])
        rc = plan_stage(s, l, pp, first, largest, dealt, out, own);
    if (rc == 0 && l->snapshot) add_guests(l, own, out);
    free(own);
    free(dealt);
    return rc;
}
