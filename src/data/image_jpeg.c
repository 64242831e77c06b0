/* The one door to libjpeg-turbo: accurate integer DCT and fancy upsampling, as Pillow uses it.
 * A warning means that the file is damaged (a truncated one would otherwise end in grey). */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "image_impl.h"

struct handler {
    struct jpeg_error_mgr base; /* first, so that a pointer to it is one to the handler */
    jmp_buf back;
    struct image_scratch *scratch;
};

static void on_error(j_common_ptr c) {
    struct handler *h = (struct handler *)c->err;
    char text[JMSG_LENGTH_MAX];
    h->base.format_message(c, text);
    snprintf(h->scratch->why, sizeof h->scratch->why, "is a broken JPEG: %.200s", text);
    longjmp(h->back, 1);
}

/* level < 0 is a warning: damaged data. The first one ends it. */
static void on_message(j_common_ptr c, int level) {
    struct handler *h = (struct handler *)c->err;
    if (level >= 0) return;
    char text[JMSG_LENGTH_MAX];
    h->base.format_message(c, text);
    snprintf(h->scratch->why, sizeof h->scratch->why, "is a damaged or truncated JPEG: %.180s",
             text);
    longjmp(h->back, 1);
}

static void on_progress(j_common_ptr c) {
    struct handler *h = (struct handler *)c->err;
    if (((j_decompress_ptr)c)->input_scan_number <= IMAGE_JPEG_SCANS_MAX) return;
    snprintf(h->scratch->why, sizeof h->scratch->why, "is a JPEG of more than %d scans",
             IMAGE_JPEG_SCANS_MAX);
    longjmp(h->back, 1);
}

static inline uint8_t multiply_255(unsigned a, unsigned b) {
    unsigned t = a * b + 128;
    return (uint8_t)((t + (t >> 8)) >> 8);
}

/* Inks as Adobe stores them, inverted: cmyk = 255 - stored. */
static void cmyk_to_rgb(const uint8_t *in, int width, uint8_t *rgb) {
    for (int x = 0; x < width; x++, in += 4, rgb += 3)
        for (int c = 0; c < 3; c++) {
            int v = in[3] - multiply_255(255u - in[c], in[3]);
            rgb[c] = (uint8_t)(v < 0 ? 0 : v);
        }
}

static void grey_to_rgb(const uint8_t *in, int width, uint8_t *rgb) {
    for (int x = 0; x < width; x++, rgb += 3) memset(rgb, in[x], 3);
}

static int start(j_decompress_ptr j, struct image_scratch *s, struct image *out) {
    jpeg_read_header(j, TRUE);
    int rc = image_check_size(s, j->image_width, j->image_height);
    if (rc != 0) return rc;
    if (j->num_components != 1 && j->num_components != 3 && j->num_components != 4)
        return image_fail(s, EXIT_BAD_DATA, "is a JPEG of %d components, allowed are 1, 3 and 4",
                          j->num_components);
    j->out_color_space = j->num_components == 1   ? JCS_GRAYSCALE
                         : j->num_components == 3 ? JCS_RGB
                                                  : JCS_CMYK;
    j->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(j);
    out->width = (int)j->output_width;
    out->height = (int)j->output_height;
    out->rgb = buffer_reserve(&s->rgb, (size_t)out->width * (size_t)out->height * 3);
    buffer_reserve(&s->raw, (size_t)out->width * 4);
    return 0;
}

static void read_rows(j_decompress_ptr j, struct image_scratch *s, const struct image *out) {
    while (j->output_scanline < j->output_height) {
        uint8_t *rgb = out->rgb + (size_t)j->output_scanline * (size_t)out->width * 3;
        JSAMPROW row = j->out_color_space == JCS_RGB ? rgb : s->raw.data;
        if (jpeg_read_scanlines(j, &row, 1) != 1) break;
        if (j->out_color_space == JCS_CMYK) cmyk_to_rgb(row, out->width, rgb);
        if (j->out_color_space == JCS_GRAYSCALE) grey_to_rgb(row, out->width, rgb);
    }
    jpeg_finish_decompress(j);
}

/* Everything that may jump back here; no local variable is changed between setjmp and the jump. */
static int decode_rows(j_decompress_ptr j, struct handler *h, size_t bytes, struct image *out) {
    if (setjmp(h->back) != 0) return EXIT_BAD_DATA;
    jpeg_create_decompress(j);
    struct jpeg_progress_mgr progress = {.progress_monitor = on_progress};
    j->progress = &progress;
    j->mem->max_memory_to_use = IMAGE_JPEG_MEMORY_MAX;
    jpeg_mem_src(j, h->scratch->file.data, bytes);
    int rc = start(j, h->scratch, out);
    if (rc == 0) read_rows(j, h->scratch, out);
    return rc;
}

int image_decode_jpeg(struct image_scratch *s, size_t bytes, struct image *out) {
    struct jpeg_decompress_struct j;
    struct handler h;
    memset(&j, 0, sizeof j);
    h.scratch = s;
    j.err = jpeg_std_error(&h.base);
    h.base.error_exit = on_error;
    h.base.emit_message = on_message;
    int rc = decode_rows(&j, &h, bytes, out);
    jpeg_destroy_decompress(&j);
    return rc;
}
