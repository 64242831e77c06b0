/* anyres: the resolution, the map and the pixels of images of many sizes against transformers
 * (tests/golden/make_anyres.py); indices of samples with such images. */
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/data/dataset_impl.h"
#include "pixel_formula.h"

/* LLaVA-1.6's list in tiles, read with height or with width first. */
static void settings(struct data_settings *set, int size, int patches, bool height_first) {
    static const int list[5][2] = {{1, 2}, {2, 1}, {2, 2}, {3, 1}, {1, 3}};
    data_settings_init(set);
    set->img_h = set->img_w = size;
    set->rows_per_image = patches * patches;
    set->aspect = ASPECT_ANYRES;
    set->anyres = (struct anyres){
        .n = 5, .img_w = size, .img_h = size, .patches_w = patches, .patches_h = patches};
    for (int i = 0; i < 5; i++) {
        set->anyres.width[i] = size * list[i][height_first ? 1 : 0];
        set->anyres.height[i] = size * list[i][height_first ? 0 : 1];
    }
}

/* Back from normalised values, each of which belongs to one byte. */
static void hash_bytes(const struct image_pipeline *p, const float *pixels, int tiles,
                       char hex[65]) {
    size_t plane = (size_t)p->img_h * (size_t)p->img_w, n = 3 * plane * (size_t)tiles;
    uint8_t *bytes = malloc(n);
    for (size_t i = 0; i < n; i++) {
        const float *table = p->table[i / plane % 3];
        int u = (int)lround((pixels[i] - table[0]) / (table[255] - table[0]) * 255);
        assert_true(u >= 0 && u <= 255 && table[u] == pixels[i]);
        bytes[i] = (uint8_t)u;
    }
    struct sha256 h;
    sha256_begin(&h);
    sha256_add(&h, bytes, n);
    sha256_end(&h, hex);
    free(bytes);
}

struct golden {
    int w, h, size, patches, best_w, best_h, rows, cols, merged;
    char reading[3], top[8], left[8], sha[65];
};

static void check_pixels(const struct golden *g, const struct data_settings *set, int tiles) {
    struct image_scratch s = {0};
    struct image_pipeline p;
    image_pipeline_init(&p, set);
    float *out = malloc((size_t)(tiles * 3 * g->size * g->size) * sizeof *out);
    struct image_limits limits = {0};
    char hex[65];
    image_limits_add(&p, &limits, g->w, g->h, 0);
    image_scratch_reserve(&p, &s, &limits);
    size_t weights = s.weights.bytes, rows = s.row_weights.bytes, resized = s.resized.bytes;
    struct image im = formula(&s, g->w, g->h);
    image_transform(&p, &s, &im, out);
    assert_true(s.weights.bytes == weights && s.row_weights.bytes == rows);
    assert_true(s.resized.bytes == resized);
    hash_bytes(&p, out, tiles, hex);
    if (strcmp(hex, g->sha) != 0)
        fail_msg("the pixels of %d x %d in tiles of %d, %s, differ", g->w, g->h, g->size,
                 g->reading);
    free(out);
    image_scratch_free(&s);
}

static void check_line(const struct golden *g) {
    struct data_settings set;
    struct image_layout l;
    settings(&set, g->size, g->patches, strcmp(g->reading, "hw") == 0);
    anyres_layout(&set.anyres, g->w, g->h, &l);
    bool good = l.grid_w * g->size == g->best_w && l.grid_h * g->size == g->best_h &&
                l.rows == g->rows && l.cols == g->cols && l.tiles == 1 + l.grid_w * l.grid_h &&
                image_layout_rows(&l, set.rows_per_image) == g->merged;
    if (g->top[0] != '-')
        good = good && l.top == strtol(g->top, NULL, 10) && l.left == strtol(g->left, NULL, 10);
    if (!good)
        fail_msg("%d x %d, tile %d, %s: chosen %d x %d tiles, %d x %d patches from (%d, %d) on",
                 g->w, g->h, g->size, g->reading, l.grid_w, l.grid_h, l.rows, l.cols, l.top,
                 l.left);
    if (g->sha[0] != '-') check_pixels(g, &set, l.tiles);
}

static void test_golden(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/anyres.txt", "r");
    assert_non_null(f);
    struct golden g;
    int n = 0, with_pixels = 0;
    while (fscanf(f, "%d %d %d %d %2s %d %d %7s %7s %d %d %d %64s", &g.w, &g.h, &g.size, &g.patches,
                  g.reading, &g.best_w, &g.best_h, g.top, g.left, &g.rows, &g.cols, &g.merged,
                  g.sha) == 13) {
        check_line(&g);
        with_pixels += g.sha[0] != '-';
        n++;
    }
    fclose(f);
    assert_true(n >= 470 && with_pixels >= 56);
}

