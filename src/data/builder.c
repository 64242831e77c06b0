/* From a record (turns and image names) to a sample of the index: template, tokens, labels, policy
 * for samples without a target. Problems are collected, so that one run shows many of them. */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "index_impl.h"

void builder_problem(struct builder *b, int exit_code, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (b->n_problems == 0) b->code = exit_code;
    if (b->n_problems++ < PROBLEMS_SHOWN) error_raise(exit_code, "%s", text);
}

void builder_note(struct builder *b, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t used = strlen(b->x.notes), n = strlen(text);
    if (used + n + 2 > sizeof b->x.notes) return;
    for (size_t i = 0; i < n; i++) b->x.notes[used + i] = text[i] == '\n' ? ' ' : text[i];
    memcpy(b->x.notes + used + n, "\n", 2);
}

void builder_leave_out(struct builder *b, const char *fmt, ...) {
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    log_warn("%s: %s: skipped", b->set->path, text);
    if (b->n_examples++ < EXAMPLES_NOTED) builder_note(b, "left out: %s", text);
}

int builder_end(struct builder *b) {
    if (b->n_problems > PROBLEMS_SHOWN)
        error_raise(b->code, "%s: %lld more of the kind, %lld in all%s", b->set->path,
                    (long long)(b->n_problems - PROBLEMS_SHOWN), (long long)b->n_problems,
                    b->n_problems >= PROBLEMS_MAX ? "; reading ended there" : "");
    return b->n_problems > 0 ? b->code : 0;
}

void builder_step(struct builder *b) {
    b->done++;
    if (b->progress != NULL && (b->done % 64 == 0 || b->done == b->total))
        b->progress(b->progress_arg, b->done, b->total);
}

static void append_images(struct builder *b, const struct record *r, int64_t n) {
    struct index *x = &b->x;
    for (int64_t k = 0; k < n; k++) {
        index_append(x, COL_IMAGE_WIDTH, &(int32_t){0}, 1); /* filled in when images are checked */
        index_append(x, COL_IMAGE_HEIGHT, &(int32_t){0}, 1);
        index_append_i64(x, COL_IMAGE_BYTES, 0);
        index_append(x, COL_IMAGE_BLANK, &(uint8_t){0}, 1);
        index_append(x, COL_IMAGE_NAMES, r->images[k], (int64_t)strlen(r->images[k]) + 1);
        index_append_i64(x, COL_IMAGE_NAME_OFFSET, x->col[COL_IMAGE_NAMES].n);
        index_append_i64(x, COL_IMAGE_STAMP, 0);
    }
    index_append_i64(x, COL_IMAGE_OFFSET, index_images(x));
}

static void append_sample(struct builder *b, const struct record *r, int64_t n_images,
                          int64_t n_targets) {
    struct index *x = &b->x;
    index_append(x, COL_IDS, b->rows.ids, b->rows.n);
    index_append(x, COL_LABELS, b->rows.labels, b->rows.n);
    index_append_i64(x, COL_TEXT_OFFSET, x->col[COL_IDS].n);
    append_images(b, r, n_images);
    index_append_i64(x, COL_MERGED, merged_rows(b->rows.n, n_images, NULL, b->set->rows_per_image));
    index_append_i64(x, COL_TARGETS, n_targets);
    index_append_i64(x, COL_RECORD, r->number);
    index_append(x, COL_NAMES, r->name, (int64_t)strlen(r->name) + 1);
    index_append_i64(x, COL_NAME_OFFSET, x->col[COL_NAMES].n);
}

/* false: the sample is left out. */
static bool targets_allow(struct builder *b, int64_t record, const char *name, int64_t text_len,
                          int64_t n_targets) {
    if (n_targets > 0 || b->set->on_no_target == NO_TARGET_KEEP) return true;
    if (b->set->on_no_target == NO_TARGET_SKIP) {
        builder_leave_out(b, "record %lld (id %s) has no target token within %lld rows",
                          (long long)record, name, (long long)b->set->decoder_seq_length);
        b->x.skipped_no_target++;
        return false;
    }
    builder_problem(b, EXIT_BAD_DATA,
                    "%s: record %lld (id %s) has no target token within decoder_seq_length = %lld "
                    "rows (its text has %lld ids); on_no_target = skip leaves such records out",
                    b->set->path, (long long)record, name, (long long)b->set->decoder_seq_length,
                    (long long)text_len);
    return false;
}

