/* The grid and messages along the pipeline: coordinates of both orders, refusals, both directions
 * between two stages, empty messages, parts, wrong sizes, order, counters, limits of a wait.
 * With an argument it fails on purpose, for tests/cli/test_comm_timeout.sh. */
/* ranks: 1 2 3 4 6 8 */
#include <unistd.h>

#include "comm_test.h"

enum { ACT = 0, GRAD = 1 };

/* ---- grid ---- */

static bool members_are(const struct grid *grid, enum group_id id, const int *expect) {
    const struct group *g = grid_group(grid, id);
    int me = comm_world_rank();
    int *all = xcalloc((size_t)group_size(g), sizeof *all);
    comm_gather(g, &me, sizeof me, all);
    bool good = all[group_rank(g)] == me;
    for (int i = 0; i < group_size(g); i++) good = good && all[i] == expect[i];
    free(all);
    return good;
}

/* T = P = D = 2, as in doc/mathematics.md: which ranks are together. */
static void test_coordinates_of_8(void) {
    const int near[8][2] = {{0, 1}, {0, 1}, {2, 3}, {2, 3}, {4, 5}, {4, 5}, {6, 7}, {6, 7}};
    const int two[8][2] = {{0, 2}, {1, 3}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {4, 6}, {5, 7}};
    const int four[8][2] = {{0, 4}, {1, 5}, {2, 6}, {3, 7}, {0, 4}, {1, 5}, {2, 6}, {3, 7}};
    const int model[8][4] = {{0, 1, 4, 5}, {0, 1, 4, 5}, {2, 3, 6, 7}, {2, 3, 6, 7},
                             {0, 1, 4, 5}, {0, 1, 4, 5}, {2, 3, 6, 7}, {2, 3, 6, 7}};
    const int model_mapped[8][4] = {{0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3},
                                    {4, 5, 6, 7}, {4, 5, 6, 7}, {4, 5, 6, 7}, {4, 5, 6, 7}};
    int me = comm_world_rank();
    for (int mapped = 0; mapped < 2; mapped++) {
        struct grid *grid;
        if (grid_create(2, 2, mapped, 1, &grid) != 0) error_exit();
        bool good = members_are(grid, GROUP_TP, near[me]);
        good = members_are(grid, GROUP_DP, mapped ? four[me] : two[me]) && good;
        good = members_are(grid, GROUP_PP, mapped ? two[me] : four[me]) && good;
        good = members_are(grid, GROUP_MODEL, mapped ? model_mapped[me] : model[me]) && good;
        verdict(grid, good, mapped ? "tp-pp-dp: groups of 2 x 2 x 2" : "groups of 2 x 2 x 2");
        grid_destroy(grid);
    }
}

static bool grid_consistent(const struct grid *grid) {
    const struct group *tp = grid_group(grid, GROUP_TP), *pp = grid_group(grid, GROUP_PP),
                       *dp = grid_group(grid, GROUP_DP), *world = grid_group(grid, GROUP_WORLD);
    bool good =
        grid_rank_at(grid, group_rank(tp), group_rank(pp), group_rank(dp)) == comm_world_rank() &&
        group_rank(world) == comm_world_rank() && group_size(world) == comm_world_size() &&
        group_size(tp) * group_size(pp) * group_size(dp) == group_size(world);
    struct grid *plan =
        grid_create_measuring(group_size(tp), group_size(pp), group_size(dp), grid->pp_before_dp,
                              group_rank(tp), group_rank(pp), group_rank(dp));
    for (int id = 0; id < GROUP_COUNT; id++) {
        const struct group *g = grid_group(grid, id), *m = grid_group(plan, id);
        good = good && group_rank(g) == group_rank(m) && group_size(g) == group_size(m);
        good = members_are(grid, id, g->world_rank) && good;
    }
    grid_destroy(plan);
    return good;
}

static void test_all_grids(void) {
    int world = comm_world_size();
    for (int tensor = 1; tensor <= world; tensor++)
        for (int pipeline = 1; tensor * pipeline <= world; pipeline++) {
            if (world % (tensor * pipeline) != 0) continue;
            for (int mapped = 0; mapped < 2; mapped++) {
                struct grid *grid;
                if (grid_create(tensor, pipeline, mapped, 1, &grid) != 0) error_exit();
                char name[80];
                snprintf(name, sizeof name, "grid T %d P %d order %d", tensor, pipeline, mapped);
                verdict(grid, grid_consistent(grid), name);
                grid_destroy(grid);
            }
        }
}

static bool refused(int tensor, int pipeline, double minutes, const char *must_say) {
    struct grid *grid;
    error_clear();
    int rc = grid_create(tensor, pipeline, false, minutes, &grid);
    bool good = rc == EXIT_USAGE && grid == NULL && strstr(error_text(), must_say) != NULL;
    error_clear();
    return good;
}

