/* What a checkpoint says of its run, read back from shard 0 into the very record that it was written
 * from (shard_common.c). */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "tools_impl.h"

static char *keep(struct about *a, char *text) {
    a->text = xrealloc(a->text, (size_t)(a->n_texts + 1) * sizeof *a->text);
    a->text[a->n_texts++] = text;
    return text;
}

void about_free(struct about *a) {
    for (int64_t i = 0; i < a->n_texts; i++) free(a->text[i]);
    free(a->text);
    free(a->key);
    free(a->code);
    free(a->provenance);
    free(a->speed);
    free(a->history);
    *a = (struct about){0};
}

/* ---- single values ------------------------------------------------------------------------------------ */
static int get_real(hid_t at, const char *name, double *v) {
    hid_t a = H5Aopen(at, name, H5P_DEFAULT);
    int rc = 0;
    if (a < 0) return h5_error(EXIT_BAD_DATA, "attribute %s is missing", name);
    if (H5Aget_storage_size(a) != sizeof *v || H5Aread(a, H5T_NATIVE_DOUBLE, v) < 0)
        rc = h5_error(EXIT_BAD_DATA, "attribute %s is no number", name);
    return h5_close(rc, a, name);
}

enum value_kind { VALUE_TEXT, VALUE_INTEGER, VALUE_REAL };
static const struct value {
    enum value_kind kind;
    const char *group, *name;
    size_t offset;
} value[] = {
#define AT(field) offsetof(struct ckpt_state, field)
    {VALUE_TEXT, "header", "family", AT(family)},
    {VALUE_INTEGER, "header", "n_parameters", AT(n_parameters)},
    {VALUE_TEXT, "training/data", "order_key", AT(order_key)},
    {VALUE_INTEGER, "training/data", "global_batch_size", AT(global_batch_size)},
    {VALUE_TEXT, "training/data", "sha256", AT(dataset_sha256)},
    {VALUE_REAL, "training/schedule", "lr", AT(lr)},
    {VALUE_REAL, "training/schedule", "weight_decay", AT(weight_decay)},
    {VALUE_TEXT, "tokenizer", "sha256", AT(tokenizer_sha256)},
    {VALUE_TEXT, "tokenizer", "template", AT(template_text)},
    {VALUE_INTEGER, "training/rng", "key", AT(seed)}, /* the last: may be missing */
#undef AT
};
#define N_VALUES (sizeof value / sizeof value[0])

static int read_value(const struct shard_reader *r, struct about *a, const struct value *v) {
    hid_t g;
    void *to = (char *)&a->state + v->offset;
    char *text;
    TRY(h5_open_group(r->file, r->path, v->group, &g));
    int rc = 0;
    if (v->kind == VALUE_INTEGER) rc = h5_get_integer(g, v->name, to);
    if (v->kind == VALUE_REAL) rc = get_real(g, v->name, to);
    if (v->kind == VALUE_TEXT) {
        rc = h5_get_text(g, v->name, &text);
        if (!rc) *(const char **)to = keep(a, text);
    }
    return h5_close(rc, g, v->group);
}

/* ---- lists of attributes -------------------------------------------------------------------------------- */
struct text_list {
    struct about *about;
    struct ckpt_text *text;
    int64_t n;
    int rc;
};

static herr_t add_text(hid_t at, const char *name, const H5A_info_t *info, void *arg) {
    struct text_list *l = arg;
    char *v;
    (void)info;
    l->rc = h5_get_text(at, name, &v);
    if (l->rc) return -1;
    l->text = xrealloc(l->text, (size_t)(l->n + 1) * sizeof *l->text);
    l->text[l->n++] = (struct ckpt_text){keep(l->about, xstrdup(name)), keep(l->about, v)};
    return 0;
}

static int read_texts(const struct shard_reader *r, struct about *a, const char *group,
                      struct ckpt_text **text, int64_t *n) {
    struct text_list l = {.about = a};
    hid_t g;
    TRY(h5_open_group(r->file, r->path, group, &g));
    if (H5Aiterate2(g, H5_INDEX_CRT_ORDER, H5_ITER_INC, NULL, add_text, &l) < 0)
        l.rc = l.rc ? l.rc : h5_error(EXIT_BAD_DATA, "%s: /%s cannot be listed", r->path, group);
    *text = l.text;
    *n = l.n;
    return h5_close(l.rc, g, group);
}

