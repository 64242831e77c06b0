/* verify --strict: index.h5 shows what the manifest says, no more and no less. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

static int fault(const char *path, const char *tensor, const char *what) {
    H5Eclear2(H5E_DEFAULT);
    return error_raise(EXIT_BAD_DATA, "%s: %s: %s", path, tensor, what);
}

/* Mapping i of the list is that block: its file, its dataset, its place. */
static bool mapping_is(hid_t list, size_t i, const struct source *s, const struct ckpt_block *b) {
    char file[CKPT_NAME_MAX + 1] = "", dataset[CKPT_NAME_MAX + 1] = "";
    hsize_t low[CKPT_DIMS], high[CKPT_DIMS];
    if (H5Pget_virtual_filename(list, i, file, sizeof file) < 0 ||
        H5Pget_virtual_dsetname(list, i, dataset, sizeof dataset) < 0)
        return false;
    hid_t space = H5Pget_virtual_vspace(list, i);
    bool same = space >= 0 && H5Sget_simple_extent_ndims(space) == b->box.n &&
                H5Sget_select_bounds(space, low, high) >= 0 &&
                H5Sget_select_npoints(space) == box_volume(&b->box);
    for (int d = 0; same && d < b->box.n; d++)
        same = low[d] == (hsize_t)b->box.offset[d] &&
               high[d] == (hsize_t)(b->box.offset[d] + b->box.count[d] - 1);
    h5_close(0, space, "space");
    return same && strcmp(file, s->m->file[b->file].name) == 0 && strcmp(dataset, b->dataset) == 0;
}

static bool shape_is(hid_t d, const struct ckpt_tensor *t) {
    hid_t space = H5Dget_space(d), type = H5Dget_type(d), expected = h5_dtype(t->dtype);
    hsize_t extent[CKPT_DIMS];
    bool same = space >= 0 && type >= 0 && expected >= 0 && H5Tequal(type, expected) > 0 &&
                H5Sget_simple_extent_ndims(space) == t->n_dims &&
                H5Sget_simple_extent_dims(space, extent, NULL) == t->n_dims;
    for (int i = 0; same && i < t->n_dims; i++) same = extent[i] == (hsize_t)t->shape[i];
    h5_close(0, space, "space");
    h5_close(0, type, "type");
    h5_close(0, expected, "type");
    return same;
}

/* A hole must not look like zeros. */
static bool fill_is_nan(hid_t list, const struct ckpt_tensor *t) {
    char bits[8] = {0};
    double v;
    hid_t type = h5_dtype(t->dtype);
    if (t->dtype > DTYPE_F16) return h5_close(0, type, "type") == 0;
    bool read = type >= 0 && H5Pget_fill_value(list, type, bits) >= 0;
    h5_close(0, type, "type");
    values_to_double(t->dtype, bits, 1, &v);
    return read && v != v;
}

static int check_mappings(const struct source *s, const char *path, const struct ckpt_tensor *t,
                          hid_t list) {
    size_t n = 0;
    if (H5Pget_layout(list) != H5D_VIRTUAL || H5Pget_virtual_count(list, &n) < 0 ||
        (int64_t)n != t->n_blocks)
        return fault(path, t->name, "it does not join the blocks of the manifest");
    for (size_t i = 0; i < n; i++)
        if (!mapping_is(list, i, s, &t->block[i]))
            return fault(path, t->name, "a block is mapped to another file, dataset or place");
    return fill_is_nan(list, t) ? 0 : fault(path, t->name, "its fill value is not NaN");
}

static int check_tensor(const struct source *s, const char *path, hid_t file,
                        const struct ckpt_tensor *t) {
    hid_t d = H5Dopen2(file, t->name, H5P_DEFAULT), list = d < 0 ? -1 : H5Dget_create_plist(d);
    int rc = 0;
    if (d < 0 || list < 0)
        rc = fault(path, t->name, "it is missing");
    else if (!shape_is(d, t))
        rc = fault(path, t->name, "its shape or type is not that of the manifest");
    else
        rc = check_mappings(s, path, t, list);
    rc = h5_close(rc, list, "list");
    return h5_close(rc, d, t->name);
}

static herr_t count_dataset(hid_t at, const char *name, const H5O_info_t *info, void *arg) {
    (void)at;
    (void)name;
    *(int64_t *)arg += info->type == H5O_TYPE_DATASET;
    return 0;
}

static int check_file(const struct source *s, const char *path) {
    struct h5_inlet in;
    hid_t access = h5_read_access(&in), file = -1;
    int64_t n = 0;
    int rc = 0;
    if (access >= 0) file = H5Fopen(path, H5F_ACC_RDONLY, access);
    if (file < 0) rc = h5_error(EXIT_BAD_DATA, "%s could not be opened", path);
    for (int64_t i = 0; file >= 0 && i < s->m->n_tensors; i++) {
        int one = check_tensor(s, path, file, &s->m->tensor[i]);
        if (one && !rc) rc = one;
    }
    if (!rc &&
        (H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, count_dataset, &n, H5O_INFO_BASIC) < 0 ||
         n != s->m->n_tensors))
        rc = error_raise(EXIT_BAD_DATA, "%s holds %lld tensors, the manifest %lld", path,
                         (long long)n, (long long)s->m->n_tensors);
    rc = h5_close(rc, file, path);
    rc = h5_close(rc, access, "list");
    return h5_inlet_verdict(rc, &in, path);
}

/* Its absence is legal, damage in it is not. */
int lint_index(struct source *s) {
    int rc = 0;
    for (int64_t i = 0; !rc && i < s->m->n_files; i++) {
        if (!s->m->file[i].inspection) continue;
        char *path = xasprintf("%s/%s", s->dir, s->m->file[i].name);
        struct scan scan = {.dir = s->dir, .m = s->m, .file = (int)i, .one_in = 1};
        bool there = false;
        rc = file_look(path, &there);
        if (!rc && there) rc = ckpt_scan_file(&scan);
        h5_begin(NULL);
        if (there && !rc) rc = check_file(s, path);
        h5_end(NULL);
        free(path);
    }
    return rc;
}
