/* Running a stage: forward and backward of one micro-batch through its blocks.
 *
 * act[i] is the input of block i. It lives in the slot if block i's backward (or the start of its
 * recompute group) needs it, else in one of two scratch buffers that take turns. */
#include <stdlib.h>
#include <string.h>

#include "model_impl.h"

void slot_init(struct slot *s, const struct stage *st) {
    memset(s, 0, sizeof *s);
    s->act = xcalloc((size_t)st->n_blocks + 1, sizeof *s->act);
    s->saved = xcalloc((size_t)st->n_blocks, sizeof *s->saved);
}

void slot_free(struct slot *s) {
    free(s->act);
    free(s->saved);
    memset(s, 0, sizeof *s);
}

static bool starts_group(const struct stage *st, int i) {
    return st->group[i] >= 0 && (i == 0 || st->group[i - 1] != st->group[i]);
}

static bool needs_input(const struct stage *st, int i) {
    if (!st->block[i].backward) return false;
    return st->group[i] < 0 || starts_group(st, i);
}

/* Does the input of block i outlive its forward? An identity hands its input on. */
static bool input_kept(const struct stage *st, const struct pass *p, int i) {
    if (!p->gradient) return false;
    for (; i < st->n_blocks; i++) {
        if (needs_input(st, i)) return true;
        if (st->block[i].ops->forward != NULL) return false;
    }
    return false;
}

static bool saved_kept(const struct stage *st, const struct pass *p, int i) {
    return p->gradient && st->block[i].backward && st->group[i] < 0;
}

static struct tensor block_output(const struct stage *st, const struct pass *p, int i) {
    const struct block *b = &st->block[i];
    struct tensor t = {.dtype = p->be->dtype};
    b->ops->out_shape(b, p->mb, &t.rows, &t.cols);
    t.ld = t.cols;
    return t;
}

static size_t largest_output(const struct stage *st, const struct pass *p, int from, int to) {
    size_t most = 0;
    for (int i = from; i < to; i++) {
        struct tensor t = block_output(st, p, i);
        size_t n = tensor_bytes(&t);
        most = n > most ? n : most;
    }
    return most;
}

static void run_block(struct stage *st, struct pass *p, int i, const struct tensor *x,
                      const struct tensor *y, struct arena *keep, struct saved *s) {
    struct block *b = &st->block[i];
    if (p->be->progress != NULL) p->be->progress(p->be->progress_arg);
    size_t mark = arena_mark(p->scratch);
    memset(s, 0, sizeof *s);
    if (b->ops->save != NULL) b->ops->save(b, p, keep != NULL ? keep : p->scratch, s);
    b->ops->forward(b, p, x, y, s);
    arena_release(p->scratch, mark);
}

/* Two scratch buffers that hold outputs nobody keeps. */
struct turns {
    void *buffer[2];
    int next;
};

static void turns_begin(struct turns *t, struct arena *scratch, size_t bytes) {
    t->buffer[0] = arena_alloc(scratch, bytes);
    t->buffer[1] = arena_alloc(scratch, bytes);
    t->next = 0;
}

static void *turns_take(struct turns *t) {
    t->next ^= 1;
    return t->buffer[t->next];
}

void stage_forward(struct stage *st, struct pass *p, struct slot *s, const struct tensor *in,
                   struct tensor *out) {
    size_t mark = arena_mark(p->scratch);
    struct turns turns;
    turns_begin(&turns, p->scratch, largest_output(st, p, 0, st->n_blocks));
    struct tensor final = block_output(st, p, st->n_blocks - 1);
    final.data = (char *)arena_alloc(&s->arena, MESSAGE_HEADER_BYTES + tensor_bytes(&final)) +
                 MESSAGE_HEADER_BYTES;
    s->act[0] = *in;
    for (int i = 0; i < st->n_blocks; i++) {
        if (st->block[i].ops->forward == NULL) {
            s->act[i + 1] = s->act[i];
            continue;
        }
        struct tensor y = block_output(st, p, i);
        if (i + 1 == st->n_blocks)
            y = final;
        else if (input_kept(st, p, i + 1))
            y.data = arena_alloc(&s->arena, tensor_bytes(&y));
        else
            y.data = turns_take(&turns);
        bool keep = saved_kept(st, p, i);
        run_block(st, p, i, &s->act[i], &y, keep ? &s->arena : NULL, &s->saved[i]);
        s->act[i + 1] = y;
    }
    const struct tensor *last = &s->act[st->n_blocks];
    if (last->data != final.data) /* the stage ends in identities */
        p->be->ops->copy(p->be, final.data, last->data, tensor_bytes(&final));
    *out = final;
    arena_release(p->scratch, mark);
}

