/* What the tests of the index share: files in the folder of the test, a JSON beside one picture. */
#ifndef INDEX_CASE_H
#define INDEX_CASE_H
#include <string.h>

#include "data_case.h"

#define PICTURE "input/tiny/images/apple.png"

static inline char *at(const char *name) {
    static char path[4][256];
    static int next;
    char *p = path[next = (next + 1) % 4];
    snprintf(p, sizeof path[0], "%s/%s", folder, name);
    return p;
}

static inline void write_file(const char *name, const void *data, size_t bytes) {
    FILE *f = fopen(at(name), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    fclose(f);
}

static inline void write_text(const char *name, const char *text) {
    write_file(name, text, strlen(text));
}

/* bytes of a picture, the first n of them if n > 0. */
static inline void copy_picture(const char *from, const char *name, size_t n) {
    char *data;
    size_t bytes;
    assert_int_equal(file_read(from, 1 << 20, &data, &bytes), 0);
    write_file(name, data, n > 0 ? n : bytes);
    free(data);
}

/* A JSON of the text beside one picture, apple.png. */
static inline struct data_settings json_of(const char *text) {
    struct data_settings s = tiny();
    copy_picture(PICTURE, "apple.png", 0);
    write_text("x.json", text);
    static char path[256];
    snprintf(path, sizeof path, "%s/x.json", folder);
    s.path = path;
    return s;
}

static inline void expect_error(const struct data_settings *s, int code, const char *says) {
    struct dataset *d;
    int rc = dataset_prepare(s, false, NULL, NULL);
    if (rc == 0) rc = dataset_open(s, &d);
    if (rc != code || strstr(error_text(), says) == NULL)
        fail_msg("code %d, wanted %d; said \"%s\", wanted \"%s\"", rc, code, error_text(), says);
    error_clear();
}

static inline struct dataset *open_set(const struct data_settings *s) {
    struct dataset *d;
    if (dataset_prepare(s, false, NULL, NULL) != 0 || dataset_open(s, &d) != 0)
        fail_msg("%s", error_text());
    return d;
}

#define TURN(role, text) "{\"from\": \"" role "\", \"value\": \"" text "\"}"
#define PAIR(q, a) "\"conversations\": [" TURN("human", q) ", " TURN("gpt", a) "]"
#define GOOD "{\"id\": 1, " PAIR("Q", "A") "}"
#endif
