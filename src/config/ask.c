/* What is asked of a loaded job file, key by key: where a value comes from, whether it is sound, and
 * the sentence that refuses it. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"

char *config_argument_text(const char *argument) {
    return xasprintf("argument \"%.*s%s\"", CONFIG_SHOWN_MAX, argument,
                     strlen(argument) > CONFIG_SHOWN_MAX ? "..." : "");
}

char *config_place_text(const struct config *cfg, int k) {
    const struct config_source *s = cfg->source;
    const struct config_place *p = &s->place[k];
    if (p->origin == ORIGIN_ARGUMENT) return config_argument_text(p->argument);
    if (p->origin == ORIGIN_FILE) return xasprintf("%s:%d", s->path, p->line);
    return xstrdup(s->path);
}

const char *config_sha256(const struct config *cfg) {
    return cfg->source->sha256;
}

/* Appends a blank and the word to *line, in quotes if a shell would change it. */
static void append_word(char **line, const char *word) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                                "_./:=,+-@%";
    char *longer;
    if (word[0] != '\0' && strspn(word, plain) == strlen(word)) {
        longer = xasprintf("%s %s", *line, word);
    } else { /* a quote inside ends the quotes, stands for itself, and begins them again */
        char *quoted = xmalloc(4 * strlen(word) + 1), *to = quoted;
        for (; *word != '\0'; word++) {
            size_t n = *word == '\'' ? 4 : 1;
            memcpy(to, n == 4 ? "'\\''" : word, n);
            to += n;
        }
        *to = '\0';
        longer = xasprintf("%s '%s'", *line, quoted);
        free(quoted);
    }
    free(*line);
    *line = longer;
}

char *config_command(const struct config *cfg, const char *command, const char *options) {
    char *line = xasprintf("strata %s", command);
    append_word(&line, cfg->source->path);
    if (options[0] != '\0') append_word(&line, options);
    for (int k = 0; k < config_n_keys; k++)
        if (cfg->source->place[k].origin == ORIGIN_ARGUMENT)
            append_word(&line, cfg->source->place[k].argument);
    return line;
}

int config_raise(const struct config *cfg, const void *field, const char *fmt, ...) {
    int k = config_index_of(cfg, field);
    if (error_full()) return error_raise(EXIT_USAGE, "[%s]", config_table[k].section);
    char sentence[2048], *place = config_place_text(cfg, k), *value = config_value_shown(cfg, k);
    va_list args;
    va_start(args, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, args);
    va_end(args);
    const struct config_key *key = &config_table[k];
    bool given = cfg->source->place[k].origin >= ORIGIN_FILE;
    error_raise(EXIT_USAGE, "%s: [%s] %s = %s%s: %s", place, key->section, key->name,
                value != NULL ? value : "(unset)", value != NULL && !given ? " (default)" : "",
                sentence);
    free(place);
    free(value);
    return EXIT_USAGE;
}

bool config_sound(const struct config *cfg, ...) {
    va_list fields;
    bool sound = true;
    va_start(fields, cfg);
    for (const void *f; (f = va_arg(fields, const void *)) != NULL;)
        sound = sound && !cfg->source->place[config_index_of(cfg, f)].bad;
    va_end(fields);
    return sound;
}

bool config_given(const struct config *cfg, const void *field) {
    const struct config_place *p = &cfg->source->place[config_index_of(cfg, field)];
    return p->origin >= ORIGIN_FILE && !p->at_default;
}

const char *config_choice(const struct config *cfg, const int *field) {
    const struct config_key *key = &config_table[config_index_of(cfg, field)];
    CHECK(key->type == TYPE_ENUM, "[%s] %s is no enumeration", key->section, key->name);
    return *field == CONFIG_UNSET ? "" : key->choices[*field].text;
}

void config_each(const struct config *cfg,
                 void (*each)(void *arg, const char *section, const char *key, const char *value,
                              bool defaulted),
                 void *arg) {
    for (int k = 0; k < config_n_keys; k++) {
        if (config_table[k].type == TYPE_LATER) continue;
        char *value = config_value_text(cfg, k);
        each(arg, config_table[k].section, config_table[k].name, value,
             !config_given(cfg, config_field(cfg, k)));
        free(value);
    }
}
