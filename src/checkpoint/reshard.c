/* strata checkpoint reshard: a checkpoint written anew for another layout, shard after shard, in
 * slices. The write plan, the common groups and the commit are those of a save (save.c), only that
 * the bytes come from another checkpoint. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools_impl.h"

struct reshard {
    struct source from;
    struct about about;
    const struct ckpt_target *target;
    struct ckpt_settings set; /* as those of the source, save is the new folder */
    struct ckpt_manifest *m;  /* all shards written so far */
    struct grid *world;       /* of this process */
    struct ckpt_lock lock;
    char *tmp, *tool;
    char **name; /* tensors of all stages before `stage`; stage_end[i]: how many up to stage i */
    int64_t n_names, *stage_end;
    char *slice; /* CKPT_SLICE bytes, more if a row is longer */
};

/* ---- one shard --------------------------------------------------------------------------------------------- */
static int find_tensor(struct reshard *r, const struct param *param, const struct ckpt_tensor *mine,
                       const struct ckpt_tensor **from) {
    *from = manifest_find(r->from.m, mine->name);
    if (!*from)
        return error_raise(EXIT_RESUME, "%s has no tensor %s, which its job file describes",
                           r->from.dir, mine->name);
    if ((*from)->dtype == mine->dtype && (*from)->n_dims == param->ndim &&
        memcmp((*from)->shape, param->shape, (size_t)param->ndim * sizeof *param->shape) == 0)
        return 0;
    return error_raise(EXIT_RESUME, "tensor %s of %s has another shape or type than its job file",
                       mine->name, r->from.dir);
}

static int copy_part(struct reshard *r, struct shard *shard, struct ckpt_manifest *share,
                     const struct ckpt_state *st, const struct part *p) {
    const struct param *param = &st->set->param[p->param];
    const struct ckpt_tensor *from;
    struct ckpt_tensor *t;
    struct block_writer w;
    struct box slice;
    struct ckpt_block *b = manifest_add_part(share, param, p, &t);
    int64_t at = 0, row = b->bytes / b->box.count[0];
    int64_t most = box_slice_bytes(share->filter, &b->box, (int64_t)dtype_size(t->dtype));
    TRY(find_tensor(r, param, t, &from));
    if (row > CKPT_SLICE) r->slice = xrealloc(r->slice, (size_t)row);
    int rc = shard_begin_block(shard, param, t, b, &w);
    while (!rc && box_next_slice(&b->box, dtype_size(t->dtype), most, &at, &slice)) {
        int64_t first = slice.offset[0] - b->box.offset[0];
        rc = source_read(&r->from, from, &slice, r->slice);
        if (rc) break;
        block_add_crc(b, first * row, r->slice, slice.count[0] * row);
        rc = shard_write_rows(&w, b, first, slice.count[0], r->slice);
    }
    return shard_end_block(rc, shard, &w, b);
}

static int write_shard(struct reshard *r, struct ckpt_manifest *share, const struct ckpt_state *st,
                       const struct part_list *part, int64_t index) {
    char name[CKPT_NAME_MAX + 1];
    struct shard shard;
    struct shard_identity id = {.m = share,
                                .index = index,
                                .grid = st->grid,
                                .tool = r->tool,
                                .largest = part_list_largest(part)};
    ckpt_shard_name(name, sizeof name, share->step, index, share->writers);
    manifest_add_file(share, name);
    char *path = xasprintf("%s/%s", r->tmp, name);
    h5_begin(NULL);
    int rc = shard_create(&shard, path, &id, &r->set);
    if (!rc) rc = shard_write_common(&shard, &id, &r->set, st);
    for (int64_t i = 0; !rc && i < part->n; i++)
        rc = copy_part(r, &shard, share, st, &part->part[i]);
    rc = shard_close(rc, &shard);
    h5_end(NULL);
    free(path);
    return rc;
}

/* ---- one rank ---------------------------------------------------------------------------------------------------- */
/* What the target says of the rank, and what the source says of the run. */
static int describe(struct reshard *r, int tp, int pp, int dp, struct ckpt_state *st) {
    *st = r->about.state;
    st->split_spec = r->target->split_spec;
    return r->target->describe(r->target->arg, tp, pp, dp, st);
}

