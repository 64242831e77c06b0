/* Attention backward. With P = exp(scale S - lse), M = keep mask / (1-p), delta = rowsum(dO O):
 *   dV += (P M)^T dO;  dP = (dO V^T) M;  dS = scale P (dP - delta);  dQ += dS K;  dK += dS^T Q.
 *
 * Unit of work: (segment, key/value head), with its query heads and blocks in ascending order, so
 * that dK and dV are sums in one order.
 */
#include "attention_impl.h"

/* One key/value head of one segment, one block of queries of one query head against one of keys. */
struct pair_block {
    struct segment s;
    int64_t head, kv_head;
    int64_t q0, n_q, k0, n_k;
    real *p, *ds; /* [n_q, BLOCK_K]: scores, then P M; dO V^T, then dS */
    real *keep;
};

static void gradient_row(const struct attention_run *run, const struct pair_block *b, int64_t r) {
    int64_t first, end, i = b->q0 + r, row = b->s.first_row + i;
    visible_in_block(run->a, &b->s, i, b->k0, b->n_k, &first, &end);
    real *p = b->p + r * BLOCK_K, *ds = b->ds + r * BLOCK_K;
    if (first >= end) first = end = b->n_k;
    memset(p, 0, (size_t)first * sizeof *p);
    memset(ds, 0, (size_t)first * sizeof *ds);
    memset(p + end, 0, (size_t)(b->n_k - end) * sizeof *p);
    memset(ds + end, 0, (size_t)(b->n_k - end) * sizeof *ds);
    real scale = run->scale, lse = row_of(run->lse, b->head)[row];
    real delta = row_of(run->delta, b->head)[row];
    if (run->a->drop_prob > 0) {
        const real *keep = b->keep;
        keep_factors(run, &b->s, b->head, i, b->k0, b->n_k, b->keep);
        EACH (int64_t j = first; j < end; j++) {
            real e = exp_real(p[j] * scale - lse);
            ds[j] = scale * e * (ds[j] * keep[j] - delta);
            p[j] = e * keep[j];
        }
        return;
    }
    EACH (int64_t j = first; j < end; j++) {
        real e = exp_real(p[j] * scale - lse);
        ds[j] = scale * e * (ds[j] - delta);
        p[j] = e;
    }
}

static void pair_block_run(const struct attention_run *run, const struct pair_block *b) {
    int64_t d = run->a->head_dim, q_row = b->s.first_row + b->q0, k_row = b->s.first_row + b->k0;
    int n_q = (int)b->n_q, n_k = (int)b->n_k, dim = (int)d;
    real *q = row_of(run->q, q_row) + b->head * d, *d_o = row_of(run->d_o, q_row) + b->head * d;
    real *k = row_of(run->k, k_row) + b->kv_head * d, *v = row_of(run->v, k_row) + b->kv_head * d;
    real *dq = row_of(run->dq, q_row) + b->head * d;
    real *dk = row_of(run->dk, k_row) + b->kv_head * d;
    real *dv = row_of(run->dv, k_row) + b->kv_head * d;
    NAME(gemm)(false, true, n_q, n_k, dim, q, run->q->ld, k, run->k->ld, 0, b->p, BLOCK_K);
    NAME(gemm)(false, true, n_q, n_k, dim, d_o, run->d_o->ld, v, run->v->ld, 0, b->ds, BLOCK_K);
    for (int64_t r = 0; r < b->n_q; r++) gradient_row(run, b, r);
    NAME(gemm)(true, false, n_k, dim, n_q, b->p, BLOCK_K, d_o, run->d_o->ld, 1, dv, run->dv->ld);
    NAME(gemm)(true, false, n_k, dim, n_q, b->ds, BLOCK_K, q, run->q->ld, 1, dk, run->dk->ld);
    NAME(gemm)(false, false, n_q, dim, n_k, b->ds, BLOCK_K, k, run->k->ld, 1, dq, run->dq->ld);
}

/* Queries that see any of the keys [k0, k1), rounded out to whole blocks. */
static void query_range(const struct attention *a, const struct segment *s, int64_t k0, int64_t k1,
                        int64_t *first, int64_t *end) {
    *first = a->causal ? k0 / s->q_step * s->q_step : 0;
    *end = a->window > 0 ? least(s->length, k1 - 1 + a->window) : s->length;
}

static void zero_columns(const struct tensor *t, const struct segment *s, int64_t head, int64_t d) {
    for (int64_t r = s->first_row; r < s->first_row + s->length; r++)
        memset(row_of(t, r) + head * d, 0, (size_t)d * sizeof(real));
}

static void delta_rows(const struct attention_run *run, const struct segment *s, int64_t head) {
    int64_t d = run->a->head_dim;
    for (int64_t r = s->first_row; r < s->first_row + s->length; r++)
        row_of(run->delta, head)[r] =
            row_dot(row_of(run->d_o, r) + head * d, row_of(run->o, r) + head * d, d);
}

static void gradient_body(const void *ctx, int64_t i, int thread) {
    const struct attention_run *run = ctx;
    const struct attention *a = run->a;
    int64_t group = a->heads / a->kv_heads;
    struct pair_block b = {.s = segment_at(a, i / a->kv_heads),
                           .kv_head = i % a->kv_heads,
                           .p = run->work + thread * (int64_t)WORK_PER_THREAD};
    b.ds = b.p + BLOCK_Q * BLOCK_K;
    b.keep = b.ds + BLOCK_Q * BLOCK_K;
    int64_t first_head = b.kv_head * group;
    zero_columns(run->dk, &b.s, b.kv_head, a->head_dim);
    zero_columns(run->dv, &b.s, b.kv_head, a->head_dim);
    for (int64_t head = first_head; head < first_head + group; head++) {
        zero_columns(run->dq, &b.s, head, a->head_dim);
        delta_rows(run, &b.s, head);
    }
    for (b.k0 = 0; b.k0 < b.s.length; b.k0 += b.s.k_step) {
        int64_t q_first, q_end;
        b.n_k = least(b.s.k_step, b.s.length - b.k0);
        query_range(a, &b.s, b.k0, b.k0 + b.n_k, &q_first, &q_end);
        for (b.head = first_head; b.head < first_head + group; b.head++)
            for (b.q0 = q_first; b.q0 < q_end; b.q0 += b.s.q_step) {
                b.n_q = least(b.s.q_step, b.s.length - b.q0);
                pair_block_run(run, &b);
            }
    }
}

void NAME(attention_backward)(struct backend *be, const struct attention *a, const struct tensor *q,
                              const struct tensor *k, const struct tensor *v,
                              const struct tensor *o, const struct tensor *lse,
                              const struct tensor *d_o, const struct tensor *delta,
                              const struct tensor *dq, const struct tensor *dk,
                              const struct tensor *dv) {
    CHECK(a->past == 0, "backward over a cache of %ld rows", (long)a->past);
    struct attention_run run = NAME(attention_begin)(be, a, q, k, v, o, lse);
    NEED(d_o, q->rows, q->cols);
    NEED(delta, a->heads, q->rows);
    NEED(dq, q->rows, q->cols);
    NEED(dk, q->rows, k->cols);
    NEED(dv, q->rows, v->cols);
    run.d_o = d_o, run.delta = delta, run.dq = dq, run.dk = dk, run.dv = dv;
    count_attention(be, a, 8);
    cpu_parallel(be, a->n_segments * a->kv_heads, gradient_body, &run);
}
