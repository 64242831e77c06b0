/* Do the ranks that should hold equal weights hold equal weights? CRC32C of every parameter over the
 * data group; of uncut ones over the tensor group too. */
#include <stdlib.h>

#include "run_impl.h"

struct replica_check {
    uint32_t *mine, *all;
    char *host;
};

void replica_check_begin(struct run *r) {
    const struct param_set *set = &r->stage.params;
    int most = group_size(grid_group(r->grid, GROUP_DP));
    int tp = group_size(grid_group(r->grid, GROUP_TP));
    size_t bytes = 0;
    for (int i = 0; i < set->n; i++) {
        size_t b = tensor_bytes(&set->param[i].w);
        bytes = b > bytes ? b : bytes;
    }
    if (tp > most) most = tp;
    r->replicas = xcalloc(1, sizeof *r->replicas);
    r->replicas->mine = xcalloc((size_t)set->n, sizeof(uint32_t));
    r->replicas->all = xcalloc((size_t)set->n * (size_t)most, sizeof(uint32_t));
    r->replicas->host = xmalloc(bytes);
}

void replica_check_end(struct run *r) {
    if (r->replicas == NULL) return;
    free(r->replicas->mine);
    free(r->replicas->all);
    free(r->replicas->host);
    free(r->replicas);
    r->replicas = NULL;
}

static int compare(struct run *r, enum group_id id, const char *name, bool uncut_only) {
    const struct group *g = grid_group(r->grid, id);
    const struct param_set *set = &r->stage.params;
    struct replica_check *c = r->replicas;
    if (group_size(g) == 1) return 0;
    comm_gather(g, c->mine, (size_t)set->n * sizeof(uint32_t), c->all);
    for (int member = 0; member < group_size(g); member++)
        for (int i = 0; i < set->n; i++) {
            uint32_t theirs = c->all[(size_t)member * (size_t)set->n + (size_t)i];
            if ((uncut_only && set->param[i].cut.axis >= 0) || theirs == c->mine[i]) continue;
            return error_raise(EXIT_INTERNAL,
                               "after step %lld %s differs between %s ranks %d and %d of stage %d: "
                               "CRC32C %08x and %08x; a replica's memory or arithmetic is faulty",
                               (long long)r->at.step, set->param[i].name, name, group_rank(g),
                               member, r->plan.pp, c->mine[i], theirs);
        }
    return 0;
}

int replica_check(struct run *r) {
    const struct param_set *set = &r->stage.params;
    struct replica_check *c = r->replicas;
    for (int i = 0; i < set->n; i++) {
        size_t bytes = tensor_bytes(&set->param[i].w);
        r->be->ops->download(r->be, c->host, set->param[i].w.data, bytes);
        c->mine[i] = crc32c(0, c->host, bytes);
    }
    TRY(compare(r, GROUP_DP, "data", false));
    return compare(r, GROUP_TP, "tensor", true);
}
