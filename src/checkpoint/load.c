/* Loading into any layout: this rank's boxes are intersected with the blocks of the manifest; what
 * they share is read. */
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"
#include "fault.h"

#define PROJECTOR "model/mm_projector/"
#define NEWLINE "model/image_newline"

struct load {
    const struct ckpt_settings *set;
    const struct ckpt_found *found;
    const struct ckpt_manifest *m;
    struct ckpt_state *st;
    const struct group *world;
    bool moments;
    struct part_list part;
    const struct ckpt_tensor **tensor; /* of each part; NULL: stays as it is */
    int *reader;                       /* of each part: rank in the data-parallel group */
};

/* ---- the model of the job against the tensors of the checkpoint ------------------------------------------- */
static void shape_text(int n, const int64_t *shape, char *text, size_t size) {
    size_t used = 0;
    for (int d = 0; d < n && used < size; d++)
        used +=
            (size_t)snprintf(text + used, size - used, "%s%lld", d ? "x" : "", (long long)shape[d]);
}

static bool may_be_new(const char *name) {
    return strncmp(name, PROJECTOR, strlen(PROJECTOR)) == 0 || strcmp(name, NEWLINE) == 0;
}

static int check_tensor(const struct load *l, const struct part *p, const char *name,
                        const struct ckpt_tensor **out) {
    const struct param *param = &l->st->set->param[p->param];
    const struct ckpt_tensor *t = manifest_find(l->m, name);
    char have[96], need[96];
    *out = t;
    if (!t && l->found->weights_only && l->set->allow_missing_projector && may_be_new(name)) {
        log_warn("%s is not in %s: it keeps its initial values", name, l->found->dir);
        return 0;
    }
    if (!t && p->role != CKPT_WEIGHT)
        return error_raise(EXIT_RESUME,
                           "%s has no %s: that tensor is trained now but was frozen, or the "
                           "checkpoint was saved without optimizer; finetune = true takes the "
                           "weights alone",
                           l->found->dir, name);
    if (!t)
        return error_raise(EXIT_RESUME, "%s has no tensor %s, which this model needs",
                           l->found->dir, name);
    if (t->n_dims != param->ndim ||
        memcmp(t->shape, param->shape, (size_t)t->n_dims * sizeof *t->shape) != 0) {
        shape_text(t->n_dims, t->shape, have, sizeof have);
        shape_text(param->ndim, param->shape, need, sizeof need);
        return error_raise(EXIT_RESUME, "tensor %s is %s in %s, this model needs %s", name, have,
                           l->found->dir, need);
    }
    if (t->dtype == p->dtype) return 0;
    return error_raise(EXIT_RESUME, "tensor %s is %s in %s, this job computes in %s", name,
                       dtype_name(t->dtype), l->found->dir, dtype_name(p->dtype));
}

/* Tensors that no rank asked for are as wrong as missing ones. Collective. */
static int check_unexpected(const struct load *l, int64_t *used) {
    int rc = 0;
    if (l->m->n_tensors > 0) comm_allreduce_i64(l->world, used, l->m->n_tensors, REDUCE_MAX);
    for (int64_t i = 0; i < l->m->n_tensors && group_rank(l->world) == 0; i++) {
        const struct ckpt_tensor *t = &l->m->tensor[i];
        if (used[i] || (t->role != CKPT_WEIGHT && !l->moments)) continue;
        rc = error_raise(EXIT_RESUME, "%s holds %s, which this job's model does not have%s",
                         l->found->dir, t->name, t->role == CKPT_WEIGHT ? "" : " in its optimizer");
    }
    return rc;
}

static int match_tensors(struct load *l) {
    int rc = 0;
    char name[CKPT_NAME_MAX + 1], before[CKPT_NAME_MAX + 1] = "";
    int64_t *used = xcalloc((size_t)l->m->n_tensors + 1, sizeof *used);
    parts_held(l->st, true, l->moments, &l->part);
    l->tensor = xcalloc((size_t)l->part.n + 1, sizeof *l->tensor);
    for (int64_t i = 0; i < l->part.n; i++) {
        const struct part *p = &l->part.part[i];
        part_tensor_name(&l->st->set->param[p->param], p->role, name, sizeof name);
        int one = 0;
        if (strcmp(name, before) == 0) /* the next box of the same tensor */
            l->tensor[i] = l->tensor[i - 1];
        else
            one = check_tensor(l, p, name, &l->tensor[i]);
        if (one && !rc) rc = one;
        if (l->tensor[i]) used[l->tensor[i] - l->m->tensor] = 1;
        memcpy(before, name, sizeof name);
    }
    int extra = check_unexpected(l, used);
    free(used);
    return ckpt_agree(l->world, rc ? rc : extra);
}

