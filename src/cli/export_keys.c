/* What config.json can say of a job: every key of the sections that make a model or its inputs has a
 * line here. A key that nobody decided on stops an export, so that none is dropped in silence. */
#include <math.h>
#include <string.h>

#include "hf_impl.h"

enum said {
    SAID,  /* config.json says its value; reading it back must give the same */
    INPUT, /* the files of the processor or the tokenizer say it */
    APART, /* about training, or of another family: the trained model is the same without it */
};

/* hf, original: the one value that the format knows; NULL: any. */
static const struct line {
    const char *section, *key;
    enum said said;
    const char *hf, *original, *why;
} line[] = {
    {"vision", "num_layers", SAID, NULL, NULL, NULL},
    {"vision", "hidden_size", SAID, NULL, NULL, NULL},
    {"vision", "ffn_hidden_size", SAID, NULL, NULL, NULL},
    {"vision", "num_attention_heads", SAID, NULL, NULL, NULL},
    {"vision", "img_h", SAID, NULL, NULL, NULL},
    {"vision", "img_w", SAID, NULL, NULL, NULL},
    {"vision", "patch_dim", SAID, NULL, NULL, NULL},
    {"vision", "num_channels", SAID, NULL, NULL, NULL},
    {"vision", "vision_feature_layer", SAID, NULL, NULL, NULL},
    {"vision", "disable_vision_class_token", SAID, NULL, NULL, NULL},
    {"vision", "freeze_ViT", APART, NULL, NULL, NULL},
    {"vision", "recompute_vision", APART, NULL, NULL, NULL},
    {"vision", "use_tiling", SAID, "false", "false", "tiles are those of anyres"},
    {"vision", "max_num_tiles", SAID, "1", "1", "tiles are those of anyres"},
    {"vision", "use_thumbnail", SAID, "false", "false", "tiles are those of anyres"},

    {"projector", "projector_type", SAID, "mlp", NULL,
     "transformers' LLaVA has no affine projector: --names original"},
    {"projector", "projector_hidden_size", SAID, NULL, NULL, NULL},
    {"projector", "projector_bias", SAID, NULL, NULL, NULL},
    {"projector", "projector_activation", SAID, NULL, "gelu", "the original's mlp2x_gelu has gelu"},
    {"projector", "projector_init", APART, NULL, NULL, NULL},
    {"projector", "freeze_vision_projection", APART, NULL, NULL, NULL},
    {"projector", "allow_missing_vision_projection_checkpoint", APART, NULL, NULL, NULL},

    {"language", "num_layers", SAID, NULL, NULL, NULL},
    {"language", "encoder_num_layers", APART, NULL, NULL, NULL},
    {"language", "decoder_num_layers", APART, NULL, NULL, NULL},
    {"language", "hidden_size", SAID, NULL, NULL, NULL},
    {"language", "num_attention_heads", SAID, NULL, NULL, NULL},
    {"language", "ffn_hidden_size", SAID, NULL, NULL, NULL},
    {"language", "num_query_groups", SAID, NULL, NULL, NULL},
    {"language", "kv_channels", SAID, NULL, NULL, NULL},
    {"language", "normalization", SAID, "RMSNorm", "RMSNorm", "Llama and Mistral have RMSNorm"},
    {"language", "norm_epsilon", SAID, NULL, NULL, NULL},
    {"language", "swiglu", SAID, "true", "true", "Llama and Mistral have the gated MLP"},
    {"language", "add_bias_linear", SAID, NULL, NULL, NULL},
    {"language", "add_qkv_bias", SAID, NULL, "false", "the original LLaVA has no Qwen2"},
    {"language", "position_embedding_type", SAID, "rope", "rope", "Llama and Mistral have rope"},
    {"language", "rotary_base", SAID, NULL, NULL, NULL},
    {"language", "rotary_percent", SAID, "1", "1", "Llama and Mistral turn the whole head"},
    {"language", "rope_type", SAID, NULL, NULL, NULL},
    {"language", "rotary_scaling_factor", SAID, NULL, NULL, NULL},
    {"language", "original_max_position_embeddings", SAID, NULL, NULL, NULL},
    {"language", "low_freq_factor", SAID, NULL, NULL, NULL},
    {"language", "high_freq_factor", SAID, NULL, NULL, NULL},
    {"language", "beta_fast", SAID, NULL, NULL, NULL},
    {"language", "beta_slow", SAID, NULL, NULL, NULL},
    {"language", "mscale", APART, NULL, NULL, NULL}, /* attention_factor follows from both */
    {"language", "mscale_all_dim", APART, NULL, NULL, NULL},
    {"language", "attention_factor", SAID, NULL, NULL, NULL},
    {"language", "correction_range_round_to_int", SAID, NULL, NULL, NULL},
    {"language", "window_size", SAID, NULL, NULL, NULL},
    {"language", "max_position_embeddings", INPUT, NULL, NULL, NULL}, /* it shapes nothing */
    {"language", "vocab_size", SAID, NULL, NULL, NULL},
    {"language", "make_vocab_size_divisible_by", APART, NULL, NULL, NULL},
    {"language", "untie_embeddings_and_output_weights", SAID, NULL, NULL, NULL},
    {"language", "seq_length", APART, NULL, NULL, NULL},
    {"language", "encoder_seq_length", APART, NULL, NULL, NULL},
    {"language", "decoder_seq_length", APART, NULL, NULL, NULL},
    {"language", "dataloader_seq_length", APART, NULL, NULL, NULL},
    {"language", "hidden_dropout", APART, NULL, NULL, NULL},
    {"language", "attention_dropout", APART, NULL, NULL, NULL}, /* said, and only for training */
    {"language", "attention_softmax_in_fp32", APART, NULL, NULL, NULL},
    {"language", "init_method_std", APART, NULL, NULL, NULL},
    {"language", "freeze_LM", APART, NULL, NULL, NULL},
    {"language", "apply_residual_connection_post_layernorm", APART, NULL, NULL, NULL},
    {"language", "bert_binary_head", APART, NULL, NULL, NULL},
    {"language", "relative_attention_num_buckets", APART, NULL, NULL, NULL},
    {"language", "relative_attention_max_distance", APART, NULL, NULL, NULL},
    {"language", "position_mode", APART, NULL, NULL, NULL},
    {"language", "max_memory_length", APART, NULL, NULL, NULL},
    {"language", "xl_compat", APART, NULL, NULL, NULL},
    {"language", "encoder_decoder", APART, NULL, NULL, NULL},
    {"language", "gated_linear_unit", APART, NULL, NULL, NULL},
    {"language", "scale_attn_by_inverse_layer_idx", APART, NULL, NULL, NULL},

    {"data", "image_aspect_ratio", INPUT, NULL, NULL, NULL},
    {"data", "image_grid_pinpoints", INPUT, NULL, NULL, NULL},
    {"data", "image_background", INPUT, "none", "none",
     "both drop transparency: add data:image_background=none to export it so"},
    {"data", "image_mean", INPUT, NULL, NULL, NULL},
    {"data", "image_std", INPUT, NULL, NULL, NULL},
    {"data", "conversation_template", INPUT, NULL, NULL, NULL},
    {"data", "tokenizer_type", INPUT, NULL, NULL, NULL},
    {"data", "tokenizer_model", INPUT, NULL, NULL, NULL},
};

