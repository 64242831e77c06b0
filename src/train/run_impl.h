/* The state of a run: what the loop, the reports and the checkpoints share. */
#ifndef STRATA_RUN_IMPL_H
#define STRATA_RUN_IMPL_H

#include "checkpoint.h"
#include "train_impl.h"

struct totals { /* over the steps of one log interval */
    double loss, seconds, data_wait, flops;
    int64_t steps, targets, images;
};

struct replica_check; /* replica.c */

struct saving {
    char *host; /* copy of what this rank writes, with async_save */
    size_t host_bytes;
    struct ckpt_pending *pending; /* being written beside the training */
    int64_t step, bytes;          /* of the save under way or done last */
    const char *folder;           /* save or save_second: where the last good one is */
    double begun;
    bool told;      /* that it takes long */
    bool told_full; /* that the file system is nearly full */
    double *stall;  /* seconds that training stood still, of each save of this run */
    int64_t n_stalls, capacity;
    int failures;          /* in a row */
    double restart, ended; /* a start took so long; end of the last save, or of the start */
    double nodes;
};

struct run {
    struct config *cfg;
    struct grid *grid;
    struct backend *be;
    char threads_how[CPU_TEXT_MAX], threads_notice[CPU_TEXT_MAX]; /* of cpus_threads */
    double peak;                  /* FLOP/s of sgemm on all ranks together; 0: not measured */
    struct dataset *data, *valid; /* valid NULL: no evaluation */
    struct stack stack;
    int64_t *split;
    int *writer; /* [world] who writes the checkpoint's file for each rank; NULL: each */
    struct plan_layout layout;
    struct rank_plan plan;
    struct stage stage;
    struct arena life, step, scratch;
    struct batcher *batcher, *valid_batcher;
    struct microbatch *largest;
    struct pipeline *pipeline;
    struct optim *optim;
    struct lr_schedule schedule;
    struct pipeline_result result;
    bool first_rank, last_stage;

    struct ckpt_settings ckpt;
    bool foreign;                       /* pretrained_checkpoint is a safetensors file or folder */
    struct ckpt_lock lock, lock_second; /* of ckpt.save, ckpt.save_second */
    struct ckpt_counters at;
    struct ckpt_row *history;
    int64_t n_history;
    struct ckpt_speed *speed; /* of the steps of this start */
    int64_t n_speed;
    char tokenizer_sha256[65], tokenizer_model_sha256[65], *used_ini, *split_text, run_uuid[64];
    char parent_uuid[37], order_key[96];
    struct ckpt_key *key; /* the job file as checkpoints store it */
    int64_t n_keys;
    int64_t last_saved; /* step of the newest checkpoint of this run, -1: none */
    char *loaded;       /* folder of the weights of an inference */
    struct saving saving;
    pthread_mutex_t hdf5_lock; /* a thread may write a checkpoint while this one reads data */

    struct replica_check *replicas;
    char *save_path, *stop_path; /* files that ask for something */
    FILE *metrics, *validation;
    struct totals totals;
    double wait_logged; /* counter at the last log line */
    double started;
};

/* setup.c */
int run_begin(struct run *r, struct config *cfg);
void run_end(struct run *r);
struct batcher_settings setup_batcher(const struct run *r); /* of the training data */
int setup_grid(struct run *r, struct config *cfg);          /* a run with grid and device */
int setup_stage(struct run *r);                             /* what r->layout describes */
int setup_agree(const struct run *r, int rc); /* all ranks fail if one does; collective */

/* machine.c. machine_device: the device, with the threads that this rank is granted.
 * machine_report_threads: what they are and why. machine_measure_peak: r->peak, for a run long enough
 * that it costs at most a hundredth of it. All collective over the world. */
int machine_device(struct run *r);
void machine_report_threads(const struct run *r);
void machine_measure_peak(struct run *r);

/* infer.c: a run with weights alone, for evaluation and generation. infer_grid: grid, device,
 * frozen stack without sequence parallelism, which cuts no weight. infer_stage: stage and pipeline
 * for micro-batches up to r->largest, micro_batches in a step and caches of cache_rows rows (0:
 * none); then the weights of the checkpoint (NULL: the job's). */
int infer_grid(struct run *r, struct config *cfg);
int infer_stage(struct run *r, int micro_batches, int64_t cache_rows, const char *checkpoint);

/* loop.c: one training step, its numbers. */
struct step_numbers {
    double loss, grad_norm, lr, seconds;
    double flops; /* of all ranks, without what was recomputed */
    int64_t targets, tokens, images;
    bool finite;
};
int run_steps(struct run *r);

/* report.c */
int report_begin(struct run *r); /* metrics.csv cut back to the step resumed from, status.json */
void report_end(struct run *r);
int report_step(struct run *r, const struct step_numbers *n);
void report_plan(const struct run *r);
int report_status(struct run *r, const char *state, int exit_code, const char *reason);

/* evaluate.c: the loss on held-out data, forward only and without dropout. */
int evaluation_begin(struct run *r);  /* batches; after setup of the stage */
int evaluation_report(struct run *r); /* validation.csv, cut back like metrics.csv */
void evaluation_end(struct run *r);
/* Collective over the world. last: the line of the end of training. */
int evaluation_run(struct run *r, bool last);

/* save.c */
void save_setup(struct run *r);
int save_resume(struct run *r); /* finds and loads, or starts anew */
int save_load_weights(struct run *r, const char *from, char **dir); /* dir: what was loaded */
struct ckpt_state save_state(struct run *r);
void save_end(struct run *r);

/* saving.c. Collective over the world; a failure that may be survived returns 0 and is logged. */
int save_take_memory(struct run *r);           /* not collective: the copy of async_save */
int save_checkpoint(struct run *r, bool last); /* last: returns when it is written */
void save_clock_begin(struct run *r);          /* the first step follows */
bool save_due(struct run *r);                  /* not collective: save_interval = auto */
bool save_busy(struct run *r);                 /* not collective: this rank writes beside a step */
int save_go_on(struct run *r, bool busy);      /* busy: any rank is, as agreed */
int save_wait(struct run *r);                  /* until nothing is written beside the training */
void save_report(struct run *r);

/* resume.c: the job file of the checkpoint against the present one; ckpt_settings.accept. */
int resume_accept(void *run, const struct ckpt_found *found);
/* Collective over the world: weights taken alone mean the same under both jobs. */
int resume_same_model(const struct run *r, const struct ckpt_found *found);

/* pretrained.c: a start from safetensors */
bool pretrained_is_foreign(const struct config *c);
int pretrained_load(const struct run *r, const struct ckpt_state *state); /* collective, world */

/* replica.c: equal weights on ranks that should have them; collective over dp and tp. */
void replica_check_begin(struct run *r);
int replica_check(struct run *r);
void replica_check_end(struct run *r);

/* stop.c: what asked for the end of the run, agreed by all ranks. */
enum stop_level {
    STOP_NO,
    STOP_SAVE,   /* USR2, file SAVE: save and go on */
    STOP_FINISH, /* INT, file STOP: save, exit 0 */
    STOP_AGAIN,  /* TERM, USR1, time: save, exit 75 */
};
void stop_install(struct run *r);
/* Collective over the world; rank 0 looks at files. busy: save_busy of any rank, by the same
 * message. */
enum stop_level stop_wanted(struct run *r, bool *busy);

#endif
