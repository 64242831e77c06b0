/* Creation, memory, conversion; the measuring backend. */
#include "op/kit.h"

static void test_creation(void **state) {
    (void)state;
    struct backend *be;
    assert_int_equal(backend_create_cpu(DTYPE_F32, 0, 1, &be), EXIT_OK);
    assert_true(be->threads >= 1 && be->dtype == DTYPE_F32 && be->acc == DTYPE_F32);
    assert_false(be->measuring);
    backend_destroy(be);
    assert_int_equal(backend_create_cpu(DTYPE_F64, 0, 100000, &be), EXIT_OK);
    assert_true(be->threads == 1 && be->acc == DTYPE_F64);
    backend_destroy(be);
    assert_int_equal(backend_create_cpu(DTYPE_BF16, 1, 1, &be), EXIT_UNAVAILABLE);
    assert_null(be);
    assert_non_null(strstr(error_text(), "bf16"));
    error_clear();
    assert_int_equal(backend_create_cpu(DTYPE_F32, -1, 1, &be), EXIT_USAGE);
    error_clear();
    backend_destroy(NULL);
}

static void test_devices(void **state) {
    (void)state;
    assert_int_equal(backend_check_device("cpu"), EXIT_OK);
    assert_int_equal(backend_check_device("gpu"), EXIT_USAGE);
    error_clear();
}

static void test_memory(void **state) {
    (void)state;
    enum { N = 3000017 };
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 2);
        const struct backend_ops *ops = k->be->ops;
        char *host = xmalloc(N), *back = xmalloc(N);
        for (int i = 0; i < N; i++) host[i] = (char)(i * 7 % 251);
        char *x = kit_memory(k, N), *y = kit_memory(k, N);
        assert_true((uintptr_t)x % 64 == 0 && (uintptr_t)y % 64 == 0);
        ops->upload(k->be, x, host, N);
        ops->copy(k->be, y, x, N);
        ops->zero(k->be, x, N);
        ops->download(k->be, back, y, N);
        assert_memory_equal(back, host, N);
        ops->download(k->be, back, x, N);
        memset(host, 0, N);
        assert_memory_equal(back, host, N);
        free(host);
        free(back);
        kit_close(k);
    }
}

/* fp32 bits -> 16-bit types, nearest even, and what becomes of them on the way back. */
static void test_convert_16(void **state) {
    (void)state;
    static const struct {
        float x;
        uint16_t bf16, f16;
    } golden[] = {
        {1.0f, 0x3f80, 0x3c00},           {-2.5f, 0xc020, 0xc100},
        {1.00390625f, 0x3f80, 0x3c04},    /* tie in bf16: down to even */
        {1.01171875f, 0x3f82, 0x3c0c},    /* tie in bf16: up to even */
        {1.00048828125f, 0x3f80, 0x3c00}, /* tie in fp16 */
        {65504.0f, 0x4780, 0x7bff},       {1e6f, 0x4974, 0x7c00},
        {INFINITY, 0x7f80, 0x7c00},       {6e-8f, 0x3381, 0x0001},
        {-0.0f, 0x8000, 0x8000},          {3.4e38f, 0x7f80, 0x7c00},
    };
    enum { N = sizeof golden / sizeof golden[0] };
    struct kit *k = kit_open(&kit_backends[1], 1);
    const struct backend_ops *ops = k->be->ops;
    float x[N + 1];
    for (int i = 0; i < N; i++) x[i] = golden[i].x;
    x[N] = NAN;
    struct tensor from = tensor_view(kit_memory(k, sizeof x), 1, N + 1, DTYPE_F32);
    ops->upload(k->be, from.data, x, sizeof x);
    for (int f16 = 0; f16 < 2; f16++) {
        uint16_t got[N + 1];
        float back[N + 1];
        struct tensor half =
            tensor_view(kit_memory(k, sizeof got), 1, N + 1, f16 ? DTYPE_F16 : DTYPE_BF16);
        ops->convert(k->be, &from, &half);
        ops->download(k->be, got, half.data, sizeof got);
        for (int i = 0; i < N; i++) assert_int_equal(got[i], f16 ? golden[i].f16 : golden[i].bf16);
        struct tensor wide = tensor_view(kit_memory(k, sizeof back), 1, N + 1, DTYPE_F32);
        ops->convert(k->be, &half, &wide);
        ops->download(k->be, back, wide.data, sizeof back);
        assert_true(back[0] == 1 && back[1] == -2.5f && isinf(back[7]) && isnan(back[N]));
    }
    kit_close(k);
}

