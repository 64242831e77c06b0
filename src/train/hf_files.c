/* The JSON files beside config.json: what the processor of images, the tokenizer and generate() were
 * set to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hf_read_impl.h"

/* ---- images ------------------------------------------------------------------------------------------------ */
static const double clip_mean[3] = {0.48145466, 0.4578275, 0.40821073};
static const double clip_std[3] = {0.26862954, 0.26130258, 0.27577711};

/* Two files may say the same thing, but not two things. */
static void set_data(struct hf_reader *r, const char *from, const char *key, const char *value,
                     struct hf_keys *k) {
    const char *before = hf_keys_get(k, "data", key);
    if (before != NULL && strcmp(before, value) != 0)
        hf_read_refuse(r, from, "means %s = %s, while another file of the folder means %s", key,
                       value, before);
    hf_keys_set(k, "data", key, "%s", value);
}

/* Three numbers; the job file has CLIP's by itself. */
static void channel_keys(struct hf_reader *r, const char *key, const double usual[3],
                         struct hf_keys *k) {
    const struct json *list = hf_read_member(r, key);
    char text[128] = "";
    bool good = list != NULL && json_kind(list) == JSON_ARRAY && json_size(list) == 3, same = true;
    if (list == NULL) return;
    for (size_t i = 0; good && i < 3; i++) {
        const struct json *v = json_at(list, i);
        size_t used = strlen(text);
        good = json_kind(v) == JSON_REAL || json_kind(v) == JSON_INTEGER;
        if (good) same = same && fabs(json_real(v) - usual[i]) <= 1e-9;
        if (good)
            snprintf(text + used, sizeof text - used, "%s%.12g", i > 0 ? "," : "", json_real(v));
    }
    if (!good) hf_read_refuse(r, key, "is no list of three numbers");
    if (good && !same) set_data(r, key, key, text, k);
}

static int64_t vision_size(const struct hf_keys *k, const char *key) {
    const char *text = hf_keys_get(k, "vision", key);
    int64_t n = 0;
    return text != NULL && parse_int64(text, &n) ? n : 0;
}

/* A number, or an object that says it under `one` or, where they are allowed, under height and width. */
static void edge_is(struct hf_reader *r, const char *key, const char *one, bool two, int64_t edge) {
    const struct json *v = hf_read_member(r, key);
    if (v == NULL) return;
    struct hf_reader o = {.path = r->path, .inside = r->inside};
    if (json_kind(v) == JSON_OBJECT) o.v = v;
    int64_t h = -1, w = -1;
    if (json_kind(v) == JSON_INTEGER) h = w = json_integer(v);
    if (o.v != NULL && one != NULL && hf_read_member(&o, one) != NULL)
        h = w = hf_read_integer(&o, one, -1);
    else if (o.v != NULL && two)
        h = hf_read_integer(&o, "height", -1), w = hf_read_integer(&o, "width", -1);
    if (h != edge || w != edge)
        hf_read_refuse(r, key, "is not the tower's image_size %lld%s", (long long)edge,
                       two ? "" : " as shortest_edge: images are resized by their shorter edge");
}

static bool is_class(const char *class, const char *name) {
    size_t n = strlen(name);
    return strncmp(class, name, n) == 0 && (class[n] == 0 || strcmp(class + n, "Fast") == 0);
}

static void class_keys(struct hf_reader *r, struct hf_keys *k) {
    const char *class = hf_read_text(r, "image_processor_type", "CLIPImageProcessor");
    bool llava = is_class(class, "LlavaImageProcessor");
    if (!llava && !is_class(class, "CLIPImageProcessor") &&
        !is_class(class, "LlavaNextImageProcessor"))
        hf_read_refuse(r, "image_processor_type",
                       "is \"%.64s\", this version has CLIPImageProcessor, LlavaImageProcessor and "
                       "LlavaNextImageProcessor",
                       class);
    if (llava && hf_read_member(r, "do_pad") != NULL)
        set_data(r, "do_pad", "image_aspect_ratio",
                 hf_read_truth(r, "do_pad", false) ? "pad" : "square", k);
}

static void preprocessor_keys(struct hf_reader *r, struct hf_keys *k) {
    struct hf_keys mine = {.n = 0};
    const char *tiles = hf_keys_get(k, "data", "image_grid_pinpoints");
    int64_t edge = vision_size(k, "img_h");
    hf_read_check_keys(r, HF_OBJECT_PREPROCESSOR);
    channel_keys(r, "image_mean", clip_mean, k);
    channel_keys(r, "image_std", clip_std, k);
    if (edge > 0) edge_is(r, "size", "shortest_edge", false, edge);
    if (edge > 0) edge_is(r, "crop_size", NULL, true, edge);
    class_keys(r, k);
    if (tiles == NULL || hf_read_member(r, "image_grid_pinpoints") == NULL) return;
    hf_pinpoint_keys(r, true, &mine);
    const char *here = hf_keys_get(&mine, "data", "image_grid_pinpoints");
    if (here != NULL && strcmp(here, tiles) != 0)
        hf_read_refuse(r, "image_grid_pinpoints", "is not that of config.json");
}