/* ---- reading ------------------------------------------------------------------------------------------------- */
struct piece_read {
    const struct ckpt_tensor *tensor;
    const struct ckpt_block *block;
    const struct part *part;
    struct box box;
};

static int by_block(const void *a, const void *b) {
    const struct ckpt_block *x = ((const struct piece_read *)a)->block;
    const struct ckpt_block *y = ((const struct piece_read *)b)->block;
    if (x->file != y->file) return x->file - y->file;
    return x->file_offset < y->file_offset ? -1 : x->file_offset > y->file_offset;
}

/* The load plan: what to read of which block, in the order it lies in the files. */
static int64_t plan_reads(const struct load *l, struct piece_read **out) {
    struct piece_read *r = NULL;
    int64_t n = 0, capacity = 0;
    int me = group_rank(grid_group(l->st->grid, GROUP_DP));
    for (int64_t i = 0; i < l->part.n; i++) {
        const struct ckpt_tensor *t = l->reader[i] == me ? l->tensor[i] : NULL;
        int64_t covered = 0;
        for (int64_t j = 0; t && j < t->n_blocks; j++) {
            struct box both;
            if (!box_intersect(&l->part.part[i].box, &t->block[j].box, &both)) continue;
            if (n == capacity) {
                capacity = capacity ? 2 * capacity : 256;
                r = xrealloc(r, (size_t)capacity * sizeof *r);
            }
            r[n++] = (struct piece_read){t, &t->block[j], &l->part.part[i], both};
            covered += box_volume(&both);
        }
        CHECK(!t || covered == box_volume(&l->part.part[i].box), "%s is not covered", t->name);
    }
    if (n > 0) qsort(r, (size_t)n, sizeof *r, by_block);
    *out = r;
    return n;
}

/* verify_load = used: the CRC blocks between the first and the last byte that will be read. */
static int check_used(const struct load *l, const struct piece_read *r) {
    const struct box *b = &r->block->box;
    int64_t first = 0, last = 0, element = (int64_t)dtype_size(r->tensor->dtype);
    for (int d = 0; d < b->n; d++) {
        first = first * b->count[d] + r->box.offset[d] - b->offset[d];
        last = last * b->count[d] + r->box.offset[d] + r->box.count[d] - 1 - b->offset[d];
    }
    return ckpt_check_block(l->found->dir, l->m, r->tensor, r->block, first * element,
                            (last - first + 1) * element);
}

/* Slices of whole rows of axis 0, each through one host buffer. What came out of a filter is compared
 * with what went in. */
static int read_piece(const struct load *l, const struct shard_reader *reader, hid_t dataset,
                      const struct piece_read *r) {
    int64_t rows = r->box.count[0], row = box_volume(&r->box) / rows;
    row *= (int64_t)dtype_size(r->tensor->dtype);
    int64_t step = CKPT_SLICE / row > 0 ? CKPT_SLICE / row : 1;
    char *host = xmalloc((size_t)(row * (step < rows ? step : rows)));
    bool check = l->set->verify_load != CKPT_VERIFY_SIZE;
    struct passing passing = {0};
    int rc = 0;
    for (int64_t at = 0; !rc && at < rows; at += step) {
        struct box slice = r->box;
        slice.offset[0] += at;
        slice.count[0] = rows - at < step ? rows - at : step;
        rc = reader_read(reader, dataset, r->tensor, r->block, &slice, host);
        if (!rc && check) rc = passing_check(&passing, reader, r->tensor, r->block, &slice, host);
        if (!rc) part_upload(r->part, &slice, l->st->be, host);
    }
    l->st->be->ops->synchronize(l->st->be);
    free(host);
    return rc;
}

