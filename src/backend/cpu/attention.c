/* Attention forward, block by block with a running maximum (arXiv 2205.14135, 1805.02867).
 *
 * For a block of queries, over the key blocks it sees: S = scale Q K^T; m' = max(m, rowmax S);
 * P = exp(S - m'); l = l exp(m - m') + rowsum P; O = O exp(m - m') + P V. At the end O / l and
 * lse = m + log l. Dropout acts on P after its sum. Unit of work: (query block, segment, head).
 */
#include "attention_impl.h"

struct attention_run NAME(attention_begin)(struct backend *be, const struct attention *a,
                                           const struct tensor *q, const struct tensor *k,
                                           const struct tensor *v, const struct tensor *o,
                                           const struct tensor *lse) {
    CHECK(a->kv_heads > 0 && a->heads % a->kv_heads == 0 && a->head_dim > 0,
          "attention with %ld heads, %ld key/value heads of %ld", (long)a->heads, (long)a->kv_heads,
          (long)a->head_dim);
    CHECK(a->scale > 0, "attention scale %g", a->scale);
    NEED(q, q->rows, a->heads * a->head_dim);
    CHECK(a->past >= 0 && (a->past == 0 || a->n_segments == 1),
          "keys of %ld rows before the queries, %ld segments", (long)a->past, (long)a->n_segments);
    NEED(k, a->past + q->rows, a->kv_heads * a->head_dim);
    NEED(v, a->past + q->rows, a->kv_heads * a->head_dim);
    NEED(o, q->rows, a->heads * a->head_dim);
    NEED(lse, a->heads, q->rows);
    int64_t covered = a->n_segments > 0 ? a->cu[a->n_segments] - a->cu[0] : 0;
    CHECK(covered == q->rows, "the segments cover %ld of %ld rows", (long)covered, (long)q->rows);
    return (struct attention_run){.a = a,
                                  .q = q,
                                  .k = k,
                                  .v = v,
                                  .o = o,
                                  .lse = lse,
                                  .q_blocks = block_count(a->max_segment, BLOCK_Q),
                                  .scale = (real)a->scale,
                                  .drop_below = drop_threshold(a->drop_prob),
                                  .keep_factor = (real)(float)(1 / (1 - a->drop_prob)),
                                  .work = ((struct cpu_state *)be->state)->per_thread};
}

/* One block of queries of one head. */
struct query_block {
    struct segment s;
    int64_t head, first, n; /* queries first .. first+n-1 of the segment */
    real *scores;           /* [n, BLOCK_K] */
    real *max, *sum;
    real *keep; /* [BLOCK_K + DROP_BATCH] */
};

/* Row r of the scores becomes exp(scale s - max), the output row so far and its sum follow. */
static void softmax_row(const struct attention_run *run, const struct query_block *b, int64_t r,
                        int64_t k0, int64_t n_k) {
    int64_t first, end, i = b->first + r, position = run->a->past + i;
    visible_in_block(run->a, &b->s, position, k0, n_k, &first, &end);
    real *p = b->scores + r * BLOCK_K, scale = run->scale;
    if (first >= end) first = end = n_k;
    memset(p, 0, (size_t)first * sizeof *p);
    memset(p + end, 0, (size_t)(n_k - end) * sizeof *p);
    if (first >= end) return;
    real max = row_max(p + first, end - first, -(real)INFINITY) * scale;
    if (max < b->max[r]) max = b->max[r];
    EACH (int64_t j = first; j < end; j++) p[j] = exp_real(p[j] * scale - max);
    real sum = row_sum(p + first, end - first);
    if (max != b->max[r]) {
        real shrink = exp_real(b->max[r] - max);
        real *o = row_of(run->o, b->s.first_row + i) + b->head * run->a->head_dim;
        b->sum[r] *= shrink;
        EACH (int64_t j = 0; j < run->a->head_dim; j++) o[j] *= shrink;
        b->max[r] = max;
    }
    b->sum[r] += sum;
    if (run->a->drop_prob > 0) {
        keep_factors(run, &b->s, b->head, position, k0, n_k, b->keep);
        EACH (int64_t j = first; j < end; j++) p[j] *= b->keep[j];
    }
}

static void finish_rows(const struct attention_run *run, const struct query_block *b) {
    int64_t d = run->a->head_dim;
    for (int64_t r = 0; r < b->n; r++) {
        int64_t row = b->s.first_row + b->first + r;
        real *o = row_of(run->o, row) + b->head * d, factor = 1 / b->sum[r];
        EACH (int64_t j = 0; j < d; j++) o[j] *= factor;
        row_of(run->lse, b->head)[row] = b->max[r] + (real)log((double)b->sum[r]);
    }
}

static void query_block_run(const struct attention_run *run, const struct query_block *b) {
    const struct attention *a = run->a;
    int64_t d = a->head_dim, kv = b->head / (a->heads / a->kv_heads);
    real *q = row_of(run->q, b->s.first_row + b->first) + b->head * d;
    real *o = row_of(run->o, b->s.first_row + b->first) + b->head * d;
    for (int64_t r = 0; r < b->n; r++) {
        b->max[r] = -(real)INFINITY;
        b->sum[r] = 0;
        memset(o + r * run->o->ld, 0, (size_t)d * sizeof *o);
    }
    int64_t end = visible_end(a, &b->s, a->past + b->first + b->n - 1);
    for (int64_t k0 = visible_first(a, a->past + b->first) / 16 * 16; k0 < end; k0 += b->s.k_step) {
        int64_t n_k = least(b->s.k_step, end - k0);
        real *k = row_of(run->k, b->s.first_row + k0) + kv * d;
        real *v = row_of(run->v, b->s.first_row + k0) + kv * d;
        NAME(gemm)(false, true, b->n, n_k, d, q, run->q->ld, k, run->k->ld, 0, b->scores, BLOCK_K);
        for (int64_t r = 0; r < b->n; r++) softmax_row(run, b, r, k0, n_k);
        NAME(gemm)(false, false, b->n, d, n_k, b->scores, BLOCK_K, v, run->v->ld, 1, o, run->o->ld);
    }
    finish_rows(run, b);
}

/* The last query blocks come first: under a causal mask they are the longest. */
static void attention_body(const void *ctx, int64_t i, int thread) {
    const struct attention_run *run = ctx;
    int64_t per_block = run->a->n_segments * run->a->heads;
    struct query_block b = {.s = segment_at(run->a, i % per_block / run->a->heads),
                            .head = i % run->a->heads,
                            .scores = run->work + thread * (int64_t)WORK_PER_THREAD};
    b.first = (run->q_blocks - 1 - i / per_block) * b.s.q_step;
    b.n = least(b.s.q_step, b.s.length - b.first);
    if (b.n <= 0) return;
    b.max = b.scores + BLOCK_Q * BLOCK_K;
    b.sum = b.max + BLOCK_Q;
    b.keep = b.sum + BLOCK_Q;
    query_block_run(run, &b);
}

void NAME(attention_forward)(struct backend *be, const struct attention *a, const struct tensor *q,
                             const struct tensor *k, const struct tensor *v, const struct tensor *o,
                             const struct tensor *lse) {
    struct attention_run run = NAME(attention_begin)(be, a, q, k, v, o, lse);
    count_attention(be, a, 4);
    cpu_parallel(be, run.q_blocks * a->n_segments * a->heads, attention_body, &run);
}
