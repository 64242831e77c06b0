/* Saving and loading against the plain thing on the same file system in the same run:
 *
 *   mpirun -n 2 bench_checkpoint [MATRICES [ROUNDS [FILTER]]]     TMPDIR says where
 *
 * The state is MATRICES fp32 matrices of 1024x1024 with both moments, 12 MiB each. Every round does
 * each thing once, one after the other, so that a busy machine hits all of them; times are those of
 * the slowest rank, ratios are taken within a round. Everything is read from storage, not from the
 * cache (but on a memory file system, which has nothing else). */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../../src/checkpoint/ckpt_impl.h"

#define EDGE 1024
#define ROUNDS_MAX 50
#define PIECE ((size_t)8 << 20)

struct state {
    struct param_set set;
    struct state_piece *piece;
    struct ckpt_state ckpt;
    struct grid *grid;
    char run_uuid[37], parent_uuid[37];
};

enum what {
    COPY,
    STALL,
    SAVE_ASYNC,
    SAVE,
    READ_BACK,
    PLAIN_WRITE,
    LOAD,
    LOAD_RESHARD,
    PLAIN_READ,
    WHATS
};
static double took[WHATS][ROUNDS_MAX], cpu[WHATS][ROUNDS_MAX];
static struct backend *be;
static struct grid *world_grid;
static char folder[512];
static int rounds;
static enum ckpt_filter filter;

static const struct group *world(void) {
    return grid_group(world_grid, GROUP_WORLD);
}

/* ---- the state -------------------------------------------------------------------------------------- */
static void declare(struct param_set *set, int matrices) {
    for (int i = 0; i < matrices; i++) {
        struct param p = {.dims = "out_features,in_features",
                          .ndim = 2,
                          .shape = {EDGE, EDGE},
                          .cut = cut_even(i % 2, EDGE, 64),
                          .stack_layer = i,
                          .trainable = true};
        snprintf(p.name, sizeof p.name, "model/language_model/layers/%03d/weight", i);
        snprintf(p.hf_name, sizeof p.hf_name, "layers.%d.weight", i);
        param_declare(set, p);
    }
}

static void *filled(int64_t n, int seed) {
    float *v = xmalloc((size_t)n * sizeof *v);
    uint32_t x = (uint32_t)seed * 2654435761u + 1;
    for (int64_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        v[i] = (float)(int32_t)x * 1e-9f;
    }
    return v;
}

static void build(struct state *s, int matrices, int tp) {
    memset(s, 0, sizeof *s);
    if (grid_create(tp, 1, false, 10.0, &s->grid) != 0) error_exit();
    const struct group *g = grid_group(s->grid, GROUP_TP);
    declare(&s->set, matrices);
    if (param_set_layout(&s->set, group_size(g), group_rank(g)) != 0) error_exit();
    s->piece = xcalloc((size_t)matrices, sizeof *s->piece);
    for (int i = 0; i < matrices; i++) {
        struct param *p = &s->set.param[i];
        int64_t n = param_local_count(p);
        p->w = tensor_view(filled(n, 3 * i), p->rows, p->cols, DTYPE_F32);
        s->piece[i] = (struct state_piece){
            .param = i, .count = n, .m = filled(n, 3 * i + 1), .v = filled(n, 3 * i + 2)};
    }
    s->ckpt = (struct ckpt_state){.grid = s->grid,
                                  .set = &s->set,
                                  .be = be,
                                  .piece = s->piece,
                                  .n_pieces = matrices,
                                  .family = "bench",
                                  .run_uuid = s->run_uuid,
                                  .parent_uuid = s->parent_uuid};
}

static void release(struct state *s) {
    for (int i = 0; i < s->set.n; i++) {
        free(s->set.param[i].w.data);
        free(s->piece[i].m);
        free(s->piece[i].v);
    }
    free(s->piece);
    param_set_free(&s->set);
    grid_destroy(s->grid);
}

