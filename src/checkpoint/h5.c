/* HDF5 with every return code looked at: errors, types, property lists, attributes. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"

void h5_begin(const struct ckpt_settings *s) {
    if (s && s->hdf5_lock) pthread_mutex_lock(s->hdf5_lock);
    H5open();
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    H5PLset_loading_state(0);
    /* Nothing of ours leads into another file, so the library need not know how to follow there. */
    if (H5Lis_registered(H5L_TYPE_EXTERNAL) > 0) H5Lunregister(H5L_TYPE_EXTERNAL);
}

void h5_end(const struct ckpt_settings *s) {
    if (s && s->hdf5_lock) pthread_mutex_unlock(s->hdf5_lock);
}

int h5_error(int exit_code, const char *fmt, ...) {
    char text[1024], reason[256], shown[320];
    va_list args;
    exit_code = h5_take_reason(exit_code, reason, sizeof reason);
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    text_printable(reason, shown, sizeof shown);
    return error_raise(exit_code, "%s%s%s", text, shown[0] ? "; HDF5 says: " : "", shown);
}

int h5_close(int rc, hid_t id, const char *what) {
    if (id < 0) return rc;
    herr_t closed = -1;
    switch (H5Iget_type(id)) {
    case H5I_FILE:
        closed = H5Fclose(id);
        break;
    case H5I_GROUP:
        closed = H5Gclose(id);
        break;
    case H5I_DATATYPE:
        closed = H5Tclose(id);
        break;
    case H5I_DATASPACE:
        closed = H5Sclose(id);
        break;
    case H5I_DATASET:
        closed = H5Dclose(id);
        break;
    case H5I_ATTR:
        closed = H5Aclose(id);
        break;
    case H5I_GENPROP_LST:
        closed = H5Pclose(id);
        break;
    default:
        break;
    }
    if (closed < 0 && !rc) return h5_error(EXIT_IO, "%s could not be closed", what);
    return rc;
}

