/* Pixels: decoding and the way to the model's input, bit for bit Pillow's (tests/golden/
 * make_pixels.py); and files that are broken or too large. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "pixel_formula.h"

#define FOLDER "tests/golden/images"

static struct image_background none = {.composite = false};
static struct image_background coloured = {.composite = true, .rgb = {10, 200, 255}};

static void hash(const void *data, size_t bytes, char hex[65]) {
    struct sha256 h;
    sha256_begin(&h);
    sha256_add(&h, data, bytes);
    sha256_end(&h, hex);
}

static void decode_to_hash(struct image_scratch *s, const char *name,
                           const struct image_background *b, int w, int h, char hex[65]) {
    size_t bytes;
    struct image im;
    assert_int_equal(image_read_file(FOLDER, name, s, &bytes), 0);
    if (image_decode(s, bytes, b, &im) != 0) fail_msg("%s %s", name, s->why);
    assert_int_equal(im.width, w);
    assert_int_equal(im.height, h);
    hash(im.rgb, (size_t)w * (size_t)h * 3, hex);
}

static void test_decode(void **state) {
    (void)state;
    struct image_scratch s = {0};
    FILE *f = fopen("tests/golden/decode.txt", "r");
    assert_non_null(f);
    char name[64], plain[65], laid[65], hex[65];
    int w, h, n = 0;
    for (; fscanf(f, "%63s %d %d %64s %64s", name, &w, &h, plain, laid) == 5; n++) {
        decode_to_hash(&s, name, &none, w, h, hex);
        if (strcmp(hex, plain) != 0) fail_msg("%s differs from Pillow", name);
        decode_to_hash(&s, name, &coloured, w, h, hex);
        if (strcmp(hex, laid) != 0) fail_msg("%s over a background differs from Pillow", name);
    }
    fclose(f);
    assert_true(n >= 40);
    image_scratch_free(&s);
}

static void test_model_input(void **state) {
    (void)state;
    struct image_scratch s = {0};
    struct data_settings set;
    data_settings_init(&set);
    FILE *f = fopen("tests/golden/pixels.txt", "r");
    assert_non_null(f);
    float *out = malloc(3 * 336 * 336 * sizeof *out);
    char want[2][65], hex[65];
    int w, h, size, n = 0;
    for (; fscanf(f, "%d %d %d %64s %64s", &w, &h, &size, want[0], want[1]) == 5; n++)
        for (int padded = 0; padded < 2; padded++) {
            struct image_pipeline p;
            set.img_h = set.img_w = size;
            set.aspect = padded ? ASPECT_PAD : ASPECT_SQUARE;
            image_pipeline_init(&p, &set);
            struct image im = formula(&s, w, h);
            image_transform(&p, &s, &im, out);
            hash(out, (size_t)(3 * size * size) * sizeof *out, hex);
            if (strcmp(hex, want[padded]) != 0)
                fail_msg("%d x %d to %d, pad %d, differs from Pillow", w, h, size, padded);
        }
    fclose(f);
    assert_true(n >= 22);
    free(out);
    image_scratch_free(&s);
}

/* Resizing is that of Pillow 9.4 to 12.3. Pillow 13 resizes the height first where it loses more than
 * twice the pixels that the width does (doc/mathematics.md), and gives the same everywhere else. */
static void test_resize_versions(void **state) {
    (void)state;
    struct image_scratch s = {0};
    FILE *f = fopen("tests/golden/resize_versions.txt", "r");
    assert_non_null(f);
    char before[65], since[65], hex[65];
    int w, h, to_w, to_h, n = 0, n_other = 0;
    for (; fscanf(f, "%d %d %d %d %64s %64s", &w, &h, &to_w, &to_h, before, since) == 6; n++) {
        struct image im = formula(&s, w, h);
        struct image_window all = {
            .full_width = to_w, .full_height = to_h, .width = to_w, .height = to_h};
        size_t stride;
        const uint8_t *rgb = image_resize(&s, &im, NULL, &all, &stride);
        assert_true(stride == 3 * (size_t)to_w);
        hash(rgb, stride * (size_t)to_h, hex);
        bool height_first = w != to_w && h > to_h && h - to_h > 2 * (w - to_w);
        if (strcmp(hex, before) != 0 || (strcmp(hex, since) == 0) == height_first)
            fail_msg("%d x %d to %d x %d", w, h, to_w, to_h);
        n_other += height_first;
    }
    fclose(f);
    assert_true(n >= 25 && n_other >= 8);
    image_scratch_free(&s);
}

