/* Reading a shard. Its checksum was compared before HDF5 saw it; what is checked here is that the
 * file is the one the manifest speaks of, and that each dataset is what it says. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"

static int compare_text(const struct shard_reader *r, const char *name, const char *expected) {
    char *found, shown[80];
    TRY(h5_get_text(r->file, name, &found));
    text_printable(found, shown, sizeof shown);
    bool same = strcmp(found, expected) == 0;
    free(found);
    if (same) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: its %s is \"%s\", the manifest's is \"%s\": this shard "
                       "belongs to another checkpoint",
                       r->path, name, shown, expected);
}

static int compare_integer(const struct shard_reader *r, const char *name, int64_t expected) {
    int64_t found;
    TRY(h5_get_integer(r->file, name, &found));
    if (found == expected) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: its %s is %lld, the manifest says %lld: this shard "
                       "belongs elsewhere",
                       r->path, name, (long long)found, (long long)expected);
}

int reader_open(struct shard_reader *r, const char *dir, const struct ckpt_manifest *m, int file,
                int64_t shard_index) {
    *r = (struct shard_reader){.m = m, .file_index = file, .file = -1};
    r->path = xasprintf("%s/%s", dir, m->file[file].name);
    hid_t access = h5_read_access(&r->in);
    if (access >= 0) r->file = H5Fopen(r->path, H5F_ACC_RDONLY, access);
    int rc = r->file < 0 ? h5_error(EXIT_BAD_DATA, "%s could not be opened", r->path) : 0;
    rc = h5_close(rc, access, "list");
    if (!rc) rc = compare_text(r, "format", CKPT_FORMAT);
    if (!rc) rc = compare_text(r, "checkpoint_uuid", m->uuid);
    if (!rc) rc = compare_integer(r, "step", m->step);
    if (!rc) rc = compare_integer(r, "shard_index", shard_index);
    if (!rc) rc = compare_integer(r, "shard_count", m->writers);
    return rc;
}

int reader_close(int rc, struct shard_reader *r) {
    rc = h5_close(rc, r->file, r->path);
    rc = h5_inlet_verdict(rc, &r->in, r->path);
    free(r->path);
    r->path = NULL;
    return rc;
}

static int check_storage(const struct shard_reader *r, hid_t d, const struct ckpt_block *b) {
    hid_t list = H5Dget_create_plist(d);
    int rc = 0;
    if (list < 0) return h5_error(EXIT_BAD_DATA, "%s: %s has no properties", r->path, b->dataset);
    if (b->n_chunks > 0)
        rc = reader_check_chunks(r, d, list, b);
    else if (H5Pget_layout(list) != H5D_CONTIGUOUS || H5Pget_external_count(list) != 0 ||
             H5Pget_nfilters(list) != 0)
        rc = error_raise(EXIT_BAD_DATA, "%s: %s is not stored as plain bytes in this file", r->path,
                         b->dataset);
    else if (H5Dget_storage_size(d) != (hsize_t)b->bytes ||
             H5Dget_offset(d) != (haddr_t)b->file_offset)
        rc = error_raise(EXIT_BAD_DATA, "%s: %s does not lie where the manifest says", r->path,
                         b->dataset);
    return h5_close(rc, list, "list");
}

static int check_extent(const struct shard_reader *r, hid_t d, const struct ckpt_tensor *t,
                        const struct ckpt_block *b) {
    hid_t space = H5Dget_space(d), type = H5Dget_type(d), expected = h5_dtype(t->dtype);
    hsize_t extent[CKPT_DIMS];
    int rc = 0;
    bool same = space >= 0 && H5Sget_simple_extent_ndims(space) == b->box.n &&
                H5Sget_simple_extent_dims(space, extent, NULL) == b->box.n;
    for (int i = 0; same && i < b->box.n; i++) same = extent[i] == (hsize_t)b->box.count[i];
    if (!same)
        rc = h5_error(EXIT_BAD_DATA, "%s: %s has not the extent of the manifest", r->path,
                      b->dataset);
    else if (type < 0 || expected < 0 || H5Tequal(type, expected) <= 0)
        rc = h5_error(EXIT_BAD_DATA, "%s: %s is not of type %s", r->path, b->dataset,
                      dtype_name(t->dtype));
    rc = h5_close(rc, space, "space");
    rc = h5_close(rc, type, "type");
    return h5_close(rc, expected, "type");
}

static int check_attributes(const struct shard_reader *r, hid_t d, const struct ckpt_tensor *t,
                            const struct ckpt_block *b) {
    int64_t shape[CKPT_DIMS], offset[CKPT_DIMS];
    TRY(h5_get_integers(d, "global_shape", shape, t->n_dims));
    TRY(h5_get_integers(d, "global_offset", offset, t->n_dims));
    size_t bytes = (size_t)t->n_dims * sizeof shape[0];
    if (memcmp(shape, t->shape, bytes) == 0 && memcmp(offset, b->box.offset, bytes) == 0) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: %s belongs elsewhere in its tensor than the manifest "
                       "says",
                       r->path, b->dataset);
}

int reader_dataset(const struct shard_reader *r, const struct ckpt_tensor *t,
                   const struct ckpt_block *b, hid_t *dataset) {
    *dataset = -1;
    TRY(h5_check_links(r->file, r->path, b->dataset));
    *dataset = H5Dopen2(r->file, b->dataset, H5P_DEFAULT);
    if (*dataset < 0) return h5_error(EXIT_BAD_DATA, "%s: %s is no dataset", r->path, b->dataset);
    int rc = check_storage(r, *dataset, b);
    if (!rc) rc = check_extent(r, *dataset, t, b);
    if (!rc) rc = check_attributes(r, *dataset, t, b);
    if (!rc) return 0;
    h5_close(rc, *dataset, b->dataset);
    *dataset = -1;
    return rc;
}

static int read_slab(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, hid_t file, hid_t memory, void *host) {
    hid_t type = h5_dtype(t->dtype);
    int rc = 0;
    if (type < 0 || H5Dread(dataset, type, memory, file, H5P_DEFAULT, host) < 0)
        rc = h5_error(EXIT_BAD_DATA, "%s: %s could not be read", r->path, b->dataset);
    return h5_close(rc, type, "type");
}

int reader_read_into(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, const struct box *sub, const struct box *frame,
                     void *host) {
    hsize_t start[CKPT_DIMS], to[CKPT_DIMS], count[CKPT_DIMS], extent[CKPT_DIMS];
    for (int i = 0; i < sub->n; i++) {
        start[i] = (hsize_t)(sub->offset[i] - b->box.offset[i]);
        to[i] = (hsize_t)(sub->offset[i] - frame->offset[i]);
        count[i] = (hsize_t)sub->count[i];
        extent[i] = (hsize_t)frame->count[i];
    }
    hid_t file = H5Dget_space(dataset), memory = H5Screate_simple(sub->n, extent, NULL);
    int rc = 0;
    if (file < 0 || memory < 0 ||
        H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        H5Sselect_hyperslab(memory, H5S_SELECT_SET, to, NULL, count, NULL) < 0)
        rc = h5_error(EXIT_IO, "%s: no selection in %s", r->path, b->dataset);
    if (!rc) rc = read_slab(r, dataset, t, b, file, memory, host);
    rc = h5_close(rc, file, "space");
    return h5_close(rc, memory, "space");
}

int reader_read(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                const struct ckpt_block *b, const struct box *sub, void *host) {
    return reader_read_into(r, dataset, t, b, sub, sub, host);
}

/* ---- counters and history ------------------------------------------------------------------------------ */
static const struct counter {
    const char *group, *name;
    size_t offset;
} counter[] = {
#define AT(field) offsetof(struct ckpt_counters, field)
    {"header", "step", AT(step)},
    {"training/data", "consumed_samples", AT(consumed_samples)},
    {"training/data", "consumed_tokens", AT(consumed_tokens)},
    {"training/data", "skipped_samples", AT(skipped_samples)},
    {"training/data", "epoch", AT(epoch)},
    {"training/data", "index", AT(index)},
    {"training/schedule", "optimizer_step", AT(optimizer_step)},
    {"training/decisions", "skipped_iterations", AT(skipped_iterations)},
    {"training/decisions", "nan_iterations", AT(nan_iterations)},
#undef AT
};

