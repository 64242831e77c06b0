/* The parameter record and everything that is derived from it: local shapes, flat storage, initial
 * values. */
#include <stdlib.h>
#include <string.h>

#include "nn.h"

#define STORAGE_ALIGN 16 /* elements between parameters that are not fused: one cache line */

struct param *param_declare(struct param_set *s, struct param proto) {
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 64;
        s->param = xrealloc(s->param, (size_t)s->capacity * sizeof *s->param);
    }
    s->param[s->n] = proto;
    return &s->param[s->n++];
}

void param_set_free(struct param_set *s) {
    free(s->param);
    memset(s, 0, sizeof *s);
}

int64_t param_global_count(const struct param *p) {
    int64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= p->shape[i];
    return n;
}

int64_t param_local_count(const struct param *p) {
    return p->rows * p->cols;
}

/* Elements of one index of the column axis: everything beyond the second dimension. */
static int64_t inner_count(const struct param *p) {
    int64_t n = 1;
    for (int i = 2; i < p->ndim; i++) n *= p->shape[i];
    return n;
}

static void local_shape(struct param *p) {
    int64_t axis[2] = {p->ndim == 1 ? 1 : p->shape[0], p->ndim == 1 ? p->shape[0] : p->shape[1]};
    if (p->cut.axis >= 0)
        axis[p->ndim == 1 ? 1 : p->cut.axis] = cut_part(&p->cut, p->tp_size, p->tp_rank).total;
    p->rows = axis[0];
    p->cols = axis[1] * inner_count(p);
}

static int64_t storage_align(int64_t n) {
    return (n + STORAGE_ALIGN - 1) / STORAGE_ALIGN * STORAGE_ALIGN;
}

/* A fused parameter follows its predecessor without a gap, so that their matrices are one. */
static int64_t place(int64_t *end, bool fused, int64_t count) {
    int64_t offset = fused ? *end : storage_align(*end);
    *end = offset + count;
    return offset;
}

int param_set_layout(struct param_set *s, int p, int r) {
    int rc = 0;
    int64_t weight_end = 0, grad_end = 0;
    for (int i = 0; i < s->n; i++) {
        struct param *q = &s->param[i];
        if (q->cut.axis >= 0) {
            int bad = cut_check(&q->cut, p, q->name);
            if (bad != 0) {
                rc = bad;
                continue;
            }
        }
        q->tp_size = p;
        q->tp_rank = r;
        local_shape(q);
        q->offset = place(&weight_end, q->fused, param_local_count(q));
        q->grad_offset = -1;
        if (q->trainable) q->grad_offset = place(&grad_end, q->fused, param_local_count(q));
    }
    s->weight_elements = storage_align(weight_end);
    s->grad_elements = storage_align(grad_end);
    return rc;
}

void param_set_allocate(struct param_set *s, struct backend *be, struct arena *arena) {
    size_t w = dtype_size(be->dtype), g = dtype_size(be->acc);
    s->weights = arena_alloc(arena, (size_t)s->weight_elements * w);
    s->grads = arena_alloc(arena, (size_t)s->grad_elements * g);
    for (int i = 0; i < s->n; i++) {
        struct param *q = &s->param[i];
        q->w = tensor_view((char *)s->weights + (size_t)q->offset * w, q->rows, q->cols, be->dtype);
        q->g = tensor_view(NULL, q->rows, q->cols, be->acc);
        if (q->trainable) q->g.data = (char *)s->grads + (size_t)q->grad_offset * g;
    }
    if (arena->measuring) return;
    be->ops->zero(be, s->weights, (size_t)s->weight_elements * w);
    be->ops->zero(be, s->grads, (size_t)s->grad_elements * g);
}

