/* Calls that read below one folder fail, as on storage that is ill for a while. Preloaded into a run
 * (storage_errors.sh), or part of a test (test_read_faults.c). Counted from 0, in the order they come,
 * are calls that open, read, list or look at something, if their path lies below READ_FAULT_FOLDER or
 * their descriptor was opened there.
 *
 *   READ_FAULT=K:ERRNO:TIMES:RANK   from the K-th call on, on that rank of mpirun (none: 0)
 *   READ_FAULT_NAME=TEXT            only paths that contain it are counted
 */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "faults/read_shim.h"

#define FDS 1024
static struct {
    char folder[512], name[128];
    int64_t at, times;
    int error;
    atomic_llong calls;
    const char *call;
    bool ours[FDS];
} shim = {.at = -1};

void read_fault_arm(const char *folder, int64_t at, int64_t times, int error) {
    snprintf(shim.folder, sizeof shim.folder, "%s", folder);
    shim.at = at;
    shim.times = times;
    shim.error = error;
    shim.calls = 0;
    shim.call = NULL;
}

bool read_fault_fired(void) {
    return shim.call != NULL;
}

const char *read_fault_call(void) {
    return shim.call ? shim.call : "none";
}

__attribute__((constructor)) static void read_environment(void) {
    const char *text = getenv("READ_FAULT"), *folder = getenv("READ_FAULT_FOLDER");
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *name = getenv("READ_FAULT_NAME");
    long long at, times;
    int error, victim;
    if (text == NULL || folder == NULL ||
        sscanf(text, "%lld:%d:%lld:%d", &at, &error, &times, &victim) != 4 ||
        victim != (rank ? (int)strtol(rank, NULL, 10) : 0))
        return;
    snprintf(shim.name, sizeof shim.name, "%s", name ? name : "");
    read_fault_arm(folder, at, times, error);
}

static bool below(const char *path) {
    return shim.at >= 0 && strncmp(path, shim.folder, strlen(shim.folder)) == 0 &&
           strstr(path, shim.name) != NULL;
}
static bool known(int fd) {
    return shim.at >= 0 && fd >= 0 && fd < FDS && shim.ours[fd];
}

/* true: errno is set and the call must fail. */
static bool fails(bool ours, const char *call) {
    if (!ours) return false;
    int64_t now = shim.calls++;
    if (now < shim.at || now - shim.at >= shim.times) return false;
    if (shim.call == NULL) shim.call = call;
    errno = shim.error;
    return true;
}

/* The C library's own function. */
#define REAL(result, name, ...)                                                                    \
    static result (*real)(__VA_ARGS__);                                                            \
    if (real == NULL) *(void **)(void *)&real = dlsym(RTLD_NEXT, name)

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    REAL(int, "openat", int, const char *, int, ...);
    bool ours = path[0] == '/' || dir == AT_FDCWD ? below(path)
                                                  : known(dir) && strstr(path, shim.name) != NULL;
    bool reads = (flags & (O_WRONLY | O_RDWR | O_CREAT)) == 0;
    if (reads && fails(ours, "open")) return -1;
    int fd = real(dir, path, flags, mode);
    if (fd >= 0 && fd < FDS) shim.ours[fd] = ours && reads;
    return fd;
}
#define MODE(flags)                                                                                \
    mode_t mode = 0;                                                                               \
    if ((flags)&O_CREAT) {                                                                         \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode = va_arg(args, mode_t);                                                               \
        va_end(args);                                                                              \
    }
int open(const char *path, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return open_any(AT_FDCWD, path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return open_any(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags)
    return open_any(dir, path, flags, mode);
}
int close(int fd) {
    REAL(int, "close", int);
    if (fd >= 0 && fd < FDS) shim.ours[fd] = false;
    return real(fd);
}
ssize_t read(int fd, void *to, size_t n) {
    REAL(ssize_t, "read", int, void *, size_t);
    return fails(known(fd), "read") ? -1 : real(fd, to, n);
}
ssize_t pread(int fd, void *to, size_t n, off_t at) {
    REAL(ssize_t, "pread", int, void *, size_t, off_t);
    return fails(known(fd), "pread") ? -1 : real(fd, to, n, at);
}
ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    return fails(known(fd), "pread") ? -1 : real(fd, to, n, at);
}
int stat(const char *path, struct stat *st) {
    REAL(int, "stat", const char *, struct stat *);
    return fails(below(path), "stat") ? -1 : real(path, st);
}
int lstat(const char *path, struct stat *st) {
    REAL(int, "lstat", const char *, struct stat *);
    return fails(below(path), "lstat") ? -1 : real(path, st);
}
int fstat(int fd, struct stat *st) {
    REAL(int, "fstat", int, struct stat *);
    return fails(known(fd), "fstat") ? -1 : real(fd, st);
}
int fstatat(int dir, const char *path, struct stat *st, int flags) {
    REAL(int, "fstatat", int, const char *, struct stat *, int);
    bool ours = path[0] == '/' ? below(path) : known(dir);
    return fails(ours, "fstatat") ? -1 : real(dir, path, st, flags);
}
int access(const char *path, int mode) {
    REAL(int, "access", const char *, int);
    return fails(below(path), "access") ? -1 : real(path, mode);
}
int faccessat(int dir, const char *path, int mode, int flags) {
    REAL(int, "faccessat", int, const char *, int, int);
    bool ours = path[0] == '/' ? below(path) : known(dir);
    return fails(ours, "faccessat") ? -1 : real(dir, path, mode, flags);
}
DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    if (fails(below(path), "opendir")) return NULL;
    DIR *dir = real(path);
    if (dir != NULL && dirfd(dir) < FDS) shim.ours[dirfd(dir)] = below(path);
    return dir;
}
struct dirent *readdir(DIR *dir) {
    REAL(struct dirent *, "readdir", DIR *);
    return fails(known(dirfd(dir)), "readdir") ? NULL : real(dir);
}
int closedir(DIR *dir) {
    REAL(int, "closedir", DIR *);
    if (dirfd(dir) < FDS) shim.ours[dirfd(dir)] = false;
    return real(dir);
}
