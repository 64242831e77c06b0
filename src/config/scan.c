/* The raw file. iniparser keeps the last of two equal keys, cuts values at `;` and `#`, joins lines
 * that end in a backslash and drops what stands behind a closing quote, all without a word. So the
 * lines are read here first, and iniparser's split must come to the same values. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <iniparser.h>

#include "config_impl.h"
#include "encoding.h"

#define FILE_MAX_BYTES (1 << 20)
#define LINE_MAX_BYTES 1022 /* iniparser's buffer of 1024 holds the newline and the NUL too */
/* Several times what can be given. iniparser looks a key up by walking all that it has. */
#define KEYS_MAX 1024

struct scan {
    const char *path;
    int line;
    char *section; /* NULL: unknown or none yet */
    bool in_section, faulty;
    bool full; /* KEYS_MAX: the rest of the file is left unread */
    struct config_entries *entries;
};

static void fault(struct scan *s, const char *what, const char *text) {
    s->faulty = true;
    error_raise(EXIT_USAGE, "%s:%d: %s%s%.200s", s->path, s->line, what, text != NULL ? ": " : "",
                text != NULL ? text : "");
}

static char *trim(char *text) {
    while (isspace((unsigned char)*text)) text++;
    size_t n = strlen(text);
    while (n > 0 && isspace((unsigned char)text[n - 1])) n--;
    text[n] = '\0';
    return text;
}

static bool is_name(const char *text) {
    if (*text == '\0') return false;
    for (; *text != '\0'; text++)
        if (!isalnum((unsigned char)*text) && *text != '_') return false;
    return true;
}

static bool is_comment(const char *rest) {
    rest += strspn(rest, " \t");
    return *rest == '\0' || *rest == ';' || *rest == '#';
}

/* Splits off the value: quoted, or up to a comment that has a blank on both sides. NULL after a
 * fault. */
static char *take_value(struct scan *s, char *text) {
    if (*text == '"' || *text == '\'') {
        char *end = strchr(text + 1, *text);
        if (end == NULL) return fault(s, "a quote is opened and not closed", text), NULL;
        if (!is_comment(end + 1))
            return fault(s, "text behind the closing quote would be lost", end + 1), NULL;
        *end = '\0';
        return text + 1;
    }
    for (char *c = text; *c != '\0'; c++) {
        if (*c != ';' && *c != '#') continue;
        bool blank_before = c == text || isspace((unsigned char)c[-1]);
        bool blank_behind = c[1] == '\0' || isspace((unsigned char)c[1]);
        if (!blank_before || !blank_behind)
            return fault(s,
                         "the value would be cut at ; or #; quote a value that holds one, and put "
                         "blanks around one that begins a comment",
                         text),
                   NULL;
        *c = '\0';
        break;
    }
    text = trim(text);
    if (*text == '\0') return fault(s, "the value is empty (\"\" means an empty text)", NULL), NULL;
    return text;
}

static void add_entry(struct scan *s, const char *key, const char *value) {
    struct config_entries *all = s->entries;
    for (int i = 0; i < all->n; i++) {
        if (strcasecmp(all->e[i].key, key) != 0 || strcasecmp(all->e[i].section, s->section) != 0)
            continue;
        s->faulty = true;
        error_raise(EXIT_USAGE, "%s:%d: [%s] %s is given twice; the first time in line %d", s->path,
                    s->line, s->section, key, all->e[i].line);
        return;
    }
    if (all->n == KEYS_MAX) {
        fault(s, "a job file of so many keys is not read further; at most 1024 are", key);
        s->full = true;
        return;
    }
    if (all->n == all->capacity) {
        all->capacity = 2 * all->capacity + 64;
        all->e = xrealloc(all->e, (size_t)all->capacity * sizeof *all->e);
    }
    all->e[all->n++] = (struct config_entry){.section = xstrdup(s->section),
                                             .key = xstrdup(key),
                                             .value = value != NULL ? xstrdup(value) : NULL,
                                             .line = s->line};
}

