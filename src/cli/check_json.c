/* strata check --json: the report as one object, for other programs. Sizes are bytes, FLOPs those of
 * the largest micro-batch. */
#include <stdlib.h>
#include <string.h>

#include "check_impl.h"
#include "json.h"

static void put_integer(struct json *o, const char *key, int64_t v) {
    json_set(o, key, json_new_integer(v));
}

static void put_text(struct json *o, const char *key, const char *v) {
    json_set(o, key, json_new_string(v));
}

/* A count that is kept in a double: a whole number as long as it is exact. */
static void put_count(struct json *o, const char *key, double v) {
    json_set(o, key, v < 9007199254740992.0 ? json_new_integer((int64_t)v) : json_new_real(v));
}

static struct json *kind_counts(const int *count) {
    struct json *o = json_new_object();
    for (int k = 0; k < LAYER_KIND_COUNT; k++)
        put_integer(o, layer_kind_name((enum layer_kind)k), count[k]);
    return o;
}

static struct json *stages_json(const struct check_report *r) {
    struct json *list = json_new_array();
    for (int i = 0; i < r->layout.pp; i++) {
        const struct stage_plan *s = &r->stage[i];
        int count[LAYER_KIND_COUNT] = {0};
        for (int l = s->first; l < s->end; l++) count[r->stack.layer[l].kind]++;
        struct json *o = json_new_object();
        put_integer(o, "stage", i);
        put_integer(o, "first_layer", s->first);
        put_integer(o, "last_layer", s->end - 1);
        json_set(o, "kinds", kind_counts(count));
        put_integer(o, "parameters", s->parameters);
        put_integer(o, "trained_parameters", s->trainable);
        put_count(o, "forward_flops", s->cost.forward);
        put_count(o, "backward_flops", s->cost.backward);
        json_set(o, "backward", json_new_bool(s->flow.backward));
        put_integer(o, "in_flight", s->in_flight);
        json_set(o, "idle", json_new_real(s->idle));
        json_append(list, o);
    }
    return list;
}

static struct json *boundaries_json(const struct check_report *r) {
    struct json *list = json_new_array();
    for (int i = 0; i < r->n_cuts; i++) {
        const struct cut_plan *c = &r->cut[i];
        struct json *o = json_new_object();
        put_integer(o, "cut", c->cut);
        put_integer(o, "from_stage", c->from);
        put_integer(o, "to_stage", c->from + 1);
        put_text(o, "stream", c->stream.name);
        put_integer(o, "rows", c->stream.rows);
        put_integer(o, "columns", c->stream.cols);
        put_text(o, "dtype", dtype_name(c->stream.dtype));
        put_integer(o, "bytes",
                    c->stream.rows * c->stream.cols * (int64_t)dtype_size(c->stream.dtype));
        json_set(o, "gradient", json_new_bool(c->stream.gradient));
        json_append(list, o);
    }
    return list;
}

static struct json *bytes_json(const struct rank_plan *p) {
    struct json *o = json_new_object();
    put_integer(o, "weights", (int64_t)p->weights);
    put_integer(o, "gradients", (int64_t)p->gradients);
    put_integer(o, "optimizer", (int64_t)p->optimizer);
    put_integer(o, "tables", (int64_t)p->tables);
    put_integer(o, "activations", (int64_t)p->activations);
    put_integer(o, "messages", (int64_t)p->messages);
    put_integer(o, "scratch", (int64_t)p->scratch);
    put_integer(o, "workspace", (int64_t)p->workspace);
    put_integer(o, "snapshot", (int64_t)p->snapshot);
    put_integer(o, "caches", (int64_t)p->caches);
    put_integer(o, "logits", (int64_t)p->logits);
    put_integer(o, "total", (int64_t)rank_plan_total(p));
    return o;
}

