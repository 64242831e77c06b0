/* Partition: against brute force, and the figures of the 58-layer LLaVA. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "partition.h"

#define N_MAX 10

/* ---- brute force ----------------------------------------------------------------------------- */
struct search {
    const double *cost;
    const bool *cut_allowed;
    int n, P;
    int64_t now[N_MAX], best[N_MAX];
    double best_cost;
    bool found;
};

/* Splits are visited in lexicographic order, so the first of the best is the wanted one. */
static void search_from(struct search *s, int stage, int a, double largest) {
    if (stage == s->P) {
        if (a != s->n || (s->found && !(largest < s->best_cost))) return;
        s->found = true;
        s->best_cost = largest;
        memcpy(s->best, s->now, sizeof s->best);
        return;
    }
    double sum = 0;
    for (int b = a + 1; b <= s->n; b++) {
        sum += s->cost[b - 1];
        if (b < s->n && !s->cut_allowed[b]) continue;
        s->now[stage] = b - a;
        search_from(s, stage + 1, b, fmax(largest, sum));
    }
}

static void equals_brute_force(void **state) {
    (void)state;
    struct rng_key key = rng_run_key(7);
    uint32_t counter[4] = {0}, word[4];
    int infeasible = 0;
    for (int trial = 0; trial < 3000; trial++) {
        double cost[N_MAX];
        bool allowed[N_MAX + 1] = {0};
        for (int i = 0; i < N_MAX; i++) {
            counter[0] = (uint32_t)trial;
            counter[1] = (uint32_t)i;
            philox4x32(key, counter, word);
            cost[i] = word[0] % 8; /* few values: many ties, zeros too */
            allowed[i] = word[1] % 4 != 0;
        }
        int n = 1 + trial % N_MAX, P = 1 + (int)(word[2] % 5);
        struct search s = {.cost = cost, .cut_allowed = allowed, .n = n, .P = P};
        search_from(&s, 0, 0, 0);
        int64_t got[N_MAX];
        int rc = plan_partition(cost, n, allowed, P, got);
        assert_int_equal(rc, s.found ? 0 : EXIT_USAGE);
        infeasible += !s.found;
        error_clear();
        if (!s.found) continue;
        for (int i = 0; i < P; i++) assert_int_equal(got[i], s.best[i]);
    }
    assert_true(infeasible > 100 && infeasible < 2000);
}

/* ---- LLaVA with Mistral-7B: forward FLOPs of one sample of one tile --------------------------- */
#define LAYERS 58
struct costs {
    double layer[LAYERS], language;
    bool allowed[LAYERS + 1];
};

static struct costs llava_costs(double S, double ffn, double vocab, int vision_layers) {
    struct costs c = {.language = 2 * 218103808.0 * S + 2 * 4096.0 * S * S};
    for (int i = 0; i < vision_layers; i++)
        c.layer[i] = 2 * 12582912.0 * 577 + 4 * 577.0 * 577 * 1024;
    c.layer[0] += 2 * 576 * 588.0 * 1024; /* patches */
    c.layer[24] = 2 * 576 * 1024 * ffn;
    c.layer[25] = 2 * 576 * 4096 * ffn;
    for (int i = 26; i < LAYERS; i++) c.layer[i] = c.language;
    c.layer[57] += 2 * 4096.0 * vocab * S;
    for (int i = 1; i < LAYERS; i++) c.allowed[i] = i != 25;
    return c;
}

static double largest_of(const struct costs *c, const int64_t *split, int P) {
    double largest = 0;
    for (int r = 0, a = 0; r < P; r++) {
        double sum = 0;
        for (int i = 0; i < split[r]; i++) sum += c->layer[a++];
        largest = fmax(largest, sum);
    }
    return largest;
}

static void five_stages_of_long_text(void **state) {
    (void)state;
    struct costs c = llava_costs(2623, 14336, 32768, 24);
    int64_t got[5];
    assert_int_equal(plan_partition(c.layer, LAYERS, c.allowed, 5, got), 0);
    double best = largest_of(&c, got, 5);
    assert_true(fabs(best / c.language - 7.0) < 1e-12);
    /* 32,6,7,7,6 is as good; this one comes first. */
    const int64_t want[5] = {31, 7, 7, 7, 6};
    for (int r = 0; r < 5; r++) assert_int_equal(got[r], want[r]);
    const int64_t other[5] = {32, 6, 7, 7, 6}, own_stage[5] = {26, 8, 8, 8, 8};
    const int64_t example[5] = {10, 14, 2, 16, 16};
    assert_true(fabs(largest_of(&c, other, 5) / c.language - 7.0) < 1e-12);
    assert_true(fabs(largest_of(&c, own_stage, 5) / c.language - 8.59) < 0.005);
    assert_true(fabs(largest_of(&c, example, 5) / c.language - 16.6) < 0.05);
}

static void four_stages_of_short_text(void **state) {
    (void)state;
    struct costs c = llava_costs(600, 4096, 32000, 23); /* the 24th is an identity */
    int64_t got[4];
    assert_int_equal(plan_partition(c.layer, LAYERS, c.allowed, 4, got), 0);
    double best = largest_of(&c, got, 4);
    const int64_t known[4] = {33, 9, 8, 8};
    assert_true(best == largest_of(&c, known, 4));
    assert_true(fabs(best - 2.38e12) < 0.005e12);
}

