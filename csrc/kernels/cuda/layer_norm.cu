/* Layer norm: a block takes a row. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/norm.h"

enum { TILE = 64 }; /* rows whose sums are added up first */

__global__ static void norm_kernel(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                   const float *beta, int64_t C, float eps) {
    const float *row = x + (int64_t)blockIdx.x * C;
    float *to = y + (int64_t)blockIdx.x * C;
    double sum = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS)
        sum += (double)row[c];
    const double middle = cuda_block_sum(sum) / (double)C;
    sum = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const double d = (double)row[c] - middle;
        sum += d * d;
    }
    const float m = (float)middle, r = (float)(1.0 / sqrt(cuda_block_sum(sum) / (double)C + (double)eps));
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = r;
    }
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const float hat = (row[c] - m) * r;
        to[c] = gamma ? hat * gamma[c] + beta[c] : hat;
    }
}

void cuda_layer_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                     const float *beta, int64_t n, int64_t C, float eps) {
    CDAD_LAUNCH_JOINED(norm_kernel, (unsigned)n, CUDA_THREADS, cuda_stream(ctx), y, mean, rstd, x, gamma, beta, C, eps);
    cuda_launched(ctx, "layer_norm");
}

__global__ static void grad_kernel(float *dx, const float *x, const float *mean, const float *rstd, const float *gamma,
                                   const float *dy, int64_t C) {
    const int64_t row = (int64_t)blockIdx.x * C;
    const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
    double plain = 0.0, scaled = 0.0;
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const double d = (double)(gamma ? dy[row + c] * gamma[c] : dy[row + c]);
        plain += d;
        scaled += d * (double)((x[row + c] - m) * r);
    }
    const float a = (float)(cuda_block_sum(plain) / (double)C), b = (float)(cuda_block_sum(scaled) / (double)C);
    for (int64_t c = threadIdx.x; c < C; c += CUDA_THREADS) {
        const float d = gamma ? dy[row + c] * gamma[c] : dy[row + c];
        dx[row + c] = r * (d - a - (x[row + c] - m) * r * b);
    }
}

/* sums [tiles,2,C]: of dy and of dy * x^ over a tile's rows. */
__global__ static void sums_kernel(float *sums, const float *x, const float *mean, const float *rstd, const float *dy,
                                   int64_t n, int64_t C) {
    const int64_t parts = (C + NORM_LANES - 1) / NORM_LANES, tile = blockIdx.x / parts;
    const int lane = (int)(threadIdx.x % NORM_LANES), row = (int)(threadIdx.x / NORM_LANES);
    const int64_t c = (int64_t)(blockIdx.x % parts) * NORM_LANES + lane;
    double a = 0.0, b = 0.0;
    for (int64_t i = tile * TILE + row; c < C && i < n && i < (tile + 1) * TILE; i += NORM_ROWS) {
        const float d = dy[i * C + c];
        a += (double)d;
        b += (double)d * (double)((x[i * C + c] - mean[i]) * rstd[i]);
    }
    norm_keep_sums(sums, a, b, tile, c, C);
}

/* The sums come first: dx may be dy. */
void cuda_layer_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                          const float *mean, const float *rstd, const float *gamma, const float *dy, int64_t n, int64_t C,
                          void *scratch) {
    cudaStream_t stream = cuda_stream(ctx);
    const int64_t tiles = (n + TILE - 1) / TILE;
    float *sums = (float *)scratch;
    if (dgamma) {
        const unsigned blocks = (unsigned)(tiles * ((C + NORM_LANES - 1) / NORM_LANES));
        CDAD_LAUNCH_JOINED(sums_kernel, blocks, CUDA_THREADS, stream, sums, x, mean, rstd, dy, n, C);
        CDAD_LAUNCH(norm_affine_grad_kernel, cuda_blocks(C), CUDA_THREADS, stream, dgamma, dbeta, sums, tiles, C);
    }
    CDAD_LAUNCH_JOINED(grad_kernel, (unsigned)n, CUDA_THREADS, stream, dx, x, mean, rstd, gamma, dy, C);
    cuda_launched(ctx, "layer_norm_grad");
}

int64_t cuda_layer_norm_grad_scratch(int64_t n, int64_t C) {
    return (n + TILE - 1) / TILE * 2 * C * (int64_t)sizeof(float);
}
