/* Text to field and back. */
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"
#include "encoding.h"

const char *config_literal_default(const struct config_key *key) {
    const char *text = key->initial;
    return strcmp(text, "-") == 0 || text[0] == '=' || text[0] == '?' ? NULL : text;
}

/* A list whose default is a word (auto, none) takes that word for "no numbers". */
static const char *list_word(const struct config_key *key) {
    const char *text = config_literal_default(key);
    return text != NULL && text[0] >= 'a' && text[0] <= 'z' ? text : NULL;
}

static void range_text(const struct config_key *key, const char *noun, char text[512]) {
    if (key->low == INT64_MIN)
        snprintf(text, 512, "%s", noun);
    else if (key->high == INT64_MAX)
        snprintf(text, 512, "%s, at least %lld", noun, (long long)key->low);
    else
        snprintf(text, 512, "%s from %lld to %lld", noun, (long long)key->low,
                 (long long)key->high);
}

static void real_range_text(const struct config_key *key, const char *noun, char text[512]) {
    bool above_0 = key->real_low > 0 && key->real_low < 1e-300;
    bool below_1 = key->real_high < 1 && key->real_high > 0.9999999;
    snprintf(text, 512, "%s %s %g, %s %g", noun, above_0 ? "above" : "at least",
             above_0 ? 0 : key->real_low, below_1 ? "below" : "at most",
             below_1 ? 1 : key->real_high);
}

static void choices_text(const struct config_choice *choices, char text[512]) {
    size_t used = 0;
    text[0] = '\0';
    for (const struct config_choice *c = choices; c->text != NULL && used < 512; c++)
        used +=
            (size_t)snprintf(text + used, 512 - used, "%s%s", c == choices ? "" : ", ", c->text);
}

void config_allowed_text(const struct config_key *key, char text[512]) {
    const char *word = list_word(key);
    char noun[128];
    snprintf(noun, sizeof noun, "%.16s%s%snumbers with commas between", word != NULL ? word : "",
             word != NULL ? ", or " : "", key->type == TYPE_INTS ? "whole " : "");
    switch (key->type) {
    case TYPE_INT:
        range_text(key, key->automatic ? "auto, or a whole number" : "a whole number", text);
        break;
    case TYPE_REAL:
        real_range_text(key, "a number", text);
        break;
    case TYPE_INTS:
        range_text(key, noun, text);
        break;
    case TYPE_REALS:
        real_range_text(key, noun, text);
        break;
    case TYPE_BOOL:
        snprintf(text, 512, "true or false (yes no on off 1 0)");
        break;
    case TYPE_ENUM:
        choices_text(key->choices, text);
        break;
    case TYPE_PATH:
        snprintf(text, 512, "a path; ~/, $NAME and ${NAME} are expanded");
        break;
    default:
        snprintf(text, 512, "a text");
        break;
    }
}

static const char *out_of_range(const struct config_key *key, const char *what, char why[512]) {
    char allowed[512];
    config_allowed_text(key, allowed);
    snprintf(why, 512, "%.120s; allowed: %.380s", what, allowed);
    return why;
}

static const char *parse_int(const struct config_key *key, const char *text, int64_t *out,
                             char why[512]) {
    int64_t value;
    if (!parse_int64(text, &value)) {
        bool only_digits = *text != '\0' && text[strspn(text, "0123456789")] == '\0';
        return out_of_range(key, only_digits ? "too large" : "not a whole number", why);
    }
    if (value < key->low || value > key->high) return out_of_range(key, "out of range", why);
    *out = value;
    return NULL;
}

static const char *parse_number(const struct config_key *key, const char *text, double *out,
                                char why[512]) {
    double value;
    if (!parse_real(text, &value)) return out_of_range(key, "not a number, or too large", why);
    if (!(value >= key->real_low && value <= key->real_high))
        return out_of_range(key, "out of range", why);
    *out = value == 0 ? 0 : value; /* -0 is 0 */
    return NULL;
}

