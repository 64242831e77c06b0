/* CPU backend: creation, memory, threads. */
#include <cblas.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_impl.h"
#include "cpus.h"

/* ---- threads ------------------------------------------------------------------------------- */

void cpu_parallel(struct backend *be, int64_t n,
                  void (*body)(const void *ctx, int64_t i, int thread), const void *ctx) {
    void (*progress)(void *) = be->progress;
    if (n <= 1 || be->threads == 1) {
        for (int64_t i = 0; i < n; i++) {
            body(ctx, i, 0);
            if (progress) progress(be->progress_arg);
        }
        return;
    }
#pragma omp parallel for num_threads(be->threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < n; i++) {
        int thread = omp_get_thread_num();
        body(ctx, i, thread);
        if (progress && thread == 0) progress(be->progress_arg);
    }
}

/* ---- memory -------------------------------------------------------------------------------- */

void *mem_alloc_cpu(struct backend *be, size_t bytes) {
    (void)be;
    if (bytes > SIZE_MAX - ARENA_ALIGN) return NULL;
    size_t whole = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return aligned_alloc(ARENA_ALIGN, whole ? whole : ARENA_ALIGN);
}

void mem_free_cpu(struct backend *be, void *p) {
    (void)be;
    free(p);
}

struct move {
    char *to;
    const char *from; /* NULL: zero */
    size_t bytes;
};
#define MOVE_STEP ((size_t)1 << 18)

static void move_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct move *m = ctx;
    size_t at = (size_t)i * MOVE_STEP;
    size_t n = m->bytes - at < MOVE_STEP ? m->bytes - at : MOVE_STEP;
    if (m->from)
        memcpy(m->to + at, m->from + at, n);
    else
        memset(m->to + at, 0, n);
}

static void move(struct backend *be, void *to, const void *from, size_t bytes) {
    struct move m = {to, from, bytes};
    cpu_parallel(be, (int64_t)((bytes + MOVE_STEP - 1) / MOVE_STEP), move_body, &m);
}

void upload_cpu(struct backend *be, void *device, const void *host, size_t bytes) {
    move(be, device, host, bytes);
}
void download_cpu(struct backend *be, void *host, const void *device, size_t bytes) {
    move(be, host, device, bytes);
}
void copy_cpu(struct backend *be, void *to, const void *from, size_t bytes) {
    move(be, to, from, bytes);
}
void zero_cpu(struct backend *be, void *p, size_t bytes) {
    move(be, p, NULL, bytes);
}
void synchronize_cpu(struct backend *be) {
    (void)be;
}

/* ---- creation ------------------------------------------------------------------------------ */

/* As many as this process is granted beside ranks_sharing - 1 others. */
static int default_threads(int ranks_sharing) {
    struct cpu_limits limits;
    char how[CPU_TEXT_MAX], notice[CPU_TEXT_MAX];
    cpus_read("", &limits);
    struct cpu_share share = cpus_share_alike(&limits, ranks_sharing);
    return cpus_threads(&share, 0, getenv("OMP_NUM_THREADS"), how, notice);
}

int backend_create_cpu(enum dtype dtype, int threads, int ranks_sharing, struct backend **be) {
    *be = NULL;
    if (dtype != DTYPE_F32 && dtype != DTYPE_F64)
        return error_raise(EXIT_UNAVAILABLE,
                           "the cpu device computes in fp32 or fp64, not in %s; "
                           "set params_dtype = fp32 or use device = cuda",
                           dtype_name(dtype));
    if (threads < 0 || threads > 4096)
        return error_raise(EXIT_USAGE,
                           "cpu device: %d threads; allowed are 0 (one per core) to 4096", threads);
    CHECK(ranks_sharing >= 1, "%d ranks share my cores", ranks_sharing);
    if (threads == 0) threads = default_threads(ranks_sharing);
    const struct backend_ops *ops = dtype == DTYPE_F32 ? backend_ops_cpu32() : backend_ops_cpu64();
    backend_check_table(ops);
    /* Its own threads would divide sums by their number. */
    openblas_set_num_threads(1);

    struct cpu_state *state = xcalloc(1, sizeof *state);
    struct backend *b = xcalloc(1, sizeof *b);
    *b = (struct backend){
        .ops = ops, .dtype = dtype, .acc = dtype, .threads = threads, .state = state};
    size_t size = dtype_size(dtype);
    state->per_thread = mem_alloc_cpu(b, (size_t)threads * WORK_PER_THREAD * size);
    state->columns = mem_alloc_cpu(b, WORK_COLUMNS * size);
    if (!state->per_thread || !state->columns) {
        destroy_cpu(b);
        return error_raise(EXIT_UNAVAILABLE,
                           "cpu device: no memory for the workspace of %d threads", threads);
    }
    *be = b;
    return EXIT_OK;
}

void destroy_cpu(struct backend *be) {
    struct cpu_state *state = be->state;
    free(state->per_thread);
    free(state->columns);
    free(state);
    free(be);
}
