/* The HDF5 file drivers. Writing: plain positioned writes whose first error is kept and not returned.
 * HDF5 does not survive a failing write: its H5Fclose then frees the file but keeps the id, and the
 * process crashes when the library ends. So each call reports success to HDF5, and the caller
 * refuses the file by the error kept here. Reading: positioned reads whose errno goes into the library's error stack too,
 * so that whoever reports the failing call knows why. EINTR and short transfers are gone on with; an
 * error that a network file system gets over is tried again after a moment. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "h5.h"

#define WRITE_BEHIND ((size_t)256 << 10)

/* As the library's own POSIX driver: the bytes of a file do not depend on which of them wrote it. */
#define FEATURES                                                                                   \
    (H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |         \
     H5FD_FEAT_AGGREGATE_SMALLDATA)

/* ---- writing ------------------------------------------------------------------------------------- */
struct outlet_file { /* HDF5 keeps the first member */
    H5FD_t base;
    struct h5_outlet *out;
    haddr_t end_allocated, end_written;
};

static struct outlet_file *outlet_of(const H5FD_t *file) {
    return (struct outlet_file *)(uintptr_t)file;
}

static H5FD_t *outlet_open(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
    struct h5_outlet *const *info = H5Pget_driver_info(access);
    (void)max_address;
    if (!info || !(flags & H5F_ACC_CREAT)) return NULL;
    struct h5_outlet *out = *info;
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

static herr_t outlet_query(const H5FD_t *file, unsigned long *flags) {
    (void)file;
    *flags = FEATURES;
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
    struct h5_outlet *out = outlet_of(file)->out;
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
    .fapl_size = sizeof(struct h5_outlet *),
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

/* ---- reading ------------------------------------------------------------------------------------- */
struct inlet_file {
    H5FD_t base;
    struct h5_inlet *in;
    int fd;
    haddr_t end_allocated, size;
};

static struct inlet_file *inlet_of(const H5FD_t *file) {
    return (struct inlet_file *)(uintptr_t)file;
}

/* A name that is not there says something about the folder, and nothing about the storage. */
static bool is_missing(int error) {
    return error == ENOENT || error == ENOTDIR;
}

/* The name by which h5_take_reason knows the entry among those of the library. */
#define ENTRY "strata_inlet"
static void note(struct h5_inlet *in, int error) {
    if (!is_missing(error) && in->error == 0) in->error = error;
    H5Epush2(H5E_DEFAULT, __FILE__, ENTRY, __LINE__, H5E_ERR_CLS, H5E_VFL, H5E_READERROR,
             "errno %d: %s", error, strerror(error));
}

static H5FD_t *inlet_open(const char *name, unsigned flags, hid_t access, haddr_t max_address) {
    struct h5_inlet *const *info = H5Pget_driver_info(access);
    struct stat st;
    int fd, tries = 0;
    (void)max_address;
    if (!info || (flags & (H5F_ACC_RDWR | H5F_ACC_CREAT | H5F_ACC_TRUNC))) return NULL;
    do {
        fd = open(name, O_RDONLY | O_CLOEXEC);
    } while (fd < 0 && file_try_again(errno, &tries));
    if (fd < 0 || fstat(fd, &st) != 0) {
        note(*info, errno);
        if (fd >= 0) close(fd);
        return NULL;
    }
    struct inlet_file *f = xcalloc(1, sizeof *f);
    f->in = *info;
    f->fd = fd;
    f->size = (haddr_t)st.st_size;
    return &f->base;
}

static herr_t inlet_close(H5FD_t *file) {
    close(inlet_of(file)->fd); /* nothing was written */
    free(inlet_of(file));
    return 0;
}

static haddr_t inlet_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return inlet_of(file)->end_allocated;
}

static herr_t inlet_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t address) {
    (void)type;
    inlet_of(file)->end_allocated = address;
    return 0;
}

static haddr_t inlet_get_eof(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return inlet_of(file)->size;
}

/* Beyond the end there are zeros, as with the library's own driver. Where the file was longer when it
 * was opened, somebody has cut it meanwhile. */
static herr_t inlet_read(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n,
                         void *to) {
    struct inlet_file *f = inlet_of(file);
    size_t done = 0;
    int tries = 0;
    (void)type;
    (void)list;
    if (at > INT64_MAX || n > (size_t)INT64_MAX - at) return -1;
    while (done < n) {
        ssize_t got = pread(f->fd, (char *)to + done, n - done, (off_t)(at + done));
        if (got < 0 && file_try_again(errno, &tries)) continue;
        if (got < 0) {
            note(f->in, errno);
            return -1;
        }
        if (got == 0 && at + done < f->size) {
            note(f->in, ENODATA);
            return -1;
        }
        if (got == 0) break;
        done += (size_t)got;
    }
    memset((char *)to + done, 0, n - done);
    return 0;
}

static herr_t inlet_write(H5FD_t *file, H5FD_mem_t type, hid_t list, haddr_t at, size_t n,
                          const void *from) {
    (void)file, (void)type, (void)list, (void)at, (void)n, (void)from;
    return -1;
}

static const H5FD_class_t inlet_class = {
#ifdef H5FD_CLASS_VERSION
    .version = H5FD_CLASS_VERSION,
    .value = (H5FD_class_value_t)501,
#endif
    .name = "strata_inlet",
    .maxaddr = INT64_MAX,
    .fc_degree = H5F_CLOSE_SEMI,
    .fapl_size = sizeof(struct h5_inlet *),
    .open = inlet_open,
    .close = inlet_close,
    .query = outlet_query,
    .get_eoa = inlet_get_eoa,
    .set_eoa = inlet_set_eoa,
    .get_eof = inlet_get_eof,
    .read = inlet_read,
    .write = inlet_write,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

/* ---- both ---------------------------------------------------------------------------------------- */
/* The list, and the file opened with it, hold the driver afterwards. */
static bool use(hid_t access, const H5FD_class_t *class, const void *info) {
    hid_t driver = H5FDregister(class);
    bool fine = driver >= 0 && H5Pset_driver(access, driver, info) >= 0;
    if (driver >= 0) H5FDunregister(driver);
    return fine;
}

bool h5_use_outlet(hid_t access, struct h5_outlet *out) {
    return use(access, &outlet_class, &out);
}

bool h5_use_inlet(hid_t access, struct h5_inlet *in) {
    return use(access, &inlet_class, &in);
}

struct reason {
    char *text;
    size_t size;
    int error; /* errno of the storage; ENOMEM too if the library had no memory */
};

/* The stack is walked from the library's entry inwards: the last message is the cause. */
static herr_t keep_reason(unsigned n, const H5E_error2_t *e, void *arg) {
    struct reason *r = arg;
    (void)n;
    if (e->desc) snprintf(r->text, r->size, "%s", e->desc);
    if (e->maj_num == H5E_RESOURCE && (e->min_num == H5E_NOSPACE || e->min_num == H5E_CANTALLOC))
        r->error = ENOMEM;
    if (e->func_name && e->desc && strcmp(e->func_name, ENTRY) == 0)
        (void)sscanf(e->desc, "errno %d", &r->error);
    return 0;
}

int h5_take_reason(int code, char *text, size_t size) {
    struct reason r = {.text = text, .size = size};
    text[0] = 0;
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_DOWNWARD, keep_reason, &r);
    H5Eclear2(H5E_DEFAULT);
    return r.error == 0 || is_missing(r.error) ? code : file_code_of_errno(r.error);
}
