/* checkpoint under MPI: saved and loaded bit for bit in the same and in any other layout; damage
 * found, named and answered by the next older one; failed writing leaves everything as it was. */
/* ranks: 1 2 3 4 6 */
/* timeout: 300 */
#include <errno.h>
#include <ftw.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../src/checkpoint/ckpt_impl.h"
#include "ckpt_model.h"
#include "verdict.h"

static char folder[256];
static struct backend *be;

#define MAX_LAYOUTS 16
struct layout {
    int tp, pp, dp;
    struct grid *grid;
};
static struct layout layout[MAX_LAYOUTS];
static int n_layouts;

static void barrier(void) {
    comm_barrier(grid_group(layout[0].grid, GROUP_WORLD));
}

static void build(struct model *m, const struct layout *l, bool sharded) {
    const struct group *tp = grid_group(l->grid, GROUP_TP), *pp = grid_group(l->grid, GROUP_PP);
    const struct group *dp = grid_group(l->grid, GROUP_DP);
    model_build(m, be, (int[]){group_size(tp), group_rank(tp)},
                (int[]){group_size(pp), group_rank(pp)}, (int[]){group_size(dp), group_rank(dp)},
                sharded);
    m->state.grid = l->grid;
}

/* <folder>/<name>, one buffer per slot. */
static const char *path_in(int slot, const char *name) {
    static char text[4][512];
    snprintf(text[slot], sizeof text[slot], "%s/%s", folder, name);
    return text[slot];
}

static const struct ckpt_row rows[3] = {
    {1, 5.5, 1e-3, 2.25}, {2, 5.25, 9e-4, 2.0}, {3, 5, 8e-4, 1}};
static const struct ckpt_key keys[3] = {{"run", "family", "llava", false},
                                        {"training", "seed", "1234", true},
                                        {"data", "data_path", "a.b/c,d", false}};

static int save_version(const struct ckpt_settings *s, const struct layout *l, bool sharded,
                        int64_t step) {
    struct model m;
    build(&m, l, sharded);
    model_fill(&m, (int)step);
    m.state.at = (struct ckpt_counters){.step = step,
                                        .consumed_samples = 8 * step,
                                        .consumed_tokens = 100 * step,
                                        .epoch = 1,
                                        .index = 5,
                                        .optimizer_step = step};
    m.state.split_spec = "2,2";
    m.state.used_ini = "[run]\nfamily = llava\n";
    m.state.history = rows;
    m.state.n_history = 3;
    m.state.key = keys;
    m.state.n_keys = 3;
    int rc = ckpt_save(s, &m.state);
    model_free(&m);
    return rc;
}

/* Loads; the step found, or -code. wrong = elements that differ from that step's values. */
static int64_t resume(const struct ckpt_settings *s, const struct layout *l, bool sharded,
                      int64_t *wrong) {
    struct model m;
    struct ckpt_found found;
    build(&m, l, sharded);
    *wrong = -1;
    int rc = ckpt_resume(s, &m.state, &found);
    int64_t step = rc ? -rc : found.any ? found.step : 0;
    if (!rc && found.any) {
        *wrong = model_wrong(&m, (int)step, !found.weights_only);
        if (!found.weights_only)
            *wrong += m.state.at.step != step || m.state.at.consumed_samples != 8 * step ||
                      m.state.at.consumed_tokens != 100 * step || m.state.at.index != 5 ||
                      m.state.at.optimizer_step != step || m.state.n_history != 3 ||
                      memcmp(m.state.history, rows, sizeof rows) != 0;
        free((void *)(uintptr_t)m.state.history);
    }
    ckpt_found_free(&found);
    model_free(&m);
    return step;
}

