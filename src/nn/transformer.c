/* Pre-norm transformer block, for the vision tower and for the language model:
 *
 *   x1 = x  + dropout(W_o attention(rope(W_qkv norm1(x) + b_qkv)) + b_o)
 *   y  = x1 + dropout(W_2 act(W_1 norm2(x1) + b_1) + b_2)        or the gated form silu(gate) * up
 *
 * Sources: arXiv 1706.03762, CLIP 2103.00020, Mistral 2310.06825, SwiGLU 2002.05202; tensor cuts
 * arXiv 1909.08053. Saved: x1, q|k|v after rotation, attention output and log-sum-exp, the input of
 * the activation, norm statistics. Norm outputs and the activation are computed again in the
 * backward: they cost no matrix product. */
#include <math.h>

#include "nn_impl.h"

enum slot {
    NORM1_W,
    NORM1_B,
    QKV_W,
    QKV_B = QKV_W + 3,
    OUT_W = QKV_B + 3,
    OUT_B,
    NORM2_W,
    NORM2_B,
    FC1_W,
    FC1_B = FC1_W + 2,
    FC2_W = FC1_B + 2,
    FC2_B
};
enum kept { STATS1, QKV, ATT, LSE, MID, STATS2, PRE };

/* The views and numbers both directions need. */
struct frame {
    const struct transformer_config *c;
    struct row_split split;
    int64_t first; /* my first row */
    int64_t rows;  /* all rows of the micro-batch */
    int64_t q_cols, kv_cols;
    struct linear qkv, out, fc1, fc2;
    struct attention att;
    const int32_t *position;
};

static enum row_kind kind_of(const struct transformer_config *c) {
    return c->vision ? ROWS_VISION : ROWS_TEXT;
}

static int64_t rows_all(const struct transformer_config *c, const struct microbatch *mb) {
    return c->vision ? mb->tiles * c->tile_rows : mb->tokens;
}

static void block_rows(const struct block *b, const struct microbatch *mb, int64_t *rows,
                       int64_t *cols) {
    const struct transformer_config *c = b->config;
    *rows = rows_held(kind_of(c), mb, c->tile_rows, false, b->sequence_parallel, b->tp_size,
                      b->tp_rank);
    *cols = c->hidden;
}

static int64_t local_heads(const struct block *b, int slot) {
    const struct transformer_config *c = b->config;
    return block_param(b, slot)->rows / c->head_dim;
}

/* Visible (query, key) pairs: causal i+1 per query, at most `window`. */
static double segment_pairs(double n, bool causal, double window) {
    if (!causal) return n * n;
    if (window <= 0 || window >= n) return n * (n + 1) / 2;
    return window * (window + 1) / 2 + (n - window) * window;
}

static double visible_pairs(const struct transformer_config *c, const struct microbatch *mb) {
    if (c->vision) return (double)mb->tiles * segment_pairs((double)c->tile_rows, c->causal, 0);
    double sum = 0, window = (double)c->window, past = (double)mb->past;
    if (mb->past > 0)
        return segment_pairs(past + (double)mb->tokens, c->causal, window) -
               segment_pairs(past, c->causal, window);
    for (int64_t i = 0; i < mb->samples; i++)
        sum += segment_pairs((double)(mb->cu_tokens[i + 1] - mb->cu_tokens[i]), c->causal, window);
    return sum;
}

static struct attention attention_setup(const struct block *b, const struct pass *p) {
    const struct transformer_config *c = b->config;
    struct attention a = {.heads = local_heads(b, QKV_W),
                          .kv_heads = local_heads(b, QKV_W + 1),
                          .head_dim = c->head_dim,
                          .scale = 1.0 / sqrt((double)c->head_dim),
                          .causal = c->causal,
                          .window = c->window,
                          .n_segments = c->vision ? p->mb->tiles : p->mb->samples,
                          .max_segment = c->vision ? c->tile_rows : p->mb->max_segment,
                          .cu = c->vision ? p->tab->tile_cu : p->tab->token_cu,
                          .pairs = visible_pairs(c, p->mb)};
    if (p->training && c->attention_dropout > 0) {
        const struct param *q = block_param(b, QKV_W);
        a.drop_prob = c->attention_dropout;
        a.drop_key =
            rng_drop_key(p->run_key, RNG_DROP_ATTENTION, (uint32_t)b->stack_layer, p->mb->step);
        a.drop_sample = p->tab->segment_sample;
        a.first_head = cut_part(&q->cut, b->tp_size, b->tp_rank).global[0] / c->head_dim;
    }
    return a;
}