static int read_file_pieces(const struct load *l, const struct piece_read *r, int64_t n) {
    struct shard_reader reader;
    int rc = 0;
    for (int64_t i = 0; !rc && i < n && l->set->verify_load == CKPT_VERIFY_USED; i++)
        rc = check_used(l, &r[i]);
    if (rc) return rc;
    h5_begin(l->set);
    rc = reader_open(&reader, l->found->dir, l->m, r->block->file, r->block->file);
    for (int64_t i = 0; !rc && i < n;) {
        hid_t dataset = -1;
        const struct ckpt_block *block = r[i].block;
        rc = reader_dataset(&reader, r[i].tensor, block, &dataset);
        for (; !rc && i < n && r[i].block == block; i++)
            rc = read_piece(l, &reader, dataset, &r[i]);
        fault_point("resume.read.in");
        rc = h5_close(rc, dataset, block->dataset);
    }
    rc = reader_close(rc, &reader);
    h5_end(l->set);
    return rc;
}

static int read_tensors(const struct load *l) {
    struct piece_read *r;
    int64_t n = plan_reads(l, &r);
    int rc = 0;
    for (int64_t i = 0, j; !rc && i < n; i = j) {
        for (j = i; j < n && r[j].block->file == r[i].block->file;) j++;
        rc = read_file_pieces(l, r + i, j - i);
    }
    free(r);
    return rc;
}

/* ---- what shard 0 says about the run ------------------------------------------------------------------------ */
static int compare_text(const struct load *l, hid_t file, const char *group, const char *name,
                        const char *mine, const char *what) {
    char *stored = NULL, a[128], b[128];
    if (!mine) return 0;
    hid_t g;
    int rc = h5_open_group(file, l->found->dir, group, &g);
    if (!rc) rc = h5_get_text(g, name, &stored);
    rc = h5_close(rc, g, group);
    if (!rc && stored && strcmp(stored, mine) != 0) {
        text_printable(stored, a, sizeof a);
        text_printable(mine, b, sizeof b);
        rc = error_raise(EXIT_RESUME,
                         "the %s differs: \"%s\" in %s, \"%s\" in this job; change it back, or "
                         "finetune = true to take the weights alone",
                         what, a, l->found->dir, b);
    }
    free(stored);
    return rc;
}

static int compare_integer(const struct load *l, hid_t file, const char *group, const char *name,
                           int64_t mine, const char *what) {
    int64_t stored = mine;
    hid_t g;
    int rc = h5_open_group(file, l->found->dir, group, &g);
    if (!rc) rc = h5_get_integer(g, name, &stored);
    rc = h5_close(rc, g, group);
    if (!rc && stored != mine)
        rc = error_raise(EXIT_RESUME,
                         "%s is %lld in %s, %lld in this job; change it back, or "
                         "finetune = true to take the weights alone",
                         what, (long long)stored, l->found->dir, (long long)mine);
    return rc;
}

/* All differences are listed before giving up. */
static int compare_run(const struct load *l, hid_t file) {
    const struct ckpt_state *s = l->st;
    bool reseeded = l->set->no_load_rng; /* another seed is another order */
    int rc[7] = {
        compare_text(l, file, "header", "family", s->family, "model family"),
        reseeded ? 0
                 : compare_text(l, file, "training/data", "order_key", s->order_key,
                                "order of the data"),
        compare_text(l, file, "training/data", "sha256", s->dataset_sha256, "data set"),
        compare_text(l, file, "tokenizer", "sha256", s->tokenizer_sha256, "tokenizer"),
        compare_text(l, file, "tokenizer", "template", s->template_text, "conversation template"),
        compare_integer(l, file, "training/data", "global_batch_size", s->global_batch_size,
                        "global_batch_size"),
        reseeded ? 0 : compare_integer(l, file, "training/rng", "key", s->seed, "seed")};
    for (int i = 0; i < 7; i++)
        if (rc[i]) return rc[i];
    return 0;
}

