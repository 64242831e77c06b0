/* Answers: the text carries every byte that the tokens have, a NUL byte too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../../src/train/generate_impl.h"
#include "tokenizer_case.h"

static int32_t byte_id(int byte) {
    char piece[8];
    snprintf(piece, sizeof piece, "<0x%02X>", byte);
    int32_t id = tokenizer_piece_id(tok, piece);
    assert_true(id >= 0);
    return id;
}

/* The line of the answer made of n byte tokens. `shown` gets what was streamed. */
static char *line_of(const char *bytes, size_t n, const char *stop, char *shown, size_t *n_shown,
                     struct answer *a) {
    char *stream = NULL;
    struct question q = {.numbered = true, .number = 7, .name = "7", .prompt = "What?"};
    *a = (struct answer){.tokenizer = tok, .stop_text = stop};
    a->stream = open_memstream(&stream, n_shown);
    answer_begin(a);
    for (size_t i = 0; i < n && !a->ended; i++)
        assert_int_equal(answer_add(a, byte_id((unsigned char)bytes[i])), 0);
    answer_end(a);
    fclose(a->stream);
    assert_true(*n_shown < 64);
    memcpy(shown, stream, *n_shown);
    free(stream);
    return answer_line(a, &q, "model");
}

static void expect_text(const char *line, const char *text, size_t bytes) {
    /* json_read_text refuses \u0000, so the line is compared as it stands */
    char *wanted = xmalloc(6 * bytes + 3), *to = wanted;
    *to++ = '"';
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\0')
            memcpy(to, "\\u0000", 6), to += 6;
        else
            *to++ = text[i];
    }
    memcpy(to, "\"", 2);
    if (strstr(line, wanted) == NULL) fail_msg("%s in %s", wanted, line);
    free(wanted);
}

static void test_nul_is_kept(void **state) {
    (void)state;
    char shown[64];
    size_t n;
    struct answer a;
    char *line = line_of("ab\0cd", 5, NULL, shown, &n, &a);
    expect_text(line, "ab\0cd", 5);
    assert_int_equal(n, 6);
    assert_memory_equal(shown, "ab\0cd\n", 6);
    assert_int_equal(a.bytes, 5);
    free(line);
    answer_free(&a);
    line = line_of("\0", 1, NULL, shown, &n, &a); /* no blank: it is not trimmed */
    expect_text(line, "\0", 1);
    assert_memory_equal(shown, "\0\n", 2);
    free(line);
    answer_free(&a);
    /* other bytes behind the NUL give another answer_id */
    char *one = line_of("a\0b", 3, NULL, shown, &n, &a);
    answer_free(&a);
    char *two = line_of("a\0c", 3, NULL, shown, &n, &a);
    answer_free(&a);
    const char *id = "\"answer_id\": \"";
    assert_true(strncmp(strstr(one, id), strstr(two, id), strlen(id) + 22) != 0);
    free(one);
    free(two);
}

static void test_stop_text_behind_nul(void **state) {
    (void)state;
    char shown[64];
    size_t n;
    struct answer a;
    char *line = line_of("a\0b \nrest", 9, "\n", shown, &n, &a);
    expect_text(line, "a\0b", 3);
    assert_true(a.ended);
    assert_int_equal(n, 4);
    assert_memory_equal(shown, "a\0b\n", 4);
    free(line);
    answer_free(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nul_is_kept),
        cmocka_unit_test(test_stop_text_behind_nul),
    };
    return cmocka_run_group_tests_name("answer", tests, open_model, close_model);
}
