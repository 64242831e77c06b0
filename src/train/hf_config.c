/* From foreign configurations to keys of the job file. Published ones are sparse: what they leave out
 * are the defaults of their classes. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "hf_config.h"
#include "json.h"

#define CONFIG_MAX ((size_t)16 << 20)

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

/* ---- one configuration: values with defaults -------------------------------------------------------- */
struct reader {
    const char *path;
    const struct json *v; /* object; NULL: empty, all defaults */
    int rc;
};

/* NULL where the key is absent or null. */
static const struct json *member(const struct reader *r, const char *key) {
    const struct json *v = r->v != NULL ? json_get(r->v, key) : NULL;
    return v != NULL && json_kind(v) != JSON_NULL ? v : NULL;
}

static int64_t integer(struct reader *r, const char *key, int64_t otherwise) {
    const struct json *v = member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_INTEGER && json_integer(v) > -(1LL << 40) &&
        json_integer(v) < 1LL << 40)
        return json_integer(v);
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is no whole number of a model's size", r->path, key);
    return otherwise;
}

/* At least 1, so that it may divide. */
static int64_t size_of(struct reader *r, const char *key, int64_t otherwise) {
    int64_t n = integer(r, key, otherwise);
    if (n >= 1) return n;
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is %lld, at least 1 is needed", r->path, key,
                        (long long)n);
    return 1;
}

static double real(struct reader *r, const char *key, double otherwise) {
    const struct json *v = member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_REAL || json_kind(v) == JSON_INTEGER) return json_real(v);
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is no number", r->path, key);
    return otherwise;
}

static bool truth(struct reader *r, const char *key, bool otherwise) {
    const struct json *v = member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_BOOL) return json_bool(v);
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is neither true nor false", r->path, key);
    return otherwise;
}

static const char *text(struct reader *r, const char *key, const char *otherwise) {
    const struct json *v = member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_STRING) return json_string(v, NULL);
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is no text", r->path, key);
    return otherwise;
}

static struct reader below(const struct reader *r, const char *key) {
    const struct json *v = member(r, key);
    struct reader out = {.path = r->path};
    if (v != NULL && json_kind(v) == JSON_OBJECT) out.v = v;
    return out;
}

static void require(struct reader *r, const char *key, const char *found, const char *only) {
    if (strcmp(found, only) == 0) return;
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is \"%.64s\", this version builds \"%s\" only",
                        r->path, key, found, only);
}

/* The fewest digits that read back as the same number. */
static void set_real(struct hf_keys *k, const char *section, const char *key, double v) {
    char value[40];
    bool whole = v >= 1.0 && v < 1e15 && !(v > floor(v));
    if (whole) snprintf(value, sizeof value, "%.0f", v);
    for (int digits = 1; digits <= 17 && !whole; digits++) {
        snprintf(value, sizeof value, "%.*g", digits, v);
        double back;
        if (parse_real(value, &back) && !(back < v) && !(back > v)) break;
    }
    hf_keys_set(k, section, key, "%s", value);
}

static void set_int(struct hf_keys *k, const char *section, const char *key, int64_t v) {
    hf_keys_set(k, section, key, "%lld", (long long)v);
}

static void set_bool(struct hf_keys *k, const char *section, const char *key, bool v) {
    hf_keys_set(k, section, key, "%s", v ? "true" : "false");
}

/* ---- the language model ------------------------------------------------------------------------------ */
static double rotary_base(struct reader *r) {
    struct reader rope = below(r, "rope_parameters"), scaling = below(r, "rope_scaling");
    const char *kind = text(&rope, "rope_type", "default");
    if (scaling.v != NULL && json_size(scaling.v) > 0)
        kind = text(&scaling, "rope_type", text(&scaling, "type", "scaled"));
    require(r, "rope_type", kind, "default");
    double base = real(&rope, "rope_theta", real(r, "rope_theta", 10000.0));
    if (rope.rc) r->rc = rope.rc;
    return base;
}

static void set_fixed(struct hf_keys *k) {
    hf_keys_set(k, "language", "normalization", "RMSNorm");
    set_bool(k, "language", "swiglu", true);
    set_bool(k, "language", "add_bias_linear", false);
    hf_keys_set(k, "language", "position_embedding_type", "rope");
    set_bool(k, "language", "untie_embeddings_and_output_weights", true);
}

