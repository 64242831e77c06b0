/* Boxes of row-major arrays. */
#include "ckpt_impl.h"

int64_t box_volume(const struct box *b) {
    int64_t v = 1;
    for (int d = 0; d < b->n; d++) v *= b->count[d];
    return v;
}

bool box_intersect(const struct box *a, const struct box *b, struct box *out) {
    CHECK(a->n == b->n, "boxes of %d and %d dimensions", a->n, b->n);
    struct box r = {.n = a->n};
    for (int d = 0; d < a->n; d++) {
        int64_t low = a->offset[d] > b->offset[d] ? a->offset[d] : b->offset[d];
        int64_t end_a = a->offset[d] + a->count[d], end_b = b->offset[d] + b->count[d];
        int64_t end = end_a < end_b ? end_a : end_b;
        if (end <= low) return false;
        r.offset[d] = low;
        r.count[d] = end - low;
    }
    *out = r;
    return true;
}

bool box_inside(const struct box *b, const int64_t *shape) {
    for (int d = 0; d < b->n; d++) {
        if (b->offset[d] < 0 || b->count[d] < 1 || b->count[d] > shape[d]) return false;
        if (b->offset[d] > shape[d] - b->count[d]) return false;
    }
    return true;
}

struct flat_split {
    int n;
    const int64_t *extent;
    int64_t prefix[CKPT_DIMS];
    struct box *out;
    int found;
};

static void emit(struct flat_split *s, int d, int64_t low, int64_t high) {
    struct box *b = &s->out[s->found++];
    b->n = s->n;
    for (int i = 0; i < s->n; i++) {
        b->offset[i] = i < d ? s->prefix[i] : 0;
        b->count[i] = i < d ? 1 : s->extent[i];
    }
    b->offset[d] = low;
    b->count[d] = high - low;
}

/* The range [a, b) of the sub-array below the prefix of d indices: a partial first row, whole rows,
 * a partial last row. */
static void split_flat(struct flat_split *s, int d, int64_t a, int64_t b) {
    if (a >= b) return;
    if (d == s->n - 1) {
        emit(s, d, a, b);
        return;
    }
    int64_t row = 1;
    for (int i = d + 1; i < s->n; i++) row *= s->extent[i];
    int64_t low = (a + row - 1) / row, high = b / row;
    if (low > high) {
        s->prefix[d] = high;
        split_flat(s, d + 1, a - high * row, b - high * row);
        return;
    }
    if (a < low * row) {
        s->prefix[d] = low - 1;
        split_flat(s, d + 1, a - (low - 1) * row, row);
    }
    if (low < high) emit(s, d, low, high);
    if (high * row < b) {
        s->prefix[d] = high;
        split_flat(s, d + 1, 0, b - high * row);
    }
}

int box_from_flat(int n, const int64_t *extent, int64_t first, int64_t count, struct box *out) {
    struct flat_split s = {.n = n, .extent = extent, .out = out};
    split_flat(&s, 0, first, first + count);
    CHECK(s.found <= 2 * n - 1, "%d boxes of a flat range in %d dimensions", s.found, n);
    return s.found;
}

bool box_is_flat(const struct box *whole, const struct box *sub, int64_t *first) {
    int axis = 0; /* the only one along which a part of more than one is taken */
    *first = 0;
    while (axis < sub->n - 1 && sub->count[axis] == 1) axis++;
    for (int d = 0; d < sub->n; d++) {
        *first = *first * whole->count[d] + sub->offset[d] - whole->offset[d];
        if (d > axis && sub->count[d] != whole->count[d]) return false;
    }
    return true;
}

void box_text(const struct box *b, char *text, size_t size) {
    size_t used = 0;
    for (int d = 0; d < b->n && used < size; d++) {
        int w = snprintf(text + used, size - used, "%s%lld:%lld", d ? ", " : "[",
                         (long long)b->offset[d], (long long)(b->offset[d] + b->count[d]));
        used += (size_t)w;
    }
    if (used < size) snprintf(text + used, size - used, "]");
}
