/* Predicts a stage's memory and FLOPs by running its own code over the measuring backend. */
#include <string.h>

#include "pipeline_impl.h"

size_t pipeline_memory_bytes(const struct pipeline_memory *m) {
    return (size_t)m->n_slots * m->slot_bytes + (size_t)m->n_act_recv * m->act_recv_bytes +
           (size_t)m->n_grad_recv * m->grad_recv_bytes +
           (size_t)m->n_grad_send * m->grad_send_bytes + m->scratch_bytes + m->workspace_bytes;
}

static size_t align_up(size_t n) {
    return (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

static struct stream cut_stream_of(const struct stage *st, const struct backend *be, int cut,
                                   const struct microbatch *mb) {
    struct stream s[STREAMS_MAX];
    boundary_streams(st->stack, cut, mb, st->tp_size, st->tp_rank, be->dtype, s);
    return s[0];
}

static size_t message_bytes(const struct stream *s) {
    return align_up(MESSAGE_HEADER_BYTES + (size_t)(s->rows * s->cols) * dtype_size(s->dtype));
}

static bool has_output(const struct stage *st) {
    return st->end < st->stack->n_layers;
}

static void measure_messages(const struct stage *st, const struct backend *be,
                             const struct microbatch *mb, struct pipeline_memory *out) {
    if (st->first > 0) {
        struct stream s = cut_stream_of(st, be, st->first, mb);
        out->act_recv_bytes = message_bytes(&s);
        out->n_act_recv = out->n_slots + 1; /* one spare: posted before the oldest is free */
        if (st->input_gradient) {
            out->grad_send_bytes = message_bytes(&s);
            out->n_grad_send = 2;
        }
    }
    if (has_output(st) && st->output_gradient) {
        struct stream s = cut_stream_of(st, be, st->end, mb);
        out->grad_recv_bytes = message_bytes(&s);
        out->n_grad_recv = 2;
    }
}

static struct tensor fake(const struct stream *s) {
    return tensor_view((void *)(uintptr_t)ARENA_ALIGN, s->rows, s->cols, s->dtype);
}

static double flops(const struct backend *be) {
    return be->gemm_flops + be->attention_flops;
}

void pipeline_measure(struct stage *st, struct backend *be, const struct grid *grid, int P,
                      int stage, const struct pipeline_settings *settings,
                      const struct microbatch *largest, struct pipeline_memory *out) {
    memset(out, 0, sizeof *out);
    out->n_slots = st->backward ? schedule_in_flight(settings->schedule, P, stage,
                                                     settings->micro_batches, true)
                                : 2;
    measure_messages(st, be, largest, out);
    struct slot slot;
    struct arena scratch;
    struct batch_tables tables;
    slot_init(&slot, st);
    arena_init_measuring(&slot.arena, "slot");
    arena_init_measuring(&scratch, "scratch");
    stage_tables_layout(st, largest, &slot.arena, &tables);
    struct pass p = {.be = be,
                     .tp = grid_group(grid, GROUP_TP),
                     .scratch = &scratch,
                     .mb = largest,
                     .tab = &tables,
                     .run_key = settings->run_key,
                     .sequence_parallel = st->stack->sequence_parallel,
                     .training = true,
                     .gradient = true,
                     .loss_scale = 1.0};
    struct tensor in = {.dtype = be->dtype}, result, dout = {.dtype = be->dtype}, din;
    if (st->first > 0) {
        struct stream s = cut_stream_of(st, be, st->first, largest);
        in = din = fake(&s);
    }
    /* An evaluation keeps nothing in the slot: what the blocks save passes through scratch. */
    size_t mark = arena_mark(&slot.arena);
    p.gradient = false;
    stage_forward(st, &p, &slot, &in, &result);
    arena_release(&slot.arena, mark);
    p.gradient = true;
    double start = flops(be);
    stage_forward(st, &p, &slot, &in, &result);
    out->forward_flops = flops(be) - start;
    if (has_output(st)) dout = result;
    if (st->backward) stage_backward(st, &p, &slot, &dout, st->input_gradient ? &din : NULL);
    out->backward_flops = flops(be) - start - out->forward_flops;
    out->slot_bytes = align_up(slot.arena.peak);
    out->scratch_bytes = align_up(scratch.peak);
    out->workspace_bytes = group_workspace_needed(p.tp);
    slot_free(&slot);
}