static void test_refusals(const struct grid *any) {
    int world = comm_world_size();
    char counts[80];
    snprintf(counts, sizeof counts, "start %d ranks", world + 1);
    verdict(any, refused(world + 1, 1, 1, counts), "more ranks asked for than there are");
    if (world == 8)
        verdict(any, refused(3, 1, 1, "start 6 or 9 ranks"), "the nearest legal counts");
    verdict(any, refused(0, 1, 1, "at least 1") && refused(1, -2, 1, "at least 1"),
            "sizes below 1");
    verdict(any, refused(1, 1, 0, "distributed_timeout_minutes"), "no time-out");
    verdict(any, refused(1 << 30, 1 << 30, 1, "1152921504606846976"), "a product beyond 32 bits");
    struct cpu_limits limits;
    cpus_read("", &limits);
    struct cpu_share share = comm_cpu_share(&limits);
    verdict(any, share.processes == world && share.sharing == world && share.cores >= 1,
            "all ranks of this test share a node and its cores");
}

/* ---- messages ---- */

static void fill(char *data, size_t n, int seed) {
    for (size_t i = 0; i < n; i++) data[i] = (char)(i * 7 + (size_t)seed);
}
static bool filled(const char *data, size_t n, int seed) {
    for (size_t i = 0; i < n; i++)
        if (data[i] != (char)(i * 7 + (size_t)seed)) return false;
    return true;
}

#define BUFFER 100000
static char *buffer_new(void) {
    return xcalloc(1, BUFFER);
}

/* Stage 0 and the last stage send to each other in both directions at once with one tag: with two
 * stages both neighbours are the same rank. A collective in between must not get in the way. */
static bool exchange_both(const struct grid *grid, size_t bytes) {
    int last = grid->pipeline - 1, peer = last - grid->pp;
    if (grid->pp != 0 && grid->pp != last) {
        comm_barrier(grid_group(grid, GROUP_PP));
        return true;
    }
    char *out[2] = {buffer_new(), buffer_new()}, *in[2] = {buffer_new(), buffer_new()};
    struct transfer send[2] = {0}, recv[2] = {0};
    for (int d = 0; d < 2; d++) comm_recv_begin(grid, d, peer, 17, in[d], bytes, BUFFER, &recv[d]);
    comm_barrier(grid_group(grid, GROUP_PP));
    for (int d = 1; d >= 0; d--) {
        fill(out[d], bytes, 3 * d + grid->pp);
        comm_send_begin(grid, d, peer, 17, out[d], bytes, &send[d]);
    }
    bool good = true;
    for (int d = 0; d < 2; d++) {
        good = comm_wait(grid, &recv[d], NULL, NULL) == bytes && comm_test(&recv[d]) && good;
        good = good && filled(in[d], bytes, 3 * d + peer);
        good = comm_wait(grid, &send[d], NULL, NULL) == bytes && !send[d].active && good;
    }
    for (int d = 0; d < 2; d++) free(out[d]), free(in[d]);
    return good;
}

/* What arrives when `sent` bytes go where `expected` were announced. */
static bool odd_size(const struct grid *grid, size_t sent, size_t expected) {
    char *data = buffer_new();
    struct transfer t = {0};
    bool good = true;
    if (grid->pp == 0) {
        fill(data, sent, 5);
        comm_send_begin(grid, ACT, 1, 1, data, sent, &t);
        good = comm_wait(grid, &t, NULL, NULL) == sent;
    } else if (grid->pp == 1) {
        comm_recv_begin(grid, ACT, 0, 1, data, expected, BUFFER, &t);
        while (!comm_test(&t)) continue;
        good = comm_wait(grid, &t, NULL, NULL) == sent && filled(data, sent, 5);
    }
    free(data);
    return good;
}

/* Sent with tags 5 4 3, received 3 4 5. */
static bool tags_choose(const struct grid *grid) {
    char data[3][64];
    struct transfer t[3] = {0};
    bool good = true;
    for (int i = 0; i < 3; i++) {
        fill(data[i], 64, grid->pp == 0 ? 5 - i : 90);
        if (grid->pp == 0) comm_send_begin(grid, GRAD, 1, 5 - i, data[i], 64, &t[i]);
        if (grid->pp == 1) comm_recv_begin(grid, GRAD, 0, 3 + i, data[i], 64, 64, &t[i]);
    }
    for (int i = 0; i < 3; i++) comm_wait(grid, &t[i], NULL, NULL);
    for (int i = 0; i < 3 && grid->pp == 1; i++) good = good && filled(data[i], 64, 3 + i);
    return good;
}

