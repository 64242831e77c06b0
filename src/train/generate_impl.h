/* Shared by the files of generation: questions, the choice of a token, answers. */
#ifndef STRATA_GENERATE_IMPL_H
#define STRATA_GENERATE_IMPL_H

#include "json.h"
#include "run_impl.h"

/* ---- questions (question.c) ------------------------------------------------------------------- */
struct question {
    bool numbered; /* question_id is a number */
    int64_t number;
    char *name;   /* question_id as text */
    char *prompt; /* as asked */
    char **image; /* paths */
    int n_images;
    struct image_layout *layout; /* [n_images] with anyres, else NULL */
    int64_t tiles, newlines;
    struct id_list ids; /* of the template's prompt, a marker for each image */
    int64_t rows;       /* of the prompt, images merged in */
};
struct question_list {
    struct question *question;
    int64_t n;
    int64_t most_images, most_tiles, most_newlines, most_rows;
};
/* The one of the request, or those of [generate] prompt_file, encoded. Errors name line and id. */
int questions_read(const struct config *cfg, const struct generate_request *ask,
                   const struct tokenizer *t, int64_t rows_per_image, struct question_list *out);
void questions_free(struct question_list *list);

/* ---- the choice of the next token (pick.c) ---------------------------------------------------------
 * temperature 0: the largest logit, ties to the lowest id. Else softmax(z / temperature), cut to the
 * smallest set of likeliest ids that has top_p of it, and a number that is a function of (seed,
 * question, position). */
struct picker_settings {
    double temperature, top_p;
    int64_t n_ids; /* ids from there on are never chosen: the vocabulary may exceed the tokenizer */
    struct rng_key key;
};
struct picker;
/* On every rank of the last stage; not elsewhere. */
struct picker *picker_create(const struct picker_settings *settings, const struct stage *stage,
                             const struct group *tp, struct backend *be);
void picker_destroy(struct picker *p);
const struct tensor *picker_logits(const struct picker *p); /* [1, my columns], device */
/* Collective over tp, the same on every rank. -1: the logits are not finite. */
int32_t picker_choose(struct picker *p, int64_t question, int64_t position);
/* The id whose share of the probability holds u in [0, 1); order is room for n ids. */
int32_t pick_sample(const double *z, int64_t n, double temperature, double top_p, double u,
                    int32_t *order, double *share);

/* ---- answers (answer.c) ---------------------------------------------------------------------------- */
struct answer {
    const struct tokenizer *tokenizer;
    const char *stop_text; /* NULL: the end token alone ends it */
    struct id_list ids;
    char *text;   /* of the ids so far */
    size_t shown; /* bytes of it that were streamed */
    bool ended;   /* by the end token or the stop text; else it reached its longest */
    FILE *stream; /* NULL: not shown */
};
const char *answer_stop_text(enum data_template t);
void answer_begin(struct answer *a);
int answer_add(struct answer *a, int32_t id);
void answer_end(struct answer *a); /* the rest of the text, trimmed, and the end of the line */
/* LLaVA's line: question_id, prompt, text, answer_id, model_id, metadata. */
int answer_write(const struct answer *a, const struct question *q, const char *model, FILE *to);
void answer_free(struct answer *a);

#endif
