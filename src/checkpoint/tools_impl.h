/* checkpoint, private to the tools: reading global tensors and what a checkpoint says of its run. */
#ifndef STRATA_CKPT_TOOLS_IMPL_H
#define STRATA_CKPT_TOOLS_IMPL_H

#include "checkpoint_tools.h"
#include "h5_impl.h"

/* ---- one checkpoint, read tensor by tensor ------------------------------------------------------ */
#define SOURCE_OPEN_MAX 64
struct source {
    const char *dir;
    struct ckpt_manifest *m;
    struct ckpt_manifest *own;       /* m, where it is to be freed here; else NULL */
    const struct ckpt_settings *set; /* whose lock is held around HDF5; NULL: none is needed */
    struct shard_reader *reader;     /* [n_files]; path NULL: not open */
    bool *scanned;                   /* [n_files]: its checksums were compared */
    struct passing passing;          /* of the block that is being read */
    int n_open, next_out;
};
/* Manifest, list of files, coverage. A shard's checksums are compared before HDF5 sees it. */
int source_open(struct source *s, const char *dir);
/* The reader of a shard; it stays open until source_close, or until many others were opened. */
int source_shard(struct source *s, int file, struct shard_reader **reader);
/* Packed bytes of a box of the global tensor. */
int source_read(struct source *s, const struct ckpt_tensor *t, const struct box *box, void *host);
int source_close(int rc, struct source *s);
/* A checkpoint as it is; in a folder of them the newest that is not refused and whose manifest and
 * sizes are right. Allocated. */
int source_pick(const char *where, char **dir);

/* Whole rows of axis 0 of `whole`, at most max_bytes of them (one at least). Start with at = 0. */
bool box_next_slice(const struct box *whole, size_t element, int64_t max_bytes, int64_t *at,
                    struct box *slice);
/* b->crc of the n bytes of its data from `at` on; called for all of them in order. */
void block_add_crc(struct ckpt_block *b, int64_t at, const char *host, int64_t n);
struct box tensor_box(const struct ckpt_tensor *t);
int64_t tensor_total_bytes(const struct ckpt_tensor *t);
void tensor_shape_text(const struct ckpt_tensor *t, char *text, size_t size); /* "4096x1024" */
/* n elements of a floating type as fp32, where fp64 is rounded. */
void values_to_float(enum dtype t, const void *from, int64_t n, float *to);
/* n elements as doubles; a fp16, bf16, fp32 or fp64 value stays what it is. */
void values_to_double(enum dtype t, const void *from, int64_t n, double *to);

/* ---- what a checkpoint says of its run ------------------------------------------------------------ */
struct about {
    struct ckpt_state state; /* all that does not depend on the layout; texts belong to `about` */
    struct ckpt_settings settings; /* those that show in the files; save is NULL */
    char run_uuid[37], parent_uuid[37];
    struct ckpt_key *key;
    struct ckpt_text *code; /* /code: the program that wrote the files */
    int64_t n_code;
    struct ckpt_text *provenance;
    struct ckpt_speed *speed;
    struct ckpt_row *history;
    char **text;
    int64_t n_texts;
};
int about_read(struct source *s, struct about *a);
void about_free(struct about *a);

/* ---- folders of checkpoints -------------------------------------------------------------------------- */
int ckpt_lint(const char *dir); /* verify --strict; the data were verified */
int lint_index(struct source *s);

#endif
