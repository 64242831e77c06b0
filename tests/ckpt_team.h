/* Checkpoints saved and loaded by teams of ranks without MPI (team.h), with the model of
 * ckpt_model.h: what the tests of layouts, of damage and of failing writes share. */
#ifndef STRATA_CKPT_TEAM_H
#define STRATA_CKPT_TEAM_H

#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>

#include "../src/checkpoint/ckpt_impl.h"
#include "ckpt_model.h"
#include "team.h"

#define CASE_LAYERS 8
struct ckpt_case {
    struct team_layout at;
    int split[CASE_LAYERS]; /* layers of each stage */
    bool sharded;
    bool one_layer; /* the model is a single layer */
};
struct ckpt_job { /* one call of a team */
    struct ckpt_case c;
    char folder[300]; /* load and save */
    char other[300];  /* "" or where to save what was loaded */
    int64_t step;     /* saved; expected; 0: whatever is found */
    enum ckpt_verify verify;
    enum ckpt_filter filter; /* of what is saved */
    bool no_index;
};

static int case_failures;
static char case_folder[200];
static struct backend *case_backend;

static void verdict(bool good, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void verdict(bool good, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    case_failures += !good;
    printf("%s - ", good ? "ok" : "not ok");
    vprintf(fmt, args);
    printf("\n");
    fflush(stdout);
    va_end(args);
}

static const struct ckpt_row case_rows[2] = {{1, 5.5, 1e-3, 2.25}, {2, 5.25, 9e-4, 2.0}};

static struct ckpt_settings case_settings(const struct ckpt_job *job, const char *save) {
    return (struct ckpt_settings){.save = save,
                                  .ckpt_step = -1,
                                  .resume = CKPT_RESUME_AUTO,
                                  .most_recent_k = -1,
                                  .verify_load = job->verify,
                                  .filter = job->filter,
                                  .index = !job->no_index,
                                  .save_derived_weights = true,
                                  .reproducible = true};
}

static void case_model(struct model *m, const struct ckpt_case *c, const struct grid *grid) {
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP);
    const struct group *dp = grid_group(grid, GROUP_DP);
    int first = 0, stage = group_rank(pp);
    for (int i = 0; i < stage; i++) first += c->split[i];
    model_build_stage(m, case_backend, (int[]){group_size(tp), group_rank(tp)},
                      c->one_layer ? (int[]){1, 2, 3}
                                   : (int[]){first, first + c->split[stage], CASE_LAYERS},
                      (int[]){group_size(dp), group_rank(dp)}, c->sharded);
    m->state.grid = grid;
    m->state.split_spec = "any";
    m->state.used_ini = "[run]\nfamily = llava\n";
}

static struct ckpt_counters case_counters(int64_t step) {
    return (struct ckpt_counters){.step = step,
                                  .consumed_samples = 8 * step,
                                  .consumed_tokens = 100 * step,
                                  .epoch = 1,
                                  .index = 5 + step,
                                  .optimizer_step = step,
                                  .skipped_iterations = 1,
                                  .nan_iterations = 2,
                                  .skipped_samples = 3};
}

/* The code of ckpt_save. */
static inline int64_t case_save(const struct grid *grid, void *arg) {
    const struct ckpt_job *job = arg;
    struct ckpt_settings s = case_settings(job, job->folder);
    struct model m;
    case_model(&m, &job->c, grid);
    model_fill(&m, (int)job->step);
    m.state.at = case_counters(job->step);
    m.state.history = case_rows;
    m.state.n_history = 2;
    int rc = ckpt_save(&s, &m.state);
    if ((rc == 0) != (error_count() == 0))
        rc = 1000; /* an error without a sentence, or the other way */
    model_free(&m);
    return rc;
}

/* The step that was found and holds the values of that step in every element; 0: none was there;
 * -code: an error; -1000 - n: n elements (or counters) are wrong. */
