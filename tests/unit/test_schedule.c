/* Schedules: all lists for P <= 8, M <= 16, every frozen prefix; and faults the checker must see. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "schedule.h"

#define P_MAX 8
#define M_MAX 16

struct pipe {
    enum schedule_kind kind;
    int P, M;
    bool forward_only;
    struct schedule_flow flow[P_MAX];
    struct schedule list[P_MAX];
};

/* Stages 0..frozen-1 hold nothing trainable, so no gradient crosses the cuts between them. */
static void pipe_build(struct pipe *p, enum schedule_kind kind, int P, int M, int frozen,
                       bool forward_only) {
    *p = (struct pipe){kind, P, M, forward_only, {{0}}, {{0}}};
    for (int r = 0; r < P; r++) {
        p->flow[r].backward = r >= frozen;
        p->flow[r].gradient_in = r > frozen;
        p->flow[r].gradient_out = r >= frozen && r < P - 1;
        assert_int_equal(schedule_build(kind, P, r, M, p->flow[r].backward, p->flow[r].gradient_in,
                                        p->flow[r].gradient_out, forward_only, &p->list[r]),
                         0);
    }
}

static int pipe_check(const struct pipe *p) {
    return schedule_check(p->kind, p->P, p->M, p->flow, p->forward_only, p->list);
}

static void pipe_free(struct pipe *p) {
    for (int r = 0; r < p->P; r++) schedule_free(&p->list[r]);
}

static void all_lists_pass(void **state) {
    (void)state;
    for (int P = 1; P <= P_MAX; P++)
        for (int M = 1; M <= M_MAX; M++)
            for (int kind = SCHEDULE_LIST_1F1B; kind <= SCHEDULE_LIST_GPIPE; kind++)
                for (int frozen = 0; frozen < P; frozen++)
                    for (int evaluation = 0; evaluation < 2; evaluation++) {
                        struct pipe p;
                        pipe_build(&p, kind, P, M, frozen, evaluation);
                        if (pipe_check(&p) != 0) error_print(stderr);
                        assert_int_equal(error_count(), 0);
                        pipe_free(&p);
                    }
}

#define TEXT_MAX 1000
static void text_of(const struct schedule *s, char text[TEXT_MAX]) {
    static const char letter[OP_KIND_COUNT][3] = {"ra", "F", "sa", "rg", "B", "sg"};
    *text = '\0';
    size_t used = 0;
    for (int i = 0; i < s->n_ops; i++)
        used += (size_t)snprintf(text + used, TEXT_MAX - used, "%s%s%d", i ? " " : "",
                                 letter[s->op[i].kind], s->op[i].micro_batch);
    assert_true(used < TEXT_MAX);
}

/* Lists written by hand from the three phases. */
static void lists_are_the_phases(void **state) {
    (void)state;
    static const char *const want[3] = {
        "F0 sa0 F1 sa1 F2 sa2 rg0 B0 F3 sa3 rg1 B1 rg2 B2 rg3 B3",
        "ra0 F0 sa0 ra1 F1 sa1 rg0 B0 sg0 ra2 F2 sa2 rg1 B1 sg1 ra3 F3 sa3 rg2 B2 sg2 rg3 B3 sg3",
        "ra0 F0 B0 sg0 ra1 F1 B1 sg1 ra2 F2 B2 sg2 ra3 F3 B3 sg3",
    };
    struct pipe p;
    char text[TEXT_MAX];
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 4, 0, false);
    for (int r = 0; r < 3; r++) {
        text_of(&p.list[r], text);
        assert_string_equal(text, want[r]);
    }
    pipe_free(&p);
    /* A frozen first stage: the others keep their warm-up, stage 1 sends no gradient up. */
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 2, 1, false);
    text_of(&p.list[0], text);
    assert_string_equal(text, "F0 sa0 F1 sa1");
    text_of(&p.list[1], text);
    assert_string_equal(text, "ra0 F0 sa0 ra1 F1 sa1 rg0 B0 rg1 B1");
    pipe_free(&p);
    pipe_build(&p, SCHEDULE_LIST_GPIPE, 2, 2, 0, false);
    text_of(&p.list[0], text);
    assert_string_equal(text, "F0 sa0 F1 sa1 rg0 B0 rg1 B1");
    text_of(&p.list[1], text);
    assert_string_equal(text, "ra0 F0 ra1 F1 B0 sg0 B1 sg1");
    pipe_free(&p);
}

