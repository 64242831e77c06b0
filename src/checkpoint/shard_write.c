/* One shard: the file, its groups, the blocks of tensors. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5_impl.h"
#include "fault.h"

static int write_root(struct shard *s, const struct shard_identity *id,
                      const struct ckpt_settings *settings) {
    const struct ckpt_manifest *m = id->m;
    char history[256] = "", conventions[64];
    snprintf(conventions, sizeof conventions, CKPT_FORMAT "-%s", ckpt_format_version(s->filter));
    if (!settings->reproducible)
        snprintf(history, sizeof history, "%s %s step %lld", m->created,
                 id->tool ? id->tool : "strata train: saved", (long long)m->step);
    TRY(h5_put_text(s->file, "format", CKPT_FORMAT));
    TRY(h5_put_text(s->file, "format_version", ckpt_format_version(s->filter)));
    TRY(h5_put_text(s->file, "Conventions", conventions));
    TRY(h5_put_text(s->file, "title", "training state of strata, one writer's share"));
    TRY(h5_put_text(s->file, "source", "strata " STRATA_VERSION));
    TRY(h5_put_text(s->file, "author", "strata"));
    TRY(h5_put_text(s->file, "comment",
                    "datasets are boxes of global tensors: see global_shape and global_offset"));
    TRY(h5_put_text(s->file, "default", "training"));
    TRY(h5_put_text(s->file, "history", history));
    TRY(h5_put_text(s->file, "checkpoint_uuid", m->uuid));
    TRY(h5_put_text(s->file, "run_uuid", m->run_uuid));
    TRY(h5_put_text(s->file, "parent_uuid", m->parent_uuid));
    TRY(h5_put_integer(s->file, "step", m->step));
    TRY(h5_put_text(s->file, "created", m->created));
    TRY(h5_put_integer(s->file, "shard_index", id->index));
    return h5_put_integer(s->file, "shard_count", m->writers);
}

/* The type as a named object, so that h5dump calls it by its name wherever it is used. */
static int commit_types(struct shard *s) {
    hid_t group, list = h5_create_list(H5P_DATATYPE_CREATE);
    int rc = shard_group(s, "types", -1, &group);
    s->bfloat16 = h5_dtype(DTYPE_BF16);
    if (!rc && (list < 0 || s->bfloat16 < 0 ||
                H5Tcommit2(group, "bfloat16", s->bfloat16, H5P_DEFAULT, list, H5P_DEFAULT) < 0))
        rc = h5_error(EXIT_IO, "%s: the type bfloat16 could not be written", s->path);
    rc = h5_close(rc, list, "list");
    return h5_close(rc, group, "types");
}

static int check_outlet(const struct shard *s) {
    if (!s->out.error) return 0;
    H5Eclear2(H5E_DEFAULT);
    return error_raise(exit_code_of_errno(s->out.error), "%s could not be written: %s", s->path,
                       strerror(s->out.error));
}

int shard_create(struct shard *s, const char *path, const struct shard_identity *id,
                 const struct ckpt_settings *settings) {
    *s = (struct shard){.path = path, .file = -1, .group_list = -1, .bfloat16 = -1};
    s->filter = id->m->filter;
    s->out.fd = -1;
    hid_t access = h5_write_access(&s->out, id->largest >= H5_ALIGNMENT, s->filter != 0),
          create = h5_create_list(H5P_FILE_CREATE);
    int rc = 0;
    s->group_list = h5_create_list(H5P_GROUP_CREATE);
    if (access < 0 || create < 0 || s->group_list < 0)
        rc = h5_error(EXIT_IO, "%s: property lists could not be made", path);
    if (!rc) s->file = H5Fcreate(path, H5F_ACC_EXCL, create, access);
    if (!rc && s->file < 0 && !s->out.error)
        rc = h5_error(EXIT_CANT_CREATE, "%s could not be created", path);
    if (!rc) rc = check_outlet(s);
    rc = h5_close(rc, access, "list");
    rc = h5_close(rc, create, "list");
    fault_point("save.write.created");
    if (!rc) rc = write_root(s, id, settings);
    if (!rc) rc = commit_types(s);
    return rc;
}

static bool numeric(const char *name) {
    return name[0] && strspn(name, "0123456789") == strlen(name);
}

static int child_group(struct shard *s, hid_t parent, const char *name, int stack_layer,
                       hid_t *child) {
    htri_t there = H5Lexists(parent, name, H5P_DEFAULT);
    if (there > 0) {
        *child = H5Gopen2(parent, name, H5P_DEFAULT);
        return *child < 0 ? h5_error(EXIT_IO, "%s: group %s could not be opened", s->path, name)
                          : 0;
    }
    *child = H5Gcreate2(parent, name, H5P_DEFAULT, s->group_list, H5P_DEFAULT);
    if (there < 0 || *child < 0)
        return h5_error(EXIT_IO, "%s: group %s could not be made", s->path, name);
    if (stack_layer < 0 || !numeric(name)) return 0;
    return h5_put_integer(*child, "stack_layer", stack_layer);
}

