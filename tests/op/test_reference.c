/* kernels: all */
/* The loss of LLaVA against a second implementation: plain loops in double over one sample after the
 * other, written from the formulas (doc/mathematics.md), with weights taken by their names. Dropout
 * is drawn from its definition, so its coordinates are checked too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "comm.h"
#include "model_kit.h"

/* ---- matrices and weights ---------------------------------------------------------------------------- */

struct mat {
    int64_t rows, cols;
    double *v;
};

static struct mat mat_new(int64_t rows, int64_t cols) {
    return (struct mat){rows, cols, xcalloc((size_t)(rows * cols) + 1, sizeof(double))};
}

static double *at(struct mat m, int64_t r, int64_t c) {
    return m.v + r * m.cols + c;
}

struct model {
    const struct stack *s;
    const struct param_set *set; /* fp64, TP = 1 */
    const struct config *cfg;
    const struct kit_batch *batch;
    struct rng_key run;
};

static const struct param *named(const struct model *m, const char *prefix, const char *name) {
    char text[200];
    snprintf(text, sizeof text, "model/%s%s%s", prefix, prefix[0] == 0 ? "" : "/", name);
    for (int i = 0; i < m->set->n; i++)
        if (strcmp(m->set->param[i].name, text) == 0) return &m->set->param[i];
    return NULL;
}

/* y = x W^T + b of the tensors PREFIX/NAME/weight and /bias. */
static struct mat linear(const struct model *m, const char *prefix, const char *name,
                         struct mat x) {
    char text[120];
    snprintf(text, sizeof text, "%s/weight", name);
    const struct param *w = named(m, prefix, text);
    snprintf(text, sizeof text, "%s/bias", name);
    const struct param *b = named(m, prefix, text);
    if (w == NULL) fail_msg("there is no %s of %s", name, prefix);
    const double *wv = w->w.data, *bv = b != NULL ? b->w.data : NULL;
    struct mat y = mat_new(x.rows, w->shape[0]);
    for (int64_t r = 0; r < y.rows; r++)
        for (int64_t o = 0; o < y.cols; o++) {
            double sum = bv != NULL ? bv[o] : 0;
            for (int64_t i = 0; i < x.cols; i++) sum += *at(x, r, i) * wv[o * x.cols + i];
            *at(y, r, o) = sum;
        }
    return y;
}

static struct mat norm(const struct model *m, const char *prefix, const char *name, struct mat x,
                       bool rms, double eps) {
    char text[120];
    snprintf(text, sizeof text, "%s/weight", name);
    const double *gamma = named(m, prefix, text)->w.data;
    snprintf(text, sizeof text, "%s/bias", name);
    const struct param *b = named(m, prefix, text);
    assert_true((b == NULL) == rms);
    struct mat y = mat_new(x.rows, x.cols);
    for (int64_t r = 0; r < x.rows; r++) {
        double mean = 0, var = 0;
        for (int64_t i = 0; i < x.cols && !rms; i++) mean += *at(x, r, i) / (double)x.cols;
        for (int64_t i = 0; i < x.cols; i++)
            var += (*at(x, r, i) - mean) * (*at(x, r, i) - mean) / (double)x.cols;
        for (int64_t i = 0; i < x.cols; i++)
            *at(y, r, i) = (*at(x, r, i) - mean) / sqrt(var + eps) * gamma[i] +
                           (b != NULL ? ((double *)b->w.data)[i] : 0);
    }
    return y;
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}
static double gelu(double x) {
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}
static double quick_gelu(double x) {
    return x * sigmoid(1.702 * x);
}
static double silu(double x) {
    return x * sigmoid(x);
}

static void apply(struct mat x, double (*f)(double)) {
    for (int64_t i = 0; i < x.rows * x.cols; i++) x.v[i] = f(x.v[i]);
}

static void add(struct mat to, struct mat x) {
    for (int64_t i = 0; i < x.rows * x.cols; i++) to.v[i] += x.v[i];
}

/* ---- dropout -------------------------------------------------------------------------------------------- */

