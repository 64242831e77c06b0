/* Ranks without MPI: a team of forked processes with a grid between them, in memory they share. It
 * takes the place of comm for all that checkpoint calls, so a program can have teams of any layout
 * one after the other, let a rank die and look at what is left. Include it in one file. */
#ifndef STRATA_TEAM_H
#define STRATA_TEAM_H

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "comm.h"

#define TEAM_MAX 8
#define TEAM_SLOT ((size_t)1 << 20) /* bytes a rank shows the others at once */

struct team_layout {
    int tp, pp, dp;
    int node[TEAM_MAX]; /* machine of each rank */
};
struct mail {      /* of one sender, on its way */
    atomic_int to; /* 1 + receiver; 0: none */
    char bytes[TEAM_SLOT];
};
struct team { /* shared */
    struct team_layout layout;
    pthread_barrier_t barrier[GROUP_COUNT][TEAM_MAX]; /* of the group whose lowest rank is that */
    int64_t result[TEAM_MAX];
    char slot[TEAM_MAX][TEAM_SLOT];
    struct mail mail[TEAM_MAX];
};
struct group {
    struct team *team;
    enum group_id id;
    int size, rank, member[TEAM_MAX];
};
struct grid {
    struct team *team;
    struct group group[GROUP_COUNT];
};

static inline int team_size(const struct team_layout *l) {
    return l->tp * l->pp * l->dp;
}
int grid_rank_at(const struct grid *grid, int tp, int pp, int dp) {
    const struct team_layout *l = &grid->team->layout;
    return tp + l->tp * (pp + l->pp * dp);
}
const struct group *grid_group(const struct grid *grid, enum group_id id) {
    return &grid->group[id];
}
int group_rank(const struct group *g) {
    return g->rank;
}
int group_size(const struct group *g) {
    return g->size;
}
bool group_measuring(const struct group *g) {
    (void)g;
    return false;
}
int grid_node(const struct grid *grid, int world_rank) {
    return grid->team->layout.node[world_rank];
}
/* For the planning ahead of commands that no team runs. */
struct grid *grid_create_measuring(int tensor, int pipeline, int data, bool tp_pp_dp_mapping,
                                   int tp, int pp, int dp) {
    CHECK(false, "%d %d %d %d %d %d %d", tensor, pipeline, data, tp_pp_dp_mapping, tp, pp, dp);
}
void grid_destroy(struct grid *grid) {
    free(grid);
}

/* Ranks are tp fastest, then pp, then dp; a group is the ranks that share the other coordinates. */
static void team_fill_group(struct grid *grid, enum group_id id, int rank) {
    const struct team_layout *l = &grid->team->layout;
    struct group *g = &grid->group[id];
    *g = (struct group){.team = grid->team, .id = id};
    bool tp = id == GROUP_TP || id == GROUP_MODEL || id == GROUP_WORLD;
    bool pp = id == GROUP_PP || id == GROUP_MODEL || id == GROUP_WORLD;
    bool dp = id == GROUP_DP || id == GROUP_WORLD;
    for (int r = 0; r < team_size(l); r++) {
        if (!tp && r % l->tp != rank % l->tp) continue;
        if (!pp && r / l->tp % l->pp != rank / l->tp % l->pp) continue;
        if (!dp && r / (l->tp * l->pp) != rank / (l->tp * l->pp)) continue;
        if (r == rank) g->rank = g->size;
        g->member[g->size++] = r;
    }
}

/* ---- collectives: show, meet, look, meet --------------------------------------------------------- */
static void team_meet(const struct group *g) {
    if (g->size > 1) pthread_barrier_wait(&g->team->barrier[g->id][g->member[0]]);
}
static void team_show(const struct group *g, const void *bytes, size_t n) {
    CHECK(n <= TEAM_SLOT, "%zu bytes", n);
    memcpy(g->team->slot[g->member[g->rank]], bytes, n);
    team_meet(g);
}
void comm_allreduce_i64(const struct group *g, int64_t *values, int64_t n, enum reduce_op op) {
    team_show(g, values, (size_t)n * sizeof *values);
    for (int r = 0; r < g->size; r++) {
        const int64_t *theirs = (const int64_t *)(const void *)g->team->slot[g->member[r]];
        for (int64_t i = 0; i < n; i++) {
            int64_t so_far = r == 0 ? theirs[i] : values[i];
            if (r > 0 && op == REDUCE_SUM) so_far += theirs[i];
            if (r > 0 && op == REDUCE_MAX && theirs[i] > so_far) so_far = theirs[i];
            values[i] = so_far;
        }
    }
    team_meet(g);
}
void comm_broadcast(const struct group *g, void *host, size_t bytes, int root) {
    for (size_t at = 0; at < bytes; at += TEAM_SLOT) {
        size_t n = bytes - at < TEAM_SLOT ? bytes - at : TEAM_SLOT;
        if (g->rank == root) memcpy(g->team->slot[g->member[root]], (char *)host + at, n);
        team_meet(g);
        if (g->rank != root) memcpy((char *)host + at, g->team->slot[g->member[root]], n);
        team_meet(g);
    }
}
void comm_gather(const struct group *g, const void *mine, size_t bytes, void *all) {
    team_show(g, mine, bytes);
    for (int r = 0; r < g->size; r++)
        memcpy((char *)all + (size_t)r * bytes, g->team->slot[g->member[r]], bytes);
    team_meet(g);
}

