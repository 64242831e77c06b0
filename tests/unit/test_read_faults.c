/* A storage error is not damage. Every call by which a rank reads during a resume fails, one after the
 * other until none is left: once, or from there on for ever. Whatever happens, nothing is marked or
 * changed, no older checkpoint is taken in place of the newest and no run starts anew: the newest is
 * found, or the start ends with 74 (77 where a permission is missing). Healthy storage afterwards gives
 * the newest. Ranks are processes without MPI (team.h). STRATA_LONG=1 takes every call, otherwise some. */
/* timeout: 1800 */
#include "checkpoint_tools.h"
#include "ckpt_team.h"
#include "faults/read_shim.c"

/* Tries again are counted and not waited for. */
int nanosleep(const struct timespec *pause, struct timespec *left) {
    (void)pause;
    (void)left;
    return 0;
}

static const struct failure {
    const char *name;
    int error, code;
} failure[] = {{"EIO", EIO, EXIT_IO},
               {"ESTALE", ESTALE, EXIT_IO},
               {"ETIMEDOUT", ETIMEDOUT, EXIT_IO},
               {"ENOMEM", ENOMEM, EXIT_IO},
               {"EMFILE", EMFILE, EXIT_IO},
               {"EACCES", EACCES, EXIT_NO_PERMISSION}};

struct attempt {
    struct ckpt_job job;
    int victim;
    int64_t k, times;
    const struct failure *f;
    bool tools; /* the commands in place of a resume */
};

#define FIRED 100000
/* verify, or the choice of the newest, by one rank. */
static int64_t by_tools(const struct attempt *a) {
    char *dir = NULL, *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    int rc = ckpt_verify(a->job.folder, true, true, to);
    if (!rc) {
        char *ini = NULL;
        rc = ckpt_used_ini(a->job.folder, &ini, &dir);
        free(ini);
    }
    int64_t step = rc ? -rc : ckpt_folder_step(strrchr(dir, '/') + 1);
    fclose(to);
    free(text);
    free(dir);
    return step;
}

/* Step found or -code, + FIRED if the fault came. */
static int64_t faulty(const struct grid *grid, void *arg) {
    struct attempt *a = arg;
    const struct group *world = grid_group(grid, GROUP_WORLD);
    if (group_rank(world) == a->victim) read_fault_arm(a->job.folder, a->k, a->times, a->f->error);
    int64_t rc = 0;
    if (!a->tools) rc = case_load(grid, &a->job);
    if (a->tools && group_rank(world) == 0) rc = by_tools(a);
    if (a->tools) comm_broadcast(world, &rc, sizeof rc, 0);
    int64_t fired = read_fault_fired();
    if (fired && getenv("SHOW_CALLS")) printf("# %s: %s\n", read_fault_call(), error_text());
    read_fault_arm("", -1, 0, 0);
    error_clear();
    comm_broadcast(world, &fired, sizeof fired, a->victim);
    return rc + FIRED * fired;
}

/* All that is in the folder. */
static int64_t digest(const struct ckpt_job *job) {
    char dir[400];
    struct name_list list;
    CHECK(folder_list(job->folder, &list) == 0, "%s", error_text());
    int64_t sum = list.n;
    name_list_free(&list);
    for (int i = 1; i <= 2; i++) {
        snprintf(dir, sizeof dir, "%s/iter_%07d", job->folder, i);
        sum = 31 * sum + case_digest(dir);
    }
    return sum;
}

static bool one_fault(struct attempt *a, int64_t before, bool *fired, int64_t *failed) {
    int64_t rc = case_run(&a->job, faulty);
    *fired = rc > FIRED / 2;
    if (*fired) rc -= FIRED;
    *failed += rc != 2;
    bool good = rc == 2 || (*fired && (rc == -a->f->code || rc == -EXIT_IO));
    if (digest(&a->job) != before) {
        printf("# the folder was changed\n");
        good = false;
    }
    if (good && rc != 2 && case_run(&a->job, case_load) != 2) {
        printf("# not found afterwards\n");
        good = false;
    }
    if (!good)
        printf("# %s at call %lld of rank %d, %lld times: %lld\n", a->f->name, (long long)a->k,
               a->victim, (long long)a->times, (long long)rc);
    return good;
}

static void all_calls(struct attempt a, int64_t before, const char *what) {
    int64_t tried = 0, failed = 0;
    bool good = true, fired = true;
    /* The choice of a checkpoint comes first: its calls are taken more densely than those of reading. */
    for (a.k = case_long() ? 0 : a.f - failure; fired && tried < 100000;
         a.k += case_long() ? 1 : 2 + a.k / 2) {
        good = one_fault(&a, before, &fired, &failed) && good;
        tried += fired;
    }
    verdict(good && !fired && tried > 0 && (a.times == 1 || failed > 0),
            "%s, rank %d, %s %s: %lld calls, %lld ended the start", what, a.victim, a.f->name,
            a.times == 1 ? "once" : "from then on", (long long)tried, (long long)failed);
}

int main(void) {
    struct attempt a = {.job = {.c = {.at = {1, 1, 2}, .split = {CASE_LAYERS}, .sharded = true}}};
    static const struct scene {
        const char *name;
        enum ckpt_filter filter;
        enum ckpt_verify verify;
        int victim;
        bool tools;
    } scene[] = {{"resume", CKPT_FILTER_NONE, CKPT_VERIFY_ALL, 0, false},
                 {"resume", CKPT_FILTER_NONE, CKPT_VERIFY_USED, 1, false},
                 {"resume, deflate", CKPT_FILTER_DEFLATE, CKPT_VERIFY_SIZE, 0, false},
                 {"commands", CKPT_FILTER_FLETCHER32, CKPT_VERIFY_ALL, 0, true}};
    case_begin();
    for (size_t i = 0; i < sizeof scene / sizeof *scene; i++) {
        const struct scene *s = &scene[i];
        snprintf(a.job.folder, sizeof a.job.folder, "%s/scene%zu", case_folder, i);
        a.job.filter = s->filter;
        a.job.verify = s->verify;
        a.victim = s->victim;
        a.tools = s->tools;
        for (a.job.step = 1; a.job.step <= 2; a.job.step++)
            CHECK(case_run(&a.job, case_save) == 0, "a save without faults");
        a.job.step = 0;
        int64_t before = digest(&a.job);
        for (size_t f = 0; f < sizeof failure / sizeof *failure; f++) {
            a.f = &failure[f];
            a.times = 1;
            if (case_long() || f == (2 * i) % 6) all_calls(a, before, s->name);
            a.times = INT64_MAX;
            if (case_long() || f % 3 == i % 3) all_calls(a, before, s->name);
        }
    }
    return case_end();
}
