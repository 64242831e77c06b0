/* Committing a folder, finishing what a crash left, and deleting what is no longer kept. Each of
 * them may itself be interrupted and is then simply done again. Rank 0 only. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "fault.h"

static char *trash_name(const char *save, const char *name) {
    return xasprintf("%s/%s%s", save, CKPT_TRASH, name);
}

/* First out of sight by one rename, then removed file by file. */
int ckpt_discard(const struct ckpt_settings *s, const char *name) {
    char *trash = trash_name(s->save, name), *path = xasprintf("%s/%s", s->save, name);
    fault_point("discard.before");
    int rc = folder_remove(trash);
    if (!rc) rc = ckpt_lock_check(s->lock);
    if (!rc) rc = folder_rename(path, trash);
    fault_point("discard.in");
    if (!rc) rc = folder_remove(trash);
    fault_point("discard.after");
    free(trash);
    free(path);
    return rc;
}

/* Step 12: advisory, so that a failure is told and no more. */
static void write_latest(const struct ckpt_settings *s, int64_t step) {
    char number[32], *path = xasprintf("%s/%s", s->save, CKPT_LATEST);
    snprintf(number, sizeof number, "%lld\n", (long long)step);
    fault_point("save.latest.before");
    int rc = ckpt_lock_check(s->lock);
    if (!rc) rc = file_write_atomic(path, number, strlen(number));
    if (rc) {
        log_warn("step %lld is saved, but %s does not say so: %s", (long long)step, path,
                 error_text());
        error_clear();
    }
    fault_point("save.latest.after");
    free(path);
}

/* The same step once more, after a roll-back: the old one goes only when the new one has its name.
 * Between the two renames the old one is set aside under a name of its own, not as rubbish: a start
 * after a crash there puts it back if the new one turns out not to be whole. */
static int replace_folder(const char *tmp, const char *final, const char *aside) {
    TRY(folder_remove(aside));
    TRY(folder_rename(final, aside));
    fault_point("save.rename.old");
    int rc = folder_rename(tmp, final);
    if (rc && rename(aside, final) != 0)
        error_note(rc, "and what was there before is now %s", aside);
    return rc;
}

int ckpt_commit_folder(const struct ckpt_settings *s, const char *tmp, int64_t step) {
    const char *save = s->save;
    char name[40];
    snprintf(name, sizeof name, "iter_%07lld", (long long)step);
    char *final = xasprintf("%s/%s", save, name), *mark = xasprintf("%s.refused", final);
    char *aside = xasprintf("%s/%s%s", save, CKPT_ASIDE, name);
    bool again = folder_exists(final);
    fault_point("save.rename.before");
    int rc = ckpt_lock_check(s->lock);
    if (!rc) rc = again ? replace_folder(tmp, final, aside) : folder_rename(tmp, final);
    fault_point("save.rename.in");
    if (!rc) unlink(mark);
    if (!rc) rc = folder_sync(save);
    fault_point("save.rename.after");
    if (!rc) write_latest(s, step);
    if (!rc && again && folder_remove(aside) != 0) {
        log_warn("%s stays until the next start: %s", aside, error_text());
        error_clear();
    }
    free(final);
    free(mark);
    free(aside);
    return rc;
}

/* A temporary folder whose manifest and files verify was complete: only its name is missing. One that
 * cannot be read may be complete too, and stays. */
static int recover_temporary(const struct ckpt_settings *s, const char *name, bool *unread) {
    char *path = xasprintf("%s/%s", s->save, name);
    struct ckpt_manifest *m = NULL;
    fault_point("recover.tmp.before");
    int rc = ckpt_read_manifest(path, &m);
    fault_point("recover.tmp.in");
    if (!rc) rc = ckpt_verify_folder(path);
    fault_point("recover.tmp.verified");
    if (rc && !ckpt_is_damage(rc) && rc != EXIT_RESUME) {
        *unread = true;
        error_note(rc, "while %s was looked at, which may be a whole checkpoint", path);
    } else if (rc) {
        error_clear();
        log_warn("%s was not finished when its job died: removed", path);
        rc = ckpt_discard(s, name);
    } else {
        log_warn("%s was complete but for its name: now iter_%07lld", path, (long long)m->step);
        rc = ckpt_commit_folder(s, path, m->step);
    }
    fault_point("recover.tmp.after");
    manifest_free(m);
    free(path);
    return rc;
}

/* Files that a crash left half-written beside the checkpoints: NAME.tmp.PID of file_write_atomic. Those
 * of a lock may belong to a run that is knocking just now, so they must be a minute older than it. */
static bool left_over(const char *save, const char *name) {
    const char *tmp = strstr(name, ".tmp.");
    bool ours =
        strncmp(name, CKPT_LATEST, strlen(CKPT_LATEST)) == 0 || strncmp(name, "iter_", 5) == 0;
    if (tmp && ours) return tmp[5] && strspn(tmp + 5, "0123456789") == strlen(tmp + 5);
    if (strncmp(name, "run.lock.", 9) != 0) return false;
    char *lock = xasprintf("%s/run.lock", save), *path = xasprintf("%s/%s", save, name);
    struct stat a, b;
    bool old = stat(lock, &a) == 0 && lstat(path, &b) == 0 && b.st_mtime < a.st_mtime - 60;
    free(lock);
    free(path);
    return old;
}

