/* From a checked job file to a run that is ready for its first step. */
#include <stdlib.h>
#include <string.h>

#include "run_impl.h"
#include "fault.h"

static const struct group *world(const struct run *r) {
    return grid_group(r->grid, GROUP_WORLD);
}

struct batcher_settings setup_batcher(const struct run *r) {
    const struct config *c = r->cfg;
    const struct group *dp = grid_group(r->grid, GROUP_DP);
    return (struct batcher_settings){.micro_batch_size = c->training.micro_batch_size,
                                     .global_batch_size = c->training.global_batch_size,
                                     .dp = group_rank(dp),
                                     .D = group_size(dp),
                                     .M = (int)c->derived.n_micro_batches,
                                     .shuffle = c->data.shuffle,
                                     .per_token_loss = c->training.calculate_per_token_loss,
                                     .run_key = rng_run_key(c->training.seed),
                                     .num_workers = (int)c->data.num_workers};
}

/* The largest micro-batch decides memory; the step's samples do not depend on the layout. */
static int setup_batches(struct run *r) {
    struct batcher_settings s = setup_batcher(r);
    TRY(batcher_create(&s, r->data, &r->stack, &r->batcher));
    r->largest = train_largest_microbatch(r->cfg, r->data, r->valid, &r->stack);
    return 0;
}

static int take_arena(struct run *r, struct arena *a, const char *name, size_t bytes) {
    void *base = r->be->ops->mem_alloc(r->be, bytes + ARENA_ALIGN);
    if (base == NULL)
        return error_raise(EXIT_UNAVAILABLE,
                           "the device does not give %zu bytes for %s; `strata check` prints the "
                           "plan; a smaller micro_batch_size, recompute_granularity = full or more "
                           "stages need less",
                           bytes, name);
    arena_init(a, name, base, bytes + ARENA_ALIGN);
    return 0;
}

static int take_memory(struct run *r) {
    TRY(take_arena(r, &r->life, "weights and states", rank_plan_life(&r->plan)));
    TRY(take_arena(r, &r->step, "activations and messages", rank_plan_step(&r->plan)));
    TRY(take_arena(r, &r->scratch, "scratch", r->plan.scratch));
    TRY(save_take_memory(r));
    for (int g = 0; g < GROUP_COUNT; g++)
        group_reserve(grid_group(r->grid, (enum group_id)g), r->be, r->plan.group_workspace[g]);
    return 0;
}

static int setup_optimizer(struct run *r) {
    int *index = xcalloc((size_t)r->stage.params.n + 1, sizeof *index);
    for (int i = 0; i < r->stage.params.n; i++) index[i] = r->stack.first_param[r->stage.first] + i;
    int rc = optim_create(&r->layout.optim, &r->stage.params, index, r->stack.n_params, r->grid,
                          &r->optim);
    free(index);
    TRY(rc);
    TRY(optim_layout(r->optim, r->be, &r->life));
    const struct config *c = r->cfg;
    static const enum lr_style style[] = {[LR_DECAY_CONSTANT] = LR_CONSTANT,
                                          [LR_DECAY_LINEAR] = LR_LINEAR,
                                          [LR_DECAY_COSINE] = LR_COSINE,
                                          [LR_DECAY_INVERSE_SQUARE_ROOT] = LR_INVERSE_SQRT,
                                          [LR_DECAY_WSD] = LR_WSD};
    static const enum lr_wsd_style wsd[] = {[WSD_EXPONENTIAL] = LR_WSD_EXPONENTIAL,
                                            [WSD_LINEAR] = LR_WSD_LINEAR,
                                            [WSD_COSINE] = LR_WSD_COSINE,
                                            [WSD_MINUS_SQRT] = LR_WSD_MINUS_SQRT};
    r->schedule = (struct lr_schedule){.style = style[c->optimizer.lr_decay_style],
                                       .wsd_style = wsd[c->optimizer.lr_wsd_decay_style],
                                       .init = c->optimizer.lr_warmup_init,
                                       .min = c->optimizer.min_lr,
                                       .warmup = c->derived.lr_warmup,
                                       .decay = c->derived.lr_decay,
                                       .wsd_decay = c->derived.lr_wsd_decay};
    return lr_schedule_check(&r->schedule, c->optimizer.lr, "[optimizer] lr");
}