static void in_flight_is_the_formula(void **state) {
    (void)state;
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 4, 6, 0, false);
    for (int r = 0; r < 4; r++) assert_int_equal(p.list[r].in_flight, 4 - r);
    pipe_free(&p);
    pipe_build(&p, SCHEDULE_LIST_1F1B, 8, 3, 0, false);
    assert_int_equal(p.list[0].in_flight, 3);
    assert_int_equal(p.list[7].in_flight, 1);
    pipe_free(&p);
    pipe_build(&p, SCHEDULE_LIST_GPIPE, 4, 6, 0, false);
    assert_int_equal(p.list[3].in_flight, 6);
    pipe_free(&p);
    pipe_build(&p, SCHEDULE_LIST_1F1B, 4, 6, 2, false);
    assert_int_equal(p.list[0].in_flight, 1);
    assert_int_equal(p.list[2].in_flight, 2);
    pipe_free(&p);
}

static void contradictions_are_refused(void **state) {
    (void)state;
    struct schedule s;
    assert_int_equal(schedule_build(SCHEDULE_LIST_1F1B, 2, 2, 1, true, true, false, false, &s),
                     EXIT_INTERNAL);
    assert_int_equal(schedule_build(SCHEDULE_LIST_1F1B, 2, 1, 0, true, true, false, false, &s),
                     EXIT_INTERNAL);
    assert_int_equal(schedule_build(SCHEDULE_LIST_1F1B, 2, 1, 1, false, true, false, false, &s),
                     EXIT_INTERNAL);
    assert_int_equal(schedule_build(SCHEDULE_LIST_1F1B, 2, 0, 1, true, false, false, false, &s),
                     EXIT_INTERNAL);
    assert_int_equal(schedule_build(SCHEDULE_LIST_1F1B, 2, 0, 1, true, true, true, false, &s),
                     EXIT_INTERNAL);
    assert_int_equal(error_count(), 5);
    error_clear();
}

/* ---- planted faults: the checker must see every one ------------------------------------------ */

static void expect_refused(struct pipe *p) {
    assert_int_equal(pipe_check(p), EXIT_INTERNAL);
    assert_int_equal(error_count(), 1);
    error_clear();
}

static void a_missing_or_doubled_op_is_seen(void **state) {
    (void)state;
    struct pipe p;
    for (int kind = SCHEDULE_LIST_1F1B; kind <= SCHEDULE_LIST_GPIPE; kind++) {
        pipe_build(&p, kind, 4, 5, 1, false);
        for (int r = 0; r < 4; r++) {
            struct schedule *s = &p.list[r];
            for (int i = 0; i < s->n_ops; i++) {
                struct schedule_op kept = s->op[i];
                s->op[i] = s->op[(i + 1) % s->n_ops];
                expect_refused(&p);
                s->op[i] = kept;
                size_t behind = (size_t)(s->n_ops - i - 1) * sizeof *s->op;
                memmove(&s->op[i], &s->op[i + 1], behind);
                s->n_ops--;
                expect_refused(&p);
                s->n_ops++;
                memmove(&s->op[i + 1], &s->op[i], behind);
                s->op[i] = kept;
            }
        }
        assert_int_equal(pipe_check(&p), 0);
        pipe_free(&p);
    }
}

static void an_added_op_is_seen(void **state) {
    (void)state;
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 4, 1, false);
    for (int r = 0; r < 3; r++) {
        struct schedule *s = &p.list[r];
        s->op = realloc(s->op, (size_t)(s->n_ops + 1) * sizeof *s->op);
        assert_non_null(s->op);
        s->op[s->n_ops] = s->op[s->n_ops - 1];
        s->n_ops++;
        expect_refused(&p);
        s->n_ops--;
    }
    pipe_free(&p);
}

/* Micro-batches 1 and 2 change places on every stage: nothing depends wrongly, but gradients would
 * add in another order. */
