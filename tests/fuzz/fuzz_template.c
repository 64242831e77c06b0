/* Conversation templates: turns, separated by a byte 0, to prompt, ids and labels. The first byte
 * chooses the template and what comes with it. */
/* max_len: 512 */
#include <stdlib.h>
#include <string.h>

#include "../../src/data/template_impl.h"
#include "target.h"

#define TURNS_MAX 32

/* Turns as the reader of records would give them: human and assistant in turn. */
static int take_turns(const char *text, size_t bytes, struct turn *turn) {
    int n = 0;
    for (const char *end = text + bytes; text <= end && n < TURNS_MAX;) {
        const char *stop = memchr(text, 0, (size_t)(end - text));
        if (stop == NULL) stop = end;
        turn[n] = (struct turn){n % 2 == 0, text, (size_t)(stop - text)};
        n++;
        text = stop + 1;
    }
    return n;
}

static void check_rows(const struct token_rows *rows, int64_t vocab) {
    for (int64_t i = 0; i < rows->n; i++) {
        int32_t id = rows->ids[i], label = rows->labels[i];
        fuzz_expect((id >= 0 && id < vocab) || id == DATA_IMAGE_MARKER, "an id of no piece");
        fuzz_expect(label == id || label == DATA_NO_TARGET, "a label that is another id");
        fuzz_expect(id != DATA_IMAGE_MARKER || label == DATA_NO_TARGET, "an image as target");
    }
}

static void check_spans(const struct prompt *p) {
    size_t at = 0;
    for (int i = 0; i < p->n_spans; i++) {
        fuzz_expect(p->span[i].begin >= at && p->span[i].end >= p->span[i].begin &&
                        p->span[i].end <= p->text.bytes,
                    "spans out of order");
        at = p->span[i].end;
    }
}

static void check_texts(const char *text, size_t bytes) {
    struct text normal = {0};
    const char *trimmed = text;
    size_t n = bytes;
    text_trim(&trimmed, &n);
    fuzz_expect(trimmed >= text && trimmed + n <= text + bytes, "trimmed beyond the text");
    text_normalise_marker(&normal, text, bytes);
    int64_t markers = text_count_markers(text, bytes);
    fuzz_expect(text_count_markers(normal.data, normal.bytes) >= (markers > 0),
                "the marker is gone");
    free(normal.data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct turn turn[TURNS_MAX];
    struct prompt p = {0};
    struct token_rows rows = {0};
    int kind = bytes > 0 ? data[0] : 0;
    enum data_template t = (enum data_template)(kind % 5);
    const char *text = (const char *)data + (bytes > 0);
    size_t n_text = bytes > 0 ? bytes - 1 : 0, n_decoded;
    int n = take_turns(text, n_text, turn), images = kind / 5 % 3;
    check_texts(text, n_text);
    if (t == TEMPLATE_PLAIN && n < 2) turn[n++] = (struct turn){false, "", 0};
    prompt_build(&p, t, kind / 15 % 2 ? "S." : NULL, turn, t == TEMPLATE_PLAIN ? 2 : n, images);
    check_spans(&p);
    bool masked = prompt_is_mismatch(&p, t) && kind / 30 % 2;
    int rc = prompt_encode(&p, fuzz_tokenizer(), images > 0, masked, &rows);
    if (rc == 0) check_rows(&rows, tokenizer_vocab_size(fuzz_tokenizer()));
    if (rc == 0) free(tokenizer_decode(fuzz_tokenizer(), rows.ids, rows.n, &n_decoded));
    char *question = xmalloc(n_text + 1);
    memcpy(question, text, n_text);
    question[n_text] = '\0';
    free(template_prompt(t, question, images));
    free(question);
    free(rows.ids);
    free(rows.labels);
    prompt_free(&p);
    fuzz_judge(rc);
    return 0;
}
