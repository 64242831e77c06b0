/* Conversation templates and the rule for labels (doc/mathematics.md "Labels").
 *
 * The prompt is written once, with the byte spans of the answers beside it. Each chunk between
 * special pieces is tokenised once; a token is a target iff it begins inside a span. Prefixes are
 * never tokenised again, so there is nothing that could come out with another length. */
#include <stdlib.h>
#include <string.h>

#include "template_impl.h"

static const char system_v1[] =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.";
static const char system_llama_2[] =
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language.";
static const char system_chatml[] = "<|im_start|>system\nAnswer the questions.";

/* ---- text ------------------------------------------------------------------------------------ */

void text_add(struct text *t, const char *data, size_t bytes) {
    if (t->bytes + bytes + 1 > t->capacity) {
        t->capacity = 2 * (t->bytes + bytes + 1) + 256;
        t->data = xrealloc(t->data, t->capacity);
    }
    memcpy(t->data + t->bytes, data, bytes);
    t->bytes += bytes;
    t->data[t->bytes] = '\0';
}

void text_puts(struct text *t, const char *s) {
    text_add(t, s, strlen(s));
}

int64_t text_count_markers(const char *data, size_t bytes) {
    int64_t n = 0;
    for (size_t i = 0; i + IMAGE_TEXT_BYTES <= bytes;)
        if (memcmp(data + i, IMAGE_TEXT, IMAGE_TEXT_BYTES) == 0) {
            n++;
            i += IMAGE_TEXT_BYTES;
        } else {
            i++;
        }
    return n;
}

