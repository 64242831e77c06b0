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
    printf("strata %s, compiled by %s for cpu\n", STRATA_VERSION, __VERSION__);
    return EXIT_OK;
}
