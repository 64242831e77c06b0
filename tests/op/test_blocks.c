/* Every block of LLaVA, forward and backward, in double:
 *   - the gradient of every parameter and of a stage's input against finite differences of the loss;
 *   - frozen parts, recompute and the two buffers change no bit of what is computed;
 *   - a micro-batch takes the memory that was planned for it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "comm.h"
#include "model_kit.h"

/* ---- one stage, run by hand ---------------------------------------------------------------------- */

struct bench {
    struct config cfg;
    struct stack stack;
    struct grid *grid;
    struct backend *be;
    struct stage st;
    struct arena life, scratch;
    struct slot slot;
    struct pipeline_memory memory;
    struct batch_tables tables;
    struct tensor in, din;
    const struct kit_batch *batch;
    bool training;
    double scale;
};

static struct kit_layout layout_of(enum recompute how, int64_t n) {
    return (struct kit_layout){.P = 1,
                               .recompute = how,
                               .recompute_layers = n,
                               .dtype = DTYPE_F64,
                               .settings = {.micro_batches = 1, .run_key = rng_run_key(11)}};
}

static struct tensor tensor_new(int64_t rows, int64_t cols) {
    return tensor_view(xcalloc((size_t)(rows * cols) + 1, sizeof(double)), rows, cols, DTYPE_F64);
}

/* A stage [first, n_layers) whose input, if it has one, is made up. */
static void bench_begin(struct bench *b, const struct config *cfg, const struct kit_batch *batch,
                        int first, const struct kit_layout *l) {
    memset(b, 0, sizeof *b);
    b->cfg = *cfg;
    b->stack = kit_stack(&b->cfg);
    b->training = true;
    b->scale = 1;
    b->batch = batch;
    size_t life;
    assert_int_equal(grid_create(1, 1, false, 1, &b->grid), 0);
    assert_int_equal(backend_create_cpu(DTYPE_F64, 1, 1, &b->be), 0);
    assert_int_equal(stage_build(&b->stack, first, b->stack.n_layers, 1, 0, l->recompute,
                                 l->recompute_layers, &b->st),
                     0);
    kit_measure(&b->st, b->grid, l, &batch->mb, &life, &b->memory);
    kit_arena(&b->life, "life", life);
    kit_arena(&b->scratch, "scratch", b->memory.scratch_bytes);
    slot_init(&b->slot, &b->st);
    kit_arena(&b->slot.arena, "slot", b->memory.slot_bytes);
    stage_allocate(&b->st, b->be, &b->life);
    stage_tables_fill(&b->st, b->be);
    param_set_initialise(&b->st.params, b->be, l->settings.run_key);
    kit_perturb(&b->st.params, b->be);
    if (first == 0) return;
    struct stream s[STREAMS_MAX];
    boundary_streams(&b->stack, first, &batch->mb, 1, 0, DTYPE_F64, s);
    b->in = tensor_new(s[0].rows, s[0].cols);
    b->din = tensor_new(s[0].rows, s[0].cols);
    for (int64_t i = 0; i < tensor_count(&b->in); i++)
        ((double *)b->in.data)[i] = kit_uniform(9, 9, (uint64_t)i);
}

static void bench_close(struct bench *b) {
    free(b->slot.arena.base);
    slot_free(&b->slot);
    stage_free(&b->st);
    stack_free(&b->stack);
    grid_destroy(b->grid);
    backend_destroy(b->be);
    free(b->life.base);
    free(b->scratch.base);
    free(b->in.data);
    free(b->din.data);
}

static double bench_forward(struct bench *b, bool gradient, struct pass *p, struct tensor *out) {
    arena_release(&b->slot.arena, 0);
    kit_tables(b->batch, &b->st, b->be, &b->slot.arena, &b->tables);
    *p = (struct pass){.be = b->be,
                       .tp = grid_group(b->grid, GROUP_TP),
                       .scratch = &b->scratch,
                       .mb = &b->batch->mb,
                       .tab = &b->tables,
                       .run_key = rng_run_key(11),
                       .training = b->training,
                       .gradient = gradient,
                       .loss_scale = b->scale};
    stage_forward(&b->st, p, &b->slot, &b->in, out);
    assert_int_equal(p->loss_rows, b->batch->mb.targets);
    return p->loss_sum;
}

static double bench_loss(struct bench *b) {
    struct pass p;
    struct tensor out;
    return bench_forward(b, false, &p, &out);
}

