/* 2000 random conversations against ids and labels computed by LLaVA's way of tokenising prefixes
 * again and again (tests/golden/conversations/make_conversations.py, which says what a line is). */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "json.h"
#include "tokenizer_case.h"

#define STORED "tests/golden/conversations/conversations.jsonl"
#define MOST_TURNS 6

/* One stored line. */
struct expected {
    enum data_template t;
    bool image, thrown_away;
    int n_turns;
    struct text turn[MOST_TURNS]; /* normalised, as the reader of LLaVA's JSON does it */
    int64_t n;
    uint32_t ids, llava, rule;
};

static struct expected expected_read(const struct json *v) {
    struct expected e = {0};
    const struct json *turns = json_at(v, 2), *llava = json_at(v, 5);
    assert_int_equal(data_template_parse(json_string(json_at(v, 0), NULL), &e.t), 0);
    e.image = json_integer(json_at(v, 1)) != 0;
    e.n_turns = (int)json_size(turns);
    assert_in_range(e.n_turns, 2, MOST_TURNS);
    for (int i = 0; i < e.n_turns; i++) {
        size_t bytes;
        const char *text = json_string(json_at(turns, (size_t)i), &bytes);
        if (e.image)
            text_normalise_marker(&e.turn[i], text, bytes);
        else
            text_add(&e.turn[i], text, bytes);
    }
    e.n = json_integer(json_at(v, 3));
    e.ids = (uint32_t)json_integer(json_at(v, 4));
    e.thrown_away = json_kind(llava) == JSON_NULL;
    if (!e.thrown_away) e.llava = (uint32_t)json_integer(llava);
    e.rule = (uint32_t)json_integer(json_at(v, 6));
    return e;
}

static uint32_t crc_of(const int32_t *v, int64_t n) {
    return crc32c(0, v, (size_t)n * sizeof *v); /* little endian, as every machine this runs on */
}

static uint32_t crc_of_masked(int64_t n) {
    uint32_t crc = 0;
    int32_t none = DATA_NO_TARGET;
    while (n-- > 0) crc = crc32c(crc, &none, sizeof none);
    return crc;
}

/* strict: strict_llava_masking, which masks what LLaVA throws away; else the rule for labels. */
static bool is_as_expected(const struct expected *e, const struct prompt *p, bool strict) {
    bool masked = strict && prompt_is_mismatch(p, e->t);
    struct token_rows rows = {0};
    assert_int_equal(prompt_encode(p, tok, e->image, masked, &rows), 0);
    uint32_t want = !strict ? e->rule : e->thrown_away ? crc_of_masked(e->n) : e->llava;
    bool good =
        rows.n == e->n && crc_of(rows.ids, rows.n) == e->ids && crc_of(rows.labels, rows.n) == want;
    free(rows.ids);
    free(rows.labels);
    return good;
}

static bool check_line(const char *text, size_t bytes, bool *thrown_away) {
    struct json *v;
    assert_int_equal(json_read_text(STORED, text, bytes, &v), 0);
    struct expected e = expected_read(v);
    struct turn turns[MOST_TURNS];
    for (int i = 0; i < e.n_turns; i++)
        turns[i] = (struct turn){i % 2 == 0, e.turn[i].data, e.turn[i].bytes};
    struct prompt p = {0};
    prompt_build(&p, e.t, NULL, turns, e.n_turns, e.image);
    bool good = true;
    for (int strict = 0; strict < 2; strict++) {
        if (is_as_expected(&e, &p, strict)) continue;
        good = false;
        print_message("strict %d: %.*s\n", strict, (int)bytes, text);
    }
    *thrown_away = e.thrown_away;
    prompt_free(&p);
    for (int i = 0; i < e.n_turns; i++) free(e.turn[i].data);
    json_free(v);
    return good;
}

static void test_random_conversations(void **state) {
    (void)state;
    char *data;
    size_t bytes;
    int lines = 0, wrong = 0, thrown = 0;
    assert_int_equal(file_read(STORED, 1 << 20, &data, &bytes), 0);
    for (char *at = data, *end = data + bytes; at < end; lines++) {
        char *stop = memchr(at, '\n', (size_t)(end - at));
        assert_non_null(stop);
        bool thrown_away;
        wrong += !check_line(at, (size_t)(stop - at), &thrown_away);
        thrown += thrown_away;
        at = stop + 1;
    }
    free(data);
    assert_int_equal(wrong, 0);
    assert_int_equal(lines, 2000);
    assert_in_range(thrown, 100, 400); /* both kinds of rows are there in number */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_conversations)};
    return cmocka_run_group_tests_name("data conversations", tests, open_model, close_model);
}