/* fp64 -> fp32 -> fp64 of slices; the same type is a copy. */
static void test_convert_wide(void **state) {
    (void)state;
    struct kit *k = kit_open(&kit_backends[0], 2);
    struct mat m = mat_random(40, 2003, 1, 1);
    struct tensor a = kit_tensor_of(k, m, DTYPE_F64), same = kit_output(k, 40, 2003);
    struct tensor narrow = kit_tensor_of(k, m, DTYPE_F32), wide = kit_output(k, 40, 2003);
    k->be->ops->zero(k->be, narrow.data, 4);
    k->be->ops->convert(k->be, &a, &narrow);
    k->be->ops->convert(k->be, &narrow, &wide);
    k->be->ops->convert(k->be, &a, &same);
    struct mat got = kit_download(k, wide), copy = kit_download(k, same);
    KIT_NEAR(got, m, 0.0, "fp64 -> fp32 -> fp64 of fp32 values");
    KIT_NEAR(copy, m, 0.0, "fp64 -> fp64");
    mat_free(&m);
    mat_free(&got);
    mat_free(&copy);
    kit_close(k);
}

/* Counts what the CPU counts, for pointers that lead nowhere. */
static void test_measuring(void **state) {
    (void)state;
    struct backend *be = backend_create_measuring(DTYPE_BF16);
    assert_true(be->measuring && be->acc == DTYPE_F32 && be->dtype == DTYPE_BF16);
    void *nowhere = be->ops->mem_alloc(be, (size_t)1 << 50);
    assert_non_null(nowhere);
    struct tensor x = tensor_view(nowhere, 577, 1024, DTYPE_BF16);
    struct tensor w = tensor_view(nowhere, 4096, 1024, DTYPE_BF16);
    struct tensor y = tensor_view(nowhere, 577, 4096, DTYPE_BF16);
    struct tensor dw = tensor_view(nowhere, 4096, 1024, DTYPE_F32);
    be->ops->linear_forward(be, &x, &w, NULL, &y);
    be->ops->linear_dgrad(be, &y, &w, &x, false);
    be->ops->linear_wgrad(be, &y, &x, &dw);
    assert_true(be->gemm_flops == 3 * 2.0 * 577 * 1024 * 4096);
    struct attention a = {.heads = 16, .kv_heads = 16, .head_dim = 64, .pairs = 577.0 * 577};
    be->ops->attention_forward(be, &a, &x, &x, &x, &x, &dw);
    assert_true(be->attention_flops == 4 * 64 * 16 * 577.0 * 577);
    be->ops->attention_backward(be, &a, &x, &x, &x, &x, &dw, &x, &dw, &x, &x, &x);
    assert_true(be->attention_flops == 12 * 64 * 16 * 577.0 * 577);
    be->ops->norm_forward(be, NORM_RMS, 1e-5, &x, &x, NULL, &x, &dw);
    be->ops->zero(be, nowhere, (size_t)1 << 50);
    assert_true(be->ops->sum_squares(be, &x) == 0);
    be->ops->mem_free(be, nowhere);
    backend_destroy(be);
}

static void count(void *arg) {
    ++*(int *)arg;
}

/* The speed of light: each round is timed and begun together, nothing is counted as work of a run. */
static void test_peak(void **state) {
    (void)state;
    for (size_t b = 0; b < KIT_BACKENDS; b++) {
        struct kit *k = kit_open(&kit_backends[b], 3);
        double seconds[3] = {0};
        int rounds = 0;
        backend_measure_peak(k->be, 3, count, &rounds, seconds);
        assert_int_equal(rounds, 3);
        assert_true(backend_peak_flops(k->be) == 3 * 2.0 * 256 * 512 * 512);
        for (int i = 0; i < 3; i++) /* no core does 10 TFLOP/s, none needs 20 s */
            assert_true(seconds[i] > 3e-5 && seconds[i] < 20);
        assert_true(k->be->gemm_flops == 0);
        kit_close(k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_creation),     cmocka_unit_test(test_devices),
        cmocka_unit_test(test_memory),       cmocka_unit_test(test_convert_16),
        cmocka_unit_test(test_convert_wide), cmocka_unit_test(test_measuring),
        cmocka_unit_test(test_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
