/* The index in memory: columns that grow, names, digest, and whether it hangs together. */
#include <stdlib.h>
#include <string.h>

#include "index_impl.h"

const struct column_kind column_kind[N_COLUMNS] = {
    [COL_TEXT_OFFSET] = {"text_offset", COLUMN_I64, "first token id of each sample, and the end"},
    [COL_IDS] = {"ids", COLUMN_I32, "token ids; -200 stands for an image"},
    [COL_LABELS] = {"labels", COLUMN_I32, "the token id, or -100 where there is no target"},
    [COL_IMAGE_OFFSET] = {"image_offset", COLUMN_I64, "first image of each sample, and the end"},
    [COL_MERGED] = {"merged_rows", COLUMN_I64, "rows of the sample with its images, uncut"},
    [COL_TARGETS] = {"targets", COLUMN_I64, "rows that predict a target, after the cut"},
    [COL_RECORD] = {"record", COLUMN_I64, "place in the source"},
    [COL_NAME_OFFSET] = {"name_offset", COLUMN_I64, "first byte of each sample's name"},
    [COL_NAMES] = {"names", COLUMN_U8, "names of the samples, each with a NUL"},
    [COL_IMAGE_WIDTH] = {"image_width", COLUMN_I32, "pixels"},
    [COL_IMAGE_HEIGHT] = {"image_height", COLUMN_I32, "pixels"},
    [COL_IMAGE_BYTES] = {"image_bytes", COLUMN_I64, "size of the file"},
    [COL_IMAGE_BLANK] = {"image_blank", COLUMN_U8, "1: unreadable, a blank one stands for it"},
    [COL_IMAGE_NAME_OFFSET] = {"image_name_offset", COLUMN_I64, "first byte of each image's name"},
    [COL_IMAGE_NAMES] = {"image_names", COLUMN_U8, "paths below the image folder, each with a NUL"},
    [COL_IMAGE_STAMP] = {"image_stamp", COLUMN_I64, "of size, time and head of each image's file"},
    [COL_LEFT_NAME_OFFSET] = {"left_name_offset", COLUMN_I64, "first byte of each name"},
    [COL_LEFT_NAMES] = {"left_names", COLUMN_U8, "images of records that were left out"},
    [COL_LEFT_STAMP] = {"left_stamp", COLUMN_I64, "as image_stamp"},
};

size_t column_size(enum index_column c) {
    switch (column_kind[c].type) {
    case COLUMN_I64:
        return 8;
    case COLUMN_I32:
        return 4;
    default:
        return 1;
    }
}

void index_append(struct index *x, enum index_column c, const void *data, int64_t n) {
    struct column *col = &x->col[c];
    size_t size = column_size(c);
    if (col->data == NULL || col->n + n > col->capacity) {
        col->capacity = 2 * (col->n + n) + 64;
        col->data = xrealloc(col->data, (size_t)col->capacity * size);
    }
    if (n > 0) memcpy((char *)col->data + (size_t)col->n * size, data, (size_t)n * size);
    col->n += n;
}

void index_append_i64(struct index *x, enum index_column c, int64_t v) {
    index_append(x, c, &v, 1);
}

void index_init(struct index *x) {
    *x = (struct index){0};
    index_append_i64(x, COL_TEXT_OFFSET, 0);
    index_append_i64(x, COL_IMAGE_OFFSET, 0);
    index_append_i64(x, COL_NAME_OFFSET, 0);
    index_append_i64(x, COL_IMAGE_NAME_OFFSET, 0);
    index_append_i64(x, COL_LEFT_NAME_OFFSET, 0);
}

void index_free(struct index *x) {
    for (int c = 0; c < N_COLUMNS; c++) free(x->col[c].data);
    *x = (struct index){0};
}

int64_t index_samples(const struct index *x) {
    return x->col[COL_MERGED].n;
}

int64_t index_images(const struct index *x) {
    return x->col[COL_IMAGE_WIDTH].n;
}

const char *index_name(const struct index *x, int64_t i) {
    return (const char *)x->col[COL_NAMES].data + index_i64(x, COL_NAME_OFFSET)[i];
}

const char *index_image_name(const struct index *x, int64_t image) {
    return (const char *)x->col[COL_IMAGE_NAMES].data + index_i64(x, COL_IMAGE_NAME_OFFSET)[image];
}

static void append_image(struct index *x, const struct index *from, int64_t image) {
    const char *name = index_image_name(from, image);
    index_append(x, COL_IMAGE_WIDTH, index_i32(from, COL_IMAGE_WIDTH) + image, 1);
    index_append(x, COL_IMAGE_HEIGHT, index_i32(from, COL_IMAGE_HEIGHT) + image, 1);
    index_append(x, COL_IMAGE_BYTES, index_i64(from, COL_IMAGE_BYTES) + image, 1);
    index_append(x, COL_IMAGE_BLANK, (const uint8_t *)from->col[COL_IMAGE_BLANK].data + image, 1);
    index_append(x, COL_IMAGE_NAMES, name, (int64_t)strlen(name) + 1);
    index_append_i64(x, COL_IMAGE_NAME_OFFSET, x->col[COL_IMAGE_NAMES].n);
    index_append(x, COL_IMAGE_STAMP, index_i64(from, COL_IMAGE_STAMP) + image, 1);
}

