/* dataset_prepare: what shapes an index, where it lies, when it is out of date, and building it. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "index_impl.h"

#define KEEP_NO_TARGET_SHARE 100 /* on_no_target = keep: more than one sample in 100 stops */

static int check_settings(const struct data_settings *s) {
    if (s->format == DATA_MOCK) return 0;
    if (s->path == NULL) return error_raise(EXIT_USAGE, "data_path is missing in section [data]");
    CHECK(s->cache_path != NULL, "no cache_path");
    CHECK(s->decoder_seq_length > 1 && s->rows_per_image > 0 && s->vocab_size > 0,
          "sequence %lld, rows per image %lld, vocabulary %lld", (long long)s->decoder_seq_length,
          (long long)s->rows_per_image, (long long)s->vocab_size);
    return 0;
}

/* Only anyres makes the shapes depend on more than rows_per_image. */
static char *anyres_text(const struct data_settings *s) {
    const struct anyres *a = &s->anyres;
    if (s->aspect != ASPECT_ANYRES) return xstrdup("");
    char *text = xasprintf("anyres = %d x %d, %d x %d patches:", a->img_w, a->img_h, a->patches_w,
                           a->patches_h);
    for (int i = 0; i < a->n; i++) {
        char *longer =
            xasprintf("%s %d x %d%s", text, a->width[i], a->height[i], i + 1 < a->n ? "," : "\n");
        free(text);
        text = longer;
    }
    return text;
}

/* One line per setting that shapes the index; it is stored in the file and its hash is the name. */
static char *settings_text(const struct data_settings *s) {
    char tokenizer[65];
    if (tokenizer_file_sha256(s->tokenizer_model, tokenizer) != 0) return NULL;
    char *folder = data_image_folder(s), *tiles = anyres_text(s);
    char *text =
        xasprintf("index_version = 1\ndata_format = %d\ndata_path = %s\nimage_folder = %s\n"
                  "caption_extension = %s\ncaption_prompt = %s\nconversation_template = %d\n"
                  "strict_llava_masking = %d\ntokenizer_sha256 = %s\nvocab_size = %lld\n"
                  "decoder_seq_length = %lld\ndataloader_seq_length = %lld\nrows_per_image = %lld\n"
                  "on_bad_image = %d\nmax_bad_images = %lld\non_no_target = %d\n%s%s",
                  (int)s->format, s->path, folder, s->caption_extension,
                  s->caption_prompt != NULL ? s->caption_prompt : "", (int)s->conversation_template,
                  s->strict_llava_masking, tokenizer, (long long)s->vocab_size,
                  (long long)s->decoder_seq_length, (long long)s->dataloader_seq_length,
                  (long long)s->rows_per_image, (int)s->on_bad_image, (long long)s->max_bad_images,
                  (int)s->on_no_target,
                  s->caption_lines == CAPTION_FIRST ? "caption_lines = first\n" : "", tiles);
    free(tiles);
    free(folder);
    return text;
}

static char *path_of(const struct data_settings *s, const char *text) {
    char hex[65];
    struct sha256 h;
    sha256_begin(&h);
    sha256_add(&h, text, strlen(text));
    sha256_end(&h, hex);
    return xasprintf("%s/dataset-%.16s.h5", s->cache_path, hex);
}

char *dataset_index_path(const struct data_settings *s) {
    CHECK(s->format != DATA_MOCK, "mock data have no index file");
    if (check_settings(s) != 0) return NULL;
    char *text = settings_text(s), *path = text != NULL ? path_of(s, text) : NULL;
    free(text);
    return path;
}

int source_fingerprint(const struct data_settings *s, char hex[65]) {
    struct sha256 h;
    sha256_begin(&h);
    if (s->format == DATA_CAPTIONED_FOLDER) {
        TRY(folder_fingerprint(s, &h));
    } else {
        struct stat st;
        if (stat(s->path, &st) != 0)
            return error_raise(errno == ENOENT ? EXIT_NO_INPUT : EXIT_IO,
                               "data_path %s cannot be read: %s", s->path, strerror(errno));
        int64_t stamp = file_stamp(AT_FDCWD, s->path);
        sha256_add(&h, &stamp, sizeof stamp);
    }
    sha256_end(&h, hex);
    return 0;
}

/* ---- building -------------------------------------------------------------------------------- */

static int open_tokenizer(struct builder *b) {
    const struct data_settings *s = b->set;
    TRY(tokenizer_open(s->tokenizer_type, s->tokenizer_model, &b->tok));
    if (tokenizer_vocab_size(b->tok) <= s->vocab_size) return 0;
    return error_raise(EXIT_USAGE,
                       "tokenizer_model %s has %lld pieces, but the model's vocab_size is %lld; "
                       "the tokenizer must not be the larger one",
                       s->tokenizer_model, (long long)tokenizer_vocab_size(b->tok),
                       (long long)s->vocab_size);
}

