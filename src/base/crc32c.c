/* CRC-32C (Castagnoli, reflected polynomial 0x82F63B78), by instruction or by table. */
#include <string.h>
#ifdef __SSE4_2__
#include <nmmintrin.h>
#endif

#include "base.h"

#ifdef __SSE4_2__
static uint32_t advance(uint32_t crc, const uint8_t *p, size_t bytes) {
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
