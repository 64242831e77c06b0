/* strata checkpoint diff: two checkpoints tensor by tensor, element by element of the global tensors,
 * so that layouts do not matter; and what they say of the state of training. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tools_impl.h"

#define PAIR_SLICE (CKPT_SLICE / 2) /* of each of the two */

struct pair {
    struct source a, b;
    struct about about_a, about_b;
    FILE *to;
    int64_t n_equal, n_different; /* tensors */
    int64_t n_state, n_config;    /* differences */
};

/* ---- elements ---------------------------------------------------------------------------------------------- */
/* Position of a value on the line of all values of its type: neighbours differ by one. */
static int64_t place(enum dtype t, const char *at) {
    int64_t bits = 0;
    size_t size = dtype_size(t);
    memcpy(&bits, at, size); /* little-endian */
    if (t == DTYPE_U8) return bits;
    int shift = 64 - 8 * (int)size;
    bits = (int64_t)((uint64_t)bits << shift) >> shift;
    if (t == DTYPE_I32 || t == DTYPE_I64 || bits >= 0) return bits;
    return -(int64_t)((uint64_t)bits & (UINT64_MAX >> (shift + 1))); /* sign and magnitude */
}

struct distance {
    int64_t n, first; /* elements that differ; flat index of the first */
    double max_abs;
    uint64_t max_ulp;
    bool odd; /* some are not finite: they count in neither maximum */
};

static void add_difference(struct distance *d, enum dtype t, const char *a, const char *b,
                           int64_t index) {
    double x, y;
    if (d->n++ == 0) d->first = index;
    values_to_double(t, a, 1, &x);
    values_to_double(t, b, 1, &y);
    if (!isfinite(x) || !isfinite(y)) {
        d->odd = true;
        return;
    }
    if (fabs(x - y) > d->max_abs) d->max_abs = fabs(x - y);
    int64_t p = place(t, a), q = place(t, b);
    uint64_t ulp = p > q ? (uint64_t)p - (uint64_t)q : (uint64_t)q - (uint64_t)p;
    if (ulp > d->max_ulp) d->max_ulp = ulp;
}

static void compare_slice(struct distance *d, enum dtype t, const char *a, const char *b, int64_t n,
                          int64_t first) {
    size_t size = dtype_size(t);
    if (memcmp(a, b, (size_t)n * size) == 0) return;
    for (int64_t i = 0; i < n; i++, a += size, b += size)
        if (memcmp(a, b, size) != 0) add_difference(d, t, a, b, first + i);
}

static int compare_values(struct pair *p, const struct ckpt_tensor *x, const struct ckpt_tensor *y,
                          struct distance *d) {
    struct box whole = tensor_box(x), slice;
    int64_t at = 0, bytes = tensor_total_bytes(x), row = bytes / x->shape[0];
    int64_t room = PAIR_SLICE > row ? PAIR_SLICE : row,
            elements = row / (int64_t)dtype_size(x->dtype);
    if (room > bytes) room = bytes;
    char *a = xmalloc((size_t)room), *b = xmalloc((size_t)room);
    int rc = 0;
    *d = (struct distance){0};
    while (!rc && box_next_slice(&whole, dtype_size(x->dtype), PAIR_SLICE, &at, &slice)) {
        rc = source_read(&p->a, x, &slice, a);
        if (!rc) rc = source_read(&p->b, y, &slice, b);
        if (!rc) compare_slice(d, x->dtype, a, b, box_volume(&slice), slice.offset[0] * elements);
    }
    free(a);
    free(b);
    return rc;
}

/* ---- tensors --------------------------------------------------------------------------------------------------- */
static void index_text(const struct ckpt_tensor *t, int64_t flat, char *text, size_t size) {
    int64_t at[CKPT_DIMS] = {0};
    size_t used = 0;
    for (int d = t->n_dims - 1; d >= 0; d--) {
        at[d] = flat % t->shape[d];
        flat /= t->shape[d];
    }
    for (int d = 0; d < t->n_dims && used < size; d++)
        used +=
            (size_t)snprintf(text + used, size - used, "%s%lld", d ? "," : "", (long long)at[d]);
}

