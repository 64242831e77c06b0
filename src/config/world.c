/* Rules that need the number of ranks, the tokenizer, or this program's abilities. */
#include "config_impl.h"

static void check_ranks(struct config *cfg, int64_t n_ranks) {
    struct config_parallel *p = &cfg->parallel;
    int64_t tp = p->tensor_model_parallel_size, pp = p->pipeline_model_parallel_size;
    int64_t model = tp * pp, below = n_ranks / model * model;
    cfg->derived.n_ranks = n_ranks;
    cfg->derived.data_parallel_size = n_ranks % model == 0 ? n_ranks / model : 0;
    if (cfg->derived.data_parallel_size > 0) return;
    char nearest[64];
    if (below > 0)
        snprintf(nearest, sizeof nearest, "%lld or %lld", (long long)below,
                 (long long)(below + model));
    else
        snprintf(nearest, sizeof nearest, "%lld", (long long)model);
    error_raise(EXIT_USAGE,
                "%s: %lld ranks do not fill whole copies of the model: "
                "tensor_model_parallel_size %lld times pipeline_model_parallel_size %lld is %lld; "
                "start %s ranks, or change these keys",
                cfg->source->path, (long long)n_ranks, (long long)tp, (long long)pp,
                (long long)model, nearest);
}

/* The schedule is a list with several entries for each micro-batch on each stage, and a plan has the
 * lists of all stages: 70 bytes for each of these. */
#define SCHEDULE_CELLS_MAX (1 << 21)
static int64_t most_micro_batches(const struct config *cfg) {
    return SCHEDULE_CELLS_MAX / cfg->parallel.pipeline_model_parallel_size;
}

static void derive_batches(struct config *cfg) {
    struct config_training *t = &cfg->training;
    int64_t dp = cfg->derived.data_parallel_size, pass = t->micro_batch_size * dp;
    config_follow_int(cfg, &t->global_batch_size, pass);
    if (t->global_batch_size % pass != 0) {
        int64_t below = t->global_batch_size / pass * pass;
        config_raise(cfg, &t->global_batch_size,
                     "it must be a multiple of micro_batch_size %lld times the data-parallel size "
                     "%lld = %lld; nearest: %lld%s%.0lld",
                     (long long)t->micro_batch_size, (long long)dp, (long long)pass,
                     (long long)(below > 0 ? below : pass), below > 0 ? " or " : "",
                     (long long)(below > 0 ? below + pass : 0));
        return;
    }
    cfg->derived.n_micro_batches = t->global_batch_size / pass;
    if (cfg->derived.n_micro_batches > most_micro_batches(cfg)) {
        config_raise(
            cfg, &t->global_batch_size,
            "that is %lld micro-batches of %lld for each of %lld data-parallel ranks; with "
            "%lld stages at most %lld are planned: a larger micro_batch_size, or more ranks",
            (long long)cfg->derived.n_micro_batches, (long long)t->micro_batch_size, (long long)dp,
            (long long)cfg->parallel.pipeline_model_parallel_size,
            (long long)most_micro_batches(cfg));
        return;
    }
    if (config_given(cfg, &t->train_samples)) {
        if (t->train_samples < t->global_batch_size)
            config_raise(cfg, &t->train_samples, "it is less than one step, %lld samples",
                         (long long)t->global_batch_size);
        config_follow_int(cfg, &t->train_iters, t->train_samples / t->global_batch_size);
    }
    cfg->derived.train_iters = t->train_iters;
}

int config_check_world(struct config *cfg, int64_t n_ranks) {
    int n_before = error_count();
    CHECK(n_ranks > 0, "%lld ranks", (long long)n_ranks);
    check_ranks(cfg, n_ranks);
    if (cfg->derived.data_parallel_size > 0) derive_batches(cfg);
    return error_count() > n_before ? EXIT_USAGE : 0;
}

int config_resolve_vocab(struct config *cfg, int64_t tokenizer_vocab) {
    int64_t *vocab = &cfg->language.vocab_size;
    CHECK(tokenizer_vocab > 0, "vocabulary of %lld", (long long)tokenizer_vocab);
    config_follow_int(cfg, vocab, tokenizer_vocab);
    if (*vocab < tokenizer_vocab)
        return config_raise(cfg, vocab, "the tokenizer has %lld tokens; allowed: at least as many",
                            (long long)tokenizer_vocab);
    int n_before = error_count();
    config_check_shares(cfg);
    return error_count() > n_before ? EXIT_USAGE : 0;
}

int config_check_trainable(const struct config *cfg) {
    if (cfg->run.device == DEVICE_CUDA)
        return error_raise(EXIT_UNAVAILABLE,
                           "%s: [run] device = cuda: this binary was built without it",
                           cfg->source->path);
    if (!cfg->training.bf16 && !cfg->training.fp16) return 0;
    return config_raise(cfg, cfg->training.bf16 ? &cfg->training.bf16 : &cfg->training.fp16,
                        "known, not in this version: device = cpu computes in fp32");
}
