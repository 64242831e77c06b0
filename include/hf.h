/* hf: weights under foreign names -> the parameters of a model.
 *
 * Canonical names are those of llava-hf files (param.hf_name). Every other spelling (later
 * transformers versions, the original LLaVA, CLIP and Mistral on their own, OpenAI's CLIP, Mistral's
 * own release) becomes one by rules, with the changes of layout that belong to it.
 */
#ifndef STRATA_HF_H
#define STRATA_HF_H

#include "checkpoint.h"
#include "safetensors.h"

enum hf_part {
    HF_LANGUAGE = 1,
    HF_VISION = 2,
    HF_PROJECTOR = 4,
    HF_IMAGE_NEWLINE = 8, /* of images of several tiles; by itself, since it may be new */
    HF_WHOLE = 15,
    HF_TIED_HEAD = 16 /* in may_miss: one of head and embedding stands for both */
};
enum hf_kind {
    HF_UNKNOWN,
    HF_WEIGHT,
    HF_NO_WEIGHT, /* follows from the configuration (inv_freq), or of CLIP's text half */
};
struct hf_name {
    enum hf_part part;
    int n;             /* 3: q, k, v lie one behind the other in it (in_proj); else 1 */
    bool interleaved;  /* rotary pairs are (2i, 2i+1) of a head, as in Mistral's own files */
    char name[3][160]; /* canonical */
};
/* A name that begins like a weight's but is none becomes HF_WEIGHT too: no parameter will ask for
 * it. */
enum hf_kind hf_canonical(const char *name, struct hf_name *out);

/* ---- matching ---------------------------------------------------------------------------------- */
struct hf_source {
    struct safetensors *files;
    int parts; /* which of its weights are wanted, of enum hf_part */
};
struct hf_piece { /* where a parameter's elements come from */
    const struct safetensors *files;
    const struct safetensor *tensor; /* NULL: nowhere, which was allowed */
    int64_t first;                   /* element of the tensor */
    bool interleaved;
};
struct hf_map {
    struct hf_piece *piece; /* [set->n] */
    int64_t head_dim;       /* of the language model */
    const struct hf_source *source;
    int n_sources;
    int64_t *used; /* tensors of all sources, one after the other: asked for by a parameter */
    int64_t n_used;
    int64_t n_other; /* known, and no weights of this model */
    bool newline;    /* an image_newline was among them: the model has images of one tile */
};
/* For every parameter of `set` its tensor, of the right shape and a floating type: else each fault
 * is recorded by name. may_miss: parts (enum hf_part) that may be missing as a whole, and
 * HF_TIED_HEAD. The sources
 * must outlive the map. EXIT_BAD_DATA. */
int hf_match(const struct hf_source *source, int n_sources, const struct param_set *set,
             int64_t head_dim, int may_miss, struct hf_map *map);
/* Records every wanted tensor that no parameter asked for (after map->used was joined over ranks). */
int hf_check_unexpected(const struct hf_map *map);
void hf_map_free(struct hf_map *map);
/* Elements [first, first+count) of the parameter, row-major as with TP = 1. */
int hf_fetch(const struct hf_map *map, const struct param *p, const struct hf_piece *piece,
             int64_t first, int64_t count, float *out);

/* Collective over the world: the weights of state->set from a file or folder, each rank its own
 * part, in any layout. EXIT_RESUME, EXIT_BAD_DATA, EXIT_NO_INPUT, EXIT_IO; the same on all ranks. */
int hf_load(const char *path, const struct ckpt_state *state, int64_t head_dim, int may_miss);
/* A file or folder that safetensors_open may try: no folder of strata's own checkpoints. */
bool hf_is_source(const char *path);

#endif
