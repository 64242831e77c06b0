/* FLOPs per layer, the automatic split, and made-up micro-batches for planning. */
#include <stdlib.h>
#include <string.h>

#include "plan_impl.h"

/* Layers that cannot be parted (the projector's) are measured together. */
static int group_end(const struct stack *s, int layer) {
    int end = layer + 1;
    while (end < s->n_layers && !stack_cut_allowed(s, end)) end++;
    return end;
}

void plan_stage_cost(struct stage *st, const struct microbatch *mb, struct layer_cost *out) {
    struct grid *grid = grid_create_measuring(1, 1, 1, false, 0, 0, 0);
    struct backend *be = backend_create_measuring(DTYPE_F32);
    struct arena life;
    struct pipeline_memory memory;
    struct pipeline_settings settings = {.micro_batches = 1};
    arena_init_measuring(&life, "life");
    stage_allocate(st, be, &life);
    pipeline_measure(st, be, grid, 1, 0, &settings, mb, &memory);
    *out = (struct layer_cost){memory.forward_flops, memory.backward_flops};
    backend_destroy(be);
    grid_destroy(grid);
}

int plan_layer_costs(const struct stack *s, const struct microbatch *mb, enum recompute how,
                     struct layer_cost *cost) {
    enum recompute each = how == REPEAT_UNIFORM ? REPEAT_UNIFORM : REPEAT_NOTHING;
    memset(cost, 0, (size_t)s->n_layers * sizeof *cost);
    for (int i = 0; i < s->n_layers; i = group_end(s, i)) {
        struct stage st;
        TRY(stage_build(s, i, group_end(s, i), 1, 0, each, 1, &st));
        plan_stage_cost(&st, mb, &cost[i]);
        stage_free(&st);
    }
    return 0;
}

int plan_split(const struct stack *s, const struct microbatch *mb, enum recompute how, int pp,
               int64_t *split) {
    struct layer_cost *cost = xcalloc((size_t)s->n_layers, sizeof *cost);
    double *sum = xcalloc((size_t)s->n_layers, sizeof *sum);
    bool *allowed = xcalloc((size_t)s->n_layers + 1, sizeof *allowed);
    int rc = plan_layer_costs(s, mb, how, cost);
    for (int i = 0; i < s->n_layers; i++) {
        sum[i] = cost[i].forward + cost[i].backward;
        allowed[i] = stack_cut_allowed(s, i);
    }
    if (rc == 0) rc = plan_partition(sum, s->n_layers, allowed, pp, split);
    free(cost);
    free(sum);
    free(allowed);
    return rc;
}

struct microbatch *plan_microbatch_sized(const struct stack *s, int64_t samples, int64_t images,
                                         int64_t tokens, int64_t max_segment, int64_t targets) {
    struct microbatch sizes = {.samples = samples,
                               .images = images,
                               .tiles = images,
                               .tokens = tokens,
                               .max_segment = max_segment,
                               .targets = targets};
    return plan_microbatch_of(s, &sizes);
}

struct microbatch *plan_microbatch_of(const struct stack *s, const struct microbatch *sizes) {
    int64_t samples = sizes->samples, tokens = sizes->tokens, max_segment = sizes->max_segment;
    const struct vision_config *v = &s->shape.vision;
    struct microbatch *mb = xcalloc(1, sizeof *mb);
    int64_t *cu = xcalloc((size_t)samples + 1, sizeof *cu);
    for (int64_t i = 0; i < samples; i++) {
        int64_t left = tokens - cu[i];
        cu[i + 1] = cu[i] + (left < max_segment ? left : max_segment);
    }
    cu[samples] = tokens;
    *mb = (struct microbatch){.samples = samples,
                              .images = sizes->images,
                              .tiles = sizes->tiles,
                              .image_rows =
                                  sizes->tiles * (vision_patches(v) + (v->drop_class ? 0 : 1)),
                              .tokens = tokens,
                              .newlines = sizes->newlines,
                              .targets = sizes->targets,
                              .max_segment = max_segment,
                              .cu_tokens = cu};
    return mb;
}

struct microbatch *plan_microbatch_worst(const struct stack *s, int64_t samples,
                                         int64_t seq_length) {
    const struct vision_config *v = &s->shape.vision;
    int64_t image = vision_patches(v) + (v->drop_class ? 0 : 1);
    int64_t text = seq_length > image ? seq_length - image : 0;
    int64_t newlines = s->shape.image_newlines;
    struct microbatch sizes = {.samples = samples,
                               .images = samples,
                               .tiles = samples * s->shape.image_tiles,
                               .tokens = samples * seq_length,
                               .newlines =
                                   samples * (newlines < seq_length ? newlines : seq_length),
                               .max_segment = seq_length,
                               .targets = samples * text};
    return plan_microbatch_of(s, &sizes);
}

void plan_microbatch_free(struct microbatch *mb) {
    if (mb == NULL) return;
    free((void *)mb->cu_tokens);
    free(mb);
}
