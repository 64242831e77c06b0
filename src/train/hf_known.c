/* Every key that the JSON files of a foreign folder may have, and what import makes of it: doc/import.md.
 * A key that is not here, and not null, is refused by name: it may change the model. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hf_read_impl.h"

struct known {
    const char *key;
    enum hf_verdict verdict;
    const char *only; /* HF_KEY_ONLY: the value, as JSON */
};

#define READ(k)                                                                                    \
    { k, HF_KEY_READ, NULL }
#define NULLABLE(k)                                                                                \
    { k, HF_KEY_NULLABLE, NULL }
#define FREE(k)                                                                                    \
    { k, HF_KEY_HARMLESS, NULL }
#define ONLY(k, value)                                                                             \
    { k, HF_KEY_ONLY, value }

/* What transformers writes into every configuration, of any version: bookkeeping, and settings of
 * generate() from the time when they stood here. */
static const struct known common[] = {
    READ("model_type"),
    ONLY("is_encoder_decoder", "false"),
    ONLY("add_cross_attention", "false"),
    ONLY("pruned_heads", "{}"),
};
static const char common_free[] =
    "_attn_implementation _attn_implementation_autoset _attn_implementation_internal "
    "_commit_hash _flash_attn_2_enabled _name_or_path architectures attn_implementation "
    "bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype "
    "early_stopping encoder_no_repeat_ngram_size eos_token_id "
    "exponential_decay_length_penalty finetuning_task forced_bos_token_id "
    "forced_eos_token_id id2label initializer_factor initializer_range is_decoder "
    "label2id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups "
    "num_beams num_labels num_return_sequences output_attentions output_hidden_states "
    "output_scores pad_token_id prefix problem_type remove_invalid_values "
    "repetition_penalty return_dict return_dict_in_generate sep_token_id suppress_tokens "
    "task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class "
    "top_k top_p torch_dtype torchscript transformers_version typical_p unsloth_fixed "
    "unsloth_version use_bfloat16 use_cache";

static const struct known language[] = {
    READ("hidden_size"),
    READ("num_hidden_layers"),
    READ("num_attention_heads"),
    NULLABLE("num_key_value_heads"),
    READ("intermediate_size"),
    NULLABLE("head_dim"),
    READ("rms_norm_eps"),
    READ("vocab_size"),
    READ("hidden_act"),
    READ("max_position_embeddings"),
    READ("rope_theta"),
    NULLABLE("rope_parameters"),
    NULLABLE("rope_scaling"),
    NULLABLE("original_max_position_embeddings"),
    NULLABLE("sliding_window"),
    READ("tie_word_embeddings"),
    READ("attention_bias"),
    READ("mlp_bias"),
    NULLABLE("attention_dropout"),
    NULLABLE("layer_types"),
    ONLY("use_sliding_window", "false"),
    ONLY("partial_rotary_factor", "1"),
    ONLY("rope_interleaved", "false"),
};
/* max_window_layers: of use_sliding_window */
/* pretraining_tp: order of additions alone */
static const char language_free[] = "max_window_layers pretraining_tp";

static const struct known rope[] = {
    READ("rope_type"),
    READ("type"),
    READ("rope_theta"),
    NULLABLE("factor"),
    READ("original_max_position_embeddings"),
    READ("low_freq_factor"),
    READ("high_freq_factor"),
    NULLABLE("attention_factor"),
    NULLABLE("beta_fast"),
    NULLABLE("beta_slow"),
    NULLABLE("mscale"),
    NULLABLE("mscale_all_dim"),
    READ("truncate"),
    ONLY("partial_rotary_factor", "1"),
};

static const struct known vision[] = {
    READ("hidden_size"),       READ("intermediate_size"),
    READ("num_hidden_layers"), READ("num_attention_heads"),
    READ("image_size"),        READ("patch_size"),
    READ("hidden_act"),        READ("layer_norm_eps"),
    READ("num_channels"),      ONLY("attention_dropout", "0"),
    ONLY("dropout", "0"),
};
static const char vision_free[] = "projection_dim vocab_size";

