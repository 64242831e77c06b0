/* data: samples on disk -> token ids, labels and lengths in memory, pixels on demand.
 *
 * `dataset_prepare` reads the source once (LLaVA JSON or a captioned folder), tokenises, looks at
 * every image, and writes an HDF5 index; `dataset_open` reads the index into memory and is what
 * every rank does. After that a sample costs no I/O; only pixels touch files again.
 * Letters: K merged rows of an image, S merged length of a sample (doc/shapes.md).
 */
#ifndef STRATA_DATA_H
#define STRATA_DATA_H

#include "base.h"

#define DATA_IMAGE_MARKER (-200) /* in ids: an image stands here; never a vocabulary id */
#define DATA_NO_TARGET (-100)    /* in labels */

enum data_format { DATA_LLAVA_JSON, DATA_CAPTIONED_FOLDER, DATA_MOCK };
enum data_template {
    TEMPLATE_PLAIN,
    TEMPLATE_V1,
    TEMPLATE_MISTRAL_INSTRUCT,
    TEMPLATE_LLAVA_LLAMA_2,
    TEMPLATE_CHATML_DIRECT
};
enum data_aspect {
    ASPECT_SQUARE, /* shortest edge to the target, centre crop */
    ASPECT_PAD,    /* first padded to the target's aspect with the mean colour */
    ASPECT_ANYRES  /* several tiles (LLaVA-1.6), see struct anyres */
};
enum data_bad_image { BAD_IMAGE_FAIL, BAD_IMAGE_SKIP, BAD_IMAGE_BLANK };
enum data_caption_lines { CAPTION_ALL, CAPTION_FIRST };
enum data_no_target { NO_TARGET_FAIL, NO_TARGET_SKIP, NO_TARGET_KEEP };

/* ---- anyres -----------------------------------------------------------------------------------
 * One of n resolutions is chosen by the image's size: the one that keeps most of its pixels, then
 * the one that wastes least, then the first. The image is resized into it without changing its
 * aspect, pasted on black and cut into tiles. Resolutions are multiples of a tile's size. */
#define ANYRES_MAX 64
struct anyres {
    int n, width[ANYRES_MAX], height[ANYRES_MAX]; /* pixels */
    int img_w, img_h;                             /* of a tile */
    int patches_w, patches_h;                     /* of a tile */
};
/* What stands for an image: tile 0 is the whole of it squashed to one tile; the patches of the
 * others, grid_h x grid_w tiles row by row, form a map, of which the padding is dropped. A row of
 * image_newline ends each row of the map. A pure function of the size in pixels. */
struct image_layout {
    int32_t tiles; /* 1 + grid_h grid_w */
    int32_t grid_h, grid_w;
    int32_t top, left, rows, cols; /* in patches: what is kept of the map */
};
void anyres_layout(const struct anyres *a, int width, int height, struct image_layout *out);
/* Merged rows of an image whose first tile has K. */
static inline int64_t image_layout_rows(const struct image_layout *l, int64_t rows_per_image) {
    return rows_per_image + (int64_t)l->rows * (l->cols + 1);
}

/* Filled by the caller from the job file; strings are borrowed until dataset_open returns. */
struct data_settings {
    enum data_format format;
    const char *path;              /* the JSON file, or the folder */
    const char *cache_path;        /* folder of the index */
    const char *image_folder;      /* llava_json: images lie below it; NULL: the JSON's folder */
    const char *caption_extension; /* captioned_folder, with its dot; NULL: ".txt" */
    enum data_caption_lines caption_lines; /* captioned_folder */
    const char *caption_prompt; /* captioned_folder: human text, unused by template plain */
    enum data_template conversation_template;
    bool strict_llava_masking;  /* also mask rows that LLaVA's own code throws away (llava_json) */
    const char *tokenizer_type; /* Llama2Tokenizer, SentencePieceTokenizer, or its GPT twin */
    const char *tokenizer_model;
    int64_t vocab_size;            /* of the model; the tokenizer may have fewer pieces */
    int64_t decoder_seq_length;    /* merged rows beyond it are cut off on the right */
    int64_t dataloader_seq_length; /* text ids (markers included) beyond it are cut; 0: no limit */
    int64_t rows_per_image;        /* K of a tile: 576, or 577 with the class row */
    int img_h, img_w;
    enum data_aspect aspect;
    struct anyres anyres; /* ASPECT_ANYRES */
    bool composite;       /* lay transparent images over `background`; else alpha is dropped */
    uint8_t background[3];
    double mean[3], std[3];
    enum data_bad_image on_bad_image;
    int64_t max_bad_images; /* skip and blank: more bad images than that stop the job */
    enum data_no_target on_no_target;
    bool shuffle;
    int num_workers; /* decoding threads of prefetch and of dataset_prepare */
    /* DATA_MOCK: all samples alike; needs no files and no tokenizer */
    int64_t mock_samples, mock_images, mock_text_length;
    uint64_t mock_seed;
};
/* Everything that has a default gets it: CLIP's mean and std, 336 x 336, K 576, pad, fail, fail,
 * shuffle, 2 workers, ".txt", mock 1024 samples of 1 image and 64 text ids. */
