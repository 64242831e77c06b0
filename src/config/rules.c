/* Rules between keys, doc/job-file.md. A rule keeps silent while one of its keys is faulty. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"

#define SOUND(...) config_sound(cfg, __VA_ARGS__, NULL)

/* ---- shares of tensor parallelism ----------------------------------------------------------- */
static void check_share(struct config *cfg, const int64_t *count, const char *what,
                        const char *more) {
    int64_t tp = cfg->parallel.tensor_model_parallel_size;
    if (!SOUND(count, &cfg->parallel.tensor_model_parallel_size) || *count < 1) return;
    if (tp > *count)
        config_raise(cfg, &cfg->parallel.tensor_model_parallel_size,
                     "a rank would be empty: there are only %lld %s%s; allowed: 1 to %lld",
                     (long long)*count, what, more, (long long)*count);
    else if (!cfg->parallel.tp_uneven && *count % tp != 0)
        config_raise(cfg, &cfg->parallel.tensor_model_parallel_size,
                     "%lld %s do not divide, and tp_uneven is false", (long long)*count, what);
}

void config_check_shares(struct config *cfg) {
    check_share(cfg, &cfg->vision.num_attention_heads, "attention heads in [vision]", "");
    check_share(cfg, &cfg->vision.ffn_hidden_size, "MLP columns in [vision]", "");
    if (cfg->projector.projector_type == PROJECTOR_MLP)
        check_share(cfg, &cfg->projector.projector_hidden_size, "columns in [projector]", "");
    check_share(cfg, &cfg->language.num_query_groups, "key/value heads (num_query_groups)",
                ", and key/value heads are not replicated in this version");
    check_share(cfg, &cfg->language.ffn_hidden_size, "MLP columns in [language]", "");
    check_share(cfg, &cfg->language.vocab_size, "vocabulary rows", "");
}

/* ---- one section at a time ------------------------------------------------------------------- */
static void check_parallel(struct config *cfg) {
    struct config_parallel *p = &cfg->parallel;
    if (p->sequence_parallel && SOUND(&p->tensor_model_parallel_size, &p->sequence_parallel) &&
        p->tensor_model_parallel_size == 1)
        config_raise(cfg, &p->sequence_parallel,
                     "rows are split over TP ranks: it needs tensor_model_parallel_size above 1");
    if (cfg->run.distributed_backend == DISTRIBUTED_NCCL && cfg->run.device != DEVICE_CUDA &&
        SOUND(&cfg->run.distributed_backend, &cfg->run.device))
        config_raise(cfg, &cfg->run.distributed_backend, "nccl needs [run] device = cuda");
    if (config_given(cfg, &p->pipeline_dtype) && SOUND(&p->pipeline_dtype))
        config_raise(cfg, &p->pipeline_dtype,
                     "known, not in this version: activations travel in the working type");
}

static void check_vision(struct config *cfg) {
    struct config_vision *v = &cfg->vision;
    if (SOUND(&v->hidden_size, &v->num_attention_heads) &&
        v->hidden_size % v->num_attention_heads != 0)
        config_raise(cfg, &v->num_attention_heads, "it must divide hidden_size %lld",
                     (long long)v->hidden_size);
    if (SOUND(&v->img_h, &v->patch_dim) && v->img_h % v->patch_dim != 0)
        config_raise(cfg, &v->img_h, "it must be a multiple of patch_dim %lld",
                     (long long)v->patch_dim);
    if (SOUND(&v->img_w, &v->patch_dim) && v->img_w % v->patch_dim != 0)
        config_raise(cfg, &v->img_w, "it must be a multiple of patch_dim %lld",
                     (long long)v->patch_dim);
    if (SOUND(&v->vision_feature_layer, &v->num_layers) && v->vision_feature_layer == -2 &&
        v->num_layers < 2)
        config_raise(cfg, &v->vision_feature_layer, "the last but one of %lld layers is none",
                     (long long)v->num_layers);
}

static void check_projector(struct config *cfg) {
    struct config_projector *p = &cfg->projector;
    if (!SOUND(&p->projector_type) || p->projector_type != PROJECTOR_AFFINE) return;
    if (config_given(cfg, &p->projector_hidden_size))
        config_raise(cfg, &p->projector_hidden_size, "projector_type = affine has no inner width");
    if (config_given(cfg, &p->projector_activation))
        config_raise(cfg, &p->projector_activation, "projector_type = affine has no activation");
}

