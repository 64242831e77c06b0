/* LLaVA: CLIP-ViT + projector + a decoder-only language model (arXiv 2304.08485, 2310.03744). */
#include <math.h>

#include "model_impl.h"

static struct vision_config vision_shape(const struct config *c) {
    return (struct vision_config){.hidden = c->vision.hidden_size,
                                  .ffn = c->vision.ffn_hidden_size,
                                  .heads = c->vision.num_attention_heads,
                                  .layers = c->vision.num_layers,
                                  .img_h = c->vision.img_h,
                                  .img_w = c->vision.img_w,
                                  .patch = c->vision.patch_dim,
                                  .channels = c->vision.num_channels,
                                  .feature_layer = (int)c->vision.vision_feature_layer,
                                  .drop_class = c->vision.disable_vision_class_token,
                                  .frozen = c->vision.freeze_vit,
                                  .eps = 1e-5};
}

static struct rope_config rotary_shape(const struct config_language *l) {
    static const enum rope_kind kind[] = {[ROPE_TYPE_ROPE] = ROPE_PLAIN,
                                          [ROPE_TYPE_LINEAR] = ROPE_LINEAR,
                                          [ROPE_TYPE_LLAMA3] = ROPE_LLAMA3,
                                          [ROPE_TYPE_YARN] = ROPE_YARN};
    return (struct rope_config){.kind = kind[l->rope_type],
                                .base = l->rotary_base,
                                .factor = l->rotary_scaling_factor,
                                .original = (double)l->original_max_position_embeddings,
                                .low_freq = l->low_freq_factor,
                                .high_freq = l->high_freq_factor,
                                .beta_fast = l->beta_fast,
                                .beta_slow = l->beta_slow,
                                .round = l->correction_range_round_to_int,
                                .scale = l->rope_type == ROPE_TYPE_YARN ? l->attention_factor : 1};
}

static struct language_config language_shape(const struct config *c) {
    int64_t d = c->language.kv_channels;
    return (struct language_config){
        .hidden = c->language.hidden_size,
        .ffn = c->language.ffn_hidden_size,
        .heads = c->language.num_attention_heads,
        .kv_heads = c->language.num_query_groups,
        .head_dim = d,
        .layers = c->language.num_layers,
        .vocab = c->language.vocab_size,
        .max_positions = c->language.decoder_seq_length,
        .norm = c->language.normalization == NORMALIZATION_RMSNORM ? NORM_RMS : NORM_LAYER,
        .eps = c->language.norm_epsilon,
        .glu = c->language.swiglu,
        .act = c->language.swiglu ? ACT_SILU : ACT_GELU,
        .bias = c->language.add_bias_linear,
        .qkv_bias = c->language.add_bias_linear || c->language.add_qkv_bias,
        .rope = c->language.position_embedding_type == POSITION_ROPE,
        .rotary_dim = (int64_t)((double)d * c->language.rotary_percent),
        .rotary = rotary_shape(&c->language),
        .window = c->language.window_size,
        .init_std = c->language.init_method_std,
        .hidden_dropout = c->language.hidden_dropout,
        .attention_dropout = c->language.attention_dropout,
        .label_smoothing = c->training.label_smoothing,
        .z_loss = c->training.z_loss,
        .frozen = c->language.freeze_lm};
}

static struct projector_config projector_shape(const struct config *c) {
    static const enum act_kind act[] = {[PROJECTOR_GELU] = ACT_GELU,
                                        [PROJECTOR_QUICK_GELU] = ACT_QUICK_GELU,
                                        [PROJECTOR_SILU] = ACT_SILU};
    return (struct projector_config){.affine = c->projector.projector_type == PROJECTOR_AFFINE,
                                     .in = c->vision.hidden_size,
                                     .hidden = c->projector.projector_hidden_size,
                                     .out = c->language.hidden_size,
                                     .bias = c->projector.projector_bias,
                                     .act = act[c->projector.projector_activation],
                                     .uniform_init =
                                         c->projector.projector_init == PROJECTOR_INIT_UNIFORM,
                                     .init_std = c->language.init_method_std,
                                     .frozen = c->projector.freeze_vision_projection};
}

