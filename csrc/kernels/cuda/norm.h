/* What both norms share: values taken V at a time, sums over the threads of a warp, and the sums of gradients by channels. */
#ifndef CDAD_KERNELS_CUDA_NORM_H
#define CDAD_KERNELS_CUDA_NORM_H

#include "kernels/cuda/warp.h"

/* V = 4: p is a multiple of 16 bytes. */
template <int V> __device__ inline void norm_load(float v[V], const float *p) {
    if constexpr (V == 4) {
        const float4 all = *(const float4 *)p;
        v[0] = all.x;
        v[1] = all.y;
        v[2] = all.z;
        v[3] = all.w;
    } else {
        v[0] = *p;
    }
}
template <int V> __device__ inline void norm_store(float *p, const float v[V]) {
    if constexpr (V == 4)
        *(float4 *)p = float4{v[0], v[1], v[2], v[3]};
    else
        *p = v[0];
}

/* Whether rows of C floats can be taken 4 at a time there; NULL can. */
static inline bool norm_fours(int64_t C, const void *a, const void *b, const void *c, const void *d) {
    return C % 4 == 0 && ((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d) % 16 == 0;
}

/* The sum of the lanes' x, for each of them. */
__device__ inline float norm_warp_sum(float x) {
    for (int mask = 16; mask > 0; mask /= 2)
        x += cuda_swap(x, mask);
    return x;
}

/* sums [.,2,C], of a block of CUDA_THREADS, whose thread `lane` of `lanes` (a power of two) found a and b for channels c and
 * following: keeps what those of the same lane found together as number `tile`. */
template <int V>
__device__ inline void norm_keep_sums(double *sums, const double a[V], const double b[V], int64_t tile, int64_t c, int64_t C,
                                      unsigned lanes) {
    __shared__ double parts[2 * V][CUDA_THREADS];
    const unsigned own = threadIdx.x;
    CUDA_UNROLL
    for (int k = 0; k < V; k++) {
        parts[k][own] = a[k];
        parts[V + k][own] = b[k];
    }
    for (unsigned half = CUDA_THREADS / 2; half >= lanes; half /= 2) {
        __syncthreads();
        if (own < half) {
            CUDA_UNROLL
            for (int k = 0; k < 2 * V; k++)
                parts[k][own] += parts[k][own + half];
        }
    }
    if (own >= lanes || c >= C)
        return;
    CUDA_UNROLL
    for (int k = 0; k < V; k++) {
        sums[2 * tile * C + c + k] = parts[k][own];
        sums[(2 * tile + 1) * C + c + k] = parts[V + k][own];
    }
}

/* From sums [tiles,2,C] of dz and of dz * x^: a block takes 4 columns, a sector of memory. */
enum { NORM_COLUMNS = 4 };
__global__ static void norm_affine_grad_kernel(float *dgamma, float *dbeta, const double *sums, int64_t tiles, int64_t C) {
    __shared__ double parts[CUDA_THREADS];
    const unsigned own = threadIdx.x;
    const int64_t c = (int64_t)blockIdx.x * NORM_COLUMNS + own % NORM_COLUMNS;
    double sum = 0.0;
    for (int64_t t = own / NORM_COLUMNS; c < 2 * C && t < tiles; t += CUDA_THREADS / NORM_COLUMNS)
        sum += sums[2 * t * C + c];
    parts[own] = sum;
    for (unsigned half = CUDA_THREADS / 2; half >= NORM_COLUMNS; half /= 2) {
        __syncthreads();
        if (own < half)
            parts[own] += parts[own + half];
    }
    if (own >= NORM_COLUMNS || c >= 2 * C)
        return;
    if (c < C)
        dbeta[c] = (float)parts[own];
    else
        dgamma[c - C] = (float)parts[own];
}

static inline void norm_affine_grad(cudaStream_t stream, float *dgamma, float *dbeta, const double *sums, int64_t tiles, int64_t C) {
    CDAD_LAUNCH_JOINED(norm_affine_grad_kernel, (unsigned)((2 * C + NORM_COLUMNS - 1) / NORM_COLUMNS), CUDA_THREADS, stream, dgamma,
                       dbeta, sums, tiles, C);
}

#endif
