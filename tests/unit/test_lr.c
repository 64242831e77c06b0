/* Learning-rate schedules: published figures, ends of every phase, rules. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "optim.h"

static void expect_near(double got, double want, double relative) {
    double tolerance = relative * fabs(want) + 1e-300;
    if (!(fabs(got - want) <= tolerance)) fail_msg("%.17g instead of %.17g", got, want);
}

/* LLaVA-1.5: 558128 samples by 256 and 665298 by 128, warm-up 0.03, cosine to 0. */
static void llava_recipes(void **state) {
    (void)state;
    assert_int_equal((558128 + 255) / 256, 2181);
    assert_int_equal(lr_warmup_of_fraction(0.03, 2181), 66);
    assert_int_equal(lr_warmup_of_fraction(0.03, 5198), 156);
    struct lr_schedule s = {.style = LR_COSINE, .warmup = 156, .decay = 5198};
    assert_true(lr_at(&s, 2e-5, 0) == 0);
    expect_near(lr_at(&s, 2e-5, 22), 2.8205e-6, 1e-5);
    expect_near(lr_at(&s, 2e-5, 22), 2e-5 * 22 / 156, 1e-15);
    expect_near(lr_at(&s, 2e-5, 156), 2e-5, 1e-15);
    for (int64_t k = 157; k < 5198; k += 97)
        expect_near(lr_at(&s, 2e-5, k), 1e-5 * (1 + cos(M_PI * (double)(k - 156) / 5042)), 1e-12);
    assert_true(fabs(lr_at(&s, 2e-5, 5198)) < 1e-20);
    assert_true(lr_at(&s, 2e-5, 5199) == 0);
}

static void fraction_is_rounded_up(void **state) {
    (void)state;
    assert_int_equal(lr_warmup_of_fraction(0.07, 100), 7); /* 0.07 * 100 > 7 as a double */
    assert_int_equal(lr_warmup_of_fraction(0.071, 100), 8);
    assert_int_equal(lr_warmup_of_fraction(0, 100), 0);
    assert_int_equal(lr_warmup_of_fraction(1, 100), 100);
    assert_int_equal(lr_warmup_of_fraction(1e-3, 10), 1);
}

static void warmup_starts_at_init(void **state) {
    (void)state;
    for (int style = LR_CONSTANT; style <= LR_WSD; style++) {
        struct lr_schedule s = {style, LR_WSD_LINEAR, 0.1, 0.2, 10, 100, 20};
        expect_near(lr_at(&s, 1.1, 0), 0.1, 1e-15);
        expect_near(lr_at(&s, 1.1, 5), 0.6, 1e-15);
        expect_near(lr_at(&s, 1.1, 10), 1.1, 1e-15);
        s.warmup = 0; /* no warm-up: the first update has the full rate */
        expect_near(lr_at(&s, 1.1, 0), 1.1, 1e-15);
    }
}

static void styles_after_the_warmup(void **state) {
    (void)state;
    struct lr_schedule s = {LR_CONSTANT, LR_WSD_LINEAR, 0, 0.25, 4, 20, 0};
    expect_near(lr_at(&s, 1, 12), 1, 0);
    expect_near(lr_at(&s, 1, 1000), 1, 0); /* constant stays */
    s.style = LR_LINEAR;
    expect_near(lr_at(&s, 1, 12), 0.25 + 0.5 * 0.75, 1e-15);
    expect_near(lr_at(&s, 1, 20), 0.25, 1e-15);
    s.style = LR_COSINE;
    expect_near(lr_at(&s, 1, 8), 0.25 + 0.75 * (1 + sqrt(0.5)) / 2, 1e-15);
    expect_near(lr_at(&s, 1, 12), 0.625, 1e-15);
    s.style = LR_INVERSE_SQRT;
    expect_near(lr_at(&s, 1, 16), 0.5, 1e-15);
    s.decay = 1000;
    expect_near(lr_at(&s, 1, 400), 0.25, 1e-15); /* not below min */
    s.warmup = 0;
    expect_near(lr_at(&s, 1, 0), 1, 1e-15);
    expect_near(lr_at(&s, 1, 4), 0.5, 1e-15);
    for (int style = LR_LINEAR; style <= LR_WSD; style++) {
        struct lr_schedule t = {style, LR_WSD_LINEAR, 0, 0.25, 4, 20, 8};
        expect_near(lr_at(&t, 1, 21), 0.25, 0);
        expect_near(lr_at(&t, 1, INT64_C(1) << 40), 0.25, 0);
    }
}

