/* A checkpoint read tensor by tensor, whatever layout wrote it: for export, which never holds more
 * than a slice of the model. */
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"
#include "safetensors.h"

#define OPEN_MAX 64

struct ckpt_reader {
    const struct ckpt_settings *set;
    const struct ckpt_found *found;
    struct shard_reader *shard; /* [n_files]; path NULL: closed */
    int n_open;
};

int ckpt_reader_open(const struct ckpt_settings *settings, const struct ckpt_found *found,
                     struct ckpt_reader **out) {
    struct ckpt_reader *r = xcalloc(1, sizeof *r);
    CHECK(found->any, "nothing was found to read");
    r->set = settings;
    r->found = found;
    r->shard = xcalloc((size_t)found->manifest->n_files + 1, sizeof *r->shard);
    *out = r;
    return 0;
}

static int close_all(struct ckpt_reader *r, int rc) {
    for (int64_t i = 0; i < r->found->manifest->n_files; i++)
        if (r->shard[i].path != NULL) rc = reader_close(rc, &r->shard[i]);
    r->n_open = 0;
    return rc;
}

int ckpt_reader_close(int rc, struct ckpt_reader *r) {
    h5_begin(r->set);
    rc = close_all(r, rc);
    h5_end(r->set);
    free(r->shard);
    free(r);
    return rc;
}

static int open_shard(struct ckpt_reader *r, int file) {
    if (r->shard[file].path != NULL) return 0;
    if (r->n_open == OPEN_MAX) TRY(close_all(r, 0));
    int rc = reader_open(&r->shard[file], r->found->dir, r->found->manifest, file, file);
    if (rc) return reader_close(rc, &r->shard[file]);
    r->n_open++;
    return 0;
}

/* fp32 copy of `sub`, scattered to its rows of out, which holds the rows of `whole`. */
static void place(const struct ckpt_tensor *t, const struct box *sub, const struct box *whole,
                  const void *packed, float *out) {
    static const enum safetensors_dtype as[DTYPE_COUNT] = {
        [DTYPE_F32] = ST_F32, [DTYPE_F64] = ST_F64, [DTYPE_BF16] = ST_BF16, [DTYPE_F16] = ST_F16};
    int n = sub->n, last = n - 1;
    int64_t run = sub->count[last], runs = box_volume(sub) / run;
    for (int64_t i = 0; i < runs; i++) {
        int64_t rest = i, at[CKPT_DIMS] = {0}, flat = 0;
        for (int d = last - 1; d >= 0; d--) {
            at[d] = rest % sub->count[d];
            rest /= sub->count[d];
        }
        for (int d = 0; d < n; d++)
            flat = flat * whole->count[d] + sub->offset[d] - whole->offset[d] + at[d];
        safetensors_to_float(as[t->dtype],
                             (const char *)packed + (size_t)(i * run) * dtype_size(t->dtype), run,
                             out + flat);
    }
}

static int read_block(struct ckpt_reader *r, const struct ckpt_tensor *t,
                      const struct ckpt_block *b, const struct box *sub, const struct box *whole,
                      float *out) {
    hid_t d = -1;
    TRY(open_shard(r, b->file));
    TRY(reader_dataset(&r->shard[b->file], t, b, &d));
    void *packed = xmalloc((size_t)box_volume(sub) * dtype_size(t->dtype));
    int rc = reader_read(&r->shard[b->file], d, t, b, sub, packed);
    if (!rc) place(t, sub, whole, packed, out);
    free(packed);
    return h5_close(rc, d, b->dataset);
}

static int read_rows(struct ckpt_reader *r, const struct ckpt_tensor *t, int64_t first,
                     int64_t count, float *out) {
    struct box whole = {.n = t->n_dims};
    memcpy(whole.count, t->shape, sizeof whole.count);
    whole.offset[0] = first;
    whole.count[0] = count;
    for (int64_t j = 0; j < t->n_blocks; j++) {
        struct box both;
        if (!box_intersect(&whole, &t->block[j].box, &both)) continue;
        TRY(read_block(r, t, &t->block[j], &both, &whole, out));
    }
    return 0;
}

int ckpt_reader_rows(struct ckpt_reader *r, const struct param *p, int64_t first, int64_t count,
                     float *out) {
    const struct ckpt_tensor *t = NULL;
    char name[CKPT_NAME_MAX + 1];
    for (int role = CKPT_MASTER; role >= CKPT_WEIGHT && t == NULL; role--) {
        part_tensor_name(p, (enum ckpt_role)role, name, sizeof name);
        t = manifest_find(r->found->manifest, name);
    }
    if (t == NULL)
        return error_raise(EXIT_RESUME, "%s has no tensor %s, which its own job needs",
                           r->found->dir, name);
    if (t->n_dims != p->ndim ||
        memcmp(t->shape, p->shape, (size_t)t->n_dims * sizeof *t->shape) != 0)
        return error_raise(EXIT_RESUME, "%s: tensor %s has another shape than its own job says",
                           r->found->dir, name);
    CHECK(first >= 0 && count >= 0 && first <= t->shape[0] - count, "rows [%lld, +%lld) of %s",
          (long long)first, (long long)count, name);
    h5_begin(r->set);
    int rc = read_rows(r, t, first, count, out);
    h5_end(r->set);
    return rc;
}
