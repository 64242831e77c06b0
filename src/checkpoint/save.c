/* Writing a checkpoint: the commit protocol. A directory that verifies is complete; a crash at any
 * point leaves the newest committed one whole. Numbers are the steps of doc/checkpoint.md. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"
#include "save_impl.h"

/* ---- step 2: room, a new folder ---------------------------------------------------------------------- */
static int make_folder(const struct save *s, int64_t bytes, const char *folder) {
    TRY(ckpt_lock_check(s->set->lock));
    fault_point("save.folder.lock");
    TRY(dir_make(s->set->save));
    TRY(folder_free_space(s->set->save, bytes, s->m->writers + 8, s->st->told_full));
    TRY(folder_remove(folder)); /* our own, of an attempt that failed */
    fault_point("save.folder.in");
    if (mkdir(folder, 0777) == 0) return 0;
    return error_raise(exit_code_of_errno(errno), "%s could not be made: %s", folder,
                       strerror(errno));
}

/* A limit of this process (ulimit -f) is seen before the first byte is written. */
static int check_file_limit(const struct save *s, int64_t bytes) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return 0;
    if ((int64_t)limit.rlim_cur >= bytes) return 0;
    return error_raise(EXIT_IO,
                       "%s: a shard needs up to %lld bytes, files may have %lld here: see "
                       "ulimit -f",
                       s->tmp, (long long)bytes, (long long)limit.rlim_cur);
}

/* A tensor that several stages hold (the embedding tied to the head) belongs to the lowest one.
 * Collective over the pipeline group. */
static bool *owned_by_earlier_stage(const struct ckpt_state *st) {
    const struct group *pp = grid_group(st->grid, GROUP_PP);
    int64_t n = st->set->n, most = n;
    int me = group_rank(pp), size = group_size(pp);
    comm_allreduce_i64(pp, &most, 1, REDUCE_MAX);
    char(*mine)[17] = xcalloc((size_t)most + 1, sizeof *mine);
    char(*all)[17] = xcalloc((size_t)(most * size) + 1, sizeof *all);
    for (int64_t i = 0; i < n; i++) {
        struct sha256 sha;
        char hex[65];
        sha256_begin(&sha);
        sha256_add(&sha, st->set->param[i].name, strlen(st->set->param[i].name));
        sha256_end(&sha, hex);
        memcpy(mine[i], hex, 16);
    }
    if (most > 0) comm_gather(pp, mine, (size_t)most * sizeof *mine, all);
    bool *elsewhere = xcalloc((size_t)n + 1, sizeof *elsewhere);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < most * me && !elsewhere[i]; j++)
            elsewhere[i] = strcmp(all[j], mine[i]) == 0;
    free(mine);
    free(all);
    return elsewhere;
}

static struct plan_layout layout_of(const struct grid *grid) {
    const struct group *tp = grid_group(grid, GROUP_TP), *dp = grid_group(grid, GROUP_DP);
    return (struct plan_layout){.tp = group_size(tp),
                                .dp = group_size(dp),
                                .tp_rank = group_rank(tp),
                                .dp_rank = group_rank(dp)};
}

/* Of this rank's parts in a file, at most: with alignment or the ends of chunks, what describes the run,
 * and each tensor. */
static int64_t bytes_of_shard(const struct save *s) {
    int64_t bytes = (1 << 20) + 65536 + 4096 * s->part.n;
    for (int64_t i = 0; i < s->part.n; i++) {
        bool aligned =
            s->set->filter == CKPT_FILTER_NONE && part_bytes(&s->part.part[i]) >= H5_ALIGNMENT;
        bytes += part_stored_most(s->set->filter, &s->part.part[i]);
        bytes += aligned ? H5_ALIGNMENT : 0;
    }
    return bytes;
}

static int64_t bytes_of_parts(const struct part_list *list) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < list->n; i++) bytes += part_bytes(&list->part[i]);
    return bytes;
}

static int64_t guest_bytes(const struct guest *g) {
    int64_t bytes = 0;
    for (int64_t k = 0; k < g->n; k++) {
        struct part p = guest_part(&g->part[k]);
        bytes += part_bytes(&p);
    }
    return bytes;
}

