/* Values of foreign JSON objects, with defaults and faults. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "hf_read_impl.h"

void hf_read_refuse(struct hf_reader *r, const char *key, const char *fmt, ...) {
    char why[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    r->rc = error_raise(EXIT_BAD_DATA, "%s: %s%s %s", r->path, r->inside, key, why);
}

const struct json *hf_read_member(const struct hf_reader *r, const char *key) {
    const struct json *v = r->v != NULL ? json_get(r->v, key) : NULL;
    return v != NULL && json_kind(v) != JSON_NULL ? v : NULL;
}

bool hf_read_is_null(const struct hf_reader *r, const char *key) {
    const struct json *v = r->v != NULL ? json_get(r->v, key) : NULL;
    return v != NULL && json_kind(v) == JSON_NULL;
}

int64_t hf_read_integer(struct hf_reader *r, const char *key, int64_t otherwise) {
    const struct json *v = hf_read_member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_INTEGER && json_integer(v) > -(1LL << 40) &&
        json_integer(v) < 1LL << 40)
        return json_integer(v);
    hf_read_refuse(r, key, "is no whole number of a model's size");
    return otherwise;
}

/* At least 1, so that it may divide. */
int64_t hf_read_size(struct hf_reader *r, const char *key, int64_t otherwise) {
    int64_t n = hf_read_integer(r, key, otherwise);
    if (n >= 1) return n;
    hf_read_refuse(r, key, "is %lld, at least 1 is needed", (long long)n);
    return 1;
}

double hf_read_real(struct hf_reader *r, const char *key, double otherwise) {
    const struct json *v = hf_read_member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_REAL || json_kind(v) == JSON_INTEGER) return json_real(v);
    hf_read_refuse(r, key, "is no number");
    return otherwise;
}

bool hf_read_truth(struct hf_reader *r, const char *key, bool otherwise) {
    const struct json *v = hf_read_member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_BOOL) return json_bool(v);
    hf_read_refuse(r, key, "is neither true nor false");
    return otherwise;
}

const char *hf_read_text(struct hf_reader *r, const char *key, const char *otherwise) {
    const struct json *v = hf_read_member(r, key);
    if (v == NULL) return otherwise;
    if (json_kind(v) == JSON_STRING) return json_string(v, NULL);
    hf_read_refuse(r, key, "is no text");
    return otherwise;
}

struct hf_reader hf_read_below(struct hf_reader *r, const char *key, const char *inside) {
    const struct json *v = hf_read_member(r, key);
    struct hf_reader out = {.path = r->path, .inside = inside};
    if (v != NULL && json_kind(v) == JSON_OBJECT) out.v = v;
    if (v != NULL && json_kind(v) != JSON_OBJECT) hf_read_refuse(r, key, "is no object");
    return out;
}

void hf_read_require(struct hf_reader *r, const char *key, const char *found, const char *only) {
    if (strcmp(found, only) != 0)
        hf_read_refuse(r, key, "is \"%.64s\", this version builds \"%s\" only", found, only);
}

/* ---- keys of the job file ---------------------------------------------------------------------------- */
/* The fewest digits that read back as the same number. */
void hf_set_real(struct hf_keys *k, const char *section, const char *key, double v) {
    char value[40];
    bool whole = v >= 1.0 && v < 1e15 && !(v > floor(v));
    if (whole) snprintf(value, sizeof value, "%.0f", v);
    for (int digits = 1; digits <= 17 && !whole; digits++) {
        snprintf(value, sizeof value, "%.*g", digits, v);
        double back;
        if (parse_real(value, &back) && !(back < v) && !(back > v)) break;
    }
    hf_keys_set(k, section, key, "%s", value);
}

void hf_set_int(struct hf_keys *k, const char *section, const char *key, int64_t v) {
    hf_keys_set(k, section, key, "%lld", (long long)v);
}

void hf_set_bool(struct hf_keys *k, const char *section, const char *key, bool v) {
    hf_keys_set(k, section, key, "%s", v ? "true" : "false");
}
