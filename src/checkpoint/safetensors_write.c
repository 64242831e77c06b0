/* Writing safetensors files: places first, headers next, then ranges of tensors in any order. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "safetensors_impl.h"

struct out_file {
    char *name, *tmp; /* whole paths but for name */
    int fd;
    bool written, named; /* by this process: bytes, its final name */
    int64_t bytes;       /* of its tensors */
};
struct safetensors_writer {
    char *folder, *stem;
    const char *format;
    struct safetensor *tensor; /* in the order of the caller; begin: from the start of the file */
    int64_t n, total, creator;
    struct out_file *file;
    int n_files;
    bool indexed; /* by this process */
    struct safetensors_rounding rounding;
};

static void writer_free(struct safetensors_writer *w) {
    for (int64_t i = 0; i < w->n; i++) free(w->tensor[i].name);
    for (int i = 0; i < w->n_files; i++) {
        if (w->file[i].fd >= 0) close(w->file[i].fd);
        free(w->file[i].name);
        free(w->file[i].tmp);
    }
    free(w->tensor);
    free(w->file);
    free(w->folder);
    free(w->stem);
    free(w);
}

/* ---- which tensor goes where ------------------------------------------------------------------------- */
static void deal_files(struct safetensors_writer *w, int64_t max_file_bytes) {
    int64_t used = 0;
    w->n_files = 1;
    for (int64_t i = 0; i < w->n; i++) {
        struct safetensor *t = &w->tensor[i];
        t->bytes = safetensor_count(t) * (int64_t)safetensors_dtype_size(t->dtype);
        if (used > 0 && t->bytes > max_file_bytes - used) {
            w->n_files++;
            used = 0;
        }
        t->file = w->n_files - 1;
        used += t->bytes;
        w->total += t->bytes;
    }
    w->file = xcalloc((size_t)w->n_files, sizeof *w->file);
    for (int i = 0; i < w->n_files; i++) {
        struct out_file *f = &w->file[i];
        f->fd = -1;
        f->name = w->n_files == 1
                      ? xasprintf("%s" ST_SUFFIX, w->stem)
                      : xasprintf("%s-%05d-of-%05d" ST_SUFFIX, w->stem, i + 1, w->n_files);
        f->tmp = xasprintf("%s/.%s.tmp-%lld", w->folder, f->name, (long long)w->creator);
    }
}

struct order {
    int64_t index;
    const struct safetensor *t;
};

/* The order of the reference writer: large elements first, so that all are aligned; then by name. */
static int by_size_and_name(const void *a, const void *b) {
    const struct order *x = a, *y = b;
    size_t p = safetensors_dtype_size(x->t->dtype), q = safetensors_dtype_size(y->t->dtype);
    return p != q ? (p < q ? 1 : -1) : strcmp(x->t->name, y->t->name);
}

static struct json *entry(const struct safetensor *t, int64_t begin) {
    struct json *e = json_new_object(), *shape = json_new_array(), *offsets = json_new_array();
    for (int d = 0; d < t->n_dims; d++) json_append(shape, json_new_integer(t->shape[d]));
    json_append(offsets, json_new_integer(begin));
    json_append(offsets, json_new_integer(begin + t->bytes));
    json_set(e, "dtype", json_new_string(safetensors_dtype_name(t->dtype)));
    json_set(e, "shape", shape);
    json_set(e, "data_offsets", offsets);
    return e;
}

