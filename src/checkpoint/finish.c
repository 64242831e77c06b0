/* What follows once the bytes of a shard are down: reading it back; once all are: the index and the
 * manifest. The same for a save and for a checkpoint written anew for another layout. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5_impl.h"
#include "fault.h"

static struct ckpt_tensor *tensor_of_part(struct ckpt_manifest *m, const struct param *param,
                                          const struct part *p) {
    char name[CKPT_NAME_MAX + 1];
    part_tensor_name(param, p->role, name, sizeof name);
    for (int64_t i = m->n_tensors - 1; i >= 0; i--)
        if (strcmp(m->tensor[i].name, name) == 0) return &m->tensor[i];
    struct ckpt_tensor *t = manifest_add_tensor(m, name);
    t->role = p->role;
    t->dtype = p->dtype;
    t->n_dims = param->ndim;
    memcpy(t->shape, param->shape, sizeof t->shape);
    return t;
}

struct ckpt_block *manifest_add_part(struct ckpt_manifest *m, const struct param *param,
                                     const struct part *p, struct ckpt_tensor **tensor) {
    struct ckpt_tensor *t = *tensor = tensor_of_part(m, param, p);
    struct ckpt_block *b = manifest_add_block(t);
    b->file = 0;
    b->box = p->box;
    b->bytes = part_bytes(p);
    b->n_crc = ckpt_crc_blocks(b->bytes);
    b->crc = xmalloc((size_t)b->n_crc * sizeof *b->crc);
    if (m->filter != CKPT_FILTER_NONE) {
        chunk_choose(m->filter, &b->box, (int64_t)dtype_size(p->dtype), b->chunk_shape);
        b->n_chunks = chunk_count(&b->box, b->chunk_shape);
        b->chunk = xcalloc((size_t)b->n_chunks, sizeof *b->chunk);
    }
    b->dataset = t->n_blocks == 1 ? xstrdup(t->name)
                                  : xasprintf("%s.%lld", t->name, (long long)t->n_blocks - 1);
    return b;
}

/* Through HDF5: is it the dataset that was meant to be written? And where a filter stands between, do
 * the bytes come out as they went in? */
static int read_datasets(const struct shard_reader *r, struct ckpt_manifest *m, bool sample,
                         int64_t turn) {
    int64_t n = turn, crc_blocks = turn;
    int rc = 0;
    for (int64_t i = 0; !rc && i < m->n_tensors; i++)
        for (int64_t j = 0; !rc && j < m->tensor[i].n_blocks; j++) {
            const struct ckpt_tensor *t = &m->tensor[i];
            hid_t d = -1;
            if (sample && m->filter == CKPT_FILTER_NONE && n++ % 8 != 0) continue;
            rc = reader_dataset(r, t, &t->block[j], &d);
            if (!rc) rc = reader_check_decoded(r, d, t, &t->block[j], sample ? 8 : 1, &crc_blocks);
            rc = h5_close(rc, d, t->name);
        }
    return rc;
}

/* Step 7: from storage, byte by byte, then through HDF5. */
static int read_back(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m,
                     int64_t shard_index) {
    bool sample = set->verify_save == CKPT_VERIFY_SAMPLE;
    struct scan scan = {.dir = dir,
                        .m = m,
                        .fill = true,
                        .sha256 = set->hash_sha256,
                        .drop_cache = true,
                        .one_in = sample ? 8 : 1};
    scan.turn = (int64_t)(crc32c(0, &m->step, sizeof m->step) % 8);
    fault_point("save.verify.before");
    TRY(ckpt_scan_file(&scan));
    fault_point("save.verify.in");
    struct shard_reader r;
    h5_begin(set);
    int rc = reader_open(&r, dir, m, 0, shard_index);
    if (!rc) rc = read_datasets(&r, m, sample, scan.turn);
    fault_point("save.verify.read");
    rc = reader_close(rc, &r);
    h5_end(set);
    fault_point("save.verify.after");
    return rc;
}

int ckpt_verify_shard(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m,
                      int64_t shard_index) {
    int rc = read_back(set, dir, m, shard_index);
    if (rc != EXIT_BAD_DATA) return rc;
    return ckpt_recode(EXIT_IO); /* just written: the storage failed, not an input */
}

static void write_index(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m) {
    char *path = xasprintf("%s/index.h5", dir);
    h5_begin(set);
    int rc = index_write(path, m, set);
    fault_point("save.index.in");
    h5_end(set);
    if (!rc) {
        manifest_add_file(m, "index.h5")->inspection = true;
        struct scan scan = {.dir = dir, .m = m, .fill = true, .one_in = 1};
        scan.file = (int)m->n_files - 1;
        rc = ckpt_scan_file(&scan);
    }
    if (rc) {
        log_warn("checkpoint of step %lld goes without its index: %s", (long long)m->step,
                 error_text());
        error_clear();
        unlink(path);
    }
    free(path);
}

int ckpt_finish_folder(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m) {
    size_t bytes;
    TRY(manifest_check_coverage(m, dir));
    fault_point("save.index.before");
    if (set->index) write_index(set, dir, m);
    fault_point("save.index.after");
    char *text = manifest_text(m, &bytes), *path = xasprintf("%s/%s", dir, CKPT_MANIFEST);
    fault_point("save.manifest.before");
    int rc = ckpt_lock_check(set->lock);
    if (!rc) rc = file_write_atomic(path, text, bytes);
    fault_point("save.manifest.in");
    free(text);
    free(path);
    return rc ? rc : folder_sync(dir);
}
