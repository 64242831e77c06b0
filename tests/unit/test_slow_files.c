/* Files made to be slow: what a reader costs grows with the file, not with its square. Each is read, or
 * refused, within one second of processor time and 256 MiB; comparing all pairs took 20 to 45 s. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/checkpoint/ckpt_impl.h"
#include "hf_config.h"

#if defined(__SANITIZE_ADDRESS__)
#define SECONDS 10.0
#define KIB_MAX (4L << 20)
#else
#define SECONDS 1.0
#define KIB_MAX (256L << 10)
#endif

static char folder[512];

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void within_limits(const char *what, double begun, size_t bytes) {
    struct rusage use;
    double seconds = processor_seconds() - begun;
    getrusage(RUSAGE_SELF, &use);
    print_message("# %s: %zu bytes, %.2f s, %ld MiB at most\n", what, bytes, seconds,
                  use.ru_maxrss >> 10);
    assert_true(seconds <= SECONDS);
    assert_true(use.ru_maxrss <= KIB_MAX);
}

/* ---- manifests ------------------------------------------------------------------------------------ */
/* n columns of one tensor, all of which begin in its first row, in n_files files. The text is written
 * here: the writer of manifests keeps more in memory than their reader may. */
static char *wide_manifest(int64_t n, int64_t n_files, bool twice, size_t *bytes) {
    char *text, digits[9];
    FILE *f = open_memstream(&text, bytes);
    fprintf(
        f, "{\"format\":\"strata-checkpoint\",\"format_version\":\"1.0.0\",\"crc32c\":\"00000000\","
           "\"checkpoint_uuid\":\"u\",\"run_uuid\":\"r\",\"parent_uuid\":\"\",\"step\":7,"
           "\"created\":\"\",\"layout\":{\"tp\":1,\"pp\":1,\"dp\":1,\"split_spec\":\"1\","
           "\"writers\":1},\"crc_block_bytes\":4194304,\"files\":[");
    for (int64_t i = 0; i < n_files; i++)
        fprintf(f,
                "%s{\"name\":\"shard-%lld.h5\",\"bytes\":99999999,\"crc32c\":\"00000000\","
                "\"role\":\"shard\"}",
                i ? "," : "", (long long)i);
    fprintf(f,
            "],\"tensors\":[{\"name\":\"model/w\",\"role\":\"weight\",\"dtype\":\"fp32\","
            "\"global_shape\":[2,%lld],\"blocks\":[",
            (long long)n);
    for (int64_t i = 0; i < n; i++)
        fprintf(f,
                "%s{\"file\":\"shard-%lld.h5\",\"dataset\":\"model/w.%lld\",\"offset\":[0,%lld],"
                "\"count\":[2,1],\"file_offset\":%lld,\"bytes\":8,\"crc32c\":[\"00000000\"]}",
                i ? "," : "", (long long)(n_files - 1 - i % n_files), (long long)i,
                (long long)(twice && i == n / 2 ? i - 1 : i), (long long)(8 * i));
    fprintf(f, "]}],\"aliases\":[]}");
    fclose(f);
    snprintf(digits, sizeof digits, "%08x", crc32c(0, text, *bytes));
    memcpy(strstr(text, "00000000"), digits, 8);
    return text;
}

static void wide(int64_t n, int64_t n_files, bool twice, const char *what) {
    struct ckpt_manifest *m;
    size_t bytes;
    char *text = wide_manifest(n, n_files, twice, &bytes);
    double begun = processor_seconds();
    if (manifest_parse("m", text, bytes, &m) != 0) fail_msg("%s", error_text());
    int rc = manifest_check_coverage(m, "m");
    within_limits(what, begun, bytes);
    assert_int_equal(rc, twice ? EXIT_BAD_DATA : 0);
    if (twice) assert_non_null(strstr(error_text(), "overlap, the first at or behind [0, 14999]"));
    error_clear();
    manifest_free(m);
    free(text);
}

static void wide_manifests(void **state) {
    (void)state;
    wide(30000, 1, false, "30,000 blocks side by side");
    wide(30000, 1, true, "the same, one of them twice");
    wide(20000, 20000, false, "20,000 files");
}

static void many_files(void **state) {
    (void)state;
    struct ckpt_manifest *m;
    size_t bytes;
    enum { FILES = 20000 };
    char *text = wide_manifest(FILES, FILES, false, &bytes);
    assert_int_equal(manifest_parse("m", text, bytes, &m), 0);
    free(text);
    for (int i = 0; i < FILES; i++) {
        char *path = xasprintf("%s/shard-%d.h5", folder, i);
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fclose(f);
        free(path);
        m->file[i].bytes = 0;
    }
    double begun = processor_seconds();
    int rc = ckpt_check_files(folder, m);
    within_limits("a folder of 20,000 files", begun, 0);
    if (rc != 0) fail_msg("%s", error_text());
    for (int i = 0; i < FILES; i++) {
        char *path = xasprintf("%s/shard-%d.h5", folder, i);
        unlink(path);
        free(path);
    }
    manifest_free(m);
}

