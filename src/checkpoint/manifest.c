/* The manifest in memory and as text. */
#include <stdlib.h>
#include <string.h>

#include "ckpt_impl.h"
#include "json.h"

static void free_tensor(struct ckpt_tensor *t) {
    for (int64_t i = 0; i < t->n_blocks; i++) {
        free(t->block[i].dataset);
        free(t->block[i].crc);
        free(t->block[i].chunk);
    }
    free(t->block);
    free(t->name);
}

void manifest_free(struct ckpt_manifest *m) {
    if (!m) return;
    for (int64_t i = 0; i < m->n_tensors; i++) free_tensor(&m->tensor[i]);
    for (int64_t i = 0; i < m->n_files; i++) free(m->file[i].name);
    free(m->tensor);
    free(m->file);
    free(m->split_spec);
    free(m);
}

/* Room for one more in an array that grows by doubling. */
static void *grown(void *array, int64_t n, size_t size) {
    if (n > 0 && (n & (n - 1)) != 0) return array;
    return xrealloc(array, (size_t)(n ? 2 * n : 1) * size);
}

struct ckpt_file *manifest_add_file(struct ckpt_manifest *m, const char *name) {
    m->file = grown(m->file, m->n_files, sizeof *m->file);
    struct ckpt_file *f = &m->file[m->n_files++];
    *f = (struct ckpt_file){.name = xstrdup(name)};
    return f;
}

struct ckpt_tensor *manifest_add_tensor(struct ckpt_manifest *m, const char *name) {
    m->tensor = grown(m->tensor, m->n_tensors, sizeof *m->tensor);
    struct ckpt_tensor *t = &m->tensor[m->n_tensors++];
    *t = (struct ckpt_tensor){.name = xstrdup(name)};
    return t;
}

struct ckpt_block *manifest_add_block(struct ckpt_tensor *t) {
    t->block = grown(t->block, t->n_blocks, sizeof *t->block);
    struct ckpt_block *b = &t->block[t->n_blocks++];
    *b = (struct ckpt_block){.file = -1};
    return b;
}

int64_t ckpt_crc_blocks(int64_t bytes) {
    return bytes / CKPT_CRC_BLOCK + (bytes % CKPT_CRC_BLOCK != 0);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct ckpt_tensor *)a)->name, ((const struct ckpt_tensor *)b)->name);
}

/* By place in the tensor, so that the order does not depend on who wrote what. */
static int by_offset(const void *a, const void *b) {
    const struct box *x = &((const struct ckpt_block *)a)->box;
    const struct box *y = &((const struct ckpt_block *)b)->box;
    for (int d = 0; d < x->n; d++)
        if (x->offset[d] != y->offset[d]) return x->offset[d] < y->offset[d] ? -1 : 1;
    return 0;
}

void manifest_sort(struct ckpt_manifest *m) {
    if (m->n_tensors > 0) qsort(m->tensor, (size_t)m->n_tensors, sizeof *m->tensor, by_name);
    int64_t n = 0; /* tensors kept: those of equal names become one */
    for (int64_t i = 0; i < m->n_tensors; i++) {
        struct ckpt_tensor *t = &m->tensor[i];
        if (n == 0 || strcmp(m->tensor[n - 1].name, t->name) != 0) {
            m->tensor[n++] = *t;
            continue;
        }
        struct ckpt_tensor *first = &m->tensor[n - 1];
        CHECK(first->dtype == t->dtype && first->n_dims == t->n_dims &&
                  memcmp(first->shape, t->shape, sizeof t->shape) == 0,
              "writers disagree about the shape of %s", t->name);
        for (int64_t b = 0; b < t->n_blocks; b++) *manifest_add_block(first) = t->block[b];
        t->n_blocks = 0;
        free_tensor(t);
    }
    m->n_tensors = n;
    for (int64_t i = 0; i < n; i++)
        if (m->tensor[i].n_blocks > 0)
            qsort(m->tensor[i].block, (size_t)m->tensor[i].n_blocks, sizeof *m->tensor[i].block,
                  by_offset);
}

