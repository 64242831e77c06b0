/* From a job file and arguments to a struct config. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "config_impl.h"

static struct config *create(const char *path, const char *in) {
    struct config *cfg = xcalloc(1, sizeof *cfg);
    struct config_source *s = xcalloc(1, sizeof *s);
    cfg->source = s;
    s->path = xstrdup(path);
    s->place = xcalloc((size_t)config_n_keys, sizeof *s->place);
    char *real = realpath(in != NULL ? in : path, NULL);
    s->folder = real != NULL ? real : xstrdup(".");
    char *slash = strrchr(s->folder, '/');
    if (slash != NULL && in == NULL) *slash = '\0';
    for (int k = 0; k < config_n_keys; k++) config_set_default(cfg, k);
    return cfg;
}

void config_free(struct config *cfg) {
    if (cfg == NULL) return;
    for (int k = 0; k < config_n_keys; k++) {
        config_set_unset(cfg, k);
        free(cfg->source->place[k].argument);
    }
    free(cfg->source->place);
    free(cfg->source->path);
    free(cfg->source->folder);
    free(cfg->source);
    free(cfg);
}

/* The literal default in the form in which config_value_text gives a value. */
static bool equals_default(struct config *cfg, int k) {
    if (config_literal_default(&config_table[k]) == NULL) return false;
    char *now = config_value_text(cfg, k), why[512];
    config_set_default(cfg, k);
    char *initial = config_value_text(cfg, k);
    bool same = strcmp(now, initial) == 0;
    config_parse_value(cfg, k, now, why);
    free(now);
    free(initial);
    return same;
}

/* Why this version refuses the value a row holds now, or NULL. */
static const char *missing_reason(const struct config *cfg, int k) {
    const struct config_key *key = &config_table[k];
    if (key->type == TYPE_ENUM && key->missing == NULL)
        return key->choices[*(const int *)config_field(cfg, k)].missing;
    return cfg->source->place[k].at_default ? NULL : key->missing;
}

static void complain(struct config *cfg, int k, const char *value, const char *why) {
    const struct config_key *key = &config_table[k];
    char *place = config_place_text(cfg, k);
    cfg->source->place[k].bad = true;
    error_raise(EXIT_USAGE, "%s: [%s] %s = \"%.200s\": %s", place, key->section, key->name, value,
                why);
    free(place);
}

static void set_value(struct config *cfg, int k, const char *value) {
    char why[512];
    const char *fault = config_parse_value(cfg, k, value, why);
    if (fault == NULL) {
        cfg->source->place[k].at_default = equals_default(cfg, k);
        const char *reason = missing_reason(cfg, k);
        if (reason != NULL)
            snprintf(why, sizeof why, "known, not in this version: %s", reason), fault = why;
    }
    if (fault != NULL) complain(cfg, k, value, fault);
}

static void apply_entry(struct config *cfg, const struct config_entry *e) {
    int k = config_find(e->section, e->key);
    if (k < 0) {
        char *place = xasprintf("%s:%d", cfg->source->path, e->line);
        config_raise_unknown(place, e->section, e->key);
        free(place);
        return;
    }
    cfg->source->place[k] =
        (struct config_place){.origin = ORIGIN_FILE, .line = e->line, .bad = e->value == NULL};
    if (e->value != NULL) set_value(cfg, k, e->value);
}

/* "section:key=value" into three texts of a copy; false if it has another form. */
static bool split_argument(char *copy, char **section, char **key, char **value) {
    char *colon = strchr(copy, ':');
    char *equals = colon != NULL ? strchr(colon, '=') : NULL;
    if (equals == NULL || colon == copy || equals == colon + 1) return false;
    *colon = *equals = '\0';
    *section = copy, *key = colon + 1, *value = equals + 1;
    return true;
}

