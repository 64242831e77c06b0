/* Loading: what all data-parallel ranks hold is read by one of them, in shares of about equal bytes,
 * and every rank has its values in the end. */
/* ranks: 1 2 4 */
#include <unistd.h>

#include "../../src/checkpoint/ckpt_impl.h"
#include "ckpt_model.h"
#include "verdict.h"

static char folder[256];
static struct grid *grid;
static struct backend *be;

static const struct group *world(void) {
    return grid_group(grid, GROUP_WORLD);
}

static void build(struct model *m, bool sharded, int version) {
    const struct group *dp = grid_group(grid, GROUP_DP);
    model_build(m, be, (int[]){1, 0}, (int[]){1, 0}, (int[]){group_size(dp), group_rank(dp)},
                sharded);
    m->state.grid = grid;
    model_fill(m, version);
    m->state.at = (struct ckpt_counters){.step = version};
}

static void each_byte_has_one_reader(bool sharded) {
    struct model m;
    struct part_list list = {0};
    build(&m, sharded, 1);
    parts_held(&m.state, true, true, &list);
    int *reader = parts_deal_readers(&m.state, &list);
    int me = group_rank(grid_group(grid, GROUP_DP)), n = comm_world_size();
    int64_t once = 0, mine = 0, most, largest = 0;
    for (int64_t i = 0; i < m.set.n; i++)
        once += param_global_count(&m.set.param[i]) * (int64_t)dtype_size(m.set.param[i].w.dtype);
    for (int64_t i = 0; i < list.n; i++) {
        bool weight = list.part[i].role == CKPT_WEIGHT;
        if (part_bytes(&list.part[i]) > largest) largest = part_bytes(&list.part[i]);
        if ((weight || !sharded) && reader[i] == me) mine += part_bytes(&list.part[i]);
        if (!weight && !sharded && me == 0) once += part_bytes(&list.part[i]);
    }
    comm_broadcast(world(), &once, sizeof once, 0);
    int64_t all = most = mine;
    comm_allreduce_i64(world(), &all, 1, REDUCE_SUM);
    comm_allreduce_i64(world(), &most, 1, REDUCE_MAX);
    verdict(grid, all == once,
            sharded ? "each common byte has one reader, sharded states"
                    : "each common byte has one reader");
    verdict(grid, most <= once / n + largest, "no rank reads more than its share and one tensor");
    free(reader);
    part_list_free(&list);
    model_free(&m);
}

static void every_rank_has_its_values(bool sharded) {
    char *save = xasprintf("%s/%d", folder, sharded);
    struct ckpt_settings s = {.save = save,
                              .ckpt_step = -1,
                              .resume = CKPT_RESUME_AUTO,
                              .most_recent_k = -1,
                              .save_derived_weights = true};
    struct model m;
    struct ckpt_found found;
    build(&m, sharded, 5);
    bool good = ckpt_save(&s, &m.state) == 0;
    model_fill(&m, 6);
    good = good && ckpt_resume(&s, &m.state, &found) == 0 && model_wrong(&m, 5, true) == 0;
    free((void *)(uintptr_t)m.state.history);
    ckpt_found_free(&found);
    model_free(&m);
    free(save);
    verdict(grid, good,
            sharded ? "every rank has its values, sharded states" : "every rank has its values");
}

int main(int argc, char **argv) {
    if (comm_init(&argc, &argv) != 0) error_exit();
    if (grid_create(1, 1, false, 5, &grid) != 0) error_exit();
    if (backend_create_cpu(DTYPE_F32, 1, comm_world_size(), &be) != 0) error_exit();
    const char *tmp = getenv("TEST_TMP");
    snprintf(folder, sizeof folder, "%s/strata-once-XXXXXX", tmp ? tmp : "/tmp");
    if (comm_world_rank() == 0) CHECK(mkdtemp(folder), "%s", folder);
    comm_broadcast(world(), folder, sizeof folder, 0);
    for (int sharded = 0; sharded < 2; sharded++) {
        each_byte_has_one_reader(sharded != 0);
        every_rank_has_its_values(sharded != 0);
    }
    backend_destroy(be);
    grid_destroy(grid);
    comm_finalize();
    return test_failures != 0;
}
