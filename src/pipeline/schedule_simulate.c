/* schedule: the lists of all stages on a virtual clock. */
#include <stdlib.h>

#include "schedule_impl.h"

bool op_possible(const struct schedule_op *op, int P, int r, int M) {
    if ((unsigned)op->kind >= OP_KIND_COUNT || op->micro_batch < 0 || op->micro_batch >= M)
        return false;
    bool from_above = op->kind == OP_RECV_ACT || op->kind == OP_SEND_GRAD;
    bool to_below = op->kind == OP_SEND_ACT || op->kind == OP_RECV_GRAD;
    return !(from_above && r == 0) && !(to_below && r == P - 1);
}

void machine_init(struct machine *m, int P, int M, const struct schedule *list,
                  const struct schedule_cost *cost) {
    *m = (struct machine){.P = P, .M = M, .list = list, .cost = cost};
    size_t stages = (size_t)P, cells = stages * (size_t)M;
    double *d = m->memory = xcalloc(3 * cells + 4 * stages, sizeof *d);
    m->arrival[0] = d;
    m->arrival[1] = d + cells;
    m->taken = d + 2 * cells;
    for (size_t i = 0; i < 3 * cells; i++) d[i] = -1;
    d += 3 * cells;
    m->clock = d;
    m->busy = d + stages;
    m->wire_free[0] = d + 2 * stages;
    m->wire_free[1] = d + 3 * stages;
    m->next = xcalloc(3 * stages, sizeof *m->next);
    m->waiting = m->next + P;
    m->is_waiting = m->next + 2 * P;
    m->two_buffers = xcalloc(stages, sizeof *m->two_buffers);
    for (int r = 0; r < P; r++) {
        m->two_buffers[r] = r < P - 1;
        for (int i = 0; i < list[r].n_ops; i++)
            if (list[r].op[i].kind == OP_BACKWARD) m->two_buffers[r] = false;
    }
}

void machine_fini(struct machine *m) {
    free(m->memory);
    free(m->next);
    free(m->two_buffers);
}

static double duration(const struct machine *m, const double *table, int r, int i) {
    if (!m->cost || !table) return 0;
    return table[(int64_t)r * m->cost->n_mb + (m->cost->n_mb > 1 ? i : 0)];
}

static bool receive(struct machine *m, int r, int grad, int i) {
    double at = m->arrival[grad][(int64_t)r * m->M + i];
    if (at < 0) return false;
    if (m->clock[r] < at) m->clock[r] = at;
    if (!grad) m->taken[(int64_t)(r - 1) * m->M + i] = m->clock[r];
    return true;
}

static void send(struct machine *m, int r, int grad, int i) {
    int to = grad ? r - 1 : r + 1, wire = grad ? r - 1 : r;
    double *wire_free = &m->wire_free[grad][r];
    const double *table = !m->cost ? NULL : grad ? m->cost->grad : m->cost->act;
    double start = m->clock[r] > *wire_free ? m->clock[r] : *wire_free;
    *wire_free = start + duration(m, table, wire, i);
    m->arrival[grad][(int64_t)to * m->M + i] = *wire_free;
}

static bool forward(struct machine *m, int r, int i) {
    if (m->two_buffers[r] && i >= 2) {
        double taken = m->taken[(int64_t)r * m->M + i - 2];
        if (taken < 0) return false;
        if (m->clock[r] < taken) m->clock[r] = taken;
    }
    double d = duration(m, m->cost ? m->cost->forward : NULL, r, i);
    m->clock[r] += d;
    m->busy[r] += d;
    return true;
}

/* False: it has to wait for another stage. */
static bool run_op(struct machine *m, int r, const struct schedule_op *op) {
    int i = op->micro_batch;
    double d;
    switch (op->kind) {
    case OP_RECV_ACT:
        return receive(m, r, 0, i);
    case OP_RECV_GRAD:
        return receive(m, r, 1, i);
    case OP_FORWARD:
        return forward(m, r, i);
    case OP_SEND_ACT:
        send(m, r, 0, i);
        return true;
    case OP_SEND_GRAD:
        send(m, r, 1, i);
        return true;
    case OP_BACKWARD:
        d = duration(m, m->cost ? m->cost->backward : NULL, r, i);
        m->clock[r] += d;
        m->busy[r] += d;
        return true;
    case OP_KIND_COUNT:
        break;
    }
    CHECK(false, "operation %d", (int)op->kind);
}

static void wait_for_turn(struct machine *m, int r) {
    if (r < 0 || r >= m->P || m->is_waiting[r]) return;
    m->is_waiting[r] = 1;
    m->waiting[m->n_waiting++] = r;
}

/* What a stage does may let its neighbours go on, and nobody else. So the time grows with the
 * operations; rounds over all stages would take P of them for one gradient on its way up. The order of
 * turns does not matter: clocks follow from the messages. */
bool machine_run(struct machine *m) {
    for (int r = m->P - 1; r >= 0; r--) wait_for_turn(m, r);
    while (m->n_waiting > 0) {
        int r = m->waiting[--m->n_waiting], before = m->next[r];
        const struct schedule *s = &m->list[r];
        m->is_waiting[r] = 0;
        while (m->next[r] < s->n_ops && run_op(m, r, &s->op[m->next[r]])) m->next[r]++;
        if (m->next[r] == before) continue;
        wait_for_turn(m, r - 1);
        wait_for_turn(m, r + 1);
    }
    for (int r = 0; r < m->P; r++)
        if (m->next[r] < m->list[r].n_ops) return false;
    return true;
}

int machine_stuck(const struct machine *m, struct schedule_op *op) {
    for (int r = 0; r < m->P; r++) {
        if (m->next[r] == m->list[r].n_ops) continue;
        *op = m->list[r].op[m->next[r]];
        return r;
    }
    CHECK(false, "no stage is stuck");
}

int schedule_simulate(int P, int M, const struct schedule *list, const struct schedule_cost *cost,
                      double *makespan, double *idle) {
    CHECK(cost->n_mb == 1 || cost->n_mb == M, "n_mb = %d, M = %d", cost->n_mb, M);
    for (int r = 0; r < P; r++)
        for (int i = 0; i < list[r].n_ops; i++)
            if (!op_possible(&list[r].op[i], P, r, M))
                return error_raise(EXIT_INTERNAL, "schedule: stage %d of %d cannot %s %d of %d", r,
                                   P, op_name(list[r].op[i].kind), list[r].op[i].micro_batch, M);
    struct machine m;
    machine_init(&m, P, M, list, cost);
    int rc = 0;
    if (machine_run(&m)) {
        *makespan = 0;
        for (int r = 0; r < P; r++)
            if (*makespan < m.clock[r]) *makespan = m.clock[r];
        for (int r = 0; r < P && idle; r++) idle[r] = *makespan - m.busy[r];
    } else {
        struct schedule_op op;
        int r = machine_stuck(&m, &op);
        rc = error_raise(EXIT_INTERNAL, "schedule: deadlock: stage %d of %d waits in %s %d", r, P,
                         op_name(op.kind), op.micro_batch);
    }
    machine_fini(&m);
    return rc;
}
