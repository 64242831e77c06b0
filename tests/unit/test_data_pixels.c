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

static struct image_background none = {false, {0, 0, 0}};
static struct image_background coloured = {true, {10, 200, 255}};

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

static void test_truncated(void **state) {
    (void)state;
    static const char *const names[] = {"png_c2_d08.png", "png_c6_d16_i.png", "jpeg_420.jpg",
                                        "jpeg_progressive.jpg"};
    for (size_t k = 0; k < sizeof names / sizeof names[0]; k++) {
        struct image_scratch s = {0}, t = {0};
        size_t bytes;
        assert_int_equal(image_read_file(FOLDER, names[k], &s, &bytes), 0);
        /* the end marker of a JPEG alone may be missing without a pixel being wrong */
        for (size_t n = 0; n < bytes - 2; n++) {
            assert_int_equal(decode_bytes(&t, s.file.data, n), EXIT_BAD_DATA);
            assert_true(strlen(t.why) > 0);
        }
        assert_int_equal(decode_bytes(&t, s.file.data, bytes), 0);
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
        {"GIF89a....", 10, "GIF"}, {"RIFF\0\0\0\0WEBPVP8 ", 16, "WebP"},
        {"BM....", 6, "BMP"},      {"II*\0....", 8, "TIFF"},
        {"", 0, "empty"},          {"hello", 5, "neither"},
        {"\xff", 1, "neither"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        assert_int_equal(decode_bytes(&s, row[i].data, row[i].bytes), EXIT_BAD_DATA);
        assert_non_null(strstr(s.why, row[i].says));
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
         "IHDR"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x4e\x20\0\0\x4e\x20\x08\0\0\0\0\xc6\x1b\x19\xe5"
         "\0\0\0\0IDAT\x35\xaf\x06\x1e",
         "20000 x 20000"},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\x05\x08\0\0\0\0\x4e\x2d\xb2\x7d", "IHDR"},
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
        cmocka_unit_test(test_table),         cmocka_unit_test(test_oblong_target),
        cmocka_unit_test(test_truncated),     cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_refused_kinds), cmocka_unit_test(test_bombs),
        cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests_name("data pixels", tests, NULL, NULL);
}