/* Which of the keys that stretch the rotation has an effect with which rope_type. */
static void check_rope_keys(struct config *cfg) {
    struct config_language *l = &cfg->language;
    enum {
        LINEAR = 1 << ROPE_TYPE_LINEAR,
        LLAMA3 = 1 << ROPE_TYPE_LLAMA3,
        YARN = 1 << ROPE_TYPE_YARN
    };
    const struct {
        const void *field;
        int types;
        const char *needs;
    } key[] = {{&l->rotary_scaling_factor, LINEAR | LLAMA3 | YARN, "linear, llama3 or yarn"},
               {&l->original_max_position_embeddings, LLAMA3 | YARN, "llama3 or yarn"},
               {&l->low_freq_factor, LLAMA3, "llama3"},
               {&l->high_freq_factor, LLAMA3, "llama3"},
               {&l->beta_fast, YARN, "yarn"},
               {&l->beta_slow, YARN, "yarn"},
               {&l->mscale, YARN, "yarn"},
               {&l->mscale_all_dim, YARN, "yarn"},
               {&l->attention_factor, YARN, "yarn"},
               {&l->correction_range_round_to_int, YARN, "yarn"}};
    int now = l->position_embedding_type == POSITION_ROPE ? 1 << l->rope_type : 0;
    for (size_t i = 0; i < sizeof key / sizeof *key; i++)
        if (!(key[i].types & now) && config_given(cfg, key[i].field) && SOUND(key[i].field))
            config_raise(cfg, key[i].field, "it needs rope_type = %s", key[i].needs);
}

static void check_rope(struct config *cfg) {
    struct config_language *l = &cfg->language;
    if (!SOUND(&l->rope_type, &l->position_embedding_type)) return;
    if (l->position_embedding_type != POSITION_ROPE && config_given(cfg, &l->rope_type))
        config_raise(cfg, &l->rope_type, "it needs position_embedding_type = rope");
    check_rope_keys(cfg);
    bool llama3 = l->rope_type == ROPE_TYPE_LLAMA3, yarn = l->rope_type == ROPE_TYPE_YARN;
    if ((llama3 || yarn) && SOUND(&l->original_max_position_embeddings) &&
        l->original_max_position_embeddings < 1)
        config_raise(cfg, &l->original_max_position_embeddings,
                     "it is required with rope_type = %s", llama3 ? "llama3" : "yarn");
    if (llama3 && SOUND(&l->low_freq_factor, &l->high_freq_factor) &&
        !(l->high_freq_factor > l->low_freq_factor))
        config_raise(cfg, &l->high_freq_factor, "it must be above low_freq_factor %g",
                     l->low_freq_factor);
    if (yarn && SOUND(&l->rotary_base) && !(l->rotary_base > 1))
        config_raise(cfg, &l->rotary_base, "rope_type = yarn needs a base above 1");
    if (yarn && config_given(cfg, &l->attention_factor) && SOUND(&l->attention_factor) &&
        (config_given(cfg, &l->mscale) || config_given(cfg, &l->mscale_all_dim)))
        config_raise(cfg, &l->attention_factor,
                     "mscale or mscale_all_dim is given too, from which it would follow; one of "
                     "them");
}

static void check_positions(struct config *cfg) {
    struct config_language *l = &cfg->language;
    if (!SOUND(&l->position_embedding_type)) return;
    if (l->position_embedding_type == POSITION_LEARNED_ABSOLUTE)
        config_raise(cfg, &l->position_embedding_type,
                     "known, not in this version: the language model of family llava has rope or "
                     "none; write position_embedding_type = rope");
    if (l->position_embedding_type != POSITION_ROPE || !SOUND(&l->kv_channels, &l->rotary_percent))
        return;
    double turned = (double)l->kv_channels * l->rotary_percent;
    if (l->kv_channels > 0 && (turned != floor(turned) || fmod(turned, 2) != 0 || turned < 2))
        config_raise(cfg, &l->rotary_percent,
                     "rope turns pairs: kv_channels %lld times rotary_percent is %g, and must be "
                     "an even whole number",
                     (long long)l->kv_channels, turned);
}