static const struct known llava[] = {
    NULLABLE("text_config"),
    NULLABLE("vision_config"),
    READ("vision_feature_layer"),
    READ("vision_feature_select_strategy"),
    READ("projector_hidden_act"),
    READ("multimodal_projector_bias"),
    READ("image_token_index"),
    READ("image_token_id"),
    READ("tie_word_embeddings"),
    NULLABLE("image_grid_pinpoints"),
    READ("use_image_newline_parameter"),
    ONLY("ignore_index", "-100"),
};
/* image_seq_length: counted from the tower */
/* vocab_size: of text_config, in old files */
static const char llava_free[] = "image_seq_length vocab_size";

static const struct known original[] = {
    READ("mm_vision_tower"),
    READ("mm_hidden_size"),
    READ("mm_projector_type"),
    READ("mm_vision_select_layer"),
    READ("mm_vision_select_feature"),
    READ("mm_patch_merge_type"),
    NULLABLE("image_aspect_ratio"),
    NULLABLE("image_grid_pinpoints"),
    ONLY("mm_use_im_start_end", "false"),
    ONLY("mm_resampler_type", "null"),
    ONLY("s2", "false"),
    NULLABLE("vision_config"), /* strata's own exports have it */
};
/* mm_use_im_patch_token: a token of the vocabulary that no prompt holds */
/* image_crop_resolution: of another image_aspect_ratio */
static const char original_free[] =
    "mm_use_im_patch_token use_mm_proj tune_mm_mlp_adapter tune_mm_vision_resampler "
    "freeze_mm_mlp_adapter freeze_mm_vision_resampler unfreeze_mm_vision_tower "
    "mm_projector_lr mm_vision_tower_lr pretrain_mm_mlp_adapter "
    "tokenizer_model_max_length tokenizer_padding_side image_crop_resolution "
    "image_split_resolution";

static const struct known clip[] = {
    NULLABLE("vision_config"),
    NULLABLE("vision_config_dict"),
};
static const char clip_free[] =
    "text_config text_config_dict projection_dim logit_scale_init_value";

static const struct known params[] = {
    READ("dim"),
    READ("n_layers"),
    NULLABLE("head_dim"),
    READ("hidden_dim"),
    READ("n_heads"),
    NULLABLE("n_kv_heads"),
    READ("norm_eps"),
    READ("rope_theta"),
    NULLABLE("sliding_window"),
    READ("vocab_size"),
    ONLY("use_biases", "false"),
    ONLY("tied_embeddings", "false"),
    ONLY("causal", "true"),
    ONLY("model_type", "\"transformer\""),
};
static const char params_free[] = "max_seq_len max_batch_size max_position_embeddings";

static const struct known preprocessor[] = {
    READ("image_mean"),
    READ("image_std"),
    READ("size"),
    READ("crop_size"),
    READ("do_pad"),
    NULLABLE("image_grid_pinpoints"),
    READ("image_processor_type"),
    ONLY("do_resize", "true"),
    ONLY("do_center_crop", "true"),
    ONLY("do_rescale", "true"),
    ONLY("do_normalize", "true"),
    ONLY("do_convert_rgb", "true"),
    ONLY("resample", "3"),
    ONLY("rescale_factor", "0.00392156862745098"),
    ONLY("default_to_square", "false"),
};
static const char preprocessor_free[] =
    "feature_extractor_type processor_class _processor_class _valid_processor_keys "
    "data_format input_data_format device disable_grouping return_tensors "
    "image_seq_length pad_size";

static const struct known processor[] = {
    NULLABLE("image_processor"),
    READ("patch_size"),
};
static const char processor_free[] = "processor_class image_token num_additional_image_tokens "
                                     "vision_feature_select_strategy chat_template tokenizer";

static const struct known tokenizer[] = {
    NULLABLE("add_bos_token"),
    ONLY("add_eos_token", "false"),
    ONLY("split_special_tokens", "false"),
    ONLY("do_lower_case", "false"),
};
/* legacy: each chunk of text has its own leading space, as in LLaVA's training */
static const char tokenizer_free[] =
    "add_prefix_space added_tokens_decoder additional_special_tokens backend bos_token "
    "chat_template clean_up_tokenization_spaces cls_token device_map eos_token errors "
    "extra_special_tokens fix_mistral_regex image_token is_local legacy mask_token "
    "max_length model_input_names model_max_length model_specific_special_tokens "
    "name_or_path num_additional_image_tokens pad_to_multiple_of pad_token "
    "pad_token_type_id padding_side patch_size processor_class sep_token sp_model_kwargs "
    "spaces_between_special_tokens special_tokens_map_file stride tokenizer_class "
    "tokenizer_file truncation truncation_side truncation_strategy trust_remote_code "
    "unk_token use_default_system_prompt use_fast vision_feature_select_strategy";

