/* A small stack of parameters of every kind with made-up gradients, and the update of the whole
 * stack computed in double without any cut: what the tests of optim compare with. */
#ifndef STRATA_TESTS_OPTIM_CASE_H
#define STRATA_TESTS_OPTIM_CASE_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "optim.h"

#define CASE_PARAMS 9
#define CASE_STEPS 4
static const struct case_param {
    const char *name;
    enum param_group group;
    int ndim;
    int64_t shape[3];
    int axis;
    int64_t granule;
    bool decay, trainable, partial, fused;
    double grad_scale;
} case_param[CASE_PARAMS] = {
    {"vision/w", PARAM_VISION, 2, {6, 5}, -1, 0, true, true, false, false, 1},
    {"vision/norm", PARAM_VISION, 1, {5}, -1, 0, false, true, true, false, 30},
    {"vision/frozen", PARAM_VISION, 2, {3, 7}, -1, 0, true, false, false, false, 1},
    {"projector/w", PARAM_PROJECTOR, 2, {9, 4}, 0, 1, true, true, false, false, 1},
    {"projector/w2", PARAM_PROJECTOR, 2, {9, 4}, 0, 1, true, true, false, true, 2},
    {"projector/b", PARAM_PROJECTOR, 1, {9}, 0, 1, false, true, false, false, 1},
    {"language/w", PARAM_LANGUAGE, 2, {7, 11}, 1, 2, true, true, false, false, 1},
    {"language/norm", PARAM_LANGUAGE, 1, {37}, -1, 0, false, true, true, false, 10},
    {"language/head", PARAM_LANGUAGE, 3, {5, 3, 2}, -1, 0, true, true, false, false, 5},
};

static inline struct param case_proto(int i) {
    const struct case_param *c = &case_param[i];
    struct param p = {.ndim = c->ndim,
                      .cut = cut_none(),
                      .init = INIT_NORMAL,
                      .init_scale = 0.5,
                      .group = c->group,
                      .stack_layer = i,
                      .decay = c->decay,
                      .trainable = c->trainable,
                      .partial_tp = c->partial,
                      .fused = c->fused};
    snprintf(p.name, sizeof p.name, "%s", c->name);
    memcpy(p.shape, c->shape, sizeof c->shape);
    if (c->axis >= 0) p.cut = cut_even(c->axis, c->shape[c->axis], c->granule);
    return p;
}

/* Contribution of one (dp, tp) to the gradient of element `index`. Only gradients marked partial
 * differ between tp ranks. */
static inline double case_gradient(int param, int64_t index, int step, int dp, int tp) {
    const struct case_param *c = &case_param[param];
    char name[64];
    snprintf(name, sizeof name, "gradient %d %d %d %d", param, step, dp, c->partial ? tp : 0);
    return c->grad_scale * rng_normal(rng_init_key(rng_run_key(3), name), (uint64_t)index);
}

/* ---- one rank's part ------------------------------------------------------------------------- */
struct optim_case {
    struct backend *be;
    const struct grid *grid;
    struct param_set set;
    int first; /* parameters first.. of case_param */
    int global_index[CASE_PARAMS];
    struct arena arena;
    struct optim *optim;
};

static inline void case_declare(struct optim_case *c, int first, int end, int T, int tp) {
    c->first = first;
    for (int i = first; i < end; i++) {
        param_declare(&c->set, case_proto(i));
        c->global_index[i - first] = 2 * i + 1; /* numbers need not be dense */
    }
    CHECK(param_set_layout(&c->set, T, tp) == 0, "%s", error_text());
}

/* Lays everything out in `arena`; returns its bytes. */
static inline size_t case_layout(struct optim_case *c, struct backend *be, struct arena *arena) {
    param_set_allocate(&c->set, be, arena);
    CHECK(optim_layout(c->optim, be, arena) == 0, "%s", error_text());
    return arena->used;
}

