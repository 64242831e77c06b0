/* One call below one folder goes wrong. Preloaded into a run (io_faults.sh), or part of a test
 * (test_io_faults.c). Calls that make, change or remove something are counted from 0, in the order
 * they come, if their path lies below IO_FAULT_FOLDER or their descriptor was opened there.
 *
 *   IO_FAULT=K:KIND:RANK   at the K-th call on that rank (of mpirun): ENOSPC EIO EDQUOT EINTR fail,
 *                          SHORT writes half, KILL ends the process, FULL is ENOSPC from then on
 *   IO_FAULT_LOG=FILE      a line when it happens
 *   IO_FAULT=-1:EIO:RANK   nothing goes wrong; the number of calls is written there at the end
 *
 * A test may instead watch the calls that went well (test_power_loss.c). */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "faults/io_shim.h"

#define FDS 1024
static struct {
    char folder[512], log[512];
    enum io_fault_kind kind;
    int64_t at;
    atomic_llong calls;
    atomic_bool fired;
    bool counting;
    bool ours[FDS];
    void (*watch)(const struct io_event *event);
    char path[FDS][512]; /* of what is watched */
} shim = {.at = -1};

static const char *const kind_name[IO_FAULT_KINDS] = {"ENOSPC", "EIO",  "EDQUOT", "EINTR",
                                                      "SHORT",  "KILL", "FULL"};

const char *io_fault_name(enum io_fault_kind kind) {
    return kind_name[kind];
}

void io_fault_arm(const char *folder, int64_t at, enum io_fault_kind kind) {
    snprintf(shim.folder, sizeof shim.folder, "%s", folder);
    shim.at = at;
    shim.kind = kind;
    shim.calls = 0;
    shim.fired = false;
}

bool io_fault_fired(void) {
    return shim.fired;
}

void io_watch(const char *folder, void (*watch)(const struct io_event *event)) {
    if (watch) snprintf(shim.folder, sizeof shim.folder, "%s", folder);
    shim.watch = watch;
}

static void watched(bool ours, struct io_event event) {
    if (ours && shim.watch) shim.watch(&event);
}
/* rc of a call that is told if it went well. */
static int watched_rc(bool ours, long rc, struct io_event event) {
    if (rc == 0) watched(ours, event);
    return (int)rc;
}

__attribute__((constructor)) static void read_environment(void) {
    const char *text = getenv("IO_FAULT"), *folder = getenv("IO_FAULT_FOLDER");
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *log = getenv("IO_FAULT_LOG");
    if (text == NULL || folder == NULL || rank == NULL) return;
    const char *kind = strchr(text, ':'), *victim = kind ? strchr(kind + 1, ':') : NULL;
    if (victim == NULL || strcmp(victim + 1, rank) != 0) return;
    if (log) snprintf(shim.log, sizeof shim.log, "%s", log);
    for (int i = 0; i < IO_FAULT_KINDS; i++)
        if (strncmp(kind + 1, kind_name[i], (size_t)(victim - kind - 1)) == 0)
            io_fault_arm(folder, strtoll(text, NULL, 10), (enum io_fault_kind)i);
    shim.counting = shim.at < 0;
}

static void tell(const char *call) {
    char line[64];
    if (shim.log[0] == 0) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, shim.log, O_WRONLY | O_CREAT | O_APPEND, 0666);
    int n = call ? snprintf(line, sizeof line, "%s %s\n", kind_name[shim.kind], call)
                 : snprintf(line, sizeof line, "%lld\n", (long long)shim.calls);
    if (fd >= 0) {
        syscall(SYS_write, fd, line, (size_t)n);
        syscall(SYS_close, fd);
    }
}

__attribute__((destructor)) static void tell_calls(void) {
    if (shim.counting) tell(NULL);
}

/* true: errno is set and the call must fail. takes_room: a full disk would refuse it. */
static bool goes_wrong(bool ours, bool takes_room, const char *call, bool *half) {
    static const int code[IO_FAULT_KINDS] = {ENOSPC, EIO, EDQUOT, EINTR, 0, 0, ENOSPC};
    if (half) *half = false;
    if ((shim.at < 0 && !shim.counting) || !ours) return false;
    int64_t now = shim.calls++;
    if (shim.kind == IO_FAULT_FULL ? now < shim.at || !takes_room : now != shim.at) return false;
    if (!shim.fired) tell(call);
    shim.fired = true;
    if (shim.kind == IO_FAULT_KILL) kill(getpid(), SIGKILL);
    if (shim.kind == IO_FAULT_SHORT) {
        if (half) *half = true;
        return false;
    }
    errno = code[shim.kind];
    return true;
}

static bool below(const char *path) {
    return (shim.at >= 0 || shim.counting || shim.watch) &&
           strncmp(path, shim.folder, strlen(shim.folder)) == 0;
}
static bool known(int fd) {
    return fd >= 0 && fd < FDS && shim.ours[fd];
}

/* The whole name of `path` in the open folder `dir`. */
static const char *whole_name(int dir, const char *path, char *out, size_t size) {
    if (path[0] == '/' || !known(dir)) return path;
    size_t n = (size_t)snprintf(out, size, "%s", shim.path[dir]);
    snprintf(out + n, n < size ? size - n : 0, "/%s", path);
    return out;
}

