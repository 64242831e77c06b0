/* Records as people bring them: keys that strata does not read, files made to be slow, images that come
 * back after the index was made. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "../../src/data/index_impl.h"
#include "index_case.h"
#include "json.h"

#define RECORD(more) "{\"id\": 1, " more ", " PAIR("Q", "A") "}"

/* ---- keys ---------------------------------------------------------------------------------------- */

static void test_keys_with_content(void **state) {
    (void)state;
    static const struct {
        const char *more, *says;
    } row[] = {
        {"\"images\": [\"apple.png\"]", "the key \"images\" carries content"},
        {"\"Image\": \"apple.png\"", "the key \"Image\" differs in case"},
        {"\"video\": \"x\"", "the key \"video\" carries"},
        {"\"audio\": {\"rate\": 1}", "the key \"audio\" carries"},
        {"\"system\": \"Be short.\"", "the key \"system\" carries"},
        {"\"System_Prompt\": \"Be short.\"", "the key \"System_Prompt\" carries"},
        {"\"text\": \"more\"", "the key \"text\" carries"},
        {"\"caption\": \"more\"", "the key \"caption\" carries"},
        {"\"answer\": \"more\"", "the key \"answer\" carries"},
        {"\"origin\": \"coco/1.JPG\"", "the key \"origin\" holds a path"},
        {"\"origin\": \"/data/coco\"", "the key \"origin\" holds a path"},
        {"\"meta\": {\"a\": [1, {\"b\": \"x.png\"}]}", "the key \"meta\" holds a path"},
        {"\"more\": [{\"from\": \"human\", \"value\": \"x\"}]",
         "the key \"more\" holds a list of turns"},
        {"\"more\": [{\"role\": \"user\"}]", "the key \"more\" holds a list of turns"},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char *text = xasprintf("[" GOOD ", {\"id\": 7, %s, " PAIR("Q", "A") "}]", row[i].more);
        struct data_settings s = json_of(text);
        expect_error(&s, EXIT_BAD_DATA, row[i].says);
        free(text);
    }
    struct data_settings s = json_of("[" RECORD("\"images\": [\"apple.png\"]") "]");
    expect_error(&s, EXIT_BAD_DATA,
                 "record 0 (id 1): the key \"images\" carries content; strata reads id, image and "
                 "conversations of a record: move what it holds there, or remove the key");
    char long_text[300];
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = '\0';
    for (int length = 256; length <= 257; length++) {
        char *text =
            xasprintf("[{\"id\": 1, \"note\": \"%.*s\", " PAIR("Q", "A") "}]", length, long_text);
        s = json_of(text);
        if (length > 256)
            expect_error(&s, EXIT_BAD_DATA, "the key \"note\" holds a long text");
        else
            dataset_close(open_set(&s));
        free(text);
    }
    static const char *const turn[] = {"\"weight\": 0", "\"loss\": true", "\"content\": \"x\"",
                                       "\"image\": \"apple.png\"", "\"From\": \"gpt\""};
    for (size_t i = 0; i < sizeof turn / sizeof *turn; i++) {
        char *text = xasprintf("[{\"id\": 1, \"conversations\": [" TURN(
                                   "human", "Q") ", {\"from\": "
                                                 "\"gpt\", \"value\": \"A\", %s}]}]",
                               turn[i]);
        s = json_of(text);
        expect_error(&s, EXIT_BAD_DATA, "from and value of a turn");
        free(text);
    }
}

