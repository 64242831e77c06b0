/* Descriptors of micro-batches: integers from samples, the same on every rank. */
#include <stdlib.h>

#include "train_impl.h"

void descriptor_init(struct descriptor *d, int64_t samples, int64_t images,
                     int64_t rows_per_image) {
    d->rows_per_image = rows_per_image;
    d->sample_id = xcalloc((size_t)samples, sizeof *d->sample_id);
    d->cu_tokens = xcalloc((size_t)samples + 1, sizeof *d->cu_tokens);
    d->text_len = xcalloc((size_t)samples, sizeof *d->text_len);
    d->sample_images = xcalloc((size_t)samples + 1, sizeof *d->sample_images);
    d->image_tiles = xcalloc((size_t)images + 1, sizeof *d->image_tiles);
    d->image_row = xcalloc((size_t)images + 1, sizeof *d->image_row);
    d->image = xcalloc((size_t)images + 1, sizeof *d->image);
    d->layout = xcalloc((size_t)images + 1, sizeof *d->layout);
    d->ticket = -1;
}

void descriptor_free(struct descriptor *d) {
    free(d->sample_id);
    free(d->cu_tokens);
    free(d->text_len);
    free(d->sample_images);
    free(d->image_tiles);
    free(d->image_row);
    free(d->image);
    free(d->layout);
    free(d->pixels);
}

/* Newlines of an image above merged row `end`, where its sample is cut off. */
static int64_t newlines_before(const struct descriptor *d, int64_t image, int64_t end) {
    const struct image_layout *l = &d->layout[image];
    int64_t left = end - d->image_row[image] - d->rows_per_image;
    if (l->rows == 0 || left < 0) return 0;
    return left / (l->cols + 1) < l->rows ? left / (l->cols + 1) : l->rows;
}

/* Merged rows in front of marker k of a sample, and the marker's own row. */
static void place_images(struct descriptor *d, const struct sample *s, int64_t start) {
    int64_t row = start, at = d->mb.images;
    for (int32_t j = 0, k = 0; j < s->text_len; j++) {
        if (s->ids[j] != DATA_IMAGE_MARKER) {
            row++;
            continue;
        }
        d->image[at] = s->image[k];
        d->image_tiles[at] = sample_image_tiles(s, k);
        d->layout[at] = s->layout != NULL ? s->layout[k] : (struct image_layout){.tiles = 1};
        d->image_row[at] = row;
        d->mb.tiles += d->image_tiles[at];
        d->mb.newlines += newlines_before(d, at, start + s->merged_len);
        row += sample_image_rows(s, k++, d->rows_per_image);
        at++;
    }
    d->mb.images = at;
}

void descriptor_begin(struct descriptor *d, int64_t step, int64_t index, int64_t first_sample) {
    d->mb = (struct microbatch){.step = step,
                                .index = index,
                                .first_sample = first_sample,
                                .sample_id = d->sample_id,
                                .cu_tokens = d->cu_tokens,
                                .text_len = d->text_len,
                                .sample_images = d->sample_images,
                                .image_tiles = d->image_tiles,
                                .image_row = d->image_row};
    d->ticket = -1;
    d->counted = 0;
    d->cu_tokens[0] = 0;
    d->sample_images[0] = 0;
}

void descriptor_add(struct descriptor *d, int64_t id, const struct sample *s, bool counts) {
    int64_t i = d->mb.samples++;
    d->sample_id[i] = id;
    place_images(d, s, d->cu_tokens[i]);
    d->text_len[i] = s->text_len;
    d->cu_tokens[i + 1] = d->cu_tokens[i] + s->merged_len;
    d->sample_images[i + 1] = (int32_t)d->mb.images;
    if (counts) {
        d->mb.targets += s->n_targets;
        d->counted = i + 1;
    }
    if (s->merged_len > d->mb.max_segment) d->mb.max_segment = s->merged_len;
}

void descriptor_end(struct descriptor *d) {
    d->mb.image_rows = d->mb.tiles * d->rows_per_image;
    d->mb.tokens = d->cu_tokens[d->mb.samples];
    d->mb.hash = microbatch_hash(&d->mb);
}
