/* Running kernels on the CPU, and the products that cuBLAS would do: for tests. */
#ifdef CDAD_CUDA_ON_HOST
#include <pthread.h>
#include <stdio.h>
#include <ucontext.h>

#include <map>
#include <vector>

#include "kernels/cuda/cublas.h"
#include "kernels/cuda/on_host_warp.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

enum { STACK = 64 << 10, MAX_THREADS = 1024, WARP = 32 };
/* What a thread waits for. */
enum { NOTHING, ITS_WARP, ITS_BLOCK, THE_END };
struct host_copy {
    void *to;
    const void *from;
    bool there;
    int group;
};
struct group_product {
    float (*c)[4];
    const uint32_t *a;
    const unsigned char *b;
    int n, group;
    bool bf16;
};
struct host_thread {
    ucontext_t context;
    int waits, shown, group, products_group; /* shown: how often; group: of copies, which is open */
    std::vector<host_copy> copies;
    std::vector<group_product> products;
};
static ucontext_t scheduler;
static host_thread host_threads[MAX_THREADS];
static on_host_words shown[MAX_THREADS / WARP][2][WARP];
static char *stacks;
static const std::function<void(void)> *body;
alignas(16) unsigned char on_host_shared[ON_HOST_SHARED];

static void wait_for(int what) {
    host_thread &self = host_threads[threadIdx.x];
    self.waits = what;
    swapcontext(&self.context, &scheduler);
}

void __syncthreads(void) { wait_for(ITS_BLOCK); }
void __syncwarp(void) { wait_for(ITS_WARP); }

const on_host_words *on_host_show(const uint32_t *mine, int n) {
    on_host_words *all = shown[threadIdx.x / WARP][host_threads[threadIdx.x].shown++ % 2];
    memcpy(all[threadIdx.x % WARP], mine, (size_t)n * sizeof *mine);
    __syncwarp();
    return all;
}

static void copy_now(const host_copy &c) {
    if (c.there)
        memcpy(c.to, c.from, 16);
    else
        memset(c.to, 0, 16);
}
/* Copies are done as late as they may be, and groups that are not waited for never; in every other block at once, as they may be too. */
void on_host_copy_later(void *to, const void *from, bool there) {
    host_thread &self = host_threads[threadIdx.x];
    const host_copy c = {to, from, there, self.group};
    if (blockIdx.x % 2)
        copy_now(c);
    else
        self.copies.push_back(c);
}
void on_host_copies_close(void) { host_threads[threadIdx.x].group++; }
void on_host_copies_wait(int but) {
    host_thread &self = host_threads[threadIdx.x];
    std::vector<host_copy> later;
    for (const host_copy &c : self.copies) {
        if (c.group >= self.group - but)
            later.push_back(c);
        else
            copy_now(c);
    }
    self.copies.swap(later);
}

/* A warpgroup's products too are done as late as they may be, of what registers and shared memory hold by then. */
void on_host_multiply_later(float (*c)[4], const uint32_t *a, const unsigned char *b, int n, bool bf16) {
    host_thread &self = host_threads[threadIdx.x];
    self.products.push_back({c, a, b, n, self.products_group, bf16});
}
void on_host_products_close(void) { host_threads[threadIdx.x].products_group++; }

/* The k-th factor of a row of 32-bit words: one of TF32, or half of one. */
static float factor_of(uint32_t word, int k, bool bf16) {
    return on_host_float(!bf16 ? word & ~0x1FFFu : k % 2 ? word & 0xFFFF0000u : word << 16);
}
static float factor_at(const unsigned char *b, int n, int k, bool bf16) {
    const uintptr_t at = (uintptr_t)b + (uintptr_t)(n * 128 + (bf16 ? k / 2 : k) * 4);
    uint32_t word;
    memcpy(&word, (const void *)(at ^ (at >> 7 & 7) << 4), sizeof word);
    return factor_of(word, k, bf16);
}
static void multiply_now(const group_product &p) {
    const int lane = (int)threadIdx.x % WARP, n = p.bf16 ? 16 : 8;
    const on_host_words *all = on_host_show(p.a, 4);
    float a[2][16];
    for (int row = 0; row < 2; row++)
        for (int k = 0; k < n; k++) {
            const int word = p.bf16 ? k / 2 : k;
            a[row][k] = factor_of(all[lane / 4 * 4 + word % 4][row + word / 4 * 2], k, p.bf16);
        }
    for (int j = 0; j < p.n / 8; j++)
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < n; k++)
                p.c[j][i] += a[i / 2][k] * factor_at(p.b, 8 * j + lane % 4 * 2 + i % 2, k, p.bf16);
}
void on_host_products_wait(int but) {
    host_thread &self = host_threads[threadIdx.x];
    size_t done = 0;
    while (done < self.products.size() && self.products[done].group < self.products_group - but)
        multiply_now(self.products[done++]);
    self.products.erase(self.products.begin(), self.products.begin() + (ptrdiff_t)done);
}

