/* Memory of the tables that accompany a micro-batch. */
#include <string.h>

#include "model.h"

struct stage_needs stage_needs(const struct stage *st) {
    const struct stack *s = st->stack;
    int vision = s->kind_count[LAYER_VISION];
    int language = s->n_layers - s->kind_count[LAYER_LANGUAGE];
    return (struct stage_needs){
        .pixels = st->first == 0 && vision > 0,
        .vision = st->first<vision,
                            .select = st->first<vision && st->end >= vision,
                                                .embedding = st->first <= language && st->end>
                                          language,
                            .language = st->end>
                      language,
        .head = st->end == s->n_layers};
}

static int32_t *indices(struct arena *a, int64_t n) {
    return arena_alloc(a, (size_t)n * sizeof(int32_t));
}

void stage_tables_layout(const struct stage *st, const struct microbatch *mb, struct arena *arena,
                         struct batch_tables *out) {
    const struct vision_config *v = &st->stack->shape.vision;
    struct stage_needs need = stage_needs(st);
    int64_t my_images = rows_held(ROWS_IMAGE, mb, vision_patches(v) + 1, v->drop_class,
                                  st->stack->sequence_parallel, st->tp_size, st->tp_rank);
    memset(out, 0, sizeof *out);
    if (need.pixels)
        out->pixels = arena_alloc(arena, (size_t)(mb->tiles * v->channels * v->img_h * v->img_w) *
                                             sizeof(float));
    if (need.vision) out->tile_cu = indices(arena, mb->tiles + 1);
    if (need.select) out->select_row = indices(arena, my_images);
    if (need.embedding) {
        out->token = indices(arena, mb->tokens);
        out->image_to_row = indices(arena, mb->image_rows);
        out->my_image_row = indices(arena, my_images);
        out->newline_row = indices(arena, mb->newlines);
        out->my_newline_row = indices(arena, mb->newlines);
    }
    if (need.language) {
        out->position = indices(arena, mb->tokens);
        out->row_sample = indices(arena, mb->tokens);
        out->token_cu = indices(arena, mb->samples + 1);
        out->segment_sample = indices(arena, mb->samples);
    }
    if (need.head) {
        out->target_row = indices(arena, mb->targets);
        out->my_target_row = indices(arena, mb->targets);
        out->target = indices(arena, mb->targets);
    }
}