static void any_layout_into_any(void) {
    for (int a = 0; a < n_layouts; a++)
        for (int from = 0; from < 2; from++) {
            char name[64];
            bool good = true;
            snprintf(name, sizeof name, "any-%d-%d", a, from);
            struct ckpt_settings s = model_settings(path_in(0, name));
            s.verify_load = from ? CKPT_VERIFY_USED : CKPT_VERIFY_ALL;
            good = save_version(&s, &layout[a], from != 0, 3) == 0;
            int pairs = 0;
            for (int b = 0; good && b < n_layouts; b++)
                for (int to = 0; good && to < 2; to++, pairs++) {
                    int64_t wrong;
                    good = resume(&s, &layout[b], to != 0, &wrong) == 3 && wrong == 0;
                }
            verdict(layout[0].grid, good, "TP %d PP %d DP %d%s into %d layouts bit for bit",
                    layout[a].tp, layout[a].pp, layout[a].dp, from ? " sharded" : "", pairs);
        }
}

/* ---- files changed behind its back (rank 0) ------------------------------------------------------------------ */
static void edit_byte(const char *path, int64_t at, int bit) {
    FILE *f = fopen(path, "r+b");
    CHECK(f, "%s", path);
    fseek(f, at, SEEK_SET);
    int c = fgetc(f);
    fseek(f, at, SEEK_SET);
    fputc(c ^ (1 << bit), f);
    fclose(f);
}
static int64_t file_size(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 ? st.st_size : -1;
}
static void copy_file(const char *from, const char *to) {
    char *data;
    size_t bytes;
    CHECK(file_read(from, (size_t)1 << 30, &data, &bytes) == 0, "%s", error_text());
    CHECK(file_write_atomic(to, data, bytes) == 0, "%s", error_text());
    free(data);
}
static bool same_files(const char *a, const char *b) {
    struct name_list x = {0}, y = {0};
    bool same = folder_list(a, &x) == 0 && folder_list(b, &y) == 0 && x.n == y.n;
    for (int64_t i = 0; same && i < x.n; i++) {
        char p[2][1024], *data[2] = {NULL};
        size_t bytes[2];
        snprintf(p[0], sizeof p[0], "%s/%s", a, x.name[i]);
        snprintf(p[1], sizeof p[1], "%s/%s", b, y.name[i]);
        same = strcmp(x.name[i], y.name[i]) == 0 &&
               file_read(p[0], (size_t)1 << 30, &data[0], &bytes[0]) == 0 &&
               file_read(p[1], (size_t)1 << 30, &data[1], &bytes[1]) == 0 && bytes[0] == bytes[1] &&
               memcmp(data[0], data[1], bytes[0]) == 0;
        free(data[0]);
        free(data[1]);
        if (!same) printf("# %s and %s differ\n", p[0], p[1]);
    }
    name_list_free(&x);
    name_list_free(&y);
    return same;
}

static const char *shard_of(int64_t step, int index) {
    static char name[96];
    char shard[64];
    ckpt_shard_name(shard, sizeof shard, step, index, comm_world_size());
    snprintf(name, sizeof name, "iter_%07lld/%s", (long long)step, shard);
    return name;
}

enum damage {
    FLIP_DATA,
    FLIP_METADATA,
    CUT,
    REMOVE,
    EXTRA,
    SWAP,
    FLIP_MANIFEST,
    NO_MANIFEST,
    DAMAGES
};
static const char *const damage_name[DAMAGES] = {"flipped bit in a tensor",
                                                 "flipped bit in metadata",
                                                 "truncated shard",
                                                 "missing shard",
                                                 "extra file",
                                                 "shard of another save",
                                                 "flipped bit in the manifest",
                                                 "missing manifest"};
static const char *const damage_says[DAMAGES] = {
    "tensor model/", "outside the tensors", "cut short", "is missing", "not in the manifest", "",
    "manifest.json", "manifest.json"};