static double bench_gradient(struct bench *b) {
    struct pass p;
    struct tensor out, none = {.dtype = DTYPE_F64};
    b->be->ops->zero(b->be, b->st.params.grads,
                     (size_t)b->st.params.grad_elements * sizeof(double));
    double loss = bench_forward(b, true, &p, &out);
    if (b->st.backward)
        stage_backward(&b->st, &p, &b->slot, &none, b->st.input_gradient ? &b->din : NULL);
    return loss;
}

/* ---- finite differences -------------------------------------------------------------------------- */

/* Derivative of the loss along v, five points: error h^4. */
static double difference(struct bench *b, double *x, const double *v, int64_t n, double h) {
    double *at = xmalloc((size_t)n * sizeof *at), f[4];
    const double step[4] = {-2, -1, 1, 2};
    memcpy(at, x, (size_t)n * sizeof *at);
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < n; i++) x[i] = at[i] + step[k] * h * v[i];
        f[k] = bench_loss(b);
    }
    memcpy(x, at, (size_t)n * sizeof *at);
    free(at);
    return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h);
}

/* Directions that touch every element, and a few elements alone. scale: size of a gradient that
 * counts as zero, for those that are zero by symmetry (the bias of the keys). */
static void check_tensor(struct bench *b, const char *what, const char *name, double *x,
                         const double *g, int64_t n, double scale) {
    double *v = xcalloc((size_t)n + 1, sizeof *v), norm = 0;
    for (int64_t i = 0; i < n; i++) norm += g[i] * g[i];
    norm = sqrt(norm);
    for (int k = 0; k < 7 && n > 0; k++) {
        memset(v, 0, (size_t)n * sizeof *v);
        double analytic = 0, typical = norm / sqrt((double)n);
        if (k < 3)
            for (int64_t i = 0; i < n; i++)
                v[i] = (kit_uniform(3, (uint64_t)k, (uint64_t)i) < 0 ? -1 : 1) / sqrt((double)n);
        else
            v[kit_hash(4, (uint64_t)k, (uint64_t)n) % (uint64_t)n] = 1;
        for (int64_t i = 0; i < n; i++) analytic += g[i] * v[i];
        double numeric = difference(b, x, v, n, 2e-4);
        double size = fmax(fabs(analytic), typical) + scale, diff = fabs(numeric - analytic) / size;
        if (!(diff <= 1e-6))
            fail_msg("%s: %s, %s %d: gradient %.12g, differences give %.12g", what, name,
                     k < 3 ? "direction" : "element", k, analytic, numeric);
    }
    free(v);
}

/* only: the parameters whose name contains it. */
static void check_parameters(const char *what, const struct config *cfg,
                             const struct kit_batch *batch, int first, const char *only) {
    struct bench b;
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    bench_begin(&b, cfg, batch, first, &l);
    double loss = bench_gradient(&b);
    int64_t n = b.st.params.grad_elements;
    double *g = xmalloc((size_t)n * sizeof *g + 1);
    memcpy(g, b.st.params.grads, (size_t)n * sizeof *g);
    if (!(loss == bench_loss(&b))) fail_msg("%s: the loss depends on keeping activations", what);
    for (int i = 0; i < b.st.params.n; i++) {
        const struct param *q = &b.st.params.param[i];
        if (q->trainable && strstr(q->name, only) != NULL)
            check_tensor(&b, what, q->name, q->w.data, g + q->grad_offset, param_local_count(q),
                         1e-3);
    }
    if (b.st.input_gradient)
        check_tensor(&b, what, "input", b.in.data, b.din.data, tensor_count(&b.in), 1e-3);
    free(g);
    bench_close(&b);
}

static void check_differences(const char *what, const struct config *cfg,
                              const struct kit_batch *batch, int first) {
    check_parameters(what, cfg, batch, first, "");
}

/* ---- micro-batches --------------------------------------------------------------------------------- */

