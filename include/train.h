/* train: one run, from a checked job file to its last step. */
#ifndef STRATA_TRAIN_H
#define STRATA_TRAIN_H

#include "data.h"
#include "plan.h"

/* Runs the job; collective over the world, after comm_init. Returns the exit code on every rank
 * (EXIT_OK: finished or stopped on request; status.json says which); errors are recorded. */
int train_run(struct config *cfg);

/* strata eval: the loss of a checkpoint (NULL: the job's newest) on valid_data_path, as the lines of
 * an evaluation. Collective over the world. */
int train_evaluate(struct config *cfg, const char *checkpoint);

/* strata generate: answers of a checkpoint. Text goes to stdout as it comes, or LLaVA's JSON lines to
 * [generate] answer_file. Collective over the world: the copies of the model deal the questions of a
 * file out among them. */
struct generate_request {
    const char *checkpoint; /* NULL: the job's newest */
    const char *prompt;     /* NULL: [generate] prompt_file */
    const char *const *image;
    int n_images;
    double top_p; /* 1: all tokens */
    int64_t seed;
};
int train_generate(struct config *cfg, const struct generate_request *ask);

enum data_part { DATA_TRAIN, DATA_VALID /* valid_data_path */ };
bool train_has_data(const struct config *cfg, enum data_part part);
const char *train_data_path(const struct config *cfg, enum data_part part);
/* Data settings of a job file; the strings belong to cfg. rows_per_image as the model's. */
void train_data_settings(const struct config *cfg, enum data_part part, struct data_settings *out);
/* Rank 0 prepares the data set if need be, the others wait; then every rank opens it. Sets the
 * vocabulary if the job file left it to the tokenizer. *out is left alone where the job has no such
 * data. Collective over the world. */
int train_open_data(struct config *cfg, enum data_part part, const struct grid *grid,
                    struct dataset **out);
/* Without MPI: builds the index, if the job has such data. */
int train_prepare_data(struct config *cfg, enum data_part part, bool force);
/* Without MPI, after train_prepare_data: logs what the index holds and what it left out. */
int train_show_prepared(struct config *cfg, enum data_part part);
/* The tokenizer may set the vocabulary, and must fit it. */
int train_resolve_vocabulary(struct config *cfg);

/* Without MPI: writes the checkpoint `where` anew under the folder `save` for another layout of the
 * model in its own job file, and says so on `to`. split_spec NULL: chosen as `auto` does. */
struct train_reshard {
    const char *where, *save, *split_spec;
    int64_t tp, pp, dp;
    bool sharded; /* optimizer states as with use_distributed_optimizer */
};
int train_reshard(const struct train_reshard *request, FILE *to);

/* ---- the plan of a job, without MPI (config_check_world was called) ------------------------------- */
/* The largest micro-batch of the run, evaluations included, each count on its own, from the indices
 * of the data sets; data NULL: plan_microbatch_worst; valid NULL: none. Free with
 * plan_microbatch_free. */
struct microbatch *train_largest_microbatch(const struct config *cfg, const struct dataset *data,
                                            const struct dataset *valid, const struct stack *s);
/* The same for an evaluation alone. */
struct microbatch *train_largest_evaluated(const struct config *cfg, const struct dataset *valid,
                                           const struct stack *s);
/* Steps of one evaluation: eval_iters, or less where those pass over all samples already. */
int64_t train_eval_steps(const struct config *cfg, const struct dataset *valid);
/* split_spec as numbers [PP]; auto is solved and written into cfg. free() it, after an error too. */
int train_split(struct config *cfg, const struct stack *s, const struct microbatch *largest,
                int64_t **split);
/* What generation and evaluation run: the stack frozen, without sequence parallelism (which cuts no
 * weight); the layout without what training adds. cache_rows: of the longest sequence, 0: none. */
int train_infer_stack(const struct config *cfg, struct stack *s);
void train_infer_layout(const struct config *cfg, const int64_t *split, int micro_batches,
                        int64_t cache_rows, struct plan_layout *out);
/* [checkpoint] writers: for each of n ranks the one that writes its part; node[r] is the machine of
 * rank r. NULL: each writes its own. free() it. */
int *train_writers(const struct config *cfg, int n, const int *node);
/* "a,b,c" of PP numbers; free() it. */
char *train_split_text(const int64_t *split, int64_t pp);
/* EXIT_USAGE with the bytes by kind and three remedies if a rank needs more than memory_limit_gib. */
int train_check_memory(const struct config *cfg, const struct rank_plan *p, int rank);

#endif
