/* Private to the two attention files: segments, blocks, visibility, dropout of probabilities. */
#ifndef STRATA_ATTENTION_IMPL_H
#define STRATA_ATTENTION_IMPL_H

#include "../philox_impl.h"
#include "real_impl.h"

struct attention_run {
    const struct attention *a;
    const struct tensor *q, *k, *v, *o, *lse;
    const struct tensor *d_o, *delta, *dq, *dk, *dv; /* backward */
    int64_t q_blocks;                                /* of the longest segment */
    real scale;
    uint32_t drop_below; /* a word below it drops */
    real keep_factor;
    real *work; /* WORK_PER_THREAD of each thread */
};

/* One segment; positions inside it begin with 0. Its queries are the last `length` of its keys. */
struct segment {
    int64_t index, first_row, length, keys;
    int64_t q_step, k_step; /* block lengths, even over the segment */
};

static inline int64_t block_count(int64_t n, int64_t block) {
    return (n + block - 1) / block;
}

/* Multiples of 16: the columns of a block then begin on a Philox counter. */
static inline int64_t block_step(int64_t n, int64_t block) {
    int64_t blocks = block_count(n, block);
    return blocks ? (block_count(n, blocks) + 15) / 16 * 16 : block;
}

static inline struct segment segment_at(const struct attention *a, int64_t index) {
    struct segment s = {
        .index = index, .first_row = a->cu[index], .length = a->cu[index + 1] - a->cu[index]};
    CHECK(s.length >= 0 && s.length <= a->max_segment,
          "segment %ld has %ld rows; its table says at most %ld", (long)index, (long)s.length,
          (long)a->max_segment);
    s.keys = s.length + a->past;
    s.q_step = block_step(s.length, BLOCK_Q);
    s.k_step = block_step(s.keys, BLOCK_K);
    return s;
}

/* Keys that the query at position i sees: [first, end). */
static inline int64_t visible_first(const struct attention *a, int64_t i) {
    return a->window > 0 && i - a->window + 1 > 0 ? i - a->window + 1 : 0;
}
static inline int64_t visible_end(const struct attention *a, const struct segment *s, int64_t i) {
    return a->causal ? i + 1 : s->keys;
}

/* The same inside the key block [k0, k0 + n_k), relative to k0; first >= end: none. */
static inline void visible_in_block(const struct attention *a, const struct segment *s, int64_t i,
                                    int64_t k0, int64_t n_k, int64_t *first, int64_t *end) {
    int64_t lo = visible_first(a, i) - k0, hi = visible_end(a, s, i) - k0;
    *first = lo < 0 ? 0 : lo > n_k ? n_k : lo;
    *end = hi < 0 ? 0 : hi > n_k ? n_k : hi;
}

static inline int64_t least(int64_t x, int64_t y) {
    return x < y ? x : y;
}

/* factor[j] = 0 or 1/(1-p) for the keys k0 .. k0+n-1 of query i. Room for DROP_BATCH more. */
static inline void keep_factors(const struct attention_run *run, const struct segment *s,
                                int64_t head, int64_t i, int64_t k0, int64_t n, real *factor) {
    const struct attention *a = run->a;
    uint32_t word[DROP_BATCH], below = run->drop_below;
    real kept = run->keep_factor;
    for (int64_t j = 0; j < n; j += DROP_BATCH) {
        drop_words(a->drop_key, (uint32_t)(k0 + j), (uint32_t)i, (uint32_t)a->drop_sample[s->index],
                   (uint32_t)(a->first_head + head), word);
        real *to = factor + j;
        EACH (int l = 0; l < DROP_BATCH; l++) to[l] = word[l] < below ? 0 : kept;
    }
}

struct attention_run NAME(attention_begin)(struct backend *be, const struct attention *a,
                                           const struct tensor *q, const struct tensor *k,
                                           const struct tensor *v, const struct tensor *o,
                                           const struct tensor *lse);

#endif
