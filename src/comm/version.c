/* Which MPI library runs. */
#include <string.h>

#include "comm_impl.h"

void comm_library_version(char *text, size_t size) {
    char whole[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length;
    mpi_check(MPI_Get_library_version(whole, &length), "MPI_Get_library_version");
    whole[strcspn(whole, ",\n")] = 0; /* the rest is about who packaged it */
    snprintf(text, size, "%s", whole);
}
