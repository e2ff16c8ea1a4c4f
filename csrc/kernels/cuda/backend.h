/* The slots of the CUDA table: see kernels/kernels.h for what each computes. */
#ifndef CDAD_KERNELS_CUDA_BACKEND_H
#define CDAD_KERNELS_CUDA_BACKEND_H

#include "kernels/cuda/cuda.h"

void cuda_gemm(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float
    *C, int64_t ldc, const cdad_epilogue *with, void *scratch);
void cuda_gram_add(const cdad_context *ctx, double *G, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16, void
    *scratch);
int64_t cuda_gram_scratch(int64_t rows, int64_t d, int bf16);
void cuda_sketch_add(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
    const int32_t *signs, int64_t M, int rounded, void *scratch);
int64_t cuda_sketch_scratch(int64_t rows, int64_t d, int64_t M, int rounded, int threads);
int64_t cuda_gemm_scratch(int64_t M, int64_t N, int64_t K, int threads);
void cuda_depthwise_conv2d(const cdad_context *ctx, float *y, const float *x, const float *w, const float
    *bias, const cdad_unfold *u);
void cuda_depthwise_conv2d_grad(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
    const float *w, const float *dy, const cdad_unfold *u);
void cuda_max_pool2d(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u);
void cuda_max_pool2d_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, const
    cdad_unfold *u);
void cuda_activation(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act);
void cuda_activation_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
    cdad_activation act);
void cuda_affine(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b);
void cuda_binary(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast
    *bc, cdad_binary op);
void cuda_reduce(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void
    *scratch);
int64_t cuda_reduce_scratch(const cdad_broadcast *bc);
void cuda_geglu(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D);
void cuda_geglu_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
    int64_t D);
void cuda_group_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const
    float *gamma, const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu,
    void *scratch);
void cuda_group_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float
    *x, const float *mean, const float *rstd, const float *gamma, const float *beta, const float *dy,
    int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch);
int64_t cuda_group_norm_scratch(int64_t N, int64_t HW, int64_t C, int64_t G);
void cuda_layer_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const
    float *gamma, const float *beta, int64_t n, int64_t C, float eps);
void cuda_layer_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float
    *x, const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n, int64_t C,
    void *scratch);
int64_t cuda_layer_norm_grad_scratch(int64_t n, int64_t C);
void cuda_attention(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k,
    const float *v, const cdad_attention_dims *dims, void *scratch);
void cuda_attention_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const
    float *k, const float *v, const float *out, const float *lse, const float *dout, const
    cdad_attention_dims *dims, void *scratch);
int64_t cuda_attention_scratch(const cdad_attention_dims *dims, int threads);
void cuda_upsample2x(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
    int64_t C);
void cuda_upsample2x_grad(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H,
    int64_t W, int64_t C);
void cuda_resize_bilinear(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H,
    int64_t W, int64_t C, int64_t P, int64_t Q);
void cuda_copy_runs(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs);
void cuda_timestep_embedding(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D);
int cuda_gather_rows(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n,
    int64_t rows, int64_t C);
int cuda_scatter_rows(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n,
    int64_t rows, int64_t C);
void cuda_mse(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n,
    int64_t m);
void cuda_mse_grad(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g,
    int64_t n, int64_t m);
void cuda_sum_squares(const cdad_context *ctx, double *to, const float *x, int64_t n);
void cuda_sum_squares_pulled(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n, const
    cdad_pull *pull);
void cuda_add_magnitudes(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares);
void cuda_adamw(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g,
    int64_t n, const cdad_adamw *h);
void cuda_sum_squares_each(const cdad_context *ctx, const float *w, const cdad_update *updates, int64_t count,
    const cdad_pull *pull);
void cuda_adamw_each(const cdad_context *ctx, float *w, float *e, const cdad_update *updates, int64_t count,
    const cdad_adamw *h);
void cuda_add_to(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay);

#endif
