/* The one door to jansson. A struct json is a json_t under another name. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Both libraries say JSON_OBJECT and mean another number: jansson's are kept under these names,
 * then the words are given to ours. jansson's json_is_* macros must not be used below. */
enum {
    RAW_OBJECT = JSON_OBJECT,
    RAW_ARRAY = JSON_ARRAY,
    RAW_STRING = JSON_STRING,
    RAW_INTEGER = JSON_INTEGER,
    RAW_REAL = JSON_REAL,
    RAW_TRUE = JSON_TRUE,
    RAW_FALSE = JSON_FALSE
};
#define JSON_OBJECT KIND_OBJECT
#define JSON_ARRAY KIND_ARRAY
#define JSON_STRING KIND_STRING
#define JSON_INTEGER KIND_INTEGER
#define JSON_REAL KIND_REAL
#define JSON_NULL KIND_NULL

/* jansson's constructors of the names that json.h gives to its readers. */
static json_t *new_raw_integer(int64_t v) {
    return json_integer(v);
}

static json_t *new_raw_real(double v) {
    return json_real(v);
}

#include "encoding.h"
#include "json.h"

#define MAX_DEPTH 64
#define N_CONTEXT 40

static json_t *raw(const struct json *v) {
    return (json_t *)(uintptr_t)v;
}

static struct json *wrap(json_t *v) {
    CHECK(v != NULL, "jansson gave no value");
    return (struct json *)v;
}

static int syntax_error(const char *name, const char *text, size_t bytes, size_t at,
                        const char *why) {
    char context[N_CONTEXT + 1];
    size_t begin = at > N_CONTEXT / 2 ? at - N_CONTEXT / 2 : 0, n = 0;
    for (; n < N_CONTEXT && begin + n < bytes; n++) {
        unsigned char c = (unsigned char)text[begin + n];
        context[n] = c < 0x20 || c > 0x7e ? '?' : (char)c;
    }
    context[n] = '\0';
    return error_raise(EXIT_BAD_DATA, "%s: byte %zu is no JSON: %s, near \"%s\"", name, at, why,
                       context);
}

/* What a value costs in jansson and malloc, in bytes: an empty object with its table, an empty array
 * with its room, a string beside its own bytes, a member beside its key (the entry of the table), an
 * element that follows another (its place, and what a number takes). */
#define OBJECT_BYTES 224
#define ARRAY_BYTES 128
#define STRING_BYTES 80
#define MEMBER_BYTES 48
#define ELEMENT_BYTES 48

struct survey {
    size_t deep;   /* offset of the bracket that opens level MAX_DEPTH + 1, or the end */
    size_t memory; /* that the document will take, about */
};

/* Before jansson sees the text: it would go 2048 levels deep, and takes 80 bytes for each of "{},". */
static struct survey survey_text(const char *text, size_t bytes) {
    struct survey s = {.deep = bytes, .memory = bytes};
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string && c == '\\') {
            i++;
        } else if (c == '"') {
            in_string = !in_string;
            s.memory += in_string ? STRING_BYTES : 0;
        } else if (in_string) {
            continue;
        } else if (c == ']' || c == '}') {
            depth--;
        } else if (c == '[' || c == '{') {
            s.memory += c == '[' ? ARRAY_BYTES : OBJECT_BYTES;
            if (++depth <= MAX_DEPTH) continue;
            s.deep = i;
            break;
        } else {
            s.memory += c == ',' ? ELEMENT_BYTES : c == ':' ? MEMBER_BYTES : 0;
        }
    }
    return s;
}

/* Manifests take 9 times their bytes, headers of many tensors up to 20 times. */
static int check_memory(const char *name, const struct survey *s, size_t bytes) {
    if (s->memory <= JSON_MEMORY_LEAST || s->memory / JSON_MEMORY_FACTOR <= bytes) return 0;
    return error_raise(
        EXIT_BAD_DATA,
        "%s: its %zu bytes of JSON hold so many small values that they would take %zu "
        "MiB of memory; allowed: %d bytes for each of its own, or %d MiB",
        name, bytes, s->memory >> 20, JSON_MEMORY_FACTOR, JSON_MEMORY_LEAST >> 20);
}

