/* Folders and names: what the commit protocol does with the file system. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "fault.h"

#define REFUSED_MAX ((size_t)1 << 20)

int exit_code_of_errno(int error) {
    switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
        return EXIT_NO_PERMISSION;
    case ENOENT:
    case ENOTDIR:
        return EXIT_CANT_CREATE;
    default:
        return EXIT_IO;
    }
}

int folder_sync(const char *path) {
    fault_point("folder.sync.before");
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    fault_point("folder.sync.in");
    int rc = fd < 0 || fsync(fd) != 0
                 ? error_raise(EXIT_IO, "%s: fsync of the folder failed: %s", path, strerror(errno))
                 : 0;
    if (fd >= 0 && close(fd) != 0 && !rc)
        rc = error_raise(EXIT_IO, "%s: close failed: %s", path, strerror(errno));
    fault_point("folder.sync.after");
    return rc;
}

bool folder_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int folder_look(const char *path, bool *there) {
    struct stat st;
    TRY(file_look(path, there));
    if (*there && stat(path, &st) != 0)
        return error_raise(file_code_of_errno(errno), "%s cannot be looked at: %s", path,
                           strerror(errno));
    *there = *there && S_ISDIR(st.st_mode);
    return 0;
}

int folder_rename(const char *from, const char *to) {
    if (rename(from, to) == 0) return 0;
    return error_raise(exit_code_of_errno(errno), "%s could not be renamed to %s: %s", from, to,
                       strerror(errno));
}

void name_list_free(struct name_list *list) {
    for (int64_t i = 0; i < list->n; i++) free(list->name[i]);
    free(list->name);
    *list = (struct name_list){0};
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

int folder_list(const char *path, struct name_list *list) {
    *list = (struct name_list){0};
    DIR *dir;
    int tries = 0;
    do {
        dir = opendir(path);
    } while (!dir && file_try_again(errno, &tries));
    if (!dir)
        return error_raise(file_code_of_errno(errno), "%s cannot be opened: %s", path,
                           strerror(errno));
    int64_t capacity = 0;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(dir);
        if (!e) break;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (list->n == capacity) {
            capacity = capacity ? 2 * capacity : 32;
            list->name = xrealloc(list->name, (size_t)capacity * sizeof *list->name);
        }
        list->name[list->n++] = xstrdup(e->d_name);
    }
    int rc = errno ? error_raise(EXIT_IO, "%s: cannot be listed: %s", path, strerror(errno)) : 0;
    closedir(dir);
    if (list->n > 0) qsort(list->name, (size_t)list->n, sizeof *list->name, by_text);
    if (rc) name_list_free(list);
    return rc;
}

/* Checkpoint folders hold files only; a folder in one is somebody else's and stops the removal. */
int folder_remove(const char *path) {
    struct name_list list;
    if (!folder_exists(path)) return 0;
    TRY(folder_list(path, &list));
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), rc = 0;
    if (fd < 0) rc = error_raise(EXIT_IO, "%s: cannot be opened: %s", path, strerror(errno));
    fault_point("folder.remove.before");
    for (int64_t i = 0; !rc && i < list.n; i++) {
        if (unlinkat(fd, list.name[i], 0) != 0 && errno != ENOENT)
            rc = error_raise(exit_code_of_errno(errno), "%s: a file could not be removed: %s", path,
                             strerror(errno));
        fault_point("folder.remove.in");
    }
    if (fd >= 0) close(fd);
    name_list_free(&list);
    if (!rc && rmdir(path) != 0 && errno != ENOENT)
        rc = error_raise(exit_code_of_errno(errno), "%s could not be removed: %s", path,
                         strerror(errno));
    fault_point("folder.remove.after");
    return rc;
}

