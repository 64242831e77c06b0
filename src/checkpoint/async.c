/* A save while training goes on: the phases of save.c, those that communicate on the main thread,
 * those that wait for the file system on one thread beside it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "save_impl.h"

struct ckpt_pending {
    struct save save;
    struct ckpt_state state;
    int (*work)(struct save *s); /* of the thread */
    pthread_t thread;
    bool started, committing;
    atomic_bool busy;
    int rc;    /* of the work, once it is not busy */
    char *why; /* sentences of a failure, kept out of the trace of the main thread */
};

static void *work(void *arg) {
    struct ckpt_pending *p = arg;
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

int ckpt_save_begin(const struct ckpt_settings *settings, const struct ckpt_state *state,
                    char *host, size_t host_bytes, struct ckpt_pending **pending) {
    struct ckpt_pending *p = xcalloc(1, sizeof *p);
    *pending = NULL;
    p->state = *state;
    h5_begin(settings); /* the library starts on the main thread: a parallel one calls MPI then */
    h5_end(settings);
    int rc = phase_begin(&p->save, settings, &p->state);
    if (rc != 0) {
        rc = phase_end(&p->save, rc);
        free(p);
        return rc;
    }
    phase_copy(&p->save, host, host_bytes);
    start(p, phase_write);
    *pending = p;
    return 0;
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
    rc = phase_end(&p->save, rc);
    free(p);
    *pending = NULL;
    return rc;
}
