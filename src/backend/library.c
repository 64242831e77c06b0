/* Which BLAS library runs, and which of its kernel sets it took for this processor. */
#include <cblas.h>
#include <stdio.h>
#include <string.h>

#include "backend_impl.h"

void backend_library_version(char *text, size_t size) {
    const char *whole = openblas_get_config(); /* name, version, how it was built, kernels */
    size_t name = strcspn(whole, " "), version = whole[name] ? strcspn(whole + name + 1, " ") : 0;
    snprintf(text, size, "%.*s, %s kernels", (int)(name + 1 + version), whole,
             openblas_get_corename());
}