/* All of them settings of generate(), which are for the one who asks: strata's own stand in [generate]. */
static const char generation_free[] =
    "_from_model_config assistant_confidence_threshold assistant_early_exit "
    "assistant_ensemble_weight assistant_lookbehind cache_config cache_implementation "
    "compile_config constraints continuous_batching_config disable_compile dola_layers "
    "encoder_repetition_penalty epsilon_cutoff eta_cutoff force_words_ids "
    "forced_decoder_ids generation_kwargs guidance_scale is_assistant low_memory "
    "max_cache_len max_matching_ngram_size max_new_tokens max_time min_new_tokens min_p "
    "num_assistant_tokens num_assistant_tokens_schedule output_logits penalty_alpha "
    "prefill_chunk_size prompt_lookup_num_tokens renormalize_logits return_legacy_cache "
    "sequence_bias speculation_type stop_strings target_lookbehind token_healing top_h "
    "use_mtp watermarking_config";

struct known_list {
    const struct known *row;
    size_t n;
    const char *harmless; /* words with a space between; may be NULL */
};
#define ROWS(list) .row = list, .n = sizeof list / sizeof *(list)

#define LIST(name)                                                                                 \
    { ROWS(name), .harmless = name##_free }

/* Up to three lists make an object. */
static const struct known_list tables[HF_OBJECTS][3] = {
    [HF_OBJECT_LLAVA] = {LIST(common), LIST(llava)},
    [HF_OBJECT_LANGUAGE] = {LIST(common), LIST(language)},
    [HF_OBJECT_ORIGINAL] = {LIST(common), LIST(language), LIST(original)},
    [HF_OBJECT_ROPE] = {{ROWS(rope)}},
    [HF_OBJECT_VISION] = {LIST(common), LIST(vision)},
    [HF_OBJECT_CLIP] = {LIST(common), LIST(clip)},
    [HF_OBJECT_PARAMS] = {LIST(params)},
    [HF_OBJECT_PREPROCESSOR] = {LIST(preprocessor)},
    [HF_OBJECT_PROCESSOR] = {LIST(processor)},
    [HF_OBJECT_TOKENIZER] = {LIST(tokenizer)},
    [HF_OBJECT_GENERATION] = {{.harmless = common_free}, {.harmless = generation_free}},
};

/* The next word behind `at`, and its length; 0 at the end. */
static size_t next_word(const char **at) {
    *at += strspn(*at, " ");
    return strcspn(*at, " ");
}

static bool has_word(const char *words, const char *key) {
    size_t length = strlen(key), n;
    for (const char *at = words; at != NULL && (n = next_word(&at)) > 0; at += n)
        if (n == length && strncmp(at, key, n) == 0) return true;
    return false;
}

static struct known find(enum hf_object what, const char *key) {
    for (const struct known_list *l = tables[what]; l < tables[what] + 3; l++) {
        for (size_t i = 0; i < l->n; i++)
            if (strcmp(l->row[i].key, key) == 0) return l->row[i];
        if (has_word(l->harmless, key)) return (struct known){key, HF_KEY_HARMLESS, NULL};
    }
    return (struct known){key, HF_KEY_UNKNOWN, NULL};
}

enum hf_verdict hf_key_verdict(enum hf_object what, const char *key, const char **only) {
    struct known k = find(what, key);
    if (only != NULL) *only = k.only;
    return k.verdict;
}

int hf_keys_each(enum hf_object what, void (*each)(void *arg, const char *key, enum hf_verdict v),
                 void *arg) {
    char word[64];
    int count = 0;
    size_t n;
    for (const struct known_list *l = tables[what]; l < tables[what] + 3; l++) {
        for (size_t i = 0; i < l->n; i++, count++) each(arg, l->row[i].key, l->row[i].verdict);
        for (const char *at = l->harmless; at != NULL && (n = next_word(&at)) > 0; at += n) {
            snprintf(word, sizeof word, "%.*s", (int)n, at);
            each(arg, word, HF_KEY_HARMLESS);
            count++;
        }
    }
    return count;
}

/* ---- checking an object ------------------------------------------------------------------------------------ */
static bool is_value(const struct json *v, const char *only) {
    double want;
    switch (json_kind(v)) {
    case JSON_NULL:
        return true;
    case JSON_BOOL:
        return strcmp(only, json_bool(v) ? "true" : "false") == 0;
    case JSON_INTEGER:
    case JSON_REAL:
        return parse_real(only, &want) && fabs(json_real(v) - want) <= 1e-12;
    case JSON_STRING:
        return only[0] == '"' && strncmp(only + 1, json_string(v, NULL), strlen(only) - 2) == 0 &&
               strlen(json_string(v, NULL)) == strlen(only) - 2;
    case JSON_ARRAY:
        return strcmp(only, "[]") == 0 && json_size(v) == 0;
    case JSON_OBJECT:
        return strcmp(only, "{}") == 0 && json_size(v) == 0;
    }
    return false;
}

static void value_text(const struct json *v, char text[80]) {
    char shown[64];
    switch (json_kind(v)) {
    case JSON_NULL:
        snprintf(text, 80, "null");
        return;
    case JSON_BOOL:
        snprintf(text, 80, "%s", json_bool(v) ? "true" : "false");
        return;
    case JSON_INTEGER:
    case JSON_REAL:
        snprintf(text, 80, "%.12g", json_real(v));
        return;
    case JSON_STRING:
        text_printable(json_string(v, NULL), shown, sizeof shown);
        snprintf(text, 80, "\"%s\"", shown);
        return;
    case JSON_ARRAY:
    case JSON_OBJECT:
        snprintf(text, 80, json_kind(v) == JSON_ARRAY ? "a list" : "an object");
        return;
    }
}

/* So many unknown keys are named, the rest counted: a file may have a million. */
#define NAMED 16
struct unknown {
    char names[NAMED * 72];
    int64_t n;
};

static void add_unknown(struct unknown *u, const char *key) {
    char shown[64];
    size_t used = strlen(u->names);
    if (u->n++ >= NAMED) return;
    text_printable(key, shown, sizeof shown);
    snprintf(u->names + used, sizeof u->names - used, "%s%s", used > 0 ? ", " : "", shown);
}

static void refuse_unknown(struct hf_reader *r, const struct unknown *u) {
    char more[48] = "", where[64] = "";
    size_t n = strlen(r->inside);
    if (u->n == 0) return;
    if (u->n > NAMED) snprintf(more, sizeof more, " and %lld more", (long long)(u->n - NAMED));
    if (n > 1) snprintf(where, sizeof where, " of %.*s", (int)n - 1, r->inside);
    r->rc = error_raise(
        EXIT_BAD_DATA,
        "%s: strata does not know %s%s%s%s: it may change the model; if it does not, import a copy "
        "of the folder without it",
        r->path, u->n == 1 ? "the key " : "the keys ", u->names, more, where);
}

void hf_read_check_keys(struct hf_reader *r, enum hf_object what) {
    const char *key;
    const struct json *v;
    struct unknown unknown = {.n = 0};
    if (r->v == NULL) return;
    for (void *at = NULL; (at = json_member(r->v, at, &key, &v)) != NULL;) {
        struct known k = find(what, key);
        char text[80];
        bool null = json_kind(v) == JSON_NULL;
        if (k.verdict == HF_KEY_UNKNOWN && !null) add_unknown(&unknown, key);
        if (k.verdict == HF_KEY_READ && null)
            hf_read_refuse(r, key, "is null: write its value, or leave the key out");
        if (k.verdict != HF_KEY_ONLY || is_value(v, k.only)) continue;
        value_text(v, text);
        hf_read_refuse(r, key, "is %s, this version has %s only", text, k.only);
    }
    refuse_unknown(r, &unknown);
}
