/* Images that are odd but legal, or slightly damaged, against what Pillow makes of them: the same
 * pixels, bit for bit, or a sentence (tests/golden/make_odd_images.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../src/data/image_impl.h"

#define FOLDER "tests/golden/odd"

struct golden {
    char name[64], kind[16], plain[65], laid[65];
    int w, h;
};

/* Sizes and hash, or the sentence. */
static int decode(const char *name, bool composite, struct image *im, char hex[65], char *why) {
    struct image_scratch s = {0};
    struct image_background b = {.composite = composite, .rgb = {10, 200, 255}};
    size_t bytes;
    assert_int_equal(image_read_file(FOLDER, name, &s, &bytes), 0);
    int rc = image_decode(&s, bytes, &b, im);
    snprintf(why, IMAGE_WHY_BYTES, "%s", s.why);
    hex[0] = '\0';
    if (rc == 0) {
        struct sha256 h;
        sha256_begin(&h);
        sha256_add(&h, im->rgb, (size_t)im->width * (size_t)im->height * 3);
        sha256_end(&h, hex);
    }
    image_scratch_free(&s);
    return rc;
}

static bool check(const struct golden *g) {
    bool read = strcmp(g->kind, "same") == 0 || strcmp(g->kind, "beyond") == 0;
    for (int composite = 0; composite < 2; composite++) {
        struct image im = {0};
        char hex[65], why[IMAGE_WHY_BYTES];
        int rc = decode(g->name, composite, &im, hex, why);
        if (read && rc != 0) {
            print_error("%s (%s) is refused: %s\n", g->name, g->kind, why);
            return false;
        }
        if (!read && (rc != EXIT_BAD_DATA || why[0] == '\0')) {
            print_error("%s (%s) is read, code %d\n", g->name, g->kind, rc);
            return false;
        }
        if (read && (im.width != g->w || im.height != g->h ||
                     strcmp(hex, composite ? g->laid : g->plain) != 0)) {
            print_error("%s (%s) has other pixels than in Pillow: %d x %d, background %d\n",
                        g->name, g->kind, im.width, im.height, composite);
            return false;
        }
    }
    return true;
}

static void test_all(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/odd.txt", "r");
    assert_non_null(f);
    struct golden g;
    int n = 0, wrong = 0, lost = 0;
    for (; fscanf(f, "%63s %15s %d %d %64s %64s", g.name, g.kind, &g.w, &g.h, g.plain, g.laid) == 6;
         n++) {
        wrong += !check(&g);
        lost += strcmp(g.kind, "lost") == 0;
    }
    fclose(f);
    assert_int_equal(wrong, 0);
    assert_true(n >= 380 && lost <= 40);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),
    };
    return cmocka_run_group_tests_name("odd images", tests, NULL, NULL);
}
