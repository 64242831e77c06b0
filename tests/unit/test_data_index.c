/* The index: built from both sources, read back, refused when something is wrong. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/data/index_impl.h"
#include "index_case.h"

/* Lengths and targets counted the slow way: the merged rows written out one by one. */
static void check_lengths(const struct sample *s, int64_t k, int64_t limit) {
    int64_t rows = 0, targets = 0;
    for (int32_t i = 0; i < s->text_len; i++) {
        bool marker = s->ids[i] == DATA_IMAGE_MARKER;
        for (int64_t r = 0; r < (marker ? k : 1); r++, rows++)
            if (rows > 0 && rows < limit && s->labels[i] != DATA_NO_TARGET) targets++;
    }
    assert_int_equal(s->merged_len, rows < limit ? rows : limit);
    assert_int_equal(s->n_targets, targets);
}

static void count_up(void *arg, int64_t done, int64_t total) {
    int64_t *seen = arg;
    assert_true(done <= total || total == 0);
    *seen = done;
}

static void test_tiny(void **state) {
    (void)state;
    struct data_settings s = tiny();
    struct dataset *d;
    int64_t seen = 0;
    assert_int_equal(dataset_open(&s, &d), EXIT_NO_INPUT);
    error_clear();
    assert_int_equal(dataset_prepare(&s, false, count_up, &seen), 0);
    assert_true(seen > 32);
    seen = 0;
    assert_int_equal(dataset_prepare(&s, false, count_up, &seen), 0);
    assert_int_equal(seen, 0); /* it was there */
    assert_int_equal(dataset_open(&s, &d), 0);
    assert_int_equal(dataset_count(d), 32);
    struct dataset_report r;
    dataset_report(d, &r);
    assert_int_equal(r.samples, 32);
    assert_int_equal(r.text_only, 6);
    assert_int_equal(r.images, 35);
    assert_int_equal(r.cut_samples + r.no_target_samples + r.skipped_bad_image, 0);
    assert_true(r.longest > 100 && r.longest <= 256);
    int several = 0;
    for (int64_t i = 0; i < 32; i++) {
        struct sample x;
        dataset_sample(d, i, &x);
        check_lengths(&x, 16, 256);
        assert_true(x.n_targets > 0 && x.ids[0] == 1);
        several += x.n_images > 1;
    }
    assert_int_equal(several, 7);
    dataset_close(d);
}

/* Cut inside the text and inside an image; counts follow. */
static void test_cut(void **state) {
    (void)state;
    for (int64_t limit = 20; limit < 140; limit += 7) {
        struct data_settings s = tiny();
        s.decoder_seq_length = limit;
        s.on_no_target = NO_TARGET_SKIP;
        if (limit < 110) { /* everything is cut away: that is an error, not an empty set */
            s.on_no_target = NO_TARGET_FAIL;
            if (limit < 90) expect_error(&s, EXIT_BAD_DATA, "has no target token within");
            continue;
        }
        struct dataset *d = open_set(&s);
        struct dataset_report r;
        dataset_report(d, &r);
        assert_true(r.cut_samples > 0);
        assert_int_equal(r.samples + r.skipped_no_target, 32);
        for (int64_t i = 0; i < dataset_count(d); i++) {
            struct sample x;
            dataset_sample(d, i, &x);
            check_lengths(&x, 16, limit);
        }
        dataset_close(d);
    }
}

static void test_settings_make_files(void **state) {
    (void)state;
    struct data_settings s = tiny();
    char *a = dataset_index_path(&s);
    s.decoder_seq_length = 255;
    char *b = dataset_index_path(&s);
    s = tiny();
    s.conversation_template = TEMPLATE_MISTRAL_INSTRUCT;
    char *c = dataset_index_path(&s);
    s = tiny();
    s.num_workers = 7; /* shapes nothing */
    char *e = dataset_index_path(&s);
    assert_true(strcmp(a, b) != 0 && strcmp(a, c) != 0 && strcmp(b, c) != 0);
    assert_string_equal(a, e);
    free(a);
    free(b);
    free(c);
    free(e);
}

