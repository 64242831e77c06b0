/* ranks: 1 2 3 4 */
/* Column- and row-parallel linears against one serial linear, in double: forward, dx, dW, db; cuts
 * even, uneven, of several blocks; both legal pairings; handed-out biases; row shares; what is
 * illegal is refused (doc/mathematics.md "Parallel linear layers"). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nn.h"
#include "verdict.h"

static struct backend *be;
static const struct group *tp;
static struct grid *grid;

static double value(int seed, int64_t i) {
    return rng_uniform(rng_run_key(seed), (uint64_t)i);
}

static struct tensor matrix(int64_t rows, int64_t cols) {
    return tensor_view(xcalloc((size_t)(rows * cols) + 1, sizeof(double)), rows, cols, DTYPE_F64);
}

static double *at(const struct tensor *t, int64_t row, int64_t col) {
    return (double *)t->data + row * t->ld + col;
}

static struct tensor filled(int64_t rows, int64_t cols, int seed) {
    struct tensor t = matrix(rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) ((double *)t.data)[i] = value(seed, i);
    return t;
}

/* My rows or columns of a whole matrix. */
static struct tensor shard_of(const struct tensor *full, const struct cut *cut, int axis) {
    int64_t n = cut_part(cut, group_size(tp), group_rank(tp)).total;
    struct tensor t = axis == 0 ? matrix(n, full->cols) : matrix(full->rows, n);
    for (int64_t r = 0; r < t.rows; r++)
        for (int64_t c = 0; c < t.cols; c++) {
            int64_t g = cut_local_to_global(cut, group_size(tp), group_rank(tp), axis == 0 ? r : c);
            *at(&t, r, c) = axis == 0 ? *at(full, g, c) : *at(full, r, g);
        }
    return t;
}

static bool near(const struct tensor *a, const struct tensor *b) {
    if (a->rows != b->rows || a->cols != b->cols) return false;
    for (int64_t r = 0; r < a->rows; r++)
        for (int64_t c = 0; c < a->cols; c++)
            if (!(fabs(*at(a, r, c) - *at(b, r, c)) <= 1e-12)) return false;
    return true;
}

/* ---- the serial linear ----------------------------------------------------------------------------- */

static void serial_forward(const struct tensor *x, const struct tensor *w, const struct tensor *b,
                           const struct tensor *y) {
    for (int64_t r = 0; r < y->rows; r++)
        for (int64_t o = 0; o < y->cols; o++) {
            double sum = b == NULL ? 0 : *at(b, 0, o);
            for (int64_t i = 0; i < x->cols; i++) sum += *at(x, r, i) * *at(w, o, i);
            *at(y, r, o) = sum;
        }
}

static void serial_backward(const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                            const struct tensor *dx, const struct tensor *dw,
                            const struct tensor *db) {
    for (int64_t r = 0; r < x->rows; r++)
        for (int64_t o = 0; o < w->rows; o++) {
            *at(db, 0, o) += *at(dy, r, o);
            for (int64_t i = 0; i < x->cols; i++) {
                *at(dx, r, i) += *at(dy, r, o) * *at(w, o, i);
                *at(dw, o, i) += *at(dy, r, o) * *at(x, r, i);
            }
        }
}

/* ---- one linear ------------------------------------------------------------------------------------ */

#define ROWS 7
struct whole { /* everything at p = 1 */
    struct tensor x, w, b, y, dy, dx, dw, db;
};

static struct whole whole_make(int64_t inputs, int64_t outputs, bool bias) {
    struct whole f = {.x = filled(ROWS, inputs, 1),
                      .w = filled(outputs, inputs, 2),
                      .b = filled(1, outputs, 3),
                      .y = matrix(ROWS, outputs),
                      .dy = filled(ROWS, outputs, 4),
                      .dx = matrix(ROWS, inputs),
                      .dw = matrix(outputs, inputs),
                      .db = matrix(1, outputs)};
    serial_forward(&f.x, &f.w, bias ? &f.b : NULL, &f.y);
    serial_backward(&f.x, &f.w, &f.dy, &f.dx, &f.dw, &f.db);
    return f;
}

