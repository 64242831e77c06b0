/* Weight decay acts on the weights on which transformers' Trainer lets it act
 * (tests/golden/hf/decay.txt, made by make_odd.py beside it): all but norms and biases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "model_kit.h"

#define GOLDEN "tests/golden/hf/decay.txt"

static const struct param *find(const struct param_set *set, const char *name) {
    for (int i = 0; i < set->n; i++)
        if (strcmp(set->param[i].hf_name, name) == 0) return &set->param[i];
    return NULL;
}

static void test_decay(void **state) {
    (void)state;
    char *text, *rest = NULL;
    size_t bytes;
    int n = 0;
    struct stage st;
    struct config c = kit_config();
    kit_anyres(&c);
    c.vision.num_layers = 3;
    c.language.num_layers = 2;
    c.language.add_bias_linear = true;
    struct stack s = kit_stack(&c);
    assert_int_equal(stage_build(&s, 0, s.n_layers, 1, 0, REPEAT_NOTHING, 0, &st), 0);
    assert_int_equal(file_read(GOLDEN, 1 << 20, &text, &bytes), 0);
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest), n++) {
        char *word = strchr(line, ' ');
        assert_non_null(word);
        *word = 0;
        const struct param *p = find(&st.params, line);
        if (p == NULL) fail_msg("the model has no %s", line);
        if (p->decay != (word[1] == '1'))
            fail_msg("%s: decay is %d, transformers has %c", line, p->decay, word[1]);
    }
    assert_int_equal(n, st.params.n);
    assert_true(find(&st.params, "image_newline")->decay);
    free(text);
    stage_free(&st);
    stack_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_decay)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
