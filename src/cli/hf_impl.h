/* strata import, strata export: what both need. */
#ifndef STRATA_CLI_HF_IMPL_H
#define STRATA_CLI_HF_IMPL_H

#include "checkpoint.h"
#include "cli_impl.h"
#include "data.h"
#include "hf_config.h"
#include "json.h"

#define HF_SLICE ((int64_t)16 << 20) /* elements held at a time */
#define HF_TOKENIZER_FOLDER "tokenizer"
/* The source's own JSON files, which import puts beside the tokenizer's. */
#define HF_SOURCE_PREFIX "source_"
#define HF_SOURCE_CONFIG HF_SOURCE_PREFIX "config.json"
#define HF_SOURCE_VISION HF_SOURCE_PREFIX "vision_config.json"
#define HF_JSON_MAX ((size_t)16 << 20)

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

/* Import: the JSON files of both folders (the same one, mostly) into `folder`; absent ones: nothing. */
int hf_carry_source(const char *language, const char *vision, const char *folder);

/* ---- export ------------------------------------------------------------------------------------- */
/* The source's configuration in the parts of a LLaVA; NULL: it had no such part. */
struct hf_carried {
    struct json *top, *text, *vision; /* config.json: top is without text_config, vision_config */
    struct json *original;            /* the whole of the original LLaVA's flat one */
    struct json *generation, *images, *processor;
};
struct hf_export {
    const char *from, *to, *tokenizer; /* tokenizer: folder of its files */
    int64_t step, max_bytes, vocab_size, image_token;
    enum safetensors_dtype dtype;
    bool projector_only, original;
    char **override; /* data:key=value */
    int n_overrides;
    int64_t pad, bos, eos;    /* ids, -1: none */
    bool trained;             /* steps were taken since the import, if it was one */
    const char *conversation; /* conversation_template, or NULL */
    const char *image_piece;  /* text of image_token */
    char text_model[32];
    struct hf_carried source;
    FILE *notes; /* what of the source is not kept, a line each */
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

/* What a job must say beside a model, so that it can be read for its model alone. */
#define HF_SMALL_JOB                                                                               \
    "[run]\nfamily = llava\nrun_dir = .\n[training]\nmicro_batch_size = 1\ntrain_iters = 1\n"      \
    "[optimizer]\nlr = 1\n"
/* Chooses the class of the language model and refuses what config.json cannot say of the job, every
 * key by name: EXIT_USAGE. */
int hf_check_keys(struct hf_export *e, const struct config *cfg);
/* Must the key have the job's value when config.json is read? Is it said by the companions? */
bool hf_key_must_return(const char *section, const char *key);
bool hf_key_is_input(const char *section, const char *key);
bool hf_same_value(const char *a, const char *b); /* numbers by their value */

/* What import carried beside the tokenizer; fills text_model, pad, bos, eos, image_token from it. */
int hf_source_read(struct hf_export *e);
void hf_source_free(struct hf_export *e);

/* An object that begins as a copy of `source` (NULL: empty); free o, or give it away. */
struct hf_merge {
    struct json *o;
    const char *path; /* before a key in a note */
    FILE *notes;      /* NULL: none */
};
struct hf_merge hf_merge_begin(const struct json *source, const char *path, FILE *notes);
void hf_put(struct hf_merge *m, const char *key, struct json *v); /* another value is noted */
void hf_put_quietly(struct hf_merge *m, const char *key, struct json *v);
void hf_put_absent(struct hf_merge *m, const char *key, struct json *v); /* the source's stays */
/* *out NULL: no such file. */
int hf_read_object(const char *folder, const char *name, struct json **out);

/* Sets rope_theta, and rope_scaling where rope_type is another than rope, in the object of the
 * language model. */
void hf_add_rope(struct json *o, const struct config_language *l);
/* Copies the tokenizer's files and adds what AutoProcessor needs; t NULL: there is no model file. */
int hf_write_tokenizer(const struct hf_export *e, const struct tokenizer *t,
                       const struct config *cfg, int *n_files);
bool hf_has_tiles(const struct config *c);
void hf_put_pinpoints(struct hf_merge *m, const struct config *c, bool height_first);
struct json *hf_new_config(const struct hf_export *e, const struct config *cfg);
int hf_write_json(const char *folder, const char *name, struct json *root); /* takes root */
/* config.json, last of hf_config_files, and its companions. */
extern const char *const hf_config_files[];
int hf_write_configs(const struct hf_export *e, const struct config *cfg, const char *folder);
/* The importer reads the tensors of e->to and the files in `configs`: EXIT_INTERNAL with every key
 * that is not the job's again. */
int hf_read_back(const struct hf_export *e, const struct config *cfg, const char *configs);

#endif
