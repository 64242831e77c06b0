/* A save while training goes on: the same bytes as a synchronous one, of the state at its beginning;
 * failures are agreed on and leave nothing behind. */
/* ranks: 1 2 4 */
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ckpt_model.h"
#include "verdict.h"

static char folder[256], path[4][512];
static struct grid *grid;
static struct backend *be;
static pthread_mutex_t hdf5_lock = PTHREAD_MUTEX_INITIALIZER;

static const struct group *world(void) {
    return grid_group(grid, GROUP_WORLD);
}

static const char *path_in(int slot, const char *name) {
    snprintf(path[slot], sizeof path[slot], "%s/%s", folder, name);
    return path[slot];
}

/* "diff -r A B", "rm -rf A" */
static bool run_program(char *const argv[]) {
    pid_t pid;
    int status;
    return posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) == 0 &&
           waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void remove_folder(const char *at) {
    CHECK(run_program((char *[]){"rm", "-rf", (char *)(uintptr_t)at, NULL}), "%s", at);
}

/* writers = node; one machine: ranks_per_writer makes several of it. */
static bool shared_files;
static int64_t ranks_per_file;

static struct ckpt_settings settings_in(const char *save) {
    struct ckpt_settings s = model_settings(save);
    s.hdf5_lock = &hdf5_lock;
    s.writers_node = shared_files;
    s.ranks_per_writer = ranks_per_file;
    return s;
}

static void build(struct model *m, int64_t step, bool sharded) {
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP);
    const struct group *dp = grid_group(grid, GROUP_DP);
    model_build(m, be, (int[]){group_size(tp), group_rank(tp)},
                (int[]){group_size(pp), group_rank(pp)}, (int[]){group_size(dp), group_rank(dp)},
                sharded);
    m->state.grid = grid;
    model_fill(m, (int)step);
    m->state.at = (struct ckpt_counters){.step = step, .consumed_samples = 8 * step};
    m->state.used_ini = "[run]\nfamily = llava\n";
}

/* As the trainer does, step by step; the number of steps it took. */
static int finish(struct ckpt_pending *p, int *rc) {
    int steps = 0;
    *rc = 0;
    while (p != NULL) {
        int64_t busy = ckpt_save_busy(p);
        const struct timespec pause = {.tv_nsec = 1000000};
        comm_allreduce_i64(world(), &busy, 1, REDUCE_MAX);
        if (!busy) *rc = ckpt_save_next(&p);
        nanosleep(&pause, NULL);
        steps++;
    }
    return steps;
}

static int save_beside(const struct ckpt_settings *s, struct model *m, int *steps) {
    size_t bytes = model_room(s, &m->state);
    char *host = xmalloc(bytes);
    struct ckpt_pending *p;
    int rc = ckpt_save_begin(s, &m->state, host, bytes, &p);
    model_fill(m, 77); /* the next step */
    m->state.at.step = 77;
    if (rc == 0) *steps = finish(p, &rc);
    free(host);
    return rc;
}

static void the_same_bytes(bool sharded, enum ckpt_filter filter) {
    char name[2][32];
    snprintf(name[0], sizeof name[0], "now-%d-%d", sharded, (int)filter);
    snprintf(name[1], sizeof name[1], "beside-%d-%d", sharded, (int)filter);
    struct ckpt_settings now = settings_in(path_in(0, name[0]));
    struct ckpt_settings beside = settings_in(path_in(1, name[1]));
    struct model m;
    now.filter = beside.filter = filter;
    int steps = 0;
    build(&m, 3, sharded);
    bool good = ckpt_save(&now, &m.state) == 0;
    good = good && save_beside(&beside, &m, &steps) == 0 && steps >= 2;
    model_free(&m);
    comm_barrier(world());
    if (comm_world_rank() == 0) {
        char *const argv[] = {"diff", "-r", path[0], path[1], NULL};
        good = run_program(argv) && good;
    }
    verdict(grid, good, "the same bytes%s, filter %d", sharded ? ", sharded states" : "",
            (int)filter);
    build(&m, 0, sharded);
    struct ckpt_found found;
    good = ckpt_resume(&beside, &m.state, &found) == 0 && found.any && found.step == 3 &&
           m.state.at.step == 3 && model_wrong(&m, 3, true) == 0;
    free((void *)(uintptr_t)m.state.history);
    ckpt_found_free(&found);
    model_free(&m);
    verdict(grid, good, "and they load");
    comm_barrier(world());
    if (comm_world_rank() == 0) {
        remove_folder(path[0]);
        remove_folder(path[1]);
    }
    comm_barrier(world());
}

/* A measuring grid, as the planner has it, counts the same bytes. */
static void the_plan_knows_the_copy(void) {
    struct model m;
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP);
    const struct group *dp = grid_group(grid, GROUP_DP);
    build(&m, 3, true);
    size_t taken = ckpt_snapshot_bytes(&m.state, true);
    struct grid *measuring =
        grid_create_measuring(group_size(tp), group_size(pp), group_size(dp), false, group_rank(tp),
                              group_rank(pp), group_rank(dp));
    m.state.grid = measuring;
    bool good = ckpt_snapshot_bytes(&m.state, true) == taken &&
                ckpt_snapshot_bytes(&m.state, false) < taken;
    grid_destroy(measuring);
    model_free(&m);
    verdict(grid, good, "the plan knows the copy");
}

