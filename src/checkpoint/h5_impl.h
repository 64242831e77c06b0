/* checkpoint, private: the door to HDF5. Every id is closed with a check; a failing call becomes a
 * sentence with the library's own reason behind it. Callers hold settings->hdf5_lock. */
#ifndef STRATA_CKPT_H5_IMPL_H
#define STRATA_CKPT_H5_IMPL_H

#include <hdf5_hl.h>

#include "ckpt_impl.h"
#include "h5.h"

#define H5_TEXT_MAX ((size_t)16 << 20)

void h5_begin(const struct ckpt_settings *s); /* lock, no printing, no filter plug-ins */
void h5_end(const struct ckpt_settings *s);
/* Records the sentence with the innermost reason of the HDF5 error stack appended. exit_code is for what
 * the file holds: where reading it failed, the code returned is EXIT_IO or EXIT_NO_PERMISSION. */
int h5_error(int exit_code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Closes an id of any kind: keeps rc if it is an error, else reports a failing close. Negative ids
 * are skipped. */
int h5_close(int rc, hid_t id, const char *what);

hid_t h5_dtype(enum dtype t); /* type as stored; close it */
/* File access lists: serial, format of 1.10, strict close, the drivers of h5.h, which must live as long
 * as the file is open. */
hid_t h5_read_access(struct h5_inlet *in);
/* After closing a file, whose reading ended with rc: what was found in it counts for nothing if a call
 * on it failed; rc is then EXIT_IO or EXIT_NO_PERMISSION. */
int h5_inlet_verdict(int rc, const struct h5_inlet *in, const char *path);
/* For creating, O_EXCL. large: the file will hold datasets that are aligned; chunked: nothing is
 * aligned, since that would leave holes between chunks. */
hid_t h5_write_access(struct h5_outlet *out, bool large, bool chunked);
#define H5_ALIGNMENT ((int64_t)1 << 20) /* datasets of so many bytes begin at multiples of it */
hid_t h5_create_list(hid_t class_id);   /* of file, group, dataset, type: no times, order tracked */

int h5_put_text(hid_t at, const char *name, const char *value); /* NULL: "" */
int h5_put_integer(hid_t at, const char *name, int64_t value);
int h5_put_integers(hid_t at, const char *name, const int64_t *v, int64_t rows, int64_t cols);
int h5_put_real(hid_t at, const char *name, double value);
int h5_get_text(hid_t at, const char *name, char **value); /* allocated */
int h5_get_integer(hid_t at, const char *name, int64_t *value);
int h5_get_integers(hid_t at, const char *name, int64_t *v, int n); /* exactly n */

/* For reading. `path` names the file in sentences. EXIT_BAD_DATA: missing, of another kind, or not in
 * this file: each component of `name` must be a hard link, a dataset plain bytes (no filter, neither
 * external nor virtual). */
int h5_check_links(hid_t file, const char *path, const char *name);
int h5_open_group(hid_t file, const char *path, const char *name, hid_t *group);
int h5_open_plain(hid_t file, const char *path, const char *name, hid_t *dataset);

/* ---- writing a shard -------------------------------------------------------------------------- */
struct shard {
    const char *path;
    hid_t file, group_list, bfloat16;
    enum ckpt_filter filter;
    struct h5_outlet out;
};
struct shard_identity {            /* of the checkpoint that is being written */
    const struct ckpt_manifest *m; /* uuids, created, step, layout */
    int64_t index;
    const struct grid *grid;
    const int *writer; /* [world] rank that writes for each; NULL: each for itself */
    const char *tool;  /* who writes, for the attribute history; NULL: "strata train: saved" */
    int64_t largest;   /* bytes of its largest dataset */
};
int shard_create(struct shard *s, const char *path, const struct shard_identity *id,
                 const struct ckpt_settings *settings);
/* Opens the group at `path`, making what is missing. Groups with a number as name get stack_layer
 * (unless it is negative). */
int shard_group(struct shard *s, const char *path, int stack_layer, hid_t *group);
int shard_write_common(struct shard *s, const struct shard_identity *id,
                       const struct ckpt_settings *settings, const struct ckpt_state *state);
/* host: the packed bytes of b->box. Sets the places of b in the file. */
int shard_write_block(struct shard *s, const struct param *p, const struct ckpt_tensor *t,
                      struct ckpt_block *b, const void *host);
/* The same in pieces, for those who never hold a whole block: rows [first, first + n_rows) of axis 0,
 * ascending and without gaps, each but the last of box_slice_bytes; b->crc is set before shard_end_block, which closes in any case and keeps
 * rc if that is an error. */
struct block_writer {
    hid_t dataset;
};
int shard_begin_block(struct shard *s, const struct param *p, const struct ckpt_tensor *t,
                      const struct ckpt_block *b, struct block_writer *w);
int shard_write_rows(struct block_writer *w, const struct ckpt_block *b, int64_t first,
                     int64_t n_rows, const void *host);
int shard_end_block(int rc, struct shard *s, struct block_writer *w, struct ckpt_block *b);
int shard_close(int rc, struct shard *s); /* close, fsync; frees nothing else */

/* ---- reading one ------------------------------------------------------------------------------- */
struct shard_reader {
    const struct ckpt_manifest *m;
    int file_index;
    char *path;
    hid_t file;
    struct h5_inlet in; /* HDF5 holds its address while the file is open */
};
/* Opens and compares uuid, step and index with the manifest. */
int reader_open(struct shard_reader *r, const char *dir, const struct ckpt_manifest *m, int file,
                int64_t shard_index);
/* The dataset of a block after all checks of its links, layout, filters, type, extent and place. */
int reader_dataset(const struct shard_reader *r, const struct ckpt_tensor *t,
                   const struct ckpt_block *b, hid_t *dataset);
/* Packed bytes of `sub` (global coordinates, inside b->box). */
int reader_read(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                const struct ckpt_block *b, const struct box *sub, void *host);
/* The same into an array that holds the global box `frame`, which sub lies in. */
int reader_read_into(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, const struct box *sub, const struct box *frame,
                     void *host);
/* Where a call on the file failed while it was open, rc is not to be believed: EXIT_IO then. */
int reader_close(int rc, struct shard_reader *r);
int reader_counters(const struct shard_reader *r, struct ckpt_counters *at);
int reader_history(const struct shard_reader *r, struct ckpt_row **row, int64_t *n);
/* Of /provenance, which must be there. */
int reader_speed(const struct shard_reader *r, struct ckpt_speed **row, int64_t *n);

/* ---- filters (h5_filter.c) ------------------------------------------------------------------------ */
/* For a list that makes the dataset of b. Its chunks are allocated as they are written, each once. */
int h5_filter_set(hid_t create, enum ckpt_filter filter, const struct ckpt_block *b);
/* Chunks that are not kept in memory: each is stored as soon as it is written. -1: no list. */
hid_t h5_filter_access(void);
/* Places and stored sizes of all chunks of a dataset just written; their checksums are left for
 * ckpt_scan_file. */
int h5_filter_places(hid_t dataset, struct ckpt_block *b);
/* A dataset is what the manifest says: extent of a chunk, filters, all chunks and their places; and no
 * chunk decodes to more or less than one, which the library does not notice. */
int reader_check_chunks(const struct shard_reader *r, hid_t dataset, hid_t create,
                        const struct ckpt_block *b);
/* Decoded bytes that pass by in order. Each CRC block that passes whole is compared with the checksum
 * that it had before it was written. */
struct passing {
    const struct ckpt_block *block; /* NULL: none yet */
    int64_t at;                     /* its next byte */
    uint32_t crc;                   /* of the CRC block so far */
    bool whole;                     /* since its first byte */
};
/* Packed bytes of `sub` were read. Contiguous blocks, and pieces whose elements are not consecutive,
 * are let pass. EXIT_BAD_DATA. */
int passing_check(struct passing *p, const struct shard_reader *r, const struct ckpt_tensor *t,
                  const struct ckpt_block *b, const struct box *sub, const void *host);
/* Reads the chunks of a block and compares one in `one_in` of its CRC blocks; *turn counts them over
 * blocks, multiples of one_in are taken. Does nothing for a contiguous block. */
int reader_check_decoded(const struct shard_reader *r, hid_t dataset, const struct ckpt_tensor *t,
                         const struct ckpt_block *b, int64_t one_in, int64_t *turn);

int index_write(const char *path, const struct ckpt_manifest *m,
                const struct ckpt_settings *settings);

#endif
