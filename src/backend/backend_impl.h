/* Private to backend: what every implementation shares. */
#ifndef STRATA_BACKEND_IMPL_H
#define STRATA_BACKEND_IMPL_H

#include "backend.h"

/* A table with a hole is a bug of ours that must show at creation, not in the first step. */
void backend_check_table(const struct backend_ops *ops);

/* One product of [m,k] by [k,n]. */
static inline void count_gemm(struct backend *be, int64_t m, int64_t n, int64_t k) {
    be->gemm_flops += 2.0 * (double)m * (double)n * (double)k;
}

/* flops_per_pair: 4 forward, 8 backward, per head dimension and visible pair of one head. */
static inline void count_attention(struct backend *be, const struct attention *a,
                                   double flops_per_pair) {
    be->attention_flops += flops_per_pair * a->pairs * (double)a->heads * (double)a->head_dim;
}

#endif