static void test_harmless_keys(void **state) {
    (void)state;
    struct data_settings s = json_of("[" RECORD(
        "\"score\": 0.5, \"source\": \"llava/coco\", \"box\": [[1, 2], [3, "
        "4.5]]") ",\n" RECORD("\"score\": 1, \"images\": [], \"system\": \"\", "
                              "\"video\": null, \"text\": "
                              "false") ",\n"
                                       "{\"id\": 2, \"image\": null, \"conversations\": "
                                       "[" TURN("gpt", "no") ", " TURN(
                                           "gpt", "no") ", {\"from\": \"human\", \"value\": "
                                                        "\"Q\", \"n\": 3}, " TURN("gpt",
                                                                                  "A") "]}]");
    struct dataset *d = open_set(&s);
    assert_int_equal(dataset_count(d), 3);
    const char *notes = dataset_notes(d);
    static const char *const says[] = {
        "keys of records that strata does not read, with the number of records: score (2), source "
        "(1), "
        "box (1), images (1), system (1), video (1), text (1)\n",
        "keys of turns that strata does not read, with the number of turns: n (1)\n",
        "2 turns of gpt before the first of human are left out, in 1 records",
    };
    for (size_t i = 0; i < sizeof says / sizeof *says; i++)
        if (strstr(notes, says[i]) == NULL) fail_msg("%s in %s", says[i], notes);
    dataset_close(d);
    d = open_set(&s); /* from the file this time */
    assert_non_null(strstr(dataset_notes(d), says[0]));
    dataset_close(d);
    s = json_of("[" GOOD "]");
    d = open_set(&s);
    assert_string_equal(dataset_notes(d), "");
    dataset_close(d);
}

/* More keys than there is room for are counted, not forgotten. */
static void test_many_keys(void **state) {
    (void)state;
    struct text t = {0};
    char name[32];
    text_puts(&t, "[{\"id\": 1");
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, ", \"key_%d\": %d", i, i);
        text_puts(&t, name);
    }
    text_puts(&t, ", " PAIR("Q", "A") "}]");
    struct data_settings s = json_of(t.data);
    struct dataset *d = open_set(&s);
    assert_non_null(strstr(dataset_notes(d), "key_0 (1)"));
    assert_non_null(strstr(dataset_notes(d), "and others (976)"));
    dataset_close(d);
    free(t.data);
}

/* ---- files that are no UTF-8 JSON ------------------------------------------------------------------ */

static void test_other_files(void **state) {
    (void)state;
    static const struct {
        const char *data;
        size_t bytes;
        const char *says;
    } row[] = {
        {"\xff\xfe[\0]\0", 6, "x.json is UTF-16 text; write it as UTF-8"},
        {"[\0{\0}\0]\0", 8, "x.json is UTF-16 text"},
        {"[\n\0]", 4, "x.json holds a NUL byte in line 2"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", 65,
         "x.json is a Git LFS pointer, not the file that it stands for; fetch that file with: git "
         "lfs "
         "pull"},
    };
    struct data_settings s = json_of("");
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        write_file("x.json", row[i].data, row[i].bytes);
        expect_error(&s, EXIT_BAD_DATA, row[i].says);
    }
    s = json_of("[{\"id\": 1, " PAIR("Q", "A \\u0000") "}]");
    expect_error(&s, EXIT_BAD_DATA, "a text holds the NUL character \\u0000");
}

/* ---- files made to be slow ---------------------------------------------------------------------------- */

static long peak_kib(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_maxrss;
}

/* before, then `what` until there are so many MiB, then after. */
static struct data_settings slow_file(const char *before, const char *what, size_t mib,
                                      const char *after) {
    struct data_settings s = json_of("");
    FILE *f = fopen(at("x.json"), "w");
    assert_non_null(f);
    fputs(before, f);
    for (size_t n = 0; n < mib << 20; n += strlen(what)) fputs(what, f);
    fputs(after, f);
    assert_int_equal(fclose(f), 0);
    return s;
}

