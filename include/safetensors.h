/* safetensors: the tensor files of Hugging Face, read and written with all checks.
 *
 * A file is u64 n (little-endian), n bytes of JSON, then the tensors without holes. Only headers are
 * read on opening; tensors are read in ranges, so nothing here needs memory of a model's size.
 */
#ifndef STRATA_SAFETENSORS_H
#define STRATA_SAFETENSORS_H

#include "tensor.h"

enum safetensors_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E4M3,
    ST_F8_E5M2,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_DTYPES
};
size_t safetensors_dtype_size(enum safetensors_dtype t);
const char *safetensors_dtype_name(enum safetensors_dtype t); /* "BF16" as in the files */

#define SAFETENSORS_DIMS 8
struct safetensor {
    char *name;
    enum safetensors_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[SAFETENSORS_DIMS];
    int file;             /* which of the files */
    int64_t begin, bytes; /* of its data, from the start of that file */
    bool permuted;        /* stored as TensorFlow does, [in, out] or [height, width, in, out] */
};
int64_t safetensor_count(const struct safetensor *t);
void safetensor_shape_text(const struct safetensor *t, char *text, size_t size); /* "32x16" */

/* ---- reading --------------------------------------------------------------------------------- */
struct safetensors;
struct safetensors_options {
    bool follow_links; /* symbolic links are refused otherwise */
};
/* path: one .safetensors file, or a folder with model.safetensors.index.json, model.safetensors,
 * consolidated.safetensors, just one .safetensors file, or CLIP's tf_model.h5, of which the vision
 * tower is taken under its names of PyTorch (looked for in this order).
 * EXIT_NO_INPUT, EXIT_BAD_DATA with file and reason. */
int safetensors_open(const char *path, const struct safetensors_options *options,
                     struct safetensors **out);
void safetensors_close(struct safetensors *s); /* NULL is legal */
int64_t safetensors_count(const struct safetensors *s);
const struct safetensor *safetensors_at(const struct safetensors *s, int64_t i); /* by name */
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name);
const char *safetensors_path(const struct safetensors *s); /* as given */
const char *safetensors_file(const struct safetensors *s, int file);
/* Elements [first, first+count) of a tensor of F16, BF16, F32 or F64, rounded to nearest even into
 * fp32. EXIT_BAD_DATA for another type, EXIT_IO. */
int safetensors_read(const struct safetensors *s, const struct safetensor *t, int64_t first,
                     int64_t count, float *out);

/* ---- writing ----------------------------------------------------------------------------------
 * All tensors are declared first (F16, BF16, F32 or F64; only name, dtype and shape are read); then
 * their ranges are written in any order. Files get their names only in finish, so that a crash
 * leaves nothing that looks whole. */
struct safetensors_writer;
struct safetensors_rounding { /* what fp16 could not hold */
    int64_t clamped;          /* finite values beyond 65504, written as 65504 */
    int64_t flushed;          /* values that became 0 */
};
/* folder exists. One file <stem>.safetensors, or <stem>-00001-of-0000n.safetensors and an index when
 * they are more than max_file_bytes of tensors together; a single larger tensor has a file of its
 * own. format: "__metadata__": {"format": ...}; NULL: none. */
int safetensors_create(const char *folder, const char *stem, const char *format,
                       const struct safetensor *tensor, int64_t n, int64_t max_file_bytes,
                       struct safetensors_writer **out);
int safetensors_write(struct safetensors_writer *w, int64_t tensor, int64_t first, int64_t count,
                      const float *values);
/* fsync, rename, index. Frees w in any case; rc: an earlier error, then the files are removed. */
int safetensors_finish(int rc, struct safetensors_writer *w, struct safetensors_rounding *rounding);

/* Several processes write one folder: one creates, the others join it with the same declarations and
 * the creator's number; each writes its ranges and flushes. Once all have, the creator finishes and
 * the others leave (they free w; the files and their end are the creator's). */
int64_t safetensors_creator(const struct safetensors_writer *w);
int safetensors_join(const char *folder, const char *stem, const char *format,
                     const struct safetensor *tensor, int64_t n, int64_t max_file_bytes,
                     int64_t creator, struct safetensors_writer **out);
/* fsync of what this process wrote; nothing is written afterwards. */
int safetensors_flush(struct safetensors_writer *w);
void safetensors_leave(struct safetensors_writer *w, struct safetensors_rounding *rounding);

/* ---- conversions ------------------------------------------------------------------------------ */
void safetensors_to_float(enum safetensors_dtype from, const void *in, int64_t n, float *out);
void safetensors_from_float(const float *in, int64_t n, enum safetensors_dtype to, void *out,
                            struct safetensors_rounding *rounding);

#endif
