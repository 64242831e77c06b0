/* Text or not: marks, wide encodings, NUL bytes, UTF-8. */
#include <string.h>

#include "base.h"
#include "encoding.h"

#define MARK "\xef\xbb\xbf"
#define MARK_BYTES 3
#define PROBE_BYTES 64 /* UTF-16 without a mark shows itself within its first characters */

size_t encoding_mark(const char *data, size_t bytes) {
    size_t n = 0;
    while (bytes - n >= MARK_BYTES && memcmp(data + n, MARK, MARK_BYTES) == 0) n += MARK_BYTES;
    return n;
}

/* Bytes of the character at p, 0 if it is none. */
static size_t character_bytes(const unsigned char *p, size_t left) {
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n > left) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    bool overlong = (p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90);
    bool surrogate = p[0] == 0xed && p[1] > 0x9f, beyond = p[0] == 0xf4 && p[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : n;
}

bool encoding_is_utf8(const char *data, size_t bytes) {
    for (size_t i = 0; i < bytes;) {
        size_t n = character_bytes((const unsigned char *)data + i, bytes - i);
        if (n == 0) return false;
        i += n;
    }
    return true;
}

/* Name of the wide encoding that the data are in, or NULL. A byte order mark says it; without one it is
 * text of which every second byte is 0, as UTF-16 of any European language is. */
static const char *wide_encoding(const char *data, size_t bytes) {
    if (bytes >= 4 && memcmp(data, "\xff\xfe\0\0", 4) == 0) return "UTF-32";
    if (bytes >= 4 && memcmp(data, "\0\0\xfe\xff", 4) == 0) return "UTF-32";
    if (bytes >= 2 && memcmp(data, "\xff\xfe", 2) == 0) return "UTF-16";
    if (bytes >= 2 && memcmp(data, "\xfe\xff", 2) == 0) return "UTF-16";
    size_t pairs = (bytes < PROBE_BYTES ? bytes : PROBE_BYTES) / 2, little = 0, big = 0;
    for (size_t i = 0; i < pairs; i++) {
        little += data[2 * i] != 0 && data[2 * i + 1] == 0;
        big += data[2 * i] == 0 && data[2 * i + 1] != 0;
    }
    return pairs >= 2 && (little == pairs || big == pairs) ? "UTF-16" : NULL;
}

bool encoding_is_foreign(const char *data, size_t bytes, char why[ENCODING_WHY_BYTES]) {
    const char *wide = wide_encoding(data, bytes);
    if (lfs_pointer(data, bytes))
        snprintf(why, ENCODING_WHY_BYTES, "%s", LFS_POINTER);
    else if (wide != NULL)
        snprintf(why, ENCODING_WHY_BYTES, "is %s text; write it as UTF-8: iconv -f %s -t UTF-8",
                 wide, wide);
    else
        return false;
    return true;
}

bool encoding_is_text(const char *data, size_t bytes, char why[ENCODING_WHY_BYTES]) {
    if (encoding_is_foreign(data, bytes, why)) return false;
    const char *nul = bytes > 0 ? memchr(data, '\0', bytes) : NULL;
    if (nul == NULL) return true;
    size_t line = 1;
    for (const char *c = data; c < nul; c++) line += *c == '\n';
    snprintf(why, ENCODING_WHY_BYTES, "holds a NUL byte in line %zu (byte %zu): text holds none",
             line, (size_t)(nul - data));
    return false;
}