static int check_kept(const struct builder *b) {
    const int64_t *targets = index_i64(&b->x, COL_TARGETS);
    int64_t n = index_samples(&b->x), without = 0;
    if (n == 0) return error_raise(EXIT_BAD_DATA, "%s: no sample is left", b->set->path);
    for (int64_t i = 0; i < n; i++) without += targets[i] == 0;
    if (without > 0)
        log_warn("%s: %lld of %lld samples have no target token and add nothing to the loss",
                 b->set->path, (long long)without, (long long)n);
    if (without * KEEP_NO_TARGET_SHARE <= n) return 0;
    return error_raise(EXIT_BAD_DATA,
                       "%s: %lld of %lld samples have no target token; on_no_target = keep allows "
                       "1 in %d",
                       b->set->path, (long long)without, (long long)n, KEEP_NO_TARGET_SHARE);
}

static void note_keys(struct builder *b, const char *what, const struct record_keys *met) {
    char *text = record_keys_text(met);
    if (text != NULL)
        builder_note(b, "keys of %s that strata does not read, with the number of %s: %s", what,
                     what, text);
    free(text);
}

static void add_notes(struct builder *b) {
    note_keys(b, "records", &b->record_keys);
    note_keys(b, "turns", &b->turn_keys);
    if (b->early_turns > 0)
        builder_note(
            b,
            "%lld turns of gpt before the first of human are left out, in %lld records, as "
            "LLaVA does",
            (long long)b->early_turns, (long long)b->early_records);
    if (b->lines_left_out > 0)
        builder_note(b,
                     "%lld lines behind the first are left out, in %lld captions (caption_lines = "
                     "first)",
                     (long long)b->lines_left_out, (long long)b->captions_cut);
}

static int fill(struct builder *b) {
    TRY(open_tokenizer(b));
    TRY(b->set->format == DATA_LLAVA_JSON ? source_llava_read(b) : source_folder_read(b));
    TRY(builder_end(b));
    add_notes(b);
    b->total = b->done + index_images(&b->x);
    TRY(builder_check_images(b));
    if (b->set->aspect == ASPECT_ANYRES) {
        index_measure(&b->x, b->set);
        builder_check_targets(b);
    }
    TRY(builder_end(b));
    return check_kept(b);
}

static int build(struct builder *b, const char *path, const char *text, const char *fingerprint) {
    index_init(&b->x);
    int rc = fill(b);
    if (rc == 0) {
        index_compute_digest(&b->x, b->x.digest);
        memcpy(b->x.fingerprint, fingerprint, sizeof b->x.fingerprint);
        rc = dir_make(b->set->cache_path);
    }
    if (rc == 0) rc = index_file_write(path, &b->x, text);
    index_free(&b->x);
    tokenizer_close(b->tok);
    prompt_free(&b->prompt);
    free(b->rows.ids);
    free(b->rows.labels);
    return rc;
}

/* An index that cannot be read counts as none. */
static bool is_current(const struct data_settings *s, const char *path, const char *fingerprint) {
    struct index x;
    if (access(path, F_OK) != 0) return false;
    if (index_file_read_names(path, &x) != 0) {
        log_warn("%s: %s; it is made again", path, error_text());
        error_clear();
        return false;
    }
    char *folder = data_image_folder(s), *changed = NULL;
    bool fits = index_names_fit(&x);
    if (strcmp(x.fingerprint, fingerprint) != 0)
        changed = xstrdup(s->path);
    else if (fits)
        changed = index_find_changed(&x, folder, s->num_workers);
    if (changed != NULL)
        log_info("data: %s changed after the index %s was made: it is made again", changed, path);
    bool current = fits && changed == NULL;
    free(changed);
    free(folder);
    index_free(&x);
    return current;
}

int dataset_prepare(const struct data_settings *s, bool force,
                    void (*progress)(void *arg, int64_t done, int64_t total), void *arg) {
    if (s->format == DATA_MOCK) return 0;
    TRY(check_settings(s));
    char fingerprint[65], *text = settings_text(s);
    if (text == NULL) return error_code();
    char *path = path_of(s, text);
    struct builder b = {.set = s, .progress = progress, .progress_arg = arg};
    int rc = source_fingerprint(s, fingerprint);
    if (rc == 0 && (force || !is_current(s, path, fingerprint)))
        rc = build(&b, path, text, fingerprint);
    free(path);
    free(text);
    return rc;
}