static void inflict(enum damage d, const char *dir, struct ckpt_manifest *m) {
    int last = comm_world_size() - 1;
    char path[512], other[512];
    snprintf(path, sizeof path, "%s/%s", dir, shard_of(2, last));
    snprintf(other, sizeof other, "%s/%s", dir, shard_of(1, last));
    const struct ckpt_block *b = NULL;
    for (int64_t i = 0; i < m->n_tensors && !b; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks && !b; j++)
            if (m->tensor[i].block[j].file == last) b = &m->tensor[i].block[j];
    CHECK(b, "the last writer wrote nothing");
    if (d == FLIP_DATA) edit_byte(path, b->file_offset + b->bytes / 2, 3);
    if (d == FLIP_METADATA) edit_byte(path, 20, 3);
    if (d == CUT) CHECK(truncate(path, file_size(path) - 1) == 0, "truncate");
    if (d == REMOVE) unlink(path);
    if (d == SWAP) copy_file(other, path);
    snprintf(path, sizeof path, "%s/iter_0000002/%s", dir, d == EXTRA ? "more.h5" : CKPT_MANIFEST);
    if (d == EXTRA) copy_file(other, path);
    if (d == FLIP_MANIFEST) edit_byte(path, file_size(path) / 2, 0);
    if (d == NO_MANIFEST) unlink(path);
}

