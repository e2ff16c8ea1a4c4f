/* Convolutions on tensor cores without unfolding the image in memory. */
#ifndef CDAD_KERNELS_CUDA_CONV_H
#define CDAD_KERNELS_CUDA_CONV_H

#include "kernels/cuda/cuda.h"

/* Whether cuda_conv takes this product; `with` is never NULL. */
bool cuda_conv_fits(int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, const cdad_epilogue *with);
/* As gemm, A unfolded. scratch: cuda_conv_scratch(M, N, K) bytes. */
void cuda_conv(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, float *C, int64_t ldc,
               const cdad_epilogue *with, void *scratch);
int64_t cuda_conv_scratch(int64_t M, int64_t N, int64_t K);

/* About the clocks that what cuda_conv_fits takes by conv_hopper.cu, with rounding the image where that is wanted; infinite where it is
 * not for the product, or for the GPU. */
double cuda_conv_hopper_clocks(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_epilogue *with);
/* Does it. image: what A unfolds: its floats or, in bfloat16, those rounded. scratch: cuda_conv_hopper_scratch(M, N, K) bytes. */
void cuda_conv_hopper(const cdad_context *ctx, int64_t N, int64_t K, const cdad_mat &A, const void *image, const cdad_mat &B, float *C,
                      int64_t ldc, const cdad_epilogue *with, void *scratch);
int64_t cuda_conv_hopper_scratch(int64_t M, int64_t N, int64_t K);
/* The same, of an unfolded A that is gathered, rounded to bfloat16, and multiplied by cuBLAS. */
double cuda_conv_gathered_clocks(int64_t M, int64_t N, int64_t K);

#endif
