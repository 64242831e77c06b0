/* The filters of HDF5: fletcher32, and shuffle, deflate, fletcher32. What is stored has places, sizes and
 * checksums of its own in the manifest, so that it is verified before HDF5 parses it; what comes out of
 * the filters is compared with the checksums of what went in, because a chunk that was never written
 * reads as zeros, checksum or not. */
#include <stdlib.h>
#include <zlib.h>

#include "h5_impl.h"

#define FLETCHER32_BYTES 4
#define FILTERS_MOST 3
/* In the order in which they are applied. */
static const struct pipeline {
    int n;
    H5Z_filter_t id[FILTERS_MOST];
} pipeline_table[CKPT_FILTERS] = {
    [CKPT_FILTER_FLETCHER32] = {1, {H5Z_FILTER_FLETCHER32}},
    [CKPT_FILTER_DEFLATE] = {3, {H5Z_FILTER_SHUFFLE, H5Z_FILTER_DEFLATE, H5Z_FILTER_FLETCHER32}},
};

static int check_available(enum ckpt_filter filter) {
    const struct pipeline *p = &pipeline_table[filter];
    for (int i = 0; i < p->n; i++)
        if (H5Zfilter_avail(p->id[i]) <= 0)
            return h5_error(EXIT_UNAVAILABLE,
                            "integrity_filter = %s: the HDF5 library of this machine was built "
                            "without %s; none needs nothing of it",
                            ckpt_filter_name(filter),
                            p->id[i] == H5Z_FILTER_DEFLATE ? "zlib" : "that filter");
    return 0;
}

int ckpt_filter_check(const struct ckpt_settings *settings) {
    if (settings->filter == CKPT_FILTER_NONE) return 0;
    h5_begin(settings);
    int rc = check_available(settings->filter);
    h5_end(settings);
    return rc;
}

/* ---- writing -------------------------------------------------------------------------------------------- */
int h5_filter_set(hid_t create, enum ckpt_filter filter, const struct ckpt_block *b) {
    hsize_t shape[CKPT_DIMS];
    for (int d = 0; d < b->box.n; d++) shape[d] = (hsize_t)b->chunk_shape[d];
    bool fine = H5Pset_chunk(create, b->box.n, shape) >= 0 &&
                H5Pset_alloc_time(create, H5D_ALLOC_TIME_INCR) >= 0;
    if (filter == CKPT_FILTER_DEFLATE)
        fine = fine && H5Pset_shuffle(create) >= 0 && H5Pset_deflate(create, 1) >= 0;
    if (fine && H5Pset_fletcher32(create) >= 0) return 0;
    return h5_error(EXIT_IO, "%s: the filter %s could not be set", b->dataset,
                    ckpt_filter_name(filter));
}

hid_t h5_filter_access(void) {
    hid_t list = H5Pcreate(H5P_DATASET_ACCESS);
    if (list < 0 || H5Pset_chunk_cache(list, 0, 0, H5D_CHUNK_CACHE_W0_DEFAULT) >= 0) return list;
    H5Pclose(list);
    return -1;
}

/* Stored chunk `number` of the library's list: which one it is, where, and that all filters ran. `code`
 * for what is not so. */
static int chunk_at(int code, hid_t dataset, hid_t space, const struct ckpt_block *b,
                    int64_t number, int64_t *index, struct ckpt_chunk *c) {
    hsize_t offset[CKPT_DIMS], size = 0;
    unsigned skipped = 0;
    haddr_t at = HADDR_UNDEF;
    *index = 0;
    if (H5Dget_chunk_info(dataset, space, (hsize_t)number, offset, &skipped, &at, &size) < 0 ||
        at == HADDR_UNDEF || size == 0)
        return h5_error(code, "%s: chunk %lld is not stored", b->dataset, (long long)number);
    if (skipped != 0)
        return error_raise(code, "%s: chunk %lld was stored without its filters", b->dataset,
                           (long long)number);
    for (int d = 0; d < b->box.n; d++) {
        int64_t n =
            b->box.count[d] / b->chunk_shape[d] + (b->box.count[d] % b->chunk_shape[d] != 0);
        *index = *index * n + (int64_t)offset[d] / b->chunk_shape[d];
    }
    c->file_offset = (int64_t)at;
    c->bytes = (int64_t)size;
    return 0;
}

