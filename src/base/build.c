/* What this program was built from; the Makefile says it to this file alone. */
#include "base.h"

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "gcc " __VERSION__
#endif
#ifndef STRATA_FLAGS
#define STRATA_FLAGS "unknown"
#endif
#ifndef STRATA_GIT_SHA
#define STRATA_GIT_SHA "unknown"
#define STRATA_GIT_DIRTY "unknown"
#endif

const struct build_info *build_info(void) {
    static const struct build_info info = {.compiler = COMPILER,
                                           .flags = STRATA_FLAGS,
                                           .git_sha = STRATA_GIT_SHA,
                                           .git_dirty = STRATA_GIT_DIRTY};
    return &info;
}