static void language_keys(struct reader *r, const char *type, struct hf_keys *k) {
    bool mistral = strcmp(type, "mistral") == 0;
    int64_t hidden = size_of(r, "hidden_size", 4096), heads = size_of(r, "num_attention_heads", 32);
    if (!mistral && strcmp(type, "llama") != 0)
        r->rc = error_raise(EXIT_BAD_DATA,
                            "%s: model_type is \"%.64s\": a LLaVA, a mistral or a llama is needed",
                            r->path, type);
    require(r, "hidden_act", text(r, "hidden_act", "silu"), "silu");
    if (truth(r, "tie_word_embeddings", false))
        r->rc = error_raise(EXIT_BAD_DATA,
                            "%s: tie_word_embeddings: the head of family llava is its "
                            "own tensor",
                            r->path);
    bool bias = truth(r, "attention_bias", false), mlp_bias = truth(r, "mlp_bias", false);
    if (bias != mlp_bias || (bias && mistral))
        r->rc = error_raise(EXIT_BAD_DATA,
                            "%s: attention_bias is %s, mlp_bias %s: this version has both, in a "
                            "llama, or none",
                            r->path, bias ? "true" : "false", mlp_bias ? "true" : "false");
    snprintf(k->text_model, sizeof k->text_model, "%s", type);
    set_int(k, "language", "num_layers", size_of(r, "num_hidden_layers", 32));
    set_int(k, "language", "hidden_size", hidden);
    set_int(k, "language", "ffn_hidden_size",
            size_of(r, "intermediate_size", mistral ? 14336 : 11008));
    set_int(k, "language", "num_attention_heads", heads);
    set_int(k, "language", "num_query_groups",
            size_of(r, "num_key_value_heads", mistral ? 8 : heads));
    set_int(k, "language", "kv_channels",
            size_of(r, "head_dim", hidden / heads > 0 ? hidden / heads : 1));
    set_real(k, "language", "norm_epsilon", real(r, "rms_norm_eps", 1e-6));
    set_real(k, "language", "rotary_base", rotary_base(r));
    bool silent = r->v == NULL || json_get(r->v, "sliding_window") == NULL;
    int64_t window = mistral ? integer(r, "sliding_window", silent ? 4096 : 0) : 0;
    if (window > 0) set_int(k, "language", "window_size", window);
    set_int(k, "language", "vocab_size", size_of(r, "vocab_size", 32000));
    set_fixed(k);
    set_bool(k, "language", "add_bias_linear", bias);
}

/* Mistral's own release: params.json. */
static void raw_keys(struct reader *r, struct hf_keys *k) {
    int64_t hidden = size_of(r, "dim", 4096), heads = size_of(r, "n_heads", 32);
    snprintf(k->text_model, sizeof k->text_model, "mistral");
    set_int(k, "language", "num_layers", size_of(r, "n_layers", 32));
    set_int(k, "language", "hidden_size", hidden);
    set_int(k, "language", "ffn_hidden_size", size_of(r, "hidden_dim", 14336));
    set_int(k, "language", "num_attention_heads", heads);
    set_int(k, "language", "num_query_groups", size_of(r, "n_kv_heads", heads));
    set_int(k, "language", "kv_channels",
            size_of(r, "head_dim", hidden / heads > 0 ? hidden / heads : 1));
    set_real(k, "language", "norm_epsilon", real(r, "norm_eps", 1e-5));
    set_real(k, "language", "rotary_base", real(r, "rope_theta", 10000.0));
    if (integer(r, "sliding_window", 0) > 0)
        set_int(k, "language", "window_size", integer(r, "sliding_window", 0));
    set_int(k, "language", "vocab_size", size_of(r, "vocab_size", 32000));
    set_fixed(k);
}

static bool is_original(const char *type) {
    return strcmp(type, "llava_llama") == 0 || strcmp(type, "llava_mistral") == 0;
}

/* ---- images of several tiles ------------------------------------------------------------------------------ */
#define PINPOINTS_MAX 64

static int bad_pinpoints(struct reader *r) {
    r->rc = error_raise(EXIT_BAD_DATA,
                        "%s: image_grid_pinpoints must be 1 to %d pairs [a, b] of pixels", r->path,
                        PINPOINTS_MAX);
    return r->rc;
}

/* The same list is read with height before width by transformers, with width before height by the
 * original: of two that fit an image alike the first is taken, so the reading matters. */
