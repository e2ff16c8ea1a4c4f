/* The two ways of attention on a device: by products of whole tiles, and fused, in TF32. */
#ifndef CDAD_KERNELS_CUDA_ATTENTION_H
#define CDAD_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

/* Whether token t may not see token s: it comes later, or lies in the window around it. */
__device__ inline bool cuda_attention_hidden(const cdad_attention_dims &d, int t, int s) {
    if (d.causal && s > t)
        return true;
    if (d.mask_h == 0)
        return false;
    const int width = (int)d.grid_w, rows = t / width - s / width, columns = t % width - s % width;
    return abs(rows) <= (int)d.mask_h / 2 && abs(columns) <= (int)d.mask_w / 2;
}

/* Whether the fused kernels take these dims; then they do both directions. */
bool cuda_attention_fuses(const cdad_attention_dims *d);
void cuda_attention_fused(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                          const cdad_attention_dims *d);
/* delta [N,L,T]: the sum over the head of dout * out. */
void cuda_attention_fused_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                               const float *v, const float *lse, const float *delta, const float *dout,
                               const cdad_attention_dims *d);

#endif