/* No image, several, cut off inside an image (26 rows at most), no target; different lengths. */
static const struct kit_sample mixed[] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2},
    {.length = 12, .images = 2, .at = {0, 6}, .first_target = 0},
    {.length = 24, .images = 1, .at = {21}, .first_target = 5},
    {.length = 4, .images = 1, .at = {3}, .first_target = KIT_NO_TARGET},
};
/* Maps of 2 x 3 patches a tile: with padding above, beside, nothing left, cut off inside (64 rows). */
static const struct kit_sample maps[] = {
    {.length = 5, .first_target = 2},
    {.length = 9, .images = 1, .at = {1}, .first_target = 2, .map = {{2, 2, 0, 1, 4, 4}}},
    {.length = 12,
     .images = 2,
     .at = {0, 6},
     .first_target = 0,
     .map = {{1, 2, 0, 0, 2, 6}, {2, 1, 1, 0, 2, 3}}},
    {.length = 59, .images = 1, .at = {44}, .first_target = 5, .map = {{2, 1, 0, 0, 4, 3}}},
    {.length = 4, .images = 1, .at = {1}, .first_target = 2, .map = {{1, 1, 1, 0, 0, 3}}},
};
static const struct kit_sample text_only[] = {{.length = 7, .first_target = 1},
                                              {.length = 1, .first_target = 0}};
static const struct kit_sample no_target[] = {
    {.length = 4, .images = 1, .at = {1}, .first_target = KIT_NO_TARGET}};
/* The second image lies wholly behind the cut. */
static const struct kit_sample cut_away[] = {
    {.length = 30, .images = 2, .at = {3, 29}, .first_target = 4}};

#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

/* 2 + 2 + 2 layers, 6 query and 2 key/value heads. */
static struct config small_config(void) {
    struct config c = kit_config();
    c.vision.num_layers = 2;
    c.vision.hidden_size = 12;
    c.vision.num_attention_heads = 3;
    c.vision.ffn_hidden_size = 17;
    c.projector.projector_hidden_size = 10;
    c.language.num_layers = 2;
    c.language.hidden_size = 14;
    c.language.ffn_hidden_size = 19;
    c.language.num_attention_heads = 6;
    c.language.num_query_groups = 2;
    c.language.vocab_size = 53;
    return c;
}

static void check_config(const char *what, const struct config *c) {
    struct stack s = kit_stack(c);
    struct kit_batch b = kit_batch_make(&s, s.shape.newline ? maps : mixed, 5, 21, 3, 2);
    assert_true(b.mb.targets > 10);
    check_differences(what, c, &b, 0);
    kit_batch_free(&b);
    stack_free(&s);
}

/* ---- the tests of gradients -------------------------------------------------------------------------- */

static void test_default(void **state) {
    (void)state;
    struct config c = small_config();
    check_config("llava", &c);
}

/* Tiles, padding dropped, image_newline. */
static void test_maps(void **state) {
    (void)state;
    struct config c = small_config();
    kit_anyres(&c);
    check_config("maps", &c);
}

static void test_feature_layer_last(void **state) {
    (void)state;
    struct config c = small_config();
    c.vision.vision_feature_layer = -1;
    check_config("feature layer -1", &c);
    c.vision.disable_vision_class_token = false;
    check_config("class token kept", &c);
    c.vision.vision_feature_layer = -2;
    check_config("class token kept, feature layer -2", &c);
}

static void test_projectors(void **state) {
    (void)state;
    struct config c = small_config();
    static const int act[] = {PROJECTOR_QUICK_GELU, PROJECTOR_SILU};
    for (int i = 0; i < 2; i++) {
        c.projector.projector_activation = act[i];
        c.projector.projector_bias = i == 1;
        check_config(i == 0 ? "projector quick_gelu without bias" : "projector silu", &c);
    }
    c.projector.projector_type = PROJECTOR_AFFINE;
    check_config("affine projector", &c);
    c.projector.projector_bias = false;
    check_config("affine projector without bias", &c);
}

static void test_language_variants(void **state) {
    (void)state;
    struct config c = small_config();
    c.language.normalization = NORMALIZATION_LAYERNORM;
    c.language.swiglu = false;
    c.language.add_bias_linear = true;
    c.language.position_embedding_type = POSITION_NONE;
    check_config("LayerNorm, gelu, biases, no positions", &c);
    c = small_config();
    c.language.add_qkv_bias = true;
    c.language.kv_channels = 8;
    c.language.rotary_percent = 0.5;
    c.language.window_size = 3;
    check_config("window, half rotary, query and key biases", &c);
    c = small_config();
    c.language.add_bias_linear = true;
    check_config("gated with biases", &c);
}

