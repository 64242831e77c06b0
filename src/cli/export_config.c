/* config.json of an exported folder, in full: no reader has to know the defaults of a class. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"

static void put_text(struct hf_merge *m, const char *key, const char *v) {
    hf_put(m, key, json_new_string(v));
}
static void put_int(struct hf_merge *m, const char *key, int64_t v) {
    hf_put(m, key, json_new_integer(v));
}
static void put_real(struct hf_merge *m, const char *key, double v) {
    hf_put(m, key, json_new_real(v));
}
static void put_bool(struct hf_merge *m, const char *key, bool v) {
    hf_put(m, key, json_new_bool(v));
}
/* An id that the source does not say: its class has a default, which stays. */
static void put_id_absent(struct hf_merge *m, const char *key, int64_t id) {
    if (id >= 0) hf_put_absent(m, key, json_new_integer(id));
}

static const char *dtype_word(enum safetensors_dtype t) {
    return t == ST_F16 ? "float16" : t == ST_BF16 ? "bfloat16" : "float32";
}

/* transformers 4 reads torch_dtype, 5 writes dtype and reads both. */
static void put_dtype(struct hf_merge *m, const struct hf_export *e) {
    hf_put_quietly(m, "torch_dtype", json_new_string(dtype_word(e->dtype)));
    if (json_get(m->o, "dtype") != NULL)
        hf_put_quietly(m, "dtype", json_new_string(dtype_word(e->dtype)));
}

static const struct json *member_object(const struct json *o, const char *key) {
    const struct json *v = json_get(o, key);
    return v != NULL && json_kind(v) == JSON_OBJECT && json_size(v) > 0 ? v : NULL;
}

/* One of the source's objects about the rotation, with what the job says over it. */
static void put_rope_object(struct hf_merge *m, const char *key, const struct json *was,
                            const struct json *scaling, const struct json *theta) {
    struct hf_merge inner = hf_merge_begin(was, "config.json text_config rotation ", m->notes);
    const struct json *type = scaling != NULL ? json_get(scaling, "rope_type") : NULL, *v;
    const char *name;
    for (void *i = scaling != NULL ? json_member(scaling, NULL, &name, &v) : NULL; i != NULL;
         i = json_member(scaling, i, &name, &v))
        hf_put(&inner, name, json_duplicate(v));
    if (scaling == NULL) put_text(&inner, "rope_type", "default");
    if (type != NULL && json_get(inner.o, "type") != NULL) /* the older name of rope_type */
        hf_put(&inner, "type", json_duplicate(type));
    if (strcmp(key, "rope_parameters") == 0 || json_get(inner.o, "rope_theta") != NULL)
        hf_put(&inner, "rope_theta", json_duplicate(theta));
    hf_put_quietly(m, key, inner.o);
}

/* transformers 5 writes rope_parameters and reads rope_scaling too; 4 knows rope_scaling alone. */
static void put_rope(struct hf_merge *m, const struct config_language *l) {
    struct json *said = json_new_object();
    hf_add_rope(said, l);
    const struct json *scaling = json_get(said, "rope_scaling"),
                      *theta = json_get(said, "rope_theta");
    const struct json *old = member_object(m->o, "rope_scaling"),
                      *new = member_object(m->o, "rope_parameters");
    hf_put(m, "rope_theta", json_duplicate(theta));
    if (new != NULL) put_rope_object(m, "rope_parameters", new, scaling, theta);
    if (old != NULL)
        put_rope_object(m, "rope_scaling", old, scaling, theta);
    else if (scaling != NULL)
        hf_put_quietly(m, "rope_scaling", json_duplicate(scaling));
    json_free(said);
}

