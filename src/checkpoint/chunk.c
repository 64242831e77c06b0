/* How a block is cut into chunks for a filter of HDF5. A chunk is whole rows of one axis at one place of
 * the axes before it, so its elements are consecutive ones of the block: what is damaged in it can be
 * told as a range of elements, and decoded bytes pass in the order of the checksums of the block. */
#include "ckpt_impl.h"

static const struct filter {
    const char *name, *version;
    int64_t target; /* bytes of a chunk before the filter */
} filter_table[CKPT_FILTERS] = {
    [CKPT_FILTER_NONE] = {"none", "1.0.0", 0},
    [CKPT_FILTER_FLETCHER32] = {"fletcher32", "2.0.0", (int64_t)1 << 20},
    [CKPT_FILTER_DEFLATE] = {"deflate", "2.0.0", (int64_t)4 << 20},
};
#define CHUNK_MOST ((int64_t)4 << 20)

const char *ckpt_filter_name(enum ckpt_filter filter) {
    return filter_table[filter].name;
}

const char *ckpt_format_version(enum ckpt_filter filter) {
    return filter_table[filter].version;
}

/* As many equal chunks along the axis as are needed: the last one is short by less than one row for
 * each of them, so hardly anything is stored that is no data. */
void chunk_choose(enum ckpt_filter filter, const struct box *b, int64_t element, int64_t *shape) {
    int64_t target = filter_table[filter].target, inner = element * box_volume(b);
    bool cut = false;
    for (int d = 0; d < b->n; d++) {
        inner /= b->count[d];
        shape[d] = b->count[d];
        if (cut || inner * b->count[d] <= target) {
            cut = true;
            continue;
        }
        int64_t per = target / inner > 0 ? target / inner : 1;
        int64_t n = (b->count[d] + per - 1) / per;
        shape[d] = (b->count[d] + n - 1) / n;
        cut = inner <= target;
    }
}

int64_t box_slice_bytes(enum ckpt_filter filter, const struct box *b, int64_t element) {
    int64_t shape[CKPT_DIMS] = {1}, row = box_volume(b) / b->count[0] * element;
    int64_t rows = CKPT_SLICE / row;
    if (filter != CKPT_FILTER_NONE) chunk_choose(filter, b, element, shape);
    return row * (rows < shape[0] ? shape[0] : rows - rows % shape[0]);
}

/* The axis that chunks divide; those behind it are whole, those before it have one index each. */
static int divided_axis(const struct box *b, const int64_t *shape) {
    int axis = 0;
    while (axis < b->n - 1 && shape[axis] == 1) axis++;
    return axis;
}

bool chunk_legal(const struct box *b, int64_t element, const int64_t *shape) {
    int axis = divided_axis(b, shape);
    int64_t bytes = element;
    for (int d = 0; d < b->n; d++) {
        if (shape[d] < 1 || shape[d] > b->count[d]) return false;
        if (d > axis && shape[d] != b->count[d]) return false;
        if (shape[d] > CHUNK_MOST / bytes) return false;
        bytes *= shape[d];
    }
    return true;
}

/* n / d, rounded up, for any n that there is. */
static int64_t divide_up(int64_t n, int64_t d) {
    return n / d + (n % d != 0);
}

int64_t chunk_count(const struct box *b, const int64_t *shape) {
    int64_t n = 1;
    for (int d = 0; d < b->n; d++) n *= divide_up(b->count[d], shape[d]);
    return n;
}

void chunk_elements(const struct ckpt_block *b, int64_t i, int64_t *first, int64_t *end) {
    int axis = divided_axis(&b->box, b->chunk_shape);
    int64_t rows = b->box.count[axis], step = b->chunk_shape[axis], inner = 1;
    int64_t n = divide_up(rows, step), row = i % n * step;
    for (int d = axis + 1; d < b->box.n; d++) inner *= b->box.count[d];
    int64_t before = i / n * rows;
    *first = (before + row) * inner;
    *end = (before + (step < rows - row ? row + step : rows)) * inner;
}

struct box chunk_box(const struct ckpt_block *b, int64_t i) {
    struct box box[BOX_FLAT_MAX];
    int64_t first, end;
    chunk_elements(b, i, &first, &end);
    int n = box_from_flat(b->box.n, b->box.count, first, end - first, box);
    CHECK(n == 1, "a chunk of %s is %d boxes", b->dataset, n);
    box[0].n = b->box.n;
    for (int d = 0; d < b->box.n; d++) box[0].offset[d] += b->box.offset[d];
    return box[0];
}

int64_t chunk_bytes(const struct ckpt_block *b) {
    int64_t elements = 1;
    for (int d = 0; d < b->box.n; d++) elements *= b->chunk_shape[d];
    return b->bytes / box_volume(&b->box) * elements;
}

/* What cannot be compressed grows by a thousandth and 12 bytes; a checksum is 4. */
int64_t chunk_stored_most(int64_t n) {
    return n + n / 512 + 64;
}

int64_t part_stored_most(enum ckpt_filter filter, const struct part *p) {
    int64_t shape[CKPT_DIMS], bytes = (int64_t)dtype_size(p->dtype);
    if (filter == CKPT_FILTER_NONE) return part_bytes(p);
    chunk_choose(filter, &p->box, bytes, shape);
    for (int d = 0; d < p->box.n; d++) bytes *= shape[d];
    return chunk_count(&p->box, shape) * chunk_stored_most(bytes);
}