/* The temporary folder goes away under the writers. */
static void a_failure_is_agreed_on(void) {
    struct ckpt_settings s = settings_in(path_in(0, "fails"));
    struct model m;
    int steps = 0, rc;
    build(&m, 3, false);
    bool good = ckpt_save(&s, &m.state) == 0;
    m.state.at.step = 4;
    size_t bytes = model_room(&s, &m.state);
    char *host = xmalloc(bytes);
    struct ckpt_pending *p;
    good = good && ckpt_save_begin(&s, &m.state, host, bytes, &p) == 0;
    char *tmp = xasprintf("%s/iter_0000004.tmp-pid%ld-0", s.save, (long)getpid());
    if (comm_world_rank() == 0) remove_folder(tmp);
    steps = finish(p, &rc);
    good = good && steps > 0 && rc != 0 && error_count() > 0;
    error_clear();
    free(tmp);
    free(host);
    struct ckpt_found found;
    good = ckpt_find(&s, grid, &found) == 0 && found.any && found.step == 3 && good;
    ckpt_found_free(&found);
    good = save_beside(&s, &m, &steps) == 0 && good; /* and the next one is well */
    good = ckpt_find(&s, grid, &found) == 0 && found.step == 4 && good;
    ckpt_found_free(&found);
    model_free(&m);
    verdict(grid, good, "a failure is agreed on, the one before stands, the next is well");
    comm_barrier(world());
    if (comm_world_rank() == 0) remove_folder(s.save);
    comm_barrier(world());
}

/* As many files as there are writers, found by the name of the last one. */
static void files_of_machines(int64_t together) {
    int n = comm_world_size();
    int files = together == 0 ? 1 : (n + (int)together - 1) / (int)together;
    shared_files = true;
    ranks_per_file = together;
    struct ckpt_settings s = settings_in(path_in(2, "files"));
    struct model m;
    build(&m, 3, false);
    bool good = ckpt_save(&s, &m.state) == 0;
    char *last =
        xasprintf("%s/iter_0000003/iter_0000003-shard-%05d-of-%05d.h5", s.save, files - 1, files);
    good = good && access(last, F_OK) == 0;
    model_free(&m);
    free(last);
    verdict(grid, good, "%d ranks, %lld to a file: %d files", n, (long long)together, files);
    comm_barrier(world());
    if (comm_world_rank() == 0) remove_folder(s.save);
    comm_barrier(world());
    the_same_bytes(true, CKPT_FILTER_DEFLATE);
    a_failure_is_agreed_on();
    shared_files = false;
    ranks_per_file = 0;
}

static void beginning_fails(void) {
    struct ckpt_settings s = settings_in("/proc/strata-cannot-be-made");
    struct model m;
    struct ckpt_pending *p = (void *)&m;
    char host[1];
    build(&m, 3, false);
    int rc = ckpt_save_begin(&s, &m.state, host, 1, &p);
    bool good = (rc == EXIT_CANT_CREATE || rc == EXIT_NO_PERMISSION) && p == NULL;
    if (good) error_clear();
    model_free(&m);
    verdict(grid, good, "a beginning that fails leaves nothing pending");
}

/* Another run takes the lock over while this one writes: nothing gets a name any more. */
static void a_lost_lock_stops_the_commit(void) {
    struct ckpt_settings s = settings_in(path_in(0, "fenced"));
    struct ckpt_lock lock;
    struct model m;
    struct ckpt_pending *p = NULL;
    int rc = -1;
    build(&m, 3, false);
    bool good = ckpt_lock(s.save, grid, &lock) == 0;
    s.lock = &lock;
    good = ckpt_save(&s, &m.state) == 0 && good;
    m.state.at.step = 4;
    size_t bytes = model_room(&s, &m.state);
    char *host = xmalloc(bytes);
    good = ckpt_save_begin(&s, &m.state, host, bytes, &p) == 0 && good;
    char *taken = xasprintf("%s/run.lock", s.save);
    if (comm_world_rank() == 0) CHECK(file_write_atomic(taken, "nonce ff\n", 9) == 0, "%s", taken);
    comm_barrier(world());
    if (p != NULL) finish(p, &rc);
    good = rc == EXIT_NO_PERMISSION && strstr(error_text(), "another run writes there") && good;
    error_clear();
    char *gone = xasprintf("%s/iter_0000004", s.save);
    good = access(gone, F_OK) != 0 && good;
    ckpt_unlock(&lock); /* not ours: it stays */
    error_clear();
    good = access(taken, F_OK) == 0 && good;
    free(gone);
    free(taken);
    free(host);
    model_free(&m);
    verdict(grid, good, "a lock that is lost while writing stops the commit");
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    int n = comm_world_size(), tp = n == 4 ? 2 : 1, pp = n > 1 ? 2 : 1;
    if (grid_create(tp, pp, false, 5, &grid) != 0) error_exit();
    if (backend_create_cpu(DTYPE_F32, 1, n, &be) != 0) error_exit();
    const char *tmp = getenv("TEST_TMP");
    snprintf(folder, sizeof folder, "%s/strata-async-XXXXXX", tmp ? tmp : "/tmp");
    if (comm_world_rank() == 0) CHECK(mkdtemp(folder), "%s", folder);
    comm_broadcast(world(), folder, sizeof folder, 0);
    the_same_bytes(false, CKPT_FILTER_NONE);
    the_same_bytes(true, CKPT_FILTER_NONE);
    the_same_bytes(false, CKPT_FILTER_DEFLATE);
    the_same_bytes(true, CKPT_FILTER_FLETCHER32);
    the_plan_knows_the_copy();
    a_failure_is_agreed_on();
    files_of_machines(0);
    if (n == 4) files_of_machines(3);
    beginning_fails();
    a_lost_lock_stops_the_commit();
    comm_barrier(world());
    if (comm_world_rank() == 0 && test_failures == 0) remove_folder(folder);
    backend_destroy(be);
    grid_destroy(grid);
    comm_finalize();
    return test_failures != 0;
}
