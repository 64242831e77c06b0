/* strata checkpoint verify --strict: what doc/checkpoint.md promises of a checkpoint beyond its being
 * whole, shard by shard. index.h5 has a file of its own (lint_index.c). */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "tools_impl.h"

#define OBJECTS_MAX 1000000
#define DEPTH_MAX 16

struct lint {
    struct source *source;
    const struct shard_reader *r; /* the shard being looked at */
    const struct shard_reader *first;
    const struct block_of_file
        *block; /* those of the shard, sorted by the names of their datasets */
    int64_t n_blocks;
    int64_t n_objects;
    int rc;
};

__attribute__((format(printf, 2, 3))) static void fault(struct lint *l, const char *fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    H5Eclear2(H5E_DEFAULT);
    l->rc = error_raise(EXIT_BAD_DATA, "%s: %s", l->r->path, text);
}

/* ---- the root ------------------------------------------------------------------------------------------------- */
static void check_root_text(struct lint *l, const char *name, const char *expected) {
    char *found, shown[128];
    if (h5_get_text(l->r->file, name, &found) != 0) {
        l->rc = EXIT_BAD_DATA;
        return;
    }
    text_printable(found, shown, sizeof shown);
    if (expected && strcmp(found, expected) != 0)
        fault(l, "attribute %s is \"%s\", \"%s\" was expected", name, shown, expected);
    free(found);
}

static void check_root(struct lint *l) {
    const struct ckpt_manifest *m = l->source->m;
    char conventions[64];
    snprintf(conventions, sizeof conventions, CKPT_FORMAT "-%s", ckpt_format_version(m->filter));
    static const char *const present[] = {"title",   "source",  "author",
                                          "comment", "history", "format_version"};
    for (size_t i = 0; i < sizeof present / sizeof present[0]; i++)
        check_root_text(l, present[i], NULL);
    check_root_text(l, "format", CKPT_FORMAT);
    check_root_text(l, "Conventions", conventions);
    check_root_text(l, "default", "training");
    check_root_text(l, "run_uuid", m->run_uuid);
    check_root_text(l, "parent_uuid", m->parent_uuid);
    check_root_text(l, "created", m->created);
}

/* ---- every object ------------------------------------------------------------------------------------------------ */
static int by_dataset(const void *a, const void *b) {
    return strcmp(((const struct block_of_file *)a)->block->dataset,
                  ((const struct block_of_file *)b)->block->dataset);
}

static bool planned(const struct lint *l, const char *path) {
    struct ckpt_block key = {.dataset = (char *)(uintptr_t)path};
    struct block_of_file wanted = {.block = &key};
    return l->n_blocks > 0 &&
           bsearch(&wanted, l->block, (size_t)l->n_blocks, sizeof wanted, by_dataset) != NULL;
}

/* A group of a layer says which layer of the whole stack it is. */
static void check_layer_group(struct lint *l, const char *path) {
    const char *name = strrchr(path, '/');
    int64_t layer;
    if (!name || strspn(name + 1, "0123456789") != strlen(name + 1)) return;
    if (strncmp(path, "model/", 6) != 0 && strncmp(path, "optimizer/", 10) != 0) return;
    if (strlen(name + 1) < 3) fault(l, "group %s has a number of less than three digits", path);
    hid_t g = H5Gopen2(l->r->file, path, H5P_DEFAULT);
    if (g < 0 || h5_get_integer(g, "stack_layer", &layer) != 0 || layer < 0)
        fault(l, "group %s has no stack_layer", path);
    h5_close(0, g, path);
}

static herr_t visit_link(hid_t group, const char *path, const H5L_info_t *info, void *arg) {
    struct lint *l = arg;
    char shown[300];
    H5O_info_t object;
    int depth = 1;
    (void)group;
    text_printable(path, shown, sizeof shown);
    for (const char *c = path; *c; c++) depth += *c == '/';
    if (++l->n_objects > OBJECTS_MAX || depth > DEPTH_MAX) {
        fault(l, "more than %d objects, or groups more than %d deep", OBJECTS_MAX, DEPTH_MAX);
        return -1;
    }
    if (info->type != H5L_TYPE_HARD) {
        fault(l, "%s is a link to somewhere else", shown);
        return 0;
    }
    if (!ckpt_tensor_name_legal(path)) fault(l, "the name %s is not of [a-z0-9_.]", shown);
    if (H5Oget_info_by_name2(l->r->file, path, &object, H5O_INFO_BASIC, H5P_DEFAULT) < 0) {
        fault(l, "%s cannot be looked at", shown);
        return 0;
    }
    bool tensor = strncmp(path, "model/", 6) == 0 || strncmp(path, "optimizer/", 10) == 0;
    if (object.type == H5O_TYPE_GROUP) check_layer_group(l, path);
    if (object.type == H5O_TYPE_DATASET && tensor && !planned(l, path))
        fault(l, "dataset %s is not in the manifest", shown);
    return 0;
}

