/* What reading an image costs: files that are made to be slow or to fill memory are read or refused in
 * a second of processor time and 256 MiB. Each file is made here, none is stored. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include <gif_lib.h>
#include <jpeglib.h>
#include <webp/encode.h>
#include <zlib.h>

#include "../../src/data/image_impl.h"

#if defined(__SANITIZE_ADDRESS__)
#define SLOWER 20 /* and memory is the sanitizer's */
#else
#define SLOWER 1
#endif

/* ---- files ----------------------------------------------------------------------------------- */

struct file {
    uint8_t *data;
    size_t n, room;
};

static void put(struct file *f, const void *data, size_t n) {
    if (f->n + n > f->room) {
        f->room = 2 * (f->n + n);
        f->data = realloc(f->data, f->room);
        assert_non_null(f->data);
    }
    if (n > 0 && data == NULL) memset(f->data + f->n, 0, n);
    if (n > 0 && data != NULL) memcpy(f->data + f->n, data, n);
    f->n += n;
}

static void put_32(struct file *f, uint32_t v) {
    uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    put(f, b, 4);
}

static void put_chunk(struct file *f, const char *type, const void *data, size_t n) {
    put_32(f, (uint32_t)n);
    size_t at = f->n;
    put(f, type, 4);
    put(f, data, n);
    put_32(f, (uint32_t)crc32(0, f->data + at, (uInt)(n + 4)));
}

static void put_png_head(struct file *f, uint32_t w, uint32_t h, uint8_t depth, uint8_t colour,
                         uint8_t interlace) {
    uint8_t head[13] = {(uint8_t)(w >> 24),
                        (uint8_t)(w >> 16),
                        (uint8_t)(w >> 8),
                        (uint8_t)w,
                        (uint8_t)(h >> 24),
                        (uint8_t)(h >> 16),
                        (uint8_t)(h >> 8),
                        (uint8_t)h,
                        depth,
                        colour,
                        0,
                        0,
                        interlace};
    put(f, "\x89PNG\r\n\x1a\n", 8);
    put_chunk(f, "IHDR", head, sizeof head);
}

/* IDAT of n zero bytes, compressed. */
static void put_zeros(struct file *f, size_t n) {
    static const uint8_t zeros[1 << 16];
    z_stream z = {0};
    size_t room = n / 200 + 1000;
    uint8_t *out = malloc(room);
    assert_int_equal(deflateInit(&z, 1), Z_OK);
    z.next_out = out;
    z.avail_out = (uInt)room;
    while (n > 0) {
        z.next_in = (Bytef *)zeros;
        z.avail_in = (uInt)(n < sizeof zeros ? n : sizeof zeros);
        n -= z.avail_in;
        assert_int_equal(deflate(&z, n == 0 ? Z_FINISH : Z_NO_FLUSH), n == 0 ? Z_STREAM_END : Z_OK);
    }
    put_chunk(f, "IDAT", out, room - z.avail_out);
    deflateEnd(&z);
    free(out);
}

static void end_png(struct file *f) {
    put_chunk(f, "IEND", NULL, 0);
}

/* One colour. Several scans: each coefficient of each component has scans of its own, its bits from
 * the highest on; 1 + 2 * 189 with a bit that is refined, 1 + 3 * 189 with two. */