/* Same data, same bytes: the digest and the whole file. */
static void test_bytes_repeat(void **state) {
    (void)state;
    struct data_settings s = tiny();
    char *path = dataset_index_path(&s), *data[2];
    size_t bytes[2];
    for (int i = 0; i < 2; i++) {
        s.num_workers = 1 + 3 * i;
        assert_int_equal(dataset_prepare(&s, true, NULL, NULL), 0);
        assert_int_equal(file_read(path, 1 << 24, &data[i], &bytes[i]), 0);
    }
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    free(data[0]);
    free(data[1]);
    free(path);
}

/* Flipped bytes anywhere in the file: either found, or the same data are read. */
static void test_damaged_file(void **state) {
    (void)state;
    struct data_settings s = tiny();
    struct dataset *d = open_set(&s);
    char digest[65], *path = dataset_index_path(&s), *data;
    size_t bytes;
    int found = 0;
    memcpy(digest, dataset_digest(d), sizeof digest);
    dataset_close(d);
    assert_int_equal(file_read(path, 1 << 24, &data, &bytes), 0);
    for (size_t i = 0; i < bytes; i += 1 + bytes / 500) {
        struct index x, y;
        data[i] ^= 0x55;
        assert_int_equal(file_write_atomic(path, data, bytes), 0);
        data[i] ^= 0x55;
        int rc = index_file_read(path, &x);
        if (rc == 0) rc = index_validate(&x, path, s.vocab_size);
        y = x;
        if (rc == 0) {
            index_compute_digest(&x, digest);
            assert_string_equal(digest, x.digest);
        }
        found += rc != 0;
        index_free(&y);
        error_clear();
    }
    assert_true(found > 10);
    assert_int_equal(truncate(path, (off_t)bytes / 2), 0);
    assert_int_equal(dataset_open(&s, &d), EXIT_BAD_DATA);
    error_clear();
    assert_int_equal(dataset_prepare(&s, false, NULL, NULL), 0); /* made again */
    assert_int_equal(dataset_open(&s, &d), 0);
    dataset_close(d);
    free(data);
    free(path);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void test_json_errors(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } row[] = {
        {"", "expected '['"},
        {"{}", "expected '['"},
        {"\xef\xbb\xbf[]", "byte order mark"},
        {"[]", "holds no record"},
        {"[" GOOD, "ends inside a record"},
        {"[" GOOD ",", "ends inside a record"},
        {"[" GOOD "] 1", "behind the array's end"},
        {"[" GOOD ", {\"id\": 2, }]", "record 1 (at byte"},
        {"[" GOOD ", 5]", "record 1 (id none): it is no object"},
        {"[{" PAIR("Q", "A") "}]", "\"id\" is missing"},
        {"[{\"id\": 1.5, " PAIR("Q", "A") "}]", "\"id\" is missing"},
        {"[{\"id\": \"k\"}]", "(id k): \"conversations\" is missing"},
        {"[{\"id\": 1, \"id\": 2, " PAIR("Q", "A") "}]", "duplicate"},
        {"[{\"id\": 1, \"conversations\": []}]", "conversation is empty"},
        {"[{\"id\": 1, \"conversations\": [" TURN("system", "x") "]}]", "role \"system\""},
        {"[{\"id\": 1, \"conversations\": [" TURN("human", "x") "," TURN("human", "x") "]}]",
         "two turns of human in a row"},
        {"[{\"id\": 1, \"conversations\": [{\"from\": \"human\"}]}]", "needs \"from\" and"},
        {"[{\"id\": 1, \"image\": 5, " PAIR("<image>", "A") "}]", "non-empty path"},
        {"[{\"id\": 7, \"image\": \"apple.png\", " PAIR("Q", "A") "}]",
         "(id 7): 0 <image> markers for 1 images"},
        {"[{\"id\": 7, \"image\": [\"apple.png\", \"apple.png\"], " PAIR("<image>", "A") "}]",
         "(id 7): 1 <image> markers for 2 images"},
        {"[{\"id\": 8, \"image\": \"apple.png\", " PAIR("<image>", "an <image>") "}]",
         "(id 8): 2 <image> markers"},
        {"[{\"id\": 9, \"image\": \"pear.png\", " PAIR("<image>", "A") "}]", "image pear.png"},
        {"[{\"id\": 9, \"image\": \"../x.png\", " PAIR("<image>", "A") "}]", "illegal name"},
        {"[{\"id\": 9, " PAIR("<image>?", "A") "}]",
         "<image> stands in its text, but it has no image"},
        {"[{\"id\": 9, " PAIR("Q", "an <image>") "}]", "(id 9): <image> stands in its text"},
        {"[{\"id\": 9, \"image\": [], " PAIR("<image>", "A") "}]", "but it has no image"},
        {"[{\"id\": 9, \"image\": null, " PAIR("<image>", "A") "}]", "but it has no image"},
        {"[{\"id\": 9, " PAIR("Q", "") "}]", "has no target token"},
        {"[{\"id\": \"\xff\", " PAIR("Q", "A") "}]", "unable to decode byte 0xff"},
    };
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++) {
        struct data_settings s = json_of(row[i].text);
        int code = strstr(row[i].says, "pear.png") != NULL ? EXIT_NO_INPUT : EXIT_BAD_DATA;
        expect_error(&s, code, row[i].says);
    }
    struct data_settings s = tiny();
    s.path = at("none.json");
    expect_error(&s, EXIT_NO_INPUT, "none.json");
}

