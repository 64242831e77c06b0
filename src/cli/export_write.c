/* strata export, the values: the tensors are dealt out in slices of rows by bytes, as a pure function
 * of the table of tensors, so that no rank asks another. */
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"

#define SLICE_LEAST ((int64_t)1024)
#define SHARES_OF_A_RANK 8 /* slices that a rank gets at least, where rows allow it */

struct output {
    const struct hf_tensors *t;
    struct ckpt_reader *reader;
    struct safetensors_writer *writer;
    int rank, ranks;
    int64_t slice;       /* elements of one */
    int64_t total, done; /* elements; done: in slices before this one, of all ranks */
    float *rows;
};

static int64_t rows_read(const struct output *o, int64_t i) {
    const struct param *p = o->t->param[i];
    return p != NULL ? p->shape[0] : o->t->tensor[i].shape[0];
}

static int64_t row_elements(const struct output *o, int64_t i) {
    return safetensor_count(&o->t->tensor[i]) / o->t->tensor[i].shape[0];
}

/* Is the next slice mine? A rank has neighbouring slices, about total / ranks elements of them. */
static bool take_slice(struct output *o, int64_t elements) {
    double middle = (double)o->done + (double)elements / 2;
    o->done += elements;
    return (int)(middle * o->ranks / (double)o->total) == o->rank;
}

static int copy_rows(struct output *o, int64_t i, int64_t first, int64_t n) {
    const struct param *p = o->t->param[i];
    int64_t cols = row_elements(o, i);
    if (p == NULL)
        memset(o->rows, 0, (size_t)(n * cols) * sizeof *o->rows);
    else
        TRY(ckpt_reader_rows(o->reader, p, first, n, o->rows));
    return safetensors_write(o->writer, i, first * cols, n * cols, o->rows);
}

/* Rows behind the vocabulary that was trained are its mean row: deterministic, and unlikely. The sum
 * goes over the rows in their order, so one rank has the whole tensor. */
static int copy_widened(struct output *o, int64_t i, int64_t step) {
    int64_t have = rows_read(o, i), cols = row_elements(o, i);
    double *sum = xcalloc((size_t)cols, sizeof *sum);
    int rc = 0;
    for (int64_t at = 0; !rc && at < have; at += step) {
        int64_t n = have - at < step ? have - at : step;
        rc = copy_rows(o, i, at, n);
        for (int64_t k = 0; !rc && k < n * cols; k++) sum[k % cols] += (double)o->rows[k];
    }
    for (int64_t c = 0; c < cols; c++) o->rows[c] = (float)(sum[c] / (double)have);
    for (int64_t r = have; !rc && r < o->t->tensor[i].shape[0]; r++)
        rc = safetensors_write(o->writer, i, r * cols, cols, o->rows);
    free(sum);
    return rc;
}

static int copy_tensor(struct output *o, int64_t i) {
    int64_t have = rows_read(o, i), cols = row_elements(o, i);
    int64_t step = o->slice / cols > 0 ? o->slice / cols : 1;
    if (o->t->tensor[i].shape[0] > have)
        return take_slice(o, safetensor_count(&o->t->tensor[i])) ? copy_widened(o, i, step) : 0;
    for (int64_t at = 0; at < have; at += step) {
        int64_t n = have - at < step ? have - at : step;
        if (take_slice(o, n * cols)) TRY(copy_rows(o, i, at, n));
    }
    return 0;
}

static int copy_all(struct output *o) {
    int64_t widest = 0;
    for (int64_t i = 0; i < o->t->n; i++) {
        o->total += safetensor_count(&o->t->tensor[i]);
        if (row_elements(o, i) > widest) widest = row_elements(o, i);
    }
    o->slice = o->total / (o->ranks * SHARES_OF_A_RANK);
    if (o->slice < SLICE_LEAST) o->slice = SLICE_LEAST;
    if (o->slice > HF_SLICE) o->slice = HF_SLICE;
    o->rows = xmalloc((size_t)(o->slice > widest ? o->slice : widest) * sizeof *o->rows);
    int rc = 0;
    for (int64_t i = 0; !rc && i < o->t->n; i++) rc = copy_tensor(o, i);
    free(o->rows);
    return rc;
}

/* Rank 0 makes the files with their headers, the others open them. The same code on every rank. */
static int open_writer(const struct hf_export *e, const struct group *world, struct output *o) {
    const char *stem = e->projector_only ? "mm_projector" : "model";
    int64_t creator = 0;
    int rc = 0;
    if (o->rank == 0)
        rc = safetensors_create(e->to, stem, "pt", o->t->tensor, o->t->n, e->max_bytes, &o->writer);
    if (o->rank == 0 && !rc) creator = safetensors_creator(o->writer);
    TRY(comm_vote(world, rc));
    comm_broadcast(world, &creator, sizeof creator, 0);
    if (o->rank > 0)
        rc = safetensors_join(e->to, stem, "pt", o->t->tensor, o->t->n, e->max_bytes, creator,
                              &o->writer);
    return comm_vote(world, rc);
}

/* No file gets its name before the bytes of every rank are on disk. */
static int close_writer(int rc, const struct group *world, struct output *o,
                        struct safetensors_rounding *rounding) {
    if (!rc) rc = safetensors_flush(o->writer);
    int all = comm_vote(world, rc);
    if (o->writer != NULL && o->rank > 0) safetensors_leave(o->writer, rounding);
    if (o->writer != NULL && o->rank == 0) all = safetensors_finish(all, o->writer, rounding);
    return comm_vote(world, all);
}

static void report(const struct group *world, const struct safetensors_rounding *mine) {
    int64_t n[2] = {mine->clamped, mine->flushed};
    comm_allreduce_i64(world, n, 2, REDUCE_SUM);
    if (group_rank(world) == 0 && n[0] + n[1] > 0)
        log_warn("fp16 cannot hold %lld values (written as 65504) and %lld (written as 0): --dtype "
                 "bf16 or fp32 can",
                 (long long)n[0], (long long)n[1]);
}

int hf_write_tensors(const struct hf_export *e, const struct group *world,
                     const struct ckpt_settings *settings, const struct ckpt_found *found,
                     const struct hf_tensors *tensors) {
    struct safetensors_rounding rounding = {0};
    struct output o = {.t = tensors, .rank = group_rank(world), .ranks = group_size(world)};
    int rc = open_writer(e, world, &o);
    if (!rc) rc = ckpt_reader_open(settings, found, &o.reader);
    if (!rc) rc = copy_all(&o);
    if (o.reader != NULL) rc = ckpt_reader_close(rc, o.reader);
    rc = close_writer(rc, world, &o, &rounding);
    if (!rc) report(world, &rounding);
    return rc;
}
