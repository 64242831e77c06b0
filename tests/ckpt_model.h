/* A small model for the tests of checkpoint: every kind of cut, uneven ones, a fused tensor, frozen
 * ones, a tensor that two stages share. Values are a function of (name, role, global index), so a
 * rank knows what it must hold under any layout. */
#ifndef STRATA_CKPT_MODEL_H
#define STRATA_CKPT_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"

#define MODEL_LAYERS 4

struct model {
    struct param_set set;
    struct state_piece *piece;
    int64_t n_pieces;
    struct ckpt_state state;
    char run_uuid[37], parent_uuid[37];
    bool sharded;
};

static inline struct param model_param(const char *name, int layer, const char *dims, int ndim,
                                       const int64_t *shape, struct cut cut, bool trainable) {
    struct param p = {.dims = dims, .ndim = ndim, .cut = cut, .stack_layer = layer};
    snprintf(p.name, sizeof p.name, "%s", name);
    snprintf(p.hf_name, sizeof p.hf_name, "%.150s.hf", name);
    memcpy(p.shape, shape, (size_t)ndim * sizeof *shape);
    p.trainable = trainable;
    return p;
}

static inline void model_declare_layer(struct param_set *set, int layer) {
    char name[160];
    struct cut qkv = {.axis = 0, .n_blocks = 3, .size = {12, 6, 6}, .granule = {2, 1, 1}};
    struct cut qkv_bias = qkv;
#define NAME(text)                                                                                 \
    (snprintf(name, sizeof name, "model/language_model/layers/%03d/" text, layer), name)
    param_declare(set, model_param(NAME("input_layernorm/weight"), layer, "features", 1,
                                   (int64_t[]){16}, cut_none(), true));
    param_declare(set, model_param(NAME("self_attn/qkv_proj/weight"), layer,
                                   "out_features,in_features", 2, (int64_t[]){24, 16}, qkv, true));
    param_declare(set, model_param(NAME("self_attn/qkv_proj/bias"), layer, "out_features", 1,
                                   (int64_t[]){24}, qkv_bias, true));
    param_declare(set,
                  model_param(NAME("self_attn/o_proj/weight"), layer, "out_features,in_features", 2,
                              (int64_t[]){16, 10}, cut_even(1, 10, 2), true));
    param_declare(set, model_param(NAME("frozen/weight"), layer, "out_features,in_features", 2,
                                   (int64_t[]){8, 5}, cut_none(), false));
#undef NAME
}

/* Layers [first, end) of n. The last stage holds the embedding too, unless it is the first. */
static inline void model_declare(struct param_set *set, int first, int end, int n) {
    if (first == 0) {
        param_declare(set, model_param("model/vision_tower/patch_embed/weight", 0,
                                       "out_channels,in_channels,height,width", 4,
                                       (int64_t[]){16, 3, 2, 2}, cut_none(), true));
        param_declare(set, model_param("model/language_model/embed_tokens/weight", 0,
                                       "vocabulary,features", 2, (int64_t[]){301, 16},
                                       cut_even(0, 301, 1), true));
    }
    for (int layer = first; layer < end; layer++) model_declare_layer(set, layer);
    if (end == n && first > 0)
        param_declare(set, model_param("model/language_model/embed_tokens/weight", 0,
                                       "vocabulary,features", 2, (int64_t[]){301, 16},
                                       cut_even(0, 301, 1), true));
}

static inline uint64_t model_bits(const char *name, int role, int64_t index, int version) {
    uint64_t x = crc32c((uint32_t)version, name, strlen(name));
    x = x * 0x9E3779B97F4A7C15u + (uint64_t)role * 0xD1B54A32D192ED03u +
        (uint64_t)index * 0x94D049BB133111EBu;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    return x ^ (x >> 31);
}

/* All finite, all mantissa bits in use. */
static inline void model_value(enum dtype t, uint64_t bits, char out[8]) {
    double d = (double)(int64_t)bits / 9223372036854775808.0;
    float f = (float)d;
    if (t == DTYPE_F64)
        memcpy(out, &d, 8);
    else if (t == DTYPE_F32)
        memcpy(out, &f, 4);
    else
        memcpy(out, &bits, 2);
}

/* Writes the values of `version` into one array, or counts the elements that differ from them. */
static inline int64_t model_visit(const struct param *p, int role, enum dtype t, void *data,
                                  int64_t first, int64_t count, int version, bool write) {
    int64_t wrong = 0;
    size_t size = dtype_size(t);
    for (int64_t i = 0; i < count; i++) {
        char value[8];
        int64_t at = first + i, index = param_global_index(p, at / p->cols, at % p->cols);
        model_value(t, model_bits(p->name, role, index, version), value);
        char *place = (char *)data + (size_t)i * size;
        if (write)
            memcpy(place, value, size);
        else
            wrong += memcmp(place, value, size) != 0;
    }
    return wrong;
}

