/* What every shard says about the run: header, code, config, training, tokenizer; and what shard 0
 * says in addition: history and provenance. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "h5_impl.h"

struct common {
    const struct shard_identity *id;
    const struct ckpt_state *st;
};

static const char *text(const char *t) {
    return t ? t : "";
}

/* World ranks as rows (tp, pp, dp). */
static int put_rank_map(hid_t g, const struct shard_identity *id) {
    const struct ckpt_manifest *m = id->m;
    int64_t n = m->tp * m->pp * m->dp, *map = xcalloc((size_t)n * 3, sizeof *map);
    for (int64_t i = 0; i < n; i++) {
        int64_t at[3] = {i % m->tp, i / m->tp % m->pp, i / (m->tp * m->pp)};
        int rank = grid_rank_at(id->grid, (int)at[0], (int)at[1], (int)at[2]);
        CHECK(rank >= 0 && rank < n, "rank %d of %lld", rank, (long long)n);
        memcpy(map + 3 * rank, at, sizeof at);
    }
    int rc = h5_put_integers(g, "rank_map", map, n, 3);
    free(map);
    return rc;
}

/* Of each world rank, the shard with its parts. */
static int put_shards(hid_t g, const struct shard_identity *id) {
    const struct ckpt_manifest *m = id->m;
    int64_t n = m->tp * m->pp * m->dp, *shard = xcalloc((size_t)n, sizeof *shard);
    for (int64_t r = 0, found = 0; r < n; r++) {
        int64_t writer = id->writer == NULL ? r : id->writer[r];
        shard[r] = writer == r ? found++ : shard[writer];
    }
    int rc = h5_put_integers(g, "shard_of_rank", shard, n, 0);
    free(shard);
    return rc;
}

static int put_header(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    const struct ckpt_manifest *m = c->id->m;
    char precision[96];
    snprintf(precision, sizeof precision, "weights %s (they are the master copy), moments %s",
             dtype_name(st->be->dtype), dtype_name(st->be->acc));
    TRY(h5_put_integer(g, "step", st->at.step));
    TRY(h5_put_integer(g, "consumed_samples", st->at.consumed_samples));
    TRY(h5_put_integer(g, "consumed_tokens", st->at.consumed_tokens));
    TRY(h5_put_integer(g, "epoch", st->at.epoch));
    TRY(h5_put_integer(g, "tp", m->tp));
    TRY(h5_put_integer(g, "pp", m->pp));
    TRY(h5_put_integer(g, "dp", m->dp));
    TRY(h5_put_text(g, "split_spec", m->split_spec));
    TRY(h5_put_integer(g, "writers", m->writers));
    TRY(put_rank_map(g, c->id));
    TRY(put_shards(g, c->id));
    TRY(h5_put_text(g, "family", st->family));
    TRY(h5_put_integer(g, "n_parameters", st->n_parameters));
    return h5_put_text(g, "precision", precision);
}

static int put_code(hid_t g, const struct common *c) {
    const struct build_info *built = build_info();
    char version[128];
    unsigned major, minor, release;
    (void)c;
    TRY(h5_put_text(g, "name", "strata"));
    TRY(h5_put_text(g, "version", STRATA_VERSION));
    TRY(h5_put_text(g, "git_sha", built->git_sha));
    TRY(h5_put_text(g, "git_dirty", built->git_dirty));
    TRY(h5_put_text(g, "compiler", built->compiler));
    TRY(h5_put_text(g, "flags", built->flags));
    comm_library_version(version, sizeof version);
    TRY(h5_put_text(g, "mpi", version));
    TRY(h5_put_text(g, "nccl", "none"));
    TRY(h5_put_text(g, "cuda", "none"));
    backend_library_version(version, sizeof version);
    TRY(h5_put_text(g, "blas", version));
    TRY(h5_put_text(g, "hdf5_header", H5_VERS_INFO));
    if (H5get_libversion(&major, &minor, &release) < 0)
        return h5_error(EXIT_INTERNAL, "HDF5 does not say its version");
    snprintf(version, sizeof version, "%u.%u.%u", major, minor, release);
    return h5_put_text(g, "hdf5_runtime", version);
}