static void pinpoint_keys(struct reader *r, bool height_first, struct hf_keys *k) {
    static const int64_t published[][2] = {
        {336, 672}, {672, 336}, {672, 672}, {1008, 336}, {336, 1008}};
    const struct json *list = member(r, "image_grid_pinpoints");
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

static void tile_keys(struct reader *r, bool original, struct hf_keys *k) {
    const char *aspect = text(r, "image_aspect_ratio", "");
    if (!original && strcmp(text(r, "model_type", ""), "llava_next") == 0) {
        if (!truth(r, "use_image_newline_parameter", true))
            r->rc = error_raise(EXIT_BAD_DATA,
                                "%s: use_image_newline_parameter is false: this version ends each "
                                "row of a map of tiles with image_newline",
                                r->path);
        pinpoint_keys(r, true, k);
    } else if (original && strncmp(aspect, "anyres", 6) == 0) {
        require(r, "image_aspect_ratio", aspect, "anyres");
        require(r, "mm_patch_merge_type", text(r, "mm_patch_merge_type", "flat"), "spatial_unpad");
        pinpoint_keys(r, false, k);
    }
}

/* What is said about the join of both towers. */
static void join_keys(struct reader *r, bool original, struct hf_keys *k) {
    const char *feature = original ? "mm_vision_select_layer" : "vision_feature_layer";
    const struct json *v = member(r, feature);
    if (v != NULL && json_kind(v) == JSON_ARRAY)
        r->rc = error_raise(EXIT_BAD_DATA, "%s: %s is a list: this version takes one layer",
                            r->path, feature);
    else
        set_int(k, "vision", "vision_feature_layer", integer(r, feature, -2));
    const char *select = original ? text(r, "mm_vision_select_feature", "patch")
                                  : text(r, "vision_feature_select_strategy", "default");
    bool drop = strcmp(select, "patch") == 0 || strcmp(select, "default") == 0;
    if (!drop && strcmp(select, "cls_patch") != 0 && strcmp(select, "full") != 0)
        require(r, "vision_feature_select_strategy", select, "default");
    set_bool(k, "vision", "disable_vision_class_token", drop);
    const char *act = text(r, "projector_hidden_act", "gelu");
    hf_keys_set(k, "projector", "projector_activation", "%.30s", act);
    k->image_token = integer(r, "image_token_index", integer(r, "image_token_id", -1));
    k->pad = integer(r, "pad_token_id", -1);
    tile_keys(r, original, k);
}

/* ---- the vision tower ---------------------------------------------------------------------------------- */
static void vision_keys(struct reader *r, struct hf_keys *k) {
    require(r, "hidden_act", text(r, "hidden_act", "quick_gelu"), "quick_gelu");
    double eps = real(r, "layer_norm_eps", 1e-5);
    if (!(fabs(eps - 1e-5) <= 1e-12))
        r->rc = error_raise(EXIT_BAD_DATA, "%s: layer_norm_eps is %g, this version has 1e-5",
                            r->path, eps);
    /* The defaults of CLIP's vision class are those of ViT-B/32. */
    set_int(k, "vision", "num_layers", size_of(r, "num_hidden_layers", 12));
    set_int(k, "vision", "hidden_size", size_of(r, "hidden_size", 768));
    set_int(k, "vision", "ffn_hidden_size", size_of(r, "intermediate_size", 3072));
    set_int(k, "vision", "num_attention_heads", size_of(r, "num_attention_heads", 12));
    set_int(k, "vision", "img_h", size_of(r, "image_size", 224));
    set_int(k, "vision", "img_w", size_of(r, "image_size", 224));
    set_int(k, "vision", "patch_dim", size_of(r, "patch_size", 32));
    if (integer(r, "num_channels", 3) != 3)
        r->rc = error_raise(EXIT_BAD_DATA, "%s: num_channels is not 3", r->path);
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
static int vision_shapes(const struct safetensors *s, struct hf_keys *k) {
    const struct safetensor *conv = find_canonical(s, TOWER "embeddings.patch_embedding.weight");
    const struct safetensor *pos = find_canonical(s, TOWER "embeddings.position_embedding.weight");
    const struct safetensor *fc1 = find_canonical(s, TOWER "encoder.layers.0.mlp.fc1.weight");
    int64_t layers = 0;
    if (conv == NULL || pos == NULL || fc1 == NULL || conv->n_dims != 4 || pos->n_dims != 2 ||
        fc1->n_dims != 2)
        return error_raise(EXIT_NO_INPUT,
                           "%s holds no CLIP vision tower: name its folder with "
                           "--vision",
                           safetensors_path(s));
    for (;; layers++) {
        char name[96];
        snprintf(name, sizeof name, TOWER "encoder.layers.%lld.mlp.fc1.weight", (long long)layers);
        if (find_canonical(s, name) == NULL) break;
    }
    int64_t edge = (int64_t)llround(sqrt((double)(pos->shape[0] > 0 ? pos->shape[0] - 1 : 0)));
    set_int(k, "vision", "num_layers", layers);
    set_int(k, "vision", "hidden_size", conv->shape[0]);
    set_int(k, "vision", "ffn_hidden_size", fc1->shape[0]);
    set_int(k, "vision", "num_attention_heads", conv->shape[0] < 64 ? 1 : conv->shape[0] / 64);
    set_int(k, "vision", "img_h", edge * conv->shape[2]);
    set_int(k, "vision", "img_w", edge * conv->shape[2]);
    set_int(k, "vision", "patch_dim", conv->shape[2]);
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
    if (mlp) set_int(k, "projector", "projector_hidden_size", first->shape[0]);
    set_bool(k, "projector", "projector_bias", find_canonical(s, bias) != NULL);
    return 0;
}

/* ---- folders -------------------------------------------------------------------------------------------------- */
/* The folder's file of that name, or NULL. */
static char *beside(const char *path, const char *name) {
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

/* root NULL: no such file. */
static int read_config(const char *folder, const char *name, char **path, struct json **root) {
    *path = beside(folder, name);
    *root = NULL;
    if (*path == NULL) return 0;
    TRY(json_read_file(*path, CONFIG_MAX, root));
    if (json_kind(*root) == JSON_OBJECT) return 0;
    return error_raise(EXIT_BAD_DATA, "%s is no object", *path);
}

static void language_from(struct reader *r, struct hf_keys *k) {
    const char *type = text(r, "model_type", "");
    struct reader inner = below(r, "text_config");
    if (inner.v != NULL) {
        language_keys(&inner, text(&inner, "model_type", "llama"), k);
        join_keys(r, false, k);
    } else if (is_original(type) || member(r, "mm_hidden_size") != NULL) {
        language_keys(r, strcmp(type, "llava_mistral") == 0 ? "mistral" : "llama", k);
        join_keys(r, true, k);
    } else {
        language_keys(r, type, k);
    }
    if (inner.rc) r->rc = inner.rc;
}

static int read_language(const struct hf_folder *f, struct hf_keys *k) {
    char *path = NULL;
    struct json *root = NULL;
    int rc = read_config(f->path, "config.json", &path, &root);
    bool raw = !rc && root == NULL;
    if (raw) {
        free(path);
        rc = read_config(f->path, "params.json", &path, &root);
    }
    if (!rc && root == NULL)
        rc = error_raise(EXIT_NO_INPUT, "%s has neither config.json nor params.json", f->path);
    if (!rc) {
        struct reader r = {.path = path, .v = root};
        (raw ? raw_keys : language_from)(&r, k);
        rc = r.rc;
    }
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

static int read_vision(const struct hf_folder *f, struct hf_keys *k) {
    char *path = NULL;
    struct json *root = NULL;
    int rc = read_config(f->path, "config.json", &path, &root);
    struct reader r = {.path = path, .v = root}, inner = below(&r, "vision_config");
    if (!rc && inner.v != NULL) {
        vision_keys(&inner, k);
        rc = inner.rc;
    } else if (!rc && strcmp(text(&r, "model_type", ""), "clip_vision_model") == 0) {
        vision_keys(&r, k);
        rc = r.rc;
    } else if (!rc) {
        rc = vision_shapes(f->files, k);
    }
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

int hf_model_keys(const struct hf_folder *language, const struct hf_folder *vision,
                  const struct hf_folder *projector, struct hf_keys *out) {
    *out = (struct hf_keys){.image_token = -1, .pad = -1};
    set_int(out, "vision", "vision_feature_layer", -2);
    set_bool(out, "vision", "disable_vision_class_token", true);
    hf_keys_set(out, "projector", "projector_activation", "gelu");
    TRY(read_language(language, out));
    TRY(read_vision(vision, out));
    return projector->files != NULL ? projector_keys(projector->files, out) : 0;
}
