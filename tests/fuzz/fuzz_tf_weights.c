/* CLIP's tf_model.h5: changes of the stored one, or a whole file. */
/* max_len: 512 */
/* leaks: looked for at the end only, because HDF5 keeps memory between files */
#include <stdlib.h>

#include "safetensors.h"
#include "target.h"

static int read_all(const struct safetensors *s) {
    for (int64_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensor *t = safetensors_at(s, i);
        int64_t n = safetensor_count(t);
        float *value = xmalloc((size_t)n * sizeof *value); /* not more than the file holds */
        int rc = safetensors_read(s, t, 0, n, value);
        free(value);
        if (rc != 0) return rc;
    }
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const golden[] = {"tests/golden/hf/names/clip_tf/tf_model.h5"};
    struct safetensors *s = NULL;
    struct safetensors_options options = {0};
    size_t size;
    int which;
    const char *file = fuzz_changed(data, bytes, golden, 1, "\x89HDF", &size, &which);
    fuzz_file("tf_model.h5", file, size, 0);
    int rc = safetensors_open(fuzz_folder(), &options, &s);
    if (rc == 0) rc = read_all(s);
    safetensors_close(s);
    fuzz_judge(rc);
    return 0;
}