/* What r->layout says: plan, memory, weights, pipeline. */
int setup_stage(struct run *r) {
    const struct group *pp = grid_group(r->grid, GROUP_PP), *tp = grid_group(r->grid, GROUP_TP);
    const struct group *dp = grid_group(r->grid, GROUP_DP);
    TRY(plan_rank(&r->stack, &r->layout, group_rank(tp), group_rank(pp), group_rank(dp), r->largest,
                  &r->plan));
    TRY(train_check_memory(r->cfg, &r->plan, group_rank(world(r))));
    TRY(take_memory(r));
    TRY(stage_build(&r->stack, r->plan.first, r->plan.end, group_size(tp), group_rank(tp),
                    r->layout.recompute, r->layout.recompute_layers, &r->stage));
    stage_allocate(&r->stage, r->be, &r->life);
    stage_tables_fill(&r->stage, r->be);
    if (r->layout.cache_rows > 0)
        stage_allocate_caches(&r->stage, r->be, r->layout.cache_rows, &r->life);
    TRY(pipeline_create(&r->stage, r->be, r->grid, group_size(pp), group_rank(pp),
                        &r->layout.pipeline, &r->plan.pipeline, &r->step, &r->scratch,
                        &r->pipeline));
    r->last_stage = group_rank(pp) == group_size(pp) - 1;
    r->result.loss_sum = xcalloc((size_t)r->layout.pipeline.micro_batches, sizeof(double));
    r->result.loss_rows = xcalloc((size_t)r->layout.pipeline.micro_batches, sizeof(int64_t));
    return 0;
}

static void setup_writers(struct run *r) {
    int n = group_size(world(r)), *node = xcalloc((size_t)n, sizeof *node);
    for (int i = 0; i < n; i++) node[i] = grid_node(r->grid, i);
    r->writer = train_writers(r->cfg, n, node);
    r->layout.writer = r->writer;
    free(node);
}

static int setup_training(struct run *r) {
    plan_layout_from_config(r->cfg, r->split, &r->layout);
    setup_writers(r);
    TRY(setup_stage(r));
    TRY(setup_optimizer(r));
    replica_check_begin(r);
    batcher_attach(r->batcher, &r->stage, r->largest);
    return evaluation_begin(r);
}

/* Whatever fails on one rank ends all of them before anybody waits for it. */
int setup_agree(const struct run *r, int rc) {
    int worst = comm_vote(world(r), rc);
    if (rc == 0 && worst != 0) return worst;
    return rc;
}

static int open_run_dir(struct run *r) {
    if (!r->first_rank) return 0;
    TRY(dir_make(r->cfg->run.run_dir));
    char *path = xasprintf("%s/log", r->cfg->run.run_dir);
    int rc = log_open(path);
    free(path);
    return rc;
}

static int write_used(struct run *r) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory for used.ini");
    int rc = config_write_used(r->cfg, to);
    fclose(to);
    r->used_ini = text;
    if (rc != 0 || !r->first_rank) return rc;
    char *path = xasprintf("%s/used.ini", r->cfg->run.run_dir);
    rc = file_write_atomic(path, text, bytes);
    free(path);
    return rc;
}