int64_t param_global_index(const struct param *p, int64_t row, int64_t col) {
    if (p->ndim == 1)
        return p->cut.axis == 0 ? cut_local_to_global(&p->cut, p->tp_size, p->tp_rank, col) : col;
    int64_t inner = inner_count(p), axis0 = row, axis1 = col / inner;
    if (p->cut.axis == 0) axis0 = cut_local_to_global(&p->cut, p->tp_size, p->tp_rank, row);
    if (p->cut.axis == 1) axis1 = cut_local_to_global(&p->cut, p->tp_size, p->tp_rank, axis1);
    return (axis0 * p->shape[1] + axis1) * inner + col % inner;
}

#define DRAW 1024 /* values drawn at once */

static void draw_values(const struct param *p, struct rng_key sub, int64_t first, int64_t n,
                        double *out) {
    double scale = p->init == INIT_ZERO ? 0.0 : p->init == INIT_ONE ? 1.0 : p->init_scale;
    for (int64_t i = 0; i < n; i++) out[i] = 1.0;
    if (p->init == INIT_NORMAL)
        rng_normals(sub, (uint64_t)first, n, out);
    else if (p->init == INIT_UNIFORM)
        rng_uniforms(sub, (uint64_t)first, n, out);
    for (int64_t i = 0; i < n; i++) out[i] *= scale;
}

/* n local elements from (row, col) on, whose global indices follow each other. */
static void fill_run(const struct param *p, struct rng_key sub, int64_t row, int64_t col, int64_t n,
                     enum dtype dtype, char *to) {
    int64_t first = param_global_index(p, row, col);
    double values[DRAW];
    for (int64_t done = 0; done < n; done += DRAW) {
        int64_t count = n - done < DRAW ? n - done : DRAW;
        draw_values(p, sub, first + done, count, values);
        for (int64_t i = 0; i < count; i++) {
            float v = (float)values[i]; /* the same start in both precisions */
            if (dtype == DTYPE_F64)
                ((double *)(void *)to)[col + done + i] = (double)v;
            else
                ((float *)(void *)to)[col + done + i] = v;
        }
    }
}

/* A row is one run, or one per block where its columns are cut. */
static void fill_row(const struct param *p, struct rng_key sub, int64_t row, enum dtype dtype,
                     char *to) {
    int column_axis = p->ndim == 1 ? 0 : 1;
    if (p->cut.axis != column_axis) {
        fill_run(p, sub, row, 0, p->cols, dtype, to);
        return;
    }
    struct cut_part part = cut_part(&p->cut, p->tp_size, p->tp_rank);
    int64_t inner = inner_count(p);
    for (int b = 0; b < part.n_blocks; b++)
        fill_run(p, sub, row, part.local[b] * inner, part.count[b] * inner, dtype, to);
}

static void initialise_param(struct param *p, struct backend *be, struct rng_key run) {
    CHECK(be->dtype == DTYPE_F32 || be->dtype == DTYPE_F64, "initial values in %s",
          dtype_name(be->dtype));
    struct rng_key sub = rng_init_key(run, p->name);
    size_t row_bytes = (size_t)p->cols * dtype_size(be->dtype);
    char *host = xmalloc((size_t)p->rows * row_bytes + 1);
#pragma omp parallel for schedule(static) num_threads(be->threads)
    for (int64_t r = 0; r < p->rows; r++)
        fill_row(p, sub, r, be->dtype, host + (size_t)r * row_bytes);
    be->ops->upload(be, p->w.data, host, (size_t)p->rows * row_bytes);
    free(host);
}

/* Equal CRCs of two names would start both tensors with the same numbers. */
static void check_name_hashes(const struct param_set *s) {
    uint32_t *crc = xmalloc((size_t)(s->n + 1) * sizeof *crc);
    for (int i = 0; i < s->n; i++) {
        crc[i] = crc32c(0, s->param[i].name, strlen(s->param[i].name));
        for (int j = 0; j < i; j++)
            CHECK(crc[i] != crc[j], "%s and %s have the same CRC", s->param[i].name,
                  s->param[j].name);
    }
    free(crc);
}

void param_set_initialise(struct param_set *s, struct backend *be, struct rng_key run) {
    check_name_hashes(s);
    for (int i = 0; i < s->n; i++) initialise_param(&s->param[i], be, run);
}
