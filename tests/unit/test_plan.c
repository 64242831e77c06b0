/* The planner against figures known from elsewhere: parameter counts of CLIP and Mistral, closed
 * formulas of FLOPs, shapes and gradients at the cuts, automatic splits, bytes per parameter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "plan.h"

#define JOB "input/llava_mistral_7b.ini"
#define WITH_MAX 16

/* The Mistral job with overrides, ended by NULL, on `ranks` ranks. */
struct setup {
    struct config *cfg;
    struct stack stack;
};

static void load(struct setup *s, int64_t ranks, const char *const *with) {
    char *arg[WITH_MAX];
    int n = 0;
    for (; with != NULL && with[n] != NULL; n++) arg[n] = (char *)(uintptr_t)with[n];
    int rc = config_load(JOB, n, arg, &s->cfg);
    if (rc == 0) rc = config_check_world(s->cfg, ranks);
    if (rc == 0) rc = stack_build(s->cfg, &s->stack);
    if (rc != 0) error_print(stderr);
    assert_int_equal(rc, 0);
}

static void unload(struct setup *s) {
    stack_free(&s->stack);
    config_free(s->cfg);
}

#define LOAD(s, ranks, ...) load(s, ranks, (const char *const[]){__VA_ARGS__, NULL})
#define ONE_RANK                                                                                   \
    "parallel:tensor_model_parallel_size=1", "parallel:pipeline_model_parallel_size=1",            \
        "parallel:split_spec=auto"
#define FIVE_STAGES                                                                                \
    "parallel:tensor_model_parallel_size=1", "parallel:pipeline_model_parallel_size=5",            \
        "parallel:split_spec=auto"
#define TRAIN_ALL "vision:freeze_ViT=false"

static int64_t parameters(const struct stack *s, int first, int end, bool trainable) {
    struct stage st;
    int64_t n = 0;
    assert_int_equal(stage_build(s, first, end, 1, 0, REPEAT_NOTHING, 0, &st), 0);
    for (int i = 0; i < st.params.n; i++)
        if (!trainable || st.params.param[i].trainable)
            n += param_global_count(&st.params.param[i]);
    stage_free(&st);
    return n;
}

/* ---- parameters ------------------------------------------------------------------------------- */
static void test_parameter_counts(void **state) {
    (void)state;
    struct setup s;
    LOAD(&s, 1, ONE_RANK, TRAIN_ALL);
    assert_int_equal(s.stack.n_layers, 58);
    assert_int_equal(parameters(&s.stack, 30, 31, false), 218112000);
    assert_int_equal(parameters(&s.stack, 5, 6, false), 12596224);
    assert_int_equal(parameters(&s.stack, 0, 24, false), 303507456);
    assert_int_equal(parameters(&s.stack, 0, 24, true), 290909184); /* the last layer is not run */
    assert_int_equal(parameters(&s.stack, 24, 26, false), 20979712);
    assert_int_equal(parameters(&s.stack, 26, 58, false), 7241732096);
    assert_int_equal(s.stack.n_parameters, INT64_C(303507456) + 20979712 + 7241732096);
    assert_int_equal(s.stack.n_trainable, INT64_C(290909184) + 20979712 + 7241732096);
    unload(&s);
    LOAD(&s, 1, ONE_RANK, "language:vocab_size=32768", "projector:projector_hidden_size=14336",
         "projector:projector_bias=false");
    assert_int_equal(parameters(&s.stack, 26, 58, false), 7248023552);
    assert_int_equal(parameters(&s.stack, 24, 26, false), 73400320);
    assert_int_equal(s.stack.n_trainable, INT64_C(73400320) + 7248023552);
    unload(&s);
}

static void test_affine_has_57_layers(void **state) {
    (void)state;
    struct setup s;
    LOAD(&s, 1, ONE_RANK, "projector:projector_type=affine");
    assert_int_equal(s.stack.n_layers, 57);
    assert_int_equal(parameters(&s.stack, 24, 25, false), 4198400);
    assert_true(stack_cut_allowed(&s.stack, 24));
    assert_true(stack_cut_allowed(&s.stack, 25));
    unload(&s);
}

