/* Foreign text in sentences. */
#include "base.h"

void text_printable(const char *text, char *out, size_t size) {
    size_t n = 0;
    for (const char *c = text; *c && n + 5 < size; c++) {
        unsigned char u = (unsigned char)*c;
        n += (size_t)snprintf(out + n, size - n, u < 32 || u == 127 ? "\\x%02x" : "%c", u);
    }
    out[n] = 0;
}