void manifest_merge(struct ckpt_manifest *m, struct ckpt_manifest *from) {
    for (int64_t i = 0; i < from->n_tensors; i++) {
        m->tensor = grown(m->tensor, m->n_tensors, sizeof *m->tensor);
        m->tensor[m->n_tensors] = from->tensor[i];
        struct ckpt_tensor *t = &m->tensor[m->n_tensors++];
        for (int64_t b = 0; b < t->n_blocks; b++) t->block[b].file += (int)m->n_files;
    }
    for (int64_t i = 0; i < from->n_files; i++) {
        m->file = grown(m->file, m->n_files, sizeof *m->file);
        m->file[m->n_files++] = from->file[i];
    }
    from->n_files = from->n_tensors = 0;
    manifest_free(from);
}

const struct ckpt_tensor *manifest_find(const struct ckpt_manifest *m, const char *name) {
    struct ckpt_tensor key = {.name = (char *)(uintptr_t)name};
    if (m->n_tensors == 0) return NULL;
    return bsearch(&key, m->tensor, (size_t)m->n_tensors, sizeof *m->tensor, by_name);
}

static int by_file_name(const void *a, const void *b) {
    return strcmp((*(const struct ckpt_file *const *)a)->name,
                  (*(const struct ckpt_file *const *)b)->name);
}

const struct ckpt_file **manifest_files_by_name(const struct ckpt_manifest *m) {
    const struct ckpt_file **f = xmalloc(((size_t)m->n_files + 1) * sizeof *f);
    for (int64_t i = 0; i < m->n_files; i++) f[i] = &m->file[i];
    if (m->n_files > 0) qsort(f, (size_t)m->n_files, sizeof *f, by_file_name);
    return f;
}

struct blocks_by_file manifest_by_file(const struct ckpt_manifest *m) {
    struct blocks_by_file f = {.first = xcalloc((size_t)m->n_files + 2, sizeof *f.first)};
    int64_t *next = f.first + 1; /* first[k + 1] counts file k, then is where its next block goes */
    for (int64_t i = 0; i < m->n_tensors; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks; j++) next[m->tensor[i].block[j].file + 1]++;
    for (int64_t k = 1; k <= m->n_files; k++) next[k] += next[k - 1];
    f.block = xmalloc(((size_t)next[m->n_files] + 1) * sizeof *f.block);
    for (int64_t i = 0; i < m->n_tensors; i++)
        for (int64_t j = 0; j < m->tensor[i].n_blocks; j++) {
            const struct ckpt_block *b = &m->tensor[i].block[j];
            f.block[next[b->file]++] = (struct block_of_file){&m->tensor[i], b};
        }
    return f;
}

void blocks_by_file_free(struct blocks_by_file *f) {
    free(f->block);
    free(f->first);
    *f = (struct blocks_by_file){0};
}

/* ---- as text ---------------------------------------------------------------------------------------- */
static struct json *crc_json(uint32_t crc) {
    char text[9];
    snprintf(text, sizeof text, "%08x", crc);
    return json_new_string(text);
}

static struct json *list_json(const int64_t *v, int n) {
    struct json *a = json_new_array();
    for (int i = 0; i < n; i++) json_append(a, json_new_integer(v[i]));
    return a;
}

static struct json *file_json(const struct ckpt_file *f) {
    struct json *o = json_new_object();
    json_set(o, "name", json_new_string(f->name));
    json_set(o, "bytes", json_new_integer(f->bytes));
    json_set(o, "crc32c", crc_json(f->crc));
    if (f->sha256[0]) json_set(o, "sha256", json_new_string(f->sha256));
    json_set(o, "role", json_new_string(f->inspection ? "inspection" : "shard"));
    return o;
}

static void set_chunks(struct json *o, const struct ckpt_block *b) {
    struct json *offset = json_new_array(), *bytes = json_new_array(), *crc = json_new_array();
    json_set(o, "chunk", list_json(b->chunk_shape, b->box.n));
    for (int64_t i = 0; i < b->n_chunks; i++) {
        json_append(offset, json_new_integer(b->chunk[i].file_offset));
        json_append(bytes, json_new_integer(b->chunk[i].bytes));
        json_append(crc, crc_json(b->chunk[i].crc));
    }
    json_set(o, "chunk_offset", offset);
    json_set(o, "chunk_bytes", bytes);
    json_set(o, "chunk_crc32c", crc);
}