/* What a checkpoint remembers of the tokenizer. */
static int hash_tokenizer(struct run *r) {
    struct data_settings s;
    struct tokenizer *t;
    if (r->cfg->data.data_format == FORMAT_MOCK) return 0;
    train_data_settings(r->cfg, DATA_TRAIN, &s);
    TRY(tokenizer_open(s.tokenizer_type, s.tokenizer_model, &t));
    tokenizer_template_sha256(t, s.conversation_template, r->tokenizer_sha256);
    snprintf(r->tokenizer_model_sha256, sizeof r->tokenizer_model_sha256, "%s",
             tokenizer_sha256(t));
    tokenizer_close(t);
    return 0;
}

static int begin_on_grid(struct run *r) {
    struct config *c = r->cfg;
    TRY(setup_agree(r, open_run_dir(r)));
    TRY(train_open_data(c, DATA_TRAIN, r->grid, &r->data));
    TRY(train_open_data(c, DATA_VALID, r->grid, &r->valid));
    TRY(setup_agree(r, hash_tokenizer(r)));
    TRY(setup_agree(r, stack_build(c, &r->stack)));
    TRY(setup_agree(r, setup_batches(r)));
    TRY(setup_agree(r, train_split(c, &r->stack, r->largest, &r->split)));
    TRY(setup_agree(r, setup_training(r)));
    fault_point("start.planned");
    TRY(setup_agree(r, write_used(r)));
    fault_point("start.used");
    report_plan(r);
    param_set_initialise(&r->stage.params, r->be, r->layout.pipeline.run_key);
    save_setup(r);
    if (c->checkpoint.save != NULL) TRY(setup_agree(r, ckpt_filter_check(&r->ckpt)));
    fault_point("resume.before");
    TRY(save_resume(r));
    fault_point("resume.after");
    int64_t left = c->derived.train_iters - r->at.step;
    r->speed = xcalloc((size_t)(left > 0 ? left : 0) + 1, sizeof *r->speed);
    if (c->training.check_weight_hash_across_dp_replicas_interval > 0) TRY(replica_check(r));
    machine_measure_peak(r);
    TRY(setup_agree(r, report_begin(r)));
    TRY(setup_agree(r, evaluation_report(r)));
    fault_point("start.reported");
    stop_install(r);
    return 0;
}

int setup_grid(struct run *r, struct config *cfg) {
    memset(r, 0, sizeof *r);
    r->cfg = cfg;
    r->started = clock_seconds();
    r->last_saved = -1;
    r->first_rank = comm_world_rank() == 0;
    TRY(grid_create((int)cfg->parallel.tensor_model_parallel_size,
                    (int)cfg->parallel.pipeline_model_parallel_size,
                    cfg->parallel.use_tp_pp_dp_mapping, cfg->parallel.distributed_timeout_minutes,
                    &r->grid));
    return machine_device(r);
}

int run_begin(struct run *r, struct config *cfg) {
    TRY(setup_grid(r, cfg));
    return begin_on_grid(r);
}

void run_end(struct run *r) {
    report_end(r);
    save_end(r);
    evaluation_end(r);
    replica_check_end(r);
    pipeline_destroy(r->pipeline);
    optim_destroy(r->optim);
    batcher_destroy(r->batcher);
    plan_microbatch_free(r->largest);
    stage_free(&r->stage);
    stack_free(&r->stack);
    if (r->data != NULL) dataset_close(r->data);
    if (r->valid != NULL) dataset_close(r->valid);
    if (r->be != NULL) {
        if (r->life.base != NULL) r->be->ops->mem_free(r->be, r->life.base);
        if (r->step.base != NULL) r->be->ops->mem_free(r->be, r->step.base);
        if (r->scratch.base != NULL) r->be->ops->mem_free(r->be, r->scratch.base);
    }
    if (r->grid != NULL) grid_destroy(r->grid);
    if (r->be != NULL) backend_destroy(r->be);
    free(r->result.loss_sum);
    free(r->result.loss_rows);
    free(r->split);
    free(r->writer);
    free(r->used_ini);
    free(r->split_text);
    free(r->history);
    free(r->speed);
    free(r->loaded);
    free(r->save_path);
    free(r->stop_path);
    log_close();
}
