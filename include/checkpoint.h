/* checkpoint: HDF5 shards, manifest, commit protocol, verified loading into any layout
 * (doc/checkpoint.md).
 *
 * A tensor is stored as boxes {offset, count} of its global shape, so a checkpoint does not know
 * the layout it will be loaded into: a rank intersects its own boxes with those of the manifest.
 */
#ifndef STRATA_CHECKPOINT_H
#define STRATA_CHECKPOINT_H

#include <pthread.h>

#include "nn.h"

enum ckpt_resume { CKPT_RESUME_NEVER, CKPT_RESUME_AUTO, CKPT_RESUME_MUST };
enum ckpt_verify {
    CKPT_VERIFY_ALL,    /* every byte */
    CKPT_VERIFY_SAMPLE, /* saving only: the written CRC blocks in turn, one in eight per save */
    CKPT_VERIFY_USED,   /* loading only: the CRC blocks that are read */
    CKPT_VERIFY_SIZE,   /* loading only: names and sizes */
};

/* What the bytes of tensors pass through on their way into a file. Without: contiguous. With: chunks,
 * which HDF5 itself checks when they are read. */
enum ckpt_filter {
    CKPT_FILTER_NONE,
    CKPT_FILTER_FLETCHER32, /* chunks of up to 1 MiB with a checksum */
    CKPT_FILTER_DEFLATE,    /* chunks of up to 4 MiB, shuffled, compressed, with a checksum */
    CKPT_FILTERS
};

/* <save>/run.lock, so that two jobs never write into one folder. Rank 0 holds it, with a thread that
 * sets its time anew; zeros elsewhere. */
struct ckpt_beat;
struct ckpt_lock {
    char *path;
    char nonce[33];
    struct ckpt_beat *beat;
};

struct ckpt_found;
/* The keys of [checkpoint]; doc/job-file.md says what they mean. */
struct ckpt_settings {
    const char *save; /* folder; NULL: nothing is saved */
    /* NULL, or a folder for what could not be saved in `save`; resuming looks into both. */
    const char *save_second;
    const char *load; /* folder with iter_* or one checkpoint; NULL: the same as save */
    enum ckpt_resume resume;
    int64_t ckpt_step; /* -1: the newest that verifies */
    bool finetune;     /* weights of load only; no effect once save holds a checkpoint */
    /* when finetuning, model/mm_projector/ and model/image_newline may be missing */
    bool allow_missing_projector;
    bool no_load_optim, no_load_rng, no_save_optim, no_save_rng;
    int64_t most_recent_k;        /* -1: keep all; else >= 2 */
    int64_t save_retain_interval; /* multiples of it are never deleted; 0: none */
    enum ckpt_verify verify_save, verify_load;
    enum ckpt_filter filter; /* saving only: a file says itself how it is to be read */
    bool hash_sha256;        /* beside the CRC32C of every file */
    /* One file for the ranks of a machine, or for so many of them (0: all); false: one for each. */
    bool writers_node;
    int64_t ranks_per_writer;
    bool reproducible, index, save_derived_weights;
    const struct ckpt_lock *lock;        /* checked in each save; NULL: none was taken */
    const struct ckpt_lock *lock_second; /* that of save_second */
    pthread_mutex_t *hdf5_lock; /* held around all HDF5 calls; NULL: no other thread makes any */
    /* Asked by ckpt_resume on every rank between finding and loading, unless only weights are taken;
     * may communicate; the same code on every rank, not 0 refuses. NULL: all are welcome. */
    int (*accept)(void *arg, const struct ckpt_found *found);
    void *accept_arg;
};

struct ckpt_key { /* one effective key of the job file */
    const char *section, *key, *value;
    bool defaulted;
};
struct ckpt_text { /* one attribute of /provenance */
    const char *key, *value;
};
struct ckpt_row { /* one step of /training/history */
    int64_t step;
    double loss, lr, grad_norm;
};
struct ckpt_speed { /* one step of this start of the run */
    int64_t step;
    double tokens_per_s;
};
struct ckpt_inputs { /* sha256 in hex of what the run reads; NULL: it reads none */
    const char *job_file, *data, *valid_data /* of their indices */, *tokenizer_model;
};
struct ckpt_counters {
    int64_t step; /* steps done */
    int64_t consumed_samples, consumed_tokens;
    int64_t epoch, index;   /* position of the next sample: pass and place in its permutation */
    int64_t optimizer_step; /* t of the bias corrections */
    int64_t skipped_iterations, nan_iterations, skipped_samples;
};

