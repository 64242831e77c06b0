/* Preloaded into a run by steady_memory.sh: counts what the program takes from the heap between its
 * MPI_Init_thread and MPI_Finalize and says so at exit. Only the first thread counts: with one thread
 * per rank and no data worker it does all of the step. Left out is what differs from run to run by
 * itself: beginning and end of MPI, whose plug-ins allocate as often as they have to wait; Open MPI's
 * event loop, which does so while a communicator is made; and the threads that MPI keeps for itself. */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long calls;
static atomic_bool counting, waiting;

static void count_call(void) {
    if (counting && !waiting && syscall(SYS_gettid) == getpid()) calls++;
}

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided) {
    int (*next)(int *, char ***, int, int *);
    *(void **)&next = dlsym(RTLD_NEXT, "MPI_Init_thread");
    int rc = next(argc, argv, required, provided);
    counting = true;
    return rc;
}

int MPI_Finalize(void) {
    int (*next)(void);
    *(void **)&next = dlsym(RTLD_NEXT, "MPI_Finalize");
    counting = false;
    return next();
}

/* Open MPI's own, called wherever it waits; with another MPI nobody calls it. */
void opal_progress(void) {
    void (*next)(void);
    bool outer = waiting;
    waiting = true;
    *(void **)&next = dlsym(RTLD_NEXT, "opal_progress");
    next();
    waiting = outer;
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

void *malloc(size_t n) {
    count_call();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size) {
    count_call();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n) {
    count_call();
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n) {
    count_call();
    return __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n) {
    count_call();
    *p = __libc_memalign(align, n);
    return *p == NULL;
}

__attribute__((destructor)) static void tell(void) {
    const char *path = getenv("STEADY_MEMORY_OUT");
    long n = calls;
    bool ours = strcmp(program_invocation_short_name, "strata") == 0;
    FILE *to = ours && path != NULL ? fopen(path, "w") : NULL;
    if (to == NULL) return;
    fprintf(to, "%ld\n", n);
    fclose(to);
}