static void append_left_image(struct index *x, const struct index *from, int64_t image) {
    const char *name = index_image_name(from, image);
    index_append(x, COL_LEFT_NAMES, name, (int64_t)strlen(name) + 1);
    index_append_i64(x, COL_LEFT_NAME_OFFSET, x->col[COL_LEFT_NAMES].n);
    index_append(x, COL_LEFT_STAMP, index_i64(from, COL_IMAGE_STAMP) + image, 1);
}

void index_append_sample(struct index *x, const struct index *from, int64_t i) {
    const int64_t *text = index_i64(from, COL_TEXT_OFFSET) + i;
    const int64_t *image = index_i64(from, COL_IMAGE_OFFSET) + i;
    const char *name = index_name(from, i);
    index_append(x, COL_IDS, index_i32(from, COL_IDS) + text[0], text[1] - text[0]);
    index_append(x, COL_LABELS, index_i32(from, COL_LABELS) + text[0], text[1] - text[0]);
    index_append_i64(x, COL_TEXT_OFFSET, x->col[COL_IDS].n);
    for (int64_t k = image[0]; k < image[1]; k++) append_image(x, from, k);
    index_append_i64(x, COL_IMAGE_OFFSET, index_images(x));
    index_append(x, COL_MERGED, index_i64(from, COL_MERGED) + i, 1);
    index_append(x, COL_TARGETS, index_i64(from, COL_TARGETS) + i, 1);
    index_append(x, COL_RECORD, index_i64(from, COL_RECORD) + i, 1);
    index_append(x, COL_NAMES, name, (int64_t)strlen(name) + 1);
    index_append_i64(x, COL_NAME_OFFSET, x->col[COL_NAMES].n);
}

void index_compute_digest(const struct index *x, char hex[65]) {
    struct sha256 h;
    sha256_begin(&h);
    for (int c = 0; c < N_DIGESTED; c++) {
        sha256_add(&h, column_kind[c].name, strlen(column_kind[c].name) + 1);
        sha256_add(&h, &x->col[c].n, sizeof x->col[c].n);
        sha256_add(&h, x->col[c].data, (size_t)x->col[c].n * column_size(c));
    }
    sha256_end(&h, hex);
}

void index_keep(struct index *x, const bool *keep) {
    static const enum index_column left[] = {COL_LEFT_NAME_OFFSET, COL_LEFT_NAMES, COL_LEFT_STAMP};
    const int64_t *image = index_i64(x, COL_IMAGE_OFFSET);
    struct index kept;
    index_init(&kept);
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) { /* of an earlier call */
        struct column empty = kept.col[left[i]];
        kept.col[left[i]] = x->col[left[i]];
        x->col[left[i]] = empty;
    }
    for (int64_t i = 0; i < index_samples(x); i++) {
        if (keep[i]) index_append_sample(&kept, x, i);
        for (int64_t k = image[i]; k < image[i + 1] && !keep[i]; k++)
            append_left_image(&kept, x, k);
    }
    memcpy(kept.notes, x->notes, sizeof kept.notes);
    kept.skipped_bad_image = x->skipped_bad_image;
    kept.skipped_no_target = x->skipped_no_target;
    index_free(x);
    *x = kept;
}

int64_t merged_rows(int64_t text_len, int64_t n_images, const int64_t *rows,
                    int64_t rows_per_image) {
    int64_t n = text_len - n_images;
    for (int64_t k = 0; k < n_images; k++) n += rows != NULL ? rows[k] : rows_per_image;
    return n;
}

/* Merged row t predicts the label of row t+1: a target at row p counts iff 1 <= p < limit. */
int64_t count_targets(const int32_t *ids, const int32_t *labels, int64_t text_len,
                      const int64_t *rows, int64_t rows_per_image, int64_t limit) {
    int64_t row = 0, n = 0, image = 0;
    for (int64_t k = 0; k < text_len && row < limit; k++) {
        if (row > 0 && labels[k] != DATA_NO_TARGET) n++;
        if (ids[k] == DATA_IMAGE_MARKER)
            row += rows != NULL ? rows[image++] : rows_per_image;
        else
            row++;
    }
    return n;
}

/* A blank image has no size; it stands for one of a single tile's. */
void index_image_layout(const struct index *x, const struct data_settings *s, int64_t image,
                        struct image_layout *out) {
    int width = index_i32(x, COL_IMAGE_WIDTH)[image],
        height = index_i32(x, COL_IMAGE_HEIGHT)[image];
    bool blank = width < 1 || height < 1;
    anyres_layout(&s->anyres, blank ? s->img_w : width, blank ? s->img_h : height, out);
}