static int read_keys(const struct shard_reader *r, struct about *a) {
    struct ckpt_text *text = NULL;
    int64_t n = 0;
    const char *defaulted = "";
    int rc = read_texts(r, a, "config", &text, &n);
    for (int64_t i = 0; i < n; i++)
        if (strcmp(text[i].key, "defaulted") == 0) defaulted = text[i].value;
    a->key = xcalloc((size_t)n + 1, sizeof *a->key);
    for (int64_t i = 0; i < n; i++) {
        bool is_default = ckpt_name_listed(defaulted, text[i].key);
        char *section = (char *)(uintptr_t)text[i].key, *dot = strchr(section, '.');
        if (!dot) continue;
        *dot = 0;
        a->key[a->state.n_keys++] = (struct ckpt_key){section, dot + 1, text[i].value, is_default};
    }
    a->state.key = a->key;
    free(text);
    return rc;
}

static int read_used_ini(const struct shard_reader *r, struct about *a) {
    hid_t d;
    TRY(h5_open_plain(r->file, r->path, "config/used.ini", &d));
    hid_t type = H5Dget_type(d);
    size_t size = type < 0 ? 0 : H5Tget_size(type);
    int rc = 0;
    if (size == 0 || size > H5_TEXT_MAX || H5Tget_class(type) != H5T_STRING ||
        H5Tis_variable_str(type) != 0 || H5Dget_storage_size(d) != size)
        rc = h5_error(EXIT_BAD_DATA, "%s: config/used.ini is no text", r->path);
    char *text = rc ? NULL : keep(a, xcalloc(size + 1, 1));
    if (!rc && H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text) < 0)
        rc = h5_error(EXIT_BAD_DATA, "%s: config/used.ini could not be read", r->path);
    a->state.used_ini = text;
    rc = h5_close(rc, type, "type");
    return h5_close(rc, d, "used.ini");
}

/* ---- all of it ------------------------------------------------------------------------------------------- */
/* How the files were written, seen from the files. */
static void find_settings(const struct shard_reader *r, const struct ckpt_manifest *m,
                          struct about *a) {
    struct ckpt_settings *s = &a->settings;
    s->ckpt_step = s->most_recent_k = -1;
    s->save_derived_weights = true;
    s->filter = m->filter;
    s->hash_sha256 = m->file[0].sha256[0] != 0;
    for (int64_t i = 0; i < m->n_files; i++) s->index = s->index || m->file[i].inspection;
    s->no_save_optim = true;
    for (int64_t i = 0; i < m->n_tensors; i++)
        if (m->tensor[i].role != CKPT_WEIGHT) s->no_save_optim = false;
    s->reproducible = H5Lexists(r->file, "provenance", H5P_DEFAULT) <= 0;
    s->no_save_rng = H5Lexists(r->file, "training/rng", H5P_DEFAULT) <= 0;
}

static int read_all(const struct shard_reader *r, struct about *a) {
    int rc = read_used_ini(r, a);
    if (!rc) rc = read_keys(r, a);
    if (!rc) rc = read_texts(r, a, "code", &a->code, &a->n_code);
    for (size_t i = 0; !rc && i + a->settings.no_save_rng < N_VALUES; i++)
        rc = read_value(r, a, &value[i]);
    if (!rc) rc = reader_counters(r, &a->state.at);
    if (!rc) rc = reader_history(r, &a->history, &a->state.n_history);
    a->state.history = a->history;
    if (rc || a->settings.reproducible) return rc;
    rc = read_texts(r, a, "provenance", &a->provenance, &a->state.n_provenance);
    a->state.provenance = a->provenance;
    if (!rc) rc = reader_speed(r, &a->speed, &a->state.n_speed);
    a->state.speed = a->speed;
    return rc;
}

int about_read(struct source *s, struct about *a) {
    struct shard_reader *r;
    *a = (struct about){0};
    TRY(source_shard(s, 0, &r));
    h5_begin(NULL);
    find_settings(r, s->m, a);
    int rc = read_all(r, a);
    h5_end(NULL);
    memcpy(a->run_uuid, s->m->run_uuid, sizeof a->run_uuid);
    memcpy(a->parent_uuid, s->m->uuid, sizeof a->parent_uuid);
    a->state.run_uuid = a->run_uuid;
    a->state.parent_uuid = a->parent_uuid;
    a->state.split_spec = s->m->split_spec;
    return rc;
}

int ckpt_used_ini(const char *where, char **text, char **dir) {
    struct source s = {0};
    struct about a = {0};
    char *found = NULL;
    *text = NULL;
    int rc = source_pick(where, &found);
    if (!rc) rc = source_open(&s, found);
    if (!rc) rc = about_read(&s, &a);
    if (!rc) *text = xstrdup(a.state.used_ini);
    about_free(&a);
    rc = source_close(rc, &s);
    if (dir)
        *dir = found;
    else
        free(found);
    return rc;
}

int ckpt_show_config(const char *where, FILE *to) {
    char *text;
    TRY(ckpt_used_ini(where, &text, NULL));
    int rc = fputs(text, to) < 0 ? error_raise(EXIT_IO, "standard output cannot be written") : 0;
    free(text);
    return rc;
}
