/* Group norm: a block takes a group of a sample, which has less than 2^31 elements. */
#include "kernels/cuda/backend.h"
#include "kernels/cuda/norm.h"

__global__ static void norm_kernel(float *y, float *mean, float *rstd, const float *x, const float *gamma,
                                   const float *beta, int64_t HW, int64_t C, int64_t G, float eps, int silu) {
    const uint32_t groups = (uint32_t)G, width = (uint32_t)(C / G), count = (uint32_t)HW * width;
    const int64_t n = blockIdx.x / groups, first = (int64_t)(blockIdx.x % groups) * width;
    const float *image = x + n * HW * C + first;
    float *to = y + n * HW * C + first;
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < count; i += CUDA_THREADS)
        sum += (double)image[(int64_t)(i / width) * C + i % width];
    const double middle = cuda_block_sum(sum) / (double)count;
    sum = 0.0;
    for (uint32_t i = threadIdx.x; i < count; i += CUDA_THREADS) {
        const double d = (double)image[(int64_t)(i / width) * C + i % width] - middle;
        sum += d * d;
    }
    const float m = (float)middle, r = (float)(1.0 / sqrt(cuda_block_sum(sum) / (double)count + (double)eps));
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = r;
    }
    for (uint32_t i = threadIdx.x; i < count; i += CUDA_THREADS) {
        const int64_t c = i % width, at = (int64_t)(i / width) * C + c;
        const float z = (image[at] - m) * r * gamma[first + c] + beta[first + c];
        to[at] = silu ? cuda_activate(z, CDAD_ACT_SILU) : z;
    }
}

void cuda_group_norm(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x, const float *gamma,
                     const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G, float eps, int silu) {
    CDAD_LAUNCH_JOINED(norm_kernel, (unsigned)(N * G), CUDA_THREADS, cuda_stream(ctx), y, mean, rstd, x, gamma, beta, HW,
                       C, G, eps, silu);
    cuda_launched(ctx, "group_norm");
}

/* The gradient of what the norm gives before SiLU. */
__device__ static float before_silu(float dy, float hat, float gamma, float beta, int silu) {
    if (!silu)
        return dy;
    const float z = hat * gamma + beta, s = cuda_sigmoid(z);
    return dy * (s + z * s * (1.0f - s));
}

/* sums [N,2,C]: of dz and of dz * x^ over a sample's pixels. */
__global__ static void sums_kernel(float *sums, const float *x, const float *mean, const float *rstd,
                                   const float *gamma, const float *beta, const float *dy, int64_t HW, int64_t C,
                                   int64_t G, int silu) {
    const int64_t tiles = (C + NORM_LANES - 1) / NORM_LANES, n = blockIdx.x / tiles;
    const int lane = (int)(threadIdx.x % NORM_LANES), row = (int)(threadIdx.x / NORM_LANES);
    const int64_t c = (int64_t)(blockIdx.x % tiles) * NORM_LANES + lane;
    double a = 0.0, b = 0.0;
    if (c < C) {
        const int64_t group = n * G + c / (C / G);
        const float m = mean[group], r = rstd[group];
        for (int64_t i = row; i < HW; i += NORM_ROWS) {
            const int64_t at = (n * HW + i) * C + c;
            const float hat = (x[at] - m) * r, dz = before_silu(dy[at], hat, gamma[c], beta[c], silu);
            a += (double)dz;
            b += (double)dz * (double)hat;
        }
    }
    norm_keep_sums(sums, a, b, n, c, C);
}

/* dx may be dy. */
__global__ static void grad_kernel(float *dx, const float *sums, const float *x, const float *mean, const float *rstd,
                                   const float *gamma, const float *beta, const float *dy, int64_t HW, int64_t C,
                                   int64_t G, int silu) {
    const uint32_t groups = (uint32_t)G, width = (uint32_t)(C / G), count = (uint32_t)HW * width;
    const int64_t n = blockIdx.x / groups, first = (int64_t)(blockIdx.x % groups) * width;
    double plain = 0.0, scaled = 0.0;
    for (uint32_t c = threadIdx.x; c < width; c += CUDA_THREADS) {
        plain += (double)gamma[first + c] * (double)sums[2 * n * C + first + c];
        scaled += (double)gamma[first + c] * (double)sums[(2 * n + 1) * C + first + c];
    }
    const float a = (float)(cuda_block_sum(plain) / (double)count), b = (float)(cuda_block_sum(scaled) / (double)count);
    const float m = mean[blockIdx.x], r = rstd[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < count; i += CUDA_THREADS) {
        const int64_t c = first + i % width, at = (n * HW + (int64_t)(i / width)) * C + c;
        const float hat = (x[at] - m) * r, dz = before_silu(dy[at], hat, gamma[c], beta[c], silu);
        dx[at] = r * (dz * gamma[c] - a - hat * b);
    }
}

void cuda_group_norm_grad(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                          const float *mean, const float *rstd, const float *gamma, const float *beta, const float *dy,
                          int64_t N, int64_t HW, int64_t C, int64_t G, int silu, void *scratch) {
    float *sums = (float *)scratch;
    cudaStream_t stream = cuda_stream(ctx);
    const unsigned blocks = (unsigned)(N * ((C + NORM_LANES - 1) / NORM_LANES));
    CDAD_LAUNCH_JOINED(sums_kernel, blocks, CUDA_THREADS, stream, sums, x, mean, rstd, gamma, beta, dy, HW, C, G, silu);
    CDAD_LAUNCH_JOINED(grad_kernel, (unsigned)(N * G), CUDA_THREADS, stream, dx, sums, x, mean, rstd, gamma, beta, dy, HW,
                       C, G, silu);
    CDAD_LAUNCH(norm_affine_grad_kernel, cuda_blocks(C), CUDA_THREADS, stream, dgamma, dbeta, sums, N, C);
    cuda_launched(ctx, "group_norm_grad");
}