static inline void case_plan(struct optim_case *c, const struct optim_settings *settings) {
    CHECK(optim_create(settings, &c->set, c->global_index, 2 * CASE_PARAMS, c->grid, &c->optim) ==
              0,
          "%s", error_text());
}

/* Parameters first..end-1 at this rank's place in the grid, with initial weights. */
static inline void case_create(struct optim_case *c, const struct optim_settings *settings,
                               struct backend *be, const struct grid *grid, int first, int end) {
    *c = (struct optim_case){.be = be, .grid = grid};
    const struct group *tp = grid_group(grid, GROUP_TP);
    case_declare(c, first, end, group_size(tp), group_rank(tp));
    case_plan(c, settings);
    struct arena measure;
    arena_init_measuring(&measure, "plan");
    size_t bytes = case_layout(c, be, &measure);
    arena_init(&c->arena, "life", be->ops->mem_alloc(be, bytes), bytes);
    size_t used = case_layout(c, be, &c->arena);
    CHECK(used == bytes, "planned %zu bytes, took %zu", bytes, used);
    param_set_initialise(&c->set, be, rng_run_key(11));
}

static inline void case_destroy(struct optim_case *c) {
    optim_destroy(c->optim);
    param_set_free(&c->set);
    c->be->ops->mem_free(c->be, c->arena.base);
}

static inline double case_load(const void *data, int64_t i, enum dtype dtype) {
    return dtype == DTYPE_F32 ? ((const float *)data)[i] : ((const double *)data)[i];
}
static inline void case_store(void *data, int64_t i, enum dtype dtype, double v) {
    if (dtype == DTYPE_F32)
        ((float *)data)[i] = (float)v;
    else
        ((double *)data)[i] = v;
}

/* As backward would leave them: this rank's own sums, zero between the parameters. */
static inline void case_fill_gradients(struct optim_case *c, int step) {
    int dp = group_rank(grid_group(c->grid, GROUP_DP));
    int tp = group_rank(grid_group(c->grid, GROUP_TP));
    enum dtype acc = c->be->acc;
    size_t bytes = (size_t)c->set.grad_elements * dtype_size(acc);
    char *host = xcalloc(1, bytes + 1);
    for (int i = 0; i < c->set.n; i++) {
        const struct param *p = &c->set.param[i];
        for (int64_t k = 0; k < param_local_count(p) && p->trainable; k++) {
            int64_t index = param_global_index(p, k / p->cols, k % p->cols);
            case_store(host, p->grad_offset + k, acc,
                       case_gradient(c->first + i, index, step, dp, tp));
        }
    }
    c->be->ops->upload(c->be, c->set.grads, host, bytes);
    free(host);
}

/* All weights of this rank as they lie in memory; free() it. */
static inline void *case_weights(const struct optim_case *c, size_t *bytes) {
    *bytes = (size_t)c->set.weight_elements * dtype_size(c->be->dtype);
    void *host = xmalloc(*bytes + 1);
    c->be->ops->download(c->be, host, c->set.weights, *bytes);
    return host;
}

/* ---- the whole stack, serial, in double ------------------------------------------------------- */
struct reference {
    double *w[CASE_PARAMS], *m[CASE_PARAMS], *v[CASE_PARAMS], *g[CASE_PARAMS];
    int64_t count[CASE_PARAMS];
    int updates;
    double norm, clip;
};

static inline void reference_create(struct reference *ref) {
    *ref = (struct reference){0};
    for (int i = 0; i < CASE_PARAMS; i++) {
        struct param p = case_proto(i);
        int64_t n = ref->count[i] = param_global_count(&p);
        ref->w[i] = xcalloc((size_t)(4 * n), sizeof(double));
        ref->m[i] = ref->w[i] + n;
        ref->v[i] = ref->w[i] + 2 * n;
        ref->g[i] = ref->w[i] + 3 * n;
        struct rng_key sub = rng_init_key(rng_run_key(11), p.name);
        for (int64_t k = 0; k < n; k++)
            ref->w[i][k] = (float)(p.init_scale * rng_normal(sub, (uint64_t)k));
    }
}

