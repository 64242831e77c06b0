/* Canonical names by rules: first the tower by its prefix, then the name inside the tower. */
#include <ctype.h>
#include <string.h>

#include "hf.h"

static bool strip(const char **s, const char *prefix) {
    size_t n = strlen(prefix);
    if (strncmp(*s, prefix, n) != 0) return false;
    *s += n;
    return true;
}

static bool strip_any(const char **s, const char *const *prefix, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (strip(s, prefix[i])) return true;
    return false;
}
#define STRIP_ANY(s, list) strip_any(s, list, sizeof(list) / sizeof *(list))

static bool ends(const char *s, const char *suffix) {
    size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

/* ---- patterns: # is a layer's number, @ is weight or bias ----------------------------------------- */
struct rule {
    const char *from, *to; /* to: '?' becomes q, k and v in turn; NULL: no weight of the model */
    bool interleaved;
};

struct wild {
    const char *number, *leaf;
    int n_number;
};

static bool matches(const char *pattern, const char *s, struct wild *w) {
    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            w->number = s;
            while (isdigit((unsigned char)*s)) s++;
            w->n_number = (int)(s - w->number);
            if (w->n_number == 0 || w->n_number > 9) return false;
        } else if (*pattern == '@') {
            w->leaf = strcmp(s, "bias") == 0 ? "bias" : "weight";
            return strcmp(s, w->leaf) == 0;
        } else if (*pattern != *s++) {
            return false;
        }
    }
    return *s == 0;
}

static void fill(char out[160], const char *prefix, const char *to, const struct wild *w,
                 char qkv) {
    size_t n = (size_t)snprintf(out, 160, "%s", prefix);
    for (; *to && n < 159; to++) {
        int put = *to == '#'   ? snprintf(out + n, 160 - n, "%.*s", w->n_number, w->number)
                  : *to == '@' ? snprintf(out + n, 160 - n, "%s", w->leaf)
                               : snprintf(out + n, 160 - n, "%c", *to == '?' ? qkv : *to);
        n += (size_t)put;
    }
}

static enum hf_kind apply(const struct rule *rule, size_t n, const char *s, const char *prefix,
                          struct hf_name *out) {
    for (size_t i = 0; i < n; i++) {
        struct wild w = {0};
        if (!matches(rule[i].from, s, &w)) continue;
        if (rule[i].to == NULL) return HF_NO_WEIGHT;
        out->n = strchr(rule[i].to, '?') != NULL ? 3 : 1;
        out->interleaved = rule[i].interleaved;
        for (int k = 0; k < out->n; k++) fill(out->name[k], prefix, rule[i].to, &w, "qkv"[k]);
        return HF_WEIGHT;
    }
    return HF_UNKNOWN;
}
#define APPLY(list, s, prefix, out) apply(list, sizeof(list) / sizeof *(list), s, prefix, out)

static enum hf_kind keep(const char *s, const char *prefix, struct hf_name *out) {
    out->n = 1;
    snprintf(out->name[0], sizeof out->name[0], "%s%.100s", prefix, s);
    return strlen(s) > 100 ? HF_UNKNOWN : HF_WEIGHT;
}

/* ---- vision ------------------------------------------------------------------------------------------- */
#define VISION "vision_tower.vision_model."
static const char *const vision_prefix[] = {"vision_tower.vision_tower.vision_model.",
                                            "vision_tower.vision_tower.",
                                            "vision_tower.vision_model.",
                                            "vision_tower.",
                                            "vision_model.",
                                            "visual."};
static const char *const vision_own[] = {"embeddings.", "encoder.layers.", "pre_layrnorm.",
                                         "post_layernorm."};
#define BLOCK "transformer.resblocks.#."
#define LAYER "encoder.layers.#."
static const struct rule openai_clip[] = {
    {"conv1.weight", "embeddings.patch_embedding.weight", false},
    {"class_embedding", "embeddings.class_embedding", false},
    {"positional_embedding", "embeddings.position_embedding.weight", false},
    {"ln_pre.@", "pre_layrnorm.@", false},
    {"ln_post.@", "post_layernorm.@", false},
    {BLOCK "ln_1.@", LAYER "layer_norm1.@", false},
    {BLOCK "ln_2.@", LAYER "layer_norm2.@", false},
    {BLOCK "attn.in_proj_@", LAYER "self_attn.?_proj.@", false},
    {BLOCK "attn.out_proj.@", LAYER "self_attn.out_proj.@", false},
    {BLOCK "mlp.c_fc.@", LAYER "mlp.fc1.@", false},
    {BLOCK "mlp.c_proj.@", LAYER "mlp.fc2.@", false},
    {"proj", NULL, false},
};

