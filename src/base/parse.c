/* Strict text to number: the whole text or nothing. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base.h"

static bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

static const char *skip_digits(const char *s) {
    while (is_digit(*s)) s++;
    return s;
}

bool parse_int64(const char *text, int64_t *out) {
    const char *digits = text + (*text == '-');
    const char *end = skip_digits(digits);
    if (end == digits || *end != '\0') return false;
    errno = 0;
    long long value = strtoll(text, NULL, 10);
    if (errno == ERANGE) return false;
    *out = value;
    return true;
}

/* [+-] digits [. digits] [e [+-] digits], at least one digit in the mantissa. */
static bool has_real_form(const char *s) {
    if (*s == '+' || *s == '-') s++;
    const char *end = skip_digits(s);
    int64_t n_digits = end - s;
    if (*end == '.') {
        s = end + 1;
        end = skip_digits(s);
        n_digits += end - s;
    }
    if (n_digits == 0) return false;
    if (*end == 'e' || *end == 'E') {
        s = end + 1;
        if (*s == '+' || *s == '-') s++;
        end = skip_digits(s);
        if (end == s) return false;
    }
    return *end == '\0';
}

bool parse_real(const char *text, double *out) {
    if (!has_real_form(text)) return false;
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    /* A number too small to be told from 0 is refused like one too large. */
    if (*end != '\0' || (errno == ERANGE && (isinf(value) || value == 0.0))) return false;
    *out = value;
    return true;
}

bool parse_bool(const char *text, bool *out) {
    static const char *const yes[] = {"true", "yes", "on", "1"};
    static const char *const no[] = {"false", "no", "off", "0"};
    for (size_t i = 0; i < 4; i++) {
        bool is_yes = strcasecmp(text, yes[i]) == 0;
        if (!is_yes && strcasecmp(text, no[i]) != 0) continue;
        *out = is_yes;
        return true;
    }
    return false;
}
