/* strata keys, strata version. */
#include <string.h>

#include "cli_impl.h"

int cli_keys(int argc, char **argv) {
    if (argc == 0) return config_print_keys(stdout);
    if (argc == 1 && strcmp(argv[0], "--template") == 0) return config_print_template(stdout);
    if (argc == 1 && strcmp(argv[0], "--markdown") == 0) return config_print_markdown(stdout);
    return error_raise(EXIT_USAGE, "strata keys takes --template or --markdown, not \"%s\"",
                       argv[0]);
}

int cli_version(int argc, char **argv) {
    (void)argc, (void)argv;
    const struct build_info *built = build_info();
    char mpi[128], blas[128];
    comm_library_version(mpi, sizeof mpi);
    backend_library_version(blas, sizeof blas);
    printf("strata %s, compiled by %s for cpu\n", STRATA_VERSION, built->compiler);
    printf("flags    %s\ncommit   %s%s\n", built->flags, built->git_sha,
           strcmp(built->git_dirty, "true") == 0 ? " and changes" : "");
    printf("MPI      %s\nBLAS     %s\n", mpi, blas);
    return EXIT_OK;
}
