/* The Cartesian grid of T x P x D ranks and its groups, which are masks of it. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm_impl.h"

static const char *const group_names[GROUP_COUNT] = {
    [GROUP_TP] = "tp",       [GROUP_PP] = "pp",       [GROUP_DP] = "dp",
    [GROUP_MODEL] = "model", [GROUP_WORLD] = "world",
};

const char *group_name(const struct group *g) {
    return group_names[g->id];
}

int grid_world(const struct grid *grid) {
    return grid->tensor * grid->pipeline * grid->data;
}

/* rank = tp + T (dp + D pp); with use_tp_pp_dp_mapping tp + T (pp + P dp). */
int grid_rank_at(const struct grid *grid, int tp, int pp, int dp) {
    CHECK(tp >= 0 && tp < grid->tensor && pp >= 0 && pp < grid->pipeline && dp >= 0 &&
              dp < grid->data,
          "no rank at tp %d pp %d dp %d", tp, pp, dp);
    int outer = grid->pp_before_dp ? pp + grid->pipeline * dp : dp + grid->data * pp;
    return tp + grid->tensor * outer;
}

void grid_coordinates(const struct grid *grid, int world_rank, int *tp, int *pp, int *dp) {
    int outer = world_rank / grid->tensor;
    *tp = world_rank % grid->tensor;
    *pp = grid->pp_before_dp ? outer % grid->pipeline : outer / grid->data;
    *dp = grid->pp_before_dp ? outer / grid->pipeline : outer % grid->data;
}

void grid_describe_rank(const struct grid *grid, int world_rank, char *text, size_t size) {
    int tp, pp, dp;
    grid_coordinates(grid, world_rank, &tp, &pp, &dp);
    snprintf(text, size, "rank %d (host %s, tp %d pp %d dp %d)", world_rank,
             grid->host == NULL ? "?" : grid->host[world_rank], tp, pp, dp);
}

const struct group *grid_group(const struct grid *grid, enum group_id id) {
    CHECK((unsigned)id < GROUP_COUNT, "group %d", (int)id);
    return &grid->group[id];
}

/* World rank of member i of the group of `grid`'s own coordinates. */
static int member_world_rank(const struct grid *grid, enum group_id id, int i) {
    switch (id) {
    case GROUP_TP:
        return grid_rank_at(grid, i, grid->pp, grid->dp);
    case GROUP_PP:
        return grid_rank_at(grid, grid->tp, i, grid->dp);
    case GROUP_DP:
        return grid_rank_at(grid, grid->tp, grid->pp, i);
    case GROUP_MODEL:
        return grid_rank_at(grid, i % grid->tensor, i / grid->tensor, grid->dp);
    default:
        return i;
    }
}

static int group_count(const struct grid *grid, enum group_id id) {
    switch (id) {
    case GROUP_TP:
        return grid->tensor;
    case GROUP_PP:
        return grid->pipeline;
    case GROUP_DP:
        return grid->data;
    case GROUP_MODEL:
        return grid->tensor * grid->pipeline;
    default:
        return grid_world(grid);
    }
}

static struct group_state *state_create(int size, bool measuring) {
    struct group_state *s = xcalloc(1, sizeof *s);
    s->slab_bytes = SLAB_BYTES;
    s->direct_bytes = DIRECT_BYTES;
    s->host_bytes = (size_t)size * 8 > HOST_BYTES ? (size_t)size * 8 : HOST_BYTES;
    if (measuring) return s;
    s->host = xmalloc(s->host_bytes);
    s->request = xcalloc((size_t)size * 2, sizeof *s->request);
    s->status = xcalloc((size_t)size * 2, sizeof *s->status);
    s->message = xcalloc((size_t)size * 2, sizeof *s->message);
    s->offset = xcalloc((size_t)size + 1, sizeof *s->offset);
    s->source = xcalloc((size_t)size, sizeof *s->source);
    return s;
}

/* Position of the rank at the grid's own coordinates. */
static int own_member(const struct grid *grid, enum group_id id) {
    switch (id) {
    case GROUP_TP:
        return grid->tp;
    case GROUP_PP:
        return grid->pp;
    case GROUP_DP:
        return grid->dp;
    case GROUP_MODEL:
        return grid->tp + grid->tensor * grid->pp;
    default:
        return grid_rank_at(grid, grid->tp, grid->pp, grid->dp);
    }
}

