/* Whole files and folders. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base.h"
#include "fault.h"

int file_code_of_errno(int error) {
    if (error == ENOENT || error == ENOTDIR) return EXIT_NO_INPUT;
    return error == EACCES || error == EPERM ? EXIT_NO_PERMISSION : EXIT_IO;
}

/* 50, 100, 200 and 400 ms: a server that is busy answers by then, and a user still waits. */
#define TRIES 4
bool file_try_again(int error, int *tries) {
    if (error == EINTR) return true;
    if (error != EIO && error != ESTALE && error != ETIMEDOUT) return false;
    if (*tries == TRIES) return false;
    struct timespec pause = {.tv_nsec = 50000000L << (*tries)++};
    nanosleep(&pause, NULL);
    errno = error;
    return true;
}

int file_look(const char *path, bool *there) {
    struct stat st;
    int rc, tries = 0;
    do {
        rc = stat(path, &st);
    } while (rc != 0 && file_try_again(errno, &tries));
    *there = rc == 0;
    int code = rc == 0 ? 0 : file_code_of_errno(errno);
    if (rc == 0 || code == EXIT_NO_INPUT) return 0;
    return error_raise(code, "%s cannot be looked at: %s", path, strerror(errno));
}

/* As open(2), with another try where one may help. */
static int open_again(const char *path, int flags) {
    int fd, tries = 0;
    do {
        fd = open(path, flags);
    } while (fd < 0 && file_try_again(errno, &tries));
    return fd;
}

static int code_of_create(int err) {
    if (err == ENOSPC || err == EDQUOT || err == EIO) return EXIT_IO;
    return err == EACCES || err == EPERM || err == EROFS ? EXIT_NO_PERMISSION : EXIT_CANT_CREATE;
}

/* Reads until the end of the file, whatever fstat said: it may be a pipe or growing. */
static int read_all(int fd, const char *path, size_t max_bytes, char **data, size_t *bytes) {
    size_t room = 65536, used = 0;
    int tries = 0;
    char *text = xmalloc(room + 1);
    for (;;) {
        ssize_t n = read(fd, text + used, room - used);
        if (n < 0 && file_try_again(errno, &tries)) continue;
        if (n < 0) {
            int err = errno;
            free(text);
            return error_raise(EXIT_IO, "%s cannot be read: %s", path, strerror(err));
        }
        used += (size_t)n;
        if (used > max_bytes) {
            free(text);
            return error_raise(EXIT_BAD_DATA, "%s is larger than the %zu bytes allowed", path,
                               max_bytes);
        }
        if (n == 0) break;
        if (used == room) text = xrealloc(text, (room *= 2) + 1);
    }
    text[used] = '\0';
    *data = text;
    *bytes = used;
    return 0;
}

int file_read(const char *path, size_t max_bytes, char **data, size_t *bytes) {
    int fd = open_again(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_raise(file_code_of_errno(errno), "%s cannot be opened: %s", path,
                           strerror(errno));
    int rc = read_all(fd, path, max_bytes, data, bytes);
    close(fd);
    return rc;
}

int file_read_regular(const char *path, size_t max_bytes, char **data, size_t *bytes) {
    struct stat st;
    int fd = open_again(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), rc = 0;
    if (fd < 0 && errno != ELOOP)
        return error_raise(file_code_of_errno(errno), "%s cannot be opened: %s", path,
                           strerror(errno));
    if (fd >= 0 && fstat(fd, &st) != 0)
        rc = error_raise(EXIT_IO, "%s cannot be looked at: %s", path, strerror(errno));
    else if (fd < 0 || !S_ISREG(st.st_mode))
        rc = error_raise(EXIT_BAD_DATA, "%s is no regular file", path);
    else if ((uint64_t)st.st_size > max_bytes)
        rc = error_raise(EXIT_BAD_DATA, "%s is larger than the %zu bytes allowed", path, max_bytes);
    else
        rc = read_all(fd, path, max_bytes, data, bytes);
    if (fd >= 0) close(fd);
    return rc;
}

static bool write_all(int fd, const char *data, size_t bytes) {
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        data += n;
        bytes -= (size_t)n;
    }
    return fsync(fd) == 0;
}

/* The rename is durable only when the folder is on disk too. */
static bool sync_parent(const char *path) {
    char *parent = xstrdup(path);
    char *slash = strrchr(parent, '/');
    if (slash != NULL) slash[slash == parent] = '\0'; /* keep the root's own slash */
    int fd = open(slash != NULL ? parent : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
    if (fd >= 0) close(fd);
    free(parent);
    return ok;
}

static int write_and_rename(const char *tmp, const char *path, const void *data, size_t bytes) {
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_raise(code_of_create(errno), "%s cannot be created: %s", tmp, strerror(errno));
    fault_point("file.write.opened");
    bool ok = write_all(fd, data, bytes);
    int err = errno;
    if (close(fd) != 0 && ok) ok = false, err = errno;
    fault_point("file.write.written");
    if (ok && rename(tmp, path) != 0) ok = false, err = errno;
    fault_point("file.write.renamed");
    if (ok && !sync_parent(path)) ok = false, err = errno;
    fault_point("file.write.after");
    if (ok) return 0;
    unlink(tmp);
    return error_raise(EXIT_IO, "%s cannot be written: %s", path, strerror(err));
}

int file_write_atomic(const char *path, const void *data, size_t bytes) {
    fault_point("file.write.before");
    char *tmp = xasprintf("%s.tmp.%ld", path, (long)getpid());
    int rc = write_and_rename(tmp, path, data, bytes);
    free(tmp);
    return rc;
}

/* A new folder lasts when its name is on disk: what is synced inside it would else be lost with it. A
 * parent that may not be read cannot be synced. */
static bool make_one(const char *path) {
    if (mkdir(path, 0777) == 0) return sync_parent(path) || errno == EACCES;
    struct stat st;
    int err = errno;
    if (err == EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return true;
    errno = err == EEXIST ? ENOTDIR : err;
    return false;
}

int dir_make(const char *path) {
    char *copy = xstrdup(path);
    int rc = 0;
    for (char *p = copy; rc == 0 && *p != '\0';) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char kept = *p;
        *p = '\0';
        if (!make_one(copy))
            rc = error_raise(code_of_create(errno), "folder %s cannot be made: %s", copy,
                             strerror(errno));
        *p = kept;
    }
    free(copy);
    return rc;
}
