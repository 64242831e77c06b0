/* Generation: questions in, answers out; the tokens between come from decoder.c. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "generate_impl.h"

struct generator {
    struct run run;
    struct tokenizer *tokenizer;
    struct question_list questions;
    struct decoder decoder;
    struct answer answer;
    FILE *answers; /* JSON lines; on rank 0 */
    char *model;
    int64_t tokens;
};

/* ---- one question ----------------------------------------------------------------------------------- */
static int load_images(struct generator *g, const struct question *q) {
    const struct vision_config *v = &g->run.stack.shape.vision;
    struct data_settings s;
    float *to = decoder_pixels(&g->decoder);
    if (to == NULL) return 0;
    train_data_settings(g->run.cfg, DATA_TRAIN, &s);
    for (int i = 0; i < q->n_images; i++) {
        int rc = data_image_load(&s, q->image[i], to);
        if (rc != 0) return error_note(rc, "question %s", q->name);
        to += (q->layout != NULL ? q->layout[i].tiles : 1) * v->channels * v->img_h * v->img_w;
    }
    return 0;
}

static int answer_question(struct generator *g, int64_t number) {
    const struct question *q = &g->questions.question[number];
    const struct config *c = g->run.cfg;
    int64_t longest = c->language.decoder_seq_length - q->rows + 1;
    if (longest > c->generate.max_new_tokens) longest = c->generate.max_new_tokens;
    struct sample s = {.text_len = (int32_t)q->ids.n,
                       .ids = q->ids.ids,
                       .layout = q->layout,
                       .n_images = q->n_images,
                       .merged_len = q->rows};
    TRY(decoder_prompt(&g->decoder, &s));
    answer_begin(&g->answer);
    for (int64_t i = 0;; i++) {
        int32_t id = decoder_choose(&g->decoder, number, i);
        if (id < 0)
            return error_raise(EXIT_NUMERIC,
                               "question %s: the logits of token %" PRId64 " are not finite",
                               q->name, i + 1);
        g->tokens++;
        TRY(answer_add(&g->answer, id));
        if (g->answer.ended || i + 1 == longest) break;
        TRY(decoder_next(&g->decoder, id, q->rows + i));
    }
    answer_end(&g->answer);
    return 0;
}

/* ---- all of them: each copy of the model takes every D-th question, in rounds ------------------------ */
/* The lines of a round, "" where a copy had no question, in the order of the questions. */
static int write_round(struct generator *g, const char *mine) {
    const struct group *dp = grid_group(g->run.grid, GROUP_DP);
    int n = group_size(dp);
    int64_t bytes = (int64_t)strlen(mine) + 1, most = bytes;
    comm_allreduce_i64(dp, &most, 1, REDUCE_MAX);
    char *padded = xcalloc((size_t)most, 1), *all = xcalloc((size_t)most, (size_t)n);
    memcpy(padded, mine, (size_t)bytes);
    comm_gather(dp, padded, (size_t)most, all);
    bool good = true;
    for (int i = 0; g->answers != NULL && i < n; i++)
        good = good && fputs(all + i * most, g->answers) >= 0;
    if (g->answers != NULL) good = good && fflush(g->answers) == 0;
    free(padded);
    free(all);
    return good ? 0 : error_raise(EXIT_IO, "the answers cannot be written");
}

static int answer_round(struct generator *g, int64_t first) {
    int64_t number = first + group_rank(grid_group(g->run.grid, GROUP_DP));
    bool any = number < g->questions.n;
    const struct question *q = any ? &g->questions.question[number] : NULL;
    TRY(setup_agree(&g->run, any ? load_images(g, q) : 0));
    if (any) TRY(answer_question(g, number));
    if (g->answer.stream != NULL || group_rank(grid_group(g->run.grid, GROUP_MODEL)) != 0) return 0;
    char *line = any ? answer_line(&g->answer, q, g->model) : xstrdup("");
    int rc = write_round(g, line);
    free(line);
    return rc;
}

static int answer_all(struct generator *g) {
    const struct group *dp = grid_group(g->run.grid, GROUP_DP);
    double start = clock_seconds();
    for (int64_t i = 0; i < g->questions.n; i += group_size(dp)) TRY(answer_round(g, i));
    double seconds = clock_seconds() - start;
    comm_allreduce_i64(dp, &g->tokens, 1, REDUCE_SUM);
    log_info("%" PRId64 " questions, %" PRId64 " tokens in %.1f s, %.1f tokens/s", g->questions.n,
             g->tokens, seconds, (double)g->tokens / seconds);
    return 0;
}

