/* anyres: how many tiles an image becomes, and which of their patches are kept (LLaVA-1.6). Products
 * and quotients of the choice are taken in double and cut off, as the programs do that the published
 * weights were trained with: their rounding decides ties. */
#include <math.h>

#include "image_impl.h"

static int least(double n, int most) {
    return n < (double)most ? (int)n : most;
}

void anyres_fit(int width, int height, int image_width, int image_height, int *fit_w, int *fit_h) {
    double scale_w = (double)width / image_width, scale_h = (double)height / image_height;
    *fit_w = width;
    *fit_h = height;
    if (scale_w < scale_h)
        *fit_h = least(ceil(image_height * scale_w), height);
    else
        *fit_w = least(ceil(image_width * scale_h), width);
}

/* Pixels of the image that the resolution keeps. */
static int64_t effective(int width, int height, int image_width, int image_height) {
    double scale_w = (double)width / image_width, scale_h = (double)height / image_height;
    double scale = scale_w < scale_h ? scale_w : scale_h;
    int64_t kept = (int64_t)(image_width * scale) * (int64_t)(image_height * scale);
    int64_t all = (int64_t)image_width * image_height;
    return kept < all ? kept : all;
}

static int choose(const struct anyres *a, int width, int height) {
    int64_t most = 0, least_waste = 0;
    int best = -1;
    for (int i = 0; i < a->n; i++) {
        int64_t kept = effective(a->width[i], a->height[i], width, height);
        int64_t waste = (int64_t)a->width[i] * a->height[i] - kept;
        if (best >= 0 && (kept < most || (kept == most && waste >= least_waste))) continue;
        best = i;
        most = kept;
        least_waste = waste;
    }
    CHECK(best >= 0, "anyres without a resolution");
    return best;
}

/* The map's padding, from its own aspect against the image's: with w/h wider than the map, h cols / w
 * of its rows show the image. Whole numbers here: transformers rounds its double product to seven
 * decimals before it cuts it off, which for images up to 32768 pixels a side is the same; the original
 * does not round, and may keep one row or column less where the quotient is whole. */
void anyres_layout(const struct anyres *a, int width, int height, struct image_layout *out) {
    CHECK(width > 0 && height > 0, "an image of %d x %d", width, height);
    int best = choose(a, width, height);
    *out = (struct image_layout){.grid_w = a->width[best] / a->img_w,
                                 .grid_h = a->height[best] / a->img_h};
    out->tiles = 1 + out->grid_w * out->grid_h;
    out->cols = out->grid_w * a->patches_w;
    out->rows = out->grid_h * a->patches_h;
    int64_t w = width, h = height;
    if (w * out->rows > h * out->cols) {
        out->top = (int32_t)((out->rows - h * out->cols / w) / 2);
        out->rows -= 2 * out->top;
    } else {
        out->left = (int32_t)((out->cols - w * out->rows / h) / 2);
        out->cols -= 2 * out->left;
    }
}
