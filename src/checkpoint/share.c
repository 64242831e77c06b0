/* Loading once for all data-parallel ranks: what they all hold is read by one of them and sent to
 * the others. */
#include <stdlib.h>

#include "ckpt_impl.h"

/* The one with the fewest bytes so far, the lowest on a tie: a pure function of the parts. */
int *parts_deal_readers(const struct ckpt_state *s, const struct part_list *list) {
    const struct group *dp = grid_group(s->grid, GROUP_DP);
    int n = group_size(dp), *reader = xmalloc(((size_t)list->n + 1) * sizeof *reader);
    int64_t *load = xcalloc((size_t)n, sizeof *load);
    for (int64_t i = 0; i < list->n; i++) {
        const struct part *p = &list->part[i];
        bool everywhere = p->role == CKPT_WEIGHT || !s->sharded_optimizer;
        reader[i] = group_rank(dp);
        if (!everywhere || n == 1 || group_measuring(dp)) continue;
        int best = 0;
        for (int r = 1; r < n; r++)
            if (load[r] < load[best]) best = r;
        load[best] += part_bytes(p);
        reader[i] = best;
    }
    free(load);
    return reader;
}

static void send_part(const struct ckpt_state *s, const struct part *p, int root) {
    const struct group *dp = grid_group(s->grid, GROUP_DP);
    int64_t rows = p->box.count[0], row = part_bytes(p) / rows;
    int64_t step = CKPT_SLICE / row > 0 ? CKPT_SLICE / row : 1;
    char *host = xmalloc((size_t)(row * (step < rows ? step : rows)));
    for (int64_t at = 0; at < rows; at += step) {
        struct box slice = p->box;
        slice.offset[0] += at;
        slice.count[0] = rows - at < step ? rows - at : step;
        if (group_rank(dp) == root) part_download(p, &slice, s->be, host);
        s->be->ops->synchronize(s->be);
        comm_broadcast(dp, host, (size_t)(row * slice.count[0]), root);
        if (group_rank(dp) != root) part_upload(p, &slice, s->be, host);
    }
    s->be->ops->synchronize(s->be);
    free(host);
}

void parts_send(const struct ckpt_state *s, const struct part_list *list, const int *reader,
                const struct ckpt_tensor *const *tensor) {
    const struct group *dp = grid_group(s->grid, GROUP_DP);
    if (group_size(dp) == 1 || group_measuring(dp)) return;
    for (int64_t i = 0; i < list->n; i++)
        if (tensor[i] && (list->part[i].role == CKPT_WEIGHT || !s->sharded_optimizer))
            send_part(s, &list->part[i], reader[i]);
}
