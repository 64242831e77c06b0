/* The test kit of whole stacks: a small LLaVA without a job file, synthetic micro-batches, and one
 * rank's stage with its pipeline.
 *
 * The tables of a micro-batch are made here from a plain list of its merged rows, by other code than
 * the trainer's: a second opinion on the same definitions.
 */
#ifndef STRATA_MODEL_KIT_H
#define STRATA_MODEL_KIT_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline.h"

/* ---- a small stack --------------------------------------------------------------------------- */

/* 3 + 2 + 4 layers. Sizes that no tensor size above 1 divides: 5 heads, 5 key/value groups, 401
 * vocabulary rows; heads narrower than hidden / heads; an image that is no square. */
static inline struct config kit_config(void) {
    struct config c = {0};
    c.run.family = FAMILY_LLAVA;
    c.vision.num_layers = 3;
    c.vision.hidden_size = 20;
    c.vision.ffn_hidden_size = 29;
    c.vision.num_attention_heads = 5;
    c.vision.img_h = 8;
    c.vision.img_w = 12;
    c.vision.patch_dim = 4;
    c.vision.num_channels = 3;
    c.vision.vision_feature_layer = -2;
    c.vision.disable_vision_class_token = true;
    c.projector.projector_type = PROJECTOR_MLP;
    c.projector.projector_hidden_size = 23;
    c.projector.projector_bias = true;
    c.projector.projector_activation = PROJECTOR_GELU;
    c.projector.projector_init = PROJECTOR_INIT_UNIFORM;
    c.language.num_layers = 4;
    c.language.hidden_size = 24;
    c.language.ffn_hidden_size = 83;
    c.language.num_attention_heads = 10;
    c.language.num_query_groups = 5;
    c.language.kv_channels = 6;
    c.language.normalization = NORMALIZATION_RMSNORM;
    c.language.norm_epsilon = 1e-5;
    c.language.swiglu = true;
    c.language.position_embedding_type = POSITION_ROPE;
    c.language.rotary_base = 50;
    c.language.rotary_percent = 1;
    c.language.vocab_size = 401;
    c.language.untie_embeddings_and_output_weights = true;
    c.language.decoder_seq_length = 26;
    c.language.init_method_std = 0.2;
    return c;
}

/* Images may be maps of tiles: see kit_map. */
static inline void kit_anyres(struct config *c) {
    static int64_t list[] = {12, 16, 24, 8, 24, 16};
    c->data.image_aspect_ratio = IMAGE_ASPECT_ANYRES;
    c->data.image_grid_pinpoints = (struct config_list){6, list};
    c->language.decoder_seq_length = 64;
}

static inline struct stack kit_stack(const struct config *c) {
    struct stack s;
    if (stack_build(c, &s) != 0) error_exit();
    return s;
}

/* ---- micro-batches ----------------------------------------------------------------------------- */

/* Text of `length` ids with a marker at each place of at[]; ids from first_target on are targets
 * (about three of four; markers never). */
#define KIT_IMAGES 4
#define KIT_NO_TARGET 10000
struct kit_map { /* tiles behind the first, and which of their patches are kept; 0 tiles: none */
    int grid_h, grid_w, top, left, rows, cols;
};
struct kit_sample {
    int32_t length;
    int images, at[KIT_IMAGES];
    int32_t first_target;
    struct kit_map map[KIT_IMAGES];
};

/* One row of the merged micro-batch. */
struct kit_row {
    int32_t sample, place; /* place: row inside its sample */
    int32_t token;         /* -1: a row of an image, or image_newline */
    int64_t image_row;     /* which row of the projector's output, -1: text or image_newline */
    int32_t target;        /* id this row predicts, -1: none */
};

static inline bool kit_is_newline(const struct kit_row *r) {
    return r->token < 0 && r->image_row < 0;
}

struct kit_batch {
    struct microbatch mb;
    struct kit_row *row; /* [tokens] */
    float *pixels;
    int64_t *sample_id, *cu_tokens, *image_row;
    int32_t *text_len, *sample_images, *image_tiles;
};

static inline void kit_batch_free(struct kit_batch *b) {
    free(b->row);
    free(b->pixels);
    free(b->sample_id);
    free(b->cu_tokens);
    free(b->image_row);
    free(b->text_len);
    free(b->sample_images);
    free(b->image_tiles);
    memset(b, 0, sizeof *b);
}