/* What one rank holds and knows. All but grid, set, be and piece must be equal on every rank
 * (history, provenance, inputs and speed are read on rank 0 only). Texts may be NULL: then "". */
struct ckpt_state {
    const struct grid *grid;
    const struct param_set *set; /* laid out and allocated */
    struct backend *be;
    const struct state_piece *piece; /* optimizer state of this rank */
    int64_t n_pieces;
    /* Saving only, on data-parallel ranks: where weights come from instead of set's memory, elements
     * [first, first+count) of a whole tensor, so that a rank holds one tensor or a share of it.
     * NULL: memory. */
    int (*fetch)(void *arg, int param, int64_t first, int64_t count, float *out);
    void *fetch_arg;
    bool sharded_optimizer; /* pieces differ over DP; false: every DP rank has all of them */
    struct ckpt_counters at;
    /* compared on loading: EXIT_RESUME if different (not when finetuning) */
    const char *family;
    int64_t seed, global_batch_size;
    const char *order_key, *dataset_sha256, *tokenizer_sha256, *template_text;
    /* recorded */
    int64_t n_parameters; /* of the whole model, frozen ones too */
    double lr, weight_decay;
    const char *split_spec, *used_ini;
    /* Buffers of 37 bytes of the caller, "" at start: ckpt_load fills both, ckpt_save makes a
     * run_uuid where there is none and leaves the checkpoint's own uuid in parent_uuid. */
    char *run_uuid, *parent_uuid;
    const struct ckpt_key *key;
    int64_t n_keys;
    /* Where and how it was made; NULL: a save describes its own processes. */
    const struct ckpt_text *provenance;
    int64_t n_provenance;
    struct ckpt_inputs inputs; /* described where provenance is NULL */
    const struct ckpt_speed *speed;
    int64_t n_speed;
    const struct ckpt_row *history;
    int64_t n_history;
    int64_t *saved_bytes;  /* NULL, or where a save adds the bytes of its files (rank 0: of all) */
    bool *told_full;       /* NULL, or where a save notes that it told of a nearly full disk */
    const char **saved_in; /* NULL, or where a save leaves its folder: save or save_second */
};

/* Collective over the world, before ckpt_find. A lock of a run that is surely gone (same job started
 * again; a process of this host that is no more; a Slurm job that squeue does not know any more and
 * that has given no sign of life for three periods) is taken over; otherwise EXIT_NO_PERMISSION says
 * who holds it. ckpt_unlock at the end (rank 0's duty; harmless elsewhere). */
int ckpt_lock(const char *save, const struct grid *grid, struct ckpt_lock *lock);
void ckpt_unlock(struct ckpt_lock *lock);

/* Not collective. EXIT_UNAVAILABLE: the HDF5 library was built without what settings->filter needs. A
 * save asks it too. */
int ckpt_filter_check(const struct ckpt_settings *settings);

/* Collective over the world. Writes <save>/iter_<step> by the commit protocol: temporary folder,
 * CRC32C before writing, every return code checked, fsync, read back, vote, manifest, rename,
 * retention. A failure removes the temporary folder, leaves older checkpoints alone and returns
 * the same code on every rank with the failing rank's sentence recorded (EXIT_IO, EXIT_CANT_CREATE,
 * EXIT_NO_PERMISSION, EXIT_UNAVAILABLE): the caller may print it, error_clear() and go on training. Where that happens
 * in `save` and save_second is given, the same state is written there, unless the lock of `save` was
 * lost: then another run goes on from it. */
int ckpt_save(const struct ckpt_settings *settings, const struct ckpt_state *state);

/* ---- the same while training goes on -----------------------------------------------------------
 * ckpt_save_begin agrees on the save, copies this rank's part into `host` and starts a thread that
 * writes it, verifies it and makes no MPI call. The state may change from then on; what its texts,
 * keys, history rows, set and backend point to must stay until the save is over, and so must
 * `settings` and `host`. settings->hdf5_lock must be set where any other thread calls HDF5.
 * The caller asks ckpt_save_busy at each step and agrees on it over the world (MAX). As soon as no
 * rank is busy all ranks call ckpt_save_next: the vote, then the commit in a thread of rank 0, then
 * the end. One save at a time. */
struct ckpt_pending;
/* Host bytes of the copy of what this rank has to save: from the write plan, so the same for a
 * measuring grid. The rank that writes for others needs room for theirs too, and these need no more
 * than ckpt_passing_bytes. */
