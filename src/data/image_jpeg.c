/* The one door to libjpeg-turbo: accurate integer DCT and fancy upsampling, as Pillow uses it. The
 * whole file is in memory, and its end suspends the decoder, as in Pillow: a row that does not come is
 * a truncated file. A warning is an error only if it says that pixels were made up. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <jerror.h>

#include "image_impl.h"

struct handler {
    struct jpeg_error_mgr base; /* first, so that a pointer to it is one to the handler */
    struct jpeg_progress_mgr progress;
    struct jpeg_source_mgr source;
    jmp_buf back;
    struct image_scratch *scratch;
    const struct image_background *background;
    size_t bytes;
    uint64_t visits; /* blocks gone over so far, all scans together */
};

static void on_error(j_common_ptr c) {
    struct handler *h = (struct handler *)c->err;
    char text[JMSG_LENGTH_MAX];
    h->base.format_message(c, text);
    snprintf(h->scratch->why, sizeof h->scratch->why, "is a broken JPEG: %.200s", text);
    longjmp(h->back, 1);
}

/* level < 0 is a warning. Compressed data that end before their pixels, or that no code stands for,
 * leave the rest grey. All other warnings are about bytes between segments, version numbers and the
 * like: the pixels are there. Misnumbered restart markers either lose nothing or end in the first. */
static void on_message(j_common_ptr c, int level) {
    struct handler *h = (struct handler *)c->err;
    int code = h->base.msg_code;
    if (level >= 0 ||
        (code != JWRN_HIT_MARKER && code != JWRN_HUFF_BAD_CODE && code != JWRN_ARITH_BAD_CODE))
        return;
    char text[JMSG_LENGTH_MAX];
    h->base.format_message(c, text);
    snprintf(h->scratch->why, sizeof h->scratch->why,
             "is a damaged or truncated JPEG, part of its pixels are lost: %.120s", text);
    longjmp(h->back, 1);
}

/* Called before each row of blocks while scans are collected. */
static void on_progress(j_common_ptr c) {
    struct handler *h = (struct handler *)c->err;
    j_decompress_ptr j = (j_decompress_ptr)c;
    if (j->comps_in_scan > 0) {
        int rows = j->comps_in_scan == 1 ? j->cur_comp_info[0]->v_samp_factor : 1;
        h->visits += (uint64_t)j->MCUs_per_row * (uint64_t)(j->blocks_in_MCU * rows);
    }
    uint64_t allowed = IMAGE_JPEG_VISITS_BASE + IMAGE_JPEG_VISITS_PER_BYTE * (uint64_t)h->bytes;
    if (j->input_scan_number <= IMAGE_JPEG_SCANS_MAX && h->visits <= allowed) return;
    snprintf(
        h->scratch->why, sizeof h->scratch->why,
        "is a JPEG of too many scans: %d in a file of %zu bytes go over %llu blocks, allowed are "
        "%d scans and %llu blocks; write it again with fewer scans",
        j->input_scan_number, h->bytes, (unsigned long long)h->visits, IMAGE_JPEG_SCANS_MAX,
        (unsigned long long)allowed);
    longjmp(h->back, 1);
}

/* ---- the file in memory ---------------------------------------------------------------------- */

static void source_nothing(j_decompress_ptr j) {
    (void)j;
}

static boolean source_end(j_decompress_ptr j) {
    (void)j;
    return FALSE;
}

static void source_skip(j_decompress_ptr j, long n) {
    struct jpeg_source_mgr *source = j->src;
    size_t k = n < 0 ? 0 : (size_t)n;
    if (k > source->bytes_in_buffer) k = source->bytes_in_buffer;
    source->next_input_byte += k;
    source->bytes_in_buffer -= k;
}

/* ---- pixels ---------------------------------------------------------------------------------- */

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

/* A file of several scans keeps the coefficients of all its blocks, of two bytes each. */
static uint64_t memory_of(j_decompress_ptr j) {
    uint64_t memory = 3 * (uint64_t)j->image_width * j->image_height;
    for (int i = 0; i < j->num_components && jpeg_has_multiple_scans(j); i++)
        memory += (uint64_t)j->comp_info[i].width_in_blocks * j->comp_info[i].height_in_blocks *
                  DCTSIZE2 * sizeof(JCOEF);
    return memory;
}

