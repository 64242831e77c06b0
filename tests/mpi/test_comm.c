/* Collectives: adjoint pairs, bits against a serial sum in rank order, columns at their global
 * places, NaN, flat buffers, host values, bytes and workspace against a measuring group. */
/* ranks: 1 2 3 4 6 8 */
#include <math.h>

#include "comm_test.h"

static struct backend backend = {.ops = &test_backend_ops, .dtype = DTYPE_F32, .acc = DTYPE_F32};

/* Uneven shares of n rows; `empty` leaves the first rank without any. */
static void offsets_make(int64_t n, int p, bool empty, int64_t *offset) {
    offset[0] = 0;
    for (int r = 0; r < p; r++) {
        int64_t first, count;
        if (empty && p > 1)
            rows_share(n, p - 1, r > 0 ? r - 1 : 0, &first, &count);
        else
            rows_share(n, p, r, &first, &count);
        offset[r + 1] = offset[r] + (empty && p > 1 && r == 0 ? 0 : count);
    }
}

static double dot(const struct tensor *a, const struct tensor *b) {
    double sum = 0;
    for (int64_t i = 0; i < tensor_count(a); i++)
        sum += load(a->data, a->dtype, i) * load(b->data, b->dtype, i);
    return sum;
}

static struct tensor keep_columns(const struct tensor *full, const struct cut *cut, int p, int r) {
    struct tensor local = tensor_new(full->rows, cut_part(cut, p, r).total, full->dtype);
    for (int64_t i = 0; i < full->rows; i++)
        for (int64_t l = 0; l < local.cols; l++)
            store(
                local.data, full->dtype, i * local.cols + l,
                load(full->data, full->dtype, i * full->cols + cut_local_to_global(cut, p, r, l)));
    return local;
}

/* <f(x), y> and <x, f*(y)>, each summed over the ranks where its operands are parts. */
static bool close_sums(const struct group *g, double left, bool sum_left, double right,
                       bool sum_right) {
    if (sum_left) comm_allreduce_f64(g, &left, 1, REDUCE_SUM);
    if (sum_right) comm_allreduce_f64(g, &right, 1, REDUCE_SUM);
    return fabs(left - right) <= 1e-6 * (1 + fabs(left));
}

/* copy_to_tp and reduce_from_tp: identity against sum. */
static bool adjoint_sum(const struct group *g, enum dtype dtype) {
    struct tensor x = tensor_filled(13, 7, dtype, 1, 0);       /* replicated */
    struct tensor y = tensor_filled(13, 7, dtype, 2, g->rank); /* one per rank */
    struct tensor sum = tensor_filled(13, 7, dtype, 2, g->rank);
    comm_allreduce(g, &backend, &sum, REDUCE_SUM);
    bool good = close_sums(g, dot(&x, &y), true, dot(&x, &sum), false);
    free(x.data), free(y.data), free(sum.data);
    return good;
}

/* scatter_to_tp and gather_from_tp over a cut of columns. */
static bool adjoint_columns(const struct group *g, enum dtype dtype, const struct cut *cut,
                            int64_t rows) {
    struct tensor x = tensor_filled(rows, cut_size(cut), dtype, 3, 0);
    struct tensor part = keep_columns(&x, cut, g->size, g->rank);
    struct tensor y = tensor_filled(rows, part.cols, dtype, 4, g->rank);
    struct tensor gathered = tensor_new(rows, cut_size(cut), dtype);
    comm_gather_columns(g, &backend, &y, &gathered, cut);
    bool good = close_sums(g, dot(&part, &y), true, dot(&x, &gathered), false);
    /* and the columns are where they belong: cutting again gives the parts back */
    struct tensor again = keep_columns(&gathered, cut, g->size, g->rank);
    good = good && same_bits(&again, &y);
    comm_gather_columns(g, &backend, &part, &gathered, cut);
    good = good && same_bits(&gathered, &x);
    free(x.data), free(part.data), free(y.data), free(gathered.data), free(again.data);
    return good;
}

