/* Every call by which a rank changes a file during a save, or while a resume clears up what a crash
 * left, fails or ends the process, one after the other until none is left. Each time: the older
 * checkpoint keeps its bytes, what is found afterwards is whole, the code is one of doc/errors.md, the
 * next save goes through, nothing is left over. And a file system of every size near the need.
 * Ranks are processes without MPI (team.h). STRATA_LONG=1 takes every call, otherwise some. */
/* timeout: 7200 */
#include <sys/mount.h>
#include <sys/statvfs.h>

#include "ckpt_team.h"
#include "faults/io_shim.c"

static struct ckpt_case layout = {.at = {1, 1, 2}, .split = {CASE_LAYERS}, .sharded = true};

struct attempt {
    struct ckpt_job job;
    int victim;
    int64_t k;
    enum io_fault_kind kind;
    enum scene { SAVE, SAVE_ANEW, RESUME } scene; /* anew: step 1, which is there, once more */
    bool again;
};
static const char *const scene_name[] = {"save", "the same step again", "resume"};

/* A full disk that statvfs does not show. */
static bool plenty;
static fsblkcnt_t disk_blocks; /* 0: not told */
int statvfs(const char *path, struct statvfs *v) {
    struct stat st;
    memset(v, 0, sizeof *v);
    v->f_bsize = v->f_frsize = 4096;
    v->f_blocks = disk_blocks;
    v->f_bavail = v->f_bfree = (fsblkcnt_t)1 << 30;
    return plenty || stat(path, &st) == 0 ? 0 : -1;
}

#define FIRED 100000
/* Code of the save (or step found), + FIRED if the fault came; + 2 FIRED if the next save fails. */
static int64_t faulty(const struct grid *grid, void *arg) {
    struct attempt *a = arg;
    const struct group *world = grid_group(grid, GROUP_WORLD);
    if (group_rank(world) == a->victim) io_fault_arm(a->job.folder, a->k, a->kind);
    int64_t rc = a->scene == RESUME ? -case_load(grid, &a->job) : case_save(grid, &a->job);
    int64_t fired = io_fault_fired();
    io_fault_arm("", -1, IO_FAULT_EIO);
    error_clear();
    comm_broadcast(world, &fired, sizeof fired, a->victim);
    if (a->again) {
        a->job.step++;
        if (case_save(grid, &a->job) != 0) fired += 2;
        error_clear();
    }
    return rc + FIRED * fired;
}

static char template[2][400]; /* step 1, step 2 */
static int64_t template_digest;

static void make_templates(void) {
    for (int i = 0; i < 2; i++) {
        struct ckpt_job job = {.c = layout, .step = i + 1};
        snprintf(job.folder, sizeof job.folder, "%s/template", case_folder);
        CHECK(case_run(&job, case_save) == 0, "a save without faults");
        snprintf(template[i], sizeof template[i], "%s/iter_%07d", job.folder, i + 1);
    }
    template_digest = case_digest(template[0]);
}

static char *below_folder(const char *folder, const char *name) {
    static char text[4][500];
    static int next;
    next = (next + 1) % 4;
    snprintf(text[next], sizeof text[next], "%s/%s", folder, name);
    return text[next];
}

/* Step 1 is committed; for a resume a crash has left three kinds of rubbish. */
static void lay_out(const char *folder, enum scene scene) {
    case_remove(folder);
    case_copy(template[0], below_folder(folder, "iter_0000001"));
    if (scene != RESUME) return;
    case_copy(template[1], below_folder(folder, "iter_0000002.tmp-8-0"));
    case_copy(template[0], below_folder(folder, ".trash-iter_0000000"));
    case_copy(template[1], below_folder(folder, "iter_0000003.tmp-7-0"));
    unlink(below_folder(folder, "iter_0000003.tmp-7-0/manifest.json"));
}

/* Only committed folders, the advisory file, and marks. */
static bool clean(const char *folder) {
    struct name_list list;
    bool good = folder_list(folder, &list) == 0;
    for (int64_t i = 0; i < list.n; i++) {
        const char *name = list.name[i], *mark = strstr(name, ".refused");
        bool fine = strcmp(name, CKPT_LATEST) == 0 || ckpt_folder_step(name) > 0 ||
                    (mark && strcmp(mark, ".refused") == 0);
        if (!fine) printf("# left over: %s\n", name);
        good = good && fine;
    }
    name_list_free(&list);
    return good;
}

static bool legal_code(int64_t rc) {
    return rc == EXIT_CANT_CREATE || rc == EXIT_IO || rc == EXIT_NO_PERMISSION;
}

