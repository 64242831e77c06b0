/* Order of samples: a pure function of (run key, number of samples, position). */
#include <stdlib.h>

#include "data.h"

struct sampler {
    int64_t n;
    struct rng_key run;
    bool shuffle;
    /* Permutations of the last even and the last odd epoch asked for: a batch may lie across the
     * border of two epochs, and the next batches are looked up while this one runs. */
    int64_t epoch[2];
    int64_t *order[2]; /* [n] */
};

struct sampler *sampler_create(int64_t n_samples, struct rng_key run, bool shuffle) {
    CHECK(n_samples > 0, "a sampler over %lld samples", (long long)n_samples);
    struct sampler *s = xcalloc(1, sizeof *s);
    *s = (struct sampler){.n = n_samples, .run = run, .shuffle = shuffle, .epoch = {-1, -1}};
    for (int i = 0; shuffle && i < 2; i++)
        s->order[i] = xmalloc((size_t)n_samples * sizeof *s->order[i]);
    return s;
}

void sampler_destroy(struct sampler *s) {
    if (s == NULL) return;
    free(s->order[0]);
    free(s->order[1]);
    free(s);
}

int64_t sampler_sample(struct sampler *s, int64_t position) {
    CHECK(position >= 0, "position %lld", (long long)position);
    int64_t epoch = position / s->n, place = position % s->n;
    if (!s->shuffle) return place;
    int slot = (int)(epoch % 2);
    if (s->epoch[slot] != epoch) {
        rng_permutation(s->run, epoch, s->n, s->order[slot]);
        s->epoch[slot] = epoch;
    }
    return s->order[slot][place];
}
