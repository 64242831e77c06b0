/* Peak of sgemm: GFLOP/s of OpenBLAS on square matrices beyond any cache, best of several.
 * Prints one number. Threads: OPENBLAS_NUM_THREADS, as for the run it is compared with. */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define EDGE 2048

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(void) {
    size_t n = (size_t)EDGE * EDGE;
    float *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b), *c = calloc(n, sizeof *c);
    if (!a || !b || !c) return 1;
    for (size_t i = 0; i < n; i++) {
        a[i] = (float)(i % 251) / 251 - 0.5f;
        b[i] = (float)(i % 241) / 241 - 0.5f;
    }
    double best = 0;
    for (int round = 0; round < 8; round++) {
        double begin = now();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, EDGE, EDGE, EDGE, 1, a, EDGE, b, EDGE,
                    0, c, EDGE);
        double rate = 2.0 * EDGE * EDGE * EDGE / (now() - begin) / 1e9;
        if (rate > best) best = rate;
    }
    printf("%.1f\n", best);
    free(a);
    free(b);
    free(c);
    return 0;
}
