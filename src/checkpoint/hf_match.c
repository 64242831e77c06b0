/* Which tensor of which file holds a parameter, and reading it in the parameter's own order. */
#include <stdlib.h>
#include <string.h>

#include "ckpt_impl.h"
#include "hf.h"

struct entry { /* one canonical name in a source */
    char name[160];
    int source, part; /* part: 0..2 of a joined q, k, v */
    int n_parts;
    bool interleaved;
    int64_t tensor;
};
struct entry_list {
    struct entry *entry;
    int64_t n, capacity;
};

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct entry *)a)->name, ((const struct entry *)b)->name);
}

static void add_entry(struct entry_list *l, const struct entry *e) {
    if (l->n == l->capacity) {
        l->capacity = l->capacity ? 2 * l->capacity : 1024;
        l->entry = xrealloc(l->entry, (size_t)l->capacity * sizeof *l->entry);
    }
    l->entry[l->n++] = *e;
}

static int64_t first_of_source(const struct hf_map *map, int source) {
    int64_t n = 0;
    for (int i = 0; i < source; i++) n += safetensors_count(map->source[i].files);
    return n;
}

#define NEWLINE "image_newline"

static bool has_newline(const struct param_set *set) {
    for (int i = 0; i < set->n; i++)
        if (strcmp(set->param[i].hf_name, NEWLINE) == 0) return true;
    return false;
}

/* Tensors that are not wanted count as asked for; unknown names remain and are reported. */
static void list_source(struct hf_map *map, int source, bool newline, struct entry_list *l) {
    const struct hf_source *from = &map->source[source];
    int64_t *used = map->used + first_of_source(map, source);
    for (int64_t i = 0; i < safetensors_count(from->files); i++) {
        struct hf_name canon;
        enum hf_kind kind = hf_canonical(safetensors_at(from->files, i)->name, &canon);
        bool left = kind == HF_WEIGHT && canon.part == HF_IMAGE_NEWLINE && !newline;
        if (kind == HF_NO_WEIGHT || left) {
            used[i] = 1;
            map->n_other++;
            map->newline = map->newline || left;
        }
        if (kind != HF_WEIGHT || left) continue;
        if (!(from->parts & (int)canon.part)) used[i] = 1;
        for (int k = 0; (from->parts & (int)canon.part) && k < canon.n; k++) {
            struct entry e = {.source = source, .part = k, .n_parts = canon.n, .tensor = i};
            e.interleaved = canon.interleaved;
            memcpy(e.name, canon.name[k], sizeof e.name);
            add_entry(l, &e);
        }
    }
}

static const struct safetensor *entry_tensor(const struct hf_map *map, const struct entry *e) {
    return safetensors_at(map->source[e->source].files, e->tensor);
}

/* Two tensors that mean the same parameter. */
static int check_twice(const struct hf_map *map, const struct entry_list *l) {
    int rc = 0;
    for (int64_t i = 1; i < l->n; i++) {
        const struct entry *a = &l->entry[i - 1], *b = &l->entry[i];
        char x[200], y[200];
        if (strcmp(a->name, b->name) != 0) continue;
        text_printable(entry_tensor(map, a)->name, x, sizeof x);
        text_printable(entry_tensor(map, b)->name, y, sizeof y);
        rc =
            error_raise(EXIT_BAD_DATA, "%s and %s are both %s: one of them must go", x, y, a->name);
    }
    return rc;
}

static bool same_shape(const struct param *p, const struct safetensor *t, int n_parts) {
    if (t->n_dims != p->ndim) return false;
    for (int d = 0; d < p->ndim; d++)
        if (t->shape[d] != p->shape[d] * (d == 0 ? n_parts : 1)) return false;
    return true;
}

static int wrong_shape(const struct hf_map *map, const struct param *p, const struct entry *e) {
    const struct safetensor *t = entry_tensor(map, e);
    char have[128], need[128], shown[200];
    struct safetensor want = {.n_dims = p->ndim};
    memcpy(want.shape, p->shape, (size_t)p->ndim * sizeof *p->shape);
    want.shape[0] *= e->n_parts;
    safetensor_shape_text(t, have, sizeof have);
    safetensor_shape_text(&want, need, sizeof need);
    text_printable(t->name, shown, sizeof shown);
    return error_raise(EXIT_BAD_DATA, "%s: tensor \"%s\" is %s, the model needs %s",
                       safetensors_file(map->source[e->source].files, t->file), shown, have, need);
}

static enum hf_part part_of(const struct param *p) {
    return strcmp(p->hf_name, NEWLINE) == 0 ? HF_IMAGE_NEWLINE
           : p->group == PARAM_VISION       ? HF_VISION
           : p->group == PARAM_PROJECTOR    ? HF_PROJECTOR
                                            : HF_LANGUAGE;
}

static const struct entry *find_entry(const struct entry_list *l, const char *name) {
    struct entry key;
    snprintf(key.name, sizeof key.name, "%s", name);
    return l->n ? bsearch(&key, l->entry, (size_t)l->n, sizeof key, by_name) : NULL;
}

/* With tie_word_embeddings the files hold one of head and embedding, or both: then each is its own, as
 * in transformers, which ties them only if they are equal. */
static const struct entry *find_tied(const struct entry_list *l, const char *name) {
    static const char *const pair[2] = {"language_model.lm_head.weight",
                                        "language_model.model.embed_tokens.weight"};
    for (int i = 0; i < 2; i++)
        if (strcmp(name, pair[i]) == 0) return find_entry(l, pair[1 - i]);
    return NULL;
}