static bool counters(const struct grid *grid) {
    struct grid *plan = grid_create_measuring(grid->tensor, grid->pipeline, grid->data, false,
                                              grid->tp, grid->pp, grid->dp);
    const struct grid *both[2] = {grid, plan};
    int64_t act[2], grad[2];
    bool good = true;
    char data[300] = "";
    for (int i = 0; i < 2; i++) {
        act[i] = comm_p2p_bytes(both[i], ACT);
        grad[i] = comm_p2p_messages(both[i], GRAD);
        struct transfer t = {0}, u = {0};
        if (grid->pp == 0) comm_send_begin(both[i], ACT, 1, 2, data, 300, &t);
        if (grid->pp == 0) comm_send_begin(both[i], GRAD, 1, 2, data, 0, &u);
        if (grid->pp == 1) comm_recv_begin(both[i], ACT, 0, 2, data, 300, 300, &t);
        if (grid->pp == 1) comm_recv_begin(both[i], GRAD, 0, 2, data, 0, 0, &u);
        comm_wait(both[i], &t, NULL, NULL);
        comm_wait(both[i], &u, NULL, NULL);
        good = good && t.bytes == (grid->pp < 2 ? 300 : 0) && u.bytes == 0;
        good = good && comm_p2p_bytes(both[i], ACT) - act[i] == (grid->pp == 0 ? 300 : 0);
        good = good && comm_p2p_messages(both[i], GRAD) - grad[i] == (grid->pp == 0 ? 1 : 0);
    }
    grid_destroy(plan);
    return good;
}

static void test_messages(int tensor, int pipeline) {
    struct grid *grid;
    if (grid_create(tensor, pipeline, false, 1, &grid) != 0) error_exit();
    char name[120], how[40];
    snprintf(how, sizeof how, "%d stages", pipeline);
    for (int small = 0; small < 2; small++) {
        const size_t length[] = {0, 1, 100, 101, 750, 800};
        bool good = true;
        for (size_t i = 0; i < sizeof length / sizeof *length; i++)
            good = exchange_both(grid, length[i]) && good;
        if (!small) good = exchange_both(grid, BUFFER) && good;
        snprintf(name, sizeof name, "%s, parts of %zu: both directions at once", how,
                 grid->part_bytes);
        verdict(grid, good, name);
        good = odd_size(grid, 350, 400) && odd_size(grid, 380, 350) && odd_size(grid, 0, 7);
        snprintf(name, sizeof name, "%s, parts of %zu: another size than expected", how,
                 grid->part_bytes);
        verdict(grid, good, name);
        grid->part_bytes = 100;
    }
    snprintf(name, sizeof name, "%s: tags choose", how);
    verdict(grid, tags_choose(grid), name);
    snprintf(name, sizeof name, "%s: counted, also by a measuring grid", how);
    verdict(grid, counters(grid), name);
    grid_destroy(grid);
}

/* ---- limits of a wait ---- */

static void describe(void *arg, char *text, size_t size) {
    snprintf(text, size, "micro-batch %d of the test", *(int *)arg);
}

/* Rank 1 never comes. Rank 0 must end the job with EXIT_HANG and say what it waits for. */
static void hang(const struct grid *grid, bool collective) {
    if (comm_world_rank() == 1) {
        sleep(20);
        return;
    }
    struct transfer t = {0};
    int micro_batch = 3;
    char data[16];
    if (collective)
        comm_barrier(grid_group(grid, GROUP_WORLD));
    else
        comm_recv_begin(grid, GRAD, 1, 9, data, sizeof data, sizeof data, &t);
    comm_wait(grid, &t, describe, &micro_batch);
}

/* A message that does not fit its buffer. */
static void overrun(const struct grid *grid) {
    char data[64] = "";
    struct transfer t = {0};
    if (comm_world_rank() == 0)
        comm_send_begin(grid, ACT, 1, 4, data, 40, &t);
    else
        comm_recv_begin(grid, ACT, 0, 4, data, 30, 32, &t);
    comm_wait(grid, &t, NULL, NULL);
    comm_barrier(grid_group(grid, GROUP_WORLD));
}

/* Ranks that disagree about the size of a tensor; a call that nobody reserved workspace for. */
static void misuse(const struct grid *grid, bool reserve) {
    struct backend be = {.ops = &test_backend_ops};
    const struct group *world = grid_group(grid, GROUP_WORLD);
    struct tensor t = tensor_new(1, 100 + comm_world_rank(), DTYPE_F32);
    if (reserve) group_reserve(world, &be, 1000);
    comm_allreduce(world, &be, &t, REDUCE_SUM);
    comm_barrier(world);
}

static void fault(const char *which) {
    struct grid *grid;
    if (grid_create(1, 2, false, 0.5 / 60, &grid) != 0) error_exit();
    if (strcmp(which, "overrun") == 0)
        overrun(grid);
    else if (strcmp(which, "sizes") == 0 || strcmp(which, "unreserved") == 0)
        misuse(grid, which[0] == 's');
    else
        hang(grid, strcmp(which, "collective") == 0);
    comm_finalize();
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    if (argc > 1) {
        fault(argv[1]);
        return 0;
    }
    struct grid *grid;
    int world = comm_world_size();
    if (grid_create(1, 1, false, 1, &grid) != 0) error_exit();
    test_refusals(grid);
    test_all_grids();
    if (world == 8) test_coordinates_of_8();
    if (world > 1) test_messages(1, world);
    if (world > 2 && world % 2 == 0) test_messages(world / 2, 2);
    grid_destroy(grid);
    comm_finalize();
    return test_failures == 0 ? 0 : 1;
}