int shard_group(struct shard *s, const char *path, int stack_layer, hid_t *group) {
    char copy[CKPT_NAME_MAX + 1], *next = copy;
    snprintf(copy, sizeof copy, "%s", path);
    *group = H5Gopen2(s->file, "/", H5P_DEFAULT);
    if (*group < 0) return h5_error(EXIT_IO, "%s: the root could not be opened", s->path);
    for (char *name; (name = strsep(&next, "/"));) {
        hid_t child = -1;
        int rc = child_group(s, *group, name, stack_layer, &child);
        rc = h5_close(rc, *group, name);
        *group = child;
        if (!rc) continue;
        h5_close(rc, child, name);
        *group = -1;
        return rc;
    }
    return 0;
}

/* ---- blocks ------------------------------------------------------------------------------------------ */
static const char *const role_text[CKPT_ROLES] = {
    "weights of the model", "fp32 master copy of the weights",
    "first moment of the optimizer (running mean of the gradient)",
    "second moment of the optimizer (running mean of the squared gradient)"};

static int label_axes(hid_t dataset, const struct param *p) {
    char copy[128], *next = copy;
    if (!p->dims) return 0;
    snprintf(copy, sizeof copy, "%s", p->dims);
    for (int d = 0; d < p->ndim; d++) {
        char *name = strsep(&next, ",");
        if (name && H5DSset_label(dataset, (unsigned)d, name) < 0)
            return h5_error(EXIT_IO, "the axes of %s could not be labelled", p->name);
    }
    return 0;
}

static int describe_block(hid_t d, const struct param *p, const struct ckpt_tensor *t,
                          const struct ckpt_block *b) {
    TRY(h5_put_text(d, "description", role_text[t->role]));
    TRY(h5_put_text(d, "units", "1"));
    TRY(h5_put_integers(d, "global_shape", t->shape, t->n_dims, 0));
    TRY(h5_put_integers(d, "global_offset", b->box.offset, b->box.n, 0));
    TRY(h5_put_text(d, "dims", p->dims));
    TRY(label_axes(d, p));
    TRY(h5_put_text(d, "dtype_role", ckpt_role_name(t->role)));
    TRY(h5_put_integer(d, "tp_axis", p->cut.axis));
    if (p->cut.axis >= 0) {
        TRY(h5_put_integers(d, "tp_blocks", p->cut.size, p->cut.n_blocks, 0));
        TRY(h5_put_integers(d, "tp_granules", p->cut.granule, p->cut.n_blocks, 0));
    }
    TRY(h5_put_text(d, "hf_name", p->hf_name));
    return h5_put_text(d, "crc32c", "00000000"); /* shard_end_block knows it */
}

static int set_crc(hid_t d, uint32_t crc) {
    char text[9];
    snprintf(text, sizeof text, "%08x", crc);
    hid_t a = H5Aopen(d, "crc32c", H5P_DEFAULT), type = a < 0 ? -1 : H5Aget_type(a);
    int rc = 0;
    if (type < 0 || H5Aget_storage_size(a) != sizeof text || H5Awrite(a, type, text) < 0)
        rc = h5_error(EXIT_IO, "attribute crc32c could not be written");
    rc = h5_close(rc, type, "crc32c");
    return h5_close(rc, a, "crc32c");
}

static int make_dataset(struct shard *s, hid_t group, const char *name, const struct param *p,
                        const struct ckpt_tensor *t, const struct ckpt_block *b, hid_t *d) {
    hsize_t extent[CKPT_DIMS];
    for (int i = 0; i < b->box.n; i++) extent[i] = (hsize_t)b->box.count[i];
    hid_t type = t->dtype == DTYPE_BF16 ? s->bfloat16 : h5_dtype(t->dtype);
    hid_t space = H5Screate_simple(b->box.n, extent, NULL);
    hid_t list = h5_create_list(H5P_DATASET_CREATE), access = H5P_DEFAULT;
    int rc = 0;
    if (list >= 0 && b->n_chunks > 0) {
        rc = h5_filter_set(list, s->filter, b);
        access = h5_filter_access();
    }
    if (!rc && type >= 0 && space >= 0 && list >= 0 && access >= 0)
        *d = H5Dcreate2(group, name, type, space, H5P_DEFAULT, list, access);
    if (!rc && *d < 0)
        rc = h5_error(EXIT_IO, "%s: dataset %s could not be made", s->path, b->dataset);
    if (!rc) rc = describe_block(*d, p, t, b);
    if (access != H5P_DEFAULT) rc = h5_close(rc, access, "list");
    rc = h5_close(rc, list, "list");
    rc = h5_close(rc, space, "space");
    return t->dtype == DTYPE_BF16 ? rc : h5_close(rc, type, "type");
}