static void whole_free(struct whole *f) {
    struct tensor *t = &f->x;
    for (size_t i = 0; i < sizeof *f / sizeof *t; i++) free(t[i].data);
}

static struct row_split split_rows(int64_t n) {
    struct row_split s;
    struct microbatch mb = {.tokens = n};
    rows_split(ROWS_TEXT, &mb, 0, false, group_size(tp), &s);
    return s;
}

struct variant {
    enum linear_kind kind;
    struct cut cut;
    bool gather, parallel, skip, rows, frozen, no_dx;
};

/* What one rank should see of a whole matrix: its columns, its rows, or all. */
static struct tensor view_of(const struct tensor *full, const struct variant *v, bool cut_columns,
                             const struct row_split *rows) {
    if (cut_columns) return shard_of(full, &v->cut, 1);
    int64_t first = 0, n = full->rows;
    if (rows != NULL) {
        first = rows->offset[group_rank(tp)];
        n = rows->offset[group_rank(tp) + 1] - first;
    }
    struct tensor t = matrix(n, full->cols);
    memcpy(t.data, at(full, first, 0), (size_t)(n * full->cols) * sizeof(double));
    return t;
}

static struct pass make_pass(struct arena *scratch) {
    return (struct pass){.be = be, .tp = tp, .scratch = scratch};
}

static bool run_linear(const struct variant *v, int64_t inputs, int64_t outputs) {
    bool column = v->kind == LINEAR_COLUMN;
    struct whole f = whole_make(inputs, outputs, !v->skip);
    struct row_split split = split_rows(ROWS), *rows = v->rows ? &split : NULL;
    struct tensor wide_b = column ? shard_of(&f.b, &v->cut, 1) : filled(1, outputs, 3);
    struct tensor w = shard_of(&f.w, &v->cut, column ? 0 : 1);
    struct linear l = {.kind = v->kind,
                       .cut = v->cut,
                       .gather_output = v->gather,
                       .input_is_parallel = v->parallel,
                       .skip_bias_add = v->skip,
                       .w = w,
                       .b = wide_b,
                       .rows = rows};
    if (!v->frozen) {
        l.dw = matrix(w.rows, w.cols);
        l.db = matrix(1, wide_b.cols);
    }
    struct tensor x = view_of(&f.x, v, !column && v->parallel, column ? rows : NULL);
    struct tensor dx_expected = view_of(&f.dx, v, !column && v->parallel, column ? rows : NULL);
    struct tensor y_expected = view_of(&f.y, v, column && !v->gather, column ? NULL : rows);
    struct tensor dy = view_of(&f.dy, v, column && !v->gather, column ? NULL : rows);
    struct tensor y = matrix(y_expected.rows, y_expected.cols), dx = matrix(x.rows, x.cols);
    struct arena scratch;
    arena_init(&scratch, "scratch", aligned_alloc(ARENA_ALIGN, 1 << 20), 1 << 20);
    struct pass p = make_pass(&scratch);
    linear_forward(&l, &p, &x, &y);
    linear_backward(&l, &p, &x, &dy, v->no_dx ? NULL : &dx);
    bool good = near(&y, &y_expected) && scratch.used == 0;
    if (!v->no_dx) good = good && near(&dx, &dx_expected);
    if (!v->frozen) {
        struct tensor dw = shard_of(&f.dw, &v->cut, column ? 0 : 1);
        struct tensor db = column ? shard_of(&f.db, &v->cut, 1) : f.db;
        if (rows != NULL && !column) comm_allreduce(tp, be, &l.db, REDUCE_SUM); /* of my rows */
        good = good && near(&l.dw, &dw) && near(&l.db, &db);
        free(dw.data);
        if (column) free(db.data);
    }
    struct tensor *mine[] = {&wide_b,      &w,          &l.dw, &l.db, &x,
                             &dx_expected, &y_expected, &dy,   &y,    &dx};
    for (size_t i = 0; i < sizeof mine / sizeof *mine; i++) free(mine[i]->data);
    free(scratch.base);
    whole_free(&f);
    return good;
}