/* 10 + 2 + 8 layers: the frozen tower costs 1x, the rest 3x. Cut 11 lies in the projector. */
static void the_projector_stays_whole(void **state) {
    (void)state;
    double cost[20];
    bool allowed[21];
    for (int i = 0; i <= 20; i++) allowed[i] = i != 11;
    for (int i = 0; i < 20; i++) cost[i] = i < 10 ? 1 : 3;
    for (int P = 1; P <= 19; P++) {
        int64_t got[19];
        assert_int_equal(plan_partition(cost, 20, allowed, P, got), 0);
        int64_t at = 0;
        for (int r = 0; r < P; r++) {
            assert_true(got[r] >= 1);
            at += got[r];
            assert_true(at != 11);
        }
        assert_int_equal(at, 20);
    }
    int64_t got[20];
    assert_int_equal(plan_partition(cost, 20, allowed, 20, got), EXIT_USAGE);
    assert_non_null(strstr(error_text(), "1 to 19"));
    error_clear();
    assert_int_equal(plan_partition(cost, 20, allowed, 0, got), EXIT_USAGE);
    error_clear();
}

/* ---- the plain dynamic program, O(P n^2) --------------------------------------------------------- */
#define DP_MAX 48
struct table {
    int n;
    const bool *allowed;
    double before[DP_MAX + 1], best[DP_MAX + 1][DP_MAX + 1]; /* [stages][first layer] */
};

static double first_stage(const struct table *t, int stages, int a, int b) {
    if (b < t->n && !t->allowed[b]) return INFINITY;
    return fmax(t->before[b] - t->before[a], t->best[stages - 1][b]);
}

static void fill(struct table *t, const double *cost, int P) {
    t->before[0] = 0;
    for (int i = 0; i < t->n; i++) t->before[i + 1] = t->before[i] + cost[i];
    for (int s = 0; s <= P; s++)
        for (int a = 0; a <= t->n; a++) {
            t->best[s][a] = s == 0 && a == t->n ? 0 : INFINITY;
            for (int b = a + 1; s > 0 && b <= t->n; b++)
                t->best[s][a] = fmin(t->best[s][a], first_stage(t, s, a, b));
        }
}

static void draw_costs(struct rng_key key, uint32_t trial, int n, double *cost, bool *allowed) {
    uint32_t word[4];
    for (int i = 0; i < n; i++) {
        philox4x32(key, (const uint32_t[4]){trial, (uint32_t)i, 1, 0}, word);
        double unit = (double)word[0] * 0x1p-32;
        switch (trial % 4) {
        case 0: /* numbers of any length: before[] rounds */
            cost[i] = unit;
            break;
        case 1: /* a few kinds of layers, as in a model */
            cost[i] = i < n / 3 ? 0.1 : i < n / 2 ? 0.7 : 0.3;
            break;
        case 2: /* 40 magnitudes: small layers vanish beside large ones */
            cost[i] = ldexp(unit, (int)(word[1] % 133));
            break;
        default: /* ties, and layers that cost nothing */
            cost[i] = 0.1 * (word[0] % 3);
        }
        allowed[i] = word[2] % 8 != 0 || word[3] % 3 == 0;
    }
}

static void equals_the_dynamic_program(void **state) {
    (void)state;
    struct rng_key key = rng_run_key(11);
    static struct table t;
    int split = 0;
    for (uint32_t trial = 0; trial < 4000; trial++) {
        double cost[DP_MAX];
        bool allowed[DP_MAX + 1] = {0};
        int n = 1 + (int)(trial / 4 % DP_MAX), P = 1 + (int)(trial * 2654435761u % (uint32_t)n);
        draw_costs(key, trial, n, cost, allowed);
        t.n = n;
        t.allowed = allowed;
        fill(&t, cost, P);
        int64_t got[DP_MAX];
        bool found = t.best[P][0] < INFINITY;
        assert_int_equal(plan_partition(cost, n, allowed, P, got), found ? 0 : EXIT_USAGE);
        error_clear();
        split += found;
        for (int s = P, a = 0; found && s > 0; a += (int)got[P - s--]) {
            int b = a + 1;
            while (!(first_stage(&t, s, a, b) <= t.best[P][0])) b++;
            assert_int_equal(got[P - s], b - a);
        }
    }
    assert_true(split > 2000);
}

/* Took more than 20 s, and 48 GB where P is large. */
static void a_hundred_thousand_layers(void **state) {
    (void)state;
    enum { N = 200002 };
    double *cost = xmalloc(N * sizeof *cost), start = clock_seconds();
    bool *allowed = xcalloc(N + 1, sizeof *allowed);
    int64_t *got = xmalloc(N * sizeof *got);
    for (int i = 0; i < N; i++) {
        cost[i] = 1e12 + 1e-3 * (i % 7);
        allowed[i] = i != 100001;
    }
    for (int P = 1; P < N; P = P * 23 + 1) {
        assert_int_equal(plan_partition(cost, N, allowed, P, got), 0);
        int64_t sum = 0;
        for (int r = 0; r < P; r++) sum += got[r];
        assert_int_equal(sum, N);
    }
    assert_true(clock_seconds() - start < 1);
    free(cost);
    free(allowed);
    free(got);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_brute_force),        cmocka_unit_test(equals_the_dynamic_program),
        cmocka_unit_test(a_hundred_thousand_layers), cmocka_unit_test(five_stages_of_long_text),
        cmocka_unit_test(four_stages_of_short_text), cmocka_unit_test(the_projector_stays_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