/* A rank that dies between the two renames of a replaced step leaves the older one set aside. */
static bool older_stands(const char *folder) {
    const char *names[] = {"iter_0000001", CKPT_ASIDE "iter_0000001"};
    for (int i = 0; i < 2; i++)
        if (folder_exists(below_folder(folder, names[i])))
            return case_digest(below_folder(folder, names[i])) == template_digest;
    return false;
}

/* What must hold whatever happened. `saved`: the step was reported as saved; a step that was saved
 * again may lack its index. */
static bool afterwards(struct attempt *a, bool saved) {
    struct ckpt_job job = a->job;
    job.other[0] = 0;
    bool good = older_stands(job.folder) || (a->scene == SAVE_ANEW && saved);
    if (!good) printf("# the older checkpoint has other bytes\n");
    int64_t step = case_run(&job, case_load);
    if (step < 1 || (saved && a->scene == SAVE && step < 2)) {
        printf("# found %lld afterwards\n", (long long)step);
        good = false;
    }
    job.step = 9; /* and a save after the restart */
    if (case_run(&job, case_save) != 0 || case_run(&job, case_load) != 9) good = false;
    return clean(job.folder) && good;
}

/* One call; *fired: there was a k-th. */
static bool one_fault(struct attempt *a, bool *fired, int64_t *failed) {
    lay_out(a->job.folder, a->scene);
    a->job.step = a->scene == SAVE ? 2 : 1;
    int64_t rc = case_run(&a->job, faulty);
    bool died = rc < -1000 && rc > -3000, good = rc > -3000, saved = false;
    *fired = died;
    if (died) {
        good = a->kind == IO_FAULT_KILL && rc == -2000 - SIGKILL;
    } else if (good) {
        bool next_fails = false;
        *fired = rc > FIRED / 2;
        if (rc > 3 * FIRED - FIRED / 2) next_fails = true;
        rc = rc - FIRED * ((rc + FIRED / 2) / FIRED);
        saved = a->scene != RESUME && rc == 0;
        good = !next_fails &&
               (a->scene == RESUME ? rc == -1 || rc == -2 || legal_code(rc) || rc == EXIT_BAD_DATA
                                   : rc == 0 || legal_code(rc));
        *failed += a->scene == RESUME ? rc != -2 : rc != 0;
    }
    good = afterwards(a, saved) && good;
    if (!good)
        printf("# %s at call %lld of rank %d, %s: %lld\n", io_fault_name(a->kind), (long long)a->k,
               a->victim, scene_name[a->scene], (long long)rc);
    return good;
}

static int64_t all_calls(int victim, enum io_fault_kind kind, enum scene scene,
                         enum ckpt_filter filter) {
    struct attempt a = {.job = {.c = layout}, .victim = victim, .kind = kind, .scene = scene};
    a.job.filter = filter;
    snprintf(a.job.folder, sizeof a.job.folder, "%s/run", case_folder);
    a.again = scene != RESUME && kind != IO_FAULT_KILL;
    int64_t tried = 0, failed = 0, stride = case_long() ? 1 : scene == RESUME ? 37 : 101;
    bool good = true, fired = true;
    for (a.k = case_long() ? 0 : (int)kind * 13 + 7 * victim; fired && tried < 100000;
         a.k += stride) {
        good = one_fault(&a, &fired, &failed) && good;
        tried += fired;
    }
    verdict(good && !fired && (tried > 0 || !case_long()),
            "%s, rank %d, filter %s, %s: %lld calls, %lld times it failed", scene_name[scene],
            victim, ckpt_filter_name(filter), io_fault_name(kind), (long long)tried,
            (long long)failed);
    return tried;
}

/* Set aside, and its successor is not whole: the next start puts it back. With a successor it goes. */
static void set_aside(void) {
    struct ckpt_job job = {.c = layout};
    snprintf(job.folder, sizeof job.folder, "%s/run", case_folder);
    for (int whole = 0; whole < 2; whole++) {
        case_remove(job.folder);
        case_copy(template[0], below_folder(job.folder, CKPT_ASIDE "iter_0000001"));
        case_copy(template[0], below_folder(job.folder, "iter_0000001.tmp-7-0"));
        if (!whole) unlink(below_folder(job.folder, "iter_0000001.tmp-7-0/manifest.json"));
        int64_t step = case_run(&job, case_load);
        bool good = step == 1 && clean(job.folder) &&
                    case_digest(below_folder(job.folder, "iter_0000001")) == template_digest;
        verdict(good, "a step set aside %s",
                whole ? "goes when its successor is whole" : "is put back");
    }
}