/* The published counts, and the tie that the order of the list decides. */
static void test_published(void **state) {
    (void)state;
    for (int height_first = 0; height_first < 2; height_first++) {
        struct data_settings set;
        struct image_layout l;
        settings(&set, 336, 24, height_first);
        anyres_layout(&set.anyres, 1000, 1000, &l);
        assert_int_equal(image_layout_rows(&l, 576), 2928);
        anyres_layout(&set.anyres, 300, 300, &l);
        assert_int_equal(image_layout_rows(&l, 576), 1176);
        assert_int_equal(l.tiles, 3);
        assert_int_equal(l.grid_w, height_first ? 2 : 1);
    }
}

/* ---- indices ------------------------------------------------------------------------------------- */

#define TOKENIZER "input/tiny/tokenizer.model"
static char dir[] = "/tmp/strata_anyres_XXXXXX";

static char *path_of(const char *name) {
    char *path;
    return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

static void source(struct data_settings *set, const char *json, int64_t length) {
    settings(set, 28, 4, true);
    char *path = path_of("data.json");
    assert_int_equal(file_write_atomic(path, json, strlen(json)), 0);
    set->format = DATA_LLAVA_JSON;
    set->path = path;
    set->cache_path = dir;
    set->image_folder = "tests/golden/images";
    set->conversation_template = TEMPLATE_V1;
    set->tokenizer_type = "Llama2Tokenizer";
    set->tokenizer_model = TOKENIZER;
    set->vocab_size = 32000;
    set->decoder_seq_length = length;
}

#define TURNS(q, a)                                                                                \
    "\"conversations\": [{\"from\": \"human\", \"value\": \"" q "\"}, {\"from\": \"gpt\", "        \
    "\"value\": \"" a "\"}]"
/* jpeg_444.jpg is 61 x 43, png_c2_d08.png 19 x 13 pixels. */
#define THREE                                                                                      \
    "[{\"id\": \"text\", " TURNS(                                                                  \
        "hello",                                                                                   \
        "yes") "},"                                                                                \
               "{\"id\": \"one\", \"image\": \"jpeg_444.jpg\", " TURNS(                            \
                   "<image>\\nwhat",                                                               \
                   "a b c") "},"                                                                   \
                            "{\"id\": \"two\", \"image\": [\"png_c2_d08.png\", \"jpeg_444.jpg\"]," \
                            " " TURNS("<image> and <image>", "d") "}]"

static void check_sample(const struct dataset *d, const struct data_settings *set, int64_t i) {
    struct sample s;
    dataset_sample(d, i, &s);
    int64_t row = 0, targets = 0, image = 0;
    for (int32_t k = 0; k < s.text_len; k++) {
        bool marker = s.ids[k] == DATA_IMAGE_MARKER;
        if (row > 0 && row < set->decoder_seq_length && s.labels[k] != DATA_NO_TARGET) targets++;
        row += marker ? sample_image_rows(&s, image++, set->rows_per_image) : 1;
    }
    assert_int_equal(s.merged_len, row < set->decoder_seq_length ? row : set->decoder_seq_length);
    assert_int_equal(s.n_targets, targets);
}

static void test_index(void **state) {
    (void)state;
    struct data_settings set;
    struct dataset *d;
    struct sample s;
    source(&set, THREE, 400);
    assert_int_equal(dataset_prepare(&set, false, NULL, NULL), 0);
    assert_int_equal(dataset_open(&set, &d), 0);
    assert_int_equal(dataset_count(d), 3);
    for (int64_t i = 0; i < 3; i++) check_sample(d, &set, i);
    dataset_sample(d, 2, &s);
    struct image_layout small, large;
    anyres_layout(&set.anyres, 19, 13, &small);
    anyres_layout(&set.anyres, 61, 43, &large);
    assert_memory_equal(&s.layout[0], &small, sizeof small);
    assert_memory_equal(&s.layout[1], &large, sizeof large);
    assert_true(small.tiles == 3 && large.tiles == 5 && large.top == 1 && large.rows == 6);
    /* tiles of a ticket lie one image behind the other */
    size_t tile = 3 * 28 * 28, n = (size_t)(small.tiles + large.tiles) * tile;
    float *alone = malloc(n * sizeof *alone), *fetched = malloc(n * sizeof *fetched);
    assert_int_equal(dataset_pixels(d, s.image[0], alone), 0);
    assert_int_equal(dataset_pixels(d, s.image[1], alone + (size_t)small.tiles * tile), 0);
    struct prefetch *p = prefetch_create(d, 2, 2, 2);
    assert_int_equal(prefetch_wait(p, prefetch_submit(p, s.image, 2, fetched)), 0);
    assert_memory_equal(alone, fetched, n * sizeof *alone);
    prefetch_destroy(p);
    struct image_layout alike;
    assert_int_equal(data_image_layout(&set, "tests/golden/images/jpeg_444.jpg", &alike), 0);
    assert_memory_equal(&alike, &large, sizeof large);
    free(alone);
    free(fetched);
    dataset_close(d);
    free((void *)(uintptr_t)set.path);
}

/* Another list of resolutions makes another index. */
static void test_name(void **state) {
    (void)state;
    struct data_settings set;
    source(&set, THREE, 400);
    char *one = dataset_index_path(&set);
    set.anyres.width[0] += 28;
    char *two = dataset_index_path(&set);
    set.aspect = ASPECT_PAD;
    char *three = dataset_index_path(&set);
    assert_true(strcmp(one, two) != 0 && strcmp(two, three) != 0 && strcmp(one, three) != 0);
    free(one);
    free(two);
    free(three);
    free((void *)(uintptr_t)set.path);
}

/* Images that push all targets behind the cut: what the samples' texts alone would not show. */
static void test_no_target(void **state) {
    (void)state;
    static const struct {
        enum data_no_target policy;
        int rc;
        int64_t left, skipped;
    } row[] = {{NO_TARGET_FAIL, EXIT_BAD_DATA, 0, 0}, {NO_TARGET_SKIP, 0, 2, 1}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        struct data_settings set;
        struct dataset *d;
        struct dataset_report r;
        source(&set, THREE, 140);
        set.on_no_target = row[i].policy;
        int rc = dataset_prepare(&set, true, NULL, NULL);
        assert_int_equal(rc, row[i].rc);
        if (rc != 0) {
            assert_non_null(strstr(error_text(), "(id two) has no target token"));
            assert_null(strstr(error_text(), "(id one)"));
        }
        error_clear();
        if (rc == 0) {
            assert_int_equal(dataset_open(&set, &d), 0);
            dataset_report(d, &r);
            assert_int_equal(r.samples, row[i].left);
            assert_int_equal(r.skipped_no_target, row[i].skipped);
            for (int64_t k = 0; k < r.samples; k++) check_sample(d, &set, k);
            dataset_close(d);
        }
        free((void *)(uintptr_t)set.path);
    }
}

/* An image that cannot be read stands for one of the size of a tile. */
static void test_blank(void **state) {
    (void)state;
    struct data_settings set;
    struct dataset *d;
    struct sample s;
    source(&set,
           "[{\"id\": \"gone\", \"image\": \"gone.png\", " TURNS("<image>\\nwhat", "a b c") "}]",
           400);
    set.on_bad_image = BAD_IMAGE_BLANK;
    set.max_bad_images = 1;
    assert_int_equal(dataset_prepare(&set, true, NULL, NULL), 0);
    assert_int_equal(dataset_open(&set, &d), 0);
    dataset_sample(d, 0, &s);
    check_sample(d, &set, 0);
    struct image_layout l;
    anyres_layout(&set.anyres, 28, 28, &l);
    assert_memory_equal(&s.layout[0], &l, sizeof l);
    float *out = malloc((size_t)l.tiles * 3 * 28 * 28 * sizeof *out);
    assert_int_equal(dataset_pixels(d, s.image[0], out), 0);
    for (size_t i = 0; i < (size_t)l.tiles * 3 * 28 * 28; i++) assert_true(out[i] == 0.0f);
    free(out);
    dataset_close(d);
    free((void *)(uintptr_t)set.path);
}

static int set_up(void **state) {
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
    (void)st, (void)kind, (void)at;
    return remove(path);
}

static int tear_down(void **state) {
    (void)state;
    return nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),    cmocka_unit_test(test_published),
        cmocka_unit_test(test_index),     cmocka_unit_test(test_name),
        cmocka_unit_test(test_no_target), cmocka_unit_test(test_blank),
    };
    return cmocka_run_group_tests_name("data anyres", tests, set_up, tear_down);
}
