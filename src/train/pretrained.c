/* A start from safetensors: what the folder's configuration says is compared with the job, then every
 * rank reads its part of the weights. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hf_config.h"
#include "run_impl.h"

bool pretrained_is_foreign(const struct config *c) {
    return c->checkpoint.pretrained_checkpoint != NULL &&
           hf_is_source(c->checkpoint.pretrained_checkpoint);
}

struct comparison {
    const struct hf_keys *keys;
    const char *path;
    int rc;
};

static bool same_value(const char *a, const char *b) {
    double x, y;
    if (parse_real(a, &x) && parse_real(b, &y)) return !(fabs(x - y) > 1e-12 * fabs(x));
    return strcmp(a, b) == 0;
}

static void compare_key(void *arg, const char *section, const char *key, const char *value,
                        bool defaulted) {
    struct comparison *c = arg;
    const char *theirs = hf_keys_get(c->keys, section, key);
    bool window = strcmp(section, "language") == 0 && strcmp(key, "window_size") == 0;
    (void)defaulted;
    if (window && theirs == NULL && value != NULL) theirs = "unset";
    if (theirs == NULL || theirs[0] == 0 || (value != NULL && same_value(theirs, value))) return;
    bool dropout = strcmp(key, "attention_dropout") == 0;
    if (dropout || strcmp(section, "data") == 0) { /* how to train is for the new training to say */
        log_warn("[%s] %s = %s, while %s was made with %s", section, key,
                 value != NULL ? value : "unset", c->path, theirs);
        return;
    }
    c->rc = error_raise(EXIT_RESUME, "[%s] %s = %s, but %s was made with %s", section, key,
                        value != NULL ? value : "unset", c->path, theirs);
}

static bool has_projector(const struct safetensors *s) {
    struct hf_name name;
    for (int64_t i = 0; i < safetensors_count(s); i++)
        if (hf_canonical(safetensors_at(s, i)->name, &name) == HF_WEIGHT &&
            name.part == HF_PROJECTOR)
            return true;
    return false;
}

/* Shapes alone would not show another rotary base, feature layer or window. */
static int compare_config(const struct config *cfg, bool *tied) {
    const char *path = cfg->checkpoint.pretrained_checkpoint;
    struct safetensors_options follow = {.follow_links = true};
    struct hf_folder folder = {.path = path}, projector = {.path = path};
    struct safetensors *files = NULL;
    struct hf_keys keys;
    TRY(safetensors_open(path, &follow, &files));
    folder.files = files;
    if (has_projector(files) || !cfg->projector.allow_missing_vision_projection_checkpoint)
        projector.files = files;
    int rc = hf_model_keys(&folder, &folder, &projector, &keys);
    struct comparison c = {.keys = &keys, .path = path};
    if (rc == 0) config_each(cfg, compare_key, &c);
    *tied = keys.tied;
    safetensors_close(files);
    return rc != 0 ? rc : c.rc;
}

int pretrained_load(const struct run *r, const struct ckpt_state *state) {
    const struct config *c = r->cfg;
    bool tied = false;
    int rc = r->first_rank ? compare_config(c, &tied) : 0;
    int64_t one_for_both = tied;
    int worst = comm_vote(grid_group(r->grid, GROUP_WORLD), rc);
    if (worst != 0) return rc != 0 ? rc : worst;
    comm_allreduce_i64(grid_group(r->grid, GROUP_WORLD), &one_for_both, 1, REDUCE_MAX);
    int may_miss = c->projector.allow_missing_vision_projection_checkpoint
                       ? HF_PROJECTOR | HF_IMAGE_NEWLINE
                       : 0;
    if (one_for_both) may_miss |= HF_TIED_HEAD;
    TRY(hf_load(c->checkpoint.pretrained_checkpoint, state, r->stack.shape.language.head_dim,
                may_miss));
    if (one_for_both && r->first_rank)
        log_warn(
            "%s ties its output head to the token embedding (tie_word_embeddings); here the head "
            "begins as a copy and is trained by itself",
            c->checkpoint.pretrained_checkpoint);
    log_info("weights are taken from %s; counters and optimizer start anew",
             c->checkpoint.pretrained_checkpoint);
    return 0;
}