static void put_language(struct hf_merge *m, const struct hf_export *e, const struct config *c) {
    const struct config_language *l = &c->language;
    bool mistral = strcmp(e->text_model, "mistral") == 0;
    bool llama = strcmp(e->text_model, "llama") == 0;
    put_text(m, "hidden_act", "silu");
    put_int(m, "hidden_size", l->hidden_size);
    put_int(m, "intermediate_size", l->ffn_hidden_size);
    put_int(m, "num_hidden_layers", l->num_layers);
    put_int(m, "num_attention_heads", l->num_attention_heads);
    const struct json *groups = json_get(m->o, "num_key_value_heads");
    bool follows = groups != NULL && json_kind(groups) == JSON_NULL;
    if (!follows || l->num_query_groups != l->num_attention_heads)
        put_int(m, "num_key_value_heads", l->num_query_groups);
    put_int(m, "head_dim", l->kv_channels);
    put_real(m, "rms_norm_eps", l->norm_epsilon);
    put_rope(m, l);
    if (l->max_position_embeddings > 0)
        put_int(m, "max_position_embeddings", l->max_position_embeddings);
    hf_put_absent(m, "max_position_embeddings", json_new_integer(l->decoder_seq_length));
    if (mistral && l->window_size > 0)
        put_int(m, "sliding_window", l->window_size);
    else if (mistral || json_get(m->o, "sliding_window") != NULL)
        hf_put(m, "sliding_window", json_new_null());
    if (llama || json_get(m->o, "attention_bias") != NULL)
        put_bool(m, "attention_bias", l->add_bias_linear);
    if (llama || json_get(m->o, "mlp_bias") != NULL) put_bool(m, "mlp_bias", l->add_bias_linear);
    put_real(m, "attention_dropout", l->attention_dropout);
    if (config_given(c, &l->init_method_std)) put_real(m, "initializer_range", l->init_method_std);
    hf_put_absent(m, "initializer_range", json_new_real(l->init_method_std));
    put_int(m, "vocab_size", e->vocab_size);
    hf_put_absent(m, "use_cache", json_new_bool(true));
    put_bool(m, "tie_word_embeddings", !l->untie_embeddings_and_output_weights);
    put_id_absent(m, "bos_token_id", e->bos);
    put_id_absent(m, "eos_token_id", e->eos);
    put_id_absent(m, "pad_token_id", e->pad);
}

static struct json *vision_config(const struct hf_export *e, const struct config *c) {
    const struct config_vision *v = &c->vision;
    struct hf_merge m = hf_merge_begin(e->source.vision, "config.json vision_config.", e->notes);
    hf_put_quietly(&m, "model_type", json_new_string("clip_vision_model"));
    put_text(&m, "hidden_act", "quick_gelu");
    put_int(&m, "hidden_size", v->hidden_size);
    put_int(&m, "intermediate_size", v->ffn_hidden_size);
    put_int(&m, "num_hidden_layers", v->num_layers);
    put_int(&m, "num_attention_heads", v->num_attention_heads);
    put_int(&m, "num_channels", v->num_channels);
    put_int(&m, "image_size", v->img_h);
    put_int(&m, "patch_size", v->patch_dim);
    put_real(&m, "layer_norm_eps", 1e-5);
    hf_put_absent(&m, "attention_dropout", json_new_real(0.0));
    hf_put_absent(&m, "projection_dim", json_new_integer(768)); /* of the half that is not there */
    return m.o;
}

static int64_t image_rows(const struct config *c) {
    const struct config_vision *v = &c->vision;
    int64_t patches = v->img_h / v->patch_dim * (v->img_w / v->patch_dim);
    return patches + (v->disable_vision_class_token ? 0 : 1);
}

/* Pairs of the job file are width, height; those of transformers' files height, width. */
void hf_put_pinpoints(struct hf_merge *m, const struct config *c, bool height_first) {
    const struct config_list *l = &c->data.image_grid_pinpoints;
    struct json *list = json_new_array();
    for (int64_t i = 0; i + 1 < l->n; i += 2) {
        struct json *pair = json_new_array();
        json_append(pair, json_new_integer(l->v[height_first ? i + 1 : i]));
        json_append(pair, json_new_integer(l->v[height_first ? i : i + 1]));
        json_append(list, pair);
    }
    hf_put(m, "image_grid_pinpoints", list);
}

