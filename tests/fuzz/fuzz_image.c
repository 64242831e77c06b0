/* Images: decoded by what their first bytes say, then made into the input of the vision tower. The
 * first byte chooses how. */
/* max_len: 4096 */
#include <stdlib.h>
#include <string.h>

#include "../../src/data/image_impl.h"
#include "target.h"

#define SIDE 28

static struct image_pipeline pipeline_of(int kind) {
    static const enum data_aspect aspect[] = {ASPECT_SQUARE, ASPECT_PAD, ASPECT_ANYRES};
    struct data_settings s;
    struct image_pipeline p;
    data_settings_init(&s);
    s.img_h = s.img_w = SIDE;
    s.aspect = aspect[kind % 3];
    s.composite = kind / 3 % 2 == 1;
    s.anyres = (struct anyres){.n = 2,
                               .width = {2 * SIDE, SIDE},
                               .height = {SIDE, 2 * SIDE},
                               .img_w = SIDE,
                               .img_h = SIDE,
                               .patches_w = 4,
                               .patches_h = 4};
    image_pipeline_init(&p, &s);
    return p;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static float out[3 * 3 * SIDE * SIDE];
    struct image_scratch s = {0};
    struct image_pipeline p = pipeline_of(bytes > 0 ? data[0] : 0);
    struct image info = {0};
    size_t n = bytes > 0 ? bytes - 1 : 0;
    const char *path = fuzz_file("image", data + (bytes > 0), n, 0);
    int rc = image_load(&p, NULL, path, &s, &info, out);
    fuzz_expect((rc != 0) == (s.why[0] != '\0') || rc == 0, "a refusal without a reason");
    for (size_t i = 0; rc == 0 && i < sizeof out / sizeof *out; i++)
        fuzz_expect(out[i] >= -1e3f && out[i] <= 1e3f, "a pixel that is no number");
    if (rc != 0) error_raise(rc, "%s %s", path, s.why);
    image_scratch_free(&s);
    fuzz_judge(rc);
    return 0;
}
