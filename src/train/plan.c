/* From a job file to its plan: the part that `train` and `check` share. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "train_impl.h"

#define SCAN_LIMIT 20000000 /* samples looked at one by one for the largest micro-batch */

/* ---- the largest micro-batch --------------------------------------------------------------------- */
void batch_sizes_add(struct batch_sizes *to, const struct sample *s) {
    to->images += s->n_images;
    for (int32_t k = 0; k < s->n_images; k++) to->tiles += sample_image_tiles(s, k);
    for (int32_t k = 0; s->layout != NULL && k < s->n_images; k++)
        to->newlines += s->layout[k].rows;
    to->tokens += s->merged_len;
    to->targets += s->n_targets;
    if (s->merged_len > to->max_segment) to->max_segment = s->merged_len;
}

static void sizes_max(struct batch_sizes *to, const struct batch_sizes *s) {
    if (s->images > to->images) to->images = s->images;
    if (s->tiles > to->tiles) to->tiles = s->tiles;
    if (s->newlines > to->newlines) to->newlines = s->newlines;
    if (s->tokens > to->tokens) to->tokens = s->tokens;
    if (s->targets > to->targets) to->targets = s->targets;
    if (s->max_segment > to->max_segment) to->max_segment = s->max_segment;
}

static struct batch_sizes scan_positions(const struct dataset *data, struct sampler *order,
                                         int64_t samples, int64_t per_batch) {
    struct batch_sizes most = {0};
    for (int64_t at = 0; at < samples; at += per_batch) {
        struct batch_sizes one = {0};
        for (int64_t i = 0; i < per_batch; i++) {
            struct sample s;
            dataset_sample(data, sampler_sample(order, at + i), &s);
            batch_sizes_add(&one, &s);
        }
        sizes_max(&most, &one);
    }
    return most;
}

/* Too many to look at: as if the largest values met in one micro-batch. */
static struct batch_sizes bound_sizes(const struct dataset *data, int64_t per_batch) {
    struct batch_sizes most = {0};
    for (int64_t i = 0; i < dataset_count(data); i++) {
        struct sample s;
        struct batch_sizes one = {0};
        dataset_sample(data, i, &s);
        batch_sizes_add(&one, &s);
        sizes_max(&most, &one);
    }
    most.images *= per_batch;
    most.tiles *= per_batch;
    most.newlines *= per_batch;
    most.tokens *= per_batch;
    most.targets *= per_batch;
    return most;
}

/* Micro-batches lie one behind the other in the order of samples, whatever the data size. */
int64_t train_eval_steps(const struct config *cfg, const struct dataset *valid) {
    int64_t per_step = cfg->training.global_batch_size;
    int64_t all = (dataset_count(valid) + per_step - 1) / per_step;
    return cfg->eval.eval_iters < all ? cfg->eval.eval_iters : all;
}

/* The micro-batches of `steps` steps. */
static struct batch_sizes scan_steps(const struct config *cfg, const struct dataset *data,
                                     int64_t steps) {
    const struct config_training *t = &cfg->training;
    int64_t samples;
    if (__builtin_mul_overflow(steps, t->global_batch_size, &samples) || samples > SCAN_LIMIT)
        return bound_sizes(data, t->micro_batch_size);
    struct sampler *order =
        sampler_create(dataset_count(data), rng_run_key(t->seed), cfg->data.shuffle);
    struct batch_sizes most = scan_positions(data, order, samples, t->micro_batch_size);
    sampler_destroy(order);
    return most;
}

static struct microbatch *batch_of(const struct stack *s, int64_t samples,
                                   const struct batch_sizes *m) {
    struct microbatch sizes = {.samples = samples,
                               .images = m->images,
                               .tiles = m->tiles,
                               .tokens = m->tokens,
                               .newlines = m->newlines,
                               .max_segment = m->max_segment,
                               .targets = m->targets};
    return plan_microbatch_of(s, &sizes);
}

struct microbatch *train_largest_microbatch(const struct config *cfg, const struct dataset *data,
                                            const struct dataset *valid, const struct stack *s) {
    int64_t per_batch = cfg->training.micro_batch_size;
    if (data == NULL) return plan_microbatch_worst(s, per_batch, cfg->language.decoder_seq_length);
    struct batch_sizes m = scan_steps(cfg, data, cfg->derived.train_iters);
    if (valid != NULL) {
        struct batch_sizes v = scan_steps(cfg, valid, train_eval_steps(cfg, valid));
        sizes_max(&m, &v);
    }
    return batch_of(s, per_batch, &m);
}

