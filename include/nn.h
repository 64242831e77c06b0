/* nn: parameters, micro-batches, and the blocks that layers are made of.
 *
 * A block is the smallest piece with a forward and a backward. A layer of the stack is a short list
 * of blocks: what is not a splittable layer (patch embedding, token embedding, head) is a block that
 * hangs on one. Activations are matrices [rows, columns] plus the tables of the micro-batch.
 * Letters: R rows, h hidden size, p tensor-parallel size, t tiles, S merged tokens (doc/shapes.md).
 */
#ifndef STRATA_NN_H
#define STRATA_NN_H

#include "comm.h"

/* ---- parameters -----------------------------------------------------------------------------
 * Declared once; initialising, slicing, the optimizer, checkpoints, import and export read it. */
enum init_kind { INIT_ZERO, INIT_ONE, INIT_NORMAL /* N(0, scale) */, INIT_UNIFORM /* +-scale */ };
enum param_group { PARAM_LANGUAGE, PARAM_PROJECTOR, PARAM_VISION };

struct param {
    char name[160];    /* as in checkpoints: model/language_model/layers/000/.../weight */
    char hf_name[160]; /* Hugging Face spelling */
    const char *dims;  /* "out_features,in_features" */
    int ndim;
    int64_t shape[4]; /* global, as with TP = 1 */
    struct cut cut;   /* axis into shape, or -1 */
    enum init_kind init;
    double init_scale;
    enum param_group group;
    int stack_layer;
    bool decay;      /* weight decay applies */
    bool trainable;  /* neither frozen nor unused */
    bool partial_tp; /* replicated over TP, but its gradient saw only this rank's rows */
    bool fused;      /* stored directly behind the parameter declared before it */
    /* set by param_set_layout: */
    int tp_size, tp_rank;
    int64_t rows, cols;  /* local matrix: 1-D tensors are [1, n] */
    int64_t offset;      /* elements from the start of the weights */
    int64_t grad_offset; /* elements from the start of the gradients; -1 if not trainable */
    struct tensor w, g;  /* views; g.data NULL if not trainable */
};

struct param_set {
    struct param *param; /* in declaration order: ascending stack layer */
    int n, capacity;
    int64_t weight_elements, grad_elements; /* local, alignment included */
    void *weights, *grads;                  /* device, flat */
};
void param_set_free(struct param_set *s);
struct param *param_declare(struct param_set *s, struct param proto); /* returns s->param[n-1] */
/* Local shapes and offsets for TP rank r of p. EXIT_USAGE if an axis cannot be cut that often. */
int param_set_layout(struct param_set *s, int p, int r);
/* Takes the flat buffers from `arena` and sets the views. Weights in be->dtype, gradients acc. */
void param_set_allocate(struct param_set *s, struct backend *be, struct arena *arena);
int64_t param_global_count(const struct param *p);
int64_t param_local_count(const struct param *p);
/* Row-major index in the p=1 tensor of local element (row, col). */
int64_t param_global_index(const struct param *p, int64_t row, int64_t col);
/* Initial values: a function of (run key, name, global index) alone; computed on the host in
 * double, rounded once to fp32, uploaded. */
void param_set_initialise(struct param_set *s, struct backend *be, struct rng_key run);

/* Optimizer state of local elements [first, first+count) of a parameter (row-major in its local
 * matrix); what one rank owns, and so what it checkpoints. */
struct state_piece {
    int param;
    int64_t first, count;
    void *m, *v; /* device, acc; v NULL for SGD */
};

/* ---- micro-batch ----------------------------------------------------------------------------
 * The descriptor: integers only, the same on every rank (pipeline.md section 5). */
struct microbatch {
    int64_t step;         /* 0-based */
    int64_t index;        /* dp*M + micro-batch: place in the global batch */
    int64_t first_sample; /* ordinal of its first sample in the global batch */
    int64_t samples, images, tiles;
    int64_t image_rows; /* rows after the class row was dropped (or kept), all tiles */
    int64_t tokens;     /* merged rows */
    int64_t newlines;   /* those of them that are image_newline (anyres) */
    int64_t targets;
    int64_t max_segment;
    int64_t past; /* generation: rows of its one sample that went before and are in the caches */
    const int64_t *sample_id;     /* [samples] */
    const int64_t *cu_tokens;     /* [samples+1] */
    const int32_t *text_len;      /* [samples] */
    const int32_t *sample_images; /* [samples+1] prefix sums */
    const int32_t *image_tiles;   /* [images] */
    const int64_t *image_row; /* [images] merged row of the first patch; may lie beyond the cut */
    uint64_t hash;            /* of all fields above */
};
uint64_t microbatch_hash(const struct microbatch *mb);

/* Device tables made from the content of a micro-batch for one rank; a stage has those that its
 * blocks need. "Mine": the rows this TP rank holds under sequence parallelism, else all rows. */