/* As many as the block needs. */
static int count_chunks(int code, hid_t dataset, hid_t space, const struct ckpt_block *b) {
    hsize_t n = 0;
    if (space < 0 || H5Dget_num_chunks(dataset, space, &n) < 0 || n != (hsize_t)b->n_chunks)
        return h5_error(code, "%s: %lld of its %lld chunks are stored", b->dataset, (long long)n,
                        (long long)b->n_chunks);
    return 0;
}

int h5_filter_places(hid_t dataset, struct ckpt_block *b) {
    hid_t space = H5Dget_space(dataset);
    int rc = count_chunks(EXIT_IO, dataset, space, b);
    for (int64_t i = 0; !rc && i < b->n_chunks; i++) {
        struct ckpt_chunk c = {0};
        int64_t index;
        rc = chunk_at(EXIT_IO, dataset, space, b, i, &index, &c);
        if (rc) break;
        CHECK(index < b->n_chunks && b->chunk[index].bytes == 0, "chunk %lld of %s comes twice",
              (long long)index, b->dataset);
        b->chunk[index] = c;
    }
    b->file_offset = b->chunk[0].file_offset;
    return h5_close(rc, space, "space");
}

/* ---- reading -------------------------------------------------------------------------------------------- */
static bool same_pipeline(hid_t create, enum ckpt_filter filter) {
    const struct pipeline *p = &pipeline_table[filter];
    if (H5Pget_nfilters(create) != p->n) return false;
    for (int i = 0; i < p->n; i++) {
        unsigned flags, config;
        size_t values = 0;
        if (H5Pget_filter2(create, (unsigned)i, &flags, &values, NULL, 0, NULL, &config) !=
            p->id[i])
            return false;
    }
    return true;
}

static bool same_shape(hid_t create, const struct ckpt_block *b) {
    hsize_t shape[CKPT_DIMS];
    unsigned options = 0;
    bool same = H5Pget_chunk(create, CKPT_DIMS, shape) == b->box.n &&
                H5Pget_chunk_opts(create, &options) >= 0 && options == 0;
    for (int d = 0; same && d < b->box.n; d++) same = shape[d] == (hsize_t)b->chunk_shape[d];
    return same;
}

/* The library makes as much room as a stream asks for, and takes a short one for a whole chunk. */
static int check_inflated(const struct shard_reader *r, hid_t dataset, const struct ckpt_block *b,
                          int64_t i, char *stored, char *whole) {
    struct box box = chunk_box(b, i);
    hsize_t offset[CKPT_DIMS];
    uint32_t skipped = 0;
    uLongf n = (uLongf)chunk_bytes(b);
    int64_t bytes = b->chunk[i].bytes - FLETCHER32_BYTES;
    for (int d = 0; d < box.n; d++) offset[d] = (hsize_t)(box.offset[d] - b->box.offset[d]);
    if (H5Dread_chunk(dataset, H5P_DEFAULT, offset, &skipped, stored) < 0)
        return h5_error(EXIT_BAD_DATA, "%s: chunk %lld of %s could not be read", r->path,
                        (long long)i, b->dataset);
    if (bytes > 0 && uncompress((Bytef *)whole, &n, (const Bytef *)stored, (uLong)bytes) == Z_OK &&
        n == (uLongf)chunk_bytes(b))
        return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: chunk %lld of %s does not decode to the %lld bytes of a chunk", r->path,
                       (long long)i, b->dataset, (long long)chunk_bytes(b));
}

static int check_streams(const struct shard_reader *r, hid_t dataset, const struct ckpt_block *b) {
    char *stored = xmalloc((size_t)chunk_stored_most(chunk_bytes(b)));
    char *whole = xmalloc((size_t)chunk_bytes(b));
    int rc = 0;
    for (int64_t i = 0; !rc && i < b->n_chunks; i++)
        rc = check_inflated(r, dataset, b, i, stored, whole);
    free(stored);
    free(whole);
    return rc;
}

static int check_places(const struct shard_reader *r, hid_t dataset, const struct ckpt_block *b) {
    hid_t space = H5Dget_space(dataset);
    int rc = count_chunks(EXIT_BAD_DATA, dataset, space, b);
    for (int64_t i = 0; !rc && i < b->n_chunks; i++) {
        struct ckpt_chunk c = {0};
        int64_t index;
        rc = chunk_at(EXIT_BAD_DATA, dataset, space, b, i, &index, &c);
        if (!rc && (index >= b->n_chunks || c.file_offset != b->chunk[index].file_offset ||
                    c.bytes != b->chunk[index].bytes))
            rc = error_raise(EXIT_BAD_DATA, "%s: %s does not lie where the manifest says", r->path,
                             b->dataset);
    }
    return h5_close(rc, space, "space");
}