/* ---- a file system of exact size ---------------------------------------------------------------- */
/* Free bytes at which step 2 does not fit, then fits. The first verdict of a save counts. */
static bool one_size(const char *folder, int64_t bytes, enum ckpt_filter filter, int64_t *failed) {
    struct attempt a = {.job = {.c = layout, .filter = filter}};
    char options[64];
    snprintf(a.job.folder, sizeof a.job.folder, "%.280s/save", folder);
    snprintf(options, sizeof options, "size=%lld", (long long)bytes);
    if (mount("strata", folder, "tmpfs", 0, options) != 0) return false;
    case_copy(template[0], below_folder(a.job.folder, "iter_0000001"));
    a.job.step = 2;
    int64_t rc = case_run(&a.job, case_save), step = 0;
    bool good = (rc == 0 || rc == EXIT_IO) &&
                case_digest(below_folder(a.job.folder, "iter_0000001")) == template_digest;
    step = case_run(&a.job, case_load);
    good = good && step == (rc == 0 ? 2 : 1) && clean(a.job.folder);
    *failed += rc != 0;
    if (!good)
        printf("# %lld bytes: save %lld, found %lld\n", (long long)bytes, (long long)rc,
               (long long)step);
    CHECK(umount2(folder, MNT_DETACH) == 0, "umount: %s", strerror(errno));
    return good;
}

static void exact_sizes(void) {
    char folder[300];
    snprintf(folder, sizeof folder, "%s/small", case_folder);
    CHECK(dir_make(folder) == 0, "%s", error_text());
    if (mount("strata", folder, "tmpfs", 0, "size=65536") != 0) {
        printf("ok - a file system of exact size # SKIP mount: %s\n", strerror(errno));
        return;
    }
    umount2(folder, MNT_DETACH);
    int64_t bytes = 0, failed = 0, sizes = 0, step = case_long() ? 4096 : 131072;
    struct name_list list;
    CHECK(folder_list(template[1], &list) == 0, "%s", error_text());
    for (int64_t i = 0; i < list.n; i++) {
        struct stat st;
        if (stat(below_folder(template[1], list.name[i]), &st) == 0) bytes += st.st_size;
    }
    name_list_free(&list);
    bool good = true;
    plenty = true;
    /* both checkpoints need twice that; between one (and a page for each file) and a bit more */
    for (int64_t size = bytes + 65536; size < 2 * bytes + 300000; size += step)
        for (int i = 0; i < CKPT_FILTERS; i++, sizes++)
            good = one_size(folder, size, (enum ckpt_filter)i, &failed) && good;
    verdict(good && failed > 0 && failed < sizes,
            "a file system of every size around the need, all filters: %lld saves, %lld failed",
            (long long)sizes, (long long)failed);
}

/* 2^30 blocks are free. */
static void nearly_full(void) {
    bool told = false, good = true;
    disk_blocks = ((fsblkcnt_t)1 << 30) * 49 / 10;
    good = folder_free_space(case_folder, 1 << 20, 4, &told) == 0 && !told;
    disk_blocks = ((fsblkcnt_t)1 << 30) * 51 / 10;
    good = good && folder_free_space(case_folder, 1 << 20, 4, NULL) == 0;
    good = good && folder_free_space(case_folder, 1 << 20, 4, &told) == 0 && told;
    disk_blocks = 0;
    verdict(good, "a file system that is four fifths full is told of");
}

int main(void) {
    int64_t n = 0;
    case_begin();
    nearly_full();
    make_templates();
    set_aside();
    exact_sizes();
    for (int kind = 0; kind < IO_FAULT_KINDS; kind++) {
        /* one filter after the other; where every call is taken also all for one of the ranks */
        for (int i = 0; i < CKPT_FILTERS; i++)
            for (int victim = 0; victim < 2; victim++)
                if (case_long() ? i == 0 || victim == (kind + i) % 2
                                : i == (kind + victim) % CKPT_FILTERS)
                    n += all_calls(victim, (enum io_fault_kind)kind, SAVE, (enum ckpt_filter)i);
        n += all_calls(0, (enum io_fault_kind)kind, SAVE_ANEW, CKPT_FILTER_NONE);
        n += all_calls(0, (enum io_fault_kind)kind, RESUME, CKPT_FILTER_NONE);
    }
    printf("# %lld calls went wrong\n", (long long)n);
    return case_end();
}