/* ---- blocks --------------------------------------------------------------------------------------------------------- */
static void check_text(struct lint *l, hid_t d, const char *where, const char *name,
                       const char *expected) {
    char *found;
    if (h5_get_text(d, name, &found) != 0) {
        fault(l, "%s has no %s", where, name);
        return;
    }
    if (expected ? strcmp(found, expected) != 0 : !found[0])
        fault(l, "%s: attribute %s is %s", where, name, expected ? "wrong" : "empty");
    free(found);
}

static int attribute_count(hid_t d, const char *name) {
    hid_t a = H5Aopen(d, name, H5P_DEFAULT), space = a < 0 ? -1 : H5Aget_space(a);
    hssize_t n = space < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    h5_close(0, space, name);
    h5_close(0, a, name);
    return n < 0 || n > CUT_BLOCKS_MAX ? -1 : (int)n;
}

/* label[n], H5free_memory() each. Not by H5DSget_label, which after a failed read frees pointers that
 * nothing has set (HDF5 1.10). */
static bool read_labels(hid_t d, int n, char **label) {
    memset(label, 0, (size_t)n * sizeof *label);
    if (attribute_count(d, "DIMENSION_LABELS") != n) return false;
    hid_t a = H5Aopen(d, "DIMENSION_LABELS", H5P_DEFAULT), type = a < 0 ? -1 : H5Aget_type(a);
    bool read = type >= 0 && H5Tis_variable_str(type) > 0 && H5Aread(a, type, label) >= 0;
    h5_close(0, type, "DIMENSION_LABELS");
    h5_close(0, a, "DIMENSION_LABELS");
    return read;
}

/* dims and DIMENSION_LABELS name the same axes, one each. */
static void check_labels(struct lint *l, hid_t d, const struct ckpt_block *b) {
    char *dims, *label[CKPT_DIMS];
    if (h5_get_text(d, "dims", &dims) != 0) {
        fault(l, "%s has no dims", b->dataset);
        return;
    }
    char *next = dims;
    bool read = read_labels(d, b->box.n, label);
    for (int i = 0; i < b->box.n; i++) {
        char *name = strsep(&next, ",");
        if (!name || !*name || !read || !label[i] || strcmp(name, label[i]) != 0)
            fault(l, "%s: the label of axis %d is not that of dims", b->dataset, i);
        if (label[i]) H5free_memory(label[i]);
    }
    if (next) fault(l, "%s: dims names more axes than there are", b->dataset);
    free(dims);
}

/* The cut record: blocks add up to the axis, granules are positive. */
static void check_cut(struct lint *l, hid_t d, const struct ckpt_tensor *t,
                      const struct ckpt_block *b) {
    int64_t axis, size[CUT_BLOCKS_MAX], granule[CUT_BLOCKS_MAX], sum = 0;
    if (h5_get_integer(d, "tp_axis", &axis) != 0 || axis < -1 || axis >= t->n_dims) {
        fault(l, "%s: tp_axis is not an axis", b->dataset);
        return;
    }
    if (axis < 0) return;
    int n = attribute_count(d, "tp_blocks");
    bool fine = n > 0 && h5_get_integers(d, "tp_blocks", size, n) == 0 &&
                h5_get_integers(d, "tp_granules", granule, n) == 0;
    for (int i = 0; fine && i < n; i++) {
        sum += size[i];
        fine = size[i] > 0 && granule[i] > 0;
    }
    if (!fine || sum != t->shape[axis])
        fault(l, "%s: its cut record does not describe axis %lld", b->dataset, (long long)axis);
}

/* The attribute is the checksum of the whole block; the manifest has those of its pieces. */
static int check_crc(struct lint *l, hid_t d, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, char *host) {
    struct box slice;
    char text[9];
    int64_t at = 0;
    uint32_t crc = 0;
    while (box_next_slice(&b->box, dtype_size(t->dtype), CKPT_SLICE, &at, &slice)) {
        TRY(reader_read(l->r, d, t, b, &slice, host));
        crc = crc32c(crc, host, (size_t)box_volume(&slice) * dtype_size(t->dtype));
    }
    snprintf(text, sizeof text, "%08x", crc);
    check_text(l, d, b->dataset, "crc32c", text);
    return 0;
}

