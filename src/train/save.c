/* Checkpoints of a run: what the checkpoint module needs to know of it. */
#include <stdlib.h>
#include <string.h>

#include "hf.h"
#include "run_impl.h"
#include "fault.h"

/* Every key of the job file, as the checkpoint stores it. */
static void add_key(void *run, const char *section, const char *key, const char *value,
                    bool defaulted) {
    struct run *r = run;
    if (value == NULL) return;
    r->key = xrealloc(r->key, (size_t)(r->n_keys + 1) * sizeof *r->key);
    r->key[r->n_keys++] =
        (struct ckpt_key){xstrdup(section), xstrdup(key), xstrdup(value), defaulted};
}

void save_end(struct run *r) {
    for (int64_t i = 0; i < r->n_keys; i++) {
        free((void *)r->key[i].section);
        free((void *)r->key[i].key);
        free((void *)r->key[i].value);
    }
    free(r->key);
    free(r->saving.host);
    free(r->saving.stall);
    pthread_mutex_destroy(&r->hdf5_lock);
    ckpt_unlock(&r->lock);
    ckpt_unlock(&r->lock_second);
}

/* The order of samples is a function of these. */
static void describe_order(struct run *r) {
    snprintf(r->order_key, sizeof r->order_key, "philox packing %d, seed %lld, shuffle %s",
             RNG_PACKING_VERSION, (long long)r->cfg->training.seed,
             r->cfg->data.shuffle ? "true" : "false");
}

void save_setup(struct run *r) {
    const struct config *c = r->cfg;
    r->ckpt = (struct ckpt_settings){
        .save = c->checkpoint.save,
        .save_second = c->checkpoint.save_second,
        .load = c->checkpoint.load,
        .resume = c->checkpoint.resume == RESUME_NEVER  ? CKPT_RESUME_NEVER
                  : c->checkpoint.resume == RESUME_MUST ? CKPT_RESUME_MUST
                                                        : CKPT_RESUME_AUTO,
        .ckpt_step = c->checkpoint.ckpt_step,
        .finetune = c->checkpoint.finetune,
        .allow_missing_projector = c->projector.allow_missing_vision_projection_checkpoint,
        .no_load_optim = c->checkpoint.no_load_optim,
        .no_load_rng = c->checkpoint.no_load_rng,
        .no_save_optim = c->checkpoint.no_save_optim,
        .no_save_rng = c->checkpoint.no_save_rng,
        .most_recent_k = c->checkpoint.most_recent_k,
        .save_retain_interval =
            c->checkpoint.save_retain_interval > 0 ? c->checkpoint.save_retain_interval : 0,
        .verify_save =
            c->checkpoint.verify_save == VERIFY_SAVE_SAMPLE ? CKPT_VERIFY_SAMPLE : CKPT_VERIFY_ALL,
        .verify_load = c->checkpoint.verify_load == VERIFY_LOAD_SIZE   ? CKPT_VERIFY_SIZE
                       : c->checkpoint.verify_load == VERIFY_LOAD_USED ? CKPT_VERIFY_USED
                                                                       : CKPT_VERIFY_ALL,
        .writers_node = c->checkpoint.writers == WRITERS_NODE,
        .ranks_per_writer = c->checkpoint.ranks_per_writer > 0 ? c->checkpoint.ranks_per_writer : 0,
        .filter = c->checkpoint.integrity_filter == INTEGRITY_FLETCHER32 ? CKPT_FILTER_FLETCHER32
                  : c->checkpoint.integrity_filter == INTEGRITY_DEFLATE  ? CKPT_FILTER_DEFLATE
                                                                         : CKPT_FILTER_NONE,
        .hash_sha256 = c->checkpoint.hash == HASH_SHA256,
        .reproducible = c->checkpoint.reproducible,
        .index = c->checkpoint.index,
        .save_derived_weights = c->checkpoint.save_derived_weights,
        .lock = &r->lock,
        .lock_second = &r->lock_second,
        .hdf5_lock = &r->hdf5_lock,
        .accept = resume_accept,
        .accept_arg = r};
    r->foreign = pretrained_is_foreign(c);
    if (c->checkpoint.pretrained_checkpoint != NULL && !r->foreign) {
        r->ckpt.load = c->checkpoint.pretrained_checkpoint;
        r->ckpt.finetune = true;
    }
    r->split_text = train_split_text(r->split, r->layout.pp);
    pthread_mutex_init(&r->hdf5_lock, NULL);
    config_each(c, add_key, r);
    describe_order(r);
}

