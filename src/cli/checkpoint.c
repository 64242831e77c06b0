/* strata checkpoint ls | show | verify | diff | reshard | prune. */
#include <stdlib.h>
#include <string.h>

#include "checkpoint_tools.h"
#include "cli_impl.h"

#define OPTIONS_MAX 8
/* What a sub-command takes: up to n_words plain words and these options. An option with a value has
 * `text` or `number`, one without has `flag`. */
struct option {
    const char *name;
    bool *flag;
    const char **text;
    int64_t *number;
};
struct arguments {
    const char *command, *usage;
    int min_words, max_words, n_words;
    const char *word[2];
    struct option option[OPTIONS_MAX];
};

static int refuse(const struct arguments *a, const char *fmt, const char *value) {
    char text[256];
    snprintf(text, sizeof text, fmt, value);
    return error_raise(EXIT_USAGE, "strata checkpoint %s: %s; usage: strata checkpoint %s %s",
                       a->command, text, a->command, a->usage);
}

static int take_option(const struct arguments *a, int argc, char **argv, int *i) {
    for (const struct option *o = a->option; o->name; o++) {
        if (strcmp(argv[*i], o->name) != 0) continue;
        if (o->flag) {
            *o->flag = true;
            return 0;
        }
        const char *value = ++*i < argc ? argv[*i] : NULL;
        if (!value) return refuse(a, "%s needs a value", o->name);
        if (o->text) *o->text = value;
        if (o->number && (!parse_int64(value, o->number) || *o->number < 0))
            return refuse(a, "\"%s\" is not a whole number from 0 on", value);
        return 0;
    }
    return refuse(a, "there is no option %s", argv[*i]);
}

static int read_arguments(struct arguments *a, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0)
            TRY(take_option(a, argc, argv, &i));
        else if (a->n_words == a->max_words)
            return refuse(a, "\"%s\" is one word too many", argv[i]);
        else
            a->word[a->n_words++] = argv[i];
    }
    return a->n_words < a->min_words
               ? refuse(a, "%s is missing", a->n_words ? "a word" : "a folder")
               : 0;
}

/* ---- the commands -------------------------------------------------------------------------------- */
static int cli_ls(int argc, char **argv) {
    bool quick = false;
    struct arguments a = {.command = "ls",
                          .usage = "[DIR] [--quick]",
                          .max_words = 1,
                          .option = {{.name = "--quick", .flag = &quick}}};
    TRY(read_arguments(&a, argc, argv));
    return ckpt_ls(a.n_words ? a.word[0] : ".", quick, stdout);
}

static int cli_show(int argc, char **argv) {
    bool quick = false, config = false;
    struct arguments a = {
        .command = "show",
        .usage = "DIR [NAME] [--config] [--quick]",
        .min_words = 1,
        .max_words = 2,
        .option = {{.name = "--quick", .flag = &quick}, {.name = "--config", .flag = &config}}};
    TRY(read_arguments(&a, argc, argv));
    if (config && a.n_words > 1) return refuse(&a, "%s takes no name", "--config");
    if (config) return ckpt_show_config(a.word[0], stdout);
    return ckpt_show(a.word[0], a.n_words > 1 ? a.word[1] : NULL, quick, stdout);
}

static int cli_verify(int argc, char **argv) {
    bool strict = false, clear = false;
    struct arguments a = {
        .command = "verify",
        .usage = "DIR [--strict] [--clear]",
        .min_words = 1,
        .max_words = 1,
        .option = {{.name = "--strict", .flag = &strict}, {.name = "--clear", .flag = &clear}}};
    TRY(read_arguments(&a, argc, argv));
    return ckpt_verify(a.word[0], strict, clear, stdout);
}

static int cli_diff(int argc, char **argv) {
    bool equal = false;
    struct arguments a = {.command = "diff", .usage = "A B", .min_words = 2, .max_words = 2};
    TRY(read_arguments(&a, argc, argv));
    TRY(ckpt_diff(a.word[0], a.word[1], stdout, &equal));
    return equal ? 0 : 1;
}

static int cli_reshard(int argc, char **argv) {
    struct train_reshard r = {0};
    struct arguments a = {.command = "reshard",
                          .usage = "SRC DST --tp N --pp N --dp N [--split-spec A,B,..] [--sharded]",
                          .min_words = 2,
                          .max_words = 2,
                          .option = {{.name = "--tp", .number = &r.tp},
                                     {.name = "--pp", .number = &r.pp},
                                     {.name = "--dp", .number = &r.dp},
                                     {.name = "--split-spec", .text = &r.split_spec},
                                     {.name = "--sharded", .flag = &r.sharded}}};
    TRY(read_arguments(&a, argc, argv));
    r.where = a.word[0];
    r.save = a.word[1];
    if (r.tp < 1 || r.pp < 1 || r.dp < 1)
        return refuse(&a, "%s are needed, each at least 1", "--tp, --pp and --dp");
    if (r.tp > 65536 || r.pp > 65536 || r.dp > 65536 || r.tp * r.pp * r.dp > 100000)
        return refuse(&a, "%s must not give more than 100000 ranks", "--tp, --pp and --dp");
    return train_reshard(&r, stdout);
}

static int cli_prune(int argc, char **argv) {
    int64_t keep = -1, every = 0;
    bool dry_run = false;
    struct arguments a = {.command = "prune",
                          .usage = "DIR --keep K [--every N] [--dry-run]",
                          .min_words = 1,
                          .max_words = 1,
                          .option = {{.name = "--keep", .number = &keep},
                                     {.name = "--every", .number = &every},
                                     {.name = "--dry-run", .flag = &dry_run}}};
    TRY(read_arguments(&a, argc, argv));
    if (keep < 0) return refuse(&a, "%s is missing", "--keep");
    return ckpt_prune(a.word[0], keep, every, dry_run, stdout);
}

int cli_checkpoint(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } command[] = {{"ls", cli_ls},     {"show", cli_show},       {"verify", cli_verify},
                   {"diff", cli_diff}, {"reshard", cli_reshard}, {"prune", cli_prune}};
    for (size_t i = 0; argc > 0 && i < sizeof command / sizeof command[0]; i++) {
        if (strcmp(argv[0], command[i].name) != 0) continue;
        int rc = command[i].run(argc - 1, argv + 1);
        if (fflush(stdout) != 0 && rc <= 1)
            rc = error_raise(EXIT_IO, "standard output cannot be written");
        return rc;
    }
    return error_raise(EXIT_USAGE,
                       "strata checkpoint takes ls, show, verify, diff, reshard or prune, not "
                       "\"%s\"",
                       argc > 0 ? argv[0] : "");
}