/* A number that depends on what it is asked for and nothing else. */
static inline uint64_t kit_hash(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t x = a * 0x9E3779B97F4A7C15u + b * 0xD1B54A32D192ED03u + c * 0x94D049BB133111EBu + 1;
    for (int i = 0; i < 3; i++) x = (x ^ (x >> 29)) * 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 32);
}

static inline double kit_uniform(uint64_t a, uint64_t b, uint64_t c) { /* [-1, 1) */
    return (double)(kit_hash(a, b, c) >> 11) / 4503599627370496.0 - 1.0;
}

static inline int64_t kit_rows_per_image(const struct stack *s) {
    const struct vision_config *v = &s->shape.vision;
    return (v->img_h / v->patch) * (v->img_w / v->patch) + (v->drop_class ? 0 : 1);
}

static inline bool kit_is_marker(const struct kit_sample *s, int32_t j) {
    for (int i = 0; i < s->images; i++)
        if (s->at[i] == j) return true;
    return false;
}

/* Ids (a marker: -1) and labels (no target: -1) of a sample. */
struct kit_text {
    int32_t length;
    int32_t *ids, *labels;
    const struct kit_map *map; /* of each image; NULL: one tile each */
};

static inline int64_t kit_map_tiles(const struct kit_map *m) {
    return m == NULL ? 1 : 1 + m->grid_h * m->grid_w;
}

static inline struct kit_text kit_text_make(const struct stack *s, const struct kit_sample *sample,
                                            uint64_t seed) {
    size_t n = (size_t)sample->length;
    struct kit_text t = {sample->length, xcalloc(n + 1, sizeof *t.ids),
                         xcalloc(n + 1, sizeof *t.labels), sample->map};
    for (int32_t j = 0; j < sample->length; j++) {
        uint64_t h = kit_hash(seed, 1, (uint64_t)j);
        bool marker = kit_is_marker(sample, j);
        t.ids[j] = marker ? -1 : (int32_t)(h % (uint64_t)s->shape.language.vocab);
        t.labels[j] = j >= sample->first_target && (h >> 40) % 4 != 0 ? t.ids[j] : -1;
    }
    return t;
}

static inline void kit_text_free(struct kit_text *t) {
    free(t->ids);
    free(t->labels);
}

/* Rows of one image whose first tile begins at that row of the projector's output. */
static inline int64_t kit_image_rows(const struct stack *s, const struct kit_map *m, int64_t first,
                                     struct kit_row row, struct kit_row *out) {
    const struct vision_config *v = &s->shape.vision;
    int64_t k = kit_rows_per_image(s), h = v->img_h / v->patch, w = v->img_w / v->patch, n = 0;
    for (; n < k; n++) {
        row.image_row = first + n;
        out[n] = row;
    }
    for (int y = 0; m != NULL && y < m->rows; y++) {
        for (int x = 0; x < m->cols; x++) {
            int64_t up = m->top + y, across = m->left + x;
            int64_t tile = 1 + up / h * m->grid_w + across / w;
            row.image_row = first + tile * k + up % h * w + across % w;
            out[n++] = row;
        }
        row.image_row = -1;
        out[n++] = row;
    }
    return n;
}

/* Rows of one sample, uncut; out has room for all of them. */
static inline int64_t kit_text_rows(const struct stack *s, const struct kit_text *t, int32_t place,
                                    int64_t first_image_row, struct kit_row *out) {
    int64_t n = 0, image_row = first_image_row, image = 0;
    for (int32_t j = 0; j < t->length; j++) {
        struct kit_row row = {place, 0, t->ids[j], -1, -1};
        const struct kit_map *m = t->map == NULL ? NULL : &t->map[image];
        if (t->ids[j] < 0) {
            n += kit_image_rows(s, m, image_row, row, out + n);
            image_row += kit_map_tiles(m) * kit_rows_per_image(s);
            image++;
            continue;
        }
        if (n > 0) out[n - 1].target = t->labels[j];
        out[n++] = row;
    }
    for (int64_t i = 0; i < n; i++) out[i].place = (int32_t)i;
    return n;
}

static inline int64_t kit_text_room(const struct stack *s, const struct kit_text *t) {
    int64_t n = 0, image = 0;
    for (int32_t j = 0; j < t->length; j++) {
        const struct kit_map *m = t->map == NULL || t->ids[j] >= 0 ? NULL : &t->map[image++];
        n += kit_rows_per_image(s) + (m == NULL ? 0 : m->rows * (m->cols + 1));
    }
    return n;
}