static struct json *block_json(const struct ckpt_manifest *m, const struct ckpt_block *b) {
    struct json *o = json_new_object(), *crc = json_new_array();
    json_set(o, "file", json_new_string(m->file[b->file].name));
    json_set(o, "dataset", json_new_string(b->dataset));
    json_set(o, "offset", list_json(b->box.offset, b->box.n));
    json_set(o, "count", list_json(b->box.count, b->box.n));
    if (b->n_chunks == 0) json_set(o, "file_offset", json_new_integer(b->file_offset));
    json_set(o, "bytes", json_new_integer(b->bytes));
    for (int64_t i = 0; i < b->n_crc; i++) json_append(crc, crc_json(b->crc[i]));
    json_set(o, "crc32c", crc);
    if (b->n_chunks > 0) set_chunks(o, b);
    return o;
}

static struct json *tensor_json(const struct ckpt_manifest *m, const struct ckpt_tensor *t) {
    struct json *o = json_new_object(), *blocks = json_new_array();
    json_set(o, "name", json_new_string(t->name));
    json_set(o, "role", json_new_string(ckpt_role_name(t->role)));
    json_set(o, "dtype", json_new_string(dtype_name(t->dtype)));
    json_set(o, "global_shape", list_json(t->shape, t->n_dims));
    for (int64_t i = 0; i < t->n_blocks; i++) json_append(blocks, block_json(m, &t->block[i]));
    json_set(o, "blocks", blocks);
    return o;
}

static struct json *layout_json(const struct ckpt_manifest *m) {
    struct json *o = json_new_object();
    json_set(o, "tp", json_new_integer(m->tp));
    json_set(o, "pp", json_new_integer(m->pp));
    json_set(o, "dp", json_new_integer(m->dp));
    json_set(o, "split_spec", json_new_string(m->split_spec ? m->split_spec : ""));
    json_set(o, "writers", json_new_integer(m->writers));
    return o;
}

char *manifest_text(const struct ckpt_manifest *m, size_t *bytes) {
    struct json *o = json_new_object(), *files = json_new_array(), *tensors = json_new_array();
    json_set(o, "format", json_new_string(CKPT_FORMAT));
    json_set(o, "format_version", json_new_string(ckpt_format_version(m->filter)));
    json_set(o, "crc32c", json_new_string("00000000"));
    json_set(o, "checkpoint_uuid", json_new_string(m->uuid));
    json_set(o, "run_uuid", json_new_string(m->run_uuid));
    json_set(o, "parent_uuid", json_new_string(m->parent_uuid));
    json_set(o, "step", json_new_integer(m->step));
    json_set(o, "created", json_new_string(m->created));
    json_set(o, "layout", layout_json(m));
    json_set(o, "crc_block_bytes", json_new_integer(CKPT_CRC_BLOCK));
    if (m->filter != CKPT_FILTER_NONE)
        json_set(o, "integrity_filter", json_new_string(ckpt_filter_name(m->filter)));
    for (int64_t i = 0; i < m->n_files; i++) json_append(files, file_json(&m->file[i]));
    json_set(o, "files", files);
    for (int64_t i = 0; i < m->n_tensors; i++) json_append(tensors, tensor_json(m, &m->tensor[i]));
    json_set(o, "tensors", tensors);
    json_set(o, "aliases", json_new_array());
    char *text = json_text(o, 1);
    json_free(o);
    *bytes = strlen(text);
    char *digits = strstr(text, "00000000"), crc[9];
    snprintf(crc, sizeof crc, "%08x", crc32c(0, text, *bytes));
    memcpy(digits, crc, 8);
    return text;
}

/* ---- coverage --------------------------------------------------------------------------------------- */
/* Boxes tile a whole exactly if and only if their signed corners do: let a box count +1 or -1 at each of
 * its 2^n corners (offset or offset + count along each axis; -1 for each "+ count"). The n-fold running
 * sum of these counts is 1 inside the box and 0 outside, so equal counts mean equal sums, and the sum
 * over all boxes says how often each element is held. Sorting takes n log n where comparing pairs takes
 * the square, which the file alone could drive up. */
