/* Questions: from the command line or a file of JSON lines, to ids with image markers. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "encoding.h"
#include "generate_impl.h"

#define PROMPT_FILE_MAX ((size_t)1 << 30)
#define QUESTION_IMAGES_MAX 64
#define QUESTION_TEXT_BYTES_MAX ((size_t)1 << 20) /* tokenising takes up to 240 bytes for each */

static struct question *list_add(struct question_list *list) {
    if (list->n == list->capacity) {
        list->capacity = 2 * list->capacity + 16;
        list->question = xrealloc(list->question, (size_t)list->capacity * sizeof *list->question);
    }
    struct question *q = &list->question[list->n++];
    *q = (struct question){0};
    return q;
}

static void add_image(struct question *q, const char *folder, const char *path) {
    q->image = xrealloc(q->image, (size_t)(q->n_images + 1) * sizeof *q->image);
    bool whole = folder == NULL || path[0] == '/';
    q->image[q->n_images++] = whole ? xstrdup(path) : xasprintf("%s/%s", folder, path);
}

static void question_free(struct question *q) {
    for (int i = 0; i < q->n_images; i++) free(q->image[i]);
    free(q->image);
    free(q->layout);
    free(q->name);
    free(q->prompt);
    free(q->ids.ids);
}

void questions_free(struct question_list *list) {
    for (int64_t i = 0; i < list->n; i++) question_free(&list->question[i]);
    free(list->question);
    *list = (struct question_list){0};
}

/* ---- one line --------------------------------------------------------------------------------- */
struct line {
    char *where; /* file and line, for messages */
    const char *folder;
    const struct json *object;
    struct record_keys *keys;
};

static int read_text(const struct line *l, const char *key, const char **text) {
    const struct json *v = json_get(l->object, key);
    size_t bytes = 0;
    *text = NULL;
    if (v == NULL) return 0;
    *text = json_string(v, &bytes);
    if (*text == NULL || strlen(*text) != bytes)
        return error_raise(EXIT_BAD_DATA, "%s: \"%s\" must be a text without zero bytes", l->where,
                           key);
    return 0;
}

static int read_name(const struct line *l, int64_t number, struct question *q) {
    const struct json *v = json_get(l->object, "question_id");
    const char *text = NULL;
    q->numbered = v == NULL || json_kind(v) == JSON_INTEGER;
    q->number = v == NULL ? number : q->numbered ? json_integer(v) : 0;
    if (!q->numbered) TRY(read_text(l, "question_id", &text));
    q->name = text != NULL ? xstrdup(text) : xasprintf("%" PRId64, q->number);
    return 0;
}

static int read_images(const struct line *l, struct question *q) {
    const struct json *v = json_get(l->object, "image");
    if (v == NULL || json_kind(v) == JSON_NULL) return 0;
    bool many = json_kind(v) == JSON_ARRAY;
    size_t n = many ? json_size(v) : 1;
    if (n > QUESTION_IMAGES_MAX)
        return error_raise(EXIT_BAD_DATA, "%s: %zu images; at most %d are taken", l->where, n,
                           QUESTION_IMAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        const struct json *one = many ? json_at(v, i) : v;
        size_t bytes = 0;
        const char *path = json_string(one, &bytes);
        if (path == NULL || bytes == 0 || strlen(path) != bytes)
            return error_raise(EXIT_BAD_DATA, "%s: \"image\" must be a path or a list of paths",
                               l->where);
        add_image(q, l->folder, path);
    }
    return 0;
}

static int read_question(const struct line *l, int64_t number, struct question *q) {
    const char *prompt, *text;
    if (json_kind(l->object) != JSON_OBJECT)
        return error_raise(EXIT_BAD_DATA, "%s: not an object {\"question_id\": ...}", l->where);
    TRY(read_name(l, number, q));
    char why[RECORD_WHY_BYTES];
    if (!record_keys_check(l->keys, l->object, RECORD_QUESTION, why))
        return error_raise(EXIT_BAD_DATA, "%s: %s", l->where, why);
    TRY(read_text(l, "prompt", &prompt));
    TRY(read_text(l, "text", &text));
    if (prompt != NULL && text != NULL && strcmp(prompt, text) != 0)
        return error_raise(
            EXIT_BAD_DATA,
            "%s: question %s has a \"prompt\" and another \"text\": which of them is "
            "the question? Leave the other away",
            l->where, q->name);
    if (prompt == NULL && text == NULL)
        return error_raise(EXIT_BAD_DATA, "%s: question %s has neither \"prompt\" nor \"text\"",
                           l->where, q->name);
    q->prompt = xstrdup(prompt != NULL ? prompt : text);
    return read_images(l, q);
}

static int read_line(const char *path, int64_t number, const char *folder, const char *text,
                     size_t bytes, struct question_list *list) {
    struct json *root = NULL;
    struct line l = {
        .where = xasprintf("%s:%" PRId64, path, number), .folder = folder, .keys = &list->keys};
    int rc = record_parse(l.where, text, bytes, &root);
    l.object = root;
    if (rc == 0) rc = read_question(&l, number, list_add(list));
    if (rc == 0 || root != NULL) json_free(root);
    free(l.where);
    return rc;
}

