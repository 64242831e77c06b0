/* The HDF5 file of the index: one dataset per column, contiguous, with a CRC32C each; written whole
 * under another name, then renamed. The settings of creation are those of the checkpoint shards
 * (doc/checkpoint.md), so that equal data give equal bytes. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "h5.h"
#include "index_impl.h"

#define FORMAT "strata-dataset"
#define FORMAT_VERSION 2 /* 1 had no stamps and no notes */
#define SLICE_BYTES ((size_t)64 << 20)
#define COLUMN_BYTES_MAX ((hsize_t)1 << 40)

/* exit_code is for what the file holds: where the storage failed, the code returned says so. */
static int fail(int exit_code, const char *path, const char *what) {
    char why[200];
    exit_code = h5_take_reason(exit_code, why, sizeof why);
    return error_raise(exit_code, "dataset index %s: %s failed: %s", path, what,
                       why[0] ? why : "no reason given");
}

static hid_t memory_type(enum index_column c) {
    switch (column_kind[c].type) {
    case COLUMN_I64:
        return H5T_NATIVE_INT64;
    case COLUMN_I32:
        return H5T_NATIVE_INT32;
    default:
        return H5T_NATIVE_UINT8;
    }
}

static hid_t file_type(enum index_column c) {
    switch (column_kind[c].type) {
    case COLUMN_I64:
        return H5T_STD_I64LE;
    case COLUMN_I32:
        return H5T_STD_I32LE;
    default:
        return H5T_STD_U8LE;
    }
}

/* ---- attributes ------------------------------------------------------------------------------ */

static bool put_string(hid_t at, const char *name, const char *text) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, strlen(text) + 1);
    H5Tset_cset(type, H5T_CSET_UTF8);
    hid_t a = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    bool good = a >= 0 && H5Awrite(a, type, text) >= 0;
    if (a >= 0) good = H5Aclose(a) >= 0 && good;
    H5Sclose(space);
    H5Tclose(type);
    return good;
}

static bool put_i64(hid_t at, const char *name, int64_t v) {
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t a = H5Acreate2(at, name, H5T_STD_I64LE, space, H5P_DEFAULT, H5P_DEFAULT);
    bool good = a >= 0 && H5Awrite(a, H5T_NATIVE_INT64, &v) >= 0;
    if (a >= 0) good = H5Aclose(a) >= 0 && good;
    H5Sclose(space);
    return good;
}

/* A fixed-length string attribute of less than `bytes` bytes. */
static bool get_string(hid_t at, const char *name, char *text, size_t bytes) {
    if (H5Aexists(at, name) <= 0) return false;
    hid_t a = H5Aopen(at, name, H5P_DEFAULT), type = H5Aget_type(a);
    bool good = type >= 0 && H5Tget_class(type) == H5T_STRING && !H5Tis_variable_str(type) &&
                H5Tget_size(type) <= bytes && H5Aget_storage_size(a) <= bytes;
    memset(text, 0, bytes);
    good = good && H5Aread(a, type, text) >= 0;
    text[bytes - 1] = '\0';
    if (type >= 0) H5Tclose(type);
    H5Aclose(a);
    return good;
}

static bool get_i64(hid_t at, const char *name, int64_t *v) {
    if (H5Aexists(at, name) <= 0) return false;
    hid_t a = H5Aopen(at, name, H5P_DEFAULT), space = H5Aget_space(a);
    bool good = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
                H5Aread(a, H5T_NATIVE_INT64, v) >= 0;
    if (space >= 0) H5Sclose(space);
    H5Aclose(a);
    return good;
}

/* ---- writing --------------------------------------------------------------------------------- */

static hid_t create_file(const char *path, struct h5_outlet *out) {
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE);
    h5_use_outlet(access, out);
    H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110);
    H5Pset_alignment(access, 1 << 20, 1 << 20);
    H5Pset_fclose_degree(access, H5F_CLOSE_SEMI);
    H5Pset_obj_track_times(creation, false);
    H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
    hid_t file = H5Fcreate(path, H5F_ACC_EXCL, creation, access);
    H5Pclose(creation);
    H5Pclose(access);
    return file;
}