int reader_check_chunks(const struct shard_reader *r, hid_t dataset, hid_t create,
                        const struct ckpt_block *b) {
    if (H5Pget_layout(create) != H5D_CHUNKED || H5Pget_external_count(create) != 0 ||
        !same_shape(create, b) || !same_pipeline(create, r->m->filter))
        return h5_error(EXIT_BAD_DATA,
                        "%s: %s is not stored in chunks of the manifest's extent behind the filter "
                        "%s alone",
                        r->path, b->dataset, ckpt_filter_name(r->m->filter));
    TRY(check_available(r->m->filter));
    /* Once: the library walks its list from the beginning for each chunk. */
    if (b->chunk->opened) return 0;
    TRY(check_places(r, dataset, b));
    if (r->m->filter == CKPT_FILTER_DEFLATE) TRY(check_streams(r, dataset, b));
    b->chunk->opened = true;
    return 0;
}

static int differs(const struct shard_reader *r, const struct ckpt_tensor *t,
                   const struct ckpt_block *b, int64_t k, uint32_t crc) {
    char box[160];
    int64_t element = (int64_t)dtype_size(t->dtype), end = (k + 1) * CKPT_CRC_BLOCK;
    box_text(&b->box, box, sizeof box);
    if (end > b->bytes) end = b->bytes;
    return error_raise(EXIT_BAD_DATA,
                       "%s: tensor %s is damaged: elements %lld to %lld of dataset %s (box %s) "
                       "come out of the filter with CRC32C %08x, they went in with %08x",
                       r->path, t->name, (long long)(k * CKPT_CRC_BLOCK / element),
                       (long long)(end / element - 1), b->dataset, box, crc, b->crc[k]);
}

int passing_check(struct passing *p, const struct shard_reader *r, const struct ckpt_tensor *t,
                  const struct ckpt_block *b, const struct box *sub, const void *host) {
    int64_t first, element = (int64_t)dtype_size(t->dtype);
    const char *bytes = host;
    if (b->n_chunks == 0 || !box_is_flat(&b->box, sub, &first)) return 0;
    first *= element;
    int64_t end = first + box_volume(sub) * element;
    if (p->block != b || p->at != first) *p = (struct passing){.block = b, .at = first};
    while (p->at < end) {
        int64_t k = p->at / CKPT_CRC_BLOCK, stop = (k + 1) * CKPT_CRC_BLOCK;
        if (stop > b->bytes) stop = b->bytes;
        bool complete = stop <= end;
        if (!complete) stop = end;
        if (p->at % CKPT_CRC_BLOCK == 0) p->whole = true, p->crc = 0;
        if (p->whole) p->crc = crc32c(p->crc, bytes, (size_t)(stop - p->at));
        bytes += stop - p->at;
        p->at = stop;
        if (complete && p->whole && p->crc != b->crc[k]) return differs(r, t, b, k, p->crc);
    }
    return 0;
}

/* Some CRC block in bytes [first, end) is one of those that are looked at. */
static bool wanted(int64_t first, int64_t end, int64_t one_in, int64_t turn) {
    for (int64_t k = first / CKPT_CRC_BLOCK; k * CKPT_CRC_BLOCK < end; k++)
        if ((turn + k) % one_in == 0) return true;
    return false;
}

int reader_check_decoded(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                         const struct ckpt_block *b, int64_t one_in, int64_t *turn) {
    int64_t element = (int64_t)dtype_size(t->dtype);
    struct passing passing = {0};
    if (b->n_chunks == 0) return 0;
    char *host = xmalloc((size_t)chunk_bytes(b));
    int rc = 0;
    for (int64_t i = 0; !rc && i < b->n_chunks; i++) {
        int64_t first, end;
        chunk_elements(b, i, &first, &end);
        if (!wanted(first * element, end * element, one_in, *turn)) continue;
        struct box box = chunk_box(b, i);
        rc = reader_read(r, dataset, t, b, &box, host);
        if (!rc) rc = passing_check(&passing, r, t, b, &box, host);
    }
    *turn += b->n_crc;
    free(host);
    return rc;
}
