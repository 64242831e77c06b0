/* encoding: whether the bytes of a file are text that strata reads, and if not, why. */
#ifndef STRATA_ENCODING_H
#define STRATA_ENCODING_H

#include <stdbool.h>
#include <stddef.h>

#define ENCODING_WHY_BYTES 160

/* Number of bytes of UTF-8 byte order marks at the beginning: they are not part of the text. */
size_t encoding_mark(const char *data, size_t bytes);
/* Strict UTF-8 (RFC 3629: shortest forms, no surrogates). */
bool encoding_is_utf8(const char *data, size_t bytes);
/* Whether the file is a Git LFS pointer, UTF-16 or UTF-32; `why` is then the predicate of a sentence
 * whose subject is the file. */
bool encoding_is_foreign(const char *data, size_t bytes, char why[ENCODING_WHY_BYTES]);
/* false, with `why` as above, if it is one of these or holds a NUL byte. UTF-8 is another question. */
bool encoding_is_text(const char *data, size_t bytes, char why[ENCODING_WHY_BYTES]);

#endif
