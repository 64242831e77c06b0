/* The next token from logits that are cut by vocabulary rows. */
#include <math.h>
#include <stdlib.h>

#include "generate_impl.h"

struct candidate { /* of one tensor rank */
    float value;
    int32_t id; /* -1: nothing finite */
};

struct picker {
    struct picker_settings s;
    const struct group *tp;
    struct backend *be;
    struct cut cut;
    int64_t first, most; /* my first id; columns of the rank that has most */
    struct tensor logits;
    float *mine, *all; /* [most], [p * most] */
    double *z, *share;
    int32_t *order;
    struct candidate *best; /* [p] */
};

struct picker *picker_create(const struct picker_settings *settings, const struct stage *stage,
                             const struct group *tp, struct backend *be,
                             const struct tensor *logits) {
    CHECK(be->dtype == DTYPE_F32, "logits of %s", dtype_name(be->dtype));
    int p = group_size(tp);
    struct picker *k = xcalloc(1, sizeof *k);
    k->s = *settings;
    k->tp = tp;
    k->be = be;
    k->cut = vocabulary_cut(&stage->stack->shape.language);
    struct cut_part part = cut_part(&k->cut, p, group_rank(tp));
    k->first = part.global[0];
    k->most = cut_part(&k->cut, p, 0).total; /* the first ranks have most */
    size_t n = (size_t)cut_size(&k->cut), all = (size_t)k->most * (size_t)p;
    CHECK(logits->cols == part.total, "a row of %lld logits", (long long)logits->cols);
    k->logits = *logits;
    k->mine = xcalloc((size_t)k->most, sizeof *k->mine);
    k->all = xcalloc(all, sizeof *k->all);
    k->z = xcalloc(n, sizeof *k->z);
    k->share = xcalloc(n, sizeof *k->share);
    k->order = xcalloc(n, sizeof *k->order);
    k->best = xcalloc((size_t)p, sizeof *k->best);
    return k;
}

void picker_destroy(struct picker *k) {
    if (k == NULL) return;
    free(k->mine);
    free(k->all);
    free(k->z);
    free(k->share);
    free(k->order);
    free(k->best);
    free(k);
}

const struct tensor *picker_logits(const struct picker *k) {
    return &k->logits;
}

static int32_t choose_largest(struct picker *k) {
    struct candidate mine = {0, -1}, best = {0, -1};
    for (int64_t i = 0; i < k->logits.cols && k->first + i < k->s.n_ids; i++)
        if (isfinite(k->mine[i]) && (mine.id < 0 || k->mine[i] > mine.value))
            mine = (struct candidate){k->mine[i], (int32_t)(k->first + i)};
    comm_gather(k->tp, &mine, sizeof mine, k->best);
    for (int r = 0; r < group_size(k->tp); r++) /* ranks hold ascending ids */
        if (k->best[r].id >= 0 && (best.id < 0 || k->best[r].value > best.value)) best = k->best[r];
    return best.id;
}

static void gather_logits(struct picker *k) {
    int p = group_size(k->tp);
    comm_gather(k->tp, k->mine, (size_t)k->most * sizeof *k->mine, k->all);
    for (int r = 0; r < p; r++) {
        struct cut_part part = cut_part(&k->cut, p, r);
        for (int64_t i = 0; i < part.total; i++)
            k->z[part.global[0] + i] = (double)k->all[r * k->most + i];
    }
}

struct ranking {
    const double *share;
};

/* Largest share first, ties to the lowest id. */
static int compare_shares(const void *a, const void *b, void *arg) {
    const struct ranking *r = arg;
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (r->share[i] != r->share[j]) return r->share[i] > r->share[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

int32_t pick_sample(const double *z, int64_t n, double temperature, double top_p, double u,
                    int32_t *order, double *share) {
    double max = -INFINITY, sum = 0, kept = 0, at = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(z[i])) return -1;
        if (z[i] > max) max = z[i];
    }
    for (int64_t i = 0; i < n; i++) {
        sum += share[i] = exp((z[i] - max) / temperature);
        order[i] = (int32_t)i;
    }
    struct ranking ranking = {share};
    qsort_r(order, (size_t)n, sizeof *order, compare_shares, &ranking);
    int64_t n_kept = 0;
    while (n_kept < n && (n_kept == 0 || kept < top_p * sum)) kept += share[order[n_kept++]];
    for (int64_t i = 0; i < n_kept; i++) {
        at += share[order[i]];
        if (u * kept < at) return order[i];
    }
    return order[n_kept - 1];
}

int32_t picker_choose(struct picker *k, int64_t question, int64_t position) {
    k->be->ops->synchronize(k->be);
    k->be->ops->download(k->be, k->mine, k->logits.data, tensor_bytes(&k->logits));
    if (k->s.temperature == 0) return choose_largest(k);
    gather_logits(k);
    int64_t n = cut_size(&k->cut) < k->s.n_ids ? cut_size(&k->cut) : k->s.n_ids;
    struct rng_key key = rng_drop_key(k->s.key, RNG_SAMPLE, 0, question);
    double u = 0.5 * (rng_uniform(key, (uint64_t)position) + 1.0);
    return pick_sample(k->z, n, k->s.temperature, k->s.top_p, u, k->order, k->share);
}
