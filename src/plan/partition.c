/* partition: minimum of the largest stage cost. */
#include <math.h>
#include <stdlib.h>

#include "partition.h"

struct problem {
    int n, P;
    const bool *cut_allowed;
    double *before; /* [n+1] cost of the layers before a cut */
    double *best;   /* [P+1][n+1] layers [a, n) on s stages; INFINITY: impossible */
};

static double stage_cost(const struct problem *p, int a, int b) {
    return p->before[b] - p->before[a];
}

static double *best_at(const struct problem *p, int stages, int a) {
    return &p->best[(int64_t)stages * (p->n + 1) + a];
}

/* Largest stage cost if the next stage is [a, b) and `stages` more follow. */
static double with_cut(const struct problem *p, int stages, int a, int b) {
    if (b < p->n && !p->cut_allowed[b]) return INFINITY;
    return fmax(stage_cost(p, a, b), *best_at(p, stages, b));
}

static void solve(struct problem *p) {
    for (int a = 0; a <= p->n; a++) *best_at(p, 0, a) = a == p->n ? 0 : INFINITY;
    for (int s = 1; s <= p->P; s++)
        for (int a = 0; a <= p->n; a++) {
            double *best = best_at(p, s, a);
            *best = INFINITY;
            for (int b = a + 1; b <= p->n; b++) *best = fmin(*best, with_cut(p, s - 1, a, b));
        }
}

/* The shortest first stage that still reaches the optimum, then the same for the rest. */
static void take_smallest(const struct problem *p, double limit, int64_t *layers_per_stage) {
    int a = 0;
    for (int s = p->P; s > 0; s--) {
        int b = a + 1;
        while (b <= p->n && !(with_cut(p, s - 1, a, b) <= limit)) b++;
        CHECK(b <= p->n, "stage %d of %d found no cut", p->P - s, p->P);
        layers_per_stage[p->P - s] = b - a;
        a = b;
    }
}

static int most_stages(int n, const bool *cut_allowed) {
    int most = n > 0;
    for (int c = 1; c < n; c++) most += cut_allowed[c];
    return most;
}

int plan_partition(const double *cost, int n_layers, const bool *cut_allowed, int P,
                   int64_t *layers_per_stage) {
    int most = most_stages(n_layers, cut_allowed);
    if (P < 1 || P > most)
        return error_raise(EXIT_USAGE,
                           "%d layers cannot be cut into %d stages; 1 to %d stages are possible",
                           n_layers, P, most);
    for (int i = 0; i < n_layers; i++)
        CHECK(cost[i] >= 0 && isfinite(cost[i]), "cost of layer %d is %g", i, cost[i]);
    size_t row = (size_t)n_layers + 1;
    struct problem p = {n_layers, P, cut_allowed, xmalloc(row * sizeof(double)),
                        xmalloc(row * ((size_t)P + 1) * sizeof(double))};
    p.before[0] = 0;
    for (int i = 0; i < n_layers; i++) p.before[i + 1] = p.before[i] + cost[i];
    solve(&p);
    take_smallest(&p, *best_at(&p, P, 0), layers_per_stage);
    free(p.before);
    free(p.best);
    return 0;
}
