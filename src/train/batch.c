/* Micro-batches: descriptors from the index alone, tables from ids and labels. The order of samples
 * and their grouping are functions of the step; no layout enters. */
#include <stdlib.h>
#include <string.h>

#include "train_impl.h"

/* A descriptor with room for any micro-batch of the data set. */
struct descriptor {
    struct microbatch mb;
    int64_t *sample_id, *cu_tokens, *image_row, *image; /* image: rows of the image table */
    int32_t *text_len, *sample_images, *image_tiles;
    int64_t ticket; /* of its pixels, -1: none wanted */
    float *pixels;
};

struct batcher {
    struct batcher_settings s;
    const struct dataset *data;
    const struct stack *stack;
    struct sampler *sampler;
    struct prefetch *prefetch;
    const struct stage *stage;
    struct stage_needs need;
    int64_t rows_per_image, most_images; /* most_images: of any sample */
    struct descriptor *now, *next;       /* [M] each; next: decoded ahead */
    int64_t next_consumed;               /* where `next` begins, -1: nothing there */
    int64_t targets, tokens, images;     /* of the global batch of the step */
    int64_t filled;                      /* its micro-batches with targets */
    int32_t *staging;
    size_t image_floats;
    double wait_seconds;
};

static void descriptor_init(struct descriptor *d, int64_t samples, int64_t images) {
    d->sample_id = xcalloc((size_t)samples, sizeof *d->sample_id);
    d->cu_tokens = xcalloc((size_t)samples + 1, sizeof *d->cu_tokens);
    d->text_len = xcalloc((size_t)samples, sizeof *d->text_len);
    d->sample_images = xcalloc((size_t)samples + 1, sizeof *d->sample_images);
    d->image_tiles = xcalloc((size_t)images + 1, sizeof *d->image_tiles);
    d->image_row = xcalloc((size_t)images + 1, sizeof *d->image_row);
    d->image = xcalloc((size_t)images + 1, sizeof *d->image);
    d->ticket = -1;
}

static void descriptor_free(struct descriptor *d) {
    free(d->sample_id);
    free(d->cu_tokens);
    free(d->text_len);
    free(d->sample_images);
    free(d->image_tiles);
    free(d->image_row);
    free(d->image);
    free(d->pixels);
}

static int64_t most_images(const struct dataset *data) {
    int64_t most = 0;
    for (int64_t i = 0; i < dataset_count(data); i++) {
        struct sample s;
        dataset_sample(data, i, &s);
        if (s.n_images > most) most = s.n_images;
    }
    return most;
}

int batcher_create(const struct batcher_settings *settings, const struct dataset *data,
                   const struct stack *stack, struct batcher **out) {
    const struct vision_config *v = &stack->shape.vision;
    struct batcher *b = xcalloc(1, sizeof *b);
    b->s = *settings;
    b->data = data;
    b->stack = stack;
    b->rows_per_image = vision_patches(v) + (v->drop_class ? 0 : 1);
    b->most_images = most_images(data);
    b->image_floats = (size_t)(v->channels * v->img_h * v->img_w);
    b->sampler = sampler_create(dataset_count(data), settings->run_key, settings->shuffle);
    b->now = xcalloc((size_t)settings->M, sizeof *b->now);
    b->next = xcalloc((size_t)settings->M, sizeof *b->next);
    int64_t images = settings->micro_batch_size * b->most_images;
    for (int k = 0; k < settings->M; k++) {
        descriptor_init(&b->now[k], settings->micro_batch_size, images);
        descriptor_init(&b->next[k], settings->micro_batch_size, images);
    }
    b->next_consumed = -1;
    *out = b;
    return 0;
}

void batcher_destroy(struct batcher *b) {
    if (b == NULL) return;
    if (b->prefetch != NULL) prefetch_destroy(b->prefetch);
    for (int k = 0; k < b->s.M; k++) {
        descriptor_free(&b->now[k]);
        descriptor_free(&b->next[k]);
    }
    free(b->now);
    free(b->next);
    free(b->staging);
    sampler_destroy(b->sampler);
    free(b);
}

/* Merged rows in front of marker k of a sample, and the marker's own row. */
static void place_images(struct batcher *b, struct descriptor *d, const struct sample *s,
                         int64_t start) {
    int64_t row = start, at = d->mb.images;
    for (int32_t j = 0, k = 0; j < s->text_len; j++) {
        if (s->ids[j] != DATA_IMAGE_MARKER) {
            row++;
            continue;
        }
        d->image[at] = s->image[k++];
        d->image_tiles[at] = 1;
        d->image_row[at++] = row;
        row += b->rows_per_image;
    }
    d->mb.images = at;
}

