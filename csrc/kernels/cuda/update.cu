/* The optimiser's kernels: one pass over memory each. */
#include <float.h>

#include "kernels/bfloat16.h"
#include "kernels/cuda/backend.h"
#include "kernels/cuda/warp.h"
#include "kernels/dynamic8.h"

enum { AT_ONCE = 4 }; /* elements that a thread asks for together */

/* g plus the penalty's gradient. */
__device__ static float pulled(float g, float w, const cdad_pull &p, int64_t i) {
    return p.importance ? g + p.strength * (p.importance[i] * (w - p.anchor[i])) : g;
}

/* As kernels/cpu/update.c has it: moments are no denormals. */
__device__ static float decayed(float moment) { return fabsf(moment) < FLT_MIN ? 0.0f : moment; }

/* AdamW's step of element i, which is `weight`, has the gradient `given`, and whose moments are m and v. The biases are factors that no
 * element divides by: kernels/cpu/update.c. rest: the share of its way to h.anchor that it then goes. */
__device__ static void step(float *w, float weight, float &m, float &v, float *e, float *du, float given, int64_t i, const cdad_adamw &h,
                            float rate, float eps, float rest = 0.0f) {
    const float scaled = pulled(given, weight, h.pull, i) * h.grad_scale;
    m = decayed(h.beta1 * m + (1.0f - h.beta1) * scaled);
    v = decayed(h.beta2 * v + (1.0f - h.beta2) * (scaled * scaled));
    const float d = rate * (m / (sqrtf(v) + eps)) - h.lr * h.weight_decay * weight;
    if (h.path)
        h.path[i] -= given * d;
    if (du) {
        du[i] = d;
        return;
    }
    weight += d;
    if (rest != 0.0f)
        weight += rest * (h.anchor[i] - weight);
    w[i] = weight;
    if (e)
        e[i] += (1.0f - h.ema_decay) * (weight - e[i]);
}

/* AdamW's step of the elements from `first` on, each `stride` from the one before it. */
__device__ static void steps(float *w, void *moment, float *v, float *e, float *du, const float *g, int64_t n, int64_t first, int64_t stride,
                             const cdad_adamw &h, float rate, float eps, float rest = 0.0f) {
    for (int64_t i = first; i < n; i += AT_ONCE * stride) {
        float weights[AT_ONCE], gradients[AT_ONCE], one[AT_ONCE], two[AT_ONCE];
        CUDA_UNROLL
        for (int j = 0; j < AT_ONCE; j++) {
            const int64_t at = i + j * stride;
            if (at >= n)
                break;
            weights[j] = w[at];
            gradients[j] = g[at];
            one[j] = h.m_is_bf16 ? cdad_from_bf16(((uint16_t *)moment)[at]) : ((float *)moment)[at];
            two[j] = v[at];
        }
        CUDA_UNROLL
        for (int j = 0; j < AT_ONCE; j++) {
            const int64_t at = i + j * stride;
            if (at >= n)
                break;
            step(w, weights[j], one[j], two[j], e, du, gradients[j], at, h, rate, eps, rest);
            v[at] = two[j];
            if (h.m_is_bf16)
                ((uint16_t *)moment)[at] = cdad_to_bf16(one[j]);
            else
                ((float *)moment)[at] = one[j];
        }
    }
}

__global__ static void adamw_kernel(float *w, void *moment, float *v, float *e, float *du, const float *g, int64_t n,
                                    cdad_adamw h, float rate, float eps) {
    if (h.squares && !isfinite(*h.squares)) {
        CUDA_EACH(i, du ? n : 0) du[i] = 0.0f;
        return;
    }
    steps(w, moment, v, e, du, g, n, (int64_t)blockIdx.x * blockDim.x + threadIdx.x, (int64_t)gridDim.x * blockDim.x, h, rate, eps);
}

/* What a launch takes beside its other arguments, of 4 KiB in all. */
enum { SHARING = 64 };
struct updates_of_a_launch {
    cdad_update of[SHARING];
};

static updates_of_a_launch some_of(const cdad_update *updates, int64_t count) {
    updates_of_a_launch some = updates_of_a_launch();
    for (int64_t i = 0; i < count; i++)
        some.of[i] = updates[i];
    return some;
}

