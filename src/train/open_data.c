/* From the keys of [data] to an open data set. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "run_impl.h"

static void copy_format(const struct config *c, struct data_settings *s) {
    static const enum data_format format[] = {[FORMAT_LLAVA_JSON] = DATA_LLAVA_JSON,
                                              [FORMAT_CAPTIONED_FOLDER] = DATA_CAPTIONED_FOLDER,
                                              [FORMAT_MOCK] = DATA_MOCK};
    static const enum data_template tpl[] = {[CONVERSATION_PLAIN] = TEMPLATE_PLAIN,
                                             [CONVERSATION_V1] = TEMPLATE_V1,
                                             [CONVERSATION_MISTRAL_INSTRUCT] =
                                                 TEMPLATE_MISTRAL_INSTRUCT,
                                             [CONVERSATION_LLAVA_LLAMA_2] = TEMPLATE_LLAVA_LLAMA_2,
                                             [CONVERSATION_CHATML_DIRECT] = TEMPLATE_CHATML_DIRECT};
    s->format = format[c->data.data_format];
    if (c->data.conversation_template != CONFIG_UNSET)
        s->conversation_template = tpl[c->data.conversation_template];
    s->cache_path = c->data.data_cache_path;
    s->image_folder = c->data.image_folder;
    s->caption_extension = c->data.caption_extension;
    s->caption_lines = c->data.caption_lines == CAPTION_LINES_FIRST ? CAPTION_FIRST : CAPTION_ALL;
    s->caption_prompt = c->data.caption_prompt;
    s->strict_llava_masking = c->data.strict_llava_masking;
}

static void copy_anyres(const struct config *c, struct anyres *a) {
    const struct config_list *l = &c->data.image_grid_pinpoints;
    *a = (struct anyres){.n = (int)(l->n / 2),
                         .img_w = (int)c->vision.img_w,
                         .img_h = (int)c->vision.img_h,
                         .patches_w = (int)(c->vision.img_w / c->vision.patch_dim),
                         .patches_h = (int)(c->vision.img_h / c->vision.patch_dim)};
    for (int i = 0; i < a->n; i++) {
        a->width[i] = (int)l->v[2 * i];
        a->height[i] = (int)l->v[2 * i + 1];
    }
}

static void copy_images(const struct config *c, struct data_settings *s) {
    static const enum data_aspect aspect[] = {[IMAGE_ASPECT_SQUARE] = ASPECT_SQUARE,
                                              [IMAGE_ASPECT_PAD] = ASPECT_PAD,
                                              [IMAGE_ASPECT_ANYRES] = ASPECT_ANYRES};
    s->img_h = (int)c->vision.img_h;
    s->img_w = (int)c->vision.img_w;
    s->aspect = aspect[c->data.image_aspect_ratio];
    copy_anyres(c, &s->anyres);
    s->composite = c->data.image_background.n == 3;
    for (int i = 0; i < 3; i++) {
        if (s->composite) s->background[i] = (uint8_t)c->data.image_background.v[i];
        if (c->data.image_mean.n == 3) s->mean[i] = c->data.image_mean.v[i];
        if (c->data.image_std.n == 3) s->std[i] = c->data.image_std.v[i];
    }
    s->on_bad_image = c->data.on_bad_image == ON_BAD_IMAGE_SKIP    ? BAD_IMAGE_SKIP
                      : c->data.on_bad_image == ON_BAD_IMAGE_BLANK ? BAD_IMAGE_BLANK
                                                                   : BAD_IMAGE_FAIL;
    s->max_bad_images = c->data.max_bad_images;
}

const char *train_data_path(const struct config *c, enum data_part part) {
    return part == DATA_TRAIN ? c->data.data_path : c->data.valid_data_path;
}

bool train_has_data(const struct config *c, enum data_part part) {
    return part == DATA_TRAIN || train_data_path(c, part) != NULL;
}

void train_data_settings(const struct config *c, enum data_part part, struct data_settings *s) {
    data_settings_init(s);
    copy_format(c, s);
    s->path = train_data_path(c, part);
    copy_images(c, s);
    if (c->data.tokenizer_type != CONFIG_UNSET)
        s->tokenizer_type = config_choice(c, &c->data.tokenizer_type);
    s->tokenizer_model = c->data.tokenizer_model;
    s->vocab_size = c->language.vocab_size;
    s->decoder_seq_length = c->language.decoder_seq_length;
    s->dataloader_seq_length =
        c->language.dataloader_seq_length > 0 ? c->language.dataloader_seq_length : 0;
    int64_t patches =
        c->vision.img_h / c->vision.patch_dim * (c->vision.img_w / c->vision.patch_dim);
    s->rows_per_image = patches + (c->vision.disable_vision_class_token ? 0 : 1);
    s->on_no_target = c->data.on_no_target == ON_NO_TARGET_SKIP   ? NO_TARGET_SKIP
                      : c->data.on_no_target == ON_NO_TARGET_KEEP ? NO_TARGET_KEEP
                                                                  : NO_TARGET_FAIL;
    s->shuffle = c->data.shuffle;
    s->num_workers = (int)c->data.num_workers;
    s->mock_seed = (uint64_t)c->training.seed;
}

int train_resolve_vocabulary(struct config *cfg) {
    if (cfg->data.data_format == FORMAT_MOCK) return 0;
    struct tokenizer *t;
    TRY(tokenizer_open(config_choice(cfg, &cfg->data.tokenizer_type), cfg->data.tokenizer_model,
                       &t));
    int rc = config_resolve_vocab(cfg, tokenizer_vocab_size(t));
    tokenizer_close(t);
    return rc;
}

static void progress(void *arg, int64_t done, int64_t total) {
    double *last = arg, now = clock_seconds();
    if (done < total && now - *last < 5.0) return;
    *last = now;
    log_info("preparing data: %lld of %lld samples", (long long)done, (long long)total);
}

int train_prepare_data(struct config *cfg, enum data_part part, bool force) {
    struct data_settings s;
    if (!train_has_data(cfg, part)) return 0;
    TRY(train_resolve_vocabulary(cfg));
    train_data_settings(cfg, part, &s);
    double last = clock_seconds();
    TRY(dir_make(s.cache_path));
    return dataset_prepare(&s, force, progress, &last);
}

/* ---- what each start says ------------------------------------------------------------------------ */

