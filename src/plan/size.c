/* Sizes beyond every machine. Each key alone is within its range, and yet the product of a few of them
 * passes 2^63: so what a plan adds and multiplies is bounded here first, in doubles, and everything
 * behind counts in 64 bits without looking. */
#include "plan_impl.h"

/* Bytes of one rank that holds all layers; four powers of two below what an arena may count. */
#define BYTES_MAX 0x1p57
/* Tables of rows, tiles and positions have entries of 32 bits. */
#define ROWS_MAX INT32_MAX

static double most(double a, double b) {
    return a > b ? a : b;
}

/* Columns that a transformer layer holds for a row: its input, norms, query, key, value, what attention
 * gives, two halves of the MLP and what is left after it; gradients as many again. */
static double layer_columns(double hidden, double ffn, double heads, double kv_heads, double dim) {
    return 2 * (6 * hidden + 4 * ffn + 2 * (heads + 2 * kv_heads) * dim + 2 * heads);
}

/* Of one micro-batch, in bytes of fp64. */
static double activations(const struct stack *s, const struct microbatch *mb) {
    const struct vision_config *v = &s->shape.vision;
    const struct language_config *l = &s->shape.language;
    const struct projector_config *p = &s->shape.projector;
    double patches = (double)vision_patches(v) + 1, tiles = (double)mb->tiles;
    double pixels = tiles * (double)v->channels * (double)v->img_h * (double)v->img_w;
    double vision = layer_columns((double)v->hidden, (double)v->ffn, (double)v->heads,
                                  (double)v->heads, (double)(v->hidden / v->heads));
    double language = layer_columns((double)l->hidden, (double)l->ffn, (double)l->heads,
                                    (double)l->kv_heads, (double)l->head_dim);
    double columns = 4 * ((double)p->in + (double)p->hidden + (double)p->out);
    columns += 4 * (double)v->channels * (double)v->patch * (double)v->patch;
    double head = 8 * ((double)mb->tokens + 2) * (double)l->hidden + 4 * (double)l->vocab;
    double tables = (double)l->max_positions * (double)l->rotary_dim;
    return 8 * (pixels + tiles * patches * (vision * (double)(v->layers + 1) + columns) +
                (double)mb->tokens * language * (double)(l->layers + 1) + head + tables);
}

static int raise_rows(const struct config *cfg, const char *what, double rows) {
    return config_raise(cfg, &cfg->training.micro_batch_size,
                        "the largest micro-batch has %.4g %s, and at most %d are counted; fewer "
                        "samples, or a smaller decoder_seq_length, img_h, img_w or "
                        "image_grid_pinpoints, or a larger patch_dim",
                        rows, what, ROWS_MAX);
}

int plan_check_size(const struct config *cfg, const struct stack *s, const struct microbatch *mb) {
    double patches = (double)mb->tiles * ((double)vision_patches(&s->shape.vision) + 1);
    double at_once = (double)cfg->derived.n_micro_batches;
    if ((double)mb->tokens > ROWS_MAX) return raise_rows(cfg, "merged rows", (double)mb->tokens);
    if (patches > ROWS_MAX) return raise_rows(cfg, "rows of the vision tower", patches);
    if (cfg->parallel.schedule != SCHEDULE_GPIPE &&
        at_once > cfg->parallel.pipeline_model_parallel_size)
        at_once = (double)cfg->parallel.pipeline_model_parallel_size;
    double bytes = activations(s, mb) * (most(at_once, 2) + 2);
    if (bytes <= BYTES_MAX) return 0;
    return config_raise(
        cfg, &cfg->training.micro_batch_size,
        "with all layers on one rank the largest micro-batch, %lld merged rows and "
        "%.4g of the vision tower, %.4g micro-batches in flight, would take up to "
        "%.3g bytes, and at most 2^57 are counted; fewer samples or narrower layers",
        (long long)mb->tokens, patches, at_once, bytes);
}
