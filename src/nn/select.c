/* Feature selection at the end of the tower: drop the class row of every tile (LLaVA's "patch"),
 * or keep all rows. Carries the tower's unused final norm, so that it survives an export. */
#include "nn_impl.h"

enum slot { POST_W, POST_B };

static int64_t tile_rows(const struct vision_config *c) {
    return vision_patches(c) + 1;
}

static void select_shape(const struct block *b, const struct microbatch *mb, int64_t *rows,
                         int64_t *cols) {
    const struct vision_config *c = b->config;
    *rows = rows_held(ROWS_IMAGE, mb, tile_rows(c), c->drop_class, b->sequence_parallel, b->tp_size,
                      b->tp_rank);
    *cols = c->hidden;
}

static void select_forward(struct block *b, struct pass *p, const struct tensor *x,
                           const struct tensor *y, struct saved *s) {
    (void)b, (void)s;
    p->be->ops->rows_gather(p->be, x, p->tab->select_row, y);
}

static void select_backward(struct block *b, struct pass *p, const struct tensor *x,
                            struct saved *s, const struct tensor *dy, const struct tensor *dx) {
    (void)b, (void)s, (void)x;
    if (dx == NULL) return;
    tensor_zero(p, dx);
    p->be->ops->rows_scatter(p->be, dy, p->tab->select_row, dx);
}

static const struct block_ops select_ops = {.name = "select",
                                            .out_shape = select_shape,
                                            .forward = select_forward,
                                            .backward = select_backward};
static const struct block_ops keep_ops = {.name = "keep_class", .out_shape = select_shape};

void block_select(struct block *b, const struct vision_config *c) {
    b->ops = c->drop_class ? &select_ops : &keep_ops;
    b->config = c;
    struct param_home home = {"model/vision_tower/", "vision_tower.vision_model.", -1, PARAM_VISION,
                              true};
    const char *gain = "post_layernorm/weight", *bias = "post_layernorm/bias";
    block_declare(b, POST_W, &home, norm_spec(gain, gain, c->hidden, false));
    block_declare(b, POST_B, &home, norm_spec(bias, bias, c->hidden, true));
}
