/* A resume tells how the job file differs from that of the checkpoint, and refuses what would be
 * another run. */
#include <stdlib.h>
#include <string.h>

#include "run_impl.h"

struct stored_list {
    struct config_stored *key;
    int64_t n, capacity;
};

static void add_stored(void *arg, const char *section, const char *key, const char *value,
                       bool defaulted) {
    struct stored_list *l = arg;
    (void)defaulted;
    if (l->n == l->capacity) {
        l->capacity = l->capacity > 0 ? 2 * l->capacity : 256;
        l->key = xrealloc(l->key, (size_t)l->capacity * sizeof *l->key);
    }
    l->key[l->n++] = (struct config_stored){xstrdup(section), xstrdup(key), xstrdup(value)};
}

static void free_stored(struct stored_list *l) {
    for (int64_t i = 0; i < l->n; i++) {
        free((void *)l->key[i].section);
        free((void *)l->key[i].key);
        free((void *)l->key[i].value);
    }
    free(l->key);
}

struct judgement {
    const struct run *run;
    const char *dir;
    int64_t n;
    int rc;
};

/* A seed that the checkpoint's is not loaded for may differ. */
static bool refused(const struct judgement *j, const struct config_difference *d) {
    if (j->run->ckpt.no_load_rng && strcmp(d->section, "training") == 0 &&
        strcmp(d->key, "seed") == 0)
        return false;
    return d->change == CONFIG_REFUSED || d->change == CONFIG_BY_ARGUMENT;
}

static void judge(void *arg, const struct config_difference *d) {
    struct judgement *j = arg;
    bool no = refused(j, d);
    if (j->n++ == 0) log_info("the job file differs from that of %s:", j->dir);
    log_info("  [%s] %s: %s -> %s (%s)", d->section, d->key, d->before, d->now,
             no ? "refused"
                : config_change_text(d->change == CONFIG_FREE ? CONFIG_FREE : CONFIG_NOTICE));
    if (!no) return;
    if (d->change == CONFIG_BY_ARGUMENT)
        j->rc = error_raise(EXIT_RESUME,
                            "%s: [%s] %s = %s, but %s was trained with %s; if it is meant, give it "
                            "as an argument: %s:%s=%s",
                            d->place, d->section, d->key, d->now, j->dir, d->before, d->section,
                            d->key, d->now);
    else
        j->rc =
            error_raise(EXIT_RESUME,
                        "%s: [%s] %s = %s, but %s was trained with %s; change it back, or begin "
                        "another run in another folder",
                        d->place, d->section, d->key, d->now, j->dir, d->before);
}

int resume_accept(void *run, const struct ckpt_found *found) {
    struct run *r = run;
    struct stored_list stored = {0};
    int rc = ckpt_config(&r->ckpt, found, r->grid, add_stored, &stored);
    if (rc == 0) {
        struct judgement j = {.run = r, .dir = found->dir};
        config_compare(r->cfg, stored.key, stored.n, judge, &j);
        rc = j.rc;
    }
    free_stored(&stored);
    return rc;
}

/* ---- weights alone: only what the weights mean must be the same ------------------------------------- */
static bool of_the_model(const char *section, const char *key) {
    static const char *const free_key[] = {"freeze_ViT",
                                           "freeze_LM",
                                           "freeze_vision_projection",
                                           "hidden_dropout",
                                           "init_method_std",
                                           "attention_dropout",
                                           "projector_init",
                                           "decoder_seq_length",
                                           "allow_missing_vision_projection_checkpoint",
                                           "max_position_embeddings",
                                           "dataloader_seq_length"};
    if (strcmp(section, "vision") != 0 && strcmp(section, "projector") != 0 &&
        strcmp(section, "language") != 0)
        return false;
    for (size_t i = 0; i < sizeof free_key / sizeof *free_key; i++)
        if (strcmp(key, free_key[i]) == 0) return false;
    return true;
}

struct same_model {
    const struct ckpt_found *found;
    struct stored_list stored; /* of the job: section, key, value */
    int rc;
};

static void compare_stored(void *arg, const char *section, const char *key, const char *value,
                           bool defaulted) {
    struct same_model *s = arg;
    (void)defaulted;
    if (!of_the_model(section, key)) return;
    for (int64_t i = 0; i < s->stored.n; i++) {
        const struct config_stored *mine = &s->stored.key[i];
        if (strcmp(mine->section, section) != 0 || strcmp(mine->key, key) != 0 ||
            strcmp(mine->value, value) == 0)
            continue;
        s->rc = error_raise(EXIT_RESUME, "[%s] %s = %s, but the weights of %s were trained with %s",
                            section, key, mine->value, s->found->dir, value);
    }
}

static void add_present(void *arg, const char *section, const char *key, const char *value,
                        bool defaulted) {
    add_stored(arg, section, key, value != NULL ? value : "", defaulted);
}

int resume_same_model(const struct run *r, const struct ckpt_found *found) {
    struct same_model s = {.found = found};
    config_each(r->cfg, add_present, &s.stored);
    int rc = ckpt_config(&r->ckpt, found, r->grid, compare_stored, &s);
    free_stored(&s.stored);
    return rc != 0 ? rc : s.rc;
}