/* Header of file k, padded so that the data begins at a multiple of 8; sets the places. */
static char *make_header(struct safetensors_writer *w, int k, size_t *bytes) {
    struct order *order = xmalloc((size_t)(w->n + 1) * sizeof *order);
    int64_t n = 0, at = 0;
    for (int64_t i = 0; i < w->n; i++)
        if (w->tensor[i].file == k) order[n++] = (struct order){i, &w->tensor[i]};
    if (n > 0) qsort(order, (size_t)n, sizeof *order, by_size_and_name);
    struct json *root = json_new_object();
    if (w->format != NULL) {
        struct json *meta = json_new_object();
        json_set(meta, "format", json_new_string(w->format));
        json_set(root, "__metadata__", meta);
    }
    for (int64_t i = 0; i < n; i++) {
        struct safetensor *t = &w->tensor[order[i].index];
        json_set(root, t->name, entry(t, at));
        t->begin = at;
        at += t->bytes;
    }
    char *text = json_text(root, 0);
    size_t length = strlen(text), padded = (length + 7) / 8 * 8;
    char *header = xmalloc(8 + padded);
    uint64_t le = htole64((uint64_t)padded);
    memset(header, ' ', 8 + padded); /* padded with spaces, not ended by a zero */
    memcpy(header, &le, sizeof le);
    for (size_t i = 0; i < length; i++) header[8 + i] = text[i];
    *bytes = 8 + padded;
    for (int64_t i = 0; i < n; i++) w->tensor[order[i].index].begin += (int64_t)*bytes;
    w->file[k].bytes = at;
    json_free(root);
    free(text);
    free(order);
    return header;
}

/* ---- bytes ------------------------------------------------------------------------------------------------ */
static int write_at(struct out_file *f, const void *from, size_t bytes, int64_t at) {
    const char *p = from;
    f->written = true;
    while (bytes > 0) {
        ssize_t put = pwrite(f->fd, p, bytes, at);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0)
            return error_raise(EXIT_IO, "%s cannot be written: %s", f->tmp, strerror(errno));
        p += put;
        at += put;
        bytes -= (size_t)put;
    }
    return 0;
}

/* Every process makes the header, for the places; the creator writes it. */
static int begin_file(struct safetensors_writer *w, int k, bool create) {
    struct out_file *f = &w->file[k];
    size_t bytes;
    f->fd = open(f->tmp, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0666);
    if (f->fd < 0)
        return error_raise(exit_code_of_errno(errno), "%s cannot be %s: %s", f->tmp,
                           create ? "created" : "opened by another rank", strerror(errno));
    char *header = make_header(w, k, &bytes);
    int rc = create ? write_at(f, header, bytes, 0) : 0;
    free(header);
    if (create && !rc && ftruncate(f->fd, (off_t)((int64_t)bytes + f->bytes)) != 0)
        rc = error_raise(EXIT_IO, "%s cannot have %lld bytes: %s", f->tmp,
                         (long long)((int64_t)bytes + f->bytes), strerror(errno));
    return rc;
}

static struct safetensors_writer *writer_declare(const char *folder, const char *stem,
                                                 const char *format,
                                                 const struct safetensor *tensor, int64_t n,
                                                 int64_t max_file_bytes, int64_t creator) {
    struct safetensors_writer *w = xcalloc(1, sizeof *w);
    w->folder = xstrdup(folder);
    w->stem = xstrdup(stem);
    w->format = format;
    w->n = n;
    w->creator = creator;
    w->tensor = xcalloc((size_t)n + 1, sizeof *w->tensor);
    for (int64_t i = 0; i < n; i++) {
        w->tensor[i] = tensor[i];
        w->tensor[i].name = xstrdup(tensor[i].name);
    }
    deal_files(w, max_file_bytes);
    return w;
}

int safetensors_create(const char *folder, const char *stem, const char *format,
                       const struct safetensor *tensor, int64_t n, int64_t max_file_bytes,
                       struct safetensors_writer **out) {
    struct safetensors_writer *w =
        writer_declare(folder, stem, format, tensor, n, max_file_bytes, getpid());
    int rc = 0;
    for (int k = 0; !rc && k < w->n_files; k++) rc = begin_file(w, k, true);
    *out = rc ? NULL : w;
    return rc ? safetensors_finish(rc, w, NULL) : 0;
}

int64_t safetensors_creator(const struct safetensors_writer *w) {
    return w->creator;
}

int safetensors_join(const char *folder, const char *stem, const char *format,
                     const struct safetensor *tensor, int64_t n, int64_t max_file_bytes,
                     int64_t creator, struct safetensors_writer **out) {
    struct safetensors_writer *w =
        writer_declare(folder, stem, format, tensor, n, max_file_bytes, creator);
    int rc = 0;
    for (int k = 0; !rc && k < w->n_files; k++) rc = begin_file(w, k, false);
    *out = rc ? NULL : w;
    if (rc) writer_free(w);
    return rc;
}