/* Memory stays below what the file takes twice and a little; the time is that of a loaded machine. */
static void expect_cheap(struct data_settings s, const char *says) {
    double begin = clock_seconds();
    long before = peak_kib();
    expect_error(&s, EXIT_BAD_DATA, says);
    double seconds = clock_seconds() - begin;
    long kib = peak_kib() - before;
    print_message("%.2f s, %ld KiB more: %s\n", seconds, kib, says);
    if (!(seconds < 10)) fail_msg("%s: %.1f s", says, seconds);
#ifndef __SANITIZE_ADDRESS__
    if (kib > 128 << 10) fail_msg("%s: %ld KiB", says, kib);
#endif
}

/* A long text is refused before it is tokenised. */
static void test_long_text(void **state) {
    (void)state;
    char *a = xmalloc((1 << 20) + 2);
    memset(a, 'a', (1 << 20) + 1);
    a[(1 << 20) + 1] = '\0';
    char *text = xasprintf(
        "[{\"id\": 1, \"conversations\": [" TURN("human", "%s") "," TURN("gpt", "") "]}]", a);
    struct data_settings s = json_of(text);
    expect_error(&s, EXIT_BAD_DATA,
                 "record 0 (id 1): its turns have 1048577 bytes of text, allowed are 1048576");
    free(text);
    free(a);
}

static void test_slow_files(void **state) {
    (void)state;
    expect_cheap(slow_file("[", "{},", 16, "{}]"), "10000 in all; reading ended there");
    expect_cheap(slow_file("[[", "{},", 16, "{}]]"), "bytes, allowed are 8388608");
    expect_cheap(slow_file("[[", "{},", 7, "{}]]"), "JSON values, allowed are 65536");
    expect_cheap(slow_file("[{\"id\": 1, \"conversations\": [", "[],", 7, "[]]}]"),
                 "JSON values, allowed are 65536");
    expect_cheap(slow_file("[{\"id\": \"", "aaaaaaaa", 16, "\"}]"), "bytes, allowed are 8388608");
    expect_cheap(slow_file("", "[", 16, ""), "ends inside a record");
    expect_cheap(slow_file("", "\xef\xbb\xbf", 16, ""), "byte order mark");
}

/* ---- files that change ---------------------------------------------------------------------------------- */

static void count_up(void *arg, int64_t done, int64_t total) {
    (void)total;
    *(int64_t *)arg = done;
}

/* Whether the index is made again now. */
static bool is_made_again(const struct data_settings *s) {
    int64_t seen = 0;
    assert_int_equal(dataset_prepare(s, false, count_up, &seen), 0);
    return seen > 0;
}

static void set_time(const char *name, const struct stat *st) {
    assert_int_equal(
        utimensat(AT_FDCWD, at(name), (struct timespec[2]){st->st_atim, st->st_mtim}, 0), 0);
}

#define IMAGE_RECORD(id, name) "{\"id\": " id ", \"image\": \"" name "\", " PAIR("<image>", "A") "}"

static void test_image_comes_back(void **state) {
    (void)state;
    struct data_settings s =
        json_of("[" IMAGE_RECORD("1", "apple.png") "," IMAGE_RECORD("2", "pear.png") "]");
    s.on_bad_image = BAD_IMAGE_SKIP;
    s.max_bad_images = 1;
    struct dataset *d = open_set(&s);
    struct dataset_report r;
    char digest[65];
    assert_int_equal(dataset_count(d), 1);
    assert_non_null(strstr(dataset_notes(d), "left out: record 1 (id 2): image pear.png cannot be "
                                             "opened: No such file or directory\n"));
    dataset_close(d);
    assert_false(is_made_again(&s));
    d = open_set(&s);
    dataset_report(d, &r);
    assert_int_equal(r.skipped_bad_image, 1);
    assert_non_null(strstr(dataset_notes(d), "left out: record 1"));
    dataset_close(d);
    copy_picture("input/tiny/images/pear.png", "pear.png", 100); /* there, but cut off */
    assert_true(is_made_again(&s));
    copy_picture("input/tiny/images/pear.png", "pear.png", 0);
    d = open_set(&s);
    assert_int_equal(dataset_count(d), 2);
    assert_string_equal(dataset_notes(d), "");
    memcpy(digest, dataset_digest(d), sizeof digest);
    dataset_close(d);
    /* the digest is that of the samples, however the index came to them */
    s.on_bad_image = BAD_IMAGE_FAIL;
    s.max_bad_images = 0;
    d = open_set(&s);
    assert_string_equal(dataset_digest(d), digest);
    dataset_close(d);
    s.on_bad_image = BAD_IMAGE_BLANK;
    s.max_bad_images = 1;
    unlink(at("pear.png"));
    assert_true(is_made_again(&s));
    copy_picture("input/tiny/images/pear.png", "pear.png", 0);
    assert_true(is_made_again(&s));
}

