/* The one door to libpng: its row interface, expand and strip transforms only, with limits. What
 * comes out is what Pillow's convert("RGB") gives.
 *
 * libpng sees only the chunks that make pixels: IHDR, PLTE, tRNS and the first run of IDAT, then an
 * IEND of our own. Text, profiles and animations are passed over unread, whatever their size and
 * checksum; what stands behind the pixels, or is missing there, does not matter. */
#include <png.h>
#include <setjmp.h>
#include <string.h>

#include "image_impl.h"

struct piece {
    const uint8_t *data;
    size_t n;
};

struct reader {
    struct image_scratch *scratch;
    const struct image_background *background;
    size_t at, bytes;      /* the next chunk begins at `at` */
    struct piece piece[3]; /* of the chunk that is being read: head, data, checksum */
    uint8_t head[8];
    bool pixels, ended; /* an IDAT was met; the file ends inside it */
    uint8_t colour;     /* type of the image, from IHDR */
    size_t colours;     /* of the palette */
};

static void on_error(png_structp png, png_const_charp text) {
    struct image_scratch *s = png_get_error_ptr(png);
    const struct reader *r = png_get_io_ptr(png);
    snprintf(s->why, sizeof s->why, "is a broken or truncated PNG: %s",
             r != NULL && r->ended ? "the file ends inside its pixels" : text);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
    (void)png; /* the pixels are not concerned */
    (void)text;
}

static void serve(struct reader *r, const uint8_t *data, size_t n, const uint8_t *checksum) {
    r->piece[0] = (struct piece){r->head, sizeof r->head};
    r->piece[1] = (struct piece){data, n};
    r->piece[2] = (struct piece){checksum, 4};
}

/* The checksum of IDAT is not looked at (the data have one of their own), that of IEND is. */
static void serve_idat(struct reader *r, const uint8_t *data, size_t n) {
    static const uint8_t none[4];
    size_t left = r->bytes - r->at - 8;
    r->ended = n > left;
    if (r->ended) n = left;
    png_save_uint_32(r->head, (png_uint_32)n);
    serve(r, data, n, left - n >= 4 ? data + n : none);
    r->at = left - n >= 4 ? r->at + 12 + n : r->bytes;
    r->pixels = true;
}

/* libpng passes over a tRNS that it does not understand, and nothing would be transparent. */
static void check_chunk(png_structp png, struct reader *r, const uint8_t *head, size_t n) {
    if (memcmp(head + 4, "IHDR", 4) == 0 && n >= 10) r->colour = head[8 + 9];
    if (memcmp(head + 4, "PLTE", 4) == 0) r->colours = n / 3;
    if (memcmp(head + 4, "tRNS", 4) != 0) return;
    if (r->colour == PNG_COLOR_TYPE_PALETTE && n > r->colours)
        png_error(png, "tRNS stands before the palette, or is longer than it");
    if ((r->colour == PNG_COLOR_TYPE_GRAY && n != 2) || (r->colour == PNG_COLOR_TYPE_RGB && n != 6))
        png_error(png, "tRNS has a wrong length");
}

static void next_chunk(png_structp png, struct reader *r) {
    static const uint8_t iend[12] = {0, 0, 0, 0, 'I', 'E', 'N', 'D', 0xae, 0x42, 0x60, 0x82};
    const uint8_t *file = r->scratch->file.data;
    while (r->bytes - r->at >= 8) {
        const uint8_t *head = file + r->at;
        size_t n = png_get_uint_32(head);
        memcpy(r->head, head, sizeof r->head);
        if (memcmp(head + 4, "IDAT", 4) == 0) {
            serve_idat(r, head + 8, n);
            return;
        }
        if (r->pixels) break;
        if (r->bytes - r->at - 8 < n + 4) png_error(png, "the file ends too early");
        r->at += 12 + n;
        if (memcmp(head + 4, "IHDR", 4) == 0 || memcmp(head + 4, "PLTE", 4) == 0 ||
            memcmp(head + 4, "tRNS", 4) == 0) {
            check_chunk(png, r, head, n);
            serve(r, head + 8, n, head + 8 + n);
            return;
        }
    }
    if (!r->pixels) png_error(png, "the file ends too early");
    memcpy(r->head, iend, sizeof r->head);
    serve(r, iend, 0, iend + 8);
}

static void read_memory(png_structp png, png_bytep out, size_t n) {
    struct reader *r = png_get_io_ptr(png);
    for (int i = 0; n > 0; i++) {
        if (i == 3) {
            next_chunk(png, r);
            i = 0;
        }
        struct piece *p = &r->piece[i];
        size_t k = n < p->n ? n : p->n;
        if (k == 0) continue;
        memcpy(out, p->data, k);
        *p = (struct piece){p->data + k, p->n - k};
        out += k;
        n -= k;
    }
}

