/* backend: the table of device operations. Memory, copies and mathematics of every layer go through
 * it; nn, model, pipeline, optim and train never touch a device pointer themselves.
 *
 * A backend is (device, working dtype). Matrices are row-major device memory. Unless said otherwise
 * tensors may be column slices (ld > cols), outputs do not alias inputs, and results do not depend
 * on the number of threads: work is divided by shape, never by thread count.
 * Letters: R rows, I inputs, O outputs, h hidden size, d head size (doc/shapes.md).
 * "acc" dtype: fp32, but fp64 where the working dtype is fp64. Gradients of parameters, statistics
 * and optimizer states are acc.
 */
#ifndef STRATA_BACKEND_H
#define STRATA_BACKEND_H

#include "tensor.h"

enum norm_kind { NORM_LAYER, NORM_RMS };
enum act_kind { ACT_GELU, ACT_QUICK_GELU, ACT_SILU };

/* Keep bits are a function of global coordinates (doc/mathematics.md "Dropout"). */
struct dropout {
    double prob; /* 0: identity */
    struct rng_key key;
    const int32_t *row;    /* device, [R]: row inside its sample */
    const int32_t *sample; /* device, [R]: ordinal of the sample in the global batch of the step */
};

/* Rows lie segment after segment: segment s is rows [cu[s], cu[s+1]). A query sees keys of its own
 * segment only; causal: j <= i; window W > 0: also i - j < W. */
struct attention {
    int64_t heads, kv_heads,
        head_dim; /* of this rank; query head j uses kv head j/(heads/kv_heads) */
    double scale;
    bool causal;
    int64_t window;
    int64_t n_segments, max_segment;
    /* Forward only, with one segment: k and v begin so many rows in front of the first query, which
     * is row `past` of its segment. */
    int64_t past;
    const int32_t *cu; /* device, [n_segments+1] */
    double pairs;      /* visible (query, key) pairs of all segments, for counting FLOPs */
    /* dropout of probabilities; prob 0 = off */
    double drop_prob;
    struct rng_key drop_key;
    const int32_t *drop_sample; /* device, [n_segments]: ordinal in the global batch */
    int64_t first_head;         /* global index of this rank's head 0 */
};

struct cross_entropy {
    int64_t first_id; /* global id of this rank's column 0 */
    int64_t vocab;    /* V, global */
    double smoothing, z_loss;
    double scale; /* gradient is scale * d(row loss)/dz */
};

struct adamw {
    double lr, beta1, beta2, eps, weight_decay;
    double correction1, correction2; /* 1 - beta^t */
    double grad_scale;               /* g is multiplied by it before use */
};