static const char *parse_choice(const struct config_key *key, const char *text, int *out,
                                char why[512]) {
    for (int i = 0; key->choices[i].text != NULL; i++) {
        if (strcmp(key->choices[i].text, text) != 0) continue;
        *out = i;
        return NULL;
    }
    const char *near = config_nearest_choice(key->choices, text);
    char what[128];
    snprintf(what, sizeof what, "no such choice%s%s%s", near != NULL ? "; did you mean " : "",
             near != NULL ? near : "", near != NULL ? "?" : "");
    return out_of_range(key, what, why);
}

/* One piece of a list; its fault is added to `why`. */
static void parse_element(const struct config_key *key, const char *piece, void *list,
                          char why[512]) {
    struct config_list *ints = list;
    struct config_real_list *reals = list;
    char element_why[512];
    const char *fault;
    if (key->type == TYPE_INTS) {
        ints->v = xrealloc(ints->v, (size_t)(ints->n + 1) * sizeof *ints->v);
        fault = parse_int(key, piece, &ints->v[ints->n], element_why);
    } else {
        reals->v = xrealloc(reals->v, (size_t)(reals->n + 1) * sizeof *reals->v);
        fault = parse_number(key, piece, &reals->v[reals->n], element_why);
    }
    ints->n++; /* both kinds of list begin with n */
    size_t used = strlen(why);
    if (fault != NULL)
        snprintf(why + used, 512 - used, "%sentry %lld, \"%.60s\": %s", used > 0 ? "; " : "",
                 (long long)ints->n, piece, fault);
}

/* Pieces between commas, blanks around a comma allowed; every wrong piece is named. */
static const char *parse_list(const struct config_key *key, const char *text, void *list,
                              char why[512]) {
    const char *word = list_word(key);
    if (word != NULL && strcmp(text, word) == 0) return NULL;
    char *copy = xstrdup(text), *next = copy;
    why[0] = '\0';
    for (int n_pieces = 0; next != NULL; n_pieces++) {
        char *piece = strsep(&next, ",");
        piece += strspn(piece, " \t");
        size_t n = strlen(piece);
        while (n > 0 && (piece[n - 1] == ' ' || piece[n - 1] == '\t')) piece[--n] = '\0';
        parse_element(key, piece, list, why);
    }
    free(copy);
    return why[0] != '\0' ? why : NULL;
}

/* A text must survive being written to a job file and read again. */
static const char *check_text(const struct config_key *key, const char *text) {
    if (strlen(text) + strlen(key->name) > 960) return "longer than a line of a job file can hold";
    if (!encoding_is_utf8(text, strlen(text))) return "not UTF-8";
    for (const char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) return "a control character";
    if (strchr(text, '"') != NULL && strchr(text, '\'') != NULL)
        return "a job file cannot hold both kinds of quotes in one value";
    return NULL;
}

static const char *parse_text(struct config *cfg, int k, const char *text, char **field,
                              char why[512]) {
    const struct config_key *key = &config_table[k];
    char *path;
    if (key->type != TYPE_PATH) {
        *field = xstrdup(text);
        return check_text(key, *field);
    }
    if (*text == '\0') return "the path is empty";
    const char *fault = config_expand_path(text, &path, why), *from = path;
    if (fault != NULL) return fault;
    while (strncmp(from, "./", 2) == 0) from += 2;
    *field = from[0] == '/' ? xstrdup(from) : xasprintf("%s/%s", cfg->source->folder, from);
    free(path);
    return check_text(key, *field);
}

/* Back to unset, giving back what the field holds. */
void config_set_unset(struct config *cfg, int k) {
    const struct config_key *key = &config_table[k];
    void *field = config_field(cfg, k);
    switch (key->type) {
    case TYPE_INT:
        *(int64_t *)field = key->low - 1;
        break;
    case TYPE_REAL:
        *(double *)field = 0;
        break;
    case TYPE_BOOL:
        *(bool *)field = false;
        break;
    case TYPE_ENUM:
        *(int *)field = CONFIG_UNSET;
        break;
    case TYPE_TEXT:
    case TYPE_PATH:
        free(*(char **)field);
        *(char **)field = NULL;
        break;
    case TYPE_INTS:
    case TYPE_REALS:
        free(((struct config_list *)field)->v);
        *(struct config_list *)field = (struct config_list){0};
        break;
    case TYPE_LATER:
        break;
    }
}