void on_host_want_shared(int64_t bytes) {
    if (bytes > ON_HOST_SHARED)
        abort();
}

static void run_fiber(int number) {
    (*body)();
    host_threads[number].waits = THE_END;
    swapcontext(&host_threads[number].context, &scheduler);
}

/* Threads first .. first+n-1 go on if each that is not at its end waits for `what`. */
static void release(unsigned first, unsigned n, int what) {
    for (unsigned t = first; t < first + n; t++)
        if (host_threads[t].waits != what && host_threads[t].waits != THE_END)
            return;
    for (unsigned t = first; t < first + n; t++)
        if (host_threads[t].waits == what)
            host_threads[t].waits = NOTHING;
}

/* Each thread runs to its next barrier, one after the other, until all are done; a barrier that some thread never reaches ends the
 * process. */
static void run_block(unsigned threads) {
    for (unsigned t = 0; t < threads; t++) {
        host_thread &thread = host_threads[t];
        thread.waits = thread.shown = thread.group = thread.products_group = 0;
        thread.copies.clear();
        thread.products.clear();
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
        thread.context.uc_stack.ss_size = STACK;
        thread.context.uc_link = NULL;
        makecontext(&thread.context, (void (*)())run_fiber, 1, (int)t);
    }
    for (;;) {
        unsigned ran = 0, ended = 0;
        for (unsigned t = 0; t < threads; t++) {
            ended += host_threads[t].waits == THE_END;
            if (host_threads[t].waits != NOTHING)
                continue;
            threadIdx = dim3(t);
            swapcontext(&scheduler, &host_threads[t].context);
            ran++;
        }
        if (ended == threads)
            return;
        if (!ran)
            abort();
        for (unsigned t = 0; t < threads; t += WARP)
            release(t, threads - t < (unsigned)WARP ? threads - t : (unsigned)WARP, ITS_WARP);
        release(0, threads, ITS_BLOCK);
    }
}

