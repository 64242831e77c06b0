/* The table as text: list, template, manual. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "config_impl.h"

static const char *type_name(enum config_type type) {
    static const char *const name[] = {
        [TYPE_INT] = "int",     [TYPE_REAL] = "real",   [TYPE_BOOL] = "bool",
        [TYPE_ENUM] = "choice", [TYPE_TEXT] = "text",   [TYPE_PATH] = "path",
        [TYPE_INTS] = "ints",   [TYPE_REALS] = "reals", [TYPE_LATER] = "later"};
    return name[type];
}

/* The default's column in words. */
static const char *default_text(const struct config_key *key) {
    if (key->initial[0] == '?') return "required";
    if (key->initial[0] == '=') return key->initial + 1;
    if (strcmp(key->initial, "-") == 0) return "unset";
    return key->initial[0] == '\0' ? "\"\"" : key->initial;
}

static int written(FILE *to) {
    if (fflush(to) == 0 && !ferror(to)) return 0;
    return error_raise(EXIT_IO, "the keys cannot be written");
}

static const char *state_text(const struct config_key *key) {
    if (key->type == TYPE_LATER) return "known, not in this version";
    return key->missing != NULL ? "default only" : "";
}

static void print_key_line(const struct config_key *key, FILE *to) {
    char allowed[512];
    config_allowed_text(key, allowed);
    fprintf(to, "  %-34s P%d  ", key->name, key->priority);
    if (key->type == TYPE_LATER)
        fprintf(to, "(%s) %s\n", state_text(key), key->meaning);
    else
        fprintf(to, "%s; default %s%s%s. %s\n", allowed, default_text(key),
                key->missing != NULL ? "; in this version only that: " : "",
                key->missing != NULL ? key->missing : "", key->meaning);
}

int config_print_keys(FILE *to) {
    for (const struct config_section *s = config_sections; s->name != NULL; s++) {
        fprintf(to, "[%s]  %s\n", s->name, s->meaning);
        for (int k = 0; k < config_n_keys; k++)
            if (strcmp(config_table[k].section, s->name) == 0) print_key_line(&config_table[k], to);
    }
    return written(to);
}

/* What the template sets beside the required keys, so that it loads: Mistral-7B on captions. */
static const struct {
    const char *section, *key, *value;
} example[] = {
    {"language", "ffn_hidden_size", "14336"},
    {"language", "num_query_groups", "8"},
    {"language", "normalization", "RMSNorm"},
    {"language", "swiglu", "true"},
    {"language", "add_bias_linear", "false"},
    {"language", "position_embedding_type", "rope"},
    {"language", "untie_embeddings_and_output_weights", "true"},
    {"language", "decoder_seq_length", "2048"},
    {"training", "train_iters", "1000"},
    {"data", "data_path", "captions"},
    {"data", "tokenizer_type", "Llama2Tokenizer"},
    {"data", "tokenizer_model", "tokenizer.model"},
};

static const char *example_value(const struct config_key *key) {
    for (size_t i = 0; i < sizeof example / sizeof *example; i++)
        if (strcmp(example[i].section, key->section) == 0 && strcmp(example[i].key, key->name) == 0)
            return example[i].value;
    return key->initial[0] == '?' ? key->initial + 1 : NULL;
}

static void print_template_key(const struct config_key *key, FILE *to) {
    const char *value = example_value(key);
    char allowed[512];
    config_allowed_text(key, allowed);
    if (key->type == TYPE_LATER || key->missing != NULL) return;
    fprintf(to, "\n; %s\n; (%s; %s)\n", key->meaning, allowed, default_text(key));
    if (value != NULL)
        fprintf(to, "%s = %s\n", key->name, value);
    else if (config_literal_default(key) != NULL)
        fprintf(to, "; %s = %s\n", key->name, default_text(key));
    else
        fprintf(to, "; %s =\n", key->name);
}

int config_print_template(FILE *to) {
    fprintf(
        to,
        "; A job file of strata %s. Lines that begin with ; are comments: what they show is\n"
        "; what holds without them. Paths are relative to this file; ~/ and $NAME are expanded.\n",
        STRATA_VERSION);
    for (const struct config_section *s = config_sections; s->name != NULL; s++) {
        fprintf(to, "\n; ---- %s\n[%s]\n", s->meaning, s->name);
        for (int k = 0; k < config_n_keys; k++)
            if (strcmp(config_table[k].section, s->name) == 0)
                print_template_key(&config_table[k], to);
    }
    return written(to);
}

static const char *const manual_head =
    "# The job file\n"
    "\n"
    "Made from the table in `include/config_keys.def` by `strata keys --markdown`; do not edit.\n"
    "\n"
    "`[section]` lines, `key = value` lines, comments that begin with `;` or `#`. Sections and "
    "keys\n"
    "are compared without case. A value that holds `;` or `#` is quoted; a comment behind a value\n"
    "has blanks around its `;`. Whole numbers are decimal (`010` is ten), reals may have an\n"
    "exponent, lists have commas. Whatever is doubtful (unknown or repeated keys, text behind a\n"
    "number, a byte-order mark, carriage returns, lines over 1022 bytes) is refused with file and\n"
    "line, all faults in one go, exit code 64.\n"
    "\n"
    "Paths are relative to the job file. As in a shell, `~/` at the beginning is the home folder, "
    "and\n"
    "`$NAME` and `${NAME}` are environment variables; one that is not set, or is empty, is "
    "refused.\n"
    "`$$` is a dollar sign, `./~` a file of that name. Each rank expands them for itself. "
    "`used.ini`\n"
    "holds the expanded paths. Arguments of commands that are no keys are left to the shell.\n"
    "\n"
    "Arguments `section:key=value` behind the job file win over it, under the same checks.\n"
    "`used.ini` in the run's folder holds every key as it was used and reproduces the run.\n"
    "\n"
    "P0 keys matter on the first day, P1 keys to a serious run, P2 names are kept for later. A "
    "key\n"
    "marked *default only* belongs to something that this version does not have yet.\n"
    "\n"
    "*On resume* says what another value does than the one in the checkpoint: *free* and "
    "*allowed*\n"
    "are listed in the log, *by argument* is allowed when the key is given on the command line,\n"
    "*refused* ends the job with exit code 78, all such keys listed.\n";

