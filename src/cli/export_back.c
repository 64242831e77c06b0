/* After an export: the importer reads what was written, and every key must be the job's again. */
#include <stdlib.h>
#include <string.h>

#include "hf_impl.h"

struct value {
    const char *section, *key;
    char *text; /* NULL: unset */
};
struct back {
    const struct hf_export *e;
    struct value *was;
    int n, rc;
    const struct hf_keys *said;
};

static void keep(void *arg, const char *section, const char *key, const char *value,
                 bool defaulted) {
    struct back *b = arg;
    (void)defaulted;
    b->was = xrealloc(b->was, (size_t)(b->n + 1) * sizeof *b->was);
    b->was[b->n++] = (struct value){section, key, value != NULL ? xstrdup(value) : NULL};
}

static const char *was(const struct back *b, const char *section, const char *key) {
    for (int i = 0; i < b->n; i++)
        if (strcmp(b->was[i].section, section) == 0 && strcmp(b->was[i].key, key) == 0)
            return b->was[i].text;
    return NULL;
}

/* Rows added to the vocabulary, and the original's biases, which are written as zeros. */
static bool is_meant(const struct back *b, const char *section, const char *key, const char *now) {
    char rows[24];
    snprintf(rows, sizeof rows, "%lld", (long long)b->e->vocab_size);
    if (strcmp(section, "language") == 0 && strcmp(key, "vocab_size") == 0)
        return hf_same_value(now, rows);
    return b->e->original && strcmp(key, "projector_bias") == 0 && strcmp(now, "true") == 0;
}

static void compare(void *arg, const char *section, const char *key, const char *value,
                    bool defaulted) {
    struct back *b = arg;
    const char *before = was(b, section, key), *now = value;
    bool said = hf_keys_get(b->said, section, key) != NULL;
    (void)defaulted;
    if (!hf_key_must_return(section, key) && !(said && hf_key_is_input(section, key))) return;
    if (before == NULL) before = "unset";
    if (now == NULL) now = "unset";
    if (hf_same_value(before, now) || is_meant(b, section, key, now)) return;
    b->rc = error_raise(EXIT_INTERNAL, "[%s] %s: what was written reads back as %s, the job has %s",
                        section, key, now, before);
}

static char *job_of(const struct hf_keys *k) {
    static const char *const section[] = {"vision", "projector", "language", "data"};
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    CHECK(to != NULL, "no memory for the job file");
    fputs(HF_SMALL_JOB, to);
    for (size_t s = 0; s < sizeof section / sizeof *section; s++) {
        fprintf(to, "[%s]\n%s", section[s], s == 3 ? "data_format = mock\n" : "");
        if (s == 2 && hf_keys_get(k, "language", "decoder_seq_length") == NULL)
            fprintf(to, "decoder_seq_length = 1\n");
        for (int i = 0; i < k->n; i++)
            if (strcmp(k->key[i].section, section[s]) == 0 && k->key[i].value[0] != 0 &&
                strncmp(k->key[i].key, "tokenizer", 9) != 0 &&
                strcmp(k->key[i].key, "conversation_template") != 0)
                fprintf(to, "%s = %s\n", k->key[i].key, k->key[i].value);
    }
    fclose(to);
    return text;
}

/* Its tensors are those of the model, all of them and in the right shapes. */
static int match(struct safetensors *files, const struct hf_model *m) {
    struct hf_source source = {.files = files, .parts = HF_WHOLE};
    struct hf_map map = {0};
    int rc = hf_match(&source, 1, &m->stage.params, m->stack.shape.language.head_dim, 0, &map);
    if (!rc) rc = hf_check_unexpected(&map);
    hf_map_free(&map);
    return rc;
}

int hf_read_back(const struct hf_export *e, const struct config *cfg, const char *configs) {
    struct safetensors_options o = {.follow_links = false};
    struct safetensors *files = NULL;
    struct hf_model model = {0};
    struct hf_keys keys;
    struct back b = {.e = e, .said = &keys};
    TRY(safetensors_open(e->to, &o, &files));
    struct hf_folder folder = {configs, files};
    int rc = hf_model_keys(&folder, &folder, &folder, &keys);
    char *job = rc ? NULL : job_of(&keys);
    if (!rc) rc = hf_model_build(configs, NULL, job, &model);
    config_each(cfg, keep, &b);
    if (!rc) config_each(model.cfg, compare, &b);
    if (!rc) rc = b.rc;
    if (!rc) rc = match(files, &model);
    for (int i = 0; i < b.n; i++) free(b.was[i].text);
    free(b.was);
    free(job);
    hf_model_free(&model);
    safetensors_close(files);
    return rc == 0 ? 0
                   : error_note(rc == EXIT_IO ? rc : EXIT_INTERNAL,
                                "the exported folder does not read back as the model of %s: it was "
                                "removed",
                                e->from);
}