static void frame_begin(struct frame *f, const struct block *b, const struct pass *p) {
    const struct transformer_config *c = b->config;
    f->c = c;
    f->rows = rows_all(c, p->mb);
    f->first = 0;
    f->qkv = block_linear(b, LINEAR_COLUMN, QKV_W, QKV_B, 3);
    f->out = block_linear(b, LINEAR_ROW, OUT_W, OUT_B, 1);
    f->fc1 = block_linear(b, LINEAR_COLUMN, FC1_W, FC1_B, c->glu ? 2 : 1);
    f->fc2 = block_linear(b, LINEAR_ROW, FC2_W, FC2_B, 1);
    f->out.skip_bias_add = f->fc2.skip_bias_add = true; /* added with dropout and residual */
    if (b->sequence_parallel) {
        rows_split(kind_of(c), p->mb, c->tile_rows, false, b->tp_size, &f->split);
        f->qkv.rows = f->out.rows = f->fc1.rows = f->fc2.rows = &f->split;
        f->first = f->split.offset[b->tp_rank];
    }
    f->q_cols = block_param(b, QKV_W)->rows;
    f->kv_cols = block_param(b, QKV_W + 1)->rows;
    f->att = attention_setup(b, p);
    f->position = p->tab->position;
}

static void transformer_save(const struct block *b, const struct pass *p, struct arena *arena,
                             struct saved *s) {
    const struct transformer_config *c = b->config;
    enum dtype t = p->be->dtype, acc = p->be->acc;
    int64_t mine, h, all = rows_all(c, p->mb);
    block_rows(b, p->mb, &mine, &h);
    int64_t q = block_param(b, QKV_W)->rows, kv = block_param(b, QKV_W + 1)->rows;
    s->t[STATS1] = tensor_alloc(arena, mine, 2, acc);
    s->t[QKV] = tensor_alloc(arena, all, q + 2 * kv, t);
    s->t[ATT] = tensor_alloc(arena, all, q, t);
    s->t[LSE] = tensor_alloc(arena, local_heads(b, QKV_W), all, acc);
    s->t[MID] = tensor_alloc(arena, mine, h, t);
    s->t[STATS2] = tensor_alloc(arena, mine, 2, acc);
    s->t[PRE] = tensor_alloc(arena, all, block_weight(b, FC1_W, c->glu ? 2 : 1).rows, t);
}

static void norm_apply(const struct block *b, struct pass *p, int slot, const struct tensor *x,
                       const struct tensor *y, const struct tensor *stats) {
    const struct transformer_config *c = b->config;
    struct tensor gamma = block_weight(b, slot, 1), beta = block_weight(b, slot + 1, 1);
    p->be->ops->norm_forward(p->be, c->norm, c->eps, x, &gamma, tensor_or_null(&beta), y, stats);
}

static void rotate(const struct block *b, struct pass *p, const struct frame *f,
                   const struct tensor *qkv, bool inverse) {
    if (!f->c->rope) return;
    struct tensor q = tensor_cols(*qkv, 0, f->q_cols);
    struct tensor k = tensor_cols(*qkv, f->q_cols, f->kv_cols);
    p->be->ops->rope(p->be, &q, f->att.heads, f->att.head_dim, &b->rope, f->position, inverse);
    p->be->ops->rope(p->be, &k, f->att.kv_heads, f->att.head_dim, &b->rope, f->position, inverse);
}

