/* checkpoint, the tools: listing, showing, verifying, comparing, writing anew, pruning. Plain
 * processes, no MPI launcher. Tensors pass in slices of at most 64 MiB, so memory does not depend on
 * the model. `where` is one checkpoint (a folder with manifest.json) or a folder of them; then its
 * newest usable one is meant. Nothing is changed but by ckpt_reshard, ckpt_prune and `clear`.
 */
#ifndef STRATA_CHECKPOINT_TOOLS_H
#define STRATA_CHECKPOINT_TOOLS_H

#include "checkpoint.h"

/* One line per folder of a save folder, newest first: step, time, size, layout, state, age, and
 * which one resume would take. Like resume it reads the newest ones whole until one verifies; quick:
 * only manifests and sizes are looked at. EXIT_NO_INPUT: no such folder. */
int ckpt_ls(const char *save, bool quick, FILE *to);

/* Header and tensor table: shape, dtype, blocks, bytes, smallest and largest value, Euclidean norm,
 * and how many values are not finite. name (or NULL): a tensor, or the start of a path; of a single
 * tensor the blocks are listed too. quick: no data are read. EXIT_USAGE: there is no such tensor. */
int ckpt_show(const char *where, const char *name, bool quick, FILE *to);
/* The job file of the run, word for word. */
int ckpt_show_config(const char *where, FILE *to);

/* Every byte of one checkpoint, or of each one in a folder, refused ones too. strict: also what
 * doc/checkpoint.md promises of names, labels, attributes, groups common to all shards, index.h5.
 * clear: a .refused mark is removed where all is well. EXIT_BAD_DATA: all faults are recorded. */
int ckpt_verify(const char *where, bool strict, bool clear, FILE *to);

/* Compares two checkpoints, whatever their layouts. *equal: same tensors bit for bit and same
 * training state. Differences of job files are printed and do not count. */
int ckpt_diff(const char *a, const char *b, FILE *to, bool *equal);

/* Retention by hand under the run lock: the newest keep >= 2 that verify stay, and the multiples of
 * every (0: none). dry_run: only says what it would do. EXIT_NO_PERMISSION: a run holds the lock. */
int ckpt_prune(const char *save, int64_t keep, int64_t every, bool dry_run, FILE *to);

/* The used.ini in a checkpoint, allocated. dir, if asked for: the checkpoint it is from, allocated. */
int ckpt_used_ini(const char *where, char **text, char **dir);

/* A layout to write a checkpoint for. describe fills grid, set (laid out), be (types), piece (m and v
 * not NULL where there is state), n_pieces, sharded_optimizer of one rank; nothing of it is written
 * to or read. It stays valid until the next call or release. */
struct ckpt_target {
    int tp, pp, dp;
    const char *split_spec;
    int (*describe)(void *arg, int tp, int pp, int dp, struct ckpt_state *state);
    void (*release)(void *arg);
    void *arg;
};
/* Writes dir anew as <save>/iter_N by the commit protocol, with the run lock of save. What the
 * checkpoint says of its run, its job file too, stays word for word; so with `reproducible` the way
 * back to the first layout gives the first files, byte for byte. EXIT_CANT_CREATE: save holds that
 * step; EXIT_BAD_DATA: dir is damaged; EXIT_RESUME: it is of another model than described. */
int ckpt_reshard(const char *dir, const char *save, const struct ckpt_target *target, FILE *to);

#endif
