/* The JSON files beside an exported config.json: how images are read, how text begins and ends. */
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"

bool hf_has_tiles(const struct config *c) {
    return c->data.image_aspect_ratio == IMAGE_ASPECT_ANYRES;
}

static void put_text(struct hf_merge *m, const char *key, const char *v) {
    hf_put(m, key, json_new_string(v));
}

static void put_absent(struct hf_merge *m, const char *key, const char *v) {
    hf_put_absent(m, key, json_new_string(v));
}

static void put_true(struct hf_merge *m, const char *key) {
    hf_put(m, key, json_new_bool(true));
}

static struct json *pair(const char *a, int64_t x, const char *b, int64_t y) {
    struct json *o = json_new_object();
    json_set(o, a, json_new_integer(x));
    if (b != NULL) json_set(o, b, json_new_integer(y));
    return o;
}

/* Older files give the edge as a number. */
static void put_size(struct hf_merge *m, const char *key, int64_t edge, struct json *v) {
    const struct json *was = json_get(m->o, key);
    if (was != NULL && json_kind(was) == JSON_INTEGER && json_integer(was) == edge)
        json_free(v);
    else
        hf_put(m, key, v);
}

static void put_three(struct hf_merge *m, const char *key, const struct config_real_list *v) {
    struct json *list = json_new_array();
    for (int64_t i = 0; i < v->n; i++) json_append(list, json_new_real(v->v[i]));
    hf_put(m, key, list);
}

/* A class of transformers that reads an image as the job does: the source's own, where it does. */
static void put_image_class(struct hf_merge *m, const struct config *c) {
    bool tiles = hf_has_tiles(c), padded = c->data.image_aspect_ratio == IMAGE_ASPECT_PAD;
    const char *class = tiles    ? "LlavaNextImageProcessor"
                        : padded ? "LlavaImageProcessor"
                                 : "CLIPImageProcessor";
    const struct json *was = json_get(m->o, "image_processor_type");
    const char *name = was != NULL ? json_string(was, NULL) : NULL;
    size_t n = strlen(class);
    bool same = name != NULL && strncmp(name, class, n) == 0; /* ...Fast, ...Pil */
    const struct json *pads = json_get(m->o, "do_pad");
    bool padding = pads != NULL && json_kind(pads) == JSON_BOOL && json_bool(pads);
    if (!tiles && !padded && name != NULL && strncmp(name, "LlavaImageProcessor", 19) == 0)
        same = !padding;
    if (!same) put_text(m, "image_processor_type", class);
    if (padded || tiles) put_true(m, "do_pad");
    if (!padded && !tiles && pads != NULL) hf_put(m, "do_pad", json_new_bool(false));
}

static struct json *images_config(const struct hf_export *e, const struct json *source,
                                  const char *path, const struct config *c) {
    struct hf_merge m = hf_merge_begin(source, path, e->notes);
    bool tiles = hf_has_tiles(c);
    put_image_class(&m, c);
    hf_put_quietly(&m, "processor_class",
                   json_new_string(tiles ? "LlavaNextProcessor" : "LlavaProcessor"));
    if (tiles) hf_put_pinpoints(&m, c, true);
    put_true(&m, "do_convert_rgb");
    put_true(&m, "do_resize");
    put_true(&m, "do_center_crop");
    put_true(&m, "do_rescale");
    put_true(&m, "do_normalize");
    put_size(&m, "size", c->vision.img_h, pair("shortest_edge", c->vision.img_h, NULL, 0));
    put_size(&m, "crop_size", c->vision.img_h,
             pair("height", c->vision.img_h, "width", c->vision.img_w));
    hf_put(&m, "resample", json_new_integer(3));
    hf_put(&m, "rescale_factor", json_new_real(1.0 / 255.0));
    put_three(&m, "image_mean", &c->data.image_mean);
    put_three(&m, "image_std", &c->data.image_std);
    return m.o;
}

/* transformers 5 keeps the description of the images inside the processor's own file. */
static const struct json *nested_images(const struct hf_export *e) {
    const struct json *v =
        e->source.processor != NULL ? json_get(e->source.processor, "image_processor") : NULL;
    return v != NULL && json_kind(v) == JSON_OBJECT ? v : NULL;
}

static struct json *processor_config(const struct hf_export *e, const struct config *c) {
    struct hf_merge m = hf_merge_begin(e->source.processor, "processor_config.json ", e->notes);
    const struct json *images = nested_images(e);
    hf_put_quietly(&m, "processor_class",
                   json_new_string(hf_has_tiles(c) ? "LlavaNextProcessor" : "LlavaProcessor"));
    put_absent(&m, "image_token", e->image_piece);
    hf_put(&m, "num_additional_image_tokens", json_new_integer(1));
    hf_put(&m, "patch_size", json_new_integer(c->vision.patch_dim));
    put_text(&m, "vision_feature_select_strategy",
             c->vision.disable_vision_class_token ? "default" : "full");
    if (images != NULL)
        hf_put_quietly(&m, "image_processor",
                       images_config(e, images, "processor_config.json image_processor.", c));
    return m.o;
}

static struct json *generation_config(const struct hf_export *e) {
    struct hf_merge m = hf_merge_begin(e->source.generation, "generation_config.json ", e->notes);
    const struct json *eos =
        e->source.text != NULL ? json_get(e->source.text, "eos_token_id") : NULL;
    bool list = eos != NULL && json_kind(eos) == JSON_ARRAY;
    if (e->source.generation != NULL) return m.o;
    hf_put(&m, "_from_model_config", json_new_bool(true));
    if (e->bos >= 0) hf_put(&m, "bos_token_id", json_new_integer(e->bos));
    if (list)
        hf_put(&m, "eos_token_id", json_duplicate(eos));
    else if (e->eos >= 0)
        hf_put(&m, "eos_token_id", json_new_integer(e->eos));
    if (e->pad >= 0) hf_put(&m, "pad_token_id", json_new_integer(e->pad));
    return m.o;
}

int hf_write_json(const char *folder, const char *name, struct json *root) {
    char *text = json_text(root, 2), *path = xasprintf("%s/%s", folder, name);
    int rc = file_write_atomic(path, text, strlen(text));
    json_free(root);
    free(text);
    free(path);
    return rc;
}

const char *const hf_config_files[] = {"preprocessor_config.json", "generation_config.json",
                                       "processor_config.json", "config.json", NULL};

int hf_write_configs(const struct hf_export *e, const struct config *cfg, const char *folder) {
    const struct json *images = e->source.images != NULL ? e->source.images : nested_images(e);
    TRY(hf_write_json(folder, hf_config_files[0],
                      images_config(e, images, "preprocessor_config.json ", cfg)));
    TRY(hf_write_json(folder, hf_config_files[1], generation_config(e)));
    if (!e->original) TRY(hf_write_json(folder, hf_config_files[2], processor_config(e, cfg)));
    return hf_write_json(folder, hf_config_files[3], hf_new_config(e, cfg));
}