static void processor_keys(struct hf_reader *r, struct hf_keys *k) {
    struct hf_reader image = hf_read_below(r, "image_processor", "image_processor.");
    hf_read_check_keys(r, HF_OBJECT_PROCESSOR);
    int64_t patch = vision_size(k, "patch_dim");
    if (patch > 0 && hf_read_integer(r, "patch_size", patch) != patch)
        hf_read_refuse(r, "patch_size", "is not the tower's %lld", (long long)patch);
    if (image.v != NULL) preprocessor_keys(&image, k);
    if (image.rc) r->rc = image.rc;
}

static int each_key(const char *folder, const char *name, void (*work)(struct hf_reader *, void *),
                    void *arg) {
    char *path = NULL;
    struct json *root = NULL;
    int rc = hf_read_file(folder, name, &path, &root);
    if (!rc && root != NULL) {
        struct hf_reader r = {.path = path, .inside = "", .v = root};
        work(&r, arg);
        rc = r.rc;
    }
    if (root != NULL) json_free(root);
    free(path);
    return rc;
}

static void read_preprocessor(struct hf_reader *r, void *arg) {
    preprocessor_keys(r, arg);
}

static void read_processor(struct hf_reader *r, void *arg) {
    processor_keys(r, arg);
}

int hf_processor_keys(const struct hf_folder *vision, struct hf_keys *k) {
    int rc = each_key(vision->path, "preprocessor_config.json", read_preprocessor, k);
    int more = each_key(vision->path, "processor_config.json", read_processor, k);
    return rc ? rc : more;
}

/* ---- text ------------------------------------------------------------------------------------------------------ */
static void read_tokenizer(struct hf_reader *r, void *arg) {
    (void)arg;
    hf_read_check_keys(r, HF_OBJECT_TOKENIZER);
    if (!hf_read_truth(r, "add_bos_token", true))
        log_warn("%s: add_bos_token is false; strata puts the token of the beginning in front of "
                 "every sample, as LLaVA was trained",
                 r->path);
}

static void read_generation(struct hf_reader *r, void *arg) {
    (void)arg;
    hf_read_check_keys(r, HF_OBJECT_GENERATION);
}

int hf_tokenizer_check(const struct hf_folder *language) {
    int rc = each_key(language->path, "tokenizer_config.json", read_tokenizer, NULL);
    int more = each_key(language->path, "generation_config.json", read_generation, NULL);
    return rc ? rc : more;
}

/* ---- the conversation template ------------------------------------------------------------------------------- */
#define TEMPLATE_MAX ((size_t)1 << 20)

struct template_words {
    bool inst, system, user, im_start, any;
};

static void look_for(struct template_words *w, const char *text) {
    if (text == NULL) return;
    w->any = true;
    w->inst = w->inst || strstr(text, "[INST]") != NULL;
    w->system = w->system || strstr(text, "<<SYS>>") != NULL;
    w->user = w->user || (strstr(text, "USER") != NULL && strstr(text, "ASSISTANT") != NULL);
    w->im_start = w->im_start || strstr(text, "<|im_start|>") != NULL;
}

/* A text, or a list of objects with a name each; the first is the usual one. */
static void read_template(struct hf_reader *r, void *arg) {
    const struct json *v = hf_read_member(r, "chat_template");
    if (v != NULL && json_kind(v) == JSON_ARRAY && json_size(v) > 0) v = json_at(v, 0);
    if (v != NULL && json_kind(v) == JSON_OBJECT) v = json_get(v, "template");
    if (v != NULL && json_kind(v) == JSON_STRING) look_for(arg, json_string(v, NULL));
}

static void read_jinja(const char *folder, struct template_words *w) {
    char *path = hf_file_beside(folder, "chat_template.jinja"), *text = NULL;
    size_t bytes;
    if (path != NULL && file_read(path, TEMPLATE_MAX, &text, &bytes) == 0) look_for(w, text);
    free(text);
    free(path);
}

void hf_propose_template(const struct hf_folder *language, struct hf_keys *k) {
    static const char *const file[] = {"chat_template.json", "processor_config.json",
                                       "tokenizer_config.json"};
    struct template_words w = {.any = false};
    bool mistral = strcmp(k->text_model, "mistral") == 0;
    read_jinja(language->path, &w);
    for (size_t i = 0; i < sizeof file / sizeof *file && !w.any; i++)
        (void)each_key(language->path, file[i], read_template, &w);
    const char *name = mistral && k->llava                   ? "mistral_instruct"
                       : strcmp(k->text_model, "qwen2") == 0 ? "chatml_direct"
                                                             : "v1";
    if (w.inst)
        name = mistral || !w.system ? "mistral_instruct" : "llava_llama_2";
    else if (w.im_start)
        name = "chatml_direct";
    else if (w.user)
        name = "v1";
    snprintf(k->template, sizeof k->template, "%s", name);
}
