/* One line of a test under mpirun: it passed where every rank says so. */
#ifndef VERDICT_H
#define VERDICT_H
#include <stdarg.h>
#include <stdio.h>

#include "comm.h"

static int test_failures;

/* Collective over the world of `grid`. A rank that says no prints its trace of errors. */
__attribute__((format(printf, 3, 4))) static inline void verdict(const struct grid *grid, bool good,
                                                                 const char *fmt, ...) {
    char name[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    int bad = comm_vote(grid_group(grid, GROUP_WORLD), good ? 0 : 1);
    test_failures += bad != 0;
    if (!good) printf("# rank %d: %s: %s\n", comm_world_rank(), name, error_text());
    if (comm_world_rank() == 0) printf("%s - %s\n", bad ? "not ok" : "ok", name);
    fflush(stdout);
}
#endif