/* A block of threads for each parameter. */
__global__ static void adamw_each_kernel(float *w, float *e, updates_of_a_launch updates, cdad_adamw h, float rate, float eps) {
    const cdad_update u = updates.of[blockIdx.x];
    if (!isfinite(*u.squares))
        return;
    steps(w + u.at, u.m, (float *)u.v, e ? e + u.at : NULL, NULL, u.g, u.n, threadIdx.x, blockDim.x, cdad_adamw_at(h, u.at), rate, eps,
          h.anchor ? 1.0f - u.stays : 0.0f);
}

/* The largest of every thread's ranks, for every thread of the block. */
__device__ static uint32_t largest_of(uint32_t rank) {
    __shared__ uint32_t parts[CUDA_THREADS];
    __syncthreads(); /* what was found before may still be read */
    parts[threadIdx.x] = rank;
    __syncthreads();
    for (int half = CUDA_THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half && parts[threadIdx.x + half] > parts[threadIdx.x])
            parts[threadIdx.x] = parts[threadIdx.x + half];
        __syncthreads();
    }
    return parts[0];
}

/* Moments in 8 bit: a block of threads for each of CDAD_BLOCK8 elements. */
__global__ static void adamw8_kernel(float *w, uint8_t *m, uint8_t *v, float *e, float *du, const float *g, int64_t n,
                                     cdad_adamw h, float rate, float eps) {
    __shared__ float new_m[CDAD_BLOCK8], new_v[CDAD_BLOCK8];
    const int64_t block = blockIdx.x, begin = block * CDAD_BLOCK8, end = begin + CDAD_BLOCK8 < n ? begin + CDAD_BLOCK8 : n;
    const float old_m = h.m_most[block], old_v = h.v_most[block];
    uint32_t rank_m = 0, rank_v = 0;
    if (h.squares && !isfinite(*h.squares)) { /* for every thread of the block alike */
        for (int64_t i = begin + threadIdx.x; du && i < end; i += CUDA_THREADS)
            du[i] = 0.0f;
        return;
    }
    for (int64_t i = begin + threadIdx.x; i < end; i += CUDA_THREADS) {
        float one = old_m * cdad_value8_signed(m[i]), two = old_v * cdad_value8_unsigned(v[i]);
        step(w, w[i], one, two, e, du, g[i], i, h, rate, eps);
        rank_m = cdad_rank8(one) > rank_m ? cdad_rank8(one) : rank_m;
        rank_v = cdad_rank8(two) > rank_v ? cdad_rank8(two) : rank_v;
        new_m[i - begin] = one;
        new_v[i - begin] = two;
    }
    float most_m, most_v;
    const float inverse_m = cdad_inverse8(largest_of(rank_m), &most_m), inverse_v = cdad_inverse8(largest_of(rank_v), &most_v);
    for (int64_t i = begin + threadIdx.x; i < end; i += CUDA_THREADS) {
        m[i] = (uint8_t)cdad_code8_signed(new_m[i - begin] * inverse_m);
        v[i] = (uint8_t)cdad_code8_unsigned(new_v[i - begin] * inverse_v);
    }
    if (threadIdx.x == 0) {
        h.m_most[block] = most_m;
        h.v_most[block] = most_v;
    }
}

/* The biases as factors that no element divides by. */
static float rate_of(const cdad_adamw *h) { return -h->lr * (sqrtf(h->bias2) / h->bias1); }
static float eps_of(const cdad_adamw *h) { return h->eps * sqrtf(h->bias2); }

void cuda_adamw(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g, int64_t n,
                const cdad_adamw *h) {
    const float rate = rate_of(h), eps = eps_of(h);
    const cdad_adamw how = *h;
    uint8_t *const codes_m = (uint8_t *)m, *const codes_v = (uint8_t *)v;
    float *const values_v = (float *)v;
    if (h->m_most) {
        const unsigned blocks = (unsigned)((n + CDAD_BLOCK8 - 1) / CDAD_BLOCK8);
        CDAD_LAUNCH_JOINED(adamw8_kernel, blocks, CUDA_THREADS, cuda_stream(ctx), w, codes_m, codes_v, e, du, g, n, how, rate, eps);
    } else {
        CDAD_LAUNCH(adamw_kernel, cuda_blocks((n + AT_ONCE - 1) / AT_ONCE), CUDA_THREADS, cuda_stream(ctx), w, m, values_v, e, du, g, n, how, rate, eps);
    }
    cuda_launched(ctx, "adamw");
}

