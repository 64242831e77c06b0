/* One checkpoint as global tensors, whatever layout wrote it: for the tools, and for export, which
 * never holds more than a slice of the model. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

static void make_tables(struct source *s) {
    s->reader = xcalloc((size_t)s->m->n_files + 1, sizeof *s->reader);
    s->scanned = xcalloc((size_t)s->m->n_files + 1, sizeof *s->scanned);
}

int source_open(struct source *s, const char *dir) {
    *s = (struct source){.dir = dir};
    TRY(ckpt_read_manifest(dir, &s->own));
    s->m = s->own;
    make_tables(s);
    int rc = ckpt_check_files(dir, s->m), cover = manifest_check_coverage(s->m, dir);
    if (!rc && (s->m->n_files < 1 || s->m->file[0].inspection))
        rc = error_raise(EXIT_BAD_DATA, "%s lists no shard", dir);
    return rc ? rc : cover;
}

static int scan_once(struct source *s, int file) {
    struct scan scan = {.dir = s->dir, .m = s->m, .file = file, .one_in = 1};
    scan.sha256 = s->m->file[file].sha256[0] != 0;
    if (!s->scanned[file]) TRY(ckpt_scan_file(&scan));
    s->scanned[file] = true;
    return 0;
}

/* In turn, so that a checkpoint of many shards does not use up the descriptors. */
static int close_one(struct source *s) {
    int rc = 0;
    while (!s->reader[s->next_out % s->m->n_files].path) s->next_out++;
    rc = reader_close(rc, &s->reader[s->next_out % s->m->n_files]);
    s->n_open--;
    return rc;
}

int source_shard(struct source *s, int file, struct shard_reader **reader) {
    *reader = &s->reader[file];
    if ((*reader)->path) return 0;
    TRY(scan_once(s, file));
    h5_begin(s->set);
    int rc = s->n_open == SOURCE_OPEN_MAX ? close_one(s) : 0;
    if (!rc) rc = reader_open(*reader, s->dir, s->m, file, file);
    if (rc)
        reader_close(rc, *reader);
    else
        s->n_open++;
    h5_end(s->set);
    return rc;
}

/* Bytes of `both`, read into an array that holds `box`. */
static int check_read(struct source *s, const struct shard_reader *reader,
                      const struct ckpt_tensor *t, const struct ckpt_block *b,
                      const struct box *both, const struct box *box, const char *host) {
    int64_t first;
    if (!box_is_flat(box, both, &first)) return 0;
    host += first * (int64_t)dtype_size(t->dtype);
    return passing_check(&s->passing, reader, t, b, both, host);
}

int source_read(struct source *s, const struct ckpt_tensor *t, const struct box *box, void *host) {
    int rc = 0;
    for (int64_t j = 0; !rc && j < t->n_blocks; j++) {
        const struct ckpt_block *b = &t->block[j];
        struct shard_reader *reader;
        struct box both;
        hid_t d = -1;
        if (!box_intersect(box, &b->box, &both)) continue;
        TRY(source_shard(s, b->file, &reader));
        h5_begin(s->set);
        rc = reader_dataset(reader, t, b, &d);
        if (!rc) rc = reader_read_into(reader, d, t, b, &both, box, host);
        if (!rc) rc = check_read(s, reader, t, b, &both, box, host);
        rc = h5_close(rc, d, b->dataset);
        h5_end(s->set);
    }
    return rc;
}

int source_close(int rc, struct source *s) {
    h5_begin(s->set);
    for (int64_t i = 0; s->reader && i < s->m->n_files; i++)
        if (s->reader[i].path) rc = reader_close(rc, &s->reader[i]);
    h5_end(s->set);
    free(s->reader);
    free(s->scanned);
    manifest_free(s->own);
    *s = (struct source){0};
    return rc;
}

/* ---- one that a run has found ------------------------------------------------------------------------ */
struct ckpt_reader {
    struct source source;
};

int ckpt_reader_open(const struct ckpt_settings *settings, const struct ckpt_found *found,
                     struct ckpt_reader **out) {
    struct ckpt_reader *r = xcalloc(1, sizeof *r);
    CHECK(found->any, "nothing was found to read");
    r->source = (struct source){.dir = found->dir, .m = found->manifest, .set = settings};
    make_tables(&r->source);
    /* ckpt_find has verified what it was asked to; blocks that are read are left to the reader. */
    for (int64_t i = 0; i < r->source.m->n_files; i++)
        r->source.scanned[i] = settings->verify_load != CKPT_VERIFY_USED;
    *out = r;
    return 0;
}

int ckpt_reader_close(int rc, struct ckpt_reader *r) {
    rc = source_close(rc, &r->source);
    free(r);
    return rc;
}

/* The master copy if there is one, else the weights. */
static int find_tensor(const struct source *s, const struct param *p,
                       const struct ckpt_tensor **t) {
    char name[CKPT_NAME_MAX + 1];
    *t = NULL;
    for (int role = CKPT_MASTER; role >= CKPT_WEIGHT && *t == NULL; role--) {
        part_tensor_name(p, (enum ckpt_role)role, name, sizeof name);
        *t = manifest_find(s->m, name);
    }
    if (*t == NULL)
        return error_raise(EXIT_RESUME, "%s has no tensor %s, which its own job needs", s->dir,
                           name);
    if ((*t)->n_dims == p->ndim &&
        memcmp((*t)->shape, p->shape, (size_t)p->ndim * sizeof *p->shape) == 0)
        return 0;
    return error_raise(EXIT_RESUME, "%s: tensor %s has another shape than its own job says", s->dir,
                       name);
}

int ckpt_reader_rows(struct ckpt_reader *r, const struct param *p, int64_t first, int64_t count,
                     float *out) {
    const struct ckpt_tensor *t;
    TRY(find_tensor(&r->source, p, &t));
    CHECK(first >= 0 && count >= 0 && first <= t->shape[0] - count, "rows [%lld, +%lld) of %s",
          (long long)first, (long long)count, t->name);
    struct box rows = tensor_box(t);
    rows.offset[0] = first;
    rows.count[0] = count;
    if (t->dtype == DTYPE_F32) return source_read(&r->source, t, &rows, out);
    int64_t n = box_volume(&rows);
    void *packed = xmalloc((size_t)n * dtype_size(t->dtype) + 1);
    int rc = source_read(&r->source, t, &rows, packed);
    if (!rc) values_to_float(t->dtype, packed, n, out);
    free(packed);
    return rc;
}
