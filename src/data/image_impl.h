/* Inside data: image files -> 8-bit RGB -> normalised planar floats. These functions do not touch
 * the error trace: they return an exit code and leave the sentence's middle in `why`, so that many
 * threads may run them and the caller names the file. */
#ifndef STRATA_DATA_IMAGE_IMPL_H
#define STRATA_DATA_IMAGE_IMPL_H

#include "data.h"

/* Caps on what a file may ask for, all checked against its header before any pixel is decoded.
 * A side of 32768 and 2^27 pixels (402 MB of RGB) are more than any camera or scan has. */
#define IMAGE_SIDE_MAX 32768
#define IMAGE_PIXELS_MAX ((int64_t)1 << 27)
#define IMAGE_FILE_BYTES_MAX ((size_t)512 << 20)
/* Memory of a decoder, pixels included: a base, which is RGB of 33 million pixels (a page of A4 at 600
 * dots per inch), and so much for each byte of the file that a drawing that compresses 1:40 may have
 * any size. So a small file cannot ask for much, whatever its header promises. */
#define IMAGE_MEMORY_BASE ((uint64_t)96 << 20)
#define IMAGE_MEMORY_PER_BYTE 128
/* Encoders write at most some 20 scans. Each scan goes over its blocks again even if it says nothing
 * about them, which takes up to 60 ns a block: so many visits in all, and so many more for each byte. */
#define IMAGE_JPEG_SCANS_MAX 500
#define IMAGE_JPEG_VISITS_BASE ((uint64_t)1 << 23)
#define IMAGE_JPEG_VISITS_PER_BYTE 16
#define IMAGE_KINDS_READ "images are PNG, JPEG, WebP and GIF (of an animation the first frame)"
#define IMAGE_WHY_BYTES 256

struct buffer {
    void *data;
    size_t bytes;
};
void *buffer_reserve(struct buffer *b, size_t bytes); /* grows, never shrinks; b->data */

/* Working memory of one decoding thread. */
struct image_scratch {
    struct buffer file, raw, rgb, line, rows, resized, weights, row_weights;
    char why[IMAGE_WHY_BYTES];
};
void image_scratch_free(struct image_scratch *s);

struct image {
    uint8_t *rgb; /* [height][width][3], in the scratch */
    int width, height;
    size_t file_bytes;
};
/* What is under transparent pixels, and the aspect that the image is going to be padded to. */
struct image_background {
    bool composite; /* else alpha is dropped */
    uint8_t rgb[3];
    int pad_w, pad_h; /* 0: it is not padded */
};

int image_fail(struct image_scratch *s, int exit_code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int image_check_size(struct image_scratch *s, int64_t width, int64_t height);
/* Size of the canvas that an image is padded to; its own size if it is not padded. */
void image_canvas(const struct image_background *b, int64_t width, int64_t height,
                  int64_t *canvas_width, int64_t *canvas_height);
/* Whether the decoder of a file may go on, from what its header says. memory: bytes that decoding it
 * takes, pixels included. */
int image_check_cost(struct image_scratch *s, const struct image_background *b, int64_t width,
                     int64_t height, size_t file_bytes, uint64_t memory);

/* Opens `name` below the folder, one path component after the other; no "..", no absolute path, no
 * symbolic link below the folder, regular files only. folder NULL: name is any path. */
int image_read_file(const char *folder, const char *name, struct image_scratch *s, size_t *bytes);
/* Decodes the first `bytes` bytes of s->file. The format is what the first bytes say. */
int image_decode(struct image_scratch *s, size_t bytes, const struct image_background *background,
                 struct image *out);
int image_decode_png(struct image_scratch *s, size_t bytes,
                     const struct image_background *background, struct image *out);
int image_decode_jpeg(struct image_scratch *s, size_t bytes,
                      const struct image_background *background, struct image *out);
int image_decode_webp(struct image_scratch *s, size_t bytes,
                      const struct image_background *background, struct image *out);
int image_decode_gif(struct image_scratch *s, size_t bytes,
                     const struct image_background *background, struct image *out);
/* front over back with weight a, rounded to nearest. */
static inline uint8_t image_blend(uint8_t front, uint8_t back, uint8_t a) {
    unsigned t = (unsigned)front * a + (unsigned)back * (255u - a) + 128u;
    return (uint8_t)((t + (t >> 8)) >> 8);
}

/* Window [left, left+width) x [top, top+height) of the canvas as it would be at full_width x
 * full_height. Rows of the result lie *stride bytes apart, in the scratch or in the image. */
struct image_window {
    int full_width, full_height, left, top, width, height;
};
/* The image at (left, top) of a canvas of one colour; it is never made, rows of it are. */
struct image_canvas {
    int width, height, left, top;
    const uint8_t *fill;
};
/* canvas NULL: the image itself */
const uint8_t *image_resize(struct image_scratch *s, const struct image *in,
                            const struct image_canvas *canvas, const struct image_window *w,
                            size_t *stride);
/* For images up to a size made into ones up to a size. */
void image_resize_reserve(struct image_scratch *s, int max_width, int max_height, int to_w,
                          int to_h);
/* Size of an image inside the resolution width x height, which its aspect fills in one direction. */
void anyres_fit(int width, int height, int image_width, int image_height, int *fit_w, int *fit_h);

/* The way from RGB to the model's input, with its tables made once. */
struct image_pipeline {
    int img_h, img_w;
    enum data_aspect aspect;
    struct anyres anyres;
    struct image_background background;
    uint8_t fill[3];
    float table[3][256];
};
void image_pipeline_init(struct image_pipeline *p, const struct data_settings *s);
/* out[tiles][3][img_h][img_w] */
void image_transform(const struct image_pipeline *p, struct image_scratch *s,
                     const struct image *in, float *out);
int image_load(const struct image_pipeline *p, const char *folder, const char *name,
               struct image_scratch *s, struct image *info, float *out);
/* Memory for the images of a set, so that decoding allocates nothing itself. */
struct image_limits {
    int width, height;
    int64_t pixels;
    size_t file_bytes;
};
void image_limits_add(const struct image_pipeline *p, struct image_limits *l, int width, int height,
                      size_t file_bytes);
void image_scratch_reserve(const struct image_pipeline *p, struct image_scratch *s,
                           const struct image_limits *l);

#endif
