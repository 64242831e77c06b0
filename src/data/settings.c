/* Defaults and job-file words of the data settings. */
#include <stdlib.h>
#include <string.h>

#include "index_impl.h"

void data_settings_init(struct data_settings *s) {
    *s = (struct data_settings){
        .caption_extension = ".txt",
        .caption_prompt = "",
        .rows_per_image = 576,
        .img_h = 336,
        .img_w = 336,
        .aspect = ASPECT_PAD,
        .mean = {0.48145466, 0.4578275, 0.40821073},
        .std = {0.26862954, 0.26130258, 0.27577711},
        .shuffle = true,
        .num_workers = 2,
        .mock_samples = 1024,
        .mock_images = 1,
        .mock_text_length = 64,
        .mock_seed = 1,
    };
}

/* words: one per value, in the order of the enum. */
static int parse_word(const char *key, const char *text, const char *const *words, int n,
                      int *out) {
    char legal[160] = "";
    for (int i = 0; i < n; i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i;
            return 0;
        }
        strncat(legal, i > 0 ? ", " : "", sizeof legal - strlen(legal) - 1);
        strncat(legal, words[i], sizeof legal - strlen(legal) - 1);
    }
    return error_raise(EXIT_USAGE, "%s = %s is not known; allowed are %s", key, text, legal);
}

#define PARSE(key, text, out, ...)                                                                 \
    do {                                                                                           \
        static const char *const words[] = {__VA_ARGS__};                                          \
        int value = 0;                                                                             \
        TRY(parse_word(key, text, words, (int)(sizeof words / sizeof words[0]), &value));          \
        *(out) = value;                                                                            \
        return 0;                                                                                  \
    } while (0)

int data_format_parse(const char *text, enum data_format *out) {
    PARSE("data_format", text, out, "llava_json", "captioned_folder", "mock");
}

int data_template_parse(const char *text, enum data_template *out) {
    PARSE("conversation_template", text, out, "plain", "v1", "mistral_instruct", "llava_llama_2",
          "chatml_direct");
}

int data_aspect_parse(const char *text, enum data_aspect *out) {
    PARSE("image_aspect_ratio", text, out, "square", "pad", "anyres");
}

int data_bad_image_parse(const char *text, enum data_bad_image *out) {
    PARSE("on_bad_image", text, out, "fail", "skip", "blank");
}

int data_no_target_parse(const char *text, enum data_no_target *out) {
    PARSE("on_no_target", text, out, "fail", "skip", "keep");
}

char *data_image_folder(const struct data_settings *s) {
    if (s->format == DATA_CAPTIONED_FOLDER) return xstrdup(s->path);
    if (s->image_folder != NULL) return xstrdup(s->image_folder);
    const char *slash = strrchr(s->path, '/');
    return slash == NULL ? xstrdup(".") : xasprintf("%.*s/", (int)(slash - s->path), s->path);
}
