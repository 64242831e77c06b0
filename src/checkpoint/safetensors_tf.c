/* tf_model.h5, the file of TensorFlow weights in folders of CLIP, read as if it were safetensors: its
 * datasets are listed through HDF5 once, checked to be plain bytes of this file, and from then on read
 * by their places. Only the vision tower is taken. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5_impl.h"
#include "safetensors_impl.h"

#define TF_NAME_MAX 400
#define TF_TENSORS_MAX 100000
#define TOWER "vision_model/"

struct listing {
    struct safetensors *to;
    const struct safetensors_file *file;
    int64_t n;
    int rc;
};

static int bad(const struct listing *l, const char *dataset, const char *why) {
    char shown[200];
    text_printable(dataset, shown, sizeof shown);
    return h5_error(EXIT_BAD_DATA, "%s: dataset \"%s\" %s", l->file->name, shown, why);
}

/* ---- names ------------------------------------------------------------------------------------- */
/* "clip/vision_model/encoder/layers_._3/mlp/fc1/kernel:0" -> "vision_model.encoder.layers.3.mlp.fc1.weight";
 * NULL: not of the tower. free() it. */
static char *tower_name(const char *dataset) {
    static const struct {
        const char *from, *to;
    } leaf[] = {{".kernel:0", ".weight"},
                {".gamma:0", ".weight"},
                {".beta:0", ".bias"},
                {".position_embedding.embeddings:0", ".position_embedding.weight"},
                {":0", ""}};
    const char *at = strstr(dataset, TOWER);
    if (at == NULL || (at > dataset && at[-1] != '/') || strlen(at) > TF_NAME_MAX) return NULL;
    char *name = xstrdup(at), *layer;
    for (char *c = name; *c != 0; c++)
        if (*c == '/') *c = '.';
    while ((layer = strstr(name, "layers_._")) != NULL) {
        layer[6] = '.';
        memmove(layer + 7, layer + 9, strlen(layer + 9) + 1);
    }
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof leaf / sizeof *leaf; i++) {
        size_t k = strlen(leaf[i].from);
        if (n <= k || strcmp(name + n - k, leaf[i].from) != 0) continue;
        char *out = xasprintf("%.*s%s", (int)(n - k), name, leaf[i].to);
        free(name);
        return out;
    }
    return name;
}

/* ---- one dataset ---------------------------------------------------------------------------------- */
/* Dense kernels are [in, out], those of a convolution [height, width, in, out]. */
static int take_shape(const struct listing *l, const char *dataset, hid_t d, struct safetensor *t) {
    hsize_t dim[SAFETENSORS_DIMS] = {0};
    hid_t space = H5Dget_space(d);
    int n = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
    bool kernel = strstr(dataset, "/kernel:0") != NULL, good = n >= 1 && n <= 4 && n != 3;
    int rc = 0;
    if (!good || (kernel && n == 1) || (!kernel && n == 4) ||
        H5Sget_simple_extent_dims(space, dim, NULL) != n)
        rc = bad(l, dataset, "has a shape that no weight of CLIP has");
    t->n_dims = n;
    t->bytes = 4;
    for (int i = 0; !rc && i < n; i++) {
        int from = !kernel ? i : n == 2 ? 1 - i : (int[]){3, 2, 0, 1}[i];
        if (dim[from] < 1 || dim[from] > INT64_MAX / 8 ||
            __builtin_mul_overflow(t->bytes, (int64_t)dim[from], &t->bytes))
            rc = bad(l, dataset, "has a shape that overflows");
        else
            t->shape[i] = (int64_t)dim[from];
    }
    t->permuted = kernel;
    return h5_close(rc, space, "space");
}

static int take_place(const struct listing *l, const char *dataset, hid_t d, struct safetensor *t) {
    hid_t list = H5Dget_create_plist(d), type = H5Dget_type(d);
    int rc = 0;
    if (type < 0 || H5Tequal(type, H5T_IEEE_F32LE) <= 0)
        rc = bad(l, dataset, "is not of little-endian fp32");
    else if (list < 0 || H5Pget_layout(list) != H5D_CONTIGUOUS ||
             H5Pget_external_count(list) != 0 || H5Pget_nfilters(list) != 0)
        rc = bad(l, dataset, "is not stored as plain bytes in this file");
    haddr_t at = rc ? HADDR_UNDEF : H5Dget_offset(d);
    if (!rc && (at == HADDR_UNDEF || H5Dget_storage_size(d) != (hsize_t)t->bytes ||
                at > (haddr_t)l->file->bytes || t->bytes > l->file->bytes - (int64_t)at))
        rc = bad(l, dataset, "does not lie whole in this file");
    t->dtype = ST_F32;
    t->begin = (int64_t)at;
    rc = h5_close(rc, list, "list");
    return h5_close(rc, type, "type");
}

static int take_dataset(struct listing *l, hid_t file, const char *dataset) {
    char *name = tower_name(dataset);
    if (++l->n > TF_TENSORS_MAX) {
        free(name);
        return bad(l, dataset, "is one of too many");
    }
    if (name == NULL) return 0;
    struct safetensor *t = safetensors_add_tensor(l->to, name);
    free(name);
    hid_t d = H5Dopen2(file, dataset, H5P_DEFAULT);
    if (d < 0) return bad(l, dataset, "cannot be opened");
    int rc = take_shape(l, dataset, d, t);
    if (!rc) rc = take_place(l, dataset, d, t);
    return h5_close(rc, d, dataset);
}

/* Objects are visited by hard links, each once: links to elsewhere are not followed. */
static herr_t visit(hid_t file, const char *name, const H5O_info_t *info, void *arg) {
    struct listing *l = arg;
    if (info->type == H5O_TYPE_DATASET) l->rc = take_dataset(l, file, name);
    return l->rc ? -1 : 0;
}

/* ---- the whole ------------------------------------------------------------------------------------- */
static int by_place(const void *a, const void *b) {
    const struct safetensor *x = a, *y = b;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static int check_overlap(const struct listing *l) {
    struct safetensor *t = l->to->tensor;
    if (l->to->n == 0)
        return error_raise(EXIT_BAD_DATA, "%s holds no weights of a CLIP vision tower",
                           l->file->name);
    qsort(t, (size_t)l->to->n, sizeof *t, by_place);
    for (int64_t i = 1; i < l->to->n; i++)
        if (t[i].begin < t[i - 1].begin + t[i - 1].bytes)
            return bad(l, t[i].name, "lies over another one");
    return 0;
}

int safetensors_list_tf(struct safetensors *s) {
    struct listing l = {.to = s, .file = &s->file[s->n_files - 1]};
    char *path = xasprintf("/proc/self/fd/%d", l.file->fd); /* the file that was looked at */
    h5_begin(NULL);
    struct h5_inlet in;
    hid_t access = h5_read_access(&in);
    hid_t file = access < 0 ? -1 : H5Fopen(path, H5F_ACC_RDONLY, access);
    if (file < 0)
        l.rc = h5_error(EXIT_BAD_DATA, "%s is no HDF5 file", l.file->name);
    else if (H5Ovisit2(file, H5_INDEX_NAME, H5_ITER_INC, visit, &l, H5O_INFO_BASIC) < 0 && !l.rc)
        l.rc = h5_error(EXIT_BAD_DATA, "%s cannot be listed", l.file->name);
    int rc = h5_close(l.rc, file, l.file->name);
    rc = h5_close(rc, access, "list");
    rc = h5_inlet_verdict(rc, &in, l.file->name);
    h5_end(NULL);
    free(path);
    return rc ? rc : check_overlap(&l);
}
