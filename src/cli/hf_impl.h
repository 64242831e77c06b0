/* strata import, strata export: what both need. */
#ifndef STRATA_CLI_HF_IMPL_H
#define STRATA_CLI_HF_IMPL_H

#include "checkpoint.h"
#include "cli_impl.h"
#include "hf_config.h"

#define HF_SLICE ((int64_t)16 << 20) /* elements held at a time */
#define HF_TOKENIZER_FOLDER "tokenizer"
#define HF_SOURCE_CONFIG                                                                           \
    "source_config.json" /* the foreign config.json, kept beside the tokenizer */

/* The whole model of a job file, as with one rank; no memory for its weights. */
struct hf_model {
    struct config *cfg;
    struct stack stack;
    struct stage stage; /* all layers: params is the table of the model */
};
/* `text` is a job file whose paths are relative to `folder` (NULL: nobody will look at them); `name`
 * stands for it in messages. */
int hf_model_build(const char *name, const char *folder, const char *text, struct hf_model *out);
void hf_model_free(struct hf_model *m);

/* Copies those of a tokenizer's files that are there. */
int hf_copy_tokenizer(const char *from, const char *to, int *n_copied);
int hf_copy_file(const char *from_folder, const char *name, const char *to_folder,
                 const char *to_name, int *n_copied); /* absent: nothing */
/* An empty folder, or one that is made: EXIT_CANT_CREATE if it holds `taken`. */
int hf_make_folder(const char *path, const char *taken);

/* One word behind an option: "--step" "5". */
int hf_option_value(int argc, char **argv, int *i, const char **value);

/* Collective over the world: all ranks as copies of one model. Waits are long, since a rank may write
 * for hours while another has nothing left to do. */
int hf_grid_create(struct grid **grid);

/* ---- export ------------------------------------------------------------------------------------- */
struct hf_export {
    const char *from, *to, *tokenizer; /* tokenizer: folder of its files */
    int64_t step, max_bytes, vocab_size, image_token;
    enum safetensors_dtype dtype;
    bool projector_only, original;
    int64_t pad, bos, eos; /* ids, -1: none */
    char text_model[32];
};
struct hf_tensors {
    const struct safetensor *tensor;
    const struct param *const *param; /* of each; NULL: zeros */
    int64_t n;
};
/* Collective over the world. The tensor files of a folder: header and index by rank 0, the values by
 * all ranks, each its share of the bytes. On an error nothing is left, and the rank that met it has
 * recorded the sentence: EXIT_IO, EXIT_CANT_CREATE, or those of ckpt_reader_rows. */
int hf_write_tensors(const struct hf_export *e, const struct group *world,
                     const struct ckpt_settings *settings, const struct ckpt_found *found,
                     const struct hf_tensors *tensors);
/* Sets rope_theta, and rope_scaling where rope_type is another than rope, in the object of the
 * language model. */
struct json;
void hf_add_rope(struct json *o, const struct config_language *l);
/* config.json and its companions for a model that is written in scheme A (or original). */
int hf_write_configs(const struct hf_export *e, const struct config *cfg);

#endif