static inline void reference_destroy(struct reference *ref) {
    for (int i = 0; i < CASE_PARAMS; i++) free(ref->w[i]);
}

static inline void reference_gradients(struct reference *ref, int step, int T, int D) {
    for (int i = 0; i < CASE_PARAMS; i++)
        for (int64_t k = 0; k < ref->count[i]; k++) {
            double sum = 0;
            for (int d = 0; d < D; d++)
                for (int t = 0; t < (case_param[i].partial ? T : 1); t++)
                    sum += case_gradient(i, k, step, d, t);
            ref->g[i][k] = sum;
        }
}

static inline void reference_element(const struct optim_settings *s, double lr, double decay,
                                     double g, int t, double *w, double *m, double *v) {
    if (s->kind == OPTIM_SGD) {
        *m = s->momentum * *m + g + decay * *w;
        *w -= lr * *m;
        return;
    }
    *w -= lr * decay * *w;
    *m = s->beta1 * *m + (1 - s->beta1) * g;
    *v = s->beta2 * *v + (1 - s->beta2) * g * g;
    *w -= lr / (1 - pow(s->beta1, t)) * *m / (sqrt(*v / (1 - pow(s->beta2, t))) + s->eps);
}

static inline void reference_step(struct reference *ref, const struct optim_settings *s,
                                  const struct optim_input *in, int step, int T, int D) {
    reference_gradients(ref, step, T, D);
    double sum = 0;
    for (int i = 0; i < CASE_PARAMS; i++)
        for (int64_t k = 0; k < ref->count[i] && case_param[i].trainable; k++)
            sum += ref->g[i][k] * ref->g[i][k];
    ref->norm = in->grad_scale * sqrt(sum);
    ref->clip = s->clip_grad > 0 ? fmin(1, s->clip_grad / (ref->norm + 1e-6)) : 1;
    ref->updates++;
    for (int i = 0; i < CASE_PARAMS; i++) {
        const struct case_param *c = &case_param[i];
        for (int64_t k = 0; k < ref->count[i] && c->trainable; k++)
            reference_element(s, in->lr[c->group], c->decay ? s->weight_decay : 0,
                              ref->g[i][k] * in->grad_scale * ref->clip, ref->updates,
                              &ref->w[i][k], &ref->m[i][k], &ref->v[i][k]);
    }
}

/* Largest difference of this rank's weights from the reference, relative to 1 + |w|; NaN if any is. */
static inline double case_difference(const struct optim_case *c, const struct reference *ref) {
    size_t bytes;
    void *host = case_weights(c, &bytes);
    double largest = 0;
    for (int i = 0; i < c->set.n; i++) {
        const struct param *p = &c->set.param[i];
        for (int64_t k = 0; k < param_local_count(p); k++) {
            double want = ref->w[c->first + i][param_global_index(p, k / p->cols, k % p->cols)];
            double d = fabs(case_load(host, p->offset + k, c->be->dtype) - want) / (1 + fabs(want));
            if (!(d <= largest)) largest = d;
        }
    }
    free(host);
    return largest;
}

static inline struct optim_settings case_settings(enum optim_kind kind) {
    return (struct optim_settings){.kind = kind,
                                   .beta1 = 0.9,
                                   .beta2 = 0.95,
                                   .eps = 1e-8,
                                   .momentum = 0.9,
                                   .weight_decay = 0.1};
}

static inline struct optim_input case_input(int step) {
    return (struct optim_input){.grad_scale = 1.0 / 24,
                                .lr = {[PARAM_LANGUAGE] = 0.01 * (step + 1),
                                       [PARAM_PROJECTOR] = 0.03,
                                       [PARAM_VISION] = 0.002}};
}

#endif
