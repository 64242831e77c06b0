/* checkpoint, private: boxes, the parts a rank holds, the manifest, folders. No HDF5 here
 * (h5_impl.h). */
#ifndef STRATA_CKPT_IMPL_H
#define STRATA_CKPT_IMPL_H

#include "checkpoint.h"

#define CKPT_FORMAT "strata-checkpoint"
#define CKPT_MAJOR 2 /* 1: all blocks are contiguous; 2: all blocks are chunks behind a filter */
#define CKPT_DIMS 4
#define CKPT_CRC_BLOCK ((int64_t)4 << 20)
#define CKPT_SLICE ((int64_t)64 << 20) /* bytes of one HDF5 transfer */
#define CKPT_MANIFEST "manifest.json"
#define CKPT_MANIFEST_MAX ((size_t)256 << 20)
#define CKPT_NAME_MAX 255
#define CKPT_LATEST "latest_checkpointed_iteration.txt"
#define CKPT_PATH_MAX 4096

enum ckpt_role { CKPT_WEIGHT, CKPT_MASTER, CKPT_MOMENT1, CKPT_MOMENT2, CKPT_ROLES };
const char *ckpt_role_name(enum ckpt_role role); /* "weight", ... */

/* ---- boxes: offset and count of a row-major array of n dimensions ---------------------------- */
struct box {
    int n;
    int64_t offset[CKPT_DIMS], count[CKPT_DIMS];
};
int64_t box_volume(const struct box *b);
bool box_intersect(const struct box *a, const struct box *b, struct box *out); /* false: empty */
bool box_inside(const struct box *b, const int64_t *shape);
/* The flat range [first, first+count) of an array as at most 2n-1 boxes, in order. Returns how
 * many. */
#define BOX_FLAT_MAX (2 * CKPT_DIMS - 1)
int box_from_flat(int n, const int64_t *extent, int64_t first, int64_t count, struct box *out);
/* The elements of `sub`, in order, are consecutive ones of `whole`, beginning with *first. */
bool box_is_flat(const struct box *whole, const struct box *sub, int64_t *first);
/* "[0:4, 8:16]" */
void box_text(const struct box *b, char *text, size_t size);

/* ---- parts: a box of a global tensor and where this rank keeps it ------------------------------ */
struct part {
    int param; /* index into the set */
    enum ckpt_role role;
    enum dtype dtype;
    struct box box;            /* of the global tensor */
    int64_t local[CKPT_DIMS];  /* where the box begins in the local array */
    int64_t extent[CKPT_DIMS]; /* shape of the local array */
    int64_t first;             /* flat index in it of data[0] */
    char *data;                /* device */
};
struct part_list {
    struct part *part;
    int64_t n, capacity;
};
void part_list_free(struct part_list *list);
int64_t part_bytes(const struct part *p);
int64_t part_list_largest(const struct part_list *list); /* bytes of the largest part, 0: none */
/* Shape of the local array of tensor-parallel rank `rank` of `size`: the global shape with the cut
 * axis shortened. */
void param_extent(const struct param *p, int size, int rank, int64_t *extent);
/* Everything this rank holds of the weights, and of the moments. */
void parts_held(const struct ckpt_state *s, bool weights, bool moments, struct part_list *list);
/* What this rank writes: the write plan. Every element of every tensor exactly once over the
 * world. stored_elsewhere[param] (or NULL): an earlier stage owns the tensor of that name. Pure:
 * the same table and layout give the same plan; the fullest writer of a stage has <= 1.10 x the
 * mean. */
struct plan_layout {
    int tp, dp, tp_rank, dp_rank;
};
void parts_to_write(const struct ckpt_state *s, const struct plan_layout *layout,
                    const bool *stored_elsewhere, bool moments, struct part_list *list);
/* Packed row-major host copy of box `sub` (global coordinates, inside p->box), and back. */
void part_download(const struct part *p, const struct box *sub, struct backend *be, void *host);
void part_upload(const struct part *p, const struct box *sub, struct backend *be, const void *host);
/* Name of the tensor: "model/...", "optimizer/m/...". */
void part_tensor_name(const struct param *p, enum ckpt_role role, char *name, size_t size);