struct backend;
struct backend_ops {
    const char *name;
    void (*destroy)(struct backend *);
    /* memory */
    void *(*mem_alloc)(struct backend *, size_t bytes); /* 64-byte aligned; NULL if not available */
    void (*mem_free)(struct backend *, void *);
    void (*upload)(struct backend *, void *device, const void *host, size_t bytes);
    void (*download)(struct backend *, void *host, const void *device, size_t bytes);
    void (*copy)(struct backend *, void *to, const void *from, size_t bytes); /* device to device */
    void (*zero)(struct backend *, void *, size_t bytes);
    void (*synchronize)(struct backend *);
    /* y[R,O] = x[R,I] w[O,I]^T (+ bias[1,O] or NULL) */
    void (*linear_forward)(struct backend *, const struct tensor *x, const struct tensor *w,
                           const struct tensor *bias, const struct tensor *y);
    /* dx[R,I] (+)= dy[R,O] w[O,I] */
    void (*linear_dgrad)(struct backend *, const struct tensor *dy, const struct tensor *w,
                         const struct tensor *dx, bool accumulate);
    /* dw[O,I] += dy^T x; dw is acc */
    void (*linear_wgrad)(struct backend *, const struct tensor *dy, const struct tensor *x,
                         const struct tensor *dw);
    /* db[1,O] += sum of the rows of dy, in row order; acc */
    void (*bias_grad)(struct backend *, const struct tensor *dy, const struct tensor *db);
    /* LayerNorm y = (x-mean) rstd gamma + beta, biased variance (arXiv 1607.06450); RMSNorm
     * y = gamma * (x * rsqrt(mean x^2 + eps)) (arXiv 1910.07467), beta NULL. stats[R,2] acc:
     * mean (0 for RMS), rstd. Statistics in acc precision. */
    void (*norm_forward)(struct backend *, enum norm_kind, double eps, const struct tensor *x,
                         const struct tensor *gamma, const struct tensor *beta,
                         const struct tensor *y, const struct tensor *stats);
    /* dx (+)= ..., dgamma/dbeta += ... (acc, either may be NULL); dx may be NULL or alias dy when
     * not accumulating. */
    void (*norm_backward)(struct backend *, enum norm_kind, const struct tensor *dy,
                          const struct tensor *x, const struct tensor *gamma,
                          const struct tensor *stats, const struct tensor *dx, bool accumulate,
                          const struct tensor *dgamma, const struct tensor *dbeta);
    /* y = act(x) ; dx = dy act'(x). y may alias x; dx may alias dy. */
    void (*act_forward)(struct backend *, enum act_kind, const struct tensor *x,
                        const struct tensor *y);
    void (*act_backward)(struct backend *, enum act_kind, const struct tensor *x,
                         const struct tensor *dy, const struct tensor *dx);
    /* ab[R,2f] = [a | b]: y[R,f] = act(a) b ; dab = [dy b act'(a) | dy act(a)], may alias ab. */
    void (*glu_forward)(struct backend *, enum act_kind, const struct tensor *ab,
                        const struct tensor *y);
    void (*glu_backward)(struct backend *, enum act_kind, const struct tensor *ab,
                         const struct tensor *dy, const struct tensor *dab);
    /* Rotary embedding (arXiv 2104.09864), pairs (i, i + n/2) of the first n = table->cols columns
     * of each head. table[position, n] acc = m [cos(pos f_i) | sin(pos f_i)], angle in fp32; f_i =
     * frequency[i], on the host, n/2 of them; m = scale. In place on x[R, heads*head_dim]; inverse
     * rotates by -angle, which with m is the transpose: the way back of a gradient. */
    void (*rope_table)(struct backend *, const float *frequency, double scale,
                       const struct tensor *table);
    void (*rope)(struct backend *, const struct tensor *x, int64_t heads, int64_t head_dim,
                 const struct tensor *table, const int32_t *position, bool inverse);
    /* o = softmax(scale q k^T) v by blocks with a running maximum; no rows x rows matrix is stored.
     * q,o [R, heads*d]; k,v [past+R, kv_heads*d]; lse[heads, R] acc = log-sum-exp of the scaled scores. */
    void (*attention_forward)(struct backend *, const struct attention *, const struct tensor *q,
                              const struct tensor *k, const struct tensor *v,
                              const struct tensor *o, const struct tensor *lse);
    /* delta[heads, R] acc is workspace. dq, dk, dv are overwritten. */
    void (*attention_backward)(struct backend *, const struct attention *, const struct tensor *q,
                               const struct tensor *k, const struct tensor *v,
                               const struct tensor *o, const struct tensor *lse,
                               const struct tensor *d_o, const struct tensor *delta,
                               const struct tensor *dq, const struct tensor *dk,
                               const struct tensor *dv);
    /* y = residual + dropout(x + bias); bias, residual, drop may be NULL; y may alias x or
     * residual. */
    void (*bias_dropout_add)(struct backend *, const struct tensor *x, const struct tensor *bias,
                             const struct tensor *residual, const struct dropout *drop,
                             const struct tensor *y);
    void (*dropout_backward)(struct backend *, const struct tensor *dy, const struct dropout *drop,
                             const struct tensor *dx); /* dx may alias dy */
    void (*add)(struct backend *, const struct tensor *x, const struct tensor *y); /* y += x */
    /* index: device int32. gather: y[i] = index[i] >= 0 ? x[index[i]] : 0, i < y->rows.
     * scatter: y[index[i]] = x[i] where index[i] >= 0. scatter_add: += into acc y, in row order. */
    void (*rows_gather)(struct backend *, const struct tensor *x, const int32_t *index,
                        const struct tensor *y);
    void (*rows_scatter)(struct backend *, const struct tensor *x, const int32_t *index,
                         const struct tensor *y);
    void (*rows_scatter_add)(struct backend *, const struct tensor *x, const int32_t *index,
                             const struct tensor *y);
    /* pixels fp32 [tiles, channels*height*width] planar -> y[tiles*(height/patch)*(width/patch),
     * channels*patch*patch], column order (channel, row, column), patches row-major. */
    void (*patchify)(struct backend *, const float *pixels, int64_t tiles, int64_t channels,
                     int64_t height, int64_t width, int64_t patch, const struct tensor *y);
    /* y[t*(n+1), h]: row 0 of a tile = cls + pos[0], row 1+p = patches[p] + pos[1+p]; n patches. */
    void (*class_position_forward)(struct backend *, const struct tensor *patches,
                                   const struct tensor *cls, const struct tensor *pos,
                                   const struct tensor *y);
    /* dpatches overwritten; dcls[1,h], dpos[n+1,h] acc += in tile order; each may be NULL. */
    void (*class_position_backward)(struct backend *, const struct tensor *dy,
                                    const struct tensor *dpatches, const struct tensor *dcls,
                                    const struct tensor *dpos);
    /* Vocabulary-parallel cross entropy over z[R,V_r] (arXiv 1909.08053; doc/mathematics.md):
     * max[1,R] acc; sums[R,3] acc = {sum exp(z-m), z_t - m if mine else 0, sum (z-m)};
     * finish: loss[1,R] fp64 = row loss; if gradient, z is overwritten by scale * d loss/dz.
     * target: device int32 [R], global ids. m and sums are already summed over the group. */
    void (*cross_entropy_max)(struct backend *, const struct tensor *z, const struct tensor *max);
    void (*cross_entropy_sums)(struct backend *, const struct cross_entropy *,
                               const struct tensor *z, const struct tensor *max,
                               const int32_t *target, const struct tensor *sums);
    void (*cross_entropy_finish)(struct backend *, const struct cross_entropy *,
                                 const struct tensor *z, const struct tensor *max,
                                 const struct tensor *sums, const int32_t *target, bool gradient,
                                 const struct tensor *loss);
    /* Host results; synchronising. sum of fp64, sum of squares of acc (in double; a non-finite
     * element makes the result non-finite). */
    double (*sum_f64)(struct backend *, const struct tensor *x);
    double (*sum_squares)(struct backend *, const struct tensor *x);
    void (*scale)(struct backend *, const struct tensor *x, double factor); /* acc, in place */
    void (*convert)(struct backend *, const struct tensor *from, const struct tensor *to);
    /* AdamW (arXiv 1711.05101) on n elements: w -= lr wd w; m, v; w -= lr/c1 m/(sqrt(v/c2)+eps).
     * master acc is updated; w (working dtype) is its rounded copy, or master == w. */
    void (*adamw_step)(struct backend *, const struct adamw *, int64_t n, void *w, void *master,
                       const void *g, void *m, void *v);
    /* SGD with momentum: m = momentum m + (g + wd w); w -= lr m. */
    void (*sgd_step)(struct backend *, double lr, double momentum, double weight_decay,
                     double grad_scale, int64_t n, void *w, void *master, const void *g, void *m);
};