static inline int64_t case_load(const struct grid *grid, void *arg) {
    const struct ckpt_job *job = arg;
    struct ckpt_settings s = case_settings(job, job->folder);
    struct ckpt_settings other = case_settings(job, job->other);
    struct model m;
    struct ckpt_found found;
    case_model(&m, &job->c, grid);
    int rc = ckpt_resume(&s, &m.state, &found);
    if (rc || !found.any) return -rc;
    int64_t wrong = model_wrong(&m, (int)found.step, true);
    struct ckpt_counters at = case_counters(found.step);
    wrong += memcmp(&m.state.at, &at, sizeof at) != 0;
    wrong += m.state.n_history != 2 || memcmp(m.state.history, case_rows, sizeof case_rows) != 0;
    if (wrong) return -1000 - wrong;
    if (job->other[0]) rc = ckpt_save(&other, &m.state);
    free((void *)(uintptr_t)m.state.history);
    model_free(&m);
    return rc ? -rc : found.step;
}

/* The common result of all ranks; -2000 - wait status if one died, -3000 if they disagree. */
static inline int64_t case_run(struct ckpt_job *job, int64_t (*work)(const struct grid *, void *)) {
    int64_t result[TEAM_MAX];
    int status = team_run(&job->c.at, 0.2, work, job, result);
    if (status) return -2000 - status;
    for (int r = 1; r < team_size(&job->c.at); r++)
        if (result[r] != result[0]) return -3000;
    return result[0];
}

/* ---- folders ------------------------------------------------------------------------------------ */
static int case_remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}
static inline void case_remove(const char *path) {
    nftw(path, case_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* CRC32C over names and bytes of the files of a folder; -1: it is not there. */
static inline int64_t case_digest(const char *path) {
    struct name_list list;
    uint32_t crc = 0;
    if (folder_list(path, &list) != 0) {
        error_clear();
        return -1;
    }
    for (int64_t i = 0; i < list.n; i++) {
        char *file = xasprintf("%s/%s", path, list.name[i]), *data;
        size_t bytes;
        CHECK(file_read(file, (size_t)1 << 34, &data, &bytes) == 0, "%s", error_text());
        crc = crc32c(crc, list.name[i], strlen(list.name[i]) + 1);
        crc = crc32c(crc, data, bytes);
        free(data);
        free(file);
    }
    name_list_free(&list);
    return crc;
}

static inline void case_copy_file(const char *from, const char *to) {
    char *data;
    size_t bytes;
    CHECK(file_read(from, (size_t)1 << 30, &data, &bytes) == 0, "%s", error_text());
    int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    CHECK(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes && close(fd) == 0, "%s", to);
    free(data);
}
/* The files of one folder into another, which is made. */
static inline void case_copy(const char *from, const char *to) {
    struct name_list list;
    CHECK(folder_list(from, &list) == 0 && dir_make(to) == 0, "%s", error_text());
    for (int64_t i = 0; i < list.n; i++) {
        char *a = xasprintf("%s/%s", from, list.name[i]), *b = xasprintf("%s/%s", to, list.name[i]);
        case_copy_file(a, b);
        free(a);
        free(b);
    }
    name_list_free(&list);
}

/* Sizes and checksums of the files as they are now go into the manifest of a checkpoint that was
 * edited; those of the tensors' blocks stay. */
static inline void case_sign(const char *dir) {
    struct ckpt_manifest *m;
    size_t bytes;
    CHECK(ckpt_read_manifest(dir, &m) == 0, "%s", error_text());
    for (int64_t i = 0; i < m->n_files; i++) {
        struct scan scan = {.dir = dir, .m = m, .file = (int)i, .fill = true, .one_in = 1};
        CHECK(ckpt_scan_file(&scan) == 0, "%s", error_text());
    }
    char *text = manifest_text(m, &bytes), *path = xasprintf("%s/%s", dir, CKPT_MANIFEST);
    CHECK(file_write_atomic(path, text, bytes) == 0, "%s", error_text());
    free(path);
    free(text);
    manifest_free(m);
}

static inline bool case_long(void) {
    const char *text = getenv("STRATA_LONG");
    return text != NULL && strcmp(text, "1") == 0;
}

static inline void case_begin(void) {
    const char *tmp = getenv("TEST_TMP");
    snprintf(case_folder, sizeof case_folder, "%s/strata-team-XXXXXX", tmp ? tmp : "/tmp");
    CHECK(mkdtemp(case_folder), "%s", case_folder);
    CHECK(backend_create_cpu(DTYPE_F32, 1, 1, &case_backend) == 0, "%s", error_text());
}
static inline int case_end(void) {
    if (case_failures == 0) case_remove(case_folder);
    backend_destroy(case_backend);
    return case_failures != 0;
}

#endif
