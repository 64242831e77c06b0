/* The one door to the library's matrix product.
 *
 * OpenBLAS's small-matrix kernels for AVX-512 (SkylakeX, Cooperlake, SapphireRapids) call malloc and
 * free in some products: those without a transposed operand of at most 10^6 multiplications whose
 * last few columns, n modulo a vector of 64 bytes, are 1 to half a vector, over at least two vectors
 * of k. A training step allocates nothing, so the library computes the columns before those, for which
 * it does not allocate, and the few columns are computed here. */
#include <cblas.h>
#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

#include "real_impl.h"

#define FEW (LANE_COUNT / 2) /* columns that are computed here, at most */
#define FEW_ROWS 8           /* rows at a time: their sums hide the latency of an fma */
#define FEW_PAIRS 64         /* pairs of rows of B that are packed at a time: 4 KiB of stack */

/* c + (a[0], a[1], a[0], a[1], ...) b, each lane by one fma. GCC 12 makes vectors of 64 bytes of no
 * loop over fma, hence the intrinsics. */
#if defined(__AVX512DQ__) && STRATA_REAL == 32
static inline lanes fma_pair(const real *a, lanes b, lanes c) {
    double pair;
    memcpy(&pair, a, sizeof pair);
    return (lanes)_mm512_fmadd_ps(_mm512_castpd_ps(_mm512_set1_pd(pair)), (__m512)b, (__m512)c);
}
#elif defined(__AVX512DQ__)
static inline lanes fma_pair(const real *a, lanes b, lanes c) {
    return (lanes)_mm512_fmadd_pd(_mm512_broadcast_f64x2(_mm_loadu_pd(a)), (__m512d)b, (__m512d)c);
}
#else
static inline lanes fma_pair(const real *a, lanes b, lanes c) {
    for (int l = 0; l < LANE_COUNT; l++) c[l] = REAL_FMA(a[l % 2], b[l], c[l]);
    return c;
}
#endif

/* c[r][j] += a[r][0..depth) b[.][j] for the rows r of a block. Each vector of b holds two rows of B,
 * element by element in turn, so an element of c is two chains of fma, over the even and the odd k,
 * whatever the number of rows. Inlined, because the rows must be constant to stay in registers. */
static inline __attribute__((always_inline)) void few_rows(int rows, int64_t n, int64_t depth,
                                                           const real *a, int64_t lda,
                                                           const lanes *b, real *c, int64_t ldc) {
    lanes sum[FEW_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r] = (lanes){0};
    for (int64_t k = 0; k + 1 < depth; k += 2)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r] = fma_pair(a + r * lda + k, b[k / 2], sum[r]);
    if (depth % 2)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
            sum[r] = fma_pair((real[]){a[r * lda + depth - 1], 0}, b[depth / 2], sum[r]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < n; j++) c[r * ldc + j] += sum[r][2 * j] + sum[r][2 * j + 1];
}

/* packed[i] = rows 2i and 2i+1 of b[depth,n], element by element in turn; zeros beside them. */
static void pack_pairs(int64_t n, int64_t depth, const real *b, int64_t ldb, lanes *packed) {
    for (int64_t i = 0; 2 * i < depth; i++) {
        real *p = (real *)&packed[i];
        const real *even = b + 2 * i * ldb;
        packed[i] = (lanes){0};
        for (int64_t j = 0; j < n; j++) {
            p[2 * j] = even[j];
            if (2 * i + 1 < depth) p[2 * j + 1] = even[ldb + j];
        }
    }
}

/* C[m,n] = A[m,k] B[k,n] + beta C, row-major, n <= FEW, beta 0 or 1. */
static void few_columns(int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b,
                        int64_t ldb, real beta, real *c, int64_t ldc) {
    lanes packed[FEW_PAIRS];
    for (int64_t r = 0; r < m && beta == 0; r++)
        for (int64_t j = 0; j < n; j++) c[r * ldc + j] = 0;
    for (int64_t k0 = 0; k0 < k; k0 += 2 * FEW_PAIRS) {
        int64_t depth = k - k0 < 2 * FEW_PAIRS ? k - k0 : 2 * FEW_PAIRS, r = 0;
        pack_pairs(n, depth, b + k0 * ldb, ldb, packed);
        for (; r + 8 <= m; r += 8)
            few_rows(8, n, depth, a + r * lda + k0, lda, packed, c + r * ldc, ldc);
        if (r + 4 <= m) {
            few_rows(4, n, depth, a + r * lda + k0, lda, packed, c + r * ldc, ldc);
            r += 4;
        }
        for (; r < m; r++) few_rows(1, n, depth, a + r * lda + k0, lda, packed, c + r * ldc, ldc);
    }
}

/* The kernel sets with small-matrix kernels, by the names that OpenBLAS has for them. */
static bool kernels_allocate(void) {
    const char *name = openblas_get_corename();
    return strcmp(name, "SkylakeX") == 0 || strcmp(name, "Cooperlake") == 0 ||
           strcmp(name, "SapphireRapids") == 0;
}

#define SMALL_LIMIT 1e6 /* multiplications, above which OpenBLAS takes its packed kernels */

void NAME(gemm)(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const real *a,
                int64_t lda, const real *b, int64_t ldb, real beta, real *c, int64_t ldc) {
    int64_t rest = n % LANE_COUNT;
    bool few_here = !trans_a && !trans_b && rest >= 1 && rest <= FEW && k >= 2 * LANE_COUNT &&
                    (double)m * (double)n * (double)k <= SMALL_LIMIT && kernels_allocate();
    int64_t here = few_here ? rest : 0;
    if (n > here)
        CBLAS_GEMM(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans,
                   trans_b ? CblasTrans : CblasNoTrans, (int)m, (int)(n - here), (int)k, 1, a,
                   (int)lda, b, (int)ldb, beta, c, (int)ldc);
    if (here) few_columns(m, here, k, a, lda, b + n - here, ldb, beta, c + n - here, ldc);
}