/* ---- time of the slowest rank -------------------------------------------------------------------------- */
static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
struct start {
    double wall, cpu;
};
static struct start begin(void) {
    comm_barrier(world());
    return (struct start){clock_seconds(), processor_seconds()};
}
static void end(enum what w, int round, struct start start) {
    double t[2] = {clock_seconds() - start.wall, processor_seconds() - start.cpu};
    comm_allreduce_f64(world(), t, 2, REDUCE_MAX);
    took[w][round] = t[0];
    cpu[w][round] = t[1];
}
static void must(int rc) {
    if (comm_vote(world(), rc) == 0) return;
    if (error_count() == 0) error_raise(rc, "another rank failed");
    error_exit();
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double at(double from[WHATS][ROUNDS_MAX], enum what w, double share) {
    double v[ROUNDS_MAX];
    memcpy(v, from[w], sizeof v);
    qsort(v, (size_t)rounds, sizeof *v, compare);
    return v[(int)(share * (rounds - 1) + 0.5)];
}

/* ---- the plain thing -------------------------------------------------------------------------------------- */
static void plain_write(const struct state *s, const char *path, int64_t bytes) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666), rc = fd < 0;
    const struct param *p = s->set.param;
    while (bytes > 0 && !rc) {
        size_t n = (size_t)bytes < PIECE ? (size_t)bytes : PIECE;
        if (n > tensor_bytes(&p->w)) n = tensor_bytes(&p->w);
        rc = write(fd, p->w.data, n) != (ssize_t)n;
        bytes -= (int64_t)n;
        p = p + 1 < s->set.param + s->set.n ? p + 1 : s->set.param;
    }
    if (rc || fsync(fd) != 0 || close(fd) != 0 || folder_sync(folder) != 0)
        error_raise(EXIT_IO, "%s could not be written", path), rc = 1;
    must(rc ? EXIT_IO : 0);
}

static void plain_read(const char *path) {
    int fd = open(path, O_RDONLY);
    char *to = xmalloc(PIECE);
    if (fd < 0) error_fatal(EXIT_IO, "%s cannot be read", path);
    while (read(fd, to, PIECE) > 0) {
    }
    free(to);
    close(fd);
}

/* ---- one round ----------------------------------------------------------------------------------------------- */
static struct ckpt_settings settings_in(const char *save) {
    return (struct ckpt_settings){.save = save,
                                  .ckpt_step = -1,
                                  .resume = CKPT_RESUME_AUTO,
                                  .most_recent_k = -1,
                                  .filter = filter,
                                  .index = true,
                                  .save_derived_weights = true};
}

static void copy_state(const struct state *s, char *to) {
    for (int i = 0; i < s->set.n; i++) {
        size_t n = tensor_bytes(&s->set.param[i].w);
        const void *from[3] = {s->set.param[i].w.data, s->piece[i].m, s->piece[i].v};
        for (int k = 0; k < 3; k++, to += n) memcpy(to, from[k], n);
    }
}

static void save_async(struct state *s, const char *save, char *host, size_t host_bytes,
                       int round) {
    struct ckpt_settings set = settings_in(save);
    struct ckpt_pending *pending;
    struct timespec nap = {.tv_nsec = 1000000};
    struct start start = begin();
    must(ckpt_save_begin(&set, &s->ckpt, host, host_bytes, &pending));
    end(STALL, round, start);
    while (pending != NULL) {
        int64_t busy = ckpt_save_busy(pending);
        comm_allreduce_i64(world(), &busy, 1, REDUCE_MAX);
        if (busy)
            nanosleep(&nap, NULL);
        else
            must(ckpt_save_next(&pending));
    }
    end(SAVE_ASYNC, round, start);
}

/* Reading back from storage what the save has just written: the part of a save that a plain writer
 * leaves out. */
static void read_back(const char *save, int64_t step) {
    struct ckpt_manifest *m;
    char *dir = xasprintf("%s/iter_%07lld", save, (long long)step);
    int rc = ckpt_read_manifest(dir, &m);
    struct scan scan = {
        .dir = dir, .m = m, .file = group_rank(world()), .drop_cache = true, .one_in = 1};
    must(rc ? rc : ckpt_scan_file(&scan));
    manifest_free(m);
    free(dir);
}

static void load(struct state *s, const char *save, enum what w, int round) {
    struct ckpt_settings set = settings_in(save);
    struct ckpt_found found;
    struct start start = begin();
    must(ckpt_resume(&set, &s->ckpt, &found));
    end(w, round, start);
    CHECK(found.any, "nothing found in %s", save);
    ckpt_found_free(&found);
    free((void *)(uintptr_t)s->ckpt.history);
    s->ckpt.history = NULL;
}