/* ---- a vision tower that is only described by its tensors ------------------------------------------ */
static void put(const char *name, const char *text, size_t bytes) {
    char *path = xasprintf("%s/%s", folder, name);
    assert_int_equal(file_write_atomic(path, text, bytes), 0);
    free(path);
}

static void clear(const char *name) {
    char *path = xasprintf("%s/%s", folder, name);
    unlink(path);
    free(path);
}

/* A safetensors file of a tower; pos: shape of the position embedding. */
static size_t put_tower(int64_t layers, const char *pos, int64_t pos_bytes) {
    char *text;
    size_t bytes;
    int64_t at = 16 + pos_bytes;
    uint64_t n = 0;
    FILE *f = open_memstream(&text, &bytes);
    fwrite(&n, 1, 8, f);
    fprintf(
        f,
        "{\"vision_model.embeddings.patch_embedding.weight\":{\"dtype\":\"F32\",\"shape\":"
        "[1,1,2,2],\"data_offsets\":[0,16]},\"vision_model.embeddings.position_embedding.weight\""
        ":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[16,%lld]}",
        pos, (long long)at);
    for (int64_t i = 0; i < layers; i++, at += 4)
        fprintf(f,
                ",\"vision_model.encoder.layers.%lld.mlp.fc1.weight\":{\"dtype\":\"F32\","
                "\"shape\":[1,1],\"data_offsets\":[%lld,%lld]}",
                (long long)i, (long long)at, (long long)at + 4);
    fputc('}', f);
    fflush(f);
    n = bytes - 8;
    for (int64_t i = 0; i < at; i++) fputc(0, f);
    fclose(f);
    memcpy(text, &n, 8);
    put("model.safetensors", text, bytes);
    free(text);
    return bytes;
}

static int read_tower(struct hf_keys *keys) {
    struct safetensors *files = NULL;
    char *config = xasprintf("%s/language", folder), *path = xasprintf("%s/config.json", config);
    static const char text[] =
        "{\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":16,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":32}";
    assert_int_equal(dir_make(config), 0);
    assert_int_equal(file_write_atomic(path, text, strlen(text)), 0);
    assert_int_equal(safetensors_open(folder, NULL, &files), 0);
    struct hf_folder language = {.path = config}, vision = {.path = folder, .files = files};
    struct hf_folder projector = {0};
    int rc = hf_model_keys(&language, &vision, &projector, keys);
    safetensors_close(files);
    unlink(path);
    rmdir(config);
    free(path);
    free(config);
    return rc;
}

static void deep_tower(void **state) {
    (void)state;
    struct hf_keys keys;
    size_t bytes = put_tower(20000, "[5,1]", 20);
    double begun = processor_seconds();
    if (read_tower(&keys) != 0) fail_msg("%s", error_text());
    within_limits("a tower of 20,000 layers", begun, bytes);
    assert_string_equal(hf_keys_get(&keys, "vision", "num_layers"), "20000");
    assert_string_equal(hf_keys_get(&keys, "vision", "img_h"), "4");
    /* Without elements a shape may be anything. */
    put_tower(1, "[9223372036854775807,0]", 0);
    assert_int_equal(read_tower(&keys), EXIT_BAD_DATA);
    assert_non_null(strstr(error_text(), "each is at most"));
    error_clear();
    clear("model.safetensors");
}

/* ---- sizes near the end of the numbers ------------------------------------------------------------ */
static void counts_near_the_end(void **state) {
    (void)state;
    const int64_t most = INT64_MAX;
    assert_true(ckpt_crc_blocks(most) == (most >> 22) + 1);
    assert_true(ckpt_crc_blocks(0) == 0);
    struct box b = {.n = 1, .count = {most}};
    assert_true(chunk_count(&b, (int64_t[]){2}) == most / 2 + 1);
    struct ckpt_block block = {.box = b, .chunk_shape = {1 << 20}};
    int64_t first, end;
    chunk_elements(&block, chunk_count(&b, block.chunk_shape) - 1, &first, &end);
    assert_true(end == most && first == most - (1 << 20) + 1);
    struct cut c = cut_even(0, most, most - 1);
    struct cut_part part = cut_part(&c, 2, 1);
    assert_true(part.count[0] == 1 && part.global[0] == most - 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wide_manifests),
        cmocka_unit_test(many_files),
        cmocka_unit_test(deep_tower),
        cmocka_unit_test(counts_near_the_end),
    };
    const char *tmp = getenv("TEST_TMP");
    snprintf(folder, sizeof folder, "%s/strata-slow-XXXXXX", tmp ? tmp : "/tmp");
    if (mkdtemp(folder) == NULL) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
