/* Building a stage: blocks, parameters, recompute groups. */
#include <stdlib.h>
#include <string.h>

#include "model_impl.h"

struct block *stage_add_block(struct stage *st, int layer) {
    CHECK(st->n_blocks < st->capacity, "stage of layers %d..%d has too many blocks", st->first,
          st->end - 1);
    struct block *b = &st->block[st->n_blocks++];
    *b = (struct block){.stack_layer = layer,
                        .tp_size = st->tp_size,
                        .tp_rank = st->tp_rank,
                        .sequence_parallel = st->stack->sequence_parallel,
                        .set = &st->params};
    for (int i = 0; i < BLOCK_PARAMS_MAX; i++) b->param[i] = -1;
    return b;
}

static bool layer_recomputes(const struct stage *st, int layer, enum recompute how, int64_t n) {
    return how == REPEAT_UNIFORM || (how == REPEAT_BLOCK && layer - st->first < n);
}

/* uniform: groups of n layers; block: the first n layers, each a group of its own. Only blocks with
 * a backward keep or recompute anything, and the head is never run twice: its forward adds to the
 * gradients. */
static void assign_groups(struct stage *st, enum recompute how, int64_t n) {
    for (int i = 0; i < st->n_blocks; i++) {
        const struct block *b = &st->block[i];
        bool again = layer_recomputes(st, b->stack_layer, how, n) && b->backward &&
                     b->ops->backward != NULL && !b->ops->once;
        int64_t step = how == REPEAT_UNIFORM && n > 0 ? n : 1;
        st->group[i] = again ? (int)((b->stack_layer - st->first) / step) : -1;
    }
}

int stage_build(const struct stack *s, int first, int end, int p, int r, enum recompute how,
                int64_t recompute_layers, struct stage *out) {
    CHECK(0 <= first && first < end && end <= s->n_layers, "stage of layers [%d, %d)", first, end);
    memset(out, 0, sizeof *out);
    out->stack = s;
    out->first = first;
    out->end = end;
    out->tp_size = p;
    out->tp_rank = r;
    out->capacity = 3 * (end - first);
    out->block = xcalloc((size_t)out->capacity, sizeof *out->block);
    out->group = xcalloc((size_t)out->capacity, sizeof *out->group);
    for (int i = first; i < end; i++) s->family->add_blocks(s, i, out);
    out->input_gradient = s->gradient_crosses[first];
    out->output_gradient = stage_mark_gradients(out, out->input_gradient) && end < s->n_layers;
    assign_groups(out, how, recompute_layers);
    return param_set_layout(&out->params, p, r);
}

void stage_free(struct stage *st) {
    param_set_free(&st->params);
    free(st->block);
    free(st->group);
    memset(st, 0, sizeof *st);
}

static bool stage_has_language(const struct stage *st) {
    return st->stack->layer[st->end - 1].kind == LAYER_LANGUAGE;
}

void stage_allocate(struct stage *st, struct backend *be, struct arena *life) {
    const struct language_config *c = &st->stack->shape.language;
    param_set_allocate(&st->params, be, life);
    if (c->rope && stage_has_language(st))
        st->rope = tensor_alloc(life, c->max_positions, c->rotary_dim, be->acc);
    for (int i = 0; i < st->n_blocks; i++) st->block[i].rope = st->rope;
}

void stage_allocate_caches(struct stage *st, struct backend *be, int64_t rows, struct arena *life) {
    for (int i = 0; i < st->n_blocks; i++) {
        int64_t cols = block_cache_cols(&st->block[i]);
        if (cols > 0) st->block[i].cache = tensor_alloc(life, rows, cols, be->dtype);
    }
}

struct tensor stage_allocate_logits(const struct stage *st, struct backend *be,
                                    struct arena *life) {
    struct cut cut = vocabulary_cut(&st->stack->shape.language);
    return tensor_alloc(life, 1, cut_part(&cut, st->tp_size, st->tp_rank).total, be->dtype);
}

void stage_tables_fill(struct stage *st, struct backend *be) {
    const struct rope_config *c = &st->stack->shape.language.rotary;
    if (st->rope.rows == 0) return;
    float *frequency = xmalloc((size_t)st->rope.cols / 2 * sizeof *frequency + 1);
    rope_frequencies(c, st->rope.cols, frequency);
    be->ops->rope_table(be, frequency, c->scale, &st->rope);
    free(frequency);
}
