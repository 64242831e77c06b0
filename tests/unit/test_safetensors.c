/* safetensors: round trip, rounding, and hostile files, each refused with its reason. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "safetensors.h"

static char folder[512];

static char *path_of(const char *name) {
    return xasprintf("%s/%s", folder, name);
}

static void put_bytes(const char *name, const void *data, size_t bytes) {
    char *path = path_of(name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
    free(path);
}

/* A file of this header text (its length field is `length`, or right if negative) and n data bytes. */
static void put_file(const char *name, const char *header, size_t header_bytes, int64_t length,
                     size_t n) {
    uint64_t le = length < 0 ? header_bytes : (uint64_t)length;
    char *all = xcalloc(1, 8 + header_bytes + n);
    memcpy(all, &le, 8);
    memcpy(all + 8, header, header_bytes);
    put_bytes(name, all, 8 + header_bytes + n);
    free(all);
}

static void empty_folder(void) {
    static const char *const name[] = {"model.safetensors", "a.safetensors",
                                       "b.safetensors",     "model.safetensors.index.json",
                                       "pytorch_model.bin", "consolidated.safetensors"};
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        char *path = path_of(name[i]);
        unlink(path);
        free(path);
    }
    for (int i = 1; i <= 3; i++)
        for (int n = i; n <= 3; n++) {
            char *path = xasprintf("%s/model-%05d-of-%05d.safetensors", folder, i, n);
            unlink(path);
            free(path);
        }
}

static void refuse(const char *path, int code, const char *reason) {
    struct safetensors *s = NULL;
    error_clear();
    double start = clock_seconds();
    int rc = safetensors_open(path, NULL, &s);
    double seconds = clock_seconds() - start;
    if (rc != code || strstr(error_text(), reason) == NULL)
        fail_msg("code %d, expected %d with \"%s\": %s", rc, code, reason, error_text());
    assert_null(s);
    assert_true(!(seconds > 1.0));
    error_clear();
}

