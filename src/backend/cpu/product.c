/* The one door to the library's matrix product.
 *
 * OpenBLAS's small-matrix kernels for AVX-512 (SkylakeX, Cooperlake, SapphireRapids) call malloc and
 * free in some products: those without a transposed operand of at most 10^6 multiplications whose
 * last few columns, n modulo a vector of 64 bytes, are 1 to half a vector, over at least two vectors
 * of k. A training step allocates nothing, so the library computes the columns before those, for which
 * it does not allocate, and the few columns are computed here. */
#include <cblas.h>

#include "real_impl.h"

#define FEW (LANE_COUNT / 2) /* columns that are computed here, at most */
#define FEW_ROWS 8           /* rows at a time: their sums hide the latency of an fma */
#define FEW_DEPTH 128        /* rows of B that are packed at a time: 4 KiB of stack */
typedef real few __attribute__((vector_size(32), aligned(sizeof(real)), may_alias));

static inline few few_fma(real a, few b, few c) {
    for (int l = 0; l < FEW; l++) c[l] = REAL_FMA(a, b[l], c[l]);
    return c;
}

static inline few few_load(const real *x, int64_t n) {
    few v = {0};
    if (n == FEW) return *(const few *)x;
    for (int64_t l = 0; l < n; l++) v[l] = x[l];
    return v;
}

static inline void few_store(real *x, int64_t n, few v) {
    if (n == FEW) *(few *)x = v;
    for (int64_t l = 0; n < FEW && l < n; l++) x[l] = v[l];
}

/* c[r][0..n) += a[r][0..depth) b for the rows r of a block; each element is one chain of fma in the
 * order of k, whatever the number of rows. Inlined, because the rows must be constant to be kept in
 * registers. */
static inline __attribute__((always_inline)) void few_rows(int rows, int64_t n, int64_t depth,
                                                           const real *a, int64_t lda, const few *b,
                                                           real *c, int64_t ldc) {
    few sum[FEW_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r] = few_load(c + r * ldc, n);
    for (int64_t k = 0; k < depth; k++)
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r] = few_fma(a[r * lda + k], b[k], sum[r]);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) few_store(c + r * ldc, n, sum[r]);
}

/* C[m,n] = A[m,k] B[k,n] + beta C, row-major, n <= FEW, beta 0 or 1. */
static void few_columns(int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b,
                        int64_t ldb, real beta, real *c, int64_t ldc) {
    few packed[FEW_DEPTH];
    for (int64_t r = 0; r < m && beta == 0; r++) few_store(c + r * ldc, n, (few){0});
    for (int64_t k0 = 0; k0 < k; k0 += FEW_DEPTH) {
        int64_t depth = k - k0 < FEW_DEPTH ? k - k0 : FEW_DEPTH, r = 0;
        for (int64_t i = 0; i < depth; i++) packed[i] = few_load(b + (k0 + i) * ldb, n);
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
