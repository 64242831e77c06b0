/* CPU backend: conversion between element types, sum of fp64. */
#include <string.h>

#include "cpu_impl.h"

/* bf16 is the upper half of fp32, rounded to nearest even; a NaN stays one. */
static uint16_t bf16_from_float(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    return (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

static float bf16_to_float(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* fp64 to a 16-bit type goes through fp32: what strata rounds is the fp32 master. */
#define CHUNK 512
static void load_row(enum dtype type, const void *from, int64_t at, int64_t n, float *to) {
    switch (type) {
    case DTYPE_F32:
        memcpy(to, (const float *)from + at, (size_t)n * sizeof *to);
        break;
    case DTYPE_F64:
        for (int64_t i = 0; i < n; i++) to[i] = (float)((const double *)from)[at + i];
        break;
    case DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) to[i] = bf16_to_float(((const uint16_t *)from)[at + i]);
        break;
    case DTYPE_F16:
        for (int64_t i = 0; i < n; i++) to[i] = (float)((const _Float16 *)from)[at + i];
        break;
    default:
        CHECK(false, "no conversion from %s", dtype_name(type));
    }
}

static void store_row(enum dtype type, const float *from, int64_t n, void *to, int64_t at) {
    switch (type) {
    case DTYPE_F32:
        memcpy((float *)to + at, from, (size_t)n * sizeof *from);
        break;
    case DTYPE_F64:
        for (int64_t i = 0; i < n; i++) ((double *)to)[at + i] = (double)from[i];
        break;
    case DTYPE_BF16:
        for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[at + i] = bf16_from_float(from[i]);
        break;
    case DTYPE_F16:
        for (int64_t i = 0; i < n; i++) ((_Float16 *)to)[at + i] = (_Float16)from[i];
        break;
    default:
        CHECK(false, "no conversion to %s", dtype_name(type));
    }
}

struct conversion {
    const struct tensor *from, *to;
    struct tiles tiles;
};

static void convert_body(const void *ctx, int64_t i, int thread) {
    (void)thread;
    const struct conversion *c = ctx;
    struct tile t = tiles_at(&c->tiles, i);
    enum dtype from = c->from->dtype, to = c->to->dtype;
    size_t size = dtype_size(from);
    float chunk[CHUNK];
    for (int64_t r = t.row; r < t.row_end; r++) {
        int64_t src = r * c->from->ld, dst = r * c->to->ld;
        if (from == to) {
            memcpy((char *)c->to->data + (size_t)(dst + t.col) * size,
                   (const char *)c->from->data + (size_t)(src + t.col) * size,
                   (size_t)(t.col_end - t.col) * size);
            continue;
        }
        for (int64_t col = t.col; col < t.col_end; col += CHUNK) {
            int64_t n = t.col_end - col < CHUNK ? t.col_end - col : CHUNK;
            load_row(from, c->from->data, src + col, n, chunk);
            store_row(to, chunk, n, c->to->data, dst + col);
        }
    }
}

void convert_cpu(struct backend *be, const struct tensor *from, const struct tensor *to) {
    CHECK(from->rows == to->rows && from->cols == to->cols, "convert [%ld,%ld] to [%ld,%ld]",
          (long)from->rows, (long)from->cols, (long)to->rows, (long)to->cols);
    struct conversion c = {from, to, tiles_elements(to->rows, to->cols)};
    cpu_parallel(be, c.tiles.n, convert_body, &c);
}

double sum_f64_cpu(struct backend *be, const struct tensor *x) {
    (void)be;
    CHECK(x->dtype == DTYPE_F64, "sum_f64 of %s", dtype_name(x->dtype));
    double sum = 0;
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t c = 0; c < x->cols; c++) sum += ((const double *)x->data)[r * x->ld + c];
    return sum;
}
