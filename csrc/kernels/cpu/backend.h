/* The kernels of one instruction set, which fill its table: see kernels/kernels.h for what each computes. */
#ifndef CDAD_KERNELS_CPU_BACKEND_H
#define CDAD_KERNELS_CPU_BACKEND_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

void CDAD_K(gemm)(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C,
                  int64_t ldc, const float *bias, int accumulate, void *scratch);
int64_t CDAD_K(gemm_scratch)(int64_t M, int64_t N, int64_t K, int threads);
void CDAD_K(depthwise_conv2d)(const cdad_context *ctx, float *y, const float *x, const float *w,
                              const float *bias, const cdad_unfold *u);
void CDAD_K(depthwise_conv2d_grad)(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
                                   const float *w, const float *dy, const cdad_unfold *u);

#endif
