/* Reading one object of a foreign JSON file: values with defaults, keys that are known or not. A fault
 * is recorded with file and key; the reader goes on with the default, so that all faults come together. */
#ifndef STRATA_HF_READ_IMPL_H
#define STRATA_HF_READ_IMPL_H

#include "hf_config.h"
#include "json.h"

struct hf_reader {
    const char *path;     /* of the file */
    const char *inside;   /* "text_config." in front of the key in sentences, or "" */
    const struct json *v; /* object; NULL: empty, all defaults */
    int rc;               /* code of the last fault, 0 if none */
};

/* NULL where the key is absent or null. */
const struct json *hf_read_member(const struct hf_reader *r, const char *key);
bool hf_read_is_null(const struct hf_reader *r, const char *key); /* present, and null */
int64_t hf_read_integer(struct hf_reader *r, const char *key, int64_t otherwise);
int64_t hf_read_size(struct hf_reader *r, const char *key, int64_t otherwise); /* at least 1 */
double hf_read_real(struct hf_reader *r, const char *key, double otherwise);
bool hf_read_truth(struct hf_reader *r, const char *key, bool otherwise);
const char *hf_read_text(struct hf_reader *r, const char *key, const char *otherwise);
/* The object under a key; empty where it is absent, null or none (a fault). inside: "KEY.". */
struct hf_reader hf_read_below(struct hf_reader *r, const char *key, const char *inside);
/* A fault unless found is the only word that this version builds. */
void hf_read_require(struct hf_reader *r, const char *key, const char *found, const char *only);
void hf_read_refuse(struct hf_reader *r, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Every key of the object is known for what it is, or the faults name those that are not. */
void hf_read_check_keys(struct hf_reader *r, enum hf_object what);

/* Setters that write numbers as short as they read back the same. */
void hf_set_real(struct hf_keys *k, const char *section, const char *key, double v);
void hf_set_int(struct hf_keys *k, const char *section, const char *key, int64_t v);
void hf_set_bool(struct hf_keys *k, const char *section, const char *key, bool v);

/* hf_language.c. type: a model_type for which hf_language_known is true. */
bool hf_language_known(const char *type);
void hf_language_keys(struct hf_reader *r, const char *type, struct hf_keys *k);
void hf_params_keys(struct hf_reader *r, struct hf_keys *k); /* Mistral's params.json */

/* hf_files.c: the JSON files beside config.json. Image means, sizes and the like become keys of
 * [data]; what this version does otherwise than the file says is a fault. */
int hf_processor_keys(const struct hf_folder *vision, struct hf_keys *k);
int hf_tokenizer_check(const struct hf_folder *language);
/* A proposal for conversation_template: by the folder's chat template, else by the model. */
void hf_propose_template(const struct hf_folder *language, struct hf_keys *k);

/* hf_config.c. Pairs of height and width, or of width and height. */
void hf_pinpoint_keys(struct hf_reader *r, bool height_first, struct hf_keys *k);
/* A file of the folder, or NULL; free() it. root NULL: no such file. */
char *hf_file_beside(const char *path, const char *name);
int hf_read_file(const char *folder, const char *name, char **path, struct json **root);

#endif
