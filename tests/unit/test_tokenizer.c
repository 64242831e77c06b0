/* Tokenizer models that are made here: special pieces that begin alike, very many of them, and files
 * that are no model. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../src/data/template_impl.h"
#include "data_case.h"

/* ---- a serialised SentencePiece model ------------------------------------------------------------ */

enum piece_type { NORMAL = 1, UNKNOWN = 2, CONTROL = 3 };

static void put_varint(struct text *t, size_t v) {
    do {
        char c = (char)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
        text_add(t, &c, 1);
    } while ((v >>= 7) > 0);
}

static void put_bytes(struct text *t, int field, const char *data, size_t bytes) {
    put_varint(t, (size_t)field << 3 | 2);
    put_varint(t, bytes);
    text_add(t, data, bytes);
}

static void put_piece(struct text *t, const char *data, size_t bytes, enum piece_type type) {
    struct text p = {0};
    put_bytes(&p, 1, data, bytes);
    text_add(&p, "\x15\0\0\0\0", 5); /* score 0 */
    put_varint(&p, 3 << 3);
    put_varint(&p, type);
    put_bytes(t, 1, p.data, p.bytes);
    free(p.data);
}

static void put_word(struct text *t, const char *word, enum piece_type type) {
    put_piece(t, word, strlen(word), type);
}

/* <unk>, <s>, </s>, then what the caller adds. */
static void model_begin(struct text *t) {
    *t = (struct text){0};
    put_word(t, "<unk>", UNKNOWN);
    put_word(t, "<s>", CONTROL);
    put_word(t, "</s>", CONTROL);
    put_word(t, "\xe2\x96\x81", NORMAL);
    put_word(t, "a", NORMAL);
    put_word(t, "b", NORMAL);
}
#define FIRST_ADDED 6

static char path[256];

static int model_open(struct text *t, struct tokenizer **out) {
    put_bytes(t, 2, "\x18\x02", 2); /* trainer_spec: model_type = BPE */
    snprintf(path, sizeof path, "%s/made.model", folder);
    assert_int_equal(file_write_atomic(path, t->data, t->bytes), 0);
    free(t->data);
    return tokenizer_open("SentencePieceTokenizer", path, out);
}

static void expect_refused(const void *data, size_t bytes, const char *says) {
    struct tokenizer *t;
    snprintf(path, sizeof path, "%s/made.model", folder);
    assert_int_equal(file_write_atomic(path, data, bytes), 0);
    assert_int_equal(tokenizer_open("SentencePieceTokenizer", path, &t), EXIT_BAD_DATA);
    if (strstr(error_text(), says) == NULL) fail_msg("%s in %s", says, error_text());
    error_clear();
}

/* ---- special pieces -------------------------------------------------------------------------------- */

/* The longest piece at each place, found by trying all. */
static void check_slow(const struct tokenizer *t, const char *const *piece, int n_pieces,
                       const char *text) {
    struct id_list list = {0};
    int64_t n = 0;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), false, false, &list), 0);
    for (const char *at = text; *at != '\0';) {
        int best = -1;
        for (int i = 0; i < n_pieces; i++) {
            size_t length = strlen(piece[i]);
            if (strncmp(at, piece[i], length) == 0 && (best < 0 || length > strlen(piece[best])))
                best = i;
        }
        if (best < 0) {
            at++;
            continue;
        }
        while (n < list.n && list.ids[n] < FIRST_ADDED) n++; /* text between them */
        assert_true(n < list.n);
        assert_int_equal(list.ids[n++], FIRST_ADDED + best);
        at += strlen(piece[best]);
    }
    while (n < list.n && list.ids[n] < FIRST_ADDED) n++;
    assert_int_equal(n, list.n);
    free(list.ids);
}

