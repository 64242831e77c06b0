/* A second folder for what cannot be saved in the first: every call by which a rank changes the first
 * one fails, one after the other, at once or while training goes on. Each time the save ends well, in
 * one of the two; the older checkpoint keeps its bytes; a resume looks into both and takes the newest.
 * Ranks are processes without MPI (team.h). STRATA_LONG=1 takes every call, otherwise some. */
/* timeout: 1800 */
#include <time.h>

#include "ckpt_team.h"
#include "faults/io_shim.c"

struct attempt {
    struct ckpt_job job; /* folder: the parent of `first` and `second` */
    int victim;
    int64_t k;
    enum io_fault_kind kind;
    const char *armed; /* below folder; "" for both */
    bool beside, stolen;
};
static const struct ckpt_case layout = {.at = {1, 1, 2}, .split = {CASE_LAYERS}, .sharded = true};

static struct ckpt_settings both(const struct ckpt_job *job, char path[2][400]) {
    snprintf(path[0], 400, "%s/first", job->folder);
    snprintf(path[1], 400, "%s/second", job->folder);
    struct ckpt_settings s = case_settings(job, path[0]);
    s.save_second = path[1];
    return s;
}

static int save_beside(const struct ckpt_settings *s, struct model *m, const struct group *world) {
    size_t bytes = ckpt_snapshot_bytes(&m->state, true);
    const struct timespec pause = {.tv_nsec = 1000000};
    char *host = xmalloc(bytes);
    struct ckpt_pending *p;
    int rc = ckpt_save_begin(s, &m->state, host, bytes, &p);
    model_fill(m, 77); /* the next step */
    while (rc == 0 && p != NULL) {
        int64_t busy = ckpt_save_busy(p);
        comm_allreduce_i64(world, &busy, 1, REDUCE_MAX);
        if (!busy) rc = ckpt_save_next(&p);
        nanosleep(&pause, NULL);
    }
    free(host);
    return rc;
}

#define FIRED 100000
/* Code of the save, + FIRED if the fault came. */
static int64_t save_faulty(const struct grid *grid, void *arg) {
    struct attempt *a = arg;
    const struct group *world = grid_group(grid, GROUP_WORLD);
    char path[2][400], armed[400];
    struct ckpt_settings s = both(&a->job, path);
    struct ckpt_lock lock[2];
    const char *saved_in = NULL;
    struct model m;
    if (ckpt_lock(path[0], grid, &lock[0]) || ckpt_lock(path[1], grid, &lock[1])) return 999;
    s.lock = &lock[0];
    s.lock_second = &lock[1];
    case_model(&m, &a->job.c, grid);
    model_fill(&m, (int)a->job.step);
    m.state.at = case_counters(a->job.step);
    m.state.history = case_rows;
    m.state.n_history = 2;
    m.state.saved_in = &saved_in;
    snprintf(armed, sizeof armed, "%s%s", a->job.folder, a->armed);
    if (a->stolen && group_rank(world) == 0)
        CHECK(file_write_atomic(lock[0].path, "nonce ff\n", 9) == 0, "%s", error_text());
    if (group_rank(world) == a->victim) io_fault_arm(armed, a->k, a->kind);
    int64_t rc = a->beside ? save_beside(&s, &m, world) : ckpt_save(&s, &m.state);
    int64_t fired = io_fault_fired();
    io_fault_arm("", -1, IO_FAULT_EIO);
    if ((rc == 0) != (error_count() == 0 && saved_in != NULL)) rc = 1000;
    error_clear();
    comm_broadcast(world, &fired, sizeof fired, a->victim);
    ckpt_unlock(&lock[1]);
    ckpt_unlock(&lock[0]);
    error_clear();
    model_free(&m);
    return rc + FIRED * fired;
}

