/* From foreign configurations to keys of the job file. Published ones are sparse: what they leave out
 * are the defaults of their classes. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hf_read_impl.h"

#define CONFIG_MAX ((size_t)4 << 20) /* published ones have a few KB */

void hf_keys_set(struct hf_keys *k, const char *section, const char *key, const char *fmt, ...) {
    struct hf_key *at = NULL;
    for (int i = 0; i < k->n; i++)
        if (strcmp(k->key[i].section, section) == 0 && strcmp(k->key[i].key, key) == 0)
            at = &k->key[i];
    CHECK(at != NULL || k->n < (int)(sizeof k->key / sizeof *k->key), "%d keys", k->n);
    if (at == NULL) at = &k->key[k->n++];
    va_list args;
    va_start(args, fmt);
    snprintf(at->section, sizeof at->section, "%s", section);
    snprintf(at->key, sizeof at->key, "%s", key);
    vsnprintf(at->value, sizeof at->value, fmt, args);
    va_end(args);
}

const char *hf_keys_get(const struct hf_keys *k, const char *section, const char *key) {
    for (int i = 0; i < k->n; i++)
        if (strcmp(k->key[i].section, section) == 0 && strcmp(k->key[i].key, key) == 0)
            return k->key[i].value;
    return NULL;
}

static bool is_original(const char *type) {
    return strcmp(type, "llava_llama") == 0 || strcmp(type, "llava_mistral") == 0;
}

/* ---- images of several tiles ------------------------------------------------------------------------------ */
#define PINPOINTS_MAX 64

static int bad_pinpoints(struct hf_reader *r) {
    r->rc = error_raise(EXIT_BAD_DATA,
                        "%s: image_grid_pinpoints must be 1 to %d pairs [a, b] of pixels", r->path,
                        PINPOINTS_MAX);
    return r->rc;
}

/* The same list is read with height before width by transformers, with width before height by the
 * original: of two that fit an image alike the first is taken, so the reading matters. */