struct microbatch *train_largest_evaluated(const struct config *cfg, const struct dataset *valid,
                                           const struct stack *s) {
    struct batch_sizes m = scan_steps(cfg, valid, train_eval_steps(cfg, valid));
    return batch_of(s, cfg->training.micro_batch_size, &m);
}

/* ---- the split ------------------------------------------------------------------------------------- */
int train_split(struct config *cfg, const struct stack *s, const struct microbatch *largest,
                int64_t **split) {
    int64_t pp = cfg->parallel.pipeline_model_parallel_size;
    *split = xcalloc((size_t)pp, sizeof **split);
    TRY(plan_check_size(cfg, s, largest));
    if (cfg->parallel.split_spec.n > 0) {
        memcpy(*split, cfg->parallel.split_spec.v, (size_t)pp * sizeof **split);
        return 0;
    }
    struct plan_layout l;
    plan_layout_from_config(cfg, *split, &l);
    TRY(plan_split(s, largest, l.recompute, (int)pp, *split));
    return config_resolve_split(cfg, *split, pp);
}

int *train_writers(const struct config *cfg, int n, const int *node) {
    const struct config_checkpoint *c = &cfg->checkpoint;
    if (c->writers != WRITERS_NODE) return NULL;
    int *writer = xcalloc((size_t)n, sizeof *writer);
    ckpt_writers(node, n, c->ranks_per_writer > 0 ? c->ranks_per_writer : 0, writer);
    return writer;
}

char *train_split_text(const int64_t *split, int64_t pp) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory");
    for (int64_t i = 0; i < pp; i++) fprintf(to, "%s%lld", i > 0 ? "," : "", (long long)split[i]);
    fclose(to);
    return text;
}

/* ---- the limit --------------------------------------------------------------------------------------- */
/* The first three that this job has not used up. */
static void remedies(const struct config *cfg, const struct rank_plan *p, char *text, size_t size) {
    const struct {
        bool open;
        const char *what;
    } list[] = {
        {cfg->checkpoint.writers == WRITERS_NODE && p->snapshot > 0, "a smaller ranks_per_writer"},
        {cfg->training.recompute_granularity != RECOMPUTE_FULL, "recompute_granularity = full"},
        {!cfg->parallel.use_distributed_optimizer && cfg->derived.data_parallel_size > 1,
         "use_distributed_optimizer = true"},
        {cfg->training.micro_batch_size > 1, "a smaller micro_batch_size"},
        {p->snapshot > 0, "async_save = false"},
        {true, "a larger pipeline_model_parallel_size"},
        {true, "a larger tensor_model_parallel_size"},
        {true, "a smaller decoder_seq_length"}};
    int n = 0, used = 0;
    for (size_t i = 0; i < sizeof list / sizeof *list && n < 3; i++)
        if (list[i].open)
            used += snprintf(text + used, size - (size_t)used, "%s%s",
                             n == 0   ? ""
                             : n == 2 ? ", or "
                                      : ", ",
                             list[i].what),
                n++;
}

int train_check_memory(const struct config *cfg, const struct rank_plan *p, int rank) {
    double limit = cfg->run.memory_limit_gib, gib = 1024.0 * 1024.0 * 1024.0;
    double needed = (double)rank_plan_total(p) / gib;
    if (limit <= 0 || needed <= limit) return 0;
    char text[256];
    remedies(cfg, p, text, sizeof text);
    return config_raise(
        cfg, &cfg->run.memory_limit_gib,
        "rank %d (tensor %d, stage %d, layers %d..%d) needs %.3f GiB: weights %.3f, "
        "gradients %.3f, optimizer %.3f, tables %.3f, activations %.3f, messages "
        "%.3f, scratch %.3f, workspace %.3f, snapshot %.3f; less is needed with %s",
        rank, p->tp, p->pp, p->first, p->end - 1, needed, (double)p->weights / gib,
        (double)p->gradients / gib, (double)p->optimizer / gib, (double)p->tables / gib,
        (double)p->activations / gib, (double)p->messages / gib, (double)p->scratch / gib,
        (double)p->workspace / gib, (double)p->snapshot / gib, text);
}
