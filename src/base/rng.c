/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC'11, section 3.3) and what strata draws from it.
 * The packing of coordinates into counters is fixed here and nowhere else; changing it changes
 * every run, so RNG_PACKING_VERSION must go up with it (the checkpoint stores it). */
#include <math.h>
#include <string.h>

#include "base.h"

#define N_ROUNDS 10

static void multiply(uint32_t a, uint32_t b, uint32_t *high, uint32_t *low) {
    uint64_t product = (uint64_t)a * b;
    *high = (uint32_t)(product >> 32);
    *low = (uint32_t)product;
}

void philox4x32(struct rng_key key, const uint32_t counter[4], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key.k[0], k1 = key.k[1];
    for (int round = 0; round < N_ROUNDS; round++) {
        uint32_t high0, low0, high1, low1;
        multiply(0xD2511F53u, c0, &high0, &low0);
        multiply(0xCD9E8D57u, c2, &high1, &low1);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

static struct rng_key sub_key(struct rng_key key, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    uint32_t out[4];
    philox4x32(key, (const uint32_t[4]){a, b, c, d}, out);
    return (struct rng_key){{out[0], out[1]}};
}

static uint32_t low(uint64_t x) {
    return (uint32_t)x;
}

static uint32_t high(uint64_t x) {
    return (uint32_t)(x >> 32);
}

struct rng_key rng_run_key(int64_t seed) {
    return (struct rng_key){{low((uint64_t)seed), high((uint64_t)seed)}};
}

struct rng_key rng_init_key(struct rng_key run, const char *tensor_name) {
    return sub_key(run, RNG_INIT, crc32c(0, tensor_name, strlen(tensor_name)), 0, 0);
}

struct rng_key rng_drop_key(struct rng_key run, enum rng_site site, uint32_t layer, int64_t step) {
    return sub_key(run, (uint32_t)site, layer, low((uint64_t)step), high((uint64_t)step));
}

static void block_words(struct rng_key sub, uint64_t b, uint32_t w[4]) {
    philox4x32(sub, (const uint32_t[4]){low(b), high(b), 0, 0}, w);
}

/* Box-Muller: (w0,w1) give elements 0 (cosine) and 1 (sine) of a block, (w2,w3) elements 2 and 3.
 * u1 = (w+1) 2^-32 is never 0, so the logarithm is finite. */
static void block_normals(const uint32_t w[4], double out[4]) {
    for (int i = 0; i < 4; i += 2) {
        double u1 = ((double)w[i] + 1.0) * 0x1p-32, u2 = (double)w[i + 1] * 0x1p-32;
        double radius = sqrt(-2.0 * log(u1)), angle = 2.0 * M_PI * u2;
        out[i] = radius * cos(angle);
        out[i + 1] = radius * sin(angle);
    }
}

static void block_uniforms(const uint32_t w[4], double out[4]) {
    for (int i = 0; i < 4; i++) out[i] = (double)w[i] * 0x1p-31 - 1.0;
}

static void draw(struct rng_key sub, uint64_t first, int64_t n, double *out,
                 void (*shape)(const uint32_t w[4], double out[4])) {
    for (uint64_t i = first, end = first + (uint64_t)n; i < end;) {
        uint32_t w[4];
        double block[4];
        block_words(sub, i / 4, w);
        shape(w, block);
        do *out++ = block[i % 4];
        while (++i % 4 != 0 && i < end);
    }
}

void rng_normals(struct rng_key sub, uint64_t first, int64_t n, double *out) {
    draw(sub, first, n, out, block_normals);
}

void rng_uniforms(struct rng_key sub, uint64_t first, int64_t n, double *out) {
    draw(sub, first, n, out, block_uniforms);
}

double rng_normal(struct rng_key sub, uint64_t index) {
    double out = 0;
    rng_normals(sub, index, 1, &out);
    return out;
}

double rng_uniform(struct rng_key sub, uint64_t index) {
    double out = 0;
    rng_uniforms(sub, index, 1, &out);
    return out;
}

uint32_t rng_drop_word(struct rng_key sub, uint32_t column, uint32_t row, uint32_t sample,
                       uint32_t head) {
    uint32_t w[4];
    philox4x32(sub, (const uint32_t[4]){column / 4, row, sample, head}, w);
    return w[column % 4];
}

/* Uniform in [0, bound): 64-bit draws below 2^64 mod bound are thrown away, so that what is left
 * is a whole number of intervals of length bound. */
static uint64_t bounded(struct rng_key sub, uint64_t position, uint64_t bound) {
    uint64_t reject_below = -bound % bound;
    for (uint32_t attempt = 0;; attempt++) {
        uint32_t w[4];
        philox4x32(sub, (const uint32_t[4]){low(position), high(position), attempt, 0}, w);
        uint64_t x = (uint64_t)w[1] << 32 | w[0];
        if (x >= reject_below) return x % bound;
    }
}

/* Fisher-Yates from the top, the draw for position i keyed by i. */
void rng_permutation(struct rng_key run, int64_t epoch, int64_t n, int64_t *perm) {
    struct rng_key sub = sub_key(run, RNG_ORDER, low((uint64_t)epoch), high((uint64_t)epoch), 0);
    for (int64_t i = 0; i < n; i++) perm[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)bounded(sub, (uint64_t)i, (uint64_t)i + 1);
        int64_t kept = perm[i];
        perm[i] = perm[j];
        perm[j] = kept;
    }
}
