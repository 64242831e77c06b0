/* Patch embedding of CLIP (arXiv 2103.00020), the head of the first vision layer:
 *   e = W_patch patches (convolution with kernel = stride, no bias), h = [class; e] + position,
 *   y = LayerNorm(h; pre_layrnorm).
 * Not tensor-parallel: every rank computes all rows; under sequence parallelism it keeps its own. */
#include <math.h>

#include "nn_impl.h"

enum slot { CLASS, PATCH, POSITION, LN_W, LN_B };
enum kept { PATCHES, EMBEDDED, STATS };

static int64_t patch_inputs(const struct vision_config *c) {
    return c->channels * c->patch * c->patch;
}

static int64_t tower_rows(const struct vision_config *c, const struct microbatch *mb) {
    return mb->tiles * (vision_patches(c) + 1);
}

static void patch_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                        int64_t *cols) {
    const struct vision_config *c = b->config;
    *rows = rows_held(ROWS_VISION, mb, vision_patches(c) + 1, false, b->sequence_parallel,
                      b->tp_size, b->tp_rank);
    *cols = c->hidden;
}

static void patch_save(const struct block *b, const struct pass *p, struct arena *arena,
                       struct saved *s) {
    const struct vision_config *c = b->config;
    int64_t rows = tower_rows(c, p->mb);
    s->t[PATCHES] =
        tensor_alloc(arena, p->mb->tiles * vision_patches(c), patch_inputs(c), p->be->dtype);
    s->t[EMBEDDED] = tensor_alloc(arena, rows, c->hidden, p->be->dtype);
    s->t[STATS] = tensor_alloc(arena, rows, 2, p->be->acc);
}

static int64_t my_first(const struct block *b, const struct microbatch *mb,
                        struct row_split *split) {
    const struct vision_config *c = b->config;
    if (!b->sequence_parallel) return 0;
    rows_split(ROWS_VISION, mb, vision_patches(c) + 1, false, b->tp_size, split);
    return split->offset[b->tp_rank];
}

static void patch_forward(struct block *b, struct pass *p, const struct tensor *x,
                          const struct tensor *y, struct saved *s) {
    (void)x;
    const struct vision_config *c = b->config;
    struct backend *be = p->be;
    struct row_split split;
    int64_t rows = tower_rows(c, p->mb), first = my_first(b, p->mb, &split);
    if (rows == 0) return;
    size_t mark = arena_mark(p->scratch);
    struct tensor w = block_weight(b, PATCH, 1), cls = block_weight(b, CLASS, 1);
    struct tensor pos = block_weight(b, POSITION, 1);
    struct tensor gamma = block_weight(b, LN_W, 1), beta = block_weight(b, LN_B, 1);
    struct tensor e = scratch_tensor(p, s->t[PATCHES].rows, c->hidden);
    be->ops->patchify(be, p->tab->pixels, p->mb->tiles, c->channels, c->img_h, c->img_w, c->patch,
                      &s->t[PATCHES]);
    be->ops->linear_forward(be, &s->t[PATCHES], &w, NULL, &e);
    be->ops->class_position_forward(be, &e, &cls, &pos, &s->t[EMBEDDED]);
    struct tensor mine = tensor_rows(s->t[EMBEDDED], first, y->rows);
    struct tensor stats = tensor_rows(s->t[STATS], first, y->rows);
    be->ops->norm_forward(be, NORM_LAYER, c->eps, &mine, &gamma, &beta, y, &stats);
    arena_release(p->scratch, mark);
}

static void patch_backward(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                           const struct tensor *dy, const struct tensor *dx) {
    (void)x, (void)dx;
    const struct vision_config *c = b->config;
    struct backend *be = p->be;
    struct row_split split;
    int64_t rows = tower_rows(c, p->mb), first = my_first(b, p->mb, &split);
    if (rows == 0) return;
    size_t mark = arena_mark(p->scratch);
    struct tensor gamma = block_weight(b, LN_W, 1);
    struct tensor dgamma = block_grad(b, LN_W, 1), dbeta = block_grad(b, LN_B, 1);
    struct tensor mine = tensor_rows(s->t[EMBEDDED], first, dy->rows);
    struct tensor stats = tensor_rows(s->t[STATS], first, dy->rows);
    struct tensor dh = scratch_tensor(p, rows, c->hidden);
    struct tensor dmine = tensor_rows(dh, first, dy->rows);
    /* Other ranks' rows stay zero: the gradients below are partial and summed over TP. */
    if (b->sequence_parallel) tensor_zero(p, &dh);
    be->ops->norm_backward(be, NORM_LAYER, dy, &mine, &gamma, &stats, &dmine, false, &dgamma,
                           &dbeta);
    struct tensor de = scratch_tensor(p, s->t[PATCHES].rows, c->hidden);
    struct tensor dw = block_grad(b, PATCH, 1), dcls = block_grad(b, CLASS, 1);
    struct tensor dpos = block_grad(b, POSITION, 1);
    be->ops->class_position_backward(be, &dh, &de, &dcls, &dpos);
    be->ops->linear_wgrad(be, &de, &s->t[PATCHES], &dw);
    arena_release(p->scratch, mark);
}

static const struct block_ops patch_ops = {.name = "patch_embed",
                                           .out_shape = patch_shape,
                                           .save = patch_save,
                                           .forward = patch_forward,
                                           .backward = patch_backward};

void block_patch_embed(struct block *b, const struct vision_config *c) {
    b->ops = &patch_ops;
    b->config = c;
    int64_t h = c->hidden, n = vision_patches(c);
    double std = 0.02, std_class = 1.0 / sqrt((double)h);
    struct param_home home = {"model/vision_tower/", "vision_tower.vision_model.", -1, PARAM_VISION,
                              c->frozen};
    struct param_spec spec[] = {{.name = "embeddings/class_embedding",
                                 .dims = "features",
                                 .ndim = 1,
                                 .shape = {h},
                                 .init = INIT_NORMAL,
                                 .scale = std_class},
                                {.name = "embeddings/patch_embedding/weight",
                                 .dims = "out_features,channels,height,width",
                                 .ndim = 4,
                                 .shape = {h, c->channels, c->patch, c->patch},
                                 .init = INIT_NORMAL,
                                 .scale = std},
                                {.name = "embeddings/position_embedding/weight",
                                 .dims = "positions,features",
                                 .ndim = 2,
                                 .shape = {n + 1, h},
                                 .init = INIT_NORMAL,
                                 .scale = std}};
    const char *gain = "pre_layrnorm/weight", *bias = "pre_layrnorm/bias";
    for (int i = 0; i < 3; i++) {
        spec[i].hf_name = spec[i].name;
        spec[i].cut = cut_none();
        spec[i].rows_local = true;
        block_declare(b, i, &home, spec[i]);
    }
    block_declare(b, LN_W, &home, norm_spec(gain, gain, h, false));
    block_declare(b, LN_B, &home, norm_spec(bias, bias, h, true));
}
