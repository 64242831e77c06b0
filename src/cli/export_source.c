/* The JSON files of the folder that a model was imported from, which lie beside its tokenizer. Export
 * puts what was trained over them, so that no field is lost on the way. */
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"

/* ---- import: carry them -------------------------------------------------------------------------- */
static const char *const carried[] = {"generation_config.json", "preprocessor_config.json",
                                      "processor_config.json"};

int hf_carry_source(const char *language, const char *vision, const char *folder) {
    int n = 0;
    TRY(hf_copy_file(language, "config.json", folder, HF_SOURCE_CONFIG, &n));
    TRY(hf_copy_file(vision, "config.json", folder, HF_SOURCE_VISION, &n));
    for (size_t i = 0; i < sizeof carried / sizeof *carried; i++) {
        char *to = xasprintf(HF_SOURCE_PREFIX "%s", carried[i]);
        int found = 0, rc = hf_copy_file(language, carried[i], folder, to, &found);
        if (!rc && found == 0 && i > 0) rc = hf_copy_file(vision, carried[i], folder, to, &found);
        free(to);
        if (rc) return rc;
    }
    return 0;
}

/* ---- export: take them apart --------------------------------------------------------------------- */
static const struct json *object(const struct json *o, const char *key) {
    const struct json *v = o != NULL ? json_get(o, key) : NULL;
    return v != NULL && json_kind(v) == JSON_OBJECT ? v : NULL;
}

static bool begins(const char *text, const char *with) {
    return strncmp(text, with, strlen(with)) == 0;
}

/* Of a flat configuration (a language model's own, or the original LLaVA's) what is no business of the
 * language model: it belongs to that format and has its counterpart elsewhere in this one. */
static bool of_original(const char *key) {
    static const char *const prefix[] = {"mm_",       "image_",  "tokenizer_", "tune_mm",
                                         "freeze_mm", "use_mm_", "unfreeze_",  "vision_config"};
    for (size_t i = 0; i < sizeof prefix / sizeof *prefix; i++)
        if (begins(key, prefix[i])) return true;
    return false;
}

static struct json *language_part(const struct json *flat, FILE *notes) {
    struct json *o = json_duplicate(flat);
    const char *key;
    const struct json *v;
    for (void *i = json_member(flat, NULL, &key, &v); i != NULL;
         i = json_member(flat, i, &key, &v)) {
        if (!of_original(key)) continue;
        json_remove(o, key);
        if (strcmp(key, "vision_config") != 0)
            fprintf(notes,
                    "config.json %s of the source is not kept: it is the original format's\n", key);
    }
    json_remove(o, "architectures");
    return o;
}

static struct json *without_towers(const struct json *root) {
    struct json *o = json_duplicate(root);
    json_remove(o, "text_config");
    json_remove(o, "vision_config");
    return o;
}

/* Fields of a LLaVA's top level that the original's flat format has no place for. */
static void note_top(const struct json *top, FILE *notes) {
    const char *key;
    const struct json *v;
    static const char *const said[] = {"architectures",        "model_type",
                                       "torch_dtype",          "dtype",
                                       "image_token_index",    "image_token_id",
                                       "vision_feature_layer", "pad_token_id",
                                       "ignore_index",         "image_grid_pinpoints",
                                       "projector_hidden_act", "tie_word_embeddings",
                                       "image_seq_length",     "vision_feature_select_strategy"};
    for (void *i = json_member(top, NULL, &key, &v); i != NULL; i = json_member(top, i, &key, &v)) {
        bool known = false;
        for (size_t k = 0; k < sizeof said / sizeof *said; k++)
            known = known || strcmp(key, said[k]) == 0;
        if (!known)
            fprintf(notes,
                    "config.json %s of the source is not kept: the original format has no "
                    "such field\n",
                    key);
    }
}

static void take_apart(struct hf_export *e, const struct json *root, const struct json *vision) {
    const struct json *text = object(root, "text_config");
    const struct json *tower = object(root, "vision_config");
    bool original = text == NULL && json_get(root, "mm_hidden_size") != NULL;
    if (tower == NULL)
        tower = object(vision, "vision_config") ? object(vision, "vision_config") : vision;
    if (tower != NULL && json_get(tower, "patch_size") != NULL)
        e->source.vision = json_duplicate(tower);
    if (text != NULL) {
        e->source.top = without_towers(root);
        e->source.text = json_duplicate(text);
        if (e->original) note_top(e->source.top, e->notes);
    } else {
        e->source.text = language_part(root, e->original && original ? NULL : e->notes);
        if (original) e->source.original = without_towers(root);
    }
}

static int64_t member_id(const struct json *o, const char *key) {
    const struct json *v = o != NULL ? json_get(o, key) : NULL;
    return v != NULL && json_kind(v) == JSON_INTEGER ? json_integer(v) : -1;
}

static const char *model_type(const struct json *o) {
    const struct json *v = o != NULL ? json_get(o, "model_type") : NULL;
    const char *name = v != NULL ? json_string(v, NULL) : NULL;
    return name != NULL ? name : "";
}

static void read_ids(struct hf_export *e) {
    const struct hf_carried *s = &e->source;
    const char *name = model_type(s->text);
    bool llama =
        s->top != NULL ? name[0] == 0 || strcmp(name, "llama") == 0 : strstr(name, "llama") != NULL;
    if (llama) snprintf(e->text_model, sizeof e->text_model, "llama");
    if (e->image_token < 0) e->image_token = member_id(s->top, "image_token_index");
    if (e->image_token < 0) e->image_token = member_id(s->top, "image_token_id");
    e->pad = member_id(s->top != NULL ? s->top : s->text, "pad_token_id");
    e->bos = member_id(s->text, "bos_token_id");
    e->eos = member_id(s->text, "eos_token_id");
}

int hf_source_read(struct hf_export *e) {
    struct json *root = NULL, *vision = NULL;
    struct hf_carried *s = &e->source;
    snprintf(e->text_model, sizeof e->text_model, "mistral");
    e->pad = e->bos = e->eos = -1;
    if (e->tokenizer == NULL) return 0;
    int rc = hf_read_object(e->tokenizer, HF_SOURCE_CONFIG, &root);
    if (!rc) rc = hf_read_object(e->tokenizer, HF_SOURCE_VISION, &vision);
    if (!rc && root != NULL) {
        take_apart(e, root, vision);
        read_ids(e);
    }
    if (!rc)
        rc =
            hf_read_object(e->tokenizer, HF_SOURCE_PREFIX "generation_config.json", &s->generation);
    if (!rc)
        rc = hf_read_object(e->tokenizer, HF_SOURCE_PREFIX "preprocessor_config.json", &s->images);
    if (!rc)
        rc = hf_read_object(e->tokenizer, HF_SOURCE_PREFIX "processor_config.json", &s->processor);
    if (root != NULL) json_free(root);
    if (vision != NULL) json_free(vision);
    return rc;
}

void hf_source_free(struct hf_export *e) {
    struct hf_carried *s = &e->source;
    struct json *all[] = {s->top,        s->text,   s->vision,   s->original,
                          s->generation, s->images, s->processor};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] != NULL) json_free(all[i]);
    memset(s, 0, sizeof *s);
}