static void scan_section(struct scan *s, char *text) {
    free(s->section);
    s->section = NULL;
    s->in_section = true;
    size_t n = strlen(text);
    if (text[n - 1] != ']') {
        fault(s, "a section is [name] alone on its line", text);
        return;
    }
    text[n - 1] = '\0';
    char *name = trim(text + 1);
    if (!is_name(name)) {
        fault(s, "no section name", name);
        return;
    }
    if (config_section_known(name)) {
        s->section = xstrdup(name);
        return;
    }
    char *place = xasprintf("%s:%d", s->path, s->line);
    config_raise_unknown_section(place, name);
    free(place);
}

static void scan_key(struct scan *s, char *text) {
    char *equals = strchr(text, '=');
    if (equals == NULL) {
        fault(s, "neither [section] nor key = value nor a comment", text);
        return;
    }
    *equals = '\0';
    char *key = trim(text);
    if (!is_name(key)) {
        fault(s, "no key name", key);
        return;
    }
    if (!s->in_section) fault(s, "a key stands before the first [section]", key);
    char *value = take_value(s, trim(equals + 1));
    if (s->section != NULL) add_entry(s, key, value); /* without a value: taken for found */
}

static void scan_line(struct scan *s, char *text, size_t bytes) {
    if (strlen(text) != bytes)
        fault(s, "a NUL byte", NULL);
    else if (bytes > LINE_MAX_BYTES)
        fault(s, "the line is longer than 1022 bytes", NULL);
    else if (!encoding_is_utf8(text, bytes))
        fault(s, "not UTF-8", NULL);
    else if (strchr(text, '\r') != NULL)
        fault(s, "a carriage return; write plain newlines (dos2unix)", NULL);
    else {
        text = trim(text);
        size_t n = strlen(text);
        if (n > 0 && text[n - 1] == '\\')
            fault(s, "a backslash at the end would join the next line", text);
        else if (*text == '[')
            scan_section(s, text);
        else if (*text != '\0' && *text != ';' && *text != '#')
            scan_key(s, text);
    }
}

static void scan_text(struct scan *s, char *text, size_t bytes) {
    if (bytes >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) {
        s->line = 1;
        fault(s, "the file begins with a byte-order mark; save it as UTF-8 without one", NULL);
        text += 3, bytes -= 3;
    }
    for (char *end = text + bytes; text < end && !s->full;) {
        char *newline = memchr(text, '\n', (size_t)(end - text));
        if (newline == NULL) newline = end;
        *newline = '\0';
        s->line++;
        scan_line(s, text, (size_t)(newline - text));
        text = newline + 1;
    }
}

/* Both readings of a sound file must agree. */
static void compare_split(struct scan *s, const char *path) {
    dictionary *d = iniparser_load(path);
    if (d == NULL) {
        error_raise(EXIT_USAGE, "%s: iniparser cannot split this file", s->path);
        return;
    }
    for (int i = 0; i < s->entries->n; i++) {
        struct config_entry *e = &s->entries->e[i];
        char *name = xasprintf("%s:%s", e->section, e->key);
        const char *value = iniparser_getstring(d, name, NULL);
        if (value == NULL || strcmp(value, e->value) != 0) {
            s->line = e->line;
            fault(s, "two ways of reading this value differ; quote it", e->value);
        }
        free(name);
    }
    iniparser_freedict(d);
}

int config_scan(const char *path, const char *name, struct config_entries *entries) {
    char *text;
    size_t bytes;
    *entries = (struct config_entries){0};
    TRY(file_read(path, FILE_MAX_BYTES, &text, &bytes));
    struct scan s = {.path = name, .entries = entries};
    struct sha256 hash;
    sha256_begin(&hash);
    sha256_add(&hash, text, bytes);
    sha256_end(&hash, entries->sha256);
    char why[ENCODING_WHY_BYTES];
    s.faulty = encoding_is_foreign(text, bytes, why);
    if (s.faulty)
        error_raise(EXIT_USAGE, "%s:1: the file %s", name, why);
    else
        scan_text(&s, text, bytes);
    if (!s.faulty) compare_split(&s, path);
    free(s.section);
    free(text);
    return s.faulty ? EXIT_USAGE : 0;
}

void config_entries_free(struct config_entries *entries) {
    for (int i = 0; i < entries->n; i++) {
        free(entries->e[i].section);
        free(entries->e[i].key);
        free(entries->e[i].value);
    }
    free(entries->e);
    *entries = (struct config_entries){0};
}