size_t ckpt_snapshot_bytes(const struct ckpt_state *state, bool moments) {
    struct plan_layout layout = layout_of(state->grid);
    struct part_list list = {0};
    parts_to_write(state, &layout, NULL, moments, &list);
    size_t bytes = (size_t)bytes_of_parts(&list);
    part_list_free(&list);
    return bytes;
}

/* Of all files, and of this rank's, at most. Collective over the world. */
static int64_t sum_bytes(const struct save *s, int64_t *mine) {
    int n = group_size(s->world);
    int64_t sum = 0, *all = xcalloc((size_t)n, sizeof *all);
    int64_t bytes = bytes_of_shard(s);
    comm_gather(s->world, &bytes, sizeof bytes, all);
    *mine = 0;
    for (int r = 0; r < n; r++) {
        sum += all[r];
        if (s->writer[r] == group_rank(s->world)) *mine += all[r];
    }
    free(all);
    return sum;
}

static int prepare(struct save *s) {
    const struct ckpt_state *st = s->st;
    struct plan_layout layout = layout_of(st->grid);
    fault_point("save.plan.before");
    bool *elsewhere = owned_by_earlier_stage(st);
    fault_point("save.plan.in");
    parts_to_write(st, &layout, elsewhere, !s->set->no_save_optim, &s->part);
    free(elsewhere);
    s->m = xcalloc(1, sizeof *s->m);
    s->m->step = st->at.step;
    s->m->tp = layout.tp;
    s->m->dp = layout.dp;
    s->m->pp = group_size(grid_group(st->grid, GROUP_PP));
    guests_begin(s);
    for (int r = 0; r < group_size(s->world); r++) s->m->writers += s->writer[r] == r;
    s->m->split_spec = xstrdup(st->split_spec ? st->split_spec : "");
    s->m->filter = s->set->filter;
    int64_t shard_bytes, bytes = sum_bytes(s, &shard_bytes);
    struct ckpt_names names;
    ckpt_make_names(s->m, st, s->set->reproducible, &names);
    comm_broadcast(s->world, &names, sizeof names, 0);
    ckpt_take_names(s->m, &names);
    s->tmp = xasprintf("%s/%s", s->set->save, names.folder);
    s->id = (struct shard_identity){.m = s->m,
                                    .index = writer_index(s->writer, group_rank(s->world)),
                                    .grid = st->grid,
                                    .writer = s->writer,
                                    .largest = part_list_largest(&s->part)};
    if (guests_largest(s) > s->id.largest) s->id.largest = guests_largest(s);
    TRY(ckpt_filter_check(s->set));
    TRY(check_file_limit(s, shard_bytes));
    return group_rank(s->world) == 0 ? make_folder(s, bytes, s->tmp) : 0;
}

int phase_begin(struct save *s, const struct ckpt_settings *settings,
                const struct ckpt_state *state) {
    *s = (struct save){.set = settings, .st = state, .world = grid_group(state->grid, GROUP_WORLD)};
    if (!settings->reproducible && state->provenance == NULL) {
        provenance_collect(state, &s->provenance);
        s->described = *state;
        s->described.provenance = s->provenance.text;
        s->described.n_provenance = s->provenance.n;
        s->st = &s->described;
    }
    fault_point("save.folder.before");
    int rc = ckpt_agree(s->world, prepare(s));
    fault_point("save.folder.after");
    return rc;
}

/* ---- steps 3 to 8: one writer -------------------------------------------------------------------------- */
/* A part is whole rows of one tensor: several ranks share a large one along axis 0 only. */
static int fetch_part(const struct save *s, const struct part *p, void *host) {
    const struct ckpt_state *st = s->st;
    const struct param *param = &st->set->param[p->param];
    int64_t row = param_global_count(param) / param->shape[0];
    CHECK(s->m->tp == 1 && s->m->pp == 1 && p->dtype == DTYPE_F32 &&
              box_volume(&p->box) == p->box.count[0] * row,
          "fetched weights are whole rows of fp32, on data-parallel ranks");
    return st->fetch(st->fetch_arg, p->param, p->box.offset[0] * row, p->box.count[0] * row, host);
}

static int copy_part(const struct save *s, const struct part *p, char *host) {
    int rc = 0;
    fault_point("save.copy.before");
    if (s->st->fetch)
        rc = fetch_part(s, p, host);
    else
        part_download(p, &p->box, s->st->be, host);
    fault_point("save.copy.in");
    return rc;
}

