/* The commands of build/strata; each gets the words behind its name and returns an exit code. */
#ifndef STRATA_CLI_IMPL_H
#define STRATA_CLI_IMPL_H

#include "train.h"

int cli_train(int argc, char **argv);
int cli_prepare(int argc, char **argv);
int cli_check(int argc, char **argv);
int cli_eval(int argc, char **argv);
int cli_generate(int argc, char **argv);
int cli_plot(int argc, char **argv);
int cli_import(int argc, char **argv);
int cli_export(int argc, char **argv);
int cli_checkpoint(int argc, char **argv);
int cli_keys(int argc, char **argv);
int cli_version(int argc, char **argv);

/* Runs `work` on all ranks that mpirun started; a failing rank ends the job. */
int cli_under_mpi(int (*work)(int argc, char **argv), int argc, char **argv);
/* JOB.ini [section:key=value ...] -> a loaded job file. Options of the command are gone already. */
int cli_load_job(int argc, char **argv, const char *command, struct config **out);

#endif