/* Appends one sample to the batch, cut at the sequence length. */
static inline void kit_batch_append(const struct stack *s, struct kit_batch *b, int place,
                                    const struct kit_text *t) {
    int64_t k = kit_rows_per_image(s), limit = s->shape.language.max_positions, image = 0;
    struct microbatch *mb = &b->mb;
    struct kit_row *rows = xcalloc((size_t)kit_text_room(s, t) + 1, sizeof *rows);
    int64_t n = kit_text_rows(s, t, place, mb->tiles * k, rows);
    for (int64_t i = 0; i < n; i++) {
        if (rows[i].image_row != mb->tiles * k) continue;
        int64_t tiles = kit_map_tiles(t->map == NULL ? NULL : &t->map[image++]);
        b->image_row[mb->images] = mb->tokens + i;
        b->image_tiles[mb->images++] = (int32_t)tiles;
        mb->tiles += tiles;
    }
    if (n > limit) {
        n = limit;
        rows[n - 1].target = -1; /* what it would predict was cut off */
    }
    for (int64_t i = 0; i < n; i++) {
        mb->targets += rows[i].target >= 0;
        mb->newlines += kit_is_newline(&rows[i]);
    }
    memcpy(b->row + mb->tokens, rows, (size_t)n * sizeof *rows);
    free(rows);
    mb->tokens += n;
    if (n > mb->max_segment) mb->max_segment = n;
    b->text_len[place] = t->length;
    b->cu_tokens[place + 1] = mb->tokens;
    b->sample_images[place + 1] = (int32_t)mb->images;
}

/* A micro-batch of n samples to be appended. */
static inline struct kit_batch kit_batch_begin(const struct stack *s, int n, int64_t step,
                                               int64_t index) {
    struct kit_batch b = {
        .mb = {.step = step, .index = index, .first_sample = index * n, .samples = n}};
    size_t images = (size_t)n * KIT_IMAGES;
    b.row = xcalloc((size_t)(n * s->shape.language.max_positions) + 1, sizeof *b.row);
    b.sample_id = xcalloc((size_t)n, sizeof *b.sample_id);
    b.cu_tokens = xcalloc((size_t)n + 1, sizeof *b.cu_tokens);
    b.image_row = xcalloc(images, sizeof *b.image_row);
    b.text_len = xcalloc((size_t)n, sizeof *b.text_len);
    b.sample_images = xcalloc((size_t)n + 1, sizeof *b.sample_images);
    b.image_tiles = xcalloc(images, sizeof *b.image_tiles);
    return b;
}

/* Pixels and what follows from the samples. */
static inline void kit_batch_end(const struct stack *s, struct kit_batch *b, uint64_t seed) {
    const struct vision_config *v = &s->shape.vision;
    size_t floats = (size_t)(v->channels * v->img_h * v->img_w) * (size_t)b->mb.tiles;
    b->mb.image_rows = b->mb.tiles * kit_rows_per_image(s);
    b->pixels = xmalloc(floats * sizeof *b->pixels + 1);
    for (size_t i = 0; i < floats; i++)
        b->pixels[i] = (float)kit_uniform(seed, (uint64_t)b->mb.index + 77, i);
    b->mb.sample_id = b->sample_id;
    b->mb.cu_tokens = b->cu_tokens;
    b->mb.text_len = b->text_len;
    b->mb.sample_images = b->sample_images;
    b->mb.image_tiles = b->image_tiles;
    b->mb.image_row = b->image_row;
    b->mb.hash = microbatch_hash(&b->mb);
}

/* Micro-batch `index` of a global batch whose micro-batches have n samples each. */
static inline struct kit_batch kit_batch_make(const struct stack *s,
                                              const struct kit_sample *sample, int n, uint64_t seed,
                                              int64_t step, int64_t index) {
    struct kit_batch b = kit_batch_begin(s, n, step, index);
    for (int i = 0; i < n; i++) {
        uint64_t own = kit_hash(seed, (uint64_t)step, (uint64_t)(index * n + i));
        struct kit_text t = kit_text_make(s, &sample[i], own);
        b.sample_id[i] = (int64_t)(own % 1000);
        kit_batch_append(s, &b, i, &t);
        kit_text_free(&t);
    }
    kit_batch_end(s, &b, seed);
    return b;
}