/* An integer that no 64 bits hold (transformers writes 1e30 as 31 digits for "no limit") is given a
 * fraction, so that it is read as the same number. */
static char *with_reals(const char *text, size_t bytes, size_t *out_bytes) {
    static const char number[] = "+-.eE0123456789";
    char *out = xmalloc(bytes + bytes / 18 * 2 + 3);
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        size_t end = i + 1;
        bool digits = false;
        if (text[i] == '"') {
            while (end < bytes && text[end] != '"') end += text[end] == '\\' ? 2 : 1;
            end = end < bytes ? end + 1 : bytes;
        } else if (text[i] != '\0' && strchr(number, text[i]) != NULL) {
            digits = true;
            for (end = i; end < bytes && text[end] != '\0' && strchr(number, text[end]); end++)
                digits = digits && (strchr(".eE", text[end]) == NULL);
            digits = digits && end - i > 18;
        }
        memcpy(out + n, text + i, end - i);
        n += end - i;
        if (digits) out[n++] = '.';
        if (digits) out[n++] = '0';
        i = end;
    }
    out[n] = '\0';
    *out_bytes = n;
    return out;
}

int json_read_text(const char *name, const char *text, size_t bytes, struct json **root) {
    struct survey s = survey_text(text, bytes);
    if (s.deep < bytes) return syntax_error(name, text, bytes, s.deep, "more than 64 levels deep");
    TRY(check_memory(name, &s, bytes));
    json_error_t why;
    json_t *v = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (v == NULL && json_error_code(&why) == json_error_numeric_overflow) {
        size_t more;
        char *reals = with_reals(text, bytes, &more);
        v = json_loadb(reals, more, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
        free(reals);
    }
    if (v == NULL)
        return syntax_error(name, text, bytes, why.position > 0 ? (size_t)why.position : 0,
                            json_error_code(&why) == json_error_null_character
                                ? "a text holds the NUL character \\u0000"
                                : why.text);
    *root = wrap(v);
    return 0;
}

int json_read_file(const char *path, size_t max_bytes, struct json **root) {
    char *text, why[ENCODING_WHY_BYTES];
    size_t bytes;
    TRY(file_read(path, max_bytes, &text, &bytes));
    int rc = encoding_is_foreign(text, bytes, why) ? error_raise(EXIT_BAD_DATA, "%s %s", path, why)
                                                   : json_read_text(path, text, bytes, root);
    free(text);
    return rc;
}

void json_free(struct json *root) {
    json_decref(raw(root));
}

enum json_kind json_kind(const struct json *v) {
    switch ((int)json_typeof(raw(v))) {
    case RAW_OBJECT:
        return JSON_OBJECT;
    case RAW_ARRAY:
        return JSON_ARRAY;
    case RAW_STRING:
        return JSON_STRING;
    case RAW_INTEGER:
        return JSON_INTEGER;
    case RAW_REAL:
        return JSON_REAL;
    case RAW_TRUE:
    case RAW_FALSE:
        return JSON_BOOL;
    default:
        return JSON_NULL;
    }
}

size_t json_size(const struct json *v) {
    return json_kind(v) == JSON_OBJECT ? json_object_size(raw(v)) : json_array_size(raw(v));
}

const struct json *json_at(const struct json *array, size_t i) {
    return wrap(json_array_get(raw(array), i));
}

const struct json *json_get(const struct json *object, const char *key) {
    return (const struct json *)json_object_get(raw(object), key);
}

const char *json_string(const struct json *v, size_t *bytes) {
    if (bytes != NULL) *bytes = json_string_length(raw(v));
    return json_string_value(raw(v));
}

int64_t json_integer(const struct json *v) {
    return json_integer_value(raw(v));
}

double json_real(const struct json *v) {
    return json_number_value(raw(v));
}

bool json_bool(const struct json *v) {
    return (int)json_typeof(raw(v)) == RAW_TRUE;
}

static bool same_members(const struct json *a, const struct json *b) {
    const char *key;
    const struct json *v;
    if (json_size(a) != json_size(b)) return false;
    for (void *i = json_member(a, NULL, &key, &v); i != NULL; i = json_member(a, i, &key, &v)) {
        const struct json *other = json_get(b, key);
        if (other == NULL || !json_same(v, other)) return false;
    }
    return true;
}

static bool same_elements(const struct json *a, const struct json *b) {
    if (json_size(a) != json_size(b)) return false;
    for (size_t i = 0; i < json_size(a); i++)
        if (!json_same(json_at(a, i), json_at(b, i))) return false;
    return true;
}

/* Nested at most MAX_DEPTH deep, since only what was read is deep. */
bool json_same(const struct json *a, const struct json *b) {
    enum json_kind x = json_kind(a), y = json_kind(b);
    bool number = x == JSON_REAL || y == JSON_REAL;
    if (number && (x == JSON_INTEGER || y == JSON_INTEGER || x == y))
        return !(json_real(a) < json_real(b)) && !(json_real(a) > json_real(b));
    if (x != y) return false;
    if (x == JSON_OBJECT) return same_members(a, b);
    if (x == JSON_ARRAY) return same_elements(a, b);
    return json_equal(raw(a), raw(b)) == 1;
}

void *json_member(const struct json *object, void *iter, const char **key, const struct json **v) {
    json_t *o = raw(object);
    iter = iter == NULL ? json_object_iter(o) : json_object_iter_next(o, iter);
    if (iter == NULL) return NULL;
    *key = json_object_iter_key(iter);
    *v = wrap(json_object_iter_value(iter));
    return iter;
}

struct json *json_new_object(void) {
    return wrap(json_object());
}

struct json *json_new_array(void) {
    return wrap(json_array());
}

struct json *json_new_integer(int64_t v) {
    return wrap(new_raw_integer(v));
}

/* JSON has no NaN and no infinity; null is what other programs write for them. */
struct json *json_new_real(double v) {
    return wrap(isfinite(v) ? new_raw_real(v) : json_null());
}

/* Text that is not UTF-8 (a path may be anything) is kept readable: foreign bytes become '?'. */
struct json *json_new_text(const char *s, size_t bytes) {
    json_t *v = json_stringn(s, bytes);
    if (v != NULL) return wrap(v);
    char *ascii = xmalloc(bytes + 1);
    for (size_t i = 0; i < bytes; i++) ascii[i] = (unsigned char)s[i] > 0x7e ? '?' : s[i];
    v = json_stringn(ascii, bytes);
    free(ascii);
    return wrap(v);
}

struct json *json_new_string(const char *s) {
    return json_new_text(s, strlen(s));
}

struct json *json_new_bool(bool v) {
    return wrap(json_boolean(v));
}

struct json *json_new_null(void) {
    return wrap(json_null());
}

struct json *json_duplicate(const struct json *v) {
    return wrap(json_deep_copy(raw(v)));
}

void json_remove(struct json *object, const char *key) {
    (void)json_object_del(raw(object), key);
}

void json_set(struct json *object, const char *key, struct json *value) {
    CHECK(json_object_set_new(raw(object), key, raw(value)) == 0, "member %s", key);
}

void json_append(struct json *array, struct json *value) {
    CHECK(json_array_append_new(raw(array), raw(value)) == 0, "array");
}

char *json_text(const struct json *root, int indent) {
    char *text = json_dumps(raw(root), (size_t)JSON_INDENT(indent) | JSON_ENCODE_ANY |
                                           JSON_REAL_PRECISION(17));
    CHECK(text != NULL, "value that cannot be written");
    return text;
}
