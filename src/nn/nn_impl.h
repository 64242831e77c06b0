/* Shared by the layers: declaring parameters, scratch, dropout coordinates. */
#ifndef STRATA_NN_IMPL_H
#define STRATA_NN_IMPL_H

#include "nn.h"

/* Granule of feed-forward columns and vocabulary rows: a function of the size alone. */
int64_t feature_granule(int64_t size);

/* A parameter of this block, completed with what the block knows, declared under slot. */
struct param_spec {
    const char *name, *hf_name; /* below the tower's prefix */
    const char *dims;
    int ndim;
    int64_t shape[4];
    struct cut cut;
    enum init_kind init;
    double scale;
    bool no_decay, fused;
    bool rows_local; /* acts on my rows: gradient is partial under sequence parallelism */
};
struct param_home {
    const char *prefix, *hf_prefix; /* with one %d where number >= 0 */
    int number;
    enum param_group group;
    bool frozen;
};
void block_declare(struct block *b, int slot, const struct param_home *home,
                   struct param_spec spec);
/* Gain (1) or bias (0) of a norm over h features that acts on my rows: whole on every rank, no decay. */
struct param_spec norm_spec(const char *name, const char *hf, int64_t h, bool bias);
/* [vocabulary, h], its rows cut over tp: the token table and the output head. */
struct param_spec vocabulary_spec(const char *name, const struct language_config *c);

/* View over the matrices of fused parameters slot..slot+n-1; data NULL if absent (or frozen). */
struct tensor block_weight(const struct block *b, int slot, int n);
struct tensor block_grad(const struct block *b, int slot, int n);
struct linear block_linear(const struct block *b, enum linear_kind kind, int weight_slot,
                           int bias_slot, int n_fused);

struct tensor scratch_tensor(struct pass *p, int64_t rows, int64_t cols); /* working dtype */
void tensor_zero(struct pass *p, const struct tensor *t);
void tensor_copy(struct pass *p, const struct tensor *from, const struct tensor *to);
const struct tensor *tensor_or_null(const struct tensor *t); /* NULL where data is NULL */

/* Coordinates of the rows from `first` on for a dropout site of that layer; NULL when it is off. */
const struct dropout *pass_dropout(const struct pass *p, double prob, enum rng_site site, int layer,
                                   int64_t first, struct dropout *out);

#endif