/* ---- hostile headers ------------------------------------------------------------------------------ */
#define ENTRY(dtype, shape, from, to)                                                              \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}"
static const struct hostile {
    const char *header;
    int64_t length; /* -1: right */
    size_t bytes;
    const char *reason;
} hostile[] = {
    {"", 0, 0, "does not begin with {"},
    {"{", 1, 0, "is no JSON"},
    {" {}", -1, 0, "does not begin with {"},
    {"[]", -1, 0, "does not begin with {"},
    {"{}", 3, 0, "a header of 3 bytes in a file of 10"},
    {"{}", 100000001, 0, "at most 100000000 are allowed"},
    {"{}", INT64_MAX, 0, "at most 100000000 are allowed"},
    {"{}", -1, 1, "its tensors end at byte 10, the file at 11"},
    {"{}x", -1, 0, "is no JSON"},
    {"{\"a\":1}", -1, 0, "its entry is no object"},
    {"{\"a\":{}}", -1, 0, "it has no dtype"},
    {"{\"a\":{\"dtype\":4}}", -1, 0, "it has no dtype"},
    {"{\"a\":" ENTRY("F8", "[1]", "0", "1") "}", -1, 1, "dtype \"F8\" is not known"},
    {"{\"a\":" ENTRY("f32", "[1]", "0", "4") "}", -1, 4, "dtype \"f32\" is not known"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", -1, 4, "it has no shape"},
    {"{\"a\":" ENTRY("F32", "4", "0", "4") "}", -1, 4, "it has no shape"},
    {"{\"a\":" ENTRY("F32", "[-1]", "0", "4") "}", -1, 4, "something else than sizes"},
    {"{\"a\":" ENTRY("F32", "[1.0]", "0", "4") "}", -1, 4, "something else than sizes"},
    {"{\"a\":" ENTRY("F32", "[\"1\"]", "0", "4") "}", -1, 4, "something else than sizes"},
    {"{\"a\":" ENTRY("F32", "[1,1,1,1,1,1,1,1,1]", "0", "4") "}", -1, 4, "more than 8 dimensions"},
    {"{\"a\":" ENTRY("F32", "[4294967296,4294967296]", "0", "4") "}", -1, 4, "overflows"},
    {"{\"a\":" ENTRY("F32", "[4611686018427387904,2,0]", "0", "0") "}", -1, 0, "overflows"},
    {"{\"a\":" ENTRY("F32", "[18446744073709551617]", "0", "4") "}", -1, 4,
     "something else than sizes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", -1, 4, "no two sizes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", -1, 4, "no two sizes"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", -1, 4, "no two sizes"},
    {"{\"a\":" ENTRY("F32", "[1]", "-4", "0") "}", -1, 4, "no two sizes"},
    {"{\"a\":" ENTRY("F32", "[1]", "4", "0") "}", -1, 4, "ends before it begins"},
    {"{\"a\":" ENTRY("F32", "[2]", "0", "8") "}", -1, 4, "ends beyond the file"},
    {"{\"a\":" ENTRY("F32", "[1]", "9223372036854775800", "9223372036854775804") "}", -1, 4,
     "ends beyond the file"},
    {"{\"a\":" ENTRY("F32", "[2]", "0", "4") "}", -1, 4, "make 8 bytes, its data_offsets 4"},
    {"{\"a\":" ENTRY("BF16", "[2]", "0", "8") "}", -1, 8, "make 4 bytes, its data_offsets 8"},
    {"{\"a\":" ENTRY("F32", "[1]", "4", "8") "}", -1, 8, "after a hole: expected"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") ",\"b\":" ENTRY("F32", "[1]", "8", "12") "}", -1, 12,
     "after a hole: expected"},
    {"{\"a\":" ENTRY("F32", "[2]", "0", "8") ",\"b\":" ENTRY("F32", "[1]", "4", "8") "}", -1, 8,
     "over another tensor: expected"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") ",\"b\":" ENTRY("F32", "[1]", "0", "4") "}", -1, 4,
     "over another tensor: expected"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") ",\"a\":" ENTRY("F32", "[1]", "4", "8") "}", -1, 8,
     "duplicate"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") ",\"\\u0061\":" ENTRY("F32", "[1]", "4", "8") "}", -1,
     8, "duplicate"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", -1, 5, "its tensors end at byte"},
    {"{\"a\":" ENTRY("F32", "[1]", "0", "4") "}", -1, 3, "ends beyond the file"},
    {"{\"__metadata__\":[]}", -1, 0, "__metadata__ is no object"},
    {"{\"__metadata__\":{\"format\":1}}", -1, 0, "something else than texts"},
    {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", -1, 0, "something else than texts"},
    {"{\"\xff\xfe\":" ENTRY("F32", "[1]", "0", "4") "}", -1, 4, "is no JSON"},
    {"{\"a\\u0000b\":" ENTRY("F32", "[1]", "0", "4") "}", -1, 4, "is no JSON"},
    {"{\"a\":" ENTRY("F32", "[[[[1]]]]", "0", "4") "}", -1, 4, "something else than sizes"},
};

static void test_hostile_headers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        const struct hostile *h = &hostile[i];
        empty_folder();
        put_file("model.safetensors", h->header, strlen(h->header), h->length, h->bytes);
        refuse(folder, EXIT_BAD_DATA, h->reason);
    }
}

static void test_deep_and_huge(void **state) {
    (void)state;
    size_t n = 2000000;
    char *deep = xmalloc(n);
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', n - 5);
    empty_folder();
    put_file("model.safetensors", deep, n, -1, 0);
    free(deep);
    refuse(folder, EXIT_BAD_DATA, "more than 64 levels deep");
    put_bytes("model.safetensors", "\x02\0\0", 3);
    refuse(folder, EXIT_BAD_DATA, "too few for a header");
    put_bytes("model.safetensors", "", 0);
    refuse(folder, EXIT_BAD_DATA, "too few for a header");
}

/* ---- hostile folders ------------------------------------------------------------------------------- */
static void put_text(const char *name, const char *text) {
    put_bytes(name, text, strlen(text));
}

static void put_tensor(const char *file, const char *tensor) {
    char *header = xasprintf("{\"%s\":" ENTRY("F32", "[1]", "0", "4") "}", tensor);
    put_file(file, header, strlen(header), -1, 4);
    free(header);
}

#define INDEX "model.safetensors.index.json"
static void refuse_index(const char *text, int code, const char *reason) {
    put_text(INDEX, text);
    refuse(folder, code, reason);
}

static void test_hostile_index(void **state) {
    (void)state;
    static const char *const names[] = {"../a.safetensors",
                                        "/etc/a.safetensors",
                                        "x/a.safetensors",
                                        ".a.safetensors",
                                        "..",
                                        "",
                                        "a.bin",
                                        "a.safetensors/",
                                        ".safetensors"};
    empty_folder();
    put_tensor("a.safetensors", "t");
    put_tensor("b.safetensors", "u");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char *text = xasprintf("{\"weight_map\":{\"t\":\"%s\"}}", names[i]);
        refuse_index(text, EXIT_BAD_DATA, "without a path");
        free(text);
    }
    refuse_index("{\"weight_map\":{\"t\":7}}", EXIT_BAD_DATA, "without a path");
    refuse_index("{\"weight_map\":{\"t\":\"a.safetensors\\u0000\"}}", EXIT_BAD_DATA, "is no JSON");
    refuse_index("[]", EXIT_BAD_DATA, "no object \"weight_map\"");
    refuse_index("{\"weight_map\":[]}", EXIT_BAD_DATA, "no object \"weight_map\"");
    refuse_index("{\"weight_map\":{\"t\":\"c.safetensors\"}}", EXIT_NO_INPUT,
                 "c.safetensors cannot");
    refuse_index("{\"weight_map\":{\"t\":\"a.safetensors\",\"u\":\"a.safetensors\"}}",
                 EXIT_BAD_DATA, "tensor \"u\" is not in a.safetensors");
    refuse_index("{\"weight_map\":{\"u\":\"b.safetensors\",\"v\":\"a.safetensors\"}}",
                 EXIT_BAD_DATA, "tensor \"v\" is not in a.safetensors");
    refuse_index("{\"weight_map\":{\"t\":\"a.safetensors\",\"t\":\"b.safetensors\"}}",
                 EXIT_BAD_DATA, "duplicate");
    put_tensor("b.safetensors", "t");
    refuse_index("{\"weight_map\":{\"t\":\"a.safetensors\",\"u\":\"b.safetensors\"}}",
                 EXIT_BAD_DATA, "is in a.safetensors and in b.safetensors");
    put_file("b.safetensors", "{}", 2, -1, 0);
    refuse_index("{\"weight_map\":{\"x\":\"a.safetensors\"}}", EXIT_BAD_DATA,
                 "is not in a.safetensors");
}

static void test_hostile_folder(void **state) {
    (void)state;
    empty_folder();
    refuse(folder, EXIT_NO_INPUT, "has no .safetensors file");
    put_text("pytorch_model.bin", "x");
    refuse(folder, EXIT_NO_INPUT, "are never read");
    put_tensor("a.safetensors", "t");
    put_tensor("b.safetensors", "u");
    refuse(folder, EXIT_NO_INPUT, "2 .safetensors files");
    char *link = path_of("model.safetensors"), *index = path_of(INDEX);
    assert_int_equal(symlink("a.safetensors", link), 0);
    refuse(folder, EXIT_BAD_DATA, "symbolic link");
    unlink(link);
    assert_int_equal(mkfifo(link, 0600), 0);
    refuse(folder, EXIT_BAD_DATA, "no regular file");
    unlink(link);
    assert_int_equal(mkfifo(index, 0600), 0);
    refuse(folder, EXIT_BAD_DATA, "no regular file");
    unlink(index);
    refuse("/nowhere/at/all", EXIT_NO_INPUT, "no such file or folder");
    free(link);
    free(index);
}

/* What a header or an index says of itself is nothing to a reader: each of these loads with the
 * safetensors library and transformers. */
static void test_informative_metadata(void **state) {
    (void)state;
    static const char *const meta[] = {"{\"total_size\":9}",        "{\"total_size\":2}",
                                       "{\"total_size\":\"8\"}",    "{\"total_size\":null}",
                                       "{\"total_parameters\":-1}", "{}"};
    struct safetensors *s;
    empty_folder();
    put_tensor("a.safetensors", "t");
    put_tensor("b.safetensors", "u");
    for (size_t i = 0; i < sizeof meta / sizeof *meta; i++) {
        char *text = xasprintf("{\"metadata\":%s,\"weight_map\":{\"t\":\"a.safetensors\",\"u\":"
                               "\"b.safetensors\"}}",
                               meta[i]);
        put_text(INDEX, text);
        free(text);
        if (safetensors_open(folder, NULL, &s) != 0) fail_msg("%s: %s", meta[i], error_text());
        assert_int_equal(safetensors_count(s), 2);
        safetensors_close(s);
    }
    char *index = path_of(INDEX);
    unlink(index);
    free(index);
    const char *header = "{\"__metadata__\":null,\"a\":" ENTRY("F32", "[1]", "0", "4") "}";
    const char *empty = "{\"a\":" ENTRY("F32", "[2305843009213693952,0]", "0", "0") "}";
    put_file("model.safetensors", header, strlen(header), -1, 4);
    assert_int_equal(safetensors_open(folder, NULL, &s), 0);
    safetensors_close(s);
    put_file("model.safetensors", empty, strlen(empty), -1, 0);
    assert_int_equal(safetensors_open(folder, NULL, &s), 0);
    assert_int_equal(safetensor_count(safetensors_at(s, 0)), 0);
    safetensors_close(s);
    put_file("model.safetensors", "{}", 2, -1, 0); /* no tensor at all */
    assert_int_equal(safetensors_open(folder, NULL, &s), 0);
    assert_int_equal(safetensors_count(s), 0);
    safetensors_close(s);
}

static void test_lfs_pointers(void **state) {
    (void)state;
    const char *pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n";
    empty_folder();
    put_text("model.safetensors", pointer);
    refuse(folder, EXIT_BAD_DATA, "git lfs pull");
    empty_folder();
    put_text("tf_model.h5", pointer);
    refuse(folder, EXIT_BAD_DATA, "git lfs pull");
    char *path = path_of("tf_model.h5");
    unlink(path);
    free(path);
    put_text(INDEX, pointer);
    refuse(folder, EXIT_BAD_DATA, "git lfs pull");
}

/* ---- what is right is taken --------------------------------------------------------------------------- */
static void test_odd_but_right(void **state) {
    (void)state;
    const char *header = "{\"b\":" ENTRY("F16", "[]", "0", "2") ",\"a\":" ENTRY(
        "I64", "[0,5]", "2",
        "2") ",\"c\\u00e9\":" ENTRY("F32", "[1]", "2",
                                    "6") ",\"__metadata__\":{\"format\":\"pt\"}}  ";
    struct safetensors *s;
    float v;
    empty_folder();
    put_file("model.safetensors", header, strlen(header), -1, 6);
    assert_int_equal(safetensors_open(folder, NULL, &s), 0);
    assert_int_equal(safetensors_count(s), 3);
    assert_string_equal(safetensors_at(s, 0)->name, "a");
    assert_int_equal(safetensor_count(safetensors_at(s, 0)), 0);
    assert_int_equal(safetensors_find(s, "b")->n_dims, 0);
    assert_non_null(safetensors_find(s, "c\xc3\xa9"));
    assert_int_equal(safetensors_read(s, safetensors_find(s, "b"), 0, 1, &v), 0);
    assert_true(v == 0.0f);
    assert_int_equal(safetensors_read(s, safetensors_at(s, 0), 0, 0, &v), EXIT_BAD_DATA);
    error_clear();
    safetensors_close(s);
    struct safetensors_options follow = {.follow_links = true};
    char *link = path_of("a.safetensors");
    assert_int_equal(symlink("model.safetensors", link), 0);
    assert_int_equal(safetensors_open(link, &follow, &s), 0);
    safetensors_close(s);
    free(link);
}

/* Every value of the 16-bit types survives, and rounding goes to nearest even. */
static void test_rounding(void **state) {
    (void)state;
    struct safetensors_rounding r = {0};
    for (int type = 0; type < 2; type++)
        for (uint32_t i = 0; i < 65536; i++) {
            enum safetensors_dtype t = type ? ST_BF16 : ST_F16;
            uint16_t in = (uint16_t)i, out;
            float f;
            safetensors_to_float(t, &in, 1, &f);
            safetensors_from_float(&f, 1, t, &out, &r);
            assert_true(isnan(f) || in == out);
        }
    assert_int_equal(r.clamped, 0);
    assert_int_equal(r.flushed, 0);
    const struct {
        float in;
        uint16_t bf16, f16;
    } c[] = {{1.0f, 0x3f80, 0x3c00},
             {1.00390625f, 0x3f80, 0x3c04},    /* half way for bf16, down to even */
             {1.01171875f, 0x3f82, 0x3c0c},    /* half way for bf16, up to even */
             {1.00048828125f, 0x3f80, 0x3c00}, /* half way for fp16, down */
             {1.00146484375f, 0x3f80, 0x3c02}, /* half way for fp16, up */
             {-65519.0f, 0xc780, 0xfbff},      /* rounds to 65504: not counted */
             {65520.0f, 0x4780, 0x7bff},       /* clamped */
             {-3e38f, 0xff62, 0xfbff},         /* clamped */
             {5.96046448e-8f, 0x3380, 0x0001}, /* smallest of fp16 */
             {2.98023224e-8f, 0x3300, 0x0000}, /* half of it: flushed */
             {-1e-20f, 0x9e3d, 0x8000},        /* flushed */
             {INFINITY, 0x7f80, 0x7c00},
             {0.0f, 0, 0}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
        uint16_t b, h;
        safetensors_from_float(&c[i].in, 1, ST_BF16, &b, &r);
        safetensors_from_float(&c[i].in, 1, ST_F16, &h, &r);
        assert_int_equal(b, c[i].bf16);
        assert_int_equal(h, c[i].f16);
    }
    assert_int_equal(r.clamped, 2);
    assert_int_equal(r.flushed, 2);
    uint16_t nan16;
    float nan32 = NAN;
    safetensors_from_float(&nan32, 1, ST_F16, &nan16, &r);
    assert_true((nan16 & 0x7c00) == 0x7c00 && (nan16 & 0x3ff) != 0);
    uint32_t low = 0x7f800001;
    memcpy(&nan32, &low, 4);
    safetensors_from_float(&nan32, 1, ST_BF16, &nan16, &r);
    assert_true((nan16 & 0x7f80) == 0x7f80 && (nan16 & 0x7f) != 0);
}

static float value(int64_t tensor, int64_t i) {
    return (float)((tensor * 37 + i * 11) % 256) / 8.0f - 16.0f; /* exact in every type */
}

static void round_trip(int64_t max_file_bytes, int n_files) {
    struct safetensor t[] = {
        {.name = "w.a", .dtype = ST_F32, .n_dims = 2, .shape = {300, 401}},
        {.name = "w.b", .dtype = ST_BF16, .n_dims = 1, .shape = {7}},
        {.name = "w.c", .dtype = ST_F16, .n_dims = 4, .shape = {3, 3, 5, 5}},
        {.name = "w.d", .dtype = ST_F64, .n_dims = 0},
        {.name = "w.e\"\n", .dtype = ST_F32, .n_dims = 2, .shape = {0, 4}},
    };
    struct safetensors_writer *w;
    struct safetensors_rounding r;
    struct safetensors *s;
    empty_folder();
    assert_int_equal(safetensors_create(folder, "model", "pt", t, 5, max_file_bytes, &w), 0);
    for (int k = 4; k >= 0; k--) {
        int64_t n = safetensor_count(&t[k]), half = n / 2;
        float *v = xcalloc((size_t)n + 1, sizeof *v);
        for (int64_t i = 0; i < n; i++) v[i] = value(k, i);
        assert_int_equal(safetensors_write(w, k, half, n - half, v + half), 0);
        assert_int_equal(safetensors_write(w, k, 0, half, v), 0);
        free(v);
    }
    assert_int_equal(safetensors_finish(0, w, &r), 0);
    assert_int_equal(r.clamped + r.flushed, 0);
    if (safetensors_open(folder, NULL, &s) != 0) fail_msg("%s", error_text());
    assert_int_equal(safetensors_count(s), 5);
    int last = 0;
    for (int k = 0; k < 5; k++) {
        const struct safetensor *q = safetensors_find(s, t[k].name);
        assert_non_null(q);
        assert_int_equal(q->dtype, t[k].dtype);
        int64_t n = safetensor_count(q);
        float *v = xcalloc((size_t)n + 1, sizeof *v);
        assert_int_equal(safetensors_read(s, q, 0, n, v), 0);
        for (int64_t i = 0; i < n; i++) assert_true(v[i] == value(k, i));
        free(v);
        if (q->file > last) last = q->file;
    }
    assert_int_equal(last + 1, n_files);
    safetensors_close(s);
}

static void test_round_trip(void **state) {
    (void)state;
    round_trip(INT64_MAX, 1);
    char *one = path_of("model.safetensors");
    unlink(one);
    free(one);
    round_trip(1000, 2);
    round_trip(460, 3);
}

/* What a crash or an error leaves has no name that anyone would open. */
static void test_given_up(void **state) {
    (void)state;
    struct safetensor t = {.name = "w", .dtype = ST_F32, .n_dims = 1, .shape = {4}};
    struct safetensors_writer *w;
    char *one = path_of("model.safetensors");
    empty_folder();
    assert_int_equal(safetensors_create(folder, "model", "pt", &t, 1, 1000, &w), 0);
    assert_int_not_equal(access(one, F_OK), 0);
    assert_int_equal(safetensors_finish(EXIT_IO, w, NULL), EXIT_IO);
    assert_int_not_equal(access(one, F_OK), 0);
    refuse(folder, EXIT_NO_INPUT, "has no .safetensors file");
    free(one);
}

static int make_folder(void **state) {
    (void)state;
    const char *base = getenv("TEST_TMP");
    snprintf(folder, sizeof folder, "%s/safetensors-XXXXXX", base != NULL ? base : "/var/tmp");
    return mkdtemp(folder) == NULL;
}

static int drop_folder(void **state) {
    (void)state;
    empty_folder();
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_headers),      cmocka_unit_test(test_deep_and_huge),
        cmocka_unit_test(test_hostile_index),        cmocka_unit_test(test_hostile_folder),
        cmocka_unit_test(test_informative_metadata), cmocka_unit_test(test_lfs_pointers),
        cmocka_unit_test(test_odd_but_right),        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_round_trip),           cmocka_unit_test(test_given_up),
    };
    return cmocka_run_group_tests(tests, make_folder, drop_folder);
}