static struct ckpt_manifest *new_share(const struct reshard *r) {
    struct ckpt_manifest *m = xcalloc(1, sizeof *m);
    m->step = r->from.m->step;
    m->tp = r->target->tp;
    m->pp = r->target->pp;
    m->dp = r->target->dp;
    m->writers = m->tp * m->pp * m->dp;
    m->split_spec = xstrdup(r->target->split_spec);
    m->filter = r->set.filter;
    if (!r->m) return m;
    memcpy(m->uuid, r->m->uuid, sizeof m->uuid);
    memcpy(m->run_uuid, r->m->run_uuid, sizeof m->run_uuid);
    memcpy(m->parent_uuid, r->m->parent_uuid, sizeof m->parent_uuid);
    memcpy(m->created, r->m->created, sizeof m->created);
    return m;
}

/* Tensors that an earlier stage owns. */
static bool *owned_earlier(const struct reshard *r, int pp, const struct param_set *set) {
    bool *elsewhere = xcalloc((size_t)set->n + 1, sizeof *elsewhere);
    int64_t n = pp > 0 ? r->stage_end[pp - 1] : 0;
    for (int i = 0; i < set->n; i++)
        for (int64_t j = 0; j < n && !elsewhere[i]; j++)
            elsewhere[i] = strcmp(r->name[j], set->param[i].name) == 0;
    return elsewhere;
}

static int write_rank(struct reshard *r, int tp, int pp, int dp) {
    struct ckpt_state st;
    struct part_list part = {0};
    struct plan_layout layout = {
        .tp = r->target->tp, .dp = r->target->dp, .tp_rank = tp, .dp_rank = dp};
    TRY(describe(r, tp, pp, dp, &st));
    bool *elsewhere = owned_earlier(r, pp, st.set);
    parts_to_write(&st, &layout, elsewhere, !r->set.no_save_optim, &part);
    free(elsewhere);
    struct ckpt_manifest *share = new_share(r);
    int64_t index = grid_rank_at(st.grid, tp, pp, dp);
    int rc = write_shard(r, share, &st, &part, index);
    if (!rc) rc = ckpt_verify_shard(&r->set, r->tmp, share, index);
    if (!rc) {
        manifest_sort(share);
        manifest_merge(r->m, share);
    } else {
        manifest_free(share);
    }
    part_list_free(&part);
    return rc;
}

/* In the order of ranks, as a save lists its files. */
static int write_ranks(struct reshard *r) {
    const struct ckpt_target *t = r->target;
    struct ckpt_state st;
    TRY(describe(r, 0, 0, 0, &st));
    int n = t->tp * t->pp * t->dp, *at = xcalloc((size_t)n * 3, sizeof *at), rc = 0;
    for (int i = 0; i < n; i++) {
        int c[3] = {i % t->tp, i / t->tp % t->pp, i / (t->tp * t->pp)};
        memcpy(at + 3 * grid_rank_at(st.grid, c[0], c[1], c[2]), c, sizeof c);
    }
    for (int i = 0; !rc && i < n; i++) rc = write_rank(r, at[3 * i], at[3 * i + 1], at[3 * i + 2]);
    free(at);
    return rc;
}

/* ---- all of it ------------------------------------------------------------------------------------------------------ */
static int list_names(struct reshard *r) {
    r->stage_end = xcalloc((size_t)r->target->pp, sizeof *r->stage_end);
    for (int pp = 0; pp < r->target->pp; pp++) {
        struct ckpt_state st;
        TRY(describe(r, 0, pp, 0, &st));
        r->name = xrealloc(r->name, (size_t)(r->n_names + st.set->n + 1) * sizeof *r->name);
        for (int i = 0; i < st.set->n; i++) r->name[r->n_names++] = xstrdup(st.set->param[i].name);
        r->stage_end[pp] = r->n_names;
    }
    return 0;
}

