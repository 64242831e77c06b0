/* One update over tp, pp and dp: the serial reference, bits of sharded against whole states, equal
 * replicas, the norm counted once, shards, planned workspace, a non-finite gradient on one rank. */
/* ranks: 1 2 3 4 6 8 */
#include "optim_case.h"
#include "verdict.h"

struct layout {
    int T, P, D;
    bool mapping;
};

struct fixture {
    struct layout at;
    struct grid *grid;
    struct backend *be;
    const char *dtype;
};

static void tell(const struct fixture *f, bool good, const char *what) {
    verdict(f->grid, good, "T%d P%d D%d%s %s: %s", f->at.T, f->at.P, f->at.D,
            f->at.mapping ? " tp-pp-dp" : "", f->dtype, what);
}

/* Stage s of P holds parameters first..end-1; a fused one stays with its predecessor. */
static void stage_range(int P, int s, int *first, int *end) {
    static const int cut2[3] = {0, 5, CASE_PARAMS}, cut3[4] = {0, 2, 6, CASE_PARAMS};
    const int whole[2] = {0, CASE_PARAMS};
    const int *cut = P == 1 ? whole : P == 2 ? cut2 : cut3;
    *first = cut[s];
    *end = cut[s + 1];
}

/* Runs the step over measuring groups first and reserves what it asked for. */
static void reserve_workspace(const struct fixture *f, const struct optim_settings *s, int first,
                              int end) {
    int tp = group_rank(grid_group(f->grid, GROUP_TP)), pp, dp;
    pp = group_rank(grid_group(f->grid, GROUP_PP));
    dp = group_rank(grid_group(f->grid, GROUP_DP));
    struct optim_case c = {.be = backend_create_measuring(f->be->dtype)};
    struct grid *plan = grid_create_measuring(f->at.T, f->at.P, f->at.D, f->at.mapping, tp, pp, dp);
    c.grid = plan;
    case_declare(&c, first, end, f->at.T, tp);
    case_plan(&c, s);
    struct arena arena;
    struct optim_result got;
    struct optim_input in = case_input(0);
    arena_init_measuring(&arena, "plan");
    case_layout(&c, c.be, &arena);
    CHECK(optim_step(c.optim, &in, &got) == 0, "%s", error_text());
    for (int id = 0; id < GROUP_COUNT; id++)
        group_reserve(grid_group(f->grid, id), f->be, group_workspace_needed(grid_group(plan, id)));
    optim_destroy(c.optim);
    param_set_free(&c.set);
    grid_destroy(plan);
    backend_destroy(c.be);
}

static void rank_create(const struct fixture *f, const struct optim_settings *s,
                        struct optim_case *c) {
    int first, end;
    stage_range(f->at.P, group_rank(grid_group(f->grid, GROUP_PP)), &first, &end);
    reserve_workspace(f, s, first, end);
    case_create(c, s, f->be, f->grid, first, end);
}

static bool near_to(double got, double want, double relative) {
    bool good = fabs(got - want) <= relative * fabs(want);
    if (!good) fprintf(stderr, "rank %d: %.17g, not %.17g\n", comm_world_rank(), got, want);
    return good;
}

/* CASE_STEPS updates against the serial reference; weights are returned, free() them. */
static void *run_steps(const struct fixture *f, const struct optim_settings *s, bool *good,
                       size_t *bytes) {
    struct optim_case c;
    struct reference ref;
    struct optim_result got;
    bool fp64 = f->be->dtype == DTYPE_F64;
    rank_create(f, s, &c);
    reference_create(&ref);
    for (int step = 0; step < CASE_STEPS; step++) {
        struct optim_input in = case_input(step);
        case_fill_gradients(&c, step);
        *good = *good && optim_step(c.optim, &in, &got) == 0 && got.finite;
        reference_step(&ref, s, &in, step, f->at.T, f->at.D);
        *good = near_to(got.grad_norm, ref.norm, fp64 ? 1e-13 : 1e-6) && *good;
        *good = near_to(got.clip_factor, ref.clip, fp64 ? 1e-13 : 1e-6) && *good;
        *good = case_difference(&c, &ref) <= (fp64 ? 1e-13 : 2e-5) && *good;
    }
    void *weights = case_weights(&c, bytes);
    reference_destroy(&ref);
    case_destroy(&c);
    return weights;
}

/* Sharded and whole states: the reference, and without clipping each other's bits. */
static void test_sharded_is_whole(const struct fixture *f, enum optim_kind kind, double clip) {
    struct optim_settings s = case_settings(kind);
    s.clip_grad = clip;
    bool good = true, same;
    size_t bytes;
    void *whole = run_steps(f, &s, &good, &bytes);
    s.distributed = true;
    void *sharded = run_steps(f, &s, &good, &bytes);
    same = memcmp(whole, sharded, bytes) == 0;
    free(whole);
    free(sharded);
    char what[100];
    snprintf(what, sizeof what, "%s%s is the reference", kind == OPTIM_ADAM ? "AdamW" : "SGD",
             clip > 0 ? " with clipping" : "");
    tell(f, good, what);
    if (clip == 0) tell(f, same, "sharded states give the bits of whole ones");
}

/* All members of the group hold the same bytes? */
static bool equal_over(const struct group *g, const void *data, size_t bytes) {
    uint32_t mine = crc32c(0, data, bytes), *all = xcalloc((size_t)group_size(g), sizeof *all);
    comm_gather(g, &mine, sizeof mine, all);
    bool same = true;
    for (int r = 0; r < group_size(g); r++) same = same && all[r] == mine;
    free(all);
    return same;
}