/* ---- from one to another ------------------------------------------------------------------------- */
static void mail_await(const struct mail *m, int state) {
    const struct timespec pause = {.tv_nsec = 20000};
    while (atomic_load(&m->to) != state) nanosleep(&pause, NULL);
}
void comm_pass(const struct group *g, int from, int to, void *host, size_t bytes) {
    struct mail *m = &g->team->mail[g->member[from]];
    for (size_t at = 0; at < bytes; at += TEAM_SLOT) {
        size_t n = bytes - at < TEAM_SLOT ? bytes - at : TEAM_SLOT;
        mail_await(m, g->rank == from ? 0 : 1 + to);
        if (g->rank == from)
            memcpy(m->bytes, (char *)host + at, n);
        else
            memcpy((char *)host + at, m->bytes, n);
        atomic_store(&m->to, g->rank == from ? 1 + to : 0);
    }
}

/* ---- running ---------------------------------------------------------------------------------------- */
static struct team *team_create(const struct team_layout *l) {
    struct team *t = mmap(NULL, sizeof *t, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(t != MAP_FAILED, "mmap: %s", strerror(errno));
    t->layout = *l;
    struct grid grid = {.team = t};
    pthread_barrierattr_t shared;
    pthread_barrierattr_init(&shared);
    pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
    for (int r = 0; r < team_size(l); r++)
        for (int id = 0; id < GROUP_COUNT; id++) {
            team_fill_group(&grid, (enum group_id)id, r);
            const struct group *g = &grid.group[id];
            if (g->rank == 0) pthread_barrier_init(&t->barrier[id][r], &shared, (unsigned)g->size);
        }
    pthread_barrierattr_destroy(&shared);
    return t;
}

static void team_work(struct team *t, int rank, int64_t (*work)(const struct grid *, void *),
                      void *arg) {
    static struct grid grid;
    grid.team = t;
    for (int id = 0; id < GROUP_COUNT; id++) team_fill_group(&grid, (enum group_id)id, rank);
    log_set_rank(1 + rank); /* rank 0 would tell what goes well */
    t->result[rank] = work(&grid, arg);
    fflush(NULL);
    _exit(0);
}

/* Waits for all. Once one has died, the others get `patience` seconds to run into it, as under a
 * launcher. The wait status of the one that died first, or 0. */
static int team_wait(const pid_t *child, int n, double patience) {
    int status = 0, left = n;
    bool done[TEAM_MAX] = {false};
    double end = -1;
    while (left > 0) {
        int s, moved = 0;
        for (int r = 0; r < n; r++) {
            if (done[r] || waitpid(child[r], &s, WNOHANG) != child[r]) continue;
            done[r] = true;
            left--;
            moved++;
            if (s != 0 && end < 0) {
                status = s;
                end = clock_seconds() + patience;
            }
        }
        for (int r = 0; r < n && end > 0 && clock_seconds() > end; r++)
            if (!done[r]) kill(child[r], SIGKILL);
        if (left > 0 && moved == 0) nanosleep(&(struct timespec){.tv_nsec = 300000}, NULL);
    }
    return status;
}

/* Runs work on all ranks of a layout; what each returned is in result (or NULL). 0, or the wait
 * status of the first that died. */
static inline int team_run(const struct team_layout *l, double patience,
                           int64_t (*work)(const struct grid *, void *), void *arg,
                           int64_t *result) {
    struct team *t = team_create(l);
    pid_t child[TEAM_MAX] = {0};
    int n = team_size(l);
    CHECK(n <= TEAM_MAX, "%d ranks", n);
    fflush(NULL);
    for (int r = 0; r < n; r++) {
        child[r] = fork();
        CHECK(child[r] >= 0, "fork: %s", strerror(errno));
        if (child[r] == 0) team_work(t, r, work, arg);
    }
    int status = team_wait(child, n, patience);
    if (result != NULL) memcpy(result, t->result, (size_t)n * sizeof *result);
    munmap(t, sizeof *t);
    return status;
}

#endif
