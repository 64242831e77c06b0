/* hf_config: what a Hugging Face config.json (or Mistral's params.json, or the shapes of CLIP's
 * tensors) says about a model, as keys of the job file. */
#ifndef STRATA_HF_CONFIG_H
#define STRATA_HF_CONFIG_H

#include "hf.h"

struct hf_key {
    char section[16], key[40], value[512];
};
struct hf_keys {
    struct hf_key key[64];
    int n;
    char text_model[32];      /* model_type of the language model: "mistral", "llama", ... */
    int64_t image_token, pad; /* -1: not said */
};
void hf_keys_set(struct hf_keys *k, const char *section, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
const char *hf_keys_get(const struct hf_keys *k, const char *section,
                        const char *key); /* or NULL */

struct hf_folder {
    const char *path; /* folder of config.json; a file stands for its folder */
    const struct safetensors *files;
};
/* All three may be the same folder. projector.files NULL: none yet. Keys of [vision], [projector],
 * [language] that fix the model, and those of [data] for images of several tiles; defaults of the classes where a config is silent. EXIT_BAD_DATA with
 * what this version cannot build. */
int hf_model_keys(const struct hf_folder *language, const struct hf_folder *vision,
                  const struct hf_folder *projector, struct hf_keys *out);

#endif
