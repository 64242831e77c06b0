/* What the tests of comm share: verdicts over all ranks, data as a function of (seed, rank, index),
 * a backend that has memory and nothing else. */
#ifndef STRATA_COMM_TEST_H
#define STRATA_COMM_TEST_H

#include <stdlib.h>
#include <string.h>

#include "../../src/comm/comm_impl.h"

static int test_failures;

/* Collective over the world: passes if `good` on every rank. */
static inline void verdict(const struct grid *grid, bool good, const char *name) {
    int bad = comm_vote(grid_group(grid, GROUP_WORLD), good ? 0 : 1);
    test_failures += bad != 0;
    if (comm_world_rank() == 0) printf("%s - %s\n", bad ? "not ok" : "ok", name);
}

static inline void *test_mem_alloc(struct backend *be, size_t bytes) {
    (void)be;
    return malloc(bytes);
}
static inline void test_mem_free(struct backend *be, void *p) {
    (void)be;
    free(p);
}
static inline void test_copy(struct backend *be, void *to, const void *from, size_t bytes) {
    (void)be;
    memcpy(to, from, bytes);
}
static const struct backend_ops test_backend_ops = {
    .name = "test", .mem_alloc = test_mem_alloc, .mem_free = test_mem_free, .copy = test_copy};

/* In [-1, 1), with all bits of the mantissa in use. */
static inline double value_at(int seed, int rank, int64_t i) {
    uint64_t x = (uint64_t)seed * 0x9E3779B97F4A7C15u + (uint64_t)rank * 0xD1B54A32D192ED03u +
                 (uint64_t)i * 0x94D049BB133111EBu;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return (double)(int64_t)(x ^ (x >> 31)) / 9223372036854775808.0;
}

static inline void store(void *data, enum dtype dtype, int64_t i, double v) {
    if (dtype == DTYPE_F32)
        ((float *)data)[i] = (float)v;
    else
        ((double *)data)[i] = v;
}
static inline double load(const void *data, enum dtype dtype, int64_t i) {
    return dtype == DTYPE_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}
static inline struct tensor tensor_new(int64_t rows, int64_t cols, enum dtype dtype) {
    struct tensor t = tensor_view(NULL, rows, cols, dtype);
    t.data = xcalloc((size_t)(rows * cols) + 1, dtype_size(dtype));
    return t;
}
static inline struct tensor tensor_filled(int64_t rows, int64_t cols, enum dtype dtype, int seed,
                                          int rank) {
    struct tensor t = tensor_new(rows, cols, dtype);
    for (int64_t i = 0; i < rows * cols; i++) store(t.data, dtype, i, value_at(seed, rank, i));
    return t;
}
/* (v0 + v1) + v2 ... of `ranks` ranks in the precision of the tensor. */
static inline void serial_sum(struct tensor *out, int seed, int ranks) {
    for (int64_t i = 0; i < tensor_count(out); i++) {
        if (out->dtype == DTYPE_F64) {
            double sum = value_at(seed, 0, i);
            for (int q = 1; q < ranks; q++) sum += value_at(seed, q, i);
            ((double *)out->data)[i] = sum;
        } else {
            float sum = (float)value_at(seed, 0, i);
            for (int q = 1; q < ranks; q++) sum += (float)value_at(seed, q, i);
            ((float *)out->data)[i] = sum;
        }
    }
}
static inline bool same_bits(const struct tensor *a, const struct tensor *b) {
    return memcmp(a->data, b->data, tensor_bytes(a)) == 0;
}

#endif