void cuda_adamw_each(const cdad_context *ctx, float *w, float *e, const cdad_update *updates, int64_t count, const cdad_adamw *h) {
    const float rate = rate_of(h), eps = eps_of(h);
    const cdad_adamw how = *h;
    for (int64_t i = 0; i < count; i += SHARING) {
        const int64_t n = cuda_min(count - i, SHARING);
        const updates_of_a_launch some = some_of(updates + i, n);
        CDAD_LAUNCH(adamw_each_kernel, (unsigned)n, CUDA_THREADS, cuda_stream(ctx), w, e, some, how, rate, eps);
    }
    cuda_launched(ctx, "adamw_each");
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

enum { EACH = 16 }; /* the fewest elements that a thread takes */
/* Of the elements from `first` on, each `step` from the one before it. */
__device__ static double squares_of(const float *g, const float *w, const cdad_pull &pull, int64_t n, int64_t first, int64_t step) {
    double sum = 0.0;
    for (int64_t i = first; i < n; i += AT_ONCE * step) {
        float x[AT_ONCE];
        for (int j = 0; j < AT_ONCE; j++) {
            const int64_t at = i + j * step;
            x[j] = at < n ? pulled(g[at], w ? w[at] : 0.0f, pull, at) : 0.0f;
        }
        for (int j = 0; j < AT_ONCE; j++)
            sum += (double)x[j] * (double)x[j];
    }
    return sum;
}

__global__ static void squares_kernel(double *sums, const float *g, const float *w, cdad_pull pull, int64_t n) {
    const int64_t first = (int64_t)blockIdx.x * CUDA_THREADS + threadIdx.x;
    const double sum = cuda_block_sum(squares_of(g, w, pull, n, first, (int64_t)gridDim.x * CUDA_THREADS));
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

__global__ static void squares_each_kernel(const float *w, updates_of_a_launch updates, cdad_pull pull) {
    const cdad_update u = updates.of[blockIdx.x];
    const double sum = cuda_block_sum(squares_of(u.g, pull.importance ? w + u.at : NULL, cdad_pull_at(pull, u.at), u.n, threadIdx.x, CUDA_THREADS));
    if (threadIdx.x == 0)
        *u.squares = sum;
}

/* A block adds up what the blocks found. */
__global__ static void sum_kernel(double *to, const double *sums, int n) {
    double sum = 0.0;
    for (int i = (int)threadIdx.x; i < n; i += CUDA_THREADS)
        sum += sums[i];
    sum = cuda_block_sum(sum);
    if (threadIdx.x == 0)
        *to = sum;
}

static void sum_of_squares(const cdad_context *ctx, double *to, const float *g, const float *w, cdad_pull pull, int64_t n,
                           const char *what) {
    cudaStream_t stream = cuda_stream(ctx);
    const int64_t most = CUDA_THREADS * EACH, blocks = cuda_min((n + most - 1) / most, CUDA_SUMS);
    if (blocks <= 1) {
        CDAD_LAUNCH_JOINED(squares_kernel, 1, CUDA_THREADS, stream, to, g, w, pull, n);
    } else {
        double *sums = cuda_sums_take(ctx);
        CDAD_LAUNCH_JOINED(squares_kernel, (unsigned)blocks, CUDA_THREADS, stream, sums, g, w, pull, n);
        CDAD_LAUNCH_JOINED(sum_kernel, 1, CUDA_THREADS, stream, to, sums, (int)blocks);
        cuda_sums_give(ctx);
    }
    cuda_launched(ctx, what);
}

void cuda_sum_squares(const cdad_context *ctx, double *to, const float *x, int64_t n) {
    sum_of_squares(ctx, to, x, NULL, cdad_pull(), n, "sum_squares");
}

void cuda_sum_squares_pulled(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n,
                             const cdad_pull *pull) {
    sum_of_squares(ctx, to, g, w, *pull, n, "sum_squares_pulled");
}

void cuda_sum_squares_each(const cdad_context *ctx, const float *w, const cdad_update *updates, int64_t count, const cdad_pull *pull) {
    for (int64_t i = 0; i < count; i += SHARING) {
        const int64_t n = cuda_min(count - i, SHARING);
        const updates_of_a_launch some = some_of(updates + i, n);
        CDAD_LAUNCH_JOINED(squares_each_kernel, (unsigned)n, CUDA_THREADS, cuda_stream(ctx), w, some, *pull);
    }
    cuda_launched(ctx, "sum_squares_each");
}