/* The keys and values that the queries see: q|k|v of this pass, or all that the cache then holds. */
static void keys_and_values(const struct block *b, struct pass *p, struct frame *f,
                            const struct tensor *qkv, struct tensor *k, struct tensor *v) {
    struct tensor kv = tensor_cols(*qkv, f->q_cols, 2 * f->kv_cols);
    if (b->cache.rows > 0) {
        f->att.past = p->mb->past;
        CHECK(f->att.past + kv.rows <= b->cache.rows, "%lld + %lld rows, the cache has %lld",
              (long long)f->att.past, (long long)kv.rows, (long long)b->cache.rows);
        struct tensor mine = tensor_rows(b->cache, f->att.past, kv.rows);
        p->be->ops->convert(p->be, &kv, &mine);
        kv = tensor_rows(b->cache, 0, f->att.past + kv.rows);
    }
    *k = tensor_cols(kv, 0, f->kv_cols);
    *v = tensor_cols(kv, f->kv_cols, f->kv_cols);
}

static void attention_half(struct block *b, struct pass *p, struct frame *f, const struct tensor *x,
                           struct saved *s) {
    struct tensor *qkv = &s->t[QKV], k, v;
    struct tensor n = scratch_tensor(p, x->rows, x->cols);
    norm_apply(b, p, NORM1_W, x, &n, &s->t[STATS1]);
    linear_forward(&f->qkv, p, &n, qkv);
    rotate(b, p, f, qkv, false);
    struct tensor q = tensor_cols(*qkv, 0, f->q_cols);
    keys_and_values(b, p, f, qkv, &k, &v);
    p->be->ops->attention_forward(p->be, &f->att, &q, &k, &v, &s->t[ATT], &s->t[LSE]);
    struct dropout drop;
    linear_forward(&f->out, p, &s->t[ATT], &s->t[MID]);
    p->be->ops->bias_dropout_add(p->be, &s->t[MID], tensor_or_null(&f->out.b), x,
                                 pass_dropout(p, f->c->hidden_dropout, RNG_DROP_ATTENTION_OUT,
                                              b->stack_layer, f->first, &drop),
                                 &s->t[MID]);
}

static struct tensor activate(struct pass *p, const struct frame *f, const struct tensor *pre) {
    struct tensor a = scratch_tensor(p, pre->rows, f->c->glu ? pre->cols / 2 : pre->cols);
    if (f->c->glu)
        p->be->ops->glu_forward(p->be, f->c->act, pre, &a);
    else
        p->be->ops->act_forward(p->be, f->c->act, pre, &a);
    return a;
}

static void mlp_half(struct block *b, struct pass *p, const struct frame *f, struct saved *s,
                     const struct tensor *y) {
    const struct tensor *mid = &s->t[MID];
    size_t mark = arena_mark(p->scratch);
    struct tensor n = scratch_tensor(p, mid->rows, mid->cols);
    norm_apply(b, p, NORM2_W, mid, &n, &s->t[STATS2]);
    linear_forward(&f->fc1, p, &n, &s->t[PRE]);
    arena_release(p->scratch, mark);
    struct tensor a = activate(p, f, &s->t[PRE]);
    struct dropout drop;
    linear_forward(&f->fc2, p, &a, y);
    p->be->ops->bias_dropout_add(
        p->be, y, tensor_or_null(&f->fc2.b), mid,
        pass_dropout(p, f->c->hidden_dropout, RNG_DROP_MLP_OUT, b->stack_layer, f->first, &drop),
        y);
}

static void transformer_forward(struct block *b, struct pass *p, const struct tensor *x,
                                const struct tensor *y, struct saved *s) {
    struct frame f;
    frame_begin(&f, b, p);
    size_t mark = arena_mark(p->scratch);
    attention_half(b, p, &f, x, s);
    arena_release(p->scratch, mark);
    mlp_half(b, p, &f, s, y);
    arena_release(p->scratch, mark);
}

/* The norm's output again, where a weight gradient needs it. */
static struct tensor norm_again(const struct block *b, struct pass *p, int slot,
                                const struct linear *l, const struct tensor *x) {
    if (l->dw.data == NULL) return (struct tensor){0};
    struct tensor n = scratch_tensor(p, x->rows, x->cols);
    struct tensor stats = tensor_alloc(p->scratch, x->rows, 2, p->be->acc);
    norm_apply(b, p, slot, x, &n, &stats);
    return n;
}

