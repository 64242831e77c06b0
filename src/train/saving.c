/* Saving while a run goes on: at once, or by a thread while the next steps are computed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "run_impl.h"
#include "fault.h"

int save_take_memory(struct run *r) {
    struct saving *s = &r->saving;
    if (!r->layout.snapshot) return 0;
    s->host_bytes = r->plan.snapshot;
    s->host = malloc(s->host_bytes + 1);
    if (s->host == NULL)
        return error_raise(EXIT_UNAVAILABLE,
                           "the machine does not give %zu bytes for the copy that [checkpoint] "
                           "async_save = true needs; with false training waits for the checkpoint",
                           s->host_bytes);
    memset(s->host, 0, s->host_bytes); /* so that the first save does not wait for pages */
    return 0;
}

static void add_stall(struct saving *s, double seconds) {
    if (s->n_stalls == s->capacity) {
        s->capacity = s->capacity > 0 ? 2 * s->capacity : 64;
        s->stall = xrealloc(s->stall, (size_t)s->capacity * sizeof *s->stall);
    }
    s->stall[s->n_stalls++] = seconds;
}

double save_interval_seconds(double stall, double failure, double restart) {
    return stall + sqrt(2 * (failure + restart) * stall + stall * stall);
}

/* Time between failures: 6.5 per 1000 days of a node, as large clusters have seen. Before the first
 * save its stall is guessed. */
#define NODE_SECONDS (1000.0 * 86400 / 6.5)
#define FIRST_STALL 1.0

/* Hosts by their names. Collective over the world. */
static int64_t count_nodes(const struct run *r) {
    const struct group *world = grid_group(r->grid, GROUP_WORLD);
    int n = group_size(world);
    char mine[64] = "", (*all)[64] = xcalloc((size_t)n, sizeof *all);
    int64_t nodes = 0;
    gethostname(mine, sizeof mine - 1);
    comm_gather(world, mine, sizeof mine, all);
    for (int i = 0, j; i < n; i++) {
        for (j = 0; j < i && strcmp(all[i], all[j]) != 0;) j++;
        nodes += j == i;
    }
    free(all);
    return nodes;
}

void save_clock_begin(struct run *r) {
    struct saving *s = &r->saving;
    s->nodes = (double)count_nodes(r);
    s->ended = clock_seconds();
    s->restart = s->ended - r->started;
}

bool save_due(struct run *r) {
    const struct saving *s = &r->saving;
    if (r->cfg->checkpoint.save_interval != CONFIG_AUTO) return false;
    double stall = s->n_stalls > 0 ? 0 : FIRST_STALL;
    for (int64_t i = 0; i < s->n_stalls; i++) stall += s->stall[i] / (double)s->n_stalls;
    double seconds = save_interval_seconds(stall, NODE_SECONDS / s->nodes, s->restart);
    if (clock_seconds() - s->ended < seconds) return false;
    log_info(
        "step %lld: a save every %.0f s (a stall of %.3f s, a failure every %.0f h, a start of "
        "%.1f s)",
        (long long)r->at.step, seconds, stall, NODE_SECONDS / s->nodes / 3600, s->restart);
    return true;
}

/* The save of s->step is over. A failure that may be survived returns 0. */
static int over(struct run *r, int rc) {
    struct saving *s = &r->saving;
    double seconds = clock_seconds() - s->begun;
    if (rc == 0) {
        r->last_saved = s->step;
        s->failures = 0;
        log_info("saved step %lld in %s (%.2f s, %.3f GB/s; training stood still for %.3f s)",
                 (long long)s->step, s->folder, seconds, (double)s->bytes / seconds * 1e-9,
                 s->stall[s->n_stalls - 1]);
        return 0;
    }
    if (++s->failures >= r->cfg->checkpoint.save_max_failures)
        return error_note(rc, "%d saves in a row failed ([checkpoint] save_max_failures)",
                          s->failures);
    if (r->first_rank) error_print(stderr);
    error_clear();
    log_info("step %lld was not saved; older checkpoints are untouched and training goes on",
             (long long)s->step);
    return 0;
}

static int go_on(struct run *r) {
    int rc = ckpt_save_next(&r->saving.pending);
    return r->saving.pending != NULL ? 0 : over(r, rc);
}

/* Once for each save that takes long, on the rank that is behind. */
static void tell_slow(struct run *r) {
    struct saving *s = &r->saving;
    double seconds = clock_seconds() - s->begun;
    char host[256] = "";
    if (s->told || seconds < (double)r->cfg->checkpoint.save_timeout) return;
    gethostname(host, sizeof host - 1);
    log_warn("host %s has been writing the checkpoint of step %lld to %s for %.0f s ([checkpoint] "
             "save_timeout)",
             host, (long long)s->step, r->ckpt.save, seconds);
    s->told = true;
}

bool save_busy(struct run *r) {
    if (r->saving.pending == NULL || !ckpt_save_busy(r->saving.pending)) return false;
    tell_slow(r);
    return true;
}

int save_go_on(struct run *r, bool busy) {
    return r->saving.pending == NULL || busy ? 0 : go_on(r);
}

int save_wait(struct run *r) {
    const struct timespec pause = {.tv_nsec = 2000000};
    while (r->saving.pending != NULL) {
        int64_t busy = save_busy(r);
        comm_allreduce_i64(grid_group(r->grid, GROUP_WORLD), &busy, 1, REDUCE_MAX);
        if (busy)
            nanosleep(&pause, NULL);
        else
            TRY(go_on(r));
    }
    return 0;
}

int save_checkpoint(struct run *r, bool last) {
    struct saving *s = &r->saving;
    if (r->ckpt.save == NULL) return 0;
    double start = clock_seconds();
    if (s->pending != NULL && !last)
        log_info("step %lld waits to be saved: step %lld is still being written; save_interval is "
                 "shorter than a save takes",
                 (long long)r->at.step, (long long)s->step);
    TRY(save_wait(r));
    if (last && r->last_saved == r->at.step) return 0;
    struct ckpt_state state = save_state(r);
    state.saved_bytes = &s->bytes;
    state.saved_in = &s->folder;
    state.told_full = &s->told_full;
    s->step = r->at.step;
    s->bytes = 0;
    s->told = false;
    s->begun = clock_seconds();
    fault_point("save.before");
    int rc = last || !r->layout.snapshot
                 ? ckpt_save(&r->ckpt, &state)
                 : ckpt_save_begin(&r->ckpt, &state, s->host, s->host_bytes, &s->pending);
    fault_point("save.after");
    s->ended = clock_seconds();
    add_stall(s, s->ended - start);
    if (s->pending != NULL) return 0;
    tell_slow(r);
    return over(r, rc);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

void save_report(struct run *r) {
    struct saving *s = &r->saving;
    double sum = 0;
    if (s->n_stalls == 0) return;
    qsort(s->stall, (size_t)s->n_stalls, sizeof *s->stall, by_size);
    for (int64_t i = 0; i < s->n_stalls; i++) sum += s->stall[i];
    log_info("%lld saves; training stood still for %.3f s (p50), %.3f s (p99), %.3f s in all",
             (long long)s->n_stalls, s->stall[(s->n_stalls - 1) / 2],
             s->stall[(99 * s->n_stalls - 1) / 100], sum);
}