static enum hf_kind vision_name(const char *s, struct hf_name *out) {
    out->part = HF_VISION;
    const char *rest = s;
    if (STRIP_ANY(&rest, vision_own)) return keep(s, VISION, out);
    return APPLY(openai_clip, s, VISION, out);
}

/* CLIP's other half. */
static const char *const clip_text[] = {
    "text_model.",         "visual_projection.", "text_projection", "logit_scale",
    "logit_bias",          "token_embedding.",   "ln_final.",       "transformer.resblocks.",
    "positional_embedding"};

/* ---- projector ------------------------------------------------------------------------------------------ */
static const struct rule projector_rule[] = {
    {"multi_modal_projector.linear_1.@", "linear_1.@", false},
    {"multi_modal_projector.linear_2.@", "linear_2.@", false},
    {"multi_modal_projector.linear.@", "linear.@", false},
    {"mm_projector.0.@", "linear_1.@", false},
    {"mm_projector.2.@", "linear_2.@", false},
    {"mm_projector.@", "linear.@", false},
};

/* ---- language --------------------------------------------------------------------------------------------- */
#define LANGUAGE "language_model."
static const struct rule mistral_raw[] = {
    {"tok_embeddings.weight", "model.embed_tokens.weight", false},
    {"output.weight", "lm_head.weight", false},
    {"layers.#.attention_norm.weight", "model.layers.#.input_layernorm.weight", false},
    {"layers.#.ffn_norm.weight", "model.layers.#.post_attention_layernorm.weight", false},
    {"layers.#.attention.wq.weight", "model.layers.#.self_attn.q_proj.weight", true},
    {"layers.#.attention.wk.weight", "model.layers.#.self_attn.k_proj.weight", true},
    {"layers.#.attention.wv.weight", "model.layers.#.self_attn.v_proj.weight", false},
    {"layers.#.attention.wo.weight", "model.layers.#.self_attn.o_proj.weight", false},
    {"layers.#.feed_forward.w1.weight", "model.layers.#.mlp.gate_proj.weight", false},
    {"layers.#.feed_forward.w2.weight", "model.layers.#.mlp.down_proj.weight", false},
    {"layers.#.feed_forward.w3.weight", "model.layers.#.mlp.up_proj.weight", false},
};
static const char *const language_prefix[] = {"language_model.model.", "language_model.", "model."};
static const char *const language_own[] = {"embed_tokens.", "norm.", "layers."};

static enum hf_kind language_name(const char *s, struct hf_name *out) {
    out->part = HF_LANGUAGE;
    STRIP_ANY(&s, language_prefix);
    if (APPLY(mistral_raw, s, LANGUAGE, out) == HF_WEIGHT) return HF_WEIGHT;
    const char *rest = s;
    if (strip(&rest, "lm_head.")) return keep(s, LANGUAGE, out);
    if (STRIP_ANY(&rest, language_own)) return keep(s, LANGUAGE "model.", out);
    return HF_UNKNOWN;
}

enum hf_kind hf_canonical(const char *name, struct hf_name *out) {
    const char *s = name;
    *out = (struct hf_name){.n = 0};
    if (ends(s, ".inv_freq") || ends(s, "position_ids") || strcmp(s, "rope.freqs") == 0)
        return HF_NO_WEIGHT;
    strip(&s, "model.");
    out->part = HF_IMAGE_NEWLINE;
    if (strcmp(s, "image_newline") == 0) return keep(s, "", out);
    out->part = HF_PROJECTOR;
    if (APPLY(projector_rule, s, "multi_modal_projector.", out) == HF_WEIGHT) return HF_WEIGHT;
    const char *bare = s;
    if (STRIP_ANY(&s, vision_prefix)) return vision_name(s, out);
    if (STRIP_ANY(&bare, vision_own)) return vision_name(s, out);
    bare = s;
    if (STRIP_ANY(&bare, clip_text)) return HF_NO_WEIGHT;
    return language_name(s, out);
}
