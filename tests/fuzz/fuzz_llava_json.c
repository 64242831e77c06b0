/* LLaVA JSON: from records to samples of an index, without the images. The first byte chooses template,
 * masking and how images are cut. */
/* max_len: 4096 */
#include <stdlib.h>

#include "../../src/data/index_impl.h"
#include "target.h"

static struct data_settings settings(int kind) {
    static const enum data_template of[] = {TEMPLATE_PLAIN, TEMPLATE_V1, TEMPLATE_MISTRAL_INSTRUCT,
                                            TEMPLATE_LLAVA_LLAMA_2, TEMPLATE_CHATML_DIRECT};
    struct data_settings s;
    data_settings_init(&s);
    s.format = DATA_LLAVA_JSON;
    s.conversation_template = of[kind % 5];
    s.strict_llava_masking = kind / 5 % 2 == 1;
    s.aspect = kind / 10 % 2 == 1 ? ASPECT_ANYRES : ASPECT_PAD;
    s.on_no_target = kind / 20 % 2 == 1 ? NO_TARGET_SKIP : NO_TARGET_KEEP;
    s.vocab_size = 400;
    s.decoder_seq_length = 64;
    s.rows_per_image = 16;
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct data_settings s = settings(bytes > 0 ? data[0] : 0);
    struct builder b = {.set = &s, .tok = (struct tokenizer *)(uintptr_t)fuzz_tokenizer()};
    s.path = fuzz_file("train.json", data + (bytes > 0), bytes > 0 ? bytes - 1 : 0, 0);
    index_init(&b.x);
    int rc = source_llava_read(&b);
    if (rc == 0) rc = builder_end(&b);
    if (rc == 0 && index_samples(&b.x) > 0) {
        fuzz_expect(index_validate(&b.x, s.path, s.vocab_size) == 0, "the index is not valid");
        index_compute_digest(&b.x, b.x.digest);
    }
    index_free(&b.x);
    prompt_free(&b.prompt);
    free(b.rows.ids);
    free(b.rows.labels);
    fuzz_judge(rc);
    return 0;
}
