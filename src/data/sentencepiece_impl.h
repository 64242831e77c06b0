/* C face of libsentencepiece, seen by tokenizer.c only. */
#ifndef STRATA_DATA_SENTENCEPIECE_IMPL_H
#define STRATA_DATA_SENTENCEPIECE_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sp_model;
typedef void (*sp_emit)(void *arg, int id, size_t begin);
typedef void (*sp_text)(void *arg, const char *text, size_t bytes);

int sp_create(const char *data, size_t bytes, struct sp_model **out, char *message,
              size_t message_bytes);
void sp_destroy(struct sp_model *model);
int sp_pieces(const struct sp_model *model);
int sp_bos(const struct sp_model *model); /* -1: none */
int sp_eos(const struct sp_model *model);
int sp_unk(const struct sp_model *model);
/* Text of a piece and its length: the text may hold NUL bytes. cut_out: a control or unknown piece,
 * which never arises from text by itself. */
const char *sp_piece(const struct sp_model *model, int id, size_t *bytes, bool *cut_out);
/* emit gets every id with the byte of `text` where its piece begins (the dummy prefix: 0). */
int sp_encode(const struct sp_model *model, const char *text, size_t bytes, sp_emit emit,
              void *arg);
int sp_decode(const struct sp_model *model, const int *ids, size_t n, sp_text emit, void *arg);

#endif
