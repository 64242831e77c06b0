/* Pictures that are the same here and in tests/golden/make_*.py: a formula of the place. */
#ifndef PIXEL_FORMULA_H
#define PIXEL_FORMULA_H
#include "../../src/data/image_impl.h"

static inline struct image formula(struct image_scratch *s, int w, int h) {
    struct image im = {.width = w, .height = h};
    im.rgb = buffer_reserve(&s->rgb, (size_t)w * (size_t)h * 3);
    uint8_t *p = im.rgb;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            for (int c = 0; c < 3; c++)
                *p++ = (uint8_t)((x * (c + 3) + y * (5 - c)) ^ ((x * y) >> 3));
    return im;
}
#endif
