/* Start and end of MPI, and the world as a whole. */
#include <sched.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "comm_impl.h"
#include "fault.h"

static void abort_job(int exit_code) {
    fflush(NULL);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    _exit(exit_code);
}

void mpi_check(int rc, const char *call) {
    if (rc == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int length;
    MPI_Error_string(rc, text, &length);
    error_fatal(EXIT_UNAVAILABLE, "rank %d: %s failed: %s", comm_world_rank(), call, text);
}

int comm_init(int *argc, char ***argv) {
    int provided;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return error_raise(EXIT_UNAVAILABLE, "MPI_Init_thread failed");
    error_set_abort(abort_job);
    log_set_rank(comm_world_rank());
    fault_init(comm_world_rank(), comm_world_size());
    if (provided < MPI_THREAD_FUNNELED)
        return error_raise(EXIT_UNAVAILABLE,
                           "this MPI gives thread level %d but strata needs MPI_THREAD_FUNNELED "
                           "(%d), because every rank computes with several threads; use an MPI "
                           "library built with thread support",
                           provided, MPI_THREAD_FUNNELED);
    /* Errors come back as codes, so that they end in a sentence of ours. */
    mpi_check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN),
              "MPI_Comm_set_errhandler");
    return 0;
}

void comm_finalize(void) {
    error_set_abort(NULL);
    MPI_Finalize();
}

int comm_world_rank(void) {
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

int comm_world_size(void) {
    int size;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

struct cpu_share comm_cpu_share(const struct cpu_limits *mine) {
    MPI_Comm node;
    int size, rank;
    mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node),
              "MPI_Comm_split_type");
    MPI_Comm_size(node, &size);
    MPI_Comm_rank(node, &rank);
    struct cpu_limits *all = xcalloc((size_t)size, sizeof *all);
    mpi_check(MPI_Allgather(mine, sizeof *mine, MPI_BYTE, all, sizeof *mine, MPI_BYTE, node),
              "MPI_Allgather");
    struct cpu_share share = cpus_share(all, size, rank);
    free(all);
    MPI_Comm_free(&node);
    return share;
}

bool comm_pause(double start, double limit) {
    double waited = clock_seconds() - start;
    if (waited > limit) return false;
    if (waited < 2e-3) {
        sched_yield();
        return true;
    }
    /* A long wait is for a rank that computes, perhaps on this very core. */
    double nap = waited / 16 < 5e-4 ? waited / 16 : 5e-4;
    nanosleep(&(struct timespec){.tv_nsec = (long)(nap * 1e9)}, NULL);
    return true;
}
