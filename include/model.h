/* model: the stack of layers, its families, and a stage: the slice [first, end) that a rank builds
 * and runs. */
#ifndef STRATA_MODEL_H
#define STRATA_MODEL_H

#include "config.h"
#include "nn.h"

/* ---- the stack -------------------------------------------------------------------------------- */
enum layer_kind { LAYER_VISION, LAYER_PROJECTOR, LAYER_LANGUAGE, LAYER_KIND_COUNT };
struct layer {
    enum layer_kind kind;
    int number; /* inside its tower */
};
struct stage;
struct stack;
struct family { /* a row of the registry */
    const char *name;
    int (*build)(const struct config *cfg, struct stack *out);
    /* Appends the blocks of one layer, what hangs on it included. */
    void (*add_blocks)(const struct stack *s, int layer, struct stage *st);
};
struct stack {
    const struct family *family;
    struct model_shape shape;
    struct transformer_config *transformer; /* one per layer; unused for projector layers */
    struct layer *layer;
    int n_layers;
    int kind_count[LAYER_KIND_COUNT]; /* "24 + 2 + 32" */
    bool sequence_parallel;
    bool *gradient_crosses; /* [n_layers+1]: does a gradient cross the cut before that layer? */
    int64_t n_parameters, n_trainable; /* global, each once */
    int n_params;                      /* declared tensors of the whole stack */
    int *first_param;                  /* [n_layers+1]: number of the layer's first tensor */
};
/* From a checked job file. EXIT_USAGE where sizes do not fit together. */
int stack_build(const struct config *cfg, struct stack *out);
void stack_free(struct stack *s);
const char *layer_kind_name(enum layer_kind k);
/* Every parameter frozen and no gradient anywhere, as evaluation and generation run it. */
int stack_freeze(struct stack *s);
/* Legal places for a cut: allowed[c] for a cut before layer c, 0 < c < n_layers. */
bool stack_cut_allowed(const struct stack *s, int cut);

/* ---- a stage ----------------------------------------------------------------------------------- */
enum recompute { REPEAT_NOTHING, REPEAT_UNIFORM, REPEAT_BLOCK };
struct stage {
    const struct stack *stack;
    int first, end; /* layers */
    int tp_size, tp_rank;
    struct param_set params;
    struct block *block;
    int n_blocks, capacity;
    int *group;          /* per block: -1 keeps what backward needs, else its recompute group */
    bool backward;       /* some block has one */
    bool input_gradient; /* a gradient crosses the input cut */
    bool output_gradient;
    struct tensor rope;
};
/* Declares and lays out the parameters of layers [first, end) for TP rank r of p. */
int stage_build(const struct stack *s, int first, int end, int p, int r, enum recompute how,
                int64_t recompute_layers, struct stage *out);
void stage_free(struct stage *st);
struct block *stage_add_block(struct stage *st, int layer); /* for families */
/* Weights, gradients and tables from the life arena. */
void stage_allocate(struct stage *st, struct backend *be, struct arena *life);
void stage_tables_fill(struct stage *st, struct backend *be); /* rotary tables */
/* Generation: caches of keys and values for sequences up to so many rows, from the life arena. */
void stage_allocate_caches(struct stage *st, struct backend *be, int64_t rows, struct arena *life);
/* Generation, on the last stage: [1, my columns of the vocabulary], from the life arena. */
struct tensor stage_allocate_logits(const struct stage *st, struct backend *be, struct arena *life);

/* Which parts of the stack a stage holds, and so which tables of a micro-batch it needs. */
struct stage_needs {
    bool pixels, vision, select, embedding, language, head;
};
struct stage_needs stage_needs(const struct stage *st);
/* Takes the memory of the tables this stage needs for that micro-batch; the caller fills it. */
void stage_tables_layout(const struct stage *st, const struct microbatch *mb, struct arena *arena,
                         struct batch_tables *out);

/* One micro-batch in flight: inputs of the blocks and what they saved. */
struct slot {
    struct arena arena;
    struct tensor *act;  /* [n_blocks+1] */
    struct saved *saved; /* [n_blocks] */
};
void slot_init(struct slot *s, const struct stage *st);
void slot_free(struct slot *s);
/* Room in front of a tensor that may be sent: the message header. */
#define MESSAGE_HEADER_BYTES 64
/* The slot's arena holds the micro-batch's tables already; activations are put behind them.
 * in: the activation received (rows 0 on the first stage). out: the stage's result, in the slot's
 * memory with MESSAGE_HEADER_BYTES of room before it; 0 rows where nothing leaves (the head). */
void stage_forward(struct stage *st, struct pass *p, struct slot *s, const struct tensor *in,
                   struct tensor *out);
/* din NULL iff no gradient crosses the input cut. */
void stage_backward(struct stage *st, struct pass *p, struct slot *s, const struct tensor *dout,
                    const struct tensor *din);

#endif
