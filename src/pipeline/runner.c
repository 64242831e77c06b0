/* The runner: executes this stage's list. It knows messages, buffers and order; what a layer is, it
 * does not know. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline_impl.h"
#include "fault.h"

#define MESSAGE_MAGIC 0x41525453u /* "STRA" */

/* ---- buffers ---------------------------------------------------------------------------------------- */
static void make_room(struct buffer *b, int n, size_t bytes, struct arena *arena) {
    for (int i = 0; i < n; i++) {
        b[i].bytes = bytes;
        b[i].raw = arena_alloc(arena, bytes);
        b[i].transfer.active = false;
    }
}

static void describe_wait(void *arg, char *text, size_t size) {
    const struct waiting *w = arg;
    const struct pipeline *pl = w->pl;
    snprintf(text, size,
             "stage %d of %d, operation %d of %d (%s of micro-batch %d), tag %d: %s of %" PRId64
             " x %" PRId64 " %s stage %d",
             pl->stage_index, pl->P, w->op, pl->list->n_ops, op_name(pl->list->op[w->op].kind),
             pl->list->op[w->op].micro_batch, w->tag, w->sending ? "sending" : "waiting for",
             w->rows, w->cols, w->sending ? "to" : "from", w->peer);
}

static void wait_send(struct pipeline *pl, struct buffer *b) {
    if (!b->transfer.active) return;
    struct waiting w = {.pl = pl,
                        .op = pl->at,
                        .tag = b->tag,
                        .sending = true,
                        .peer = b->peer,
                        .rows = b->rows,
                        .cols = b->cols};
    comm_wait(pl->grid, &b->transfer, describe_wait, &w);
}

/* ---- headers ------------------------------------------------------------------------------------------ */
static int message_tag(int direction, int stream, int micro_batch) {
    return direction + 2 * (stream + 4 * (32 * (micro_batch % 64)));
}

static void fill_header(const struct pipeline *pl, const struct microbatch *mb, int k,
                        int direction, int cut, int source, int destination, const struct stream *s,
                        struct message_header *h) {
    memset(h, 0, sizeof *h);
    h->magic = MESSAGE_MAGIC;
    h->version = 1;
    h->direction = (uint8_t)direction;
    h->step = mb->step;
    h->micro_batch = k;
    h->cut = cut;
    h->source = (int16_t)source;
    h->destination = (int16_t)destination;
    h->dtype = (uint8_t)s->dtype;
    h->tp = (uint16_t)pl->stage->tp_rank;
    h->rows = s->rows;
    h->cols = (int32_t)s->cols;
    h->payload_bytes = s->rows * s->cols * (int64_t)dtype_size(s->dtype);
    h->descriptor_hash = mb->hash;
}

static void cut_stream(const struct pipeline *pl, int cut, const struct microbatch *mb,
                       struct stream *s) {
    struct stream all[STREAMS_MAX];
    int n = boundary_streams(pl->stage->stack, cut, mb, pl->stage->tp_size, pl->stage->tp_rank,
                             pl->be->dtype, all);
    CHECK(n == 1, "%d streams at the cut before layer %d", n, cut);
    *s = all[0];
}

static void begin_send(struct pipeline *pl, struct buffer *b, int k, int direction) {
    bool act = direction == 0;
    int cut = act ? pl->stage->end : pl->stage->first;
    int peer = pl->stage_index + (act ? 1 : -1);
    const struct microbatch *mb = pl->source->descriptor(pl->source->arg, k);
    struct stream s;
    cut_stream(pl, cut, mb, &s);
    struct message_header *h = (struct message_header *)b->raw;
    fill_header(pl, mb, k, direction, cut, pl->stage_index, peer, &s, h);
    CHECK(s.rows == b->rows && s.cols == b->cols,
          "the cut before layer %d should carry %" PRId64 " x %" PRId64 ", the stage made %" PRId64
          " x %" PRId64,
          cut, s.rows, s.cols, b->rows, b->cols);
    b->tag = message_tag(direction, 0, k);
    b->peer = peer;
    fault_point("step.send.before");
    comm_send_begin(pl->grid, direction, peer, b->tag, b->raw,
                    MESSAGE_HEADER_BYTES + (size_t)h->payload_bytes, &b->transfer);
    fault_point("step.send.after");
}

static struct buffer *recv_buffer(struct pipeline *pl, enum op_kind kind, int k) {
    return kind == OP_RECV_ACT ? &pl->act_recv[k % pl->memory.n_act_recv]
                               : &pl->grad_recv[k % pl->memory.n_grad_recv];
}