/* Sizes no micro-batch of the list exceeds; its tables are those of the first one. */
static inline struct microbatch kit_largest(const struct kit_batch *b, int n) {
    struct microbatch most = b[0].mb;
    for (int i = 1; i < n; i++) {
        const struct microbatch *m = &b[i].mb;
        if (m->images > most.images) most.images = m->images;
        if (m->tiles > most.tiles) most.tiles = m->tiles;
        if (m->image_rows > most.image_rows) most.image_rows = m->image_rows;
        if (m->tokens > most.tokens) most.tokens = m->tokens;
        if (m->newlines > most.newlines) most.newlines = m->newlines;
        if (m->targets > most.targets) most.targets = m->targets;
        if (m->max_segment > most.max_segment) most.max_segment = m->max_segment;
    }
    return most;
}

/* ---- tables of one rank -------------------------------------------------------------------------- */

struct kit_filler {
    const struct kit_batch *b;
    const struct stack *s;
    struct backend *be;
    int p, r;
    int32_t *host;
};

static inline void kit_put(const struct kit_filler *f, const int32_t *to, int64_t n) {
    f->be->ops->upload(f->be, (void *)(uintptr_t)to, f->host, (size_t)n * sizeof *to);
}

/* Owner of one of n rows dealt to p ranks, and its place there. */
static inline int kit_owner(int64_t n, int p, int64_t row, int64_t *local) {
    for (int r = 0; r < p; r++) {
        int64_t share = n / p + (r < n % p);
        if (row < share) {
            *local = row;
            return r;
        }
        row -= share;
    }
    CHECK(false, "row behind the last");
}

/* My place of a merged row, -1 if another rank holds it. */
static inline int32_t kit_my_text_row(const struct kit_filler *f, int64_t row) {
    int64_t local = row;
    if (f->s->sequence_parallel && kit_owner(f->b->mb.tokens, f->p, row, &local) != f->r) return -1;
    return (int32_t)local;
}

/* Is an image row mine? *tower: my place of the row of the tower it comes from. */
static inline bool kit_my_image_row(const struct kit_filler *f, int64_t image_row, int64_t *tower) {
    const struct vision_config *v = &f->s->shape.vision;
    int64_t k = kit_rows_per_image(f->s), tile = vision_patches(v) + 1;
    int64_t row = image_row / k * tile + image_row % k + (v->drop_class ? 1 : 0);
    *tower = row;
    return !f->s->sequence_parallel || kit_owner(f->b->mb.tiles * tile, f->p, row, tower) == f->r;
}

static inline int64_t kit_merged_row(const struct kit_filler *f, int64_t image_row) {
    for (int64_t i = 0; i < f->b->mb.tokens; i++)
        if (f->b->row[i].image_row == image_row) return i;
    return -1;
}

static inline void kit_fill_vision(const struct kit_filler *f, const struct batch_tables *t) {
    int64_t n = 0, tower, tile = vision_patches(&f->s->shape.vision) + 1;
    for (int64_t i = 0; i <= f->b->mb.tiles; i++) f->host[i] = (int32_t)(i * tile);
    kit_put(f, t->tile_cu, f->b->mb.tiles + 1);
    if (t->select_row == NULL) return;
    for (int64_t i = 0; i < f->b->mb.image_rows; i++)
        if (kit_my_image_row(f, i, &tower)) f->host[n++] = (int32_t)tower;
    kit_put(f, t->select_row, n);
}

static inline void kit_fill_embedding(const struct kit_filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->b->mb;
    struct cut cut = vocabulary_cut(&f->s->shape.language);
    for (int64_t i = 0; i < mb->tokens; i++) {
        int owner = -1;
        int64_t local = -1;
        if (f->b->row[i].token >= 0)
            cut_global_to_owner(&cut, f->p, f->b->row[i].token, &owner, &local);
        f->host[i] = owner == f->r ? (int32_t)local : -1;
    }
    kit_put(f, t->token, mb->tokens);
    for (int64_t i = 0; i < mb->image_rows; i++) {
        int64_t row = kit_merged_row(f, i);
        f->host[i] = row < 0 ? -1 : kit_my_text_row(f, row);
    }
    kit_put(f, t->image_to_row, mb->image_rows);
    int64_t n = 0, tower;
    for (int64_t i = 0; i < mb->image_rows; i++)
        if (kit_my_image_row(f, i, &tower)) f->host[n++] = (int32_t)kit_merged_row(f, i);
    kit_put(f, t->my_image_row, n);
    const int32_t *newline[2] = {t->newline_row, t->my_newline_row};
    for (int mine = 0; mine < 2; mine++) {
        n = 0;
        for (int64_t i = 0; i < mb->tokens; i++)
            if (kit_is_newline(&f->b->row[i]))
                f->host[n++] = mine ? kit_my_text_row(f, i) : (int32_t)i;
        kit_put(f, newline[mine], n);
    }
}

