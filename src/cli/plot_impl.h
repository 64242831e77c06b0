/* The curves of a run, and two ways of drawing them. */
#ifndef STRATA_PLOT_IMPL_H
#define STRATA_PLOT_IMPL_H

#include "cli_impl.h"

struct curve {
    int64_t n;
    double *x, *y;
};
struct plot {
    const char *title;
    struct curve loss, valid; /* valid.n may be 0 */
    double x_low, x_high, y_low, y_high;
};

/* A step of 1, 2 or 5 times a power of ten that divides the range into at most `most` parts. */
double plot_step(double low, double high, int most);
void plot_text(const struct plot *p, FILE *to);
int plot_svg(const struct plot *p, const char *path);

#endif
