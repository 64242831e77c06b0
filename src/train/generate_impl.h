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
    int64_t n, capacity;
    struct record_keys keys; /* met and not read */
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
/* On every rank of the last stage; not elsewhere. `logits` is its row, from stage_allocate_logits. */
struct picker *picker_create(const struct picker_settings *settings, const struct stage *stage,
                             const struct group *tp, struct backend *be,
                             const struct tensor *logits);
void picker_destroy(struct picker *p);
const struct tensor *picker_logits(const struct picker *p); /* [1, my columns], device */
/* Collective over tp, the same on every rank. -1: the logits are not finite. */
int32_t picker_choose(struct picker *p, int64_t question, int64_t position);
/* The id whose share of the probability holds u in [0, 1); order is room for n ids. */
int32_t pick_sample(const double *z, int64_t n, double temperature, double top_p, double u,
                    int32_t *order, double *share);

/* ---- one token after the other (decoder.c) -----------------------------------------------------------
 * The prompt goes through the pipeline once and fills the caches of keys and values; then each
 * chosen token goes through as a micro-batch of one row. Collective over the ranks of one copy of
 * the model. */
struct decoder {
    struct run *run;
    struct picker *picker; /* on the last stage, else NULL */
    struct tables_source tables;
    struct descriptor prompt, row; /* a whole prompt; one token */
    const struct descriptor *now;
    struct sample sample; /* what `now` describes */
    int64_t *image;       /* images of the prompt, numbered */
    int64_t passes;
};
/* After infer_stage with caches; run->largest is the largest prompt. `run` must outlive it. */
void decoder_begin(struct decoder *d, struct run *run, const struct picker_settings *settings);
void decoder_end(struct decoder *d);
float *decoder_pixels(const struct decoder *d); /* of the prompt's tiles; NULL: not wanted here */
/* The prompt: s->image is set here. */
int decoder_prompt(struct decoder *d, const struct sample *s);
/* The next id, the same on all ranks; -1: the logits are not finite. */
int32_t decoder_choose(struct decoder *d, int64_t question, int64_t position);
int decoder_next(struct decoder *d, int32_t id, int64_t past); /* past: rows before it */

/* ---- answers (answer.c) ---------------------------------------------------------------------------- */
struct answer {
    const struct tokenizer *tokenizer;
    const char *stop_text; /* NULL: the end token alone ends it */
    struct id_list ids;
    char *text;   /* of the ids so far; it may hold NUL bytes */
    size_t bytes; /* of the text */
    size_t shown; /* bytes of it that were streamed */
    bool ended;   /* by the end token or the stop text; else it reached its longest */
    FILE *stream; /* NULL: not shown */
};
const char *answer_stop_text(enum data_template t);
void answer_begin(struct answer *a);
int answer_add(struct answer *a, int32_t id);
void answer_end(struct answer *a); /* the rest of the text, trimmed, and the end of the line */
/* LLaVA's line: question_id, prompt, text, answer_id, model_id, metadata. free() it. */
char *answer_line(const struct answer *a, const struct question *q, const char *model);
void answer_free(struct answer *a);

#endif
