/* Configurations of Hugging Face folders: the parts are the JSON files; a part model.safetensors is the
 * header of the weights, whose shapes count where a configuration is silent. Without it they are a
 * stored tower and projector. */
/* max_len: 6144 */
#include <stdlib.h>
#include <string.h>

#include "hf_config.h"
#include "target.h"

#define WEIGHTS "tests/golden/hf/names/a"

static void make_part(const struct fuzz_part *p) {
    if (strcmp(p->name, "model.safetensors") == 0)
        fuzz_weights(p);
    else
        fuzz_file(p->name, p->data, p->bytes, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static struct safetensors *files;
    struct safetensors *own = NULL;
    bool weights = false;
    struct safetensors_options options = {0};
    if (files == NULL && safetensors_open(WEIGHTS, &options, &files) != 0) error_exit();
    struct hf_keys *keys = xmalloc(sizeof *keys);
    struct fuzz_part part;
    for (int n = 0; n < 8 && fuzz_next_part(&data, &bytes, &part); n++) {
        weights = weights || strcmp(part.name, "model.safetensors") == 0;
        make_part(&part);
    }
    int rc = weights ? safetensors_open(fuzz_folder(), &options, &own) : 0;
    struct hf_folder folder = {fuzz_folder(), weights ? own : files};
    if (rc == 0) rc = hf_model_keys(&folder, &folder, &folder, keys);
    safetensors_close(own);
    free(keys);
    fuzz_judge(rc);
    return 0;
}
