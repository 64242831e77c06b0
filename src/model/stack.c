/* The stack: one list of layers, whatever towers they come from. */
#include <stdlib.h>
#include <string.h>

#include "model_impl.h"

static const struct family *const families[] = {&family_llava};

const char *layer_kind_name(enum layer_kind k) {
    static const char *const name[] = {"vision", "projector", "language"};
    return name[k];
}

bool stack_cut_allowed(const struct stack *s, int cut) {
    if (cut <= 0 || cut >= s->n_layers) return false;
    /* the layers of the projector are one block */
    return !(s->layer[cut].kind == LAYER_PROJECTOR && s->layer[cut - 1].kind == LAYER_PROJECTOR);
}

static bool block_trains(const struct block *b) {
    for (int i = 0; i < BLOCK_PARAMS_MAX; i++)
        if (block_param(b, i) != NULL && block_param(b, i)->trainable) return true;
    return false;
}

/* A gradient crosses a place iff a trainable parameter lies below it. Marks the blocks of `st`,
 * below = true if a gradient crosses its input; returns whether one crosses its output. */
bool stage_mark_gradients(struct stage *st, bool below) {
    for (int i = 0; i < st->n_blocks; i++) {
        struct block *b = &st->block[i];
        b->input_gradient = below;
        b->backward = below || block_trains(b);
        st->backward = st->backward || b->backward;
        below = b->backward;
    }
    return below;
}

static void count_parameters(struct stack *s, const struct stage *st) {
    for (int i = 0; i < st->params.n; i++) {
        int64_t n = param_global_count(&st->params.param[i]);
        s->n_parameters += n;
        if (st->params.param[i].trainable) s->n_trainable += n;
    }
}

/* One pass over the layers, built alone with TP = 1, gives gradient flow and parameter counts. */
static int survey(struct stack *s) {
    s->gradient_crosses = xcalloc((size_t)s->n_layers + 1, sizeof *s->gradient_crosses);
    s->first_param = xcalloc((size_t)s->n_layers + 1, sizeof *s->first_param);
    for (int i = 0; i < s->n_layers; i++) {
        struct stage st;
        TRY(stage_build(s, i, i + 1, 1, 0, REPEAT_NOTHING, 0, &st));
        s->gradient_crosses[i + 1] = stage_mark_gradients(&st, s->gradient_crosses[i]);
        s->first_param[i + 1] = s->first_param[i] + st.params.n;
        count_parameters(s, &st);
        stage_free(&st);
    }
    s->n_params = s->first_param[s->n_layers];
    return 0;
}

int stack_build(const struct config *cfg, struct stack *out) {
    memset(out, 0, sizeof *out);
    const char *name = config_choice(cfg, &cfg->run.family);
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i]->name, name) == 0) out->family = families[i];
    if (out->family == NULL)
        return error_raise(EXIT_USAGE, "[run] family = %s: this version builds llava", name);
    TRY(out->family->build(cfg, out));
    out->sequence_parallel = cfg->parallel.sequence_parallel;
    TRY(survey(out));
    if (out->n_trainable == 0)
        return error_raise(EXIT_USAGE,
                           "every part is frozen (freeze_ViT, freeze_vision_projection, "
                           "freeze_LM): nothing to train");
    return 0;
}

int stack_freeze(struct stack *s) {
    s->shape.vision.frozen = s->shape.projector.frozen = s->shape.language.frozen = true;
    for (int i = 0; i < s->n_layers; i++) s->transformer[i].frozen = true;
    free(s->gradient_crosses);
    free(s->first_param);
    s->n_parameters = s->n_trainable = 0;
    return survey(s);
}

void stack_free(struct stack *s) {
    free(s->transformer);
    free(s->layer);
    free(s->gradient_crosses);
    free(s->first_param);
    memset(s, 0, sizeof *s);
}
