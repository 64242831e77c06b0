/* The language model of a foreign configuration: transformers' classes Llama, Mistral and Qwen2, and
 * Mistral's own params.json. */
#include <math.h>
#include <string.h>

#include "hf_read_impl.h"

/* ---- rotary positions ------------------------------------------------------------------------------------ */
/* As transformers 5.24 reads them: rope_scaling before rope_parameters, theta inside before outside. */
static struct hf_reader rope_object(struct hf_reader *r) {
    struct hf_reader scaling = hf_read_below(r, "rope_scaling", "rope_scaling.");
    if (scaling.v != NULL && json_size(scaling.v) > 0) return scaling;
    return hf_read_below(r, "rope_parameters", "rope_parameters.");
}

static double needed(struct hf_reader *rope, const char *type, const char *key) {
    if (hf_read_member(rope, key) != NULL) return hf_read_real(rope, key, 1);
    hf_read_refuse(rope, key, "is missing: rope_type \"%s\" needs it", type);
    return 1;
}

/* transformers takes one that stands outside before the one inside, and the longest sample in place
 * of neither. */
static int64_t original_length(struct hf_reader *r, struct hf_reader *rope, bool mistral) {
    int64_t most =
        hf_read_size(r, "max_position_embeddings", mistral ? 131072 : 2048); /* of the classes */
    int64_t inside = hf_read_size(rope, "original_max_position_embeddings", most);
    return hf_read_size(r, "original_max_position_embeddings", inside);
}

static void llama3_keys(struct hf_reader *rope, struct hf_keys *k) {
    hf_set_real(k, "language", "low_freq_factor", needed(rope, "llama3", "low_freq_factor"));
    hf_set_real(k, "language", "high_freq_factor", needed(rope, "llama3", "high_freq_factor"));
}

/* A zero is as good as none, for transformers. */
static double or_default(struct hf_reader *rope, const char *key, double otherwise) {
    double v = hf_read_real(rope, key, otherwise);
    return v > 0 || v < 0 ? v : otherwise;
}

static void yarn_keys(struct hf_reader *rope, struct hf_keys *k) {
    double above = hf_read_real(rope, "mscale", 0), below = hf_read_real(rope, "mscale_all_dim", 0);
    hf_set_real(k, "language", "beta_fast", or_default(rope, "beta_fast", 32));
    hf_set_real(k, "language", "beta_slow", or_default(rope, "beta_slow", 1));
    hf_set_bool(k, "language", "correction_range_round_to_int",
                hf_read_truth(rope, "truncate", true));
    if (hf_read_member(rope, "attention_factor") != NULL) {
        hf_set_real(k, "language", "attention_factor", hf_read_real(rope, "attention_factor", 1));
    } else if (fabs(above) > 0 && fabs(below) > 0) {
        hf_set_real(k, "language", "mscale", above);
        hf_set_real(k, "language", "mscale_all_dim", below);
    }
}

static void rope_keys(struct hf_reader *r, bool mistral, struct hf_keys *k) {
    struct hf_reader rope = rope_object(r);
    const char *type = hf_read_text(&rope, "rope_type", hf_read_text(&rope, "type", "default"));
    double theta = hf_read_real(&rope, "rope_theta", hf_read_real(r, "rope_theta", 10000.0));
    bool linear = strcmp(type, "linear") == 0, llama3 = strcmp(type, "llama3") == 0;
    bool yarn = strcmp(type, "yarn") == 0, plain = strcmp(type, "default") == 0;
    hf_read_check_keys(&rope, HF_OBJECT_ROPE);
    hf_set_real(k, "language", "rotary_base", theta);
    hf_keys_set(k, "language", "rope_type", "%s", linear || llama3 || yarn ? type : "rope");
    if (!plain && !linear && !llama3 && !yarn)
        hf_read_refuse(&rope, "rope_type",
                       "is \"%.64s\", this version builds \"default\", \"linear\", \"llama3\" and "
                       "\"yarn\"",
                       type);
    if (llama3 || yarn)
        hf_set_int(k, "language", "original_max_position_embeddings",
                   original_length(r, &rope, mistral));
    if (yarn && hf_read_is_null(&rope, "factor"))
        hf_set_real(k, "language", "rotary_scaling_factor",
                    hf_read_real(r, "max_position_embeddings", 2048) /
                        (double)original_length(r, &rope, mistral));
    else if (linear || llama3 || yarn)
        hf_set_real(k, "language", "rotary_scaling_factor", needed(&rope, type, "factor"));
    if (llama3) llama3_keys(&rope, k);
    if (yarn) yarn_keys(&rope, k);
    if (rope.rc) r->rc = rope.rc;
}

/* ---- classes -------------------------------------------------------------------------------------------------- */
struct class { /* what it has where a configuration is silent */
    const char *type;
    int64_t ffn, groups, vocab; /* groups 0: as many as heads */
    int64_t window;
};
static const struct class classes[] = {
    {"llama", 11008, 0, 32000, 0},
    {"mistral", 14336, 8, 32000, 4096},
    {"qwen2", 22016, 32, 151936, 0},
};

static const struct class *class_of(const char *type) {
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (strcmp(classes[i].type, type) == 0) return &classes[i];
    return NULL;
}

bool hf_language_known(const char *type) {
    return class_of(type) != NULL;
}

static void set_fixed(struct hf_keys *k) {
    hf_keys_set(k, "language", "normalization", "RMSNorm");
    hf_set_bool(k, "language", "swiglu", true);
    hf_keys_set(k, "language", "position_embedding_type", "rope");
    hf_set_bool(k, "language", "untie_embeddings_and_output_weights", true);
}