/* Of any image: the most tiles and the most rows of a map that the resolutions allow. */
static void image_shape(const struct config *c, struct model_shape *m) {
    const struct config_list *l = &c->data.image_grid_pinpoints;
    m->newline = c->data.image_aspect_ratio == IMAGE_ASPECT_ANYRES;
    m->image_tiles = 1;
    for (int64_t i = 0; m->newline && i + 1 < l->n; i += 2) {
        int64_t w = l->v[i] / m->vision.img_w, h = l->v[i + 1] / m->vision.img_h;
        int64_t rows = h * (m->vision.img_h / m->vision.patch);
        if (1 + w * h > m->image_tiles) m->image_tiles = 1 + w * h;
        if (rows > m->image_newlines) m->image_newlines = rows;
    }
}

/* CLIP's initialisation scales (llava.md section 2.7 of the published recipe). */
static struct transformer_config vision_layer(const struct vision_config *v, int number) {
    double h = (double)v->hidden, deep = 1.0 / sqrt(h * 2.0 * (double)v->layers);
    return (struct transformer_config){.vision = true,
                                       .hidden = v->hidden,
                                       .ffn = v->ffn,
                                       .heads = v->heads,
                                       .kv_heads = v->heads,
                                       .head_dim = v->hidden / v->heads,
                                       .tile_rows = vision_patches(v) + 1,
                                       .norm = NORM_LAYER,
                                       .eps = v->eps,
                                       .qkv_bias = true,
                                       .bias = true,
                                       .act = ACT_QUICK_GELU,
                                       .std_qkv = deep,
                                       .std_out = 1.0 / sqrt(h),
                                       .std_fc1 = 1.0 / sqrt(2.0 * h),
                                       .std_fc2 = deep,
                                       .frozen = v->frozen,
                                       .number = number};
}

static struct transformer_config language_layer(const struct language_config *l, int number) {
    double std = l->init_std;
    return (struct transformer_config){.hidden = l->hidden,
                                       .ffn = l->ffn,
                                       .heads = l->heads,
                                       .kv_heads = l->kv_heads,
                                       .head_dim = l->head_dim,
                                       .norm = l->norm,
                                       .eps = l->eps,
                                       .glu = l->glu,
                                       .qkv_bias = l->qkv_bias,
                                       .bias = l->bias,
                                       .act = l->act,
                                       .causal = true,
                                       .rope = l->rope,
                                       .window = l->window,
                                       .hidden_dropout = l->hidden_dropout,
                                       .attention_dropout = l->attention_dropout,
                                       .std_qkv = std,
                                       .std_out = std,
                                       .std_fc1 = std,
                                       .std_fc2 = std,
                                       .frozen = l->frozen,
                                       .number = number};
}

/* Counts of parameters, their bytes and those of the optimizer's states stay far below 2^63. */
#define PARAMETERS_MAX 0x1p48

static double transformer_parameters(double hidden, double ffn, double heads_dim, double kv_dim) {
    return 2 * hidden * (heads_dim + kv_dim) + 3 * hidden * ffn + 2 * (heads_dim + 2 * kv_dim) +
           8 * hidden + 3 * ffn;
}

/* Each width is within its range; the products of several are checked before any is formed. The key
 * named is one of the part that has most. */
static int check_parameters(const struct config *cfg, const struct model_shape *m) {
    const struct vision_config *v = &m->vision;
    const struct language_config *l = &m->language;
    const struct projector_config *p = &m->projector;
    double d = (double)l->head_dim, vh = (double)v->hidden, patches = (double)vision_patches(v);
    double inner = p->affine ? 0 : (double)p->hidden;
    const struct {
        const void *field;
        double parameters;
    } part[] = {
        {&cfg->vision.hidden_size,
         (double)v->layers * transformer_parameters(vh, (double)v->ffn, vh, vh)},
        {&cfg->vision.patch_dim,
         vh * ((double)v->channels * (double)v->patch * (double)v->patch + patches + 1)},
        {&cfg->projector.projector_hidden_size,
         (vh + 1) * inner + ((p->affine ? vh : inner) + 1) * (double)p->out},
        {&cfg->language.hidden_size,
         (double)l->layers * transformer_parameters((double)l->hidden, (double)l->ffn,
                                                    (double)l->heads * d, (double)l->kv_heads * d)},
        {&cfg->language.vocab_size, 2 * (double)l->vocab * (double)l->hidden}};
    size_t most = 0;
    double sum = 0;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        sum += part[i].parameters;
        if (part[i].parameters > part[most].parameters) most = i;
    }
    if (sum <= PARAMETERS_MAX) return 0;
    return config_raise(
        cfg, part[most].field,
        "the model would have about %.3g parameters, %.3g of them from this key with "
        "the number and widths of layers beside it; at most 2^48 are counted",
        sum, part[most].parameters);
}