static int check_block(struct lint *l, const struct ckpt_tensor *t, const struct ckpt_block *b,
                       char *host) {
    hid_t d = -1;
    TRY(reader_dataset(l->r, t, b, &d));
    check_text(l, d, b->dataset, "description", NULL);
    check_text(l, d, b->dataset, "units", "1");
    check_text(l, d, b->dataset, "dtype_role", ckpt_role_name(t->role));
    check_text(l, d, b->dataset, "hf_name", NULL);
    check_labels(l, d, b);
    check_cut(l, d, t, b);
    int rc = check_crc(l, d, t, b, host);
    if (H5Oexists_by_name(l->r->file, "types/bfloat16", H5P_DEFAULT) <= 0)
        fault(l, "the type /types/bfloat16 is missing");
    return h5_close(rc, d, b->dataset);
}

/* ---- what all shards say alike ------------------------------------------------------------------------------------ */
struct attribute_bytes {
    struct lint *l;
    hid_t other; /* the same group in shard 0 */
    const char *group;
};

static herr_t same_attribute(hid_t at, const char *name, const H5A_info_t *info, void *arg) {
    struct attribute_bytes *a = arg;
    hid_t mine = H5Aopen(at, name, H5P_DEFAULT), other = H5Aopen(a->other, name, H5P_DEFAULT);
    hid_t type = mine < 0 ? -1 : H5Aget_type(mine), type2 = other < 0 ? -1 : H5Aget_type(other);
    hsize_t n = mine < 0 ? 0 : H5Aget_storage_size(mine);
    bool same = type >= 0 && type2 >= 0 && H5Tequal(type, type2) > 0 && n <= H5_TEXT_MAX &&
                n == H5Aget_storage_size(other);
    (void)info;
    char *x = xcalloc((size_t)n + 1, 1), *y = xcalloc((size_t)n + 1, 1);
    same = same && H5Aread(mine, type, x) >= 0 && H5Aread(other, type, y) >= 0 &&
           memcmp(x, y, (size_t)n) == 0;
    free(x);
    free(y);
    h5_close(0, type, name);
    h5_close(0, type2, name);
    h5_close(0, mine, name);
    h5_close(0, other, name);
    if (!same) fault(a->l, "attribute %s of /%s differs from that in shard 0", name, a->group);
    return 0;
}

static void check_group_alike(struct lint *l, const char *group) {
    hid_t a = H5Gopen2(l->r->file, group, H5P_DEFAULT);
    hid_t b = H5Gopen2(l->first->file, group, H5P_DEFAULT);
    struct attribute_bytes arg = {.l = l, .other = b, .group = group};
    H5O_info_t x, y;
    if (a < 0 || b < 0) {
        if ((a < 0) != (b < 0) || strcmp(group, "training/rng") != 0)
            fault(l, "group /%s is missing here or in shard 0", group);
    } else if (H5Oget_info2(a, &x, H5O_INFO_NUM_ATTRS) < 0 ||
               H5Oget_info2(b, &y, H5O_INFO_NUM_ATTRS) < 0 || x.num_attrs != y.num_attrs ||
               H5Aiterate2(a, H5_INDEX_NAME, H5_ITER_INC, NULL, same_attribute, &arg) < 0) {
        fault(l, "group /%s has not the attributes that it has in shard 0", group);
    }
    h5_close(0, a, group);
    h5_close(0, b, group);
    H5Eclear2(H5E_DEFAULT);
}

static void check_alike(struct lint *l) {
    static const char *const group[] = {"header",        "code",
                                        "config",        "training/rng",
                                        "training/data", "training/schedule",
                                        "tokenizer",     "training/decisions"};
    for (size_t i = 0; i < sizeof group / sizeof group[0]; i++) check_group_alike(l, group[i]);
}

static void check_present(struct lint *l, const char *group, const char *const *name, size_t n) {
    hid_t g = H5Gopen2(l->r->file, group, H5P_DEFAULT);
    if (g < 0) fault(l, "group /%s is missing", group);
    for (size_t i = 0; g >= 0 && i < n; i++)
        if (H5Aexists(g, name[i]) <= 0) fault(l, "/%s has no attribute %s", group, name[i]);
    h5_close(0, g, group);
    H5Eclear2(H5E_DEFAULT);
}

/* A table, if it has rows, is columns of one length, and h5py finds their steps. */
static void check_columns(struct lint *l, const char *group, const char *const *name, size_t n) {
    char path[64];
    hid_t step = -1, d = -1;
    snprintf(path, sizeof path, "%s/step", group);
    if (H5Lexists(l->r->file, group, H5P_DEFAULT) <= 0) return; /* told elsewhere */
    bool rows = H5Lexists(l->r->file, path, H5P_DEFAULT) > 0;
    if (rows && h5_open_plain(l->r->file, l->r->path, path, &step) != 0) l->rc = EXIT_BAD_DATA;
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "%s/%s", group, name[i]);
        if ((H5Lexists(l->r->file, path, H5P_DEFAULT) > 0) != rows) {
            fault(l, "/%s and its step do not come together", path);
            continue;
        }
        if (!rows || step < 0) continue;
        if (h5_open_plain(l->r->file, l->r->path, path, &d) != 0) l->rc = EXIT_BAD_DATA;
        if (d >= 0 && H5DSis_attached(d, step, 0) <= 0)
            fault(l, "the scale of /%s is not the step beside it", path);
        h5_close(0, d, path);
    }
    if (rows) h5_close(0, step, group);
    H5Eclear2(H5E_DEFAULT);
}

