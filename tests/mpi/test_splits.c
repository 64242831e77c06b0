/* ranks: 1 2 3 4 */
/* timeout: 300 */
/* Every split_spec of the 3 + 2 + 4 stack into as many stages as there are ranks (64 with up to 4):
 * three steps of training, bit-identical to one stage. Text-only micro-batches, several images and
 * cut images are mixed in; nothing frozen, recompute, frozen parts. */
#include "model_kit.h"
#include "verdict.h"

#define STEPS 3
#define BATCHES 3
#define SAMPLES 2

static const struct kit_sample samples[BATCHES][SAMPLES] = {
    {{.length = 6, .images = 1, .at = {1}, .first_target = 2}, {.length = 9, .first_target = 3}},
    {{.length = 5, .first_target = 1}, {.length = 3, .first_target = 0}},
    {{.length = 12, .images = 2, .at = {0, 6}, .first_target = 2},
     {.length = 25, .images = 1, .at = {22}, .first_target = KIT_NO_TARGET}}};

struct trained { /* what a run leaves */
    double loss[STEPS];
    int n;
    size_t bytes;
    char *weights; /* whole stack, one tensor behind the other */
    size_t *offset;
};

static void update(struct kit_rank *k, void *momentum) {
    for (int i = 0; i < k->st.params.n; i++) {
        const struct param *q = &k->st.params.param[i];
        if (!q->trainable) continue;
        size_t at = (size_t)q->grad_offset * dtype_size(k->be->acc);
        k->be->ops->sgd_step(k->be, 0.02, 0.5, 0.01, 0.1, param_local_count(q), q->w.data,
                             q->w.data, q->g.data, (char *)momentum + at);
    }
}

static double run_step(struct kit_rank *k, const struct kit_batch *b, int64_t step) {
    double loss[BATCHES] = {0}, sum = 0;
    int64_t rows[BATCHES];
    struct kit_source source = {b, &k->st, 1.0};
    struct microbatch_source ms = kit_source(&source);
    struct pipeline_result result = {loss, rows, NULL};
    kit_zero_gradients(k);
    if (pipeline_run(k->pl, &ms, step, true, &result) != 0) error_exit();
    for (int i = 0; i < BATCHES; i++) sum += loss[i];
    return sum;
}

static void train(struct kit_rank *k, const struct kit_batch *b, double loss[STEPS]) {
    void *momentum = xcalloc((size_t)k->st.params.grad_elements + 1, dtype_size(k->be->acc));
    for (int step = 0; step < STEPS; step++) {
        loss[step] = run_step(k, b + step * BATCHES, step);
        update(k, momentum);
    }
    free(momentum);
}

static struct kit_layout layout_of(const int *split, int P, enum recompute how) {
    struct kit_layout l = {
        .P = P,
        .recompute = how,
        .recompute_layers = 1,
        .dtype = DTYPE_F32,
        .settings = {.micro_batches = BATCHES, .overlap_p2p = true, .run_key = rng_run_key(3)}};
    memcpy(l.split, split, (size_t)P * sizeof *split);
    return l;
}

/* On every rank, with a grid whose pipeline has one stage. */
static void train_whole(const struct stack *s, const struct kit_batch *b, struct trained *t) {
    struct grid *grid;
    struct kit_rank k;
    struct kit_layout l = layout_of(&s->n_layers, 1, REPEAT_NOTHING);
    struct microbatch most = kit_largest(b, STEPS * BATCHES);
    if (grid_create(1, 1, false, 2, &grid) != 0) error_exit();
    kit_rank_begin(&k, s, grid, &l, &most);
    train(&k, b, t->loss);
    t->n = k.st.params.n;
    t->offset = xcalloc((size_t)t->n + 1, sizeof *t->offset);
    for (int i = 0; i < t->n; i++)
        t->offset[i + 1] = t->offset[i] + tensor_bytes(&k.st.params.param[i].w);
    t->weights = xmalloc(t->offset[t->n]);
    for (int i = 0; i < t->n; i++)
        memcpy(t->weights + t->offset[i], k.st.params.param[i].w.data,
               t->offset[i + 1] - t->offset[i]);
    kit_rank_end(&k);
    grid_destroy(grid);
    backend_destroy(k.be);
}

static bool same_weights(const struct kit_rank *k, const struct trained *t) {
    int first = k->st.stack->first_param[k->st.first];
    for (int i = 0; i < k->st.params.n; i++) {
        size_t at = t->offset[first + i], bytes = t->offset[first + i + 1] - at;
        if (memcmp(k->st.params.param[i].w.data, t->weights + at, bytes) == 0) continue;
        printf("# rank %d: %s differs\n", comm_world_rank(), k->st.params.param[i].name);
        return false;
    }
    return true;
}