static void test_json_details(void **state) {
    (void)state;
    /* first turn of gpt dropped; no image; extra keys; id as number */
    struct data_settings s =
        json_of("[{\"id\": 3, \"model\": \"\", \"conversations\": [" TURN("gpt", "x") ", " TURN(
            "human", "Q?") ", " TURN("gpt", "A") "]},\n"
                                                 "{\"id\": \"b\", \"image\": \"apple.png\", " PAIR(
                                                     "a <image> b",
                                                     "A") "},\n"
                                                          "{\"id\": \"c\", \"image\": "
                                                          "[\"apple.png\", \"apple.png\"], " PAIR(
                                                              "x <image> y <image>", "A") "}]");
    struct dataset *d = open_set(&s);
    struct sample x;
    dataset_sample(d, 0, &x);
    assert_string_equal(x.name, "3");
    assert_int_equal(x.n_images, 0);
    for (int32_t k = 0; k < x.text_len; k++) assert_true(x.ids[k] >= 0);
    dataset_sample(d, 1, &x);
    assert_int_equal(x.n_images, 1);
    dataset_sample(d, 2, &x);
    assert_string_equal(x.name, "c");
    assert_int_equal(x.n_images, 2);
    assert_int_equal(x.image[1], 2);
    dataset_close(d);
}

static void test_problems_are_counted(void **state) {
    (void)state;
    struct text t = {0};
    text_puts(&t, "[" GOOD);
    for (int i = 0; i < 25; i++) text_puts(&t, ",{\"id\": 4, " PAIR("Q", "") "}");
    text_puts(&t, "]");
    struct data_settings s = json_of(t.data);
    expect_error(&s, EXIT_BAD_DATA, "15 more of the kind, 25 in all");
    s.on_no_target = NO_TARGET_KEEP;
    expect_error(&s, EXIT_BAD_DATA, "25 of 26 samples have no target token");
    s.on_no_target = NO_TARGET_SKIP;
    struct dataset *d = open_set(&s);
    assert_int_equal(dataset_count(d), 1);
    dataset_close(d);
    free(t.data);
}

static void test_plain_needs_pairs(void **state) {
    (void)state;
    struct data_settings s = json_of("[" GOOD "]");
    s.conversation_template = TEMPLATE_PLAIN;
    expect_error(&s, EXIT_BAD_DATA, "template plain needs two turns");
    s = json_of("[{\"id\": 1, \"image\": \"apple.png\", " PAIR("<image>", "") "}]");
    s.conversation_template = TEMPLATE_PLAIN;
    struct dataset *d = open_set(&s);
    dataset_close(d);
}

static void test_vocabulary(void **state) {
    (void)state;
    struct data_settings s = tiny();
    s.vocab_size = 399;
    expect_error(&s, EXIT_USAGE, "has 400 pieces, but the model's vocab_size is 399");
    s.vocab_size = 512;
    struct dataset *d = open_set(&s);
    dataset_close(d);
    s = tiny();
    s.tokenizer_model = "Makefile";
    expect_error(&s, EXIT_BAD_DATA, "Makefile is no SentencePiece model");
}

/* ---- bad images ------------------------------------------------------------------------------ */

#define IMAGE_RECORD(id, name) "{\"id\": " id ", \"image\": \"" name "\", " PAIR("<image>", "A") "}"