/* ---- FLOPs -------------------------------------------------------------------------------------- */
#define VISION_LAYER (2.0 * 12582912 * 577 + 4.0 * 577 * 577 * 1024)
#define PATCHES (2.0 * 576 * 588 * 1024)
#define PROJECTOR (2.0 * 576 * (1024 * 4096.0 + 4096 * 4096.0))
/* Causal attention sees S(S+1)/2 pairs: 2*4096*S^2 of the usual formula and the diagonal. */
#define LANGUAGE_PRODUCTS(S) (2.0 * 218103808 * (S))
#define LANGUAGE_ATTENTION(S) (2.0 * 4096 * (S) * ((S) + 1.0))
#define LANGUAGE_LAYER(S) (LANGUAGE_PRODUCTS(S) + LANGUAGE_ATTENTION(S))
#define HEAD(rows) (2.0 * 4096 * 32000 * (rows))

static struct layer_cost *costs(const struct setup *s, const struct microbatch *mb,
                                enum recompute how) {
    struct layer_cost *c = xcalloc((size_t)s->stack.n_layers, sizeof *c);
    assert_int_equal(plan_layer_costs(&s->stack, mb, how, c), 0);
    return c;
}

/* All are whole numbers below 2^53, so they are equal or wrong. The head's three products all run in
 * its forward. */
static void test_flops_of_trained_layers(void **state) {
    (void)state;
    struct setup s;
    double S = 2623;
    LOAD(&s, 1, ONE_RANK, TRAIN_ALL, "vision:vision_feature_layer=-1");
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 1, 1, 2623, 2623, 700);
    struct layer_cost *c = costs(&s, mb, REPEAT_NOTHING);
    assert_true(c[0].forward == PATCHES + VISION_LAYER);
    assert_true(c[0].backward == PATCHES + 2 * VISION_LAYER); /* nothing goes back to the pixels */
    for (int i = 1; i < 24; i++) {
        assert_true(c[i].forward == VISION_LAYER);
        assert_true(c[i].backward == 2 * VISION_LAYER);
    }
    assert_true(c[24].forward == PROJECTOR && c[24].backward == 2 * PROJECTOR);
    assert_true(c[25].forward == 0 && c[25].backward == 0);
    for (int i = 26; i < 57; i++) {
        assert_true(c[i].forward == LANGUAGE_LAYER(S));
        assert_true(c[i].backward == 2 * LANGUAGE_LAYER(S));
    }
    assert_true(c[57].forward == LANGUAGE_LAYER(S) + 3 * HEAD(700));
    assert_true(c[57].backward == 2 * LANGUAGE_LAYER(S));
    free(c);
    plan_microbatch_free(mb);
    unload(&s);
}

/* Several samples and images; attention knows their bounds. The 24th layer is an identity at -2. */
static void test_flops_of_several_samples(void **state) {
    (void)state;
    struct setup s;
    LOAD(&s, 1, ONE_RANK, TRAIN_ALL);
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 3, 4, 2500, 1000, 0);
    struct layer_cost *c = costs(&s, mb, REPEAT_NOTHING);
    assert_true(c[7].forward == 4 * VISION_LAYER);
    assert_true(c[23].forward == 0 && c[23].backward == 0);
    assert_true(c[24].forward == 4 * PROJECTOR);
    assert_true(c[30].forward == 2 * LANGUAGE_LAYER(1000.0) + LANGUAGE_LAYER(500.0));
    assert_true(c[57].forward == c[30].forward); /* no target, no head */
    free(c);
    plan_microbatch_free(mb);
    unload(&s);
}

