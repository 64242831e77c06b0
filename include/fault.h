/* Named points at which a test ends this process: only in builds with -DSTRATA_FAULTS
 * (build/faults); in all others the calls are empty.
 *
 *   FAULT=POINT:RANK:N:ACTION   at the N-th passing of POINT (from 1)
 *     RANK    a number, first, middle, last, or all (each at its own N-th passing)
 *     ACTION  kill (SIGKILL), segv (SIGSEGV), exit0 (_exit(0))
 *   FAULT_TRACE=FILE            every passing is appended to FILE.<rank>, a name per line
 *
 * The names lie in a section of the executable of their own (`fault_points`), so that a program can
 * list them without a table that somebody forgets. */
#ifndef STRATA_FAULT_H
#define STRATA_FAULT_H

#ifdef STRATA_FAULTS
void fault_init(int rank, int size); /* reads FAULT; a wrong one ends the process, 64 */
void fault_hit(const char *name);
#define fault_point(text)                                                                          \
    do {                                                                                           \
        static const char name_[] __attribute__((section("fault_points"), aligned(1), used)) =     \
            text;                                                                                  \
        fault_hit(name_);                                                                          \
    } while (0)
#else
#define fault_init(rank, size) ((void)0)
#define fault_point(text) ((void)0)
#endif

#endif
