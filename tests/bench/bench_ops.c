/* How fast the CPU operations are: GFLOP/s of products and attention beside OpenBLAS on one thread,
 * GB/s of the element-wise operations beside a copy. Shared machines are noisy: rounds go A B A B,
 * the best of ROUNDS counts.
 *
 *   bench_ops [threads [cpu]]      cpu: processor time instead of wall time, for a busy machine
 */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend.h"

#define ROUNDS 7

struct bench {
    struct backend *be;
    struct tensor t[10];
    const struct attention *attention;
    const struct adamw *adamw;
    const struct dropout *drop;
    int32_t *index;
    enum act_kind act;
    bool processor_time;
};

static double seconds_now(const struct bench *b) {
    struct timespec t;
    if (!b->processor_time) return clock_seconds();
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return ((double)t.tv_sec + 1e-9 * (double)t.tv_nsec) / b->be->threads;
}

static struct tensor fill(struct backend *be, int64_t rows, int64_t cols) {
    struct tensor t =
        tensor_view(be->ops->mem_alloc(be, (size_t)(rows * cols) * 4), rows, cols, DTYPE_F32);
    CHECK(t.data, "no memory for the bench");
    for (int64_t i = 0; i < rows * cols; i++)
        ((float *)t.data)[i] = (float)(i * 37 % 1009) / 1009 - 0.5f;
    return t;
}

static void drop_tensors(struct bench *b) {
    for (int i = 0; i < 10; i++) b->be->ops->mem_free(b->be, b->t[i].data);
    memset(b->t, 0, sizeof b->t);
}

static double best_seconds(struct bench *b, void (*run)(struct bench *)) {
    double best = 1e9;
    for (int i = 0; i < ROUNDS; i++) {
        double begin = seconds_now(b);
        run(b);
        double seconds = seconds_now(b) - begin;
        if (seconds < best) best = seconds;
    }
    return best;
}

/* ---- products ------------------------------------------------------------------------------ */

static void blas_forward(struct bench *b) {
    const struct tensor *x = &b->t[0], *w = &b->t[1], *y = &b->t[2];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)x->rows, (int)w->rows, (int)x->cols,
                1, x->data, (int)x->ld, w->data, (int)w->ld, 0, y->data, (int)y->ld);
}
static void our_forward(struct bench *b) {
    b->be->ops->linear_forward(b->be, &b->t[0], &b->t[1], NULL, &b->t[2]);
}
static void our_forward_bias(struct bench *b) {
    b->be->ops->linear_forward(b->be, &b->t[0], &b->t[1], &b->t[3], &b->t[2]);
}
static void our_dgrad(struct bench *b) {
    b->be->ops->linear_dgrad(b->be, &b->t[2], &b->t[1], &b->t[0], false);
}
static void our_wgrad(struct bench *b) {
    b->be->ops->linear_wgrad(b->be, &b->t[2], &b->t[0], &b->t[1]);
}
static void our_bias_grad(struct bench *b) {
    b->be->ops->bias_grad(b->be, &b->t[2], &b->t[3]);
}

static void bench_products(struct bench *b) {
    static const int64_t shapes[][3] = {{2308, 3072, 768}, {2048, 3584, 1024}, {2048, 1024, 3584},
                                        {2308, 768, 3072}, {577, 1024, 1024},  {64, 1024, 1024},
                                        {128, 128, 128},   {32, 32, 32}};
    printf("%-18s %8s | %8s %8s %8s %8s  GFLOP/s; bias_grad GB/s\n", "R x O x I", "blas x1",
           "forward", "+bias", "dgrad", "wgrad");
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        int64_t r = shapes[i][0], o = shapes[i][1], in = shapes[i][2];
        b->t[0] = fill(b->be, r, in);
        b->t[1] = fill(b->be, o, in);
        b->t[2] = fill(b->be, r, o);
        b->t[3] = fill(b->be, 1, o);
        double flops = 2e-9 * (double)r * (double)o * (double)in;
        double blas = flops / best_seconds(b, blas_forward);
        double forward = flops / best_seconds(b, our_forward);
        double bias = flops / best_seconds(b, our_forward_bias);
        double dgrad = flops / best_seconds(b, our_dgrad);
        double wgrad = flops / best_seconds(b, our_wgrad);
        double sums = 4e-9 * (double)r * (double)o / best_seconds(b, our_bias_grad);
        printf("%4ld x %4ld x %4ld %8.1f | %8.1f %8.1f %8.1f %8.1f  %.1f\n", (long)r, (long)o,
               (long)in, blas, forward, bias, dgrad, wgrad, sums);
        drop_tensors(b);
    }
}

/* ---- attention ----------------------------------------------------------------------------- */

