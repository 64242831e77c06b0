/* What follows from other keys, and what must not be missing. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"

static struct config_place *place_of(struct config *cfg, const void *field) {
    return &cfg->source->place[config_index_of(cfg, field)];
}

/* Nothing to do for a given value but to note that it is the one that follows. */
static bool is_given(struct config_place *p, bool equal) {
    if (p->origin >= ORIGIN_FILE)
        p->at_default = p->at_default || equal;
    else
        p->origin = ORIGIN_DERIVED;
    return p->origin >= ORIGIN_FILE;
}

void config_follow_int(struct config *cfg, int64_t *field, int64_t value) {
    if (!is_given(place_of(cfg, field), *field == value)) *field = value;
}

static void follow_real(struct config *cfg, double *field, double value) {
    if (!is_given(place_of(cfg, field), *field == value)) *field = value;
}

static void follow_choice(struct config *cfg, int *field, int value) {
    if (!is_given(place_of(cfg, field), *field == value)) *field = value;
}

static void follow_path(struct config *cfg, char **field, const char *value) {
    if (value == NULL) return;
    bool equal = *field != NULL && strcmp(*field, value) == 0;
    if (is_given(place_of(cfg, field), equal)) return;
    free(*field);
    *field = xstrdup(value);
}

/* Complains once about a key that is needed and has no value. */
static void require(struct config *cfg, const void *field, const char *when) {
    int k = config_index_of(cfg, field);
    struct config_place *p = &cfg->source->place[k];
    if (p->origin >= ORIGIN_FILE) return;
    const struct config_key *key = &config_table[k];
    p->bad = true;
    error_raise(EXIT_USAGE, "%s: [%s] %s is required%s: %s", cfg->source->path, key->section,
                key->name, when, key->meaning);
}

static void require_marked(struct config *cfg) {
    for (int k = 0; k < config_n_keys; k++)
        if (config_table[k].initial[0] == '?') require(cfg, config_field(cfg, k), "");
}

/* 4 h, or with swiglu, whose three matrices should weigh as much, 8/3 h in whole 64s. */
static void derive_ffn(struct config *cfg) {
    struct config_language *l = &cfg->language;
    int64_t ffn = l->swiglu ? l->hidden_size * 8 / (3 * 64) * 64 : 4 * l->hidden_size;
    if (ffn > 0)
        config_follow_int(cfg, &l->ffn_hidden_size, ffn);
    else
        require(cfg, &l->ffn_hidden_size, " with swiglu and so small a hidden_size");
}

/* YaRN's scale of queries and keys (arXiv 2309.00071, section 3.4; doc/mathematics.md). */
static void derive_attention_factor(struct config *cfg) {
    struct config_language *l = &cfg->language;
    if (l->rope_type != ROPE_TYPE_YARN ||
        !config_sound(cfg, &l->rope_type, &l->rotary_scaling_factor, &l->mscale, &l->mscale_all_dim,
                      &l->attention_factor, NULL))
        return;
    double stretch = l->rotary_scaling_factor > 1 ? log(l->rotary_scaling_factor) : 0;
    follow_real(cfg, &l->attention_factor,
                (0.1 * l->mscale * stretch + 1) / (0.1 * l->mscale_all_dim * stretch + 1));
}

static void derive_language(struct config *cfg) {
    struct config_language *l = &cfg->language;
    if (config_sound(cfg, &l->num_attention_heads, NULL))
        config_follow_int(cfg, &l->num_query_groups, l->num_attention_heads);
    if (config_sound(cfg, &l->hidden_size, &l->swiglu, NULL)) derive_ffn(cfg);
    derive_attention_factor(cfg);
    if (l->max_position_embeddings > 0)
        config_follow_int(cfg, &l->decoder_seq_length, l->max_position_embeddings);
    else
        require(cfg, &l->decoder_seq_length, " without max_position_embeddings");
    if (!config_sound(cfg, &l->hidden_size, &l->num_attention_heads, &l->kv_channels, NULL)) return;
    if (l->hidden_size % l->num_attention_heads == 0)
        config_follow_int(cfg, &l->kv_channels, l->hidden_size / l->num_attention_heads);
    else if (l->kv_channels <= 0) {
        config_raise(cfg, &l->kv_channels,
                     "hidden_size %lld is no multiple of num_attention_heads %lld; write the width "
                     "of a head",
                     (long long)l->hidden_size, (long long)l->num_attention_heads);
        place_of(cfg, &l->kv_channels)->bad = true;
    }
}

