/* Depthwise convolution: a thread takes an element of the result; of the weight's gradient, a block does. */
#include "kernels/cuda/backend.h"

template <typename I>
__global__ static void forward_kernel(float *y, const float *x, const float *w, const float *bias, cdad_unfold u, I C, I Q, I P,
                                      I count) {
    CUDA_EACH_OF(I, i, count) { /* an element of y [N,P,Q,C] */
        const I pixel = i / C, row = pixel / Q;
        const int64_t c = i % C, q = pixel % Q, p = row % P, n = row / P;
        float sum = bias ? bias[c] : 0.0f;
        for (int64_t r = 0; r < u.R; r++)
            for (int64_t s = 0; s < u.S; s++) {
                const int64_t h = p * u.stride + r - u.pad_t, v = q * u.stride + s - u.pad_l;
                if (h >= 0 && h < u.H && v >= 0 && v < u.W)
                    sum += x[((n * u.H + h) * u.W + v) * u.C + c] * w[(r * u.S + s) * u.C + c];
            }
        y[i] = sum;
    }
}

void cuda_depthwise_conv2d(const cdad_context *ctx, float *y, const float *x, const float *w, const float *bias,
                           const cdad_unfold *u) {
    const int64_t count = u->N * u->P * u->Q * u->C;
    const cdad_unfold how = *u;
    CDAD_LAUNCH_EACH(forward_kernel, count, cuda_stream(ctx), y, x, w, bias, how, u->C, u->Q, u->P, count);
    cuda_launched(ctx, "depthwise_conv2d");
}

__global__ static void input_kernel(float *dx, const float *w, const float *dy, cdad_unfold u, int64_t count) {
    CUDA_EACH(i, count) { /* an element of dx [N,H,W,C] */
        const int64_t c = i % u.C, v = i / u.C % u.W, h = i / u.C / u.W % u.H, n = i / u.C / u.W / u.H;
        float sum = 0.0f;
        for (int64_t r = 0; r < u.R; r++)
            for (int64_t s = 0; s < u.S; s++) {
                const int64_t top = h + u.pad_t - r, left = v + u.pad_l - s, p = top / u.stride, q = left / u.stride;
                if (top >= 0 && left >= 0 && top % u.stride == 0 && left % u.stride == 0 && p < u.P && q < u.Q)
                    sum += dy[((n * u.P + p) * u.Q + q) * u.C + c] * w[(r * u.S + s) * u.C + c];
            }
        dx[i] = sum;
    }
}

/* A block sums an element of dw [R,S,C]; with `bias`, of db [C]. */
__global__ static void weight_kernel(float *dw, const float *x, const float *dy, cdad_unfold u, int bias) {
    const int64_t c = blockIdx.x % u.C, s = blockIdx.x / u.C % u.S, r = blockIdx.x / u.C / u.S;
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < u.N * u.P * u.Q; i += CUDA_THREADS) {
        const int64_t q = i % u.Q, p = i / u.Q % u.P, n = i / u.Q / u.P;
        const int64_t h = p * u.stride + r - u.pad_t, v = q * u.stride + s - u.pad_l;
        if (bias)
            sum += (double)dy[i * u.C + c];
        else if (h >= 0 && h < u.H && v >= 0 && v < u.W)
            sum += (double)dy[i * u.C + c] * (double)x[((n * u.H + h) * u.W + v) * u.C + c];
    }
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        dw[blockIdx.x] = (float)sum;
}

void cuda_depthwise_conv2d_grad(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
                                const float *w, const float *dy, const cdad_unfold *u) {
    cudaStream_t stream = cuda_stream(ctx);
    const int64_t count = u->N * u->H * u->W * u->C;
    const cdad_unfold how = *u;
    if (dx)
        CDAD_LAUNCH(input_kernel, cuda_blocks(count), CUDA_THREADS, stream, dx, w, dy, how, count);
    if (dw)
        CDAD_LAUNCH_JOINED(weight_kernel, (unsigned)(u->R * u->S * u->C), CUDA_THREADS, stream, dw, x, dy, how, 0);
    if (db)
        CDAD_LAUNCH_JOINED(weight_kernel, (unsigned)u->C, CUDA_THREADS, stream, db, x, dy, how, 1);
    cuda_launched(ctx, "depthwise_conv2d_grad");
}