static void run_attention_forward(struct bench *b) {
    b->be->ops->attention_forward(b->be, b->attention, &b->t[0], &b->t[1], &b->t[2], &b->t[3],
                                  &b->t[4]);
}
static void run_attention_backward(struct bench *b) {
    b->be->ops->attention_backward(b->be, b->attention, &b->t[0], &b->t[1], &b->t[2], &b->t[3],
                                   &b->t[4], &b->t[5], &b->t[6], &b->t[7], &b->t[8], &b->t[9]);
}

/* Model FLOPs: 4 and 8 d per visible pair; the recomputed scores of the backward do not count. */
static void bench_attention_case(struct bench *b, const char *name, struct attention a,
                                 int64_t length) {
    int64_t rows = a.n_segments * length;
    int32_t cu[16], sample[16] = {0};
    for (int64_t s = 0; s <= a.n_segments; s++) cu[s] = (int32_t)(s * length);
    a.cu = cu;
    a.drop_sample = sample;
    a.max_segment = length;
    a.scale = 0.125;
    a.pairs = (double)(a.n_segments * length) * (double)(a.causal ? (length + 1) / 2 : length);
    b->attention = &a;
    for (int i = 0; i < 10; i++) {
        bool statistic = i == 4 || i == 6, kv = i == 1 || i == 2 || i == 8 || i == 9;
        b->t[i] = statistic ? fill(b->be, a.heads, rows)
                            : fill(b->be, rows, (kv ? a.kv_heads : a.heads) * a.head_dim);
    }
    double flops = 1e-9 * a.pairs * (double)(a.heads * a.head_dim);
    double forward = best_seconds(b, run_attention_forward);
    double backward = best_seconds(b, run_attention_backward);
    printf("%-34s forward %7.1f  backward %7.1f (%.1f with the recomputation) GFLOP/s\n", name,
           4 * flops / forward, 8 * flops / backward, 10 * flops / backward);
    drop_tensors(b);
}

static void bench_attention(struct bench *b) {
    struct attention vit = {.heads = 12, .kv_heads = 12, .head_dim = 64, .n_segments = 4};
    struct attention llm = {
        .heads = 8, .kv_heads = 2, .head_dim = 128, .n_segments = 1, .causal = true};
    struct attention gpt = {
        .heads = 12, .kv_heads = 12, .head_dim = 64, .n_segments = 4, .causal = true};
    bench_attention_case(b, "4 x 577 rows, 12 heads of 64", vit, 577);
    bench_attention_case(b, "2048 rows causal, 8/2 heads of 128", llm, 2048);
    bench_attention_case(b, "4 x 256 rows causal, 12 heads of 64", gpt, 256);
    vit.drop_prob = 0.1;
    bench_attention_case(b, "4 x 577 rows, dropout 0.1", vit, 577);
}

/* ---- element-wise -------------------------------------------------------------------------- */

#define ROWS 8192
#define COLS 4096

static void run_copy(struct bench *b) {
    b->be->ops->copy(b->be, b->t[1].data, b->t[0].data, tensor_bytes(&b->t[0]));
}
static void run_add(struct bench *b) {
    b->be->ops->add(b->be, &b->t[0], &b->t[1]);
}
static void run_residual(struct bench *b) {
    b->be->ops->bias_dropout_add(b->be, &b->t[0], &b->t[4], &b->t[1], NULL, &b->t[1]);
}
static void run_dropout(struct bench *b) {
    b->be->ops->bias_dropout_add(b->be, &b->t[0], &b->t[4], &b->t[1], b->drop, &b->t[1]);
}
static void run_act(struct bench *b) {
    b->be->ops->act_forward(b->be, b->act, &b->t[0], &b->t[1]);
}
static void run_act_backward(struct bench *b) {
    b->be->ops->act_backward(b->be, b->act, &b->t[0], &b->t[1], &b->t[1]);
}
static void run_glu(struct bench *b) {
    struct tensor y = tensor_cols(b->t[1], 0, COLS / 2);
    b->be->ops->glu_forward(b->be, ACT_SILU, &b->t[0], &y);
}
static void run_glu_backward(struct bench *b) {
    struct tensor dy = tensor_cols(b->t[1], 0, COLS / 2);
    b->be->ops->glu_backward(b->be, ACT_SILU, &b->t[0], &dy, &b->t[2]);
}
static void run_layer_norm(struct bench *b) {
    b->be->ops->norm_forward(b->be, NORM_LAYER, 1e-5, &b->t[0], &b->t[4], &b->t[5], &b->t[1],
                             &b->t[6]);
}
static void run_layer_norm_backward(struct bench *b) {
    b->be->ops->norm_backward(b->be, NORM_LAYER, &b->t[1], &b->t[0], &b->t[4], &b->t[6], &b->t[2],
                              false, &b->t[7], &b->t[8]);
}
static void run_rms_norm(struct bench *b) {
    b->be->ops->norm_forward(b->be, NORM_RMS, 1e-5, &b->t[0], &b->t[4], NULL, &b->t[1], &b->t[6]);
}
static void run_rms_norm_backward(struct bench *b) {
    b->be->ops->norm_backward(b->be, NORM_RMS, &b->t[1], &b->t[0], &b->t[4], &b->t[6], &b->t[2],
                              true, &b->t[7], NULL);
}
static void run_rope(struct bench *b) {
    b->be->ops->rope(b->be, &b->t[0], COLS / 128, 128, &b->t[9], b->index, false);
}
static void run_adamw(struct bench *b) {
    int64_t n = tensor_count(&b->t[0]);
    b->be->ops->adamw_step(b->be, b->adamw, n, b->t[0].data, b->t[0].data, b->t[1].data,
                           b->t[2].data, b->t[3].data);
}
static void run_sum_squares(struct bench *b) {
    volatile double sum = b->be->ops->sum_squares(b->be, &b->t[0]);
    (void)sum;
}
static void run_cross_entropy(struct bench *b) {
    struct tensor max = tensor_view(b->t[6].data, 1, ROWS, DTYPE_F32);
    struct tensor sums = tensor_view(b->t[3].data, ROWS, 3, DTYPE_F32);
    struct tensor loss = tensor_view(b->t[2].data, 1, ROWS, DTYPE_F64);
    struct cross_entropy c = {.vocab = COLS, .scale = 1};
    b->be->ops->cross_entropy_max(b->be, &b->t[0], &max);
    b->be->ops->cross_entropy_sums(b->be, &c, &b->t[0], &max, b->index, &sums);
    b->be->ops->cross_entropy_finish(b->be, &c, &b->t[0], &max, &sums, b->index, true, &loss);
}

