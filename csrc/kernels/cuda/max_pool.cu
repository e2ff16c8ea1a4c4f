/* Maximum pooling: a thread takes an element of the result, of y or of dx. */
#include "kernels/cuda/backend.h"

/* The largest value of the window (p, q) of sample n in channel c, or NaN where it holds one; *at: where in x it is. */
__device__ static float largest(const float *x, const cdad_unfold &u, int64_t n, int64_t p, int64_t q, int64_t c,
                                int64_t *at) {
    const int64_t top = p * u.stride - u.pad_t, left = q * u.stride - u.pad_l;
    const int64_t h0 = top > 0 ? top : 0, h1 = top + u.R < u.H ? top + u.R : u.H;
    const int64_t w0 = left > 0 ? left : 0, w1 = left + u.S < u.W ? left + u.S : u.W;
    float most = -INFINITY;
    *at = ((n * u.H + h0) * u.W + w0) * u.C + c;
    for (int64_t h = h0; h < h1; h++)
        for (int64_t w = w0; w < w1; w++) {
            const int64_t here = ((n * u.H + h) * u.W + w) * u.C + c;
            if (x[here] > most || x[here] != x[here]) {
                most = x[here];
                *at = here;
            }
        }
    return most;
}

template <typename I> __global__ static void pool_kernel(float *y, const float *x, cdad_unfold u, I C, I Q, I P, I count) {
    CUDA_EACH_OF(I, i, count) { /* an element of y [N,P,Q,C] */
        const I pixel = i / C, row = pixel / Q;
        int64_t at;
        y[i] = largest(x, u, row / P, row % P, pixel % Q, i % C, &at);
    }
}

void cuda_max_pool2d(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u) {
    const int64_t count = u->N * u->P * u->Q * u->C;
    const cdad_unfold how = *u;
    CDAD_LAUNCH_EACH(pool_kernel, count, cuda_stream(ctx), y, x, how, u->C, u->Q, u->P, count);
    cuda_launched(ctx, "max_pool2d");
}

/* The first window that reaches pixel `at` of an axis, and the one after the last. */
__device__ static void windows(int64_t at, int64_t pad, int64_t taps, int64_t stride, int64_t count, int64_t *begin,
                               int64_t *end) {
    const int64_t before = at + pad - taps + 1, last = (at + pad) / stride + 1;
    *begin = before > 0 ? (before + stride - 1) / stride : 0;
    *end = last < count ? last : count;
}

__global__ static void pool_grad_kernel(float *dx, const float *x, const float *dy, cdad_unfold u, int64_t count) {
    CUDA_EACH(i, count) { /* an element of dx [N,H,W,C] */
        const int64_t c = i % u.C, n = i / u.C / u.W / u.H;
        int64_t p0, p1, q0, q1, at;
        float sum = 0.0f;
        windows(i / u.C / u.W % u.H, u.pad_t, u.R, u.stride, u.P, &p0, &p1);
        windows(i / u.C % u.W, u.pad_l, u.S, u.stride, u.Q, &q0, &q1);
        for (int64_t p = p0; p < p1; p++)
            for (int64_t q = q0; q < q1; q++) {
                largest(x, u, n, p, q, c, &at);
                if (at == i)
                    sum += dy[((n * u.P + p) * u.Q + q) * u.C + c];
            }
        dx[i] = sum;
    }
}

void cuda_max_pool2d_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, const cdad_unfold *u) {
    const int64_t count = u->N * u->H * u->W * u->C;
    const cdad_unfold how = *u;
    CDAD_LAUNCH(pool_grad_kernel, cuda_blocks(count), CUDA_THREADS, cuda_stream(ctx), dx, x, dy, how, count);
    cuda_launched(ctx, "max_pool2d_grad");
}
