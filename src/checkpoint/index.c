/* index.h5: the global tensors as virtual datasets over the shards. For people and tools; no loader
 * opens it, because a missing shard reads as fill value there (NaN, so that the hole shows). */
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"

static int set_nan(hid_t list, enum dtype t, hid_t type) {
    static const uint32_t f32 = 0x7fc00000;
    static const uint64_t f64 = 0x7ff8000000000000;
    static const uint16_t bf16 = 0x7fc0, f16 = 0x7e00;
    const void *bits = t == DTYPE_F32    ? (const void *)&f32
                       : t == DTYPE_F64  ? (const void *)&f64
                       : t == DTYPE_BF16 ? (const void *)&bf16
                       : t == DTYPE_F16  ? (const void *)&f16
                                         : NULL;
    return bits && H5Pset_fill_value(list, type, bits) < 0 ? -1 : 0;
}

static int map_block(hid_t list, hid_t whole, const struct ckpt_manifest *m,
                     const struct ckpt_block *b) {
    hsize_t start[CKPT_DIMS], count[CKPT_DIMS];
    for (int d = 0; d < b->box.n; d++) {
        start[d] = (hsize_t)b->box.offset[d];
        count[d] = (hsize_t)b->box.count[d];
    }
    hid_t source = H5Screate_simple(b->box.n, count, NULL);
    int rc = 0;
    if (source < 0 || H5Sselect_hyperslab(whole, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        H5Pset_virtual(list, whole, m->file[b->file].name, b->dataset, source) < 0)
        rc = h5_error(EXIT_IO, "index: %s could not be mapped", b->dataset);
    return h5_close(rc, source, "space");
}

static int index_tensor(struct shard *s, const struct ckpt_manifest *m,
                        const struct ckpt_tensor *t) {
    char path[CKPT_NAME_MAX + 1], *slash;
    hsize_t shape[CKPT_DIMS];
    snprintf(path, sizeof path, "%s", t->name);
    slash = strrchr(path, '/');
    CHECK(slash, "tensor %s lies in no group", t->name);
    *slash = 0;
    for (int d = 0; d < t->n_dims; d++) shape[d] = (hsize_t)t->shape[d];
    hid_t group = -1, list = H5Pcreate(H5P_DATASET_CREATE), d = -1;
    hid_t type = t->dtype == DTYPE_BF16 ? s->bfloat16 : h5_dtype(t->dtype);
    hid_t whole = H5Screate_simple(t->n_dims, shape, NULL);
    int rc = shard_group(s, path, -1, &group);
    if (!rc && (list < 0 || whole < 0 || H5Pset_obj_track_times(list, false) < 0 ||
                set_nan(list, t->dtype, type) < 0))
        rc = h5_error(EXIT_IO, "index: no properties for %s", t->name);
    for (int64_t i = 0; !rc && i < t->n_blocks; i++) rc = map_block(list, whole, m, &t->block[i]);
    if (!rc) d = H5Dcreate2(group, slash + 1, type, whole, H5P_DEFAULT, list, H5P_DEFAULT);
    if (!rc && d < 0) rc = h5_error(EXIT_IO, "index: %s could not be made", t->name);
    if (!rc) rc = h5_put_text(d, "dtype_role", ckpt_role_name(t->role));
    if (!rc) rc = h5_put_text(d, "units", "1");
    rc = h5_close(rc, d, t->name);
    rc = h5_close(rc, list, "list");
    rc = h5_close(rc, whole, "space");
    rc = h5_close(rc, group, "group");
    return t->dtype == DTYPE_BF16 ? rc : h5_close(rc, type, "type");
}

int index_write(const char *path, const struct ckpt_manifest *m,
                const struct ckpt_settings *settings) {
    struct shard s;
    struct shard_identity id = {.m = m, .index = -1};
    int rc = shard_create(&s, path, &id, settings);
    for (int64_t i = 0; !rc && i < m->n_tensors; i++) rc = index_tensor(&s, m, &m->tensor[i]);
    return shard_close(rc, &s);
}
