/* Private to backend: the words of rng_drop_word for a run of columns, 16 counters side by side. */
#ifndef STRATA_PHILOX_IMPL_H
#define STRATA_PHILOX_IMPL_H

#include "base.h"

#define PHILOX_WIDTH 16
#define DROP_BATCH (4 * PHILOX_WIDTH)

/* Least word that is kept. */
static inline uint32_t drop_threshold(double prob) {
    CHECK(prob >= 0 && prob < 1, "dropout probability %g; allowed is 0 <= p < 1", prob);
    return (uint32_t)(prob * 4294967296.0);
}

/* word[i] = rng_drop_word(key, column + i, row, sample, head), i < DROP_BATCH; column is a multiple
 * of 4. */
static inline void drop_words(struct rng_key key, uint32_t column, uint32_t row, uint32_t sample,
                              uint32_t head, uint32_t word[DROP_BATCH]) {
    /* 32-bit words in 64-bit lanes, where their products have room. */
    uint64_t c0[PHILOX_WIDTH], c1[PHILOX_WIDTH], c2[PHILOX_WIDTH], c3[PHILOX_WIDTH];
    for (uint32_t i = 0; i < PHILOX_WIDTH; i++)
        c0[i] = column / 4 + i, c1[i] = row, c2[i] = sample, c3[i] = head;
    uint32_t k0 = key.k[0], k1 = key.k[1];
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int i = 0; i < PHILOX_WIDTH; i++) {
            uint64_t a = 0xD2511F53u * c0[i], b = 0xCD9E8D57u * c2[i];
            c0[i] = (b >> 32) ^ c1[i] ^ k0;
            c1[i] = b & 0xffffffffu;
            c2[i] = (a >> 32) ^ c3[i] ^ k1;
            c3[i] = a & 0xffffffffu;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
#pragma omp simd
    for (int i = 0; i < PHILOX_WIDTH; i++) {
        word[4 * i] = (uint32_t)c0[i];
        word[4 * i + 1] = (uint32_t)c1[i];
        word[4 * i + 2] = (uint32_t)c2[i];
        word[4 * i + 3] = (uint32_t)c3[i];
    }
}

#endif