/* What is loaded comes from storage. */
static void drop_file(const char *path) {
    int fd = open(path, O_RDONLY);
    if (fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
        error_fatal(EXIT_IO, "%s cannot be dropped from the cache", path);
    close(fd);
}
static void drop(const char *save, int64_t step) {
    struct ckpt_manifest *m;
    char *dir = xasprintf("%s/iter_%07lld", save, (long long)step);
    must(ckpt_read_manifest(dir, &m));
    for (int64_t i = 0; i < m->n_files; i++) {
        char *path = xasprintf("%s/%s", dir, m->file[i].name);
        drop_file(path);
        free(path);
    }
    manifest_free(m);
    free(dir);
}

static void forget(const char *save, int64_t step) {
    char *dir = xasprintf("%s/iter_%07lld", save, (long long)step);
    int rc = group_rank(world()) == 0 ? folder_remove(dir) : 0;
    free(dir);
    must(rc);
}

/* `here` saves and loads in its layout; `other` holds a checkpoint of another one. */
static void one_round(struct state *here, const char *other, char *host, size_t host_bytes,
                      int round) {
    char save[600], plain[600];
    snprintf(save, sizeof save, "%s/here", folder);
    snprintf(plain, sizeof plain, "%s/plain-%d", folder, group_rank(world()));
    struct start start = begin();
    copy_state(here, host);
    end(COPY, round, start);
    here->ckpt.at.step = 2 * round + 1;
    save_async(here, save, host, host_bytes, round);
    here->ckpt.at.step = 2 * round + 2;
    struct ckpt_settings set = settings_in(save);
    start = begin();
    must(ckpt_save(&set, &here->ckpt));
    end(SAVE, round, start);
    start = begin();
    read_back(save, here->ckpt.at.step);
    end(READ_BACK, round, start);
    start = begin();
    plain_write(here, plain, (int64_t)host_bytes);
    end(PLAIN_WRITE, round, start);
    drop_file(plain);
    start = begin();
    plain_read(plain);
    end(PLAIN_READ, round, start);
    unlink(plain);
    drop(save, 2 * round + 2);
    load(here, save, LOAD, round);
    drop(other, 1);
    load(here, other, LOAD_RESHARD, round);
    forget(save, 2 * round + 1); /* a deletion belongs to no save */
    forget(save, 2 * round + 2);
}

/* ---- what came out ------------------------------------------------------------------------------------------- */
static void line(const char *name, enum what w, double gigabytes, const char *compared) {
    printf("| %-44s | %8.1f | %8.1f | %8.1f | %6.2f | %s |\n", name, 1e3 * at(took, w, 0.5),
           1e3 * at(took, w, 0.99), 1e3 * at(cpu, w, 0.5), gigabytes / at(took, w, 0.5), compared);
}

/* Median over the rounds of a's time divided by b's (less c's, unless c is b). */
static double ratio(enum what a, enum what b, enum what c) {
    double v[ROUNDS_MAX];
    for (int r = 0; r < rounds; r++) {
        double t = took[b][r] - (c == b ? 0 : took[c][r]);
        v[r] = took[a][r] / (t > 1e-9 ? t : 1e-9);
    }
    qsort(v, (size_t)rounds, sizeof *v, compare);
    return v[rounds / 2];
}

/* A save against a plain writer that reads back as well: both then move every byte twice. */
static double ratio_with_reading(void) {
    double v[ROUNDS_MAX];
    for (int r = 0; r < rounds; r++)
        v[r] = (took[PLAIN_WRITE][r] + took[PLAIN_READ][r]) / took[SAVE][r];
    qsort(v, (size_t)rounds, sizeof *v, compare);
    return v[rounds / 2];
}

static void report(int64_t bytes) {
    double gb = (double)bytes / 1e9;
    char text[WHATS][160] = {""};
    double limit = 1.25 * at(took, COPY, 0.5) + 0.05, stall = at(took, STALL, 0.5);
    snprintf(text[STALL], 120, "%.0f %% of 1.25 x copy + 50 ms (goal <= 100 %%)",
             100 * stall / limit);
    snprintf(text[SAVE_ASYNC], 120, "%.0f %% of the plain writer's rate",
             100 * ratio(PLAIN_WRITE, SAVE_ASYNC, SAVE_ASYNC));
    snprintf(text[SAVE], sizeof text[SAVE],
             "%.0f %% of the plain writer's rate, %.0f %% without reading back (goal >= 80 %%), "
             "%.0f %% of one that reads back too",
             100 * ratio(PLAIN_WRITE, SAVE, SAVE), 100 * ratio(PLAIN_WRITE, SAVE, READ_BACK),
             100 * ratio_with_reading());
    snprintf(text[LOAD], 120, "%.0f %% of the plain reader's rate",
             100 * ratio(PLAIN_READ, LOAD, LOAD));
    snprintf(text[LOAD_RESHARD], 120, "%.2f x the load without (goal <= 1.3)",
             ratio(LOAD_RESHARD, LOAD, LOAD));
    printf("checkpoint of %.0f MB in %d files, filter %s, medians of %d rounds, %s\n", gb * 1e3,
           group_size(world()), ckpt_filter_name(filter), rounds, folder);
    printf("| what | ms, p50 | ms, p99 | ms of processor | GB/s | compared |\n");
    printf("|---|---|---|---|---|---|\n");
    line("copy of the state in memory", COPY, gb, "");
    line("stall of an asynchronous save", STALL, gb, text[STALL]);
    line("asynchronous save until committed", SAVE_ASYNC, gb, text[SAVE_ASYNC]);
    line("synchronous save", SAVE, gb, text[SAVE]);
    line("of it reading back from storage", READ_BACK, gb, "");
    line("plain write + fsync", PLAIN_WRITE, gb, "");
    line("load, same layout, all bytes verified", LOAD, gb, text[LOAD]);
    line("load from another layout", LOAD_RESHARD, gb, text[LOAD_RESHARD]);
    line("plain read", PLAIN_READ, gb, "");
}

static void clean(const char *name) {
    char path[600];
    struct name_list list;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (folder_list(path, &list) != 0) return;
    for (int64_t i = 0; i < list.n; i++) {
        char *entry = xasprintf("%s/%s", path, list.name[i]);
        if (folder_exists(entry))
            folder_remove(entry);
        else
            unlink(entry);
        free(entry);
    }
    name_list_free(&list);
    rmdir(path);
}

static bool find_filter(const char *name) {
    for (int i = 0; i < CKPT_FILTERS; i++) {
        filter = (enum ckpt_filter)i;
        if (strcmp(name, ckpt_filter_name(filter)) == 0) return true;
    }
    return false;
}

int main(int argc, char **argv) {
    int64_t matrices = 16, n = 7, bytes = 0;
    if (comm_init(&argc, &argv) != 0) error_exit();
    if ((argc > 1 && !parse_int64(argv[1], &matrices)) || (argc > 2 && !parse_int64(argv[2], &n)) ||
        matrices < 1 || n < 1 || n > ROUNDS_MAX || (argc > 3 && !find_filter(argv[3])))
        error_fatal(EXIT_USAGE, "bench_checkpoint [MATRICES [ROUNDS [FILTER]]]");
    rounds = (int)n;
    log_set_rank(1); /* the lines of saving and loading are not wanted */
    if (grid_create(1, 1, false, 10.0, &world_grid) != 0) error_exit();
    if (backend_create_cpu(DTYPE_F32, 1, comm_world_size(), &be) != 0) error_exit();
    const char *tmp = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/strata-bench-XXXXXX", tmp ? tmp : P_tmpdir);
    if (comm_world_rank() == 0) CHECK(mkdtemp(folder), "%s", folder);
    comm_broadcast(world(), folder, sizeof folder, 0);
    struct state here, there;
    char other[600];
    snprintf(other, sizeof other, "%s/other", folder);
    struct ckpt_settings set = settings_in(other);
    build(&there, (int)matrices, 1);
    there.ckpt.at.step = 1;
    must(ckpt_save(&set, &there.ckpt));
    release(&there);
    build(&here, (int)matrices, comm_world_size());
    size_t host_bytes = ckpt_snapshot_bytes(&here.ckpt, true), state_bytes = 0;
    for (int i = 0; i < here.set.n; i++) state_bytes += 3 * tensor_bytes(&here.set.param[i].w);
    CHECK(host_bytes >= state_bytes, "%zu, %zu bytes", host_bytes, state_bytes);
    char *host = xmalloc(host_bytes);
    memset(host, 1, host_bytes);
    for (int r = 0; r < rounds; r++) one_round(&here, other, host, host_bytes, r);
    bytes = (int64_t)host_bytes;
    comm_allreduce_i64(world(), &bytes, 1, REDUCE_SUM);
    if (comm_world_rank() == 0) {
        report(bytes);
        clean("here");
        clean("other");
        rmdir(folder);
    }
    free(host);
    release(&here);
    backend_destroy(be);
    grid_destroy(world_grid);
    comm_finalize();
    return 0;
}
