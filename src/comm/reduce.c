/* Sums and maxima in natural rank order: the bits of an element depend on the members' values
 * alone, not on how the tensor was cut into messages. */
#include <string.h>

#include "comm_impl.h"

#define BLOCK 1024

/* x > acc is false when acc is NaN, and x != x takes a new NaN: once there, it stays. */
#define DEFINE_COMBINE(name, type)                                                                 \
    static void name(type *restrict acc, const type *restrict x, int64_t n, enum reduce_op op) {   \
        if (op == REDUCE_SUM)                                                                      \
            for (int64_t i = 0; i < n; i++) acc[i] += x[i];                                        \
        else                                                                                       \
            for (int64_t i = 0; i < n; i++)                                                        \
                acc[i] = x[i] > acc[i] || x[i] != x[i] ? x[i] : acc[i];                            \
    }
DEFINE_COMBINE(combine_f32, float)
DEFINE_COMBINE(combine_f64, double)

static void combine_i64(int64_t *restrict acc, const int64_t *restrict x, int64_t n,
                        enum reduce_op op) {
    for (int64_t i = 0; i < n; i++) {
        if (op == REDUCE_MAX) {
            acc[i] = x[i] > acc[i] ? x[i] : acc[i];
            continue;
        }
        CHECK(!__builtin_add_overflow(acc[i], x[i], &acc[i]), "integer sum over ranks overflows");
    }
}

static void combine(void *acc, const void *x, int64_t n, enum dtype dtype, enum reduce_op op) {
    if (dtype == DTYPE_F32)
        combine_f32(acc, x, n, op);
    else if (dtype == DTYPE_F64)
        combine_f64(acc, x, n, op);
    else
        combine_i64(acc, x, n, op);
}

void reduce_in_order(const void *const *source, int n_sources, void *out, int64_t n,
                     enum dtype dtype, enum reduce_op op) {
    CHECK(dtype == DTYPE_F32 || dtype == DTYPE_F64 || dtype == DTYPE_I64, "reduction over %s",
          dtype_name(dtype));
    int64_t size = (int64_t)dtype_size(dtype);
    /* The member's own values may lie in `out` and stand in the middle of the order, so a block is
     * summed aside first. */
    double acc[BLOCK];
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t count = n - first < BLOCK ? n - first : BLOCK;
        memcpy(acc, byte_at(source[0], first * size), (size_t)(count * size));
        for (int q = 1; q < n_sources; q++)
            combine(acc, byte_at(source[q], first * size), count, dtype, op);
        memcpy(byte_at(out, first * size), acc, (size_t)(count * size));
    }
}
