/* train: the interval of save_interval = auto against the figures it is meant for. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "../../src/train/train_impl.h"

/* A failure every 1000/6.5 days of a node, a stall of half a second, two minutes for a restart. */
static void test_figures(void **state) {
    (void)state;
    const double day = 86400, per_node = 1000 * day / 6.5;
    assert_true(fabs(save_interval_seconds(0.5, per_node / 8, 120) / 60 - 21) < 1);
    assert_true(fabs(save_interval_seconds(0.5, per_node / 128, 120) / 60 - 5.4) < 0.1);
}

/* It makes the share of time lost, Ts/T + (T/2 + Tr)/Tf, smallest up to terms in Ts/Tf. */
static void test_it_loses_least(void **state) {
    (void)state;
    const double stall = 3, failure = 40000, restart = 200;
    double best = save_interval_seconds(stall, failure, restart);
    double lost[3];
    for (int i = 0; i < 3; i++) {
        double t = best * (i == 0 ? 0.7 : i == 1 ? 1 : 1.4);
        lost[i] = stall / t + (t / 2 + restart) / failure;
    }
    assert_true(lost[1] < lost[0] && lost[1] < lost[2]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_it_loses_least),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