void index_measure(struct index *x, const struct data_settings *s) {
    const int64_t *text = index_i64(x, COL_TEXT_OFFSET), *image = index_i64(x, COL_IMAGE_OFFSET);
    const int32_t *ids = index_i32(x, COL_IDS), *labels = index_i32(x, COL_LABELS);
    int64_t n_images = index_images(x);
    int64_t *rows = xmalloc((size_t)(n_images + 1) * sizeof *rows);
    for (int64_t k = 0; k < n_images; k++) {
        struct image_layout l;
        index_image_layout(x, s, k, &l);
        rows[k] = image_layout_rows(&l, s->rows_per_image);
    }
    for (int64_t i = 0; i < index_samples(x); i++) {
        int64_t length = text[i + 1] - text[i];
        ((int64_t *)x->col[COL_MERGED].data)[i] =
            merged_rows(length, image[i + 1] - image[i], rows + image[i], 0);
        ((int64_t *)x->col[COL_TARGETS].data)[i] = count_targets(
            ids + text[i], labels + text[i], length, rows + image[i], 0, s->decoder_seq_length);
    }
    free(rows);
}

/* ---- validation ------------------------------------------------------------------------------ */

static bool offsets_fit(const struct index *x, enum index_column offset, int64_t n, int64_t end) {
    const int64_t *o = index_i64(x, offset);
    if (x->col[offset].n != n + 1 || o[0] != 0 || o[n] != end) return false;
    for (int64_t i = 0; i < n; i++)
        if (o[i + 1] < o[i]) return false;
    return true;
}

static bool names_fit(const struct index *x, enum index_column offset, enum index_column names,
                      int64_t n) {
    if (!offsets_fit(x, offset, n, x->col[names].n)) return false;
    const int64_t *o = index_i64(x, offset);
    const char *text = x->col[names].data;
    for (int64_t i = 0; i < n; i++)
        if (o[i + 1] == o[i] || text[o[i + 1] - 1] != '\0') return false;
    return true;
}

bool index_names_fit(const struct index *x) {
    int64_t n = x->col[COL_IMAGE_STAMP].n, left = x->col[COL_LEFT_STAMP].n;
    return names_fit(x, COL_IMAGE_NAME_OFFSET, COL_IMAGE_NAMES, n) &&
           names_fit(x, COL_LEFT_NAME_OFFSET, COL_LEFT_NAMES, left);
}

static bool columns_fit(const struct index *x) {
    static const enum index_column of_sample[] = {COL_TARGETS, COL_RECORD};
    static const enum index_column of_image[] = {COL_IMAGE_HEIGHT, COL_IMAGE_BYTES, COL_IMAGE_BLANK,
                                                 COL_IMAGE_STAMP};
    int64_t n = index_samples(x), images = index_images(x);
    for (size_t i = 0; i < sizeof of_sample / sizeof of_sample[0]; i++)
        if (x->col[of_sample[i]].n != n) return false;
    for (size_t i = 0; i < sizeof of_image / sizeof of_image[0]; i++)
        if (x->col[of_image[i]].n != images) return false;
    const int32_t *width = index_i32(x, COL_IMAGE_WIDTH), *height = index_i32(x, COL_IMAGE_HEIGHT);
    for (int64_t k = 0; k < images; k++)
        if (width[k] < 0 || width[k] > IMAGE_SIDE_MAX || height[k] < 0 ||
            height[k] > IMAGE_SIDE_MAX)
            return false;
    return x->col[COL_LABELS].n == x->col[COL_IDS].n &&
           offsets_fit(x, COL_TEXT_OFFSET, n, x->col[COL_IDS].n) &&
           offsets_fit(x, COL_IMAGE_OFFSET, n, images) &&
           names_fit(x, COL_NAME_OFFSET, COL_NAMES, n) && index_names_fit(x);
}

static bool sample_fits(const struct index *x, int64_t i, int64_t vocab_size) {
    const int64_t *text = index_i64(x, COL_TEXT_OFFSET) + i;
    const int64_t *image = index_i64(x, COL_IMAGE_OFFSET) + i;
    const int32_t *ids = index_i32(x, COL_IDS), *labels = index_i32(x, COL_LABELS);
    int64_t markers = 0;
    for (int64_t k = text[0]; k < text[1]; k++) {
        bool marker = ids[k] == DATA_IMAGE_MARKER;
        if (!marker && (ids[k] < 0 || ids[k] >= vocab_size)) return false;
        if (labels[k] != DATA_NO_TARGET && (marker || labels[k] != ids[k])) return false;
        markers += marker;
    }
    return text[1] > text[0] && text[1] - text[0] <= INT32_MAX && markers == image[1] - image[0];
}

int index_validate(const struct index *x, const char *path, int64_t vocab_size) {
    if (index_samples(x) < 1) return error_raise(EXIT_BAD_DATA, "%s holds no sample", path);
    if (!columns_fit(x))
        return error_raise(EXIT_BAD_DATA,
                           "%s is no valid dataset index: its columns do not fit together; make "
                           "it again: strata prepare JOB.ini --rebuild",
                           path);
    for (int64_t i = 0; i < index_samples(x); i++)
        if (!sample_fits(x, i, vocab_size))
            return error_raise(EXIT_BAD_DATA,
                               "%s is no valid dataset index: sample %lld has ids, labels or "
                               "markers out of range; make it again: strata prepare JOB.ini "
                               "--rebuild",
                               path, (long long)i);
    return 0;
}
