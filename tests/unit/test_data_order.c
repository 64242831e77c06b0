/* Order of samples, mock data, prefetch with several threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "data_case.h"

#define FLOATS (3 * 28 * 28)

static struct dataset *open_tiny(void) {
    struct data_settings s = tiny();
    struct dataset *d;
    if (dataset_prepare(&s, false, NULL, NULL) != 0 || dataset_open(&s, &d) != 0)
        fail_msg("%s", error_text());
    return d;
}

static void test_sampler_epochs(void **state) {
    (void)state;
    enum { N = 37 };
    struct rng_key run = rng_run_key(1234);
    struct sampler *s = sampler_create(N, run, true);
    int differs = 0;
    for (int64_t epoch = 0; epoch < 5; epoch++) {
        int seen[N] = {0};
        for (int64_t k = 0; k < N; k++) {
            int64_t i = sampler_sample(s, epoch * N + k);
            assert_true(i >= 0 && i < N);
            seen[i]++;
            differs += i != sampler_sample(s, (epoch + 1) * N + k);
        }
        for (int i = 0; i < N; i++) assert_int_equal(seen[i], 1);
    }
    assert_true(differs > 100);
    sampler_destroy(s);
}

/* A pure function: the same from a fresh sampler, in any order of asking. */
static void test_sampler_is_pure(void **state) {
    (void)state;
    struct rng_key run = rng_run_key(7);
    struct sampler *a = sampler_create(100, run, true);
    for (int64_t k = 0; k < 500; k++) {
        int64_t position = (k * 7919) % 1000;
        struct sampler *b = sampler_create(100, run, true);
        assert_int_equal(sampler_sample(a, position), sampler_sample(b, position));
        sampler_destroy(b);
    }
    sampler_destroy(a);
    a = sampler_create(10, run, false);
    for (int64_t k = 0; k < 30; k++) assert_int_equal(sampler_sample(a, k), k % 10);
    sampler_destroy(a);
}

static void test_mock(void **state) {
    (void)state;
    struct data_settings s;
    struct dataset *d, *e;
    data_settings_init(&s);
    s.format = DATA_MOCK;
    s.vocab_size = 1000;
    s.decoder_seq_length = 100;
    s.rows_per_image = 16;
    s.img_h = s.img_w = 28;
    s.mock_samples = 10;
    s.mock_images = 2;
    s.mock_text_length = 20;
    assert_int_equal(dataset_prepare(&s, false, NULL, NULL), 0);
    assert_int_equal(dataset_open(&s, &d), 0);
    assert_int_equal(dataset_open(&s, &e), 0);
    assert_string_equal(dataset_digest(d), dataset_digest(e));
    assert_int_equal(dataset_count(d), 10);
    for (int64_t i = 0; i < 10; i++) {
        struct sample x;
        dataset_sample(d, i, &x);
        assert_int_equal(x.text_len, 22);
        assert_int_equal(x.n_images, 2);
        assert_int_equal(x.merged_len, 20 + 32);
        assert_int_equal(x.n_targets, 10);
        for (int32_t k = 0; k < x.text_len; k++)
            assert_true(x.ids[k] < 1000 && (x.ids[k] >= 0 || x.ids[k] == DATA_IMAGE_MARKER));
    }
    float *p = malloc(2 * FLOATS * sizeof *p);
    assert_int_equal(dataset_pixels(d, 19, p), 0);
    assert_int_equal(dataset_pixels(e, 19, p + FLOATS), 0);
    assert_memory_equal(p, p + FLOATS, FLOATS * sizeof *p);
    assert_int_equal(dataset_pixels(e, 18, p + FLOATS), 0);
    assert_memory_not_equal(p, p + FLOATS, FLOATS * sizeof *p);
    for (int i = 0; i < FLOATS; i++) assert_true(p[i] >= -1.75f && p[i] <= 1.75f);
    free(p);
    dataset_close(d);
    dataset_close(e);
    s.mock_samples = 0;
    assert_int_equal(dataset_open(&s, &d), EXIT_USAGE);
    error_clear();
}

/* Tickets of many sizes, waited for out of order, give what dataset_pixels gives, whatever the
 * number of threads. */
