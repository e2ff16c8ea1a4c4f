/* The optimiser's kernels: one pass over memory each. */
#include "kernels/cuda/backend.h"

__device__ static float from_bf16(uint16_t bits) {
    union {
        uint32_t bits;
        float value;
    } x;
    x.bits = (uint32_t)bits << 16;
    return x.value;
}

/* To nearest even. */
__device__ static uint16_t to_bf16(float value) {
    union {
        float value;
        uint32_t bits;
    } x;
    x.value = value;
    return (uint16_t)((x.bits + 0x7fff + (x.bits >> 16 & 1)) >> 16);
}

/* g plus the penalty's gradient. */
__device__ static float pulled(float g, float w, const cdad_pull &p, int64_t i) {
    return p.importance ? g + p.strength * (p.importance[i] * (w - p.anchor[i])) : g;
}

/* The biases are factors that no element divides by: kernels/cpu/update.c. */
__global__ static void adamw_kernel(float *w, void *moment, float *v, float *e, float *du, const float *g, int64_t n,
                                    cdad_adamw h, float rate, float eps) {
    CUDA_EACH(i, n) {
        const float given = g[i], scaled = pulled(given, w[i], h.pull, i) * h.grad_scale;
        const float before = h.m_is_bf16 ? from_bf16(((uint16_t *)moment)[i]) : ((float *)moment)[i];
        const float m = h.beta1 * before + (1.0f - h.beta1) * scaled;
        const float second = h.beta2 * v[i] + (1.0f - h.beta2) * (scaled * scaled);
        const float d = rate * (m / (sqrtf(second) + eps)) - h.lr * h.weight_decay * w[i];
        if (h.m_is_bf16)
            ((uint16_t *)moment)[i] = to_bf16(m);
        else
            ((float *)moment)[i] = m;
        v[i] = second;
        if (h.path)
            h.path[i] -= given * d;
        if (du) {
            du[i] = d;
            continue;
        }
        w[i] += d;
        if (e)
            e[i] += (1.0f - h.ema_decay) * (w[i] - e[i]);
    }
}

void cuda_adamw(const cdad_context *ctx, float *w, void *m, float *v, float *e, float *du, const float *g, int64_t n,
                const cdad_adamw *h) {
    const float root = sqrtf(h->bias2), rate = -h->lr * (root / h->bias1), eps = h->eps * root;
    const cdad_adamw how = *h;
    CDAD_LAUNCH(adamw_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), w, m, v, e, du, g, n, how, rate, eps);
    cuda_launched(ctx, "adamw");
}

__global__ static void add_kernel(float *w, float *e, const float *du, int64_t n, float rest) {
    CUDA_EACH(i, n) {
        const float x = du ? w[i] + du[i] : w[i];
        w[i] = x;
        if (e)
            e[i] += rest * (x - e[i]);
    }
}

void cuda_add_to(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay) {
    if (!e && !du)
        return;
    CDAD_LAUNCH(add_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), w, e, du, n, 1.0f - ema_decay);
    cuda_launched(ctx, "add_to");
}

__global__ static void magnitudes_kernel(float *sum, const float *g, int64_t n, int squares) {
    CUDA_EACH(i, n) sum[i] += squares ? g[i] * g[i] : fabsf(g[i]);
}

void cuda_add_magnitudes(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares) {
    CDAD_LAUNCH(magnitudes_kernel, cuda_blocks(n), CUDA_THREADS, cuda_stream(ctx), sum, g, n, squares);
    cuda_launched(ctx, "add_magnitudes");
}

__global__ static void squares_kernel(double *sums, const float *g, const float *w, cdad_pull pull, int64_t n) {
    double sum = 0.0;
    CUDA_EACH(i, n) {
        const double x = (double)pulled(g[i], w ? w[i] : 0.0f, pull, i);
        sum += x * x;
    }
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

/* A block adds up what the blocks found. */
__global__ static void sum_kernel(double *sums) {
    const double sum = cuda_block_sum(sums[threadIdx.x]);
    if (threadIdx.x == 0)
        sums[0] = sum;
}

static double sum_of_squares(const cdad_context *ctx, const float *g, const float *w, cdad_pull pull, int64_t n,
                             int *finite, const char *what) {
    cudaStream_t stream = cuda_stream(ctx);
    double *sums = cuda_sums_take(ctx);
    CDAD_LAUNCH_JOINED(squares_kernel, CUDA_SUMS, CUDA_THREADS, stream, sums, g, w, pull, n);
    CDAD_LAUNCH_JOINED(sum_kernel, 1, CUDA_THREADS, stream, sums);
    const double total = cuda_sums_read(ctx, what);
    *finite = isfinite(total) != 0; /* squares of floats cannot overflow a double: only NaN and inf can */
    return total;
}

double cuda_sum_squares(const cdad_context *ctx, const float *x, int64_t n, int *finite) {
    return sum_of_squares(ctx, x, NULL, cdad_pull(), n, finite, "sum_squares");
}

double cuda_sum_squares_pulled(const cdad_context *ctx, const float *g, const float *w, int64_t n, const cdad_pull *pull,
                               int *finite) {
    return sum_of_squares(ctx, g, w, *pull, n, finite, "sum_squares_pulled");
}
