/* One safetensors file: its header, with every check before a byte of it is believed. */
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ckpt_impl.h"
#include "safetensors_impl.h"

bool safetensors_name_legal(const char *name) {
    size_t n = strlen(name), suffix = strlen(ST_SUFFIX);
    return n > suffix && ckpt_name_legal(name) && strcmp(name + n - suffix, ST_SUFFIX) == 0;
}

static int bad(const char *path, const char *tensor, const char *why) {
    char shown[200];
    text_printable(tensor, shown, sizeof shown);
    return error_raise(EXIT_BAD_DATA, "%s: tensor \"%s\": %s", path, shown, why);
}

/* ---- one entry of the header ---------------------------------------------------------------------- */
static int take_dtype(const char *path, const struct json *v, struct safetensor *t) {
    const char *name = v != NULL ? json_string(v, NULL) : NULL;
    if (name == NULL) return bad(path, t->name, "it has no dtype");
    for (int i = 0; i < ST_DTYPES; i++)
        if (strcmp(name, safetensors_dtype_name((enum safetensors_dtype)i)) == 0) {
            t->dtype = (enum safetensors_dtype)i;
            return 0;
        }
    char why[128], shown[64];
    text_printable(name, shown, sizeof shown);
    snprintf(why, sizeof why, "dtype \"%s\" is not known", shown);
    return bad(path, t->name, why);
}

/* A whole number that is not negative. */
static bool take_size(const struct json *v, int64_t *out) {
    if (json_kind(v) != JSON_INTEGER) return false;
    *out = json_integer(v);
    return *out >= 0;
}

/* Sets bytes = product of shape times element size, checked in this order: a dimension of 0 makes those
 * behind it harmless, as for the reference reader. */
static int take_shape(const char *path, const struct json *v, struct safetensor *t) {
    if (v == NULL || json_kind(v) != JSON_ARRAY) return bad(path, t->name, "it has no shape");
    if (json_size(v) > SAFETENSORS_DIMS)
        return bad(path, t->name, "it has more than 8 dimensions, no weight has");
    t->n_dims = (int)json_size(v);
    t->bytes = 1;
    for (int d = 0; d < t->n_dims; d++) {
        if (!take_size(json_at(v, (size_t)d), &t->shape[d]))
            return bad(path, t->name, "its shape holds something else than sizes");
        if (__builtin_mul_overflow(t->bytes, t->shape[d], &t->bytes))
            return bad(path, t->name, "the product of its shape overflows");
    }
    if (__builtin_mul_overflow(t->bytes, (int64_t)safetensors_dtype_size(t->dtype), &t->bytes))
        return bad(path, t->name, "the product of its shape overflows");
    return 0;
}

static int take_offsets(const char *path, const struct json *v, int64_t data, int64_t bytes,
                        struct safetensor *t) {
    int64_t end;
    if (v == NULL || json_kind(v) != JSON_ARRAY || json_size(v) != 2 ||
        !take_size(json_at(v, 0), &t->begin) || !take_size(json_at(v, 1), &end))
        return bad(path, t->name, "its data_offsets are no two sizes");
    if (end < t->begin) return bad(path, t->name, "its data ends before it begins");
    if (end > bytes - data) return bad(path, t->name, "its data ends beyond the file");
    if (end - t->begin != t->bytes) {
        char why[160];
        snprintf(why, sizeof why, "its shape and type make %lld bytes, its data_offsets %lld",
                 (long long)t->bytes, (long long)(end - t->begin));
        return bad(path, t->name, why);
    }
    t->begin += data;
    return 0;
}

/* It says nothing about the tensors. null counts as none, as for the reference reader. */
static int check_metadata(const char *path, const struct json *v) {
    const char *key;
    const struct json *value;
    if (json_kind(v) == JSON_NULL) return 0;
    if (json_kind(v) != JSON_OBJECT)
        return error_raise(EXIT_BAD_DATA, "%s: __metadata__ is no object", path);
    for (void *i = NULL; (i = json_member(v, i, &key, &value));)
        if (json_kind(value) != JSON_STRING)
            return error_raise(EXIT_BAD_DATA, "%s: __metadata__ holds something else than texts",
                               path);
    return 0;
}