void phase_copy(struct save *s, char *host, size_t host_bytes) {
    CHECK(!s->st->fetch, "weights that are fetched need no copy");
    s->copy = host;
    if (!save_writes(s)) {
        parts_hand_over(s, host, host_bytes);
        return;
    }
    int64_t bytes = bytes_of_parts(&s->part);
    for (int i = 0; i < s->n_guests; i++) bytes += guest_bytes(&s->guest[i]);
    CHECK((size_t)bytes <= host_bytes, "%zu bytes planned for the copy, not %lld", host_bytes,
          (long long)bytes);
    for (int64_t i = 0; i < s->part.n; i++) {
        copy_part(s, &s->part.part[i], host);
        host += part_bytes(&s->part.part[i]);
    }
    s->st->be->ops->synchronize(s->st->be);
    guests_copy(s, host);
}

/* The checksums are those of the host copy, computed before HDF5 is called. */
static int write_part(struct save *s, struct shard *shard, const struct param *param,
                      const struct part *p, const char *host) {
    struct ckpt_tensor *t;
    struct ckpt_block *b = manifest_add_part(s->m, param, p, &t);
    for (int64_t k = 0; k < b->n_crc; k++) {
        int64_t at = k * CKPT_CRC_BLOCK, left = b->bytes - at;
        b->crc[k] = crc32c(0, host + at, (size_t)(left < CKPT_CRC_BLOCK ? left : CKPT_CRC_BLOCK));
    }
    fault_point("save.copy.after");
    return shard_write_block(shard, param, t, b, host);
}

/* What the guests handed over. */
static int write_copied(struct save *s, struct shard *shard, const char *copied) {
    int rc = 0;
    for (int i = 0; i < s->n_guests; i++)
        for (int64_t k = 0; !rc && k < s->guest[i].n; k++) {
            struct param param = guest_param(&s->guest[i].part[k]);
            struct part part = guest_part(&s->guest[i].part[k]);
            rc = write_part(s, shard, &param, &part, copied);
            copied += part_bytes(&part);
        }
    return rc;
}

/* From the copy, or part by part from the device. */
static int write_parts(struct save *s, struct shard *shard) {
    const char *copied = s->copy;
    int rc = 0;
    for (int64_t i = 0; !rc && i < s->part.n; i++) {
        const struct part *p = &s->part.part[i];
        char *host = copied == NULL ? xmalloc((size_t)part_bytes(p)) : NULL;
        if (host != NULL) {
            rc = copy_part(s, p, host);
            s->st->be->ops->synchronize(s->st->be);
        }
        if (!rc)
            rc =
                write_part(s, shard, &s->st->set->param[p->param], p, host != NULL ? host : copied);
        if (copied != NULL) copied += part_bytes(p);
        free(host);
    }
    return copied != NULL && !rc ? write_copied(s, shard, copied) : rc;
}

static int write_shard(struct save *s) {
    char name[CKPT_NAME_MAX + 1];
    struct shard shard;
    ckpt_shard_name(name, sizeof name, s->m->step, s->id.index, s->m->writers);
    char *path = xasprintf("%s/%s", s->tmp, name);
    manifest_add_file(s->m, name);
    h5_begin(s->set);
    fault_point("save.write.before");
    int rc = shard_create(&shard, path, &s->id, s->set);
    if (!rc) rc = shard_write_common(&shard, &s->id, s->set, s->st);
    if (!rc) rc = write_parts(s, &shard);
    if (!s->copy) rc = guests_write(rc, s, &shard);
    fault_point("save.write.after");
    rc = shard_close(rc, &shard);
    h5_end(s->set);
    free(path);
    return rc;
}

static void hand_over(struct save *s) {
    size_t bytes = ckpt_passing_bytes(s->st, true, !s->set->no_save_optim);
    char *room = xmalloc(bytes + 1);
    parts_hand_over(s, room, bytes);
    free(room);
}

int phase_write(struct save *s) {
    if (!save_writes(s)) {
        if (!s->copy) hand_over(s);
        return 0;
    }
    int rc = write_shard(s);
    if (!rc) rc = ckpt_verify_shard(s->set, s->tmp, s->m, s->id.index);
    fault_point("save.dirsync.before");
    return rc ? rc : folder_sync(s->tmp);
}