/* (sp_gather, sp_scatter_sum) and (sp_split, sp_merge) over uneven rows. */
static bool adjoint_rows(const struct group *g, enum dtype dtype, int64_t rows, bool empty) {
    int64_t *offset = xcalloc((size_t)g->size + 1, sizeof *offset);
    offsets_make(rows, g->size, empty, offset);
    int64_t first = offset[g->rank], mine = offset[g->rank + 1] - first;
    struct tensor x = tensor_filled(mine, 5, dtype, 5, g->rank);
    struct tensor y = tensor_filled(rows, 5, dtype, 6, g->rank); /* differs per rank */
    struct tensor full = tensor_new(rows, 5, dtype), part = tensor_new(mine, 5, dtype);
    comm_gather_rows(g, &backend, &x, &full, offset);
    comm_reduce_rows(g, &backend, &y, &part, offset);
    bool good = close_sums(g, dot(&full, &y), true, dot(&x, &part), true);
    struct tensor z = tensor_filled(rows, 5, dtype, 7, 0); /* replicated */
    struct tensor z_mine = tensor_rows(z, first, mine), at = tensor_rows(full, first, mine);
    good = close_sums(g, dot(&full, &z), false, dot(&x, &z_mine), true) && good;
    good = good && same_bits(&at, &x);
    /* sum in rank order, whoever owns the rows */
    serial_sum(&full, 6, g->size);
    good = good && same_bits(&at, &part);
    free(x.data), free(y.data), free(full.data), free(part.data), free(z.data), free(offset);
    return good;
}

static bool allreduce_bits(const struct group *g, enum dtype dtype, int64_t n) {
    struct tensor t = tensor_filled(1, n, dtype, 8, g->rank), expect = tensor_new(1, n, dtype);
    serial_sum(&expect, 8, g->size);
    comm_allreduce(g, &backend, &t, REDUCE_SUM);
    bool good = same_bits(&t, &expect);
    /* the same bits on all members, said by their checksums */
    int64_t crc = crc32c(0, t.data, tensor_bytes(&t));
    int64_t *all = xcalloc((size_t)g->size, sizeof *all);
    comm_gather(g, &crc, sizeof crc, all);
    for (int q = 0; q < g->size; q++) good = good && all[q] == crc;
    free(t.data), free(expect.data), free(all);
    return good;
}

static bool allreduce_max(const struct group *g, enum dtype dtype, int64_t n) {
    struct tensor t = tensor_filled(1, n, dtype, 9, g->rank);
    if (n > 2) store(t.data, dtype, 2, g->rank == g->size - 1 ? NAN : 1e30);
    if (n > 3) store(t.data, dtype, 3, g->rank == 0 ? NAN : 1e30);
    if (n > 4) store(t.data, dtype, 4, g->rank == 0 ? INFINITY : -INFINITY);
    comm_allreduce(g, &backend, &t, REDUCE_MAX);
    bool good = true;
    for (int64_t i = 0; i < n; i++) {
        double v = load(t.data, dtype, i), expect = -2;
        if (i == 2 || i == 3) {
            good = good && isnan(v);
            continue;
        }
        for (int q = 0; q < g->size; q++) expect = fmax(expect, value_at(9, q, i));
        if (i == 4) expect = INFINITY;
        good = good && v == (dtype == DTYPE_F32 ? (double)(float)expect : expect);
    }
    free(t.data);
    return good;
}

/* Reduce-scatter and gather of flat buffers give the all-reduce. */
static bool flat_bits(const struct group *g, enum dtype dtype, int64_t n, bool empty) {
    int64_t *offset = xcalloc((size_t)g->size + 1, sizeof *offset);
    offsets_make(n, g->size, empty, offset);
    struct tensor t = tensor_filled(1, n, dtype, 10, g->rank), expect = tensor_new(1, n, dtype);
    serial_sum(&expect, 10, g->size);
    comm_reduce_scatter_flat(g, &backend, t.data, dtype, offset);
    int64_t first = offset[g->rank], mine = offset[g->rank + 1] - first;
    struct tensor a = tensor_cols(t, first, mine), b = tensor_cols(expect, first, mine);
    bool good = same_bits(&a, &b);
    comm_gather_flat(g, &backend, t.data, dtype, offset);
    good = good && same_bits(&t, &expect);
    free(t.data), free(expect.data), free(offset);
    return good;
}

static bool host_values(const struct group *g) {
    enum { N = 5000 };
    double *v = xcalloc(N, sizeof *v);
    bool good = true;
    for (int64_t i = 0; i < N; i++) v[i] = value_at(11, g->rank, i);
    comm_allreduce_f64(g, v, N, REDUCE_SUM);
    struct tensor got = tensor_view(v, 1, N, DTYPE_F64), expect = tensor_new(1, N, DTYPE_F64);
    serial_sum(&expect, 11, g->size);
    good = good && same_bits(&got, &expect);
    int64_t k[2] = {g->rank + ((int64_t)1 << 60), -g->rank};
    comm_allreduce_i64(g, k, 2, REDUCE_MAX);
    good = good && k[0] == g->size - 1 + ((int64_t)1 << 60) && k[1] == 0;
    k[0] = g->rank + 1;
    comm_allreduce_i64(g, k, 1, REDUCE_SUM);
    good = good && k[0] == (int64_t)g->size * (g->size + 1) / 2;
    for (int root = 0; root < g->size; root++) {
        char text[1001];
        for (int i = 0; i < 1001; i++) text[i] = (char)(i + (g->rank == root ? root : 99));
        comm_broadcast(g, text, sizeof text, root);
        for (int i = 0; i < 1001; i++) good = good && text[i] == (char)(i + root);
    }
    good = comm_vote(g, 0) == 0 && good;
    good = comm_vote(g, g->rank == g->size - 1 ? 65 : 0) == 65 && good;
    comm_barrier(g);
    free(v), free(expect.data);
    return good;
}