/* ---- manifest ----------------------------------------------------------------------------------- */
struct ckpt_file {
    char *name;
    int64_t bytes;
    uint32_t crc;
    char sha256[65]; /* "" if not computed */
    bool inspection; /* index.h5: its absence is no damage */
};
struct ckpt_chunk { /* as stored */
    int64_t file_offset, bytes;
    uint32_t crc;
    bool opened; /* of the first: HDF5 has all there, and each decodes to a whole chunk */
};
struct ckpt_block {
    int file;
    char *dataset;
    struct box box;
    int64_t file_offset, bytes; /* offset: of the first chunk, where there are some */
    uint32_t *crc;              /* of every CKPT_CRC_BLOCK bytes, as they are without a filter */
    int64_t n_crc;
    /* Behind a filter only: extent of a chunk and all chunks, in the order of their elements. The
     * elements of a chunk are consecutive ones of the block; the last chunks may have fewer. */
    int64_t chunk_shape[CKPT_DIMS];
    struct ckpt_chunk *chunk;
    int64_t n_chunks;
};
struct ckpt_tensor {
    char *name;
    enum ckpt_role role;
    enum dtype dtype;
    int n_dims;
    int64_t shape[CKPT_DIMS];
    struct ckpt_block *block;
    int64_t n_blocks;
};
struct ckpt_manifest {
    char uuid[37], run_uuid[37], parent_uuid[37], created[32];
    int64_t step, tp, pp, dp, writers;
    char *split_spec;
    enum ckpt_filter filter; /* of all blocks */
    struct ckpt_file *file;
    int64_t n_files;
    struct ckpt_tensor *tensor; /* sorted by name once merged or read */
    int64_t n_tensors;
};
void manifest_free(struct ckpt_manifest *m); /* the struct too; NULL is legal */
struct ckpt_file *manifest_add_file(struct ckpt_manifest *m, const char *name);
struct ckpt_tensor *manifest_add_tensor(struct ckpt_manifest *m, const char *name);
struct ckpt_block *manifest_add_block(struct ckpt_tensor *t);
int64_t ckpt_crc_blocks(int64_t bytes);
const struct ckpt_tensor *manifest_find(const struct ckpt_manifest *m, const char *name);
const struct ckpt_file **manifest_files_by_name(const struct ckpt_manifest *m); /* free() it */
/* All blocks, those of a file together: block[first[k]] to block[first[k + 1] - 1] are those of file k,
 * in the order of the manifest. Good as long as the manifest does not change. */
struct block_of_file {
    const struct ckpt_tensor *tensor;
    const struct ckpt_block *block;
};
struct blocks_by_file {
    struct block_of_file *block;
    int64_t *first; /* [n_files + 1] */
};
struct blocks_by_file manifest_by_file(const struct ckpt_manifest *m);
void blocks_by_file_free(struct blocks_by_file *f);
/* A block for that part, named after its tensor, all but places and checksums filled in. */
struct ckpt_block *manifest_add_part(struct ckpt_manifest *m, const struct param *param,
                                     const struct part *p, struct ckpt_tensor **tensor);
void manifest_sort(struct ckpt_manifest *m);
/* Moves files and tensors of `from` (another writer's) into m; frees from. Sort afterwards. */
void manifest_merge(struct ckpt_manifest *m, struct ckpt_manifest *from);
char *manifest_text(const struct ckpt_manifest *m, size_t *bytes); /* free() it */
/* Own CRC, version, names, arithmetic. `path` is for messages. EXIT_BAD_DATA; EXIT_RESUME for a
 * version that this program does not know. */
int manifest_parse(const char *path, const char *text, size_t bytes, struct ckpt_manifest **m);
/* Boxes of each tensor lie inside it, do not overlap, and their volumes sum to it. */
int manifest_check_coverage(const struct ckpt_manifest *m, const char *path);
bool ckpt_name_legal(const char *file_name);                /* one path component, no leading dot */
bool ckpt_tensor_name_legal(const char *name);              /* [a-z0-9_.] components */
bool ckpt_name_listed(const char *names, const char *name); /* one of the comma-separated ones */

/* ---- chunks: how a block is cut up for a filter (chunk.c) ------------------------------------------ */
const char *ckpt_filter_name(enum ckpt_filter filter);    /* "none", ... */
const char *ckpt_format_version(enum ckpt_filter filter); /* the oldest that can say it */
/* Extent of the chunks of a box: whole rows of axis 0 if one fits, else the last axes are cut; all of
 * it if that fits. */