/* A scalar string dataset: long texts read better with h5dump -d than as an attribute. */
static int put_document(hid_t g, const char *name, const char *value) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR), d = -1;
    hid_t list = h5_create_list(H5P_DATASET_CREATE);
    int rc = 0;
    if (type < 0 || space < 0 || list < 0 || H5Tset_size(type, strlen(value) + 1) < 0 ||
        H5Tset_cset(type, H5T_CSET_UTF8) < 0)
        rc = h5_error(EXIT_IO, "%s: no type for a text of %zu bytes", name, strlen(value));
    if (!rc) d = H5Dcreate2(g, name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (!rc && (d < 0 || H5Dwrite(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, value) < 0))
        rc = h5_error(EXIT_IO, "%s could not be written", name);
    rc = h5_close(rc, d, name);
    rc = h5_close(rc, list, "list");
    rc = h5_close(rc, space, "space");
    return h5_close(rc, type, "type");
}

static int put_config(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    char *defaulted = xstrdup("");
    int rc = put_document(g, "used.ini", text(st->used_ini));
    for (int64_t i = 0; !rc && i < st->n_keys; i++) {
        const struct ckpt_key *k = &st->key[i];
        char *name = xasprintf("%s.%s", k->section, k->key);
        rc = h5_put_text(g, name, k->value);
        if (k->defaulted) {
            char *longer = xasprintf("%s%s%s", defaulted, *defaulted ? "," : "", name);
            free(defaulted);
            defaulted = longer;
        }
        free(name);
    }
    if (!rc) rc = h5_put_text(g, "defaulted", defaulted);
    free(defaulted);
    return rc;
}

static int put_rng(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    TRY(h5_put_text(g, "algorithm", "Philox4x32-10"));
    TRY(h5_put_integer(g, "packing_version", RNG_PACKING_VERSION));
    TRY(h5_put_integer(g, "key", st->seed));
    TRY(h5_put_integer(g, "step", st->at.step));
    return h5_put_text(g, "purposes",
                       "init=1,order=2,drop_embedding=16,drop_attention=17,"
                       "drop_attention_out=18,drop_mlp_out=19");
}

static int put_data(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    TRY(h5_put_integer(g, "consumed_samples", st->at.consumed_samples));
    TRY(h5_put_integer(g, "consumed_tokens", st->at.consumed_tokens));
    TRY(h5_put_integer(g, "skipped_samples", st->at.skipped_samples));
    TRY(h5_put_integer(g, "epoch", st->at.epoch));
    TRY(h5_put_integer(g, "index", st->at.index));
    TRY(h5_put_text(g, "order_key", st->order_key));
    TRY(h5_put_integer(g, "global_batch_size", st->global_batch_size));
    return h5_put_text(g, "sha256", st->dataset_sha256);
}

static int put_schedule(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    TRY(h5_put_real(g, "lr", st->lr));
    TRY(h5_put_real(g, "weight_decay", st->weight_decay));
    TRY(h5_put_integer(g, "step", st->at.step));
    return h5_put_integer(g, "optimizer_step", st->at.optimizer_step);
}

static int put_decisions(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    TRY(h5_put_integer(g, "skipped_iterations", st->at.skipped_iterations));
    return h5_put_integer(g, "nan_iterations", st->at.nan_iterations);
}

static int put_tokenizer(hid_t g, const struct common *c) {
    const struct ckpt_state *st = c->st;
    TRY(h5_put_text(g, "sha256", st->tokenizer_sha256));
    return h5_put_text(g, "template", st->template_text);
}

/* ---- columns of equal length, step is their scale ------------------------------------------------------ */
struct column {
    const char *name, *units, *description;
    size_t offset; /* of its value in a row */
};

