/* The heartbeat of run.lock: while a run holds it, a thread sets the file's time anew every period. It
 * keeps the file open, so it never touches the lock of another that took over. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ckpt_impl.h"

struct ckpt_beat {
    int fd;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stop;
};

static void *beat(void *arg) {
    struct ckpt_beat *b = arg;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    pthread_mutex_lock(&b->mutex);
    while (!b->stop) {
        next.tv_sec += CKPT_BEAT_SECONDS;
        while (!b->stop && pthread_cond_timedwait(&b->wake, &b->mutex, &next) == 0) {
        }
        pthread_mutex_unlock(&b->mutex); /* the file system may take its time */
        (void)futimens(b->fd, NULL);     /* one that fails looks like a beat that is late */
        clock_gettime(CLOCK_MONOTONIC, &next);
        pthread_mutex_lock(&b->mutex);
    }
    pthread_mutex_unlock(&b->mutex);
    return NULL;
}

/* Signals are for the main thread. */
static int start_thread(struct ckpt_beat *b) {
    pthread_condattr_t clock;
    sigset_t all, before;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&b->mutex, NULL);
    pthread_cond_init(&b->wake, &clock);
    pthread_condattr_destroy(&clock);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&b->thread, NULL, beat, b);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

int lock_beat_begin(const char *path, struct ckpt_beat **out) {
    struct ckpt_beat *b = xcalloc(1, sizeof *b);
    int rc = 0, failed;
    b->fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (b->fd < 0)
        rc = error_raise(EXIT_IO, "%s cannot be opened: %s", path, strerror(errno));
    else if ((failed = start_thread(b)) != 0)
        rc = error_raise(EXIT_IO, "a thread for the heartbeat of %s could not be started: %s", path,
                         strerror(failed));
    *out = b;
    if (rc == 0) return 0;
    if (b->fd >= 0) close(b->fd);
    free(b);
    *out = NULL;
    return rc;
}

void lock_beat_end(struct ckpt_beat *b) {
    if (b == NULL) return;
    pthread_mutex_lock(&b->mutex);
    b->stop = true;
    pthread_cond_signal(&b->wake);
    pthread_mutex_unlock(&b->mutex);
    pthread_join(b->thread, NULL);
    pthread_cond_destroy(&b->wake);
    pthread_mutex_destroy(&b->mutex);
    close(b->fd);
    free(b);
}

int64_t lock_beat_age(const char *path, const char *newer) {
    struct stat then, now;
    if (lstat(path, &then) != 0 || lstat(newer, &now) != 0) return 0;
    return (int64_t)(now.st_mtime - then.st_mtime);
}
