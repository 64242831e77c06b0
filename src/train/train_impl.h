/* Shared by the files of the trainer. */
#ifndef STRATA_TRAIN_IMPL_H
#define STRATA_TRAIN_IMPL_H

#include "data.h"
#include "plan.h"
#include "train.h"

/* ---- tables of figures (table.c) ---------------------------------------------------------------
 * table_open opens <dir>/<name> for appending rows behind those up to `step`; later ones are cut
 * off. */
bool table_exists(const char *dir, const char *name);
int table_open(const char *dir, const char *name, const char *header, int64_t step, FILE **out);

/* ---- what a micro-batch adds up to ---------------------------------------------------------- */
struct batch_sizes {
    int64_t images, tiles, newlines; /* newlines: at most, those beyond the cut included */
    int64_t tokens, targets, max_segment;
};
void batch_sizes_add(struct batch_sizes *to, const struct sample *s);

/* ---- descriptors ---------------------------------------------------------------------------- */
struct descriptor {
    struct microbatch mb;
    int64_t *sample_id, *cu_tokens, *image_row, *image; /* image: rows of the image table */
    int32_t *text_len, *sample_images, *image_tiles;
    struct image_layout *layout; /* [images] of anyres, else grid_w is 0 */
    int64_t rows_per_image;      /* of a tile */
    int64_t counted; /* its first samples, whose targets count; the others only fill it up */
    int64_t ticket;  /* of its pixels, -1: none wanted */
    float *pixels;   /* [tiles, channels*H*W], where the first stage is here */
};
/* With room for so many samples and images. */
void descriptor_init(struct descriptor *d, int64_t samples, int64_t images, int64_t rows_per_image);
void descriptor_free(struct descriptor *d);
void descriptor_begin(struct descriptor *d, int64_t step, int64_t index, int64_t first_sample);
void descriptor_add(struct descriptor *d, int64_t id, const struct sample *s, bool counts);
void descriptor_end(struct descriptor *d); /* the sums and the hash */

/* ---- tables ----------------------------------------------------------------------------------- */
struct tables_source {
    const struct stage *stage;
    struct stage_needs need;
    void *arg; /* of sample(): ids and labels of sample `id` */
    void (*sample)(void *arg, int64_t id, struct sample *out);
    bool predict_next; /* generation: the one target row is the last one, its id not known */
    int32_t *staging;
};
/* Sets stage, need and staging, which the caller frees. */
void tables_source_init(struct tables_source *from, const struct stage *stage,
                        const struct microbatch *largest);
/* Takes the tables from `arena` (stage_tables_layout) and fills them. */
void tables_fill(const struct tables_source *from, const struct descriptor *d, struct backend *be,
                 struct arena *arena, struct batch_tables *out);

/* ---- batches: from the data set's index to descriptors and tables ------------------------------ */
struct batcher;
struct batcher_settings {
    int64_t micro_batch_size, global_batch_size;
    int dp, D, M;
    bool shuffle, per_token_loss;
    int64_t limit; /* samples from that position of the order on have no targets; 0: no limit */
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

/* save_interval = auto: seconds between two saves that lose least (arXiv 2410.18124):
 * Ts + sqrt(2 (Tf + Tr) Ts + Ts^2) with Ts = stall of a save, Tf = time between failures, Tr = time
 * of a restart. */
double save_interval_seconds(double stall, double failure, double restart);

#endif
