/* What ends a product, for a float or four neighbours at once. */
#ifndef CDAD_KERNELS_CUDA_EPILOGUE_H
#define CDAD_KERNELS_CUDA_EPILOGUE_H

#include "kernels/cuda/cuda.h"

__device__ inline float cuda_plus(float a, float b) { return a + b; }
__device__ inline float4 cuda_plus(const float4 &a, const float4 &b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }
__device__ inline float cuda_activated(float x, cdad_activation act) { return cuda_activate(x, act); }
__device__ inline float4 cuda_activated(const float4 &x, cdad_activation act) {
    return {cuda_activate(x.x, act), cuda_activate(x.y, act), cuda_activate(x.z, act), cuda_activate(x.w, act)};
}

/* Of column n and following, which lie at out[at]. */
template <typename T> __device__ inline T cuda_finished(T x, int64_t at, int64_t n, const float *out, const cdad_epilogue &with) {
    if (with.accumulate)
        x = cuda_plus(x, *(const T *)(out + at));
    if (with.bias)
        x = cuda_plus(x, *(const T *)(with.bias + n));
    if (with.sum)
        x = cuda_plus(x, *(const T *)(with.sum + at));
    return with.act ? cuda_activated(x, with.act) : x;
}

#endif
