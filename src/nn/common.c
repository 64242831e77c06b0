/* What every layer needs: parameter declaration, fused views, scratch, row shares. */
#include <string.h>

#include "nn_impl.h"

int64_t feature_granule(int64_t size) {
    return size >= 1024 ? 64 : 1;
}

static char *append(char *to, const char *end, const char *from, size_t n) {
    CHECK(n < (size_t)(end - to), "a parameter's name is too long at %s", from);
    memcpy(to, from, n);
    return to + n;
}

/* prefix, in which a %d or %03d stands for the number, and name. By hand: a plan of many layers
 * composes millions of names, and snprintf took half of its time. */
static void compose(char *out, size_t size, const char *prefix, int number, const char *name) {
    const char *mark = strchr(prefix, '%'), *end = out + size;
    if (mark != NULL) {
        char digits[16];
        size_t at = sizeof digits, least = sizeof digits - (mark[1] == '0' ? 3 : 1);
        for (int rest = number; rest > 0 || at > least; rest /= 10)
            digits[--at] = (char)('0' + rest % 10);
        out = append(out, end, prefix, (size_t)(mark - prefix));
        out = append(out, end, digits + at, sizeof digits - at);
        prefix = strchr(mark, 'd') + 1;
    }
    out = append(out, end, prefix, strlen(prefix));
    out = append(out, end, name, strlen(name));
    *out = '\0';
}

void block_declare(struct block *b, int slot, const struct param_home *home,
                   struct param_spec spec) {
    CHECK(slot < BLOCK_PARAMS_MAX, "slot %d of block %s", slot, b->ops->name);
    struct param q = {.dims = spec.dims,
                      .ndim = spec.ndim,
                      .cut = spec.cut,
                      .init = spec.init,
                      .init_scale = spec.scale,
                      .group = home->group,
                      .stack_layer = b->stack_layer,
                      .decay = !spec.no_decay,
                      .trainable = !home->frozen,
                      .fused = spec.fused,
                      .partial_tp = spec.rows_local && b->sequence_parallel};
    memcpy(q.shape, spec.shape, sizeof q.shape);
    compose(q.name, sizeof q.name, home->prefix, home->number, spec.name);
    compose(q.hf_name, sizeof q.hf_name, home->hf_prefix, home->number, spec.hf_name);
    for (char *c = q.hf_name; *c != 0; c++)
        if (*c == '/') *c = '.';
    param_declare(b->set, q);
    b->param[slot] = b->set->n - 1;
}

struct param_spec norm_spec(const char *name, const char *hf, int64_t h, bool bias) {
    return (struct param_spec){.name = name,
                               .hf_name = hf,
                               .dims = "features",
                               .ndim = 1,
                               .shape = {h},
                               .cut = cut_none(),
                               .init = bias ? INIT_ZERO : INIT_ONE,
                               .no_decay = true,
                               .rows_local = true};
}

struct param_spec vocabulary_spec(const char *name, const struct language_config *c) {
    return (struct param_spec){.name = name,
                               .hf_name = name,
                               .dims = "vocabulary,features",
                               .ndim = 2,
                               .shape = {c->vocab, c->hidden},
                               .cut = vocabulary_cut(c),
                               .init = INIT_NORMAL,
                               .scale = c->init_std};
}

static struct tensor fused_view(const struct block *b, int slot, int n, bool grad) {
    const struct param *first = block_param(b, slot);
    if (first == NULL) return (struct tensor){0};
    struct tensor t = grad ? first->g : first->w;
    for (int i = 1; i < n; i++) {
        const struct param *q = block_param(b, slot + i);
        if (q->ndim == 1)
            t.cols += q->cols;
        else
            t.rows += q->rows;
    }
    t.ld = t.cols;
    return t;
}

struct tensor block_weight(const struct block *b, int slot, int n) {
    return fused_view(b, slot, n, false);
}

struct tensor block_grad(const struct block *b, int slot, int n) {
    return fused_view(b, slot, n, true);
}

