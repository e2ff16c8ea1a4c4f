/* CUDA's words for a C++ compiler: kernels run on the CPU, block after block, the threads of a block in turns from one
 * barrier to the next. For tests; slow. */
#ifndef CDAD_KERNELS_CUDA_ON_HOST_H
#define CDAD_KERNELS_CUDA_ON_HOST_H

#include <stdlib.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
void __syncthreads(void);

/* Runs the kernel for every thread of every block; `joined`: its threads meet at barriers. */
void on_host_launch(dim3 blocks, dim3 threads, int joined, const std::function<void(void)> &kernel);
#define CDAD_LAUNCH(kernel, blocks, threads, stream, ...) \
    ((void)(stream), on_host_launch((blocks), (threads), 0, [=]() { kernel(__VA_ARGS__); }))
#define CDAD_LAUNCH_JOINED(kernel, blocks, threads, stream, ...) \
    ((void)(stream), on_host_launch((blocks), (threads), 1, [=]() { kernel(__VA_ARGS__); }))

/* The part of the runtime that device.cu calls: one device, whose memory is the host's. */
typedef int cudaError_t, cudaMemcpyKind;
typedef struct on_host_stream *cudaStream_t;
enum {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaStreamNonBlocking = 1
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor;
};
cudaError_t cudaMalloc(void **p, size_t bytes);
cudaError_t cudaFree(void *p);
static inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, int, cudaStream_t) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t) {
    memset(to, value, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    *s = NULL;
    return cudaSuccess;
}
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
    p->major = 8;
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *left = *total = 0;
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t e);

#endif
