/* Which BLAS library runs. */
#include <cblas.h>
#include <stdio.h>
#include <string.h>

#include "backend_impl.h"

void backend_library_version(char *text, size_t size) {
    const char *whole = openblas_get_config(); /* name, version, how it was built, kernels */
    size_t name = strcspn(whole, " "), version = whole[name] ? strcspn(whole + name + 1, " ") : 0;
    snprintf(text, size, "%.*s", (int)(name + 1 + version), whole);
}
