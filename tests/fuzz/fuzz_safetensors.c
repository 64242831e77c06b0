/* safetensors: one file as it is; or, if it begins with '@', a folder of parts, where the bytes of a
 * .safetensors file are its header, whose length is put in front of it. */
/* max_len: 8192 */
#include <string.h>

#include "hf.h"
#include "target.h"

#define READ_MAX 64 /* elements of a tensor that are read at either end */

static void make_part(const struct fuzz_part *p) {
    size_t n = strlen(p->name), suffix = strlen(".safetensors");
    if (n <= suffix || strcmp(p->name + n - suffix, ".safetensors") != 0) {
        fuzz_file(p->name, p->data, p->bytes, p->bytes + p->size);
        return;
    }
    fuzz_weights(p);
}

static int read_ends(const struct safetensors *s, const struct safetensor *t) {
    float value[READ_MAX];
    char shape[64];
    int64_t count = safetensor_count(t), n = count < READ_MAX ? count : READ_MAX;
    struct hf_name name;
    safetensor_shape_text(t, shape, sizeof shape);
    hf_canonical(t->name, &name);
    fuzz_expect(safetensors_find(s, t->name) == t, "a tensor is not found by its name");
    if (t->dtype != ST_F16 && t->dtype != ST_BF16 && t->dtype != ST_F32 && t->dtype != ST_F64)
        return 0;
    TRY(safetensors_read(s, t, 0, n, value));
    return safetensors_read(s, t, count - n, n, value);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct safetensors *s = NULL;
    struct safetensors_options options = {0};
    struct fuzz_part part;
    const char *path = fuzz_folder();
    int n_files = 0;
    if (bytes > 0 && data[0] == '@')
        while (n_files++ < 8 && fuzz_next_part(&data, &bytes, &part)) make_part(&part);
    else
        path = fuzz_file("model.safetensors", data, bytes, 0);
    int rc = safetensors_open(path, &options, &s);
    for (int64_t i = 0; rc == 0 && i < safetensors_count(s); i++)
        rc = read_ends(s, safetensors_at(s, i));
    safetensors_close(s);
    fuzz_judge(rc);
    return 0;
}
