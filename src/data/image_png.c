/* The one door to libpng: its row interface, expand and strip transforms only, with limits. What
 * comes out is what Pillow's convert("RGB") gives. */
#include <png.h>
#include <setjmp.h>
#include <string.h>

#include "image_impl.h"

struct reader {
    struct image_scratch *scratch;
    size_t at, bytes;
};

static void on_error(png_structp png, png_const_charp text) {
    struct image_scratch *s = png_get_error_ptr(png);
    snprintf(s->why, sizeof s->why, "is a broken or truncated PNG: %s", text);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png; /* odd profiles and text chunks: the pixels are not concerned */
    (void)text;
}

static void read_memory(png_structp png, png_bytep out, size_t n) {
    struct reader *r = png_get_io_ptr(png);
    if (n > r->bytes - r->at) png_error(png, "the file ends too early");
    memcpy(out, (const char *)r->scratch->file.data + r->at, n);
    r->at += n;
}

/* What the rows look like after the transforms. */
struct layout {
    int width, height, channels, depth;
    bool grey16; /* Pillow clips 16-bit grey at 255 in place of scaling it */
    size_t row_bytes;
};

static void read_header(png_structp png, png_infop info, struct layout *l) {
    png_set_user_limits(png, IMAGE_SIDE_MAX, IMAGE_SIDE_MAX);
    png_set_chunk_malloc_max(png, IMAGE_CHUNK_BYTES_MAX);
    png_set_chunk_cache_max(png, 256);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png, info);
    l->width = (int)png_get_image_width(png, info);
    l->height = (int)png_get_image_height(png, info);
    l->grey16 =
        png_get_bit_depth(png, info) == 16 && png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY;
}

static void read_rows(png_structp png, png_infop info, struct layout *l, struct image_scratch *s) {
    png_set_expand(png);
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, info);
    l->channels = png_get_channels(png, info);
    l->depth = png_get_bit_depth(png, info);
    l->row_bytes = png_get_rowbytes(png, info);
    uint8_t *raw = buffer_reserve(&s->raw, l->row_bytes * (size_t)l->height);
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < l->height; y++) png_read_row(png, raw + (size_t)y * l->row_bytes, NULL);
    png_read_end(png, NULL);
}

/* Sample c of a pixel as 8 bits. */
static inline uint8_t sample8(const uint8_t *pixel, int c, const struct layout *l) {
    if (l->depth == 8) return pixel[c];
    if (l->grey16 && c == 0 && pixel[0] != 0) return 255;
    return pixel[2 * c + (l->grey16 && c == 0 ? 1 : 0)];
}

/* front over back with weight a, rounded to nearest. */
static inline uint8_t blend(uint8_t front, uint8_t back, uint8_t a) {
    unsigned t = (unsigned)front * a + (unsigned)back * (255u - a) + 128u;
    return (uint8_t)((t + (t >> 8)) >> 8);
}

static void convert_rgb(const struct layout *l, const uint8_t *raw,
                        const struct image_background *background, uint8_t *rgb) {
    bool grey = l->channels <= 2, alpha = l->channels % 2 == 0;
    size_t pixel_bytes = (size_t)(l->channels * l->depth / 8);
    for (int y = 0; y < l->height; y++) {
        const uint8_t *pixel = raw + (size_t)y * l->row_bytes;
        for (int x = 0; x < l->width; x++, pixel += pixel_bytes, rgb += 3) {
            for (int c = 0; c < 3; c++) rgb[c] = sample8(pixel, grey ? 0 : c, l);
            if (!alpha || !background->composite) continue;
            uint8_t a = sample8(pixel, l->channels - 1, l);
            for (int c = 0; c < 3; c++) rgb[c] = blend(rgb[c], background->rgb[c], a);
        }
    }
}

/* Everything that may jump back here; no local variable is changed between setjmp and the jump. */
static int decode_rows(png_structp png, png_infop info, struct reader *r, struct layout *l) {
    if (setjmp(png_jmpbuf(png)) != 0) return EXIT_BAD_DATA;
    png_set_read_fn(png, r, read_memory);
    read_header(png, info, l);
    int rc = image_check_size(r->scratch, l->width, l->height);
    if (rc != 0) return rc;
    read_rows(png, info, l, r->scratch);
    return 0;
}

int image_decode_png(struct image_scratch *s, size_t bytes,
                     const struct image_background *background, struct image *out) {
    struct reader r = {s, 0, bytes};
    struct layout l = {0};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, s, on_error, on_warning);
    png_infop info = png != NULL ? png_create_info_struct(png) : NULL;
    int rc = info == NULL ? image_fail(s, EXIT_UNAVAILABLE, "libpng could not be started")
                          : decode_rows(png, info, &r, &l);
    if (png != NULL) png_destroy_read_struct(&png, info != NULL ? &info : NULL, NULL);
    if (rc != 0) return rc;
    out->width = l.width;
    out->height = l.height;
    out->rgb = buffer_reserve(&s->rgb, (size_t)l.width * (size_t)l.height * 3);
    convert_rgb(&l, s->raw.data, background, out->rgb);
    return 0;
}
