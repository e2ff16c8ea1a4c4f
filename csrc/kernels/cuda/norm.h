/* What the gradients of both norms share: sums [tiles,2,C] of dz and of dz * x^ by channels, over the pixels or rows of a
 * tile, by blocks of NORM_LANES channels times NORM_ROWS rows; then their sums over the tiles. */
#ifndef CDAD_KERNELS_CUDA_NORM_H
#define CDAD_KERNELS_CUDA_NORM_H

#include "kernels/cuda/cuda.h"

enum { NORM_LANES = 32, NORM_ROWS = CUDA_THREADS / NORM_LANES };

/* Adds up what the threads of channel c found, and keeps it. */
__device__ inline void norm_keep_sums(float *sums, double a, double b, int64_t tile, int64_t c, int64_t C) {
    __shared__ double plain[NORM_ROWS][NORM_LANES], scaled[NORM_ROWS][NORM_LANES];
    const int lane = (int)(threadIdx.x % NORM_LANES), row = (int)(threadIdx.x / NORM_LANES);
    plain[row][lane] = a;
    scaled[row][lane] = b;
    __syncthreads();
    if (row > 0 || c >= C)
        return;
    for (int k = 1; k < NORM_ROWS; k++) {
        a += plain[k][lane];
        b += scaled[k][lane];
    }
    sums[2 * tile * C + c] = (float)a;
    sums[(2 * tile + 1) * C + c] = (float)b;
}

__global__ static void norm_affine_grad_kernel(float *dgamma, float *dbeta, const float *sums, int64_t tiles, int64_t C) {
    CUDA_EACH(c, C) {
        double plain = 0.0, scaled = 0.0;
        for (int64_t t = 0; t < tiles; t++) {
            plain += (double)sums[2 * t * C + c];
            scaled += (double)sums[(2 * t + 1) * C + c];
        }
        dbeta[c] = (float)plain;
        dgamma[c] = (float)scaled;
    }
}

#endif