static void norm_back(const struct block *b, struct pass *p, int slot, const struct tensor *dn,
                      const struct tensor *x, const struct tensor *stats, const struct tensor *dx) {
    const struct transformer_config *c = b->config;
    struct tensor gamma = block_weight(b, slot, 1);
    struct tensor dgamma = block_grad(b, slot, 1), dbeta = block_grad(b, slot + 1, 1);
    p->be->ops->norm_backward(p->be, c->norm, dn, x, &gamma, stats, dx, true,
                              tensor_or_null(&dgamma), tensor_or_null(&dbeta));
}

/* Gradient of the residual branch: dy through the dropout. */
static struct tensor branch_gradient(struct block *b, struct pass *p, const struct frame *f,
                                     enum rng_site site, const struct tensor *dy) {
    struct dropout drop;
    const struct dropout *on =
        pass_dropout(p, f->c->hidden_dropout, site, b->stack_layer, f->first, &drop);
    if (on == NULL) return *dy;
    struct tensor d = scratch_tensor(p, dy->rows, dy->cols);
    p->be->ops->dropout_backward(p->be, dy, on, &d);
    return d;
}

/* dx += d(mlp branch)/dx; on entry dx holds the residual path's gradient. */
static void mlp_back(struct block *b, struct pass *p, const struct frame *f, struct saved *s,
                     const struct tensor *dy, const struct tensor *dx) {
    const struct tensor *pre = &s->t[PRE];
    struct tensor dpre = scratch_tensor(p, pre->rows, pre->cols);
    size_t mark = arena_mark(p->scratch);
    struct tensor d = branch_gradient(b, p, f, RNG_DROP_MLP_OUT, dy);
    struct tensor a = {0};
    if (f->fc2.dw.data != NULL) a = activate(p, f, pre);
    struct tensor da = scratch_tensor(p, pre->rows, f->c->glu ? pre->cols / 2 : pre->cols);
    linear_backward(&f->fc2, p, &a, &d, &da);
    if (f->c->glu)
        p->be->ops->glu_backward(p->be, f->c->act, pre, &da, &dpre);
    else
        p->be->ops->act_backward(p->be, f->c->act, pre, &da, &dpre);
    arena_release(p->scratch, mark);
    struct tensor n = norm_again(b, p, NORM2_W, &f->fc1, &s->t[MID]);
    struct tensor dn = scratch_tensor(p, dx->rows, dx->cols);
    linear_backward(&f->fc1, p, &n, &dpre, &dn);
    norm_back(b, p, NORM2_W, &dn, &s->t[MID], &s->t[STATS2], dx);
}

static void attention_back(struct block *b, struct pass *p, const struct frame *f, struct saved *s,
                           const struct tensor *x, const struct tensor *dx) {
    const struct tensor *qkv = &s->t[QKV];
    struct tensor dqkv = scratch_tensor(p, qkv->rows, qkv->cols);
    size_t mark = arena_mark(p->scratch);
    struct tensor d = branch_gradient(b, p, f, RNG_DROP_ATTENTION_OUT, dx);
    struct tensor d_o = scratch_tensor(p, qkv->rows, f->q_cols);
    linear_backward(&f->out, p, &s->t[ATT], &d, &d_o);
    struct tensor delta = tensor_alloc(p->scratch, f->att.heads, qkv->rows, p->be->acc);
    struct tensor part[2][3]; /* q, k, v and their gradients */
    const struct tensor *whole[2] = {qkv, &dqkv};
    for (int i = 0; i < 2; i++) {
        part[i][0] = tensor_cols(*whole[i], 0, f->q_cols);
        part[i][1] = tensor_cols(*whole[i], f->q_cols, f->kv_cols);
        part[i][2] = tensor_cols(*whole[i], f->q_cols + f->kv_cols, f->kv_cols);
    }
    p->be->ops->attention_backward(p->be, &f->att, &part[0][0], &part[0][1], &part[0][2],
                                   &s->t[ATT], &s->t[LSE], &d_o, &delta, &part[1][0], &part[1][1],
                                   &part[1][2]);
    arena_release(p->scratch, mark);
    rotate(b, p, f, &dqkv, true);
    struct tensor n = norm_again(b, p, NORM1_W, &f->qkv, x);
    struct tensor dn = scratch_tensor(p, dx->rows, dx->cols);
    linear_backward(&f->qkv, p, &n, &dqkv, &dn);
    norm_back(b, p, NORM1_W, &dn, x, &s->t[STATS1], dx);
}