static bool is_blank(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 ||
           c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
           c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Bytes of the UTF-8 character at s; its code point if it has at most three (all blanks do). */
static size_t character(const unsigned char *s, size_t left, uint32_t *c) {
    *c = s[0];
    if (s[0] < 0xc0) return 1;
    if (s[0] < 0xe0 && left >= 2) {
        *c = (uint32_t)(s[0] & 0x1f) << 6 | (s[1] & 0x3f);
        return 2;
    }
    if (s[0] < 0xf0 && left >= 3) {
        *c = (uint32_t)(s[0] & 0x0f) << 12 | (uint32_t)(s[1] & 0x3f) << 6 | (s[2] & 0x3f);
        return 3;
    }
    *c = 0x10000;
    return left >= 4 ? 4 : left;
}

void text_trim(const char **data, size_t *bytes) {
    const unsigned char *s = (const unsigned char *)*data;
    size_t begin = 0, end = 0;
    bool inside = false;
    for (size_t i = 0; i < *bytes;) {
        uint32_t c;
        size_t n = character(s + i, *bytes - i, &c);
        if (!is_blank(c)) {
            if (!inside) begin = i;
            inside = true;
            end = i + n;
        }
        i += n;
    }
    *data += begin;
    *bytes = end - begin;
}

void text_normalise_marker(struct text *out, const char *data, size_t bytes) {
    if (text_count_markers(data, bytes) == 0) {
        text_add(out, data, bytes);
        return;
    }
    struct text rest = {0};
    text_puts(&rest, "");
    for (size_t i = 0; i < bytes;)
        if (bytes - i >= IMAGE_TEXT_BYTES && memcmp(data + i, IMAGE_TEXT, IMAGE_TEXT_BYTES) == 0) {
            i += IMAGE_TEXT_BYTES;
        } else {
            text_add(&rest, data + i++, 1);
        }
    const char *kept = rest.data;
    size_t n_kept = rest.bytes;
    text_trim(&kept, &n_kept);
    text_puts(out, IMAGE_TEXT);
    if (n_kept > 0) text_puts(out, "\n"); /* else the last trim takes the newline away again */
    text_add(out, kept, n_kept);
    free(rest.data);
}

/* ---- prompts --------------------------------------------------------------------------------- */

void prompt_clear(struct prompt *p) {
    p->text.bytes = 0;
    p->n_spans = 0;
}

void prompt_free(struct prompt *p) {
    free(p->text.data);
    free(p->span);
    *p = (struct prompt){0};
}

static void span_begin(struct prompt *p) {
    if (p->n_spans == p->span_capacity) {
        p->span_capacity = p->span_capacity == 0 ? 8 : 2 * p->span_capacity;
        p->span = xrealloc(p->span, (size_t)p->span_capacity * sizeof *p->span);
    }
    p->span[p->n_spans++] = (struct span){p->text.bytes, p->text.bytes};
}

static void span_end(struct prompt *p) {
    p->span[p->n_spans - 1].end = p->text.bytes;
}

/* before, answer, after: the span holds all three. An empty answer appends nothing at all. */
static void add_answer(struct prompt *p, const struct turn *t, const char *before,
                       const char *after) {
    if (t->bytes == 0) return;
    span_begin(p);
    text_puts(&p->text, before);
    text_add(&p->text, t->text, t->bytes);
    text_puts(&p->text, after);
    span_end(p);
}

static void add_markers(struct text *t, int n, const char *after) {
    for (int i = 0; i < n; i++) {
        text_puts(t, IMAGE_TEXT);
        text_puts(t, after);
    }
}

static void turn_v1(struct prompt *p, const struct turn *t) {
    if (!t->human) {
        text_puts(&p->text, "ASSISTANT:");
        add_answer(p, t, " ", "</s>");
        return;
    }
    text_puts(&p->text, "USER: ");
    text_add(&p->text, t->text, t->bytes);
    text_puts(&p->text, " ");
}

static void turn_instruct(struct prompt *p, const struct turn *t, const char *system) {
    if (!t->human) {
        add_answer(p, t, " ", " </s>");
        return;
    }
    text_puts(&p->text, "[INST] ");
    if (system != NULL) {
        text_puts(&p->text, "<<SYS>>\n");
        text_puts(&p->text, system);
        text_puts(&p->text, "\n<</SYS>>\n\n");
    }
    text_add(&p->text, t->text, t->bytes);
    text_puts(&p->text, " [/INST]");
}

static void turn_chatml(struct prompt *p, const struct turn *t) {
    if (!t->human) {
        text_puts(&p->text, "<|im_start|>assistant\n");
        add_answer(p, t, "", "<|im_end|>");
        return;
    }
    text_puts(&p->text, "<|im_start|>user\n");
    text_add(&p->text, t->text, t->bytes);
    text_puts(&p->text, "<|im_end|>");
}

static void build_plain(struct prompt *p, const struct turn *turns, int n_turns, int n_images) {
    CHECK(n_turns == 2, "template plain got %d turns", n_turns);
    add_markers(&p->text, n_images, "");
    span_begin(p);
    text_add(&p->text, turns[1].text, turns[1].bytes);
    text_puts(&p->text, "\n");
    span_end(p);
}

void prompt_build(struct prompt *p, enum data_template t, const char *system,
                  const struct turn *turns, int n_turns, int n_images) {
    prompt_clear(p);
    if (t == TEMPLATE_PLAIN) {
        build_plain(p, turns, n_turns, n_images);
        return;
    }
    if (t == TEMPLATE_V1) {
        text_puts(&p->text, system != NULL ? system : system_v1);
        text_puts(&p->text, " ");
    } else if (t == TEMPLATE_CHATML_DIRECT) {
        text_puts(&p->text, system != NULL ? system : system_chatml);
        text_puts(&p->text, "<|im_end|>");
    }
    if (t == TEMPLATE_LLAVA_LLAMA_2 && system == NULL) system = system_llama_2;
    for (int i = 0; i < n_turns; i++) {
        const struct turn *turn = &turns[i];
        if (t == TEMPLATE_V1) {
            turn_v1(p, turn);
        } else if (t == TEMPLATE_CHATML_DIRECT) {
            turn_chatml(p, turn);
        } else {
            bool llama_2 = t == TEMPLATE_LLAVA_LLAMA_2;
            if (llama_2 && turn->human && i > 0) text_puts(&p->text, "<s>");
            turn_instruct(p, turn, llama_2 && i == 0 ? system : NULL);
        }
    }
}

char *template_prompt(enum data_template t, const char *question, int n_images) {
    struct text human = {0};
    add_markers(&human, n_images, t == TEMPLATE_PLAIN ? "" : "\n");
    text_puts(&human, question);
    if (t == TEMPLATE_PLAIN) return human.data;
    struct turn turns[2] = {{true, human.data, human.bytes}, {false, "", 0}};
    struct prompt p = {0};
    prompt_build(&p, t, NULL, turns, 2, n_images); /* an empty answer: the prompt ends before it */
    char *text = xstrdup(p.text.data);
    prompt_free(&p);
    free(human.data);
    return text;
}

static int count_text(const char *data, size_t bytes, const char *what) {
    int n = 0;
    size_t length = strlen(what);
    for (size_t i = 0; i + length <= bytes;)
        if (memcmp(data + i, what, length) == 0) {
            n++;
            i += length;
        } else {
            i++;
        }
    return n;
}

bool prompt_is_mismatch(const struct prompt *p, enum data_template t) {
    if (t == TEMPLATE_PLAIN || t == TEMPLATE_CHATML_DIRECT) return false;
    const char *separator = t == TEMPLATE_V1 ? " ASSISTANT: " : "[/INST] ";
    const char *at = p->text.data, *end = at + p->text.bytes;
    while (at < end) {
        const char *stop = memmem(at, (size_t)(end - at), "</s>", 4);
        if (stop == NULL || stop == at) return true; /* not closed; or empty with text behind it */
        if (count_text(at, (size_t)(stop - at), separator) != 1) return true;
        at = stop + 4;
    }
    return false;
}

/* ---- ids and labels -------------------------------------------------------------------------- */

struct labelling {
    const struct prompt *prompt;
    struct token_rows *out;
    int span; /* first one that does not end before the token */
    bool masked;
};

static void push(struct token_rows *r, int32_t id, int32_t label) {
    if (r->n == r->capacity) {
        r->capacity = r->capacity == 0 ? 4096 : 2 * r->capacity;
        r->ids = xrealloc(r->ids, (size_t)r->capacity * sizeof *r->ids);
        r->labels = xrealloc(r->labels, (size_t)r->capacity * sizeof *r->labels);
    }
    r->ids[r->n] = id;
    r->labels[r->n++] = label;
}

static void label_token(void *arg, int32_t id, size_t begin) {
    struct labelling *l = arg;
    const struct prompt *p = l->prompt;
    while (l->span < p->n_spans && p->span[l->span].end <= begin) l->span++;
    bool target = l->span < p->n_spans && begin >= p->span[l->span].begin && !l->masked &&
                  id != DATA_IMAGE_MARKER;
    push(l->out, id, target ? id : DATA_NO_TARGET);
}

int prompt_encode(const struct prompt *p, const struct tokenizer *t, bool images, bool masked,
                  struct token_rows *out) {
    struct labelling l = {p, out, 0, masked};
    push(out, tokenizer_bos(t), DATA_NO_TARGET);
    return tokenizer_walk(t, p->text.data, p->text.bytes, images, label_token, &l);
}