static void test_what_makes_it_stale(void **state) {
    (void)state;
    struct data_settings s = json_of("[" IMAGE_RECORD("1", "apple.png") "]");
    struct stat st;
    dataset_close(open_set(&s));
    assert_false(is_made_again(&s));
    assert_int_equal(stat(at("apple.png"), &st), 0);
    copy_picture(PICTURE, "apple.png", 0); /* another time */
    assert_true(is_made_again(&s));
    assert_false(is_made_again(&s));
    assert_int_equal(stat(at("apple.png"), &st), 0);
    copy_picture("input/tiny/images/pear.png", "apple.png", 0); /* another size, the same time */
    set_time("apple.png", &st);
    assert_true(is_made_again(&s));
    /* the same size and time, another head: the JSON */
    assert_int_equal(stat(at("x.json"), &st), 0);
    write_text("x.json", "[" IMAGE_RECORD("2", "apple.png") "]");
    set_time("x.json", &st);
    struct stat now;
    assert_int_equal(stat(at("x.json"), &now), 0);
    assert_true(now.st_size == st.st_size && now.st_mtim.tv_nsec == st.st_mtim.tv_nsec);
    assert_true(is_made_again(&s));
    assert_false(is_made_again(&s));
}

static void test_stale_folder(void **state) {
    (void)state;
    struct data_settings s = tiny();
    static char path[256];
    s.format = DATA_CAPTIONED_FOLDER;
    s.conversation_template = TEMPLATE_PLAIN;
    assert_int_equal(dir_make(at("set")), 0);
    snprintf(path, sizeof path, "%s/set", folder);
    s.path = path;
    copy_picture(PICTURE, "set/a.png", 0);
    write_text("set/a.txt", "an apple");
    dataset_close(open_set(&s));
    assert_false(is_made_again(&s));
    struct stat st;
    assert_int_equal(stat(at("set/a.txt"), &st), 0);
    write_text("set/a.txt", "no apple"); /* as long, of the same time */
    set_time("set/a.txt", &st);
    assert_true(is_made_again(&s));
    copy_picture("input/tiny/images/pear.png", "set/a.png", 0);
    assert_true(is_made_again(&s));
    copy_picture(PICTURE, "set/b.png", 0);
    write_text("set/b.txt", "two\nthree\n\nfour");
    assert_true(is_made_again(&s));
    s.caption_lines = CAPTION_FIRST;
    struct dataset *d = open_set(&s);
    assert_string_equal(dataset_notes(d), "2 lines behind the first are left out, in 1 captions "
                                          "(caption_lines = first)\n");
    dataset_close(d);
}

int main(void) {
#define IN_FOLDER(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_slow_files), /* first: it looks at the largest size of the process */
        IN_FOLDER(test_long_text),           IN_FOLDER(test_keys_with_content),
        IN_FOLDER(test_harmless_keys),       IN_FOLDER(test_many_keys),
        IN_FOLDER(test_other_files),         IN_FOLDER(test_image_comes_back),
        IN_FOLDER(test_what_makes_it_stale), IN_FOLDER(test_stale_folder),
    };
    return cmocka_run_group_tests_name("data records", tests, NULL, NULL);
}