static double kept(struct rng_key key, double prob, int64_t c, int64_t row, int64_t sample,
                   int64_t head) {
    uint32_t counter[4] = {(uint32_t)(c / 4), (uint32_t)row, (uint32_t)sample, (uint32_t)head},
             out[4];
    philox4x32(key, counter, out);
    return (double)out[c % 4] < floor(prob * 4294967296.0) ? 0 : (double)(float)(1 / (1 - prob));
}

static void drop_hidden(const struct model *m, struct mat x, enum rng_site site, int layer,
                        int64_t sample) {
    double prob = m->cfg->language.hidden_dropout;
    struct rng_key key = rng_drop_key(m->run, site, (uint32_t)layer, m->batch->mb.step);
    for (int64_t r = 0; r < x.rows && prob > 0; r++)
        for (int64_t c = 0; c < x.cols; c++) *at(x, r, c) *= kept(key, prob, c, r, sample, 0);
}

/* ---- attention ------------------------------------------------------------------------------------------ */

struct heads {
    int64_t n, n_kv, d, window, rotary;
    bool causal;
    int layer;      /* of the stack */
    int64_t sample; /* ordinal, for dropout */
};

static void rotate(const struct model *m, struct mat x, const struct heads *h) {
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t head = 0; head < x.cols / h->d; head++)
            for (int64_t i = 0; i < h->rotary / 2; i++) {
                float f =
                    (float)pow(m->cfg->language.rotary_base, -2.0 * (double)i / (double)h->rotary);
                double a = (double)((float)r * f), *p = at(x, r, head * h->d + i);
                double *q = p + h->rotary / 2, u = *p, v = *q;
                *p = u * cos(a) - v * sin(a);
                *q = v * cos(a) + u * sin(a);
            }
}

static void attend(const struct model *m, struct mat q, struct mat k, struct mat v,
                   const struct heads *h, int64_t head, struct mat o) {
    int64_t kv = head / (h->n / h->n_kv), n = q.rows;
    double *p = xcalloc((size_t)n, sizeof *p), prob = m->cfg->language.attention_dropout;
    struct rng_key key =
        rng_drop_key(m->run, RNG_DROP_ATTENTION, (uint32_t)h->layer, m->batch->mb.step);
    for (int64_t i = 0; i < n; i++) {
        double sum = 0;
        for (int64_t j = 0; j < n; j++) {
            bool visible = !h->causal || (j <= i && (h->window == 0 || i - j < h->window));
            double dot = 0;
            for (int64_t c = 0; c < h->d; c++)
                dot += *at(q, i, head * h->d + c) * *at(k, j, kv * h->d + c);
            p[j] = visible ? exp(dot / sqrt((double)h->d)) : 0;
            sum += p[j];
        }
        for (int64_t j = 0; j < n; j++) {
            double w = p[j] / sum;
            if (prob > 0 && h->causal) w *= kept(key, prob, j, i, h->sample, head);
            for (int64_t c = 0; c < h->d; c++)
                *at(o, i, head * h->d + c) += w * *at(v, j, kv * h->d + c);
        }
    }
    free(p);
}

static struct mat attention(const struct model *m, const char *prefix, struct mat x,
                            const struct heads *h, const char *out) {
    struct mat q = linear(m, prefix, "self_attn/q_proj", x),
               k = linear(m, prefix, "self_attn/k_proj", x);
    struct mat v = linear(m, prefix, "self_attn/v_proj", x), o = mat_new(x.rows, h->n * h->d);
    rotate(m, q, h);
    rotate(m, k, h);
    for (int64_t head = 0; head < h->n; head++) attend(m, q, k, v, h, head, o);
    struct mat y = linear(m, prefix, out, o);
    free(q.v), free(k.v), free(v.v), free(o.v);
    return y;
}

/* ---- the towers ----------------------------------------------------------------------------------------- */

