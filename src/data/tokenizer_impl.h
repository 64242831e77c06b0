/* Inside data: tokens with the place in the text where they begin. */
#ifndef STRATA_DATA_TOKENIZER_IMPL_H
#define STRATA_DATA_TOKENIZER_IMPL_H

#include "data.h"

#define IMAGE_TEXT "<image>"
#define IMAGE_TEXT_BYTES 7

/* emit gets each id (or DATA_IMAGE_MARKER) and the byte of `text` where it begins. */
typedef void (*token_emit)(void *arg, int32_t id, size_t begin);
int tokenizer_walk(const struct tokenizer *t, const char *text, size_t bytes, bool images,
                   token_emit emit, void *arg);
int tokenizer_file_sha256(const char *path, char hex[65]);

#endif