static int compare_tensor(struct pair *p, const struct ckpt_tensor *x,
                          const struct ckpt_tensor *y) {
    char a[96], b[96];
    struct distance d;
    bool alike = x->dtype == y->dtype && x->n_dims == y->n_dims &&
                 memcmp(x->shape, y->shape, (size_t)x->n_dims * sizeof *x->shape) == 0;
    if (!alike) {
        tensor_shape_text(x, a, sizeof a);
        tensor_shape_text(y, b, sizeof b);
        p->n_different++;
        fprintf(p->to, "%s: %s %s against %s %s\n", x->name, a, dtype_name(x->dtype), b,
                dtype_name(y->dtype));
        return 0;
    }
    TRY(compare_values(p, x, y, &d));
    p->n_equal += d.n == 0;
    if (d.n == 0) return 0;
    p->n_different++;
    index_text(x, d.first, a, sizeof a);
    struct box whole = tensor_box(x);
    fprintf(p->to, "%s: %lld of %lld differ, largest difference %.6g, %llu ulp, first at [%s]%s\n",
            x->name, (long long)d.n, (long long)box_volume(&whole), d.max_abs,
            (unsigned long long)d.max_ulp, a, d.odd ? ", some not finite" : "");
    return 0;
}

static int compare_tensors(struct pair *p) {
    const struct ckpt_manifest *a = p->a.m, *b = p->b.m;
    int rc = 0;
    for (int64_t i = 0; !rc && i < a->n_tensors; i++) {
        const struct ckpt_tensor *y = manifest_find(b, a->tensor[i].name);
        if (y) rc = compare_tensor(p, &a->tensor[i], y);
        if (y) continue;
        fprintf(p->to, "%s: only in %s\n", a->tensor[i].name, p->a.dir);
        p->n_different++;
    }
    for (int64_t i = 0; !rc && i < b->n_tensors; i++) {
        if (manifest_find(a, b->tensor[i].name)) continue;
        fprintf(p->to, "%s: only in %s\n", b->tensor[i].name, p->b.dir);
        p->n_different++;
    }
    return rc;
}

/* ---- state of training ------------------------------------------------------------------------------------------- */
static void state_number(struct pair *p, const char *what, int64_t a, int64_t b) {
    if (a == b) return;
    p->n_state++;
    fprintf(p->to, "%s: %lld against %lld\n", what, (long long)a, (long long)b);
}

static void state_text(struct pair *p, const char *what, const char *a, const char *b) {
    char x[128], y[128];
    if (strcmp(a ? a : "", b ? b : "") == 0) return;
    text_printable(a ? a : "", x, sizeof x);
    text_printable(b ? b : "", y, sizeof y);
    p->n_state++;
    fprintf(p->to, "%s: \"%s\" against \"%s\"\n", what, x, y);
}

static bool same_bits(double a, double b) {
    uint64_t x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    return x == y;
}

static bool same_row(const struct ckpt_row *x, const struct ckpt_row *y) {
    return x->step == y->step && same_bits(x->loss, y->loss) && same_bits(x->lr, y->lr) &&
           same_bits(x->grad_norm, y->grad_norm);
}

static void compare_history(struct pair *p) {
    const struct ckpt_state *a = &p->about_a.state, *b = &p->about_b.state;
    int64_t n = a->n_history < b->n_history ? a->n_history : b->n_history;
    state_number(p, "rows of the history", a->n_history, b->n_history);
    for (int64_t i = 0; i < n; i++) {
        const struct ckpt_row *x = &a->history[i], *y = &b->history[i];
        if (same_row(x, y)) continue;
        p->n_state++;
        fprintf(p->to, "history from step %lld on: loss %.17g against %.17g\n", (long long)x->step,
                x->loss, y->loss);
        return;
    }
}

