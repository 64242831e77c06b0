/* The tables of a micro-batch: from its descriptor and the ids of its samples to what a stage reads. */
#include "train_impl.h"

struct filler {
    const struct tables_source *from;
    struct backend *be;
    const struct descriptor *d;
    struct row_split image, text; /* sequence parallelism */
    bool sp;
    int tp;
};

static void put(struct filler *f, const int32_t *to, int64_t n) {
    f->be->ops->upload(f->be, (void *)(uintptr_t)to, f->from->staging, (size_t)n * sizeof(int32_t));
}

static void fill_vision(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    const struct vision_config *v = &f->from->stage->stack->shape.vision;
    int64_t tile = vision_patches(v) + 1;
    for (int64_t i = 0; i <= mb->tiles; i++) f->from->staging[i] = (int32_t)(i * tile);
    put(f, t->tile_cu, mb->tiles + 1);
    if (t->select_row == NULL) return;
    struct row_split tower;
    rows_split(ROWS_VISION, mb, tile, false, f->sp ? f->from->stage->tp_size : 1, &tower);
    int64_t first = f->sp ? tower.offset[f->tp] : 0, end = tower.offset[f->sp ? f->tp + 1 : 1],
            n = 0;
    for (int64_t r = first; r < end; r++)
        if (!v->drop_class || r % tile != 0) f->from->staging[n++] = (int32_t)(r - first);
    put(f, t->select_row, n);
}

/* Merged rows of the tiles of a map, tile after tile; -1 for padding. out: [tiles][patches] */
static void map_rows(const struct filler *f, const struct image_layout *l, int64_t first,
                     int32_t *out) {
    const struct vision_config *v = &f->from->stage->stack->shape.vision;
    int64_t h = v->img_h / v->patch, w = v->img_w / v->patch;
    for (int64_t tile = 0; tile < (int64_t)l->grid_h * l->grid_w; tile++)
        for (int64_t i = 0; i < h * w; i++) {
            int64_t row = tile / l->grid_w * h + i / w - l->top;
            int64_t col = tile % l->grid_w * w + i % w - l->left;
            bool kept = row >= 0 && row < l->rows && col >= 0 && col < l->cols;
            *out++ = kept ? (int32_t)(first + row * (l->cols + 1) + col) : -1;
        }
}

/* Merged row of every image row, -1 where it is padding or the sample was cut off. */
static void image_rows_merged(const struct filler *f, int32_t *out) {
    const struct microbatch *mb = &f->d->mb;
    int64_t k = f->d->rows_per_image, n = 0;
    for (int64_t s = 0; s < mb->samples; s++)
        for (int64_t i = mb->sample_images[s]; i < mb->sample_images[s + 1]; i++) {
            int64_t end = n + k * mb->image_tiles[i];
            map_rows(f, &f->d->layout[i], mb->image_row[i] + k, out + n + k);
            for (int64_t r = 0; r < k; r++) out[n + r] = (int32_t)(mb->image_row[i] + r);
            for (; n < end; n++)
                if (out[n] >= mb->cu_tokens[s + 1]) out[n] = -1;
        }
}

static void list_newlines(const struct filler *f, int32_t *out) {
    const struct microbatch *mb = &f->d->mb;
    int64_t n = 0;
    for (int64_t s = 0; s < mb->samples; s++)
        for (int64_t i = mb->sample_images[s]; i < mb->sample_images[s + 1]; i++) {
            const struct image_layout *l = &f->d->layout[i];
            int64_t row = mb->image_row[i] + f->d->rows_per_image + l->cols;
            for (int64_t r = 0; r < l->rows && row < mb->cu_tokens[s + 1]; r++, row += l->cols + 1)
                out[n++] = (int32_t)row;
        }
    CHECK(n == mb->newlines, "%lld newlines, the descriptor has %lld", (long long)n,
          (long long)mb->newlines);
}

/* Merged rows of all -> my rows, -1 where another rank holds them. */
static void keep_mine(const struct filler *f, int32_t *row, int64_t n) {
    int32_t first = (int32_t)f->text.offset[f->tp], end = (int32_t)f->text.offset[f->tp + 1];
    for (int64_t i = 0; i < n; i++) row[i] = row[i] >= first && row[i] < end ? row[i] - first : -1;
}

static void fill_token_rows(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    const struct language_config *c = &f->from->stage->stack->shape.language;
    struct cut cut = vocabulary_cut(c);
    struct cut_part mine = cut_part(&cut, f->from->stage->tp_size, f->tp);
    int64_t lo = mine.global[0], hi = lo + mine.count[0];
    for (int64_t i = 0; i < mb->samples; i++) {
        struct sample s;
        f->from->sample(f->from->arg, mb->sample_id[i], &s);
        int64_t row = mb->cu_tokens[i], end = mb->cu_tokens[i + 1], at = 0;
        for (int32_t j = 0; j < s.text_len && row < end; j++) {
            bool image = s.ids[j] == DATA_IMAGE_MARKER;
            int64_t n = image ? sample_image_rows(&s, at++, f->d->rows_per_image) : 1;
            for (; n > 0 && row < end; n--, row++)
                f->from->staging[row] =
                    !image && s.ids[j] >= lo && s.ids[j] < hi ? (int32_t)(s.ids[j] - lo) : -1;
        }
    }
    put(f, t->token, mb->tokens);
}