static void damage_is_answered_by_the_older_one(void) {
    for (int d = 0; d < DAMAGES; d++) {
        char name[32];
        bool said = true;
        snprintf(name, sizeof name, "damage-%d", d);
        struct ckpt_settings s = model_settings(path_in(0, name));
        bool good = save_version(&s, &layout[0], false, 1) == 0 &&
                    save_version(&s, &layout[0], false, 2) == 0;
        if (comm_world_rank() == 0) {
            struct ckpt_manifest *m = NULL;
            char dir[600], *mark, *text = NULL;
            size_t bytes;
            snprintf(dir, sizeof dir, "%s/iter_0000002", s.save);
            CHECK(ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
            inflict((enum damage)d, s.save, m);
            manifest_free(m);
            said = ckpt_verify_folder(dir) != 0;
            said = said && strstr(error_text(), damage_says[d]);
            if (!said) printf("# %s: \"%s\"\n", damage_name[d], error_text());
            error_clear();
            mark = xasprintf("%s.refused", dir);
            said = said && file_read(mark, 65536, &text, &bytes) != 0;
            error_clear();
            free(mark);
        }
        barrier();
        int64_t wrong, step = resume(&s, &layout[0], true, &wrong);
        if (comm_world_rank() == 0) {
            char dir[600];
            snprintf(dir, sizeof dir, "%s/iter_0000002", s.save);
            said = said && ckpt_is_refused(dir);
        }
        verdict(layout[0].grid, good && said && step == 1 && wrong == 0,
                "%s: named, refused, step 1 instead", damage_name[d]);
    }
}

static void every_byte_of_a_shard_counts(void) {
    struct ckpt_settings s = model_settings(path_in(0, "bytes"));
    bool good = save_version(&s, &layout[0], false, 1) == 0;
    int64_t tried = 0;
    if (comm_world_rank() == 0) {
        char path[512], dir[512];
        snprintf(dir, sizeof dir, "%s/iter_0000001", s.save);
        snprintf(path, sizeof path, "%s/%s", s.save, shard_of(1, 0));
        for (int64_t at = 0, n = file_size(path); good && at < n; at += 997, tried++) {
            edit_byte(path, at, (int)(at % 8));
            good = ckpt_verify_folder(dir) == EXIT_BAD_DATA;
            error_clear();
            edit_byte(path, at, (int)(at % 8));
        }
        good = good && ckpt_verify_folder(dir) == 0;
    }
    verdict(layout[0].grid, good,
            "a flipped bit at every 997th byte of a shard is found (%lld on rank 0)",
            (long long)tried);
}

static void the_same_state_gives_the_same_bytes(void) {
    struct ckpt_settings a = model_settings(path_in(0, "same-a")),
                         b = model_settings(path_in(1, "same-b"));
    const struct layout *l = &layout[n_layouts - 1];
    bool good = save_version(&a, l, true, 4) == 0 && save_version(&b, l, true, 4) == 0;
    if (good && comm_world_rank() == 0)
        good = same_files(path_in(2, "same-a/iter_0000004"), path_in(3, "same-b/iter_0000004"));
    /* A -> B -> A: loaded into another layout, saved there, loaded back, saved again */
    struct model m;
    struct ckpt_found found;
    for (int round = 0; good && round < 2; round++) {
        struct ckpt_settings from = model_settings(path_in(0, round ? "same-c" : "same-a"));
        struct ckpt_settings to = model_settings(path_in(1, round ? "same-d" : "same-c"));
        build(&m, round ? l : &layout[0], round != 0);
        good = ckpt_resume(&from, &m.state, &found) == 0 && found.any;
        m.state.split_spec = "2,2";
        m.state.used_ini = "[run]\nfamily = llava\n";
        m.state.key = keys;
        m.state.n_keys = 3;
        good = good && ckpt_save(&to, &m.state) == 0;
        free((void *)(uintptr_t)m.state.history);
        ckpt_found_free(&found);
        model_free(&m);
    }
    if (good && comm_world_rank() == 0)
        good = same_files(path_in(2, "same-a/iter_0000004"), path_in(3, "same-d/iter_0000004"));
    verdict(layout[0].grid, good,
            "the same state gives the same bytes, also by way of another layout");
}

/* ---- the k-th call that changes a file fails -------------------------------------------------------------
 * These take the place of the C library's functions for the whole program, HDF5 included. */
static int64_t calls, failing_call = -1;
static int failing_errno = ENOSPC;
static bool call_fails(void) {
    if (failing_call < 0 || calls++ != failing_call) return false;
    errno = failing_errno;
    return true;
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return call_fails() ? -1 : syscall(SYS_pwrite64, fd, data, n, at);
}
ssize_t write(int fd, const void *data, size_t n) {
    return fd > 2 && call_fails() ? -1 : syscall(SYS_write, fd, data, n);
}
int fsync(int fd) {
    return call_fails() ? -1 : (int)syscall(SYS_fsync, fd);
}
int ftruncate(int fd, off_t n) {
    return call_fails() ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}
int rename(const char *from, const char *to) {
    return call_fails() ? -1 : (int)syscall(SYS_rename, from, to);
}
int mkdir(const char *path, mode_t mode) {
    return call_fails() ? -1 : (int)syscall(SYS_mkdir, path, mode);
}

/* Every call of one rank fails in turn, until a save goes through without reaching it. Whatever
 * happened, the newest that is found is whole; after a reported failure it is the old one, unless
 * only the last steps (names that are advisory) were missing. */
static void failing_calls(int victim, int error) {
    char name[64];
    snprintf(name, sizeof name, "fault-%d-%d", victim, error);
    struct ckpt_settings s = model_settings(path_in(0, name));
    bool good = save_version(&s, &layout[0], false, 1) == 0, fired = true;
    int64_t k = 0, failed = 0, wrong;
    for (; good && fired; k += comm_world_size() > 1 ? 11 : 5) {
        calls = 0;
        failing_errno = error;
        failing_call = comm_world_rank() == victim ? k : -1;
        int rc = save_version(&s, &layout[0], false, 2);
        failing_call = -1;
        good = (rc == 0) == (error_count() == 0);
        failed += rc != 0;
        error_clear();
        int64_t reached = comm_world_rank() == victim && calls > k;
        comm_broadcast(grid_group(layout[0].grid, GROUP_WORLD), &reached, sizeof reached, victim);
        fired = reached != 0;
        int64_t step = resume(&s, &layout[0], false, &wrong);
        good = good && wrong == 0 && (step == 2 || (rc != 0 && step == 1));
        if (!good)
            printf("# call %lld, error %d: save %d, found %lld\n", (long long)k, error, rc,
                   (long long)step);
        error_clear();
        good = comm_vote(grid_group(layout[0].grid, GROUP_WORLD), !good) == 0;
        if (comm_world_rank() == 0 && step == 2) {
            char path[600];
            snprintf(path, sizeof path, "%s/iter_0000002", s.save);
            good = good && folder_remove(path) == 0;
        }
        barrier();
    }
    verdict(layout[0].grid, good && failed > 0,
            "rank %d: each writing call fails with %s: %lld failed saves of %lld", victim,
            error == EIO ? "EIO" : "ENOSPC", (long long)failed, (long long)k);
}

static void a_failed_save_changes_nothing(void) {
    struct ckpt_settings s = model_settings(path_in(0, "full"));
    bool good = save_version(&s, &layout[0], false, 1) == 0;
    bool victim = comm_world_rank() == comm_world_size() - 1;
    struct rlimit old, small;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 40000;
    if (victim) setrlimit(RLIMIT_FSIZE, &small);
    int rc = save_version(&s, &layout[0], false, 2);
    if (victim) setrlimit(RLIMIT_FSIZE, &old);
    good = good && rc == EXIT_IO && strstr(error_text(), "ulimit");
    error_clear();
    if (comm_world_rank() == 0) {
        struct name_list list;
        good = good && folder_list(s.save, &list) == 0 && list.n == 2 &&
               strcmp(list.name[0], "iter_0000001") == 0;
        name_list_free(&list);
    }
    verdict(layout[0].grid, good,
            "files may not grow on one rank: all say so, the older one stands");
    failing_calls(comm_world_size() - 1, ENOSPC);
    failing_calls(0, EIO);
}

static void left_overs_are_finished_or_removed(void) {
    struct ckpt_settings s = model_settings(path_in(0, "left"));
    bool good = true;
    for (int64_t step = 1; step <= 3; step++)
        good = good && save_version(&s, &layout[0], false, step) == 0;
    if (comm_world_rank() ==
        0) { /* died before the rename; died while writing; died while deleting */
        good = good && folder_rename(path_in(1, "left/iter_0000003"),
                                     path_in(2, "left/iter_0000003.tmp-7-0")) == 0;
        good = good && folder_rename(path_in(1, "left/iter_0000001"),
                                     path_in(2, "left/.trash-iter_0000001")) == 0;
        good = good && dir_make(path_in(1, "left/iter_0000004.tmp-7-0")) == 0;
        copy_file(path_in(1, "left/latest_checkpointed_iteration.txt"),
                  path_in(2, "left/iter_0000004.tmp-7-0/x.h5"));
    }
    barrier();
    int64_t wrong, step = resume(&s, &layout[0], false, &wrong);
    struct name_list list;
    good = good && step == 3 && wrong == 0 && folder_list(s.save, &list) == 0 && list.n == 3;
    name_list_free(&list);
    verdict(layout[0].grid, good,
            "left-overs of a crash: the complete folder is taken, the others go");
}

static void retention_keeps_what_it_should(void) {
    struct ckpt_settings s = model_settings(path_in(0, "keep"));
    bool good = true;
    s.most_recent_k = 2;
    s.save_retain_interval = 3;
    for (int64_t step = 1; step <= 7; step++)
        good = good && save_version(&s, &layout[0], false, step) == 0;
    static const char *const kept[] = {"iter_0000003", "iter_0000006", "iter_0000007", CKPT_LATEST};
    struct name_list list;
    good = good && folder_list(s.save, &list) == 0 && list.n == 4;
    for (int i = 0; good && i < 4; i++) good = strcmp(list.name[i], kept[i]) == 0;
    name_list_free(&list);
    verdict(layout[0].grid, good, "most_recent_k = 2 and save_retain_interval = 3");
}

/* ---- what a run may go on from ----------------------------------------------------------------------------------- */
static void each_key(void *arg, const char *section, const char *key, const char *value,
                     bool defaulted) {
    int *n = arg;
    const struct ckpt_key *k = &keys[*n % 3];
    bool same = strcmp(section, k->section) == 0 && strcmp(key, k->key) == 0 &&
                strcmp(value, k->value) == 0 && defaulted == k->defaulted;
    *n += same ? 1 : 100;
}

static void another_model_or_run_is_refused(void) {
    struct ckpt_settings s = model_settings(path_in(0, "model"));
    struct ckpt_found found;
    struct model m;
    bool good = save_version(&s, &layout[0], false, 1) == 0;
    static const char *const says[] = {"seed", "tokenizer", "needs 17", "does not have",
                                       "which this model"};
    for (int c = 0; c < 5; c++) {
        build(&m, &layout[0], false);
        if (c == 0) m.state.seed = 99;
        if (c == 1) m.state.tokenizer_sha256 = "abc";
        for (int i = 0; i < m.set.n; i++) {
            struct param *p = &m.set.param[i];
            if (c == 2 && p->ndim == 1 && p->cut.axis < 0) p->shape[0] = 17;
            if (c >= 3 && strstr(p->name, "003/frozen"))
                snprintf(p->name, sizeof p->name, "%s", "model/other/weight");
        }
        int rc = ckpt_resume(&s, &m.state, &found);
        bool told = rc == EXIT_RESUME && (strstr(error_text(), says[c]) || comm_world_size() > 1);
        if (!told) printf("# case %d: %d \"%s\"\n", c, rc, error_text());
        good = good && told && !ckpt_is_refused(path_in(1, "model/iter_0000001"));
        error_clear();
        model_free(&m);
    }
    int n = 0;
    good = good && ckpt_find(&s, layout[0].grid, &found) == 0 &&
           ckpt_config(&s, &found, layout[0].grid, each_key, &n) == 0 && n == 3;
    ckpt_found_free(&found);
    verdict(layout[0].grid, good,
            "another seed, tokenizer, shape, tensor: refused with the reason; keys come back");
}

static void resume_never_auto_must(void) {
    struct ckpt_settings s = model_settings(path_in(0, "modes"));
    int64_t wrong;
    bool good = resume(&s, &layout[0], false, &wrong) == 0;
    s.resume = CKPT_RESUME_MUST;
    good = good && resume(&s, &layout[0], false, &wrong) == -EXIT_NO_INPUT;
    s.resume = CKPT_RESUME_NEVER;
    good = good && resume(&s, &layout[0], false, &wrong) == 0;
    good = good && save_version(&s, &layout[0], false, 1) == 0;
    good = good && resume(&s, &layout[0], false, &wrong) == -EXIT_RESUME;
    struct ckpt_settings fine = model_settings(path_in(1, "modes-new"));
    fine.load = path_in(2, "no-such-folder");
    good = good && resume(&fine, &layout[0], false, &wrong) == -EXIT_NO_INPUT;
    fine.load = s.save;
    fine.finetune = true;
    good = good && resume(&fine, &layout[0], false, &wrong) == 1 && wrong == 0;
    s.resume = CKPT_RESUME_AUTO;
    s.ckpt_step = 5;
    good = good && resume(&s, &layout[0], false, &wrong) == -EXIT_NO_INPUT;
    s.ckpt_step = -1;
    if (comm_world_rank() == 0) unlink(path_in(3, "modes/iter_0000001/manifest.json"));
    barrier();
    good = good && resume(&s, &layout[0], false, &wrong) == -EXIT_BAD_DATA;
    error_clear();
    verdict(layout[0].grid, good,
            "resume = never, auto, must; load; finetune; ckpt_step; none verifies");
}

static void edit_lock(const char *path, const char *key, const char *value) {
    char *text, *at;
    size_t bytes;
    CHECK(file_read(path, 4096, &text, &bytes) == 0 && (at = strstr(text, key)), "%s", key);
    char *rest = at + strcspn(at, "\n");
    char *edited = xasprintf("%.*s%s %s%s", (int)(at - text), text, key, value, rest);
    CHECK(file_write_atomic(path, edited, strlen(edited)) == 0, "%s", error_text());
    free(edited);
    free(text);
}

static void one_run_per_folder(void) {
    struct ckpt_settings s = model_settings(path_in(0, "lock"));
    const char *path = path_in(1, "lock/run.lock");
    const struct grid *grid = layout[0].grid;
    bool zero = comm_world_rank() == 0;
    struct ckpt_lock a, b;
    bool good = ckpt_lock(s.save, grid, &a) == 0;
    s.lock = &a;
    good = good && save_version(&s, &layout[0], false, 1) == 0;
    good = good && ckpt_lock(s.save, grid, &b) == EXIT_NO_PERMISSION && strstr(error_text(), "pid");
    error_clear();
    if (zero) edit_lock(path, "nonce", "ffff"); /* taken by another */
    barrier();
    good = good && save_version(&s, &layout[0], false, 2) == EXIT_NO_PERMISSION;
    error_clear();
    if (zero) edit_lock(path, "pid_start", "1"); /* that process is gone */
    barrier();
    good = good && ckpt_lock(s.save, grid, &b) == 0;
    s.lock = &b;
    good = good && save_version(&s, &layout[0], false, 2) == 0;
    if (zero) edit_lock(path, "host", "elsewhere"); /* cannot be asked */
    barrier();
    struct ckpt_lock c;
    good = good && ckpt_lock(s.save, grid, &c) == EXIT_NO_PERMISSION;
    error_clear();
    ckpt_unlock(&a); /* no longer ours: it stays */
    error_clear();
    if (zero) good = good && access(path, F_OK) == 0;
    ckpt_unlock(&b);
    if (zero) good = good && access(path, F_OK) != 0;
    verdict(layout[0].grid, good, "one run per folder: refused, fenced, taken over, given back");
}

static void make_layouts(void) {
    int w = comm_world_size();
    for (int tp = 1; tp <= w && tp <= 6; tp++)
        for (int pp = 1; pp <= w && pp <= MODEL_LAYERS; pp++) {
            if (w % (tp * pp) != 0 || n_layouts == MAX_LAYOUTS || tp > 5) continue;
            struct layout *l = &layout[n_layouts++];
            *l = (struct layout){.tp = tp, .pp = pp, .dp = w / (tp * pp)};
            if (grid_create(tp, pp, false, 1.0, &l->grid) != 0) error_exit();
        }
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

static void run_tests(void) {
    any_layout_into_any();
    the_same_state_gives_the_same_bytes();
    if (comm_world_size() == 3 || comm_world_size() == 6) return; /* only for uneven layouts */
    damage_is_answered_by_the_older_one();
    every_byte_of_a_shard_counts();
    a_failed_save_changes_nothing();
    left_overs_are_finished_or_removed();
    retention_keeps_what_it_should();
    another_model_or_run_is_refused();
    resume_never_auto_must();
    one_run_per_folder();
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    make_layouts();
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/strata-ckpt-XXXXXX", tmp ? tmp : "/tmp");
    if (comm_world_rank() == 0) CHECK(mkdtemp(folder), "%s", folder);
    comm_broadcast(grid_group(layout[0].grid, GROUP_WORLD), folder, sizeof folder, 0);
    if (backend_create_cpu(DTYPE_F32, 1, comm_world_size(), &be) != 0) error_exit();
    if (argc == 2) { /* for tests/cli: one checkpoint, kept */
        struct ckpt_settings s = model_settings(argv[1]);
        verdict(layout[0].grid, save_version(&s, &layout[n_layouts / 2], true, 3) == 0, "written");
    } else {
        run_tests();
    }
    barrier();
    if (comm_world_rank() == 0) {
        if (test_failures == 0 && nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS) != 0)
            test_failures++;
    }
    backend_destroy(be);
    for (int i = 0; i < n_layouts; i++) grid_destroy(layout[i].grid);
    comm_finalize();
    return test_failures != 0;
}
