#ifndef STRATA_PIPELINE_IMPL_H
#define STRATA_PIPELINE_IMPL_H

#include "pipeline.h"

/* A message: header and payload in one piece, and the transfer that moves it. */
struct buffer {
    char *raw;
    size_t bytes;
    struct transfer transfer;
    int64_t rows, cols;
    int tag, peer;
    struct message_header expected; /* receives */
};

/* A micro-batch in flight. */
struct flight {
    struct slot slot;
    struct batch_tables tables;
    const struct microbatch *mb;
    struct buffer out; /* the activation sent on, in the slot's memory */
};

struct pipeline {
    struct stage *stage;
    struct backend *be;
    const struct grid *grid;
    int P, stage_index;
    struct pipeline_settings settings;
    struct pipeline_memory memory;
    struct arena *scratch;
    struct schedule train, evaluate;
    struct flight *flight;
    struct buffer *act_recv, *grad_recv, *grad_send;
    /* of the running step */
    const struct microbatch_source *source;
    const struct schedule *list;
    int64_t step;
    bool gradient;
    int at, posted; /* operation under way; last receive posted */
};

struct waiting { /* for the message of a wait that exceeds its limit */
    const struct pipeline *pl;
    int op, tag, peer;
    bool sending;
    int64_t rows, cols;
};

#endif
