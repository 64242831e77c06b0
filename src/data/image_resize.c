/* Bicubic resize with antialiasing, bit for bit that of Pillow 9.4 to 12.3 (Resample.c): weights in
 * double, rounded to 22 bits; horizontal pass first, 8 bits in between. Only the window is computed.
 * Pillow 13 begins with the vertical pass where the height loses more than twice the pixels that the
 * width does: doc/mathematics.md. */
#include <math.h>
#include <string.h>

#include "image_impl.h"

#define WEIGHT_BITS 22

/* One axis: outputs [first, first+n) of `to` from `from` samples. */
struct axis {
    int n, taps;
    int *begin, *count; /* [n] */
    int32_t *weight;    /* [n][taps] */
};

static double cubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static int axis_taps(int from, int to) {
    double scale = (double)from / to;
    return (int)ceil(2.0 * (scale < 1.0 ? 1.0 : scale)) * 2 + 1;
}

static size_t axis_bytes(int from, int to, int n) {
    size_t taps = (size_t)axis_taps(from, to);
    return (size_t)n * (taps * (sizeof(double) + sizeof(int32_t)) + 2 * sizeof(int));
}

static void axis_output(struct axis *a, int i, double center, double support, double inverse,
                        int from, double *w) {
    int lo = (int)(center - support + 0.5), hi = (int)(center + support + 0.5);
    if (lo < 0) lo = 0;
    if (hi > from) hi = from;
    double sum = 0.0;
    for (int j = 0; j < hi - lo; j++) {
        w[j] = cubic((j + lo - center + 0.5) * inverse);
        sum += w[j];
    }
    for (int j = 0; j < hi - lo; j++) {
        double v = sum != 0.0 ? w[j] / sum : w[j];
        v *= 1 << WEIGHT_BITS;
        a->weight[(size_t)i * (size_t)a->taps + (size_t)j] = (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    a->begin[i] = lo;
    a->count[i] = hi - lo;
}

/* memory: axis_bytes(from, to, n). */
static struct axis axis_make(int from, int to, int first, int n, void *memory) {
    struct axis a = {.n = n, .taps = axis_taps(from, to)};
    double *w = memory; /* one row of it is used */
    a.weight = (int32_t *)(w + (size_t)n * (size_t)a.taps);
    a.begin = (int *)(a.weight + (size_t)n * (size_t)a.taps);
    a.count = a.begin + n;
    double scale = (double)from / to, filter = scale < 1.0 ? 1.0 : scale;
    for (int i = 0; i < n; i++)
        axis_output(&a, i, (first + i + 0.5) * scale, 2.0 * filter, 1.0 / filter, from, w);
    return a;
}

static inline uint8_t clip8(int32_t v) {
    v >>= WEIGHT_BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Outputs [from, to) of a row from one input row. */
static void horizontal(const struct axis *a, int from, int to, const uint8_t *in, uint8_t *out) {
    out += 3 * (size_t)from;
    for (int i = from; i < to; i++, out += 3) {
        const int32_t *w = a->weight + (size_t)i * (size_t)a->taps;
        const uint8_t *p = in + 3 * (size_t)a->begin[i];
        int32_t r = 1 << (WEIGHT_BITS - 1), g = r, b = r;
        for (int j = 0; j < a->count[i]; j++, p += 3) {
            r += w[j] * p[0];
            g += w[j] * p[1];
            b += w[j] * p[2];
        }
        out[0] = clip8(r);
        out[1] = clip8(g);
        out[2] = clip8(b);
    }
}

/* Output row i from rows of `bytes` bytes that lie `stride` apart. */
static void vertical(const struct axis *a, int i, const uint8_t *in, size_t stride, size_t bytes,
                     uint8_t *out) {
    const int32_t *w = a->weight + (size_t)i * (size_t)a->taps;
    for (size_t x = 0; x < bytes; x++) {
        int32_t v = 1 << (WEIGHT_BITS - 1);
        for (int j = 0; j < a->count[i]; j++) v += w[j] * in[(size_t)j * stride + x];
        out[x] = clip8(v);
    }
}

static void fill_pixels(uint8_t *rgb, size_t n, const uint8_t *fill) {
    for (size_t i = 0; i < n; i++) memcpy(rgb + 3 * i, fill, 3);
}

/* Rows [first, first+n) of a canvas with an image on it, without a canvas: a row above or below the
 * image is the same everywhere, and of the others only what the image reaches is computed. The last
 * row of `out` is the first kind, which the others begin as. */
static void resize_padded(struct image_scratch *s, const struct image *in,
                          const struct image_canvas *c, const struct axis *a,
                          const struct image_window *w, int first, int n, uint8_t *out) {
    size_t row_bytes = 3 * (size_t)w->width;
    uint8_t *line = buffer_reserve(&s->line, 3 * (size_t)c->width);
    uint8_t *blank = out + (size_t)n * row_bytes, *middle = line + 3 * (size_t)c->left;
    int from = 0, to = w->width;
    fill_pixels(line, (size_t)c->width, c->fill);
    if (a != NULL) {
        horizontal(a, 0, w->width, line, blank);
        while (from < to && a->begin[from] + a->count[from] <= c->left) from++;
        while (from < to && a->begin[to - 1] >= c->left + in->width) to--;
    } else {
        memcpy(blank, line, row_bytes);
    }
    for (int i = 0; i < n; i++, out += row_bytes) {
        int y = first + i - c->top;
        bool inside = y >= 0 && y < in->height;
        if (inside)
            memcpy(middle, in->rgb + 3 * (size_t)y * (size_t)in->width, 3 * (size_t)in->width);
        if (inside && a == NULL) {
            memcpy(out, line + 3 * (size_t)w->left, row_bytes);
            continue;
        }
        memcpy(out, blank, row_bytes);
        if (inside) horizontal(a, from, to, line, out);
    }
}

/* Rows [first, first+n) of the canvas, window columns only, at the window's width. */
static const uint8_t *resize_columns(struct image_scratch *s, const struct image *in,
                                     const struct image_canvas *c, const struct image_window *w,
                                     int first, int n, size_t *stride) {
    bool padded = c->width != in->width || c->height != in->height;
    bool same = w->full_width == c->width;
    *stride = (size_t)in->width * 3;
    if (same && !padded) return in->rgb + (size_t)first * *stride + 3 * (size_t)w->left;
    struct axis a = {0};
    if (!same) {
        void *memory = buffer_reserve(&s->weights, axis_bytes(c->width, w->full_width, w->width));
        a = axis_make(c->width, w->full_width, w->left, w->width, memory);
    }
    size_t in_stride = *stride;
    *stride = (size_t)w->width * 3;
    uint8_t *out = buffer_reserve(&s->rows, *stride * ((size_t)n + 1));
    if (padded)
        resize_padded(s, in, c, same ? NULL : &a, w, first, n, out);
    else
        for (int y = 0; y < n; y++)
            horizontal(&a, 0, w->width, in->rgb + (size_t)(first + y) * in_stride,
                       out + (size_t)y * *stride);
    return out;
}

const uint8_t *image_resize(struct image_scratch *s, const struct image *in,
                            const struct image_canvas *c, const struct image_window *w,
                            size_t *stride) {
    struct image_canvas itself = {.width = in->width, .height = in->height};
    if (c == NULL) c = &itself;
    if (w->full_height == c->height) return resize_columns(s, in, c, w, w->top, w->height, stride);
    void *memory =
        buffer_reserve(&s->row_weights, axis_bytes(c->height, w->full_height, w->height));
    struct axis a = axis_make(c->height, w->full_height, w->top, w->height, memory);
    int first = a.begin[0], last = a.begin[w->height - 1] + a.count[w->height - 1];
    const uint8_t *rows = resize_columns(s, in, c, w, first, last - first, stride);
    size_t bytes = (size_t)w->width * 3;
    uint8_t *out = buffer_reserve(&s->resized, bytes * (size_t)w->height);
    for (int y = 0; y < w->height; y++)
        vertical(&a, y, rows + (size_t)(a.begin[y] - first) * *stride, *stride, bytes,
                 out + (size_t)y * bytes);
    *stride = bytes;
    return out;
}

/* Bound of axis_bytes over all outputs up to `to`: taps <= 4 max(1, from / output) + 3. */
static size_t axis_bytes_most(int from, int to) {
    size_t samples = 4 * (size_t)(from > to ? from : to) + 3 * (size_t)to;
    return samples * (sizeof(double) + sizeof(int32_t)) + 2 * (size_t)to * sizeof(int);
}

void image_resize_reserve(struct image_scratch *s, int max_width, int max_height, int to_w,
                          int to_h) {
    buffer_reserve(&s->weights, axis_bytes_most(max_width, to_w));
    buffer_reserve(&s->row_weights, axis_bytes_most(max_height, to_h));
    buffer_reserve(&s->line, 3 * (size_t)max_width);
    buffer_reserve(&s->rows, (size_t)to_w * 3 * ((size_t)max_height + 1));
    buffer_reserve(&s->resized, (size_t)to_w * 3 * (size_t)to_h);
}