static void test_table(void **state) {
    (void)state;
    static const double ends[3][2] = {
        {-1.7922626, 1.9303362}, {-1.7520971, 2.0748837}, {-1.4802198, 2.1458969}};
    static const double fill[3] = {-0.0112545, -0.0111960, -0.0013329};
    struct data_settings set;
    struct image_pipeline p;
    data_settings_init(&set);
    image_pipeline_init(&p, &set);
    for (int c = 0; c < 3; c++) {
        assert_true(fabs(p.table[c][0] - ends[c][0]) <= 1.2e-7);
        assert_true(fabs(p.table[c][255] - ends[c][1]) <= 1.2e-7);
        assert_true(fabs(p.table[c][p.fill[c]] - fill[c]) <= 1.2e-7);
    }
}

/* Not square: every pixel comes from inside, shape and centre hold. */
static void test_oblong_target(void **state) {
    (void)state;
    struct image_scratch s = {0};
    struct data_settings set;
    data_settings_init(&set);
    set.img_h = 28;
    set.img_w = 56;
    float *out = malloc(3 * 28 * 56 * sizeof *out);
    for (int padded = 0; padded < 2; padded++) {
        struct image_pipeline p;
        set.aspect = padded ? ASPECT_PAD : ASPECT_SQUARE;
        image_pipeline_init(&p, &set);
        struct image im = formula(&s, 40, 90);
        memset(im.rgb, 7, 40 * 90 * 3);
        image_transform(&p, &s, &im, out);
        assert_true(out[14 * 56 + 28] == p.table[0][7]);
        assert_true(out[14 * 56] == p.table[0][padded ? p.fill[0] : 7]);
    }
    free(out);
    image_scratch_free(&s);
}

/* ---- broken files ---------------------------------------------------------------------------- */

static int decode_bytes(struct image_scratch *s, const void *data, size_t bytes) {
    struct image im;
    memcpy(buffer_reserve(&s->file, bytes + 1), data, bytes);
    s->why[0] = '\0';
    return image_decode(s, bytes, &none, &im);
}

/* A file that was cut is refused, or had its pixels before the cut: then they are those of the whole. */
static void test_truncated(void **state) {
    (void)state;
    static const char *const names[] = {"png_c2_d08.png", "png_c6_d16_i.png", "jpeg_420.jpg",
                                        "jpeg_progressive.jpg"};
    /* IEND; checksums of IDAT and of its stream and the code that ends it; the marker EOI */
    static const size_t spare[] = {12 + 4 + 4 + 2, 12 + 4 + 4 + 2, 2, 0};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        struct image_scratch s = {0}, t = {0};
        size_t bytes;
        char whole[65], hex[65];
        struct image im;
        assert_int_equal(image_read_file(FOLDER, names[k], &s, &bytes), 0);
        for (size_t n = bytes; n > 0; n--) {
            memcpy(buffer_reserve(&t.file, bytes), s.file.data, n);
            t.why[0] = '\0';
            int rc = image_decode(&t, n, &none, &im);
            if (rc == 0) hash(im.rgb, (size_t)im.width * (size_t)im.height * 3, hex);
            if (n == bytes) memcpy(whole, hex, sizeof whole);
            if (rc == 0 && (n + spare[k] < bytes || strcmp(hex, whole) != 0))
                fail_msg("%s: the first %zu of %zu bytes are read", names[k], n, bytes);
            assert_true(rc == 0 || (rc == EXIT_BAD_DATA && strlen(t.why) > 0));
        }
        image_scratch_free(&s);
        image_scratch_free(&t);
    }
}

/* Any flipped byte gives an image or a sentence, never a crash (worth most under sanitizers). */
static void test_damaged(void **state) {
    (void)state;
    static const char *const names[] = {"png_c3_d04_t.png", "png_c2_d08.png", "jpeg_420.jpg",
                                        "jpeg_cmyk.jpg", "jpeg_progressive.jpg"};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        struct image_scratch s = {0}, t = {0};
        size_t bytes;
        int refused = 0;
        assert_int_equal(image_read_file(FOLDER, names[k], &s, &bytes), 0);
        uint8_t *data = s.file.data;
        for (size_t n = 0; n < bytes; n++) {
            data[n] ^= (uint8_t)(1 + n % 255);
            int rc = decode_bytes(&t, data, bytes);
            assert_true(rc == 0 || strlen(t.why) > 0);
            refused += rc != 0;
            data[n] ^= (uint8_t)(1 + n % 255);
        }
        assert_true(refused > 0);
        image_scratch_free(&s);
        image_scratch_free(&t);
    }
}