/* ---- set-up ----------------------------------------------------------------------------------------------- */
static int open_answers(struct generator *g, const struct generate_request *ask) {
    const char *path = g->run.cfg->generate.answer_file;
    if (ask->prompt != NULL || !g->run.first_rank) return 0;
    if (path == NULL) {
        g->answers = stdout;
        return 0;
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) g->answers = fdopen(fd, "w");
    if (g->answers != NULL) return 0;
    return error_raise(EXIT_CANT_CREATE, "[generate] answer_file = %s cannot be created: %s", path,
                       strerror(errno));
}

/* The last two parts of the checkpoint's folder. */
static char *model_name(const char *folder) {
    const char *at = folder + strlen(folder);
    for (int parts = 0; at > folder; at--)
        if (at[-1] == '/' && at[0] != 0 && ++parts == 2) break;
    return xstrdup(at);
}

/* Largest prompt, longest sequence, weights. */
static int prepare_stage(struct generator *g, const struct generate_request *ask) {
    struct run *r = &g->run;
    const struct question_list *l = &g->questions;
    int64_t rows = l->most_rows + r->cfg->generate.max_new_tokens;
    int64_t limit = r->cfg->language.decoder_seq_length;
    struct microbatch sizes = {.samples = 1,
                               .images = l->most_images,
                               .tiles = l->most_tiles,
                               .tokens = l->most_rows,
                               .newlines = l->most_newlines,
                               .max_segment = l->most_rows,
                               .targets = 1};
    r->largest = plan_microbatch_of(&r->stack, &sizes);
    TRY(infer_stage(r, 1, rows < limit ? rows : limit, ask->checkpoint));
    g->model = model_name(r->loaded);
    return 0;
}

static void prepare_choice(struct generator *g, const struct generate_request *ask) {
    struct run *r = &g->run;
    struct data_settings s;
    train_data_settings(r->cfg, DATA_TRAIN, &s);
    struct picker_settings p = {.temperature = r->cfg->generate.temperature,
                                .top_p = ask->top_p,
                                .n_ids = tokenizer_vocab_size(g->tokenizer),
                                .key = rng_run_key(ask->seed)};
    decoder_begin(&g->decoder, r, &p);
    g->answer = (struct answer){.tokenizer = g->tokenizer,
                                .stop_text = answer_stop_text(s.conversation_template),
                                .stream = r->first_rank && ask->prompt != NULL ? stdout : NULL};
}

static int prepare(struct generator *g, struct config *cfg, const struct generate_request *ask) {
    struct data_settings s;
    if (cfg->data.data_format == FORMAT_MOCK)
        return error_raise(EXIT_USAGE, "data_format = mock has no tokenizer: nothing can be asked");
    if (cfg->derived.data_parallel_size != 1 && ask->prompt != NULL)
        return error_raise(EXIT_USAGE,
                           "one question is answered by one copy of the model: start %" PRId64
                           " ranks (tensor times pipeline size), not %" PRId64
                           "; the questions of a prompt_file are dealt out over more",
                           cfg->derived.n_ranks / cfg->derived.data_parallel_size,
                           cfg->derived.n_ranks);
    TRY(infer_grid(&g->run, cfg));
    train_data_settings(cfg, DATA_TRAIN, &s);
    TRY(tokenizer_open(s.tokenizer_type, s.tokenizer_model, &g->tokenizer));
    TRY(questions_read(cfg, ask, g->tokenizer, s.rows_per_image, &g->questions));
    TRY(prepare_stage(g, ask));
    prepare_choice(g, ask);
    return setup_agree(&g->run, open_answers(g, ask));
}

static void finish(struct generator *g) {
    if (g->answers != NULL && g->answers != stdout) fclose(g->answers);
    decoder_end(&g->decoder);
    free(g->model);
    answer_free(&g->answer);
    questions_free(&g->questions);
    tokenizer_close(g->tokenizer);
    run_end(&g->run);
}

int train_generate(struct config *cfg, const struct generate_request *ask) {
    struct generator g = {0};
    log_to(stderr);
    TRY(prepare(&g, cfg, ask)); /* after an error memory is left: others may be in a message */
    TRY(answer_all(&g));
    finish(&g);
    return 0;
}