static void put_architecture(struct hf_merge *m, const char *class, const char *type) {
    struct json *list = json_new_array();
    json_append(list, json_new_string(class));
    hf_put_quietly(m, "architectures", list);
    hf_put_quietly(m, "model_type", json_new_string(type));
}

static struct json *hf_config(const struct hf_export *e, const struct config *c) {
    bool tiles = hf_has_tiles(c);
    struct hf_merge m = hf_merge_begin(e->source.top, "config.json ", e->notes);
    struct hf_merge text = hf_merge_begin(e->source.text, "config.json text_config.", e->notes);
    put_architecture(&m,
                     tiles ? "LlavaNextForConditionalGeneration" : "LlavaForConditionalGeneration",
                     tiles ? "llava_next" : "llava");
    if (tiles) hf_put_pinpoints(&m, c, true);
    if (tiles) put_bool(&m, "use_image_newline_parameter", true);
    hf_put_absent(&m, "ignore_index", json_new_integer(DATA_NO_TARGET));
    put_int(&m, "image_token_index", e->image_token);
    if (json_get(m.o, "image_token_id") != NULL) put_int(&m, "image_token_id", e->image_token);
    put_int(&m, "image_seq_length", image_rows(c));
    put_bool(&m, "multimodal_projector_bias", c->projector.projector_bias);
    put_id_absent(&m, "pad_token_id", e->pad);
    put_text(&m, "projector_hidden_act", config_choice(c, &c->projector.projector_activation));
    put_bool(&m, "tie_word_embeddings", !c->language.untie_embeddings_and_output_weights);
    put_dtype(&m, e);
    put_int(&m, "vision_feature_layer", c->vision.vision_feature_layer);
    put_text(&m, "vision_feature_select_strategy",
             c->vision.disable_vision_class_token ? "default" : "full");
    put_text(&text, "model_type", e->text_model);
    put_dtype(&text, e);
    put_language(&text, e, c);
    hf_put_quietly(&m, "text_config", text.o);
    hf_put_quietly(&m, "vision_config", vision_config(e, c));
    return m.o;
}

static struct json *original_config(const struct hf_export *e, const struct config *c) {
    bool mistral = strcmp(e->text_model, "mistral") == 0;
    bool affine = c->projector.projector_type == PROJECTOR_AFFINE;
    const struct json *flat = e->source.original != NULL ? e->source.original : e->source.text;
    struct hf_merge m = hf_merge_begin(flat, "config.json ", e->notes);
    put_architecture(&m, mistral ? "LlavaMistralForCausalLM" : "LlavaLlamaForCausalLM",
                     mistral ? "llava_mistral" : "llava_llama");
    hf_put_absent(&m, "mm_vision_tower", json_new_string("openai/clip-vit-large-patch14-336"));
    put_int(&m, "mm_hidden_size", c->vision.hidden_size);
    put_text(&m, "mm_projector_type", affine ? "linear" : "mlp2x_gelu");
    put_int(&m, "mm_vision_select_layer", c->vision.vision_feature_layer);
    put_text(&m, "mm_vision_select_feature",
             c->vision.disable_vision_class_token ? "patch" : "cls_patch");
    put_text(&m, "mm_patch_merge_type", hf_has_tiles(c) ? "spatial_unpad" : "flat");
    if (hf_has_tiles(c)) hf_put_pinpoints(&m, c, false);
    put_text(&m, "image_aspect_ratio", config_choice(c, &c->data.image_aspect_ratio));
    put_bool(&m, "mm_use_im_start_end", false);
    put_bool(&m, "mm_use_im_patch_token", false);
    hf_put_absent(&m, "tokenizer_model_max_length",
                  json_new_integer(c->language.decoder_seq_length));
    hf_put_absent(&m, "tokenizer_padding_side", json_new_string("right"));
    put_dtype(&m, e);
    put_language(&m, e, c);
    /* The original leaves it to mm_vision_tower. */
    hf_put_quietly(&m, "vision_config", vision_config(e, c));
    return m.o;
}

struct json *hf_new_config(const struct hf_export *e, const struct config *cfg) {
    return e->original ? original_config(e, cfg) : hf_config(e, cfg);
}