static int llava_build(const struct config *cfg, struct stack *s) {
    struct model_shape *m = &s->shape;
    m->vision = vision_shape(cfg);
    m->language = language_shape(cfg);
    m->projector = projector_shape(cfg);
    image_shape(cfg, m);
    if (cfg->language.position_embedding_type != POSITION_ROPE &&
        cfg->language.position_embedding_type != POSITION_NONE)
        return error_raise(EXIT_USAGE,
                           "[language] position_embedding_type: family llava takes rope "
                           "or none in this version");
    if (!cfg->language.untie_embeddings_and_output_weights)
        return error_raise(EXIT_USAGE,
                           "[language] untie_embeddings_and_output_weights = false: the "
                           "head of family llava is its own tensor, set it to true");
    if (m->language.rotary_dim % 2 != 0)
        return error_raise(EXIT_USAGE,
                           "[language] kv_channels * rotary_percent = %lld must be even",
                           (long long)m->language.rotary_dim);
    TRY(check_parameters(cfg, m));
    int n[LAYER_KIND_COUNT] = {(int)m->vision.layers, m->projector.affine ? 1 : 2,
                               (int)m->language.layers};
    s->n_layers = n[0] + n[1] + n[2];
    s->layer = xcalloc((size_t)s->n_layers, sizeof *s->layer);
    s->transformer = xcalloc((size_t)s->n_layers, sizeof *s->transformer);
    int at = 0;
    for (int kind = 0; kind < LAYER_KIND_COUNT; kind++) {
        s->kind_count[kind] = n[kind];
        for (int i = 0; i < n[kind]; i++, at++) {
            s->layer[at] = (struct layer){(enum layer_kind)kind, i};
            if (kind == LAYER_VISION) s->transformer[at] = vision_layer(&m->vision, i);
            if (kind == LAYER_LANGUAGE) s->transformer[at] = language_layer(&m->language, i);
        }
    }
    return 0;
}

static void add_vision(const struct stack *s, int layer, struct stage *st) {
    const struct vision_config *v = &s->shape.vision;
    int number = s->layer[layer].number, last = (int)v->layers - 1;
    if (number == 0) block_patch_embed(stage_add_block(st, layer), v);
    block_transformer(stage_add_block(st, layer), &s->transformer[layer],
                      number == last && v->feature_layer == -2);
    if (number == last) block_select(stage_add_block(st, layer), v);
}

static void add_language(const struct stack *s, int layer, struct stage *st) {
    int number = s->layer[layer].number;
    if (number == 0) block_embed_merge(stage_add_block(st, layer), &s->shape);
    block_transformer(stage_add_block(st, layer), &s->transformer[layer], false);
    if (number == s->shape.language.layers - 1) block_head(stage_add_block(st, layer), &s->shape);
}

static void llava_add_blocks(const struct stack *s, int layer, struct stage *st) {
    switch (s->layer[layer].kind) {
    case LAYER_VISION:
        add_vision(s, layer, st);
        return;
    case LAYER_PROJECTOR:
        block_projector(stage_add_block(st, layer), &s->shape, s->layer[layer].number);
        return;
    case LAYER_LANGUAGE:
        add_language(s, layer, st);
        return;
    case LAYER_KIND_COUNT:
        break;
    }
    CHECK(false, "layer %d of kind %d", layer, s->layer[layer].kind);
}

const struct family family_llava = {"llava", llava_build, llava_add_blocks};