/* What the rows look like after the transforms. */
struct layout {
    int width, height, channels, depth;
    bool grey16; /* Pillow clips 16-bit grey at 255 in place of scaling it */
    size_t row_bytes;
};

/* Limits are ours: image_check_cost says them better than libpng does. */
static void read_header(png_structp png, png_infop info, struct layout *l) {
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_read_info(png, info);
    png_set_crc_action(png, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    l->width = (int)png_get_image_width(png, info);
    l->height = (int)png_get_image_height(png, info);
    l->grey16 =
        png_get_bit_depth(png, info) == 16 && png_get_color_type(png, info) == PNG_COLOR_TYPE_GRAY;
}

/* Sample c of a pixel as 8 bits. */
static inline uint8_t sample8(const uint8_t *pixel, int c, const struct layout *l) {
    if (l->depth == 8) return pixel[c];
    if (l->grey16 && c == 0 && pixel[0] != 0) return 255;
    return pixel[2 * c + (l->grey16 && c == 0 ? 1 : 0)];
}

static void convert_row(const struct layout *l, const uint8_t *pixel,
                        const struct image_background *background, uint8_t *rgb) {
    bool grey = l->channels <= 2, alpha = l->channels % 2 == 0;
    size_t pixel_bytes = (size_t)(l->channels * l->depth / 8);
    if (l->channels == 3 && l->depth == 8) {
        memcpy(rgb, pixel, 3 * (size_t)l->width);
        return;
    }
    for (int x = 0; x < l->width; x++, pixel += pixel_bytes, rgb += 3) {
        for (int c = 0; c < 3; c++) rgb[c] = sample8(pixel, grey ? 0 : c, l);
        if (!alpha || !background->composite) continue;
        uint8_t a = sample8(pixel, l->channels - 1, l);
        for (int c = 0; c < 3; c++) rgb[c] = image_blend(rgb[c], background->rgb[c], a);
    }
}

/* Rows of an interlaced image come in seven passes, which need the whole of it. */
static void read_rows(png_structp png, const struct layout *l, int passes, const struct reader *r,
                      uint8_t *rgb) {
    size_t stride = passes > 1 ? l->row_bytes : 0, rgb_stride = 3 * (size_t)l->width;
    uint8_t *raw = r->scratch->raw.data;
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < (size_t)l->height; y++) {
            png_read_row(png, raw + y * stride, NULL);
            if (pass + 1 == passes)
                convert_row(l, raw + y * stride, r->background, rgb + y * rgb_stride);
        }
}

/* Everything that may jump back here; no local variable is changed between setjmp and the jump. */
static int decode(png_structp png, png_infop info, struct reader *r, struct layout *l,
                  struct image *out) {
    if (setjmp(png_jmpbuf(png)) != 0) return EXIT_BAD_DATA;
    png_set_read_fn(png, r, read_memory);
    png_set_sig_bytes(png, 8);
    read_header(png, info, l);
    if (!l->grey16) png_set_strip_16(png);
    png_set_expand(png);
    int passes = png_set_interlace_handling(png);
    /* At most 4 bytes a pixel after the transforms; a row, or all of them. */
    uint64_t pixels = (uint64_t)l->width * (uint64_t)l->height;
    TRY(image_check_cost(r->scratch, r->background, l->width, l->height, r->bytes,
                         (passes > 1 ? 7 : 3) * pixels));
    png_read_update_info(png, info);
    l->channels = png_get_channels(png, info);
    l->depth = png_get_bit_depth(png, info);
    l->row_bytes = png_get_rowbytes(png, info);
    buffer_reserve(&r->scratch->raw, l->row_bytes * (passes > 1 ? (size_t)l->height : 1));
    out->rgb = buffer_reserve(&r->scratch->rgb, 3 * (size_t)pixels);
    out->width = l->width;
    out->height = l->height;
    read_rows(png, l, passes, r, out->rgb);
    return 0;
}

int image_decode_png(struct image_scratch *s, size_t bytes,
                     const struct image_background *background, struct image *out) {
    const uint8_t *file = s->file.data;
    if (bytes >= 24 && memcmp(file + 12, "IHDR", 4) == 0)
        TRY(image_check_size(s, png_get_uint_32(file + 16), png_get_uint_32(file + 20)));
    struct reader r = {.scratch = s, .background = background, .at = 8, .bytes = bytes};
    struct layout l = {0};
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, s, on_error, on_warning);
    png_infop info = png != NULL ? png_create_info_struct(png) : NULL;
    int rc = info == NULL ? image_fail(s, EXIT_UNAVAILABLE, "libpng could not be started")
                          : decode(png, info, &r, &l, out);
    if (png != NULL) png_destroy_read_struct(&png, info != NULL ? &info : NULL, NULL);
    return rc;
}