static inline void kit_fill_language(const struct kit_filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->b->mb;
    for (int64_t i = 0; i < mb->tokens; i++) f->host[i] = f->b->row[i].place;
    kit_put(f, t->position, mb->tokens);
    for (int64_t i = 0; i < mb->tokens; i++)
        f->host[i] = (int32_t)mb->first_sample + f->b->row[i].sample;
    kit_put(f, t->row_sample, mb->tokens);
    for (int64_t i = 0; i <= mb->samples; i++) f->host[i] = (int32_t)f->b->cu_tokens[i];
    kit_put(f, t->token_cu, mb->samples + 1);
    for (int64_t i = 0; i < mb->samples; i++) f->host[i] = (int32_t)(mb->first_sample + i);
    kit_put(f, t->segment_sample, mb->samples);
}

static inline void kit_fill_head(const struct kit_filler *f, const struct batch_tables *t) {
    const struct microbatch *mb = &f->b->mb;
    const int32_t *to[3] = {t->target_row, t->my_target_row, t->target};
    for (int which = 0; which < 3; which++) {
        int64_t n = 0;
        for (int64_t i = 0; i < mb->tokens; i++) {
            if (f->b->row[i].target < 0) continue;
            f->host[n++] = which == 0   ? (int32_t)i
                           : which == 1 ? kit_my_text_row(f, i)
                                        : f->b->row[i].target;
        }
        CHECK(n == mb->targets, "targets of the kit's micro-batch");
        kit_put(f, to[which], n);
    }
}

static inline void kit_tables(const struct kit_batch *b, const struct stage *st, struct backend *be,
                              struct arena *arena, struct batch_tables *out) {
    const struct microbatch *mb = &b->mb;
    struct stage_needs need = stage_needs(st);
    const struct vision_config *v = &st->stack->shape.vision;
    int64_t most = mb->tokens + mb->image_rows + mb->tiles + mb->samples + 2;
    struct kit_filler f = {b,           st->stack,   be,
                           st->tp_size, st->tp_rank, xmalloc((size_t)most * sizeof(int32_t))};
    stage_tables_layout(st, mb, arena, out);
    if (need.pixels)
        be->ops->upload(be, (void *)(uintptr_t)out->pixels, b->pixels,
                        (size_t)(mb->tiles * v->channels * v->img_h * v->img_w) * sizeof(float));
    if (need.vision) kit_fill_vision(&f, out);
    if (need.embedding) kit_fill_embedding(&f, out);
    if (need.language) kit_fill_language(&f, out);
    if (need.head) kit_fill_head(&f, out);
    free(f.host);
}

/* ---- one rank ---------------------------------------------------------------------------------- */

#define KIT_STAGES 16
struct kit_layout { /* one way to run a stack */
    int P;
    int split[KIT_STAGES];
    enum recompute recompute;
    int64_t recompute_layers;
    enum dtype dtype;
    struct pipeline_settings settings;
};

struct kit_rank {
    const struct grid *grid;
    struct backend *be;
    struct stage st;
    struct arena life, step, scratch;
    struct pipeline_memory memory;
    struct pipeline *pl;
};

static inline void kit_arena(struct arena *a, const char *name, size_t bytes) {
    void *base = NULL;
    CHECK(posix_memalign(&base, ARENA_ALIGN, bytes + ARENA_ALIGN) == 0, "no memory");
    memset(base, 0xA5, bytes); /* what is read before it is written shows */
    arena_init(a, name, base, bytes);
}

/* Adds a number to every weight, so that no bias is zero and no norm is one. */
static inline void kit_perturb(struct param_set *set, struct backend *be) {
    for (int i = 0; i < set->n; i++) {
        struct param *q = &set->param[i];
        size_t size = dtype_size(be->dtype);
        char *host = xmalloc((size_t)param_local_count(q) * size + 1);
        uint32_t name = crc32c(0, q->name, strlen(q->name));
        be->ops->download(be, host, q->w.data, (size_t)param_local_count(q) * size);
        for (int64_t e = 0; e < param_local_count(q); e++) {
            uint64_t global = (uint64_t)param_global_index(q, e / q->cols, e % q->cols);
            double v = (double)(float)(0.15 * kit_uniform(name, 5, global));
            if (be->dtype == DTYPE_F64)
                ((double *)host)[e] += v;
            else
                ((float *)host)[e] += (float)v;
        }
        be->ops->upload(be, q->w.data, host, (size_t)param_local_count(q) * size);
        free(host);
    }
}

