/* Writing a checkpoint: the commit protocol. A directory that verifies is complete; a crash at any
 * point leaves the newest committed one whole. Numbers are the steps of doc/checkpoint.md. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "h5_impl.h"

struct save {
    const struct ckpt_settings *set;
    const struct ckpt_state *st;
    const struct group *world;
    struct ckpt_manifest *m; /* this writer's share; on rank 0 all in the end */
    struct shard_identity id;
    struct part_list part;
    char *tmp, *shard_path;
};

/* ---- identity (rank 0, then broadcast) -------------------------------------------------------------- */
struct names {
    char uuid[37], run_uuid[37], parent_uuid[37], created[32], folder[96];
};

static void format_uuid(const uint8_t b[16], int version, char uuid[37]) {
    char *at = uuid;
    for (int i = 0; i < 16; i++) {
        unsigned v = b[i];
        if (i == 6) v = (v & 0x0f) | (unsigned)version << 4;
        if (i == 8) v = (v & 0x3f) | 0x80;
        at += snprintf(at, 4, "%02x%s", v, i == 3 || i == 5 || i == 7 || i == 9 ? "-" : "");
    }
}

static void random_uuid(char uuid[37]) {
    uint8_t b[16];
    CHECK(getrandom(b, sizeof b, 0) == sizeof b, "getrandom: %s", strerror(errno));
    format_uuid(b, 4, uuid);
}