static void test_loss_options(void **state) {
    (void)state;
    struct config c = small_config();
    c.training.label_smoothing = 0.2;
    check_config("label smoothing", &c);
    c.training.z_loss = 0.03;
    check_config("label smoothing and z-loss", &c);
}

/* A vocabulary so large that the head takes its rows in several pieces. */
static void test_large_vocabulary(void **state) {
    (void)state;
    static const struct kit_sample text[] = {{.length = 26, .first_target = 0},
                                             {.length = 26, .first_target = 0}};
    struct config c = small_config();
    c.language.vocab_size = 150000;
    c.language.hidden_size = 6;
    c.language.num_layers = 1;
    struct stack s = kit_stack(&c);
    struct kit_batch b = kit_batch_make(&s, text, 2, 22, 0, 0);
    assert_true(b.mb.targets > 29);
    check_parameters("large vocabulary", &c, &b, s.n_layers - 1, "norm/weight");
    check_parameters("large vocabulary", &c, &b, s.n_layers - 1, "lm_head");
    kit_batch_free(&b);
    stack_free(&s);
}

static void test_dropout(void **state) {
    (void)state;
    struct config c = small_config();
    c.language.hidden_dropout = 0.3;
    check_config("hidden dropout", &c);
    c.language.attention_dropout = 0.2;
    check_config("both dropouts", &c);
}

static void test_micro_batches(void **state) {
    (void)state;
    struct config c = small_config();
    struct stack s = kit_stack(&c);
    struct kit_batch b = kit_batch_make(&s, text_only, COUNT(text_only), 22, 0, 0);
    assert_int_equal(b.mb.images, 0);
    check_differences("text only", &c, &b, 0);
    kit_batch_free(&b);
    b = kit_batch_make(&s, cut_away, COUNT(cut_away), 23, 0, 0);
    assert_true(b.mb.tokens == s.shape.language.max_positions && b.mb.images == 2);
    check_differences("an image cut away", &c, &b, 0);
    kit_batch_free(&b);
    stack_free(&s);
}

/* Gradients that leave a stage. */
static void test_inputs(void **state) {
    (void)state;
    for (int affine = 0; affine < 2; affine++) {
        struct config c = small_config();
        c.projector.projector_type = affine ? PROJECTOR_AFFINE : PROJECTOR_MLP;
        c.vision.num_layers = 3;
        struct stack s = kit_stack(&c);
        struct kit_batch b = kit_batch_make(&s, mixed, COUNT(mixed), 24, 0, 0);
        for (int first = 1; first < s.n_layers; first++)
            if (stack_cut_allowed(&s, first))
                check_differences(affine ? "input, affine" : "input, mlp", &c, &b, first);
        kit_batch_free(&b);
        stack_free(&s);
    }
}

/* No target: no loss, and exactly no gradient anywhere. */
static void test_no_target(void **state) {
    (void)state;
    struct config c = small_config();
    struct stack s = kit_stack(&c);
    struct kit_batch batch = kit_batch_make(&s, no_target, COUNT(no_target), 25, 0, 0);
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    struct bench b;
    bench_begin(&b, &c, &batch, 0, &l);
    assert_true(batch.mb.targets == 0 && bench_gradient(&b) == 0);
    for (int64_t i = 0; i < b.st.params.grad_elements; i++)
        assert_true(((double *)b.st.params.grads)[i] == 0);
    bench_close(&b);
    kit_batch_free(&batch);
    stack_free(&s);
}

/* Text only: the tower and the projector get exactly nothing. */
static void test_no_image(void **state) {
    (void)state;
    struct config c = small_config();
    struct stack s = kit_stack(&c);
    struct kit_batch batch = kit_batch_make(&s, text_only, COUNT(text_only), 26, 0, 0);
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    struct bench b;
    bench_begin(&b, &c, &batch, 0, &l);
    bench_gradient(&b);
    for (int i = 0; i < b.st.params.n; i++) {
        const struct param *q = &b.st.params.param[i];
        const double *g = q->g.data;
        for (int64_t e = 0; q->trainable && q->group != PARAM_LANGUAGE && e < param_local_count(q);
             e++)
            assert_true(g[e] == 0);
    }
    bench_close(&b);
    kit_batch_free(&batch);
    stack_free(&s);
}

/* ---- what must not change a bit ------------------------------------------------------------------------ */

static bool same(const void *a, const void *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof(double)) == 0;
}

