/* Named points of death; empty without STRATA_FAULTS. */
#include "fault.h"

#ifdef STRATA_FAULTS
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

static struct {
    pthread_mutex_t lock;
    char point[64], action[16];
    int64_t n, passed;
    bool mine; /* FAULT names this rank */
    int trace;
} fault = {.lock = PTHREAD_MUTEX_INITIALIZER, .trace = -1};

static bool names_rank(const char *text, int rank, int size) {
    int64_t number;
    if (strcmp(text, "all") == 0) return true;
    if (strcmp(text, "first") == 0) return rank == 0;
    if (strcmp(text, "middle") == 0) return rank == size / 2;
    if (strcmp(text, "last") == 0) return rank == size - 1;
    if (parse_int64(text, &number)) return rank == number;
    error_fatal(EXIT_USAGE, "FAULT: rank \"%s\"; a number, first, middle, last or all", text);
}

static void read_fault(const char *text, int rank, int size) {
    char copy[160], *next = copy, *field[4] = {NULL};
    snprintf(copy, sizeof copy, "%s", text);
    for (int i = 0; i < 4; i++) field[i] = strsep(&next, ":");
    if (field[3] == NULL || next != NULL || !parse_int64(field[2], &fault.n) || fault.n < 1)
        error_fatal(EXIT_USAGE, "FAULT=%s: it must be POINT:RANK:N:ACTION", text);
    if (strcmp(field[3], "kill") != 0 && strcmp(field[3], "segv") != 0 &&
        strcmp(field[3], "exit0") != 0)
        error_fatal(EXIT_USAGE, "FAULT: action \"%s\"; kill, segv or exit0", field[3]);
    snprintf(fault.point, sizeof fault.point, "%s", field[0]);
    snprintf(fault.action, sizeof fault.action, "%s", field[3]);
    fault.mine = names_rank(field[1], rank, size);
}

void fault_init(int rank, int size) {
    const char *text = getenv("FAULT"), *trace = getenv("FAULT_TRACE");
    if (text != NULL) read_fault(text, rank, size);
    if (trace == NULL) return;
    char *path = xasprintf("%s.%d", trace, rank);
    fault.trace = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    free(path);
    if (fault.trace < 0) error_fatal(EXIT_CANT_CREATE, "FAULT_TRACE=%s cannot be written", trace);
}

static void die(void) {
    if (strcmp(fault.action, "exit0") == 0) _exit(0);
    if (strcmp(fault.action, "segv") == 0) {
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

void fault_hit(const char *name) {
    pthread_mutex_lock(&fault.lock);
    if (fault.trace >= 0) {
        char line[80];
        int n = snprintf(line, sizeof line, "%s\n", name);
        if (write(fault.trace, line, (size_t)n) != n) _exit(EXIT_IO);
    }
    if (fault.mine && strcmp(name, fault.point) == 0 && ++fault.passed == fault.n) die();
    pthread_mutex_unlock(&fault.lock);
}
#endif