struct batch_tables {
    const float *pixels;           /* [tiles, channels*H*W] */
    const int32_t *tile_cu;        /* [tiles+1]: multiples of the rows of a tile */
    const int32_t *select_row;     /* [my image rows] my row of the tower's output */
    const int32_t *token;          /* [S] row of my vocabulary shard, or -1 */
    const int32_t *image_to_row;   /* [image_rows] my merged row, or -1 */
    const int32_t *my_image_row;   /* [my image rows] merged row (of all), or -1 where cut off */
    const int32_t *newline_row;    /* [newlines] merged row (of all) */
    const int32_t *my_newline_row; /* [newlines] my merged row, or -1 */
    const int32_t *position;       /* [S] row inside its sample */
    const int32_t *row_sample;     /* [S] ordinal of the sample in the global batch */
    const int32_t *token_cu;       /* [samples+1] */
    const int32_t *segment_sample; /* [samples] ordinal in the global batch */
    const int32_t *target_row;     /* [targets] merged row (of all) */
    const int32_t *my_target_row;  /* [targets] my merged row, or -1 */
    const int32_t *target;         /* [targets] ids */
};

/* ---- one pass of one micro-batch through a stage ---------------------------------------------- */
struct pass {
    struct backend *be;
    const struct group *tp;
    struct arena *scratch;
    const struct microbatch *mb;
    const struct batch_tables *tab;
    struct rng_key run_key;
    bool sequence_parallel;
    bool training;     /* dropout on */
    bool gradient;     /* a backward will follow: the head computes its gradient */
    double loss_scale; /* factor of the head's gradient */
    /* Generation: not NULL, the head writes the logits of the target rows, [targets, my columns of
     * the vocabulary], and takes no loss. */
    const struct tensor *logits;
    double loss_sum;   /* out: sum of the row losses of this micro-batch */
    int64_t loss_rows; /* out: rows really counted */
};

/* ---- blocks ----------------------------------------------------------------------------------- */
#define SAVED_MAX 12
struct saved {
    struct tensor t[SAVED_MAX];
};
struct block;
struct block_ops {
    const char *name;
    bool once; /* its forward adds to gradients: never recomputed */
    /* [rows, columns] of the output of this TP rank for that micro-batch. */
    void (*out_shape)(const struct block *b, const struct microbatch *mb, int64_t *rows,
                      int64_t *cols);
    /* Lays out what backward needs beside the input x. NULL: nothing. */
    void (*save)(const struct block *b, const struct pass *p, struct arena *arena, struct saved *s);
    /* NULL forward: y is x (an identity takes no time and no memory). */
    void (*forward)(struct block *b, struct pass *p, const struct tensor *x, const struct tensor *y,
                    struct saved *s);
    /* dx NULL: no gradient crosses the input. Parameter gradients are added to. dx may not alias
     * dy. */
    void (*backward)(struct block *b, struct pass *p, const struct tensor *x, struct saved *s,
                     const struct tensor *dy, const struct tensor *dx);
};

#define BLOCK_PARAMS_MAX 18
struct block {
    const struct block_ops *ops;
    const void *config; /* of the block's kind, owned by the model */
    int stack_layer;
    int tp_size, tp_rank;
    bool sequence_parallel;
    bool input_gradient; /* a gradient crosses the input */
    bool backward;       /* it holds a trainable parameter or a gradient crosses its input */
    int variant;         /* which half of a projector */
    int param[BLOCK_PARAMS_MAX]; /* index into the set, -1: absent */
    struct param_set *set;
    struct tensor rope; /* table shared by the blocks of a stage; rows 0 if none */
    /* Generation: keys | values of the rows that went before, of one sample; rows 0 if none. The
     * forward adds its own behind the microbatch's `past` rows and attends to all of them. */
    struct tensor cache;
};
static inline struct param *block_param(const struct block *b, int slot) {
    return b->param[slot] < 0 ? NULL : &b->set->param[b->param[slot]];
}

/* Configurations. *_declare adds the block's parameters to the set (layer = index in the stack). */
struct vision_config {
    int64_t hidden, ffn, heads, layers, img_h, img_w, patch, channels;
    int feature_layer; /* -1 or -2 */
    bool drop_class;
    bool frozen;
    double eps;
};
static inline int64_t vision_patches(const struct vision_config *v) {
    return (v->img_h / v->patch) * (v->img_w / v->patch);
}
struct projector_config {
    bool affine;
    int64_t in, hidden, out;
    bool bias;
    enum act_kind act;
    bool uniform_init;
    double init_std;
    bool frozen;
};
/* The frequencies of rotary positions and what became of them for longer samples. */
enum rope_kind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN };
struct rope_config {
    enum rope_kind kind;
    double base, factor;         /* factor: how many times longer samples became */
    double original;             /* llama3, yarn: longest sample before */
    double low_freq, high_freq;  /* llama3: turns over the original length */
    double beta_fast, beta_slow; /* yarn: turns over the original length */
    bool round;                  /* yarn: the ramp's ends are whole numbers */
    double scale;                /* of queries and keys, 1 but for yarn */
};
/* frequency[i], i < n/2, of n rotated columns of a head, n even; the angle of a row is its position
 * times this. */