static void put_jpeg(struct file *f, int side, int n_scans, int refined) {
    struct jpeg_compress_struct c;
    struct jpeg_error_mgr error;
    c.err = jpeg_std_error(&error);
    jpeg_create_compress(&c);
    unsigned char *out = NULL;
    unsigned long n = 0;
    jpeg_mem_dest(&c, &out, &n);
    c.image_width = c.image_height = (JDIMENSION)side;
    c.input_components = 3;
    c.in_color_space = JCS_RGB;
    jpeg_set_defaults(&c);
    jpeg_scan_info *scan = calloc((size_t)n_scans + 1, sizeof *scan);
    int made = 0;
    scan[made++] = (jpeg_scan_info){3, {0, 1, 2}, 0, 0, 0, 0};
    for (int low = refined; low >= 0; low--)
        for (int k = 1; k < 64; k++)
            for (int i = 0; i < 3 && made < n_scans; i++)
                scan[made++] = (jpeg_scan_info){1, {i}, k, k, low == refined ? 0 : low + 1, low};
    c.scan_info = n_scans > 1 ? scan : NULL;
    c.num_scans = n_scans > 1 ? made : 0;
    for (int i = 0; i < 3; i++) c.comp_info[i].h_samp_factor = c.comp_info[i].v_samp_factor = 1;
    jpeg_start_compress(&c, TRUE);
    JSAMPROW row = calloc((size_t)side, 3);
    memset(row, 77, (size_t)side * 3);
    for (int y = 0; y < side; y++) jpeg_write_scanlines(&c, &row, 1);
    jpeg_finish_compress(&c);
    jpeg_destroy_compress(&c);
    put(f, out, n);
    free(out);
    free(row);
    free(scan);
}

static int write_gif(GifFileType *gif, const GifByteType *data, int n) {
    put(gif->UserData, data, (size_t)n);
    return n;
}

static void put_gif(struct file *f, int screen, int side, int frames) {
    int error;
    GifFileType *gif = EGifOpen(f, write_gif, &error);
    GifColorType colour[2] = {{9, 8, 7}, {200, 100, 50}};
    ColorMapObject *map = GifMakeMapObject(2, colour);
    EGifPutScreenDesc(gif, screen, screen, 8, 0, map);
    GifByteType *line = calloc((size_t)side + 1, 1);
    for (int i = 0; i < frames; i++) {
        assert_int_equal(EGifPutImageDesc(gif, 0, 0, side, side, false, NULL), GIF_OK);
        for (int y = 0; y < side; y++) assert_int_equal(EGifPutLine(gif, line, side), GIF_OK);
    }
    EGifCloseFile(gif, &error);
    GifFreeMapObject(map);
    free(line);
}

static int write_webp(const uint8_t *data, size_t n, const WebPPicture *p) {
    put(p->custom_ptr, data, n);
    return 1;
}

static void put_webp(struct file *f, int side, bool lossless) {
    WebPConfig config;
    WebPPicture p;
    WebPConfigInit(&config);
    config.lossless = lossless;
    config.method = 0;
    WebPPictureInit(&p);
    p.use_argb = lossless;
    p.width = p.height = side;
    assert_true(WebPPictureAlloc(&p));
    if (lossless)
        for (int i = 0; i < side * side; i++)
            p.argb[i / side * p.argb_stride + i % side] = 0xff112233;
    else
        for (int y = 0; y < side; y++) {
            memset(p.y + y * p.y_stride, 99, (size_t)side);
            memset(p.u + y / 2 * p.uv_stride, 99, (size_t)(side + 1) / 2);
            memset(p.v + y / 2 * p.uv_stride, 99, (size_t)(side + 1) / 2);
        }
    p.writer = write_webp;
    p.custom_ptr = f;
    assert_true(WebPEncode(&config, &p));
    WebPPictureFree(&p);
}

static void put_webp_head(struct file *f, uint32_t w, uint32_t h) {
    uint8_t head[30] = "RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0";
    for (int i = 0; i < 3; i++) {
        head[24 + i] = (uint8_t)((w - 1) >> 8 * i);
        head[27 + i] = (uint8_t)((h - 1) >> 8 * i);
    }
    put(f, head, sizeof head);
}

/* ---- cost ------------------------------------------------------------------------------------ */

static long status_kb(const char *field) {
    char line[256];
    long kb = -1;
    FILE *f = fopen("/proc/self/status", "r");
    while (f != NULL && fgets(line, sizeof line, f) != NULL)
        if (strncmp(line, field, strlen(field)) == 0)
            kb = strtol(line + strlen(field) + 1, NULL, 10);
    if (f != NULL) fclose(f);
    return kb;
}