/* Descriptor of global micro-batch `index` of the step that begins at sample `consumed`. */
static void describe(struct batcher *b, struct descriptor *d, int64_t step, int64_t consumed,
                     int64_t index) {
    int64_t n = b->s.micro_batch_size, first = index * n;
    d->mb = (struct microbatch){.step = step,
                                .index = index,
                                .first_sample = first,
                                .samples = n,
                                .sample_id = d->sample_id,
                                .cu_tokens = d->cu_tokens,
                                .text_len = d->text_len,
                                .sample_images = d->sample_images,
                                .image_tiles = d->image_tiles,
                                .image_row = d->image_row};
    d->ticket = -1;
    d->cu_tokens[0] = 0;
    d->sample_images[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        struct sample s;
        d->sample_id[i] = sampler_sample(b->sampler, consumed + first + i);
        dataset_sample(b->data, d->sample_id[i], &s);
        place_images(b, d, &s, d->cu_tokens[i]);
        d->text_len[i] = s.text_len;
        d->cu_tokens[i + 1] = d->cu_tokens[i] + s.merged_len;
        d->sample_images[i + 1] = (int32_t)d->mb.images;
        d->mb.targets += s.n_targets;
        if (s.merged_len > d->mb.max_segment) d->mb.max_segment = s.merged_len;
    }
    d->mb.tiles = d->mb.images;
    d->mb.image_rows = d->mb.tiles * b->rows_per_image;
    d->mb.tokens = d->cu_tokens[n];
    d->mb.hash = microbatch_hash(&d->mb);
}

/* ---- steps ------------------------------------------------------------------------------------------ */
static int64_t most_indices(const struct microbatch *mb) {
    int64_t n = mb->tokens;
    if (mb->image_rows > n) n = mb->image_rows;
    if (mb->tiles + 1 > n) n = mb->tiles + 1;
    return n > mb->samples + 1 ? n : mb->samples + 1;
}

void batcher_attach(struct batcher *b, const struct stage *stage,
                    const struct microbatch *largest) {
    b->stage = stage;
    b->need = stage_needs(stage);
    b->staging = xmalloc((size_t)(most_indices(largest) + 1) * sizeof *b->staging);
    if (!b->need.pixels || largest->tiles == 0) return;
    size_t bytes = (size_t)largest->tiles * b->image_floats * sizeof(float);
    for (int k = 0; k < b->s.M; k++) {
        b->now[k].pixels = xmalloc(bytes);
        b->next[k].pixels = xmalloc(bytes);
    }
    b->prefetch = prefetch_create(b->data, b->s.num_workers, 2 * b->s.M, largest->tiles);
}

static void build_step(struct batcher *b, struct descriptor *d, int64_t step, int64_t consumed) {
    for (int k = 0; k < b->s.M; k++) {
        describe(b, &d[k], step, consumed, (int64_t)b->s.dp * b->s.M + k);
        if (b->prefetch != NULL && d[k].mb.images > 0)
            d[k].ticket = prefetch_submit(b->prefetch, d[k].image, d[k].mb.images, d[k].pixels);
    }
}

static void count_global_batch(struct batcher *b, int64_t consumed) {
    b->targets = b->tokens = b->images = b->filled = 0;
    for (int64_t at = 0; at < b->s.global_batch_size; at += b->s.micro_batch_size) {
        struct batch_sizes one = {0};
        for (int64_t i = 0; i < b->s.micro_batch_size; i++) {
            struct sample s;
            dataset_sample(b->data, sampler_sample(b->sampler, consumed + at + i), &s);
            batch_sizes_add(&one, &s);
        }
        b->targets += one.targets;
        b->tokens += one.tokens;
        b->images += one.images;
        b->filled += one.targets > 0;
    }
}

void batcher_begin_step(struct batcher *b, int64_t step, int64_t consumed, bool look_ahead) {
    if (b->next_consumed == consumed) {
        struct descriptor *t = b->now;
        b->now = b->next;
        b->next = t;
    } else {
        build_step(b, b->now, step, consumed);
    }
    b->next_consumed = -1;
    count_global_batch(b, consumed);
    if (look_ahead) {
        b->next_consumed = consumed + b->s.global_batch_size;
        build_step(b, b->next, step + 1, b->next_consumed);
    }
}

/* ---- tables -------------------------------------------------------------------------------------------- */
struct filler {
    struct batcher *b;
    struct backend *be;
    const struct descriptor *d;
    struct row_split image, text; /* sequence parallelism */
    bool sp;
    int tp;
};

