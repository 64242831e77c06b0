/* Synthetic samples for benchmarks: begin id, image markers, then random ids, the second half of
 * which are targets. A function of (seed, sample) alone; no files. */
#include "dataset_impl.h"

#define FIRST_TEXT_ID 3 /* behind unknown, begin and end */

static struct rng_key mock_key(uint64_t seed) {
    return (struct rng_key){{(uint32_t)seed, (uint32_t)(seed >> 32) ^ 0x6d6f636bu}};
}

static void add_sample(const struct data_settings *set, struct index *x, int64_t i) {
    char name[32];
    int n = snprintf(name, sizeof name, "mock %lld", (long long)i);
    int64_t length = set->mock_text_length, images = set->mock_images;
    for (int64_t k = 0; k < length + images; k++) {
        bool marker = k >= 1 && k <= images;
        uint32_t word[4], counter[4] = {(uint32_t)k, (uint32_t)i, (uint32_t)(i >> 32), 0};
        philox4x32(mock_key(set->mock_seed), counter, word);
        int32_t text = FIRST_TEXT_ID + (int32_t)(word[0] % (set->vocab_size - FIRST_TEXT_ID));
        int32_t id = marker ? DATA_IMAGE_MARKER : k == 0 ? 1 : text;
        int32_t label = k > images && k - images >= length / 2 ? id : DATA_NO_TARGET;
        index_append(x, COL_IDS, &id, 1);
        index_append(x, COL_LABELS, &label, 1);
    }
    const int64_t *begin = index_i64(x, COL_TEXT_OFFSET) + i;
    const int32_t *ids = index_i32(x, COL_IDS), *labels = index_i32(x, COL_LABELS);
    index_append_i64(x, COL_TARGETS,
                     count_targets(ids + *begin, labels + *begin, length + images, NULL,
                                   set->rows_per_image, set->decoder_seq_length));
    index_append_i64(x, COL_TEXT_OFFSET, x->col[COL_IDS].n);
    for (int64_t k = 0; k < images; k++) {
        index_append(x, COL_IMAGE_WIDTH, &(int32_t){set->img_w}, 1);
        index_append(x, COL_IMAGE_HEIGHT, &(int32_t){set->img_h}, 1);
        index_append_i64(x, COL_IMAGE_BYTES, 0);
        index_append(x, COL_IMAGE_BLANK, &(uint8_t){0}, 1);
        index_append(x, COL_IMAGE_NAMES, name, n + 1);
        index_append_i64(x, COL_IMAGE_NAME_OFFSET, x->col[COL_IMAGE_NAMES].n);
    }
    index_append_i64(x, COL_IMAGE_OFFSET, index_images(x));
    index_append_i64(x, COL_MERGED,
                     merged_rows(length + images, images, NULL, set->rows_per_image));
    index_append_i64(x, COL_RECORD, i);
    index_append(x, COL_NAMES, name, n + 1);
    index_append_i64(x, COL_NAME_OFFSET, x->col[COL_NAMES].n);
}

int mock_build(const struct data_settings *set, struct index *x) {
    if (set->mock_samples < 1 || set->mock_images < 0 || set->mock_text_length < 2 ||
        set->vocab_size <= FIRST_TEXT_ID)
        return error_raise(EXIT_USAGE,
                           "mock data need at least 1 sample, 2 text ids and a vocabulary of %d; "
                           "set are %lld, %lld and %lld",
                           FIRST_TEXT_ID + 1, (long long)set->mock_samples,
                           (long long)set->mock_text_length, (long long)set->vocab_size);
    index_init(x);
    for (int64_t i = 0; i < set->mock_samples; i++) add_sample(set, x, i);
    if (set->aspect == ASPECT_ANYRES) index_measure(x, set);
    index_compute_digest(x, x->digest);
    return 0;
}

/* U[-1.75, 1.75): about the spread of normalised pixels. */
void mock_pixels(uint64_t seed, int64_t image, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i += 4) {
        uint32_t word[4],
            counter[4] = {(uint32_t)(i / 4), (uint32_t)image, (uint32_t)(image >> 32), 1};
        philox4x32(mock_key(seed), counter, word);
        for (int64_t k = 0; k < 4 && i + k < n; k++)
            out[i + k] = (float)((int32_t)word[k] * (1.75 / 2147483648.0));
    }
}