static void test_flops_of_frozen_parts(void **state) {
    (void)state;
    struct setup s;
    double S = 600;
    LOAD(&s, 1, ONE_RANK, "language:freeze_LM=true");
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 1, 1, 600, 600, 24);
    struct layer_cost *c = costs(&s, mb, REPEAT_NOTHING);
    for (int i = 0; i < 24; i++) assert_true(c[i].backward == 0);
    assert_true(c[24].backward < 2 * PROJECTOR && c[24].backward > PROJECTOR); /* fc1 has no dx */
    assert_true(c[26].backward == LANGUAGE_PRODUCTS(S) + 2 * LANGUAGE_ATTENTION(S));
    assert_true(c[57].forward == LANGUAGE_LAYER(S) + 2 * HEAD(24));
    free(c);
    c = costs(&s, mb, REPEAT_UNIFORM);
    assert_true(c[5].backward == 0); /* nothing to repeat where there is no backward */
    assert_true(c[26].backward ==
                LANGUAGE_LAYER(S) + LANGUAGE_PRODUCTS(S) + 2 * LANGUAGE_ATTENTION(S));
    free(c);
    plan_microbatch_free(mb);
    unload(&s);
}

/* ---- cuts ------------------------------------------------------------------------------------------ */
static void check_cut(const struct setup *s, int cut, const struct microbatch *mb, const char *name,
                      int64_t rows, int64_t cols) {
    struct stream out[STREAMS_MAX];
    assert_int_equal(boundary_streams(&s->stack, cut, mb, 1, 0, DTYPE_BF16, out), 1);
    assert_string_equal(out[0].name, name);
    assert_int_equal(out[0].rows, rows);
    assert_int_equal(out[0].cols, cols);
    assert_int_equal(out[0].dtype, DTYPE_BF16);
}

static void test_boundary_shapes(void **state) {
    (void)state;
    struct setup s;
    LOAD(&s, 1, ONE_RANK);
    for (int64_t t = 0; t <= 3; t++) {
        struct microbatch *mb = plan_microbatch_sized(&s.stack, 2, t, 1900, 1000, 10);
        for (int c = 1; c < 24; c++) check_cut(&s, c, mb, "vision", 577 * t, 1024);
        check_cut(&s, 24, mb, "vision", 576 * t, 1024);
        assert_false(stack_cut_allowed(&s.stack, 25));
        check_cut(&s, 26, mb, "image", 576 * t, 4096);
        for (int c = 27; c < 58; c++) check_cut(&s, c, mb, "hidden", 1900, 4096);
        plan_microbatch_free(mb);
    }
    assert_false(stack_cut_allowed(&s.stack, 0));
    assert_false(stack_cut_allowed(&s.stack, 58));
    unload(&s);
    LOAD(&s, 1, ONE_RANK, "projector:projector_type=affine",
         "vision:disable_vision_class_token=false");
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 1, 2, 1900, 1900, 10);
    check_cut(&s, 24, mb, "vision", 577 * 2, 1024);
    check_cut(&s, 25, mb, "image", 577 * 2, 4096);
    check_cut(&s, 26, mb, "hidden", 1900, 4096);
    plan_microbatch_free(mb);
    unload(&s);
}

/* The table of frozen parts: the first cut that a gradient crosses, and which of the stages
 * 10,14,2,16,16 have no backward. */
static const struct freezing {
    const char *vision, *projector, *language;
    int first_cut, without_backward; /* stages, from 0 on */
} freezing[] = {{"vision:freeze_ViT=false", "projector:freeze_vision_projection=false",
                 "language:freeze_LM=false", 1, 0},
                {"vision:freeze_ViT=true", "projector:freeze_vision_projection=false",
                 "language:freeze_LM=false", 26, 2},
                {"vision:freeze_ViT=true", "projector:freeze_vision_projection=false",
                 "language:freeze_LM=true", 26, 2},
                {"vision:freeze_ViT=true", "projector:freeze_vision_projection=true",
                 "language:freeze_LM=false", 27, 3},
                {"vision:freeze_ViT=false", "projector:freeze_vision_projection=false",
                 "language:freeze_LM=true", 1, 0}};

