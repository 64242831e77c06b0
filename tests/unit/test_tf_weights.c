/* CLIP's tf_model.h5: datasets that are not what they should be, each with its reason; and a whole
 * file with flipped bytes or cut off, which never ends the process nor gives a tensor outside the file. */
/* timeout: 300 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/checkpoint/h5_impl.h"
#include "safetensors.h"

#define WHOLE "tests/golden/hf/names/clip_tf/tf_model.h5"
#define PLACE "/clip/vision_model/pre_layrnorm/gamma:0"

static char folder[300], path[400];

static int make_folder(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "%s/tf", getenv("TEST_TMP") ? getenv("TEST_TMP") : ".");
    snprintf(path, sizeof path, "%s/tf_model.h5", folder);
    return dir_make(folder);
}

static int open_folder(void) {
    struct safetensors_options options = {0};
    struct safetensors *s = NULL;
    int rc = safetensors_open(folder, &options, &s);
    safetensors_close(s);
    return rc;
}

/* ---- what is refused, and why ----------------------------------------------------------------------- */
static void put(hid_t file, const char *name, hid_t type, int n, const hsize_t *dim, hid_t list) {
    static const double zeros[64];
    hid_t link = H5Pcreate(H5P_LINK_CREATE), space = H5Screate_simple(n, dim, NULL);
    H5Pset_create_intermediate_group(link, 1);
    hid_t d = H5Dcreate2(file, name, type, space, link, list, H5P_DEFAULT);
    assert_true(d >= 0);
    H5Dwrite(d, H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT, zeros);
    H5Dclose(d);
    H5Sclose(space);
    H5Pclose(link);
}

enum hostile {
    NOTHING_WRONG,
    OTHER_TYPE,
    OTHER_ENDIAN,
    CHUNKED,
    EXTERNAL,
    NOT_WRITTEN,
    NO_RANK,
    THREE_DIMS,
    FLAT_KERNEL,
    TWICE,
    SOFT_LINK,
    EMPTY,
    HOSTILE
};