static inline int64_t model_visit_all(struct model *m, int version, bool write, bool moments) {
    int64_t wrong = 0;
    for (int i = 0; i < m->set.n; i++) {
        struct param *p = &m->set.param[i];
        wrong += model_visit(p, 0, p->w.dtype, p->w.data, 0, param_local_count(p), version, write);
    }
    for (int64_t i = 0; moments && i < m->n_pieces; i++) {
        struct state_piece *s = &m->piece[i];
        const struct param *p = &m->set.param[s->param];
        enum dtype acc = m->state.be->acc;
        wrong += model_visit(p, 1, acc, s->m, s->first, s->count, version, write);
        if (s->v) wrong += model_visit(p, 2, acc, s->v, s->first, s->count, version, write);
    }
    return wrong;
}
static inline void model_fill(struct model *m, int version) {
    model_visit_all(m, version, true, true);
}
static inline int64_t model_wrong(struct model *m, int version, bool moments) {
    return model_visit_all(m, version, false, moments);
}

static inline void model_storage(struct model *m, struct backend *be) {
    for (int i = 0; i < m->set.n; i++) {
        struct param *p = &m->set.param[i];
        void *data = xcalloc((size_t)param_local_count(p) + 1, dtype_size(be->dtype));
        p->w = tensor_view(data, p->rows, p->cols, be->dtype);
    }
}

static inline void model_pieces(struct model *m, struct backend *be, int dp, int dp_rank,
                                bool sharded) {
    m->piece = xcalloc((size_t)m->set.n, sizeof *m->piece);
    for (int i = 0; i < m->set.n; i++) {
        const struct param *p = &m->set.param[i];
        struct state_piece s = {.param = i, .count = param_local_count(p)};
        if (!p->trainable) continue;
        if (sharded) rows_share(param_local_count(p), dp, dp_rank, &s.first, &s.count);
        if (s.count == 0) continue;
        s.m = xcalloc((size_t)s.count, dtype_size(be->acc));
        s.v = xcalloc((size_t)s.count, dtype_size(be->acc));
        m->piece[m->n_pieces++] = s;
    }
}

/* tp, dp: {size, rank}; stage: layers {first, end, of how many}. */
static inline void model_build_stage(struct model *m, struct backend *be, const int tp[2],
                                     const int stage[3], const int dp[2], bool sharded) {
    memset(m, 0, sizeof *m);
    model_declare(&m->set, stage[0], stage[1], stage[2]);
    CHECK(param_set_layout(&m->set, tp[0], tp[1]) == 0, "layout: %s", error_text());
    model_storage(m, be);
    model_pieces(m, be, dp[0], dp[1], sharded);
    m->state = (struct ckpt_state){.set = &m->set,
                                   .be = be,
                                   .piece = m->piece,
                                   .n_pieces = m->n_pieces,
                                   .sharded_optimizer = sharded,
                                   .family = "llava",
                                   .seed = 1234,
                                   .global_batch_size = 8,
                                   .order_key = "philox",
                                   .run_uuid = m->run_uuid,
                                   .parent_uuid = m->parent_uuid};
}

static inline void model_build(struct model *m, struct backend *be, const int tp[2],
                               const int pp[2], const int dp[2], bool sharded) {
    int stage[3] = {MODEL_LAYERS * pp[1] / pp[0], MODEL_LAYERS * (pp[1] + 1) / pp[0], MODEL_LAYERS};
    model_build_stage(m, be, tp, stage, dp, sharded);
}

static inline void model_free(struct model *m) {
    for (int i = 0; i < m->set.n; i++) free(m->set.param[i].w.data);
    for (int64_t i = 0; i < m->n_pieces; i++) {
        free(m->piece[i].m);
        free(m->piece[i].v);
    }
    free(m->piece);
    param_set_free(&m->set);
}

/* Of a save that can be compared byte by byte, into `save`. */
static inline struct ckpt_settings model_settings(const char *save) {
    return (struct ckpt_settings){.save = save,
                                  .ckpt_step = -1,
                                  .resume = CKPT_RESUME_AUTO,
                                  .most_recent_k = -1,
                                  .index = true,
                                  .save_derived_weights = true,
                                  .reproducible = true};
}

#define MODEL_RANKS_MAX 16
/* Host bytes that a save beside the training needs on this rank. Collective over the world. */
static inline size_t model_room(const struct ckpt_settings *s, const struct ckpt_state *st) {
    const struct group *world = grid_group(st->grid, GROUP_WORLD);
    int n = group_size(world), me = group_rank(world);
    int writer[MODEL_RANKS_MAX], node[MODEL_RANKS_MAX];
    size_t mine = ckpt_snapshot_bytes(st, true), all[MODEL_RANKS_MAX], sum = 0;
    CHECK(n <= MODEL_RANKS_MAX, "%d ranks", n);
    for (int r = 0; r < n; r++) node[r] = s->writers_node ? grid_node(st->grid, r) : r;
    ckpt_writers(node, n, s->ranks_per_writer, writer);
    comm_gather(world, &mine, sizeof mine, all);
    for (int r = 0; r < n; r++) sum += writer[r] == me ? all[r] : 0;
    return writer[me] == me ? sum : ckpt_passing_bytes(st, true, true);
}

#endif