static void check_flow(const struct setup *s, const struct freezing *f) {
    const int64_t split[] = {10, 14, 2, 16, 16};
    struct plan_layout l;
    struct stage_plan stage[5];
    struct step_plan step;
    struct microbatch *mb = plan_microbatch_worst(&s->stack, 1, 1000);
    plan_layout_from_config(s->cfg, split, &l);
    assert_int_equal(plan_step(&s->stack, &l, mb, stage, &step), 0);
    for (int r = 0; r < 5; r++) {
        bool backward = r >= f->without_backward;
        assert_int_equal(stage[r].flow.backward, backward);
        assert_int_equal(stage[r].cost.backward > 0, backward);
        assert_int_equal(stage[r].flow.gradient_in, r > 0 && stage[r].first >= f->first_cut);
        assert_int_equal(stage[r].flow.gradient_out, r < 4 && stage[r].end >= f->first_cut);
        if (backward) assert_int_equal(stage[r].in_flight, 5 - r);
    }
    plan_microbatch_free(mb);
}

static void test_gradient_flow(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof freezing / sizeof *freezing; i++) {
        const struct freezing *f = &freezing[i];
        struct setup s;
        LOAD(&s, 5, FIVE_STAGES, f->vision, f->projector, f->language);
        struct microbatch *mb = plan_microbatch_worst(&s.stack, 1, 1000);
        for (int c = 1; c < 58; c++) {
            struct stream out[STREAMS_MAX];
            if (!stack_cut_allowed(&s.stack, c)) continue;
            boundary_streams(&s.stack, c, mb, 1, 0, DTYPE_F32, out);
            assert_int_equal(out[0].gradient, c >= f->first_cut);
        }
        plan_microbatch_free(mb);
        check_flow(&s, f);
        unload(&s);
    }
}

static void test_nothing_to_train(void **state) {
    (void)state;
    char *all[] = {(char *)(uintptr_t) "vision:freeze_ViT=true",
                   (char *)(uintptr_t) "projector:freeze_vision_projection=true",
                   (char *)(uintptr_t) "language:freeze_LM=true"};
    struct config *cfg = NULL;
    struct stack stack = {0};
    int rc = config_load(JOB, 3, all, &cfg);
    if (rc == 0) rc = stack_build(cfg, &stack);
    assert_int_equal(rc, EXIT_USAGE);
    assert_non_null(strstr(error_text(), "left to train"));
    error_clear();
    stack_free(&stack);
    config_free(cfg);
}

/* ---- splits -------------------------------------------------------------------------------------------- */
/* Slowest stage in units of one language layer (forward and backward). */
static double slowest(const struct setup *s, const struct microbatch *mb, int P,
                      const int64_t *split, double *units) {
    struct layer_cost *c = costs(s, mb, REPEAT_NOTHING);
    double layer = c[30].forward + c[30].backward, most = 0;
    for (int r = 0, i = 0; r < P; r++) {
        double sum = 0;
        for (int64_t k = 0; k < split[r]; k++, i++) sum += c[i].forward + c[i].backward;
        if (units != NULL) units[r] = sum / layer;
        if (sum / layer > most) most = sum / layer;
    }
    free(c);
    return most;
}

static void test_auto_split_is_optimal(void **state) {
    (void)state;
    const int64_t by_hand[] = {32, 6, 7, 7, 6}, encoder_alone[] = {26, 8, 8, 8, 8};
    const int64_t coverage[] = {10, 14, 2, 16, 16};
    const double known[] = {6.39, 6, 7, 7, 6.59};
    int64_t split[5];
    double units[5];
    struct setup s;
    LOAD(&s, 5, FIVE_STAGES, TRAIN_ALL, "language:vocab_size=32768",
         "vision:vision_feature_layer=-1", "projector:projector_hidden_size=14336",
         "projector:projector_bias=false");
    /* known with the head on all rows */
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 1, 1, 2623, 2623, 2623);
    assert_int_equal(plan_split(&s.stack, mb, REPEAT_NOTHING, 5, split), 0);
    double best = slowest(&s, mb, 5, split, NULL);
    assert_true(best > 6.99 && best < 7.0001);
    assert_true(slowest(&s, mb, 5, by_hand, units) < 7.0001);
    for (int r = 0; r < 5; r++)
        assert_true(units[r] > known[r] - 0.02 && units[r] < known[r] + 0.02);
    double alone = slowest(&s, mb, 5, encoder_alone, NULL);
    assert_true(alone > 8.57 && alone < 8.61);
    double covers = slowest(&s, mb, 5, coverage, NULL);
    assert_true(covers > 16.5 && covers < 16.7);
    plan_microbatch_free(mb);
    unload(&s);
}