static void test_split(const struct stack *s, const struct kit_batch *b, const int *split, int P,
                       enum recompute how, const struct trained *t, const char *what) {
    struct grid *grid;
    struct kit_rank k;
    struct kit_layout l = layout_of(split, P, how);
    struct microbatch most = kit_largest(b, STEPS * BATCHES);
    double loss[STEPS];
    if (grid_create(1, P, false, 2, &grid) != 0) error_exit();
    kit_rank_begin(&k, s, grid, &l, &most);
    train(&k, b, loss);
    bool good = same_weights(&k, t);
    if (k.st.end == s->n_layers) good = good && memcmp(loss, t->loss, sizeof loss) == 0;
    char name[160];
    int n = snprintf(name, sizeof name, "%s, split", what);
    for (int i = 0; i < P; i++)
        n += snprintf(name + n, sizeof name - (size_t)n, "%c%d", i ? ',' : ' ', split[i]);
    verdict(grid, good, "%s", name);
    kit_rank_end(&k);
    grid_destroy(grid);
    backend_destroy(k.be);
}

/* All ways to put P - 1 cuts into the legal places, as bits of a mask. */
static int test_all(const struct config *c, enum recompute how, const char *what) {
    struct stack s = kit_stack(c);
    struct trained t;
    int P = comm_world_size(), n = 0;
    struct kit_batch b[STEPS * BATCHES];
    for (int i = 0; i < STEPS * BATCHES; i++) {
        int step = i / BATCHES, k = i % BATCHES;
        b[i] = kit_batch_make(&s, samples[(k + step) % BATCHES], SAMPLES, 5, step, k);
    }
    train_whole(&s, b, &t);
    for (int mask = 0; mask < 1 << (s.n_layers - 1); mask++) {
        int split[KIT_STAGES], stages = 0, at = 0;
        bool legal = __builtin_popcount((unsigned)mask) == P - 1;
        for (int cut = 1; cut < s.n_layers && legal; cut++)
            if (mask >> (cut - 1) & 1) {
                legal = stack_cut_allowed(&s, cut);
                split[stages++] = cut - at;
                at = cut;
            }
        if (!legal) continue;
        split[stages] = s.n_layers - at;
        test_split(&s, b, split, P, how, &t, what);
        n++;
    }
    for (int i = 0; i < STEPS * BATCHES; i++) kit_batch_free(&b[i]);
    free(t.weights);
    free(t.offset);
    stack_free(&s);
    return n;
}

/* ---- planted disagreements (tests/cli/wrong_header.sh) ------------------------------------------- */

struct liar {
    struct kit_source source;
    struct microbatch wrong;
    int calls, from; /* the descriptor is the wrong one from that call on */
};

static const struct microbatch *liar_descriptor(void *arg, int k) {
    struct liar *l = arg;
    return l->calls++ < l->from ? &l->source.batch[k].mb : &l->wrong;
}

/* One step on two stages that differ in what they believe about the micro-batch. */
static void disagree(const char *what) {
    struct config c = kit_config();
    struct stack s = kit_stack(&c);
    struct kit_batch b = kit_batch_make(&s, samples[0], SAMPLES, 5, 0, 0);
    struct kit_layout l = layout_of((int[]){6, 3}, 2, REPEAT_NOTHING);
    struct grid *grid;
    struct kit_rank k;
    double loss[1];
    int64_t rows[1];
    if (grid_create(1, 2, false, 0.1, &grid) != 0) error_exit();
    l.settings.micro_batches = 1;
    l.settings.overlap_p2p = false;
    kit_rank_begin(&k, &s, grid, &l, &b.mb);
    struct liar liar = {.source = {&b, &k.st, 1.0}, .wrong = b.mb, .from = 1 << 30};
    struct microbatch_source ms = kit_source(&liar.source);
    ms.descriptor = liar_descriptor;
    bool gradient = strcmp(what, "gradient") == 0;
    if (comm_world_rank() == (gradient ? 0 : 1)) liar.from = gradient ? 2 : 0;
    if (strcmp(what, "rows") == 0)
        liar.wrong.tokens--;
    else if (strcmp(what, "step") == 0)
        liar.wrong.step++;
    else
        liar.wrong.hash++;
    if (pipeline_run(k.pl, &ms, 0, true, &(struct pipeline_result){loss, rows, NULL}) != 0)
        error_exit();
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    if (argc > 1) {
        disagree(argv[1]);
        comm_finalize(); /* waits for the other, which ends the job */
        return 0;
    }
    struct config c = kit_config();
    c.language.hidden_dropout = c.language.attention_dropout = 0.1;
    int n = test_all(&c, REPEAT_NOTHING, "nothing frozen");
    static const int expected[5] = {0, 1, 7, 21, 35};
    CHECK(n == expected[comm_world_size()], "%d split_specs", n);
    test_all(&c, REPEAT_UNIFORM, "full recompute");
    c.vision.vision_feature_layer = -1;
    test_all(&c, REPEAT_NOTHING, "feature layer -1");
    c.vision.freeze_vit = true;
    test_all(&c, REPEAT_NOTHING, "vision frozen");
    c.language.freeze_lm = true;
    test_all(&c, REPEAT_BLOCK, "projector alone, recompute");
    comm_finalize();
    return test_failures != 0;
}
