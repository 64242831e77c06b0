/* Configurations of Hugging Face folders: the parts are the JSON files; the weights, whose shapes count
 * where a configuration is silent, are a stored tower and projector. */
/* max_len: 4096 */
#include <stdlib.h>

#include "hf_config.h"
#include "target.h"

#define WEIGHTS "tests/golden/hf/names/a"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static struct safetensors *files;
    struct safetensors_options options = {0};
    if (files == NULL && safetensors_open(WEIGHTS, &options, &files) != 0) error_exit();
    struct hf_folder folder = {fuzz_folder(), files};
    struct hf_keys *keys = xmalloc(sizeof *keys);
    struct fuzz_part part;
    for (int n = 0; n < 8 && fuzz_next_part(&data, &bytes, &part); n++)
        fuzz_file(part.name, part.data, part.bytes, 0);
    int rc = hf_model_keys(&folder, &folder, &folder, keys);
    free(keys);
    fuzz_judge(rc);
    return 0;
}