static void transformer_backward(struct block *b, struct pass *p, const struct tensor *x,
                                 struct saved *s, const struct tensor *dy,
                                 const struct tensor *dx) {
    struct frame f;
    frame_begin(&f, b, p);
    size_t mark = arena_mark(p->scratch);
    struct tensor d = dx != NULL ? *dx : scratch_tensor(p, dy->rows, dy->cols);
    tensor_copy(p, dy, &d); /* the residual path */
    size_t inner = arena_mark(p->scratch);
    mlp_back(b, p, &f, s, dy, &d);
    arena_release(p->scratch, inner);
    attention_back(b, p, &f, s, x, &d);
    arena_release(p->scratch, mark);
}

static const struct block_ops transformer_ops = {.name = "transformer",
                                                 .out_shape = block_rows,
                                                 .save = transformer_save,
                                                 .forward = transformer_forward,
                                                 .backward = transformer_backward};
/* The tower's last layer with vision_feature_layer = -2: weights without compute. */
static const struct block_ops identity_ops = {.name = "identity", .out_shape = block_rows};

static struct param_spec matrix_spec(const char *name, const char *hf, int64_t out, int64_t in,
                                     struct cut cut, double std, bool fused) {
    return (struct param_spec){.name = name,
                               .hf_name = hf,
                               .dims = "out_features,in_features",
                               .ndim = 2,
                               .shape = {out, in},
                               .cut = cut,
                               .init = INIT_NORMAL,
                               .scale = std,
                               .fused = fused};
}

static struct param_spec bias_spec(const char *name, const char *hf, int64_t n, struct cut cut,
                                   bool fused) {
    return (struct param_spec){.name = name,
                               .hf_name = hf,
                               .dims = "out_features",
                               .ndim = 1,
                               .shape = {n},
                               .cut = cut,
                               .init = INIT_ZERO,
                               .no_decay = true,
                               .fused = fused,
                               .rows_local = cut.axis < 0};
}

/* Name of a leaf, twice: block_declare turns the slashes of the second into dots. */
#define SPEC_NAME(path, leaf) path "/" leaf, path "/" leaf

static void declare_norm(struct block *b, const struct param_home *home, int slot, bool vision,
                         bool second, bool bias, int64_t h) {
    static const char *const name[2][2][4] = {
        {{"input_layernorm/weight", "input_layernorm.weight", "input_layernorm/bias",
          "input_layernorm.bias"},
         {"post_attention_layernorm/weight", "post_attention_layernorm.weight",
          "post_attention_layernorm/bias", "post_attention_layernorm.bias"}},
        {{"layer_norm1/weight", "layer_norm1.weight", "layer_norm1/bias", "layer_norm1.bias"},
         {"layer_norm2/weight", "layer_norm2.weight", "layer_norm2/bias", "layer_norm2.bias"}}};
    const char *const *n = name[vision][second];
    block_declare(b, slot, home, norm_spec(n[0], n[1], h, false));
    if (bias) block_declare(b, slot + 1, home, norm_spec(n[2], n[3], h, true));
}