static void reset_peak(void) {
    int fd = open("/proc/self/clear_refs", O_WRONLY);
    if (fd >= 0 && write(fd, "5", 1) != 1) print_message("the peak of memory cannot be reset\n");
    if (fd >= 0) close(fd);
}

/* Reads the file as a run would. says NULL: it is read; else it is refused with that in the sentence,
 * before memory for pixels is taken if `early`. */
static void judge(struct file *f, enum data_aspect aspect, const char *says, bool early) {
    char path[] = "/tmp/strata_cost_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, f->data, f->n) == (ssize_t)f->n);
    close(fd);
    size_t file_bytes = f->n;
    free(f->data);
    *f = (struct file){0};
    struct data_settings set;
    struct image_pipeline p;
    struct image_scratch s = {0};
    struct image im = {0};
    data_settings_init(&set);
    set.aspect = aspect;
    image_pipeline_init(&p, &set);
    float *out = calloc(3 * 336 * 336, sizeof *out);
    long before = status_kb("VmRSS");
    reset_peak();
    clock_t start = clock();
    int rc = image_load(&p, NULL, path, &s, &im, out);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    long mib = (status_kb("VmHWM") - before) / 1024;
    print_message("%9zu bytes, %5d x %5d: %.2f s, %ld MiB%s%s\n", file_bytes, im.width, im.height,
                  seconds, mib, rc != 0 ? ", " : "", rc != 0 ? s.why : "");
    unlink(path);
    assert_int_equal(rc, says != NULL ? EXIT_BAD_DATA : 0);
    if (says != NULL && strstr(s.why, says) == NULL) fail_msg("%s, not %s", s.why, says);
    assert_true(!early || (s.rgb.bytes == 0 && s.raw.bytes == 0));
    assert_true(seconds <= 1.0 * SLOWER);
    assert_true(SLOWER > 1 || mib <= 256);
    image_scratch_free(&s);
    free(out);
}

static void test_png_header(void **state) {
    (void)state;
    struct file f = {0};
    uint8_t *text = calloc(1, 1 << 20);
    put_png_head(&f, 11585, 11585, 16, 6, 0); /* 2^27 pixels, and 1 MB of something */
    put_chunk(&f, "IDAT", text, 1 << 20);
    judge(&f, ASPECT_PAD, "of memory, allowed for a file of that size", true);
    put_png_head(&f, 11585, 11585, 8, 6, 1);
    put_chunk(&f, "IDAT", text, 1 << 20);
    judge(&f, ASPECT_PAD, "of memory, allowed for a file of that size", true);
    put_png_head(&f, 40000, 2, 8, 2, 0);
    put_zeros(&f, 2 * (3 * 40000 + 1));
    end_png(&f);
    judge(&f, ASPECT_PAD, "40000 x 2 pixels, allowed are 32768 a side", true);
    put_png_head(&f, 1, 32768, 8, 2, 0);
    put_zeros(&f, 4 * 32768);
    end_png(&f);
    judge(&f, ASPECT_PAD, "padded to the target's aspect", true);
    free(text);
}

static void test_png_read(void **state) {
    (void)state;
    struct file f = {0};
    put_png_head(&f, 5792, 5792, 8, 2, 0); /* the largest that a small file may be */
    put_zeros(&f, 5792 * (3 * 5792 + 1));
    end_png(&f);
    judge(&f, ASPECT_SQUARE, NULL, false);
    put_png_head(&f, 3780, 3780, 16, 6, 1);
    put_zeros(&f, 8 * 3780 * 3780 + 2 * 3780 * 8);
    end_png(&f);
    judge(&f, ASPECT_PAD, NULL, false);
    put_png_head(&f, 300, 11500, 8, 0, 0); /* a canvas of 132 million pixels */
    put_zeros(&f, 301 * 11500);
    end_png(&f);
    judge(&f, ASPECT_PAD, NULL, false);
}

