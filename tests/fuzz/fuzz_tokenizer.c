/* SentencePiece models: opened, and used on some text. */
/* max_len: 8192 */
#include <stdlib.h>
#include <string.h>

#include "data.h"
#include "target.h"

static int use(const struct tokenizer *t) {
    static const char *const text[] = {"", "A cat.", "<s></s><image> \xe7\x8c\xab",
                                       "aaaaaaaaaaaaaaaa \xf0\x9f\x90\xb1\n\t"};
    struct id_list list = {0};
    int64_t vocab = tokenizer_vocab_size(t);
    char hex[65];
    size_t n_decoded;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof text / sizeof *text; i++)
        rc = tokenizer_encode(t, text[i], strlen(text[i]), true, true, &list);
    for (int64_t i = 0; rc == 0 && i < list.n; i++)
        fuzz_expect(list.ids[i] == DATA_IMAGE_MARKER || (list.ids[i] >= 0 && list.ids[i] < vocab),
                    "an id of no piece");
    if (rc == 0) free(tokenizer_decode(t, list.ids, list.n, &n_decoded));
    if (rc == 0) rc = error_code();
    tokenizer_piece_id(t, "<image>");
    tokenizer_template_sha256(t, TEMPLATE_V1, hex);
    free(list.ids);
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct tokenizer *t = NULL;
    int rc = tokenizer_open("Llama2Tokenizer", fuzz_file("tokenizer.model", data, bytes, 0), &t);
    if (rc == 0) rc = use(t);
    tokenizer_close(t);
    fuzz_judge(rc);
    return 0;
}