/* Table cells: a bar would end the cell. */
static void print_cell(const char *text, FILE *to) {
    for (; *text != '\0'; text++) {
        if (*text == '|') fputc('\\', to);
        fputc(*text, to);
    }
    fputs(" | ", to);
}

static void print_choices_missing(const struct config_key *key, FILE *to) {
    if (key->type != TYPE_ENUM || key->missing != NULL) return;
    bool any = false;
    for (const struct config_choice *c = key->choices; c->text != NULL; c++) {
        if (c->missing == NULL) continue;
        fprintf(to, "%s%s (%s)", any ? ", " : "; not in this version: ", c->text, c->missing);
        any = true;
    }
}

static void print_row(const struct config_key *key, FILE *to) {
    char allowed[512];
    config_allowed_text(key, allowed);
    fprintf(to, "| `%s` | %s | ", key->name, type_name(key->type));
    print_cell(key->type == TYPE_LATER ? "" : default_text(key), to);
    print_cell(key->type == TYPE_LATER ? "" : allowed, to);
    fprintf(to, "P%d | %s | %s", key->priority,
            key->type == TYPE_LATER ? ""
                                    : config_change_text(config_change_of(key->section, key->name)),
            key->meaning);
    if (key->type == TYPE_LATER) fprintf(to, "; %s", state_text(key));
    if (key->missing != NULL) fprintf(to, "; *default only*: %s", key->missing);
    print_choices_missing(key, to);
    fputs(" |\n", to);
}

int config_print_markdown(FILE *to) {
    fputs(manual_head, to);
    for (const struct config_section *s = config_sections; s->name != NULL; s++) {
        fprintf(to,
                "\n## [%s]\n\n%s.\n\n| key | type | default | allowed | | on resume | meaning |\n"
                "|---|---|---|---|---|---|---|\n",
                s->name, s->meaning);
        for (int k = 0; k < config_n_keys; k++)
            if (strcmp(config_table[k].section, s->name) == 0) print_row(&config_table[k], to);
    }
    return written(to);
}

/* A value as iniparser will read it back: quoted where it could be cut, joined or trimmed. */
static void print_value(const char *value, FILE *to) {
    size_t n = strlen(value);
    bool plain = n > 0 && strpbrk(value, ";#\\\"'") == NULL && !isspace((unsigned char)value[0]) &&
                 !isspace((unsigned char)value[n - 1]);
    const char *quote = plain ? "" : strchr(value, '"') != NULL ? "'" : "\"";
    fprintf(to, "%s%s%s", quote, value, quote);
}

/* Written as numbers they would exclude train_samples, which they follow from. */
static bool follows_only(const struct config *cfg, int k) {
    return config_field(cfg, k) == (const void *)&cfg->training.train_iters &&
           config_given(cfg, &cfg->training.train_samples);
}

/* A value given as it would be anyway is marked like one that was not given, so that used.ini of
 * used.ini is the same file. */
static const char *origin_mark(const struct config *cfg, int k) {
    const struct config_place *p = &cfg->source->place[k];
    bool given = p->origin >= ORIGIN_FILE && !p->at_default;
    if (given) return p->origin == ORIGIN_ARGUMENT ? " ; argument" : "";
    return config_literal_default(&config_table[k]) != NULL && p->origin != ORIGIN_DERIVED
               ? " ; default"
               : " ; follows from other keys";
}

static void print_used_key(const struct config *cfg, int k, FILE *to) {
    char *value = config_value_text(cfg, k);
    if (value == NULL) {
        fprintf(to, "; %s is unset\n", config_table[k].name);
        return;
    }
    if (config_table[k].type == TYPE_PATH) { /* it is expanded, and must not be once more */
        char *path = value;
        value = config_escape_path(path);
        free(path);
    }
    fprintf(to, "%s%s = ", follows_only(cfg, k) ? "; " : "", config_table[k].name);
    print_value(value, to);
    fprintf(to, "%s\n", origin_mark(cfg, k));
    free(value);
}

int config_write_used(const struct config *cfg, FILE *to) {
    fprintf(to,
            "; Every key of this run as it was used, by strata %s. Given back as a job file it\n"
            "; reproduces the run.\n",
            STRATA_VERSION);
    for (const struct config_section *s = config_sections; s->name != NULL; s++) {
        fprintf(to, "\n[%s]\n", s->name);
        for (int k = 0; k < config_n_keys; k++)
            if (config_table[k].type != TYPE_LATER && strcmp(config_table[k].section, s->name) == 0)
                print_used_key(cfg, k, to);
    }
    return written(to);
}