/* A measuring grid sends nothing, so it holds nothing per member: a planner makes one for each of
 * many ranks. */
static void groups_init(struct grid *grid) {
    int me = grid_rank_at(grid, grid->tp, grid->pp, grid->dp);
    for (int id = 0; id < GROUP_COUNT; id++) {
        struct group *g = &grid->group[id];
        g->grid = grid;
        g->transport = &transport_host;
        g->id = (enum group_id)id;
        g->comm = MPI_COMM_NULL;
        g->size = group_count(grid, g->id);
        g->rank = own_member(grid, g->id);
        CHECK(member_world_rank(grid, g->id, g->rank) == me, "rank %d is not member %d of group %s",
              me, g->rank, group_name(g));
        g->state = state_create(g->size, grid->measuring);
        if (grid->measuring) continue;
        g->world_rank = xcalloc((size_t)g->size, sizeof *g->world_rank);
        for (int i = 0; i < g->size; i++) g->world_rank[i] = member_world_rank(grid, g->id, i);
    }
}

static struct grid *grid_alloc(int tensor, int pipeline, int data) {
    struct grid *grid = xcalloc(1, sizeof *grid);
    grid->tensor = tensor;
    grid->pipeline = pipeline;
    grid->data = data;
    grid->part_bytes = MESSAGE_PART_BYTES;
    grid->p2p[0] = grid->p2p[1] = MPI_COMM_NULL;
    grid->state = xcalloc(1, sizeof *grid->state);
    return grid;
}

/* The communicators, as masks of one Cartesian communicator; each group has its own, so that no
 * collective meets the messages of another. The order of members is the one counted by hand. */
