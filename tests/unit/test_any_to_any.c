/* A checkpoint of any layout loads into any other bit for bit: weights, moments, counters, position,
 * history; saved again there it has the bytes that this layout writes itself. All layouts of up to
 * eight ranks with TP 1..4, PP 1..8 (uneven splits), DP 1..4, optimizer sharded or not; uneven cuts,
 * a fused tensor, frozen ones, one that two stages hold; each layout writes with one of the filters.
 * Ranks are processes without MPI (team.h).
 * STRATA_LONG=1 takes all pairs, otherwise each layout is written and read once. */
/* timeout: 3600 */
#include "ckpt_team.h"

#define CASES_MAX 128
static struct ckpt_case cases[CASES_MAX];
static int n_cases;

/* CASE_LAYERS in `stages` parts of at least one, where the bits of a number fall. */
static void make_split(int split[CASE_LAYERS], int stages, uint32_t number) {
    for (int i = 0; i < stages; i++) split[i] = 1;
    for (int left = CASE_LAYERS - stages; left > 0; left--) {
        number = number * 1664525u + 1013904223u;
        split[(number >> 16) % (uint32_t)stages]++;
    }
}

static void make_cases(void) {
    for (int tp = 1; tp <= 4; tp++)
        for (int pp = 1; pp <= 8; pp++)
            for (int dp = 1; dp <= 4 && tp * pp * dp <= 8; dp++)
                for (int sharded = 0; sharded < 2; sharded++) {
                    struct ckpt_case *c = &cases[n_cases++];
                    *c = (struct ckpt_case){.at = {tp, pp, dp}, .sharded = sharded != 0};
                    make_split(c->split, pp, (uint32_t)n_cases);
                }
}

static void name_case(const struct ckpt_case *c, char text[80]) {
    int n = snprintf(text, 80, "TP %d PP %d DP %d%s, split ", c->at.tp, c->at.pp, c->at.dp,
                     c->sharded ? " sharded" : "");
    for (int i = 0; i < c->at.pp; i++)
        n += snprintf(text + n, (size_t)(80 - n), "%s%d", i > 0 ? "," : "", c->split[i]);
}

static void folder_of(int i, char text[300]) {
    snprintf(text, 300, "%s/case-%d", case_folder, i);
}

static enum ckpt_filter filter_of(int i) {
    return (enum ckpt_filter)(i / 2 % CKPT_FILTERS); /* two of a layout: sharded and not */
}

static bool save_all(int64_t *digest) {
    bool good = true;
    for (int i = 0; i < n_cases; i++) {
        struct ckpt_job job = {.c = cases[i], .step = 3, .filter = filter_of(i)};
        char dir[400];
        folder_of(i, job.folder);
        int64_t rc = case_run(&job, case_save);
        snprintf(dir, sizeof dir, "%s/iter_0000003", job.folder);
        digest[i] = case_digest(dir);
        if (rc != 0 || digest[i] < 0) printf("# case %d: save gives %lld\n", i, (long long)rc);
        good = good && rc == 0 && digest[i] >= 0;
    }
    return good;
}

/* From layout a into b, and saved again there. */
static bool one_pair(int a, int b, const int64_t *digest, bool again) {
    struct ckpt_job job = {.c = cases[b], .filter = filter_of(b)};
    char dir[400];
    folder_of(a, job.folder);
    job.verify = (a + b) % 2 ? CKPT_VERIFY_USED : CKPT_VERIFY_ALL;
    if (again) snprintf(job.other, sizeof job.other, "%s/again", case_folder);
    int64_t step = case_run(&job, case_load);
    bool good = step == 3;
    snprintf(dir, sizeof dir, "%s/iter_0000003", job.other);
    if (good && again) good = case_digest(dir) == digest[b];
    if (again) case_remove(job.other);
    if (!good) printf("# case %d into %d: %lld\n", a, b, (long long)step);
    return good;
}

int main(void) {
    int64_t digest[CASES_MAX], pairs = 0, identical = 0;
    case_begin();
    make_cases();
    verdict(n_cases >= 40 && save_all(digest), "%d layouts are saved", n_cases);
    for (int a = 0; a < n_cases; a++) {
        char name[80];
        bool good = true;
        int n = 0;
        for (int b = 0; b < n_cases; b++) {
            /* 37 and the number of cases have no common factor: each is read once */
            if (!case_long() && b != (a * 37 + 11) % n_cases) continue;
            bool again = !case_long() || (a + b) % 5 == 0;
            good = one_pair(a, b, digest, again) && good;
            identical += again;
            n++;
        }
        name_case(&cases[a], name);
        verdict(good, "%s, filter %s, into %d layouts", name, ckpt_filter_name(filter_of(a)), n);
        pairs += n;
    }
    printf("# %lld pairs of %d layouts, %lld of them saved again with the bytes of a direct save\n",
           (long long)pairs, n_cases, (long long)identical);
    return case_end();
}