static void put(struct filler *f, const int32_t *to, int64_t n) {
    f->be->ops->upload(f->be, (void *)(uintptr_t)to, f->b->staging, (size_t)n * sizeof(int32_t));
}

static void fill_vision(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    const struct vision_config *v = &f->b->stack->shape.vision;
    int64_t tile = vision_patches(v) + 1;
    for (int64_t i = 0; i <= mb->tiles; i++) f->b->staging[i] = (int32_t)(i * tile);
    put(f, t->tile_cu, mb->tiles + 1);
    if (t->select_row == NULL) return;
    struct row_split tower;
    rows_split(ROWS_VISION, mb, tile, false, f->sp ? f->b->stage->tp_size : 1, &tower);
    int64_t first = f->sp ? tower.offset[f->tp] : 0, end = tower.offset[f->sp ? f->tp + 1 : 1],
            n = 0;
    for (int64_t r = first; r < end; r++)
        if (!v->drop_class || r % tile != 0) f->b->staging[n++] = (int32_t)(r - first);
    put(f, t->select_row, n);
}

/* Merged row of every image row, -1 where the sample was cut off. */
static void image_rows_merged(const struct filler *f, int32_t *out) {
    const struct microbatch *mb = &f->d->mb;
    int64_t k = f->b->rows_per_image, n = 0;
    for (int64_t s = 0; s < mb->samples; s++)
        for (int64_t i = mb->sample_images[s]; i < mb->sample_images[s + 1]; i++)
            for (int64_t r = 0; r < k; r++) {
                int64_t row = mb->image_row[i] + r;
                out[n++] = row < mb->cu_tokens[s + 1] ? (int32_t)row : -1;
            }
}

static void fill_token_rows(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    const struct language_config *c = &f->b->stack->shape.language;
    struct cut cut = vocabulary_cut(c);
    struct cut_part mine = cut_part(&cut, f->b->stage->tp_size, f->tp);
    int64_t lo = mine.global[0], hi = lo + mine.count[0];
    for (int64_t i = 0; i < mb->samples; i++) {
        struct sample s;
        dataset_sample(f->b->data, mb->sample_id[i], &s);
        int64_t row = mb->cu_tokens[i], end = mb->cu_tokens[i + 1];
        for (int32_t j = 0; j < s.text_len && row < end; j++) {
            bool image = s.ids[j] == DATA_IMAGE_MARKER;
            int64_t n = image ? f->b->rows_per_image : 1;
            for (; n > 0 && row < end; n--, row++)
                f->b->staging[row] =
                    !image && s.ids[j] >= lo && s.ids[j] < hi ? (int32_t)(s.ids[j] - lo) : -1;
        }
    }
    put(f, t->token, mb->tokens);
}

static void fill_embedding(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    int32_t *staging = f->b->staging;
    fill_token_rows(f, t);
    image_rows_merged(f, staging);
    int64_t first = f->sp ? f->image.offset[f->tp] : 0;
    int64_t count = f->sp ? f->image.offset[f->tp + 1] - first : mb->image_rows;
    f->be->ops->upload(f->be, (void *)(uintptr_t)t->my_image_row, staging + first,
                       (size_t)count * sizeof *staging);
    if (f->sp)
        for (int64_t i = 0; i < mb->image_rows; i++) {
            bool mine =
                staging[i] >= f->text.offset[f->tp] && staging[i] < f->text.offset[f->tp + 1];
            staging[i] = mine ? staging[i] - (int32_t)f->text.offset[f->tp] : -1;
        }
    put(f, t->image_to_row, mb->image_rows);
}

static void fill_language(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    int32_t *staging = f->b->staging;
    for (int64_t i = 0; i < mb->samples; i++)
        for (int64_t r = mb->cu_tokens[i]; r < mb->cu_tokens[i + 1]; r++)
            staging[r] = (int32_t)(r - mb->cu_tokens[i]);
    put(f, t->position, mb->tokens);
    for (int64_t i = 0; i < mb->samples; i++)
        for (int64_t r = mb->cu_tokens[i]; r < mb->cu_tokens[i + 1]; r++)
            staging[r] = (int32_t)(mb->first_sample + i);
    put(f, t->row_sample, mb->tokens);
    for (int64_t i = 0; i <= mb->samples; i++) staging[i] = (int32_t)mb->cu_tokens[i];
    put(f, t->token_cu, mb->samples + 1);
    for (int64_t i = 0; i < mb->samples; i++) staging[i] = (int32_t)(mb->first_sample + i);
    put(f, t->segment_sample, mb->samples);
}