static void communicators_create(struct grid *grid) {
    int tp_axis = 2, pp_axis = grid->pp_before_dp ? 1 : 0, dp_axis = 1 - pp_axis;
    int dims[3], periods[3] = {0, 0, 0};
    dims[tp_axis] = grid->tensor;
    dims[pp_axis] = grid->pipeline;
    dims[dp_axis] = grid->data;
    MPI_Comm cart;
    MPI_Group world, members;
    mpi_check(MPI_Cart_create(MPI_COMM_WORLD, 3, dims, periods, 0, &cart), "MPI_Cart_create");
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    for (int id = 0; id < GROUP_COUNT; id++) {
        struct group *g = &grid->group[id];
        int remain[3];
        remain[tp_axis] = id == GROUP_TP || id == GROUP_MODEL || id == GROUP_WORLD;
        remain[pp_axis] = id == GROUP_PP || id == GROUP_MODEL || id == GROUP_WORLD;
        remain[dp_axis] = id == GROUP_DP || id == GROUP_WORLD;
        mpi_check(MPI_Cart_sub(cart, remain, &g->comm), "MPI_Cart_sub");
        mpi_check(MPI_Comm_set_errhandler(g->comm, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
        MPI_Comm_group(g->comm, &members);
        for (int i = 0; i < g->size; i++) {
            int in_world;
            MPI_Group_translate_ranks(members, 1, &i, world, &in_world);
            CHECK(in_world == g->world_rank[i], "member %d of group %s is world rank %d, not %d", i,
                  group_name(g), in_world, g->world_rank[i]);
        }
        MPI_Group_free(&members);
    }
    MPI_Group_free(&world);
    MPI_Comm_free(&cart);
    for (int direction = 0; direction < 2; direction++) {
        MPI_Comm *p2p = &grid->p2p[direction];
        mpi_check(MPI_Comm_dup(grid->group[GROUP_PP].comm, p2p), "MPI_Comm_dup");
        mpi_check(MPI_Comm_set_errhandler(*p2p, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    }
}

/* Each machine is known by its lowest rank; the numbers count these. */
static void nodes_find(struct grid *grid) {
    int n = grid_world(grid), first = comm_world_rank(), found = 0;
    MPI_Comm node;
    mpi_check(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, first, MPI_INFO_NULL, &node),
        "MPI_Comm_split_type");
    mpi_check(MPI_Bcast(&first, 1, MPI_INT, 0, node), "MPI_Bcast");
    MPI_Comm_free(&node);
    grid->node = xcalloc((size_t)n, sizeof *grid->node);
    mpi_check(
        MPI_Allgather(&first, 1, MPI_INT, grid->node, 1, MPI_INT, grid->group[GROUP_WORLD].comm),
        "MPI_Allgather");
    for (int r = 0; r < n; r++) {
        int lowest = grid->node[r];
        CHECK(lowest <= r, "rank %d is below the lowest of its machine, %d", r, lowest);
        grid->node[r] = lowest == r ? found++ : grid->node[lowest];
    }
}

int grid_node(const struct grid *grid, int world_rank) {
    CHECK(world_rank >= 0 && world_rank < grid_world(grid), "no rank %d", world_rank);
    return grid->node == NULL ? 0 : grid->node[world_rank];
}

static int sizes_check(int tensor, int pipeline, double timeout_minutes) {
    if (tensor < 1 || pipeline < 1)
        return error_raise(EXIT_USAGE,
                           "tensor_model_parallel_size = %d and pipeline_model_parallel_size = %d; "
                           "both must be at least 1",
                           tensor, pipeline);
    if (!(timeout_minutes > 0))
        return error_raise(EXIT_USAGE, "distributed_timeout_minutes = %g; it must be above 0",
                           timeout_minutes);
    int64_t replica = (int64_t)tensor * pipeline, world = comm_world_size();
    if (world % replica == 0) return 0;
    char below[32] = "";
    if (world > replica)
        snprintf(below, sizeof below, "%lld or ", (long long)(world / replica * replica));
    return error_raise(EXIT_USAGE,
                       "%lld ranks cannot be divided by tensor_model_parallel_size %d x "
                       "pipeline_model_parallel_size %d = %lld; start %s%lld ranks, or change one "
                       "of the two keys",
                       (long long)world, tensor, pipeline, (long long)replica, below,
                       (long long)((world / replica + 1) * replica));
}

int grid_create(int tensor, int pipeline, bool tp_pp_dp_mapping, double timeout_minutes,
                struct grid **grid) {
    *grid = NULL;
    TRY(sizes_check(tensor, pipeline, timeout_minutes));
    struct grid *new = grid_alloc(tensor, pipeline, comm_world_size() / (tensor * pipeline));
    new->pp_before_dp = tp_pp_dp_mapping;
    new->timeout_seconds = timeout_minutes * 60;
    grid_coordinates(new, comm_world_rank(), &new->tp, &new->pp, &new->dp);
    groups_init(new);
    communicators_create(new);
    char host[HOST_NAME_MAX_BYTES] = "";
    gethostname(host, sizeof host - 1);
    new->host = xcalloc((size_t)grid_world(new), sizeof *new->host);
    mpi_check(MPI_Allgather(host, sizeof host, MPI_CHAR, new->host, sizeof host, MPI_CHAR,
                            new->group[GROUP_WORLD].comm),
              "MPI_Allgather");
    nodes_find(new);
    *grid = new;
    return 0;
}

struct grid *grid_create_measuring(int tensor, int pipeline, int data, bool tp_pp_dp_mapping,
                                   int tp, int pp, int dp) {
    CHECK(tensor >= 1 && pipeline >= 1 && data >= 1, "a grid of %d x %d x %d", tensor, pipeline,
          data);
    struct grid *grid = grid_alloc(tensor, pipeline, data);
    grid->measuring = true;
    grid->pp_before_dp = tp_pp_dp_mapping;
    grid->tp = tp;
    grid->pp = pp;
    grid->dp = dp;
    groups_init(grid);
    return grid;
}

void grid_destroy(struct grid *grid) {
    if (grid == NULL) return;
    for (int direction = 0; direction < 2; direction++)
        if (grid->p2p[direction] != MPI_COMM_NULL) MPI_Comm_free(&grid->p2p[direction]);
    for (int id = 0; id < GROUP_COUNT; id++) {
        struct group *g = &grid->group[id];
        struct group_state *s = g->state;
        if (g->comm != MPI_COMM_NULL) MPI_Comm_free(&g->comm);
        if (s->workspace != NULL) s->be->ops->mem_free(s->be, s->workspace);
        free(s->host);
        free(s->request);
        free(s->status);
        free(s->message);
        free(s->offset);
        free(s->source);
        free(s);
        free(g->world_rank);
    }
    free(grid->host);
    free(grid->node);
    free(grid->state);
    free(grid);
}
