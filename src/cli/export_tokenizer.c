/* The tokenizer's files of an exported folder, so that AutoProcessor of transformers 4 and 5 makes
 * the ids that strata trained on: LLaVA's rules (legacy = true: each chunk between special pieces has
 * a dummy prefix of its own), a piece for the image at its row, and the conversation that was trained. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hf_impl.h"

#define CONFIG "tokenizer_config.json"
#define IMAGE "<image>"

static struct json *added(const char *content) {
    static const char *const no[] = {"lstrip", "normalized", "rstrip", "single_word"};
    struct json *o = json_new_object();
    json_set(o, "content", json_new_string(content));
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) json_set(o, no[i], json_new_bool(false));
    json_set(o, "special", json_new_bool(true));
    return o;
}

static void add_at(struct json *list, int64_t id, const char *content) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)id);
    if (json_get(list, key) == NULL) json_set(list, key, added(content));
}

/* Ids of pieces that the model file lacks must follow each other: transformers numbers them itself. */
static void add_pieces(const struct hf_export *e, const struct tokenizer *t, struct json *list) {
    int64_t n = t != NULL ? tokenizer_vocab_size(t) : e->image_token;
    for (int64_t id = n; id < e->image_token; id++) {
        char *name = id == e->pad ? xstrdup("<pad>") : xasprintf("<unused_%lld>", (long long)id);
        add_at(list, id, name);
        free(name);
    }
    add_at(list, e->image_token, e->image_piece);
    if (e->pad == e->image_token + 1 && e->pad >= n) add_at(list, e->pad, "<pad>");
}

static const char *piece(const struct tokenizer *t, int64_t id) {
    return t != NULL && id >= 0 && id < tokenizer_vocab_size(t) ? tokenizer_piece(t, (int32_t)id)
                                                                : NULL;
}

static void put_piece(struct hf_merge *m, const char *key, const char *content) {
    if (content != NULL) hf_put_absent(m, key, json_new_string(content));
}

static struct json *object_at(const struct json *o, const char *key) {
    const struct json *v = json_get(o, key);
    return v != NULL && json_kind(v) == JSON_OBJECT ? json_duplicate(v) : json_new_object();
}

static void put_special(const struct hf_export *e, const struct tokenizer *t, struct hf_merge *m,
                        struct json *list) {
    if (t != NULL) {
        int32_t unk = tokenizer_unk(t);
        const char *bos = piece(t, tokenizer_bos(t)), *eos = piece(t, tokenizer_eos(t));
        if (unk >= 0) add_at(list, unk, piece(t, unk));
        if (bos != NULL) add_at(list, tokenizer_bos(t), bos);
        if (eos != NULL) add_at(list, tokenizer_eos(t), eos);
        put_piece(m, "bos_token", bos);
        put_piece(m, "eos_token", eos);
        put_piece(m, "unk_token", piece(t, unk));
        const char *pad = piece(t, e->pad);
        bool beyond = e->pad >= tokenizer_vocab_size(t) && e->pad <= e->image_token + 1 &&
                      e->pad != e->image_token;
        put_piece(m, "pad_token", pad != NULL ? pad : beyond ? "<pad>" : piece(t, unk));
    }
    add_pieces(e, t, list);
}

/* `source` NULL: the folder had a model file alone. */
static struct json *tokenizer_config(const struct hf_export *e, const struct tokenizer *t,
                                     const struct json *source, const struct config *c) {
    struct hf_merge m = hf_merge_begin(source, CONFIG " ", e->notes);
    struct json *list = object_at(m.o, "added_tokens_decoder");
    struct json *extra = object_at(m.o, "extra_special_tokens");
    if (t != NULL) {
        hf_put_absent(&m, "tokenizer_class", json_new_string("LlamaTokenizer"));
        hf_put_absent(&m, "add_bos_token", json_new_bool(true));
        hf_put_absent(&m, "add_eos_token", json_new_bool(false));
        if (source == NULL || e->trained) hf_put(&m, "legacy", json_new_bool(true));
    }
    hf_put_absent(&m, "clean_up_tokenization_spaces", json_new_bool(false));
    hf_put_absent(&m, "model_max_length", json_new_integer(c->language.decoder_seq_length));
    hf_put_absent(&m, "padding_side", json_new_string("right"));
    put_special(e, t, &m, list);
    json_set(extra, "image_token", json_new_string(e->image_piece));
    hf_put_quietly(&m, "added_tokens_decoder", list);
    hf_put_quietly(&m, "extra_special_tokens", extra);
    hf_put_absent(&m, "image_token", json_new_string(e->image_piece));
    hf_put_quietly(&m, "processor_class",
                   json_new_string(hf_has_tiles(c) ? "LlavaNextProcessor" : "LlavaProcessor"));
    return m.o;
}

