/* What a resumed run may do differently from the run that wrote its checkpoint. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config_impl.h"

/* A key without a row of its own is as its section's row, the one without a name. */
static const struct {
    const char *section, *key;
    enum config_change change;
} rule[] = {
    {"run", NULL, CONFIG_FREE},
    {"run", "family", CONFIG_REFUSED},
    {"run", "device", CONFIG_NOTICE},
    {"run", "distributed_backend", CONFIG_NOTICE},
    {"run", "deterministic_mode", CONFIG_NOTICE},
    {"parallel", NULL, CONFIG_NOTICE},
    {"parallel", "distributed_timeout_minutes", CONFIG_FREE},
    {"parallel", "overlap_p2p_comm", CONFIG_FREE},
    {"parallel", "layout", CONFIG_FREE},
    {"vision", NULL, CONFIG_REFUSED},
    {"vision", "freeze_ViT", CONFIG_NOTICE},
    {"vision", "recompute_vision", CONFIG_FREE},
    {"projector", NULL, CONFIG_REFUSED},
    {"projector", "freeze_vision_projection", CONFIG_NOTICE},
    /* only first weights depend on these */
    {"projector", "projector_init", CONFIG_FREE},
    {"projector", "allow_missing_vision_projection_checkpoint", CONFIG_FREE},
    {"language", NULL, CONFIG_REFUSED},
    {"language", "freeze_LM", CONFIG_NOTICE},
    {"language", "hidden_dropout", CONFIG_NOTICE},
    {"language", "attention_dropout", CONFIG_NOTICE},
    {"language", "init_method_std", CONFIG_FREE},
    {"training", NULL, CONFIG_NOTICE},
    {"training", "global_batch_size", CONFIG_REFUSED},
    {"training", "seed", CONFIG_REFUSED},
    {"training", "bf16", CONFIG_REFUSED},
    {"training", "fp16", CONFIG_REFUSED},
    /* when to stop, and what changes no bit */
    {"training", "exit_interval", CONFIG_FREE},
    {"training", "exit_duration_in_mins", CONFIG_FREE},
    {"training", "exit_signal", CONFIG_FREE},
    {"training", "exit_signal_handler", CONFIG_FREE},
    {"training", "recompute_granularity", CONFIG_FREE},
    {"training", "recompute_method", CONFIG_FREE},
    {"training", "recompute_num_layers", CONFIG_FREE},
    {"training", "check_weight_hash_across_dp_replicas_interval", CONFIG_FREE},
    {"optimizer", NULL, CONFIG_NOTICE},
    {"optimizer", "optimizer", CONFIG_REFUSED},
    {"optimizer", "lr", CONFIG_BY_ARGUMENT},
    {"optimizer", "min_lr", CONFIG_BY_ARGUMENT},
    {"optimizer", "projector_lr", CONFIG_BY_ARGUMENT},
    {"optimizer", "vision_lr", CONFIG_BY_ARGUMENT},
    {"optimizer", "lr_warmup_init", CONFIG_BY_ARGUMENT},
    {"data", NULL, CONFIG_REFUSED},
    /* what lies there is compared by its digest, not by its place */
    {"data", "data_path", CONFIG_FREE},
    {"data", "valid_data_path", CONFIG_FREE},
    {"data", "test_data_path", CONFIG_FREE},
    {"data", "image_folder", CONFIG_FREE},
    {"data", "data_cache_path", CONFIG_FREE},
    {"data", "tokenizer_model", CONFIG_FREE},
    {"data", "vocab_file", CONFIG_FREE},
    {"data", "merge_file", CONFIG_FREE},
    {"data", "num_workers", CONFIG_FREE},
    /* Runs of before this key used the first line: the digest of the data says whether it matters. */
    {"data", "caption_lines", CONFIG_NOTICE},
    {"data", "on_bad_image", CONFIG_NOTICE},
    {"data", "max_bad_images", CONFIG_NOTICE},
    {"checkpoint", NULL, CONFIG_FREE},
    {"logging", NULL, CONFIG_FREE},
    {"eval", NULL, CONFIG_FREE},
    {"generate", NULL, CONFIG_FREE},
};

enum config_change config_change_of(const char *section, const char *key) {
    enum config_change found = CONFIG_REFUSED;
    for (size_t i = 0; i < sizeof rule / sizeof *rule; i++) {
        if (strcasecmp(rule[i].section, section) != 0) continue;
        if (rule[i].key == NULL)
            found = rule[i].change;
        else if (strcasecmp(rule[i].key, key) == 0)
            return rule[i].change;
    }
    return found;
}

const char *config_change_text(enum config_change change) {
    static const char *const text[] = {[CONFIG_FREE] = "free",
                                       [CONFIG_NOTICE] = "allowed",
                                       [CONFIG_BY_ARGUMENT] = "by argument",
                                       [CONFIG_REFUSED] = "refused"};
    return text[change];
}

/* A rate that follows from another one was not changed by itself. */
static enum config_change judge(const struct config *cfg, int k) {
    enum config_change c = config_change_of(config_table[k].section, config_table[k].name);
    enum config_origin origin = cfg->source->place[k].origin;
    if (c != CONFIG_BY_ARGUMENT) return c;
    return origin == ORIGIN_ARGUMENT || origin == ORIGIN_DERIVED ? CONFIG_NOTICE : c;
}

static const struct config_stored *stored_of(const struct config_stored *was, int64_t n, int k) {
    for (int64_t i = 0; i < n; i++)
        if (strcasecmp(was[i].section, config_table[k].section) == 0 &&
            strcasecmp(was[i].key, config_table[k].name) == 0)
            return &was[i];
    return NULL;
}

/* Keys that neither run set, or that came into the program since and hold their default, are the
 * same. */
static bool differs(const struct config *cfg, int k, const char *now,
                    const struct config_stored *was) {
    if (was != NULL) return now == NULL || strcmp(now, was->value) != 0;
    return now != NULL && cfg->source->place[k].origin >= ORIGIN_FILE &&
           !cfg->source->place[k].at_default;
}

void config_compare(const struct config *cfg, const struct config_stored *was, int64_t n,
                    void (*each)(void *arg, const struct config_difference *d), void *arg) {
    for (int k = 0; k < config_n_keys; k++) {
        if (config_table[k].type == TYPE_LATER) continue;
        char *now = config_value_text(cfg, k), *place = config_place_text(cfg, k);
        const struct config_stored *before = stored_of(was, n, k);
        if (differs(cfg, k, now, before)) {
            struct config_difference d = {.section = config_table[k].section,
                                          .key = config_table[k].name,
                                          .place = place,
                                          .before = before != NULL ? before->value : "(unset)",
                                          .now = now != NULL ? now : "(unset)",
                                          .change = judge(cfg, k)};
            each(arg, &d);
        }
        free(now);
        free(place);
    }
}