void data_settings_init(struct data_settings *s);
/* Job-file words; EXIT_USAGE with a sentence listing the legal ones. */
int data_format_parse(const char *text, enum data_format *out);
int data_template_parse(const char *text, enum data_template *out);
int data_aspect_parse(const char *text, enum data_aspect *out);
int data_bad_image_parse(const char *text, enum data_bad_image *out);
int data_no_target_parse(const char *text, enum data_no_target *out);

/* ---- the index -------------------------------------------------------------------------------
 * HDF5 file <cache_path>/dataset-<16 hex digits>.h5; the digits are a hash of everything that
 * shapes it, so a changed setting builds another one and never reads a stale one. HDF5 is not
 * thread-safe: prepare and open are called while no other thread of the process is inside HDF5. */
char *dataset_index_path(const struct data_settings *s); /* free() it; NULL after error_raise */

/* Builds the index unless it is there and no file that was read changed (size, time, first bytes), those
 * of records left out too; force
 * builds it anyway. One process calls it (rank 0), the others wait outside. progress may be NULL;
 * it is called from the calling thread with units of work done of those known by now (records,
 * then images too). Errors name record, id, file. */
int dataset_prepare(const struct data_settings *s, bool force,
                    void (*progress)(void *arg, int64_t done, int64_t total), void *arg);

/* Opaque; thread-safe for every function that takes it const. */
struct dataset;
/* EXIT_NO_INPUT if there is no index, EXIT_BAD_DATA if it is damaged. */
int dataset_open(const struct data_settings *s, struct dataset **out);
void dataset_close(struct dataset *d);
int64_t dataset_count(const struct dataset *d);
int64_t dataset_images(const struct dataset *d);     /* rows of the image table */
const char *dataset_digest(const struct dataset *d); /* sha256 hex of ids, labels, image names... */

/* What each start says about the samples, a line each: keys that are not read, lines and turns left out,
 * the first of the records left out. "" if there is nothing to say. */
const char *dataset_notes(const struct dataset *d);

struct dataset_report {
    int64_t samples, text_only, images;
    int64_t text_ids, targets;       /* sums over samples; targets after the cut */
    int64_t longest, longest_sample; /* merged rows BEFORE the cut, and whose */
    int64_t cut_samples;             /* samples longer than decoder_seq_length */
    int64_t no_target_samples;       /* kept ones */
    int64_t skipped_bad_image, skipped_no_target, blank_images;
};
void dataset_report(const struct dataset *d, struct dataset_report *r);

/* Views into memory; valid until dataset_close. No I/O. */
struct sample {
    int64_t id;                        /* = i */
    const char *name;                  /* "id" of the source, for messages */
    int32_t text_len;                  /* ids, one DATA_IMAGE_MARKER per image included */
    int32_t n_images;                  /* marker k is image[k] */
    const int32_t *ids;                /* [text_len] */
    const int32_t *labels;             /* [text_len]: the id, or DATA_NO_TARGET */
    const int64_t *image;              /* [n_images] rows of the image table */
    const struct image_layout *layout; /* [n_images]; NULL: each is one tile of K rows */
    int64_t
        merged_len;    /* S = text_len - n_images + rows of all images, cut at decoder_seq_length */
    int64_t n_targets; /* merged rows t with t+1 < S whose next row's label is a target */
};
static inline int64_t sample_image_rows(const struct sample *s, int64_t k, int64_t rows_per_image) {
    return s->layout == NULL ? rows_per_image : image_layout_rows(&s->layout[k], rows_per_image);
}
static inline int32_t sample_image_tiles(const struct sample *s, int64_t k) {
    return s->layout == NULL ? 1 : s->layout[k].tiles;
}
void dataset_sample(const struct dataset *d, int64_t i, struct sample *out);

/* Decode, pad or crop, resize, normalise: out[tiles][3][img_h][img_w] (planar RGB). Thread-safe but
 * for the error trace, so call it from one thread at a time; prefetch is the one for many. */