static void test_refused_kinds(void **state) {
    (void)state;
    struct image_scratch s = {0};
    static const struct {
        const char *data;
        size_t bytes;
        const char *says;
    } row[] = {
        {"GIF89a....", 10, "is a broken or truncated GIF"},
        {"RIFF\0\0\0\0WEBPVP8 ", 16, "is a broken or truncated WebP"},
        {"BM....", 6, "holds BMP"},
        {"II*\0....", 8, "holds TIFF"},
        {"\0\0\0\x1c"
         "ftypavif\0\0\0\0",
         16, "holds AVIF"},
        {"\0\0\0\x1c"
         "ftypheic\0\0\0\0",
         16, "holds HEIC"},
        {"\0\0\0\x1c"
         "ftypisom\0\0\0\0",
         16, "holds video"},
        {"\xff\x0a....", 6, "holds JPEG XL"},
        {"\0\0\0\x0cjP  \r\n\x87\n....", 16, "holds JPEG 2000"},
        {"<svg xmlns=''></svg>", 20, "holds SVG"},
        {"<?xml version='1.0'?>\n<svg/>", 28, "holds SVG"},
        {"\n<!DOCTYPE html><html></html>", 29, "holds an HTML page"},
        {"<HTML><body>404</body>", 22, "holds an HTML page"},
        {"<?xml version='1.0'?><Error/>", 29, "XML text by its first bytes, as a failed download"},
        {"{\"error\": \"Not Found\"}", 22, "JSON text"},
        {"PK\3\4....", 8, "ZIP archive"},
        {"%PDF-1.7", 8, "PDF"},
        {"", 0, "empty"},
        {"hello", 5, "is neither"},
        {"\xff", 1, "is neither"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n", 67,
         "git lfs pull"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        assert_int_equal(decode_bytes(&s, row[i].data, row[i].bytes), EXIT_BAD_DATA);
        if (strstr(s.why, row[i].says) == NULL) fail_msg("%s, not %s", s.why, row[i].says);
    }
    image_scratch_free(&s);
}

/* Headers that promise more than any image may have, or nothing. The CRC is made to fit. */
static void test_bombs(void **state) {
    (void)state;
    static const struct {
        const char *head; /* PNG up to the end of IHDR */
        const char *says;
    } row[] = {
        /* 60000 x 60000, 20000 x 20000, 0 x 5 grey */
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\0\0\0\0"
         "\xa5\xb9\x2a\x9e",
         "60000 x 60000 pixels, allowed are"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x4e\x20\0\0\x4e\x20\x08\0\0\0\0\xc6\x1b\x19\xe5"
         "\0\0\0\0IDAT\x35\xaf\x06\x1e",
         "20000 x 20000"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\x05\x08\0\0\0\0\x4e\x2d\xb2\x7d", "0 x 5"},
    };
    struct image_scratch s = {0};
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        assert_int_equal(decode_bytes(&s, row[i].head, i == 1 ? 45 : 33), EXIT_BAD_DATA);
        if (strstr(s.why, row[i].says) == NULL) fail_msg("%s", s.why);
        assert_true(s.raw.bytes == 0);
    }
    assert_int_equal(image_check_size(&s, 20000, 20000), EXIT_BAD_DATA);
    assert_non_null(strstr(s.why, "20000 x 20000"));
    assert_int_equal(image_check_size(&s, 0, 3), EXIT_BAD_DATA);
    assert_int_equal(image_check_size(&s, 4000, 3000), 0);
    image_scratch_free(&s);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void test_paths(void **state) {
    (void)state;
    struct image_scratch s = {0};
    size_t bytes;
    static const char *const illegal[] = {
        "../images/jpeg_420.jpg", "/etc/passwd", "a/../b", "./x", "", "a//b", "images/"};
    for (size_t i = 0; i < sizeof illegal / sizeof illegal[0]; i++) {
        int rc = image_read_file("tests/golden", illegal[i], &s, &bytes);
        assert_true(rc == EXIT_BAD_DATA || rc == EXIT_NO_INPUT);
    }
    assert_int_equal(image_read_file("tests/golden", "images/jpeg_420.jpg", &s, &bytes), 0);
    assert_int_equal(image_read_file("tests/golden", "images/none.jpg", &s, &bytes), EXIT_NO_INPUT);
    assert_int_equal(image_read_file("tests/golden", "images", &s, &bytes), EXIT_BAD_DATA);
    assert_non_null(strstr(s.why, "regular"));
    char folder[] = "/tmp/strata_paths_XXXXXX", link[64];
    assert_non_null(mkdtemp(folder));
    snprintf(link, sizeof link, "%s/link.png", folder);
    assert_int_equal(symlink("/etc/passwd", link), 0);
    assert_int_equal(image_read_file(folder, "link.png", &s, &bytes), EXIT_BAD_DATA);
    assert_non_null(strstr(s.why, "symbolic link"));
    unlink(link);
    rmdir(folder);
    image_scratch_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),        cmocka_unit_test(test_model_input),
        cmocka_unit_test(test_table),         cmocka_unit_test(test_resize_versions),
        cmocka_unit_test(test_oblong_target), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_damaged),       cmocka_unit_test(test_refused_kinds),
        cmocka_unit_test(test_bombs),         cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests_name("data pixels", tests, NULL, NULL);
}