static void test_bad_images(void **state) {
    (void)state;
    struct data_settings s = json_of("[" IMAGE_RECORD("1", "apple.png") "," IMAGE_RECORD(
        "2", "cut.jpg") "," IMAGE_RECORD("3", "gone.png") "," GOOD "]");
    copy_picture("input/tiny/images/house.jpg", "cut.jpg", 900);
    expect_error(&s, EXIT_BAD_DATA, "(id 2): image cut.jpg is a truncated JPEG");
    s.on_bad_image = BAD_IMAGE_SKIP;
    expect_error(&s, EXIT_BAD_DATA, "2 images cannot be used, max_bad_images = 0");
    s.max_bad_images = 2;
    struct dataset *d = open_set(&s);
    struct dataset_report r;
    dataset_report(d, &r);
    assert_int_equal(r.samples, 2);
    assert_int_equal(r.skipped_bad_image, 2);
    dataset_close(d);
    s.on_bad_image = BAD_IMAGE_BLANK;
    d = open_set(&s);
    dataset_report(d, &r);
    assert_int_equal(r.samples, 4);
    assert_int_equal(r.blank_images, 2);
    float out[3 * 28 * 28];
    memset(out, 1, sizeof out);
    assert_int_equal(dataset_pixels(d, 1, out), 0);
    for (int i = 0; i < 3 * 28 * 28; i++) assert_true(out[i] == 0);
    dataset_close(d);
}

/* What changes after the index was made is an error of that moment, or blank within the limit. */
static void test_image_changes_later(void **state) {
    (void)state;
    float out[3 * 28 * 28];
    struct data_settings s = json_of("[" IMAGE_RECORD("1", "apple.png") "]");
    struct dataset *d = open_set(&s);
    assert_int_equal(dataset_pixels(d, 0, out), 0);
    copy_picture("input/tiny/images/pear.png", "apple.png", 0);
    assert_int_equal(dataset_pixels(d, 0, out), EXIT_BAD_DATA);
    assert_non_null(strstr(error_text(), "apple.png is another file than when the index was made"));
    error_clear();
    unlink(at("apple.png"));
    assert_int_equal(dataset_pixels(d, 0, out), EXIT_NO_INPUT);
    assert_non_null(strstr(error_text(), "apple.png"));
    error_clear();
    dataset_close(d);
    for (int limit = 0; limit < 2; limit++) {
        copy_picture(PICTURE, "apple.png", 0);
        s.on_bad_image = BAD_IMAGE_BLANK;
        s.max_bad_images = limit;
        d = open_set(&s);
        unlink(at("apple.png"));
        for (int again = 0; again < 2; again++)
            assert_int_equal(dataset_pixels(d, 0, out), limit == 0 ? EXIT_NO_INPUT : 0);
        error_clear();
        dataset_close(d);
    }
}

/* ---- captioned folder ------------------------------------------------------------------------ */

static struct data_settings captioned(void) {
    struct data_settings s = tiny();
    s.format = DATA_CAPTIONED_FOLDER;
    s.conversation_template = TEMPLATE_PLAIN;
    assert_int_equal(dir_make(at("set/b")), 0);
    copy_picture(PICTURE, "set/b/one.png", 0);
    copy_picture("input/tiny/images/house.jpg", "set/a.jpg", 0);
    write_text("set/b/one.txt", "\n  \n  A red apple. \r\nsecond line\n");
    write_text("set/a.txt", "a house");
    write_text("set/.hidden", "");
    static char path[256];
    snprintf(path, sizeof path, "%s/set", folder);
    s.path = path;
    return s;
}

/* The text that sample i of the folder is trained on. */
static void expect_caption(const struct data_settings *s, int64_t i, const char *wanted) {
    struct dataset *d = open_set(s);
    struct sample x;
    struct tokenizer *t;
    dataset_sample(d, i, &x);
    assert_int_equal(tokenizer_open(s->tokenizer_type, s->tokenizer_model, &t), 0);
    char *text = tokenizer_decode(t, x.ids, x.text_len, NULL);
    assert_string_equal(text, wanted);
    free(text);
    tokenizer_close(t);
    dataset_close(d);
}