void builder_check_targets(struct builder *b) {
    struct index *x = &b->x;
    const int64_t *text = index_i64(x, COL_TEXT_OFFSET), *targets = index_i64(x, COL_TARGETS);
    int64_t n = index_samples(x), n_skipped = 0;
    bool *keep = xcalloc((size_t)n + 1, sizeof *keep);
    for (int64_t i = 0; i < n; i++) {
        keep[i] = targets_allow(b, index_i64(x, COL_RECORD)[i], index_name(x, i),
                                text[i + 1] - text[i], targets[i]);
        n_skipped += !keep[i];
    }
    if (n_skipped > 0) index_keep(x, keep);
    free(keep);
}

static bool turns_fit_plain(struct builder *b, const struct record *r) {
    if (b->set->conversation_template != TEMPLATE_PLAIN) return true;
    if (r->n_turns == 2 && r->n_images > 0 &&
        text_count_markers(r->turns[0].text, r->turns[0].bytes) == r->n_images)
        return true;
    builder_problem(b, EXIT_BAD_DATA,
                    "%s: record %lld (id %s): template plain needs two turns and an <image> per "
                    "image in the human one; this has %d turns and %d images",
                    b->set->path, (long long)r->number, r->name, r->n_turns, r->n_images);
    return false;
}

/* Marker k takes image k. A marker without an image is an error: where the image is under a key that
 * strata does not read, the marker would be trained on as text. */
static bool markers_fit(struct builder *b, const struct record *r) {
    int64_t markers = text_count_markers(b->prompt.text.data, b->prompt.text.bytes);
    if (markers == r->n_images) return true;
    if (r->n_images == 0) {
        builder_problem(b, EXIT_BAD_DATA,
                        "%s: record %lld (id %s): <image> stands in its text, but it has no image; "
                        "the key \"image\" names it",
                        b->set->path, (long long)r->number, r->name);
        return false;
    }
    builder_problem(b, EXIT_BAD_DATA,
                    "%s: record %lld (id %s): %lld <image> markers for %d images; they must be "
                    "equal",
                    b->set->path, (long long)r->number, r->name, (long long)markers, r->n_images);
    return false;
}

/* Checked before the text is tokenised, which allocates up to 240 bytes per byte of text. */
static bool text_is_short(struct builder *b, const struct record *r) {
    size_t bytes = 0;
    for (int i = 0; i < r->n_turns; i++) bytes += r->turns[i].bytes;
    if (bytes <= RECORD_TEXT_BYTES_MAX) return true;
    builder_problem(b, EXIT_BAD_DATA,
                    "%s: record %lld (id %s): its turns have %zu bytes of text, allowed are %zu",
                    b->set->path, (long long)r->number, r->name, bytes, RECORD_TEXT_BYTES_MAX);
    return false;
}

int builder_add(struct builder *b, const struct record *r) {
    const struct data_settings *set = b->set;
    if (!turns_fit_plain(b, r)) return 0;
    if (!text_is_short(b, r)) return 0;
    prompt_build(&b->prompt, set->conversation_template, NULL, r->turns, r->n_turns, r->n_images);
    if (!markers_fit(b, r)) return 0;
    bool masked =
        set->strict_llava_masking && prompt_is_mismatch(&b->prompt, set->conversation_template);
    b->rows.n = 0;
    TRY(prompt_encode(&b->prompt, b->tok, r->n_images > 0, masked, &b->rows));
    if (set->dataloader_seq_length > 0 && b->rows.n > set->dataloader_seq_length)
        b->rows.n = set->dataloader_seq_length;
    if (b->rows.n > INT32_MAX / 2)
        return error_raise(EXIT_BAD_DATA, "%s: record %lld (id %s) has %lld token ids", set->path,
                           (long long)r->number, r->name, (long long)b->rows.n);
    int64_t n_images = 0;
    for (int64_t k = 0; k < b->rows.n; k++) n_images += b->rows.ids[k] == DATA_IMAGE_MARKER;
    /* anyres: the images' rows are not known yet; a target may still be cut off later. */
    int64_t limit = set->aspect == ASPECT_ANYRES ? INT64_MAX : set->decoder_seq_length;
    int64_t n_targets =
        count_targets(b->rows.ids, b->rows.labels, b->rows.n, NULL, set->rows_per_image, limit);
    if (targets_allow(b, r->number, r->name, b->rows.n, n_targets))
        append_sample(b, r, n_images, n_targets);
    return 0;
}
