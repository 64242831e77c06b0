/* Reading a manifest. Everything in it is hostile until checked: names are single path components,
 * sizes are multiplied with checks, nothing is allocated beyond what the text itself spells out. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt_impl.h"
#include "json.h"

struct reader {
    const char *path;
    struct ckpt_manifest *m;
    const struct ckpt_file **file; /* of m, sorted by name once all are read */
};

__attribute__((format(printf, 2, 3))) static int bad(const struct reader *r, const char *fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return error_raise(EXIT_BAD_DATA, "%s: %s", r->path, text);
}

bool ckpt_name_legal(const char *name) {
    size_t n = strlen(name);
    if (n == 0 || n > CKPT_NAME_MAX || name[0] == '.') return false;
    for (const char *c = name; *c; c++) {
        bool fine = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                    (*c >= '0' && *c <= '9') || *c == '_' || *c == '-' || *c == '.';
        if (!fine) return false;
    }
    return true;
}

bool ckpt_tensor_name_legal(const char *name) {
    size_t n = strlen(name), component = 0;
    if (n == 0 || n > CKPT_NAME_MAX) return false;
    for (const char *c = name; *c; c++) {
        if (*c == '/') {
            if (component == 0 || c[1] == 0) return false;
            component = 0;
            continue;
        }
        bool fine = (*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_' || *c == '.';
        if (!fine || (component == 0 && *c == '.')) return false;
        component++;
    }
    return true;
}

/* Member `key` of that kind; a sentence otherwise. */
static int member(const struct reader *r, const struct json *o, const char *key,
                  enum json_kind kind, const struct json **v) {
    *v = json_kind(o) == JSON_OBJECT ? json_get(o, key) : NULL;
    if (!*v) return bad(r, "member \"%s\" is missing", key);
    if (json_kind(*v) != kind) return bad(r, "member \"%s\" is of the wrong kind", key);
    return 0;
}

static int read_integer(const struct reader *r, const struct json *o, const char *key, int64_t min,
                        int64_t *out) {
    const struct json *v;
    TRY(member(r, o, key, JSON_INTEGER, &v));
    *out = json_integer(v);
    if (*out < min)
        return bad(r, "\"%s\" is %" PRId64 ", the least allowed is %" PRId64, key, *out, min);
    return 0;
}

static int read_text(const struct reader *r, const struct json *o, const char *key, size_t max,
                     const char **out) {
    const struct json *v;
    size_t bytes;
    TRY(member(r, o, key, JSON_STRING, &v));
    *out = json_string(v, &bytes);
    if (strlen(*out) != bytes) return bad(r, "\"%s\" has a NUL in it", key);
    if (bytes > max)
        return bad(r, "\"%s\" has %zu bytes, at most %zu are allowed", key, bytes, max);
    return 0;
}

static int copy_text(const struct reader *r, const struct json *o, const char *key, char *to,
                     size_t size) {
    const char *text;
    TRY(read_text(r, o, key, size - 1, &text));
    for (const char *c = text; *c; c++)
        if (*c < 32 || *c > 126) return bad(r, "\"%s\" has a character that is not printable", key);
    memcpy(to, text, strlen(text) + 1);
    return 0;
}

static int parse_hex(const char *text, uint32_t *out) {
    if (!text || strlen(text) != 8 || strspn(text, "0123456789abcdef") != 8) return 1;
    *out = (uint32_t)strtoul(text, NULL, 16);
    return 0;
}

static int read_crc(const struct reader *r, const struct json *o, const char *key, uint32_t *out) {
    const char *text;
    TRY(read_text(r, o, key, 8, &text));
    return parse_hex(text, out) ? bad(r, "\"%s\" is not eight hexadecimal digits", key) : 0;
}

static int read_list(const struct reader *r, const struct json *o, const char *key, int64_t min,
                     int64_t *out, int *n) {
    const struct json *a;
    TRY(member(r, o, key, JSON_ARRAY, &a));
    if (json_size(a) < 1 || json_size(a) > CKPT_DIMS)
        return bad(r, "\"%s\" has %zu dimensions, 1 to %d are allowed", key, json_size(a),
                   CKPT_DIMS);
    *n = (int)json_size(a);
    for (int d = 0; d < *n; d++) {
        const struct json *v = json_at(a, (size_t)d);
        if (json_kind(v) != JSON_INTEGER || json_integer(v) < min)
            return bad(r, "\"%s\" holds something that is no whole number >= %" PRId64, key, min);
        out[d] = json_integer(v);
    }
    return 0;
}

/* Its number; -1: the manifest lists none of that name. */
static int find_file(const struct reader *r, const char *name) {
    int64_t low = 0, high = r->m->n_files;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        int order = strcmp(r->file[middle]->name, name);
        if (order == 0) return (int)(r->file[middle] - r->m->file);
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

static int read_file(const struct reader *r, const struct json *o) {
    const char *name, *role, *sha = "";
    TRY(read_text(r, o, "name", CKPT_NAME_MAX, &name));
    if (!ckpt_name_legal(name)) return bad(r, "a file name is not a plain name");
    struct ckpt_file *f = manifest_add_file(r->m, name);
    TRY(read_integer(r, o, "bytes", 0, &f->bytes));
    TRY(read_crc(r, o, "crc32c", &f->crc));
    TRY(read_text(r, o, "role", 16, &role));
    f->inspection = strcmp(role, "inspection") == 0;
    if (!f->inspection && strcmp(role, "shard") != 0)
        return bad(r, "file %s has a role that is neither shard nor inspection", name);
    if (json_get(o, "sha256")) TRY(read_text(r, o, "sha256", 64, &sha));
    if (*sha && (strlen(sha) != 64 || strspn(sha, "0123456789abcdef") != 64))
        return bad(r, "file %s: sha256 is not 64 hexadecimal digits", name);
    memcpy(f->sha256, sha, strlen(sha) + 1);
    return 0;
}

/* volume * element without overflow; false if it does not fit. */
static bool checked_bytes(const int64_t *count, int n, int64_t element, int64_t *bytes) {
    int64_t v = element;
    for (int d = 0; d < n; d++)
        if (__builtin_mul_overflow(v, count[d], &v)) return false;
    *bytes = v;
    return true;
}

static int read_block_crc(const struct reader *r, const struct json *o, struct ckpt_block *b) {
    const struct json *a;
    TRY(member(r, o, "crc32c", JSON_ARRAY, &a));
    if ((int64_t)json_size(a) != ckpt_crc_blocks(b->bytes))
        return bad(r, "dataset %s has %zu checksums, its %" PRId64 " bytes need %" PRId64,
                   b->dataset, json_size(a), b->bytes, ckpt_crc_blocks(b->bytes));
    b->crc = xmalloc(json_size(a) * sizeof *b->crc);
    b->n_crc = (int64_t)json_size(a);
    for (int64_t i = 0; i < b->n_crc; i++)
        if (parse_hex(json_string(json_at(a, (size_t)i), NULL), &b->crc[i]))
            return bad(r, "dataset %s: a checksum is not eight hexadecimal digits", b->dataset);
    return 0;
}

static int read_chunk(const struct reader *r, const struct ckpt_block *b, const struct json *offset,
                      const struct json *bytes, const struct json *crc, struct ckpt_chunk *c) {
    int64_t room = r->m->file[b->file].bytes;
    if (json_kind(offset) != JSON_INTEGER || json_kind(bytes) != JSON_INTEGER ||
        parse_hex(json_string(crc, NULL), &c->crc))
        return bad(r, "dataset %s: a chunk is not two whole numbers and eight hexadecimal digits",
                   b->dataset);
    c->file_offset = json_integer(offset);
    c->bytes = json_integer(bytes);
    /* The library takes what comes out of fletcher32 for a whole chunk, however short it is. */
    int64_t whole = chunk_bytes(b), least = r->m->filter == CKPT_FILTER_FLETCHER32 ? whole + 4 : 1;
    int64_t most = r->m->filter == CKPT_FILTER_FLETCHER32 ? least : chunk_stored_most(whole);
    if (c->bytes >= least && c->bytes <= most && c->file_offset >= 0 && c->bytes <= room &&
        c->file_offset <= room - c->bytes)
        return 0;
    return bad(r, "dataset %s: the place or size of a chunk does not fit into %s", b->dataset,
               r->m->file[b->file].name);
}

/* The stored chunks in place of one place in the file. */
static int read_chunks(const struct reader *r, const struct json *o, const struct ckpt_tensor *t,
                       struct ckpt_block *b) {
    const struct json *offset, *bytes, *crc;
    int n = 0;
    TRY(read_list(r, o, "chunk", 1, b->chunk_shape, &n));
    if (n != b->box.n || !chunk_legal(&b->box, (int64_t)dtype_size(t->dtype), b->chunk_shape))
        return bad(r, "dataset %s: its chunks have no legal extent", b->dataset);
    TRY(member(r, o, "chunk_offset", JSON_ARRAY, &offset));
    TRY(member(r, o, "chunk_bytes", JSON_ARRAY, &bytes));
    TRY(member(r, o, "chunk_crc32c", JSON_ARRAY, &crc));
    int64_t need = chunk_count(&b->box, b->chunk_shape);
    if ((int64_t)json_size(offset) != need || (int64_t)json_size(bytes) != need ||
        (int64_t)json_size(crc) != need)
        return bad(r, "dataset %s has %zu, %zu and %zu values for its %" PRId64 " chunks",
                   b->dataset, json_size(offset), json_size(bytes), json_size(crc), need);
    b->chunk = xcalloc((size_t)need, sizeof *b->chunk);
    b->n_chunks = need;
    for (size_t i = 0; i < (size_t)need; i++)
        TRY(read_chunk(r, b, json_at(offset, i), json_at(bytes, i), json_at(crc, i), &b->chunk[i]));
    b->file_offset = b->chunk[0].file_offset;
    return 0;
}

/* Bytes as they are without a filter; with one they are not those in the file. */
static int read_block_size(const struct reader *r, const struct json *o,
                           const struct ckpt_tensor *t, struct ckpt_block *b) {
    int64_t bytes = 0, room = r->m->file[b->file].bytes;
    bool plain = r->m->filter == CKPT_FILTER_NONE;
    if (plain) TRY(read_integer(r, o, "file_offset", 0, &b->file_offset));
    TRY(read_integer(r, o, "bytes", 1, &b->bytes));
    if (!checked_bytes(b->box.count, b->box.n, (int64_t)dtype_size(t->dtype), &bytes) ||
        b->bytes != bytes || (plain && (b->bytes > room || b->file_offset > room - b->bytes)))
        return bad(r, "dataset %s: its place or size does not fit into %s", b->dataset,
                   r->m->file[b->file].name);
    return plain ? 0 : read_chunks(r, o, t, b);
}

static int read_block(const struct reader *r, const struct json *o, struct ckpt_tensor *t) {
    const char *file, *dataset;
    int n = 0;
    struct ckpt_block *b = manifest_add_block(t);
    TRY(read_text(r, o, "file", CKPT_NAME_MAX, &file));
    b->file = find_file(r, file);
    if (b->file < 0 || r->m->file[b->file].inspection)
        return bad(r, "tensor %s names a file that is no shard", t->name);
    TRY(read_text(r, o, "dataset", CKPT_NAME_MAX, &dataset));
    if (!ckpt_tensor_name_legal(dataset))
        return bad(r, "tensor %s has a block whose dataset name is not legal", t->name);
    b->dataset = xstrdup(dataset);
    TRY(read_list(r, o, "offset", 0, b->box.offset, &n));
    TRY(read_list(r, o, "count", 1, b->box.count, &b->box.n));
    if (n != t->n_dims || b->box.n != t->n_dims || !box_inside(&b->box, t->shape))
        return bad(r, "tensor %s has a block outside its shape", t->name);
    TRY(read_block_size(r, o, t, b));
    return read_block_crc(r, o, b);
}

static int read_tensor(const struct reader *r, const struct json *o) {
    const char *name, *role, *dtype;
    const struct json *blocks;
    int64_t bytes;
    TRY(read_text(r, o, "name", CKPT_NAME_MAX, &name));
    if (!ckpt_tensor_name_legal(name)) return bad(r, "a tensor name is not legal");
    struct ckpt_tensor *t = manifest_add_tensor(r->m, name);
    TRY(read_text(r, o, "role", 16, &role));
    t->role = CKPT_ROLES;
    for (int i = 0; i < CKPT_ROLES; i++)
        if (strcmp(role, ckpt_role_name((enum ckpt_role)i)) == 0) t->role = (enum ckpt_role)i;
    if (t->role == CKPT_ROLES) return bad(r, "tensor %s has an unknown role", name);
    TRY(read_text(r, o, "dtype", 16, &dtype));
    t->dtype = DTYPE_COUNT;
    for (int i = 0; i < DTYPE_COUNT; i++)
        if (strcmp(dtype, dtype_name((enum dtype)i)) == 0) t->dtype = (enum dtype)i;
    if (t->dtype == DTYPE_COUNT) return bad(r, "tensor %s has an unknown dtype", name);
    TRY(read_list(r, o, "global_shape", 1, t->shape, &t->n_dims));
    if (!checked_bytes(t->shape, t->n_dims, (int64_t)dtype_size(t->dtype), &bytes))
        return bad(r, "tensor %s: its shape is too large to be counted", name);
    TRY(member(r, o, "blocks", JSON_ARRAY, &blocks));
    for (size_t i = 0; i < json_size(blocks); i++) TRY(read_block(r, json_at(blocks, i), t));
    return 0;
}

static int read_layout(const struct reader *r, const struct json *root) {
    const struct json *o;
    const char *split;
    TRY(member(r, root, "layout", JSON_OBJECT, &o));
    TRY(read_integer(r, o, "tp", 1, &r->m->tp));
    TRY(read_integer(r, o, "pp", 1, &r->m->pp));
    TRY(read_integer(r, o, "dp", 1, &r->m->dp));
    TRY(read_text(r, o, "split_spec", 65536, &split));
    r->m->split_spec = xstrdup(split);
    return read_integer(r, o, "writers", 1, &r->m->writers);
}

static int check_version(const struct reader *r, const struct json *root, long *major) {
    const char *format, *version;
    TRY(read_text(r, root, "format", 64, &format));
    if (strcmp(format, CKPT_FORMAT) != 0)
        return bad(r, "this is not a checkpoint of strata (format \"%.64s\")", format);
    TRY(read_text(r, root, "format_version", 16, &version));
    char *end;
    *major = strtol(version, &end, 10);
    if (end == version || *end != '.' || *major < 1)
        return bad(r, "format_version \"%.16s\" is no version", version);
    if (*major > CKPT_MAJOR)
        return error_raise(EXIT_RESUME,
                           "%s: written in checkpoint format %s; this program (strata %s) reads up "
                           "to %d.x: use a newer strata",
                           r->path, version, STRATA_VERSION, CKPT_MAJOR);
    return 0;
}

/* A filter and its major come together: a program that only knows the first must not read on. */
static int read_filter(const struct reader *r, const struct json *root, long major) {
    const char *name;
    if (!json_get(root, "integrity_filter")) {
        if (major == 1) return 0;
        return bad(r, "format %ld without a member \"integrity_filter\"", major);
    }
    TRY(read_text(r, root, "integrity_filter", 16, &name));
    for (int i = CKPT_FILTER_NONE + 1; i < CKPT_FILTERS; i++)
        if (strcmp(name, ckpt_filter_name((enum ckpt_filter)i)) == 0)
            r->m->filter = (enum ckpt_filter)i;
    if (r->m->filter == CKPT_FILTER_NONE || major != CKPT_MAJOR)
        return bad(r, "\"integrity_filter\" is none that format %ld has", major);
    return 0;
}

static int read_root(struct reader *r, const struct json *root) {
    const struct json *files, *tensors;
    int64_t crc_block;
    long major = 0;
    TRY(check_version(r, root, &major));
    TRY(read_filter(r, root, major));
    TRY(copy_text(r, root, "checkpoint_uuid", r->m->uuid, sizeof r->m->uuid));
    TRY(copy_text(r, root, "run_uuid", r->m->run_uuid, sizeof r->m->run_uuid));
    TRY(copy_text(r, root, "parent_uuid", r->m->parent_uuid, sizeof r->m->parent_uuid));
    TRY(read_integer(r, root, "step", 0, &r->m->step));
    TRY(copy_text(r, root, "created", r->m->created, sizeof r->m->created));
    TRY(read_layout(r, root));
    TRY(read_integer(r, root, "crc_block_bytes", 1, &crc_block));
    if (crc_block != CKPT_CRC_BLOCK)
        return bad(r, "crc_block_bytes is %" PRId64 ", this program has %" PRId64, crc_block,
                   CKPT_CRC_BLOCK);
    TRY(member(r, root, "files", JSON_ARRAY, &files));
    for (size_t i = 0; i < json_size(files); i++) TRY(read_file(r, json_at(files, i)));
    r->file = manifest_files_by_name(r->m);
    for (int64_t i = 1; i < r->m->n_files; i++)
        if (strcmp(r->file[i - 1]->name, r->file[i]->name) == 0)
            return bad(r, "file %s is listed twice", r->file[i]->name);
    TRY(member(r, root, "tensors", JSON_ARRAY, &tensors));
    for (size_t i = 0; i < json_size(tensors); i++) TRY(read_tensor(r, json_at(tensors, i)));
    for (int64_t i = 1; i < r->m->n_tensors; i++)
        if (strcmp(r->m->tensor[i - 1].name, r->m->tensor[i].name) >= 0)
            return bad(r, "tensor %s is out of order or listed twice", r->m->tensor[i].name);
    manifest_sort(r->m); /* the blocks */
    return 0;
}

/* The own checksum covers the whole text with its eight digits as zeros. */
static int check_own_crc(const char *path, const char *text, size_t bytes) {
    static const char key[] = "\"crc32c\"";
    const char *at = memmem(text, bytes, key, sizeof key - 1);
    size_t digits = at ? (size_t)(at - text) + sizeof key - 1 : bytes;
    while (digits < bytes && (text[digits] == ':' || text[digits] == ' ' || text[digits] == '"'))
        digits++;
    uint32_t stored;
    char copy[9] = {0};
    if (digits + 8 <= bytes) memcpy(copy, text + digits, 8);
    if (parse_hex(copy, &stored))
        return error_raise(EXIT_BAD_DATA, "%s: it has no checksum of its own", path);
    uint32_t crc = crc32c(0, text, digits);
    crc = crc32c(crc, "00000000", 8);
    crc = crc32c(crc, text + digits + 8, bytes - digits - 8);
    if (crc == stored) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: damaged or edited: its CRC32C is %08x, the one written in it %08x",
                       path, crc, stored);
}

int manifest_parse(const char *path, const char *text, size_t bytes, struct ckpt_manifest **m) {
    *m = NULL;
    if (lfs_pointer(text, bytes)) return error_raise(EXIT_BAD_DATA, "%s " LFS_POINTER, path);
    TRY(check_own_crc(path, text, bytes));
    struct json *root;
    TRY(json_read_text(path, text, bytes, &root));
    struct reader r = {.path = path, .m = xcalloc(1, sizeof(struct ckpt_manifest))};
    int rc = read_root(&r, root);
    json_free(root);
    free(r.file);
    if (rc)
        manifest_free(r.m);
    else
        *m = r.m;
    return rc;
}

int ckpt_read_manifest(const char *dir, struct ckpt_manifest **m) {
    char *path = xasprintf("%s/%s", dir, CKPT_MANIFEST), *text = NULL;
    size_t bytes;
    *m = NULL;
    int rc = file_read_regular(path, CKPT_MANIFEST_MAX, &text, &bytes);
    if (!rc) rc = manifest_parse(path, text, bytes, m);
    free(text);
    free(path);
    return rc;
}
