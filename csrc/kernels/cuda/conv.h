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

/* The same of what cuda_conv_fits, by conv_hopper.cu; false, and nothing done, where it is not for that product or that GPU, or would not
 * take less than so many `clocks`. */
bool cuda_conv_hopper(const cdad_context *ctx, int64_t M, int64_t N, int64_t K, const cdad_mat &A, const cdad_mat &B, float *C, int64_t ldc,
                      const cdad_epilogue *with, void *scratch, double clocks);
int64_t cuda_conv_hopper_scratch(int64_t M, int64_t N, int64_t K);

#endif