/* Records that are not trained on as they are, the index that says so, and how to make it again. */
static void warn_left_out(const struct config *cfg, const struct data_settings *s,
                          const struct dataset_report *r) {
    int64_t left = r->skipped_bad_image + r->skipped_no_target;
    if (left == 0 && r->blank_images == 0) return;
    char *index = dataset_index_path(s), *command = config_command(cfg, "prepare", "--rebuild");
    if (left > 0)
        log_warn("%s: %" PRId64 " of %" PRId64 " records are left out: %" PRId64
                 " with an image that cannot be used (on_bad_image = skip), %" PRId64
                 " without a target token (on_no_target = skip), says the index %s; it is made "
                 "again when a file changes, or by: %s",
                 s->path, left, left + r->samples, r->skipped_bad_image, r->skipped_no_target,
                 index, command);
    if (r->blank_images > 0)
        log_warn("%s: %" PRId64 " of %" PRId64
                 " images cannot be used and are blank (on_bad_image = blank), says the index %s; "
                 "it is made again when a file changes, or by: %s",
                 s->path, r->blank_images, r->images, index, command);
    free(index);
    free(command);
}

static void log_notes(const char *notes) {
    for (const char *end; (end = strchr(notes, '\n')) != NULL; notes = end + 1)
        log_info("data: %.*s", (int)(end - notes), notes);
}

static void report_data(const struct config *cfg, const struct data_settings *s,
                        const struct dataset *d) {
    struct dataset_report r;
    if (s->format == DATA_MOCK) return;
    dataset_report(d, &r);
    warn_left_out(cfg, s, &r);
    log_notes(dataset_notes(d));
}

int train_show_prepared(struct config *cfg, enum data_part part) {
    struct data_settings s;
    struct dataset *d = NULL;
    if (!train_has_data(cfg, part)) return 0;
    train_data_settings(cfg, part, &s);
    if (s.format == DATA_MOCK) return 0;
    TRY(dataset_open(&s, &d));
    report_data(cfg, &s, d);
    char *index = dataset_index_path(&s);
    log_info("data: %" PRId64 " samples and %" PRId64 " images of %s, index %s", dataset_count(d),
             dataset_images(d), s.path, index);
    free(index);
    dataset_close(d);
    return 0;
}

int train_open_data(struct config *cfg, enum data_part part, const struct grid *grid,
                    struct dataset **out) {
    struct data_settings s;
    int rc = comm_world_rank() == 0 ? train_prepare_data(cfg, part, false) : 0;
    int worst = comm_vote(grid_group(grid, GROUP_WORLD), rc);
    TRY(rc);
    TRY(worst);
    TRY(train_resolve_vocabulary(cfg));
    if (!train_has_data(cfg, part)) return 0;
    train_data_settings(cfg, part, &s);
    TRY(dataset_open(&s, out));
    if (comm_world_rank() == 0) report_data(cfg, &s, *out);
    return 0;
}
