/* Attention by tiles of queries, where it is not fused: their scores with every key, of all heads of a sample, then softmax, then the product
 * with the values; backward the probabilities are computed again from lse. The scores of a sample are never whole. */
#include "kernels/cuda/attention.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/warp.h"

enum { TILE_FLOATS = 8 << 20 }; /* of scores: 32 MiB */

/* Queries of a tile. */
static int64_t tile_queries(const cdad_attention_dims *d) {
    return cuda_max(1, cuda_min(d->T, TILE_FLOATS / (d->L * d->S)));
}

/* scores [L,tile,S] of the queries `first` and following -> probabilities, and their row's lse [L,T]. */
__global__ static void softmax_kernel(float *scores, float *lse, cdad_attention_dims d, int64_t first, int64_t tile) {
    __shared__ float largest[CUDA_THREADS];
    const int l = (int)(blockIdx.x / (unsigned)tile), t = (int)first + (int)(blockIdx.x % (unsigned)tile), S = (int)d.S;
    float *row = scores + (int64_t)blockIdx.x * S, most = -INFINITY;
    const cuda_attention_mask mask = cuda_mask_of(d);
    const cuda_token query = cuda_token_of(mask, t);
    for (int s = (int)threadIdx.x; s < S; s += CUDA_THREADS)
        if (!cuda_hides(mask, query, cuda_token_of(mask, s)))
            most = fmaxf(most, row[s]);
    largest[threadIdx.x] = most;
    __syncthreads();
    for (int half = CUDA_THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half)
            largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + half]);
        __syncthreads();
    }
    most = largest[0];
    const float base = most == -INFINITY ? 0.0f : most; /* all hidden, or so small: no probability is NaN */
    float sum = 0.0f;
    for (int s = (int)threadIdx.x; s < S; s += CUDA_THREADS) {
        const float p = cuda_hides(mask, query, cuda_token_of(mask, s)) ? 0.0f : expf(row[s] - base);
        row[s] = p;
        sum += p;
    }
    sum = cuda_block_sum(sum);
    const float scale = sum == 0.0f ? 0.0f : 1.0f / sum; /* NaN stays */
    for (int s = (int)threadIdx.x; s < S; s += CUDA_THREADS)
        row[s] *= scale;
    if (threadIdx.x == 0)
        lse[l * d.T + t] = sum == 0.0f ? -INFINITY : most + logf(sum);
}

/* The tile's part of q, k, v, out by heads: rows of one sample, each head D floats further. */
static cuda_product by_heads(const cdad_attention_dims *d, int64_t M, int64_t N, int64_t K, cdad_mat A, int64_t stride_a,
                             cdad_mat B, int64_t stride_b, float *C, int64_t ldc, int64_t stride_c, float alpha,
                             float beta) {
    const cuda_product p = {M, N, K, d->L, A, B, C, ldc, stride_a, stride_b, stride_c, alpha, beta,
                            d->precision == CDAD_FLOAT32 ? CDAD_FLOAT32 : CDAD_TFLOAT32, false};
    return p;
}

void cuda_attention(const cdad_context *ctx, float *out, float *lse, const float *q, const float *k, const float *v,
                    const cdad_attention_dims *dims, void *scratch) {
    const cdad_attention_dims d = *dims;
    const int64_t step = tile_queries(&d), E = d.L * d.D;
    float *scores = (float *)scratch; /* [L,tile,S] */
    if (cuda_attention_fuses(dims)) {
        cuda_attention_fused(ctx, out, lse, q, k, v, dims);
        return;
    }
    for (int64_t n = 0; n < d.N; n++)
        for (int64_t t = 0; t < d.T; t += step) {
            const int64_t tile = cuda_min(step, d.T - t);
            const cdad_mat Q = {q + (n * d.T + t) * d.q_rs, d.q_rs, 1, NULL}, Kt = {k + n * d.S * d.k_rs, 1, d.k_rs, NULL};
            const cdad_mat V = {v + n * d.S * d.v_rs, d.v_rs, 1, NULL}, P = {scores, d.S, 1, NULL};
            cuda_product p = by_heads(&d, tile, d.S, d.D, Q, d.D, Kt, d.D, scores, d.S, tile * d.S, d.scale, 0.0f);
            cuda_multiply(ctx, &p, "attention");
            CDAD_LAUNCH_JOINED(softmax_kernel, (unsigned)(d.L * tile), CUDA_THREADS, cuda_stream(ctx), scores,
                               lse + n * d.L * d.T, d, t, tile);
            p = by_heads(&d, tile, d.D, d.S, P, tile * d.S, V, d.D, out + (n * d.T + t) * E, E, d.D, 1.0f, 0.0f);
            cuda_multiply(ctx, &p, "attention");
        }
    cuda_launched(ctx, "attention");
}

/* delta [N,L,T] = sum over the head of dout * out, by DELTA_LANES lanes each, so that a warp reads what lies together. */
enum { DELTA_LANES = 8, DELTA_HEADS = 32 / DELTA_LANES };
__global__ static void delta_kernel(float *delta, const float *out, const float *dout, cdad_attention_dims d) {
    const int64_t heads = d.N * d.T * d.L, warps = (int64_t)gridDim.x * (CUDA_THREADS / 32);
    const int lane = (int)threadIdx.x % 32;
    for (int64_t warp = (int64_t)blockIdx.x * (CUDA_THREADS / 32) + threadIdx.x / 32; warp * DELTA_HEADS < heads; warp += warps) {
        const int64_t i = warp * DELTA_HEADS + lane / DELTA_LANES, row = i / d.L;
        float sum = 0.0f;
        if (i < heads)
            for (int64_t j = lane % DELTA_LANES; j < d.D; j += DELTA_LANES)
                sum += out[i * d.D + j] * dout[i * d.D + j];
        for (int mask = 1; mask < DELTA_LANES; mask *= 2)
            sum += cuda_swap(sum, mask);
        if (i < heads && lane % DELTA_LANES == 0)
            delta[(row / d.T * d.L + i % d.L) * d.T + row % d.T] = sum;
    }
}

