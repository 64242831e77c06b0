/* Shared by the files of the trainer. */
#ifndef STRATA_TRAIN_IMPL_H
#define STRATA_TRAIN_IMPL_H

#include "data.h"
#include "plan.h"
#include "train.h"

/* ---- what a micro-batch adds up to ---------------------------------------------------------- */
struct batch_sizes {
    int64_t images, tokens, targets, max_segment;
};
void batch_sizes_add(struct batch_sizes *to, const struct sample *s);

/* ---- batches: from the data set's index to descriptors and tables ------------------------------ */
struct batcher;
struct batcher_settings {
    int64_t micro_batch_size, global_batch_size;
    int dp, D, M;
    bool shuffle, per_token_loss;
    struct rng_key run_key;
    int num_workers;
};
int batcher_create(const struct batcher_settings *settings, const struct dataset *data,
                   const struct stack *stack, struct batcher **out);
void batcher_destroy(struct batcher *b);
/* Says which stage's tables are wanted and takes the host buffers, for micro-batches up to
 * `largest`. */
void batcher_attach(struct batcher *b, const struct stage *stage, const struct microbatch *largest);
/* Builds the descriptors of the step that begins at sample `consumed`, and has their images (and,
 * with look_ahead, those of the next step) decoded in the background. */
void batcher_begin_step(struct batcher *b, int64_t step, int64_t consumed, bool look_ahead);
struct microbatch_source batcher_source(struct batcher *b);
int64_t batcher_targets(const struct batcher *b); /* N: of the whole global batch */
int64_t batcher_tokens(const struct batcher *b);  /* merged rows of the whole global batch */
int64_t batcher_images(const struct batcher *b);
double batcher_wait_seconds(const struct batcher *b); /* spent waiting for images so far */

#endif