struct safetensor *safetensors_add_tensor(struct safetensors *s, const char *name) {
    if (s->n == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->tensor = xrealloc(s->tensor, (size_t)s->capacity * sizeof *s->tensor);
    }
    struct safetensor *t = &s->tensor[s->n++];
    *t = (struct safetensor){.name = xstrdup(name), .file = s->n_files - 1};
    return t;
}

static int take_tensors(struct safetensors *s, const char *path, const struct json *root,
                        int64_t data, int64_t bytes) {
    const char *key;
    const struct json *value;
    for (void *i = NULL; (i = json_member(root, i, &key, &value));) {
        if (strcmp(key, "__metadata__") == 0) {
            TRY(check_metadata(path, value));
            continue;
        }
        struct safetensor *t = safetensors_add_tensor(s, key);
        if (json_kind(value) != JSON_OBJECT) return bad(path, key, "its entry is no object");
        TRY(take_dtype(path, json_get(value, "dtype"), t));
        TRY(take_shape(path, json_get(value, "shape"), t));
        TRY(take_offsets(path, json_get(value, "data_offsets"), data, bytes, t));
    }
    return 0;
}

/* ---- the whole: no hole, no overlap, nothing behind -------------------------------------------------- */
static int by_place(const void *a, const void *b) {
    const struct safetensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* an empty tensor lies before */
}

static int check_places(const char *path, struct safetensor *t, int64_t n, int64_t data,
                        int64_t bytes) {
    int64_t end = data;
    if (n > 0) qsort(t, (size_t)n, sizeof *t, by_place);
    for (int64_t i = 0; i < n; i++) {
        if (t[i].begin != end) {
            char why[128];
            snprintf(why, sizeof why, "its data begins at byte %lld of the file, %s: expected %lld",
                     (long long)t[i].begin,
                     t[i].begin < end ? "over another tensor" : "after a hole", (long long)end);
            return bad(path, t[i].name, why);
        }
        end += t[i].bytes;
    }
    if (end == bytes) return 0;
    return error_raise(EXIT_BAD_DATA, "%s: its tensors end at byte %lld, the file at %lld", path,
                       (long long)end, (long long)bytes);
}

/* ---- bytes --------------------------------------------------------------------------------------------- */
static int read_at(int fd, const char *path, void *to, int64_t bytes, int64_t at) {
    char *p = to;
    int tries = 0;
    while (bytes > 0) {
        ssize_t got = pread(fd, p, (size_t)bytes, at);
        if (got < 0 && file_try_again(errno, &tries)) continue;
        if (got < 0)
            return error_raise(EXIT_IO, "%s cannot be read at byte %lld: %s", path, (long long)at,
                               strerror(errno));
        if (got == 0)
            return error_raise(EXIT_BAD_DATA, "%s ends at byte %lld", path, (long long)at);
        p += got;
        at += got;
        bytes -= got;
    }
    return 0;
}

static int read_header(struct safetensors *s, const struct safetensors_file *f) {
    uint64_t length;
    if (f->bytes < 8)
        return error_raise(EXIT_BAD_DATA, "%s has %lld bytes, too few for a header", f->name,
                           (long long)f->bytes);
    TRY(read_at(f->fd, f->name, &length, 8, 0));
    length = le64toh(length);
    if (length > (uint64_t)ST_HEADER_MAX)
        return error_raise(EXIT_BAD_DATA, "%s: a header of %llu bytes, at most %lld are allowed",
                           f->name, (unsigned long long)length, (long long)ST_HEADER_MAX);
    int64_t n = (int64_t)length, data = 8 + n, before = s->n;
    if (data > f->bytes)
        return error_raise(EXIT_BAD_DATA, "%s: a header of %lld bytes in a file of %lld", f->name,
                           (long long)n, (long long)f->bytes);
    char *text = xmalloc((size_t)n + 1);
    struct json *root = NULL;
    int rc = read_at(f->fd, f->name, text, n, 8);
    if (!rc && (n == 0 || text[0] != '{'))
        rc = error_raise(EXIT_BAD_DATA, "%s: the header does not begin with {", f->name);
    if (!rc) rc = json_read_text(f->name, text, (size_t)n, &root);
    free(text);
    TRY(rc);
    rc = take_tensors(s, f->name, root, data, f->bytes);
    json_free(root);
    TRY(rc);
    /* Without any tensor there is no array yet. */
    return check_places(f->name, s->n > before ? s->tensor + before : NULL, s->n - before, data,
                        f->bytes);
}