/* A folder that was to be replaced: back to its name, unless the new one has it. */
static int recover_aside(const struct ckpt_settings *s, const char *name) {
    char *path = xasprintf("%s/%s", s->save, name);
    char *final = xasprintf("%s/%s", s->save, name + strlen(CKPT_ASIDE));
    bool there;
    int rc = folder_look(final, &there);
    if (!rc && there) {
        rc = folder_remove(path);
    } else if (!rc) {
        rc = ckpt_lock_check(s->lock);
        if (!rc) rc = folder_rename(path, final);
        if (!rc) log_warn("%s is back: what was to replace it is not whole", final);
    }
    free(path);
    free(final);
    return rc;
}

enum recovery { TEMPORARY, ASIDE, RUBBISH, RECOVERIES };

static int recover_one(const struct ckpt_settings *s, const char *name, enum recovery what,
                       bool *unread) {
    char *path = xasprintf("%s/%s", s->save, name);
    int rc = 0;
    fault_point("recover.in");
    if (what == TEMPORARY && strncmp(name, "iter_", 5) == 0 && strstr(name, ".tmp-")) {
        bool there;
        rc = folder_look(path, &there);
        *unread = rc != 0;
        if (!rc && there) rc = recover_temporary(s, name, unread);
    } else if (what == ASIDE && strncmp(name, CKPT_ASIDE, strlen(CKPT_ASIDE)) == 0)
        rc = recover_aside(s, name);
    else if (what == RUBBISH && strncmp(name, CKPT_TRASH, strlen(CKPT_TRASH)) == 0)
        rc = folder_remove(path);
    else if (what == RUBBISH && left_over(s->save, name))
        unlink(path);
    free(path);
    return rc;
}

/* What may hold a checkpoint first, what is to go last. */
int ckpt_recover(const struct ckpt_settings *s, bool *unread) {
    struct name_list list;
    int rc = 0;
    fault_point("recover.before");
    if (!folder_exists(s->save)) return 0;
    rc = folder_list(s->save, &list);
    *unread = rc != 0;
    TRY(rc);
    for (int what = TEMPORARY; what < RECOVERIES; what++)
        for (int64_t i = 0; !rc && i < list.n; i++)
            rc = recover_one(s, list.name[i], (enum recovery)what, unread);
    fault_point("recover.after");
    name_list_free(&list);
    return rc;
}

/* ---- retention ----------------------------------------------------------------------------------------- */
/* Its manifest and the sizes of its files are right; the bytes were verified when it was written, and
 * are now if `read` says so. */
static bool stands(const char *save, const char *name, bool read) {
    char *path = xasprintf("%s/%s", save, name);
    struct ckpt_manifest *m = NULL;
    bool fine = !ckpt_is_refused(path) && ckpt_read_manifest(path, &m) == 0 &&
                ckpt_check_files(path, m) == 0 && (!read || ckpt_verify_folder(path) == 0);
    error_clear();
    manifest_free(m);
    free(path);
    return fine;
}

static int compare_steps(const void *a, const void *b) {
    int64_t x = ckpt_folder_step(*(char *const *)a), y = ckpt_folder_step(*(char *const *)b);
    return x > y ? -1 : x < y;
}

int ckpt_retain_list(const struct ckpt_settings *s, int64_t newest, bool read,
                     struct name_list *out) {
    struct name_list list;
    *out = (struct name_list){0};
    if (s->most_recent_k < 2) return 0;
    TRY(folder_list(s->save, &list));
    if (list.n > 0) qsort(list.name, (size_t)list.n, sizeof *list.name, compare_steps);
    out->name = xcalloc((size_t)list.n + 1, sizeof *out->name);
    fault_point("retain.before");
    int64_t standing = 0;
    for (int64_t i = 0; i < list.n; i++) {
        int64_t step = ckpt_folder_step(list.name[i]), every = s->save_retain_interval;
        if (step < 0 || step > newest) continue;
        if (standing < s->most_recent_k) {
            standing += stands(s->save, list.name[i], read);
            fault_point("retain.stands");
            continue;
        }
        if (every > 0 && step % every == 0) continue;
        char *path = xasprintf("%s/%s", s->save, list.name[i]);
        bool refused = ckpt_is_refused(path); /* kept for whoever wants to know why */
        free(path);
        if (!refused) out->name[out->n++] = xstrdup(list.name[i]);
    }
    name_list_free(&list);
    return 0;
}

int ckpt_retain(const struct ckpt_settings *s, int64_t newest) {
    struct name_list list;
    TRY(ckpt_retain_list(s, newest, false, &list));
    int rc = 0;
    for (int64_t i = 0; !rc && i < list.n; i++) {
        fault_point("retain.in");
        rc = ckpt_discard(s, list.name[i]);
    }
    fault_point("retain.after");
    name_list_free(&list);
    return rc;
}