static struct mat patches(const struct model *m, int64_t image) {
    const struct vision_config *v = &m->s->shape.vision;
    int64_t across = v->img_w / v->patch, n = across * (v->img_h / v->patch), h = v->hidden;
    const float *pixel = m->batch->pixels + image * v->channels * v->img_h * v->img_w;
    const double *w = named(m, "vision_tower", "embeddings/patch_embedding/weight")->w.data;
    const double *cls = named(m, "vision_tower", "embeddings/class_embedding")->w.data;
    const double *pos = named(m, "vision_tower", "embeddings/position_embedding/weight")->w.data;
    struct mat x = mat_new(n + 1, h);
    for (int64_t r = 0; r <= n; r++)
        for (int64_t o = 0; o < h; o++) {
            double sum = pos[r * h + o] + (r == 0 ? cls[o] : 0);
            for (int64_t c = 0; c < v->channels && r > 0; c++)
                for (int64_t i = 0; i < v->patch; i++)
                    for (int64_t j = 0; j < v->patch; j++) {
                        int64_t row = (r - 1) / across * v->patch + i;
                        int64_t col = (r - 1) % across * v->patch + j;
                        sum += w[((o * v->channels + c) * v->patch + i) * v->patch + j] *
                               (double)pixel[(c * v->img_h + row) * v->img_w + col];
                    }
            *at(x, r, o) = sum;
        }
    struct mat y = norm(m, "vision_tower", "pre_layrnorm", x, false, 1e-5);
    free(x.v);
    return y;
}

static void vision_layer(const struct model *m, int number, struct mat x) {
    const struct vision_config *v = &m->s->shape.vision;
    char prefix[80];
    snprintf(prefix, sizeof prefix, "vision_tower/encoder/layers/%03d", number);
    struct heads h = {.n = v->heads, .n_kv = v->heads, .d = v->hidden / v->heads};
    struct mat n = norm(m, prefix, "layer_norm1", x, false, 1e-5);
    struct mat a = attention(m, prefix, n, &h, "self_attn/out_proj");
    add(x, a);
    free(n.v), free(a.v);
    n = norm(m, prefix, "layer_norm2", x, false, 1e-5);
    a = linear(m, prefix, "mlp/fc1", n);
    apply(a, quick_gelu);
    free(n.v);
    n = linear(m, prefix, "mlp/fc2", a);
    add(x, n);
    free(n.v), free(a.v);
}

/* Rows of one image as the language model sees them. */
static struct mat image_rows(const struct model *m, int64_t image) {
    const struct config *c = m->cfg;
    int drop = c->vision.disable_vision_class_token ? 1 : 0;
    struct mat x = patches(m, image);
    for (int i = 0; i < c->vision.num_layers + c->vision.vision_feature_layer + 1; i++)
        vision_layer(m, i, x);
    struct mat kept_rows = {x.rows - drop, x.cols, x.v + drop * x.cols}, y;
    if (c->projector.projector_type == PROJECTOR_AFFINE) {
        y = linear(m, "mm_projector", "linear", kept_rows);
    } else {
        static double (*const act[])(double) = {
            [PROJECTOR_GELU] = gelu, [PROJECTOR_QUICK_GELU] = quick_gelu, [PROJECTOR_SILU] = silu};
        struct mat mid = linear(m, "mm_projector", "linear_1", kept_rows);
        apply(mid, act[c->projector.projector_activation]);
        y = linear(m, "mm_projector", "linear_2", mid);
        free(mid.v);
    }
    free(x.v);
    return y;
}

static struct mat mlp(const struct model *m, const char *prefix, struct mat x) {
    struct mat a, y;
    if (m->cfg->language.swiglu) {
        struct mat up = linear(m, prefix, "mlp/up_proj", x);
        a = linear(m, prefix, "mlp/gate_proj", x);
        apply(a, silu);
        for (int64_t i = 0; i < a.rows * a.cols; i++) a.v[i] *= up.v[i];
        free(up.v);
        y = linear(m, prefix, "mlp/down_proj", a);
    } else {
        a = linear(m, prefix, "mlp/fc1", x);
        apply(a, gelu);
        y = linear(m, prefix, "mlp/fc2", a);
    }
    free(a.v);
    return y;
}

