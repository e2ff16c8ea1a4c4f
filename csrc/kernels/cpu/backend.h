/* The kernels of one instruction set, which fill its table: see kernels/kernels.h for what each computes. */
#ifndef CDAD_KERNELS_CPU_BACKEND_H
#define CDAD_KERNELS_CPU_BACKEND_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

void CDAD_K(gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float
    *C, int64_t ldc, const cdad_epilogue *with, void *scratch);
int64_t CDAD_K(gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads);
int64_t CDAD_K(gram_panels)(int64_t rows, int64_t d, int bf16);
void CDAD_K(gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                       int bf16);
void CDAD_K(gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                       int64_t side, int bf16, float *scratch);
int CDAD_K(gram_rounds_fast)(void);
/* In the build of AVX2 alone. */
int64_t CDAD_K(gram_bytes_panels)(int64_t rows, int64_t d);
int CDAD_K(gram_bytes_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, uint32_t seed);
void CDAD_K(gram_bytes_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                             int64_t side, float *scratch);
double CDAD_K(bf16_speed)(void);
void CDAD_K(sketch_add)(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                        const int32_t *signs, int64_t M, int rounded, void *scratch);
int64_t CDAD_K(sketch_scratch)(int64_t rows, int64_t d, int64_t M, int rounded, int threads);

/* The slots that differ where products of bfloat16 go by AMX: in the build of AVX-512 alone (gemm.h: GEMM_AMX). */
void CDAD_K(amx_gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float
    *C, int64_t ldc, const cdad_epilogue *with, void *scratch);
int64_t CDAD_K(amx_gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads);
void CDAD_K(amx_gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                           int bf16);
void CDAD_K(amx_gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                           int64_t side, int bf16, float *scratch);
int CDAD_K(amx_gram_rounds_fast)(void);
double CDAD_K(amx_bf16_speed)(void);

void CDAD_K(winograd)(const cdad_context *ctx, float *y, const float *x, cdad_mat w, int64_t tap_r, int64_t
    tap_s, const cdad_epilogue *with, const cdad_unfold *u, int64_t O, int m, void *scratch);
int64_t CDAD_K(winograd_scratch)(const cdad_unfold *u, int64_t O, int m, int threads);
void CDAD_K(winograd_grad)(const cdad_context *ctx, float *dw, const float *x, const float *dy, const cdad_unfold
    *u, int64_t O, int m, void *scratch);
int64_t CDAD_K(winograd_grad_scratch)(const cdad_unfold *u, int64_t O, int m, int threads);
void CDAD_K(narrow_conv2d)(const cdad_context *ctx, cdad_pixels y, const float *x, cdad_mat w,
    const cdad_epilogue *with, const cdad_unfold *u, int64_t O, void *scratch);
int64_t CDAD_K(narrow_conv2d_scratch)(const cdad_unfold *u, int64_t O, int threads);
void CDAD_K(narrow_conv2d_grad_weight)(const cdad_context *ctx, float *dw, const float *dy, const float *x,
    const cdad_unfold *u, int64_t O, void *scratch);
int64_t CDAD_K(narrow_conv2d_grad_weight_scratch)(const cdad_unfold *u, int64_t O, int threads);
void CDAD_K(depthwise_conv2d)(const cdad_context *ctx, float *y, const float *x, const float *w, const float
    *bias, const cdad_unfold *u);
void CDAD_K(depthwise_conv2d_grad)(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
    const float *w, const float *dy, const cdad_unfold *u);
void CDAD_K(max_pool2d)(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u);
void CDAD_K(max_pool2d_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, const
    cdad_unfold *u);
void CDAD_K(activation)(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act);
void CDAD_K(activation_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
    cdad_activation act);
void CDAD_K(affine)(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b);
void CDAD_K(binary)(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast
    *bc, cdad_binary op);
void CDAD_K(reduce)(const cdad_context *ctx, float *y, const float *x, const cdad_broadcast *bc, void
    *scratch);
int64_t CDAD_K(reduce_scratch)(const cdad_broadcast *bc);
void CDAD_K(geglu)(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D);
void CDAD_K(geglu_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
    int64_t D);
void CDAD_K(group_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const
    float *gamma, const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu,
    void *scratch);
void CDAD_K(group_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float
    *x, const float *mean, const float *rstd, const float *gamma, const float *beta, const float *dy,
    int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch);
int64_t CDAD_K(group_norm_scratch)(int64_t N, int64_t HW, int64_t C, int64_t G);
void CDAD_K(layer_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const
    float *gamma, const float *beta, int64_t n, int64_t C, float eps);
void CDAD_K(layer_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float
    *x, const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n, int64_t C,
    void *scratch);
int64_t CDAD_K(layer_norm_grad_scratch)(int64_t n, int64_t C);
void CDAD_K(attention)(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k,
    const float *v, const cdad_attention_dims *dims, void *scratch);
void CDAD_K(attention_grad)(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const
    float *k, const float *v, const float *out, const float *lse, const float *dout, const
    cdad_attention_dims *dims, void *scratch);
int64_t CDAD_K(attention_scratch)(const cdad_attention_dims *dims, int threads);
void CDAD_K(upsample2x)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
    int64_t C);
void CDAD_K(upsample2x_grad)(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H,
    int64_t W, int64_t C);
void CDAD_K(resize_bilinear)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H,
    int64_t W, int64_t C, int64_t P, int64_t Q);
void CDAD_K(copy_runs)(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs);
void CDAD_K(timestep_embedding)(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D);
int CDAD_K(gather_rows)(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n,
    int64_t rows, int64_t C);
int CDAD_K(scatter_rows)(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n,
    int64_t rows, int64_t C);
void CDAD_K(mse)(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n,
    int64_t m);
void CDAD_K(mse_grad)(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g,
    int64_t n, int64_t m);
void CDAD_K(sum_squares)(const cdad_context *ctx, double *to, const float *x, int64_t n);
void CDAD_K(sum_squares_pulled)(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n, const cdad_pull
    *pull);
void CDAD_K(add_magnitudes)(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares);
void CDAD_K(adamw)(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g,
    int64_t n, const cdad_adamw *h);
void CDAD_K(add_to)(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay);

#endif