static const struct param *find(const struct param_set *s, const char *name) {
    for (int i = 0; i < s->n; i++)
        if (strcmp(s->param[i].name, name) == 0) return &s->param[i];
    return NULL;
}

struct frozen {
    bool vision, projector, language;
    int first_gradient; /* lowest cut that a gradient crosses, in the 3 + 2 + 4 stack; 9: none */
};

static void check_frozen(const struct config *base, const struct frozen *f,
                         const struct bench *whole, double loss) {
    struct config c = *base;
    c.vision.freeze_vit = f->vision;
    c.projector.freeze_vision_projection = f->projector;
    c.language.freeze_lm = f->language;
    struct bench b;
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    bench_begin(&b, &c, whole->batch, 0, &l);
    assert_true(bench_gradient(&b) == loss);
    int64_t trained = 0;
    for (int i = 0; i < b.st.params.n; i++) {
        const struct param *q = &b.st.params.param[i], *o = find(&whole->st.params, q->name);
        bool part = q->group == PARAM_VISION      ? f->vision
                    : q->group == PARAM_PROJECTOR ? f->projector
                                                  : f->language;
        assert_true(q->trainable == (o->trainable && !part));
        assert_true((q->g.data != NULL) == q->trainable);
        if (!q->trainable) continue;
        trained += param_global_count(q);
        if (!same(q->g.data, o->g.data, param_local_count(q)))
            fail_msg("gradient of %s depends on what is frozen", q->name);
    }
    assert_int_equal(trained, b.stack.n_trainable);
    for (int cut = 1; cut < b.stack.n_layers; cut++)
        assert_true(b.stack.gradient_crosses[cut] == (cut >= f->first_gradient));
    if (f->first_gradient > 1) assert_true(b.memory.slot_bytes < whole->memory.slot_bytes);
    bench_close(&b);
}

static void test_frozen(void **state) {
    (void)state;
    static const struct frozen frozen[] = {{true, false, false, 4}, {true, false, true, 4},
                                           {true, true, false, 6},  {false, false, true, 1},
                                           {false, true, false, 1}, {false, true, true, 1}};
    struct config c = kit_config();
    c.vision.vision_feature_layer = -1;
    c.language.hidden_dropout = 0.1;
    struct stack s = kit_stack(&c);
    struct kit_batch batch = kit_batch_make(&s, mixed, COUNT(mixed), 27, 0, 0);
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    struct bench whole;
    bench_begin(&whole, &c, &batch, 0, &l);
    double loss = bench_gradient(&whole);
    for (int i = 0; i < COUNT(frozen); i++) check_frozen(&c, &frozen[i], &whole, loss);
    c.vision.freeze_vit = c.projector.freeze_vision_projection = c.language.freeze_lm = true;
    struct stack none;
    assert_int_equal(stack_build(&c, &none), EXIT_USAGE);
    assert_non_null(strstr(error_text(), "nothing to train"));
    error_clear();
    stack_free(&none);
    bench_close(&whole);
    kit_batch_free(&batch);
    stack_free(&s);
}

static void check_recompute(const struct config *c, const struct kit_batch *batch, int first) {
    static const struct {
        enum recompute how;
        int64_t n;
    } way[] = {{REPEAT_UNIFORM, 1}, {REPEAT_UNIFORM, 2}, {REPEAT_UNIFORM, 3}, {REPEAT_UNIFORM, 9},
               {REPEAT_BLOCK, 1},   {REPEAT_BLOCK, 2},   {REPEAT_BLOCK, 5}};
    struct bench plain, b;
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    bench_begin(&plain, c, batch, first, &l);
    double loss = bench_gradient(&plain);
    for (int i = 0; i < COUNT(way); i++) {
        l = layout_of(way[i].how, way[i].n);
        bench_begin(&b, c, batch, first, &l);
        assert_true(bench_gradient(&b) == loss);
        if (!same(b.st.params.grads, plain.st.params.grads, b.st.params.grad_elements))
            fail_msg("recompute %d %d from layer %d changes gradients", (int)way[i].how,
                     (int)way[i].n, first);
        if (b.st.input_gradient)
            assert_true(same(b.din.data, plain.din.data, tensor_count(&b.din)));
        if (way[i].how == REPEAT_UNIFORM)
            assert_true(b.memory.slot_bytes < plain.memory.slot_bytes);
        bench_close(&b);
    }
    bench_close(&plain);
}