/* ---- steps 9 to 13 ------------------------------------------------------------------------------------------ */
/* Collective: rank 0 gets the shares of all writers, one after the other. */
static int collect_shares(struct save *s) {
    size_t mine_bytes;
    int rc = 0, me = group_rank(s->world), n = group_size(s->world);
    fault_point("save.gather.before");
    manifest_sort(s->m);
    char *mine = manifest_text(s->m, &mine_bytes);
    for (int from = 1; from < n; from++) {
        size_t bytes;
        if (s->writer[from] != from) continue;
        char *text = ckpt_share(s->world, mine, mine_bytes, from, &bytes);
        fault_point("save.gather.in");
        struct ckpt_manifest *share = NULL;
        if (me == 0 && !rc) rc = manifest_parse("a writer's share", text, bytes, &share);
        if (share) manifest_merge(s->m, share);
        free(text);
    }
    free(mine);
    fault_point("save.gather.after");
    if (me == 0) manifest_sort(s->m);
    return rc;
}

int phase_vote(struct save *s, int rc) {
    fault_point("save.vote.before");
    rc = ckpt_agree(s->world, rc);
    fault_point("save.vote.after");
    if (!rc) rc = ckpt_agree(s->world, collect_shares(s));
    fault_point("save.commit.before");
    return rc;
}

int phase_commit(struct save *s) {
    TRY(ckpt_finish_folder(s->set, s->tmp, s->m));
    fault_point("save.manifest.after");
    int rc = ckpt_commit_folder(s->set, s->tmp, s->m->step);
    if (rc || ckpt_retain(s->set, s->m->step) == 0) return rc;
    log_warn("retention after step %lld: %s", (long long)s->m->step, error_text());
    error_clear();
    return 0;
}

int phase_end(struct save *s, int rc) {
    rc = ckpt_agree(s->world, rc);
    fault_point("save.commit.after");
    if (rc && s->tmp && group_rank(s->world) == 0 && folder_remove(s->tmp) != 0)
        error_note(rc, "and it remains where it is until the next start");
    if (!rc && s->st->run_uuid) memcpy(s->st->run_uuid, s->m->run_uuid, 37);
    if (!rc && s->st->parent_uuid) memcpy(s->st->parent_uuid, s->m->uuid, 37);
    if (!rc && s->st->saved_in) *s->st->saved_in = s->set->save;
    for (int64_t i = 0; !rc && s->st->saved_bytes && i < s->m->n_files; i++)
        *s->st->saved_bytes += s->m->file[i].bytes;
    part_list_free(&s->part);
    provenance_free(&s->provenance);
    guests_end(s);
    manifest_free(s->m);
    free(s->tmp);
    return rc;
}

struct ckpt_settings ckpt_second(const struct ckpt_settings *s) {
    struct ckpt_settings second = *s;
    second.save = s->save_second;
    second.lock = s->lock_second;
    second.save_second = NULL;
    second.lock_second = NULL;
    return second;
}

bool phase_try_second(const struct ckpt_settings *settings, const struct group *world, int rc) {
    if (rc == 0 || settings->save_second == NULL) return false;
    char *why = xstrdup(error_text());
    error_clear();
    int64_t lost = ckpt_lock_lost(settings->lock);
    comm_allreduce_i64(world, &lost, 1, REDUCE_MAX);
    if (lost)
        ckpt_record_lines(rc, "", why);
    else if (group_rank(world) == 0)
        log_warn("%s: the save failed and is tried in %s: %s", settings->save,
                 settings->save_second, why);
    free(why);
    return lost == 0;
}

static int save_once(const struct ckpt_settings *settings, const struct ckpt_state *state) {
    struct save s;
    int rc = phase_begin(&s, settings, state);
    if (!rc) rc = phase_vote(&s, phase_write(&s));
    if (!rc && group_rank(s.world) == 0) rc = phase_commit(&s);
    return phase_end(&s, rc);
}

int ckpt_save(const struct ckpt_settings *settings, const struct ckpt_state *state) {
    int rc = save_once(settings, state);
    if (!phase_try_second(settings, grid_group(state->grid, GROUP_WORLD), rc)) return rc;
    struct ckpt_settings second = ckpt_second(settings);
    return save_once(&second, state);
}