struct corner {
    int64_t at[CKPT_DIMS];
    int64_t count;
};

static int by_corner(const void *a, const void *b) {
    const struct corner *x = a, *y = b;
    for (int d = 0; d < CKPT_DIMS; d++)
        if (x->at[d] != y->at[d]) return x->at[d] < y->at[d] ? -1 : 1;
    return 0;
}

static void add_corners(const struct box *b, int sign, struct corner *out) {
    for (int k = 0; k < 1 << b->n; k++) {
        out[k] = (struct corner){.count = sign};
        for (int d = 0; d < b->n; d++) {
            bool end = (k >> d & 1) != 0;
            out[k].at[d] = b->offset[d] + (end ? b->count[d] : 0);
            if (end) out[k].count = -out[k].count;
        }
    }
}

/* The first corner at which blocks and whole do not agree; NULL: none. */
static const struct corner *odd_corner(struct corner *c, int64_t n) {
    qsort(c, (size_t)n, sizeof *c, by_corner);
    for (int64_t i = 0, j; i < n; i = j) {
        for (j = i + 1; j < n && by_corner(&c[i], &c[j]) == 0; j++) c[i].count += c[j].count;
        if (c[i].count != 0) return &c[i];
    }
    return NULL;
}

/* Sum of the volumes; false: beyond what fits, which no whole is. */
static bool sum_volumes(const struct ckpt_tensor *t, int64_t *sum) {
    *sum = 0;
    for (int64_t i = 0; i < t->n_blocks; i++)
        if (__builtin_add_overflow(*sum, box_volume(&t->block[i].box), sum)) return false;
    return true;
}

static void place_text(int n, const int64_t *at, char *text, size_t size) {
    size_t used = 0;
    for (int d = 0; d < n && used < size; d++)
        used +=
            (size_t)snprintf(text + used, size - used, "%s%lld", d ? ", " : "[", (long long)at[d]);
    if (used < size) snprintf(text + used, size - used, "]");
}

static int uneven(const struct ckpt_tensor *t, const char *path, const struct corner *c) {
    char at[160];
    struct box whole = {.n = t->n_dims};
    int64_t sum;
    memcpy(whole.count, t->shape, sizeof whole.count);
    place_text(t->n_dims, c->at, at, sizeof at);
    if (sum_volumes(t, &sum) && sum < box_volume(&whole))
        return error_raise(EXIT_BAD_DATA,
                           "%s: tensor %s: its blocks hold %lld of %lld elements, so some are "
                           "missing, the first at or behind %s",
                           path, t->name, (long long)sum, (long long)box_volume(&whole), at);
    return error_raise(EXIT_BAD_DATA,
                       "%s: tensor %s: some of its blocks overlap, the first at or behind %s", path,
                       t->name, at);
}

static int check_tensor_coverage(const struct ckpt_tensor *t, const char *path) {
    int64_t per = (int64_t)1 << t->n_dims, n = (t->n_blocks + 1) * per;
    struct box whole = {.n = t->n_dims};
    memcpy(whole.count, t->shape, sizeof whole.count);
    for (int64_t i = 0; i < t->n_blocks; i++) {
        char text[160];
        if (box_inside(&t->block[i].box, t->shape)) continue;
        box_text(&t->block[i].box, text, sizeof text);
        return error_raise(EXIT_BAD_DATA, "%s: tensor %s: the block %s lies outside its shape",
                           path, t->name, text);
    }
    struct corner *c = xmalloc((size_t)n * sizeof *c);
    for (int64_t i = 0; i < t->n_blocks; i++) add_corners(&t->block[i].box, 1, c + i * per);
    add_corners(&whole, -1, c + t->n_blocks * per);
    const struct corner *odd = odd_corner(c, n);
    int rc = odd == NULL ? 0 : uneven(t, path, odd);
    free(c);
    return rc;
}

int manifest_check_coverage(const struct ckpt_manifest *m, const char *path) {
    int rc = 0;
    for (int64_t i = 0; i < m->n_tensors; i++) {
        int one = check_tensor_coverage(&m->tensor[i], path);
        if (one && !rc) rc = one;
    }
    return rc;
}