void chunk_choose(enum ckpt_filter filter, const struct box *b, int64_t element, int64_t *shape);
/* Bytes of one transfer of a box: whole rows of axis 0, not more than CKPT_SLICE unless one row is, and
 * whole chunks, because one that is written in two pieces is encoded twice and lies elsewhere. */
int64_t box_slice_bytes(enum ckpt_filter filter, const struct box *b, int64_t element);
/* A chunk of that extent holds consecutive elements, and no more bytes than the largest filter takes. */
bool chunk_legal(const struct box *b, int64_t element, const int64_t *shape);
int64_t chunk_count(const struct box *b, const int64_t *shape);
/* Elements [*first, *end) of the block, counted in its order, are those of chunk i. */
void chunk_elements(const struct ckpt_block *b, int64_t i, int64_t *first, int64_t *end);
struct box chunk_box(const struct ckpt_block *b, int64_t i); /* in global coordinates */
int64_t chunk_bytes(const struct ckpt_block *b);             /* of a full chunk before the filter */
/* What a chunk of n bytes may take behind any filter, with its place in the index of its dataset. */
int64_t chunk_stored_most(int64_t n);
/* What a part takes in the file at most. */
int64_t part_stored_most(enum ckpt_filter filter, const struct part *p);

/* ---- reading back and verifying ---------------------------------------------------------------- */
/* One sequential read of one file: its size, CRC32C (SHA-256 if recorded), and the CRC of every
 * block in it (one in `one_in` of the CRC blocks, starting at `turn`), or of every stored chunk.
 * Records a sentence for each damaged tensor range. `fill`: the checksums of the file and of the
 * chunks are recorded instead of compared. */
struct scan {
    const char *dir;
    struct ckpt_manifest *m;
    const struct blocks_by_file *blocks; /* of m, for those who scan many files; NULL: none */
    int file;
    bool fill, sha256, drop_cache;
    int64_t one_in, turn;
};
int ckpt_scan_file(const struct scan *scan);
/* Exactly the files of the manifest, and their sizes. */
int ckpt_check_files(const char *dir, const struct ckpt_manifest *m);
/* The CRC blocks (or stored chunks) that overlap bytes [first, first+count) of a block's data. */
int ckpt_check_block(const char *dir, const struct ckpt_manifest *m, const struct ckpt_tensor *t,
                     const struct ckpt_block *b, int64_t first, int64_t count);
int ckpt_read_manifest(const char *dir, struct ckpt_manifest **m); /* EXIT_NO_INPUT: none there */

/* ---- folders ------------------------------------------------------------------------------------ */
int folder_sync(const char *path);
int folder_remove(const char *path);            /* with its files; absent is fine */
bool folder_exists(const char *path);           /* false too where the storage does not say */
int folder_look(const char *path, bool *there); /* the same, and that is an error */
int folder_rename(const char *from, const char *to);
/* Names in a folder, sorted; EXIT_NO_INPUT if it is not there. */
struct name_list {
    char **name;
    int64_t n;
};
int folder_list(const char *path, struct name_list *list);
void name_list_free(struct name_list *list);
/* A file system that is nearly full is told of once, if `told` says where that is noted. */
int folder_free_space(const char *path, int64_t bytes, int64_t files, bool *told);
/* Exit code for a failed call that should have made something: by errno. */
int exit_code_of_errno(int error);

/* The same settings for save_second, which has no second one. */
struct ckpt_settings ckpt_second(const struct ckpt_settings *s);

/* ---- names and states of checkpoint folders ------------------------------------------------------ */
int64_t ckpt_folder_step(const char *name); /* of "iter_0001000"; -1: the name is anything else */
void ckpt_shard_name(char *name, size_t size, int64_t step, int64_t index, int64_t count);
int ckpt_mark_refused(const char *dir, const char *why);
/* Whether it was read before and found wrong. */
int ckpt_look_refused(const char *dir, bool *refused);
bool ckpt_is_refused(const char *dir);    /* true too where the storage does not say */
int ckpt_refused_before(const char *dir); /* EXIT_BAD_DATA: why, and how the mark is removed */
/* A code that says of a checkpoint that it was read and is wrong (or lacks a file). All others say
 * nothing about it: whoever meets them stops, marks nothing and takes no other in its place. */
