/* strata checkpoint verify, and retention by hand. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

/* ---- verify -------------------------------------------------------------------------------------------------- */
static int clear_mark(const char *dir, FILE *to) {
    char *mark = xasprintf("%s.refused", dir);
    int rc = 0;
    if (unlink(mark) == 0)
        fprintf(to, "%s: removed\n", mark);
    else if (errno != ENOENT)
        rc = error_raise(exit_code_of_errno(errno), "%s could not be removed: %s", mark,
                         strerror(errno));
    free(mark);
    return rc;
}

/* A file that is missing is damage here, not a missing input. A newer format stays what it is. */
static int as_damage(int rc) {
    return rc == EXIT_NO_INPUT ? EXIT_BAD_DATA : rc;
}

/* Through HDF5: shards of this very checkpoint, datasets of the right type, extent and place; where a
 * filter stands between, what comes out of it. */
static int open_everything(const char *dir) {
    struct source s = {0};
    struct shard_reader *r;
    int rc = source_open(&s, dir);
    for (int64_t i = 0; !rc && i < s.m->n_files; i++) {
        s.scanned[i] = true; /* just now */
        if (!s.m->file[i].inspection) rc = source_shard(&s, (int)i, &r);
    }
    for (int64_t i = 0; !rc && i < s.m->n_tensors; i++)
        for (int64_t j = 0; !rc && j < s.m->tensor[i].n_blocks; j++) {
            const struct ckpt_block *b = &s.m->tensor[i].block[j];
            hid_t d = -1;
            TRY(source_shard(&s, b->file, &r));
            h5_begin(NULL);
            rc = reader_dataset(r, &s.m->tensor[i], b, &d);
            if (!rc) rc = reader_check_decoded(r, d, &s.m->tensor[i], b, 1, &(int64_t){0});
            rc = h5_close(rc, d, b->dataset);
            h5_end(NULL);
        }
    return source_close(rc, &s);
}

static int verify_manifest(const char *dir, const struct ckpt_manifest *m, bool strict) {
    const char *name = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    int64_t step = ckpt_folder_step(name);
    TRY(ckpt_verify_folder(dir));
    if (step >= 0 && step != m->step)
        return error_raise(EXIT_BAD_DATA, "%s holds the checkpoint of step %lld", dir,
                           (long long)m->step);
    TRY(open_everything(dir));
    return strict ? ckpt_lint(dir) : 0;
}

static int verify_one(const char *dir, bool strict, bool clear, FILE *to) {
    struct ckpt_manifest *m;
    int64_t bytes = 0;
    int rc = ckpt_read_manifest(dir, &m);
    if (!rc) rc = verify_manifest(dir, m, strict);
    if (rc) {
        bool judged = ckpt_is_damage(rc) || rc == EXIT_RESUME;
        fprintf(to, "%s: %s\n", dir, judged ? "damaged" : "could not be read");
        manifest_free(m);
        return as_damage(rc);
    }
    for (int64_t i = 0; i < m->n_tensors; i++) bytes += tensor_total_bytes(&m->tensor[i]);
    bool hint = ckpt_is_refused(dir) && !clear;
    fprintf(to, "%s: verified%s, step %lld, %lld tensors, %lld bytes%s\n", dir,
            strict ? " (strict)" : "", (long long)m->step, (long long)m->n_tensors,
            (long long)bytes, hint ? "; it has a .refused mark, --clear removes it" : "");
    manifest_free(m);
    return clear ? clear_mark(dir, to) : 0;
}

static int verify_all(const char *folder, bool strict, bool clear, FILE *to) {
    struct name_list list;
    int64_t n = 0;
    TRY(folder_list(folder, &list));
    int rc = 0;
    for (int64_t i = 0; i < list.n; i++) {
        bool there;
        if (ckpt_folder_step(list.name[i]) < 0) continue;
        char *dir = xasprintf("%s/%s", folder, list.name[i]);
        int one = folder_look(dir, &there);
        if (!one && there) one = verify_one(dir, strict, clear, to);
        if (one && !rc) rc = one;
        n += one != 0 || there;
        free(dir);
    }
    name_list_free(&list);
    if (n > 0) return rc;
    return error_raise(EXIT_NO_INPUT, "%s holds no checkpoint (no %s, no iter_* folder)", folder,
                       CKPT_MANIFEST);
}

int ckpt_verify(const char *where, bool strict, bool clear, FILE *to) {
    char *manifest = xasprintf("%s/%s", where, CKPT_MANIFEST), *dir = xstrdup(where);
    for (size_t n = strlen(dir); n > 1 && dir[n - 1] == '/';) dir[--n] = 0;
    const char *name = strrchr(dir, '/') ? strrchr(dir, '/') + 1 : dir;
    bool one, there;
    int rc = file_look(manifest, &one);
    if (!rc) rc = folder_look(dir, &there);
    one = one || ckpt_folder_step(name) >= 0;
    if (!rc && !there)
        rc = error_raise(EXIT_NO_INPUT, "there is no folder %s", dir);
    else if (!rc)
        rc = one ? verify_one(dir, strict, clear, to) : verify_all(dir, strict, clear, to);
    free(manifest);
    free(dir);
    return rc;
}

/* ---- prune ------------------------------------------------------------------------------------------------------ */
static int remove_listed(const struct ckpt_settings *set, const struct name_list *list,
                         bool dry_run, FILE *to) {
    int rc = 0;
    for (int64_t i = 0; !rc && i < list->n; i++) {
        if (!dry_run) rc = ckpt_discard(set, list->name[i]);
        if (!rc)
            fprintf(to, "%s%s/%s\n", dry_run ? "would remove " : "removed ", set->save,
                    list->name[i]);
    }
    if (list->n == 0) fprintf(to, "nothing to remove in %s\n", set->save);
    return rc;
}

int ckpt_prune(const char *save, int64_t keep, int64_t every, bool dry_run, FILE *to) {
    struct ckpt_settings set = {.save = save, .most_recent_k = keep, .save_retain_interval = every};
    struct name_list list = {0};
    struct ckpt_lock lock;
    if (keep < 2 || every < 0)
        return error_raise(EXIT_USAGE,
                           "--keep takes a whole number from 2 on (a single checkpoint may turn "
                           "out damaged), --every one from 0 on");
    if (!folder_exists(save)) return error_raise(EXIT_NO_INPUT, "there is no folder %s", save);
    struct grid *world = grid_create_measuring(1, 1, 1, false, 0, 0, 0);
    int rc = ckpt_lock(save, world, &lock);
    if (!rc) {
        set.lock = &lock;
        rc = ckpt_retain_list(&set, INT64_MAX, true, &list);
        if (!rc) rc = remove_listed(&set, &list, dry_run, to);
        name_list_free(&list);
        ckpt_unlock(&lock);
    }
    grid_destroy(world);
    return rc;
}