/* Sign, exponent and mantissa as they lie in the bits; little-endian whatever the machine. */
static hid_t small_float(size_t bits_exponent, size_t bits_mantissa, size_t bias) {
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    if (t < 0) return t;
    if (H5Tset_fields(t, 15, bits_mantissa, bits_exponent, 0, bits_mantissa) < 0 ||
        H5Tset_precision(t, 16) < 0 || H5Tset_size(t, 2) < 0 || H5Tset_ebias(t, bias) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

hid_t h5_dtype(enum dtype t) {
    switch (t) {
    case DTYPE_F32:
        return H5Tcopy(H5T_IEEE_F32LE);
    case DTYPE_F64:
        return H5Tcopy(H5T_IEEE_F64LE);
    case DTYPE_BF16:
        return small_float(8, 7, 127);
    case DTYPE_F16:
        return small_float(5, 10, 15);
    case DTYPE_I32:
        return H5Tcopy(H5T_STD_I32LE);
    case DTYPE_I64:
        return H5Tcopy(H5T_STD_I64LE);
    case DTYPE_U8:
        return H5Tcopy(H5T_STD_U8LE);
    default:
        CHECK(false, "dtype %d has no HDF5 type", (int)t);
    }
}

int h5_inlet_verdict(int rc, const struct h5_inlet *in, const char *path) {
    if (in->error == 0 || (rc != 0 && rc != EXIT_BAD_DATA)) return rc;
    if (rc == EXIT_BAD_DATA) return ckpt_recode(file_code_of_errno(in->error));
    return error_raise(file_code_of_errno(in->error), "%s could not be read: %s", path,
                       strerror(in->error));
}

/* Both directions: serial, the format of 1.10, strict close. */
static hid_t access_list(void) {
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    if (list < 0) return list;
    if (H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 &&
        H5Pset_fclose_degree(list, H5F_CLOSE_SEMI) >= 0)
        return list;
    H5Pclose(list);
    return -1;
}

hid_t h5_read_access(struct h5_inlet *in) {
    hid_t list = access_list();
    *in = (struct h5_inlet){0};
    if (list < 0 || h5_use_inlet(list, in)) return list;
    H5Pclose(list);
    return -1;
}

hid_t h5_write_access(struct h5_outlet *out, bool large, bool chunked) {
    hid_t list = access_list();
    hsize_t align = chunked ? 1 : H5_ALIGNMENT;
    /* What describes the data lies together: else a few bytes of it behind each aligned dataset would
     * cost up to a MiB of nothing, which the checksum of the file has to be read over. */
    bool fine = list >= 0 && h5_use_outlet(list, out) &&
                H5Pset_alignment(list, align, align) >= 0 &&
                (!large || H5Pset_meta_block_size(list, H5_ALIGNMENT) >= 0);
    if (fine) return list;
    if (list >= 0) H5Pclose(list);
    return -1;
}

hid_t h5_create_list(hid_t class_id) {
    hid_t list = H5Pcreate(class_id);
    if (list < 0) return list;
    unsigned order = H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED;
    bool fine = H5Pset_obj_track_times(list, false) >= 0;
    if (class_id == H5P_FILE_CREATE || class_id == H5P_GROUP_CREATE)
        fine = fine && H5Pset_link_creation_order(list, order) >= 0 &&
               H5Pset_attr_creation_order(list, order) >= 0;
    if (class_id == H5P_DATASET_CREATE)
        fine = fine && H5Pset_layout(list, H5D_CONTIGUOUS) >= 0 &&
               H5Pset_alloc_time(list, H5D_ALLOC_TIME_EARLY) >= 0 &&
               H5Pset_fill_time(list, H5D_FILL_TIME_NEVER) >= 0 &&
               H5Pset_attr_phase_change(list, 32, 16) >= 0;
    if (fine) return list;
    H5Pclose(list);
    return -1;
}

/* ---- attributes ------------------------------------------------------------------------------------ */
static int put(hid_t at, const char *name, hid_t type, hid_t space, const void *value) {
    hid_t a = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    int rc = a < 0 ? h5_error(EXIT_IO, "attribute %s could not be made", name) : 0;
    if (!rc && H5Awrite(a, type, value) < 0)
        rc = h5_error(EXIT_IO, "attribute %s could not be written", name);
    rc = h5_close(rc, a, name);
    rc = h5_close(rc, space, name);
    return rc;
}

static hid_t text_type(size_t size) {
    hid_t t = H5Tcopy(H5T_C_S1);
    if (t < 0) return t;
    if (H5Tset_size(t, size) < 0 || H5Tset_strpad(t, H5T_STR_NULLTERM) < 0 ||
        H5Tset_cset(t, H5T_CSET_UTF8) < 0) {
        H5Tclose(t);
        return -1;
    }
    return t;
}

int h5_put_text(hid_t at, const char *name, const char *value) {
    if (!value) value = "";
    hid_t type = text_type(strlen(value) + 1);
    return h5_close(put(at, name, type, H5Screate(H5S_SCALAR), value), type, name);
}

int h5_put_integer(hid_t at, const char *name, int64_t value) {
    return put(at, name, H5T_STD_I64LE, H5Screate(H5S_SCALAR), &value);
}

int h5_put_real(hid_t at, const char *name, double value) {
    return put(at, name, H5T_IEEE_F64LE, H5Screate(H5S_SCALAR), &value);
}

int h5_put_integers(hid_t at, const char *name, const int64_t *v, int64_t rows, int64_t cols) {
    hsize_t extent[2] = {(hsize_t)rows, (hsize_t)cols};
    return put(at, name, H5T_STD_I64LE, H5Screate_simple(cols > 0 ? 2 : 1, extent, NULL), v);
}

int h5_get_text(hid_t at, const char *name, char **value) {
    *value = NULL;
    hid_t a = H5Aopen(at, name, H5P_DEFAULT), type = a < 0 ? -1 : H5Aget_type(a);
    if (type < 0)
        return h5_close(h5_error(EXIT_BAD_DATA, "attribute %s is missing", name), a, name);
    int rc = 0;
    size_t size = H5Tget_size(type);
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 || size == 0 ||
        size > H5_TEXT_MAX || H5Aget_storage_size(a) != size)
        rc = h5_error(EXIT_BAD_DATA, "attribute %s is no text of fixed length", name);
    if (!rc) *value = xcalloc(size + 1, 1);
    if (!rc && H5Aread(a, type, *value) < 0)
        rc = h5_error(EXIT_BAD_DATA, "attribute %s could not be read", name);
    rc = h5_close(rc, type, name);
    rc = h5_close(rc, a, name);
    if (rc) {
        free(*value);
        *value = NULL;
    }
    return rc;
}

int h5_get_integers(hid_t at, const char *name, int64_t *v, int n) {
    hid_t a = H5Aopen(at, name, H5P_DEFAULT), space = a < 0 ? -1 : H5Aget_space(a);
    int rc = 0;
    if (space < 0) rc = h5_error(EXIT_BAD_DATA, "attribute %s is missing", name);
    if (!rc && (H5Sget_simple_extent_npoints(space) != n ||
                H5Aget_storage_size(a) != (hsize_t)n * sizeof *v))
        rc = h5_error(EXIT_BAD_DATA, "attribute %s is not %d whole numbers", name, n);
    if (!rc && H5Aread(a, H5T_NATIVE_INT64, v) < 0)
        rc = h5_error(EXIT_BAD_DATA, "attribute %s could not be read", name);
    rc = h5_close(rc, space, name);
    return h5_close(rc, a, name);
}

int h5_get_integer(hid_t at, const char *name, int64_t *value) {
    return h5_get_integers(at, name, value, 1);
}

/* ---- opening what lies in the file itself --------------------------------------------------------- */
int h5_check_links(hid_t file, const char *path, const char *name) {
    char copy[CKPT_NAME_MAX + 1];
    snprintf(copy, sizeof copy, "%s", name);
    for (char *slash = copy; slash;) {
        H5L_info_t info;
        slash = strchr(slash, '/');
        if (slash) *slash = 0;
        if (H5Lget_info(file, copy, &info, H5P_DEFAULT) < 0)
            return h5_error(EXIT_BAD_DATA, "%s: %s is missing", path, copy);
        if (info.type != H5L_TYPE_HARD)
            return error_raise(EXIT_BAD_DATA, "%s: %s is a link to somewhere else", path, copy);
        if (slash) *slash++ = '/';
    }
    return 0;
}

int h5_open_group(hid_t file, const char *path, const char *name, hid_t *group) {
    *group = -1;
    TRY(h5_check_links(file, path, name));
    *group = H5Gopen2(file, name, H5P_DEFAULT);
    return *group < 0 ? h5_error(EXIT_BAD_DATA, "%s: %s is no group", path, name) : 0;
}

int h5_open_plain(hid_t file, const char *path, const char *name, hid_t *dataset) {
    *dataset = -1;
    TRY(h5_check_links(file, path, name));
    hid_t d = H5Dopen2(file, name, H5P_DEFAULT), list = d < 0 ? -1 : H5Dget_create_plist(d);
    int rc = 0;
    if (list < 0)
        rc = h5_error(EXIT_BAD_DATA, "%s: %s is no dataset", path, name);
    else if (H5Pget_layout(list) != H5D_CONTIGUOUS || H5Pget_external_count(list) != 0 ||
             H5Pget_nfilters(list) != 0)
        rc = error_raise(EXIT_BAD_DATA, "%s: %s is not stored as plain bytes in this file", path,
                         name);
    rc = h5_close(rc, list, "list");
    if (!rc) *dataset = d;
    return rc ? h5_close(rc, d, name) : 0;
}
