/* The speed of light of this machine: products by the library on every thread at once. */
#include <cblas.h>

#include "cpu_impl.h"

/* C[M,N] = A[M,K] B[N,K]^T, one product per thread with a C of its own and the same A and B. As large
 * as the workspace holds, so that nothing is allocated; this shape reaches within a few per cent of
 * what OpenBLAS does with matrices beyond any cache. */
#define PEAK_M BLOCK_Q
#define PEAK_N (2 * BLOCK_K)
#define PEAK_K 512
_Static_assert(PEAK_M *PEAK_N <= WORK_PER_THREAD && (PEAK_M + PEAK_N) * PEAK_K <= WORK_COLUMNS,
               "the products fit into the workspace");

double backend_peak_flops(const struct backend *be) {
    return 2.0 * PEAK_M * PEAK_N * PEAK_K * be->threads;
}

static void peak_body(const void *ctx, int64_t i, int thread) {
    const struct backend *be = ctx;
    const struct cpu_state *state = be->state;
    (void)thread;
    if (be->dtype == DTYPE_F32) {
        const float *a = state->columns, *b = a + PEAK_M * PEAK_K;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, PEAK_M, PEAK_N, PEAK_K, 1, a, PEAK_K,
                    b, PEAK_K, 0, (float *)state->per_thread + i * WORK_PER_THREAD, PEAK_N);
    } else {
        const double *a = state->columns, *b = a + PEAK_M * PEAK_K;
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, PEAK_M, PEAK_N, PEAK_K, 1, a, PEAK_K,
                    b, PEAK_K, 0, (double *)state->per_thread + i * WORK_PER_THREAD, PEAK_N);
    }
}

void backend_measure_peak(struct backend *be, int rounds, void (*together)(void *arg), void *arg,
                          double *seconds) {
    struct cpu_state *state = be->state;
    CHECK(!be->measuring, "a peak of the backend that only counts");
    /* Numbers of ordinary size: zeros would be faster than work, denormal numbers slower. */
    for (int64_t i = 0; i < (PEAK_M + PEAK_N) * PEAK_K; i++) {
        double value = (double)(i % 251) / 251 - 0.5;
        if (be->dtype == DTYPE_F32)
            ((float *)state->columns)[i] = (float)value;
        else
            ((double *)state->columns)[i] = value;
    }
    for (int round = 0; round < rounds; round++) {
        if (together != NULL) together(arg);
        double start = clock_seconds();
        cpu_parallel(be, be->threads, peak_body, be);
        seconds[round] = clock_seconds() - start;
    }
}