static void fill_embedding(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    int32_t *staging = f->from->staging;
    fill_token_rows(f, t);
    image_rows_merged(f, staging);
    int64_t first = f->sp ? f->image.offset[f->tp] : 0;
    int64_t count = f->sp ? f->image.offset[f->tp + 1] - first : mb->image_rows;
    f->be->ops->upload(f->be, (void *)(uintptr_t)t->my_image_row, staging + first,
                       (size_t)count * sizeof *staging);
    if (f->sp) keep_mine(f, staging, mb->image_rows);
    put(f, t->image_to_row, mb->image_rows);
    list_newlines(f, staging);
    put(f, t->newline_row, mb->newlines);
    if (f->sp) keep_mine(f, staging, mb->newlines);
    put(f, t->my_newline_row, mb->newlines);
}

static void fill_language(struct filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->d->mb;
    int32_t *staging = f->from->staging;
    for (int64_t i = 0; i < mb->samples; i++)
        for (int64_t r = mb->cu_tokens[i]; r < mb->cu_tokens[i + 1]; r++)
            staging[r] = (int32_t)(mb->past + r - mb->cu_tokens[i]);
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

/* Rows (or ids) of all targets; a generating source asks what follows its last row. */
static int64_t list_targets(const struct filler *f, bool want_ids, int32_t *out) {
    const struct microbatch *mb = &f->d->mb;
    int64_t n = 0;
    if (f->from->predict_next) out[n++] = want_ids ? 0 : (int32_t)(mb->tokens - 1);
    for (int64_t i = 0; i < f->d->counted; i++) {
        struct sample s;
        f->from->sample(f->from->arg, mb->sample_id[i], &s);
        int64_t row = mb->cu_tokens[i], end = mb->cu_tokens[i + 1], at = 0;
        for (int32_t j = 0; j < s.text_len && row < end; j++) {
            if (s.ids[j] == DATA_IMAGE_MARKER) {
                row += sample_image_rows(&s, at++, f->d->rows_per_image);
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
    int32_t *staging = f->from->staging;
    int64_t n = list_targets(f, false, staging);
    CHECK(n == f->d->mb.targets, "%lld targets, the index has %lld", (long long)n,
          (long long)f->d->mb.targets);
    put(f, t->target_row, n);
    if (f->sp) keep_mine(f, staging, n);
    put(f, t->my_target_row, n);
    list_targets(f, true, staging);
    put(f, t->target, n);
}

static int64_t most_indices(const struct microbatch *mb) {
    int64_t n = mb->tokens;
    if (mb->image_rows > n) n = mb->image_rows;
    if (mb->tiles + 1 > n) n = mb->tiles + 1;
    return n > mb->samples + 1 ? n : mb->samples + 1;
}

void tables_source_init(struct tables_source *from, const struct stage *stage,
                        const struct microbatch *largest) {
    from->stage = stage;
    from->need = stage_needs(stage);
    from->staging = xmalloc((size_t)(most_indices(largest) + 1) * sizeof *from->staging);
}

static void upload_pixels(const struct filler *f, const struct batch_tables *t) {
    const struct vision_config *v = &f->from->stage->stack->shape.vision;
    size_t n = (size_t)(f->d->mb.tiles * v->channels * v->img_h * v->img_w);
    if (n > 0)
        f->be->ops->upload(f->be, (void *)(uintptr_t)t->pixels, f->d->pixels, n * sizeof(float));
}

void tables_fill(const struct tables_source *from, const struct descriptor *d, struct backend *be,
                 struct arena *arena, struct batch_tables *out) {
    const struct stage *st = from->stage;
    const struct vision_config *v = &st->stack->shape.vision;
    struct filler f = {
        .from = from, .be = be, .d = d, .sp = st->stack->sequence_parallel, .tp = st->tp_rank};
    if (f.sp) {
        rows_split(ROWS_IMAGE, &d->mb, vision_patches(v) + 1, v->drop_class, st->tp_size, &f.image);
        rows_split(ROWS_TEXT, &d->mb, 0, false, st->tp_size, &f.text);
    }
    stage_tables_layout(st, &d->mb, arena, out);
    if (from->need.pixels) upload_pixels(&f, out);
    if (from->need.vision) fill_vision(&f, out);
    if (from->need.embedding) fill_embedding(&f, out);
    if (from->need.language) fill_language(&f, out);
    if (from->need.head) fill_head(&f, out);
}
