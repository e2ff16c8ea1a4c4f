/* Running kernels on the CPU, and the products that cuBLAS would do: for tests. */
#ifdef CDAD_CUDA_ON_HOST
#include <pthread.h>
#include <stdio.h>
#include <ucontext.h>

#include "kernels/cuda/cublas.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

enum { STACK = 64 << 10, MAX_THREADS = 1024 };
static ucontext_t scheduler, fibers[MAX_THREADS];
static char *stacks;
static int finished[MAX_THREADS];
static const std::function<void(void)> *body;

void __syncthreads(void) {
    const unsigned self = threadIdx.x;
    swapcontext(&fibers[self], &scheduler);
}

static void run_fiber(int number) {
    (*body)();
    finished[number] = 1;
    swapcontext(&fibers[number], &scheduler);
}

/* Each thread runs to its next barrier, one after the other, until all are done. */
static void run_block(unsigned threads) {
    for (unsigned t = 0; t < threads; t++) {
        finished[t] = 0;
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
        fibers[t].uc_stack.ss_size = STACK;
        fibers[t].uc_link = NULL;
        makecontext(&fibers[t], (void (*)())run_fiber, 1, (int)t);
    }
    for (unsigned left = threads; left > 0;) {
        left = 0;
        for (unsigned t = 0; t < threads; t++) {
            if (finished[t])
                continue;
            threadIdx = dim3(t);
            swapcontext(&scheduler, &fibers[t]);
            left += !finished[t];
        }
    }
}

void on_host_launch(dim3 blocks, dim3 threads, int joined, const std::function<void(void)> &kernel) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    if (!stacks)
        stacks = (char *)malloc((size_t)MAX_THREADS * STACK);
    body = &kernel;
    gridDim = blocks;
    blockDim = threads;
    for (unsigned b = 0; b < blocks.x; b++) {
        blockIdx = dim3(b);
        if (joined) {
            run_block(threads.x);
            continue;
        }
        for (unsigned t = 0; t < threads.x; t++) {
            threadIdx = dim3(t);
            kernel();
        }
    }
    pthread_mutex_unlock(&mutex);
}

cudaError_t cudaMalloc(void **p, size_t bytes) {
    return posix_memalign(p, 256, bytes) ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    free(p);
    return cudaSuccess;
}

/* Tests of what is said where there is no GPU: the error that the runtime gives. */
cudaError_t cudaGetDeviceCount(int *n) {
    const char *given = getenv("CDAD_ON_HOST_ERROR");
    *n = given ? 0 : 1;
    return given ? atoi(given) : cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorMemoryAllocation ? "out of memory" : e == cudaSuccess ? "no error" : "an error";
}

/* Column-major, as cuBLAS counts; refuses the leading dimensions that it refuses. */
static int host_gemm(void *, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *A, int, int lda,
                     long long stride_a, const void *B, int, int ldb, long long stride_b, const void *beta, void *C, int,
                     int ldc, long long stride_c, int batch, int compute, int) {
    if (lda < (op_a ? k : m) || ldb < (op_b ? n : k) || ldc < m || m < 1 || n < 1 || k < 1)
        return 7; /* CUBLAS_STATUS_INVALID_VALUE */
    const float by = *(const float *)alpha, keep = *(const float *)beta;
    const int rounded = compute == CUBLAS_COMPUTE_BF16;
    auto factor = [rounded](float x) {
        if (!rounded)
            return x;
        unsigned bits;
        memcpy(&bits, &x, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
        memcpy(&x, &bits, sizeof bits);
        return x;
    };
    for (int b = 0; b < batch; b++) {
        const float *a_at = (const float *)A + b * stride_a, *b_at = (const float *)B + b * stride_b;
        float *c_at = (float *)C + b * stride_c;
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                double sum = 0.0;
                for (int64_t l = 0; l < k; l++)
                    sum += (double)factor(op_a ? a_at[l + i * lda] : a_at[i + l * lda]) *
                           (double)factor(op_b ? b_at[j + l * ldb] : b_at[l + j * ldb]);
                float *c = &c_at[i + j * ldc];
                *c = keep == 0.0f ? (float)(by * sum) : (float)(by * sum + (double)(keep * *c));
            }
    }
    return 0;
}

static int host_create(void **handle) {
    *handle = &scheduler;
    return 0;
}
static int host_set_stream(void *, cudaStream_t) { return 0; }

const cuda_cublas *cuda_cublas_load(const char *, char *text, size_t bytes) {
    static const cuda_cublas table = {host_create, host_set_stream, host_gemm};
    snprintf(text, bytes, "plain loops");
    return &table;
}
#endif
