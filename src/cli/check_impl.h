/* What `strata check` found out, and its two ways of saying it. */
#ifndef STRATA_CHECK_IMPL_H
#define STRATA_CHECK_IMPL_H

#include "cli_impl.h"

struct cut_plan {  /* one stream of one cut of the split, all rows of a data rank */
    int cut, from; /* stages from -> from + 1 */
    struct stream stream;
};

struct check_report {
    struct config *cfg;
    struct stack stack;
    struct dataset *data;  /* NULL: no index yet, the largest micro-batch is assumed */
    struct dataset *valid; /* NULL: none, or no index yet */
    struct microbatch *largest;
    bool generate; /* the plan of strata generate, not of train */
    bool split_auto;
    int64_t *split;
    int64_t ranks_per_node; /* assumed; 0: all on one */
    int *writer;            /* [n_ranks] of the checkpoint's files; NULL: each rank its own */
    struct plan_layout layout;
    struct grid *grid;        /* measuring; for world ranks */
    struct stage_plan *stage; /* [pp] */
    struct step_plan step;
    struct rank_plan *rank; /* [n_ranks], by world rank */
    int n_ranks;
    struct cut_plan *cut;
    int n_cuts;
    int threads; /* of a rank on the CPU, were all ranks of a node on this machine; 0: another device */
    char threads_how[CPU_TEXT_MAX];
    char **warning;
    int n_warnings;
};

void check_warn(struct check_report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int check_rank_at(const struct check_report *r, int tp, int pp, int dp);

/* check_warnings.c: what deserves a second look and is no error. */
void check_find_warnings(struct check_report *r);

void check_print_text(const struct check_report *r, FILE *to);
/* One object; with what is recorded as errors. r NULL: nothing but these. free() it. */
char *check_json_text(const struct check_report *r);

#endif
