/* CUDA's words for a C++ compiler: kernels run on the CPU, block after block, the threads of a block in turns from one
 * barrier to the next. For tests; slow. */
#ifndef CDAD_KERNELS_CUDA_ON_HOST_H
#define CDAD_KERNELS_CUDA_ON_HOST_H

#include <stdlib.h>
#include <string.h>

#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads(void); /* of the block */
void __syncwarp(void);

/* Runs the work, or adds it to the thread's recording. */
void on_host_do(const std::function<void(void)> &work);
int on_host_recording(void);

/* Runs the kernel for every thread of every block; `joined`: its threads meet at barriers. */
void on_host_run(dim3 blocks, dim3 threads, int joined, const std::function<void(void)> &kernel);

/* A launch, with the values that its arguments have now. */
template <typename... P, typename... A>
void on_host_launch(dim3 blocks, dim3 threads, int joined, void (*kernel)(P...), A... given) {
    const std::tuple<P...> values(given...);
    on_host_do([=]() { on_host_run(blocks, threads, joined, [=]() { std::apply(kernel, values); }); });
}
#define CDAD_LAUNCH(kernel, blocks, threads, stream, ...) \
    ((void)(stream), on_host_launch((blocks), (threads), 0, (kernel), __VA_ARGS__))
#define CDAD_LAUNCH_JOINED(kernel, blocks, threads, stream, ...) \
    ((void)(stream), on_host_launch((blocks), (threads), 1, (kernel), __VA_ARGS__))

/* The part of the runtime that is called: one device, whose memory is the host's, and which has done what it was told when
 * the call returns; but for a recording of the thread (on_host_recording), which is run by cudaGraphLaunch. */
typedef int cudaError_t, cudaMemcpyKind;
typedef struct on_host_stream *cudaStream_t;
typedef struct on_host_event *cudaEvent_t;
typedef struct on_host_pool *cudaMemPool_t;
typedef struct on_host_graph *cudaGraph_t, *cudaGraphExec_t;
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaErrorInvalidResourceHandle = 400,
    cudaStreamNonBlocking = 1,
    cudaEventDisableTiming = 2,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaMemAllocationTypePinned = 1,
    cudaMemLocationTypeDevice = 1
};
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold, cudaMemPoolAttrUsedMemCurrent, cudaMemPoolAttrUsedMemHigh };
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem, sharedMemPerBlockOptin;
    int major, minor, multiProcessorCount;
};
struct cudaMemPoolProps {
    int allocType;
    struct {
        int type, id;
    } location;
};
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const cudaMemPoolProps *how);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr which, void *value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr which, void *value);
cudaError_t cudaMallocFromPoolAsync(void **p, size_t bytes, cudaMemPool_t pool, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream);
static inline cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
static inline cudaError_t cudaMallocHost(void **p, size_t bytes) {
    *p = malloc(bytes);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = NULL;
    return cudaSuccess;
}
/* Streams are our own, the legacy default stream, 1, and a thread's, 2. */
static inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t s) {
    return (uintptr_t)s > 2 && (uintptr_t)s < 4096 ? cudaErrorInvalidResourceHandle : cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { return cudaEventRecord(e, s); }
static inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
static inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t) {
    on_host_do([=]() { memcpy(to, from, bytes); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
    on_host_do([=]() { memset(to, value, bytes); });
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return on_host_recording() ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    *s = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *ready, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready);
static inline cudaError_t cudaGetLastError(void) { return cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaDriverGetVersion(int *v) {
    *v = 13000;
    return cudaSuccess;
}
static inline cudaError_t cudaRuntimeGetVersion(int *v) {
    *v = 13000;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n);
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = cudaDeviceProp();
    strcpy(p->name, "CUDA's kernels on the CPU");
    p->major = 9;
    p->multiProcessorCount = 3; /* so that a block has several patches */
    p->sharedMemPerBlockOptin = 227 << 10;
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *left = *total = 0;
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t e);

#endif