static int put_column(hid_t g, const struct column *c, hid_t type, const void *v, int64_t n,
                      hid_t *dataset) {
    hsize_t extent = (hsize_t)n;
    hid_t space = H5Screate_simple(1, &extent, NULL), list = h5_create_list(H5P_DATASET_CREATE);
    int rc = 0;
    *dataset = -1;
    if (space >= 0 && list >= 0)
        *dataset = H5Dcreate2(g, c->name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (*dataset < 0 || H5Dwrite(*dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, v) < 0)
        rc = h5_error(EXIT_IO, "column %s could not be written", c->name);
    if (!rc) rc = h5_put_text(*dataset, "description", c->description);
    if (!rc) rc = h5_put_text(*dataset, "units", c->units);
    rc = h5_close(rc, list, "list");
    return h5_close(rc, space, "space");
}

/* Of n rows that lie `row` bytes apart, each of which begins with its step. */
static int put_columns(hid_t g, const void *rows, size_t row, int64_t n,
                       const struct column *column, int n_columns) {
    static const struct column scale_column = {"step", "1", "steps done, counted from 1", 0};
    const char *from = rows;
    if (n == 0) return 0;
    int64_t *step = xmalloc((size_t)n * sizeof *step);
    double *v = xmalloc((size_t)n * sizeof *v);
    for (int64_t i = 0; i < n; i++) memcpy(&step[i], from + (size_t)i * row, sizeof *step);
    hid_t scale = -1;
    int rc = put_column(g, &scale_column, H5T_STD_I64LE, step, n, &scale);
    if (!rc && H5DSset_scale(scale, "step") < 0) rc = h5_error(EXIT_IO, "step is made no scale");
    for (int k = 0; !rc && k < n_columns; k++) {
        for (int64_t i = 0; i < n; i++)
            memcpy(&v[i], from + (size_t)i * row + column[k].offset, sizeof *v);
        hid_t d = -1;
        rc = put_column(g, &column[k], H5T_IEEE_F64LE, v, n, &d);
        if (!rc && H5DSattach_scale(d, scale, 0) < 0)
            rc = h5_error(EXIT_IO, "the scale of %s could not be attached", column[k].name);
        rc = h5_close(rc, d, column[k].name);
    }
    rc = h5_close(rc, scale, "step");
    free(step);
    free(v);
    return rc;
}

static int put_history(hid_t g, const struct common *c) {
    static const struct column column[] = {
        {"loss", "1", "mean loss over the target tokens of the step",
         offsetof(struct ckpt_row, loss)},
        {"lr", "1", "learning rate of the step", offsetof(struct ckpt_row, lr)},
        {"grad_norm", "1", "global norm of the gradient before clipping",
         offsetof(struct ckpt_row, grad_norm)}};
    const struct ckpt_state *st = c->st;
    TRY(h5_put_text(g, "signal", "loss"));
    TRY(h5_put_text(g, "axes", "step"));
    return put_columns(g, st->history, sizeof *st->history, st->n_history, column, 3);
}

static int put_provenance(hid_t g, const struct common *c) {
    static const struct column column = {"tokens_per_s", "1/s",
                                         "tokens in each second of the step, of all ranks",
                                         offsetof(struct ckpt_speed, tokens_per_s)};
    const struct ckpt_state *st = c->st;
    for (int64_t i = 0; i < st->n_provenance; i++)
        TRY(h5_put_text(g, st->provenance[i].key, st->provenance[i].value));
    return put_columns(g, st->speed, sizeof *st->speed, st->n_speed, &column, 1);
}

static const struct section {
    const char *path;
    int (*put)(hid_t group, const struct common *c);
    bool first_shard, rng, provenance;
} section[] = {
    {"header", put_header, false, false, false},
    {"code", put_code, false, false, false},
    {"config", put_config, false, false, false},
    {"training/rng", put_rng, false, true, false},
    {"training/data", put_data, false, false, false},
    {"training/schedule", put_schedule, false, false, false},
    {"training/decisions", put_decisions, false, false, false},
    {"training/history", put_history, true, false, false},
    {"tokenizer", put_tokenizer, false, false, false},
    {"provenance", put_provenance, true, false, true},
};

int shard_write_common(struct shard *s, const struct shard_identity *id,
                       const struct ckpt_settings *settings, const struct ckpt_state *state) {
    struct common common = {.id = id, .st = state};
    for (size_t i = 0; i < sizeof section / sizeof section[0]; i++) {
        const struct section *part = &section[i];
        if ((part->first_shard && id->index != 0) || (part->rng && settings->no_save_rng) ||
            (part->provenance && settings->reproducible))
            continue;
        hid_t group;
        TRY(shard_group(s, part->path, -1, &group));
        int rc = h5_close(part->put(group, &common), group, part->path);
        if (rc) return error_note(rc, "while writing /%s of %s", part->path, s->path);
    }
    return 0;
}