size_t ckpt_snapshot_bytes(const struct ckpt_state *state, bool moments);
/* The same in two parts, for planning all ranks of a stage: what several ranks hold and share out,
 * bytes[dp * TP + tp] for each of them (any of them may call it); and what this rank alone holds. */
void ckpt_dealt_bytes(const struct ckpt_state *state, bool moments, size_t *bytes);
size_t ckpt_sharded_bytes(const struct ckpt_state *state, bool moments);
size_t ckpt_passing_bytes(const struct ckpt_state *state, bool weights, bool moments);
/* Who writes for each of n ranks: the first of those on its machine, or of ranks_per_writer of them
 * (0: any number); node[r], from 0 on, is the machine of rank r. writer[n] is set. */
void ckpt_writers(const int *node, int n, int64_t ranks_per_writer, int *writer);
/* Collective over the world. On failure (as ckpt_save) *pending is NULL. */
int ckpt_save_begin(const struct ckpt_settings *settings, const struct ckpt_state *state,
                    char *host, size_t host_bytes, struct ckpt_pending **pending);
bool ckpt_save_busy(const struct ckpt_pending *pending);
/* Collective over the world, where no rank is busy. Over, with the code of the save, when *pending
 * is NULL; failures are as those of ckpt_save. */
int ckpt_save_next(struct ckpt_pending **pending);

struct ckpt_manifest;
struct ckpt_found {
    bool any;          /* false: nothing was ever committed, start anew */
    bool weights_only; /* finetune: counters, optimizer and data restart */
    char *dir;
    int64_t step;
    int64_t newest_step; /* of the newest one seen, verified or not: newest_step - step are lost */
    int64_t n_skipped;
    char *skipped; /* a line for each newer one that was passed over, with the reason */
    char *uuid, *run_uuid;
    struct ckpt_manifest *manifest;
};
/* Collective over the world. Finishes what a crash left (.trash-*, .tmp-*; only in save), then the
 * newest checkpoint that verifies. Damaged ones get a .refused mark and a warning. EXIT_NO_INPUT:
 * load does not exist, or `must` found none; EXIT_BAD_DATA: some exist and none verifies;
 * EXIT_RESUME: `never`, but save holds checkpoints; EXIT_IO, EXIT_NO_PERMISSION: a storage error
 * left it open whether one verifies; nothing is marked and no older one is taken. */
int ckpt_find(const struct ckpt_settings *settings, const struct grid *grid,
              struct ckpt_found *found);
void ckpt_found_free(struct ckpt_found *found);
/* Collective over the world. The effective keys stored in a checkpoint, on every rank, in the
 * order stored. For comparing with the present job file before loading. */
int ckpt_config(const struct ckpt_settings *settings, const struct ckpt_found *found,
                const struct grid *grid,
                void (*each)(void *arg, const char *section, const char *key, const char *value,
                             bool defaulted),
                void *arg);
/* Collective over the world. Fills weights, moments, state->at and state->history (allocated, on
 * every rank; the caller frees it). EXIT_RESUME: the checkpoint is whole but of another model or
 * run, all differences listed; EXIT_BAD_DATA: damage found while reading; then a .refused mark is
 * written and the caller may call ckpt_find again; EXIT_IO, EXIT_NO_PERMISSION: reading failed, nothing
 * is marked. */
int ckpt_load(const struct ckpt_settings *settings, const struct ckpt_found *found,
              struct ckpt_state *state);
/* Collective over the world. find and load, falling back to older ones while damage is found. */
int ckpt_resume(const struct ckpt_settings *settings, struct ckpt_state *state,
                struct ckpt_found *found);

/* Not collective. Reads a checkpoint that was found, one slice of one tensor after the other, from
 * whatever layout wrote it. `settings` and `found` must outlive the reader. */
struct ckpt_reader;
int ckpt_reader_open(const struct ckpt_settings *settings, const struct ckpt_found *found,
                     struct ckpt_reader **out);
/* Rows [first, first+count) of axis 0 as fp32: of the master copy if there is one, else of the
 * weights. EXIT_RESUME: not there, or of another shape. */
int ckpt_reader_rows(struct ckpt_reader *r, const struct param *p, int64_t first, int64_t count,
                     float *out);
int ckpt_reader_close(int rc, struct ckpt_reader *r); /* frees it in any case */

/* Without MPI: manifest, file list, sizes, checksums, coverage of one checkpoint folder.
 * EXIT_BAD_DATA with every fault listed (tensor, file, elements). */
int ckpt_verify_folder(const char *dir);

#endif