static void bench_elements(struct bench *b) {
    /* passes: matrices read and written, as if no cache held anything between operations */
    static const struct {
        const char *name;
        void (*run)(struct bench *);
        double passes;
        enum act_kind act;
    } list[] = {
        {"copy", run_copy, 2, 0},
        {"add", run_add, 3, 0},
        {"bias + residual", run_residual, 3, 0},
        {"bias + dropout + residual", run_dropout, 3, 0},
        {"gelu", run_act, 2, ACT_GELU},
        {"gelu backward", run_act_backward, 3, ACT_GELU},
        {"quick_gelu", run_act, 2, ACT_QUICK_GELU},
        {"silu backward", run_act_backward, 3, ACT_SILU},
        {"swiglu", run_glu, 1.5, 0},
        {"swiglu backward", run_glu_backward, 2.5, 0},
        {"LayerNorm", run_layer_norm, 2, 0},
        {"LayerNorm backward", run_layer_norm_backward, 3, 0},
        {"RMSNorm", run_rms_norm, 2, 0},
        {"RMSNorm backward, adding", run_rms_norm_backward, 4, 0},
        {"rope", run_rope, 2, 0},
        {"AdamW", run_adamw, 7, 0},
        {"sum of squares", run_sum_squares, 1, 0},
        {"cross entropy", run_cross_entropy, 4, 0},
    };
    struct backend *be = b->be;
    for (int i = 0; i < 4; i++) b->t[i] = fill(be, ROWS, COLS);
    for (int i = 4; i < 9; i++) b->t[i] = i == 6 ? fill(be, ROWS, 2) : fill(be, 1, COLS);
    b->t[9] = fill(be, ROWS, 128);
    float frequency[64];
    for (int i = 0; i < 64; i++) frequency[i] = (float)pow(1e4, -i / 64.0);
    be->ops->rope_table(be, frequency, 1, &b->t[9]);
    float *v = b->t[3].data;
    for (int64_t i = 0; i < tensor_count(&b->t[3]); i++) v[i] = 1;
    double bytes = 4e-9 * (double)ROWS * (double)COLS;
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        b->act = list[i].act;
        double copy = 2 * bytes / best_seconds(b, run_copy);
        double rate = list[i].passes * bytes / best_seconds(b, list[i].run);
        printf("%-28s %6.1f GB/s, %4.0f %% of a copy\n", list[i].name, rate, 100 * rate / copy);
    }
    drop_tensors(b);
}

int main(int argc, char **argv) {
    struct bench b = {.processor_time = argc > 2 && !strcmp(argv[2], "cpu")};
    int64_t threads = 0;
    if (argc > 1 && !parse_int64(argv[1], &threads)) return EXIT_USAGE;
    if (backend_create_cpu(DTYPE_F32, (int)threads, 1, &b.be) != 0) error_exit();
    static int32_t index[ROWS];
    for (int i = 0; i < ROWS; i++) index[i] = i % COLS;
    struct dropout drop = {.prob = 0.1, .row = index, .sample = index};
    struct adamw adamw = {.lr = 1e-3,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .correction1 = 0.1,
                          .correction2 = 0.05,
                          .grad_scale = 1};
    b.index = index;
    b.drop = &drop;
    b.adamw = &adamw;
    printf("%d threads, OpenBLAS kernels: %s\n", b.be->threads, openblas_get_corename());
    bench_products(&b);
    bench_attention(&b);
    bench_elements(&b);
    backend_destroy(b.be);
    return 0;
}
