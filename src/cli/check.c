#include "cli_impl.h"
int cli_check(int argc, char **argv) { (void)argc; (void)argv; return error_raise(EXIT_USAGE, "strata check is being written"); }