void on_host_run(dim3 blocks, dim3 threads, int joined, const std::function<void(void)> &kernel) {
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
            memset(on_host_shared, 0xFF, sizeof on_host_shared); /* NaN */
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

struct on_host_graph {
    std::vector<std::function<void(void)>> work;
};
static thread_local on_host_graph *recording;

int on_host_recording(void) { return recording != NULL; }

void on_host_do(const std::function<void(void)> &work) {
    if (recording)
        recording->work.push_back(work);
    else
        work();
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    recording = new on_host_graph();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = recording;
    recording = NULL;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long) {
    *ready = new on_host_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
    for (const std::function<void(void)> &work : ready->work)
        work();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
    delete ready;
    return cudaSuccess;
}

struct on_host_pool {
    std::map<void *, size_t> blocks;
    uint64_t used, peak;
    pthread_mutex_t mutex;
};
static on_host_pool pool = {{}, 0, 0, PTHREAD_MUTEX_INITIALIZER};

cudaError_t cudaMemPoolCreate(cudaMemPool_t *out, const cudaMemPoolProps *) {
    *out = &pool;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, cudaMemPoolAttr which, void *) {
    if (which == cudaMemPoolAttrUsedMemHigh)
        p->peak = p->used;
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, cudaMemPoolAttr which, void *value) {
    *(uint64_t *)value = which == cudaMemPoolAttrUsedMemCurrent ? p->used : p->peak;
    return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void **out, size_t bytes, cudaMemPool_t p, cudaStream_t) {
    if (on_host_recording())
        return cudaErrorStreamCaptureUnsupported;
    if (posix_memalign(out, 256, bytes))
        return cudaErrorMemoryAllocation;
    pthread_mutex_lock(&p->mutex);
    p->blocks[*out] = bytes;
    p->used += bytes;
    p->peak = p->used > p->peak ? p->used : p->peak;
    pthread_mutex_unlock(&p->mutex);
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t) {
    pthread_mutex_lock(&pool.mutex);
    pool.used -= pool.blocks[memory];
    pool.blocks.erase(memory);
    pthread_mutex_unlock(&pool.mutex);
    free(memory);
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

/* Column-major, as cuBLAS counts. */
struct host_product {
    int op_a, op_b, m, n, k, lda, ldb, ldc, batch, dropped; /* dropped: bits of the factors, of which the rest is rounded */
    float alpha, beta;
    const void *A, *B; /* of `type` */
    int type;
    float *C;
    long long stride_a, stride_b, stride_c;
};

static float without_bits(float x, int dropped) {
    unsigned bits;
    if (!dropped)
        return x;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + (1u << (dropped - 1)) - 1 + (bits >> dropped & 1)) >> dropped << dropped;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

static void multiply(const host_product &p) {
    auto factor = [&p](const void *X, int64_t i) {
        if (p.type == CUBLAS_BFLOAT16)
            return (double)on_host_float((uint32_t)((const uint16_t *)X)[i] << 16);
        return (double)without_bits(((const float *)X)[i], p.dropped);
    };
    for (int b = 0; b < p.batch; b++) {
        const int64_t a0 = b * p.stride_a, b0 = b * p.stride_b;
        for (int64_t j = 0; j < p.n; j++)
            for (int64_t i = 0; i < p.m; i++) {
                double sum = 0.0;
                for (int64_t l = 0; l < p.k; l++)
                    sum += factor(p.A, a0 + (p.op_a ? l + i * p.lda : i + l * p.lda)) *
                           factor(p.B, b0 + (p.op_b ? j + l * p.ldb : l + j * p.ldb));
                float *c = &p.C[b * p.stride_c + i + j * p.ldc];
                *c = p.beta == 0.0f ? (float)(p.alpha * sum) : (float)(p.alpha * sum + (double)(p.beta * *c));
            }
    }
}

/* Refuses the leading dimensions that cuBLAS refuses; alpha and beta are read now, whenever the work is done. */
static int host_gemm(void *, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *A, int type, int lda,
                     long long stride_a, const void *B, int, int ldb, long long stride_b, const void *beta, void *C, int,
                     int ldc, long long stride_c, int batch, int compute, int) {
    if (lda < (op_a ? k : m) || ldb < (op_b ? n : k) || ldc < m || m < 1 || n < 1 || k < 1)
        return 7; /* CUBLAS_STATUS_INVALID_VALUE */
    const int dropped = compute == CUBLAS_COMPUTE_BF16 ? 16 : compute == CUBLAS_COMPUTE_TF32 ? 13 : 0;
    const host_product p = {op_a, op_b, m, n, k, lda, ldb, ldc, batch, dropped, *(const float *)alpha, *(const float *)beta,
                            A, B, type, (float *)C, stride_a, stride_b, stride_c};
    on_host_do([p]() { multiply(p); });
    return 0;
}

/* Refuses some, as cuBLASLt may. */
static int host_fused(void *, const cuda_fused *given) {
    const cuda_fused p = *given;
    if (p.lda < (p.op_a ? p.k : p.m) || p.ldb < (p.op_b ? p.n : p.k) || p.ldd < p.m || p.k % 7 == 0)
        return 7; /* CUBLAS_STATUS_INVALID_VALUE */
    const int dropped = p.compute == CUBLAS_COMPUTE_BF16 ? 16 : p.compute == CUBLAS_COMPUTE_TF32 ? 13 : 0;
    const host_product product = {p.op_a, p.op_b, p.m, p.n, p.k, p.lda, p.ldb, p.ldd, 1, dropped, 1.0f, 0.0f, p.A, p.B, p.type, p.D, 0, 0, 0};
    on_host_do([p, product]() {
        multiply(product);
        for (int64_t j = 0; j < p.n; j++)
            for (int64_t i = 0; i < p.m; i++)
                p.D[i + j * p.ldd] += (p.bias ? p.bias[i] : 0.0f) + (p.C ? p.C[i + j * p.ldd] : 0.0f);
    });
    return 0;
}

static int host_create(void **handle) {
    *handle = &scheduler;
    return 0;
}
static int host_set_stream(void *, cudaStream_t) { return 0; }
static int host_set_workspace(void *, void *, size_t) { return 0; }

const cuda_cublas *cuda_cublas_load(const char *, char *text, size_t bytes) {
    static const cuda_cublas table = {host_create, host_set_stream, host_set_workspace, host_gemm, host_create, host_fused};
    snprintf(text, bytes, "plain loops");
    return &table;
}
#endif
