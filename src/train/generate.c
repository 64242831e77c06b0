/* Generation: the prompt goes through the pipeline once and fills the caches of keys and values;
 * then each chosen token goes through as a micro-batch of one row. */
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
    struct picker *picker; /* on the last stage */
    struct tables_source tables;
    struct descriptor prompt, row; /* a whole prompt; one token */
    const struct descriptor *now;
    struct sample sample; /* what `now` describes */
    int64_t *image;       /* images of the prompt, numbered */
    struct answer answer;
    FILE *answers; /* JSON lines; on rank 0 */
    char *model;
    int64_t passes, tokens;
};

/* ---- the pipeline's source: one sample ---------------------------------------------------------- */
static void read_sample(void *arg, int64_t id, struct sample *out) {
    (void)id;
    *out = ((struct generator *)arg)->sample;
}

static const struct microbatch *source_descriptor(void *arg, int k) {
    (void)k;
    return &((struct generator *)arg)->now->mb;
}

static int source_tables(void *arg, int k, struct backend *be, struct arena *arena,
                         struct batch_tables *out) {
    struct generator *g = arg;
    (void)k;
    tables_fill(&g->tables, g->now, be, arena, out);
    return 0;
}

static double source_scale(void *arg, int k) {
    (void)arg, (void)k;
    return 1.0;
}

/* ---- one pass ------------------------------------------------------------------------------------- */
/* All ranks of the model learn the id that the last stage chose. */
static int choose(struct generator *g, int64_t question, int64_t position, int32_t *id) {
    const struct group *model = grid_group(g->run.grid, GROUP_MODEL);
    int last = group_size(model) - group_size(grid_group(g->run.grid, GROUP_TP));
    *id = -1;
    if (g->picker != NULL) *id = picker_choose(g->picker, question, position);
    comm_broadcast(model, id, sizeof *id, last); /* the first tensor rank of the last stage */
    if (*id >= 0) return 0;
    return error_raise(EXIT_NUMERIC, "question %s: the logits of token %" PRId64 " are not finite",
                       g->questions.question[question].name, position + 1);
}

/* d: filled but for its end. past: rows before it. */
static int run_pass(struct generator *g, struct descriptor *d, const struct sample *s,
                    int64_t past) {
    struct microbatch_source source = {g, source_descriptor, source_tables, source_scale};
    struct pipeline_result result = g->run.result;
    if (g->picker != NULL) result.logits = picker_logits(g->picker);
    descriptor_begin(d, g->passes++, 0, 0);
    descriptor_add(d, 0, s, false);
    d->mb.targets = 1;
    d->mb.past = past;
    descriptor_end(d);
    g->sample = *s;
    g->now = d;
    return pipeline_run(g->run.pipeline, &source, d->mb.step, false, &result);
}

/* ---- one question ----------------------------------------------------------------------------------- */
static int load_images(struct generator *g, const struct question *q) {
    const struct vision_config *v = &g->run.stack.shape.vision;
    struct data_settings s;
    if (!g->tables.need.pixels) return 0;
    train_data_settings(g->run.cfg, DATA_TRAIN, &s);
    float *to = g->prompt.pixels;
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
    TRY(setup_agree(&g->run, load_images(g, q)));
    struct sample s = {.text_len = (int32_t)q->ids.n,
                       .ids = q->ids.ids,
                       .image = g->image,
                       .layout = q->layout,
                       .n_images = q->n_images,
                       .merged_len = q->rows};
    TRY(run_pass(g, &g->prompt, &s, 0));
    answer_begin(&g->answer);
    for (int64_t i = 0;; i++) {
        int32_t id;
        TRY(choose(g, number, i, &id));
        g->tokens++;
        TRY(answer_add(&g->answer, id));
        if (g->answer.ended || i + 1 == longest) break;
        struct sample one = {.text_len = 1, .ids = &id, .merged_len = 1};
        TRY(run_pass(g, &g->row, &one, q->rows + i));
    }
    answer_end(&g->answer);
    return g->answers == NULL ? 0 : answer_write(&g->answer, q, g->model, g->answers);
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
    tables_source_init(&g->tables, &r->stage, r->largest);
    g->tables.arg = g;
    g->tables.sample = read_sample;
    g->tables.predict_next = true;
    g->model = model_name(r->loaded);
    return 0;
}

static void prepare_rows(struct generator *g, int64_t rows_per_image) {
    const struct vision_config *v = &g->run.stack.shape.vision;
    int64_t images = g->questions.most_images;
    descriptor_init(&g->prompt, 1, images, rows_per_image);
    descriptor_init(&g->row, 1, 0, rows_per_image);
    g->image = xcalloc((size_t)images + 1, sizeof *g->image);
    for (int64_t i = 0; i < images; i++) g->image[i] = i;
    if (g->tables.need.pixels)
        g->prompt.pixels =
            xcalloc((size_t)(g->questions.most_tiles * v->channels * v->img_h * v->img_w) + 1,
                    sizeof(float));
}

static void prepare_choice(struct generator *g, const struct generate_request *ask) {
    struct run *r = &g->run;
    struct data_settings s;
    train_data_settings(r->cfg, DATA_TRAIN, &s);
    struct picker_settings p = {.temperature = r->cfg->generate.temperature,
                                .top_p = ask->top_p,
                                .n_ids = tokenizer_vocab_size(g->tokenizer),
                                .key = rng_run_key(ask->seed)};
    if (r->last_stage)
        g->picker = picker_create(&p, &r->stage, grid_group(r->grid, GROUP_TP), r->be);
    g->answer = (struct answer){.tokenizer = g->tokenizer,
                                .stop_text = answer_stop_text(s.conversation_template),
                                .stream = r->first_rank && ask->prompt != NULL ? stdout : NULL};
}

static int prepare(struct generator *g, struct config *cfg, const struct generate_request *ask) {
    struct data_settings s;
    if (cfg->data.data_format == FORMAT_MOCK)
        return error_raise(EXIT_USAGE, "data_format = mock has no tokenizer: nothing can be asked");
    if (cfg->derived.data_parallel_size != 1)
        return error_raise(EXIT_USAGE,
                           "strata generate runs one copy of the model: start %" PRId64
                           " ranks (tensor times pipeline size), not %" PRId64,
                           cfg->derived.n_ranks / cfg->derived.data_parallel_size,
                           cfg->derived.n_ranks);
    TRY(infer_grid(&g->run, cfg));
    train_data_settings(cfg, DATA_TRAIN, &s);
    TRY(tokenizer_open(s.tokenizer_type, s.tokenizer_model, &g->tokenizer));
    TRY(questions_read(cfg, ask, g->tokenizer, s.rows_per_image, &g->questions));
    TRY(prepare_stage(g, ask));
    prepare_rows(g, s.rows_per_image);
    prepare_choice(g, ask);
    return setup_agree(&g->run, open_answers(g, ask));
}

static void finish(struct generator *g) {
    if (g->answers != NULL && g->answers != stdout) fclose(g->answers);
    picker_destroy(g->picker);
    descriptor_free(&g->prompt);
    descriptor_free(&g->row);
    free(g->tables.staging);
    free(g->image);
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
    double start = clock_seconds();
    for (int64_t i = 0; i < g.questions.n; i++) TRY(answer_question(&g, i));
    double seconds = clock_seconds() - start;
    log_info("%" PRId64 " questions, %" PRId64 " tokens in %.1f s, %.1f tokens/s", g.questions.n,
             g.tokens, seconds, (double)g.tokens / seconds);
    finish(&g);
    return 0;
}