/* In slices, so that HDF5 needs no large buffer of its own. */
static bool transfer(hid_t data, hid_t space, enum index_column c, hsize_t n, void *memory,
                     bool write) {
    size_t size = column_size(c);
    for (hsize_t first = 0; first < n;) {
        hsize_t count = SLICE_BYTES / size;
        if (count > n - first) count = n - first;
        hid_t mem = H5Screate_simple(1, &count, NULL);
        void *at = (char *)memory + first * size;
        bool good = H5Sselect_hyperslab(space, H5S_SELECT_SET, &first, NULL, &count, NULL) >= 0 &&
                    (write ? H5Dwrite(data, memory_type(c), mem, space, H5P_DEFAULT, at)
                           : H5Dread(data, memory_type(c), mem, space, H5P_DEFAULT, at)) >= 0;
        H5Sclose(mem);
        if (!good) return false;
        first += count;
    }
    return true;
}

static bool write_column(hid_t file, const struct index *x, enum index_column c) {
    const struct column *col = &x->col[c];
    hsize_t n = (hsize_t)col->n;
    hid_t plist = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, &n, NULL);
    H5Pset_layout(plist, H5D_CONTIGUOUS);
    H5Pset_alloc_time(plist, H5D_ALLOC_TIME_EARLY);
    H5Pset_fill_time(plist, H5D_FILL_TIME_NEVER);
    H5Pset_obj_track_times(plist, false);
    hid_t data =
        H5Dcreate2(file, column_kind[c].name, file_type(c), space, H5P_DEFAULT, plist, H5P_DEFAULT);
    uint32_t crc = crc32c(0, col->data, (size_t)n * column_size(c));
    bool good = data >= 0 && transfer(data, space, c, n, col->data, true) &&
                put_string(data, "description", column_kind[c].description) &&
                put_i64(data, "crc32c", crc);
    if (data >= 0) good = H5Dclose(data) >= 0 && good;
    H5Sclose(space);
    H5Pclose(plist);
    return good;
}

static bool write_header(hid_t file, const struct index *x, const char *settings) {
    return put_string(file, "format", FORMAT) && put_i64(file, "format_version", FORMAT_VERSION) &&
           put_string(file, "title", "Dataset index: token ids, labels, image sizes, lengths") &&
           put_string(file, "source", "strata " STRATA_VERSION) &&
           put_string(file, "settings", settings) && put_string(file, "digest", x->digest) &&
           put_string(file, "fingerprint", x->fingerprint) && put_string(file, "notes", x->notes) &&
           put_i64(file, "samples", index_samples(x)) &&
           put_i64(file, "skipped_bad_image", x->skipped_bad_image) &&
           put_i64(file, "skipped_no_target", x->skipped_no_target);
}

static int write_file(const char *path, const struct index *x, const char *settings) {
    struct h5_outlet out = {.fd = -1};
    hid_t file = create_file(path, &out);
    if (file < 0 && out.error != 0)
        return error_raise(EXIT_CANT_CREATE, "dataset index %s cannot be created: %s", path,
                           strerror(out.error));
    if (file < 0) return fail(EXIT_CANT_CREATE, path, "creating it");
    int rc = write_header(file, x, settings) ? 0 : fail(EXIT_IO, path, "writing its header");
    for (int c = 0; c < N_COLUMNS && rc == 0; c++)
        if (!write_column(file, x, c)) rc = fail(EXIT_IO, path, column_kind[c].name);
    if (H5Fclose(file) < 0 && rc == 0) rc = fail(EXIT_IO, path, "closing it");
    if (out.error == 0 && fsync(out.fd) != 0) out.error = errno;
    if (close(out.fd) != 0 && out.error == 0) out.error = errno;
    if (out.error != 0 && rc == 0)
        rc = error_raise(EXIT_IO, "dataset index %s cannot be written: %s", path,
                         strerror(out.error));
    return rc;
}

static int sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) != 0
                 ? error_raise(EXIT_IO, "%s cannot be synchronised: %s", path, strerror(errno))
                 : 0;
    if (fd >= 0) close(fd);
    return rc;
}

static int publish(const char *temporary, const char *path) {
    if (rename(temporary, path) != 0)
        return error_raise(EXIT_CANT_CREATE, "%s cannot be renamed to %s: %s", temporary, path,
                           strerror(errno));
    char *folder = xstrdup(path), *slash = strrchr(folder, '/');
    if (slash != NULL) *slash = '\0';
    int rc = sync_folder(slash != NULL ? folder : ".");
    free(folder);
    return rc;
}

