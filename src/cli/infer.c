/* strata eval, strata generate. */
#include <stdlib.h>
#include <string.h>

#include "cli_impl.h"

static int load_job(int argc, char **argv, const char *command, struct config **cfg) {
    TRY(cli_load_job(argc, argv, command, cfg));
    TRY(config_check_world(*cfg, comm_world_size()));
    return config_check_trainable(*cfg);
}

/* JOB.ini [CHECKPOINT] [section:key=value ...] */
static int eval(int argc, char **argv) {
    const char *checkpoint = NULL;
    struct config *cfg = NULL;
    if (argc > 1 && strchr(argv[1], '=') == NULL) {
        checkpoint = argv[1];
        argv[1] = argv[0];
        argc--, argv++;
    }
    TRY(load_job(argc, argv, "eval", &cfg));
    TRY(train_evaluate(cfg, checkpoint));
    config_free(cfg);
    return 0;
}

int cli_eval(int argc, char **argv) {
    return cli_under_mpi(eval, argc, argv);
}

/* ---- strata generate --------------------------------------------------------------------------- */
struct options {
    struct generate_request ask;
    const char **image;
    char **kept; /* the job file and its overrides */
    int n_kept;
    int64_t max_new_tokens; /* 0, -1: not given */
    double temperature;
    bool seeded;
};

static int whole(const char *option, const char *text, int64_t lowest, int64_t *out) {
    if (parse_int64(text, out) && *out >= lowest) return 0;
    return error_raise(EXIT_USAGE,
                       "strata generate: %s takes a whole number from %lld on, not \"%s\"", option,
                       (long long)lowest, text);
}

static int real(const char *option, const char *text, double lowest, double highest, double *out) {
    if (parse_real(text, out) && *out >= lowest && *out <= highest) return 0;
    return error_raise(EXIT_USAGE, "strata generate: %s takes a number from %g to %g, not \"%s\"",
                       option, lowest, highest, text);
}

static int read_option(struct options *o, const char *name, const char *value) {
    static const char known[] = "--image, --prompt, --checkpoint, --max-new-tokens, --temperature, "
                                "--top-p, --seed";
    static const char *const names[] = {
        "--image",       "--prompt", "--checkpoint", "--max-new-tokens",
        "--temperature", "--top-p",  "--seed"};
    int which = -1, n = (int)(sizeof names / sizeof *names);
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) which = i;
    if (which < 0)
        return error_raise(EXIT_USAGE, "strata generate knows %s, not \"%s\"", known, name);
    if (value == NULL) return error_raise(EXIT_USAGE, "strata generate: %s needs a value", name);
    switch (which) {
    case 0:
        o->image[o->ask.n_images++] = value;
        return 0;
    case 1:
        o->ask.prompt = value;
        return 0;
    case 2:
        o->ask.checkpoint = value;
        return 0;
    case 3:
        return whole(name, value, 1, &o->max_new_tokens);
    case 4:
        return real(name, value, 0, 1e3, &o->temperature);
    case 5:
        return real(name, value, 1e-6, 1, &o->ask.top_p);
    default:
        o->seeded = true;
        return whole(name, value, 0, &o->ask.seed);
    }
}

static int read_options(int argc, char **argv, struct options *o) {
    *o = (struct options){.ask.top_p = 1, .temperature = -1};
    o->image = xcalloc((size_t)argc + 1, sizeof *o->image);
    o->kept = xcalloc((size_t)argc + 1, sizeof *o->kept);
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "--", 2) == 0) {
            TRY(read_option(o, argv[i], i + 1 < argc ? argv[i + 1] : NULL));
            i++;
        } else {
            o->kept[o->n_kept++] = argv[i];
        }
    }
    o->ask.image = o->image;
    if (o->ask.n_images > 0 && o->ask.prompt == NULL)
        return error_raise(EXIT_USAGE, "strata generate: --image needs --prompt");
    return 0;
}

static int generate(int argc, char **argv) {
    struct options o;
    struct config *cfg = NULL;
    TRY(read_options(argc, argv, &o));
    TRY(load_job(o.n_kept, o.kept, "generate", &cfg));
    if (o.max_new_tokens > 0) cfg->generate.max_new_tokens = o.max_new_tokens;
    if (o.temperature >= 0) cfg->generate.temperature = o.temperature;
    if (!o.seeded) o.ask.seed = cfg->training.seed;
    TRY(train_generate(cfg, &o.ask));
    config_free(cfg);
    free(o.image);
    free(o.kept);
    return 0;
}

int cli_generate(int argc, char **argv) {
    return cli_under_mpi(generate, argc, argv);
}
