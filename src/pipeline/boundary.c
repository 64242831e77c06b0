/* Shapes at a cut: a pure function, so that every receive buffer is known without a handshake. */
#include <string.h>

#include "pipeline.h"

int boundary_streams(const struct stack *s, int cut, const struct microbatch *mb, int p, int r,
                     enum dtype dtype, struct stream out[STREAMS_MAX]) {
    CHECK(stack_cut_allowed(s, cut), "no cut before layer %d", cut);
    const struct vision_config *v = &s->shape.vision;
    int64_t tile = vision_patches(v) + 1;
    bool sp = s->sequence_parallel;
    struct stream *o = &out[0];
    o->dtype = dtype;
    o->gradient = s->gradient_crosses[cut];
    switch (s->layer[cut].kind) {
    case LAYER_VISION:
        o->name = "vision";
        o->rows = rows_held(ROWS_VISION, mb, tile, false, sp, p, r);
        o->cols = v->hidden;
        return 1;
    case LAYER_PROJECTOR:
        o->name = "vision";
        o->rows = rows_held(ROWS_IMAGE, mb, tile, v->drop_class, sp, p, r);
        o->cols = v->hidden;
        return 1;
    case LAYER_LANGUAGE:
        if (s->layer[cut].number == 0) {
            o->name = "image";
            o->rows = rows_held(ROWS_IMAGE, mb, tile, v->drop_class, sp, p, r);
        } else {
            o->name = "hidden";
            o->rows = rows_held(ROWS_TEXT, mb, tile, false, sp, p, r);
        }
        o->cols = s->shape.language.hidden;
        return 1;
    case LAYER_KIND_COUNT:
        break;
    }
    CHECK(false, "layer %d has no kind", cut);
}

_Static_assert(sizeof(struct message_header) == MESSAGE_HEADER_BYTES, "message header is 64 bytes");

struct field {
    const char *name;
    int64_t got, expected;
};

int message_check(const struct message_header *got, const struct message_header *expected) {
    const struct message_header *g = got, *e = expected;
    const struct field field[] = {
        {"magic", g->magic, e->magic},
        {"version", g->version, e->version},
        {"direction", g->direction, e->direction},
        {"stream", g->stream, e->stream},
        {"step", g->step, e->step},
        {"micro-batch", g->micro_batch, e->micro_batch},
        {"cut", g->cut, e->cut},
        {"source stage", g->source, e->source},
        {"destination stage", g->destination, e->destination},
        {"dtype", g->dtype, e->dtype},
        {"flags", g->flags, e->flags},
        {"tp", g->tp, e->tp},
        {"rows", g->rows, e->rows},
        {"columns", g->cols, e->cols},
        {"reserved", g->reserved, e->reserved},
        {"payload bytes", g->payload_bytes, e->payload_bytes},
        {"descriptor hash", (int64_t)g->descriptor_hash, (int64_t)e->descriptor_hash}};
    if (memcmp(got, expected, sizeof *got) == 0) return 0;
    char text[1024] = "";
    int n = 0;
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (field[i].got != field[i].expected && n < (int)sizeof text)
            n += snprintf(text + n, sizeof text - (size_t)n, "%s%s %lld instead of %lld",
                          n > 0 ? ", " : "", field[i].name, (long long)field[i].got,
                          (long long)field[i].expected);
    return error_raise(EXIT_INTERNAL,
                       "message of micro-batch %d across the cut before layer %d, %s from stage %d "
                       "to stage %d: the sender and the receiver disagree: %s",
                       e->micro_batch, e->cut, e->direction ? "gradient" : "activation", e->source,
                       e->destination, text);
}
