/* strata train, strata prepare. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli_impl.h"

int cli_load_job(int argc, char **argv, const char *command, struct config **out) {
    if (argc < 1)
        return error_raise(EXIT_USAGE, "strata %s needs a job file: strata %s JOB.ini", command,
                           command);
    return config_load(argv[0], argc - 1, argv + 1, out);
}

static int load_and_train(int argc, char **argv) {
    struct config *cfg = NULL;
    TRY(cli_load_job(argc, argv, "train", &cfg));
    int rc = config_check_world(cfg, comm_world_size());
    if (rc == 0) rc = config_check_trainable(cfg);
    if (rc == 0) rc = train_run(cfg);
    config_free(cfg);
    return rc;
}

/* Nobody waits for a rank alone: it ends without MPI_Abort, which would print more than the error. */
static void fail_alone(int rc) {
    int code = error_count() > 0 ? error_code() : rc;
    fflush(stdout);
    error_print(stderr);
    comm_finalize();
    fflush(NULL);
    _exit(code); /* after an error memory is left */
}

/* An error that several ranks meet is printed by the lowest of them: it ends the job before the
 * others have waited out their turn. A rank without a message of its own waits for the one that
 * has. */
static void fail(int rc) {
    if (comm_world_size() == 1) fail_alone(rc);
    int rank = comm_world_rank();
    double turn = error_count() == 0 ? 30.0 : rank == 0 ? 0.0 : 0.5 + 0.02 * rank;
    struct timespec t = {(time_t)turn, (long)((turn - (double)(time_t)turn) * 1e9)};
    nanosleep(&t, NULL);
    if (error_count() == 0) error_raise(rc, "another rank failed and did not say why");
    error_exit();
}

int cli_under_mpi(int (*work)(int argc, char **argv), int argc, char **argv) {
    int mpi_argc = 0;
    TRY(comm_init(&mpi_argc, NULL));
    int rc = work(argc, argv);
    if (rc != 0 && rc != EXIT_AGAIN) fail(rc);
    comm_finalize();
    return rc;
}

int cli_train(int argc, char **argv) {
    return cli_under_mpi(load_and_train, argc, argv);
}

int cli_prepare(int argc, char **argv) {
    bool rebuild = false;
    int n = 0;
    char **kept = xcalloc((size_t)argc + 1, sizeof *kept);
    for (int i = 0; i < argc; i++) {
        /* --force is what --rebuild was called first */
        if (strcmp(argv[i], "--rebuild") == 0 || strcmp(argv[i], "--force") == 0)
            rebuild = true;
        else
            kept[n++] = argv[i];
    }
    struct config *cfg = NULL;
    int rc = cli_load_job(n, kept, "prepare", &cfg);
    for (enum data_part part = DATA_TRAIN; part <= DATA_VALID && rc == 0; part++) {
        rc = train_prepare_data(cfg, part, rebuild);
        if (rc == 0) rc = train_show_prepared(cfg, part);
    }
    config_free(cfg);
    free(kept);
    return rc;
}