/* Before the bytes of a text are taken for sizes. */
static int check_pointer(const struct safetensors_file *f) {
    char text[1024];
    if (f->bytes >= (int64_t)sizeof text) return 0;
    TRY(read_at(f->fd, f->name, text, f->bytes, 0));
    if (!lfs_pointer(text, (size_t)f->bytes)) return 0;
    return error_raise(EXIT_BAD_DATA, "%s " LFS_POINTER, f->name);
}

int safetensors_add_file(struct safetensors *s, int folder_fd, const char *name,
                         bool follow_links) {
    struct stat st;
    int links = follow_links ? 0 : O_NOFOLLOW, fd, tries = 0;
    do {
        fd = openat(folder_fd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC | links);
    } while (fd < 0 && file_try_again(errno, &tries));
    if (fd < 0 && errno == ELOOP)
        return error_raise(EXIT_BAD_DATA,
                           "%s is a symbolic link: copy the folder with cp -rL, or "
                           "say --follow-links",
                           name);
    if (fd < 0)
        return error_raise(file_code_of_errno(errno), "%s cannot be opened: %s", name,
                           strerror(errno));
    if (fstat(fd, &st) != 0) {
        int error = errno;
        close(fd);
        return error_raise(EXIT_IO, "%s cannot be looked at: %s", name, strerror(error));
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return error_raise(EXIT_BAD_DATA, "%s is no regular file", name);
    }
    s->file = xrealloc(s->file, (size_t)(s->n_files + 1) * sizeof *s->file);
    s->file[s->n_files++] = (struct safetensors_file){xstrdup(name), fd, (int64_t)st.st_size};
    TRY(check_pointer(&s->file[s->n_files - 1]));
    return strcmp(name, TF_WEIGHTS) == 0 ? safetensors_list_tf(s)
                                         : read_header(s, &s->file[s->n_files - 1]);
}

/* ---- reading ranges ------------------------------------------------------------------------------------- */
#define READ_CHUNK 65536 /* elements */

/* The whole tensor is fetched: kernels of a vision tower are small. Element (o, i, h, w) of the shape
 * lies at (h, w, i, o); a dense kernel has no h, w. */
static int read_permuted(const struct safetensors_file *f, const struct safetensor *t,
                         int64_t first, int64_t count, float *out) {
    int64_t O = t->shape[0], I = t->shape[1], HW = safetensor_count(t) / (O * I);
    float *stored = xmalloc((size_t)t->bytes);
    int rc = read_at(f->fd, f->name, stored, t->bytes, t->begin);
    for (int64_t k = 0; !rc && k < count; k++) {
        int64_t e = first + k, hw = e % HW, i = e / HW % I, o = e / HW / I;
        out[k] = stored[(hw * I + i) * O + o];
    }
    free(stored);
    return rc;
}

int safetensors_read(const struct safetensors *s, const struct safetensor *t, int64_t first,
                     int64_t count, float *out) {
    const struct safetensors_file *f = &s->file[t->file];
    CHECK(first >= 0 && count >= 0 && first <= safetensor_count(t) - count, "%s: [%lld, +%lld)",
          t->name, (long long)first, (long long)count);
    if (t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F32 && t->dtype != ST_F64)
        return bad(f->name, t->name, "its type is none of F16, BF16, F32, F64");
    int64_t size = (int64_t)safetensors_dtype_size(t->dtype);
    if (t->permuted) return read_permuted(f, t, first, count, out);
    if (t->dtype == ST_F32) return read_at(f->fd, f->name, out, count * 4, t->begin + first * 4);
    char *chunk = xmalloc(READ_CHUNK * (size_t)size);
    int rc = 0;
    for (int64_t i = 0; !rc && i < count; i += READ_CHUNK) {
        int64_t n = count - i < READ_CHUNK ? count - i : READ_CHUNK;
        rc = read_at(f->fd, f->name, chunk, n * size, t->begin + (first + i) * size);
        if (!rc) safetensors_to_float(t->dtype, chunk, n, out + i);
    }
    free(chunk);
    return rc;
}
