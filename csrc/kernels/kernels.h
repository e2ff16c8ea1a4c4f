/* The table of kernels: raw pointers and sizes, float32, activations channels last ([N,H,W,C], [N,T,C]).
 *
 * One struct, one slot a kernel, the same list for every instruction set and device. Kernels check nothing
 * (the ops' shape rules did) and allocate nothing (`scratch` is sized by the *_scratch function beside them).
 *
 * The rule that every kernel of the host keeps: an element of the result is computed by one fixed sequence of operations
 * that depends on its own sample's data alone. It does not depend on the batch size, on the position of the
 * sample in the batch, on the number of threads, or on where a tile begins. Sums over the batch (gradients of
 * parameters) run in a fixed order by fixed tiles. So tails are computed by the same vector code as the rest
 * (on padded copies), and split sums are split by shape only. */
#ifndef CDAD_KERNELS_KERNELS_H
#define CDAD_KERNELS_KERNELS_H

#include <stdint.h>

#include "base/context.h"

/* Before a small function that kernels of the host and of devices share. */
#ifdef __CUDACC__
#define CDAD_EVERYWHERE __host__ __device__ static inline
#else
#define CDAD_EVERYWHERE static inline
#endif

/* How the rows of an unfolded image are gathered: row (n, p, q), column (r, s, c) reads
 * x[n, (p*stride + r - pad_t) / up, (q*stride + s - pad_l) / up, c], zero outside of [0, H*up) x [0, W*up). Pads may
 * be negative; at most one of stride and up differs from 1. */
typedef struct cdad_unfold {
    int64_t N, H, W, C; /* the image that is read */
    int64_t P, Q;       /* rows of the unfolded matrix: N*P*Q */
    int64_t R, S;       /* columns: R*S*C */
    int64_t stride, pad_t, pad_l, up;
} cdad_unfold;

/* A matrix operand: element (i, j) is data[i*rs + j*cs], or, with `unfold`, the gathered image `data`. */
typedef struct cdad_mat {
    const float *data;
    int64_t rs, cs;
    const cdad_unfold *unfold; /* NULL for a plain matrix */
} cdad_mat;

/* A dense matrix with rows of `width` floats, and its transpose. */
static inline cdad_mat cdad_mat_rows(const float *data, int64_t width) {
    const cdad_mat rows = {data, width, 1, NULL};
    return rows;
}
static inline cdad_mat cdad_mat_transposed(const float *data, int64_t width) {
    const cdad_mat turned = {data, 1, width, NULL};
    return turned;
}

/* Where pixels are written: the channels of pixel (n, p, q) begin at data[n*image + p*row + q*pixel]. */
typedef struct cdad_pixels {
    float *data;
    int64_t image, row, pixel;
} cdad_pixels;

typedef enum {
    CDAD_ACT_NONE,      /* x */
    CDAD_ACT_SILU,      /* x * sigmoid(x) */
    CDAD_ACT_RELU,
    CDAD_ACT_RELU6,
    CDAD_ACT_GELU,      /* x * Phi(x), exact erf */
    CDAD_ACT_QUICK_GELU, /* x * sigmoid(1.702 x) */
    CDAD_ACT_TANH,
    CDAD_ACT_SIGMOID,
    CDAD_ACT_EXP,
    CDAD_ACT_SQRT,
    CDAD_ACT_COUNT
} cdad_activation;

typedef enum { CDAD_BINARY_ADD, CDAD_BINARY_SUB, CDAD_BINARY_MUL } cdad_binary;

/* A right operand broadcast into the left one's shape: result index (i0..i4), row major over dim[];
 * b is read at sum(i_k * stride[k]), stride 0 where it is repeated. Leading dims are 1. */
typedef struct cdad_broadcast {
    int64_t dim[5], stride[5];
} cdad_broadcast;

/* How a product takes its factors; sums are in float32. CDAD_BFLOAT16: rounded to bfloat16 (to nearest even; denormals to zero), and
 * summed by pairs of k, the odd one first: what AVX512-BF16's dot products do, and the same bits on every instruction set but AMX,
 * which sums groups of 32 (kernels/cpu/gemm.h), unless a sum falls among the denormals. CDAD_TFLOAT32: a GPU may round them to 10
 * bits of mantissa (TF32); the CPU does not. */
typedef enum { CDAD_FLOAT32, CDAD_BFLOAT16, CDAD_TFLOAT32 } cdad_precision;

