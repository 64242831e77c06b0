/* Rotary positions (arXiv 2104.09864): frequencies f_i of the pairs (i, i + n/2), i < n/2, and three
 * ways to stretch them for samples s times longer than the model was first trained on, L rows:
 *
 *   plain   f_i = base^(-2i/n)
 *   linear  f_i / s                                            (position interpolation, 2306.15595)
 *   llama3  by t = L f_i / 2 pi, the turns over L rows: f_i if t > high, f_i / s if t < low, between
 *           (1 - w) f_i / s + w f_i with w = (t - low) / (high - low)                 (Llama 3.1)
 *   yarn    r f_i / s + (1 - r) f_i, r = clamp((i - a) / (b - a), 0, 1); a, b are the i at which t
 *           is beta_fast and beta_slow                                  (arXiv 2309.00071, eq. 23)
 *
 * transformers computes them in fp32; here they are rounded to it once. */
#include <math.h>

#include "nn.h"

#define PI 3.14159265358979323846

static double llama3(const struct rope_config *c, double f) {
    double turns = c->original * f / (2 * PI);
    if (turns > c->high_freq) return f;
    if (turns < c->low_freq) return f / c->factor;
    double w = (turns - c->low_freq) / (c->high_freq - c->low_freq);
    return (1 - w) * f / c->factor + w * f;
}

/* The pair, as a real number, that turns so many times over the original length. */
static double pair_of_turns(const struct rope_config *c, int64_t n, double turns) {
    return (double)n * log(c->original / (turns * 2 * PI)) / (2 * log(c->base));
}

static double yarn(const struct rope_config *c, int64_t n, int64_t i, double f) {
    double a = pair_of_turns(c, n, c->beta_fast), b = pair_of_turns(c, n, c->beta_slow);
    if (c->round) a = floor(a), b = ceil(b);
    a = fmax(a, 0);
    b = fmin(b, (double)(n - 1));
    if (!(a < b) && !(a > b)) b += 0.001; /* as transformers: a step in place of a ramp */
    double r = fmin(fmax(((double)i - a) / (b - a), 0), 1);
    return r * f / c->factor + (1 - r) * f;
}

void rope_frequencies(const struct rope_config *c, int64_t n, float *frequency) {
    for (int64_t i = 0; i < n / 2; i++) {
        double f = pow(c->base, -2.0 * (double)i / (double)n);
        if (c->kind == ROPE_LINEAR) f /= c->factor;
        if (c->kind == ROPE_LLAMA3) f = llama3(c, f);
        if (c->kind == ROPE_YARN) f = yarn(c, n, i, f);
        frequency[i] = (float)f;
    }
}