/* Every device collective once; both on a real and on a measuring group. */
static void all_calls(const struct group *g, struct tensor *big, struct tensor *part,
                      const int64_t *offset, const struct cut *cut, struct tensor *columns) {
    comm_allreduce(g, &backend, big, REDUCE_SUM);
    struct tensor little = tensor_cols(tensor_rows(*big, 0, 1), 0, 3);
    comm_allreduce(g, &backend, &little, REDUCE_SUM);
    comm_gather_rows(g, &backend, part, big, offset);
    comm_reduce_rows(g, &backend, big, part, offset);
    comm_gather_columns(g, &backend, columns, big, cut);
}

/* Bytes by the formulas of doc/mathematics.md, and calls, bytes and workspace as the measuring
 * group predicted them. Reserving exactly what it said must be enough. */
static bool counted(const struct grid *grid, const struct group *g, struct tensor *big) {
    struct cut cut = {.axis = 0, .n_blocks = 2, .size = {60, 30}, .granule = {4, 2}};
    int64_t *offset = xcalloc((size_t)g->size + 1, sizeof *offset);
    offsets_make(big->rows, g->size, false, offset);
    int64_t mine = offset[g->rank + 1] - offset[g->rank];
    struct tensor part = tensor_new(mine, big->cols, DTYPE_F32);
    struct tensor columns =
        tensor_new(big->rows, cut_part(&cut, g->size, g->rank).total, DTYPE_F32);
    struct grid *plan = grid_create_measuring(grid->tensor, grid->pipeline, grid->data,
                                              grid->pp_before_dp, grid->tp, grid->pp, grid->dp);
    const struct group *m = grid_group(plan, g->id);
    all_calls(m, big, &part, offset, &cut, &columns);
    int64_t bytes = group_bytes(g), calls = group_calls(g), others = g->size - 1;
    group_reserve(g, &backend, group_workspace_needed(m));
    all_calls(g, big, &part, offset, &cut, &columns);
    bytes = group_bytes(g) - bytes;
    calls = group_calls(g) - calls;
    int64_t n = tensor_count(big), first, share;
    rows_share(n, g->size, g->rank, &first, &share);
    int64_t expect = n - share + others * share + others * 3; /* two all-reduces */
    expect += others * mine * big->cols;                      /* gather */
    expect += n - mine * big->cols;                           /* reduce-scatter */
    expect += others * big->rows * columns.cols;
    bool good = bytes == (g->size == 1 ? 0 : 4 * expect) && calls == (g->size == 1 ? 0 : 5);
    good = good && bytes == group_bytes(m) && calls == group_calls(m) && group_measuring(m);
    good = good && group_workspace_needed(g) == group_workspace_needed(m);
    grid_destroy(plan);
    free(part.data), free(columns.data), free(offset);
    return good;
}

/* What is reserved for the longest tensor must be enough for every shorter one. */
static bool workspace_grows(const struct grid *grid, enum group_id id, const struct tensor *big) {
    size_t before = 0;
    bool good = true;
    for (int64_t n = 256; n <= 16384; n += 256) {
        struct grid *plan = grid_create_measuring(grid->tensor, grid->pipeline, grid->data,
                                                  grid->pp_before_dp, grid->tp, grid->pp, grid->dp);
        struct tensor t = tensor_view(big->data, 1, n, DTYPE_F32);
        comm_allreduce(grid_group(plan, id), &backend, &t, REDUCE_SUM);
        size_t needed = group_workspace_needed(grid_group(plan, id));
        good = good && needed >= before;
        before = needed;
        grid_destroy(plan);
    }
    return good;
}