static int match_one(struct hf_map *map, const struct param *p, const struct entry_list *l,
                     int may_miss, struct hf_piece *piece) {
    const struct entry *e = find_entry(l, p->hf_name);
    if (e == NULL && (may_miss & HF_TIED_HEAD)) e = find_tied(l, p->hf_name);
    if (e == NULL && (may_miss & (int)part_of(p))) return 0;
    if (e == NULL)
        return error_raise(EXIT_BAD_DATA, "tensor %s is missing in %s", p->hf_name,
                           safetensors_path(map->source[0].files));
    const struct safetensor *t = entry_tensor(map, e);
    map->used[first_of_source(map, e->source) + e->tensor] = 1;
    if (!same_shape(p, t, e->n_parts)) return wrong_shape(map, p, e);
    if (t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F32 && t->dtype != ST_F64)
        return error_raise(EXIT_BAD_DATA, "tensor %s is %s: weights are F16, BF16, F32 or F64",
                           t->name, safetensors_dtype_name(t->dtype));
    *piece = (struct hf_piece){.files = map->source[e->source].files,
                               .tensor = t,
                               .first = e->part * param_global_count(p),
                               .interleaved = e->interleaved};
    return 0;
}

/* A part may be missing, but not half of it. */
static int check_halves(const struct hf_map *map, const struct param_set *set, int may_miss) {
    int rc = 0, some = 0;
    for (int i = 0; i < set->n; i++)
        if (map->piece[i].tensor != NULL) some |= (int)part_of(&set->param[i]);
    for (int i = 0; i < set->n; i++)
        if (map->piece[i].tensor == NULL && (may_miss & some & (int)part_of(&set->param[i])))
            rc = error_raise(EXIT_BAD_DATA,
                             "tensor %s is missing, while others of its part are there",
                             set->param[i].hf_name);
    return rc;
}

int hf_match(const struct hf_source *source, int n_sources, const struct param_set *set,
             int64_t head_dim, int may_miss, struct hf_map *map) {
    struct entry_list l = {0};
    *map = (struct hf_map){.head_dim = head_dim, .source = source, .n_sources = n_sources};
    map->n_used = first_of_source(map, n_sources);
    map->used = xcalloc((size_t)map->n_used + 1, sizeof *map->used);
    map->piece = xcalloc((size_t)set->n + 1, sizeof *map->piece);
    for (int i = 0; i < n_sources; i++) list_source(map, i, has_newline(set), &l);
    if (l.n > 0) qsort(l.entry, (size_t)l.n, sizeof *l.entry, by_name);
    int rc = check_twice(map, &l);
    for (int i = 0; i < set->n; i++) {
        int one = match_one(map, &set->param[i], &l, may_miss, &map->piece[i]);
        if (one) rc = one;
    }
    int half = check_halves(map, set, may_miss);
    free(l.entry);
    return rc ? rc : half;
}

int hf_check_unexpected(const struct hf_map *map) {
    int rc = 0;
    int64_t at = 0;
    for (int s = 0; s < map->n_sources; s++) {
        const struct safetensors *files = map->source[s].files;
        for (int64_t i = 0; i < safetensors_count(files); i++, at++) {
            const struct safetensor *t = safetensors_at(files, i);
            char shown[200];
            if (map->used[at]) continue;
            text_printable(t->name, shown, sizeof shown);
            rc = error_raise(EXIT_BAD_DATA, "%s: tensor \"%s\" is no part of the model",
                             safetensors_file(files, t->file), shown);
        }
    }
    return rc;
}

void hf_map_free(struct hf_map *map) {
    free(map->piece);
    free(map->used);
    *map = (struct hf_map){0};
}

/* ---- reading -------------------------------------------------------------------------------------------- */
/* Row r of a head with pairs (i, i + d/2) is row 2i + p of one with pairs (2i, 2i+1). */
static int64_t interleaved_row(int64_t row, int64_t d) {
    int64_t head = row / d, in = row % d;
    return head * d + 2 * (in % (d / 2)) + in / (d / 2);
}

static int fetch_interleaved(const struct hf_piece *piece, int64_t cols, int64_t d, int64_t first,
                             int64_t count, float *out) {
    for (int64_t at = first; at < first + count;) {
        int64_t row = at / cols, col = at % cols, n = cols - col;
        if (n > first + count - at) n = first + count - at;
        int64_t from = piece->first + interleaved_row(row, d) * cols + col;
        TRY(safetensors_read(piece->files, piece->tensor, from, n, out + (at - first)));
        at += n;
    }
    return 0;
}

int hf_fetch(const struct hf_map *map, const struct param *p, const struct hf_piece *piece,
             int64_t first, int64_t count, float *out) {
    CHECK(piece->tensor != NULL, "%s comes from nowhere", p->name);
    if (!piece->interleaved)
        return safetensors_read(piece->files, piece->tensor, piece->first + first, count, out);
    CHECK(map->head_dim > 0 && map->head_dim % 2 == 0 && p->shape[0] % map->head_dim == 0,
          "%s has %lld rows, heads %lld", p->name, (long long)p->shape[0],
          (long long)map->head_dim);
    return fetch_interleaved(piece, p->shape[1], map->head_dim, first, count, out);
}