/* Forward of the group's blocks once more, from its kept input; everything lands in scratch. */
static void recompute_group(struct stage *st, struct pass *p, struct slot *s, int from, int to) {
    double before = p->be->gemm_flops + p->be->attention_flops;
    for (int i = from; i <= to; i++) {
        struct tensor y = block_output(st, p, i);
        y.data = arena_alloc(p->scratch, tensor_bytes(&y));
        struct block *b = &st->block[i];
        memset(&s->saved[i], 0, sizeof s->saved[i]);
        if (b->ops->save != NULL) b->ops->save(b, p, p->scratch, &s->saved[i]);
        if (i == to && b->ops->save == NULL) break; /* its output is not needed again */
        size_t mark = arena_mark(p->scratch);
        b->ops->forward(b, p, &s->act[i], &y, &s->saved[i]);
        arena_release(p->scratch, mark);
        if (i < to) s->act[i + 1] = y;
    }
    p->be->repeated_flops += p->be->gemm_flops + p->be->attention_flops - before;
}

static int group_begin(const struct stage *st, int i) {
    while (i > 0 && st->group[i - 1] == st->group[i]) i--;
    return i;
}

/* Where block i's input gradient goes: nowhere, to the caller (first block), or to scratch. */
static const struct tensor *gradient_target(const struct stage *st, struct turns *turns, int i,
                                            const struct tensor *din, struct tensor *room) {
    if (!st->block[i].input_gradient) return NULL;
    if (i == 0) return din;
    *room = tensor_view(turns_take(turns), room->rows, room->cols, room->dtype);
    return room;
}

static void step_back(struct stage *st, struct pass *p, struct slot *s, struct turns *turns, int i,
                      struct tensor *d, const struct tensor *din) {
    struct block *b = &st->block[i];
    if (b->ops->forward == NULL) return; /* an identity passes the gradient on */
    struct tensor room = {.dtype = p->be->dtype};
    if (i > 0) room = block_output(st, p, i - 1);
    const struct tensor *dx = gradient_target(st, turns, i, din, &room);
    if (p->be->progress != NULL) p->be->progress(p->be->progress_arg);
    size_t mark = arena_mark(p->scratch);
    b->ops->backward(b, p, &s->act[i], &s->saved[i], d, dx);
    arena_release(p->scratch, mark);
    if (dx != NULL) *d = *dx;
}

void stage_backward(struct stage *st, struct pass *p, struct slot *s, const struct tensor *dout,
                    const struct tensor *din) {
    size_t mark = arena_mark(p->scratch);
    struct turns turns;
    turns_begin(&turns, p->scratch, largest_output(st, p, 0, st->n_blocks));
    struct tensor d = *dout;
    size_t floor = arena_mark(p->scratch);
    for (int i = st->n_blocks - 1; i >= 0 && st->block[i].backward; i--) {
        bool group_end =
            st->group[i] >= 0 && (i + 1 == st->n_blocks || st->group[i + 1] != st->group[i]);
        if (group_end) recompute_group(st, p, s, group_begin(st, i), i);
        step_back(st, p, s, &turns, i, &d, din);
        if (starts_group(st, i)) arena_release(p->scratch, floor);
    }
    if (din != NULL && din->data != d.data) /* the stage begins with identities */
        p->be->ops->copy(p->be, din->data, d.data, tensor_bytes(din));
    arena_release(p->scratch, mark);
}