/* As case_load, from both folders. */
static int64_t load_both(const struct grid *grid, void *arg) {
    const struct ckpt_job *job = arg;
    char path[2][400];
    struct ckpt_settings s = both(job, path);
    struct ckpt_found found;
    struct model m;
    case_model(&m, &job->c, grid);
    int rc = ckpt_resume(&s, &m.state, &found);
    if (rc || !found.any) return -rc;
    int64_t wrong = model_wrong(&m, (int)found.step, true);
    return wrong ? -1000 - wrong : found.step;
}

static int64_t digest(const struct attempt *a, const char *name) {
    char path[500];
    snprintf(path, sizeof path, "%s/%s", a->job.folder, name);
    return case_digest(path);
}

static int64_t old_digest;
static int64_t run(struct attempt *a) {
    case_remove(a->job.folder);
    CHECK(dir_make(a->job.folder) == 0, "%s", error_text());
    struct attempt before = *a;
    before.k = -1;
    before.stolen = before.beside = false;
    before.job.step = 1;
    CHECK(case_run(&before.job, save_faulty) == 0, "a save without faults");
    old_digest = digest(a, "first/iter_0000001");
    a->job.step = 2;
    return case_run(&a->job, save_faulty);
}

/* Where step 2 is: 1 first, 2 second, 0 nowhere. */
static int place(const struct attempt *a) {
    return digest(a, "first/iter_0000002") >= 0 ? 1 : digest(a, "second/iter_0000002") >= 0 ? 2 : 0;
}

static bool newest_is(struct attempt *a, int64_t step) {
    bool good = digest(a, "first/iter_0000001") == old_digest;
    a->job.step = step;
    return case_run(&a->job, load_both) == step && good;
}

/* Every (or some) k until none fires. */
static void faults_of_the_first(struct attempt a, const char *name) {
    int64_t fired = 0, in_second = 0, stride = case_long() ? 1 : 23;
    bool good = true;
    for (a.k = a.victim;; a.k += stride) {
        int64_t rc = run(&a);
        if (rc == 0) break;
        int where = place(&a);
        bool fine = rc == FIRED && where > 0 && newest_is(&a, 2);
        if (!fine) printf("# call %lld: %lld, in %d\n", (long long)a.k, (long long)rc, where);
        good = good && fine;
        fired++;
        in_second += where == 2;
    }
    verdict(good && in_second > 2 && (a.victim == 1 || fired > in_second),
            "%s, rank %d%s: %lld calls, %lld times the second folder", name, a.victim,
            a.beside ? ", beside the training" : "", (long long)fired, (long long)in_second);
}

static void both_fail(struct attempt a) {
    a.armed = "";
    a.k = 30;
    a.kind = IO_FAULT_FULL;
    int64_t rc = run(&a);
    verdict(rc == FIRED + EXIT_IO && place(&a) == 0 && newest_is(&a, 1),
            "a full disk under both%s: %lld, the older one stands",
            a.beside ? ", beside the training" : "", (long long)rc % FIRED);
}

static void a_lost_lock_ends_it(struct attempt a) {
    a.stolen = true;
    a.k = -1;
    int64_t rc = run(&a);
    verdict(rc == EXIT_NO_PERMISSION && place(&a) == 0,
            "a run that lost the lock writes to neither%s",
            a.beside ? ", beside the training" : "");
}

int main(void) {
    case_begin();
    struct attempt a = {.job = {.c = layout}, .armed = "/first"};
    snprintf(a.job.folder, sizeof a.job.folder, "%s/both", case_folder);
    for (int beside = 0; beside < 2; beside++) {
        a.beside = beside != 0;
        for (a.victim = 0; a.victim < 2; a.victim++) {
            a.kind = IO_FAULT_EIO;
            faults_of_the_first(a, "EIO");
            a.kind = IO_FAULT_FULL;
            faults_of_the_first(a, "a disk that is full from a call on");
        }
        a.victim = 0;
        both_fail(a);
        a_lost_lock_ends_it(a);
    }
    return case_end();
}