static void derive_training(struct config *cfg) {
    struct config_training *t = &cfg->training;
    struct config_optimizer *o = &cfg->optimizer;
    if (!config_given(cfg, &t->train_samples)) require(cfg, &t->train_iters, ", or train_samples");
    if (t->train_iters > 0) config_follow_int(cfg, &o->lr_decay_iters, t->train_iters);
    if (t->train_samples > 0) config_follow_int(cfg, &o->lr_decay_samples, t->train_samples);
    if (!config_sound(cfg, &o->lr, NULL)) return;
    follow_real(cfg, &o->projector_lr, o->lr);
    follow_real(cfg, &o->vision_lr, o->lr);
}

/* LLaVA-1.6's, for any size of a tile. */
static void follow_pinpoints(struct config *cfg) {
    static const int tiles[][2] = {{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}};
    const size_t n = sizeof tiles / sizeof *tiles;
    struct config_list *l = &cfg->data.image_grid_pinpoints;
    int64_t v[2 * sizeof tiles / sizeof *tiles];
    bool equal = l->n == (int64_t)(2 * n);
    for (size_t i = 0; i < 2 * n; i++) {
        v[i] = tiles[i / 2][i % 2] * (i % 2 == 0 ? cfg->vision.img_w : cfg->vision.img_h);
        equal = equal && l->v[i] == v[i];
    }
    if (is_given(place_of(cfg, l), equal)) return;
    l->n = (int64_t)(2 * n);
    l->v = xrealloc(l->v, sizeof v);
    memcpy(l->v, v, sizeof v);
}

static void derive_data(struct config *cfg) {
    struct config_data *d = &cfg->data;
    if (d->image_aspect_ratio == IMAGE_ASPECT_ANYRES &&
        config_sound(cfg, &d->image_grid_pinpoints, &cfg->vision.img_h, &cfg->vision.img_w, NULL))
        follow_pinpoints(cfg);
    if (!config_sound(cfg, &d->data_format, NULL)) return;
    if (d->data_format != FORMAT_MOCK) {
        require(cfg, &d->data_path, " unless data_format = mock");
        require(cfg, &d->tokenizer_type, " unless data_format = mock");
    } else if (d->tokenizer_type == CONFIG_UNSET)
        require(cfg, &cfg->language.vocab_size, " without a tokenizer");
    if (d->tokenizer_type != CONFIG_UNSET)
        require(cfg, &d->tokenizer_model, " with this tokenizer_type");
    if (d->data_format == FORMAT_LLAVA_JSON)
        require(cfg, &d->conversation_template, " with data_format = llava_json");
    else
        follow_choice(cfg, &d->conversation_template, CONVERSATION_PLAIN);
}

static void derive_layers(struct config *cfg) {
    if (!config_sound(cfg, &cfg->vision.num_layers, &cfg->projector.projector_type,
                      &cfg->language.num_layers, NULL))
        return;
    cfg->derived.n_projector_layers = cfg->projector.projector_type == PROJECTOR_AFFINE ? 1 : 2;
    cfg->derived.n_layers =
        cfg->vision.num_layers + cfg->derived.n_projector_layers + cfg->language.num_layers;
}

void config_derive(struct config *cfg) {
    struct config_run *r = &cfg->run;
    require_marked(cfg);
    derive_layers(cfg);
    derive_language(cfg);
    derive_training(cfg);
    derive_data(cfg);
    follow_choice(cfg, &r->distributed_backend,
                  r->device == DEVICE_CUDA ? DISTRIBUTED_NCCL : DISTRIBUTED_MPI);
    follow_choice(cfg, &cfg->parallel.pipeline_dtype,
                  cfg->training.bf16   ? PRECISION_BF16
                  : cfg->training.fp16 ? PRECISION_FP16
                                       : PRECISION_FP32);
    follow_path(cfg, &cfg->data.data_cache_path, r->run_dir);
    follow_path(cfg, &cfg->checkpoint.load, cfg->checkpoint.save);
}