static void make_hostile(enum hostile what) {
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    hsize_t dim[3] = {4, 2, 2}, chunk[1] = {2};
    hid_t type = what == OTHER_TYPE     ? H5T_IEEE_F64LE
                 : what == OTHER_ENDIAN ? H5T_IEEE_F32BE
                                        : H5T_IEEE_F32LE;
    if (what == CHUNKED) H5Pset_chunk(list, 1, chunk);
    if (what == EXTERNAL) H5Pset_external(list, "/etc/hostname", 0, 16);
    if (what == NO_RANK) put(file, PLACE, type, 0, NULL, list);
    if (what == THREE_DIMS) put(file, PLACE, type, 3, dim, list);
    if (what == FLAT_KERNEL)
        put(file, "/clip/vision_model/encoder/layers_._0/mlp/fc1/kernel:0", type, 1, dim, list);
    if (what == TWICE) put(file, "/other" PLACE, type, 1, dim, list);
    if (what == SOFT_LINK) {
        put(file, "/elsewhere", type, 1, dim, list);
        hid_t group = H5Gcreate2(file, "/vision_model", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        H5Lcreate_soft("/elsewhere", group, "class_embedding:0", H5P_DEFAULT, H5P_DEFAULT);
        H5Gclose(group);
    }
    if (what == NOT_WRITTEN) {
        hid_t space = H5Screate_simple(1, dim, NULL), link = H5Pcreate(H5P_LINK_CREATE);
        H5Pset_create_intermediate_group(link, 1);
        H5Dclose(H5Dcreate2(file, PLACE, type, space, link, list, H5P_DEFAULT));
        H5Pclose(link);
        H5Sclose(space);
    } else if (what != NO_RANK && what != THREE_DIMS && what != SOFT_LINK && what != EMPTY) {
        put(file, PLACE, type, 1, dim, list);
    }
    H5Pclose(list);
    H5Fclose(file);
}

static void test_reasons(void **state) {
    (void)state;
    static const char *const reason[HOSTILE] = {[OTHER_TYPE] = "little-endian fp32",
                                                [OTHER_ENDIAN] = "little-endian fp32",
                                                [CHUNKED] = "plain bytes",
                                                [EXTERNAL] = "plain bytes",
                                                [NOT_WRITTEN] = "does not lie whole",
                                                [NO_RANK] = "shape that no weight",
                                                [THREE_DIMS] = "shape that no weight",
                                                [FLAT_KERNEL] = "shape that no weight",
                                                [TWICE] = "is in tf_model.h5 and in tf_model.h5",
                                                [SOFT_LINK] = "no weights of a CLIP",
                                                [EMPTY] = "no weights of a CLIP"};
    for (int what = 0; what < HOSTILE; what++) {
        make_hostile((enum hostile)what);
        int rc = open_folder();
        if (rc != (reason[what] ? EXIT_BAD_DATA : 0) ||
            (reason[what] && strstr(error_text(), reason[what]) == NULL))
            fail_msg("case %d: code %d, \"%s\"", what, rc, error_text());
        error_clear();
    }
    FILE *to = fopen(path, "w");
    fputs("no HDF5 at all", to);
    fclose(to);
    assert_int_equal(open_folder(), EXIT_BAD_DATA);
    assert_non_null(strstr(error_text(), "is no HDF5 file"));
    error_clear();
}

/* ---- any bytes ------------------------------------------------------------------------------------------ */
/* Exit code 0: whole, and every tensor can be read; 1: refused; else something is wrong. */
static int child(size_t bytes) {
    struct safetensors_options options = {0};
    struct safetensors *s;
    alarm(20);
    int rc = safetensors_open(folder, &options, &s);
    if (rc != 0) return rc == EXIT_BAD_DATA ? 1 : 2;
    for (int64_t i = 0; i < safetensors_count(s); i++) {
        const struct safetensor *t = safetensors_at(s, i);
        if (t->begin < 0 || t->bytes < 4 || t->begin + t->bytes > (int64_t)bytes) return 3;
        float *v = malloc((size_t)t->bytes);
        if (safetensors_read(s, t, 0, safetensor_count(t), v) != 0) return 4;
        free(v);
    }
    safetensors_close(s);
    return 0;
}

static uint64_t next_random(uint64_t *x) {
    *x = *x * 6364136223846793005u + 1442695040888963407u;
    return *x >> 33;
}

static void test_any_bytes(void **state) {
    (void)state;
    char *whole;
    size_t bytes;
    uint64_t seed = 5;
    int count[2] = {0};
    assert_int_equal(file_read(WHOLE, 1 << 22, &whole, &bytes), 0);
    for (int k = 0; k < (getenv("STRATA_LONG") ? 4000 : 400); k++) {
        char *data = malloc(bytes);
        size_t n = bytes;
        memcpy(data, whole, bytes);
        if (k % 10 == 9) n = next_random(&seed) % bytes;
        for (uint64_t i = k % 10 == 9 ? 0 : 1 + next_random(&seed) % 4; i > 0; i--)
            data[next_random(&seed) % (k % 2 ? bytes : 4096)] ^=
                (char)(1 << next_random(&seed) % 8);
        FILE *to = fopen(path, "w");
        assert_int_equal(fwrite(data, 1, n, to), n);
        fclose(to);
        free(data);
        int status;
        pid_t pid = fork();
        if (pid == 0) _exit(child(n));
        waitpid(pid, &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
            fail_msg("file %d: status %x", k, (unsigned)status);
        count[WEXITSTATUS(status)]++;
    }
    print_message("%d whole, %d refused\n", count[0], count[1]);
    assert_true(count[0] > 0 && count[1] > 0);
    free(whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reasons),
                                       cmocka_unit_test(test_any_bytes)};
    return cmocka_run_group_tests(tests, make_folder, NULL);
}
