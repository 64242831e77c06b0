/* base: errors, arenas, log, clock, counter-based randomness, strict numbers, checksums.
 *
 * The lowest room: everything may include it, it includes nothing of strata.
 */
#ifndef STRATA_BASE_H
#define STRATA_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define STRATA_VERSION "0.1.0"

/* What this program was built from; "unknown" where the build could not tell (no git: a release). */
struct build_info {
    const char *compiler, *flags;
    const char *git_sha, *git_dirty; /* "true": with changes that are not committed */
};
const struct build_info *build_info(void);

/* ---- exit codes (doc/errors.md) ------------------------------------------------------------ */
enum exit_code {
    EXIT_OK = 0,
    EXIT_USAGE = 64,       /* command line or job file */
    EXIT_BAD_DATA = 65,    /* an input file holds something wrong */
    EXIT_NO_INPUT = 66,    /* an input file is missing */
    EXIT_UNAVAILABLE = 69, /* library, device or plug-in not there or not matching */
    EXIT_INTERNAL = 70,    /* our own bug */
    EXIT_CANT_CREATE = 73, /* output cannot be created */
    EXIT_IO = 74,          /* reading or writing failed after retries */
    EXIT_AGAIN = 75,       /* state saved, start me again */
    EXIT_HANG = 76,        /* a wait exceeded its limit */
    EXIT_NO_PERMISSION = 77,
    EXIT_RESUME = 78,  /* resume refused */
    EXIT_NUMERIC = 79, /* stopped by a numerical policy */
};

/* ---- errors -------------------------------------------------------------------------------
 * An error is a sentence: what, the value, what was allowed, where to change it.
 * error_raise records it and returns exit_code, so that callers write `return error_raise(...)`
 * and theirs `TRY(f())`. error_note appends context to the recorded sentence ("while reading X").
 * Several errors may be recorded (all config errors at once): each becomes one line.
 * error_fatal records, prints everything once, and aborts the job through the installed hook. */
