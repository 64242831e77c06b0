/* hf_config: what a Hugging Face config.json (or Mistral's params.json, or the shapes of CLIP's
 * tensors) says about a model, as keys of the job file. */
#ifndef STRATA_HF_CONFIG_H
#define STRATA_HF_CONFIG_H

#include "hf.h"

struct hf_key {
    char section[16], key[40], value[1024]; /* 64 resolutions of 2 x 5 digits */
};
struct hf_keys {
    struct hf_key key[128];
    int n;
    char text_model[32];      /* model_type of the language model: "mistral", "llama", "qwen2" */
    char template[32];        /* proposal for conversation_template */
    int64_t image_token, pad; /* -1: not said */
    int projector_bias;       /* as config.json says, -1: not said */
    bool tied;  /* tie_word_embeddings: the head may be missing, it is the embedding */
    bool llava; /* a LLaVA, no language model alone */
};
void hf_keys_set(struct hf_keys *k, const char *section, const char *key, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
const char *hf_keys_get(const struct hf_keys *k, const char *section,
                        const char *key); /* or NULL */

/* ---- every key that the files of a foreign folder may have (doc/import.md) ------------------------------- */
enum hf_object {
    HF_OBJECT_LLAVA,        /* config.json of a LLaVA of transformers */
    HF_OBJECT_LANGUAGE,     /* its text_config, or config.json of a language model */
    HF_OBJECT_ORIGINAL,     /* config.json of the original LLaVA */
    HF_OBJECT_ROPE,         /* rope_parameters, rope_scaling */
    HF_OBJECT_VISION,       /* vision_config, or config.json of a tower */
    HF_OBJECT_CLIP,         /* config.json of a whole CLIP */
    HF_OBJECT_PARAMS,       /* Mistral's params.json */
    HF_OBJECT_PREPROCESSOR, /* preprocessor_config.json, or image_processor of the next one */
    HF_OBJECT_PROCESSOR,    /* processor_config.json */
    HF_OBJECT_TOKENIZER,    /* tokenizer_config.json */
    HF_OBJECT_GENERATION,   /* generation_config.json */
    HF_OBJECTS
};
enum hf_verdict {
    HF_KEY_UNKNOWN,  /* refused by name, unless null */
    HF_KEY_READ,     /* becomes keys of the job file, or is compared with what this version does */
    HF_KEY_NULLABLE, /* the same, and null has a meaning of its own */
    HF_KEY_ONLY,     /* one value alone, or null */
    HF_KEY_HARMLESS, /* changes neither the model nor its training */
};
/* only (may be NULL): the value of HF_KEY_ONLY, as JSON. */
enum hf_verdict hf_key_verdict(enum hf_object object, const char *key, const char **only);
/* Calls `each` for every known key; returns how many there are. */
int hf_keys_each(enum hf_object object, void (*each)(void *arg, const char *key, enum hf_verdict v),
                 void *arg);

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
