/* Batches: the samples of each step's micro-batches. Their order and their grouping are functions of
 * the step; no layout enters. */
#include <stdlib.h>
#include <string.h>

#include "train_impl.h"

struct batcher {
    struct batcher_settings s;
    const struct dataset *data;
    struct sampler *sampler;
    struct prefetch *prefetch;
    struct tables_source tables;
    struct descriptor *now, *next;   /* [M] each; next: decoded ahead */
    int64_t next_consumed;           /* where `next` begins, -1: nothing there */
    int64_t targets, tokens, images; /* of the global batch of the step */
    int64_t filled;                  /* its micro-batches with targets */
    size_t tile_floats;
    double wait_seconds;
};

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
    int64_t per_image = vision_patches(v) + (v->drop_class ? 0 : 1);
    b->tile_floats = (size_t)(v->channels * v->img_h * v->img_w);
    b->sampler = sampler_create(dataset_count(data), settings->run_key, settings->shuffle);
    b->now = xcalloc((size_t)settings->M, sizeof *b->now);
    b->next = xcalloc((size_t)settings->M, sizeof *b->next);
    int64_t images = settings->micro_batch_size * most_images(data);
    for (int k = 0; k < settings->M; k++) {
        descriptor_init(&b->now[k], settings->micro_batch_size, images, per_image);
        descriptor_init(&b->next[k], settings->micro_batch_size, images, per_image);
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
    free(b->tables.staging);
    sampler_destroy(b->sampler);
    free(b);
}

/* Does the sample at that position of the order add to the loss? */
static bool counts(const struct batcher *b, int64_t position) {
    return b->s.limit == 0 || position < b->s.limit;
}

/* Descriptor of global micro-batch `index` of the step that begins at sample `consumed`. */
static void describe(struct batcher *b, struct descriptor *d, int64_t step, int64_t consumed,
                     int64_t index) {
    int64_t n = b->s.micro_batch_size, first = index * n;
    descriptor_begin(d, step, index, first);
    for (int64_t i = 0; i < n; i++) {
        struct sample s;
        int64_t position = consumed + first + i, id = sampler_sample(b->sampler, position);
        dataset_sample(b->data, id, &s);
        descriptor_add(d, id, &s, counts(b, position));
    }
    descriptor_end(d);
}

/* ---- steps ------------------------------------------------------------------------------------------ */
static void read_sample(void *arg, int64_t id, struct sample *out) {
    dataset_sample(arg, id, out);
}

void batcher_attach(struct batcher *b, const struct stage *stage,
                    const struct microbatch *largest) {
    tables_source_init(&b->tables, stage, largest);
    b->tables.arg = (void *)(uintptr_t)b->data;
    b->tables.sample = read_sample;
    if (!b->tables.need.pixels || largest->tiles == 0) return;
    size_t bytes = (size_t)largest->tiles * b->tile_floats * sizeof(float);
    for (int k = 0; k < b->s.M; k++) {
        b->now[k].pixels = xmalloc(bytes);
        b->next[k].pixels = xmalloc(bytes);
    }
    b->prefetch = prefetch_create(b->data, b->s.num_workers, 2 * b->s.M, largest->images);
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
            if (!counts(b, consumed + at + i)) s.n_targets = 0;
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

static int wait_pixels(struct batcher *b, struct descriptor *d) {
    if (d->ticket < 0) return 0; /* a step that runs again finds its pixels decoded */
    double start = clock_seconds();
    int rc = prefetch_wait(b->prefetch, d->ticket);
    d->ticket = -1;
    b->wait_seconds += clock_seconds() - start;
    return rc;
}

static int source_tables(void *arg, int k, struct backend *be, struct arena *arena,
                         struct batch_tables *out) {
    struct batcher *b = arg;
    TRY(wait_pixels(b, &b->now[k]));
    tables_fill(&b->tables, &b->now[k], be, arena, out);
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
