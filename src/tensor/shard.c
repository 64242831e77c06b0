/* Which global indices of a cut axis a rank holds. Block b of length D_b lies in granules of u_b:
 *     q = G div p, m = G mod p, n_r = q + (r < m), a_r = r q + min(r, m)
 *     lo_b = min(a_r u_b, D_b), hi_b = min((a_r + n_r) u_b, D_b)
 * Each rank's part of a block is one contiguous range, so a tensor stored in p = 1 order is read
 * and written as one hyperslab per block at any p. */
#include "tensor.h"

static int64_t min64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t block_granules(const struct cut *c, int b) {
    CHECK(c->granule[b] >= 1, "granule %lld of block %d", (long long)c->granule[b], b);
    return c->size[b] / c->granule[b] + (c->size[b] % c->granule[b] != 0);
}

struct cut cut_none(void) {
    return (struct cut){.axis = -1, .n_blocks = 1, .granule = {1}};
}

struct cut cut_even(int axis, int64_t size, int64_t granule) {
    return (struct cut){.axis = axis, .n_blocks = 1, .size = {size}, .granule = {granule}};
}

int64_t cut_granules(const struct cut *c) {
    return block_granules(c, 0);
}

int64_t cut_size(const struct cut *c) {
    int64_t size = 0;
    for (int b = 0; b < c->n_blocks; b++) size += c->size[b];
    return size;
}

int cut_check(const struct cut *c, int p, const char *what) {
    if (c->axis < 0) return 0;
    CHECK(c->n_blocks >= 1 && c->n_blocks <= CUT_BLOCKS_MAX && p >= 1, "%s: %d blocks over %d",
          what, c->n_blocks, p);
    for (int b = 0; b < c->n_blocks; b++) {
        if (c->size[b] < 1 || c->granule[b] < 1)
            return error_raise(EXIT_USAGE,
                               "%s: block %d has %lld indices in granules of %lld; both must be at "
                               "least 1",
                               what, b, (long long)c->size[b], (long long)c->granule[b]);
        if (block_granules(c, b) != cut_granules(c))
            return error_raise(EXIT_USAGE,
                               "%s: block %d has %lld granules (%lld indices by %lld) but block 0 "
                               "has %lld; all blocks of a cut axis need the same number",
                               what, b, (long long)block_granules(c, b), (long long)c->size[b],
                               (long long)c->granule[b], (long long)cut_granules(c));
    }
    if (p > cut_granules(c))
        return error_raise(EXIT_USAGE,
                           "%s: %lld indices in granules of %lld give %lld parts, which cannot be "
                           "dealt to %d tensor-parallel ranks; tensor_model_parallel_size may be 1 "
                           "to %lld here",
                           what, (long long)c->size[0], (long long)c->granule[0],
                           (long long)cut_granules(c), p, (long long)cut_granules(c));
    return 0;
}

void rows_share(int64_t n, int p, int r, int64_t *first, int64_t *count) {
    CHECK(n >= 0 && p >= 1 && r >= 0 && r < p, "share %d of %d of %lld rows", r, p, (long long)n);
    int64_t q = n / p, m = n % p;
    *first = r * q + min64(r, m);
    *count = q + (r < m);
}

/* Where granule k of block b begins; behind the last one the block ends. */
static int64_t granule_begin(const struct cut *c, int b, int64_t k) {
    return k < cut_granules(c) ? min64(k * c->granule[b], c->size[b]) : c->size[b];
}

struct cut_part cut_part(const struct cut *c, int p, int r) {
    struct cut_part part = {.n_blocks = c->n_blocks};
    if (c->axis < 0) {
        part.n_blocks = 1;
        part.total = part.count[0] = c->size[0];
        return part;
    }
    CHECK(c->n_blocks >= 1 && c->n_blocks <= CUT_BLOCKS_MAX, "%d blocks", c->n_blocks);
    int64_t first, count, offset = 0;
    rows_share(cut_granules(c), p, r, &first, &count);
    for (int b = 0; b < c->n_blocks; b++) {
        int64_t lo = granule_begin(c, b, first), hi = granule_begin(c, b, first + count);
        part.global[b] = offset + lo;
        part.local[b] = part.total;
        part.count[b] = hi - lo;
        part.total += hi - lo;
        offset += c->size[b];
    }
    return part;
}

int64_t cut_local_to_global(const struct cut *c, int p, int r, int64_t local) {
    struct cut_part part = cut_part(c, p, r);
    CHECK(local >= 0 && local < part.total, "local index %lld of %lld", (long long)local,
          (long long)part.total);
    int b = 0;
    while (local >= part.local[b] + part.count[b]) b++;
    return part.global[b] + (local - part.local[b]);
}

void cut_global_to_owner(const struct cut *c, int p, int64_t global, int *r, int64_t *local) {
    int64_t size = c->axis < 0 ? c->size[0] : cut_size(c);
    CHECK(global >= 0 && global < size, "global index %lld of %lld", (long long)global,
          (long long)size);
    if (c->axis < 0) {
        *r = 0;
        *local = global;
        return;
    }
    int b = 0;
    int64_t in_block = global;
    while (in_block >= c->size[b]) in_block -= c->size[b++];
    int64_t k = in_block / c->granule[b];
    int64_t q = cut_granules(c) / p, m = cut_granules(c) % p;
    *r = (int)(k < m * (q + 1) ? k / (q + 1) : m + (k - m * (q + 1)) / q);
    struct cut_part part = cut_part(c, p, *r);
    *local = part.local[b] + (global - part.global[b]);
}

/* A producer may have more blocks than its consumer (Q, K, V rows feed the columns of the dense
 * layer, two stacked halves feed the down projection): the leading blocks both have must agree. */
bool cut_equal(const struct cut *a, const struct cut *b) {
    if ((a->axis < 0) != (b->axis < 0)) return false;
    if (a->axis < 0) return a->size[0] == b->size[0];
    if (cut_granules(a) != cut_granules(b)) return false;
    int n = a->n_blocks < b->n_blocks ? a->n_blocks : b->n_blocks;
    for (int i = 0; i < n; i++) {
        if (a->size[i] != b->size[i]) return false;
        /* one granule is the whole block, however long it is said to be */
        if (min64(a->granule[i], a->size[i]) != min64(b->granule[i], b->size[i])) return false;
    }
    return true;
}
