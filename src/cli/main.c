/* build/strata: one program, a command each. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cli_impl.h"

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
};

static const struct command commands[] = {
    {"train", cli_train, "JOB.ini [section:key=value ...]   train, under mpirun or srun"},
    {"check", cli_check,
     "JOB.ini [--ranks N] [--ranks-per-node N] [--generate] [--json] [section:key=value ...]   "
     "errors, layout, memory, "
     "FLOPs"},
    {"eval", cli_eval,
     "JOB.ini [CHECKPOINT] [section:key=value ...]   loss of a checkpoint on valid_data_path"},
    {"generate", cli_generate,
     "JOB.ini --image FILE --prompt TEXT [--checkpoint DIR] [--max-new-tokens N] ...   an answer"},
    {"prepare", cli_prepare,
     "JOB.ini [--rebuild] [section:key=value ...]   build the data's index"},
    {"import", cli_import,
     "SRC DST [--dry-run ...]   weights of Hugging Face folders -> a checkpoint"},
    {"export", cli_export, "CHECKPOINT DST [--dtype ...]   a checkpoint -> a Hugging Face folder"},
    {"checkpoint", cli_checkpoint,
     "ls | show | verify | diff | reshard | prune   look at checkpoints, write them anew"},
    {"plot", cli_plot, "RUN_DIR [--svg FILE]   the loss curve of a run"},
    {"keys", cli_keys, "[--template | --markdown]   every key of the job file"},
    {"version", cli_version, "what this binary is made of"},
};

static int usage(FILE *to) {
    fprintf(to, "usage: strata COMMAND ...\n\n");
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].help);
    return to == stdout ? EXIT_OK : EXIT_USAGE;
}

int main(int argc, char **argv) {
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is an error of write, not a death */
    if (argc < 2) return usage(stderr);
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0) return usage(stdout);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i].name) == 0) {
            int rc = commands[i].run(argc - 2, argv + 2);
            if (rc != 0 && error_count() > 0) error_print(stderr);
            return rc;
        }
    fprintf(stderr, "error: strata has no command \"%s\"\n", argv[1]);
    return usage(stderr);
}