bool hf_same_value(const char *a, const char *b) {
    double x, y;
    if (parse_real(a, &x) && parse_real(b, &y)) return !(fabs(x - y) > 1e-12 * fabs(x));
    return strcmp(a, b) == 0;
}

static bool is_model(const char *section) {
    return strcmp(section, "vision") == 0 || strcmp(section, "projector") == 0 ||
           strcmp(section, "language") == 0;
}

static const struct line *find(const char *section, const char *key) {
    for (size_t i = 0; i < sizeof line / sizeof *line; i++)
        if (strcmp(line[i].key, key) == 0 && strcmp(line[i].section, section) == 0) return &line[i];
    return NULL;
}

bool hf_key_must_return(const char *section, const char *key) {
    const struct line *l = find(section, key);
    return l != NULL && l->said == SAID;
}

bool hf_key_is_input(const char *section, const char *key) {
    const struct line *l = find(section, key);
    return l != NULL && l->said == INPUT;
}

/* Of [data] the keys about images and text make the inputs; the others say which samples there are. */
static bool shapes_input(const char *section, const char *key) {
    return strcmp(section, "data") == 0 && strncmp(key, "image_", 6) == 0 &&
           strcmp(key, "image_folder") != 0;
}

struct check {
    const struct hf_export *e;
    int rc;
};

