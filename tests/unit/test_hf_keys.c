/* The lists of keys of foreign JSON files: each key once, and those that are not harmless in
 * doc/import.md. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "hf_config.h"

static char *page;

struct seen {
    enum hf_object object;
    char key[256][64];
    int n;
};

static void check(void *arg, const char *key, enum hf_verdict v) {
    struct seen *s = arg;
    char quoted[80];
    const char *only;
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->key[i], key) == 0) fail_msg("object %d has %s twice", s->object, key);
    snprintf(s->key[s->n++], sizeof s->key[0], "%s", key);
    assert_true(s->n < 256);
    assert_int_equal(hf_key_verdict(s->object, key, &only), v);
    assert_true((only != NULL) == (v == HF_KEY_ONLY));
    snprintf(quoted, sizeof quoted, "`%s`", key);
    if (v != HF_KEY_HARMLESS && strstr(page, quoted) == NULL)
        fail_msg("doc/import.md does not say what becomes of %s", key);
}

static void test_documented(void **state) {
    (void)state;
    size_t bytes;
    assert_int_equal(file_read("doc/import.md", 1 << 20, &page, &bytes), 0);
    for (int o = 0; o < HF_OBJECTS; o++) {
        struct seen s = {.object = (enum hf_object)o};
        int n = hf_keys_each(s.object, check, &s);
        assert_int_equal(n, s.n);
        assert_true(s.n > 5);
        assert_int_equal(hf_key_verdict(s.object, "no_such_key", NULL), HF_KEY_UNKNOWN);
    }
    free(page);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_documented)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
