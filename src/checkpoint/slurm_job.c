/* Asking Slurm whether a job still exists: squeue, run without a shell, with a limit of time. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ckpt_impl.h"

#define PATIENCE 15.0 /* seconds */

/* What the child may not inherit: signals that this program ignores or holds back. */
static int spawn_squeue(const char *id, int out, pid_t *pid) {
    char *const argv[] = {"squeue", "-h", "-o", "%T", "-j", (char *)(uintptr_t)id, NULL};
    posix_spawn_file_actions_t files;
    posix_spawnattr_t how;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files, out, STDERR_FILENO);
    posix_spawnattr_init(&how);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setsigdefault(&how, &all);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int failed = posix_spawnp(pid, argv[0], &files, &how, argv, environ);
    posix_spawnattr_destroy(&how);
    posix_spawn_file_actions_destroy(&files);
    return failed;
}

/* What it prints until it ends, or until patience does: then false. */
static bool read_until(int fd, double end, char *text, size_t size) {
    size_t n = 0;
    for (;;) {
        char drain[256];
        double left = end - clock_seconds();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (left <= 0 || poll(&wait, 1, (int)(1000 * left) + 1) == 0) return false;
        ssize_t got =
            n + 1 < size ? read(fd, text + n, size - 1 - n) : read(fd, drain, sizeof drain);
        if (got < 0) continue; /* interrupted: the limit counts on */
        if (got == 0) break;
        if (n + 1 < size) n += (size_t)got;
        text[n] = 0;
    }
    return true;
}

static int bury(pid_t pid, double end) {
    const struct timespec pause = {.tv_nsec = 2000000};
    int status = -1;
    pid_t done;
    while ((done = waitpid(pid, &status, WNOHANG)) == 0 && clock_seconds() < end)
        nanosleep(&pause, NULL);
    if (done == pid) return status;
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -1;
}

/* States in which no process of the job is left. COMPLETING is none of them. */
static bool ended(const char *state) {
    static const char *const name[] = {"COMPLETED", "CANCELLED", "FAILED",
                                       "TIMEOUT",   "NODE_FAIL", "PREEMPTED",
                                       "BOOT_FAIL", "DEADLINE",  "OUT_OF_MEMORY"};
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++)
        if (strcmp(state, name[i]) == 0) return true;
    return false;
}

enum job_state slurm_job_state(const char *id, char *says, size_t size) {
    int ends[2];
    pid_t pid;
    char text[512] = "";
    snprintf(says, size, "its job cannot be asked for");
    if (id[0] == 0 || id[strspn(id, "0123456789")] != 0) return JOB_UNKNOWN;
    if (pipe2(ends, O_CLOEXEC) != 0) return JOB_UNKNOWN;
    int failed = spawn_squeue(id, ends[1], &pid);
    close(ends[1]);
    double end = clock_seconds() + PATIENCE;
    bool whole = !failed && read_until(ends[0], end, text, sizeof text);
    close(ends[0]);
    int status = failed ? -1 : bury(pid, whole ? end : 0);
    text[strcspn(text, "\n")] = 0;
    if (failed) {
        snprintf(says, size, "squeue cannot be run: %s", strerror(failed));
        return JOB_UNKNOWN;
    }
    snprintf(says, size, "squeue says \"%.80s\"", text);
    if (!whole) snprintf(says, size, "squeue does not answer");
    if (!whole || !WIFEXITED(status)) return JOB_UNKNOWN;
    if (WEXITSTATUS(status) != 0)
        return strstr(text, "Invalid job id specified") ? JOB_GONE : JOB_UNKNOWN;
    return text[0] == 0 || ended(text) ? JOB_GONE : JOB_RUNS;
}