bool ckpt_is_damage(int code);
/* What earlier runs left: a .tmp- with a verifying manifest is committed, one without removed; a
 * folder set aside for its successor is put back where that one did not come; rubbish goes. */
#define CKPT_TRASH ".trash-"
#define CKPT_ASIDE ".aside-"
/* *unread: a temporary folder stays because a storage error left open whether it is complete. */
int ckpt_recover(const struct ckpt_settings *s, bool *unread);
int ckpt_retain(const struct ckpt_settings *s, int64_t newest);
/* What it would remove, newest first; read: every byte of those that must stand is verified. */
int ckpt_retain_list(const struct ckpt_settings *s, int64_t newest, bool read,
                     struct name_list *out);
/* By a rename to .trash- first. */
int ckpt_discard(const struct ckpt_settings *s, const char *name);
int ckpt_commit_folder(const struct ckpt_settings *s, const char *tmp, int64_t step); /* 11, 12 */

/* ---- the run lock ----------------------------------------------------------------------------------- */
/* Fencing, before a save and before each rename in it: the lock is still ours (NULL: none was taken).
 * EXIT_NO_PERMISSION; EXIT_IO: it cannot be read. */
int ckpt_lock_check(const struct ckpt_lock *lock);
bool ckpt_lock_lost(const struct ckpt_lock *lock); /* another run holds it; records nothing */
/* The holder's sign of life is the time of its file, set every so many seconds. */
#define CKPT_BEAT_SECONDS 10
int lock_beat_begin(const char *path, struct ckpt_beat **beat);
void lock_beat_end(struct ckpt_beat *beat); /* NULL is legal */
/* Seconds by which the time of `newer`, a file just made, is ahead: the clock is the file system's. */
int64_t lock_beat_age(const char *path, const char *newer);
enum job_state { JOB_UNKNOWN, JOB_RUNS, JOB_GONE };
/* What squeue knows of a Slurm job; says: in words. */
enum job_state slurm_job_state(const char *id, char *says, size_t size);

/* Start of a process in clock ticks since boot; -1 if there is none, or only its body, which nobody has
 * buried yet. Together with the boot's id it tells a process from a later one with the same number. */
int64_t process_start(int64_t pid);
/* SLURM_JOB_ID, or "pid77" */
void ckpt_job_id(char *text, size_t size);

/* ---- steps that every writer of a checkpoint takes ------------------------------------------------ */
struct ckpt_names {
    char uuid[37], run_uuid[37], parent_uuid[37], created[32];
    char folder[96]; /* "iter_0000003.tmp-pid77-0" */
};
/* m: step, layout, writers. `reproducible`: from job, step and layout alone. */
void ckpt_make_names(const struct ckpt_manifest *m, const struct ckpt_state *st, bool reproducible,
                     struct ckpt_names *n);
void ckpt_take_names(struct ckpt_manifest *m, const struct ckpt_names *n);
/* m: the manifest of one shard that was just written; its file's size and checksum are filled in. */
int ckpt_verify_shard(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m,
                      int64_t shard_index);
/* Coverage, index.h5, manifest, fsync: afterwards the folder is complete. */
int ckpt_finish_folder(const struct ckpt_settings *set, const char *dir, struct ckpt_manifest *m);

/* ---- loading what all data-parallel ranks hold: one reads, the others get it --------------------- */
/* Data-parallel rank that reads each part; this one's own where the others have another part. */
int *parts_deal_readers(const struct ckpt_state *s, const struct part_list *list);
/* Collective over dp, after reading: sends the common parts; those without a tensor stay. */
void parts_send(const struct ckpt_state *s, const struct part_list *list, const int *reader,
                const struct ckpt_tensor *const *tensor);

/* ---- agreement over the world --------------------------------------------------------------------- */
/* Collective: the largest code of all ranks; a rank without an error of its own records the
 * sentence of the lowest failing rank. */
int ckpt_agree(const struct group *world, int rc);
/* The sentences recorded so far, under another exit code, which is returned. */
int ckpt_recode(int code);
/* Sentences told elsewhere, line by line into the trace, `who` in front of each. Cuts the text up. */
void ckpt_record_lines(int code, const char *who, char *text);
/* Collective: the bytes of `root` on every rank (allocated, NUL added). */
char *ckpt_share(const struct group *world, const void *mine, size_t mine_bytes, int root,
                 size_t *bytes);

#endif