/* The same job, step and layout give the same name. */
static void derived_uuid(const struct save *s, const char *what, int64_t step, char uuid[37]) {
    char *text = xasprintf("%s\n%s\n%lld %lld %lld %lld %s %lld\n", what,
                           s->st->used_ini ? s->st->used_ini : "", (long long)step,
                           (long long)s->m->tp, (long long)s->m->pp, (long long)s->m->dp,
                           s->m->split_spec, (long long)s->m->writers);
    struct sha256 sha;
    char hex[65];
    uint8_t b[16];
    sha256_begin(&sha);
    sha256_add(&sha, text, strlen(text));
    sha256_end(&sha, hex);
    for (int i = 0; i < 16; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        b[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    format_uuid(b, 8, uuid);
    free(text);
}

static void make_created(bool reproducible, char created[32]) {
    int64_t seconds = 0;
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    if (!reproducible) {
        clock_utc(created, false);
        return;
    }
    if (epoch && !parse_int64(epoch, &seconds)) seconds = 0;
    time_t t = (time_t)seconds;
    struct tm tm;
    gmtime_r(&t, &tm);
    strftime(created, 32, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void make_names(const struct save *s, struct names *n) {
    const char *job = getenv("SLURM_JOB_ID"), *restart = getenv("SLURM_RESTART_COUNT");
    char pid[32];
    memset(n, 0, sizeof *n);
    snprintf(pid, sizeof pid, "pid%ld", (long)getpid());
    snprintf(n->folder, sizeof n->folder, "iter_%07lld.tmp-%.32s-%.16s", (long long)s->m->step,
             job ? job : pid, restart ? restart : "0");
    make_created(s->set->reproducible, n->created);
    if (s->set->reproducible) {
        derived_uuid(s, "checkpoint", s->m->step, n->uuid);
        derived_uuid(s, "run", 0, n->run_uuid);
        memset(n->parent_uuid, '0', 36);
        n->parent_uuid[8] = n->parent_uuid[13] = n->parent_uuid[18] = n->parent_uuid[23] = '-';
        return;
    }
    random_uuid(n->uuid);
    if (s->st->run_uuid && s->st->run_uuid[0])
        snprintf(n->run_uuid, sizeof n->run_uuid, "%s", s->st->run_uuid);
    else
        random_uuid(n->run_uuid);
    if (s->st->parent_uuid)
        snprintf(n->parent_uuid, sizeof n->parent_uuid, "%s", s->st->parent_uuid);
}

/* ---- step 2: room, a new folder ---------------------------------------------------------------------- */
static int make_folder(const struct save *s, int64_t bytes, const char *folder) {
    TRY(ckpt_lock_check(s->set->lock));
    TRY(dir_make(s->set->save));
    TRY(folder_free_space(s->set->save, bytes, s->m->writers + 8));
    TRY(folder_remove(folder)); /* our own, of an attempt that failed */
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

static int begin(struct save *s) {
    const struct ckpt_state *st = s->st;
    const struct group *tp = grid_group(st->grid, GROUP_TP), *dp = grid_group(st->grid, GROUP_DP);
    struct plan_layout layout = {.tp = group_size(tp),
                                 .dp = group_size(dp),
                                 .tp_rank = group_rank(tp),
                                 .dp_rank = group_rank(dp)};
    bool *elsewhere = owned_by_earlier_stage(st);
    parts_to_write(st, &layout, elsewhere, !s->set->no_save_optim, &s->part);
    free(elsewhere);
    s->m = xcalloc(1, sizeof *s->m);
    s->m->step = st->at.step;
    s->m->tp = layout.tp;
    s->m->dp = layout.dp;
    s->m->pp = group_size(grid_group(st->grid, GROUP_PP));
    s->m->writers = group_size(s->world);
    s->m->split_spec = xstrdup(st->split_spec ? st->split_spec : "");
    int64_t bytes = (1 << 20) + 65536; /* alignment and what describes the run */
    for (int64_t i = 0; i < s->part.n; i++) bytes += part_bytes(&s->part.part[i]) + 4096;
    int64_t shard_bytes = bytes;
    comm_allreduce_i64(s->world, &bytes, 1, REDUCE_SUM);
    struct names names;
    make_names(s, &names);
    comm_broadcast(s->world, &names, sizeof names, 0);
    memcpy(s->m->uuid, names.uuid, sizeof names.uuid);
    memcpy(s->m->run_uuid, names.run_uuid, sizeof names.run_uuid);
    memcpy(s->m->parent_uuid, names.parent_uuid, sizeof names.parent_uuid);
    memcpy(s->m->created, names.created, sizeof names.created);
    s->tmp = xasprintf("%s/%s", s->set->save, names.folder);
    s->id = (struct shard_identity){.m = s->m, .index = group_rank(s->world), .grid = st->grid};
    TRY(check_file_limit(s, shard_bytes));
    return group_rank(s->world) == 0 ? make_folder(s, bytes, s->tmp) : 0;
}

/* ---- steps 3 to 8: one writer -------------------------------------------------------------------------- */
static void name_block(const struct ckpt_tensor *t, struct ckpt_block *b) {
    if (t->n_blocks == 1)
        b->dataset = xstrdup(t->name);
    else
        b->dataset = xasprintf("%s.%lld", t->name, (long long)t->n_blocks - 1);
}

/* The host copy is taken, its checksums computed, and only then is HDF5 called. */
static int write_part(struct save *s, struct shard *shard, const struct part *p) {
    const struct param *param = &s->st->set->param[p->param];
    char name[CKPT_NAME_MAX + 1];
    part_tensor_name(param, p->role, name, sizeof name);
    struct ckpt_tensor *t = s->m->n_tensors ? &s->m->tensor[s->m->n_tensors - 1] : NULL;
    for (int64_t i = s->m->n_tensors - 1; i >= 0 && strcmp(t->name, name) != 0; i--)
        t = &s->m->tensor[i];
    if (!t || strcmp(t->name, name) != 0) {
        t = manifest_add_tensor(s->m, name);
        t->role = p->role;
        t->dtype = p->dtype;
        t->n_dims = param->ndim;
        memcpy(t->shape, param->shape, sizeof t->shape);
    }
    struct ckpt_block *b = manifest_add_block(t);
    b->file = 0;
    b->box = p->box;
    b->bytes = part_bytes(p);
    b->n_crc = ckpt_crc_blocks(b->bytes);
    b->crc = xmalloc((size_t)b->n_crc * sizeof *b->crc);
    name_block(t, b);
    char *host = xmalloc((size_t)b->bytes);
    part_download(p, &p->box, s->st->be, host);
    s->st->be->ops->synchronize(s->st->be);
    for (int64_t k = 0; k < b->n_crc; k++) {
        int64_t at = k * CKPT_CRC_BLOCK, left = b->bytes - at;
        b->crc[k] = crc32c(0, host + at, (size_t)(left < CKPT_CRC_BLOCK ? left : CKPT_CRC_BLOCK));
    }
    int rc = shard_write_block(shard, param, t, b, host);
    free(host);
    return rc;
}

static int write_shard(struct save *s) {
    char name[CKPT_NAME_MAX + 1];
    struct shard shard;
    ckpt_shard_name(name, sizeof name, s->m->step, s->id.index, s->m->writers);
    s->shard_path = xasprintf("%s/%s", s->tmp, name);
    manifest_add_file(s->m, name);
    h5_begin(s->set);
    int rc = shard_create(&shard, s->shard_path, &s->id, s->set);
    if (!rc) rc = shard_write_common(&shard, &s->id, s->set, s->st);
    for (int64_t i = 0; !rc && i < s->part.n; i++) rc = write_part(s, &shard, &s->part.part[i]);
    rc = shard_close(rc, &shard);
    h5_end(s->set);
    return rc;
}

/* Step 7: from storage, byte by byte, then through HDF5. */
static int verify_shard(struct save *s) {
    bool sample = s->set->verify_save == CKPT_VERIFY_SAMPLE;
    struct scan scan = {.dir = s->tmp,
                        .m = s->m,
                        .fill = true,
                        .sha256 = s->set->hash_sha256,
                        .drop_cache = true,
                        .one_in = sample ? 8 : 1};
    scan.turn = (int64_t)(crc32c(0, &s->m->step, sizeof s->m->step) % 8);
    TRY(ckpt_scan_file(&scan));
    struct shard_reader r;
    h5_begin(s->set);
    int rc = reader_open(&r, s->tmp, s->m, 0, s->id.index);
    int64_t n = scan.turn;
    for (int64_t i = 0; !rc && i < s->m->n_tensors; i++)
        for (int64_t j = 0; !rc && j < s->m->tensor[i].n_blocks; j++) {
            hid_t d = -1;
            if (sample && n++ % 8 != 0) continue;
            rc = reader_dataset(&r, &s->m->tensor[i], &s->m->tensor[i].block[j], &d);
            rc = h5_close(rc, d, s->m->tensor[i].name);
        }
    rc = reader_close(rc, &r);
    h5_end(s->set);
    return rc;
}

/* ---- steps 9 to 13 ------------------------------------------------------------------------------------------ */
/* Collective: rank 0 gets the shares of all writers, one after the other. */
static int collect_shares(struct save *s) {
    size_t mine_bytes;
    int rc = 0, me = group_rank(s->world), n = group_size(s->world);
    manifest_sort(s->m);
    char *mine = manifest_text(s->m, &mine_bytes);
    for (int from = 1; from < n; from++) {
        size_t bytes;
        char *text = ckpt_share(s->world, mine, mine_bytes, from, &bytes);
        struct ckpt_manifest *share = NULL;
        if (me == 0 && !rc) rc = manifest_parse("a writer's share", text, bytes, &share);
        if (share) manifest_merge(s->m, share);
        free(text);
    }
    free(mine);
    if (me == 0) manifest_sort(s->m);
    return rc;
}

static void write_index(struct save *s) {
    char *path = xasprintf("%s/index.h5", s->tmp);
    h5_begin(s->set);
    int rc = index_write(path, s->m, s->set);
    h5_end(s->set);
    if (!rc) {
        manifest_add_file(s->m, "index.h5")->inspection = true;
        struct scan scan = {.dir = s->tmp, .m = s->m, .fill = true, .one_in = 1};
        scan.file = (int)s->m->n_files - 1;
        rc = ckpt_scan_file(&scan);
    }
    if (rc) {
        log_warn("checkpoint of step %lld goes without its index: %s", (long long)s->m->step,
                 error_text());
        error_clear();
        unlink(path);
    }
    free(path);
}

static int commit(struct save *s) {
    TRY(manifest_check_coverage(s->m, s->tmp));
    if (s->set->index) write_index(s);
    size_t bytes;
    char *text = manifest_text(s->m, &bytes), *path = xasprintf("%s/%s", s->tmp, CKPT_MANIFEST);
    int rc = file_write_atomic(path, text, bytes);
    free(text);
    free(path);
    if (!rc) rc = folder_sync(s->tmp);
    if (!rc) rc = ckpt_lock_check(s->set->lock);
    if (!rc) rc = ckpt_commit_folder(s->set->save, s->tmp, s->m->step);
    if (rc || ckpt_retain(s->set, s->m->step) == 0) return rc;
    log_warn("retention after step %lld: %s", (long long)s->m->step, error_text());
    error_clear();
    return 0;
}

static void end(struct save *s, int rc) {
    if (rc && s->tmp && group_rank(s->world) == 0 && folder_remove(s->tmp) != 0)
        error_note(rc, "and it remains where it is until the next start");
    if (!rc && s->st->run_uuid) memcpy(s->st->run_uuid, s->m->run_uuid, 37);
    if (!rc && s->st->parent_uuid) memcpy(s->st->parent_uuid, s->m->uuid, 37);
    part_list_free(&s->part);
    manifest_free(s->m);
    free(s->tmp);
    free(s->shard_path);
}

int ckpt_save(const struct ckpt_settings *settings, const struct ckpt_state *state) {
    struct save s = {.set = settings, .st = state};
    s.world = grid_group(state->grid, GROUP_WORLD);
    int rc = ckpt_agree(s.world, begin(&s));
    if (!rc) {
        rc = write_shard(&s);
        if (!rc) rc = verify_shard(&s);
        if (!rc) rc = folder_sync(s.tmp);
        rc = ckpt_agree(s.world, rc);
    }
    if (!rc) rc = ckpt_agree(s.world, collect_shares(&s));
    if (!rc) rc = ckpt_agree(s.world, group_rank(s.world) == 0 ? commit(&s) : 0);
    end(&s, rc);
    return rc;
}