/* From four fifths on. What root keeps for itself counts as used. */
static void tell_nearly_full(const char *path, const struct statvfs *v, int64_t bytes, bool *told) {
    if (!told || *told || v->f_blocks == 0 || v->f_bavail > v->f_blocks / 5) return;
    *told = true;
    log_warn("%s: its file system is %.0f %% full; %.0f checkpoints of %.2f GB fit in what is left",
             path, 100 - 100 * (double)v->f_bavail / (double)v->f_blocks,
             (double)v->f_bavail * (double)v->f_frsize / ((double)bytes + 1), (double)bytes / 1e9);
}

int folder_free_space(const char *path, int64_t bytes, int64_t files, bool *told) {
    struct statvfs v;
    if (statvfs(path, &v) != 0)
        return error_raise(EXIT_CANT_CREATE, "%s: free space cannot be asked: %s", path,
                           strerror(errno));
    double need = 1.1 * (double)bytes, free_bytes = (double)v.f_bavail * (double)v.f_frsize;
    if (free_bytes < need)
        return error_raise(EXIT_IO,
                           "%s: a checkpoint needs %.0f bytes (with a tenth to spare), %.0f are "
                           "free: make room or point [checkpoint] save elsewhere",
                           path, need, free_bytes);
    if (v.f_files > 0 && (int64_t)v.f_favail < files)
        return error_raise(EXIT_IO,
                           "%s: a checkpoint needs %lld files, the file system has room "
                           "for %lld more",
                           path, (long long)files, (long long)v.f_favail);
    tell_nearly_full(path, &v, bytes, told);
    return 0;
}

/* ---- names ------------------------------------------------------------------------------------------- */
int64_t ckpt_folder_step(const char *name) {
    int64_t step;
    if (strncmp(name, "iter_", 5) != 0) return -1;
    size_t digits = strspn(name + 5, "0123456789");
    if (digits < 7 || name[5 + digits] || !parse_int64(name + 5, &step)) return -1;
    return step;
}

void ckpt_shard_name(char *name, size_t size, int64_t step, int64_t index, int64_t count) {
    snprintf(name, size, "iter_%07lld-shard-%05lld-of-%05lld.h5", (long long)step, (long long)index,
             (long long)count);
}

int ckpt_look_refused(const char *dir, bool *refused) {
    char *mark = xasprintf("%s.refused", dir);
    int rc = file_look(mark, refused);
    free(mark);
    return rc;
}

bool ckpt_is_refused(const char *dir) {
    char *mark = xasprintf("%s.refused", dir);
    bool refused = access(mark, F_OK) == 0 || (errno != ENOENT && errno != ENOTDIR);
    free(mark);
    return refused;
}

bool ckpt_is_damage(int code) {
    return code == EXIT_BAD_DATA || code == EXIT_NO_INPUT;
}

/* The mark's first line says when and who, the next ones why. */
int ckpt_refused_before(const char *dir) {
    char *mark = xasprintf("%s.refused", dir), *text = NULL, shown[400] = "";
    size_t bytes;
    if (file_read_regular(mark, REFUSED_MAX, &text, &bytes) == 0) {
        char *why = strchr(text, '\n');
        if (why) why[1 + strcspn(why + 1, "\n")] = 0;
        text_printable(why ? why + 1 : "", shown, sizeof shown);
    }
    error_clear();
    int rc = error_raise(EXIT_BAD_DATA,
                         "it was refused before: see %s%s%s; strata checkpoint verify --clear %s "
                         "removes the mark if it verifies now",
                         mark, shown[0] ? ": " : "", shown, dir);
    free(text);
    free(mark);
    return rc;
}

int ckpt_mark_refused(const char *dir, const char *why) {
    char now[32], host[256] = "?";
    clock_utc(now, false);
    gethostname(host, sizeof host - 1);
    fault_point("resume.refuse.before");
    char *mark = xasprintf("%s.refused", dir);
    char *text = xasprintf("refused %s by strata %s, host %s, pid %ld\n%s\n", now, STRATA_VERSION,
                           host, (long)getpid(), why);
    int rc = file_write_atomic(mark, text, strlen(text));
    fault_point("resume.refuse.after");
    free(text);
    free(mark);
    return rc;
}
