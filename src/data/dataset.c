/* An open data set: the index in memory, samples as views into it, pixels on demand. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dataset_impl.h"

static int read_index(const struct data_settings *s, struct index *x) {
    if (s->format == DATA_MOCK) return mock_build(s, x);
    char *path = dataset_index_path(s);
    if (path == NULL) return error_code();
    int rc = 0;
    if (access(path, F_OK) != 0)
        rc = error_raise(EXIT_NO_INPUT,
                         "there is no dataset index %s for data_path %s; make it "
                         "with: strata prepare JOB.ini",
                         path, s->path);
    if (rc == 0) rc = index_file_read(path, x);
    if (rc == 0) rc = index_validate(x, path, s->vocab_size);
    free(path);
    return rc;
}

static void find_limits(struct dataset *d) {
    const int32_t *width = index_i32(&d->x, COL_IMAGE_WIDTH);
    const int32_t *height = index_i32(&d->x, COL_IMAGE_HEIGHT);
    const int64_t *bytes = index_i64(&d->x, COL_IMAGE_BYTES);
    for (int64_t i = 0; i < index_images(&d->x); i++)
        if (width[i] > 0 && height[i] > 0)
            image_limits_add(&d->pipeline, &d->limits, width[i], height[i], (size_t)bytes[i]);
}

static struct image_layout *make_layouts(const struct index *x, const struct data_settings *s) {
    int64_t n = index_images(x);
    if (s->aspect != ASPECT_ANYRES) return NULL;
    struct image_layout *l = xcalloc((size_t)n + 1, sizeof *l);
    for (int64_t i = 0; i < n; i++) index_image_layout(x, s, i, &l[i]);
    return l;
}

int dataset_open(const struct data_settings *s, struct dataset **out) {
    struct dataset *d = xcalloc(1, sizeof *d);
    int rc = read_index(s, &d->x);
    if (rc != 0) {
        index_free(&d->x);
        free(d);
        return rc;
    }
    size_t n = (size_t)index_images(&d->x);
    d->limit = s->decoder_seq_length;
    d->rows_per_image = s->rows_per_image;
    d->image_row = xcalloc(n + 1, sizeof *d->image_row);
    for (size_t i = 0; i < n; i++) d->image_row[i] = (int64_t)i;
    d->layout = make_layouts(&d->x, s);
    image_pipeline_init(&d->pipeline, s);
    d->mock_seed = s->mock_seed;
    d->on_bad_image = s->on_bad_image;
    d->max_bad_images = s->max_bad_images;
    d->turned_bad = xcalloc(n + 1, sizeof *d->turned_bad);
    d->n_turned_bad = xcalloc(1, sizeof *d->n_turned_bad);
    if (s->format != DATA_MOCK) {
        d->folder = data_image_folder(s);
        find_limits(d);
    }
    *out = d;
    return 0;
}

void dataset_close(struct dataset *d) {
    if (d == NULL) return;
    index_free(&d->x);
    free(d->image_row);
    free(d->layout);
    free(d->turned_bad);
    free(d->n_turned_bad);
    free(d->folder);
    free(d);
}

int64_t dataset_count(const struct dataset *d) {
    return index_samples(&d->x);
}

int64_t dataset_images(const struct dataset *d) {
    return index_images(&d->x);
}

const char *dataset_digest(const struct dataset *d) {
    return d->x.digest;
}

const char *dataset_notes(const struct dataset *d) {
    return d->x.notes;
}

const char *dataset_image_name(const struct dataset *d, int64_t image) {
    CHECK(image >= 0 && image < dataset_images(d), "image %lld", (long long)image);
    return index_image_name(&d->x, image);
}

void dataset_sample(const struct dataset *d, int64_t i, struct sample *out) {
    CHECK(i >= 0 && i < dataset_count(d), "sample %lld", (long long)i);
    const int64_t *text = index_i64(&d->x, COL_TEXT_OFFSET) + i;
    const int64_t *image = index_i64(&d->x, COL_IMAGE_OFFSET) + i;
    int64_t merged = index_i64(&d->x, COL_MERGED)[i];
    *out = (struct sample){
        .id = i,
        .name = index_name(&d->x, i),
        .text_len = (int32_t)(text[1] - text[0]),
        .n_images = (int32_t)(image[1] - image[0]),
        .ids = index_i32(&d->x, COL_IDS) + text[0],
        .labels = index_i32(&d->x, COL_LABELS) + text[0],
        .image = d->image_row + image[0],
        .layout = d->layout == NULL ? NULL : d->layout + image[0],
        .merged_len = merged < d->limit ? merged : d->limit,
        .n_targets = index_i64(&d->x, COL_TARGETS)[i],
    };
}

void dataset_report(const struct dataset *d, struct dataset_report *r) {
    const int64_t *merged = index_i64(&d->x, COL_MERGED);
    const uint8_t *blank = d->x.col[COL_IMAGE_BLANK].data;
    *r = (struct dataset_report){.samples = dataset_count(d),
                                 .images = dataset_images(d),
                                 .text_ids = d->x.col[COL_IDS].n,
                                 .skipped_bad_image = d->x.skipped_bad_image,
                                 .skipped_no_target = d->x.skipped_no_target};
    for (int64_t i = 0; i < r->samples; i++) {
        struct sample s;
        dataset_sample(d, i, &s);
        r->text_only += s.n_images == 0;
        r->targets += s.n_targets;
        r->no_target_samples += s.n_targets == 0;
        r->cut_samples += merged[i] > d->limit;
        if (merged[i] > r->longest) {
            r->longest = merged[i];
            r->longest_sample = i;
        }
    }
    for (int64_t i = 0; i < r->images; i++) r->blank_images += blank[i];
}

/* ---- pixels ---------------------------------------------------------------------------------- */

