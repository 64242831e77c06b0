/* The JSON files of an exported folder. Configurations are written in full: no reader has to know the
 * defaults of a class. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"
#include "json.h"

static void set_text(struct json *o, const char *key, const char *v) {
    json_set(o, key, json_new_string(v));
}
static void set_int(struct json *o, const char *key, int64_t v) {
    json_set(o, key, json_new_integer(v));
}
static void set_real(struct json *o, const char *key, double v) {
    json_set(o, key, json_new_real(v)); /* NaN becomes null */
}
static void set_bool(struct json *o, const char *key, bool v) {
    json_set(o, key, json_new_bool(v));
}
static void set_id(struct json *o, const char *key, int64_t id) {
    if (id >= 0)
        set_int(o, key, id);
    else
        set_real(o, key, NAN);
}

static int write_json(const struct hf_export *e, const char *name, struct json *root) {
    char *text = json_text(root, 2), *path = xasprintf("%s/%s", e->to, name);
    int rc = file_write_atomic(path, text, strlen(text));
    json_free(root);
    free(text);
    free(path);
    return rc;
}

static const char *dtype_word(enum safetensors_dtype t) {
    return t == ST_F16 ? "float16" : t == ST_BF16 ? "bfloat16" : "float32";
}

static void add_language(struct json *o, const struct hf_export *e, const struct config *c) {
    const struct config_language *l = &c->language;
    set_text(o, "hidden_act", "silu");
    set_int(o, "hidden_size", l->hidden_size);
    set_int(o, "intermediate_size", l->ffn_hidden_size);
    set_int(o, "num_hidden_layers", l->num_layers);
    set_int(o, "num_attention_heads", l->num_attention_heads);
    set_int(o, "num_key_value_heads", l->num_query_groups);
    set_int(o, "head_dim", l->kv_channels);
    set_real(o, "rms_norm_eps", l->norm_epsilon);
    hf_add_rope(o, l);
    set_int(o, "max_position_embeddings",
            l->max_position_embeddings > 0 ? l->max_position_embeddings : 32768);
    if (strcmp(e->text_model, "mistral") == 0)
        set_id(o, "sliding_window", l->window_size > 0 ? l->window_size : -1);
    set_real(o, "attention_dropout", 0.0);
    set_real(o, "initializer_range", l->init_method_std);
    set_int(o, "vocab_size", e->vocab_size);
    set_bool(o, "use_cache", true);
    set_bool(o, "tie_word_embeddings", false);
    set_id(o, "bos_token_id", e->bos);
    set_id(o, "eos_token_id", e->eos);
    set_id(o, "pad_token_id", e->pad);
}

static struct json *vision_config(const struct config *c) {
    const struct config_vision *v = &c->vision;
    struct json *o = json_new_object();
    set_text(o, "model_type", "clip_vision_model");
    set_text(o, "hidden_act", "quick_gelu");
    set_int(o, "hidden_size", v->hidden_size);
    set_int(o, "intermediate_size", v->ffn_hidden_size);
    set_int(o, "num_hidden_layers", v->num_layers);
    set_int(o, "num_attention_heads", v->num_attention_heads);
    set_int(o, "num_channels", v->num_channels);
    set_int(o, "image_size", v->img_h);
    set_int(o, "patch_size", v->patch_dim);
    set_real(o, "layer_norm_eps", 1e-5);
    set_real(o, "attention_dropout", 0.0);
    set_int(o, "projection_dim", 768); /* of the half of CLIP that is not there */
    return o;
}

static int64_t image_rows(const struct config *c) {
    const struct config_vision *v = &c->vision;
    int64_t patches = v->img_h / v->patch_dim * (v->img_w / v->patch_dim);
    return patches + (v->disable_vision_class_token ? 0 : 1);
}

/* ---- images of several tiles ---------------------------------------------------------------------- */
static bool has_tiles(const struct config *c) {
    return c->data.image_aspect_ratio == IMAGE_ASPECT_ANYRES;
}

/* Pairs of the job file are width, height; those of transformers' files height, width. */
static void set_pinpoints(struct json *o, const struct config *c, bool height_first) {
    const struct config_list *l = &c->data.image_grid_pinpoints;
    struct json *list = json_new_array();
    for (int64_t i = 0; i + 1 < l->n; i += 2) {
        struct json *pair = json_new_array();
        json_append(pair, json_new_integer(l->v[height_first ? i + 1 : i]));
        json_append(pair, json_new_integer(l->v[height_first ? i : i + 1]));
        json_append(list, pair);
    }
    json_set(o, "image_grid_pinpoints", list);
}

static struct json *hf_config(const struct hf_export *e, const struct config *c) {
    struct json *o = json_new_object(), *list = json_new_array(), *text = json_new_object();
    json_append(list, json_new_string(has_tiles(c) ? "LlavaNextForConditionalGeneration"
                                                   : "LlavaForConditionalGeneration"));
    json_set(o, "architectures", list);
    set_text(o, "model_type", has_tiles(c) ? "llava_next" : "llava");
    if (has_tiles(c)) {
        set_pinpoints(o, c, true);
        set_bool(o, "use_image_newline_parameter", true);
    }
    set_int(o, "ignore_index", DATA_NO_TARGET);
    set_int(o, "image_token_index", e->image_token);
    set_int(o, "image_seq_length", image_rows(c));
    set_bool(o, "multimodal_projector_bias", true);
    set_id(o, "pad_token_id", e->pad);
    set_text(o, "projector_hidden_act", config_choice(c, &c->projector.projector_activation));
    set_bool(o, "tie_word_embeddings", false);
    set_text(o, "torch_dtype", dtype_word(e->dtype));
    set_int(o, "vision_feature_layer", c->vision.vision_feature_layer);
    set_text(o, "vision_feature_select_strategy",
             c->vision.disable_vision_class_token ? "default" : "full");
    set_text(text, "model_type", e->text_model);
    set_text(text, "torch_dtype", dtype_word(e->dtype));
    add_language(text, e, c);
    json_set(o, "text_config", text);
    json_set(o, "vision_config", vision_config(c));
    return o;
}

