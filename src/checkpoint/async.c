/* A save while training goes on: the phases of save.c, those that communicate on the main thread,
 * those that wait for the file system on one thread beside it. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "save_impl.h"

struct ckpt_pending {
    struct save save;
    struct ckpt_state state;
    struct ckpt_settings second; /* for save_second, while that is tried */
    char *host;
    size_t host_bytes;
    bool copied;
    int (*work)(struct save *s); /* of the thread */
    pthread_t thread;
    bool started, committing;
    atomic_bool busy;
    int rc;    /* of the work, once it is not busy */
    char *why; /* sentences of a failure, kept out of the trace of the main thread */
};

/* Where the threads share cores, the one that trains goes first: no real-time class is inherited, and
 * waking up takes nobody's place. */
static void *work(void *arg) {
    struct ckpt_pending *p = arg;
    pthread_setschedparam(pthread_self(), SCHED_BATCH, &(struct sched_param){0});
    p->rc = p->work(&p->save);
    if (p->rc != 0) {
        p->why = xstrdup(error_text());
        error_clear();
    }
    atomic_store(&p->busy, false);
    return NULL;
}

static void start(struct ckpt_pending *p, int (*phase)(struct save *s)) {
    p->work = phase;
    p->rc = 0;
    atomic_store(&p->busy, true);
    int failed = pthread_create(&p->thread, NULL, work, p);
    p->started = failed == 0;
    if (p->started) return;
    p->rc = EXIT_IO;
    p->why =
        xasprintf("a thread to write the checkpoint could not be started: %s", strerror(failed));
    atomic_store(&p->busy, false);
}

/* The code of the last phase; its sentences are in the trace now. */
static int finish(struct ckpt_pending *p) {
    if (p->started) pthread_join(p->thread, NULL);
    p->started = false;
    if (p->why != NULL) ckpt_record_lines(p->rc, "", p->why);
    free(p->why);
    p->why = NULL;
    return p->rc;
}

/* 0: the thread writes. Else the save into that folder is over. Collective. */
static int begin_in(struct ckpt_pending *p, const struct ckpt_settings *settings) {
    int rc = phase_begin(&p->save, settings, &p->state);
    if (rc != 0) return phase_end(&p->save, rc);
    if (p->copied)
        p->save.copy = p->host;
    else
        phase_copy(&p->save, p->host, p->host_bytes);
    p->copied = true;
    p->committing = false;
    start(p, phase_write);
    return 0;
}

/* After a failure with rc: the next folder, if there is one. Collective. */
static int begin_second(struct ckpt_pending *p, const struct ckpt_settings *settings, int rc) {
    const struct group *world = grid_group(p->state.grid, GROUP_WORLD);
    if (!phase_try_second(settings, world, rc)) return rc;
    p->second = ckpt_second(settings);
    return begin_in(p, &p->second);
}

int ckpt_save_begin(const struct ckpt_settings *settings, const struct ckpt_state *state,
                    char *host, size_t host_bytes, struct ckpt_pending **pending) {
    struct ckpt_pending *p = xcalloc(1, sizeof *p);
    *pending = NULL;
    p->state = *state;
    p->host = host;
    p->host_bytes = host_bytes;
    h5_begin(settings); /* the library starts on the main thread: a parallel one calls MPI then */
    h5_end(settings);
    int rc = begin_in(p, settings);
    if (rc != 0) rc = begin_second(p, settings, rc);
    if (rc == 0)
        *pending = p;
    else
        free(p);
    return rc;
}

bool ckpt_save_busy(const struct ckpt_pending *pending) {
    return atomic_load(&pending->busy);
}

int ckpt_save_next(struct ckpt_pending **pending) {
    struct ckpt_pending *p = *pending;
    CHECK(!ckpt_save_busy(p), "the checkpoint of step %lld is still being written",
          (long long)p->state.at.step);
    int rc = finish(p);
    if (!p->committing) {
        rc = phase_vote(&p->save, rc);
        p->committing = true;
        if (rc == 0 && group_rank(p->save.world) == 0) start(p, phase_commit);
        if (rc == 0) return 0;
    }
    const struct ckpt_settings *settings = p->save.set;
    rc = phase_end(&p->save, rc);
    if (rc != 0 && (rc = begin_second(p, settings, rc)) == 0) return 0;
    free(p);
    *pending = NULL;
    return rc;
}
