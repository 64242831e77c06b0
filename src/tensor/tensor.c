/* dtype and matrix views. */
#include "tensor.h"

static const struct {
    const char *name;
    size_t size;
} dtype_table[DTYPE_COUNT] = {
    [DTYPE_F32] = {"fp32", 4}, [DTYPE_F64] = {"fp64", 8},  [DTYPE_BF16] = {"bf16", 2},
    [DTYPE_F16] = {"fp16", 2}, [DTYPE_I32] = {"int32", 4}, [DTYPE_I64] = {"int64", 8},
    [DTYPE_U8] = {"uint8", 1},
};

size_t dtype_size(enum dtype t) {
    CHECK((unsigned)t < DTYPE_COUNT, "dtype %d", (int)t);
    return dtype_table[t].size;
}

const char *dtype_name(enum dtype t) {
    CHECK((unsigned)t < DTYPE_COUNT, "dtype %d", (int)t);
    return dtype_table[t].name;
}

struct tensor tensor_view(void *data, int64_t rows, int64_t cols, enum dtype dtype) {
    CHECK(rows >= 0 && cols >= 0, "shape [%lld, %lld]", (long long)rows, (long long)cols);
    return (struct tensor){.data = data, .rows = rows, .cols = cols, .ld = cols, .dtype = dtype};
}

struct tensor tensor_alloc(struct arena *a, int64_t rows, int64_t cols, enum dtype dtype) {
    struct tensor t = tensor_view(NULL, rows, cols, dtype);
    t.data = arena_alloc(a, tensor_bytes(&t));
    return t;
}

/* The address of element (row, col); a tensor without memory (NULL) stays without. */
static void *tensor_at(const struct tensor *t, int64_t row, int64_t col) {
    if (t->data == NULL) return NULL;
    return (char *)t->data + (size_t)(row * t->ld + col) * dtype_size(t->dtype);
}

struct tensor tensor_rows(struct tensor t, int64_t first, int64_t n) {
    CHECK(first >= 0 && n >= 0 && first <= t.rows - n, "rows %lld + %lld of %lld", (long long)first,
          (long long)n, (long long)t.rows);
    t.data = tensor_at(&t, first, 0);
    t.rows = n;
    return t;
}

struct tensor tensor_cols(struct tensor t, int64_t first, int64_t n) {
    CHECK(first >= 0 && n >= 0 && first <= t.cols - n, "columns %lld + %lld of %lld",
          (long long)first, (long long)n, (long long)t.cols);
    t.data = tensor_at(&t, 0, first);
    t.cols = n;
    return t;
}

int64_t tensor_count(const struct tensor *t) {
    int64_t n;
    CHECK(!__builtin_mul_overflow(t->rows, t->cols, &n), "shape [%lld, %lld] overflows",
          (long long)t->rows, (long long)t->cols);
    return n;
}

size_t tensor_bytes(const struct tensor *t) {
    CHECK(tensor_contiguous(t), "a column slice (ld %lld, %lld columns) has no byte count",
          (long long)t->ld, (long long)t->cols);
    size_t bytes;
    CHECK(!__builtin_mul_overflow((size_t)tensor_count(t), dtype_size(t->dtype), &bytes),
          "shape [%lld, %lld] overflows", (long long)t->rows, (long long)t->cols);
    return bytes;
}
