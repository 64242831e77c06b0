/* From RGB to the vision tower's input: pad, resize, centre crop, normalise by table. */
#include <limits.h>
#include <string.h>

#include "image_impl.h"

void image_pipeline_init(struct image_pipeline *p, const struct data_settings *s) {
    *p = (struct image_pipeline){
        .img_h = s->img_h, .img_w = s->img_w, .aspect = s->aspect, .anyres = s->anyres};
    p->background.composite = s->composite;
    p->background.pad_w = s->aspect == ASPECT_PAD ? s->img_w : 0;
    p->background.pad_h = s->aspect == ASPECT_PAD ? s->img_h : 0;
    for (int c = 0; c < 3; c++) {
        p->background.rgb[c] = s->background[c];
        double fill = 255.0 * s->mean[c]; /* truncated, as LLaVA's int(255 * mean) */
        p->fill[c] = (uint8_t)(fill < 0 ? 0 : fill > 255 ? 255 : fill);
        for (int u = 0; u < 256; u++) {
            float f = (float)((double)u * (1 / 255.));
            p->table[c][u] = (f - (float)s->mean[c]) / (float)s->std[c];
        }
    }
}

/* Truncated. A side of 32768 on a target of 65536 may be one more than an int holds. */
static int whole(double v) {
    return v < (double)INT_MAX ? (int)v : INT_MAX;
}

/* The edge that is short for the target's aspect becomes the target's, the other follows,
 * truncated; then the middle is cut out. */
static struct image_window window_of(const struct image_pipeline *p, int64_t width,
                                     int64_t height) {
    struct image_window w = {.width = p->img_w, .height = p->img_h};
    if (width * p->img_h <= height * p->img_w) {
        w.full_width = p->img_w;
        w.full_height = whole((double)(p->img_w * height) / (double)width);
    } else {
        w.full_height = p->img_h;
        w.full_width = whole((double)(p->img_h * width) / (double)height);
    }
    if (w.full_width < w.width) w.full_width = w.width;
    if (w.full_height < w.height) w.full_height = w.height;
    w.left = (w.full_width - w.width) / 2;
    w.top = (w.full_height - w.height) / 2;
    return w;
}

/* Normalised pixels of the w x h rectangle that begins at (x0, y0) of one tile. */
static void put(const struct image_pipeline *p, const uint8_t *rgb, size_t stride, size_t x0,
                size_t y0, size_t w, size_t h, float *tile) {
    size_t plane = (size_t)p->img_h * (size_t)p->img_w;
    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++)
            for (size_t c = 0; c < 3; c++)
                tile[c * plane + (y0 + y) * (size_t)p->img_w + x0 + x] =
                    p->table[c][rgb[y * stride + 3 * x + c]];
}

static void transform_one(const struct image_pipeline *p, struct image_scratch *s,
                          const struct image *in, float *out) {
    int64_t width, height;
    image_canvas(&p->background, in->width, in->height, &width, &height);
    struct image_canvas canvas = {.width = (int)width,
                                  .height = (int)height,
                                  .left = (int)(width - in->width) / 2,
                                  .top = (int)(height - in->height) / 2,
                                  .fill = p->fill};
    struct image_window w = window_of(p, width, height);
    size_t stride;
    const uint8_t *rgb = image_resize(s, in, &canvas, &w, &stride);
    put(p, rgb, stride, 0, 0, (size_t)p->img_w, (size_t)p->img_h, out);
}

static int larger(int a, int b) {
    return a > b ? a : b;
}
static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* The tile whose corner is (left, top) of the canvas; the image lies at (x, y) of it, the rest is
 * black. */
static void cut_tile(const struct image_pipeline *p, const uint8_t *rgb, size_t stride,
                     const struct image_window *image, int left, int top, float *tile) {
    int x0 = larger(left, image->left), x1 = smaller(left + p->img_w, image->left + image->width);
    int y0 = larger(top, image->top), y1 = smaller(top + p->img_h, image->top + image->height);
    size_t plane = (size_t)p->img_h * (size_t)p->img_w;
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < plane; i++) tile[c * plane + i] = p->table[c][0];
    if (x0 >= x1 || y0 >= y1) return;
    rgb += (size_t)(y0 - image->top) * stride + 3 * (size_t)(x0 - image->left);
    put(p, rgb, stride, (size_t)(x0 - left), (size_t)(y0 - top), (size_t)(x1 - x0),
        (size_t)(y1 - y0), tile);
}

static void transform_anyres(const struct image_pipeline *p, struct image_scratch *s,
                             const struct image *in, float *out) {
    struct image_layout l;
    anyres_layout(&p->anyres, in->width, in->height, &l);
    struct image_window whole = {
        .full_width = p->img_w, .full_height = p->img_h, .width = p->img_w, .height = p->img_h};
    size_t stride, floats = 3 * (size_t)p->img_h * (size_t)p->img_w;
    const uint8_t *rgb = image_resize(s, in, NULL, &whole, &stride);
    put(p, rgb, stride, 0, 0, (size_t)p->img_w, (size_t)p->img_h, out);
    int canvas_w = l.grid_w * p->img_w, canvas_h = l.grid_h * p->img_h, w, h;
    anyres_fit(canvas_w, canvas_h, in->width, in->height, &w, &h);
    struct image_window fit = {.full_width = w, .full_height = h, .width = w, .height = h};
    rgb = image_resize(s, in, NULL, &fit, &stride);
    fit.left = (canvas_w - w) / 2; /* from here on its place on the canvas */
    fit.top = (canvas_h - h) / 2;
    for (int i = 0; i + 1 < l.tiles; i++)
        cut_tile(p, rgb, stride, &fit, i % l.grid_w * p->img_w, i / l.grid_w * p->img_h,
                 out + (size_t)(i + 1) * floats);
}

void image_transform(const struct image_pipeline *p, struct image_scratch *s,
                     const struct image *in, float *out) {
    if (p->aspect == ASPECT_ANYRES)
        transform_anyres(p, s, in, out);
    else
        transform_one(p, s, in, out);
}

int image_load(const struct image_pipeline *p, const char *folder, const char *name,
               struct image_scratch *s, struct image *info, float *out) {
    size_t bytes;
    TRY(image_read_file(folder, name, s, &bytes));
    TRY(image_decode(s, bytes, &p->background, info));
    if (out != NULL) image_transform(p, s, info, out);
    return 0;
}

void image_limits_add(const struct image_pipeline *p, struct image_limits *l, int width, int height,
                      size_t file_bytes) {
    int64_t w, h, pixels = (int64_t)width * height;
    image_canvas(&p->background, width, height, &w, &h);
    if (w > l->width) l->width = (int)w;
    if (h > l->height) l->height = (int)h;
    if (pixels > l->pixels) l->pixels = pixels;
    if (file_bytes > l->file_bytes) l->file_bytes = file_bytes;
}

void image_scratch_reserve(const struct image_pipeline *p, struct image_scratch *s,
                           const struct image_limits *l) {
    if (l->pixels == 0) return;
    buffer_reserve(&s->file, l->file_bytes + 1);
    buffer_reserve(&s->raw, 4 * (size_t)l->pixels);
    buffer_reserve(&s->rgb, 4 * (size_t)l->pixels);
    int to_w = p->img_w, to_h = p->img_h;
    for (int i = 0; p->aspect == ASPECT_ANYRES && i < p->anyres.n; i++) {
        to_w = larger(to_w, p->anyres.width[i]);
        to_h = larger(to_h, p->anyres.height[i]);
    }
    image_resize_reserve(s, l->width, l->height, to_w, to_h);
}