int reader_counters(const struct shard_reader *r, struct ckpt_counters *at) {
    for (size_t i = 0; i < sizeof counter / sizeof counter[0]; i++) {
        const struct counter *c = &counter[i];
        hid_t g;
        TRY(h5_open_group(r->file, r->path, c->group, &g));
        int rc = h5_get_integer(g, c->name, (int64_t *)(void *)((char *)at + c->offset));
        TRY(h5_close(rc, g, c->group));
    }
    return 0;
}

/* A column of n elements of 8 bytes; n < 0: take its own length (checked against the file). */
static int read_column(const struct shard_reader *r, const char *name, hid_t type, void **v,
                       int64_t *n) {
    *v = NULL;
    hid_t d;
    TRY(h5_open_plain(r->file, r->path, name, &d));
    hid_t space = H5Dget_space(d);
    int rc = 0;
    hssize_t points = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    if (points < 1 || points * 8 > r->m->file[r->file_index].bytes || (*n >= 0 && points != *n))
        rc = h5_error(EXIT_BAD_DATA, "%s: %s is no column of the table it is in", r->path, name);
    if (!rc) *v = xmalloc((size_t)points * 8);
    if (!rc && H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *v) < 0)
        rc = h5_error(EXIT_BAD_DATA, "%s: %s could not be read", r->path, name);
    *n = points;
    rc = h5_close(rc, space, "space");
    return h5_close(rc, d, name);
}

