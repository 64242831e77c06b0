/* What the tests of the data room share: a folder of their own, the tiny set, a real tokenizer. */
#ifndef DATA_CASE_H
#define DATA_CASE_H
#include <ftw.h>
#include <stdlib.h>
#include <unistd.h>

#include "data.h"

static char folder[64];

static inline int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s", "/tmp/strata_data_XXXXXX");
    return mkdtemp(folder) != NULL ? 0 : -1;
}

static inline int remove_one(const char *path, const struct stat *st, int kind, struct FTW *place) {
    (void)st;
    (void)kind;
    (void)place;
    return remove(path);
}

static inline int remove_folder(void **state) {
    (void)state;
    error_clear();
    return nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* input/tiny with a cache in the folder. */
static inline struct data_settings tiny(void) {
    struct data_settings s;
    data_settings_init(&s);
    s.format = DATA_LLAVA_JSON;
    s.path = "input/tiny/train.json";
    s.cache_path = folder;
    s.conversation_template = TEMPLATE_V1;
    s.tokenizer_type = "Llama2Tokenizer";
    s.tokenizer_model = "input/tiny/tokenizer.model";
    s.vocab_size = 400;
    s.decoder_seq_length = 256;
    s.rows_per_image = 16;
    s.img_h = s.img_w = 28;
    return s;
}
#endif