static void language_layer(const struct model *m, int number, struct mat x, int64_t sample) {
    const struct language_config *l = &m->s->shape.language;
    bool rms = l->norm == NORM_RMS,
         rope = m->cfg->language.position_embedding_type == POSITION_ROPE;
    char prefix[80];
    snprintf(prefix, sizeof prefix, "language_model/layers/%03d", number);
    struct heads h = {.n = l->heads,
                      .n_kv = l->kv_heads,
                      .d = l->head_dim,
                      .window = l->window,
                      .rotary = rope ? l->rotary_dim : 0,
                      .causal = true,
                      .sample = sample,
                      .layer = m->s->n_layers - (int)l->layers + number};
    struct mat n = norm(m, prefix, "input_layernorm", x, rms, l->eps);
    struct mat a = attention(m, prefix, n, &h, "self_attn/o_proj");
    drop_hidden(m, a, RNG_DROP_ATTENTION_OUT, h.layer, sample);
    add(x, a);
    free(n.v), free(a.v);
    n = norm(m, prefix, "post_attention_layernorm", x, rms, l->eps);
    a = mlp(m, prefix, n);
    drop_hidden(m, a, RNG_DROP_MLP_OUT, h.layer, sample);
    add(x, a);
    free(n.v), free(a.v);
}

/* ---- the loss --------------------------------------------------------------------------------------------- */

static double row_loss(const struct model *m, struct mat z, int64_t r, int32_t target) {
    double sum = 0, mean = 0, a = m->cfg->training.label_smoothing, c = m->cfg->training.z_loss;
    for (int64_t v = 0; v < z.cols; v++) {
        sum += exp(*at(z, r, v));
        mean += *at(z, r, v) / (double)z.cols;
    }
    return log(sum) - (1 - a) * *at(z, r, target) - a * mean + c * log(sum) * log(sum);
}

static double sample_loss(const struct model *m, int64_t place) {
    const struct language_config *l = &m->s->shape.language;
    const struct kit_batch *b = m->batch;
    const struct kit_row *row = b->row + b->cu_tokens[place];
    int64_t n = b->cu_tokens[place + 1] - b->cu_tokens[place], k = kit_rows_per_image(m->s);
    int64_t sample = b->mb.first_sample + place;
    const double *table = named(m, "language_model", "embed_tokens/weight")->w.data;
    const double *newline = m->s->shape.newline ? named(m, "", "image_newline")->w.data : NULL;
    int64_t of = -1; /* tile that `image` holds */
    struct mat x = mat_new(n, l->hidden), image = {0, 0, NULL};
    for (int64_t r = 0; r < n; r++) {
        if (row[r].image_row >= 0 && row[r].image_row / k != of) {
            free(image.v);
            of = row[r].image_row / k;
            image = image_rows(m, of);
        }
        for (int64_t c = 0; c < l->hidden; c++)
            *at(x, r, c) = kit_is_newline(&row[r]) ? newline[c]
                           : row[r].image_row >= 0 ? *at(image, row[r].image_row % k, c)
                                                   : table[row[r].token * l->hidden + c];
    }
    drop_hidden(m, x, RNG_DROP_EMBEDDING, m->s->n_layers - (int)l->layers, sample);
    for (int i = 0; i < l->layers; i++) language_layer(m, i, x, sample);
    struct mat y = norm(m, "language_model", "norm", x, l->norm == NORM_RMS, l->eps);
    struct mat z = linear(m, "language_model", "lm_head", y);
    double loss = 0;
    for (int64_t r = 0; r < n; r++)
        if (row[r].target >= 0) loss += row_loss(m, z, r, row[r].target);
    free(image.v), free(x.v), free(y.v), free(z.v);
    return loss;
}

/* ---- comparing ------------------------------------------------------------------------------------------ */

static const struct kit_sample mixed[] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2},
    {.length = 12, .images = 2, .at = {0, 6}, .first_target = 0},
    {.length = 24, .images = 1, .at = {21}, .first_target = 5},
    {.length = 4, .images = 1, .at = {3}, .first_target = KIT_NO_TARGET},
    {.length = 30, .images = 2, .at = {3, 29}, .first_target = 4}};

/* The same with maps of 2 x 3 patches a tile, whole and without padding, cut off inside (64 rows). */
static const struct kit_sample maps[] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2, .map = {{2, 2, 0, 1, 4, 4}}},
    {.length = 12,
     .images = 2,
     .at = {0, 6},
     .first_target = 0,
     .map = {{1, 2, 0, 0, 2, 6}, {2, 1, 1, 0, 2, 3}}},
    {.length = 59, .images = 1, .at = {44}, .first_target = 5, .map = {{2, 1, 0, 0, 4, 3}}},
    {.length = 4,
     .images = 1,
     .at = {3},
     .first_target = KIT_NO_TARGET,
     .map = {{1, 1, 1, 0, 0, 3}}},
    {.length = 63, .images = 1, .at = {62}, .first_target = 4, .map = {{1, 1, 0, 0, 2, 3}}}};

