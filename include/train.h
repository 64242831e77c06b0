/* train: one run, from a checked job file to its last step. */
#ifndef STRATA_TRAIN_H
#define STRATA_TRAIN_H

#include "comm.h"
#include "config.h"
#include "data.h"

/* Runs the job; collective over the world, after comm_init. Returns the exit code on every rank
 * (EXIT_OK: finished or stopped on request; status.json says which); errors are recorded. */
int train_run(struct config *cfg);

/* Data settings of a job file; the strings belong to cfg. rows_per_image as the model's. */
void train_data_settings(const struct config *cfg, struct data_settings *out);
/* Rank 0 prepares the data set if need be, the others wait; then every rank opens it. Sets the
 * vocabulary if the job file left it to the tokenizer. Collective over the world. */
int train_open_data(struct config *cfg, const struct grid *grid, struct dataset **out);
/* Without MPI: builds the index. */
int train_prepare_data(struct config *cfg, bool force);

#endif