static void test_group(const struct grid *grid, enum group_id id, const char *how) {
    const struct group *g = grid_group(grid, id);
    char name[160];
    struct cut blocks = {.axis = 0, .n_blocks = 3, .size = {40, 19, 20}, .granule = {4, 2, 2}};
    struct cut one = cut_even(0, 29, 3);
    bool sum = true, columns = true, rows = true, bits = true, max = true, flat = true;
    for (int k = 0; k < 2; k++) {
        enum dtype dtype = k == 0 ? DTYPE_F32 : DTYPE_F64;
        sum = adjoint_sum(g, dtype) && sum;
        columns = adjoint_columns(g, dtype, &blocks, 6) && columns;
        columns = adjoint_columns(g, dtype, &one, 1) && columns;
        columns = adjoint_columns(g, dtype, &one, 0) && columns;
        for (int64_t n = 0; n <= 17; n += n < 3 ? 1 : 7) {
            rows = adjoint_rows(g, dtype, n, false) && rows;
            rows = adjoint_rows(g, dtype, n, true) && rows;
        }
        const int64_t length[] = {0, 1, 5, 1023, 1024, 5000, 40001};
        for (size_t i = 0; i < sizeof length / sizeof *length; i++) {
            bits = allreduce_bits(g, dtype, length[i]) && bits;
            max = allreduce_max(g, dtype, length[i]) && max;
            flat = flat_bits(g, dtype, length[i], i % 2 == 0) && flat;
        }
    }
    const struct {
        bool good;
        const char *what;
    } line[] = {{sum, "copy_to_tp and reduce_from_tp are adjoint"},
                {columns, "scatter and gather of columns are adjoint, global places"},
                {rows, "gather, reduce, split of rows are adjoint, uneven and empty"},
                {bits, "all-reduce is the serial sum in rank order, bit for bit"},
                {max, "MAX hands NaN on"},
                {flat, "reduce-scatter then gather is the all-reduce"},
                {host_values(g), "host values, broadcast, vote"}};
    for (size_t i = 0; i < sizeof line / sizeof *line; i++) {
        snprintf(name, sizeof name, "%s, group %s of %d: %s", how, group_name(g), g->size,
                 line[i].what);
        verdict(grid, line[i].good, name);
    }
}

/* Messages cut small: nothing about the results may change. */
static void make_small(struct grid *grid) {
    grid->part_bytes = 512;
    for (int id = 0; id < GROUP_COUNT; id++) {
        grid->group[id].state->slab_bytes = 1000;
        grid->group[id].state->direct_bytes = 0;
        grid->group[id].state->host_bytes = 64;
    }
}

/* From each to each, in turn; ranks of one host are on one node. */
static bool passing(const struct group *g) {
    bool good = true;
    int64_t data[500];
    for (int from = 0; from < g->size; from++)
        for (int to = 0; to < g->size; to++) {
            if (from == to || (g->rank != from && g->rank != to)) continue;
            for (int i = 0; i < 500; i++) data[i] = g->rank == from ? 1000 * from + i : -1;
            comm_pass(g, from, to, data, sizeof data);
            for (int i = 0; i < 500; i++) good = good && data[i] == 1000 * from + i;
        }
    for (int r = 0; r < grid_world(g->grid); r++)
        good = good && (grid_node(g->grid, r) == grid_node(g->grid, 0)) ==
                           (strcmp(g->grid->host[r], g->grid->host[0]) == 0);
    return good && grid_node(g->grid, 0) == 0;
}

static void test_grid(int tensor, int pipeline, bool mapping) {
    struct grid *grid;
    if (grid_create(tensor, pipeline, mapping, 1, &grid) != 0) error_exit();
    char how[80];
    struct tensor big = tensor_filled(300, 90, DTYPE_F32, 12, comm_world_rank());
    for (int id = 0; id < GROUP_COUNT; id++) {
        snprintf(how, sizeof how, "%d x %d ranks, group %s: bytes, calls, workspace as planned",
                 tensor, pipeline, group_name(&grid->group[id]));
        verdict(grid, counted(grid, &grid->group[id], &big), how);
        snprintf(how, sizeof how, "%d x %d ranks, group %s: workspace grows with the tensor",
                 tensor, pipeline, group_name(&grid->group[id]));
        verdict(grid, workspace_grows(grid, id, &big), how);
        group_reserve(&grid->group[id], &backend, 8 << 20);
    }
    free(big.data);
    for (int small = 0; small < 2; small++) {
        snprintf(how, sizeof how, "T %d P %d%s%s", tensor, pipeline, mapping ? " mapped" : "",
                 small ? " small parts" : "");
        if (small) make_small(grid);
        for (int id = 0; id < GROUP_COUNT; id++) test_group(grid, (enum group_id)id, how);
        verdict(grid, passing(&grid->group[GROUP_WORLD]), "one to another, machines");
    }
    grid_destroy(grid);
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    int world = comm_world_size();
    test_grid(world, 1, false);
    if (world % 2 == 0) test_grid(world / 2, 1, false);
    if (world % 4 == 0) test_grid(2, 2, true);
    comm_finalize();
    return test_failures == 0 ? 0 : 1;
}