int reader_history(const struct shard_reader *r, struct ckpt_row **row, int64_t *n) {
    void *step = NULL, *v[3] = {NULL};
    static const char *const name[3] = {"training/history/loss", "training/history/lr",
                                        "training/history/grad_norm"};
    *row = NULL;
    *n = 0;
    htri_t there = H5Lexists(r->file, "training/history", H5P_DEFAULT);
    if (there > 0) there = H5Lexists(r->file, "training/history/step", H5P_DEFAULT);
    if (there < 0) return h5_error(EXIT_BAD_DATA, "%s: no history can be found", r->path);
    if (there == 0) return 0;
    int64_t rows = -1;
    int rc = read_column(r, "training/history/step", H5T_NATIVE_INT64, &step, &rows);
    for (int k = 0; !rc && k < 3; k++)
        rc = read_column(r, name[k], H5T_NATIVE_DOUBLE, &v[k], &rows);
    if (!rc) *row = xmalloc((size_t)rows * sizeof **row);
    for (int64_t i = 0; *row && step && v[0] && v[1] && v[2] && i < rows; i++)
        (*row)[i] = (struct ckpt_row){.step = ((int64_t *)step)[i],
                                      .loss = ((double *)v[0])[i],
                                      .lr = ((double *)v[1])[i],
                                      .grad_norm = ((double *)v[2])[i]};
    if (!rc) *n = rows;
    free(step);
    for (int k = 0; k < 3; k++) free(v[k]);
    return rc;
}

int reader_speed(const struct shard_reader *r, struct ckpt_speed **row, int64_t *n) {
    void *step = NULL, *v = NULL;
    *row = NULL;
    *n = 0;
    htri_t there = H5Lexists(r->file, "provenance/tokens_per_s", H5P_DEFAULT);
    if (there < 0) return h5_error(EXIT_BAD_DATA, "%s: no provenance can be found", r->path);
    if (there == 0) return 0;
    int64_t rows = -1;
    int rc = read_column(r, "provenance/step", H5T_NATIVE_INT64, &step, &rows);
    if (!rc) rc = read_column(r, "provenance/tokens_per_s", H5T_NATIVE_DOUBLE, &v, &rows);
    if (!rc) *row = xmalloc((size_t)rows * sizeof **row);
    for (int64_t i = 0; *row && i < rows; i++)
        (*row)[i] = (struct ckpt_speed){((int64_t *)step)[i], ((double *)v)[i]};
    if (!rc) *n = rows;
    free(step);
    free(v);
    return rc;
}
