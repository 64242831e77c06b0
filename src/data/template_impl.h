/* Inside data: conversations -> prompt text with answer spans -> ids and labels. */
#ifndef STRATA_DATA_TEMPLATE_IMPL_H
#define STRATA_DATA_TEMPLATE_IMPL_H

#include "tokenizer_impl.h"

struct text {
    char *data; /* NUL-terminated once anything was added */
    size_t bytes, capacity;
};
void text_add(struct text *t, const char *data, size_t bytes);
void text_puts(struct text *t, const char *s);

struct turn {
    bool human; /* else the assistant's */
    const char *text;
    size_t bytes;
};

/* Bytes [begin, end) of the prompt are an answer and what closes it. */
struct span {
    size_t begin, end;
};
struct prompt {
    struct text text;
    struct span *span;
    int n_spans, span_capacity;
};
void prompt_clear(struct prompt *p); /* keeps the memory */
void prompt_free(struct prompt *p);
/* system NULL: the template's own. turns alternate and begin with the human's. plain needs exactly
 * two and keeps n_images markers of the first. */
void prompt_build(struct prompt *p, enum data_template t, const char *system,
                  const struct turn *turns, int n_turns, int n_images);
/* LLaVA's own preprocessing would mask all of it ("tokenization mismatch"). */
bool prompt_is_mismatch(const struct prompt *p, enum data_template t);

struct token_rows {
    int32_t *ids, *labels;
    int64_t n, capacity;
};
/* Appends BOS and the prompt's ids; labels are ids inside spans, else DATA_NO_TARGET. With
 * `masked` no label is kept. */
int prompt_encode(const struct prompt *p, const struct tokenizer *t, bool images, bool masked,
                  struct token_rows *out);

/* Row normalisation for conversations with one image: every marker is deleted, one is put in front
 * with a newline, blanks around are trimmed (Unicode blanks, as Python's strip). Turns without a
 * marker come out unchanged. */
void text_normalise_marker(struct text *out, const char *data, size_t bytes);
/* Unicode blanks at both ends, as Python's strip. */
void text_trim(const char **data, size_t *bytes);
int64_t text_count_markers(const char *data, size_t bytes);

#endif