static int read_file(const char *path, const char *folder, struct question_list *list) {
    char *text = NULL;
    size_t bytes = 0, at = 0;
    int64_t number = 0;
    char why[ENCODING_WHY_BYTES];
    TRY(file_read(path, PROMPT_FILE_MAX, &text, &bytes));
    int rc = 0;
    if (!encoding_is_text(text, bytes, why))
        rc = error_raise(EXIT_BAD_DATA, "%s %s", path, why);
    else if (encoding_mark(text, bytes) > 0)
        rc = error_raise(EXIT_BAD_DATA,
                         "%s begins with a byte order mark, which is no JSON; write it without one",
                         path);
    while (rc == 0 && at < bytes) {
        const char *line = text + at, *end = memchr(line, '\n', bytes - at);
        size_t length = end != NULL ? (size_t)(end - line) : bytes - at;
        at += length + 1;
        number++;
        if (strspn(line, " \t\r") >= length) continue;
        rc = read_line(path, number, folder, line, length, list);
    }
    free(text);
    char *keys = rc == 0 ? record_keys_text(&list->keys) : NULL;
    if (keys != NULL)
        log_info(
            "%s: keys of questions that strata does not read, with the number of questions: %s",
            path, keys);
    free(keys);
    if (rc == 0 && list->n == 0)
        rc = error_raise(EXIT_BAD_DATA, "%s holds no question, one JSON object per line", path);
    return rc;
}

static int read_all(const struct config *cfg, const struct generate_request *ask,
                    struct question_list *list) {
    if (ask->prompt != NULL) {
        struct question *q = list_add(list);
        q->numbered = true;
        q->number = 1;
        q->name = xstrdup("1");
        q->prompt = xstrdup(ask->prompt);
        for (int i = 0; i < ask->n_images; i++) add_image(q, NULL, ask->image[i]);
        return 0;
    }
    const char *path = cfg->generate.prompt_file;
    if (path == NULL)
        return error_raise(EXIT_USAGE, "nothing is asked: give --prompt TEXT, or set [generate] "
                                       "prompt_file");
    char *folder = xstrdup(cfg->data.image_folder != NULL ? cfg->data.image_folder : path);
    if (cfg->data.image_folder == NULL) {
        char *slash = strrchr(folder, '/');
        if (slash != NULL) *slash = 0;
    }
    int rc = read_file(path, folder, list);
    free(folder);
    return rc;
}

/* ---- ids -------------------------------------------------------------------------------------- */
/* anyres: every rank looks at the images, since their sizes shape the prompt. */
static int find_layouts(const struct config *cfg, struct question *q) {
    struct data_settings s;
    train_data_settings(cfg, DATA_TRAIN, &s);
    q->tiles = q->n_images;
    if (s.aspect != ASPECT_ANYRES || q->n_images == 0) return 0;
    q->tiles = 0;
    q->layout = xcalloc((size_t)q->n_images, sizeof *q->layout);
    for (int i = 0; i < q->n_images; i++) {
        int rc = data_image_layout(&s, q->image[i], &q->layout[i]);
        if (rc != 0) return error_note(rc, "question %s", q->name);
        q->tiles += q->layout[i].tiles;
        q->newlines += q->layout[i].rows;
    }
    return 0;
}

static int encode(const struct config *cfg, const struct tokenizer *t, enum data_template tpl,
                  int64_t rows_per_image, struct question *q) {
    if (strlen(q->prompt) > QUESTION_TEXT_BYTES_MAX)
        return error_raise(EXIT_BAD_DATA, "question %s has %zu bytes of text, allowed are %zu",
                           q->name, strlen(q->prompt), QUESTION_TEXT_BYTES_MAX);
    char *text = template_prompt(tpl, q->prompt, q->n_images);
    int rc = tokenizer_encode(t, text, strlen(text), true, true, &q->ids);
    free(text);
    TRY(rc);
    int64_t markers = 0, limit = cfg->language.decoder_seq_length;
    for (int64_t i = 0; i < q->ids.n; i++) markers += q->ids.ids[i] == DATA_IMAGE_MARKER;
    if (markers != q->n_images)
        return error_raise(EXIT_BAD_DATA,
                           "question %s has %d images and %" PRId64 " markers <image>: write none, "
                           "each image gets its own in front of the text",
                           q->name, q->n_images, markers);
    TRY(find_layouts(cfg, q));
    q->rows = q->ids.n - q->n_images;
    for (int i = 0; i < q->n_images; i++)
        q->rows +=
            q->layout != NULL ? image_layout_rows(&q->layout[i], rows_per_image) : rows_per_image;
    if (q->rows >= limit)
        return error_raise(EXIT_BAD_DATA,
                           "question %s takes %" PRId64 " rows with its images; with "
                           "decoder_seq_length = %" PRId64 " nothing is left for an answer",
                           q->name, q->rows, limit);
    return 0;
}

int questions_read(const struct config *cfg, const struct generate_request *ask,
                   const struct tokenizer *t, int64_t rows_per_image, struct question_list *out) {
    struct data_settings s;
    train_data_settings(cfg, DATA_TRAIN, &s);
    *out = (struct question_list){0};
    TRY(read_all(cfg, ask, out));
    for (int64_t i = 0; i < out->n; i++) {
        struct question *q = &out->question[i];
        TRY(encode(cfg, t, s.conversation_template, rows_per_image, q));
        if (q->n_images > out->most_images) out->most_images = q->n_images;
        if (q->tiles > out->most_tiles) out->most_tiles = q->tiles;
        if (q->newlines > out->most_newlines) out->most_newlines = q->newlines;
        if (q->rows > out->most_rows) out->most_rows = q->rows;
    }
    return 0;
}