struct linear block_linear(const struct block *b, enum linear_kind kind, int weight_slot,
                           int bias_slot, int n_fused) {
    struct linear l = {.kind = kind,
                       .cut = block_param(b, weight_slot)->cut,
                       .input_is_parallel = kind == LINEAR_ROW,
                       .w = block_weight(b, weight_slot, n_fused),
                       .dw = block_grad(b, weight_slot, n_fused)};
    if (bias_slot >= 0 && b->param[bias_slot] >= 0) {
        l.b = block_weight(b, bias_slot, n_fused);
        l.db = block_grad(b, bias_slot, n_fused);
    }
    return l;
}

struct tensor scratch_tensor(struct pass *p, int64_t rows, int64_t cols) {
    return tensor_alloc(p->scratch, rows, cols, p->be->dtype);
}

void tensor_zero(struct pass *p, const struct tensor *t) {
    p->be->ops->zero(p->be, t->data, tensor_bytes(t));
}

void tensor_copy(struct pass *p, const struct tensor *from, const struct tensor *to) {
    if (tensor_contiguous(from) && tensor_contiguous(to))
        p->be->ops->copy(p->be, to->data, from->data, tensor_bytes(to));
    else
        p->be->ops->convert(p->be, from, to);
}

const struct tensor *tensor_or_null(const struct tensor *t) {
    return t->data == NULL ? NULL : t;
}

const struct dropout *pass_dropout(const struct pass *p, double prob, enum rng_site site, int layer,
                                   int64_t first, struct dropout *out) {
    if (!p->training || prob == 0.0) return NULL;
    out->prob = prob;
    out->key = rng_drop_key(p->run_key, site, (uint32_t)layer, p->mb->step);
    out->row = p->tab->position + first;
    out->sample = p->tab->row_sample + first;
    return out;
}

/* Class rows among the tower's rows [0, row). */
static int64_t class_rows_before(int64_t row, int64_t tile_rows) {
    return (row + tile_rows - 1) / tile_rows;
}

void rows_split(enum row_kind kind, const struct microbatch *mb, int64_t tile_rows, bool drop_class,
                int p, struct row_split *out) {
    CHECK(p <= TP_MAX, "tensor-parallel size %d, at most %d", p, TP_MAX);
    int64_t n = kind == ROWS_TEXT ? mb->tokens : mb->tiles * tile_rows;
    for (int r = 0; r <= p; r++) {
        int64_t first = n, count = 0;
        if (r < p) rows_share(n, p, r, &first, &count);
        if (kind == ROWS_IMAGE && drop_class) first -= class_rows_before(first, tile_rows);
        out->offset[r] = first;
    }
}

int64_t rows_held(enum row_kind kind, const struct microbatch *mb, int64_t tile_rows,
                  bool drop_class, bool sequence_parallel, int p, int r) {
    struct row_split s;
    rows_split(kind, mb, tile_rows, drop_class, sequence_parallel ? p : 1, &s);
    return sequence_parallel ? s.offset[r + 1] - s.offset[r] : s.offset[1];
}

/* FNV-1a over the numbers in a fixed order. */
static uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes) {
    const unsigned char *c = data;
    for (size_t i = 0; i < bytes; i++) {
        /* Bytes of whole integers; the analyzer follows only the first one. */
        h = (h ^ c[i]) * 1099511628211u; /* NOLINT(clang-analyzer-core.*) */
    }
    return h;
}

uint64_t microbatch_hash(const struct microbatch *mb) {
    uint64_t h = 14695981039346656037u;
    const int64_t n[] = {mb->step,     mb->index,   mb->first_sample, mb->samples,
                         mb->images,   mb->tiles,   mb->image_rows,   mb->tokens,
                         mb->newlines, mb->targets, mb->max_segment,  mb->past};
    h = hash_bytes(h, n, sizeof n);
    h = hash_bytes(h, mb->sample_id, (size_t)mb->samples * sizeof *mb->sample_id);
    h = hash_bytes(h, mb->cu_tokens, (size_t)(mb->samples + 1) * sizeof *mb->cu_tokens);
    h = hash_bytes(h, mb->text_len, (size_t)mb->samples * sizeof *mb->text_len);
    h = hash_bytes(h, mb->sample_images, (size_t)(mb->samples + 1) * sizeof *mb->sample_images);
    h = hash_bytes(h, mb->image_tiles, (size_t)mb->images * sizeof *mb->image_tiles);
    return hash_bytes(h, mb->image_row, (size_t)mb->images * sizeof *mb->image_row);
}
