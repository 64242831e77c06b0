/* Inside data: an open data set, and fetching pixels from any thread. */
#ifndef STRATA_DATA_DATASET_IMPL_H
#define STRATA_DATA_DATASET_IMPL_H

#include <stdatomic.h>

#include "index_impl.h"

struct dataset {
    struct index x;
    int64_t limit, rows_per_image; /* decoder_seq_length, K */
    int64_t *image_row;            /* [images] 0, 1, 2, ...: what sample.image points into */
    struct image_layout *layout;   /* [images]; NULL: each is one tile */
    struct image_pipeline pipeline;
    struct image_limits limits;
    char *folder; /* NULL: mock */
    uint64_t mock_seed;
    enum data_bad_image on_bad_image;
    int64_t max_bad_images;
    /* Images that turned out bad after the index was made; counted once each. */
    atomic_uchar *turned_bad; /* [images] */
    atomic_llong *n_turned_bad;
};
int32_t dataset_tiles(const struct dataset *d, int64_t image);
/* Pixels of an image of the table with a thread's own scratch. An exit code with the reason in
 * s->why; 0 and a reason: it was bad, and a blank one stands in. */
int dataset_fetch(const struct dataset *d, int64_t image, struct image_scratch *s, float *out);

int mock_build(const struct data_settings *set, struct index *x);
void mock_pixels(uint64_t seed, int64_t image, int64_t n, float *out);

#endif