int32_t dataset_tiles(const struct dataset *d, int64_t image) {
    return d->layout == NULL ? 1 : d->layout[image].tiles;
}

/* The size first: it says how much is written. */
static int load_and_compare(const struct dataset *d, int64_t image, struct image_scratch *s,
                            float *out) {
    struct image info;
    int width = index_i32(&d->x, COL_IMAGE_WIDTH)[image];
    int height = index_i32(&d->x, COL_IMAGE_HEIGHT)[image];
    TRY(image_load(&d->pipeline, d->folder, index_image_name(&d->x, image), s, &info, NULL));
    if (info.width == width && info.height == height &&
        (int64_t)info.file_bytes == index_i64(&d->x, COL_IMAGE_BYTES)[image]) {
        image_transform(&d->pipeline, s, &info, out);
        return 0;
    }
    return image_fail(s, EXIT_BAD_DATA,
                      "is another file than when the index was made: %d x %d pixels in place of "
                      "%d x %d; make the index again: strata prepare JOB.ini --rebuild",
                      info.width, info.height, width, height);
}

/* A blank one if the policy and its limit allow that, else the code. */
static int turn_bad(const struct dataset *d, int64_t image, int code) {
    if (d->on_bad_image != BAD_IMAGE_BLANK) return code;
    bool known = atomic_exchange(&d->turned_bad[image], 1) != 0;
    long long n = known ? atomic_load(d->n_turned_bad) : atomic_fetch_add(d->n_turned_bad, 1) + 1;
    return n <= d->max_bad_images ? 0 : code;
}

int dataset_fetch(const struct dataset *d, int64_t image, struct image_scratch *s, float *out) {
    CHECK(image >= 0 && image < dataset_images(d), "image %lld", (long long)image);
    size_t n =
        3 * (size_t)d->pipeline.img_h * (size_t)d->pipeline.img_w * (size_t)dataset_tiles(d, image);
    s->why[0] = '\0';
    if (d->folder == NULL) {
        mock_pixels(d->mock_seed, image, (int64_t)n, out);
        return 0;
    }
    int code = 0;
    if (((const uint8_t *)d->x.col[COL_IMAGE_BLANK].data)[image] == 0) {
        code = load_and_compare(d, image, s, out);
        if (code == 0) return 0;
        code = turn_bad(d, image, code);
    }
    memset(out, 0, n * sizeof *out); /* the mean colour */
    return code;
}

int dataset_pixels(const struct dataset *d, int64_t image, float *out) {
    struct image_scratch s = {0};
    int code = dataset_fetch(d, image, &s, out);
    if (code != 0)
        error_raise(code, "image %s %s", index_image_name(&d->x, image), s.why);
    else if (s.why[0] != '\0')
        log_warn("image %s %s: blank instead", index_image_name(&d->x, image), s.why);
    image_scratch_free(&s);
    return code;
}

static int load_file(const struct data_settings *set, const char *path, struct image *info,
                     float *out) {
    struct image_scratch s = {0};
    struct image_pipeline pipeline;
    image_pipeline_init(&pipeline, set);
    int code = image_load(&pipeline, NULL, path, &s, info, out);
    if (code != 0) error_raise(code, "image %s %s", path, s.why);
    image_scratch_free(&s);
    return code;
}

int data_image_load(const struct data_settings *set, const char *path, float *out) {
    struct image info;
    return load_file(set, path, &info, out);
}

int data_image_layout(const struct data_settings *set, const char *path, struct image_layout *out) {
    struct image info;
    TRY(load_file(set, path, &info, NULL));
    anyres_layout(&set->anyres, info.width, info.height, out);
    return 0;
}
