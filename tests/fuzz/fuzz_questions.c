/* Lists of questions, one JSON object per line, to encoded prompts. */
/* max_len: 2048 */
#include <stdlib.h>

#include "../../src/train/generate_impl.h"
#include "target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static struct config *cfg;
    struct generate_request ask = {0};
    struct question_list list = {0};
    const char *path = fuzz_file("questions.jsonl", data, bytes, 0);
    if (cfg == NULL) {
        char *file = xasprintf("generate:prompt_file=%s", path), *none = "data:image_folder=images";
        if (config_load("input/llava_tiny.ini", 2, (char *[]){file, none}, &cfg) != 0) error_exit();
        free(file);
    }
    int rc = questions_read(cfg, &ask, fuzz_tokenizer(), 16, &list);
    fuzz_expect(rc != 0 || list.n > 0, "no question and no error");
    questions_free(&list);
    fuzz_judge(rc);
    return 0;
}
