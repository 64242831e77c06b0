/* optim: learning-rate schedules. */
#include <inttypes.h>
#include <math.h>

#include "optim.h"

static const double pi = 3.14159265358979323846;

static double cosine(double x) {
    return 0.5 * (1 + cos(pi * x));
}

static double wsd_coefficient(const struct lr_schedule *s, int64_t count) {
    int64_t start = s->decay - s->wsd_decay;
    if (count <= start) return 1;
    double y = (double)(count - start) / (double)s->wsd_decay;
    switch (s->wsd_style) {
    case LR_WSD_EXPONENTIAL:
        return 2 * pow(0.5, y) - 1;
    case LR_WSD_LINEAR:
        return 1 - y;
    case LR_WSD_COSINE:
        return cosine(y);
    case LR_WSD_MINUS_SQRT:
        return 1 - sqrt(y);
    }
    CHECK(false, "WSD style %d", (int)s->wsd_style);
}

/* W < count <= L, or W = count = 0. */
static double coefficient(const struct lr_schedule *s, int64_t count) {
    double x = (double)(count - s->warmup) / (double)(s->decay - s->warmup);
    switch (s->style) {
    case LR_LINEAR:
        return 1 - x;
    case LR_COSINE:
        return cosine(x);
    case LR_WSD:
        return wsd_coefficient(s, count);
    case LR_CONSTANT:
    case LR_INVERSE_SQRT:
        break;
    }
    CHECK(false, "learning-rate style %d", (int)s->style);
}

double lr_at(const struct lr_schedule *s, double base, int64_t count) {
    if (s->warmup > 0 && count <= s->warmup)
        return s->init + (base - s->init) * (double)count / (double)s->warmup;
    if (s->style == LR_CONSTANT) return base;
    if (count > s->decay) return s->min;
    if (s->style == LR_INVERSE_SQRT) {
        double w = s->warmup > 1 ? (double)s->warmup : 1, n = count > 1 ? (double)count : 1;
        return fmax(s->min, base * sqrt(w / n));
    }
    return s->min + coefficient(s, count) * (base - s->min);
}

int64_t lr_warmup_of_fraction(double fraction, int64_t decay) {
    double exact = fraction * (double)decay, whole = nearbyint(exact);
    return (int64_t)(fabs(exact - whole) <= 1e-9 * fmax(1, exact) ? whole : ceil(exact));
}

static int check_lengths(const struct lr_schedule *s) {
    int rc = 0;
    int64_t rest = s->decay - s->warmup;
    if (s->decay < 1)
        rc = error_raise(EXIT_USAGE,
                         "the learning rate decays over %" PRId64 " steps; at least 1 is needed "
                         "(lr_decay_iters, lr_decay_samples)",
                         s->decay);
    if (s->warmup < 0 || rest < 0)
        rc = error_raise(EXIT_USAGE,
                         "the warm-up of %" PRId64 " steps must be between 0 and the decay length "
                         "%" PRId64 " (lr_warmup_iters, lr_warmup_samples, lr_warmup_fraction)",
                         s->warmup, s->decay);
    if (s->style == LR_WSD && (s->wsd_decay < 1 || s->wsd_decay > rest))
        rc = error_raise(EXIT_USAGE,
                         "lr_wsd_decay_iters = %" PRId64 " must be between 1 and the %" PRId64
                         " steps after the warm-up",
                         s->wsd_decay, rest);
    return rc;
}

int lr_schedule_check(const struct lr_schedule *s, double base, const char *key) {
    if (!(base >= 0) || !isfinite(base))
        return error_raise(EXIT_USAGE, "%s = %g is not a learning rate; it must be >= 0", key,
                           base);
    int rc = check_lengths(s);
    if (!(s->min >= 0 && s->min <= base))
        rc =
            error_raise(EXIT_USAGE, "min_lr = %g must be between 0 and %s = %g", s->min, key, base);
    if (!(s->init >= 0 && s->init <= base))
        rc = error_raise(EXIT_USAGE, "lr_warmup_init = %g must be between 0 and %s = %g", s->init,
                         key, base);
    return rc;
}
