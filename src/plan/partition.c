/* partition: minimum of the largest stage cost.
 *
 * before[b] - before[a], rounded, does not fall as b grows nor rise as a grows. So a limit that holds for
 * some split into few stages holds for every finer one, and the least number of stages under a limit is
 * found by making each as long as it may be (greedy). The smallest limit that P stages can keep is one
 * of the costs; bisection over the doubles themselves, which are ordered as their bit patterns, ends at
 * exactly that one after at most 64 rounds. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "partition.h"

struct problem {
    int n, P;
    const bool *cut_allowed;
    double *before; /* [n+1] cost of the layers before a cut */
};

static double stage_cost(const struct problem *p, int a, int b) {
    return p->before[b] - p->before[a];
}

static bool may_end(const struct problem *p, int b) {
    return b == p->n || p->cut_allowed[b];
}

/* Can at most P stages keep the limit? Each position is looked at no more than twice. */
static bool possible(const struct problem *p, double limit) {
    int a = 0;
    for (int stages = 0; a < p->n; stages++) {
        int end = a;
        for (int b = a + 1; b <= p->n && stage_cost(p, a, b) <= limit; b++)
            if (may_end(p, b)) end = b;
        if (end == a || stages == p->P) return false;
        a = end;
    }
    return true;
}

static double smallest_limit(const struct problem *p) {
    uint64_t low = 0, high;
    double limit = p->before[p->n];
    memcpy(&high, &limit, sizeof high); /* one stage keeps it */
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        memcpy(&limit, &middle, sizeof limit);
        if (possible(p, limit))
            high = middle;
        else
            low = middle + 1;
    }
    memcpy(&limit, &low, sizeof limit);
    return limit;
}

/* fewest[a], most[a]: numbers of stages into which layers [a, n) can be cut under the limit; all
 * numbers between them are possible too, since a stage may be cut once more. fewest n + 1: none. */
static void count_stages(const struct problem *p, double limit, int *fewest, int *most) {
    fewest[p->n] = most[p->n] = 0;
    for (int a = p->n - 1, end = p->n; a >= 0; a--) {
        while (end > a && !(may_end(p, end) && stage_cost(p, a, end) <= limit)) end--;
        fewest[a] = end > a && fewest[end] <= p->n ? fewest[end] + 1 : p->n + 1;
        most[a] = most[a + 1] + may_end(p, a + 1);
    }
}

/* The shortest first stage that still reaches the optimum, then the same for the rest. */
static void take_smallest(const struct problem *p, double limit, int64_t *layers_per_stage) {
    int *fewest = xmalloc(2 * ((size_t)p->n + 1) * sizeof *fewest), *most = fewest + p->n + 1;
    count_stages(p, limit, fewest, most);
    int a = 0;
    for (int s = p->P; s > 0; s--) {
        int b = a + 1;
        while (b <= p->n && !(may_end(p, b) && stage_cost(p, a, b) <= limit && fewest[b] < s &&
                              s - 1 <= most[b]))
            b++;
        CHECK(b <= p->n, "stage %d of %d found no cut", p->P - s, p->P);
        layers_per_stage[p->P - s] = b - a;
        a = b;
    }
    free(fewest);
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
    struct problem p = {n_layers, P, cut_allowed, xmalloc(((size_t)n_layers + 1) * sizeof(double))};
    p.before[0] = 0;
    for (int i = 0; i < n_layers; i++) p.before[i + 1] = p.before[i] + cost[i];
    CHECK(isfinite(p.before[n_layers]), "the costs sum to %g", p.before[n_layers]);
    take_smallest(&p, smallest_limit(&p), layers_per_stage);
    free(p.before);
    return 0;
}