static int make_folder(struct reshard *r) {
    struct ckpt_names names;
    int64_t bytes = 0;
    char *final = xasprintf("%s/iter_%07lld", r->set.save, (long long)r->m->step);
    bool there = folder_exists(final);
    free(final);
    if (there)
        return error_raise(EXIT_CANT_CREATE, "%s holds a checkpoint of step %lld already",
                           r->set.save, (long long)r->m->step);
    for (int64_t i = 0; i < r->from.m->n_tensors; i++)
        bytes += tensor_total_bytes(&r->from.m->tensor[i]);
    if (r->set.filter != CKPT_FILTER_NONE) bytes += bytes / 3; /* the most that chunks fill up */
    bytes += r->m->writers * ((1 << 20) + 65536);
    TRY(folder_free_space(r->set.save, bytes, r->m->writers + 8, NULL));
    ckpt_make_names(r->m, &r->about.state, r->set.reproducible, &names);
    ckpt_take_names(r->m, &names);
    char *tmp = xasprintf("%s/%s", r->set.save, names.folder);
    int rc = folder_remove(tmp); /* of a process that had our number and died */
    if (!rc && mkdir(tmp, 0777) != 0)
        rc = error_raise(exit_code_of_errno(errno), "%s could not be made: %s", tmp,
                         strerror(errno));
    if (rc)
        free(tmp);
    else
        r->tmp = tmp;
    return rc;
}

/* Coverage of each tensor is proved when the folder is finished; here: none was forgotten. */
static int check_complete(const struct reshard *r) {
    int rc = 0;
    for (int64_t i = 0; i < r->from.m->n_tensors; i++)
        if (!manifest_find(r->m, r->from.m->tensor[i].name))
            rc = error_raise(EXIT_RESUME, "%s holds %s, which its job file does not describe",
                             r->from.dir, r->from.m->tensor[i].name);
    return rc;
}

static int write_all(struct reshard *r) {
    TRY(list_names(r));
    r->m = new_share(r);
    TRY(make_folder(r));
    TRY(write_ranks(r));
    manifest_sort(r->m);
    TRY(check_complete(r));
    TRY(folder_sync(r->tmp));
    TRY(ckpt_finish_folder(&r->set, r->tmp, r->m));
    return ckpt_commit_folder(&r->set, r->tmp, r->m->step);
}

static void release(struct reshard *r, int rc) {
    if (rc && r->tmp && folder_exists(r->tmp) && folder_remove(r->tmp) != 0)
        error_note(rc, "and %s remains", r->tmp);
    ckpt_unlock(&r->lock);
    grid_destroy(r->world);
    for (int64_t i = 0; i < r->n_names; i++) free(r->name[i]);
    free(r->name);
    free(r->stage_end);
    manifest_free(r->m);
    about_free(&r->about);
    free(r->tmp);
    free(r->tool);
    free(r->slice);
}

int ckpt_reshard(const char *dir, const char *save, const struct ckpt_target *target, FILE *to) {
    struct reshard r = {.target = target, .world = grid_create_measuring(1, 1, 1, false, 0, 0, 0)};
    int rc = source_open(&r.from, dir);
    if (!rc) rc = about_read(&r.from, &r.about);
    r.set = r.about.settings;
    r.set.save = save;
    r.slice = xmalloc((size_t)CKPT_SLICE);
    if (!rc) rc = ckpt_lock(save, r.world, &r.lock);
    if (!rc) r.set.lock = &r.lock;
    if (!rc) {
        const struct ckpt_manifest *m = r.from.m;
        r.tool = xasprintf("strata checkpoint reshard: %s, of TP %lld PP %lld DP %lld, written "
                           "anew;",
                           m->uuid, (long long)m->tp, (long long)m->pp, (long long)m->dp);
        rc = write_all(&r);
    }
    target->release(target->arg);
    if (!rc)
        fprintf(to,
                "%s/iter_%07lld: TP %d PP %d DP %d, split_spec %s, %lld tensors in %lld shards\n",
                save, (long long)r.m->step, target->tp, target->pp, target->dp, target->split_spec,
                (long long)r.m->n_tensors, (long long)r.m->writers);
    release(&r, rc);
    return source_close(rc, &r.from);
}