static void check_key(void *arg, const char *section, const char *key, const char *value,
                      bool defaulted) {
    struct check *c = arg;
    const struct line *l = find(section, key);
    (void)defaulted;
    CHECK(l != NULL || !(is_model(section) || shapes_input(section, key)),
          "[%s] %s has no line in the table of export_keys.c", section, key);
    const char *only = l == NULL ? NULL : c->e->original ? l->original : l->hf;
    if (only == NULL || hf_same_value(value != NULL ? value : "none", only)) return;
    c->rc = error_raise(EXIT_USAGE, "[%s] %s = %s: config.json cannot say it, only %s (%s)",
                        section, key, value != NULL ? value : "unset", only, l->why);
}

/* ---- rules between keys ------------------------------------------------------------------------ */
static int check_vision(const struct config *cfg) {
    const struct config_vision *v = &cfg->vision;
    if (v->img_h == v->img_w) return 0;
    return error_raise(
        EXIT_USAGE,
        "[vision] img_w = %lld: config.json cannot say it beside img_h = %lld, CLIP's "
        "image_size is the edge of a square",
        (long long)v->img_w, (long long)v->img_h);
}

/* Under the original's names the tensors say it, which strata reads, and the original refuses. */
static int check_projector(const struct hf_export *e, const struct config *cfg) {
    const struct config_projector *p = &cfg->projector;
    if (e->original || p->projector_type == PROJECTOR_AFFINE ||
        p->projector_hidden_size == cfg->language.hidden_size)
        return 0;
    return error_raise(EXIT_USAGE,
                       "[projector] projector_hidden_size = %lld: config.json cannot say it, "
                       "transformers' LLaVA has a projector of inner width %lld, the language "
                       "model's hidden_size: --names original",
                       (long long)p->projector_hidden_size, (long long)cfg->language.hidden_size);
}

/* A Mistral has a window and no biases; a Llama biases and no window, and heads that fill its width; a
 * Qwen2 biases on queries, keys and values alone. */
static int choose_class(struct hf_export *e, const struct config *cfg) {
    const struct config_language *l = &cfg->language;
    bool odd = l->hidden_size % l->num_attention_heads != 0, llama = l->add_bias_linear;
    bool qwen2 = !llama && l->add_qkv_bias;
    const char *biases = llama ? "add_bias_linear" : "add_qkv_bias";
    int rc = 0;
    if ((llama || qwen2) && l->window_size > 0)
        rc = error_raise(EXIT_USAGE,
                         "[language] window_size = %lld: config.json cannot say it beside %s = "
                         "true: a Mistral has a window and no biases, a Llama or Qwen2 the reverse",
                         (long long)l->window_size, biases);
    if (llama && odd)
        rc = error_raise(
            EXIT_USAGE,
            "[language] num_attention_heads = %lld: config.json cannot say it beside "
            "add_bias_linear = true: transformers' Llama needs a divisor of hidden_size "
            "%lld",
            (long long)l->num_attention_heads, (long long)l->hidden_size);
    if (llama || qwen2)
        snprintf(e->text_model, sizeof e->text_model, "%s", llama ? "llama" : "qwen2");
    else if (l->window_size > 0 || odd)
        snprintf(e->text_model, sizeof e->text_model, "mistral");
    return rc;
}

int hf_check_keys(struct hf_export *e, const struct config *cfg) {
    struct check c = {.e = e};
    config_each(cfg, check_key, &c);
    int vision = check_vision(cfg), projector = check_projector(e, cfg);
    int class = choose_class(e, cfg);
    return c.rc ? c.rc : vision ? vision : projector ? projector : class;
}
