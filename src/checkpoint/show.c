/* strata checkpoint show: header and tensor table. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools_impl.h"

#define VALUES 65536 /* converted at once */

/* ---- values -------------------------------------------------------------------------------------------- */
struct stats {
    double min, max, squares;
    int64_t n, odd; /* odd: NaN or infinite; they count in nothing else */
};

static void add_values(struct stats *s, enum dtype t, const char *from, int64_t n) {
    static const double none = INFINITY;
    double *v = xmalloc(VALUES * sizeof *v);
    if (s->n == 0 && s->odd == 0) s->min = none, s->max = -none;
    for (int64_t at = 0; at < n; at += VALUES) {
        int64_t k = n - at < VALUES ? n - at : VALUES;
        values_to_double(t, from + (size_t)at * dtype_size(t), k, v);
        for (int64_t i = 0; i < k; i++) {
            if (!isfinite(v[i])) {
                s->odd++;
                continue;
            }
            if (v[i] < s->min) s->min = v[i];
            if (v[i] > s->max) s->max = v[i];
            s->squares += v[i] * v[i];
            s->n++;
        }
    }
    free(v);
}

static int read_stats(struct source *s, const struct ckpt_tensor *t, struct stats *out) {
    struct box whole = tensor_box(t), slice;
    size_t element = dtype_size(t->dtype);
    int64_t at = 0, room = tensor_total_bytes(t);
    int64_t row = room / t->shape[0], most = CKPT_SLICE > row ? CKPT_SLICE : row;
    char *host = xmalloc((size_t)(room < most ? room : most));
    int rc = 0;
    *out = (struct stats){0};
    while (!rc && box_next_slice(&whole, element, CKPT_SLICE, &at, &slice)) {
        rc = source_read(s, t, &slice, host);
        if (!rc) add_values(out, t->dtype, host, box_volume(&slice));
    }
    free(host);
    return rc;
}

/* ---- the table ------------------------------------------------------------------------------------------- */
static void print_blocks(const struct source *s, const struct ckpt_tensor *t, FILE *to) {
    for (int64_t i = 0; i < t->n_blocks; i++) {
        const struct ckpt_block *b = &t->block[i];
        char box[160];
        box_text(&b->box, box, sizeof box);
        fprintf(to, "    %s of %s: %s, %lld bytes at %lld", b->dataset, s->m->file[b->file].name,
                box, (long long)b->bytes, (long long)b->file_offset);
        int64_t stored = 0;
        for (int64_t k = 0; k < b->n_chunks; k++) stored += b->chunk[k].bytes;
        if (b->n_chunks > 0)
            fprintf(to, ", %lld chunks of %lld bytes", (long long)b->n_chunks, (long long)stored);
        fputc('\n', to);
    }
}

static int print_tensor(struct source *s, const struct ckpt_tensor *t, int width, bool quick,
                        FILE *to) {
    struct stats v;
    char shape[96];
    tensor_shape_text(t, shape, sizeof shape);
    fprintf(to, "%-*s  %-14s %-5s %6lld %12lld", width, t->name, shape, dtype_name(t->dtype),
            (long long)t->n_blocks, (long long)tensor_total_bytes(t));
    if (quick) {
        fputc('\n', to);
        return 0;
    }
    int rc = read_stats(s, t, &v);
    if (!rc && v.n > 0)
        fprintf(to, "  %12.5g %12.5g %12.5g", v.min, v.max, sqrt(v.squares));
    else if (!rc)
        fprintf(to, "  %12s %12s %12s", "-", "-", "-");
    if (!rc && v.odd > 0) fprintf(to, "  %lld not finite", (long long)v.odd);
    fputc('\n', to);
    return rc;
}

/* Below the path: the name itself or something in it. */
static bool below(const char *tensor, const char *name) {
    size_t n = name ? strlen(name) : 0;
    while (n > 0 && name[n - 1] == '/') n--;
    return n == 0 || (strncmp(tensor, name, n) == 0 && (tensor[n] == 0 || tensor[n] == '/'));
}