/* Ends of lines, byte order marks, and files that are no UTF-8 text. */
static void test_caption_text(void **state) {
    (void)state;
    struct data_settings s = captioned();
    static const struct {
        const char *data;
        size_t bytes;
        const char *all, *first;
    } row[] = {
        {"a house", 7, "a house\n", "a house\n"},
        {"\xef\xbb\xbf"
         "a house",
         10, "a house\n", "a house\n"},
        {"\xef\xbb\xbf\r\n\xef\xbb\xbf", 8, "\xef\xbb\xbf\n",
         "\xef\xbb\xbf\n"}, /* not at the head */
        {"a\r\n\r\n b \rc", 10, "a\nb\nc\n", "a\n"},
        {"\n\n a\tb\n", 7, "a\tb\n", "a\tb\n"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        write_file("set/a.txt", row[i].data, row[i].bytes);
        s.caption_lines = CAPTION_ALL;
        expect_caption(&s, 0, row[i].all);
        s.caption_lines = CAPTION_FIRST;
        expect_caption(&s, 0, row[i].first);
    }
    static const struct {
        const char *data;
        size_t bytes;
        const char *says;
    } bad[] = {
        {"\xef\xbb\xbf", 3, "set/a.txt holds no caption"},
        {"\xef\xbb\xbf\r\n \n", 7, "set/a.txt holds no caption"},
        {"\xff\xfe"
         "a\0\n\0",
         6, "set/a.txt is UTF-16 text; write it as UTF-8"},
        {"a\0 \0b\0", 6, "set/a.txt is UTF-16 text"},
        {"one\ntwo \0 three", 15, "set/a.txt holds a NUL byte in line 2 (byte 8)"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", 65,
         "set/a.txt is a Git LFS pointer"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("set/a.txt", bad[i].data, bad[i].bytes);
        expect_error(&s, EXIT_BAD_DATA, bad[i].says);
    }
}

static void test_captioned_folder(void **state) {
    (void)state;
    struct data_settings s = captioned();
    struct dataset *d = open_set(&s);
    struct sample x;
    assert_int_equal(dataset_count(d), 2);
    dataset_sample(d, 0, &x);
    assert_string_equal(x.name, "a.jpg");
    dataset_sample(d, 1, &x);
    assert_string_equal(x.name, "b/one.png");
    dataset_close(d);
    expect_caption(&s, 1, "A red apple.\nsecond line\n");
    s.caption_lines = CAPTION_FIRST;
    expect_caption(&s, 1, "A red apple.\n");
    s.caption_lines = CAPTION_ALL;
    /* an edited caption makes the index stale */
    write_text("set/a.txt", "a red house");
    d = open_set(&s);
    int64_t seen = 0;
    assert_int_equal(dataset_prepare(&s, false, count_up, &seen), 0);
    assert_int_equal(seen, 0);
    dataset_close(d);
    write_text("set/lone.txt", "x");
    copy_picture(PICTURE, "set/b/single.png", 0);
    expect_error(&s, EXIT_BAD_DATA, "set/lone.txt has no image of the same name beside it");
    expect_error(&s, EXIT_BAD_DATA, "set/b/single.png has no .txt of the same name beside it");
    unlink(at("set/lone.txt"));
    write_text("set/b/single.txt", " \n\n");
    expect_error(&s, EXIT_BAD_DATA, "single.txt holds no caption");
    write_text("set/b/single.txt", "\xc3(");
    expect_error(&s, EXIT_BAD_DATA, "single.txt is no UTF-8");
    write_text("set/b/single.txt", "two <image> markers");
    expect_error(&s, EXIT_BAD_DATA, "2 <image> markers for 1 images");
    copy_picture(PICTURE, "set/b/single.jpeg", 0);
    expect_error(&s, EXIT_BAD_DATA, "have the same stem");
}

int main(void) {
#define IN_FOLDER(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_tiny),
        IN_FOLDER(test_cut),
        IN_FOLDER(test_settings_make_files),
        IN_FOLDER(test_bytes_repeat),
        IN_FOLDER(test_damaged_file),
        IN_FOLDER(test_json_errors),
        IN_FOLDER(test_json_details),
        IN_FOLDER(test_problems_are_counted),
        IN_FOLDER(test_plain_needs_pairs),
        IN_FOLDER(test_vocabulary),
        IN_FOLDER(test_bad_images),
        IN_FOLDER(test_image_changes_later),
        IN_FOLDER(test_captioned_folder),
        IN_FOLDER(test_caption_text),
    };
    return cmocka_run_group_tests_name("data index", tests, NULL, NULL);
}
