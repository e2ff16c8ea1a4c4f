/* Elementwise kernels: a thread takes an element. */
#include "kernels/cuda/backend.h"

__global__ static void activate_kernel(float *y, const float *x, int64_t n, cdad_activation act) {
    CUDA_EACH(i, n) y[i] = cuda_activate(x[i], act);
}

void cuda_activation(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act) {
    CDAD_LAUNCH(activate_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), y, x, n, act);
    cuda_launched(ctx, "activation");
}

/* d act(x) / dx */
__device__ static float slope(float x, cdad_activation act) {
    float s;
    switch (act) {
    case CDAD_ACT_SILU:
        s = cuda_sigmoid(x);
        return s + x * s * (1.0f - s);
    case CDAD_ACT_RELU:
        return x > 0.0f ? 1.0f : 0.0f;
    case CDAD_ACT_RELU6:
        return x > 0.0f && x < 6.0f ? 1.0f : 0.0f;
    case CDAD_ACT_GELU:
        return cuda_gelu_slope(x);
    case CDAD_ACT_QUICK_GELU:
        s = cuda_sigmoid(1.702f * x);
        return s + 1.702f * x * s * (1.0f - s);
    case CDAD_ACT_TANH:
        s = tanhf(x);
        return 1.0f - s * s;
    case CDAD_ACT_SIGMOID:
        s = cuda_sigmoid(x);
        return s * (1.0f - s);
    case CDAD_ACT_EXP:
        return expf(x);
    case CDAD_ACT_SQRT:
        return 0.5f / sqrtf(x);
    default:
        return 1.0f;
    }
}

__global__ static void activate_grad_kernel(float *dx, const float *x, const float *dy, int64_t n, cdad_activation act) {
    CUDA_EACH(i, n) {
        const float s = slope(x[i], act);
        dx[i] = s == 0.0f && (act == CDAD_ACT_RELU || act == CDAD_ACT_RELU6) ? 0.0f : dy[i] * s; /* whatever comes from behind */
    }
}

void cuda_activation_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
                          cdad_activation act) {
    CDAD_LAUNCH(activate_grad_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), dx, x, dy, n, act);
    cuda_launched(ctx, "activation_grad");
}

__global__ static void affine_kernel(float *y, const float *x, int64_t n, float a, float b) {
    CUDA_EACH(i, n) y[i] = a * x[i] + b;
}

void cuda_affine(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b) {
    CDAD_LAUNCH(affine_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), y, x, n, a, b);
    cuda_launched(ctx, "affine");
}

/* bc has dimensions from number `first` on, of which that one, with the stride `outer`, divides no index. */
template <typename I>
__global__ static void binary_kernel(float *y, const float *a, const float *b, cdad_broadcast bc, int first, I outer, I n,
                                     cdad_binary op) {
    CUDA_EACH_OF(I, i, n) {
        I rest = i, at = 0;
        for (int k = 4; k > 0; k--) /* all of them: their sizes then stay out of local memory */
            if (k > first) {
                at += rest % (I)bc.dim[k] * (I)bc.stride[k];
                rest /= (I)bc.dim[k];
            }
        at += rest * outer;
        const float left = a[i], right = b[at];
        y[i] = op == CDAD_BINARY_ADD ? left + right : op == CDAD_BINARY_SUB ? left - right : left * right;
    }
}

void cuda_binary(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast *bc,
                 cdad_binary op) {
    cdad_broadcast how = {{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}}; /* the same with dimensions that go on as one */
    int64_t n = 1;
    int first = 4;
    for (int k = 4; k >= 0; k--) {
        if (bc->dim[k] == 1)
            continue;
        if (n > 1 && bc->stride[k] != how.stride[first] * how.dim[first])
            first--;
        if (how.dim[first] == 1)
            how.stride[first] = bc->stride[k];
        how.dim[first] *= bc->dim[k];
        n *= bc->dim[k];
    }
    CDAD_LAUNCH_EACH(binary_kernel, n, cuda_stream(ctx), y, a, b, how, first, how.stride[first], n, op);
    cuda_launched(ctx, "binary");
}

template <typename I> __global__ static void geglu_kernel(float *y, const float *x, I n, I D) {
    CUDA_EACH_OF(I, i, n) { /* an element of y [.,D] */
        const float *row = x + (int64_t)(i / D) * 2 * D;
        y[i] = row[i % D] * cuda_gelu(row[D + i % D]);
    }
}

void cuda_geglu(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D) {
    CDAD_LAUNCH_EACH(geglu_kernel, n * D, cuda_stream(ctx), y, x, n * D, D);
    cuda_launched(ctx, "geglu");
}

template <typename I> __global__ static void geglu_grad_kernel(float *dx, const float *x, const float *dy, I n, I D) {
    CUDA_EACH_OF(I, i, n) {
        const int64_t left = (int64_t)(i / D) * 2 * D + i % D, right = left + D;
        const float a = x[left], gate = x[right], g = dy[i];
        dx[left] = g * cuda_gelu(gate);
        dx[right] = g * a * cuda_gelu_slope(gate);
    }
}

void cuda_geglu_grad(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n, int64_t D) {
    CDAD_LAUNCH_EACH(geglu_grad_kernel, n * D, cuda_stream(ctx), dx, x, dy, n * D, D);
    cuda_launched(ctx, "geglu_grad");
}

/* A block takes a sample, of which there are few. */
enum { MSE_THREADS = 4 * CUDA_THREADS };
__global__ static void __launch_bounds__(MSE_THREADS) mse_kernel(float *per, const float *a, const float *b, int64_t m) {
    const int64_t at = (int64_t)blockIdx.x * m;
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < m; i += MSE_THREADS) {
        const double d = (double)a[at + i] - (double)b[at + i];
        sum += d * d;
    }
    sum = cuda_block_sum<MSE_THREADS>(sum);
    if (threadIdx.x == 0)
        per[blockIdx.x] = (float)(sum / (double)m);
}

__global__ static void mean_kernel(float *y, const float *x, int64_t n) {
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += CUDA_THREADS)
        sum += (double)x[i];
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        *y = (float)(sum / (double)n);
}

void cuda_mse(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n, int64_t m) {
    CDAD_LAUNCH_JOINED(mse_kernel, (unsigned)n, MSE_THREADS, cuda_stream(ctx), per, a, b, m);
    CDAD_LAUNCH_JOINED(mean_kernel, 1, CUDA_THREADS, cuda_stream(ctx), y, per, n);
    cuda_launched(ctx, "mse");
}

__global__ static void mse_grad_kernel(float *da, const float *a, const float *b, const float *g, int64_t n,
                                       float scale) {
    CUDA_EACH(i, n) da[i] = *g * scale * (a[i] - b[i]);
}

void cuda_mse_grad(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g, int64_t n,
                   int64_t m) {
    const float scale = (float)(2.0 / (double)(n * m));
    CDAD_LAUNCH(mse_grad_kernel, cuda_blocks(n * m), CUDA_THREADS, cuda_stream(ctx), da, a, b, g, n * m, scale);
    cuda_launched(ctx, "mse_grad");
}
