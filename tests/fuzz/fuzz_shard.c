/* Shards of a checkpoint whose checksums agree: changes of the stored ones, or a whole file in place of
 * the first. Read are what a resume takes besides tensors, and some blocks, which the first byte
 * chooses: all of them would take ten times as long. */
/* max_len: 512 */
/* leaks: looked for at the end only, because HDF5 keeps memory between files */
#include <stdlib.h>

#include "../../src/checkpoint/h5_impl.h"
#include "target.h"

#define N_GOLDEN 4
#define N_CHOICES 12 /* of blocks */
#define SHARD(format, i)                                                                           \
    "tests/golden/checkpoint/" format "/iter_0000001/iter_0000001-shard-0000" #i "-of-00004.h5"

static int read_block(const struct shard_reader *r, const struct ckpt_tensor *t,
                      const struct ckpt_block *b) {
    hid_t d = -1;
    int64_t turn = 0;
    char *host = xmalloc((size_t)b->bytes);
    int rc = reader_dataset(r, t, b, &d);
    if (!rc) rc = reader_read(r, d, t, b, &b->box, host);
    if (!rc) rc = reader_check_decoded(r, d, t, b, 1, &turn);
    rc = h5_close(rc, d, b->dataset);
    free(host);
    return rc;
}

static int read_blocks(const struct shard_reader *r, int chosen) {
    int at = 0;
    for (int64_t i = 0; i < r->m->n_tensors; i++)
        for (int64_t j = 0; j < r->m->tensor[i].n_blocks; j++) {
            struct ckpt_block *b = &r->m->tensor[i].block[j];
            if (b->n_chunks > 0) b->chunk[0].opened = false; /* as in a new process */
            if (b->file != r->file_index || at++ % N_CHOICES != chosen) continue;
            TRY(read_block(r, &r->m->tensor[i], b));
        }
    return 0;
}

static int read_state(const struct shard_reader *r) {
    struct ckpt_counters at;
    struct ckpt_row *row = NULL;
    struct ckpt_speed *speed = NULL;
    int64_t n;
    int rc = reader_counters(r, &at);
    if (!rc) rc = reader_history(r, &row, &n);
    if (!rc) rc = reader_speed(r, &speed, &n);
    free(row);
    free(speed);
    return rc;
}

static struct ckpt_manifest *manifest_of(int format) {
    static const char *const dir[] = {"tests/golden/checkpoint/1.0.0/iter_0000001",
                                      "tests/golden/checkpoint/2.0.0/iter_0000001"};
    static struct ckpt_manifest *m[2];
    if (m[format] == NULL && ckpt_read_manifest(dir[format], &m[format]) != 0) error_exit();
    return m[format];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const char *const golden[N_GOLDEN] = {SHARD("1.0.0", 0), SHARD("2.0.0", 0),
                                                 SHARD("1.0.0", 2), SHARD("2.0.0", 2)};
    struct shard_reader r;
    size_t size;
    int which;
    const char *file = fuzz_changed(data, bytes, golden, N_GOLDEN, "\x89HDF", &size, &which);
    int index = which < 2 ? 0 : 2,
        chosen = which < 0 || bytes == 0 ? 0 : data[0] / N_GOLDEN % N_CHOICES;
    struct ckpt_manifest *m = manifest_of(which < 0 ? 0 : which % 2);
    fuzz_file(m->file[index].name, file, size, 0);
    h5_begin(NULL);
    int rc = reader_open(&r, fuzz_folder(), m, index, index);
    if (!rc) rc = read_blocks(&r, chosen);
    if (!rc && index == 0) rc = read_state(&r);
    rc = reader_close(rc, &r);
    h5_end(NULL);
    fuzz_judge(rc);
    return 0;
}