static void check_language(struct config *cfg) {
    struct config_language *l = &cfg->language;
    if (SOUND(&l->num_attention_heads, &l->num_query_groups) &&
        l->num_attention_heads % l->num_query_groups != 0)
        config_raise(cfg, &l->num_query_groups, "it must divide num_attention_heads %lld",
                     (long long)l->num_attention_heads);
    check_positions(cfg);
    check_rope(cfg);
    if (!l->untie_embeddings_and_output_weights && SOUND(&l->untie_embeddings_and_output_weights))
        config_raise(cfg, &l->untie_embeddings_and_output_weights,
                     "known, not in this version: an output head that shares the embedding's "
                     "weights; write untie_embeddings_and_output_weights = true");
    if (l->add_bias_linear && l->add_qkv_bias && config_given(cfg, &l->add_qkv_bias))
        config_raise(cfg, &l->add_qkv_bias, "add_bias_linear already gives these biases");
    if (l->freeze_lm && cfg->vision.freeze_vit && cfg->projector.freeze_vision_projection)
        config_raise(cfg, &l->freeze_lm,
                     "freeze_ViT and freeze_vision_projection are true too: nothing is left to "
                     "train");
}

static void check_training(struct config *cfg) {
    struct config_training *t = &cfg->training;
    if (t->bf16 && t->fp16 && SOUND(&t->bf16, &t->fp16))
        config_raise(cfg, &t->fp16, "bf16 is true too; one of them at most");
    if (config_given(cfg, &t->train_iters) && config_given(cfg, &t->train_samples))
        config_raise(cfg, &t->train_samples, "train_iters is given too; one of them");
    if (!SOUND(&t->recompute_granularity)) return;
    bool full = t->recompute_granularity == RECOMPUTE_FULL;
    if (full && t->recompute_method == CONFIG_UNSET && SOUND(&t->recompute_method))
        config_raise(cfg, &t->recompute_granularity,
                     "it needs recompute_method = uniform or block");
    if (full && t->recompute_num_layers < 1 && SOUND(&t->recompute_num_layers))
        config_raise(cfg, &t->recompute_granularity, "it needs recompute_num_layers");
    if (!full && config_given(cfg, &t->recompute_method))
        config_raise(cfg, &t->recompute_method, "it needs recompute_granularity = full");
    if (!full && config_given(cfg, &t->recompute_num_layers))
        config_raise(cfg, &t->recompute_num_layers, "it needs recompute_granularity = full");
}

/* Lengths in samples go with train_samples, lengths in steps with train_iters. */
static void check_unit(struct config *cfg, const int64_t *in_iters, const int64_t *in_samples) {
    bool by_samples = config_given(cfg, &cfg->training.train_samples);
    const int64_t *wrong = by_samples ? in_iters : in_samples;
    if (config_given(cfg, wrong) && SOUND(wrong))
        config_raise(cfg, wrong, "the length of training is given in %s",
                     by_samples ? "train_samples; use the _samples key"
                                : "train_iters; use the _iters key");
}

static void check_curve(struct config *cfg) {
    struct config_optimizer *o = &cfg->optimizer;
    bool by_samples = config_given(cfg, &cfg->training.train_samples);
    int64_t *decay = by_samples ? &o->lr_decay_samples : &o->lr_decay_iters;
    int64_t *warmup = by_samples ? &o->lr_warmup_samples : &o->lr_warmup_iters;
    int64_t *last = by_samples ? &o->lr_wsd_decay_samples : &o->lr_wsd_decay_iters;
    bool by_fraction = o->lr_warmup_fraction > 0;
    if (by_fraction && config_given(cfg, warmup))
        config_raise(cfg, warmup, "lr_warmup_fraction is given too; one of them");
    if (*decay < 1 || !SOUND(decay, warmup, last, &o->lr_warmup_fraction, &o->lr_decay_style))
        return;
    if (!by_fraction && *warmup >= *decay)
        config_raise(cfg, warmup, "the warm-up must be shorter than the decay, %lld",
                     (long long)*decay);
    cfg->derived.lr_by_samples = by_samples;
    cfg->derived.lr_decay = *decay;
    /* A product like 0.07 * 100 lies a rounding above 7; it means 7. */
    double share = o->lr_warmup_fraction * (double)*decay, near = nearbyint(share);
    cfg->derived.lr_warmup =
        !by_fraction ? *warmup : (int64_t)(fabs(share - near) <= 1e-9 * near ? near : ceil(share));
    if (o->lr_decay_style != LR_DECAY_WSD) return;
    cfg->derived.lr_wsd_decay = *last;
    if (*last < 1)
        config_raise(cfg, &o->lr_decay_style, "it needs lr_wsd_decay_%s",
                     by_samples ? "samples" : "iters");
    else if (*last > *decay - cfg->derived.lr_warmup)
        config_raise(cfg, last, "warm-up %lld and this must fit into the decay length %lld",
                     (long long)cfg->derived.lr_warmup, (long long)*decay);
}

