/* One checkpoint as global tensors, whatever its layout: for the tools. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools_impl.h"

int source_open(struct source *s, const char *dir) {
    *s = (struct source){.dir = dir};
    TRY(ckpt_read_manifest(dir, &s->m));
    s->reader = xcalloc((size_t)s->m->n_files + 1, sizeof *s->reader);
    s->scanned = xcalloc((size_t)s->m->n_files + 1, sizeof *s->scanned);
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
    h5_begin(NULL);
    int rc = s->n_open == SOURCE_OPEN_MAX ? close_one(s) : 0;
    if (!rc) rc = reader_open(*reader, s->dir, s->m, file, file);
    if (rc)
        reader_close(rc, *reader);
    else
        s->n_open++;
    h5_end(NULL);
    return rc;
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
        h5_begin(NULL);
        rc = reader_dataset(reader, t, b, &d);
        if (!rc) rc = reader_read_into(reader, d, t, b, &both, box, host);
        rc = h5_close(rc, d, b->dataset);
        h5_end(NULL);
    }
    return rc;
}

int source_close(int rc, struct source *s) {
    h5_begin(NULL);
    for (int64_t i = 0; s->reader && i < s->m->n_files; i++)
        if (s->reader[i].path) rc = reader_close(rc, &s->reader[i]);
    h5_end(NULL);
    free(s->reader);
    free(s->scanned);
    manifest_free(s->m);
    *s = (struct source){0};
    return rc;
}

/* ---- which checkpoint is meant ------------------------------------------------------------------------- */
static bool usable(const char *dir) {
    struct ckpt_manifest *m = NULL;
    bool fine =
        !ckpt_is_refused(dir) && ckpt_read_manifest(dir, &m) == 0 && ckpt_check_files(dir, m) == 0;
    error_clear();
    manifest_free(m);
    return fine;
}

static int pick_newest(const char *where, char **dir) {
    struct name_list list;
    int64_t best = -1, seen = 0;
    TRY(folder_list(where, &list));
    for (int64_t i = 0; i < list.n; i++) {
        int64_t step = ckpt_folder_step(list.name[i]);
        char *path = xasprintf("%s/%s", where, list.name[i]);
        seen += step >= 0;
        if (step > best && usable(path)) {
            best = step;
            free(*dir);
            *dir = path;
        } else {
            free(path);
        }
    }
    name_list_free(&list);
    if (*dir) return 0;
    if (seen > 0)
        return error_raise(EXIT_BAD_DATA,
                           "%s holds %lld checkpoints and none is usable: see strata "
                           "checkpoint ls %s",
                           where, (long long)seen, where);
    return error_raise(EXIT_NO_INPUT, "%s holds no checkpoint (no %s, no iter_* folder)", where,
                       CKPT_MANIFEST);
}

int source_pick(const char *where, char **dir) {
    char *manifest = xasprintf("%s/%s", where, CKPT_MANIFEST);
    bool one = access(manifest, F_OK) == 0;
    const char *name = strrchr(where, '/');
    free(manifest);
    *dir = NULL;
    if (!folder_exists(where)) return error_raise(EXIT_NO_INPUT, "there is no folder %s", where);
    if (!one && ckpt_folder_step(name ? name + 1 : where) < 0) return pick_newest(where, dir);
    *dir = xstrdup(where);
    for (size_t n = strlen(*dir); n > 1 && (*dir)[n - 1] == '/';) (*dir)[--n] = 0;
    return 0;
}

/* ---- tensors in slices --------------------------------------------------------------------------------- */
struct box tensor_box(const struct ckpt_tensor *t) {
    struct box b = {.n = t->n_dims};
    memcpy(b.count, t->shape, sizeof b.count);
    return b;
}

int64_t tensor_total_bytes(const struct ckpt_tensor *t) {
    struct box b = tensor_box(t);
    return box_volume(&b) * (int64_t)dtype_size(t->dtype);
}

void tensor_shape_text(const struct ckpt_tensor *t, char *text, size_t size) {
    size_t used = 0;
    for (int d = 0; d < t->n_dims && used < size; d++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", d ? "x" : "",
                                 (long long)t->shape[d]);
}

bool box_next_slice(const struct box *whole, size_t element, int64_t max_bytes, int64_t *at,
                    struct box *slice) {
    int64_t rows = whole->count[0], row = box_volume(whole) / rows * (int64_t)element;
    int64_t n = max_bytes / row > 0 ? max_bytes / row : 1;
    if (*at >= rows) return false;
    *slice = *whole;
    slice->offset[0] += *at;
    slice->count[0] = rows - *at < n ? rows - *at : n;
    *at += n;
    return true;
}

static double half_to_double(uint16_t h) {
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, mantissa = h & 1023;
    float f;
    if (exponent == 0) { /* zero and subnormal: mantissa * 2^-24 */
        double d = (double)mantissa / 16777216.0;
        return sign ? -d : d;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | mantissa << 13;
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static double value_to_double(enum dtype t, const char *at) {
    uint16_t h;
    uint32_t bits;
    float f;
    double d;
    int32_t i;
    int64_t l;
    switch (t) {
    case DTYPE_F64:
        memcpy(&d, at, 8);
        return d;
    case DTYPE_F32:
        memcpy(&f, at, 4);
        return (double)f;
    case DTYPE_BF16:
        memcpy(&h, at, 2);
        bits = (uint32_t)h << 16;
        memcpy(&f, &bits, 4);
        return (double)f;
    case DTYPE_F16:
        memcpy(&h, at, 2);
        return half_to_double(h);
    case DTYPE_I32:
        memcpy(&i, at, 4);
        return (double)i;
    case DTYPE_I64:
        memcpy(&l, at, 8);
        return (double)l;
    default:
        return (double)*(const uint8_t *)at;
    }
}

void values_to_double(enum dtype t, const void *from, int64_t n, double *to) {
    size_t size = dtype_size(t);
    for (int64_t i = 0; i < n; i++)
        to[i] = value_to_double(t, (const char *)from + (size_t)i * size);
}