void hf_pinpoint_keys(struct hf_reader *r, bool height_first, struct hf_keys *k) {
    static const int64_t published[][2] = {
        {336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
    const struct json *list = hf_read_member(r, "image_grid_pinpoints");
    size_t n = list == NULL ? sizeof published / sizeof *published : json_size(list);
    char text[sizeof k->key->value] = "";
    if ((list != NULL && json_kind(list) != JSON_ARRAY) || n < 1 || n > PINPOINTS_MAX) {
        bad_pinpoints(r);
        return;
    }
    for (size_t i = 0, used = 0; i < n; i++) {
        int64_t pair[2] = {0, 0};
        if (list == NULL) memcpy(pair, published[i], sizeof pair);
        const struct json *one = list == NULL ? NULL : json_at(list, i);
        for (size_t d = 0; one != NULL && d < 2; d++)
            if (json_kind(one) == JSON_ARRAY && json_size(one) == 2 &&
                json_kind(json_at(one, d)) == JSON_INTEGER)
                pair[d] = json_integer(json_at(one, d));
        if (pair[0] < 1 || pair[1] < 1 || pair[0] > 65536 || pair[1] > 65536) {
            bad_pinpoints(r);
            return;
        }
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%lld,%lld", i > 0 ? "," : "",
                                 (long long)pair[height_first ? 1 : 0],
                                 (long long)pair[height_first ? 0 : 1]);
        CHECK(used < sizeof text, "%zu resolutions", n);
    }
    hf_keys_set(k, "data", "image_aspect_ratio", "anyres");
    hf_keys_set(k, "data", "image_grid_pinpoints", "%s", text);
}

static void tile_keys(struct hf_reader *r, struct hf_keys *k) {
    if (strcmp(hf_read_text(r, "model_type", ""), "llava_next") != 0) return;
    if (!hf_read_truth(r, "use_image_newline_parameter", true))
        hf_read_refuse(r, "use_image_newline_parameter",
                       "is false: this version ends each row of a map of tiles with image_newline");
    hf_pinpoint_keys(r, true, k);
}

static void original_tile_keys(struct hf_reader *r, struct hf_keys *k) {
    const char *aspect = hf_read_text(r, "image_aspect_ratio", "");
    bool plain = strcmp(aspect, "pad") == 0 || strcmp(aspect, "square") == 0;
    if (plain) hf_keys_set(k, "data", "image_aspect_ratio", "%s", aspect);
    if (plain || aspect[0] == 0) return;
    hf_read_require(r, "image_aspect_ratio", aspect, "anyres");
    hf_read_require(r, "mm_patch_merge_type", hf_read_text(r, "mm_patch_merge_type", "flat"),
                    "spatial_unpad");
    hf_pinpoint_keys(r, false, k);
}

/* What is said about the join of both towers. */
static void feature_keys(struct hf_reader *r, const char *layer, const char *select_key,
                         const char *drop, const char *keep, struct hf_keys *k) {
    const struct json *v = hf_read_member(r, layer);
    const char *select = hf_read_text(r, select_key, drop);
    if (v != NULL && json_kind(v) == JSON_ARRAY)
        hf_read_refuse(r, layer, "is a list: this version takes one layer");
    else
        hf_set_int(k, "vision", "vision_feature_layer", hf_read_integer(r, layer, -2));
    if (strcmp(select, drop) != 0 && strcmp(select, keep) != 0)
        hf_read_refuse(r, select_key, "is \"%.64s\", this version builds \"%s\" and \"%s\"", select,
                       drop, keep);
    hf_set_bool(k, "vision", "disable_vision_class_token", strcmp(select, keep) != 0);
    k->pad = hf_read_integer(r, "pad_token_id", -1);
    k->llava = true;
}

static void join_keys(struct hf_reader *r, struct hf_keys *k) {
    hf_read_check_keys(r, HF_OBJECT_LLAVA);
    feature_keys(r, "vision_feature_layer", "vision_feature_select_strategy", "default", "full", k);
    const char *act = hf_read_text(r, "projector_hidden_act", "gelu");
    if (strcmp(act, "gelu") != 0 && strcmp(act, "quick_gelu") != 0 && strcmp(act, "silu") != 0)
        hf_read_refuse(r, "projector_hidden_act",
                       "is \"%.64s\", this version builds \"gelu\", \"quick_gelu\" and \"silu\"",
                       act);
    hf_keys_set(k, "projector", "projector_activation", "%.30s", act);
    k->image_token =
        hf_read_integer(r, "image_token_index", hf_read_integer(r, "image_token_id", -1));
    if (hf_read_member(r, "multimodal_projector_bias") != NULL)
        k->projector_bias = hf_read_truth(r, "multimodal_projector_bias", true) ? 1 : 0;
    tile_keys(r, k);
}

static void original_keys(struct hf_reader *r, struct hf_keys *k) {
    const char *kind = hf_read_text(r, "mm_projector_type", "linear");
    hf_read_check_keys(r, HF_OBJECT_ORIGINAL);
    feature_keys(r, "mm_vision_select_layer", "mm_vision_select_feature", "patch", "cls_patch", k);
    if (strcmp(kind, "linear") != 0 && strcmp(kind, "mlp2x_gelu") != 0)
        hf_read_refuse(r, "mm_projector_type",
                       "is \"%.64s\", this version builds \"linear\" and \"mlp2x_gelu\"", kind);
    original_tile_keys(r, k);
}

/* ---- the vision tower ---------------------------------------------------------------------------------- */
static void vision_keys(struct hf_reader *r, struct hf_keys *k) {
    const char *type = hf_read_text(r, "model_type", "clip_vision_model");
    if (strcmp(type, "clip_vision_model") != 0) {
        hf_read_refuse(r, "model_type", "is \"%.64s\": a CLIP tower, clip_vision_model, is needed",
                       type);
        return;
    }
    hf_read_check_keys(r, HF_OBJECT_VISION);
    hf_read_require(r, "hidden_act", hf_read_text(r, "hidden_act", "quick_gelu"), "quick_gelu");
    double eps = hf_read_real(r, "layer_norm_eps", 1e-5);
    if (!(fabs(eps - 1e-5) <= 1e-12))
        hf_read_refuse(r, "layer_norm_eps", "is %g, this version has 1e-5", eps);
    /* The defaults of CLIP's vision class are those of ViT-B/32. */
    hf_set_int(k, "vision", "num_layers", hf_read_size(r, "num_hidden_layers", 12));
    hf_set_int(k, "vision", "hidden_size", hf_read_size(r, "hidden_size", 768));
    hf_set_int(k, "vision", "ffn_hidden_size", hf_read_size(r, "intermediate_size", 3072));
    hf_set_int(k, "vision", "num_attention_heads", hf_read_size(r, "num_attention_heads", 12));
    hf_set_int(k, "vision", "img_h", hf_read_size(r, "image_size", 224));
    hf_set_int(k, "vision", "img_w", hf_read_size(r, "image_size", 224));
    hf_set_int(k, "vision", "patch_dim", hf_read_size(r, "patch_size", 32));
    if (hf_read_integer(r, "num_channels", 3) != 3) hf_read_refuse(r, "num_channels", "is not 3");
}

static const struct safetensor *find_canonical(const struct safetensors *s, const char *canonical) {
    struct hf_name name;
    for (int64_t i = 0; i < safetensors_count(s); i++)
        if (hf_canonical(safetensors_at(s, i)->name, &name) == HF_WEIGHT &&
            strcmp(name.name[0], canonical) == 0)
            return safetensors_at(s, i);
    return NULL;
}

/* CLIP's heads are 64 wide; all else is in the shapes. */
#define TOWER "vision_tower.vision_model."
#define TOWER_SIZE_MAX                                                                             \
    ((int64_t)1 << 24) /* so that an edge, in patches, times a patch's is a number */

/* Layers from 0 on without a gap, found in one pass over the tensors. */
static int64_t tower_layers(const struct safetensors *s) {
    int64_t n = safetensors_count(s), layers = 0;
    bool *there = xcalloc((size_t)n + 1, sizeof *there);
    for (int64_t i = 0; i < n; i++) {
        static const char format[] = TOWER "encoder.layers.%lld.mlp.fc1.weight";
        struct hf_name name;
        char again[96];
        long long at;
        if (hf_canonical(safetensors_at(s, i)->name, &name) != HF_WEIGHT ||
            sscanf(name.name[0], format, &at) != 1 || at < 0 || at >= n)
            continue;
        snprintf(again, sizeof again, format, at);
        if (strcmp(again, name.name[0]) == 0) there[at] = true;
    }
    while (there[layers]) layers++;
    free(there);
    return layers;
}

static int vision_shapes(const struct safetensors *s, struct hf_keys *k) {
    const struct safetensor *conv = find_canonical(s, TOWER "embeddings.patch_embedding.weight");
    const struct safetensor *pos = find_canonical(s, TOWER "embeddings.position_embedding.weight");
    const struct safetensor *fc1 = find_canonical(s, TOWER "encoder.layers.0.mlp.fc1.weight");
    if (conv == NULL || pos == NULL || fc1 == NULL || conv->n_dims != 4 || pos->n_dims != 2 ||
        fc1->n_dims != 2)
        return error_raise(EXIT_NO_INPUT,
                           "%s holds no CLIP vision tower: name its folder with "
                           "--vision",
                           safetensors_path(s));
    if (conv->shape[0] > TOWER_SIZE_MAX || conv->shape[2] > TOWER_SIZE_MAX ||
        pos->shape[0] > TOWER_SIZE_MAX || fc1->shape[0] > TOWER_SIZE_MAX)
        return error_raise(EXIT_BAD_DATA,
                           "%s: a CLIP vision tower of %lld, patches of %lld, %lld positions and "
                           "%lld inner columns: each is at most %lld",
                           safetensors_path(s), (long long)conv->shape[0],
                           (long long)conv->shape[2], (long long)pos->shape[0],
                           (long long)fc1->shape[0], (long long)TOWER_SIZE_MAX);
    int64_t edge = (int64_t)llround(sqrt((double)(pos->shape[0] > 0 ? pos->shape[0] - 1 : 0)));
    hf_set_int(k, "vision", "num_layers", tower_layers(s));
    hf_set_int(k, "vision", "hidden_size", conv->shape[0]);
    hf_set_int(k, "vision", "ffn_hidden_size", fc1->shape[0]);
    hf_set_int(k, "vision", "num_attention_heads", conv->shape[0] < 64 ? 1 : conv->shape[0] / 64);
    hf_set_int(k, "vision", "img_h", edge * conv->shape[2]);
    hf_set_int(k, "vision", "img_w", edge * conv->shape[2]);
    hf_set_int(k, "vision", "patch_dim", conv->shape[2]);
    return 0;
}

/* ---- the projector ---------------------------------------------------------------------------------------- */
static int projector_keys(const struct safetensors *s, struct hf_keys *k) {
    const struct safetensor *first = find_canonical(s, "multi_modal_projector.linear_1.weight");
    bool mlp = first != NULL;
    if (!mlp) first = find_canonical(s, "multi_modal_projector.linear.weight");
    if (first == NULL || first->n_dims != 2)
        return error_raise(EXIT_BAD_DATA,
                           "%s holds no projector: name its folder with --projector, or "
                           "say --fresh-projector",
                           safetensors_path(s));
    const char *bias =
        mlp ? "multi_modal_projector.linear_1.bias" : "multi_modal_projector.linear.bias";
    hf_keys_set(k, "projector", "projector_type", mlp ? "mlp" : "affine");
    if (mlp) hf_set_int(k, "projector", "projector_hidden_size", first->shape[0]);
    hf_set_bool(k, "projector", "projector_bias", find_canonical(s, bias) != NULL);
    return 0;
}

/* ---- folders -------------------------------------------------------------------------------------------------- */
char *hf_file_beside(const char *path, const char *name) {
    struct stat st;
    const char *slash = strrchr(path, '/');
    char *out;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        out = xasprintf("%s/%s", path, name);
    else if (slash != NULL)
        out = xasprintf("%.*s/%s", (int)(slash - path), path, name);
    else
        out = xstrdup(name);
    if (stat(out, &st) == 0 && S_ISREG(st.st_mode)) return out;
    free(out);
    return NULL;
}

int hf_read_file(const char *folder, const char *name, char **path, struct json **root) {
    *path = hf_file_beside(folder, name);
    *root = NULL;
    if (*path == NULL) return 0;
    TRY(json_read_file(*path, CONFIG_MAX, root));
    if (json_kind(*root) == JSON_OBJECT) return 0;
    return error_raise(EXIT_BAD_DATA, "%s is no object", *path);
}

/* One sentence, and nothing else about such a folder. */
static void unknown_model(struct hf_reader *r, const char *type) {
    hf_read_refuse(
        r, "model_type",
        "is \"%.64s\"%s; strata imports llava and llava_next (transformers), llava_llama "
        "and llava_mistral (the original), and as their language models llama, mistral "
        "and qwen2",
        type, type[0] == 0 ? ", or is missing" : "");
}

static void whole_keys(struct hf_reader *r, const char *type, struct hf_keys *k) {
    struct hf_reader inner = hf_read_below(r, "text_config", "text_config.");
    const char *text = hf_read_text(&inner, "model_type", "llama");
    bool next = strcmp(type, "llava_next") == 0,
         top = hf_read_truth(r, "tie_word_embeddings", false);
    if (!hf_language_known(text)) {
        unknown_model(&inner, text);
    } else {
        join_keys(r, k);
        hf_read_check_keys(&inner, HF_OBJECT_LANGUAGE);
        hf_language_keys(&inner, text, k);
        /* transformers' LlavaNext goes by the outer one alone */
        k->tied = top || (k->tied && !next);
    }
    if (inner.rc) r->rc = inner.rc;
}

static void language_from(struct hf_reader *r, struct hf_keys *k) {
    const char *type = hf_read_text(r, "model_type", "");
    bool outer = strcmp(type, "llava") == 0 || strcmp(type, "llava_next") == 0;
    if (is_original(type) ||
        (strcmp(type, "llava") == 0 && hf_read_member(r, "mm_hidden_size") != NULL)) {
        original_keys(r, k);
        hf_language_keys(r, strcmp(type, "llava_mistral") == 0 ? "mistral" : "llama", k);
    } else if (outer || (type[0] == 0 && hf_read_member(r, "text_config") != NULL)) {
        whole_keys(r, type, k);
    } else if (hf_language_known(type)) {
        hf_read_check_keys(r, HF_OBJECT_LANGUAGE);
        hf_language_keys(r, type, k);
    } else {
        unknown_model(r, type);
    }
}

static int read_language(const struct hf_folder *f, struct hf_keys *k) {
    char *path = NULL;
    struct json *root = NULL;
    int rc = hf_read_file(f->path, "config.json", &path, &root);
    bool raw = !rc && root == NULL;
    if (raw) {
        free(path);
        rc = hf_read_file(f->path, "params.json", &path, &root);
    }
    if (!rc && root == NULL)
        rc = error_raise(EXIT_NO_INPUT, "%s has neither config.json nor params.json", f->path);
    if (!rc) {
        struct hf_reader r = {.path = path, .inside = "", .v = root};
        (raw ? hf_params_keys : language_from)(&r, k);
        rc = r.rc;
    }
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

/* CLIP's own configuration may say it twice: transformers then takes vision_config_dict. */
static struct hf_reader tower_object(struct hf_reader *r) {
    struct hf_reader twice = hf_read_below(r, "vision_config_dict", "vision_config_dict.");
    if (strcmp(hf_read_text(r, "model_type", ""), "clip") == 0) {
        hf_read_check_keys(r, HF_OBJECT_CLIP);
        if (twice.v != NULL) return twice;
    }
    return hf_read_below(r, "vision_config", "vision_config.");
}

static int read_vision(const struct hf_folder *f, struct hf_keys *k) {
    char *path = NULL;
    struct json *root = NULL;
    int rc = hf_read_file(f->path, "config.json", &path, &root);
    struct hf_reader r = {.path = path, .inside = "", .v = root}, inner = {.v = NULL};
    if (!rc && root != NULL) inner = tower_object(&r);
    if (!rc && inner.v != NULL) {
        vision_keys(&inner, k);
        rc = inner.rc ? inner.rc : r.rc;
    } else if (!rc && strcmp(hf_read_text(&r, "model_type", ""), "clip_vision_model") == 0) {
        vision_keys(&r, k);
        rc = r.rc;
    } else if (!rc) {
        rc = vision_shapes(f->files, k);
    }
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

/* What the configuration says about the projector's biases must be what the files hold. */
static int check_bias(const struct hf_folder *language, const struct hf_keys *k) {
    const char *held = hf_keys_get(k, "projector", "projector_bias");
    if (k->projector_bias < 0 || held == NULL) return 0;
    if ((strcmp(held, "true") == 0) == (k->projector_bias == 1)) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: multimodal_projector_bias is %s, but the weights have %s biases in the "
                       "projector",
                       language->path, k->projector_bias ? "true" : "false",
                       k->projector_bias ? "no" : "such");
}

int hf_model_keys(const struct hf_folder *language, const struct hf_folder *vision,
                  const struct hf_folder *projector, struct hf_keys *out) {
    *out = (struct hf_keys){.image_token = -1, .pad = -1, .projector_bias = -1};
    hf_set_int(out, "vision", "vision_feature_layer", -2);
    hf_set_bool(out, "vision", "disable_vision_class_token", true);
    hf_keys_set(out, "projector", "projector_activation", "gelu");
    int rc[6] = {read_language(language, out)};
    if (out->text_model[0] == 0) return rc[0]; /* an unknown model: no more to say */
    rc[1] = read_vision(vision, out);
    rc[2] = hf_processor_keys(vision, out);
    rc[3] = hf_tokenizer_check(language);
    if (projector->files != NULL) rc[4] = projector_keys(projector->files, out);
    if (!rc[4]) rc[5] = check_bias(language, out);
    for (int i = 0; i < 6; i++)
        if (rc[i]) return rc[i];
    hf_propose_template(language, out);
    return 0;
}