static void test_split_of_four_stages(void **state) {
    (void)state;
    const int64_t split[] = {33, 9, 8, 8};
    const double tflop[] = {2.24, 2.38, 2.12, 2.27};
    struct setup s;
    struct plan_layout l;
    struct stage_plan stage[4];
    struct step_plan step;
    LOAD(&s, 8, TRAIN_ALL);
    struct microbatch *mb = plan_microbatch_sized(&s.stack, 1, 1, 600, 600, 600);
    plan_layout_from_config(s.cfg, split, &l);
    l.recompute = REPEAT_NOTHING;
    assert_int_equal(plan_step(&s.stack, &l, mb, stage, &step), 0);
    for (int r = 0; r < 4; r++) {
        double third = (stage[r].cost.forward + stage[r].cost.backward) / 3e12;
        assert_true(third > tflop[r] - 0.01 && third < tflop[r] + 0.01);
    }
    assert_true(step.imbalance > 1.05 && step.imbalance < 1.06); /* 2.38 over their mean */
    int64_t sum = 0;
    for (int r = 0; r < 4; r++) sum += stage[r].parameters;
    assert_int_equal(sum, s.stack.n_parameters);
    plan_microbatch_free(mb);
    unload(&s);
}

/* Five stages for everything that may be frozen, short and long, never like the coverage example. */
static void test_auto_avoids_the_coverage_example(void **state) {
    (void)state;
    const int64_t coverage[] = {10, 14, 2, 16, 16}, length[] = {600, 1023, 2623, 9535};
    for (size_t i = 0; i < sizeof freezing / sizeof *freezing; i++)
        for (size_t k = 0; k < sizeof length / sizeof *length; k++) {
            struct setup s;
            int64_t split[5];
            LOAD(&s, 5, FIVE_STAGES, freezing[i].vision, freezing[i].projector,
                 freezing[i].language);
            int64_t tiles = k == 3 ? 13 : 1;
            struct microbatch *mb =
                plan_microbatch_sized(&s.stack, 1, tiles, length[k], length[k], length[k] / 5);
            assert_int_equal(plan_split(&s.stack, mb, REPEAT_UNIFORM, 5, split), 0);
            assert_true(memcmp(split, coverage, sizeof split) != 0);
            assert_true(slowest(&s, mb, 5, split, NULL) <= slowest(&s, mb, 5, coverage, NULL));
            plan_microbatch_free(mb);
            unload(&s);
        }
}

static void test_one_stage_has_no_bubble(void **state) {
    (void)state;
    struct setup s;
    struct plan_layout l;
    struct stage_plan stage;
    struct step_plan step;
    const int64_t split[] = {58};
    LOAD(&s, 1, ONE_RANK);
    struct microbatch *mb = plan_microbatch_worst(&s.stack, 1, 1000);
    plan_layout_from_config(s.cfg, split, &l);
    assert_int_equal(plan_step(&s.stack, &l, mb, &stage, &step), 0);
    assert_true(step.makespan == 128 * (stage.cost.forward + stage.cost.backward));
    assert_true(step.bubble == 0 && step.imbalance == 1 && stage.idle == 0);
    plan_microbatch_free(mb);
    unload(&s);
}

/* ---- bytes ------------------------------------------------------------------------------------------------ */
static bool about(size_t bytes, double expected) { /* the flat buffers are aligned per tensor */
    return (double)bytes >= expected && (double)bytes <= expected * 1.0001 + 65536;
}