/* scores [L,tile,S] -> probabilities. */
template <typename I>
__global__ static void probability_kernel(float *scores, const float *lse, cdad_attention_dims d, I first, I tile, I n) {
    const I S = (I)d.S;
    const cuda_attention_mask mask = cuda_mask_of(d);
    CUDA_EACH_OF(I, i, n) {
        const I s = i % S, t = first + i / S % tile, l = i / S / tile;
        const float sum = lse[(int64_t)l * d.T + t];
        const bool hidden = cuda_hides(mask, cuda_token_of(mask, (int)t), cuda_token_of(mask, (int)s));
        scores[i] = hidden || sum == -INFINITY ? 0.0f : expf(scores[i] - sum);
    }
}

/* dp [L,tile,S] -> scale * p * (dp - delta). */
template <typename I>
__global__ static void score_grad_kernel(float *dp, const float *p, const float *delta, cdad_attention_dims d, I first, I tile,
                                         I n) {
    const I S = (I)d.S;
    CUDA_EACH_OF(I, i, n) {
        const I t = first + i / S % tile, l = i / S / tile;
        dp[i] = d.scale * p[i] * (dp[i] - delta[(int64_t)l * d.T + t]);
    }
}

void cuda_attention_grad(const cdad_context *ctx, float *dq, float *dk, float *dv, const float *q, const float *k,
                         const float *v, const float *out, const float *lse, const float *dout,
                         const cdad_attention_dims *dims, void *scratch) {
    const cdad_attention_dims d = *dims;
    const int64_t step = tile_queries(&d), E = d.L * d.D, most = d.L * step * d.S;
    cudaStream_t stream = cuda_stream(ctx);
    float *delta = (float *)scratch, *p = delta + d.N * d.L * d.T, *dp = p + most; /* [N,L,T], [L,tile,S] twice */
    CDAD_LAUNCH_JOINED(delta_kernel, cuda_blocks(d.N * d.L * d.T * DELTA_LANES), CUDA_THREADS, stream, delta, out, dout, d);
    if (cuda_attention_fuses(dims)) {
        cuda_attention_fused_grad(ctx, dq, dk, dv, q, k, v, lse, delta, dout, dims);
        return;
    }
    for (int64_t n = 0; n < d.N; n++) {
        for (int64_t t = 0; t < d.T; t += step) {
            const int64_t tile = cuda_min(step, d.T - t), count = d.L * tile * d.S, heads = tile * d.S;
            const float beta = t > 0 ? 1.0f : 0.0f;
            const float *q_at = q + (n * d.T + t) * d.q_rs, *k_at = k + n * d.S * d.k_rs, *v_at = v + n * d.S * d.v_rs;
            const float *dout_at = dout + (n * d.T + t) * E;
            const cdad_mat Q = {q_at, d.q_rs, 1, NULL}, K = {k_at, d.k_rs, 1, NULL}, Kt = {k_at, 1, d.k_rs, NULL};
            const cdad_mat Vt = {v_at, 1, d.v_rs, NULL}, dO = {dout_at, E, 1, NULL};
            const cdad_mat Pt = {p, 1, d.S, NULL}, dP = {dp, d.S, 1, NULL}, dPt = {dp, 1, d.S, NULL};
            cuda_product x = by_heads(&d, tile, d.S, d.D, Q, d.D, Kt, d.D, p, d.S, heads, d.scale, 0.0f);
            cuda_multiply(ctx, &x, "attention_grad");
            CDAD_LAUNCH_EACH(probability_kernel, count, stream, p, lse + n * d.L * d.T, d, t, tile, count);
            x = by_heads(&d, d.S, d.D, tile, Pt, heads, dO, d.D, dv + n * d.S * E, E, d.D, 1.0f, beta);
            cuda_multiply(ctx, &x, "attention_grad");
            x = by_heads(&d, tile, d.S, d.D, dO, d.D, Vt, d.D, dp, d.S, heads, 1.0f, 0.0f);
            cuda_multiply(ctx, &x, "attention_grad");
            CDAD_LAUNCH_EACH(score_grad_kernel, count, stream, dp, p, delta + n * d.L * d.T, d, t, tile, count);
            x = by_heads(&d, tile, d.D, d.S, dP, heads, K, d.D, dq + (n * d.T + t) * E, E, d.D, 1.0f, 0.0f);
            cuda_multiply(ctx, &x, "attention_grad");
            x = by_heads(&d, d.S, d.D, tile, dPt, heads, Q, d.D, dk + n * d.S * E, E, d.D, 1.0f, beta);
            cuda_multiply(ctx, &x, "attention_grad");
        }
    }
    cuda_launched(ctx, "attention_grad");
}

/* For both directions. */
int64_t cuda_attention_scratch(const cdad_attention_dims *d, int threads) {
    (void)threads;
    const int64_t tiles = cuda_attention_fuses(d) ? 0 : 2 * d->L * tile_queries(d) * d->S;
    return (tiles + d->N * d->L * d->T) * (int64_t)sizeof(float);
}