static struct json *original_config(const struct hf_export *e, const struct config *c) {
    bool mistral = strcmp(e->text_model, "mistral") == 0;
    bool affine = c->projector.projector_type == PROJECTOR_AFFINE;
    struct json *o = json_new_object(), *list = json_new_array();
    json_append(list,
                json_new_string(mistral ? "LlavaMistralForCausalLM" : "LlavaLlamaForCausalLM"));
    json_set(o, "architectures", list);
    set_text(o, "model_type", mistral ? "llava_mistral" : "llava_llama");
    set_text(o, "mm_vision_tower", "openai/clip-vit-large-patch14-336");
    set_int(o, "mm_hidden_size", c->vision.hidden_size);
    set_text(o, "mm_projector_type", affine ? "linear" : "mlp2x_gelu");
    set_int(o, "mm_vision_select_layer", c->vision.vision_feature_layer);
    set_text(o, "mm_vision_select_feature",
             c->vision.disable_vision_class_token ? "patch" : "cls_patch");
    set_text(o, "mm_patch_merge_type", has_tiles(c) ? "spatial_unpad" : "flat");
    if (has_tiles(c)) set_pinpoints(o, c, false);
    set_text(o, "image_aspect_ratio", config_choice(c, &c->data.image_aspect_ratio));
    set_bool(o, "mm_use_im_start_end", false);
    set_bool(o, "mm_use_im_patch_token", false);
    set_int(o, "tokenizer_model_max_length", c->language.decoder_seq_length);
    set_text(o, "tokenizer_padding_side", "right");
    set_text(o, "torch_dtype", dtype_word(e->dtype));
    add_language(o, e, c);
    json_set(o, "vision_config", vision_config(c)); /* the original leaves it to mm_vision_tower */
    return o;
}

static struct json *size_of(const char *a, int64_t x, const char *b, int64_t y) {
    struct json *o = json_new_object();
    set_int(o, a, x);
    if (b != NULL) set_int(o, b, y);
    return o;
}

static void set_three(struct json *o, const char *key, const struct config_real_list *v) {
    struct json *list = json_new_array();
    for (int64_t i = 0; i < v->n; i++) json_append(list, json_new_real(v->v[i]));
    json_set(o, key, list);
}

static struct json *preprocessor_config(const struct config *c) {
    bool pad = c->data.image_aspect_ratio == IMAGE_ASPECT_PAD;
    struct json *o = json_new_object();
    set_text(o, "image_processor_type",
             has_tiles(c) ? "LlavaNextImageProcessor"
             : pad        ? "LlavaImageProcessor"
                          : "CLIPImageProcessor");
    set_text(o, "processor_class", has_tiles(c) ? "LlavaNextProcessor" : "LlavaProcessor");
    if (pad || has_tiles(c)) set_bool(o, "do_pad", true);
    if (has_tiles(c)) set_pinpoints(o, c, true);
    set_bool(o, "do_convert_rgb", true);
    set_bool(o, "do_resize", true);
    set_bool(o, "do_center_crop", true);
    set_bool(o, "do_rescale", true);
    set_bool(o, "do_normalize", true);
    json_set(o, "size", size_of("shortest_edge", c->vision.img_h, NULL, 0));
    json_set(o, "crop_size", size_of("height", c->vision.img_h, "width", c->vision.img_w));
    set_int(o, "resample", 3);
    set_real(o, "rescale_factor", 1.0 / 255.0);
    set_three(o, "image_mean", &c->data.image_mean);
    set_three(o, "image_std", &c->data.image_std);
    return o;
}

static struct json *processor_config(const struct config *c) {
    struct json *o = json_new_object();
    set_text(o, "processor_class", has_tiles(c) ? "LlavaNextProcessor" : "LlavaProcessor");
    set_text(o, "image_token", "<image>");
    set_int(o, "num_additional_image_tokens", 1);
    set_int(o, "patch_size", c->vision.patch_dim);
    set_text(o, "vision_feature_select_strategy",
             c->vision.disable_vision_class_token ? "default" : "full");
    return o;
}

static struct json *generation_config(const struct hf_export *e) {
    struct json *o = json_new_object();
    set_bool(o, "_from_model_config", true);
    if (e->bos >= 0) set_int(o, "bos_token_id", e->bos);
    if (e->eos >= 0) set_int(o, "eos_token_id", e->eos);
    if (e->pad >= 0) set_int(o, "pad_token_id", e->pad);
    return o;
}

/* config.json last: a folder without it is not taken for a whole one. */
int hf_write_configs(const struct hf_export *e, const struct config *cfg) {
    TRY(write_json(e, "preprocessor_config.json", preprocessor_config(cfg)));
    TRY(write_json(e, "generation_config.json", generation_config(e)));
    if (!e->original) TRY(write_json(e, "processor_config.json", processor_config(cfg)));
    return write_json(e, "config.json", e->original ? original_config(e, cfg) : hf_config(e, cfg));
}
