/* Answers: text that grows token by token, and LLaVA's line for it. */
#include <stdlib.h>
#include <string.h>

#include "generate_impl.h"

const char *answer_stop_text(enum data_template t) {
    /* Template plain is trained to end a caption with a newline, without an end token. */
    return t == TEMPLATE_PLAIN ? "\n" : t == TEMPLATE_CHATML_DIRECT ? "<|im_end|>" : NULL;
}

void answer_begin(struct answer *a) {
    a->ids.n = 0;
    free(a->text);
    a->text = xstrdup("");
    a->bytes = a->shown = 0;
    a->ended = false;
}

/* Length of the first n bytes of the text without the blanks at their end. */
static size_t without_blanks(const struct answer *a, size_t n) {
    static const char blanks[] = {' ', '\t', '\r', '\n'};
    while (n > 0 && memchr(blanks, a->text[n - 1], sizeof blanks) != NULL) n--;
    return n;
}

/* Bytes that later tokens cannot change: a character whose bytes are still coming decodes to the
 * replacement character, and what may be the beginning of the stop text waits too. */
static size_t settled(const struct answer *a) {
    size_t n = a->bytes;
    while (n >= 3 && memcmp(a->text + n - 3, "\xef\xbf\xbd", 3) == 0) n -= 3;
    n = without_blanks(a, n); /* the end may be trimmed */
    size_t stop = a->stop_text == NULL ? 0 : strlen(a->stop_text);
    for (size_t k = stop < n ? stop : n; k > 0; k--)
        if (memcmp(a->text + n - k, a->stop_text, k) == 0) return n - k;
    return n;
}

static void show(struct answer *a, size_t upto) {
    if (a->stream == NULL || upto <= a->shown) return;
    fwrite(a->text + a->shown, 1, upto - a->shown, a->stream);
    fflush(a->stream);
    a->shown = upto;
}

int answer_add(struct answer *a, int32_t id) {
    if (id == tokenizer_eos(a->tokenizer)) {
        a->ended = true;
        return 0;
    }
    if (a->ids.n == a->ids.capacity) {
        a->ids.capacity = a->ids.capacity == 0 ? 256 : 2 * a->ids.capacity;
        a->ids.ids = xrealloc(a->ids.ids, (size_t)a->ids.capacity * sizeof *a->ids.ids);
    }
    a->ids.ids[a->ids.n++] = id;
    free(a->text);
    a->text = tokenizer_decode(a->tokenizer, a->ids.ids, a->ids.n, &a->bytes);
    if (a->text == NULL) return error_code();
    char *stop =
        a->stop_text != NULL ? memmem(a->text, a->bytes, a->stop_text, strlen(a->stop_text)) : NULL;
    if (stop != NULL) {
        a->bytes = (size_t)(stop - a->text);
        a->ended = true;
    }
    show(a, settled(a));
    return 0;
}

void answer_end(struct answer *a) {
    a->bytes = without_blanks(a, a->bytes);
    show(a, a->bytes);
    if (a->stream != NULL) fputc('\n', a->stream);
}

/* A name for this answer that another run of the same question and model gives again. */
static void answer_id(const struct answer *a, const struct question *q, const char *model,
                      char hex[65]) {
    struct sha256 hash;
    const char *part[] = {model, q->name, q->prompt};
    sha256_begin(&hash);
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        sha256_add(&hash, part[i], strlen(part[i]) + 1);
    sha256_add(&hash, a->text, a->bytes);
    sha256_add(&hash, "", 1);
    sha256_end(&hash, hex);
    hex[22] = 0;
}

char *answer_line(const struct answer *a, const struct question *q, const char *model) {
    char hex[65];
    answer_id(a, q, model, hex);
    struct json *o = json_new_object(), *more = json_new_object();
    json_set(o, "question_id",
             q->numbered ? json_new_integer(q->number) : json_new_string(q->name));
    json_set(o, "prompt", json_new_string(q->prompt));
    json_set(o, "text", json_new_text(a->text, a->bytes));
    json_set(o, "answer_id", json_new_string(hex));
    json_set(o, "model_id", json_new_string(model));
    json_set(more, "finish_reason", json_new_string(a->ended ? "stop" : "length"));
    json_set(more, "tokens", json_new_integer(a->ids.n));
    json_set(o, "metadata", more);
    char *text = json_text(o, 0), *line = xasprintf("%s\n", text);
    free(text);
    json_free(o);
    return line;
}

void answer_free(struct answer *a) {
    free(a->ids.ids);
    free(a->text);
}