static void check_optimizer(struct config *cfg) {
    struct config_optimizer *o = &cfg->optimizer;
    if (SOUND(&o->min_lr, &o->lr) && o->min_lr > o->lr)
        config_raise(cfg, &o->min_lr, "it must not exceed lr %g", o->lr);
    if (SOUND(&o->lr_warmup_init, &o->lr) && o->lr_warmup_init > o->lr)
        config_raise(cfg, &o->lr_warmup_init, "it must not exceed lr %g", o->lr);
    check_unit(cfg, &o->lr_decay_iters, &o->lr_decay_samples);
    check_unit(cfg, &o->lr_warmup_iters, &o->lr_warmup_samples);
    check_unit(cfg, &o->lr_wsd_decay_iters, &o->lr_wsd_decay_samples);
    check_curve(cfg);
    if (o->lr_decay_style != LR_DECAY_WSD && config_given(cfg, &o->lr_wsd_decay_style))
        config_raise(cfg, &o->lr_wsd_decay_style, "it needs lr_decay_style = WSD");
}

static void needs_format(struct config *cfg, const void *field, int format) {
    struct config_data *d = &cfg->data;
    if (d->data_format == format || !config_given(cfg, field) || !SOUND(&d->data_format, field))
        return;
    config_raise(cfg, field, "it needs data_format = %s",
                 format == FORMAT_LLAVA_JSON ? "llava_json" : "captioned_folder");
}

/* LLaVA-1.6: pairs of width and height, whole tiles. */
static void check_pinpoints(struct config *cfg) {
    const struct config_list *l = &cfg->data.image_grid_pinpoints;
    int64_t w = cfg->vision.img_w, h = cfg->vision.img_h;
    if (l->n % 2 != 0 || l->n > 2 * CONFIG_PINPOINTS_MAX)
        config_raise(cfg, l, "there are %lld numbers: they are pairs width,height, at most %d",
                     (long long)l->n, CONFIG_PINPOINTS_MAX);
    for (int64_t i = 0; l->n % 2 == 0 && i < l->n; i += 2)
        if (SOUND(&cfg->vision.img_w, &cfg->vision.img_h) &&
            (l->v[i] % w != 0 || l->v[i + 1] % h != 0))
            config_raise(cfg, l,
                         "pair %lld is %lld x %lld: multiples of a tile, [vision] img_w %lld and "
                         "img_h %lld, are needed",
                         (long long)(i / 2 + 1), (long long)l->v[i], (long long)l->v[i + 1],
                         (long long)w, (long long)h);
}

static void check_anyres(struct config *cfg) {
    struct config_data *d = &cfg->data;
    if (!SOUND(&d->image_aspect_ratio, &d->image_grid_pinpoints)) return;
    if (d->image_aspect_ratio != IMAGE_ASPECT_ANYRES) {
        if (config_given(cfg, &d->image_grid_pinpoints))
            config_raise(cfg, &d->image_grid_pinpoints, "it needs image_aspect_ratio = anyres");
        return;
    }
    if (!cfg->vision.disable_vision_class_token && SOUND(&cfg->vision.disable_vision_class_token))
        config_raise(cfg, &d->image_aspect_ratio,
                     "the tiles' patches form a map, in which a class row has no place: it needs "
                     "[vision] disable_vision_class_token = true");
    check_pinpoints(cfg);
}