struct ckpt_state save_state(struct run *r) {
    const struct config *c = r->cfg;
    struct ckpt_state s = {.grid = r->grid,
                           .set = &r->stage.params,
                           .be = r->be,
                           .sharded_optimizer = r->layout.optim.distributed,
                           .at = r->at,
                           .family = config_choice(c, &c->run.family),
                           .seed = c->training.seed,
                           .global_batch_size = c->training.global_batch_size,
                           .order_key = r->order_key,
                           .dataset_sha256 = r->data != NULL ? dataset_digest(r->data) : NULL,
                           .tokenizer_sha256 = r->tokenizer_sha256,
                           .template_text = config_choice(c, &c->data.conversation_template),
                           .n_parameters = r->stack.n_parameters,
                           .lr = lr_at(&r->schedule, c->optimizer.lr, r->at.step),
                           .weight_decay = c->optimizer.weight_decay,
                           .split_spec = r->split_text,
                           .used_ini = r->used_ini,
                           .run_uuid = r->run_uuid,
                           .parent_uuid = r->parent_uuid,
                           .key = r->key,
                           .n_keys = r->n_keys,
                           .history = r->history,
                           .n_history = r->n_history,
                           .speed = r->speed,
                           .n_speed = r->n_speed};
    s.inputs = (struct ckpt_inputs){
        .job_file = config_sha256(c),
        .data = s.dataset_sha256,
        .valid_data = r->valid != NULL ? dataset_digest(r->valid) : NULL,
        .tokenizer_model = r->tokenizer_model_sha256,
    };
    if (r->optim != NULL) s.piece = optim_pieces(r->optim, &s.n_pieces);
    return s;
}

/* Room for the rows of the checkpoint and of all steps still to come: a job may train for fewer
 * steps than its checkpoint has. */
static void take_history(struct run *r, const struct ckpt_state *state) {
    int64_t left = r->cfg->derived.train_iters - r->at.step;
    free(r->history);
    r->n_history = state->n_history;
    r->history = xcalloc((size_t)(r->n_history + (left > 0 ? left : 0) + 1), sizeof *r->history);
    if (state->n_history > 0)
        memcpy(r->history, state->history, (size_t)state->n_history * sizeof *r->history);
    free((void *)state->history);
}

int save_resume(struct run *r) {
    r->history = xcalloc((size_t)r->cfg->derived.train_iters + 1, sizeof *r->history);
    if (r->ckpt.load == NULL && r->ckpt.save == NULL && !r->foreign) return 0;
    if (r->ckpt.save != NULL) TRY(ckpt_lock(r->ckpt.save, r->grid, &r->lock));
    if (r->ckpt.save_second != NULL) TRY(ckpt_lock(r->ckpt.save_second, r->grid, &r->lock_second));
    struct ckpt_found found = {0};
    struct ckpt_state state = save_state(r);
    state.history = NULL;
    state.n_history = 0;
    fault_point("resume.described");
    int rc = ckpt_resume(&r->ckpt, &state, &found);
    fault_point("resume.loaded");
    if (rc == 0 && found.weights_only) rc = resume_same_model(r, &found);
    if (rc == 0 && !found.any && r->foreign) rc = pretrained_load(r, &state);
    TRY(rc);
    if (found.n_skipped > 0) log_info("passed over:\n%s", found.skipped);
    if (!found.any) {
        if (!r->foreign)
            log_info("no checkpoint in %s: starting anew",
                     r->ckpt.load != NULL ? r->ckpt.load : r->ckpt.save);
    } else if (!found.weights_only) {
        r->at = state.at;
        optim_set_updates(r->optim, r->at.optimizer_step);
        snprintf(r->run_uuid, sizeof r->run_uuid, "%s",
                 found.run_uuid != NULL ? found.run_uuid : "");
        r->last_saved = found.step;
        log_info("resumed from %s, step %lld; %lld steps lost", found.dir, (long long)found.step,
                 (long long)(found.newest_step - found.step));
        take_history(r, &state);
    }
    ckpt_found_free(&found);
    return 0;
}

static int load_foreign(struct run *r, const char *from, char **dir) {
    char **path = &r->cfg->checkpoint.pretrained_checkpoint, *old = *path;
    *path = xstrdup(from);
    *dir = xstrdup(from);
    free(old);
    save_setup(r);
    struct ckpt_state state = save_state(r);
    return pretrained_load(r, &state);
}

int save_load_weights(struct run *r, const char *from, char **dir) {
    struct ckpt_found found = {0};
    if (hf_is_source(from)) return load_foreign(r, from, dir);
    save_setup(r);
    r->ckpt.load = from;
    r->ckpt.save = r->ckpt.save_second = NULL;
    r->ckpt.resume = CKPT_RESUME_MUST;
    r->ckpt.finetune = true; /* weights alone */
    struct ckpt_state state = save_state(r);
    TRY(ckpt_resume(&r->ckpt, &state, &found));
    TRY(resume_same_model(r, &found));
    r->at.step = found.step;
    *dir = xstrdup(found.dir);
    ckpt_found_free(&found);
    return 0;
}
