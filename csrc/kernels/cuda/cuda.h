/* What the CUDA sources share: the device's state, launches, and what kernels compute alike.
 *
 * The sources keep to a small part of CUDA, what warps do together to kernels/cuda/warp.h, and launch by CDAD_LAUNCH and its kin, so
 * that a C++ compiler can build them with kernels/cuda/on_host.h, which runs them on the CPU: tests of the kernels and of
 * the loader need no GPU. */
#ifndef CDAD_KERNELS_CUDA_CUDA_H
#define CDAD_KERNELS_CUDA_CUDA_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#ifdef CDAD_CUDA_ON_HOST
#include "kernels/cuda/on_host.h"
enum { CUDA_THREADS = 64 };
#else
#include <cuda_runtime.h>
/* Threads of the kernel do not wait for each other; of a CDAD_LAUNCH_JOINED they do (__syncthreads). */
#define CDAD_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<(blocks), (threads), 0, (stream)>>>(__VA_ARGS__)
#define CDAD_LAUNCH_JOINED CDAD_LAUNCH
enum { CUDA_THREADS = 256 }; /* of a block */
#endif

extern "C" {
#include "base/context.h"
#include "base/memory.h"
#include "kernels/kernels.h"
}

typedef struct cuda_device cuda_device;

/* The stream in which the context's device works; the device becomes the calling thread's. */
cudaStream_t cuda_stream(const cdad_context *ctx);
/* Bytes of shared memory that a block may have. */
int64_t cuda_shared_bytes(const cdad_context *ctx);
/* Its compute capability: 10 * major + minor. */
int cuda_capability(const cdad_context *ctx);
/* How many multiprocessors it has. */
int cuda_processors(const cdad_context *ctx);
/* Keeps a failed launch for the next check. `what`: the kernel's slot. */
void cuda_launched(const cdad_context *ctx, const char *what);

/* C[m,n] = beta * C[m,n] + alpha * sum_k A[m,k] B[k,n] for `batch` matrices that lie stride_* elements apart; A and B are
 * plain, and one of their strides is 1 unless they have one row or column. `rounded`: their data are bfloat16. */
typedef struct cuda_product {
    int64_t M, N, K, batch;
    cdad_mat A, B;
    float *C;
    int64_t ldc, stride_a, stride_b, stride_c;
    float alpha, beta;
    cdad_precision precision;
    bool rounded;
} cuda_product;
void cuda_multiply(const cdad_context *ctx, const cuda_product *p, const char *what);
/* The same + bias (one a column) + sum (laid out as C), each or NULL; false, and nothing done, where cuBLASLt does not take it. */
bool cuda_multiply_fused(const cdad_context *ctx, const cuda_product *p, const float *bias, const float *sum);

/* to [rows,R*S*C] = rows `first` and following of the image that X unfolds. */
void cuda_gather(const cdad_context *ctx, float *to, const cdad_mat &X, int64_t first, int64_t rows);

/* Memory of the device for sums that go to the host: CUDA_SUMS doubles, which one thread uses at a time. */
enum { CUDA_SUMS = 4 * CUDA_THREADS };
double *cuda_sums_take(const cdad_context *ctx);
void cuda_sums_give(const cdad_context *ctx);
/* The first double, on the host; gives the memory back. */
double cuda_sums_read(const cdad_context *ctx, const char *what);

static inline int64_t cuda_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t cuda_max(int64_t a, int64_t b) { return a > b ? a : b; }
/* a / b, rounded up. */
static inline int64_t cuda_over(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Blocks of CUDA_THREADS threads for n elements, of which a thread takes every so many. */
static inline unsigned cuda_blocks(int64_t n) {
    return (unsigned)cuda_max(1, cuda_min((n + CUDA_THREADS - 1) / CUDA_THREADS, 1 << 20));
}
#define CUDA_EACH(i, n)                                                                  \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

/* The same for a kernel that divides indices, which are I: uint32_t where they fit, as 64-bit divisions take several times as
 * long. Its n and sizes are I too. */
#define CUDA_EACH_OF(I, i, n) \
    for (I i = (I)blockIdx.x * (I)blockDim.x + (I)threadIdx.x; i < (n); i += (I)gridDim.x * (I)blockDim.x)
/* For n elements; `most`: of any index. */
#define CDAD_LAUNCH_INDEXED(kernel, most, n, stream, ...)                                              \
    do {                                                                                               \
        if ((most) < (INT64_C(1) << 31)) /* a step past it stays within 32 bits */                     \
            CDAD_LAUNCH(kernel<uint32_t>, cuda_blocks(n), CUDA_THREADS, (stream), __VA_ARGS__);        \
        else                                                                                           \
            CDAD_LAUNCH(kernel<int64_t>, cuda_blocks(n), CUDA_THREADS, (stream), __VA_ARGS__);         \
    } while (0)
#define CDAD_LAUNCH_EACH(kernel, n, stream, ...) CDAD_LAUNCH_INDEXED(kernel, (n), (n), (stream), __VA_ARGS__)

/* The sum of every thread's x, for every thread of a block of THREADS; in a fixed order. */
template <int THREADS = CUDA_THREADS, typename T> __device__ inline T cuda_block_sum(T x) {
    __shared__ T parts[THREADS];
    __syncthreads(); /* a sum before may still be read */
    parts[threadIdx.x] = x;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if ((int)threadIdx.x < half)
            parts[threadIdx.x] += parts[threadIdx.x + half];
        __syncthreads();
    }
    return parts[0];
}

__device__ inline float cuda_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float cuda_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
/* d gelu(x) / dx */
__device__ inline float cuda_gelu_slope(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
}

__device__ inline float cuda_activate(float x, cdad_activation act) {
    switch (act) {
    case CDAD_ACT_SILU:
        return x * cuda_sigmoid(x);
    case CDAD_ACT_RELU:
        return x < 0.0f ? 0.0f : x; /* NaN stays */
    case CDAD_ACT_RELU6:
        return x < 0.0f ? 0.0f : x > 6.0f ? 6.0f : x;
    case CDAD_ACT_GELU:
        return cuda_gelu(x);
    case CDAD_ACT_QUICK_GELU:
        return x * cuda_sigmoid(1.702f * x);
    case CDAD_ACT_TANH:
        return tanhf(x);
    case CDAD_ACT_SIGMOID:
        return cuda_sigmoid(x);
    case CDAD_ACT_EXP:
        return expf(x);
    case CDAD_ACT_SQRT:
        return sqrtf(x);
    default:
        return x;
    }
}

#endif