static void begin_recv(struct pipeline *pl, int op) {
    enum op_kind kind = pl->list->op[op].kind;
    int k = pl->list->op[op].micro_batch, direction = kind == OP_RECV_ACT ? 0 : 1;
    struct buffer *b = recv_buffer(pl, kind, k);
    int cut = direction == 0 ? pl->stage->first : pl->stage->end;
    int peer = pl->stage_index + (direction == 0 ? -1 : 1);
    const struct microbatch *mb = pl->source->descriptor(pl->source->arg, k);
    struct stream s;
    cut_stream(pl, cut, mb, &s);
    CHECK(!b->transfer.active, "a receive buffer is still in use");
    fill_header(pl, mb, k, direction, cut, peer, pl->stage_index, &s, &b->expected);
    b->rows = s.rows;
    b->cols = s.cols;
    b->tag = message_tag(direction, 0, k);
    b->peer = peer;
    comm_recv_begin(pl->grid, direction, peer, b->tag, b->raw,
                    MESSAGE_HEADER_BYTES + (size_t)b->expected.payload_bytes, b->bytes,
                    &b->transfer);
    pl->posted = op;
}

/* Posts the next receive of the list while the present operation computes. */
static void post_ahead(struct pipeline *pl) {
    if (!pl->settings.overlap_p2p) return;
    for (int i = pl->at + 1; i < pl->list->n_ops; i++) {
        enum op_kind kind = pl->list->op[i].kind;
        if (kind != OP_RECV_ACT && kind != OP_RECV_GRAD) continue;
        if (i > pl->posted) begin_recv(pl, i);
        return;
    }
}

static int finish_recv(struct pipeline *pl, int op) {
    if (pl->posted < op) begin_recv(pl, op);
    struct buffer *b = recv_buffer(pl, pl->list->op[op].kind, pl->list->op[op].micro_batch);
    struct waiting w = {
        .pl = pl, .op = op, .tag = b->tag, .peer = b->peer, .rows = b->rows, .cols = b->cols};
    fault_point("step.recv.before");
    size_t got = comm_wait(pl->grid, &b->transfer, describe_wait, &w);
    fault_point("step.recv.after");
    TRY(message_check((const struct message_header *)b->raw, &b->expected));
    if (got != MESSAGE_HEADER_BYTES + (size_t)b->expected.payload_bytes)
        return error_raise(
            EXIT_INTERNAL,
            "micro-batch %d from stage %d: %zu bytes arrived, its header says %" PRId64,
            b->expected.micro_batch, b->peer, got, b->expected.payload_bytes);
    return 0;
}

static struct tensor payload(const struct pipeline *pl, const struct buffer *b) {
    return tensor_view(b->raw + MESSAGE_HEADER_BYTES, b->rows, b->cols, pl->be->dtype);
}

/* ---- operations --------------------------------------------------------------------------------------- */
static struct pass make_pass(struct pipeline *pl, const struct flight *f, int k) {
    return (struct pass){.be = pl->be,
                         .tp = grid_group(pl->grid, GROUP_TP),
                         .scratch = pl->scratch,
                         .mb = f->mb,
                         .tab = &f->tables,
                         .run_key = pl->settings.run_key,
                         .sequence_parallel = pl->stage->stack->sequence_parallel,
                         .training = pl->gradient,
                         .gradient = pl->gradient,
                         .loss_scale = pl->source->loss_scale(pl->source->arg, k)};
}

static int run_forward(struct pipeline *pl, int k, const struct pipeline_result *result) {
    struct flight *f = &pl->flight[k % pl->memory.n_slots];
    wait_send(pl, &f->out);
    arena_release(&f->slot.arena, 0);
    f->mb = pl->source->descriptor(pl->source->arg, k);
    TRY(pl->source->tables(pl->source->arg, k, pl->be, &f->slot.arena, &f->tables));
    post_ahead(pl);
    struct pass p = make_pass(pl, f, k);
    p.logits = result->logits;
    struct tensor in = {.dtype = pl->be->dtype}, out;
    fault_point("step.forward.before");
    if (pl->stage_index > 0) in = payload(pl, recv_buffer(pl, OP_RECV_ACT, k));
    stage_forward(pl->stage, &p, &f->slot, &in, &out);
    fault_point("step.forward.after");
    f->out.raw = (char *)out.data - MESSAGE_HEADER_BYTES;
    f->out.rows = out.rows;
    f->out.cols = out.cols;
    result->loss_sum[k] = p.loss_sum;
    result->loss_rows[k] = p.loss_rows;
    return 0;
}

static int run_backward(struct pipeline *pl, int k) {
    struct flight *f = &pl->flight[k % pl->memory.n_slots];
    post_ahead(pl);
    struct pass p = make_pass(pl, f, k);
    struct tensor dout = {.dtype = pl->be->dtype}, din, *to = NULL;
    if (pl->stage_index + 1 < pl->P) dout = payload(pl, recv_buffer(pl, OP_RECV_GRAD, k));
    if (pl->stage->input_gradient) {
        struct buffer *b = &pl->grad_send[k % pl->memory.n_grad_send];
        struct stream s;
        wait_send(pl, b);
        cut_stream(pl, pl->stage->first, f->mb, &s);
        b->rows = s.rows;
        b->cols = s.cols;
        din = payload(pl, b);
        to = &din;
    }
    fault_point("step.backward.before");
    stage_backward(pl->stage, &p, &f->slot, &dout, to);
    fault_point("step.backward.after");
    return 0;
}