static void test_prefetch(void **state) {
    (void)state;
    enum { TICKETS = 4, IMAGES = 9 };
    struct dataset *d = open_tiny();
    int64_t n = dataset_images(d);
    float *want = malloc((size_t)n * FLOATS * sizeof *want);
    float *got = malloc(TICKETS * IMAGES * FLOATS * sizeof *got);
    for (int64_t i = 0; i < n; i++) assert_int_equal(dataset_pixels(d, i, want + i * FLOATS), 0);
    for (int threads = 0; threads <= 4; threads++) {
        struct prefetch *p = prefetch_create(d, threads, TICKETS, IMAGES);
        for (int round = 0; round < 20; round++) {
            int64_t image[TICKETS][IMAGES], ticket[TICKETS];
            int count[TICKETS];
            memset(got, 0xff, TICKETS * IMAGES * FLOATS * sizeof *got);
            for (int t = 0; t < TICKETS; t++) {
                count[t] = (round + 5 * t) % (IMAGES + 1); /* 0 too */
                for (int k = 0; k < count[t]; k++) image[t][k] = (round * 31 + t * 7 + k * 3) % n;
                ticket[t] = prefetch_submit(p, image[t], count[t], got + t * IMAGES * FLOATS);
            }
            for (int t = TICKETS - 1; t >= 0; t--) {
                assert_int_equal(prefetch_wait(p, ticket[t]), 0);
                for (int k = 0; k < count[t]; k++)
                    assert_memory_equal(got + (t * IMAGES + k) * FLOATS,
                                        want + image[t][k] * FLOATS, FLOATS * sizeof *got);
            }
        }
        prefetch_submit(p, (int64_t[]){0, 1, 2}, 3, got); /* dropped: nobody waits for it */
        prefetch_destroy(p);
    }
    free(want);
    free(got);
    dataset_close(d);
}

static void copy_file(const char *from, const char *to) {
    char *data;
    size_t bytes;
    assert_int_equal(file_read(from, 1 << 20, &data, &bytes), 0);
    assert_int_equal(file_write_atomic(to, data, bytes), 0);
    free(data);
}

/* A file that vanishes: the ticket that holds it fails, naming it; the others do not. */
static void test_prefetch_error(void **state) {
    (void)state;
    char json[128], set[128], gone[160];
    snprintf(set, sizeof set, "%s/images", folder);
    snprintf(json, sizeof json, "%s/train.json", folder);
    snprintf(gone, sizeof gone, "%s/bee.png", set);
    assert_int_equal(dir_make(set), 0);
    struct dataset *d = open_tiny();
    for (int64_t i = 0; i < dataset_images(d); i++) {
        char from[160], to[192];
        snprintf(from, sizeof from, "input/tiny/%s", dataset_image_name(d, i));
        snprintf(to, sizeof to, "%s/%s", folder, dataset_image_name(d, i));
        copy_file(from, to);
    }
    dataset_close(d);
    copy_file("input/tiny/train.json", json);
    struct data_settings s = tiny();
    s.path = json;
    assert_int_equal(dataset_prepare(&s, false, NULL, NULL), 0);
    assert_int_equal(dataset_open(&s, &d), 0);
    int64_t bee = 0, other = 0;
    while (strcmp(dataset_image_name(d, bee), "images/bee.png") != 0) bee++;
    while (strcmp(dataset_image_name(d, other), "images/bee.png") == 0) other++;
    unlink(gone);
    float *out = malloc(4 * FLOATS * sizeof *out);
    struct prefetch *p = prefetch_create(d, 3, 2, 4);
    int64_t bad = prefetch_submit(p, (int64_t[]){other, bee, other}, 3, out);
    int64_t good = prefetch_submit(p, &other, 1, out + 3 * FLOATS);
    assert_int_equal(prefetch_wait(p, good), 0);
    assert_int_equal(error_count(), 0);
    assert_int_equal(prefetch_wait(p, bad), EXIT_NO_INPUT);
    assert_non_null(strstr(error_text(), "images/bee.png"));
    error_clear();
    prefetch_destroy(p);
    free(out);
    dataset_close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sampler_epochs),
        cmocka_unit_test(test_sampler_is_pure),
        cmocka_unit_test(test_mock),
        cmocka_unit_test_setup_teardown(test_prefetch, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_prefetch_error, make_folder, remove_folder),
    };
    return cmocka_run_group_tests_name("data order", tests, NULL, NULL);
}