static int truncated(struct image_scratch *s) {
    return image_fail(s, EXIT_BAD_DATA, "is a truncated JPEG: the file ends before its pixels do");
}

/* Scans that are missing at the end of a progressive file leave coefficients coarse, and the decoder
 * guesses the first ten, each version of it in its own way. */
static bool is_coarse(j_decompress_ptr j) {
    for (int i = 0; j->coef_bits != NULL && i < j->num_components; i++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (j->coef_bits[i][k] > 0 || (j->coef_bits[i][k] < 0 && k < 10)) return true;
    return false;
}

static int start(j_decompress_ptr j, struct handler *h, struct image *out) {
    struct image_scratch *s = h->scratch;
    if (jpeg_read_header(j, TRUE) == JPEG_SUSPENDED) return truncated(s);
    TRY(image_check_cost(s, h->background, j->image_width, j->image_height, h->bytes,
                         memory_of(j)));
    if (j->num_components != 1 && j->num_components != 3 && j->num_components != 4)
        return image_fail(s, EXIT_BAD_DATA, "is a JPEG of %d components, allowed are 1, 3 and 4",
                          j->num_components);
    j->out_color_space = j->num_components == 1   ? JCS_GRAYSCALE
                         : j->num_components == 3 ? JCS_RGB
                                                  : JCS_CMYK;
    j->dct_method = JDCT_ISLOW;
    if (!jpeg_start_decompress(j)) return truncated(s);
    if (is_coarse(j))
        return image_fail(s, EXIT_BAD_DATA,
                          "is a truncated JPEG: the last of its progressive scans are missing");
    out->width = (int)j->output_width;
    out->height = (int)j->output_height;
    out->rgb = buffer_reserve(&s->rgb, (size_t)out->width * (size_t)out->height * 3);
    buffer_reserve(&s->raw, (size_t)out->width * 4);
    return 0;
}

/* What follows the last row is read for errors only: its end, which may be missing too. */
static int read_rows(j_decompress_ptr j, struct image_scratch *s, const struct image *out) {
    while (j->output_scanline < j->output_height) {
        uint8_t *rgb = out->rgb + (size_t)j->output_scanline * (size_t)out->width * 3;
        JSAMPROW row = j->out_color_space == JCS_RGB ? rgb : s->raw.data;
        if (jpeg_read_scanlines(j, &row, 1) != 1) return truncated(s);
        if (j->out_color_space == JCS_CMYK) cmyk_to_rgb(row, out->width, rgb);
        if (j->out_color_space == JCS_GRAYSCALE) grey_to_rgb(row, out->width, rgb);
    }
    jpeg_finish_decompress(j);
    return 0;
}

/* Everything that may jump back here; no local variable is changed between setjmp and the jump. */
static int decode_rows(j_decompress_ptr j, struct handler *h, struct image *out) {
    if (setjmp(h->back) != 0) return EXIT_BAD_DATA;
    jpeg_create_decompress(j);
    j->progress = &h->progress;
    j->src = &h->source;
    TRY(start(j, h, out));
    return read_rows(j, h->scratch, out);
}

int image_decode_jpeg(struct image_scratch *s, size_t bytes,
                      const struct image_background *background, struct image *out) {
    struct jpeg_decompress_struct j;
    struct handler h = {.scratch = s, .background = background, .bytes = bytes};
    memset(&j, 0, sizeof j);
    j.err = jpeg_std_error(&h.base);
    h.base.error_exit = on_error;
    h.base.emit_message = on_message;
    h.progress.progress_monitor = on_progress;
    h.source = (struct jpeg_source_mgr){.next_input_byte = s->file.data,
                                        .bytes_in_buffer = bytes,
                                        .init_source = source_nothing,
                                        .fill_input_buffer = source_end,
                                        .skip_input_data = source_skip,
                                        .resync_to_restart = jpeg_resync_to_restart,
                                        .term_source = source_nothing};
    int rc = decode_rows(&j, &h, out);
    jpeg_destroy_decompress(&j);
    return rc;
}
