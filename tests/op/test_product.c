/* kernels: all */
/* Small products: each shape beside plain loops in double, and nothing is taken from the heap, also by
 * the library's small-matrix kernels, whose choice depends on the shape. */
#include "op/kit.h"

#include <stdatomic.h>

static atomic_long calls;

#ifndef __SANITIZE_ADDRESS__ /* ASan has an allocator of its own; the values are compared all the same */
extern void *__libc_malloc(size_t);
extern void *malloc(size_t n);
void *malloc(size_t n) {
    calls++;
    return __libc_malloc(n);
}
#endif

struct shapes {
    const int64_t *at;
    int n;
};
#define SHAPES(...)                                                                                \
    (struct shapes) {                                                                              \
        (const int64_t[]){__VA_ARGS__}, sizeof(int64_t[]){__VA_ARGS__} / sizeof(int64_t)           \
    }

/* c = a b + before, in the order of k. */
static struct mat plain(const struct mat *a, const struct mat *b, const struct mat *before) {
    struct mat c = mat_copy(*before);
    for (int64_t i = 0; i < c.rows; i++)
        for (int64_t k = 0; k < a->cols; k++)
            for (int64_t j = 0; j < c.cols; j++)
                *mat_at(&c, i, j) += *mat_at(a, i, k) * *mat_at(b, k, j);
    return c;
}

/* y = x w^T (+ bias none), dx = dy w, dw = dy^T x of one shape: m rows, k and n columns of w. */
static void check_shape(struct kit *kit, const struct kit_backend *b, int64_t m, int64_t n,
                        int64_t k) {
    const struct backend_ops *ops = kit->be->ops;
    struct mat a = mat_random(m, k, 1, 1), w = mat_random(k, n, 1, 2), old = mat_random(m, n, 1, 3);
    struct mat none = mat_make(m, n);
    for (int add = 0; add < 2; add++) {
        struct tensor dy = kit_tensor(kit, a), wt = kit_tensor(kit, w), dx = kit_tensor(kit, old);
        long before = calls;
        ops->linear_dgrad(kit->be, &dy, &wt, &dx, add);
        long taken = calls - before;
        struct mat got = kit_download(kit, dx), want = plain(&a, &w, add ? &old : &none);
        double diff = mat_diff(&got, &want);
        if (taken != 0)
            fail_msg("%s: a product [%ld,%ld] by [%ld,%ld] took memory %ld times", b->name, (long)m,
                     (long)k, (long)k, (long)n, taken);
        if (!(diff <= b->tolerance))
            fail_msg("%s: a product [%ld,%ld] by [%ld,%ld] differs by %.3g, allowed %.3g", b->name,
                     (long)m, (long)k, (long)k, (long)n, diff, b->tolerance);
        mat_free(&got);
        mat_free(&want);
        kit_free_tensors(kit);
    }
    mat_free(&a);
    mat_free(&w);
    mat_free(&old);
    mat_free(&none);
}

/* Columns around multiples of half a vector, inner lengths around those where OpenBLAS changes its
 * kernel, and one product on either side of its limit of 10^6. */
static void test_shapes(void **state) {
    (void)state;
    struct shapes rows = SHAPES(1, 3, 4, 8, 13, 31),
                  inner = SHAPES(1, 15, 16, 31, 32, 33, 127, 300);
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *kit = kit_open(&kit_backends[i], 1);
        for (int r = 0; r < rows.n; r++)
            for (int k = 0; k < inner.n; k++)
                for (int64_t n = 1; n <= 41; n++)
                    check_shape(kit, &kit_backends[i], rows.at[r], n, inner.at[k]);
        check_shape(kit, &kit_backends[i], 100, 100, 100);
        check_shape(kit, &kit_backends[i], 100, 100, 101);
        check_shape(kit, &kit_backends[i], 2, 4, 125000);
        kit_close(kit);
    }
}

/* The blocks of attention are products of all shapes. */
static void test_attention(void **state) {
    (void)state;
    int32_t cu[] = {0, 3, 70, 137};
    for (size_t i = 0; i < KIT_BACKENDS; i++) {
        struct kit *k = kit_open(&kit_backends[i], 1);
        for (int64_t d = 1; d <= 24; d++) {
            struct attention a = {.heads = 2,
                                  .kv_heads = 1,
                                  .head_dim = d,
                                  .scale = 0.5,
                                  .causal = true,
                                  .cu = cu,
                                  .n_segments = 3,
                                  .max_segment = 67};
            struct mat qm = mat_random(137, 2 * d, 1, 1), km = mat_random(137, d, 1, 2);
            struct tensor q = kit_tensor(k, qm), key = kit_tensor(k, km), v = kit_tensor(k, km);
            struct tensor o = kit_output(k, 137, 2 * d), lse = kit_output(k, 2, 137);
            struct tensor dq = kit_output(k, 137, 2 * d), dk = kit_output(k, 137, d);
            struct tensor dv = kit_output(k, 137, d), delta = kit_output(k, 2, 137);
            long before = calls;
            k->be->ops->attention_forward(k->be, &a, &q, &key, &v, &o, &lse);
            k->be->ops->attention_backward(k->be, &a, &q, &key, &v, &o, &lse, &o, &delta, &dq, &dk,
                                           &dv);
            if (calls != before)
                fail_msg("%s: attention with heads of %ld took memory %ld times",
                         kit_backends[i].name, (long)d, (long)(calls - before));
            mat_free(&qm);
            mat_free(&km);
            kit_free_tensors(k);
        }
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_attention),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