/* Attention shapes: q, out [N,T,L*D]; k, v [N,S,L*D]; L heads of width D; rows have a stride of *_rs floats
 * (>= L*D) so that q, k, v may be slices of one packed projection. When mask_h > 0, tokens form a grid of
 * grid_h x grid_w = T = S, and a token does not see the mask_h x mask_w window centred on it, itself
 * included (UniAD's neighbour mask). When causal, T = S, and a token sees itself and those before it. A row that sees
 * nothing gives zeros. */
typedef struct cdad_attention_dims {
    int64_t N, T, S, L, D;
    int64_t q_rs, k_rs, v_rs; /* row strides in floats; out and the gradients are dense [N,T,L*D] */
    int64_t grid_h, grid_w, mask_h, mask_w;
    int causal;
    float scale;
    cdad_precision precision; /* a GPU's; the CPU computes in float32 */
} cdad_attention_dims;

/* The pull of a quadratic penalty, strength/2 * sum_i importance[i] * (w[i] - anchor[i])^2, on n weights. Its gradient is
 * added to theirs. importance NULL: there is none. */
typedef struct cdad_pull {
    const float *importance, *anchor;
    float strength;
} cdad_pull;

/* One parameter's AdamW step (Loshchilov & Hutter 2019) and moving average: see adamw. */
typedef struct cdad_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float bias1, bias2; /* 1 - beta1^t, 1 - beta2^t */
    float grad_scale;   /* multiplies the gradient first: clipping */
    float ema_decay;
    int m_is_bf16;      /* m is bfloat16 [n] (uint16_t), rounded to nearest even, instead of float */
    /* NULL, or: m and v are codes [n] (uint8_t) of kernels/dynamic8.h, with and without a sign; these are the largest of their blocks of
     * CDAD_BLOCK8. */
    float *m_most, *v_most;
    cdad_pull pull;     /* added to the gradient before grad_scale */
    const double *squares; /* NULL, or the gradient's sum of squares: unless it is finite, du is zeros and nothing else is written */
    float *path;        /* [n] or NULL: path -= g * du, with the gradient as it was given (SI's path integral) */
    const float *anchor; /* [n] or NULL: w then goes some of its way there, before e follows: adamw_each only */
} cdad_adamw;

/* One of several parameters that share a launch: its weight begins `at` floats into the blocks of weights. */
typedef struct cdad_update {
    int64_t at, n;
    const float *g;
    void *m, *v;
    double *squares; /* where the sum of its gradient's squares goes */
    float stays;     /* the share of its way to the anchor that it does not go */
} cdad_update;

/* The numbers of one of them, of those of blocks: neither moments in 8 bit nor `squares` are shared. */
CDAD_EVERYWHERE cdad_pull cdad_pull_at(cdad_pull pull, int64_t at) {
    if (pull.importance) {
        pull.importance += at;
        pull.anchor += at;
    }
    return pull;
}
CDAD_EVERYWHERE cdad_adamw cdad_adamw_at(cdad_adamw h, int64_t at) {
    h.pull = cdad_pull_at(h.pull, at);
    h.path = h.path ? h.path + at : h.path;
    h.anchor = h.anchor ? h.anchor + at : h.anchor;
    return h;
}

/* What a product does beside multiplying. All zero: nothing. The result is act((A B + bias) + sum), in this order: the
 * bits of separate passes; a GPU's product may add bias and sum its own way. */
typedef struct cdad_epilogue {
    int accumulate;      /* to what the result holds: gemm only */
    const float *bias;   /* one a column, or NULL */
    const float *sum;    /* laid out as the result, and apart from it, or NULL */
    cdad_activation act;
    cdad_precision precision; /* gemm only: the others ignore it */
    int split; /* gemm of plain factors: one that rounds them takes the second as the sum of two of bfloat16, 16 bits of mantissa in all,
                * where that pays, else both as they are */
} cdad_epilogue;

/* Floats that are copied, w at a time: run (i, j, k) of n[0] x n[1] x n[2] begins i*to[0] + j*to[1] + k*to[2] floats after where the
 * first one goes, and alike by `from` after where it comes from. */
typedef struct cdad_runs {
    int64_t n[3], to[3], from[3], w;
} cdad_runs;

/* The columns 0 to w of n rows, to_rs and from_rs floats apart. */
static inline cdad_runs cdad_columns(int64_t n, int64_t w, int64_t to_rs, int64_t from_rs) {
    const cdad_runs runs = {{1, 1, n}, {0, 0, to_rs}, {0, 0, from_rs}, w};
    return runs;
}

