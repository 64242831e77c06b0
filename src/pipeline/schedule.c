/* schedule: building the list of a stage. */
#include <stdlib.h>

#include "schedule.h"

#define MICRO_BATCHES_MAX (1 << 24) /* six operations for each stay below 2^31 */

const char *op_name(enum op_kind kind) {
    static const char *const name[OP_KIND_COUNT] = {
        [OP_RECV_ACT] = "recv_act",   [OP_FORWARD] = "forward",   [OP_SEND_ACT] = "send_act",
        [OP_RECV_GRAD] = "recv_grad", [OP_BACKWARD] = "backward", [OP_SEND_GRAD] = "send_grad",
    };
    return (unsigned)kind < OP_KIND_COUNT ? name[kind] : "unknown operation";
}

int schedule_in_flight(enum schedule_kind kind, int P, int r, int M, bool runs_backward) {
    if (!runs_backward) return 1;
    if (kind == SCHEDULE_LIST_GPIPE) return M;
    return P - r < M ? P - r : M;
}

struct stage {
    bool receives, sends;           /* activations */
    bool gradient_in, gradient_out; /* of the step, so false when only forward */
    struct schedule *list;
};

static void add(struct schedule *s, enum op_kind kind, int micro_batch) {
    s->op[s->n_ops++] = (struct schedule_op){kind, micro_batch};
}

static void add_receive(const struct stage *st, int i) {
    if (st->receives) add(st->list, OP_RECV_ACT, i);
}

static void add_forward(const struct stage *st, int i) {
    add(st->list, OP_FORWARD, i);
    if (st->sends) add(st->list, OP_SEND_ACT, i);
}

static void add_backward(const struct stage *st, int i) {
    if (st->gradient_out) add(st->list, OP_RECV_GRAD, i);
    add(st->list, OP_BACKWARD, i);
    if (st->gradient_in) add(st->list, OP_SEND_GRAD, i);
}

/* w forwards ahead, then one forward and one backward in turn, then the rest of the backwards. */
static void build_1f1b(const struct stage *st, int M, int w) {
    for (int i = 0; i < w; i++) {
        add_receive(st, i);
        add_forward(st, i);
    }
    if (w < M) add_receive(st, w);
    for (int i = 0; i < M - w; i++) {
        add_forward(st, w + i);
        add_backward(st, i);
        if (w + i + 1 < M) add_receive(st, w + i + 1);
    }
    for (int i = M - w; i < M; i++) add_backward(st, i);
}

static void build_forward(const struct stage *st, int M) {
    for (int i = 0; i < M; i++) {
        add_receive(st, i);
        add_forward(st, i);
    }
}

static int check_arguments(int P, int r, int M, bool backward, bool gradient_in,
                           bool gradient_out) {
    if (P < 1 || r < 0 || r >= P)
        return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d does not exist", r, P);
    if (M < 1 || M > MICRO_BATCHES_MAX)
        return error_raise(EXIT_INTERNAL, "schedule: %d micro-batches; 1 to %d are possible", M,
                           MICRO_BATCHES_MAX);
    if (gradient_in && (!backward || r == 0))
        return error_raise(EXIT_INTERNAL,
                           "schedule: stage %d of %d cannot send a gradient upwards (%s)", r, P,
                           r == 0 ? "it is the first" : "it has no backward");
    if (gradient_out != (backward && r < P - 1))
        return error_raise(EXIT_INTERNAL,
                           "schedule: stage %d of %d has %s backward, but %s gradient crosses its "
                           "output cut",
                           r, P, backward ? "a" : "no", gradient_out ? "a" : "no");
    return 0;
}

int schedule_build(enum schedule_kind kind, int P, int r, int M, bool backward, bool gradient_in,
                   bool gradient_out, bool forward_only, struct schedule *out) {
    TRY(check_arguments(P, r, M, backward, gradient_in, gradient_out));
    bool runs_backward = backward && !forward_only;
    *out = (struct schedule){.op = xmalloc((size_t)M * OP_KIND_COUNT * sizeof *out->op),
                             .in_flight = schedule_in_flight(kind, P, r, M, runs_backward)};
    struct stage st = {r > 0, r < P - 1, gradient_in, gradient_out, out};
    if (runs_backward && kind == SCHEDULE_LIST_1F1B) {
        build_1f1b(&st, M, P - r - 1 < M ? P - r - 1 : M);
    } else {
        build_forward(&st, M);
        for (int i = 0; i < M && runs_backward; i++) add_backward(&st, i);
    }
    return 0;
}

void schedule_free(struct schedule *s) {
    free(s->op);
    *s = (struct schedule){0};
}
