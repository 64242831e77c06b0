/* CLIP's tf_model.h5: changes of a small one that is made at the start (a tenth of the time that the
 * stored one takes), or a whole file. */
/* max_len: 512 */
/* leaks: looked for at the end only, because HDF5 keeps memory between files */
#include <stdlib.h>

#include "../../src/checkpoint/h5_impl.h"
#include "safetensors.h"
#include "target.h"

#define TOWER "/clip/vision_model/"

static void put(hid_t file, const char *name, int n, const hsize_t *dim) {
    static const float values[64] = {1.0f, -2.0f};
    hid_t link = H5Pcreate(H5P_LINK_CREATE), space = H5Screate_simple(n, dim, NULL);
    H5Pset_create_intermediate_group(link, 1);
    hid_t d = H5Dcreate2(file, name, H5T_IEEE_F32LE, space, link, H5P_DEFAULT, H5P_DEFAULT);
    CHECK(d >= 0 && H5Dwrite(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0, "%s",
          name);
    H5Dclose(d);
    H5Sclose(space);
    H5Pclose(link);
}

/* Shapes and names of each kind that there is, and one beside the tower. */
static const char *make_small(void) {
    const char *path = fuzz_file("small.h5", "", 0, 0);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put(file, TOWER "pre_layrnorm/gamma:0", 1, (hsize_t[]){4});
    put(file, TOWER "encoder/layers_._0/mlp/fc1/kernel:0", 2, (hsize_t[]){4, 8});
    put(file, TOWER "embeddings/patch_embedding/kernel:0", 4, (hsize_t[]){2, 2, 3, 4});
    put(file, TOWER "embeddings/position_embedding/embeddings:0", 2, (hsize_t[]){5, 4});
    put(file, "/clip/text_model/final_layer_norm/beta:0", 1, (hsize_t[]){3});
    CHECK(H5Fclose(file) >= 0, "%s", path);
    return path;
}

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
    static bool begun;
    struct safetensors *s = NULL;
    struct safetensors_options options = {0};
    size_t size;
    int which;
    if (!begun) {
        /* It is read here, and removed at the end of this input. */
        fuzz_changed(NULL, 0, (const char *[]){make_small()}, 1, "\x89HDF", &size, &which);
        begun = true;
    }
    const char *file = fuzz_changed(data, bytes, NULL, 1, "\x89HDF", &size, &which);
    fuzz_file("tf_model.h5", file, size, 0);
    int rc = safetensors_open(fuzz_folder(), &options, &s);
    if (rc == 0) rc = read_all(s);
    safetensors_close(s);
    fuzz_judge(rc);
    return 0;
}