static void compare_state(struct pair *p) {
    const struct ckpt_state *a = &p->about_a.state, *b = &p->about_b.state;
    const struct ckpt_counters *x = &a->at, *y = &b->at;
    state_number(p, "step", x->step, y->step);
    state_number(p, "consumed_samples", x->consumed_samples, y->consumed_samples);
    state_number(p, "consumed_tokens", x->consumed_tokens, y->consumed_tokens);
    state_number(p, "epoch", x->epoch, y->epoch);
    state_number(p, "index", x->index, y->index);
    state_number(p, "optimizer_step", x->optimizer_step, y->optimizer_step);
    state_number(p, "skipped_iterations", x->skipped_iterations, y->skipped_iterations);
    state_number(p, "nan_iterations", x->nan_iterations, y->nan_iterations);
    state_number(p, "skipped_samples", x->skipped_samples, y->skipped_samples);
    state_number(p, "seed", a->seed, b->seed);
    state_number(p, "global_batch_size", a->global_batch_size, b->global_batch_size);
    state_text(p, "family", a->family, b->family);
    state_text(p, "order of the data", a->order_key, b->order_key);
    state_text(p, "data set", a->dataset_sha256, b->dataset_sha256);
    state_text(p, "tokenizer", a->tokenizer_sha256, b->tokenizer_sha256);
    state_text(p, "conversation template", a->template_text, b->template_text);
    if (!same_bits(a->lr, b->lr)) {
        p->n_state++;
        fprintf(p->to, "lr: %.17g against %.17g\n", a->lr, b->lr);
    }
    compare_history(p);
}

/* ---- job files: told, not counted ---------------------------------------------------------------------------------- */
static const char *find_key(const struct ckpt_state *s, const struct ckpt_key *k) {
    for (int64_t i = 0; i < s->n_keys; i++)
        if (strcmp(s->key[i].section, k->section) == 0 && strcmp(s->key[i].key, k->key) == 0)
            return s->key[i].value;
    return NULL;
}

static void tell_key(struct pair *p, const struct ckpt_key *k, const char *a, const char *b) {
    char x[160], y[160];
    text_printable(a ? a : "(unset)", x, sizeof x);
    text_printable(b ? b : "(unset)", y, sizeof y);
    fprintf(p->to, "job file [%s] %s: %s against %s\n", k->section, k->key, x, y);
    p->n_config++;
}

static void compare_config(struct pair *p) {
    const struct ckpt_state *a = &p->about_a.state, *b = &p->about_b.state;
    for (int64_t i = 0; i < a->n_keys; i++) {
        const char *other = find_key(b, &a->key[i]);
        if (!other || strcmp(a->key[i].value, other) != 0)
            tell_key(p, &a->key[i], a->key[i].value, other);
    }
    for (int64_t i = 0; i < b->n_keys; i++)
        if (!find_key(a, &b->key[i])) tell_key(p, &b->key[i], NULL, b->key[i].value);
}

static void tell_layouts(const struct pair *p) {
    for (int i = 0; i < 2; i++) {
        const struct ckpt_manifest *m = i ? p->b.m : p->a.m;
        fprintf(p->to, "%s %s: step %lld, TP %lld PP %lld DP %lld, split_spec %s\n", i ? "B" : "A",
                i ? p->b.dir : p->a.dir, (long long)m->step, (long long)m->tp, (long long)m->pp,
                (long long)m->dp, m->split_spec);
    }
}

static int open_pair(struct pair *p, const char *a, const char *b) {
    TRY(source_open(&p->a, a));
    TRY(source_open(&p->b, b));
    TRY(about_read(&p->a, &p->about_a));
    return about_read(&p->b, &p->about_b);
}

int ckpt_diff(const char *a, const char *b, FILE *to, bool *equal) {
    struct pair p = {.to = to};
    char *dir_a = NULL, *dir_b = NULL;
    *equal = false;
    int rc = source_pick(a, &dir_a);
    if (!rc) rc = source_pick(b, &dir_b);
    if (!rc) rc = open_pair(&p, dir_a, dir_b);
    if (!rc) {
        tell_layouts(&p);
        compare_state(&p);
        compare_config(&p);
        rc = compare_tensors(&p);
    }
    if (!rc) {
        *equal = p.n_different == 0 && p.n_state == 0;
        fprintf(to,
                "%s: %lld tensors equal, %lld different; %lld differences of state, %lld of job "
                "files\n",
                *equal ? "equal" : "different", (long long)p.n_equal, (long long)p.n_different,
                (long long)p.n_state, (long long)p.n_config);
    }
    about_free(&p.about_a);
    about_free(&p.about_b);
    rc = source_close(rc, &p.a);
    rc = source_close(rc, &p.b);
    free(dir_a);
    free(dir_b);
    if (!rc && ferror(to)) rc = error_raise(EXIT_IO, "the comparison cannot be written");
    return rc;
}