int dataset_pixels(const struct dataset *d, int64_t image, float *out);
const char *dataset_image_name(const struct dataset *d, int64_t image);
/* The same for a file that is in no dataset. */
int data_image_load(const struct data_settings *s, const char *path, float *out);
/* ASPECT_ANYRES: what stands for it, from decoding it. */
int data_image_layout(const struct data_settings *s, const char *path, struct image_layout *out);

/* ---- records and questions: one JSON object each ------------------------------------------------ */
struct json;
enum record_part { RECORD_WHOLE, RECORD_TURN, RECORD_QUESTION };
#define RECORD_WHY_BYTES 320
#define RECORD_KEYS_KEPT 24
/* Keys that strata does not read and that carry no content, each with the number of objects it was met
 * in; others: the same of the keys for which there was no room. */
struct record_keys {
    struct {
        char name[48];
        int64_t objects;
    } key[RECORD_KEYS_KEPT];
    int n;
    int64_t others;
};
/* Judges the members of an object that strata does not read. false: one carries content, and `why` says
 * which and what to do; else they are counted in `met`. */
bool record_keys_check(struct record_keys *met, const struct json *object, enum record_part part,
                       char why[RECORD_WHY_BYTES]);
char *record_keys_text(const struct record_keys *met); /* "score (12), source (3)"; NULL: none */
/* json_read_text with limits on the size and the number of values, checked before the tree is made. */
int record_parse(const char *name, const char *text, size_t bytes, struct json **root);

/* ---- order: which sample stands at position = number of samples consumed before it -------------
 * A pure function of (run key, n, shuffle, position): position / n is the epoch, position % n the
 * place in the permutation of that epoch. Two epochs are cached; no allocation after create. */
struct sampler;
struct sampler *sampler_create(int64_t n_samples, struct rng_key run, bool shuffle);
void sampler_destroy(struct sampler *s);
int64_t sampler_sample(struct sampler *s, int64_t position);

/* ---- prefetch: threads decode images of coming micro-batches ------------------------------------
 * submit queues n images for out[tiles of all][3][img_h][img_w] and returns a ticket; wait returns once they
 * are there, in any order of tickets, each ticket once. Errors are raised by wait, in the calling
 * thread, with the image's name. No allocation after create but inside the image libraries.
 * n_threads 0: wait does the work itself. At most max_tickets may be outstanding (a CHECK). */
struct prefetch;
struct prefetch *prefetch_create(const struct dataset *d, int n_threads, int max_tickets,
                                 int64_t max_images_per_ticket);
int64_t prefetch_submit(struct prefetch *p, const int64_t *image, int64_t n, float *out);
int prefetch_wait(struct prefetch *p, int64_t ticket);
void prefetch_destroy(struct prefetch *p); /* drops what is queued, joins the threads */

/* ---- tokenizer --------------------------------------------------------------------------------
 * SentencePiece with the rules LLaVA was trained under: special pieces are cut out first, every
 * chunk between them gets a dummy prefix of its own, BOS once if asked for, EOS never. */
struct tokenizer;
struct id_list { /* grows; free ids with free() */
    int32_t *ids;
    int64_t n, capacity;
};
int tokenizer_open(const char *type, const char *path, struct tokenizer **out);
void tokenizer_close(struct tokenizer *t);
int64_t tokenizer_vocab_size(const struct tokenizer *t);
int32_t tokenizer_bos(const struct tokenizer *t); /* -1: the model has none */
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_unk(const struct tokenizer *t);
const char *tokenizer_piece(const struct tokenizer *t, int32_t id);       /* 0 <= id < vocab_size */
int32_t tokenizer_piece_id(const struct tokenizer *t, const char *piece); /* -1: no such piece */
const char *tokenizer_sha256(const struct tokenizer *t); /* of the model file, 64 hex digits */
/* Appends. `<image>` in the text becomes DATA_IMAGE_MARKER if images is set, else plain text. */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool bos,
                     bool images, struct id_list *out);
/* UTF-8, malloc'ed, one leading blank dropped; negative ids are skipped. NULL after error_raise. The
 * text may hold NUL bytes (token <0x00>); *bytes is its length, one NUL more stands behind it. */
char *tokenizer_decode(const struct tokenizer *t, const int32_t *ids, int64_t n, size_t *bytes);
/* sha256 over model file, template and special ids: what a checkpoint compares (64 hex digits). */
void tokenizer_template_sha256(const struct tokenizer *t, enum data_template tpl, char hex[65]);

/* Prompt of one question for generation: the template up to where the answer begins; n_images
 * markers in front of the question. malloc'ed; encode it with images = true, bos = true. */
char *template_prompt(enum data_template t, const char *question, int n_images);

#endif