struct backend {
    const struct backend_ops *ops;
    enum dtype dtype, acc;
    int threads;
    bool measuring; /* the operations only count (see backend_create_measuring) */
    /* FLOPs of what was computed so far, by shape. A product [m,k] [k,n] is 2 m k n; attention of
     * head dimension d is 4 d for each visible query-key pair and head forward, 8 d backward.
     * Norms, activations, the softmax and the optimizer are not counted. */
    double gemm_flops, attention_flops;
    double repeated_flops;    /* those of both above that recomputing did once more */
    void (*progress)(void *); /* called by the main thread between blocks of work; may be NULL */
    void *progress_arg;
    void *state; /* of the implementation */
};

/* CPU: OpenBLAS + OpenMP; dtype fp32 or fp64. threads = 0: what cpus_threads grants one of
 * ranks_sharing processes with the limits of this one. EXIT_UNAVAILABLE if it cannot be created. */
int backend_create_cpu(enum dtype dtype, int threads, int ranks_sharing, struct backend **be);
/* The speed of light: rounds of one product of matrices on each thread at once, by the library that
 * multiplies for this backend (not one that only counts). out: seconds[rounds]; the first round warms
 * up. together(arg) is called before each round if it is not NULL. Destroys the contents of the
 * workspace, allocates nothing. */
void backend_measure_peak(struct backend *be, int rounds, void (*together)(void *arg), void *arg,
                          double *seconds);
double backend_peak_flops(const struct backend *be); /* of one round */
/* Counts FLOPs and does nothing else; any working dtype; pointers are never followed. The planner
 * runs the layers' own code over it. */
struct backend *backend_create_measuring(enum dtype dtype);
void backend_destroy(struct backend *be);
/* Name and version of the library that multiplies matrices on the CPU. */
void backend_library_version(char *text, size_t size);
/* Is there a device of that name in this build ("cpu", "cuda")? A sentence otherwise. */
int backend_check_device(const char *device);

#endif