static int run_operation(struct pipeline *pl, const struct pipeline_result *result) {
    const struct schedule_op *op = &pl->list->op[pl->at];
    int k = op->micro_batch;
    switch (op->kind) {
    case OP_RECV_ACT:
    case OP_RECV_GRAD:
        return finish_recv(pl, pl->at);
    case OP_FORWARD:
        return run_forward(pl, k, result);
    case OP_BACKWARD:
        return run_backward(pl, k);
    case OP_SEND_ACT:
        begin_send(pl, &pl->flight[k % pl->memory.n_slots].out, k, 0);
        return 0;
    case OP_SEND_GRAD:
        begin_send(pl, &pl->grad_send[k % pl->memory.n_grad_send], k, 1);
        return 0;
    case OP_KIND_COUNT:
        break;
    }
    CHECK(false, "operation %d", op->kind);
}

static void finish_sends(struct pipeline *pl) {
    for (int i = 0; i < pl->memory.n_slots; i++) wait_send(pl, &pl->flight[i].out);
    for (int i = 0; i < pl->memory.n_grad_send; i++) wait_send(pl, &pl->grad_send[i]);
}

int pipeline_run(struct pipeline *pl, const struct microbatch_source *source, int64_t step,
                 bool gradient, const struct pipeline_result *result) {
    pl->source = source;
    pl->step = step;
    pl->gradient = gradient;
    pl->list = gradient ? &pl->train : &pl->evaluate;
    pl->posted = -1;
    for (pl->at = 0; pl->at < pl->list->n_ops; pl->at++) TRY(run_operation(pl, result));
    pl->at = pl->list->n_ops - 1;
    finish_sends(pl);
    return 0;
}

/* ---- set-up ----------------------------------------------------------------------------------------------- */
/* Called between blocks of compute: moves rendezvous transfers on. */
static void progress(void *arg) {
    struct pipeline *pl = arg;
    for (int i = 0; i < pl->memory.n_act_recv; i++) comm_test(&pl->act_recv[i].transfer);
    for (int i = 0; i < pl->memory.n_grad_recv; i++) comm_test(&pl->grad_recv[i].transfer);
    for (int i = 0; i < pl->memory.n_slots; i++) comm_test(&pl->flight[i].out.transfer);
    for (int i = 0; i < pl->memory.n_grad_send; i++) comm_test(&pl->grad_send[i].transfer);
}

static int build_lists(struct pipeline *pl) {
    const struct stage *st = pl->stage;
    bool grad_out = st->output_gradient && pl->stage_index + 1 < pl->P;
    bool grad_in = st->input_gradient && pl->stage_index > 0;
    TRY(schedule_build(pl->settings.schedule, pl->P, pl->stage_index, pl->settings.micro_batches,
                       st->backward, grad_in, grad_out, false, &pl->train));
    return schedule_build(pl->settings.schedule, pl->P, pl->stage_index, pl->settings.micro_batches,
                          st->backward, grad_in, grad_out, true, &pl->evaluate);
}

int pipeline_create(struct stage *st, struct backend *be, const struct grid *grid, int P, int stage,
                    const struct pipeline_settings *settings, const struct pipeline_memory *memory,
                    struct arena *step, struct arena *scratch, struct pipeline **out) {
    struct pipeline *pl = xcalloc(1, sizeof *pl);
    *pl = (struct pipeline){.stage = st,
                            .be = be,
                            .grid = grid,
                            .P = P,
                            .stage_index = stage,
                            .settings = *settings,
                            .memory = *memory,
                            .scratch = scratch};
    TRY(build_lists(pl));
    pl->flight = xcalloc((size_t)memory->n_slots, sizeof *pl->flight);
    pl->act_recv = xcalloc((size_t)memory->n_act_recv + 1, sizeof *pl->act_recv);
    pl->grad_recv = xcalloc((size_t)memory->n_grad_recv + 1, sizeof *pl->grad_recv);
    pl->grad_send = xcalloc((size_t)memory->n_grad_send + 1, sizeof *pl->grad_send);
    make_room(pl->act_recv, memory->n_act_recv, memory->act_recv_bytes, step);
    make_room(pl->grad_recv, memory->n_grad_recv, memory->grad_recv_bytes, step);
    make_room(pl->grad_send, memory->n_grad_send, memory->grad_send_bytes, step);
    for (int i = 0; i < memory->n_slots; i++) {
        slot_init(&pl->flight[i].slot, st);
        arena_init(&pl->flight[i].slot.arena, "slot", arena_alloc(step, memory->slot_bytes),
                   memory->slot_bytes);
    }
    if (P > 1) {
        be->progress = progress;
        be->progress_arg = pl;
    }
    *out = pl;
    return 0;
}

void pipeline_destroy(struct pipeline *pl) {
    if (pl == NULL) return;
    pl->be->progress = NULL;
    for (int i = 0; i < pl->memory.n_slots; i++) slot_free(&pl->flight[i].slot);
    schedule_free(&pl->train);
    schedule_free(&pl->evaluate);
    free(pl->flight);
    free(pl->act_recv);
    free(pl->grad_recv);
    free(pl->grad_send);
    free(pl);
}
