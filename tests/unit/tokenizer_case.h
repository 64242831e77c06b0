/* The published tokenizer of Mistral v1, open for the whole test program. */
#ifndef TOKENIZER_CASE_H
#define TOKENIZER_CASE_H
#include "../../src/data/template_impl.h"

#define TOKENIZER_MODEL "tests/golden/mistral_v1/tokenizer.model.v1"

static struct tokenizer *tok;

static inline int open_model(void **state) {
    (void)state;
    if (tokenizer_open("Llama2Tokenizer", TOKENIZER_MODEL, &tok) == 0) return 0;
    error_print(stderr);
    return -1;
}

static inline int close_model(void **state) {
    (void)state;
    tokenizer_close(tok);
    return 0;
}
#endif
