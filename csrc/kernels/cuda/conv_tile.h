/* What the kernels of convolutions share. */
#ifndef CDAD_KERNELS_CUDA_CONV_TILE_H
#define CDAD_KERNELS_CUDA_CONV_TILE_H

#include <string.h>

#include "kernels/cuda/conv.h"
#include "kernels/cuda/epilogue.h"
#include "kernels/cuda/warp.h"

#ifdef CDAD_CUDA_ON_HOST
#define CUDA_NO_UNROLL
#else
#define CUDA_NO_UNROLL _Pragma("unroll 1")
#endif

/* Multiprocessors that plans are made for. */
#ifdef CDAD_CUDA_ON_HOST
enum { CUDA_CONV_PROCESSORS = 4 }; /* so that small tests come to every kernel, and to parts */
#else
enum { CUDA_CONV_PROCESSORS = 132 };
#endif

/* The hardware drops what a factor has beyond TF32. This much larger before, it is rounded without bias: what TF32 holds stays, errors
 * have the size that they have with rounding to nearest but for 6 %, and NaNs are left. One instruction, where cvt.rna.tf32 is three. */
__device__ static inline uint32_t cuda_raised(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 1.0003522f;
    memcpy(&bits, &x, sizeof x);
    return bits;
}

/* Where results go: [.,N], rows ldc apart. */
struct conv_results {
    float *out;
    int64_t ldc;
    int N, quads; /* quads: whether they are read and written by four */
    cdad_epilogue with;
};
static inline conv_results cuda_conv_results(int64_t N, float *C, int64_t ldc, const cdad_epilogue *with) {
    const uintptr_t met = (uintptr_t)C | (uintptr_t)with->bias | (uintptr_t)with->sum;
    return {C, ldc, (int)N, (N | ldc) % 4 == 0 && met % 16 == 0, *with};
}

/* A warp's sums, 16 T::TM rows of 8 T::TN columns from first_n on, to memory by way of its `slab` of shared memory, CUDA_SLAB_ROWS rows of
 * T::SLAB_RS floats, so that lanes write neighbours, and what ends a product is compiled once. row_of(i, row): where row `row` of the 16
 * number i goes, negative: nowhere. */
enum { CUDA_SLAB_ROWS = 8 };
struct __align__(8) two {
    float low, high;
};
template <typename T, typename F>
__device__ static inline void cuda_conv_put(const conv_results &to, int first_n, const float c[T::TM][T::TN][4], float *slab, const F &row_of) {
    const int lane = (int)threadIdx.x % 32, width = 8 * T::TN;
    CUDA_NO_UNROLL
    for (int half = 0; half < 2 * T::TM; half++) { /* of 16 rows */
        const int i = half / 2, first_row = half % 2 * CUDA_SLAB_ROWS;
        CUDA_UNROLL
        for (int h = 0; h < 2 * T::TM; h++)
            if (h == half) /* sums are in registers, which have no numbers that a loop could count */
                CUDA_UNROLL
                for (int j = 0; j < T::TN; j++)
                    *(two *)(slab + lane / 4 * T::SLAB_RS + 8 * j + lane % 4 * 2) = {c[h / 2][j][h % 2 * 2], c[h / 2][j][h % 2 * 2 + 1]};
        __syncwarp();
        CUDA_NO_UNROLL
        for (int e = 4 * lane; e < CUDA_SLAB_ROWS * width; e += 4 * 32) {
            const int m = row_of(i, first_row + e / width), n = first_n + e % width;
            const float *from = slab + e / width * T::SLAB_RS + e % width;
            const int64_t at = m * to.ldc + n;
            if (m < 0)
                continue;
            if (to.quads) {
                if (n < to.N)
                    *(float4 *)(to.out + at) = cuda_finished(*(const float4 *)from, at, n, to.out, to.with);
            } else {
                for (int l = 0; l < 4 && n + l < to.N; l++)
                    to.out[at + l] = cuda_finished(from[l], at + l, n + l, to.out, to.with);
            }
        }
        __syncwarp();
    }
}

#endif