static void another_order_is_seen(void **state) {
    (void)state;
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 4, 0, false);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < p.list[r].n_ops; i++) {
            int *mb = &p.list[r].op[i].micro_batch;
            if (*mb == 1 || *mb == 2) *mb = 3 - *mb;
        }
    expect_refused(&p);
    pipe_free(&p);
}

static bool same_kind_or_needs(struct schedule_op a, struct schedule_op b) {
    if (a.kind == b.kind) return true;
    if (a.micro_batch != b.micro_batch) return false;
    return (a.kind == OP_RECV_ACT && b.kind == OP_FORWARD) ||
           (a.kind == OP_FORWARD && (b.kind == OP_SEND_ACT || b.kind == OP_BACKWARD)) ||
           (a.kind == OP_RECV_GRAD && b.kind == OP_BACKWARD) ||
           (a.kind == OP_BACKWARD && b.kind == OP_SEND_GRAD);
}

/* Any two operations of a list that are of one kind, or of which one needs the other. */
static void a_swap_is_seen(void **state) {
    (void)state;
    struct pipe p;
    int swaps = 0;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 5, 0, false);
    for (int r = 0; r < 3; r++) {
        struct schedule_op *op = p.list[r].op;
        for (int i = 0; i < p.list[r].n_ops; i++)
            for (int j = i + 1; j < p.list[r].n_ops; j++) {
                if (!same_kind_or_needs(op[i], op[j])) continue;
                struct schedule_op kept = op[i];
                op[i] = op[j];
                op[j] = kept;
                expect_refused(&p);
                op[j] = op[i];
                op[i] = kept;
                swaps++;
            }
    }
    assert_true(swaps > 100);
    assert_int_equal(pipe_check(&p), 0);
    pipe_free(&p);
}

static void a_deadlock_is_seen(void **state) {
    (void)state;
    /* Stage 0 waits for gradient 0 before it sends activation 0: locally fine, together stuck. */
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 2, 1, 0, false);
    assert_int_equal(p.list[0].op[1].kind, OP_SEND_ACT);
    assert_int_equal(p.list[0].op[2].kind, OP_RECV_GRAD);
    p.list[0].op[1].kind = OP_RECV_GRAD;
    p.list[0].op[2].kind = OP_SEND_ACT;
    assert_int_equal(pipe_check(&p), EXIT_INTERNAL);
    assert_non_null(strstr(error_text(), "deadlock"));
    error_clear();
    double act = 0, both[2] = {1, 1}, makespan;
    struct schedule_cost cost = {1, both, both, &act, &act};
    assert_int_equal(schedule_simulate(2, 1, p.list, &cost, &makespan, NULL), EXIT_INTERNAL);
    error_clear();
    pipe_free(&p);
}

static void other_faults_are_seen(void **state) {
    (void)state;
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_GPIPE, 3, 5, 0, false);
    p.kind = SCHEDULE_LIST_1F1B; /* too many in flight */
    expect_refused(&p);
    p.kind = SCHEDULE_LIST_GPIPE;
    p.list[1].in_flight--; /* says less than it holds */
    expect_refused(&p);
    p.list[1].in_flight++;
    p.list[2].op[0].micro_batch = 5; /* beyond the step */
    expect_refused(&p);
    p.list[2].op[0].micro_batch = 0;
    p.flow[0].gradient_out = false; /* stage 1 sends what stage 0 does not await */
    expect_refused(&p);
    pipe_free(&p);
    pipe_build(&p, SCHEDULE_LIST_1F1B, 2, 1, 1, false);
    p.flow[1].gradient_in = true; /* each list is right on its own; the cut is not */
    schedule_free(&p.list[1]);
    assert_int_equal(schedule_build(p.kind, 2, 1, 1, true, true, false, false, &p.list[1]), 0);
    expect_refused(&p);
    pipe_free(&p);
    /* Lists of a step, where an evaluation was asked for. */
    pipe_build(&p, SCHEDULE_LIST_1F1B, 3, 5, 0, false);
    p.forward_only = true;
    expect_refused(&p);
    pipe_free(&p);
}

/* ---- simulation ------------------------------------------------------------------------------ */

