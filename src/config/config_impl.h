/* config's own view: the table of keys as rows, and where the values of a struct config came from. */
#ifndef STRATA_CONFIG_IMPL_H
#define STRATA_CONFIG_IMPL_H

#include "config.h"

enum config_type {
    TYPE_INT,
    TYPE_REAL,
    TYPE_BOOL,
    TYPE_ENUM,
    TYPE_TEXT,
    TYPE_PATH,
    TYPE_INTS,
    TYPE_REALS,
    TYPE_LATER
};
struct config_choice {
    const char *text;    /* NULL ends the list */
    const char *missing; /* NULL, or why not in this version */
};
struct config_key {
    const char *section, *name;
    enum config_type type;
    size_t offset;       /* in struct config */
    const char *initial; /* the default's column, see config_keys.def */
    int64_t low, high;   /* TYPE_INT, TYPE_INTS */
    bool automatic;      /* TYPE_INT: the word auto is legal, CONFIG_AUTO */
    double real_low, real_high;
    const struct config_choice *choices;
    int priority;
    const char *missing, *meaning;
};
extern const struct config_key config_table[];
extern const int config_n_keys;
struct config_section {
    const char *name, *meaning;
};
extern const struct config_section config_sections[]; /* ended by a NULL name */

/* A name that other trainers have and strata does not; NULL if there is nothing to say. */
const char *config_foreign_reason(const char *key);

/* Index into the table, any case; -1 if there is none. */
int config_find(const char *section, const char *key);
int config_index_of(const struct config *cfg, const void *field);
bool config_section_known(const char *section);
/* Records why [section] key is not legal: wrong section, foreign, or the nearest name. */
void config_raise_unknown(const char *place, const char *section, const char *key);
void config_raise_unknown_section(const char *place, const char *section);
const char *config_nearest_choice(const struct config_choice *choices, const char *text);

/* One line of the job file or one argument. */
struct config_entry {
    char *section, *key, *value;
    int line;
};
struct config_entries {
    int n, capacity;
    struct config_entry *e;
    char sha256[65]; /* of the file */
};
/* Reads and checks the raw file, which sentences call `name`; faults are recorded and what is readable is returned. */
int config_scan(const char *path, const char *name, struct config_entries *entries);
void config_entries_free(struct config_entries *entries);

enum config_origin { ORIGIN_DEFAULT, ORIGIN_DERIVED, ORIGIN_FILE, ORIGIN_ARGUMENT };
struct config_place {
    enum config_origin origin;
    bool bad;        /* already complained about: rules keep silent */
    bool at_default; /* given, but what it would be anyway */
    int line;        /* ORIGIN_FILE */
    char *argument;  /* ORIGIN_ARGUMENT */
};
struct config_source {
    char *path, *folder, sha256[65];
    struct config_place *place; /* [config_n_keys] */
};

/* Field of row k. */
static inline void *config_field(const struct config *cfg, int k) {
    return (char *)(uintptr_t)cfg + config_table[k].offset;
}
/* "run.ini:17", `argument "a:b=c"`, "run.ini"; free() it. */
char *config_place_text(const struct config *cfg, int k);
char *config_argument_text(const char *argument);

/* Text to field, with the row's range. NULL if well, else why not (static or in `why`). */
const char *config_parse_value(struct config *cfg, int k, const char *text, char why[512]);
/* A path with ~/, $NAME and ${NAME} in it as a shell would expand it; $$ is a dollar sign. NULL if well
 * (*out is allocated), else why not. */
const char *config_expand_path(const char *text, char **out, char why[512]);
char *config_escape_path(const char *path); /* such that it expands to `path` again; free() it */
void config_set_unset(struct config *cfg, int k);
bool config_is_unset(const struct config *cfg, int k);
void config_set_default(struct config *cfg, int k);
/* As it is written to used.ini but for quotes; NULL if unset; free() it. */
char *config_value_text(const struct config *cfg, int k);
/* The same for a sentence, which is about its beginning: what is longer than this is cut. */
#define CONFIG_SHOWN_MAX 300
char *config_value_shown(const struct config *cfg, int k);
void config_allowed_text(const struct config_key *key, char text[512]);
/* The literal default, or NULL where it is unset, required or follows from others. */
const char *config_literal_default(const struct config_key *key);

/* Fills what follows from other keys, complains about what is required and missing. */
void config_derive(struct config *cfg);
/* Sets a field that was not given; notes when a given one has this value anyway. */
void config_follow_int(struct config *cfg, int64_t *field, int64_t value);

/* True unless one of the fields (ended by NULL) was complained about already. */
bool config_sound(const struct config *cfg, ...) __attribute__((sentinel));
void config_check_split(struct config *cfg);
void config_check_shares(struct config *cfg); /* TP against every count of granules */

#endif
