/* LLaVA JSON: one array of {id, image, conversations}. The array is cut into its elements first,
 * so that only one record at a time is a tree in memory and errors can say where it begins. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "encoding.h"
#include "index_impl.h"
#include "json.h"

#define JSON_BYTES_MAX ((size_t)16 << 30)
#define TURNS_MAX 4096
#define IMAGES_MAX 1024

/* ---- elements of the array ------------------------------------------------------------------- */

struct elements {
    const char *path, *text;
    size_t bytes, at;
    int64_t n;   /* elements found so far */
    char before; /* what stood before `at`: '[' or ',' or ']' */
};

static bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_space(struct elements *e) {
    while (e->at < e->bytes && is_space(e->text[e->at])) e->at++;
}

static int array_error(const struct elements *e, const char *what) {
    return error_raise(EXIT_BAD_DATA, "%s: byte %zu, in or after record %lld: %s", e->path, e->at,
                       (long long)e->n, what);
}

/* From the first byte of an element to the ',' or ']' behind it. */
static bool skip_element(struct elements *e) {
    int64_t depth = 0;
    bool in_string = false;
    for (; e->at < e->bytes; e->at++) {
        char c = e->text[e->at];
        if (in_string) {
            if (c == '\\')
                e->at++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            depth++;
        } else if (depth == 0 && (c == ',' || c == ']' || c == '}')) {
            return true;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return false;
}

static int array_begin(struct elements *e) {
    char why[ENCODING_WHY_BYTES];
    if (!encoding_is_text(e->text, e->bytes, why))
        return error_raise(EXIT_BAD_DATA, "%s %s", e->path, why);
    if (encoding_mark(e->text, e->bytes) > 0)
        return array_error(e, "the file begins with a byte order mark; write it without one");
    skip_space(e);
    if (e->at == e->bytes || e->text[e->at] != '[')
        return array_error(e, "expected '[': the file must be one array of records");
    e->at++;
    e->before = '[';
    return 0;
}

/* *found false: the array ended, and nothing stands behind it. */
static int array_next(struct elements *e, size_t *begin, size_t *end, bool *found) {
    skip_space(e);
    if (e->before == '[' && e->at < e->bytes && e->text[e->at] == ']') {
        e->at++;
        e->before = ']';
    }
    *found = e->before != ']';
    if (!*found) {
        skip_space(e);
        return e->at < e->bytes ? array_error(e, "something stands behind the array's end") : 0;
    }
    *begin = e->at;
    if (!skip_element(e)) return array_error(e, "the file ends inside a record");
    *end = e->at++;
    e->before = e->text[*end];
    e->n++;
    return e->before == '}' ? array_error(e, "a '}' too many") : 0;
}

static int array_count(const char *path, const char *text, size_t bytes, int64_t *n) {
    struct elements e = {.path = path, .text = text, .bytes = bytes};
    size_t begin, end;
    TRY(array_begin(&e));
    for (bool found = true; found;) TRY(array_next(&e, &begin, &end, &found));
    *n = e.n;
    return e.n > 0 ? 0 : error_raise(EXIT_BAD_DATA, "%s holds no record", path);
}

/* ---- one record ------------------------------------------------------------------------------ */

struct reading {
    struct builder *b;
    int64_t number;
    char name[256];
    struct turn turns[TURNS_MAX];
    int n_turns, early_turns;
    const char *images[IMAGES_MAX];
    int n_images;
    bool has_image, image_list;
    struct text text; /* normalised turns, one after the other */
};

/* Says what is wrong with the record; the others are still looked at. */
static bool wrong(struct reading *r, const char *fmt, const char *what)
    __attribute__((format(printf, 2, 0)));
static bool wrong(struct reading *r, const char *fmt, const char *what) {
    char text[400];
    snprintf(text, sizeof text, fmt, what);
    builder_problem(r->b, EXIT_BAD_DATA, "%s: record %lld (id %s): %s", r->b->set->path,
                    (long long)r->number, r->name[0] != '\0' ? r->name : "none", text);
    return false;
}

static bool read_id(struct reading *r, const struct json *record) {
    const struct json *id = json_get(record, "id");
    r->name[0] = '\0';
    if (id != NULL && json_kind(id) == JSON_STRING)
        snprintf(r->name, sizeof r->name, "%s", json_string(id, NULL));
    else if (id != NULL && json_kind(id) == JSON_INTEGER)
        snprintf(r->name, sizeof r->name, "%lld", (long long)json_integer(id));
    else
        return wrong(r, "%s", "\"id\" is missing or neither text nor a whole number");
    return true;
}

static bool read_image(struct reading *r, const struct json *v) {
    size_t bytes;
    const char *name = json_string(v, &bytes);
    if (json_kind(v) != JSON_STRING || bytes == 0)
        return wrong(r, "%s", "an image must be a non-empty path");
    if (r->n_images == IMAGES_MAX) return wrong(r, "%s", "more than 1024 images");
    r->images[r->n_images++] = name;
    return true;
}

static bool read_images(struct reading *r, const struct json *record) {
    const struct json *image = json_get(record, "image");
    if (image != NULL && json_kind(image) == JSON_NULL) image = NULL; /* as if it were absent */
    r->n_images = 0;
    r->has_image = image != NULL;
    r->image_list = image != NULL && json_kind(image) == JSON_ARRAY;
    if (image == NULL) return true;
    if (!r->image_list) return read_image(r, image);
    for (size_t i = 0; i < json_size(image); i++)
        if (!read_image(r, json_at(image, i))) return false;
    return true;
}

/* Role and text of a turn. */
static bool read_turn(struct reading *r, const struct json *turn, bool *human, const char **text,
                      size_t *bytes) {
    if (json_kind(turn) != JSON_OBJECT) return wrong(r, "%s", "a turn is no object");
    char why[RECORD_WHY_BYTES];
    if (!record_keys_check(&r->b->turn_keys, turn, RECORD_TURN, why)) return wrong(r, "%s", why);
    const struct json *from = json_get(turn, "from"), *value = json_get(turn, "value");
    if (from == NULL || json_kind(from) != JSON_STRING || value == NULL ||
        json_kind(value) != JSON_STRING)
        return wrong(r, "%s", "a turn needs \"from\" and \"value\", both text");
    const char *role = json_string(from, NULL);
    *human = strcmp(role, "human") == 0;
    if (!*human && strcmp(role, "gpt") != 0)
        return wrong(r, "role \"%.80s\" is unknown; allowed are human and gpt", role);
    *text = json_string(value, bytes);
    return true;
}

static bool add_turn(struct reading *r, bool human, const char *text, size_t bytes) {
    if (r->n_turns == 0 && !human) { /* LLaVA leaves out what comes before the human */
        r->early_turns++;
        return true;
    }
    if (human != (r->n_turns % 2 == 0))
        return wrong(r, "two turns of %s in a row; human and gpt must alternate",
                     human ? "human" : "gpt");
    if (r->n_turns == TURNS_MAX) return wrong(r, "%s", "more than 4096 turns");
    size_t begin = r->text.bytes;
    if (r->has_image && !r->image_list)
        text_normalise_marker(&r->text, text, bytes);
    else
        text_add(&r->text, text, bytes);
    r->turns[r->n_turns++] = (struct turn){human, NULL, r->text.bytes - begin};
    return true;
}

static bool read_turns(struct reading *r, const struct json *record) {
    const struct json *list = json_get(record, "conversations");
    if (list == NULL || json_kind(list) != JSON_ARRAY)
        return wrong(r, "%s", "\"conversations\" is missing or no array");
    r->n_turns = 0;
    r->early_turns = 0;
    r->text.bytes = 0;
    for (size_t i = 0; i < json_size(list); i++) {
        bool human = false;
        const char *text = "";
        size_t bytes = 0;
        if (!read_turn(r, json_at(list, i), &human, &text, &bytes)) return false;
        if (!add_turn(r, human, text, bytes)) return false;
    }
    if (r->n_turns == 0) return wrong(r, "%s", "the conversation is empty");
    r->b->early_turns += r->early_turns;
    r->b->early_records += r->early_turns > 0;
    size_t at = 0; /* the text no longer moves */
    for (int i = 0; i < r->n_turns; at += r->turns[i++].bytes) r->turns[i].text = r->text.data + at;
    return true;
}

static int read_record(struct reading *r, const struct json *record) {
    if (json_kind(record) != JSON_OBJECT) {
        r->name[0] = '\0';
        wrong(r, "%s", "it is no object");
        return 0;
    }
    char why[RECORD_WHY_BYTES];
    if (!read_id(r, record)) return 0;
    if (!record_keys_check(&r->b->record_keys, record, RECORD_WHOLE, why)) {
        wrong(r, "%s", why);
        return 0;
    }
    if (!read_images(r, record) || !read_turns(r, record)) return 0;
    struct record out = {r->number, r->name, r->turns, r->n_turns, r->images, r->n_images};
    return builder_add(r->b, &out);
}

static int read_elements(struct builder *b, struct reading *r, const char *text, size_t bytes) {
    struct elements e = {.path = b->set->path, .text = text, .bytes = bytes};
    size_t begin = 0, end = 0;
    bool found = false;
    TRY(array_begin(&e));
    for (;;) {
        TRY(array_next(&e, &begin, &end, &found));
        if (!found) return 0;
        char name[600];
        struct json *record;
        snprintf(name, sizeof name, "%.500s: record %lld (at byte %zu of the file)", b->set->path,
                 (long long)(e.n - 1), begin);
        TRY(record_parse(name, text + begin, end - begin, &record));
        r->number = e.n - 1;
        int rc = read_record(r, record);
        json_free(record);
        TRY(rc);
        builder_step(b);
        if (b->n_problems == PROBLEMS_MAX) return 0;
    }
}

int source_llava_read(struct builder *b) {
    char *text;
    size_t bytes;
    TRY(file_read(b->set->path, JSON_BYTES_MAX, &text, &bytes));
    struct reading *r = xcalloc(1, sizeof *r);
    r->b = b;
    int rc = array_count(b->set->path, text, bytes, &b->total);
    if (rc == 0) rc = read_elements(b, r, text, bytes);
    free(r->text.data);
    free(r);
    free(text);
    return rc;
}
