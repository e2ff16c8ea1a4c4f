/* The two ways of attention on a device: by products of whole tiles, and fused, of heads that are no wider than 160. */
#ifndef CDAD_KERNELS_CUDA_ATTENTION_H
#define CDAD_KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

/* What a token may not see: what comes later, or lies in the window around it (half_h < 0: there is none). */
struct cuda_attention_mask {
    bool causal;
    int half_h, half_w, width;
    float per_row; /* 1 / width */
};
__device__ inline cuda_attention_mask cuda_mask_of(const cdad_attention_dims &d) {
    const int width = d.mask_h ? (int)d.grid_w : 1;
    return {d.causal != 0, d.mask_h ? (int)d.mask_h / 2 : -1, (int)d.mask_w / 2, width, 1.0f / (float)width};
}

/* Token number t, and where it lies in the grid. */
struct cuda_token {
    int t, row, column;
};
/* A division by the width, which the half keeps apart from rounding's errors below 2^21 tokens. */
__device__ inline cuda_token cuda_token_of(const cuda_attention_mask &m, int t) {
    const int row = (int)(((float)t + 0.5f) * m.per_row);
    return {t, row, t - row * m.width};
}

/* Whether t may not see s. */
__device__ inline bool cuda_hides(const cuda_attention_mask &m, const cuda_token &t, const cuda_token &s) {
    return (m.causal && s.t > t.t) || (abs(t.row - s.row) <= m.half_h && abs(t.column - s.column) <= m.half_w);
}

/* Whether one of `queries` from t on may not see one of `keys` from s on, or might: as it holds for whole rows of the grid. */
__device__ inline bool cuda_hides_some(const cuda_attention_mask &m, int t, int queries, int s, int keys) {
    if (!m.causal && m.half_h < 0)
        return false;
    const int top = cuda_token_of(m, t).row, bottom = cuda_token_of(m, t + queries - 1).row;
    const int first = cuda_token_of(m, s).row, last = cuda_token_of(m, s + keys - 1).row;
    return (m.causal && s + keys - 1 > t) || (m.half_h >= 0 && first <= bottom + m.half_h && last >= top - m.half_h);
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