static int print_table(struct source *s, const char *name, bool quick, FILE *to) {
    int width = 6;
    int64_t n = 0, bytes = 0;
    const struct ckpt_tensor *last = NULL;
    for (int64_t i = 0; i < s->m->n_tensors; i++) {
        last = &s->m->tensor[i];
        if (!below(last->name, name)) continue;
        if ((int)strlen(last->name) > width) width = (int)strlen(last->name);
        n++;
    }
    if (n == 0)
        return error_raise(EXIT_USAGE, "%s holds no tensor %s; show without a name lists them",
                           s->dir, name ? name : "");
    fprintf(to, "%-*s  %-14s %-5s %6s %12s%s\n", width, "tensor", "shape", "dtype", "blocks",
            "bytes", quick ? "" : "           min          max         norm");
    int rc = 0;
    for (int64_t i = 0; !rc && i < s->m->n_tensors; i++) {
        const struct ckpt_tensor *t = &s->m->tensor[i];
        if (!below(t->name, name)) continue;
        rc = print_tensor(s, t, width, quick, to);
        bytes += tensor_total_bytes(t);
        if (n == 1) print_blocks(s, t, to);
    }
    fprintf(to, "%lld tensors, %lld bytes\n", (long long)n, (long long)bytes);
    return rc;
}

/* ---- the header -------------------------------------------------------------------------------------------- */
static void line(FILE *to, const char *what, const char *text) {
    char shown[512];
    if (!text || !text[0]) return;
    text_printable(text, shown, sizeof shown);
    fprintf(to, "%-18s %s\n", what, shown);
}

static void number(FILE *to, const char *what, int64_t v) {
    fprintf(to, "%-18s %lld\n", what, (long long)v);
}

static void print_header(const struct source *s, const struct about *a, FILE *to) {
    const struct ckpt_manifest *m = s->m;
    const struct ckpt_state *st = &a->state;
    char text[256];
    line(to, "checkpoint", s->dir);
    snprintf(text, sizeof text, CKPT_FORMAT " %s", ckpt_format_version(m->filter));
    line(to, "format", text);
    if (m->filter != CKPT_FILTER_NONE) line(to, "integrity_filter", ckpt_filter_name(m->filter));
    line(to, "uuid", m->uuid);
    line(to, "run_uuid", m->run_uuid);
    line(to, "parent_uuid", m->parent_uuid);
    line(to, "created", m->created);
    number(to, "step", m->step);
    number(to, "consumed_samples", st->at.consumed_samples);
    number(to, "consumed_tokens", st->at.consumed_tokens);
    snprintf(text, sizeof text, "%lld, sample %lld of it", (long long)st->at.epoch,
             (long long)st->at.index);
    line(to, "epoch", text);
    snprintf(text, sizeof text, "TP %lld  PP %lld  DP %lld  split_spec %.160s  (%lld writers)",
             (long long)m->tp, (long long)m->pp, (long long)m->dp, m->split_spec,
             (long long)m->writers);
    line(to, "layout", text);
    line(to, "family", st->family);
    number(to, "n_parameters", st->n_parameters);
    if (!a->settings.no_save_rng) number(to, "seed", st->seed);
    number(to, "global_batch_size", st->global_batch_size);
    snprintf(text, sizeof text, "%.8g", st->lr);
    line(to, "lr", text);
    line(to, "data sha256", st->dataset_sha256);
    line(to, "tokenizer sha256", st->tokenizer_sha256);
    for (int64_t i = 0; i < a->n_code; i++) {
        bool name = strcmp(a->code[i].key, "version") == 0;
        line(to, name ? "strata" : a->code[i].key, a->code[i].value);
    }
    for (int64_t i = 0; i < st->n_provenance; i++)
        line(to, st->provenance[i].key, st->provenance[i].value);
    if (st->n_history > 0) {
        const struct ckpt_row *r = &st->history[st->n_history - 1];
        snprintf(text, sizeof text, "step %lld: loss %.6g, gradient norm %.6g (%lld rows)",
                 (long long)r->step, r->loss, r->grad_norm, (long long)st->n_history);
        line(to, "history", text);
    }
    fputc('\n', to);
}

int ckpt_show(const char *where, const char *name, bool quick, FILE *to) {
    struct source s = {0};
    struct about a = {0};
    char *dir = NULL;
    int rc = source_pick(where, &dir);
    if (!rc) rc = source_open(&s, dir);
    if (!rc) rc = about_read(&s, &a);
    if (!rc && !name) print_header(&s, &a, to);
    if (!rc) rc = print_table(&s, name, quick, to);
    about_free(&a);
    rc = source_close(rc, &s);
    free(dir);
    if (!rc && ferror(to)) rc = error_raise(EXIT_IO, "the table cannot be written");
    return rc;
}