static void test_replicas_stay_equal(const struct fixture *f) {
    struct optim_settings s = case_settings(OPTIM_ADAM);
    s.distributed = true;
    s.clip_grad = 0.5;
    struct optim_case c;
    struct optim_result got;
    rank_create(f, &s, &c);
    for (int step = 0; step < CASE_STEPS; step++) {
        struct optim_input in = case_input(step);
        case_fill_gradients(&c, step);
        CHECK(optim_step(c.optim, &in, &got) == 0, "%s", error_text());
    }
    size_t bytes;
    char *w = case_weights(&c, &bytes);
    bool good = equal_over(grid_group(f->grid, GROUP_DP), w, bytes);
    for (int i = 0; i < c.set.n; i++) {
        const struct param *p = &c.set.param[i];
        size_t size = dtype_size(f->be->dtype);
        if (p->cut.axis < 0)
            good = equal_over(grid_group(f->grid, GROUP_TP), w + (size_t)p->offset * size,
                              tensor_bytes(&p->w)) &&
                   good;
    }
    free(w);
    case_destroy(&c);
    tell(f, good, "replicas over dp and tp hold the same bits");
}

/* Shards cover every trainable element once and differ by one element of storage at most. */
static void test_shards_cover(const struct fixture *f) {
    struct optim_settings s = case_settings(OPTIM_ADAM);
    s.distributed = true;
    struct optim_case c;
    rank_create(f, &s, &c);
    const struct group *dp = grid_group(f->grid, GROUP_DP);
    int64_t n, elements = c.set.grad_elements;
    const struct state_piece *piece = optim_pieces(c.optim, &n);
    int64_t *held = xcalloc((size_t)elements + 1, sizeof *held);
    bool good = true;
    for (int64_t i = 0; i < n; i++) {
        const struct param *p = &c.set.param[piece[i].param];
        int64_t at = p->grad_offset + piece[i].first;
        good =
            good && piece[i].count > 0 && piece[i].first + piece[i].count <= param_local_count(p);
        for (int64_t k = 0; k < piece[i].count; k++) held[at + k]++;
    }
    comm_allreduce_i64(dp, held, elements, REDUCE_SUM);
    int64_t first, count;
    rows_share(elements, group_size(dp), group_rank(dp), &first, &count);
    for (int i = 0; i < c.set.n; i++) {
        const struct param *p = &c.set.param[i];
        for (int64_t k = 0; k < param_local_count(p) && p->trainable; k++)
            good = good && held[p->grad_offset + k] == 1;
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t at = c.set.param[piece[i].param].grad_offset + piece[i].first;
        good = good && at >= first && at + piece[i].count <= first + count;
    }
    free(held);
    case_destroy(&c);
    tell(f, good, "shards cover every trainable element once");
}

/* One bad element on one rank stops the update everywhere. */
static void test_non_finite(const struct fixture *f, bool distributed, int culprit, double value) {
    struct optim_settings s = case_settings(OPTIM_ADAM);
    s.distributed = distributed;
    s.clip_grad = 1;
    struct optim_case c;
    struct optim_result got;
    struct optim_input in = case_input(0);
    rank_create(f, &s, &c);
    case_fill_gradients(&c, 0);
    int last = c.set.n - 1;
    CHECK(c.set.param[last].trainable, "the last parameter of a stage is trainable here");
    if (comm_world_rank() == culprit) {
        char one[8];
        case_store(one, 0, f->be->acc, value);
        f->be->ops->upload(f->be, c.set.param[last].g.data, one, dtype_size(f->be->acc));
    }
    size_t bytes;
    void *before = case_weights(&c, &bytes);
    CHECK(optim_step(c.optim, &in, &got) == 0, "%s", error_text());
    void *after = case_weights(&c, &bytes);
    bool good = !got.finite && !isfinite(got.grad_norm) && memcmp(before, after, bytes) == 0 &&
                optim_updates(c.optim) == 0;
    free(before);
    free(after);
    case_destroy(&c);
    char what[100];
    snprintf(what, sizeof what, "%g on rank %d stops the update%s", value, culprit,
             distributed ? " of sharded states" : "");
    tell(f, good, what);
}

static void run_layout(struct layout at, enum dtype dtype) {
    struct fixture f = {.at = at, .dtype = dtype_name(dtype)};
    CHECK(grid_create(at.T, at.P, at.mapping, 1, &f.grid) == 0, "%s", error_text());
    CHECK(backend_create_cpu(dtype, 1, 1, &f.be) == 0, "%s", error_text());
    test_sharded_is_whole(&f, OPTIM_ADAM, 0);
    test_sharded_is_whole(&f, OPTIM_SGD, 0);
    test_sharded_is_whole(&f, OPTIM_SGD, 0.5);
    test_replicas_stay_equal(&f);
    test_shards_cover(&f);
    test_non_finite(&f, false, 0, NAN);
    test_non_finite(&f, true, comm_world_size() - 1, INFINITY);
    test_non_finite(&f, false, comm_world_size() - 1, -INFINITY);
    grid_destroy(f.grid);
    backend_destroy(f.be);
}

int main(int argc, char **argv) {
    static const struct layout all[] = {
        {1, 1, 1, false}, {1, 1, 2, false}, {2, 1, 1, false}, {1, 2, 1, false},
        {1, 1, 3, false}, {3, 1, 1, false}, {1, 1, 4, false}, {2, 1, 2, false},
        {2, 1, 2, true},  {1, 2, 2, false}, {4, 1, 1, false}, {2, 1, 3, false},
        {1, 3, 2, true},  {3, 1, 2, false}, {2, 2, 2, false}, {2, 2, 2, true},
    };
    if (comm_init(&argc, &argv) != 0) error_exit();
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].T * all[i].P * all[i].D != comm_world_size()) continue;
        run_layout(all[i], DTYPE_F32);
        run_layout(all[i], DTYPE_F64);
    }
    comm_finalize();
    return test_failures != 0;
}