static int open_any(int dir, const char *path, int flags, mode_t mode) {
    bool ours = path[0] == '/' ? below(path) : known(dir), made = false;
    char name[512];
    if (goes_wrong(ours, (flags & O_CREAT) != 0, "open", NULL)) return -1;
    path = ours && shim.watch ? whole_name(dir, path, name, sizeof name) : path;
    if (ours && shim.watch && (flags & O_CREAT))
        made = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    int fd = (int)syscall(SYS_openat, dir, path, flags, mode);
    if (fd < 0 || fd >= FDS) return fd;
    shim.ours[fd] = ours;
    if (!ours || !shim.watch) return fd;
    snprintf(shim.path[fd], sizeof shim.path[fd], "%s", path);
    if (made) watched(true, (struct io_event){.call = IO_CALL_CREATE, .path = path});
    if (!made && (flags & O_TRUNC))
        watched(true, (struct io_event){.call = IO_CALL_TRUNCATE, .path = path});
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
int __open_2(const char *path, int flags);
int __open_2(const char *path, int flags) {
    return open_any(AT_FDCWD, path, flags, 0);
}
int __open64_2(const char *path, int flags);
int __open64_2(const char *path, int flags) {
    return open_any(AT_FDCWD, path, flags, 0);
}
int close(int fd) {
    bool ours = known(fd);
    if (ours) shim.ours[fd] = false;
    int rc = (int)syscall(SYS_close, fd); /* gone in any case, as on Linux */
    return goes_wrong(ours, false, "close", NULL) ? -1 : rc;
}

static ssize_t put_any(int fd, const void *data, size_t n, off_t at, bool placed) {
    bool half;
    if (goes_wrong(known(fd), true, placed ? "pwrite" : "write", &half)) return -1;
    if (half && n > 1) n /= 2;
    if (!placed && known(fd) && shim.watch) at = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t put = placed ? syscall(SYS_pwrite64, fd, data, n, at) : syscall(SYS_write, fd, data, n);
    if (put > 0 && known(fd))
        watched(true, (struct io_event){IO_CALL_WRITE, shim.path[fd], NULL, data, at, put});
    return put;
}
ssize_t write(int fd, const void *data, size_t n) {
    return put_any(fd, data, n, 0, false);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return put_any(fd, data, n, at, true);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return put_any(fd, data, n, at, true);
}
int fsync(int fd) {
    if (goes_wrong(known(fd), true, "fsync", NULL)) return -1;
    return watched_rc(
        known(fd), syscall(SYS_fsync, fd),
        (struct io_event){IO_CALL_FSYNC, known(fd) ? shim.path[fd] : "", NULL, NULL, 0, 0});
}
static int cut_any(int fd, off64_t n) {
    if (goes_wrong(known(fd), true, "ftruncate", NULL)) return -1;
    return watched_rc(
        known(fd), syscall(SYS_ftruncate, fd, n),
        (struct io_event){IO_CALL_TRUNCATE, known(fd) ? shim.path[fd] : "", NULL, NULL, n, 0});
}
int ftruncate(int fd, off_t n) {
    return cut_any(fd, n);
}
int ftruncate64(int fd, off64_t n) {
    return cut_any(fd, n);
}
int rename(const char *from, const char *to) {
    if (goes_wrong(below(from), false, "rename", NULL)) return -1;
    return watched_rc(below(from), syscall(SYS_rename, from, to),
                      (struct io_event){IO_CALL_RENAME, from, to, NULL, 0, 0});
}
int link(const char *from, const char *to) {
    return goes_wrong(below(from), true, "link", NULL) ? -1 : (int)syscall(SYS_link, from, to);
}
int mkdir(const char *path, mode_t mode) {
    if (goes_wrong(below(path), true, "mkdir", NULL)) return -1;
    return watched_rc(below(path), syscall(SYS_mkdir, path, mode),
                      (struct io_event){IO_CALL_MKDIR, path, NULL, NULL, 0, 0});
}
int unlink(const char *path) {
    if (goes_wrong(below(path), false, "unlink", NULL)) return -1;
    return watched_rc(below(path), syscall(SYS_unlink, path),
                      (struct io_event){IO_CALL_REMOVE, path, NULL, NULL, 0, 0});
}
int unlinkat(int dir, const char *path, int flags) {
    bool ours = path[0] == '/' ? below(path) : known(dir);
    char name[512];
    if (goes_wrong(ours, false, "unlinkat", NULL)) return -1;
    return watched_rc(ours, syscall(SYS_unlinkat, dir, path, flags),
                      (struct io_event){IO_CALL_REMOVE, whole_name(dir, path, name, sizeof name),
                                        NULL, NULL, 0, 0});
}
int rmdir(const char *path) {
    if (goes_wrong(below(path), false, "rmdir", NULL)) return -1;
    return watched_rc(below(path), syscall(SYS_rmdir, path),
                      (struct io_event){IO_CALL_REMOVE, path, NULL, NULL, 0, 0});
}
