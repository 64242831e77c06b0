/* schedule: is a set of lists correct? */
#include <stdlib.h>

#include "schedule_impl.h"

struct check {
    enum schedule_kind kind;
    int P, M;
    const struct schedule_flow *flow;
    bool forward_only;
    const struct schedule *list;
    int *place; /* [OP_KIND_COUNT * M] where a stage does an operation; -1: not */
};

static bool op_expected(const struct check *c, int r, enum op_kind kind) {
    bool backward = c->flow[r].backward && !c->forward_only;
    switch (kind) {
    case OP_RECV_ACT:
        return r > 0;
    case OP_FORWARD:
        return true;
    case OP_SEND_ACT:
        return r < c->P - 1;
    case OP_RECV_GRAD:
        return backward && c->flow[r].gradient_out;
    case OP_BACKWARD:
        return backward;
    case OP_SEND_GRAD:
        return backward && c->flow[r].gradient_in;
    case OP_KIND_COUNT:
        break;
    }
    return false;
}

static int check_once(struct check *c, int r) {
    const struct schedule *s = &c->list[r];
    for (int k = 0; k < OP_KIND_COUNT * c->M; k++) c->place[k] = -1;
    for (int i = 0; i < s->n_ops; i++) {
        const struct schedule_op *op = &s->op[i];
        if (!op_possible(op, c->P, r, c->M) || !op_expected(c, r, op->kind))
            return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d must not %s %d", r, c->P,
                               op_name(op->kind), op->micro_batch);
        int *place = &c->place[(int)op->kind * c->M + op->micro_batch];
        if (*place >= 0)
            return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d does %s %d twice", r, c->P,
                               op_name(op->kind), op->micro_batch);
        *place = i;
    }
    for (int kind = 0; kind < OP_KIND_COUNT; kind++)
        for (int i = 0; i < c->M && op_expected(c, r, kind); i++)
            if (c->place[kind * c->M + i] < 0)
                return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d never does %s %d", r,
                                   c->P, op_name(kind), i);
    return 0;
}

/* `first` before `then` on the same micro-batch, where the stage has both. */
static int check_before(const struct check *c, int r, enum op_kind first, enum op_kind then) {
    if (!op_expected(c, r, first) || !op_expected(c, r, then)) return 0;
    for (int i = 0; i < c->M; i++)
        if (c->place[(int)first * c->M + i] > c->place[(int)then * c->M + i])
            return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d does %s %d before %s", r,
                               c->P, op_name(then), i, op_name(first));
    return 0;
}

/* Every kind ascending on every stage: F and B have one order, and on each directed pair the order
 * of sends is the order of receives. */
static int check_ascending(const struct check *c, int r) {
    for (int kind = 0; kind < OP_KIND_COUNT; kind++)
        for (int i = 1; i < c->M && op_expected(c, r, kind); i++)
            if (c->place[kind * c->M + i] < c->place[kind * c->M + i - 1])
                return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d does %s %d before %d",
                                   r, c->P, op_name(kind), i, i - 1);
    return 0;
}

static int check_peak(const struct check *c, int r) {
    const struct schedule *s = &c->list[r];
    bool backward = op_expected(c, r, OP_BACKWARD);
    int now = 0, peak = backward ? 0 : 1;
    for (int i = 0; i < s->n_ops && backward; i++) {
        now += (s->op[i].kind == OP_FORWARD) - (s->op[i].kind == OP_BACKWARD);
        if (s->op[i].kind == OP_FORWARD && now > peak) peak = now;
    }
    int formula = schedule_in_flight(c->kind, c->P, r, c->M, backward);
    if (peak != formula || s->in_flight != formula)
        return error_raise(EXIT_INTERNAL,
                           "schedule: stage %d of %d has %d micro-batches in flight and says %d; "
                           "%d are right",
                           r, c->P, peak, s->in_flight, formula);
    return 0;
}

static int check_stage(struct check *c, int r) {
    TRY(check_once(c, r));
    TRY(check_before(c, r, OP_RECV_ACT, OP_FORWARD));
    TRY(check_before(c, r, OP_FORWARD, OP_SEND_ACT));
    TRY(check_before(c, r, OP_FORWARD, OP_BACKWARD));
    TRY(check_before(c, r, OP_RECV_GRAD, OP_BACKWARD));
    TRY(check_before(c, r, OP_BACKWARD, OP_SEND_GRAD));
    TRY(check_ascending(c, r));
    return check_peak(c, r);
}

/* A message has two ends: what stage r sends must be what its neighbour receives. */
static int check_cut(const struct check *c, int r) {
    bool sends = op_expected(c, r + 1, OP_SEND_GRAD), receives = op_expected(c, r, OP_RECV_GRAD);
    if (sends != receives)
        return error_raise(EXIT_INTERNAL, "schedule: stage %d %s gradients, but stage %d %s", r + 1,
                           sends ? "sends" : "does not send", r,
                           receives ? "waits for them" : "does not receive them");
    return 0;
}

static int check_progress(const struct check *c) {
    struct machine m;
    machine_init(&m, c->P, c->M, c->list, NULL);
    int rc = 0;
    if (!machine_run(&m)) {
        struct schedule_op op;
        int r = machine_stuck(&m, &op);
        rc = error_raise(EXIT_INTERNAL, "schedule: deadlock: stage %d of %d waits in %s %d", r,
                         c->P, op_name(op.kind), op.micro_batch);
    }
    machine_fini(&m);
    return rc;
}

int schedule_check(enum schedule_kind kind, int P, int M, const struct schedule_flow *flow,
                   bool forward_only, const struct schedule *list) {
    struct check c = {kind, P, M, flow, forward_only, list, NULL};
    c.place = xcalloc((size_t)M * OP_KIND_COUNT, sizeof *c.place);
    int rc = 0;
    for (int r = 0; r < P && rc == 0; r++) rc = check_stage(&c, r);
    for (int r = 0; r + 1 < P && rc == 0; r++) rc = check_cut(&c, r);
    if (rc == 0) rc = check_progress(&c);
    free(c.place);
    return rc;
}
