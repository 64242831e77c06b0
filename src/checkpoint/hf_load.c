/* The trainer's start from safetensors: every rank reads the rows it holds. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "ckpt_impl.h"
#include "hf.h"

#define SLICE ((int64_t)4 << 20) /* elements of one read */

bool hf_is_source(const char *path) {
    struct stat st;
    struct name_list list;
    size_t n = strlen(path);
    if (n > 12 && strcmp(path + n - 12, ".safetensors") == 0) return true;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode) || folder_list(path, &list) != 0) return false;
    bool found = false, own = false;
    for (int64_t i = 0; i < list.n; i++) {
        own =
            own || ckpt_folder_step(list.name[i]) >= 0 || strcmp(list.name[i], CKPT_MANIFEST) == 0;
        found = found || strstr(list.name[i], ".safetensors") != NULL;
    }
    name_list_free(&list);
    return found && !own;
}

/* Rows are those of axis 0; a box that is cut along axis 1 takes the same columns of each row. */
static void pack_columns(const struct part *p, const struct param *param, const struct box *sub,
                         const float *rows, float *out) {
    int64_t inner = 1, row = param_global_count(param) / param->shape[0];
    for (int d = 2; d < param->ndim; d++) inner *= param->shape[d];
    int64_t first = param->ndim > 1 ? sub->offset[1] * inner : 0;
    int64_t n = param->ndim > 1 ? sub->count[1] * inner : 1;
    (void)p;
    for (int64_t r = 0; r < sub->count[0]; r++)
        memcpy(out + r * n, rows + r * row + first, (size_t)n * sizeof *out);
}

static void upload(const struct part *p, const struct box *sub, struct backend *be,
                   const float *values) {
    int64_t n = box_volume(sub);
    static const enum safetensors_dtype as[DTYPE_COUNT] = {
        [DTYPE_F32] = ST_F32, [DTYPE_F64] = ST_F64, [DTYPE_BF16] = ST_BF16, [DTYPE_F16] = ST_F16};
    struct safetensors_rounding rounding = {0};
    if (p->dtype == DTYPE_F32) {
        part_upload(p, sub, be, values);
        return;
    }
    void *host = xmalloc((size_t)n * dtype_size(p->dtype));
    safetensors_from_float(values, n, as[p->dtype], host, &rounding);
    part_upload(p, sub, be, host);
    be->ops->synchronize(be);
    free(host);
}

static int load_part(const struct hf_map *map, const struct part *p,
                     const struct ckpt_state *state) {
    const struct param *param = &state->set->param[p->param];
    const struct hf_piece *piece = &map->piece[p->param];
    if (piece->tensor == NULL) return 0;
    int64_t row = param_global_count(param) / param->shape[0];
    int64_t step = SLICE / row > 0 ? SLICE / row : 1, n = p->box.count[0];
    if (step > n) step = n;
    float *rows = xmalloc((size_t)(step * row) * sizeof *rows);
    float *mine = xmalloc((size_t)(step * row) * sizeof *mine);
    int rc = 0;
    for (int64_t at = 0; !rc && at < n; at += step) {
        struct box sub = p->box;
        sub.offset[0] += at;
        sub.count[0] = n - at < step ? n - at : step;
        rc = hf_fetch(map, param, piece, sub.offset[0] * row, sub.count[0] * row, rows);
        if (rc) break;
        pack_columns(p, param, &sub, rows, mine);
        upload(p, &sub, state->be, mine);
        state->be->ops->synchronize(state->be);
    }
    free(rows);
    free(mine);
    return rc;
}

static int load_parts(const struct hf_map *map, const struct ckpt_state *state) {
    struct part_list list = {0};
    int rc = 0;
    parts_held(state, true, false, &list);
    for (int64_t i = 0; !rc && i < list.n; i++) rc = load_part(map, &list.part[i], state);
    part_list_free(&list);
    return rc;
}

int hf_load(const char *path, const struct ckpt_state *state, int64_t head_dim, int may_miss) {
    const struct group *world = grid_group(state->grid, GROUP_WORLD);
    struct hf_source source = {.parts = HF_WHOLE};
    struct safetensors_options follow = {.follow_links = true};
    struct hf_map map = {0};
    int rc = ckpt_agree(world, safetensors_open(path, &follow, &source.files));
    if (!rc) rc = ckpt_agree(world, hf_match(&source, 1, state->set, head_dim, may_miss, &map));
    if (!rc) {
        comm_allreduce_i64(world, map.used, map.n_used, REDUCE_MAX);
        rc = ckpt_agree(world, hf_check_unexpected(&map));
    }
    if (!rc) rc = ckpt_agree(world, load_parts(&map, state));
    hf_map_free(&map);
    safetensors_close(source.files);
    return rc;
}
