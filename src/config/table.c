/* The table of keys as rows, and finding a name in it. */
#include <float.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config_impl.h"

#define CHOICE_ROW(name, text, missing) {text, missing},
#define CHOICE_LIST(LIST) ((const struct config_choice[]){LIST(CHOICE_ROW){NULL, NULL}})

#define REAL_POSITIVE DBL_MIN
#define REAL_BELOW_1 0x1.fffffffffffffp-1

#define ROW(s, f, spelled, kind, def, prio, miss, mean)                                            \
    .section = #s, .name = spelled, .type = kind, .offset = offsetof(struct config, s.f),          \
    .initial = def, .priority = prio, .missing = miss, .meaning = mean
#define SECTION(s, meaning)
#define END(s)
#define INT(s, f, def, lo, hi, prio, miss, mean)                                                   \
    {ROW(s, f, #f, TYPE_INT, def, prio, miss, mean), .low = lo, .high = hi},
#define INT_AUTO(s, f, def, lo, prio, miss, mean)                                                  \
    {ROW(s, f, #f, TYPE_INT, def, prio, miss, mean), .low = lo, .high = INT64_MAX,                 \
     .automatic = true},
#define INTS(s, f, def, lo, hi, prio, miss, mean)                                                  \
    {ROW(s, f, #f, TYPE_INTS, def, prio, miss, mean), .low = lo, .high = hi},
#define REAL(s, f, def, lo, hi, prio, miss, mean)                                                  \
    {ROW(s, f, #f, TYPE_REAL, def, prio, miss, mean), .real_low = lo, .real_high = hi},
#define REALS(s, f, def, lo, hi, prio, miss, mean)                                                 \
    {ROW(s, f, #f, TYPE_REALS, def, prio, miss, mean), .real_low = lo, .real_high = hi},
#define BOOL_AS(s, f, spelled, def, prio, miss, mean)                                              \
    {ROW(s, f, spelled, TYPE_BOOL, def, prio, miss, mean)},
#define BOOL(s, f, def, prio, miss, mean) BOOL_AS(s, f, #f, def, prio, miss, mean)
#define ENUM(s, f, def, list, prio, miss, mean)                                                    \
    {ROW(s, f, #f, TYPE_ENUM, def, prio, miss, mean), .choices = CHOICE_LIST(CONFIG_##list)},
#define TEXT(s, f, def, prio, miss, mean) {ROW(s, f, #f, TYPE_TEXT, def, prio, miss, mean)},
#define PATH(s, f, def, prio, miss, mean) {ROW(s, f, #f, TYPE_PATH, def, prio, miss, mean)},
#define LATER(s, f, mean)                                                                          \
    {.section = #s, .name = #f, .type = TYPE_LATER, .priority = 2, .initial = "-", .meaning = mean},
const struct config_key config_table[] = {
#include "config_keys.def"
};
const int config_n_keys = (int)(sizeof config_table / sizeof *config_table);

#undef SECTION
#undef INT
#undef INT_AUTO
#undef INTS
#undef REAL
#undef REALS
#undef BOOL
#undef BOOL_AS
#undef ENUM
#undef TEXT
#undef PATH
#undef LATER
#define SECTION(s, meaning) {#s, meaning},
#define INT(...)
#define INT_AUTO(...)
#define INTS(...)
#define REAL(...)
#define REALS(...)
#define BOOL(...)
#define BOOL_AS(...)
#define ENUM(...)
#define TEXT(...)
#define PATH(...)
#define LATER(...)
const struct config_section config_sections[] = {
#include "config_keys.def"
    {NULL, NULL}};

static int lower(char c) {
    return c >= 'A' && c <= 'Z' ? c + 32 : c;
}

int config_find(const char *section, const char *key) {
    for (int k = 0; k < config_n_keys; k++)
        if (lower(config_table[k].name[0]) == lower(key[0]) &&
            strcasecmp(config_table[k].name, key) == 0 &&
            strcasecmp(config_table[k].section, section) == 0)
            return k;
    return -1;
}

int config_index_of(const struct config *cfg, const void *field) {
    size_t offset = (size_t)((const char *)field - (const char *)cfg);
    for (int k = 0; k < config_n_keys; k++)
        if (config_table[k].type != TYPE_LATER && config_table[k].offset == offset) return k;
    CHECK(false, "offset %zu of struct config is no key", offset);
}

bool config_section_known(const char *section) {
    for (const struct config_section *s = config_sections; s->name != NULL; s++)
        if (strcasecmp(s->name, section) == 0) return true;
    return false;
}

/* Letters that differ between two names: changes, losses, additions and swaps of neighbours, each
 * counting 1 (optimal string alignment). Names beyond 95 letters are as far away as can be. */
#define NAME_MAX_LETTERS 95
static int smaller(int a, int b) {
    return a < b ? a : b;
}

/* Beyond `limit` the result is just some larger number: rows hold costs that never fall again by more
 * than a swap gains. */
static int distance(const char *a, const char *b, int limit) {
    int row[3][NAME_MAX_LETTERS + 1], least = 0, least_before;
    size_t n = strlen(a), m = strlen(b);
    if (n > NAME_MAX_LETTERS || m > NAME_MAX_LETTERS) return NAME_MAX_LETTERS;
    for (size_t j = 0; j <= m; j++) row[0][j] = (int)j;
    for (size_t i = 1; i <= n; i++) {
        int *now = row[i % 3], *last = row[(i + 2) % 3], *before = row[(i + 1) % 3];
        now[0] = (int)i;
        least_before = least;
        least = now[0];
        for (size_t j = 1; j <= m; j++) {
            bool same = lower(a[i - 1]) == lower(b[j - 1]);
            now[j] = smaller(last[j - 1] + !same, smaller(last[j], now[j - 1]) + 1);
            if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
                lower(a[i - 2]) == lower(b[j - 1]))
                now[j] = smaller(now[j], before[j - 2] + 1);
            least = smaller(least, now[j]);
        }
        if (smaller(least, least_before + 1) > limit) return limit + 1;
    }
    return row[n % 3][m];
}

/* Beyond this, a name is another word and not a slip. */
static int farthest(const char *name) {
    return 1 + (int)strlen(name) / 3;
}

/* The nearest row; a row of another section counts half a letter more. */
static int nearest_key(const char *section, const char *key) {
    int best = -1, best_score = 2 * farthest(key) + 1, length = (int)strlen(key);
    for (int k = 0; k < config_n_keys; k++) {
        /* Each letter more or less counts 1. */
        if (2 * abs((int)strlen(config_table[k].name) - length) > best_score) continue;
        bool elsewhere = strcasecmp(config_table[k].section, section) != 0;
        int score = 2 * distance(config_table[k].name, key, best_score / 2) + elsewhere;
        if (score < best_score || (best < 0 && score == best_score)) best = k, best_score = score;
    }
    return best;
}

/* "[vision] or [language]": the sections that do have the key. */
static void other_sections(const char *key, char *text, size_t size) {
    text[0] = '\0';
    for (int k = 0; k < config_n_keys; k++) {
        if (strcasecmp(config_table[k].name, key) != 0) continue;
        size_t used = strlen(text);
        snprintf(text + used, size - used, "%s[%s]", used > 0 ? " or " : "",
                 config_table[k].section);
    }
}

void config_raise_unknown(const char *place, const char *section, const char *key) {
    char sections[256];
    if (error_full()) {
        error_raise(EXIT_USAGE, "%s: no such key", place);
        return;
    }
    other_sections(key, sections, sizeof sections);
    const char *reason = config_foreign_reason(key);
    int near = nearest_key(section, key);
    if (sections[0] != '\0')
        error_raise(EXIT_USAGE, "%s: [%s] %s: this key belongs in %s", place, section, key,
                    sections);
    else if (reason != NULL)
        error_raise(EXIT_USAGE, "%s: [%s] %s: strata does not have this key: %s", place, section,
                    key, reason);
    else if (near >= 0)
        error_raise(EXIT_USAGE, "%s: [%s] %s: no such key; did you mean [%s] %s?", place, section,
                    key, config_table[near].section, config_table[near].name);
    else
        error_raise(EXIT_USAGE,
                    "%s: [%s] %s: no such key, nor one like it; `strata keys` lists all", place,
                    section, key);
}

void config_raise_unknown_section(const char *place, const char *section) {
    const char *best = NULL;
    int best_distance = farthest(section) + 1;
    for (const struct config_section *s = config_sections; s->name != NULL && !error_full(); s++) {
        int d = distance(s->name, section, best_distance);
        if (d < best_distance) best = s->name, best_distance = d;
    }
    error_raise(EXIT_USAGE, "%s: [%s]: no such section%s%s%s; its keys were not looked at", place,
                section, best != NULL ? "; did you mean [" : "", best != NULL ? best : "",
                best != NULL ? "]?" : "");
}

const char *config_nearest_choice(const struct config_choice *choices, const char *text) {
    const char *best = NULL;
    int best_distance = farthest(text) + 1;
    for (; choices->text != NULL; choices++) {
        int d = distance(choices->text, text, best_distance);
        if (d < best_distance) best = choices->text, best_distance = d;
    }
    return best;
}