/* Llama's are on all matrices of attention or of the MLP, Qwen2's on queries, keys and values; Mistral
 * has none, whatever its configuration says. */
static void bias_keys(struct hf_reader *r, const char *type, struct hf_keys *k) {
    bool attention = hf_read_truth(r, "attention_bias", false);
    bool mlp = hf_read_truth(r, "mlp_bias", false), llama = strcmp(type, "llama") == 0;
    if ((attention || mlp) && !llama)
        hf_read_refuse(r, attention ? "attention_bias" : "mlp_bias",
                       "is true: transformers' %s has no such key", type);
    else if (attention != mlp)
        hf_read_refuse(
            r, attention ? "attention_bias" : "mlp_bias",
            "is true and %s is not: this version has biases on both, or on queries, keys "
            "and values alone (qwen2)",
            attention ? "mlp_bias" : "attention_bias");
    hf_set_bool(k, "language", "add_bias_linear", attention && mlp);
    if (strcmp(type, "qwen2") == 0) hf_set_bool(k, "language", "add_qkv_bias", true);
}

static void window_keys(struct hf_reader *r, const struct class *c, struct hf_keys *k) {
    const struct json *types = hf_read_member(r, "layer_types");
    bool list = types != NULL && json_kind(types) == JSON_ARRAY;
    bool null = hf_read_is_null(r, "sliding_window");
    int64_t window = c->window > 0 ? hf_read_integer(r, "sliding_window", null ? 0 : c->window) : 0;
    if (types != NULL && !list) hf_read_refuse(r, "layer_types", "is no list");
    for (size_t i = 0; list && i < json_size(types); i++) {
        const char *one = json_string(json_at(types, i), NULL);
        if (one != NULL && strcmp(one, "full_attention") == 0) continue;
        hf_read_refuse(r, "layer_types", "has layers that are no \"full_attention\"");
        break;
    }
    if (window < 0 || (c->window > 0 && window == 0 && !null))
        hf_read_refuse(r, "sliding_window", "is %lld: at least 1, or null", (long long)window);
    if (window > 0) hf_set_int(k, "language", "window_size", window);
}

static void width_keys(struct hf_reader *r, const struct class *c, struct hf_keys *k) {
    int64_t hidden = hf_read_size(r, "hidden_size", 4096);
    int64_t heads = hf_read_size(r, "num_attention_heads", 32), head = hidden / heads;
    bool by_heads = c->groups == 0 || hf_read_is_null(r, "num_key_value_heads");
    hf_set_int(k, "language", "num_layers", hf_read_size(r, "num_hidden_layers", 32));
    hf_set_int(k, "language", "hidden_size", hidden);
    hf_set_int(k, "language", "ffn_hidden_size", hf_read_size(r, "intermediate_size", c->ffn));
    hf_set_int(k, "language", "num_attention_heads", heads);
    hf_set_int(k, "language", "num_query_groups",
               hf_read_size(r, "num_key_value_heads", by_heads ? heads : c->groups));
    hf_set_int(k, "language", "kv_channels", hf_read_size(r, "head_dim", head > 0 ? head : 1));
    hf_set_int(k, "language", "vocab_size", hf_read_size(r, "vocab_size", c->vocab));
}

void hf_language_keys(struct hf_reader *r, const char *type, struct hf_keys *k) {
    const struct class *c = class_of(type);
    CHECK(c != NULL, "language model %s", type);
    hf_read_require(r, "hidden_act", hf_read_text(r, "hidden_act", "silu"), "silu");
    k->tied = k->tied || hf_read_truth(r, "tie_word_embeddings", false);
    snprintf(k->text_model, sizeof k->text_model, "%s", type);
    width_keys(r, c, k);
    hf_set_real(k, "language", "norm_epsilon", hf_read_real(r, "rms_norm_eps", 1e-6));
    rope_keys(r, strcmp(type, "mistral") == 0, k);
    window_keys(r, c, k);
    bias_keys(r, type, k);
    double drop = hf_read_real(r, "attention_dropout", 0);
    if (drop > 0) hf_set_real(k, "language", "attention_dropout", drop);
    set_fixed(k);
}

void hf_params_keys(struct hf_reader *r, struct hf_keys *k) {
    int64_t hidden = hf_read_size(r, "dim", 4096), heads = hf_read_size(r, "n_heads", 32);
    hf_read_check_keys(r, HF_OBJECT_PARAMS);
    snprintf(k->text_model, sizeof k->text_model, "mistral");
    hf_set_int(k, "language", "num_layers", hf_read_size(r, "n_layers", 32));
    hf_set_int(k, "language", "hidden_size", hidden);
    hf_set_int(k, "language", "ffn_hidden_size", hf_read_size(r, "hidden_dim", 14336));
    hf_set_int(k, "language", "num_attention_heads", heads);
    hf_set_int(k, "language", "num_query_groups", hf_read_size(r, "n_kv_heads", heads));
    hf_set_int(k, "language", "kv_channels",
               hf_read_size(r, "head_dim", hidden / heads > 0 ? hidden / heads : 1));
    hf_set_real(k, "language", "norm_epsilon", hf_read_real(r, "norm_eps", 1e-5));
    hf_set_real(k, "language", "rotary_base", hf_read_real(r, "rope_theta", 10000.0));
    hf_keys_set(k, "language", "rope_type", "rope");
    if (hf_read_integer(r, "sliding_window", 0) > 0)
        hf_set_int(k, "language", "window_size", hf_read_integer(r, "sliding_window", 0));
    hf_set_int(k, "language", "vocab_size", hf_read_size(r, "vocab_size", 32000));
    hf_set_bool(k, "language", "add_bias_linear", false);
    set_fixed(k);
}