static void check_data(struct config *cfg) {
    struct config_data *d = &cfg->data;
    check_anyres(cfg);
    needs_format(cfg, &d->image_folder, FORMAT_LLAVA_JSON);
    needs_format(cfg, &d->strict_llava_masking, FORMAT_LLAVA_JSON);
    needs_format(cfg, &d->conversation_template, FORMAT_LLAVA_JSON);
    needs_format(cfg, &d->caption_extension, FORMAT_CAPTIONED_FOLDER);
    needs_format(cfg, &d->caption_lines, FORMAT_CAPTIONED_FOLDER);
    needs_format(cfg, &d->caption_prompt, FORMAT_CAPTIONED_FOLDER);
    if (d->data_format == FORMAT_MOCK && d->valid_data_path != NULL && SOUND(&d->valid_data_path))
        config_raise(cfg, &d->valid_data_path, "data_format = mock reads no files");
    if (SOUND(&d->image_mean) && d->image_mean.n != 3)
        config_raise(cfg, &d->image_mean, "there must be 3 numbers: red, green, blue");
    if (SOUND(&d->image_std) && d->image_std.n != 3)
        config_raise(cfg, &d->image_std, "there must be 3 numbers: red, green, blue");
    if (SOUND(&d->image_background) && d->image_background.n != 0 && d->image_background.n != 3)
        config_raise(cfg, &d->image_background, "there must be 3 numbers: red, green, blue");
    if (d->on_bad_image == ON_BAD_IMAGE_FAIL && config_given(cfg, &d->max_bad_images) &&
        SOUND(&d->on_bad_image, &d->max_bad_images))
        config_raise(cfg, &d->max_bad_images, "it needs on_bad_image = skip or blank");
}

static void needs_path(struct config *cfg, const void *field, char *const *path, const char *name) {
    if (*path == NULL && config_given(cfg, field) && SOUND(field, path))
        config_raise(cfg, field, "it needs %s", name);
}

static void check_checkpoint(struct config *cfg) {
    struct config_checkpoint *c = &cfg->checkpoint;
    bool load = config_given(cfg, &c->load) && (c->save == NULL || strcmp(c->load, c->save) != 0);
    if (c->pretrained_checkpoint != NULL && load)
        config_raise(
            cfg, &c->pretrained_checkpoint,
            "load is given too; one of them: load goes on with a run, pretrained_checkpoint "
            "begins one with the weights of another");
    if (c->finetune && !load && c->pretrained_checkpoint == NULL && SOUND(&c->finetune))
        config_raise(cfg, &c->finetune, "it takes the weights of load, and load is not given");
    needs_path(cfg, &c->save_interval, &c->save, "save");
    needs_path(cfg, &c->save_retain_interval, &c->save, "save");
    needs_path(cfg, &c->most_recent_k, &c->save, "save");
    needs_path(cfg, &c->save_second, &c->save, "save");
    if (c->save != NULL && c->save_second != NULL && strcmp(c->save, c->save_second) == 0)
        config_raise(cfg, &c->save_second, "it is the folder save itself");
    needs_path(cfg, &c->ckpt_step, &c->load, "load or save");
    needs_path(cfg, &c->no_load_optim, &c->load, "load or save");
    needs_path(cfg, &c->no_load_rng, &c->load, "load or save");
    if (c->resume == RESUME_MUST) needs_path(cfg, &c->resume, &c->load, "load or save");
    if (c->writers != WRITERS_NODE && config_given(cfg, &c->ranks_per_writer) &&
        SOUND(&c->writers, &c->ranks_per_writer))
        config_raise(cfg, &c->ranks_per_writer, "it needs writers = node");
    if (c->most_recent_k >= 0 && c->most_recent_k < 2 && SOUND(&c->most_recent_k))
        config_raise(cfg, &c->most_recent_k,
                     "a checkpoint is deleted only when two newer ones verify; allowed: -1 for "
                     "all, else at least 2");
}

int config_check_rules(struct config *cfg) {
    int n_before = error_count();
    check_parallel(cfg);
    config_check_split(cfg);
    config_check_shares(cfg);
    check_vision(cfg);
    check_projector(cfg);
    check_language(cfg);
    check_training(cfg);
    check_optimizer(cfg);
    check_data(cfg);
    check_checkpoint(cfg);
    return error_count() > n_before ? EXIT_USAGE : 0;
}