static void plan_one(struct setup *s, int64_t tp, int64_t dp, struct rank_plan *out) {
    const int64_t split[] = {58};
    struct plan_layout l;
    struct microbatch *mb = plan_microbatch_worst(&s->stack, 1, 1000);
    plan_layout_from_config(s->cfg, split, &l);
    assert_int_equal(l.tp, tp);
    assert_int_equal(l.dp, dp);
    assert_int_equal(plan_rank(&s->stack, &l, 0, 0, (int)dp - 1, mb, out), 0);
    plan_microbatch_free(mb);
}

static void test_bytes_per_parameter(void **state) {
    (void)state;
    struct setup s;
    struct rank_plan p;
    LOAD(&s, 1, ONE_RANK, "parallel:use_distributed_optimizer=false");
    double all = (double)s.stack.n_parameters, trained = (double)s.stack.n_trainable;
    plan_one(&s, 1, 1, &p);
    assert_true(about(p.weights, 2 * all)); /* bf16: 2 + 4 + 12 */
    assert_true(about(p.gradients, 4 * trained));
    assert_true(about(p.optimizer, 12 * trained));
    unload(&s);
    LOAD(&s, 4, ONE_RANK);
    plan_one(&s, 1, 4, &p);
    assert_true(about(p.optimizer, 12 * trained / 4));
    unload(&s);
    LOAD(&s, 1, ONE_RANK, "training:bf16=false", "parallel:use_distributed_optimizer=false");
    plan_one(&s, 1, 1, &p);
    assert_true(about(p.weights, 4 * all)); /* fp32: 4 + 4 + 8 */
    assert_true(about(p.gradients, 4 * trained));
    assert_true(about(p.optimizer, 8 * trained));
    unload(&s);
    LOAD(&s, 1, ONE_RANK, "optimizer:optimizer=sgd", "parallel:use_distributed_optimizer=false");
    plan_one(&s, 1, 1, &p);
    assert_true(about(p.optimizer, 8 * trained)); /* master, momentum */
    unload(&s);
}

/* A frozen tower saves nothing: the activations of a stage inside it are its input and output. */
static void test_frozen_stages_save_nothing(void **state) {
    (void)state;
    const int64_t split[] = {10, 14, 2, 16, 16};
    struct setup frozen, trained;
    struct plan_layout l;
    struct rank_plan a, b;
    LOAD(&frozen, 5, FIVE_STAGES);
    LOAD(&trained, 5, FIVE_STAGES, TRAIN_ALL);
    struct microbatch *mb = plan_microbatch_worst(&frozen.stack, 1, 1000);
    plan_layout_from_config(frozen.cfg, split, &l);
    l.recompute = REPEAT_NOTHING;
    assert_int_equal(plan_rank(&frozen.stack, &l, 0, 1, 0, mb, &a), 0);
    plan_layout_from_config(trained.cfg, split, &l);
    l.recompute = REPEAT_NOTHING;
    assert_int_equal(plan_rank(&trained.stack, &l, 0, 1, 0, mb, &b), 0);
    assert_int_equal(a.gradients, 0);
    assert_int_equal(a.optimizer, 0);
    assert_int_equal(a.pipeline.n_grad_send + a.pipeline.n_grad_recv, 0);
    assert_true(a.activations < b.activations / 10);
    assert_true(b.gradients > 0 && b.pipeline.n_grad_send > 0);
    plan_microbatch_free(mb);
    unload(&frozen);
    unload(&trained);
}

