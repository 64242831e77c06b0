/* Inside data: the index in memory (columns), its HDF5 file, and the two sources that fill it. */
#ifndef STRATA_DATA_INDEX_IMPL_H
#define STRATA_DATA_INDEX_IMPL_H

#include "image_impl.h"
#include "template_impl.h"

enum column_type { COLUMN_I64, COLUMN_I32, COLUMN_U8 };
/* In the order in which they lie in the file; the first N_DIGESTED enter the digest. n samples, I images,
 * L images of records that were left out. */
enum index_column {
    COL_TEXT_OFFSET,  /* [n+1] */
    COL_IDS,          /* [text_offset[n]] */
    COL_LABELS,       /* as ids */
    COL_IMAGE_OFFSET, /* [n+1]: images of sample i are rows image_offset[i].. of the image table */
    COL_MERGED,       /* [n]: merged rows before the cut */
    COL_TARGETS,      /* [n]: targets after the cut */
    COL_RECORD,       /* [n]: place in the source */
    COL_NAME_OFFSET,  /* [n+1] */
    COL_NAMES,        /* each with its NUL */
    COL_IMAGE_WIDTH,  /* [I] */
    COL_IMAGE_HEIGHT, /* [I] */
    COL_IMAGE_BYTES,  /* [I] */
    COL_IMAGE_BLANK,  /* [I]: 1 = could not be read and is replaced by a blank one */
    COL_IMAGE_NAME_OFFSET, /* [I+1] */
    COL_IMAGE_NAMES,       /* relative to the image folder, each with its NUL */
    COL_IMAGE_STAMP,       /* [I]: file_stamp */
    COL_LEFT_NAME_OFFSET,  /* [L+1] */
    COL_LEFT_NAMES,        /* as image_names */
    COL_LEFT_STAMP,        /* [L] */
    N_COLUMNS
};
#define N_DIGESTED COL_IMAGE_STAMP
struct column {
    void *data;
    int64_t n, capacity;
};
struct column_kind {
    const char *name;
    enum column_type type;
    const char *description;
};
extern const struct column_kind column_kind[N_COLUMNS];
size_t column_size(enum index_column c); /* bytes of an element */

#define NOTES_BYTES 4096
struct index {
    struct column col[N_COLUMNS];
    int64_t skipped_bad_image, skipped_no_target;
    char digest[65];         /* of the columns that samples are made of */
    char fingerprint[65];    /* of the source without its images: names, sizes, times, heads */
    char notes[NOTES_BYTES]; /* lines that each start repeats: what was left out, and why */
};
void index_init(struct index *x); /* no samples: the offset columns hold their 0 */
void index_free(struct index *x);
int64_t index_samples(const struct index *x);
int64_t index_images(const struct index *x);
static inline const int64_t *index_i64(const struct index *x, enum index_column c) {
    return x->col[c].data;
}
static inline const int32_t *index_i32(const struct index *x, enum index_column c) {
    return x->col[c].data;
}
const char *index_name(const struct index *x, int64_t i);
const char *index_image_name(const struct index *x, int64_t image);
/* Appends n elements. */
void index_append(struct index *x, enum index_column c, const void *data, int64_t n);
void index_append_i64(struct index *x, enum index_column c, int64_t v);
/* Appends a sample of another index with its images. */
void index_append_sample(struct index *x, const struct index *from, int64_t i);
void index_compute_digest(const struct index *x, char hex[65]);
/* EXIT_BAD_DATA unless offsets, ids, labels and names hang together. */
bool index_names_fit(const struct index *x); /* of images, those of left out records too */
int index_validate(const struct index *x, const char *path, int64_t vocab_size);

/* One text with its places for images, cut at decoder_seq_length L. rows: of each image; NULL: all
 * have rows_per_image. */
int64_t merged_rows(int64_t text_len, int64_t n_images, const int64_t *rows,
                    int64_t rows_per_image);
int64_t count_targets(const int32_t *ids, const int32_t *labels, int64_t text_len,
                      const int64_t *rows, int64_t rows_per_image, int64_t limit);
/* ASPECT_ANYRES: what stands for an image of the index. */
void index_image_layout(const struct index *x, const struct data_settings *s, int64_t image,
                        struct image_layout *out);
/* ASPECT_ANYRES: merged rows and targets of all samples, now that the images' sizes are known. */
void index_measure(struct index *x, const struct data_settings *s);
/* Leaves out the samples that are not to be kept; the names and stamps of their images stay. */
void index_keep(struct index *x, const bool *keep);

/* ---- HDF5 (dataset_file.c) ------------------------------------------------------------------ */
int index_file_write(const char *path, const struct index *x, const char *settings);
int index_file_read(const char *path, struct index *x);
/* Header, and the columns of image names and stamps alone. */
int index_file_read_names(const char *path, struct index *x);

/* ---- files that were read (stamp.c) ------------------------------------------------------------ */
/* A number that another file would hardly have: of size, time of change and the first 4 KiB. A file that
 * cannot be read has one too, so that it counts as changed once it can. */
int64_t file_stamp(int folder, const char *name);
void file_stamps(const char *folder, const char *const *name, int64_t n, int n_threads,
                 int64_t *stamp);
/* Path of an image that is not what it was when the index was made, or NULL. free() it. */
char *index_find_changed(const struct index *x, const char *folder, int n_threads);

/* ---- building ------------------------------------------------------------------------------- */
#define PROBLEMS_SHOWN 10
#define PROBLEMS_MAX 10000 /* reading ends there: such a file is of another kind */
#define EXAMPLES_NOTED 5   /* of the records left out */
#define RECORD_TEXT_BYTES_MAX ((size_t)1 << 20)
struct builder {
    const struct data_settings *set;
    struct tokenizer *tok;
    struct index x;
    struct prompt prompt;
    struct token_rows rows;
    int64_t n_problems;
    int code;                             /* of the first problem */
    int64_t lines_left_out, captions_cut; /* caption_lines = first: lines, and captions of them */
    int64_t early_turns, early_records;   /* turns of gpt before the first of human */
    struct record_keys record_keys, turn_keys;
    int64_t n_examples; /* records left out that the notes name */
    void (*progress)(void *arg, int64_t done, int64_t total);
    void *progress_arg;
    int64_t done, total;
};
/* A mistake in the data: the first ones are raised, the rest are counted, so that all are seen. */
void builder_problem(struct builder *b, int exit_code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* The same that the policy forgives: the record is left out, and each start says so. */
void builder_leave_out(struct builder *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* A line that each start repeats; what does not fit is left away. */
void builder_note(struct builder *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int builder_end(struct builder *b);   /* the code of the problems, with a closing sentence; or 0 */
void builder_step(struct builder *b); /* one unit of work done */

struct record {
    int64_t number;   /* from 0 */
    const char *name; /* id or path */
    const struct turn *turns;
    int n_turns;
    const char *const *images;
    int n_images;
};
/* Template, tokens, labels, policy for missing targets. */
int builder_add(struct builder *b, const struct record *r);
int source_llava_read(struct builder *b);
int source_folder_read(struct builder *b);
/* Of what the index is made from, but the images: names, and stamps of the files that hold text. */
int source_fingerprint(const struct data_settings *s, char hex[65]);
int folder_fingerprint(const struct data_settings *s, struct sha256 *h);
/* Looks at every image (num_workers threads) and applies on_bad_image. */
int builder_check_images(struct builder *b);
/* After index_measure: the policy for samples that lost their targets to long images. */
void builder_check_targets(struct builder *b);

char *data_image_folder(const struct data_settings *s); /* malloc'ed */

#endif
