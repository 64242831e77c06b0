/* Private to backend/cpu. Every file of this folder is compiled twice, with STRATA_REAL 32 and 64:
 * `real` is the working type and NAME(x) the external name x_cpu32 or x_cpu64.
 * Sums run over a fixed number of lanes, so they depend on the length of a row and on nothing else.
 */
#ifndef STRATA_REAL_IMPL_H
#define STRATA_REAL_IMPL_H

#include <math.h>
#include <string.h>

#include "../cpu_impl.h"

#if STRATA_REAL == 32
typedef float real;
#define NAME(x) x##_cpu32
#define REAL_DTYPE DTYPE_F32
#define CBLAS_GEMM cblas_sgemm
#define REAL_FMA __builtin_fmaf
#elif STRATA_REAL == 64
typedef double real;
#define NAME(x) x##_cpu64
#define REAL_DTYPE DTYPE_F64
#define CBLAS_GEMM cblas_dgemm
#define REAL_FMA __builtin_fma
#else
#error "STRATA_REAL must be 32 or 64"
#endif

/* Iterations are independent, also when an output is the input itself. */
#define EACH _Pragma("omp simd") for

static inline real *row_of(const struct tensor *t, int64_t row) {
    return (real *)t->data + row * t->ld;
}

static inline void need_shape(const struct tensor *t, int64_t rows, int64_t cols,
                              const char *what) {
    CHECK(t->dtype == REAL_DTYPE && t->rows == rows && t->cols == cols,
          "%s is %s [%ld,%ld] instead of %s [%ld,%ld]", what, dtype_name(t->dtype), (long)t->rows,
          (long)t->cols, dtype_name(REAL_DTYPE), (long)rows, (long)cols);
}
#define NEED(t, n_rows, n_cols) need_shape(t, n_rows, n_cols, #t)

/* ---- reductions ---------------------------------------------------------------------------- */

#define LANE_COUNT ((int64_t)(64 / sizeof(real)))
typedef real lanes __attribute__((vector_size(64), aligned(sizeof(real)), may_alias));

static inline lanes lanes_at(const real *x) {
    return *(const lanes *)x;
}

