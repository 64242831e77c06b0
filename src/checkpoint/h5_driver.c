/* The HDF5 file driver that shards are written through: plain positioned writes whose first error is
 * kept and not returned. HDF5 does not survive a failing write: its H5Fclose then frees the file but
 * keeps the id, and the process crashes when the library ends. So it is told that all is well, and
 * the shard is condemned by the error kept here. EINTR and short writes are simply gone on with. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5_impl.h"

#define WRITE_BEHIND ((size_t)256 << 10)

struct outlet_file { /* HDF5 keeps the first member */
    H5FD_t base;
    struct outlet *out;
    haddr_t end_allocated, end_written;
};

static struct outlet_file *outlet_of(const H5FD_t *file) {
    return (struct outlet_file *)(uintptr_t)file;
}

static H5FD_t *outlet_open(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
    struct outlet *const *info = H5Pget_driver_info(access);
    (void)max_address;
    if (!info || !(flags & H5F_ACC_CREAT)) return NULL;
    struct outlet *out = *info;
    out->fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (out->fd < 0) {
        out->error = errno;
        return NULL;
    }
    struct outlet_file *f = xcalloc(1, sizeof *f);
    f->out = out;
    return &f->base;
}

/* The descriptor stays open: the owner of the outlet calls fsync and close. */
static herr_t outlet_close(H5FD_t *file) {
    free(outlet_of(file));
    return 0;
}

/* As the library's own POSIX driver: the bytes of a file do not depend on which of them wrote it. */
static herr_t outlet_query(const H5FD_t *file, unsigned long *flags) {
    (void)file;
    *flags = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
             H5FD_FEAT_AGGREGATE_SMALLDATA;
    return 0;
}

static haddr_t outlet_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return outlet_of(file)->end_allocated;
}

static herr_t outlet_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t address) {
    (void)type;
    outlet_of(file)->end_allocated = address;
    return 0;
}

static haddr_t outlet_get_eof(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return outlet_of(file)->end_written;
}

/* Beyond the end there are zeros. */
static herr_t outlet_read(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n,
                          void *to) {
    struct outlet *out = outlet_of(file)->out;
    size_t done = 0;
    (void)type;
    (void)list;
    while (done < n) {
        ssize_t got = pread(out->fd, (char *)to + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && !out->error) out->error = errno;
        if (got <= 0) break;
        done += (size_t)got;
    }
    memset((char *)to + done, 0, n - done);
    return 0;
}

static herr_t outlet_write(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n,
                           const void *from) {
    struct outlet_file *f = outlet_of(file);
    size_t done = 0;
    (void)type;
    (void)list;
    while (done < n && !f->out->error) {
        ssize_t put = pwrite(f->out->fd, (const char *)from + done, n - done, (off_t)(at + done));
        if (put < 0 && errno != EINTR) f->out->error = errno;
        if (put > 0) done += (size_t)put;
    }
    if (at + n > f->end_written) f->end_written = at + n;
    /* Storage begins at once instead of at fsync, which alone says whether it went well. */
    if (n >= WRITE_BEHIND)
        (void)sync_file_range(f->out->fd, (off_t)at, (off_t)n, SYNC_FILE_RANGE_WRITE);
    return 0;
}

static herr_t outlet_truncate(H5FD_t *file, hid_t list, hbool_t closing) {
    struct outlet_file *f = outlet_of(file);
    (void)list;
    (void)closing;
    if (f->end_allocated == f->end_written) return 0;
    if (!f->out->error && ftruncate(f->out->fd, (off_t)f->end_allocated) != 0)
        f->out->error = errno;
    f->end_written = f->end_allocated;
    return 0;
}

static const H5FD_class_t outlet_class = {
#ifdef H5FD_CLASS_VERSION
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)500,
#endif
    .name = "strata_outlet",
    .maxaddr = INT64_MAX,
    .fc_degree = H5F_CLOSE_SEMI,
    .fapl_size = sizeof(struct outlet *),
    .open = outlet_open,
    .close = outlet_close,
    .query = outlet_query,
    .get_eoa = outlet_get_eoa,
    .set_eoa = outlet_set_eoa,
    .get_eof = outlet_get_eof,
    .read = outlet_read,
    .write = outlet_write,
    .truncate = outlet_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

hid_t h5_write_access(struct outlet *out, bool large, bool chunked) {
    hid_t list = h5_access(), driver = H5FDregister(&outlet_class);
    /* What describes the data lies together: else a few bytes of it behind each aligned dataset would
     * cost up to a MiB of nothing, which the checksum of the file has to be read over. */
    bool fine = list >= 0 && driver >= 0 && H5Pset_driver(list, driver, &out) >= 0 &&
                (!large || H5Pset_meta_block_size(list, H5_ALIGNMENT) >= 0) &&
                (!chunked || H5Pset_alignment(list, 1, 1) >= 0);
    if (driver >= 0) H5FDunregister(driver); /* the list and the file hold it now */
    if (fine) return list;
    if (list >= 0) H5Pclose(list);
    return -1;
}
