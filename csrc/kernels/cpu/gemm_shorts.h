/* Sums of products of floats that are rounded to whole numbers of 16 bits, which AVX2 multiplies half as fast again as floats.
 *
 * Each row of A and column of B has a step for every SHORTS_KC that are summed: its length there over 46300, or more where one value is
 * nearly all of it. By Cauchy and Schwarz the sum of products of two is then within 32 bits. Rounded at random (dither.h), a sum of SHORTS_KC is
 * off by some 1.2e-5 of the product of the two lengths, twice that where one value is nearly all, and independently of the next sum. */
#ifndef CDAD_KERNELS_CPU_GEMM_SHORTS_H
#define CDAD_KERNELS_CPU_GEMM_SHORTS_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

#define SHORTS_PAY (CDAD_VBYTES == 32) /* in which build there are any */
enum { SHORTS_KC = 384 };

/* Bytes of the panels of A [M,K] and B [K,N]. */
int64_t CDAD_K(shorts_panels)(int64_t M, int64_t N, int64_t K);
/* Columns k .. k+kc-1 of A [M,.] and as many rows of B, kc <= SHORTS_KC and k a multiple of it, from floats A [M,kc] and B [kc,N]; K as
 * above. seed: of the rounding. */
void CDAD_K(shorts_pack)(const cdad_context *ctx, void *panels, const float *A, const float *B, int64_t M, int64_t N, int64_t k, int64_t kc,
                         uint32_t seed);
/* C [M,N] += A B */
void CDAD_K(shorts_add)(const cdad_context *ctx, float *C, const void *panels, int64_t M, int64_t N, int64_t K);

#endif
