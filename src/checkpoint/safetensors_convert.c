/* Element types of safetensors files, and their conversion to and from fp32. */
#include <math.h>
#include <string.h>

#include "safetensors.h"

static const struct {
    const char *name;
    size_t size;
} dtype_table[ST_DTYPES] = {
    [ST_BOOL] = {"BOOL", 1}, [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_I16] = {"I16", 2},   [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_F8_E5M2] = {"F8_E5M2", 1},
    [ST_U16] = {"U16", 2},   [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I32] = {"I32", 4},   [ST_U32] = {"U32", 4},         [ST_F32] = {"F32", 4},
    [ST_F64] = {"F64", 8},   [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
};

size_t safetensors_dtype_size(enum safetensors_dtype t) {
    CHECK((unsigned)t < ST_DTYPES, "dtype %d", (int)t);
    return dtype_table[t].size;
}

const char *safetensors_dtype_name(enum safetensors_dtype t) {
    CHECK((unsigned)t < ST_DTYPES, "dtype %d", (int)t);
    return dtype_table[t].name;
}

int64_t safetensor_count(const struct safetensor *t) {
    int64_t n = 1;
    for (int d = 0; d < t->n_dims; d++) n *= t->shape[d];
    return n;
}

void safetensor_shape_text(const struct safetensor *t, char *text, size_t size) {
    size_t used = 0;
    snprintf(text, size, "scalar");
    for (int d = 0; d < t->n_dims && used < size; d++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", d ? "x" : "",
                                 (long long)t->shape[d]);
}

/* bf16 is the upper half of fp32; a NaN keeps its upper bits and stays one. */
static float float_of_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint16_t bf16_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* 65519.996.. rounds to 65504, 65520 is the first value that would become infinite. */
#define F16_MAX 65504.0f
#define F16_OVERFLOW 65520.0f

static _Float16 f16_of_float(float f, struct safetensors_rounding *r) {
    if (isfinite(f) && !(fabsf(f) < F16_OVERFLOW)) {
        r->clamped++;
        return (_Float16)copysignf(F16_MAX, f);
    }
    _Float16 h = (_Float16)f;
    if (f != 0.0f && h == (_Float16)0.0f) r->flushed++;
    return h;
}

void safetensors_to_float(enum safetensors_dtype from, const void *in, int64_t n, float *out) {
    switch (from) {
    case ST_F32:
        memcpy(out, in, (size_t)n * sizeof *out);
        return;
    case ST_F64:
        for (int64_t i = 0; i < n; i++) out[i] = (float)((const double *)in)[i];
        return;
    case ST_BF16:
        for (int64_t i = 0; i < n; i++) out[i] = float_of_bf16(((const uint16_t *)in)[i]);
        return;
    case ST_F16:
        for (int64_t i = 0; i < n; i++) out[i] = (float)((const _Float16 *)in)[i];
        return;
    default:
        CHECK(false, "no conversion from %s", safetensors_dtype_name(from));
    }
}

void safetensors_from_float(const float *in, int64_t n, enum safetensors_dtype to, void *out,
                            struct safetensors_rounding *rounding) {
    switch (to) {
    case ST_F32:
        memcpy(out, in, (size_t)n * sizeof *in);
        return;
    case ST_F64:
        for (int64_t i = 0; i < n; i++) ((double *)out)[i] = (double)in[i];
        return;
    case ST_BF16:
        for (int64_t i = 0; i < n; i++) ((uint16_t *)out)[i] = bf16_of_float(in[i]);
        return;
    case ST_F16:
        for (int64_t i = 0; i < n; i++) ((_Float16 *)out)[i] = f16_of_float(in[i], rounding);
        return;
    default:
        CHECK(false, "no conversion to %s", safetensors_dtype_name(to));
    }
}