#define CDAD_GRAM_SIDE 96

typedef struct cdad_kernels {
    const char *name; /* "portable", "avx2", "avx512", "amx", ... */

    /* C[m,n] = sum_k A[m,k] * B[k,n] and what `with` (NULL: nothing) adds. C has row stride ldc.
     * scratch: gemm_scratch(M, N, K, threads) bytes. Long sums (K much larger than M*N) are split by shape. */
    void (*gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C,
                 int64_t ldc, const cdad_epilogue *with, void *scratch);
    int64_t (*gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads);

    /* The upper half of X^T X, X [.,d] plain or unfolded. gram_pack copies rows first .. first+rows-1 into gram_panels bytes;
     * gram_tile multiplies them, on one thread: G[(i - i0)*ldg + j - j0] += sum over the rows of X[r,i] * X[r,j], i0 <= i <
     * i0+side, j0 <= j < j0+side, within d, where i <= j. i0, j0, side: multiples of CDAD_GRAM_SIDE. The sum is one chain of
     * multiply-adds for each 384 rows (with AMX, 32), added in order, in float32. scratch: side*side floats. bf16: as CDAD_BFLOAT16;
     * gram_rounds_fast: the processor gains by it. NULL in a device's table. */
    int64_t (*gram_panels)(int64_t rows, int64_t d, int bf16);
    void (*gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16);
    void (*gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                      int64_t side, int bf16, float *scratch);
    int (*gram_rounds_fast)(void);

    /* The same, in about half of the time, of X rounded to whole numbers of 7 bits: steps of a 63rd of the largest of each
     * column's in 768 rows, up or down at random (by `seed`), so that errors of columns are independent and those of the sums fall with the
     * number of rows; sums of squares are float32's of X itself. gram_bytes_pack returns 0, and there is nothing to multiply, where errors are more
     * than 6e-4 of the energy, as they are where a few rows are far larger than the others. All NULL where it does not pay. */
    int64_t (*gram_bytes_panels)(int64_t rows, int64_t d);
    int (*gram_bytes_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, uint32_t seed);
    void (*gram_bytes_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0, int64_t side,
                            float *scratch);

    /* How many times as fast as one of float32 a product of CDAD_BFLOAT16 is taken to be where ways are compared: the same in all
     * tables that give the same bits. NULL in a device's table. */
    double (*bf16_speed)(void);

    /* In a device's table alone: G [d,d] += the same of rows first .. first+rows-1 of X, whose cs is 1 where it is plain; at least in the
     * upper half. The sum over the rows is in float32. scratch: gram_scratch(rows, d, bf16) bytes. */
    void (*gram_add)(const cdad_context *ctx, double *G, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16, void *scratch);
    int64_t (*gram_scratch)(int64_t rows, int64_t d, int bf16);

    /* Y [M,d] += Z X of rows first .. first+rows-1 of X [.,d], plain or unfolded, whose products with M test vectors of signs and zeros
     * Z [M,rows] holds; *squares += the sum of those rows' squares. signs: int32_t [2M], then places: test vector t is 1 at the places
     * from number signs[2t-1] (of the first one 0) up to signs[2t], and -1 from there up to signs[2t+1]. On a device X has no gaps, and
     * Y, squares and signs lie there, too. Sums are float32's; `rounded`: where whole numbers of 16 bits are multiplied faster, each may be off
     * by some 1e-5 of the product of the lengths of the two columns, independently of the others. scratch: sketch_scratch bytes. */
    void (*sketch_add)(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                       const int32_t *signs, int64_t M, int rounded, void *scratch);
    int64_t (*sketch_scratch)(int64_t rows, int64_t d, int64_t M, int rounded, int threads);

    /* The ways of convolutions that pay on a CPU; all NULL in a table that leaves them to gemm.
     *
     * y = 3x3 convolution of stride 1 of x (as `u` unfolds it), O channels, and what `with` (NULL: nothing) adds, by
     * F(m x m, 3 x 3), m = 2 or 4. Element (c, o) of w is the weight's tap (0, 0), tap (r, s) lies r*tap_r + s*tap_s
     * floats further. scratch: winograd_scratch bytes. */
    void (*winograd)(const cdad_context *ctx, float *y, const float *x, cdad_mat w, int64_t tap_r, int64_t tap_s,
                     const cdad_epilogue *with, const cdad_unfold *u, int64_t O, int m, void *scratch);
    int64_t (*winograd_scratch)(const cdad_unfold *u, int64_t O, int m, int threads);

    /* dw [O,3,3,C] of such a convolution, from dy [N,P,Q,O]. Sums run over the batch by tiles in a fixed order. */
    void (*winograd_grad)(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold *u,
                          int64_t O, int m, void *scratch);
    int64_t (*winograd_grad_scratch)(const cdad_unfold *u, int64_t O, int m, int threads);

    /* y = convolution of x (as `u` would unfold it, up = 1), O channels, and what `with` (NULL: nothing) adds: the
     * product with w, plain, [R*S*C, O], without unfolding, for few channels. scratch: narrow_conv2d_scratch bytes. */
    void (*narrow_conv2d)(const cdad_context *ctx, cdad_pixels y, const float *x, cdad_mat w,
                          const cdad_epilogue *with, const cdad_unfold *u, int64_t O, void *scratch);
    int64_t (*narrow_conv2d_scratch)(const cdad_unfold *u, int64_t O, int threads);
    /* dw [O,R,S,C] of the above, from dy [N,P,Q,O]. scratch: narrow_conv2d_grad_weight_scratch bytes. */
    void (*narrow_conv2d_grad_weight)(const cdad_context *ctx, float *dw, const float *dy, const float *x,
                                      const cdad_unfold *u, int64_t O, void *scratch);
    int64_t (*narrow_conv2d_grad_weight_scratch)(const cdad_unfold *u, int64_t O, int threads);

    /* Depthwise: y[n,p,q,c] = bias[c] + sum_{r,s} x[n, p*stride+r-pad_t, q*stride+s-pad_l, c] * w[r,s,c]. */
    void (*depthwise_conv2d)(const cdad_context *ctx, float *y, const float *x, const float *w, const float *bias,
                             const cdad_unfold *u);
    /* dx (=) and dw, db (=, dw or db or dx may be NULL) of the above. */
    void (*depthwise_conv2d_grad)(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
                                  const float *w, const float *dy, const cdad_unfold *u);

    /* y [N,P,Q,C]: the largest of x in each window (as `u` would unfold it, up = 1; C channels apart), or NaN where the
     * window holds one. dx: dy where the first such value is (of several NaN the last), windows in order. */
    void (*max_pool2d)(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u);
    void (*max_pool2d_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, const cdad_unfold *u);

    /* y = act(x); dx = dy * act'(x). n elements. y may be x; dx may be dy. */
    void (*activation)(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act);
    void (*activation_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
                            cdad_activation act);
    /* y = a * x + b. y may be x. */
    void (*affine)(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b);
    /* y = a (op) b, b broadcast. y may be a. */
    void (*binary)(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast *bc,
                   cdad_binary op);
    /* y[..] = sum over the repeated indices of x: the transpose of the broadcast (stride 0 is summed over).
     * y is dense in the broadcast operand's own shape, zeroed here. scratch: reduce_scratch bytes. */
    void (*reduce)(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void *scratch);
    int64_t (*reduce_scratch)(const cdad_broadcast *bc);

    /* geglu: x [n, 2D] -> y [n, D] = x[:, :D] * gelu(x[:, D:]). */
    void (*geglu)(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D);
    void (*geglu_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n, int64_t D);

    /* Group norm over [N,HW,C] in G groups of channels, optionally followed by SiLU (silu = 1).
     * mean, rstd [N,G] are kept for the gradient. gamma, beta [C]. scratch: group_norm_scratch bytes, for both. */
    void (*group_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                       const float *gamma, const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G,
                       float eps, int silu, void *scratch);
    /* dx [N,HW,C]; dgamma, dbeta [C] (summed over N in order). dx may be dy. */
    void (*group_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *beta,
                            const float *dy, int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch);
    int64_t (*group_norm_scratch)(int64_t N, int64_t HW, int64_t C, int64_t G);

    /* Layer norm over the last dimension of [n,C]; gamma and beta may be NULL (both or none). mean, rstd [n]. */
    void (*layer_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                       const float *gamma, const float *beta, int64_t n, int64_t C, float eps);
    /* dgamma, dbeta NULL when there is no affine part. Rows are summed in fixed tiles, tiles in a fixed order.
     * scratch: layer_norm_grad_scratch(n, C) bytes. */
    void (*layer_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n,
                            int64_t C, void *scratch);
    int64_t (*layer_norm_grad_scratch)(int64_t n, int64_t C);

    /* out = softmax(scale * q k^T + mask) v by heads, never writing the T x S matrix of all heads; lse [N,L,T]
     * (log of the row's sum of exponentials, -inf for a row that sees nothing) is kept for the gradient.
     * scratch: attention_scratch(dims, threads) bytes, for both. */
    void (*attention)(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k,
                      const float *v, const cdad_attention_dims *dims, void *scratch);
    /* dq [N,T,L*D], dk, dv [N,S,L*D], dense. */
    void (*attention_grad)(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                           const float *v, const float *out, const float *lse, const float *dout,
                           const cdad_attention_dims *dims, void *scratch);
    int64_t (*attention_scratch)(const cdad_attention_dims *dims, int threads);

    /* x [N,H,W,C] -> y [N,2H,2W,C], nearest; the gradient sums the four. */
    void (*upsample2x)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W, int64_t C);
    void (*upsample2x_grad)(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H, int64_t W,
                            int64_t C);
    /* Bilinear, align_corners = False (PyTorch's F.interpolate): x [N,H,W,C] -> y [N,P,Q,C]. */
    void (*resize_bilinear)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
                            int64_t C, int64_t P, int64_t Q);

    void (*copy_runs)(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs);

    /* Sinusoidal embedding of timesteps t [N] -> y [N,D]: cos(t*f_i), then sin(t*f_i), f_i = 10000^(-i/(D/2))
     * (LDM's timestep_embedding). */
    void (*timestep_embedding)(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D);

    /* y[i] = table[ids[i]], i < n: rows of C floats, of a table with `rows` of them. 0 and nothing written when an id is
     * not one of 0 .. rows - 1; else 1. */
    int (*gather_rows)(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n, int64_t rows,
                       int64_t C);
    /* Its gradient: dtable [rows,C], zeroed here, takes the sum of the dy [n,C] of each row's ids, in order. */
    int (*scatter_rows)(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n, int64_t rows,
                        int64_t C);

    /* y[0] = mean of (a-b)^2 over all n*m elements, by samples: per[i] = mean over sample i's m elements. */
    void (*mse)(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n, int64_t m);
    /* dx = g[0] * 2 * (a - b) / (n*m). */
    void (*mse_grad)(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g, int64_t n,
                     int64_t m);

    /* *to = the sum of squares of n floats in double, by fixed tiles: not finite when a value is NaN or inf. */
    void (*sum_squares)(const cdad_context *ctx, double *to, const float *x, int64_t n);
    /* The same of the gradient g of the weights w and the penalty's, as adamw takes them together. */
    void (*sum_squares_pulled)(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n,
                               const cdad_pull *pull);
    /* sum += g^2 (squares = 1) or |g|. */
    void (*add_magnitudes)(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares);

    /* m = b1*m + (1-b1)*g', v = b2*v + (1-b2)*g'^2 with g' = g * grad_scale; the update is
     * du = -lr * ((m / bias1) / (sqrt(v / bias2) + eps) + weight_decay * w). It goes to du (which may be g), or, with
     * du NULL, into w and e as by add_to. m and v are float [n] unless h says otherwise; the update is of what they are before
     * they are rounded. */
    void (*adamw)(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g, int64_t n,
                  const cdad_adamw *h);
    /* In a device's table alone, where a launch takes longer than such a kernel: sum_squares_pulled (without importance, sum_squares)
     * and adamw, du NULL, of each of `count` parameters of a few thousand elements at most, which stays as it is where its sum of squares
     * is not finite. `updates` are on the host; w, e, and what pull and h have are blocks. */
    void (*sum_squares_each)(const cdad_context *ctx, const float *w, const cdad_update *updates, int64_t count, const cdad_pull *pull);
    void (*adamw_each)(const cdad_context *ctx, float *w, float *e, const cdad_update *updates, int64_t count, const cdad_adamw *h);
    /* w += du; e = ema_decay * e + (1 - ema_decay) * w. du or e may be NULL: nothing is added, there is no average. */
    void (*add_to)(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay);
} cdad_kernels;

/* The table named by `name` ("portable", "avx2", "avx512", "amx"); NULL when it is unknown, or this processor or operating system does
 * not support it. A name of NULL: the one of cdad_kernels_use, before that the best. */
const cdad_kernels *cdad_kernels_select(const char *name);
void cdad_kernels_use(const cdad_kernels *kernels);

/* Table number i that this build holds and this processor can run, or NULL: for tests and build_info. */
const cdad_kernels *cdad_kernels_at(int i);

#endif
