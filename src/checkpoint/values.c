/* Tensors in slices, and their elements as numbers. */
#include <string.h>

#include "safetensors.h"
#include "tools_impl.h"

struct box tensor_box(const struct ckpt_tensor *t) {
    struct box b = {.n = t->n_dims};
    memcpy(b.count, t->shape, sizeof b.count);
    return b;
}

int64_t tensor_total_bytes(const struct ckpt_tensor *t) {
    struct box b = tensor_box(t);
    return box_volume(&b) * (int64_t)dtype_size(t->dtype);
}

void tensor_shape_text(const struct ckpt_tensor *t, char *text, size_t size) {
    size_t used = 0;
    for (int d = 0; d < t->n_dims && used < size; d++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", d ? "x" : "",
                                 (long long)t->shape[d]);
}

bool box_next_slice(const struct box *whole, size_t element, int64_t max_bytes, int64_t *at,
                    struct box *slice) {
    int64_t rows = whole->count[0], row = box_volume(whole) / rows * (int64_t)element;
    int64_t n = max_bytes / row > 0 ? max_bytes / row : 1;
    if (*at >= rows) return false;
    *slice = *whole;
    slice->offset[0] += *at;
    slice->count[0] = rows - *at < n ? rows - *at : n;
    *at += n;
    return true;
}

void block_add_crc(struct ckpt_block *b, int64_t at, const char *host, int64_t n) {
    for (int64_t done = 0; done < n;) {
        int64_t k = (at + done) / CKPT_CRC_BLOCK, left = (k + 1) * CKPT_CRC_BLOCK - at - done;
        if (left > n - done) left = n - done;
        if ((at + done) % CKPT_CRC_BLOCK == 0) b->crc[k] = 0;
        b->crc[k] = crc32c(b->crc[k], host + done, (size_t)left);
        done += left;
    }
}

/* Types that fp32 holds exactly are converted where all such conversions are. */
static double value_to_double(enum dtype t, const char *at) {
    float f;
    double d;
    int32_t i;
    int64_t l;
    switch (t) {
    case DTYPE_F64:
        memcpy(&d, at, 8);
        return d;
    case DTYPE_I32:
        memcpy(&i, at, 4);
        return (double)i;
    case DTYPE_I64:
        memcpy(&l, at, 8);
        return (double)l;
    case DTYPE_F32:
    case DTYPE_BF16:
    case DTYPE_F16:
        values_to_float(t, at, 1, &f);
        return (double)f;
    default:
        return (double)*(const uint8_t *)at;
    }
}

void values_to_float(enum dtype t, const void *from, int64_t n, float *to) {
    static const enum safetensors_dtype as[DTYPE_COUNT] = {
        [DTYPE_F32] = ST_F32, [DTYPE_F64] = ST_F64, [DTYPE_BF16] = ST_BF16, [DTYPE_F16] = ST_F16};
    CHECK(t < DTYPE_COUNT && safetensors_dtype_size(as[t]) == dtype_size(t),
          "no conversion from %s", dtype_name(t));
    safetensors_to_float(as[t], from, n, to);
}

void values_to_double(enum dtype t, const void *from, int64_t n, double *to) {
    size_t size = dtype_size(t);
    for (int64_t i = 0; i < n; i++)
        to[i] = value_to_double(t, (const char *)from + (size_t)i * size);
}
