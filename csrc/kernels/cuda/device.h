/* A CUDA device, for the files that make it: memory.cu, recording.cu and device.cu. */
#ifndef CDAD_KERNELS_CUDA_DEVICE_H
#define CDAD_KERNELS_CUDA_DEVICE_H

#include <pthread.h>
#include <unistd.h>

#include "kernels/cuda/cublas.h"

enum {
    CUDA_SLOTS = 4,
    CUDA_SLOT_BYTES = 4 << 20,
    CUDA_WORKSPACE_BYTES = 32 << 20 /* what cuBLAS asks for on Hopper */
};

/* Where work goes: a stream, and cuBLAS bound to it. */
typedef struct cuda_queue {
    cudaStream_t stream;
    void *cublas;
} cuda_queue;

struct cuda_device {
    cdad_device base; /* first: a cdad_device is cast to what holds it */
    int number;
    int capability; /* 10 * major + minor */
    int processors; /* multiprocessors */
    int64_t shared_bytes; /* that a block may have */
    pid_t process; /* CUDA does not survive a fork */
    const cuda_cublas *cublas;
    cuda_queue work, records; /* records: what goes there is recorded; made when it is first wanted */
    void *workspace;          /* of cuBLAS, for both, whose work is done one after the other */
    void *fused;              /* cuBLASLt's handle, or NULL */
    cudaMemPool_t pool;
    double *sums;
    struct {
        char *memory; /* pinned, of the host */
        cudaEvent_t free;
    } slots[CUDA_SLOTS];
    int next_slot;
    pthread_mutex_t cublas_lock, sums_lock, slots_lock, record_lock;
    char name[32], text[288];
};

static inline cuda_device *cuda_cast(cdad_device *d) { return (cuda_device *)d; }

cdad_status cuda_fail(cdad_error *err, cdad_status status, const char *format, ...);
/* CDAD_NO_MEMORY or CDAD_NO_DEVICE with what was tried, unless e is success; CUDA's own note of it is taken away. */
cdad_status cuda_told(const cuda_device *d, const char *what, cudaError_t e, cdad_error *err);
/* Makes the device the thread's. */
cdad_status cuda_enter(const cuda_device *d, cdad_error *err);
/* Where this thread's work goes now. */
const cuda_queue *cuda_queue_of(const cuda_device *d);
/* Makes what it lacks: a stream that does not wait for the default one, with cuBLAS bound to it. */
cdad_status cuda_queue_open(cuda_device *d, cuda_queue *q, cdad_error *err);

/* memory.cu: the device's pool, and the members of cdad_device that allocate and move. */
cdad_status cuda_memory_open(cuda_device *d, cdad_error *err);
cdad_status cuda_memory_alloc(cdad_device *d, void **out, int64_t bytes, cdad_error *err);
void cuda_memory_release(cdad_device *d, void *p);
cdad_device_memory cuda_memory(cdad_device *d, int forget_peak);
cdad_status cuda_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
cdad_status cuda_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
cdad_status cuda_copy(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
cdad_status cuda_zero(cdad_device *d, void *to, int64_t bytes, cdad_error *err);

/* recording.cu: CUDA graphs. */
int cuda_is_recording(const cuda_device *d); /* this thread */
cdad_status cuda_record(cdad_device *d, cdad_error *err);
cdad_status cuda_recorded(cdad_device *d, void **out, cdad_error *err);
cdad_status cuda_replay(cdad_device *d, void *recording, cdad_error *err);
void cuda_forget(cdad_device *d, void *recording);

#endif