static void apply_known(struct config *cfg, int k, const char *argument, const char *value) {
    struct config_place *p = &cfg->source->place[k];
    if (p->origin == ORIGIN_ARGUMENT) {
        char *place = config_argument_text(argument);
        error_raise(EXIT_USAGE, "%s: [%s] %s is given twice; the first is \"%.300s\"", place,
                    config_table[k].section, config_table[k].name, p->argument);
        free(place);
        return;
    }
    *p = (struct config_place){.origin = ORIGIN_ARGUMENT, .argument = xstrdup(argument)};
    if (*value == '\0' && config_table[k].type != TYPE_TEXT)
        complain(cfg, k, value, "the value is empty");
    else
        set_value(cfg, k, value);
}

static void apply_argument(struct config *cfg, const char *argument) {
    char *copy = xstrdup(argument), *section, *key, *value;
    char *place = config_argument_text(argument);
    if (!split_argument(copy, &section, &key, &value))
        error_raise(EXIT_USAGE, "%s: an override is written section:key=value", place);
    else if (!config_section_known(section))
        config_raise_unknown_section(place, section);
    else if (config_find(section, key) < 0)
        config_raise_unknown(place, section, key);
    else
        apply_known(cfg, config_find(section, key), argument, value);
    free(place);
    free(copy);
}

/* Keys that exclude each other: one that an argument gives takes the place of those of the file, which
 * no argument could take away. */
static void let_arguments_win(struct config *cfg) {
    static const struct {
        int group;
        const char *section, *key;
    } one_of[] = {{0, "optimizer", "lr_warmup_fraction"},    {0, "optimizer", "lr_warmup_iters"},
                  {0, "optimizer", "lr_warmup_samples"},     {1, "training", "train_iters"},
                  {1, "training", "train_samples"},          {2, "checkpoint", "load"},
                  {2, "checkpoint", "pretrained_checkpoint"}};
    const size_t n = sizeof one_of / sizeof *one_of;
    for (size_t i = 0; i < n; i++) {
        int winner = config_find(one_of[i].section, one_of[i].key);
        if (cfg->source->place[winner].origin != ORIGIN_ARGUMENT) continue;
        for (size_t j = 0; j < n; j++) {
            int k = config_find(one_of[j].section, one_of[j].key);
            if (one_of[j].group != one_of[i].group || cfg->source->place[k].origin != ORIGIN_FILE)
                continue;
            char *place = config_place_text(cfg, k);
            log_warn("argument \"%s\" takes the place of %s: [%s] %s",
                     cfg->source->place[winner].argument, place, one_of[j].section, one_of[j].key);
            free(place);
            config_set_unset(cfg, k);
            config_set_default(cfg, k);
            cfg->source->place[k] = (struct config_place){.origin = ORIGIN_DEFAULT};
        }
    }
}

static int read_all(struct config *cfg, const char *path, int n_overrides, char **overrides) {
    struct config_entries entries;
    int rc = config_scan(path, cfg->source->path, &entries);
    if (rc != 0 && rc != EXIT_USAGE) return rc;
    memcpy(cfg->source->sha256, entries.sha256, sizeof entries.sha256);
    for (int i = 0; i < entries.n; i++) apply_entry(cfg, &entries.e[i]);
    config_entries_free(&entries);
    for (int i = 0; i < n_overrides; i++) apply_argument(cfg, overrides[i]);
    let_arguments_win(cfg);
    config_derive(cfg);
    config_check_rules(cfg);
    return 0;
}

static int load(struct config *cfg, const char *path, int n_overrides, char **overrides,
                struct config **out) {
    *out = NULL;
    int n_before = error_count();
    int rc = read_all(cfg, path, n_overrides, overrides);
    if (rc == 0 && error_count() > n_before) rc = EXIT_USAGE;
    if (rc == 0)
        *out = cfg;
    else
        config_free(cfg);
    return rc;
}

int config_load(const char *path, int n_overrides, char **overrides, struct config **out) {
    return load(create(path, NULL), path, n_overrides, overrides, out);
}

int config_load_named(const char *path, const char *name, const char *folder, struct config **out) {
    return load(create(name, folder != NULL ? folder : "."), path, 0, NULL, out);
}