void rope_frequencies(const struct rope_config *c, int64_t n, float *frequency);

struct language_config {
    int64_t hidden, ffn, heads, kv_heads, head_dim, layers, vocab, max_positions;
    enum norm_kind norm;
    double eps;
    bool glu, bias, qkv_bias, rope;
    enum act_kind act;
    int64_t rotary_dim, window;
    struct rope_config rotary;
    double init_std, hidden_dropout, attention_dropout;
    double label_smoothing, z_loss;
    bool frozen;
};
struct cut vocabulary_cut(const struct language_config *c); /* axis 0 of embedding and head */
/* Transformer block: pre-norm attention and MLP (arXiv 1706.03762; CLIP arXiv 2103.00020; Mistral
 * arXiv 2310.06825). One implementation, two faces. */
struct transformer_config {
    bool vision; /* rows are tiles*(patches+1), else merged tokens */
    int64_t hidden, ffn, heads, kv_heads, head_dim;
    int64_t tile_rows; /* vision: patches + 1 */
    enum norm_kind norm;
    double eps;
    bool glu, qkv_bias, bias;
    enum act_kind act;
    bool causal, rope;
    int64_t window;
    double hidden_dropout, attention_dropout;
    /* initialisation */
    double std_qkv, std_out, std_fc1, std_fc2;
    bool frozen;
    int number; /* layer number inside its tower, for names */
};
void block_patch_embed(struct block *b, const struct vision_config *c);
/* Columns of the cache of that block: of a transformer block of the language model; else 0. */
int64_t block_cache_cols(const struct block *b);
void block_transformer(struct block *b, const struct transformer_config *c, bool identity);
void block_select(struct block *b, const struct vision_config *c); /* drop class rows */
struct model_shape {
    struct vision_config vision;
    struct projector_config projector;
    struct language_config language;
    bool newline;           /* images are maps of several tiles, image_newline ends their rows */
    int64_t image_tiles;    /* of an image, at most: 1 without newline */
    int64_t image_newlines; /* of an image, at most */
};
void block_projector(struct block *b, const struct model_shape *m, int half); /* 0 fc1, 1 fc2 */
void block_embed_merge(struct block *b, const struct model_shape *m);
void block_head(struct block *b, const struct model_shape *m);

/* ---- rows under sequence parallelism ----------------------------------------------------------
 * Rows of a replicated activation are dealt out as evenly as possible; the rows of the tower keep
 * their owner when the class rows are dropped (pipeline.md section 6). */
#define TP_MAX 64
enum row_kind { ROWS_VISION, ROWS_IMAGE, ROWS_TEXT };
struct row_split {
    int64_t offset[TP_MAX + 1]; /* rank r holds rows [offset[r], offset[r+1]) */
};
/* tile_rows: rows of a tile in the tower (patches + 1). */
void rows_split(enum row_kind kind, const struct microbatch *mb, int64_t tile_rows, bool drop_class,
                int p, struct row_split *out);
/* Rows that rank r of p holds: its share, or all of them without sequence parallelism. */
int64_t rows_held(enum row_kind kind, const struct microbatch *mb, int64_t tile_rows,
                  bool drop_class, bool sequence_parallel, int p, int r);

/* ---- parallel linears (arXiv 1909.08053; doc/mathematics.md) -----------------------------------
 * Column: W[O_r, I] cut on axis 0, x replicated (or my rows), y[R, O_r]. Row: W[O, I_r] cut on
 * axis 1, y replicated (or my rows); its bias is added once, after the sum. */
enum linear_kind { LINEAR_COLUMN, LINEAR_ROW };
struct linear {
    enum linear_kind kind;
    struct cut cut;               /* of the cut axis */
    bool gather_output;           /* column: y[R, O], all columns in their global places */
    bool input_is_parallel;       /* row: x is already cut as `cut` says */
    bool skip_bias_add;           /* the consumer adds the bias */
    struct tensor w, b;           /* b.data NULL: none */
    struct tensor dw, db;         /* .data NULL: frozen */
    const struct row_split *rows; /* sequence parallelism: x of a column, y of a row are my rows */
};
/* Legal alone, and as a pair: EXIT_USAGE with a sentence naming `what`. */
int linear_check(const struct linear *l, const char *what);
int linear_check_pair(const struct linear *producer, const struct linear *consumer,
                      const char *what);
/* Collective over p->tp. Workspace comes from p->scratch. */
void linear_forward(const struct linear *l, struct pass *p, const struct tensor *x,
                    const struct tensor *y);
/* dx NULL: no gradient crosses the input, and neither the product nor its sum happens. x is read
 * only if the weight trains. */
void linear_backward(const struct linear *l, struct pass *p, const struct tensor *x,
                     const struct tensor *dy, const struct tensor *dx);

#endif
