/* One token after the other, over caches of keys and values. */
#include <stdlib.h>

#include "generate_impl.h"

/* ---- the pipeline's source: one sample ---------------------------------------------------------- */
static void read_sample(void *arg, int64_t id, struct sample *out) {
    (void)id;
    *out = ((struct decoder *)arg)->sample;
}

static const struct microbatch *source_descriptor(void *arg, int k) {
    (void)k;
    return &((struct decoder *)arg)->now->mb;
}

static int source_tables(void *arg, int k, struct backend *be, struct arena *arena,
                         struct batch_tables *out) {
    struct decoder *d = arg;
    (void)k;
    tables_fill(&d->tables, d->now, be, arena, out);
    return 0;
}

static double source_scale(void *arg, int k) {
    (void)arg, (void)k;
    return 1.0;
}

/* ---- passes --------------------------------------------------------------------------------------- */
/* past: rows before those of s. */
static int run_pass(struct decoder *d, struct descriptor *to, const struct sample *s,
                    int64_t past) {
    struct microbatch_source source = {d, source_descriptor, source_tables, source_scale};
    struct pipeline_result result = d->run->result;
    if (d->picker != NULL) result.logits = picker_logits(d->picker);
    descriptor_begin(to, d->passes++, 0, 0);
    descriptor_add(to, 0, s, false);
    to->mb.targets = 1;
    to->mb.past = past;
    descriptor_end(to);
    d->sample = *s;
    d->now = to;
    return pipeline_run(d->run->pipeline, &source, to->mb.step, false, &result);
}

int decoder_prompt(struct decoder *d, const struct sample *s) {
    struct sample whole = *s;
    whole.image = d->image;
    return run_pass(d, &d->prompt, &whole, 0);
}

int decoder_next(struct decoder *d, int32_t id, int64_t past) {
    struct sample one = {.text_len = 1, .ids = &id, .merged_len = 1};
    return run_pass(d, &d->row, &one, past);
}

int32_t decoder_choose(struct decoder *d, int64_t question, int64_t position) {
    const struct group *model = grid_group(d->run->grid, GROUP_MODEL);
    int last = group_size(model) - group_size(grid_group(d->run->grid, GROUP_TP));
    int32_t id = -1;
    if (d->picker != NULL) id = picker_choose(d->picker, question, position);
    comm_broadcast(model, &id, sizeof id, last); /* the first tensor rank of the last stage */
    return id;
}

float *decoder_pixels(const struct decoder *d) {
    return d->prompt.pixels;
}

/* ---- set-up --------------------------------------------------------------------------------------- */
void decoder_begin(struct decoder *d, struct run *run, const struct picker_settings *settings) {
    const struct vision_config *v = &run->stack.shape.vision;
    int64_t images = run->largest->images, tiles = run->largest->tiles;
    struct data_settings s;
    train_data_settings(run->cfg, DATA_TRAIN, &s);
    *d = (struct decoder){.run = run};
    tables_source_init(&d->tables, &run->stage, run->largest);
    d->tables.arg = d;
    d->tables.sample = read_sample;
    d->tables.predict_next = true;
    descriptor_init(&d->prompt, 1, images, s.rows_per_image);
    descriptor_init(&d->row, 1, 0, s.rows_per_image);
    d->image = xcalloc((size_t)images + 1, sizeof *d->image);
    for (int64_t i = 0; i < images; i++) d->image[i] = i;
    if (d->tables.need.pixels)
        d->prompt.pixels =
            xcalloc((size_t)(tiles * v->channels * v->img_h * v->img_w) + 1, sizeof(float));
    if (!run->last_stage) return;
    struct tensor logits = stage_allocate_logits(&run->stage, run->be, &run->life);
    d->picker =
        picker_create(settings, &run->stage, grid_group(run->grid, GROUP_TP), run->be, &logits);
}

void decoder_end(struct decoder *d) {
    picker_destroy(d->picker);
    descriptor_free(&d->prompt);
    descriptor_free(&d->row);
    free(d->tables.staging);
    free(d->image);
}