/* ---- cuts ------------------------------------------------------------------------------------------- */

static struct cut cut_blocks(int axis, int n, const int64_t *size, const int64_t *granule) {
    struct cut c = {.axis = axis, .n_blocks = n};
    memcpy(c.size, size, (size_t)n * sizeof *size);
    memcpy(c.granule, granule, (size_t)n * sizeof *granule);
    return c;
}

struct cut_case {
    const char *name;
    int n;
    int64_t size[3], granule[3];
};
static const struct cut_case cuts[] = {
    {"even", 1, {12}, {1}},
    {"uneven", 1, {13}, {1}},
    {"short last granule", 1, {14}, {3}},
    {"stride 2", 2, {12, 12}, {1, 1}},
    {"stride 2, uneven", 2, {10, 10}, {2, 2}},
    {"stride 3, uneven heads", 3, {15, 15, 15}, {3, 3, 3}},
    {"grouped queries", 3, {20, 10, 10}, {4, 2, 2}},
};

static void test_cut(const struct cut_case *c) {
    char name[160];
    struct variant v = {.kind = LINEAR_COLUMN, .cut = cut_blocks(0, c->n, c->size, c->granule)};
    int64_t n = cut_size(&v.cut);
    for (int i = 0; i < 16; i++) {
        v.gather = i & 1;
        v.skip = (i & 2) && !v.gather;
        v.rows = i & 4;
        v.frozen = i & 8;
        v.no_dx = i == 6;
        snprintf(name, sizeof name, "column, %s%s%s%s%s", c->name, v.gather ? ", gathered" : "",
                 v.skip ? ", bias handed out" : "", v.rows ? ", row shares" : "",
                 v.frozen ? ", frozen" : "");
        verdict(grid, run_linear(&v, 5, n), "%s", name);
    }
    v = (struct variant){.kind = LINEAR_ROW, .cut = cut_blocks(1, c->n, c->size, c->granule)};
    for (int i = 0; i < 16; i++) {
        v.parallel = i & 1;
        v.skip = i & 2;
        v.rows = i & 4;
        v.frozen = i & 8;
        snprintf(name, sizeof name, "row, %s%s%s%s%s", c->name, v.parallel ? ", cut input" : "",
                 v.skip ? ", bias handed out" : "", v.rows ? ", row shares" : "",
                 v.frozen ? ", frozen" : "");
        verdict(grid, run_linear(&v, n, 6), "%s", name);
    }
}

/* ---- a pair ------------------------------------------------------------------------------------------- */