static void check_tables(struct lint *l) {
    static const char *const history[] = {"loss", "lr", "grad_norm"};
    static const char *const speed[] = {"tokens_per_s"};
    check_columns(l, "training/history", history, sizeof history / sizeof history[0]);
    check_columns(l, "provenance", speed, sizeof speed / sizeof speed[0]);
}

/* What wrote the file; where and how, in the first shard alone, and not if the files are reproducible:
 * then the attribute history is empty. */
static void check_origin(struct lint *l) {
    static const char *const code[] = {"name",     "version", "git_sha",     "git_dirty",
                                       "compiler", "flags",   "mpi",         "nccl",
                                       "cuda",     "blas",    "hdf5_header", "hdf5_runtime"};
    static const char *const provenance[] = {"hosts",
                                             "job_id",
                                             "restart_count",
                                             "command_line",
                                             "environment",
                                             "wall_seconds",
                                             "job_file_sha256",
                                             "data_sha256",
                                             "valid_data_sha256",
                                             "tokenizer_model_sha256"};
    char *history = NULL;
    check_present(l, "code", code, sizeof code / sizeof code[0]);
    if (h5_get_text(l->r->file, "history", &history) != 0) return; /* told by check_root */
    if (history[0] && l->r->file_index == 0)
        check_present(l, "provenance", provenance, sizeof provenance / sizeof provenance[0]);
    else if (H5Lexists(l->r->file, "provenance", H5P_DEFAULT) != 0)
        fault(l, "%s",
              history[0] ? "/provenance belongs into the first shard alone"
                         : "reproducible files have no /provenance");
    free(history);
}

/* ---- all of it --------------------------------------------------------------------------------------------------------- */
static int64_t longest_slice(const struct ckpt_manifest *m) {
    int64_t most = CKPT_SLICE;
    for (int64_t i = 0; i < m->n_tensors; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks; j++) {
            const struct ckpt_block *b = &m->tensor[i].block[j];
            int64_t row = b->bytes / b->box.count[0];
            if (row > most) most = row;
        }
    return most;
}

static int lint_shard(struct lint *l, char *host) {
    int rc = 0;
    check_root(l);
    check_origin(l);
    check_tables(l);
    l->n_objects = 0;
    if (H5Lvisit(l->r->file, H5_INDEX_NAME, H5_ITER_INC, visit_link, l) < 0 && !l->rc)
        fault(l, "its tree cannot be walked");
    for (int64_t i = 0; !rc && i < l->n_blocks; i++)
        rc = check_block(l, l->block[i].tensor, l->block[i].block, host);
    check_alike(l);
    return rc;
}

/* Shard 0 stays open beside the one that is looked at. */
static int lint_shards(struct lint *l) {
    struct source *s = l->source;
    struct shard_reader first = {.file = -1};
    char *host = xmalloc((size_t)longest_slice(s->m));
    struct blocks_by_file blocks = manifest_by_file(s->m);
    h5_begin(NULL);
    int rc = reader_open(&first, s->dir, s->m, 0, 0);
    l->first = &first;
    for (int i = 0; !rc && i < s->m->n_files; i++) {
        struct shard_reader *r;
        if (s->m->file[i].inspection) continue;
        rc = source_shard(s, i, &r);
        if (rc) break;
        l->r = r;
        l->n_blocks = blocks.first[i + 1] - blocks.first[i];
        struct block_of_file *mine = blocks.block + blocks.first[i];
        if (l->n_blocks > 0) qsort(mine, (size_t)l->n_blocks, sizeof *mine, by_dataset);
        l->block = mine;
        rc = lint_shard(l, host);
    }
    l->first = NULL;
    rc = reader_close(rc, &first);
    h5_end(NULL);
    blocks_by_file_free(&blocks);
    free(host);
    return rc ? rc : l->rc;
}

int ckpt_lint(const char *dir) {
    struct source s = {0};
    struct lint l = {.source = &s};
    int rc = source_open(&s, dir);
    for (int64_t i = 0; !rc && i < s.m->n_files; i++) s.scanned[i] = true; /* by the caller */
    if (!rc) rc = lint_shards(&l);
    if (s.m) {
        int index = lint_index(&s);
        if (!rc) rc = index;
    }
    return source_close(rc, &s);
}