static struct json *ranks_json(const struct check_report *r) {
    struct json *list = json_new_array();
    for (int i = 0; i < r->n_ranks; i++) {
        const struct rank_plan *p = &r->rank[i];
        struct json *o = json_new_object();
        put_integer(o, "rank", i);
        put_integer(o, "tp", p->tp);
        put_integer(o, "pp", p->pp);
        put_integer(o, "dp", p->dp);
        put_integer(o, "first_layer", p->first);
        put_integer(o, "last_layer", p->end - 1);
        put_integer(o, "parameters", p->parameters);
        json_set(o, "bytes", bytes_json(p));
        json_append(list, o);
    }
    return list;
}

static struct json *micro_batch_json(const struct microbatch *mb) {
    struct json *o = json_new_object();
    put_integer(o, "samples", mb->samples);
    put_integer(o, "images", mb->images);
    put_integer(o, "tiles", mb->tiles);
    put_integer(o, "tokens", mb->tokens);
    put_integer(o, "longest_sample", mb->max_segment);
    put_integer(o, "targets", mb->targets);
    return o;
}

static struct json *schedule_json(const struct check_report *r) {
    struct json *o = json_new_object();
    put_text(o, "kind", config_choice(r->cfg, &r->cfg->parallel.schedule));
    put_integer(o, "micro_batches", r->layout.pipeline.micro_batches);
    put_count(o, "step_flops", r->step.makespan);
    json_set(o, "bubble", json_new_real(r->step.bubble));
    return o;
}

static void put_job(struct json *o, const struct check_report *r) {
    const struct config *c = r->cfg;
    put_text(o, "family", r->stack.family->name);
    put_text(o, "device", config_choice(c, &c->run.device));
    put_text(o, "dtype", dtype_name(r->layout.dtype));
    put_integer(o, "layers", r->stack.n_layers);
    json_set(o, "layer_kinds", kind_counts(r->stack.kind_count));
    put_integer(o, "parameters", r->stack.n_parameters);
    put_integer(o, "trained_parameters", r->stack.n_trainable);
    put_integer(o, "ranks_total", r->n_ranks);
    if (r->threads > 0) {
        put_integer(o, "threads_per_rank", r->threads);
        put_text(o, "threads_from", r->threads_how);
    }
    put_integer(o, "tensor", r->layout.tp);
    put_integer(o, "pipeline", r->layout.pp);
    put_integer(o, "data", r->layout.dp);
    put_integer(o, "global_batch_size", c->training.global_batch_size);
    put_integer(o, "train_iters", c->derived.train_iters);
    struct json *split = json_new_array();
    for (int i = 0; i < r->layout.pp; i++) json_append(split, json_new_integer(r->split[i]));
    json_set(o, "split_spec", split);
    json_set(o, "split_auto", json_new_bool(r->split_auto));
}

static void put_report(struct json *o, const struct check_report *r) {
    put_job(o, r);
    json_set(o, "stages", stages_json(r));
    json_set(o, "boundaries", boundaries_json(r));
    json_set(o, "ranks", ranks_json(r));
    json_set(o, "imbalance", json_new_real(r->step.imbalance));
    json_set(o, "schedule", schedule_json(r));
    put_text(o, "assumption", r->data != NULL ? "index" : "worst_case");
    json_set(o, "largest_micro_batch", micro_batch_json(r->largest));
    struct json *warnings = json_new_array();
    for (int i = 0; i < r->n_warnings; i++) json_append(warnings, json_new_string(r->warning[i]));
    json_set(o, "warnings", warnings);
}

static struct json *errors_json(void) {
    struct json *list = json_new_array();
    char *text = xstrdup(error_text()), *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) != NULL;)
        if (*line != '\0') json_append(list, json_new_string(line));
    free(text);
    return list;
}

char *check_json_text(const struct check_report *r) {
    struct json *o = json_new_object();
    if (r != NULL) put_report(o, r);
    json_set(o, "errors", errors_json());
    char *text = json_text(o, 2);
    json_free(o);
    return text;
}