int index_file_write(const char *path, const struct index *x, const char *settings) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    char *temporary = xasprintf("%s.tmp-%ld", path, (long)getpid());
    unlink(temporary); /* of an earlier process of the same number */
    int rc = write_file(temporary, x, settings);
    if (rc == 0) rc = publish(temporary, path);
    if (rc != 0) unlink(temporary);
    free(temporary);
    return rc;
}

/* ---- reading --------------------------------------------------------------------------------- */

static hid_t open_file(const char *path, struct h5_inlet *in) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    *in = (struct h5_inlet){0};
    h5_use_inlet(access, in);
    H5Pset_fclose_degree(access, H5F_CLOSE_SEMI);
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, access);
    H5Pclose(access);
    return file;
}

static bool read_column_data(hid_t data, hid_t space, enum index_column c, struct column *col) {
    hsize_t n;
    int64_t crc;
    if (H5Sget_simple_extent_ndims(space) != 1) return false;
    H5Sget_simple_extent_dims(space, &n, NULL);
    size_t size = column_size(c);
    /* no allocation for data that are not there */
    if (n > COLUMN_BYTES_MAX / size || H5Dget_storage_size(data) != n * size) return false;
    col->data = xmalloc(n * size + 1);
    col->n = col->capacity = (int64_t)n;
    return transfer(data, space, c, n, col->data, false) && get_i64(data, "crc32c", &crc) &&
           crc == (int64_t)crc32c(0, col->data, n * size);
}

static bool read_column(hid_t file, enum index_column c, struct column *col) {
    if (H5Lexists(file, column_kind[c].name, H5P_DEFAULT) <= 0) return false;
    hid_t data = H5Dopen2(file, column_kind[c].name, H5P_DEFAULT);
    if (data < 0) return false;
    hid_t space = H5Dget_space(data), type = H5Dget_type(data);
    bool good = space >= 0 && type >= 0 && H5Tequal(type, file_type(c)) > 0 &&
                read_column_data(data, space, c, col);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    H5Dclose(data);
    return good;
}

/* What was found in a file counts for nothing where a call on it failed. */
static int unreadable(const char *path, const struct h5_inlet *in) {
    return error_raise(file_code_of_errno(in->error), "dataset index %s cannot be read: %s", path,
                       strerror(in->error));
}

static int read_header(hid_t file, const char *path, const struct h5_inlet *in, struct index *x) {
    char format[32];
    int64_t version = 0;
    bool ours = get_string(file, "format", format, sizeof format) && strcmp(format, FORMAT) == 0;
    bool read = ours && get_i64(file, "format_version", &version);
    if (in->error != 0) return unreadable(path, in);
    if (!ours)
        return error_raise(EXIT_BAD_DATA, "%s is HDF5, but no dataset index of strata", path);
    if (!read || version != FORMAT_VERSION)
        return error_raise(EXIT_BAD_DATA, "%s has format_version %lld, this program reads %d", path,
                           (long long)version, FORMAT_VERSION);
    if (!get_string(file, "digest", x->digest, sizeof x->digest) ||
        !get_string(file, "fingerprint", x->fingerprint, sizeof x->fingerprint) ||
        !get_string(file, "notes", x->notes, sizeof x->notes) ||
        !get_i64(file, "skipped_bad_image", &x->skipped_bad_image) ||
        !get_i64(file, "skipped_no_target", &x->skipped_no_target))
        return in->error != 0 ? unreadable(path, in)
                              : fail(EXIT_BAD_DATA, path, "reading its header");
    return 0;
}

static int read_columns(const char *path, int first, struct index *x) {
    struct h5_inlet in;
    *x = (struct index){0};
    hid_t file = open_file(path, &in);
    if (file < 0) return fail(EXIT_BAD_DATA, path, "opening it as HDF5");
    int rc = read_header(file, path, &in, x);
    for (int c = first; c < N_COLUMNS && rc == 0; c++)
        if (!read_column(file, c, &x->col[c]))
            rc = in.error != 0
                     ? unreadable(path, &in)
                     : error_raise(EXIT_BAD_DATA,
                                   "dataset index %s: column %s is missing or damaged; make it "
                                   "again: strata prepare JOB.ini --rebuild",
                                   path, column_kind[c].name);
    H5Eclear2(H5E_DEFAULT);
    H5Fclose(file);
    if (rc != 0) index_free(x);
    return rc;
}

int index_file_read(const char *path, struct index *x) {
    return read_columns(path, 0, x);
}

int index_file_read_names(const char *path, struct index *x) {
    return read_columns(path, COL_IMAGE_NAME_OFFSET, x);
}
