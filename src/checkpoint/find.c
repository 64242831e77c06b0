/* Which checkpoint a run goes on from: the newest that verifies, older ones aloud. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "fault.h"

/* ---- rank 0: where to look, and what is there --------------------------------------------------------- */
struct candidate {
    char *dir;
    int64_t step, number; /* number: in the order in which they were found */
};
struct source {
    bool weights_only;
    struct candidate *c; /* newest first, once sorted */
    int64_t n, capacity;
};

static void source_free(struct source *s) {
    for (int64_t i = 0; i < s->n; i++) free(s->c[i].dir);
    free(s->c);
}

static void add_candidate(struct source *s, char *dir, int64_t step) {
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 32;
        s->c = xrealloc(s->c, (size_t)s->capacity * sizeof *s->c);
    }
    s->c[s->n] = (struct candidate){dir, step, s->n};
    s->n++;
}

/* Of the same step that of `save` comes before that of save_second. */
static int newest_first(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* The file is advisory: a difference is told and nothing more. */
static void compare_latest(const char *folder, int64_t newest) {
    char *path = xasprintf("%s/%s", folder, CKPT_LATEST), *text = NULL;
    size_t bytes;
    int64_t step;
    if (access(path, F_OK) == 0 && file_read_regular(path, 64, &text, &bytes) == 0) {
        text[strcspn(text, "\r\n")] = 0;
        if (!parse_int64(text, &step) || step != newest)
            log_warn("%s does not name the newest checkpoint, that of step %lld; the folders count",
                     path, (long long)newest);
    }
    error_clear();
    free(text);
    free(path);
}

/* *n: how many there are in it. */
static int list_candidates(struct source *s, const char *folder, int64_t *n) {
    struct name_list list;
    int64_t newest = -1;
    bool there;
    *n = 0;
    TRY(folder_look(folder, &there));
    if (!there) return 0;
    TRY(folder_list(folder, &list));
    int rc = 0;
    for (int64_t i = 0; !rc && i < list.n; i++) {
        int64_t step = ckpt_folder_step(list.name[i]);
        if (step < 0) continue;
        char *dir = xasprintf("%s/%s", folder, list.name[i]);
        rc = folder_look(dir, &there);
        if (rc || !there) {
            free(dir);
            continue;
        }
        add_candidate(s, dir, step);
        if (step > newest) newest = step;
        ++*n;
    }
    name_list_free(&list);
    if (!rc && *n > 0) compare_latest(folder, newest);
    return rc;
}

static int has_file(const char *folder, const char *name, bool *there) {
    char *path = xasprintf("%s/%s", folder, name);
    int rc = file_look(path, there);
    free(path);
    return rc;
}

static int use_load(const struct ckpt_settings *c, struct source *s) {
    int64_t n;
    bool there;
    s->weights_only = c->finetune;
    TRY(folder_look(c->load, &there));
    if (!there)
        return error_raise(EXIT_NO_INPUT, "[checkpoint] load = %s: there is no such folder",
                           c->load);
    TRY(has_file(c->load, CKPT_MANIFEST, &there));
    if (there) {
        struct ckpt_manifest *m;
        TRY(ckpt_read_manifest(c->load, &m));
        add_candidate(s, xstrdup(c->load), m->step);
        manifest_free(m);
        return 0;
    }
    TRY(list_candidates(s, c->load, &n));
    if (n > 0) return 0;
    return error_raise(EXIT_NO_INPUT,
                       "[checkpoint] load = %s holds no checkpoint (no iter_* "
                       "folder, no %s)",
                       c->load, CKPT_MANIFEST);
}

/* A folder that this run saves into: what a crash left is cleared up, its checkpoints are listed. */
static int use_own(const struct ckpt_settings *c, struct source *s) {
    int64_t n;
    bool latest, unread = false;
    int rc = ckpt_recover(c, &unread);
    if (rc && unread) return rc; /* it may be the newest checkpoint */
    if (rc) {
        log_warn("left-overs in %s could not be cleared: %s", c->save, error_text());
        error_clear();
    }
    TRY(list_candidates(s, c->save, &n));
    TRY(has_file(c->save, CKPT_LATEST, &latest));
    if (c->resume == CKPT_RESUME_NEVER && (n > 0 || latest))
        return error_raise(EXIT_RESUME,
                           "[checkpoint] resume = never, but save = %s holds checkpoints: "
                           "give another folder, or resume = auto",
                           c->save);
    if (n == 0 && latest)
        return error_raise(EXIT_BAD_DATA,
                           "%s/%s exists, but the folder holds no checkpoint: they were moved "
                           "or removed; remove the file too to start anew",
                           c->save, CKPT_LATEST);
    return 0;
}

/* No candidates and no error: start anew. */
static int find_source(const struct ckpt_settings *c, struct source *s) {
    *s = (struct source){0};
    fault_point("resume.list.before");
    bool other_load = c->load && (!c->save || strcmp(c->load, c->save) != 0);
    if (c->save) TRY(use_own(c, s));
    if (c->save && c->save_second) {
        struct ckpt_settings second = ckpt_second(c);
        TRY(use_own(&second, s));
    }
    if (s->n > 0) {
        if (other_load)
            log_warn("%s holds checkpoints of this run already: load = %s is not used", c->save,
                     c->load);
        return 0;
    }
    if (other_load && (c->resume != CKPT_RESUME_NEVER || c->finetune)) return use_load(c, s);
    if (c->resume == CKPT_RESUME_MUST)
        return error_raise(EXIT_NO_INPUT, "[checkpoint] resume = must, but %s holds no checkpoint",
                           c->save ? c->save : "no folder is given and so nothing");
    return 0;
}

/* ---- verifying one, all ranks together ------------------------------------------------------------------- */
static int share_manifest(const struct group *world, const char *dir, int64_t step,
                          struct ckpt_manifest **m) {
    char *path = xasprintf("%s/%s", dir, CKPT_MANIFEST), *text = NULL;
    size_t bytes = 0;
    int rc = 0;
    *m = NULL;
    if (group_rank(world) == 0) rc = file_read_regular(path, CKPT_MANIFEST_MAX, &text, &bytes);
    rc = ckpt_agree(world, rc);
    if (!rc) {
        char *all = ckpt_share(world, text, bytes, 0, &bytes);
        rc = manifest_parse(path, all, bytes, m);
        if (!rc && (*m)->step != step)
            rc = error_raise(EXIT_BAD_DATA, "%s is the manifest of step %lld", path,
                             (long long)(*m)->step);
        free(all);
        rc = ckpt_agree(world, rc);
    }
    free(text);
    free(path);
    return rc;
}

static int verify(const struct ckpt_settings *c, const struct group *world, const char *dir,
                  int64_t step, struct ckpt_manifest **m) {
    int me = group_rank(world), n = group_size(world);
    fault_point("resume.manifest.before");
    TRY(share_manifest(world, dir, step, m));
    fault_point("resume.manifest.after");
    int rc = me == 0 ? ckpt_check_files(dir, *m) : 0;
    if (!rc) rc = manifest_check_coverage(*m, dir);
    TRY(ckpt_agree(world, rc));
    fault_point("resume.cover.after");
    if (c->verify_load != CKPT_VERIFY_ALL) return 0;
    int64_t shards = 0;
    struct blocks_by_file blocks = manifest_by_file(*m);
    for (int64_t i = 0; i < (*m)->n_files; i++) {
        if ((*m)->file[i].inspection || shards++ % n != me) continue;
        struct scan s = {.dir = dir, .m = *m, .blocks = &blocks, .file = (int)i, .one_in = 1};
        s.sha256 = (*m)->file[i].sha256[0] != 0;
        fault_point("resume.verify.in");
        int one = ckpt_scan_file(&s);
        if (one && !rc) rc = one;
    }
    blocks_by_file_free(&blocks);
    fault_point("resume.verify.after");
    return ckpt_agree(world, rc);
}

static void pass_over(const struct group *world, struct ckpt_found *f, const char *dir, bool mark) {
    char *back = mark
                     ? xasprintf("; it is marked with %s.refused: strata checkpoint verify --clear "
                                 "%s removes the mark once it verifies",
                                 dir, dir)
                     : xstrdup("");
    char *longer = xasprintf("%s%s%s: %s%s", f->skipped ? f->skipped : "", f->skipped ? "\n" : "",
                             dir, error_text(), back);
    if (group_rank(world) == 0) {
        log_warn("checkpoint %s is passed over: %s%s", dir, error_text(), back);
        if (mark && ckpt_mark_refused(dir, error_text()) != 0)
            log_warn("%s.refused could not be written", dir);
    }
    fault_point("resume.skip.after");
    free(back);
    free(f->skipped);
    f->skipped = longer;
    f->n_skipped++;
    error_clear();
}

/* On rank 0. */
static int look_for_mark(const char *dir, bool *refused) {
    TRY(ckpt_look_refused(dir, refused));
    return *refused ? ckpt_refused_before(dir) : 0;
}

/* Collective. 1: this one is taken; 0: it is damaged, the next one is tried; -rc: an error that says
 * nothing about it, so that going on from an older one would throw steps away. */
static int try_candidate(const struct ckpt_settings *c, const struct group *world,
                         struct ckpt_found *f, const char *dir, int64_t step) {
    bool refused = false;
    int rc = ckpt_agree(world, group_rank(world) == 0 ? look_for_mark(dir, &refused) : 0);
    if (rc && !ckpt_is_damage(rc)) return -rc;
    if (rc) {
        pass_over(world, f, dir, false);
        return 0;
    }
    struct ckpt_manifest *m = NULL;
    rc = verify(c, world, dir, step, &m);
    if (!rc) {
        f->any = true;
        f->dir = xstrdup(dir);
        f->step = step;
        f->manifest = m;
        f->uuid = xstrdup(m->uuid);
        f->run_uuid = xstrdup(m->run_uuid);
        return 1;
    }
    manifest_free(m);
    if (!ckpt_is_damage(rc)) return -rc;
    pass_over(world, f, dir, true);
    return 0;
}

void ckpt_found_free(struct ckpt_found *f) {
    free(f->dir);
    free(f->skipped);
    free(f->uuid);
    free(f->run_uuid);
    manifest_free(f->manifest);
    *f = (struct ckpt_found){0};
}

static int try_all(const struct ckpt_settings *c, const struct group *world, const struct source *s,
                   int64_t n, struct ckpt_found *f) {
    for (int64_t i = 0; i < n; i++) {
        size_t bytes;
        int64_t step = s->n ? s->c[i].step : 0;
        comm_broadcast(world, &step, sizeof step, 0);
        if (f->newest_step < step) f->newest_step = step;
        if (c->ckpt_step >= 0 && step != c->ckpt_step) continue;
        const char *mine = s->n ? s->c[i].dir : "";
        char *dir = ckpt_share(world, mine, strlen(mine), 0, &bytes);
        int taken = try_candidate(c, world, f, dir, step);
        free(dir);
        if (taken < 0) return -taken;
        if (taken > 0) return 0;
    }
    if (c->ckpt_step >= 0 && f->n_skipped == 0)
        return error_raise(EXIT_NO_INPUT,
                           "[checkpoint] ckpt_step = %lld: there is no checkpoint of "
                           "that step",
                           (long long)c->ckpt_step);
    return error_raise(EXIT_BAD_DATA, "%lld checkpoint%s, and none can be used: %s",
                       (long long)f->n_skipped, f->n_skipped == 1 ? "" : "s",
                       f->skipped ? f->skipped : "");
}

static void report(const struct ckpt_found *f) {
    if (!f->any)
        log_info("no checkpoint yet: starting anew");
    else if (f->weights_only)
        log_info("weights are taken from %s (step %lld); counters and optimizer start anew", f->dir,
                 (long long)f->step);
    else if (f->newest_step > f->step)
        log_warn("going on from %s, step %lld: %lld steps are lost", f->dir, (long long)f->step,
                 (long long)(f->newest_step - f->step));
    else
        log_info("going on from %s, step %lld", f->dir, (long long)f->step);
}

int ckpt_find(const struct ckpt_settings *settings, const struct grid *grid,
              struct ckpt_found *found) {
    const struct group *world = grid_group(grid, GROUP_WORLD);
    struct source s = {0};
    *found = (struct ckpt_found){.step = -1, .newest_step = -1};
    int rc = 0;
    fault_point("resume.find.before");
    if (group_rank(world) == 0) {
        rc = find_source(settings, &s);
        if (s.n > 0) qsort(s.c, (size_t)s.n, sizeof *s.c, newest_first);
        fault_point("resume.list.after");
    }
    rc = ckpt_agree(world, rc);
    int64_t told[2] = {s.n, s.weights_only};
    comm_broadcast(world, told, sizeof told, 0);
    found->weights_only = told[1] != 0;
    if (!rc && told[0] > 0) rc = try_all(settings, world, &s, told[0], found);
    if (!rc && group_rank(world) == 0) report(found);
    fault_point("resume.find.after");
    source_free(&s);
    if (rc) ckpt_found_free(found);
    return rc;
}
