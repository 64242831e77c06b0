/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), by instruction or by table. */
#include <string.h>
#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

#include "base.h"

/* Checksums are polynomials over GF(2) modulo the one above, the highest power in bit 0. */
static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        product ^= b & (0u - (a >> bit & 1u));
        b = b >> 1 ^ (0x82F63B78u & (0u - (b & 1u)));
    }
    return product;
}

/* What `bytes` zero bytes do to a checksum: the factor x^(8 bytes). */
static uint32_t shift_factor(size_t bytes) {
    uint32_t factor = 1u << 31, square = 1u << 23; /* 1; x^8 */
    for (; bytes > 0; bytes >>= 1, square = multiply(square, square))
        if (bytes & 1) factor = multiply(factor, square);
    return factor;
}

uint32_t crc32c_join(uint32_t first, uint32_t second, size_t second_bytes) {
    return multiply(shift_factor(second_bytes), first) ^ second;
}

#ifdef __SSE4_2__
#define LANE ((size_t)4096)
#define LINE ((size_t)64)
/* The instruction takes three cycles and may begin anew in each: three lanes side by side, joined. The
 * processor foresees no lane beyond its page, so it is told what the next three are: without that, bytes
 * from memory pass at half the speed. Behind the end the hint goes nowhere. */
static uint32_t advance_lanes(uint32_t crc, const uint8_t **at, size_t *bytes) {
    const uint32_t shift = shift_factor(LANE);
    for (; *bytes >= 3 * LANE; *bytes -= 3 * LANE, *at += 3 * LANE) {
        uint64_t a = crc, b = 0, c = 0, x, y, z;
        for (size_t i = 0; i < LANE; i += 8) {
            if (i % LINE == 0)
                for (size_t lane = 3; lane < 6; lane++)
                    _mm_prefetch((const char *)((uintptr_t)*at + i + lane * LANE), _MM_HINT_T0);
            memcpy(&x, *at + i, 8);
            memcpy(&y, *at + i + LANE, 8);
            memcpy(&z, *at + i + 2 * LANE, 8);
            a = _mm_crc32_u64(a, x);
            b = _mm_crc32_u64(b, y);
            c = _mm_crc32_u64(c, z);
        }
        crc = multiply(shift, multiply(shift, (uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
    }
    return crc;
}

static uint32_t advance(uint32_t crc, const uint8_t *p, size_t bytes) {
    if (bytes >= 6 * LANE) crc = advance_lanes(crc, &p, &bytes);
    uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t eight;
        memcpy(&eight, p, 8);
        wide = _mm_crc32_u64(wide, eight);
    }
    crc = (uint32_t)wide;
    for (; bytes > 0; bytes--) crc = _mm_crc32_u8(crc, *p++);
    return crc;
}
#else
#define SHIFT(c) (((c) >> 1) ^ (0x82F63B78u & (0u - ((c)&1u))))
#define ENTRY(n) SHIFT(SHIFT(SHIFT(SHIFT((uint32_t)(n)))))
#define FOUR(n) ENTRY(n), ENTRY((n) + 1), ENTRY((n) + 2), ENTRY((n) + 3)
/* Four bits at a time: 16 entries can be spelled as constants, so nothing has to be set up. */
static const uint32_t table[16] = {FOUR(0), FOUR(4), FOUR(8), FOUR(12)};

static uint32_t advance(uint32_t crc, const uint8_t *p, size_t bytes) {
    for (; bytes > 0; bytes--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return crc;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    return ~advance(~crc, data, bytes);
}
