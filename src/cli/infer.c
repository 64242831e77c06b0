/* strata eval. */
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