int error_raise(int exit_code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int error_note(int exit_code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int error_count(void);
/* Is there no room for another sentence? Further ones are only counted, so nobody need compose them:
 * a file of faults must not take longer than a file. */
bool error_full(void);
int error_code(void);         /* the first recorded exit code, 0 if none */
const char *error_text(void); /* all recorded sentences, one per line; "" if none */
void error_clear(void);
void error_print(FILE *to); /* "error: <sentence>" per line; nothing if none */
/* What ends the process: exit() until comm installs MPI_Abort on the world. */
void error_set_abort(void (*abort_job)(int exit_code));
_Noreturn void error_exit(void); /* print what is recorded, end the job with error_code() */
_Noreturn void error_fatal(int exit_code, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#define TRY(expr)                                                                                  \
    do {                                                                                           \
        int try_rc_ = (expr);                                                                      \
        if (try_rc_ != 0) return try_rc_;                                                          \
    } while (0)

/* Always on: a violated rule that is not the user's fault ends the job with EXIT_INTERNAL. */
#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond)) check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__);                         \
    } while (0)
_Noreturn void check_failed(const char *file, int line, const char *condition, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- arenas -------------------------------------------------------------------------------
 * A bump allocator over one block. In measuring mode it hands out addresses of no memory and only
 * counts, so the code that lays out memory is also the code that predicts it (house idea 9). */
#define ARENA_ALIGN 64
struct arena {
    const char *name;
    char *base;
    size_t size; /* 0 while measuring */
    size_t used, peak;
    bool measuring;
};
void arena_init(struct arena *a, const char *name, void *base, size_t size);
void arena_init_measuring(struct arena *a, const char *name);
/* 64-byte aligned; running over the planned size is an internal error. bytes = 0 gives a valid
 * address that must not be read. */
void *arena_alloc(struct arena *a, size_t bytes);
size_t arena_mark(const struct arena *a);
void arena_release(struct arena *a, size_t mark); /* back to an earlier mark */
void *xmalloc(size_t bytes);                      /* out of memory ends the job, never NULL */
void *xcalloc(size_t n, size_t size);
void *xrealloc(void *p, size_t bytes);
char *xstrdup(const char *s);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- log ----------------------------------------------------------------------------------
 * Rank 0 writes to stdout and, once opened, to a file; other ranks are silent but for warnings. */
void log_set_rank(int rank);
void log_to(FILE *stream); /* in place of stdout, which the program's result needs */
int log_open(const char *path);
void log_close(void);
void log_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void log_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* stderr, any rank */

/* ---- clock -------------------------------------------------------------------------------- */
double clock_seconds(void);                       /* CLOCK_MONOTONIC */
void clock_utc(char text[32], bool microseconds); /* ISO-8601 */

/* ---- counter-based randomness (Philox4x32-10, Salmon et al. SC'11) ---------------------------
 * Every random number is a function of (run key, purpose, coordinates): doc/mathematics.md. */
enum rng_site {
    RNG_INIT = 1,
    RNG_ORDER = 2,
    RNG_DROP_EMBEDDING = 16,
    RNG_DROP_ATTENTION = 17, /* probabilities */
    RNG_DROP_ATTENTION_OUT = 18,
    RNG_DROP_MLP_OUT = 19,
    RNG_SAMPLE = 32, /* generation: one number for each token chosen */
};
#define RNG_PACKING_VERSION 1
struct rng_key {
    uint32_t k[2];
};
void philox4x32(struct rng_key key, const uint32_t counter[4], uint32_t out[4]);
struct rng_key rng_run_key(int64_t seed);
/* Sub-key of one weight tensor; of one dropout site of one layer in one step. */
struct rng_key rng_init_key(struct rng_key run, const char *tensor_name);
struct rng_key rng_drop_key(struct rng_key run, enum rng_site site, uint32_t layer, int64_t step);
/* Element `index` (global, row-major, in the tensor as it is with TP = 1) of N(0,1); of U[-1,1). */
double rng_normal(struct rng_key sub, uint64_t index);
double rng_uniform(struct rng_key sub, uint64_t index);
/* Elements first .. first+n-1 of the same: one draw serves four. */
void rng_normals(struct rng_key sub, uint64_t first, int64_t n, double *out);
void rng_uniforms(struct rng_key sub, uint64_t first, int64_t n, double *out);
/* Word for dropout: drop iff the word < floor(prob * 2^32). */
uint32_t rng_drop_word(struct rng_key sub, uint32_t column, uint32_t row, uint32_t sample,
                       uint32_t head);
/* The n-permutation of (run key, epoch): perm[i] = sample at position i. */
void rng_permutation(struct rng_key run, int64_t epoch, int64_t n, int64_t *perm);

/* ---- strict text to number ------------------------------------------------------------------
 * Whole text, decimal ("010" is ten); return false on anything else, overflow included. Reals take
 * an exponent, never NaN or infinity. Booleans: true false yes no on off 1 0, any case. */
bool parse_int64(const char *text, int64_t *out);
bool parse_real(const char *text, double *out);
bool parse_bool(const char *text, bool *out);
/* Foreign text for a sentence: control characters escaped, cut to size. */
void text_printable(const char *text, char *out, size_t size);

/* ---- checksums ---------------------------------------------------------------------------- */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes); /* start with 0; Castagnoli */
/* Of two stretches, one behind the other, from the checksum of each (both started with 0). */
uint32_t crc32c_join(uint32_t first, uint32_t second, size_t second_bytes);
struct sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64];
};
void sha256_begin(struct sha256 *s);
void sha256_add(struct sha256 *s, const void *data, size_t bytes);
void sha256_end(struct sha256 *s, char hex[65]);

/* ---- files --------------------------------------------------------------------------------- */
/* A storage error is not damage: EXIT_NO_INPUT says that a file is not there, EXIT_BAD_DATA that it was
 * read and is wrong; whatever else keeps it from being read is EXIT_IO or EXIT_NO_PERMISSION. */
int file_code_of_errno(int error); /* of a call that was to open or read something */
/* After a call that failed with that errno: true if it is worth another try, after a pause that grows.
 * *tries begins at 0. For errors that a network file system gets over (EIO, ESTALE, ETIMEDOUT). */
bool file_try_again(int error, int *tries);
/* Whether there is something of that name, links followed; unlike access(2) it tells "no" from "the
 * storage does not say". */
int file_look(const char *path, bool *there);
/* Whole file into memory, NUL added behind it. EXIT_NO_INPUT, EXIT_IO, EXIT_BAD_DATA (> max). */
int file_read(const char *path, size_t max_bytes, char **data, size_t *bytes);
/* The same of a regular file that is no link: a pipe in its place is not waited for (EXIT_BAD_DATA). */
int file_read_regular(const char *path, size_t max_bytes, char **data, size_t *bytes);
int file_write_atomic(const char *path, const void *data, size_t bytes); /* tmp, fsync, rename */
int dir_make(const char *path); /* with parents; each new name is synced */
/* Whether a file is a Git LFS pointer, the short text that a clone without git-lfs holds in place of a
 * large file: from its whole contents, or by reading it (false too if it cannot be read). The sentence
 * about it is the file's name, a blank, and LFS_POINTER. */
#define LFS_POINTER                                                                                \
    "is a Git LFS pointer, not the file that it stands for; fetch that file with: git lfs pull"
bool lfs_pointer(const void *data, size_t bytes);
bool lfs_pointer_file(const char *path);

#endif