static void test_longest_special(void **state) {
    (void)state;
    static const char *const piece[] = {"<x",   "<xyz>", "<x>", "<xy",  "q",
                                        "<xyw", "<",     "<yy", "\xff", "qq<x>"};
    enum { N = sizeof piece / sizeof *piece };
    static const char letter[] = "<xyz>qwab";
    struct text m;
    struct tokenizer *t;
    model_begin(&m);
    for (int i = 0; i < N; i++) put_word(&m, piece[i], CONTROL);
    assert_int_equal(model_open(&m, &t), 0);
    struct rng_key key = rng_run_key(3);
    for (uint32_t round = 0; round < 3000; round++) {
        char text[24];
        uint32_t w[4];
        for (uint32_t i = 0; i < sizeof text - 1; i++) {
            philox4x32(key, (const uint32_t[4]){i, round, 0, 0}, w);
            text[i] = letter[w[0] % (sizeof letter - 1)];
        }
        text[w[1] % sizeof text] = '\0';
        text[sizeof text - 1] = '\0';
        check_slow(t, piece, N, text);
    }
    tokenizer_close(t);
}

/* 100,000 special pieces that all begin as the text does: looking at each of them for each byte of the
 * text takes a minute. */
static void test_many_specials(void **state) {
    (void)state;
    enum { N = 100000, TEXT = 200000 };
    struct text m;
    struct tokenizer *t;
    model_begin(&m);
    for (int i = 0; i < N; i++) {
        char word[32];
        snprintf(word, sizeof word, "aaaaaaaaaaaa%07d", i);
        put_word(&m, word, CONTROL);
    }
    assert_int_equal(model_open(&m, &t), 0);
    char *text = xmalloc(TEXT);
    memset(text, 'a', TEXT);
    for (int i = 100; i + 10 < TEXT; i += 100) memcpy(text + i, "0000007 ", 8);
    struct id_list list = {0};
    double begin = clock_seconds();
    assert_int_equal(tokenizer_encode(t, text, TEXT, false, false, &list), 0);
    double seconds = clock_seconds() - begin;
    int64_t found = 0;
    for (int64_t i = 0; i < list.n; i++) found += list.ids[i] == FIRST_ADDED + 7;
    assert_int_equal(found, TEXT / 100 - 1);
    if (!(seconds < 10)) fail_msg("%.1f s", seconds);
    free(list.ids);
    free(text);
    tokenizer_close(t);
}

static void test_piece_with_nul(void **state) {
    (void)state;
    struct text m;
    struct tokenizer *t;
    model_begin(&m);
    put_piece(&m, "x\0y", 3, CONTROL);
    put_piece(&m, "\0", 1, CONTROL);
    assert_int_equal(model_open(&m, &t), 0);
    struct id_list list = {0};
    assert_int_equal(tokenizer_encode(t, "ax\0yb\0", 6, false, false, &list), 0);
    assert_true(list.n >= 4 && list.ids[list.n - 1] == FIRST_ADDED + 1);
    int64_t whole = 0;
    for (int64_t i = 0; i < list.n; i++) whole += list.ids[i] == FIRST_ADDED;
    assert_int_equal(whole, 1);
    assert_int_equal(tokenizer_piece_id(t, "x"), -1);
    free(list.ids);
    tokenizer_close(t);
}

/* ---- what is refused --------------------------------------------------------------------------------- */

static void test_refused(void **state) {
    (void)state;
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 493443\n";
    expect_refused(pointer, sizeof pointer - 1, "made.model is a Git LFS pointer");
    expect_refused(pointer, sizeof pointer - 1, "git lfs pull");
    struct text m;
    struct tokenizer *t;
    model_begin(&m);
    char word[200];
    memset(word, 'x', sizeof word);
    put_piece(&m, word, 129, CONTROL);
    assert_int_equal(model_open(&m, &t), EXIT_BAD_DATA);
    assert_non_null(strstr(error_text(), "the special piece 6 has 129 bytes, allowed are 128"));
    error_clear();
    /* empty pieces, two bytes each, of which libsentencepiece would make objects */
    const size_t n = 1000001;
    char *many = xmalloc(2 * n);
    for (size_t i = 0; i < n; i++) memcpy(many + 2 * i, "\x0a\0", 2);
    expect_refused(many, 2 * n, "has 1000001 pieces, allowed are 1..1000000");
    free(many);
}

int main(void) {
#define IN_FOLDER(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_FOLDER(test_longest_special),
        IN_FOLDER(test_many_specials),
        IN_FOLDER(test_piece_with_nul),
        IN_FOLDER(test_refused),
    };
    return cmocka_run_group_tests_name("tokenizer", tests, NULL, NULL);
}