/* Calls `each` for every merged row that predicts a target. */
static int64_t list_targets(const struct filler *f, bool want_ids, int32_t *out) {
    const struct microbatch *mb = &f->d->mb;
    int64_t n = 0;
    for (int64_t i = 0; i < mb->samples; i++) {
        struct sample s;
        dataset_sample(f->b->data, mb->sample_id[i], &s);
        int64_t row = mb->cu_tokens[i], end = mb->cu_tokens[i + 1];
        for (int32_t j = 0; j < s.text_len && row < end; j++) {
            if (s.ids[j] == DATA_IMAGE_MARKER) {
                row += f->b->rows_per_image;
                continue;
            }
            if (s.labels[j] != DATA_NO_TARGET && row > mb->cu_tokens[i]) {
                CHECK(n < mb->targets, "more targets than the index has");
                out[n++] = want_ids ? s.labels[j] : (int32_t)(row - 1);
            }
            row++;
        }
    }
    return n;
}

static void fill_head(struct filler *f, const struct batch_tables *t) {
    int32_t *staging = f->b->staging;
    int64_t n = list_targets(f, false, staging);
    CHECK(n == f->d->mb.targets, "%lld targets, the index has %lld", (long long)n,
          (long long)f->d->mb.targets);
    put(f, t->target_row, n);
    if (f->sp)
        for (int64_t i = 0; i < n; i++) {
            bool mine =
                staging[i] >= f->text.offset[f->tp] && staging[i] < f->text.offset[f->tp + 1];
            staging[i] = mine ? staging[i] - (int32_t)f->text.offset[f->tp] : -1;
        }
    put(f, t->my_target_row, n);
    list_targets(f, true, staging);
    put(f, t->target, n);
}

static int fill_pixels(struct filler *f, const struct batch_tables *t) {
    struct descriptor *d = (struct descriptor *)(uintptr_t)f->d;
    if (d->mb.images == 0) return 0;
    if (d->ticket >= 0) { /* a step that runs again finds its pixels decoded */
        double start = clock_seconds();
        int rc = prefetch_wait(f->b->prefetch, d->ticket);
        d->ticket = -1;
        f->b->wait_seconds += clock_seconds() - start;
        TRY(rc);
    }
    f->be->ops->upload(f->be, (void *)(uintptr_t)t->pixels, d->pixels,
                       (size_t)d->mb.tiles * f->b->image_floats * sizeof(float));
    return 0;
}

static int source_tables(void *arg, int k, struct backend *be, struct arena *arena,
                         struct batch_tables *out) {
    struct batcher *b = arg;
    const struct vision_config *v = &b->stack->shape.vision;
    const struct microbatch *mb = &b->now[k].mb;
    struct filler f = {.b = b,
                       .be = be,
                       .d = &b->now[k],
                       .sp = b->stack->sequence_parallel,
                       .tp = b->stage->tp_rank};
    if (f.sp) {
        rows_split(ROWS_IMAGE, mb, vision_patches(v) + 1, v->drop_class, b->stage->tp_size,
                   &f.image);
        rows_split(ROWS_TEXT, mb, 0, false, b->stage->tp_size, &f.text);
    }
    stage_tables_layout(b->stage, mb, arena, out);
    if (b->need.pixels) TRY(fill_pixels(&f, out));
    if (b->need.vision) fill_vision(&f, out);
    if (b->need.embedding) fill_embedding(&f, out);
    if (b->need.language) fill_language(&f, out);
    if (b->need.head) fill_head(&f, out);
    return 0;
}

static const struct microbatch *source_descriptor(void *arg, int k) {
    struct batcher *b = arg;
    return &b->now[k].mb;
}

/* Per-token loss: gradients of the sum, one factor 1/N at the end. Else each micro-batch's mean,
 * divided by the number of micro-batches that have targets. */
static double source_loss_scale(void *arg, int k) {
    const struct batcher *b = arg;
    int64_t n = b->now[k].mb.targets;
    if (b->s.per_token_loss || n == 0) return 1.0;
    return 1.0 / ((double)n * (double)b->filled);
}

struct microbatch_source batcher_source(struct batcher *b) {
    return (struct microbatch_source){b, source_descriptor, source_tables, source_loss_scale};
}

int64_t batcher_targets(const struct batcher *b) {
    return b->targets;
}
int64_t batcher_tokens(const struct batcher *b) {
    return b->tokens;
}
int64_t batcher_images(const struct batcher *b) {
    return b->images;
}
double batcher_wait_seconds(const struct batcher *b) {
    return b->wait_seconds;
}