static int read_run(const struct load *l, struct ckpt_counters *at, struct ckpt_row **row,
                    int64_t *n_rows) {
    struct shard_reader r;
    h5_begin(l->set);
    int rc = reader_open(&r, l->found->dir, l->m, 0, 0);
    fault_point("resume.run.in");
    if (!rc) rc = compare_run(l, r.file);
    if (!rc) rc = reader_counters(&r, at);
    if (!rc) rc = reader_history(&r, row, n_rows);
    rc = reader_close(rc, &r);
    h5_end(l->set);
    return rc;
}

/* Collective: rank 0 reads, all get it. */
static int load_run(struct load *l) {
    struct ckpt_counters at = {0};
    struct ckpt_row *row = NULL;
    int64_t n = 0;
    size_t bytes;
    int rc = group_rank(l->world) == 0 ? read_run(l, &at, &row, &n) : 0;
    rc = ckpt_agree(l->world, rc);
    if (!rc) {
        comm_broadcast(l->world, &at, sizeof at, 0);
        if (!l->moments) at.optimizer_step = 0; /* zero moments need their first corrections */
        l->st->at = at;
        l->st->history = (void *)ckpt_share(l->world, row, (size_t)n * sizeof *row, 0, &bytes);
        l->st->n_history = (int64_t)(bytes / sizeof *row);
        if (l->st->run_uuid) memcpy(l->st->run_uuid, l->m->run_uuid, 37);
        if (l->st->parent_uuid) memcpy(l->st->parent_uuid, l->m->uuid, 37);
    }
    free(row);
    return rc;
}

/* Only what was read and is wrong: a storage error says nothing about the checkpoint. */
static void mark_damaged(int rc, const struct group *world, const struct ckpt_found *found) {
    if (rc == EXIT_BAD_DATA && group_rank(world) == 0 &&
        ckpt_mark_refused(found->dir, error_text()) != 0)
        log_warn("%s.refused could not be written", found->dir);
}

int ckpt_load(const struct ckpt_settings *settings, const struct ckpt_found *found,
              struct ckpt_state *state) {
    struct load l = {.set = settings, .found = found, .m = found->manifest, .st = state};
    l.world = grid_group(state->grid, GROUP_WORLD);
    l.moments = !found->weights_only && !settings->no_load_optim;
    CHECK(found->any, "nothing was found to load");
    fault_point("resume.match.before");
    int rc = match_tensors(&l);
    fault_point("resume.match.after");
    if (!rc) l.reader = parts_deal_readers(state, &l.part);
    if (!rc) rc = ckpt_agree(l.world, read_tensors(&l));
    if (!rc) parts_send(state, &l.part, l.reader, l.tensor);
    fault_point("resume.read.after");
    if (!rc && !found->weights_only) rc = load_run(&l);
    fault_point("resume.run.after");
    mark_damaged(rc, l.world, found);
    part_list_free(&l.part);
    free(l.tensor);
    free(l.reader);
    return rc;
}

static int accept_and_load(const struct ckpt_settings *settings, const struct ckpt_found *found,
                           struct ckpt_state *state) {
    int rc = settings->accept == NULL || found->weights_only
                 ? 0
                 : settings->accept(settings->accept_arg, found);
    mark_damaged(rc, grid_group(state->grid, GROUP_WORLD), found);
    return rc != 0 ? rc : ckpt_load(settings, found, state);
}

int ckpt_resume(const struct ckpt_settings *settings, struct ckpt_state *state,
                struct ckpt_found *found) {
    const struct group *world = grid_group(state->grid, GROUP_WORLD);
    for (;;) {
        TRY(ckpt_find(settings, state->grid, found));
        if (!found->any) return 0;
        int rc = accept_and_load(settings, found, state);
        if (!rc) return 0;
        int64_t marked =
            rc == EXIT_BAD_DATA && group_rank(world) == 0 && ckpt_is_refused(found->dir);
        comm_broadcast(world, &marked, sizeof marked, 0);
        if (group_rank(world) == 0 && marked)
            log_warn("checkpoint %s could not be loaded: %s; it is marked with %s.refused: strata "
                     "checkpoint verify --clear %s removes the mark once it verifies",
                     found->dir, error_text(), found->dir, found->dir);
        ckpt_found_free(found);
        if (!marked) return rc;
        error_clear();
    }
}
