/* What `strata check` points out though it is no error. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check_impl.h"

void check_warn(struct check_report *r, const char *fmt, ...) {
    char *text = NULL;
    va_list args;
    va_start(args, fmt);
    CHECK(vasprintf(&text, fmt, args) >= 0, "no memory for a warning");
    va_end(args);
    r->warning = xrealloc(r->warning, ((size_t)r->n_warnings + 1) * sizeof *r->warning);
    r->warning[r->n_warnings++] = text;
}

#define UNEVEN 1.02 /* largest share of a tensor group / mean */

static double rank_flops(const struct rank_plan *p) {
    return p->pipeline.forward_flops + p->pipeline.backward_flops;
}

/* Largest share of the tensor group of a stage / mean. */
static double unevenness(const struct check_report *r, int pp) {
    double most = 0, sum = 0;
    for (int tp = 0; tp < r->layout.tp; tp++) {
        double one = rank_flops(&r->rank[check_rank_at(r, tp, pp, 0)]);
        most = one > most ? one : most;
        sum += one;
    }
    return sum > 0 ? most * r->layout.tp / sum : 1;
}

static void warn_uneven_shares(struct check_report *r) {
    int worst = 0;
    for (int pp = 1; pp < r->layout.pp; pp++)
        if (unevenness(r, pp) > unevenness(r, worst)) worst = pp;
    if (unevenness(r, worst) > UNEVEN)
        check_warn(r,
                   "the tensor ranks' shares are uneven, most so on stage %d: the largest is "
                   "%.2f times the mean; heads, key/value groups and widths that %d divides are "
                   "even",
                   worst, unevenness(r, worst), r->layout.tp);
}

static bool holds_checkpoint(const char *folder) {
    if (folder == NULL) return false;
    char *path = xasprintf("%s/latest_checkpointed_iteration.txt", folder);
    bool there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static bool starts_from_weights(const struct config *c) {
    if (c->checkpoint.pretrained_checkpoint != NULL) return true;
    if (c->checkpoint.resume == RESUME_NEVER) return false;
    return holds_checkpoint(c->checkpoint.save) || holds_checkpoint(c->checkpoint.save_second) ||
           holds_checkpoint(c->checkpoint.load);
}

static void warn_frozen_random(struct check_report *r) {
    const struct config *c = r->cfg;
    const struct {
        bool frozen;
        const char *what, *key;
    } part[] = {{c->vision.freeze_vit, "vision tower", "freeze_ViT"},
                {c->projector.freeze_vision_projection, "projector", "freeze_vision_projection"},
                {c->language.freeze_lm, "language model", "freeze_LM"}};
    if (starts_from_weights(c)) return;
    for (size_t i = 0; i < sizeof part / sizeof *part; i++)
        if (part[i].frozen)
            check_warn(r,
                       "NOTICE: the %s is frozen (%s) and nothing is loaded into it: it would "
                       "stay at its RANDOM first weights for the whole run",
                       part[i].what, part[i].key);
}

static void warn_missing_files(struct check_report *r) {
    const struct config_data *d = &r->cfg->data;
    if (d->data_format == FORMAT_MOCK) return;
    if (access(d->data_path, F_OK) != 0)
        check_warn(r, "there is no data_path %s yet", d->data_path);
    if (d->valid_data_path != NULL && access(d->valid_data_path, F_OK) != 0)
        check_warn(r, "there is no valid_data_path %s yet", d->valid_data_path);
    if (d->image_folder != NULL && access(d->image_folder, F_OK) != 0)
        check_warn(r, "there is no image_folder %s yet", d->image_folder);
}

/* check plans what this program may be unable to train; then it says so. */
static void warn_untrainable(struct check_report *r) {
    if (config_check_trainable(r->cfg) == 0) return;
    check_warn(r, "this program cannot train it: %s", error_text());
    error_clear();
}

/* The copy of async_save lies where a node's file is written. */
static void warn_assumed_nodes(struct check_report *r) {
    if (r->writer == NULL || !r->layout.snapshot || r->ranks_per_node > 0 || r->n_ranks == 1)
        return;
    check_warn(r,
               "writers = node: the snapshots are planned as if all %d ranks were on one node; "
               "--ranks-per-node N says how many are",
               r->n_ranks);
}

void check_find_warnings(struct check_report *r) {
    warn_frozen_random(r);
    warn_uneven_shares(r);
    warn_missing_files(r);
    warn_untrainable(r);
    warn_assumed_nodes(r);
}