int shard_begin_block(struct shard *s, const struct param *p, const struct ckpt_tensor *t,
                      const struct ckpt_block *b, struct block_writer *w) {
    char path[CKPT_NAME_MAX + 1];
    *w = (struct block_writer){.dataset = -1};
    snprintf(path, sizeof path, "%s", b->dataset);
    char *slash = strrchr(path, '/');
    CHECK(slash, "dataset %s lies in no group", path);
    *slash = 0;
    hid_t group;
    TRY(shard_group(s, path, p->stack_layer, &group));
    int rc = make_dataset(s, group, slash + 1, p, t, b, &w->dataset);
    return h5_close(rc, group, path);
}

int shard_write_rows(struct block_writer *w, const struct ckpt_block *b, int64_t first,
                     int64_t n_rows, const void *host) {
    hsize_t start[CKPT_DIMS] = {0}, count[CKPT_DIMS];
    for (int i = 0; i < b->box.n; i++) count[i] = (hsize_t)b->box.count[i];
    start[0] = (hsize_t)first;
    count[0] = (hsize_t)n_rows;
    hid_t file = H5Dget_space(w->dataset), memory = H5Screate_simple(b->box.n, count, NULL);
    hid_t type = H5Dget_type(w->dataset);
    int rc = 0;
    if (file < 0 || memory < 0 || type < 0 ||
        H5Sselect_hyperslab(file, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
        H5Dwrite(w->dataset, type, memory, file, H5P_DEFAULT, host) < 0)
        rc = h5_error(EXIT_IO, "%s could not be written", b->dataset);
    rc = h5_close(rc, file, "space");
    rc = h5_close(rc, type, "type");
    fault_point("save.write.in");
    return h5_close(rc, memory, "space");
}

int shard_end_block(int rc, struct shard *s, struct block_writer *w, struct ckpt_block *b) {
    uint32_t crc = 0;
    for (int64_t k = 0; k < b->n_crc; k++) {
        int64_t left = b->bytes - k * CKPT_CRC_BLOCK;
        crc = crc32c_join(crc, b->crc[k], (size_t)(left < CKPT_CRC_BLOCK ? left : CKPT_CRC_BLOCK));
    }
    if (!rc) rc = set_crc(w->dataset, crc);
    if (!rc) rc = check_outlet(s);
    if (!rc && b->n_chunks > 0) rc = h5_filter_places(w->dataset, b);
    if (!rc && b->n_chunks == 0) {
        haddr_t at = H5Dget_offset(w->dataset);
        b->file_offset = (int64_t)at;
        if (at == HADDR_UNDEF) rc = h5_error(EXIT_IO, "%s has no place in the file", b->dataset);
    }
    if (rc) error_note(rc, "while writing %s", s->path);
    return h5_close(rc, w->dataset, b->dataset);
}

int shard_write_block(struct shard *s, const struct param *p, const struct ckpt_tensor *t,
                      struct ckpt_block *b, const void *host) {
    struct block_writer w;
    int64_t row = b->bytes / b->box.count[0], n = b->box.count[0];
    int64_t step = box_slice_bytes(s->filter, &b->box, (int64_t)dtype_size(t->dtype)) / row;
    int rc = shard_begin_block(s, p, t, b, &w);
    for (int64_t first = 0; !rc && first < n; first += step)
        rc = shard_write_rows(&w, b, first, n - first < step ? n - first : step,
                              (const char *)host + first * row);
    return shard_end_block(rc, s, &w, b);
}

int shard_close(int rc, struct shard *s) {
    fault_point("save.close.before");
    rc = h5_close(rc, s->bfloat16, "type");
    rc = h5_close(rc, s->group_list, "list");
    fault_point("save.close.in");
    rc = h5_close(rc, s->file, s->path);
    fault_point("save.close.after");
    if (!rc) rc = check_outlet(s);
    if (s->out.fd < 0) return rc;
    fault_point("save.sync.before");
    if (fsync(s->out.fd) != 0 && !rc)
        rc = error_raise(EXIT_IO, "%s: fsync failed: %s", s->path, strerror(errno));
    fault_point("save.sync.in");
    if (close(s->out.fd) != 0 && !rc)
        rc = error_raise(EXIT_IO, "%s: close failed: %s", s->path, strerror(errno));
    fault_point("save.sync.after");
    return rc;
}
