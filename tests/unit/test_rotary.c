/* The frequencies of stretched rotary positions against those that transformers computes
 * (tests/golden/hf/rope.txt, made by make_odd.py beside it), from the words of a job file on. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model.h"

#define GOLDEN "tests/golden/hf/rope.txt"
#define WORDS 16

/* One line: words of [language], "=", the factor of queries and keys, the frequencies. */
static struct config *load(char *words) {
    char text[WORDS][96], *override[WORDS], *rest = NULL;
    struct config *cfg;
    int n = 0;
    for (char *w = strtok_r(words, " ", &rest); w != NULL; w = strtok_r(NULL, " ", &rest), n++) {
        assert_true(n + 1 < WORDS);
        snprintf(text[n], sizeof text[n], "language:%s", w);
        override[n] = text[n];
    }
    override[n++] = "language:vocab_size=500"; /* no tokenizer is opened */
    int rc = config_load("input/llava_tiny.ini", n, override, &cfg);
    if (rc != 0) error_print(stderr);
    assert_int_equal(rc, 0);
    return cfg;
}

static double number(char **at) {
    char *end;
    double v = strtod(*at, &end);
    assert_true(end != *at);
    *at = end;
    return v;
}

/* transformers takes powers in fp32, whose exponent 2i/n ln(base) is known to 2^-24 of itself. */
static void check_line(char *line, double *worst) {
    char *values = strstr(line, " = ");
    assert_non_null(values);
    *values = 0;
    values += 3;
    struct stack s;
    struct config *cfg = load(line);
    if (stack_build(cfg, &s) != 0) fail_msg("%s: %s", line, error_text());
    const struct rope_config *c = &s.shape.language.rotary;
    int64_t n = s.shape.language.rotary_dim;
    float *f = xcalloc((size_t)n / 2 + 1, sizeof *f);
    rope_frequencies(c, n, f);
    double scale = number(&values);
    assert_true(fabs(c->scale - scale) <= 1e-12 * scale);
    for (int64_t i = 0; i < n / 2; i++) {
        double want = number(&values), off = fabs((double)f[i] - want) / want;
        if (!(off <= *worst)) *worst = off;
        if (!(off <= 3e-6))
            fail_msg("%s: frequency %d is %g, not %g", line, (int)i, (double)f[i], want);
    }
    free(f);
    stack_free(&s);
    config_free(cfg);
}

static void test_golden(void **state) {
    (void)state;
    char *text, *rest = NULL;
    size_t bytes;
    int n = 0;
    double worst = 0;
    assert_int_equal(file_read(GOLDEN, 1 << 20, &text, &bytes), 0);
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest), n++)
        check_line(line, &worst);
    print_message("%d settings, largest relative difference %.1e\n", n, worst);
    assert_true(n > 300);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
