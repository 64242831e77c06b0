/* split_spec: the layers of each stage (doc/job-file.md; the cuts themselves are model's). */
#include <stdlib.h>

#include "config_impl.h"

/* "24 + 2 + 32" */
static char *parts_text(const struct config *cfg) {
    return xasprintf("%lld + %lld + %lld: vision + projector + language",
                     (long long)cfg->vision.num_layers, (long long)cfg->derived.n_projector_layers,
                     (long long)cfg->language.num_layers);
}

static void check_count(struct config *cfg, const struct config_list *s) {
    int64_t n_stages = cfg->parallel.pipeline_model_parallel_size;
    if (!config_sound(cfg, &cfg->parallel.pipeline_model_parallel_size, NULL)) return;
    if (s->n != n_stages)
        config_raise(cfg, s,
                     "split_spec has %lld entries and pipeline_model_parallel_size is %lld; there "
                     "must be one entry for each stage",
                     (long long)s->n, (long long)n_stages);
}

static void check_sum(struct config *cfg, const struct config_list *s) {
    int64_t sum = 0, n_layers = cfg->derived.n_layers;
    for (int64_t j = 0; j < s->n; j++)
        if (__builtin_add_overflow(sum, s->v[j], &sum)) {
            config_raise(cfg, s, "the sum of the entries is too large");
            return;
        }
    if (n_layers == 0 || sum == n_layers) return;
    char *parts = parts_text(cfg);
    config_raise(cfg, s, "the entries sum to %lld, but the stack has %lld layers (%s), %lld too %s",
                 (long long)sum, (long long)n_layers, parts,
                 (long long)llabs((long long)(sum - n_layers)), sum > n_layers ? "many" : "few");
    free(parts);
}

/* mlp is two layers and never cut between them. */
static void check_projector(struct config *cfg, const struct config_list *s) {
    int64_t middle = cfg->vision.num_layers + 1, before = 0;
    if (cfg->derived.n_projector_layers != 2) return;
    for (int64_t j = 0; j + 1 < s->n; j++) {
        if (__builtin_add_overflow(before, s->v[j], &before)) return;
        if (before != middle) continue;
        config_raise(
            cfg, s,
            "entry %lld (%lld) ends the stage after %lld layers, between the two layers of "
            "the projector, which stay together: let %lld or %lld layers lie before that "
            "cut",
            (long long)j + 1, (long long)s->v[j], (long long)before, (long long)before - 1,
            (long long)before + 1);
    }
}

static void check_auto(struct config *cfg) {
    int64_t n_stages = cfg->parallel.pipeline_model_parallel_size;
    int64_t n_pieces = cfg->derived.n_layers - cfg->derived.n_projector_layers + 1;
    if (cfg->derived.n_layers == 0 || n_stages <= n_pieces) return;
    char *parts = parts_text(cfg);
    config_raise(cfg, &cfg->parallel.pipeline_model_parallel_size,
                 "there are more stages than pieces: %lld layers (%s) with the projector in one "
                 "piece make at most %lld stages",
                 (long long)cfg->derived.n_layers, parts, (long long)n_pieces);
    free(parts);
}

void config_check_split(struct config *cfg) {
    const struct config_list *s = &cfg->parallel.split_spec;
    if (!config_sound(cfg, s, NULL)) return;
    if (s->n == 0) {
        check_auto(cfg);
        return;
    }
    check_count(cfg, s);
    for (int64_t j = 0; j < s->n; j++)
        if (s->v[j] < 1)
            config_raise(cfg, s, "entry %lld is %lld; every stage holds at least 1 layer",
                         (long long)j + 1, (long long)s->v[j]);
    check_sum(cfg, s);
    if (cfg->derived.n_layers > 0) check_projector(cfg, s);
}

int config_resolve_split(struct config *cfg, const int64_t *layers, int64_t n) {
    struct config_list *s = &cfg->parallel.split_spec;
    struct config_place *p = &cfg->source->place[config_index_of(cfg, s)];
    CHECK(n > 0, "split of %lld stages", (long long)n);
    s->v = xrealloc(s->v, (size_t)n * sizeof *s->v);
    for (int64_t j = 0; j < n; j++) s->v[j] = layers[j];
    s->n = n;
    if (p->origin < ORIGIN_FILE || p->at_default) p->origin = ORIGIN_DERIVED, p->at_default = false;
    int n_before = error_count();
    config_check_split(cfg);
    return error_count() > n_before ? EXIT_USAGE : 0;
}