static void test_png_chunks(void **state) {
    (void)state;
    struct file f = {0};
    size_t large = (size_t)100 << 20;
    char *text = calloc(1, large);
    put_png_head(&f, 20, 20, 8, 2, 0);
    put_chunk(&f, "tEXt", text, large);
    put_zeros(&f, 20 * 61);
    end_png(&f);
    judge(&f, ASPECT_PAD, NULL, false);
    put_png_head(&f, 20, 20, 8, 2, 0);
    for (int i = 0; i < 200000; i++) put_chunk(&f, "tEXt", text, 10);
    put_zeros(&f, (size_t)60 << 20); /* more pixels than there are */
    end_png(&f);
    judge(&f, ASPECT_PAD, NULL, false);
    free(text);
}

static void test_jpeg(void **state) {
    (void)state;
    struct file f = {0};
    put_jpeg(&f, 1150, 499, 2);
    judge(&f, ASPECT_SQUARE, "scans", false);
    put_jpeg(&f, 200, 499, 2);
    judge(&f, ASPECT_SQUARE, "scans are missing", false);
    put_jpeg(&f, 400, 379, 1);
    judge(&f, ASPECT_SQUARE, NULL, false);
    put_jpeg(&f, 5792, 1, 0);
    judge(&f, ASPECT_SQUARE, NULL, false);
}

/* A frame's height and width are two bytes each behind the marker SOF and its length. */
static void test_jpeg_header(void **state) {
    (void)state;
    for (int scans = 1; scans < 6; scans += 4) {
        struct file f = {0};
        put_jpeg(&f, 64, scans, 0);
        for (size_t i = 0; i + 9 < f.n; i++)
            if (f.data[i] == 0xff && (f.data[i + 1] == 0xc0 || f.data[i + 1] == 0xc2)) {
                memcpy(f.data + i + 5, "\x2d\x41\x2d\x41", 4); /* 11585 x 11585 */
                break;
            }
        judge(&f, ASPECT_SQUARE, "of memory, allowed for a file of that size", true);
    }
}

static void test_gif(void **state) {
    (void)state;
    struct file f = {0};
    put_gif(&f, 65535, 4, 1);
    judge(&f, ASPECT_PAD, "65535 x 65535 pixels, allowed are", true);
    put_gif(&f, 11000, 4, 1);
    judge(&f, ASPECT_PAD, "of memory, allowed for a file of that size", true);
    put_gif(&f, 4, 4, 100000);
    judge(&f, ASPECT_PAD, NULL, false);
    put_gif(&f, 3000, 3000, 1);
    judge(&f, ASPECT_PAD, NULL, false);
}

static void test_webp(void **state) {
    (void)state;
    struct file f = {0};
    put_webp_head(&f, 65535, 65535);
    judge(&f, ASPECT_PAD, "65535 x 65535 pixels, allowed are", true);
    put_webp_head(&f, 11000, 11000);
    judge(&f, ASPECT_PAD, "of memory, allowed for a file of that size", true);
    put_webp(&f, 3300, true);
    judge(&f, ASPECT_PAD, NULL, false);
    put_webp(&f, 4000, true);
    judge(&f, ASPECT_PAD, "of memory, allowed for a file of that size", true);
    put_webp(&f, 4000, false);
    judge(&f, ASPECT_PAD, NULL, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_png_header),  cmocka_unit_test(test_png_read),
        cmocka_unit_test(test_png_chunks),  cmocka_unit_test(test_jpeg),
        cmocka_unit_test(test_jpeg_header), cmocka_unit_test(test_gif),
        cmocka_unit_test(test_webp),
    };
    return cmocka_run_group_tests_name("image cost", tests, NULL, NULL);
}
