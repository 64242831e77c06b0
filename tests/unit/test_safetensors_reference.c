/* The reader against the reference package: what it says of 588 small files, whole and damaged, stands
 * in tests/golden/safetensors/verdicts.txt (make_verdicts.py there). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "safetensors.h"

#define VERDICTS "tests/golden/safetensors/verdicts.txt"

static int hex(char c) {
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* \xNN -> the byte, in place; how many are left. */
static size_t unescape(char *text) {
    size_t n = 0;
    for (const char *c = text; *c != 0; n++) {
        if (*c == '\\') {
            text[n] = (char)(hex(c[2]) * 16 + hex(c[3]));
            c += 4;
        } else {
            text[n] = *c++;
        }
    }
    return n;
}

static bool accepted(const char *path, const char *data, size_t bytes) {
    struct safetensors_options options = {0};
    struct safetensors *s = NULL;
    FILE *to = fopen(path, "w");
    assert_non_null(to);
    assert_int_equal(fwrite(data, 1, bytes, to), bytes);
    assert_int_equal(fclose(to), 0);
    int rc = safetensors_open(path, &options, &s);
    if (rc == 0) {
        for (int64_t i = 0; i < safetensors_count(s); i++)
            assert_true(safetensors_at(s, i)->begin + safetensors_at(s, i)->bytes <=
                        (int64_t)bytes);
        safetensors_close(s);
    } else {
        assert_int_equal(rc, EXIT_BAD_DATA);
        assert_true(error_count() > 0);
        error_clear();
    }
    return rc == 0;
}

static void test_verdicts(void **state) {
    (void)state;
    const char *folder = getenv("TEST_TMP");
    char *text, *path = xasprintf("%s/case.safetensors", folder != NULL ? folder : ".");
    size_t bytes;
    int64_t n = 0, wrong = 0;
    assert_int_equal(file_read(VERDICTS, 1 << 22, &text, &bytes), 0);
    char *next = text;
    for (char *line; (line = strsep(&next, "\n")) != NULL && *line != 0; n++) {
        char *data = strchr(line, '\t');
        *data++ = 0;
        char *shown = xstrdup(data);
        size_t length = unescape(data);
        if (accepted(path, data, length) != (strcmp(line, "accept") == 0)) {
            wrong++;
            print_error("%s, not so here: %s\n", line, shown);
        }
        free(shown);
    }
    assert_true(n > 500);
    assert_int_equal(wrong, 0);
    unlink(path);
    free(path);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_verdicts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