/* Does one of the source's files give the image a piece, at its row? */
static bool has_image(const struct hf_export *e, const struct json *config) {
    char key[24];
    snprintf(key, sizeof key, "%lld", (long long)e->image_token);
    const struct json *list = json_get(config, "added_tokens_decoder");
    const struct json *one =
        list != NULL && json_kind(list) == JSON_OBJECT ? json_get(list, key) : NULL;
    const struct json *content =
        one != NULL && json_kind(one) == JSON_OBJECT ? json_get(one, "content") : NULL;
    const char *text = content != NULL ? json_string(content, NULL) : NULL;
    return text != NULL && strcmp(text, e->image_piece) == 0;
}

/* ---- the conversation ------------------------------------------------------------------------------ */
static void put_quoted(FILE *to, const char *text, size_t bytes) {
    fputc('\'', to);
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\n') {
            fputs("\\n", to);
            continue;
        }
        if (text[i] == '\'' || text[i] == '\\') fputc('\\', to);
        fputc(text[i], to);
    }
    fputc('\'', to);
}

static void put_expression(FILE *to, const char *text, size_t bytes) {
    if (bytes == 0) return;
    fputs("{{ ", to);
    put_quoted(to, text, bytes);
    fputs(" }}", to);
}

/* What stands before a later question, before an answer and behind it; before the first question and
 * behind each, template_prompt says. */
static const struct {
    const char *name, *later, *answer, *close;
    enum data_template template;
} conversation[] = {
    {"v1", "USER: ", " ", "</s>", TEMPLATE_V1},
    {"mistral_instruct", "[INST] ", " ", " </s>", TEMPLATE_MISTRAL_INSTRUCT},
    {"llava_llama_2", "<s>[INST] ", " ", " </s>", TEMPLATE_LLAVA_LLAMA_2},
    {"chatml_direct", "<|im_start|>user\n", "", "<|im_end|>", TEMPLATE_CHATML_DIRECT},
};

static char *chat_template(size_t number) {
    static const char question[] = "\001";
    char *prompt = template_prompt(conversation[number].template, question, 0), *text = NULL;
    size_t first = strcspn(prompt, question), bytes;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL && prompt[first] != 0, "no room for a question in the template");
    fputs("{% for message in messages %}{% if message['role'] == 'user' %}{% if loop.first %}", to);
    put_expression(to, prompt, first);
    fputs("{% else %}", to);
    put_expression(to, conversation[number].later, strlen(conversation[number].later));
    fputs("{% endif %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
          "{% for part in message['content'] if part['type'] == 'image' %}{{ '" IMAGE "\\n' }}"
          "{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}"
          "{{ part['text'] }}{% endfor %}{% endif %}",
          to);
    put_expression(to, prompt + first + 1, strlen(prompt + first + 1));
    fputs("{% elif message['role'] == 'assistant' %}", to);
    put_expression(to, conversation[number].answer, strlen(conversation[number].answer));
    fputs("{% if message['content'] is string %}{{ message['content'] }}{% else %}"
          "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
          "{% endfor %}{% endif %}",
          to);
    put_expression(to, conversation[number].close, strlen(conversation[number].close));
    fputs(
        "{% else %}{{ raise_exception('the turns of this model are those of user and assistant') }}"
        "{% endif %}{% endfor %}",
        to);
    fclose(to);
    free(prompt);
    return text;
}

static bool copied(const struct hf_export *e, const char *name) {
    char *path = xasprintf("%s/%s", e->to, name);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

/* The source's own stays until the model was trained on another conversation. */
static int write_chat(const struct hf_export *e, const struct json *config) {
    bool had = copied(e, "chat_template.jinja") || copied(e, "chat_template.json") ||
               (config != NULL && json_get(config, "chat_template") != NULL);
    if (had && !e->trained) return 0;
    for (size_t i = 0; i < sizeof conversation / sizeof *conversation; i++) {
        if (e->conversation == NULL || strcmp(conversation[i].name, e->conversation) != 0) continue;
        char *text = chat_template(i), *path = xasprintf("%s/chat_template.jinja", e->to);
        int rc = file_write_atomic(path, text, strlen(text));
        if (had)
            fprintf(e->notes,
                    "chat_template.jinja is that of conversation_template = %s, as trained; the "
                    "source had a chat_template of its own\n",
                    e->conversation);
        free(text);
        free(path);
        return rc;
    }
    return 0;
}

int hf_write_tokenizer(const struct hf_export *e, const struct tokenizer *t,
                       const struct config *cfg, int *n_files) {
    struct json *source = NULL;
    if (e->tokenizer == NULL) return 0;
    TRY(hf_copy_tokenizer(e->tokenizer, e->to, n_files));
    if (*n_files == 0 || e->original) return 0;
    int rc = hf_read_object(e->tokenizer, CONFIG, &source);
    bool legacy = source != NULL && json_get(source, "legacy") != NULL &&
                  json_kind(json_get(source, "legacy")) == JSON_BOOL &&
                  !json_bool(json_get(source, "legacy"));
    bool whole = source != NULL && has_image(e, source) && !(legacy && e->trained && t != NULL);
    if (!rc && !whole) {
        rc = hf_write_json(e->to, CONFIG, tokenizer_config(e, t, source, cfg));
        *n_files += source == NULL;
    }
    if (!rc) rc = write_chat(e, source);
    if (source != NULL) json_free(source);
    return rc;
}
