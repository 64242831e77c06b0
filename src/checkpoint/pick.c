/* Which checkpoint the tools mean: one that is named, or the newest usable one of a folder. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

static bool usable(const char *dir) {
    struct ckpt_manifest *m = NULL;
    bool fine =
        !ckpt_is_refused(dir) && ckpt_read_manifest(dir, &m) == 0 && ckpt_check_files(dir, m) == 0;
    error_clear();
    manifest_free(m);
    return fine;
}

static int pick_newest(const char *where, char **dir) {
    struct name_list list;
    int64_t best = -1, seen = 0;
    TRY(folder_list(where, &list));
    for (int64_t i = 0; i < list.n; i++) {
        int64_t step = ckpt_folder_step(list.name[i]);
        char *path = xasprintf("%s/%s", where, list.name[i]);
        seen += step >= 0;
        if (step > best && usable(path)) {
            best = step;
            free(*dir);
            *dir = path;
        } else {
            free(path);
        }
    }
    name_list_free(&list);
    if (*dir) return 0;
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
    bool one = access(manifest, F_OK) == 0;
    const char *name = strrchr(where, '/');
    free(manifest);
    *dir = NULL;
    if (!folder_exists(where)) return error_raise(EXIT_NO_INPUT, "there is no folder %s", where);
    if (!one && ckpt_folder_step(name ? name + 1 : where) < 0) return pick_newest(where, dir);
    *dir = xstrdup(where);
    for (size_t n = strlen(*dir); n > 1 && (*dir)[n - 1] == '/';) (*dir)[--n] = 0;
    return 0;
}