static void equal_stages_have_the_known_bubble(void **state) {
    (void)state;
    double forward[P_MAX], backward[P_MAX], zero[P_MAX] = {0}, idle[P_MAX], makespan;
    for (int r = 0; r < P_MAX; r++) {
        forward[r] = 1;
        backward[r] = 2;
    }
    struct schedule_cost cost = {1, forward, backward, zero, zero};
    for (int P = 1; P <= P_MAX; P++)
        for (int M = 1; M <= M_MAX; M++)
            for (int kind = SCHEDULE_LIST_1F1B; kind <= SCHEDULE_LIST_GPIPE; kind++) {
                struct pipe p;
                pipe_build(&p, kind, P, M, 0, false);
                assert_int_equal(schedule_simulate(P, M, p.list, &cost, &makespan, idle), 0);
                assert_true(makespan == 3.0 * (M + P - 1));
                for (int r = 0; r < P; r++) assert_true(idle[r] == 3.0 * (P - 1));
                pipe_free(&p);
            }
}

/* Two stages, two micro-batches, by hand: F 2,3; B 4,5; act 1, grad 10.
 * Stage 0: F0 0-2, F1 2-4, grad 0 at 21, B0 21-25, grad 1 at 31 (wire busy until 21), B1 31-35.
 * Stage 1: act 0 at 3, F0 3-6, B0 6-11, F1 11-14, B1 14-19. */
static void messages_take_time(void **state) {
    (void)state;
    double forward[2] = {2, 3}, backward[2] = {4, 5}, act = 1, grad = 10, makespan, idle[2];
    struct schedule_cost cost = {1, forward, backward, &act, &grad};
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 2, 2, 0, false);
    assert_int_equal(schedule_simulate(2, 2, p.list, &cost, &makespan, idle), 0);
    assert_true(makespan == 35);
    assert_true(idle[0] == 35 - 12 && idle[1] == 35 - 16);
    pipe_free(&p);
}

/* Micro-batches of different cost: stage 0 is frozen, F 1 each; stage 1 F+B = 2, 4, 6, 8. */
static void micro_batches_differ(void **state) {
    (void)state;
    double forward[8] = {1, 1, 1, 1, 1, 2, 3, 4}, backward[8] = {0, 0, 0, 0, 1, 2, 3, 4};
    double zero[4] = {0}, makespan, idle[2];
    struct schedule_cost cost = {4, forward, backward, zero, zero};
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 2, 4, 1, false);
    assert_int_equal(schedule_simulate(2, 4, p.list, &cost, &makespan, idle), 0);
    assert_true(makespan == 21);
    assert_true(idle[0] == 17 && idle[1] == 1);
    pipe_free(&p);
}

/* A frozen first stage has two output buffers: F 1, 1, 1, 10; stage 1 F+B = 20, 2, 2, 2 from 1 on.
 * F3 needs the buffer of 1, which stage 1 receives at 21: F3 21-31, the end is at 33, not at 27. */
static void outputs_wait_for_their_buffer(void **state) {
    (void)state;
    double forward[8] = {1, 1, 1, 10, 10, 1, 1, 1}, backward[8] = {0, 0, 0, 0, 10, 1, 1, 1};
    double zero[4] = {0}, makespan;
    struct schedule_cost cost = {4, forward, backward, zero, zero};
    struct pipe p;
    pipe_build(&p, SCHEDULE_LIST_1F1B, 2, 4, 1, false);
    assert_int_equal(schedule_simulate(2, 4, p.list, &cost, &makespan, NULL), 0);
    assert_true(makespan == 33);
    pipe_free(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_lists_pass),
        cmocka_unit_test(lists_are_the_phases),
        cmocka_unit_test(in_flight_is_the_formula),
        cmocka_unit_test(contradictions_are_refused),
        cmocka_unit_test(a_missing_or_doubled_op_is_seen),
        cmocka_unit_test(an_added_op_is_seen),
        cmocka_unit_test(another_order_is_seen),
        cmocka_unit_test(a_swap_is_seen),
        cmocka_unit_test(a_deadlock_is_seen),
        cmocka_unit_test(other_faults_are_seen),
        cmocka_unit_test(equal_stages_have_the_known_bubble),
        cmocka_unit_test(messages_take_time),
        cmocka_unit_test(micro_batches_differ),
        cmocka_unit_test(outputs_wait_for_their_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