/* y = W2 (W1 x + b1) + b2 through both legal pairings: the same result and the same dx. */
static void test_pair(const struct cut_case *c) {
    struct cut cut = cut_blocks(0, c->n, c->size, c->granule), in = cut;
    in.axis = 1;
    int64_t n = cut_size(&cut);
    struct tensor x = filled(ROWS, 5, 1), w1 = filled(n, 5, 2), b1 = filled(1, n, 3);
    struct tensor w2 = filled(6, n, 4), b2 = filled(1, 6, 5), dy = filled(ROWS, 6, 6);
    struct tensor mid = matrix(ROWS, n), y = matrix(ROWS, 6), dmid = matrix(ROWS, n);
    struct tensor dx = matrix(ROWS, 5), dw1 = matrix(n, 5), db1 = matrix(1, n);
    struct tensor dw2 = matrix(6, n), db2 = matrix(1, 6);
    serial_forward(&x, &w1, &b1, &mid);
    serial_forward(&mid, &w2, &b2, &y);
    serial_backward(&mid, &w2, &dy, &dmid, &dw2, &db2);
    serial_backward(&x, &w1, &dmid, &dx, &dw1, &db1);
    struct arena scratch;
    arena_init(&scratch, "scratch", aligned_alloc(ARENA_ALIGN, 1 << 20), 1 << 20);
    for (int gathered = 0; gathered < 2; gathered++) {
        struct pass p = make_pass(&scratch);
        struct linear first = {.kind = LINEAR_COLUMN, .cut = cut, .gather_output = gathered};
        struct linear second = {
            .kind = LINEAR_ROW, .cut = in, .input_is_parallel = !gathered, .b = b2};
        first.w = shard_of(&w1, &cut, 0);
        first.b = shard_of(&b1, &cut, 1);
        second.w = shard_of(&w2, &cut, 1);
        struct tensor m = gathered ? matrix(ROWS, n) : matrix(ROWS, first.w.rows);
        struct tensor dm = matrix(m.rows, m.cols), out = matrix(ROWS, 6), dout = matrix(ROWS, 5);
        bool good = linear_check_pair(&first, &second, "pair") == 0;
        linear_forward(&first, &p, &x, &m);
        linear_forward(&second, &p, &m, &out);
        linear_backward(&second, &p, &m, &dy, &dm);
        linear_backward(&first, &p, &x, &dm, &dout);
        good = good && near(&out, &y) && near(&dout, &dx);
        char name[120];
        snprintf(name, sizeof name, "pair, %s, %s", c->name, gathered ? "gathered" : "cut");
        verdict(grid, good, "%s", name);
        struct tensor *mine[] = {&first.w, &first.b, &second.w, &m, &dm, &out, &dout};
        for (size_t i = 0; i < sizeof mine / sizeof *mine; i++) free(mine[i]->data);
    }
    struct tensor *all[] = {&x, &w1,   &b1, &w2,  &b2,  &dy,  &mid,
                            &y, &dmid, &dx, &dw1, &db1, &dw2, &db2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->data);
    free(scratch.base);
}

static bool refused(int rc, const char *words) {
    bool good = rc == EXIT_USAGE && strstr(error_text(), "mlp/fc1/weight") != NULL &&
                strstr(error_text(), words) != NULL;
    error_clear();
    return good;
}

static void test_refusals(void) {
    const char *what = "mlp/fc1/weight";
    struct linear column = {.kind = LINEAR_COLUMN, .cut = cut_even(0, 12, 1)};
    struct linear row = {.kind = LINEAR_ROW, .cut = cut_even(1, 12, 1)};
    verdict(grid, refused(linear_check_pair(&column, &row, what), "cuts its output"),
            "cut output into whole input is refused");
    column.gather_output = row.input_is_parallel = true;
    verdict(grid, refused(linear_check_pair(&column, &row, what), "gathers its output"),
            "gathered output into cut input is refused");
    column.skip_bias_add = true;
    verdict(grid, refused(linear_check(&column, what), "hand out its bias"),
            "a gathered output with a handed-out bias is refused");
    column.gather_output = column.skip_bias_add = false;
    verdict(grid, linear_check_pair(&column, &row, what) == 0, "the standard pairing is taken");
    row.cut = cut_even(1, 12, 2);
    verdict(grid, refused(linear_check_pair(&column, &row, what), "cut differently"),
            "different cuts are refused");
    struct cut heads = cut_even(0, 12, 4);
    int rc = cut_check(&heads, 4, what);
    verdict(grid, refused(rc, "3"), "more ranks than heads are refused");
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    if (grid_create(comm_world_size(), 1, false, 1, &grid) != 0) error_exit();
    if (backend_create_cpu(DTYPE_F64, 1, 1, &be) != 0) error_exit();
    tp = grid_group(grid, GROUP_TP);
    group_reserve(tp, be, 1 << 20);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        test_cut(&cuts[i]);
        test_pair(&cuts[i]);
    }
    test_refusals();
    grid_destroy(grid);
    backend_destroy(be);
    comm_finalize();
    return test_failures != 0;
}
