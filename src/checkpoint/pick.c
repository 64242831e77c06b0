/* Which checkpoint the tools mean: one that is named, or the newest usable one of a folder. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

/* An error that is no damage is one: an older checkpoint in place of one that cannot be read would be
 * another model than was meant. */
static int look(const char *dir, bool *usable) {
    struct ckpt_manifest *m = NULL;
    bool refused;
    int rc = ckpt_look_refused(dir, &refused);
    *usable = false;
    if (rc || refused) return rc;
    rc = ckpt_read_manifest(dir, &m);
    if (!rc) rc = ckpt_check_files(dir, m);
    manifest_free(m);
    *usable = rc == 0;
    if (rc && !ckpt_is_damage(rc) && rc != EXIT_RESUME) return rc;
    error_clear();
    return 0;
}

static int pick_newest(const char *where, char **dir) {
    struct name_list list;
    int64_t best = -1, seen = 0;
    int rc = 0;
    TRY(folder_list(where, &list));
    for (int64_t i = 0; !rc && i < list.n; i++) {
        int64_t step = ckpt_folder_step(list.name[i]);
        char *path = xasprintf("%s/%s", where, list.name[i]);
        bool usable = false;
        seen += step >= 0;
        if (step > best) rc = look(path, &usable);
        if (usable) {
            best = step;
            free(*dir);
            *dir = path;
        } else {
            free(path);
        }
    }
    name_list_free(&list);
    if (rc || *dir) return rc;
    if (seen > 0)
        return error_raise(EXIT_BAD_DATA,
                           "%s holds %lld checkpoints and none is usable: see strata "
                           "checkpoint ls %s",
                           where, (long long)seen, where);
    return error_raise(EXIT_NO_INPUT, "%s holds no checkpoint (no %s, no iter_* folder)", where,
                       CKPT_MANIFEST);
}

int source_pick(const char *where, char **dir) {
    char *manifest = xasprintf("%s/%s", where, CKPT_MANIFEST);
    bool one, there;
    const char *name = strrchr(where, '/');
    int rc = file_look(manifest, &one);
    free(manifest);
    *dir = NULL;
    TRY(rc);
    TRY(folder_look(where, &there));
    if (!there) return error_raise(EXIT_NO_INPUT, "there is no folder %s", where);
    if (!one && ckpt_folder_step(name ? name + 1 : where) < 0) return pick_newest(where, dir);
    *dir = xstrdup(where);
    for (size_t n = strlen(*dir); n > 1 && (*dir)[n - 1] == '/';) (*dir)[--n] = 0;
    return 0;
}