bool config_is_unset(const struct config *cfg, int k) {
    const struct config_key *key = &config_table[k];
    const void *field = config_field(cfg, k);
    switch (key->type) {
    case TYPE_INT:
        return *(const int64_t *)field == key->low - 1;
    case TYPE_ENUM:
        return *(const int *)field == CONFIG_UNSET;
    case TYPE_TEXT:
    case TYPE_PATH:
        return *(char *const *)field == NULL;
    case TYPE_INTS:
    case TYPE_REALS:
        return list_word(key) == NULL && ((const struct config_list *)field)->n == 0;
    case TYPE_REAL: /* 0 is unset only where nothing said otherwise */
        return cfg->source->place[k].origin == ORIGIN_DEFAULT &&
               config_literal_default(key) == NULL;
    default:
        return key->type == TYPE_LATER;
    }
}

const char *config_parse_value(struct config *cfg, int k, const char *text, char why[512]) {
    const struct config_key *key = &config_table[k];
    void *field = config_field(cfg, k);
    config_set_unset(cfg, k);
    const char *fault = NULL;
    switch (key->type) {
    case TYPE_INT:
        if (key->automatic && strcmp(text, "auto") == 0)
            *(int64_t *)field = CONFIG_AUTO;
        else
            fault = parse_int(key, text, field, why);
        break;
    case TYPE_REAL:
        fault = parse_number(key, text, field, why);
        break;
    case TYPE_BOOL:
        if (!parse_bool(text, field)) fault = out_of_range(key, "not a yes or no", why);
        break;
    case TYPE_ENUM:
        fault = parse_choice(key, text, field, why);
        break;
    case TYPE_TEXT:
    case TYPE_PATH:
        fault = parse_text(cfg, k, text, field, why);
        break;
    case TYPE_INTS:
    case TYPE_REALS:
        fault = parse_list(key, text, field, why);
        break;
    case TYPE_LATER:
        fault = "known, not in this version";
        break;
    }
    if (fault != NULL) config_set_unset(cfg, k);
    return fault;
}

void config_set_default(struct config *cfg, int k) {
    const char *text = config_literal_default(&config_table[k]);
    char why[512];
    config_set_unset(cfg, k);
    if (text == NULL) return;
    const char *fault = config_parse_value(cfg, k, text, why);
    CHECK(fault == NULL, "default of [%s] %s: %s", config_table[k].section, config_table[k].name,
          fault);
}

static char *list_text(const struct config_key *key, const struct config_list *list, int64_t most) {
    if (list->n == 0) return xstrdup(list_word(key));
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory for a list of %lld numbers", (long long)list->n);
    for (int64_t i = 0; i < list->n && i < most; i++) {
        if (i > 0) fputc(',', to);
        if (key->type == TYPE_INTS)
            fprintf(to, "%lld", (long long)list->v[i]);
        else
            fprintf(to, "%.17g", ((const struct config_real_list *)(const void *)list)->v[i]);
    }
    fclose(to);
    return text;
}

static char *value_text(const struct config *cfg, int k, int64_t most) {
    const struct config_key *key = &config_table[k];
    const void *field = config_field(cfg, k);
    if (config_is_unset(cfg, k)) return NULL;
    switch (key->type) {
    case TYPE_INT:
        if (key->automatic && *(const int64_t *)field == CONFIG_AUTO) return xstrdup("auto");
        return xasprintf("%lld", (long long)*(const int64_t *)field);
    case TYPE_REAL:
        return xasprintf("%.17g", *(const double *)field);
    case TYPE_BOOL:
        return xstrdup(*(const bool *)field ? "true" : "false");
    case TYPE_ENUM:
        return xstrdup(key->choices[*(const int *)field].text);
    case TYPE_INTS:
    case TYPE_REALS:
        return list_text(key, field, most);
    default:
        return xstrdup(*(char *const *)field);
    }
}

char *config_value_text(const struct config *cfg, int k) {
    return value_text(cfg, k, INT64_MAX);
}

char *config_value_shown(const struct config *cfg, int k) {
    char *text = value_text(cfg, k, CONFIG_SHOWN_MAX / 2 + 1);
    if (text == NULL || strlen(text) <= CONFIG_SHOWN_MAX) return text;
    char *cut = xasprintf("%.*s...", CONFIG_SHOWN_MAX, text);
    free(text);
    return cut;
}