static inline real lanes_total(lanes a) {
    real v[64 / sizeof(real)];
    memcpy(v, &a, sizeof v);
    for (int64_t half = LANE_COUNT / 2; half >= 1; half /= 2)
        for (int64_t i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

/* Sum over i < n of TERM, written with LOAD(pointer) for the elements of a row at i: two vectors of
 * lanes, then the rest, one element per lane. */
#define LANES_SUM(result, n, TERM)                                                                 \
    do {                                                                                           \
        lanes sum0_ = {0}, sum1_ = {0};                                                            \
        int64_t i_ = 0;                                                                            \
        for (; i_ + 2 * LANE_COUNT <= (n); i_ += 2 * LANE_COUNT) {                                 \
            sum0_ += TERM(lanes_at, i_);                                                           \
            sum1_ += TERM(lanes_at, i_ + LANE_COUNT);                                              \
        }                                                                                          \
        if (i_ + LANE_COUNT <= (n)) {                                                              \
            sum0_ += TERM(lanes_at, i_);                                                           \
            i_ += LANE_COUNT;                                                                      \
        }                                                                                          \
        for (int lane_ = 0; i_ < (n); i_++, lane_++) sum1_[lane_] += TERM(one_at, i_);             \
        (result) = lanes_total(sum0_ + sum1_);                                                     \
    } while (0)

static inline real one_at(const real *x) {
    return *x;
}

static inline real row_sum(const real *x, int64_t n) {
    real sum;
#define TERM(at, i) at(x + (i))
    LANES_SUM(sum, n, TERM);
#undef TERM
    return sum;
}

static inline real row_dot(const real *x, const real *y, int64_t n) {
    real sum;
#define TERM(at, i) (at(x + (i)) * at(y + (i)))
    LANES_SUM(sum, n, TERM);
#undef TERM
    return sum;
}

/* Largest element, start if there is none above it. A NaN is passed over: what is computed from the
 * maximum finds it again. */
static inline real row_max(const real *x, int64_t n, real start) {
    real v[32];
    for (int l = 0; l < 32; l++) v[l] = start;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        EACH (int l = 0; l < 32; l++) v[l] = x[i + l] > v[l] ? x[i + l] : v[l];
    for (int l = 0; i < n; i++, l++) v[l] = x[i] > v[l] ? x[i] : v[l];
    for (int half = 16; half >= 1; half /= 2)
        for (int l = 0; l < half; l++) v[l] = v[l + half] > v[l] ? v[l + half] : v[l];
    return v[0];
}

/* ---- exponential --------------------------------------------------------------------------- */

/* exp(x) = 2^k exp(r), k = rint(x / log 2), |r| <= log(2)/2, exp(r) by its Taylor series in Horner
 * form (remainder 5e-9 in fp32, 4e-18 in fp64). Adding 1.5 * 2^(mantissa bits) rounds to an integer
 * and leaves it in the low bits; 2^k is two factors, because k reaches one above the largest
 * exponent. Below the smallest normal number the result is 0. */
#if STRATA_REAL == 32
#define EXP_LOW (-87.33654f)
#define EXP_HIGH 88.72284f
static inline float power_of_two(uint32_t k) {
    uint32_t bits = (k + 127u) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline float exp_real(float x) {
    float t = __builtin_fmaf(x, 0x1.715476p+0f, 0x1.8p23f), k = t - 0x1.8p23f;
    float r = __builtin_fmaf(k, -0x1.62e4p-1f, x);
    r = __builtin_fmaf(k, -0x1.7f7d1cp-20f, r);
    float p = 1.0f / 5040;
    p = __builtin_fmaf(p, r, 1.0f / 720);
    p = __builtin_fmaf(p, r, 1.0f / 120);
    p = __builtin_fmaf(p, r, 1.0f / 24);
    p = __builtin_fmaf(p, r, 1.0f / 6);
    p = __builtin_fmaf(p, r, 0.5f);
    p = __builtin_fmaf(p, r, 1.0f);
    p = __builtin_fmaf(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    uint32_t whole = bits - 0x4b400000u, half = (uint32_t)((int32_t)whole >> 1);
    float y = p * power_of_two(half) * power_of_two(whole - half);
    y = x > EXP_HIGH ? HUGE_VALF : y;
    return x < EXP_LOW ? 0.0f : y;
}
#else
#define EXP_LOW (-708.39641853226408)
#define EXP_HIGH 709.78271289338397
static inline double power_of_two(uint64_t k) {
    uint64_t bits = (k + 1023u) << 52;
    double f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
static inline double exp_real(double x) {
    double t = __builtin_fma(x, 0x1.71547652b82fep+0, 0x1.8p52), k = t - 0x1.8p52;
    double r = __builtin_fma(k, -0x1.62e42fefa39efp-1, x);
    r = __builtin_fma(k, -0x1.abc9e3b39803fp-56, r);
    double p = 1.0 / 6227020800;
    p = __builtin_fma(p, r, 1.0 / 479001600);
    p = __builtin_fma(p, r, 1.0 / 39916800);
    p = __builtin_fma(p, r, 1.0 / 3628800);
    p = __builtin_fma(p, r, 1.0 / 362880);
    p = __builtin_fma(p, r, 1.0 / 40320);
    p = __builtin_fma(p, r, 1.0 / 5040);
    p = __builtin_fma(p, r, 1.0 / 720);
    p = __builtin_fma(p, r, 1.0 / 120);
    p = __builtin_fma(p, r, 1.0 / 24);
    p = __builtin_fma(p, r, 1.0 / 6);
    p = __builtin_fma(p, r, 0.5);
    p = __builtin_fma(p, r, 1.0);
    p = __builtin_fma(p, r, 1.0);
    uint64_t bits;
    memcpy(&bits, &t, sizeof bits);
    uint64_t whole = bits - 0x4338000000000000u, half = (uint64_t)((int64_t)whole >> 1);
    double y = p * power_of_two(half) * power_of_two(whole - half);
    y = x > EXP_HIGH ? HUGE_VAL : y;
    return x < EXP_LOW ? 0.0 : y;
}
#endif

/* C[m,n] = op(A) op(B) + beta C, row-major, beta 0 or 1, on the calling thread; takes nothing from the
 * heap. op(A) is [m,k], op(B) is [k,n]; an operand with its flag set is stored transposed. */
void NAME(gemm)(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, const real *a,
                int64_t lda, const real *b, int64_t ldb, real beta, real *c, int64_t ldc);

/* ---- the operations: names as in backend.h ------------------------------------------------- */

void NAME(linear_forward)(struct backend *, const struct tensor *, const struct tensor *,
                          const struct tensor *, const struct tensor *);
void NAME(linear_dgrad)(struct backend *, const struct tensor *, const struct tensor *,
                        const struct tensor *, bool);
void NAME(linear_wgrad)(struct backend *, const struct tensor *, const struct tensor *,
                        const struct tensor *);
void NAME(bias_grad)(struct backend *, const struct tensor *, const struct tensor *);
void NAME(norm_forward)(struct backend *, enum norm_kind, double, const struct tensor *,
                        const struct tensor *, const struct tensor *, const struct tensor *,
                        const struct tensor *);
void NAME(norm_backward)(struct backend *, enum norm_kind, const struct tensor *,
                         const struct tensor *, const struct tensor *, const struct tensor *,
                         const struct tensor *, bool, const struct tensor *, const struct tensor *);
void NAME(act_forward)(struct backend *, enum act_kind, const struct tensor *,
                       const struct tensor *);
void NAME(act_backward)(struct backend *, enum act_kind, const struct tensor *,
                        const struct tensor *, const struct tensor *);
void NAME(glu_forward)(struct backend *, enum act_kind, const struct tensor *,
                       const struct tensor *);
void NAME(glu_backward)(struct backend *, enum act_kind, const struct tensor *,
                        const struct tensor *, const struct tensor *);
void NAME(rope_table)(struct backend *, const float *, double, const struct tensor *);
void NAME(rope)(struct backend *, const struct tensor *, int64_t, int64_t, const struct tensor *,
                const int32_t *, bool);
void NAME(attention_forward)(struct backend *, const struct attention *, const struct tensor *,
                             const struct tensor *, const struct tensor *, const struct tensor *,
                             const struct tensor *);
void NAME(attention_backward)(struct backend *, const struct attention *, const struct tensor *,
                              const struct tensor *, const struct tensor *, const struct tensor *,
                              const struct tensor *, const struct tensor *, const struct tensor *,
                              const struct tensor *, const struct tensor *, const struct tensor *);
void NAME(bias_dropout_add)(struct backend *, const struct tensor *, const struct tensor *,
                            const struct tensor *, const struct dropout *, const struct tensor *);
void NAME(dropout_backward)(struct backend *, const struct tensor *, const struct dropout *,
                            const struct tensor *);
void NAME(add)(struct backend *, const struct tensor *, const struct tensor *);
void NAME(rows_gather)(struct backend *, const struct tensor *, const int32_t *,
                       const struct tensor *);
void NAME(rows_scatter)(struct backend *, const struct tensor *, const int32_t *,
                        const struct tensor *);
void NAME(rows_scatter_add)(struct backend *, const struct tensor *, const int32_t *,
                            const struct tensor *);
void NAME(patchify)(struct backend *, const float *, int64_t, int64_t, int64_t, int64_t, int64_t,
                    const struct tensor *);
void NAME(class_position_forward)(struct backend *, const struct tensor *, const struct tensor *,
                                  const struct tensor *, const struct tensor *);
void NAME(class_position_backward)(struct backend *, const struct tensor *, const struct tensor *,
                                   const struct tensor *, const struct tensor *);
void NAME(cross_entropy_max)(struct backend *, const struct tensor *, const struct tensor *);
void NAME(cross_entropy_sums)(struct backend *, const struct cross_entropy *, const struct tensor *,
                              const struct tensor *, const int32_t *, const struct tensor *);
void NAME(cross_entropy_finish)(struct backend *, const struct cross_entropy *,
                                const struct tensor *, const struct tensor *, const struct tensor *,
                                const int32_t *, bool, const struct tensor *);
double NAME(sum_squares)(struct backend *, const struct tensor *);
void NAME(scale)(struct backend *, const struct tensor *, double);
void NAME(adamw_step)(struct backend *, const struct adamw *, int64_t, void *, void *, const void *,
                      void *, void *);
void NAME(sgd_step)(struct backend *, double, double, double, double, int64_t, void *, void *,
                    const void *, void *);

#endif