static inline void kit_measure(struct stage *st, const struct grid *grid,
                               const struct kit_layout *l, const struct microbatch *largest,
                               size_t *life_bytes, struct pipeline_memory *memory) {
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP);
    struct backend *be = backend_create_measuring(l->dtype);
    struct grid *plan =
        grid_create_measuring(group_size(tp), l->P, 1, false, group_rank(tp), group_rank(pp), 0);
    struct arena life;
    arena_init_measuring(&life, "life");
    stage_allocate(st, be, &life);
    *life_bytes = life.peak;
    pipeline_measure(st, be, plan, l->P, group_rank(pp), &l->settings, largest, memory);
    grid_destroy(plan);
    backend_destroy(be);
}

/* The stage of this rank of the grid with its own weights, perturbed initial values. */
static inline void kit_rank_begin(struct kit_rank *k, const struct stack *s,
                                  const struct grid *grid, const struct kit_layout *l,
                                  const struct microbatch *largest) {
    memset(k, 0, sizeof *k);
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP);
    int first = 0;
    size_t life = 0;
    for (int i = 0; i < group_rank(pp); i++) first += l->split[i];
    k->grid = grid;
    if (backend_create_cpu(l->dtype, 1, 1, &k->be) != 0 ||
        stage_build(s, first, first + l->split[group_rank(pp)], group_size(tp), group_rank(tp),
                    l->recompute, l->recompute_layers, &k->st) != 0)
        error_exit();
    kit_measure(&k->st, grid, l, largest, &life, &k->memory);
    kit_arena(&k->life, "life", life);
    kit_arena(&k->step, "step",
              pipeline_memory_bytes(&k->memory) - k->memory.scratch_bytes -
                  k->memory.workspace_bytes);
    kit_arena(&k->scratch, "scratch", k->memory.scratch_bytes);
    group_reserve(tp, k->be, k->memory.workspace_bytes);
    stage_allocate(&k->st, k->be, &k->life);
    stage_tables_fill(&k->st, k->be);
    param_set_initialise(&k->st.params, k->be, l->settings.run_key);
    kit_perturb(&k->st.params, k->be);
    if (pipeline_create(&k->st, k->be, grid, l->P, group_rank(pp), &l->settings, &k->memory,
                        &k->step, &k->scratch, &k->pl) != 0)
        error_exit();
}

/* The grid's workspace belongs to the backend: destroy the grid in between. */
static inline void kit_rank_end(struct kit_rank *k) {
    pipeline_destroy(k->pl);
    stage_free(&k->st);
    free(k->life.base);
    free(k->step.base);
    free(k->scratch.base);
}

static inline void kit_zero_gradients(struct kit_rank *k) {
    k->be->ops->zero(k->be, k->st.params.grads,
                     (size_t)k->st.params.grad_elements * dtype_size(k->be->acc));
}

/* Local gradient of a trainable parameter, as doubles. */
static inline void kit_gradient(const struct kit_rank *k, const struct param *q, double *out) {
    int64_t n = param_local_count(q);
    size_t size = dtype_size(k->be->acc);
    char *host = xmalloc((size_t)n * size + 1);
    k->be->ops->download(k->be, host, q->g.data, (size_t)n * size);
    for (int64_t i = 0; i < n; i++)
        out[i] = size == 8 ? ((double *)host)[i] : (double)((float *)host)[i];
    free(host);
}

/* ---- a source of prepared micro-batches ------------------------------------------------------------ */

struct kit_source {
    const struct kit_batch *batch; /* [M] of this rank */
    const struct stage *stage;
    double scale;
};

static inline const struct microbatch *kit_source_descriptor(void *arg, int k) {
    return &((struct kit_source *)arg)->batch[k].mb;
}

static inline int kit_source_tables(void *arg, int k, struct backend *be, struct arena *arena,
                                    struct batch_tables *out) {
    const struct kit_source *s = arg;
    kit_tables(&s->batch[k], s->stage, be, arena, out);
    return 0;
}

static inline double kit_source_scale(void *arg, int k) {
    (void)k;
    return ((struct kit_source *)arg)->scale;
}

static inline struct microbatch_source kit_source(struct kit_source *s) {
    return (struct microbatch_source){s, kit_source_descriptor, kit_source_tables,
                                      kit_source_scale};
}

#endif
