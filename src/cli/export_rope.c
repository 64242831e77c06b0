/* The rotation of a job file as config.json says it: rope_theta and, where it is stretched,
 * rope_scaling, which every transformers since 4.43 reads. */
#include "hf_impl.h"
#include "json.h"

static void set_real(struct json *o, const char *key, double v) {
    json_set(o, key, json_new_real(v));
}

static void add_llama3(struct json *o, const struct config_language *l) {
    set_real(o, "low_freq_factor", l->low_freq_factor);
    set_real(o, "high_freq_factor", l->high_freq_factor);
}

static void add_yarn(struct json *o, const struct config_language *l) {
    set_real(o, "beta_fast", l->beta_fast);
    set_real(o, "beta_slow", l->beta_slow);
    set_real(o, "attention_factor", l->attention_factor);
    json_set(o, "truncate", json_new_bool(l->correction_range_round_to_int));
}

void hf_add_rope(struct json *o, const struct config_language *l) {
    static const char *const type[] = {
        [ROPE_TYPE_LINEAR] = "linear", [ROPE_TYPE_LLAMA3] = "llama3", [ROPE_TYPE_YARN] = "yarn"};
    set_real(o, "rope_theta", l->rotary_base);
    if (l->rope_type == ROPE_TYPE_ROPE) return;
    struct json *scaling = json_new_object();
    json_set(scaling, "rope_type", json_new_string(type[l->rope_type]));
    set_real(scaling, "factor", l->rotary_scaling_factor);
    if (l->rope_type != ROPE_TYPE_LINEAR)
        json_set(scaling, "original_max_position_embeddings",
                 json_new_integer(l->original_max_position_embeddings));
    if (l->rope_type == ROPE_TYPE_LLAMA3) add_llama3(scaling, l);
    if (l->rope_type == ROPE_TYPE_YARN) add_yarn(scaling, l);
    json_set(o, "rope_scaling", scaling);
}