static void test_recompute(void **state) {
    (void)state;
    for (int v = 0; v < 3; v++) {
        struct config c = kit_config();
        c.language.hidden_dropout = c.language.attention_dropout = 0.1;
        c.vision.vision_feature_layer = v == 1 ? -1 : -2;
        c.vision.disable_vision_class_token = v != 2;
        c.projector.projector_type = v == 1 ? PROJECTOR_AFFINE : PROJECTOR_MLP;
        c.vision.freeze_vit = v == 2;
        struct stack s = kit_stack(&c);
        struct kit_batch batch = kit_batch_make(&s, mixed, COUNT(mixed), 28, 0, 0);
        for (int first = 0; first < s.n_layers; first++)
            if (first == 0 || stack_cut_allowed(&s, first)) check_recompute(&c, &batch, first);
        kit_batch_free(&batch);
        stack_free(&s);
    }
}

/* The factor of the head's gradient goes through everything; powers of two change no bit. */
static void test_loss_scale(void **state) {
    (void)state;
    struct config c = small_config();
    struct stack s = kit_stack(&c);
    struct kit_batch batch = kit_batch_make(&s, mixed, COUNT(mixed), 29, 0, 0);
    struct kit_layout l = layout_of(REPEAT_NOTHING, 0);
    struct bench b;
    bench_begin(&b, &c, &batch, 0, &l);
    double loss = bench_gradient(&b);
    int64_t n = b.st.params.grad_elements;
    double *g = xmalloc((size_t)n * sizeof *g), *now = b.st.params.grads;
    memcpy(g, now, (size_t)n * sizeof *g);
    b.scale = 0.25;
    assert_true(bench_gradient(&b) == loss);
    for (int64_t i = 0; i < n; i++) assert_true(now[i] == 0.25 * g[i]);
    free(g);
    bench_close(&b);
    kit_batch_free(&batch);
    stack_free(&s);
}

/* ---- memory ------------------------------------------------------------------------------------------- */

static size_t align_up(size_t n) {
    return (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

/* Runs `batch` in the memory planned for `largest`; are both used to the last byte? */
static void check_memory(const struct config *c, const struct kit_batch *batch,
                         const struct microbatch *largest, const struct kit_layout *l, bool exact) {
    struct bench b;
    struct kit_batch plan = *batch;
    plan.mb = *largest;
    bench_begin(&b, c, &plan, 0, l);
    b.batch = batch;
    bench_loss(&b); /* takes less of the slot and more of the scratch */
    bench_gradient(&b);
    assert_true(b.slot.arena.peak <= b.memory.slot_bytes);
    assert_true(b.scratch.peak <= b.memory.scratch_bytes);
    if (exact) {
        assert_int_equal(align_up(b.slot.arena.peak), b.memory.slot_bytes);
        assert_int_equal(align_up(b.scratch.peak), b.memory.scratch_bytes);
    }
    assert_int_equal(b.life.used, b.life.size);
    bench_close(&b);
}

static void test_memory(void **state) {
    (void)state;
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    struct kit_batch b[3] = {kit_batch_make(&s, mixed, COUNT(mixed), 30, 0, 0),
                             kit_batch_make(&s, text_only, COUNT(text_only), 30, 0, 1),
                             kit_batch_make(&s, no_target, COUNT(no_target), 30, 0, 2)};
    struct microbatch most = kit_largest(b, 3);
    for (int how = 0; how < 3; how++) {
        struct kit_layout l = layout_of((enum recompute)how, 2);
        for (int i = 0; i < 3; i++) {
            check_memory(&c, &b[i], &b[i].mb, &l, true);
            check_memory(&c, &b[i], &most, &l, i == 0);
        }
    }
    for (int i = 0; i < 3; i++) kit_batch_free(&b[i]);
    stack_free(&s);
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default),
        cmocka_unit_test(test_maps),
        cmocka_unit_test(test_feature_layer_last),
        cmocka_unit_test(test_projectors),
        cmocka_unit_test(test_language_variants),
        cmocka_unit_test(test_loss_options),
        cmocka_unit_test(test_large_vocabulary),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_micro_batches),
        cmocka_unit_test(test_inputs),
        cmocka_unit_test(test_no_target),
        cmocka_unit_test(test_no_image),
        cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_loss_scale),
        cmocka_unit_test(test_memory),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    comm_finalize();
    return failed;
}