static void check(const char *what, const struct config *cfg) {
    struct stack s = kit_stack(cfg);
    struct kit_batch b = kit_batch_make(&s, s.shape.newline ? maps : mixed, 6, 31, 4, 2);
    struct kit_layout l = {.P = 1,
                           .split = {s.n_layers},
                           .dtype = DTYPE_F64,
                           .settings = {.micro_batches = 1, .run_key = rng_run_key(11)}};
    struct grid *grid;
    struct kit_rank k;
    double loss[2], expected = 0;
    int64_t rows[2];
    assert_int_equal(grid_create(1, 1, false, 1, &grid), 0);
    kit_rank_begin(&k, &s, grid, &l, &b.mb);
    struct kit_source source = {&b, &k.st, 1.0};
    struct microbatch_source ms = kit_source(&source);
    assert_int_equal(pipeline_run(k.pl, &ms, 4, true, &(struct pipeline_result){loss, rows, NULL}),
                     0);
    struct model m = {&s, &k.st.params, cfg, &b, l.settings.run_key};
    for (int64_t i = 0; i < b.mb.samples; i++) expected += sample_loss(&m, i);
    double diff = fabs(loss[0] - expected);
    if (!(diff <= 1e-12 * expected))
        fail_msg("%s: loss %.17g, the plain loops give %.17g", what, loss[0], expected);
    kit_rank_end(&k);
    grid_destroy(grid);
    backend_destroy(k.be);
    kit_batch_free(&b);
    stack_free(&s);
}

static void test_loss(void **state) {
    (void)state;
    struct config c = kit_config();
    check("llava", &c);
    c.language.window_size = 4;
    c.language.kv_channels = 8;
    c.language.rotary_percent = 0.5;
    c.language.add_qkv_bias = true;
    check("window, half rotary, biases of queries and keys", &c);
    c = kit_config();
    kit_anyres(&c);
    check("maps of tiles", &c);
    c.language.hidden_dropout = 0.2;
    check("maps of tiles, dropout", &c);
}

static void test_vision(void **state) {
    (void)state;
    struct config c = kit_config();
    c.vision.vision_feature_layer = -1;
    c.projector.projector_activation = PROJECTOR_SILU;
    check("feature layer -1", &c);
    c.vision.disable_vision_class_token = false;
    c.projector.projector_activation = PROJECTOR_QUICK_GELU;
    c.projector.projector_bias = false;
    check("class token kept", &c);
    c.projector.projector_type = PROJECTOR_AFFINE;
    check("affine", &c);
}

static void test_language(void **state) {
    (void)state;
    struct config c = kit_config();
    c.language.normalization = NORMALIZATION_LAYERNORM;
    c.language.swiglu = false;
    c.language.add_bias_linear = true;
    c.language.position_embedding_type = POSITION_NONE;
    check("LayerNorm, gelu, biases", &c);
    c.training.label_smoothing = 0.2;
    c.training.z_loss = 0.01;
    check("label smoothing, z-loss", &c);
}

static void test_dropout(void **state) {
    (void)state;
    struct config c = kit_config();
    c.language.hidden_dropout = 0.2;
    check("hidden dropout", &c);
    c.language.attention_dropout = 0.3;
    check("both dropouts", &c);
}

/* So large that the head takes its rows in several pieces. */
static void test_large_vocabulary(void **state) {
    (void)state;
    struct config c = kit_config();
    c.language.vocab_size = 200000;
    c.language.hidden_size = 6;
    c.language.num_layers = 1;
    check("large vocabulary", &c);
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss), cmocka_unit_test(test_vision), cmocka_unit_test(test_language),
        cmocka_unit_test(test_dropout), cmocka_unit_test(test_large_vocabulary)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_finalize();
    return failed;
}