static void declare_attention(struct block *b, const struct param_home *home,
                              const struct transformer_config *c) {
    int64_t d = c->head_dim, q = c->heads * d, kv = c->kv_heads * d;
    struct cut q_cut = cut_even(0, q, c->heads / c->kv_heads * d), kv_cut = cut_even(0, kv, d);
    struct cut in_cut = q_cut;
    in_cut.axis = 1;
    block_declare(b, QKV_W, home,
                  matrix_spec(SPEC_NAME("self_attn/q_proj", "weight"), q, c->hidden, q_cut,
                              c->std_qkv, false));
    block_declare(b, QKV_W + 1, home,
                  matrix_spec(SPEC_NAME("self_attn/k_proj", "weight"), kv, c->hidden, kv_cut,
                              c->std_qkv, true));
    block_declare(b, QKV_W + 2, home,
                  matrix_spec(SPEC_NAME("self_attn/v_proj", "weight"), kv, c->hidden, kv_cut,
                              c->std_qkv, true));
    if (c->qkv_bias) {
        block_declare(b, QKV_B, home,
                      bias_spec(SPEC_NAME("self_attn/q_proj", "bias"), q, q_cut, false));
        block_declare(b, QKV_B + 1, home,
                      bias_spec(SPEC_NAME("self_attn/k_proj", "bias"), kv, kv_cut, true));
        block_declare(b, QKV_B + 2, home,
                      bias_spec(SPEC_NAME("self_attn/v_proj", "bias"), kv, kv_cut, true));
    }
    const char *out = c->vision ? "self_attn/out_proj/weight" : "self_attn/o_proj/weight";
    const char *out_b = c->vision ? "self_attn/out_proj/bias" : "self_attn/o_proj/bias";
    block_declare(b, OUT_W, home, matrix_spec(out, out, c->hidden, q, in_cut, c->std_out, false));
    if (c->bias)
        block_declare(b, OUT_B, home, bias_spec(out_b, out_b, c->hidden, cut_none(), false));
}

static void declare_mlp(struct block *b, const struct param_home *home,
                        const struct transformer_config *c) {
    struct cut cut = cut_even(0, c->ffn, feature_granule(c->ffn)), in_cut = cut;
    in_cut.axis = 1;
    const char *first = c->glu ? "mlp/gate_proj/weight" : "mlp/fc1/weight";
    const char *first_b = c->glu ? "mlp/gate_proj/bias" : "mlp/fc1/bias";
    const char *last = c->glu ? "mlp/down_proj/weight" : "mlp/fc2/weight";
    const char *last_b = c->glu ? "mlp/down_proj/bias" : "mlp/fc2/bias";
    block_declare(b, FC1_W, home,
                  matrix_spec(first, first, c->ffn, c->hidden, cut, c->std_fc1, false));
    if (c->glu)
        block_declare(b, FC1_W + 1, home,
                      matrix_spec(SPEC_NAME("mlp/up_proj", "weight"), c->ffn, c->hidden, cut,
                                  c->std_fc1, true));
    if (c->bias) {
        block_declare(b, FC1_B, home, bias_spec(first_b, first_b, c->ffn, cut, false));
        if (c->glu)
            block_declare(b, FC1_B + 1, home,
                          bias_spec(SPEC_NAME("mlp/up_proj", "bias"), c->ffn, cut, true));
    }
    block_declare(b, FC2_W, home,
                  matrix_spec(last, last, c->hidden, c->ffn, in_cut, c->std_fc2, false));
    if (c->bias)
        block_declare(b, FC2_B, home, bias_spec(last_b, last_b, c->hidden, cut_none(), false));
}

int64_t block_cache_cols(const struct block *b) {
    if (b->ops != &transformer_ops) return 0;
    const struct transformer_config *c = b->config;
    return c->vision ? 0 : 2 * block_param(b, QKV_W + 1)->rows;
}

void block_transformer(struct block *b, const struct transformer_config *c, bool identity) {
    b->ops = identity ? &identity_ops : &transformer_ops;
    b->config = c;
    struct param_home home = {
        c->vision ? "model/vision_tower/encoder/layers/%03d/" : "model/language_model/layers/%03d/",
        c->vision ? "vision_tower.vision_model.encoder.layers.%d."
                  : "language_model.model.layers.%d.",
        c->number, c->vision ? PARAM_VISION : PARAM_LANGUAGE, c->frozen || identity};
    bool norm_bias = c->norm == NORM_LAYER;
    declare_norm(b, &home, NORM1_W, c->vision, false, norm_bias, c->hidden);
    declare_attention(b, &home, c);
    declare_norm(b, &home, NORM2_W, c->vision, true, norm_bias, c->hidden);
    declare_mlp(b, &home, c);
}