/* ---- all ranks at once -------------------------------------------------------------------------- */
static void same_plan(const struct rank_plan *a, const struct rank_plan *b) {
    const struct pipeline_memory *p = &a->pipeline, *q = &b->pipeline;
    assert_true(a->tp == b->tp && a->pp == b->pp && a->dp == b->dp);
    assert_true(a->first == b->first && a->end == b->end);
    assert_true(a->parameters == b->parameters && a->trainable == b->trainable);
    assert_int_equal(a->weights, b->weights);
    assert_int_equal(a->gradients, b->gradients);
    assert_int_equal(a->tables, b->tables);
    assert_int_equal(a->optimizer, b->optimizer);
    assert_int_equal(a->activations, b->activations);
    assert_int_equal(a->messages, b->messages);
    assert_int_equal(a->scratch, b->scratch);
    assert_int_equal(a->workspace, b->workspace);
    assert_int_equal(a->snapshot, b->snapshot);
    for (int g = 0; g < GROUP_COUNT; g++)
        assert_int_equal(a->group_workspace[g], b->group_workspace[g]);
    assert_true(p->forward_flops == q->forward_flops && p->backward_flops == q->backward_flops);
}

static void all_ranks_are_planned_as_each(int variant, int64_t tp, int64_t pp, int64_t dp) {
    struct setup s;
    char t[64], p[64];
    snprintf(t, sizeof t, "parallel:tensor_model_parallel_size=%d", (int)tp);
    snprintf(p, sizeof p, "parallel:pipeline_model_parallel_size=%d", (int)pp);
    LOAD(&s, tp * pp * dp, t, p, "parallel:split_spec=auto", "training:global_batch_size=630",
         variant & 1 ? "parallel:use_distributed_optimizer=true"
                     : "parallel:use_distributed_optimizer=false",
         variant & 2 ? "checkpoint:async_save=true" : "checkpoint:async_save=false",
         variant & 4 ? "parallel:use_tp_pp_dp_mapping=true" : "parallel:use_tp_pp_dp_mapping=false",
         variant & 1 ? "vision:freeze_ViT=false" : "vision:freeze_ViT=true");
    struct microbatch *mb = plan_microbatch_worst(&s.stack, 1, 640);
    int64_t *split = xcalloc((size_t)pp, sizeof *split);
    int n = (int)(tp * pp * dp), *writer = xcalloc((size_t)n, sizeof *writer);
    assert_int_equal(plan_split(&s.stack, mb, REPEAT_NOTHING, (int)pp, split), 0);
    struct plan_layout l;
    plan_layout_from_config(s.cfg, split, &l);
    for (int i = 0; i < n; i++) writer[i] = i / 4 * 4;
    if (variant & 8) l.writer = writer;
    struct rank_plan *all = xcalloc((size_t)n, sizeof *all), one;
    assert_int_equal(plan_ranks(&s.stack, &l, mb, all), 0);
    for (int r = 0; r < n; r++) {
        assert_int_equal(plan_rank(&s.stack, &l, all[r].tp, all[r].pp, all[r].dp, mb, &one), 0);
        same_plan(&all[r], &one);
    }
    free(all);
    free(writer);
    free(split);
    plan_microbatch_free(mb);
    unload(&s);
}

static void test_all_ranks_as_each(void **state) {
    (void)state;
    for (int variant = 0; variant < 16; variant++) {
        all_ranks_are_planned_as_each(variant, 2, 3, 7);
        all_ranks_are_planned_as_each(variant, 1, 2, 5);
    }
    all_ranks_are_planned_as_each(3, 8, 1, 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parameter_counts),
        cmocka_unit_test(test_affine_has_57_layers),
        cmocka_unit_test(test_flops_of_trained_layers),
        cmocka_unit_test(test_flops_of_several_samples),
        cmocka_unit_test(test_flops_of_frozen_parts),
        cmocka_unit_test(test_boundary_shapes),
        cmocka_unit_test(test_gradient_flow),
        cmocka_unit_test(test_nothing_to_train),
        cmocka_unit_test(test_auto_split_is_optimal),
        cmocka_unit_test(test_split_of_four_stages),
        cmocka_unit_test(test_auto_avoids_the_coverage_example),
        cmocka_unit_test(test_all_ranks_as_each),
        cmocka_unit_test(test_one_stage_has_no_bubble),
        cmocka_unit_test(test_bytes_per_parameter),
        cmocka_unit_test(test_frozen_stages_save_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