#define WRITE_CHUNK 65536

int safetensors_write(struct safetensors_writer *w, int64_t tensor, int64_t first, int64_t count,
                      const float *values) {
    const struct safetensor *t = &w->tensor[tensor];
    CHECK(first >= 0 && count >= 0 && first <= safetensor_count(t) - count, "%s: [%lld, +%lld)",
          t->name, (long long)first, (long long)count);
    size_t size = safetensors_dtype_size(t->dtype);
    char *chunk = xmalloc(WRITE_CHUNK * size);
    int rc = 0;
    for (int64_t i = 0; !rc && i < count; i += WRITE_CHUNK) {
        int64_t k = count - i < WRITE_CHUNK ? count - i : WRITE_CHUNK;
        safetensors_from_float(values + i, k, t->dtype, chunk, &w->rounding);
        rc = write_at(&w->file[t->file], chunk, (size_t)k * size,
                      t->begin + (first + i) * (int64_t)size);
    }
    free(chunk);
    return rc;
}

/* ---- the end ------------------------------------------------------------------------------------------------ */
int safetensors_flush(struct safetensors_writer *w) {
    for (int k = 0; k < w->n_files; k++) {
        struct out_file *f = &w->file[k];
        bool good = f->fd < 0 || !f->written || fsync(f->fd) == 0;
        int fd = f->fd;
        f->fd = -1;
        if (!good || (fd >= 0 && close(fd) != 0))
            return error_raise(EXIT_IO, "%s cannot be written: %s", f->tmp, strerror(errno));
    }
    return 0;
}

void safetensors_leave(struct safetensors_writer *w, struct safetensors_rounding *rounding) {
    *rounding = w->rounding;
    writer_free(w);
}

static char *final_path(const struct safetensors_writer *w, const struct out_file *f) {
    return xasprintf("%s/%s", w->folder, f->name);
}

static int commit_file(const struct safetensors_writer *w, struct out_file *f) {
    char *path = final_path(w, f);
    int rc = 0;
    if (rename(f->tmp, path) != 0)
        rc = error_raise(EXIT_CANT_CREATE, "%s cannot be renamed to %s: %s", f->tmp, path,
                         strerror(errno));
    f->named = !rc;
    free(path);
    return rc;
}

static char *index_path(const struct safetensors_writer *w) {
    return xasprintf("%s/%s" ST_SUFFIX ".index.json", w->folder, w->stem);
}

static int write_index(struct safetensors_writer *w) {
    struct json *root = json_new_object(), *meta = json_new_object(), *map = json_new_object();
    json_set(meta, "total_size", json_new_integer(w->total));
    for (int64_t i = 0; i < w->n; i++)
        json_set(map, w->tensor[i].name, json_new_string(w->file[w->tensor[i].file].name));
    json_set(root, "metadata", meta);
    json_set(root, "weight_map", map);
    char *text = json_text(root, 2), *path = index_path(w);
    w->indexed = true;
    int rc = file_write_atomic(path, text, strlen(text));
    json_free(root);
    free(text);
    free(path);
    return rc;
}

static void remove_all(const struct safetensors_writer *w) {
    char *path = index_path(w);
    if (w->indexed) unlink(path);
    free(path);
    for (int k = 0; k < w->n_files; k++) {
        path = final_path(w, &w->file[k]);
        unlink(w->file[k].named ? path : w->file[k].tmp);
        free(path);
    }
}

int safetensors_finish(int rc, struct safetensors_writer *w,
                       struct safetensors_rounding *rounding) {
    if (!rc) rc = safetensors_flush(w);
    for (int k = 0; !rc && k < w->n_files; k++) rc = commit_file(w, &w->file[k]);
    if (!rc && w->n_files > 1) rc = write_index(w);
    if (!rc) rc = folder_sync(w->folder);
    if (rc) remove_all(w);
    if (rounding != NULL) *rounding = w->rounding;
    writer_free(w);
    return rc;
}