static void wsd_phases(void **state) {
    (void)state;
    struct lr_schedule s = {LR_WSD, LR_WSD_LINEAR, 0, 0, 10, 100, 40};
    static const double at_quarter[] = {
        [LR_WSD_EXPONENTIAL] = 0.681792830507429, /* 2 * 0.5^0.25 - 1 */
        [LR_WSD_LINEAR] = 0.75,
        [LR_WSD_COSINE] = 0.853553390593274,
        [LR_WSD_MINUS_SQRT] = 0.5,
    };
    for (int style = LR_WSD_EXPONENTIAL; style <= LR_WSD_MINUS_SQRT; style++) {
        s.wsd_style = style;
        expect_near(lr_at(&s, 2, 11), 2, 0);
        expect_near(lr_at(&s, 2, 60), 2, 0);
        expect_near(lr_at(&s, 2, 70), 2 * at_quarter[style], 1e-14);
        assert_true(fabs(lr_at(&s, 2, 100)) < 1e-15);
    }
}

static void rates_never_rise_after_the_warmup(void **state) {
    (void)state;
    for (int style = LR_CONSTANT; style <= LR_WSD; style++)
        for (int wsd = LR_WSD_EXPONENTIAL; wsd <= LR_WSD_MINUS_SQRT; wsd++) {
            struct lr_schedule s = {style, wsd, 0.001, 0.01, 7, 50, 20};
            for (int64_t k = 7; k < 60; k++) {
                double now = lr_at(&s, 1, k), next = lr_at(&s, 1, k + 1);
                assert_true(next <= now && next >= 0.01);
            }
        }
}

static void expect_refused(struct lr_schedule s, double base, const char *word) {
    assert_int_equal(lr_schedule_check(&s, base, "vision_lr"), EXIT_USAGE);
    if (!strstr(error_text(), word)) fail_msg("'%s' does not say '%s'", error_text(), word);
    error_clear();
}

static void rules(void **state) {
    (void)state;
    const struct lr_schedule good = {LR_WSD, LR_WSD_LINEAR, 0, 0.1, 10, 100, 90};
    assert_int_equal(lr_schedule_check(&good, 1, "lr"), 0);
    struct lr_schedule s = good;
    expect_refused(good, -1, "vision_lr = -1");
    expect_refused(good, NAN, "vision_lr");
    expect_refused(good, 0.05, "min_lr = 0.1");
    s.init = 2;
    expect_refused(s, 1, "lr_warmup_init = 2");
    s = good;
    s.warmup = 101;
    expect_refused(s, 1, "warm-up of 101");
    s = good;
    s.decay = 0;
    expect_refused(s, 1, "over 0 steps");
    s = good;
    s.wsd_decay = 91;
    expect_refused(s, 1, "lr_wsd_decay_iters = 91");
    s.style = LR_COSINE; /* the key is not used then */
    assert_int_equal(lr_schedule_check(&s, 1, "lr"), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llava_recipes),
        cmocka_unit_test(fraction_is_rounded_up),
        cmocka_unit_test(warmup_starts_at_init),
        cmocka_unit_test(styles_after_the_warmup),
        cmocka_unit_test(wsd_phases),
        cmocka_unit_test(rates_never_rise_after_the_warmup),
        cmocka_unit_test(rules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
