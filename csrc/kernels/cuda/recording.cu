/* Recordings of work: CUDA graphs, captured on a stream of their own, so that what other threads queue meanwhile is done
 * and not recorded. */
#include "kernels/cuda/device.h"

static thread_local const cuda_device *recording; /* by this thread */

int cuda_is_recording(const cuda_device *d) { return recording == d; }

cdad_status cuda_record(cdad_device *base, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    pthread_mutex_lock(&d->record_lock); /* until cuda_recorded */
    cdad_status status = cuda_enter(d, err);
    if (status == CDAD_OK)
        status = cuda_queue_open(d, &d->records, err);
    if (status == CDAD_OK)
        status = cuda_told(d, "recording",
                           cudaStreamBeginCapture(d->records.stream, cudaStreamCaptureModeThreadLocal), err);
    recording = status == CDAD_OK ? d : NULL;
    return status;
}

cdad_status cuda_recorded(cdad_device *base, void **out, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    cudaError_t e = cudaSuccess;
    if (recording == d) {
        recording = NULL;
        e = cudaStreamEndCapture(d->records.stream, &graph);
        if (e == cudaSuccess)
            e = cudaGraphInstantiate(&ready, graph, 0);
        if (graph)
            cudaGraphDestroy(graph);
    }
    *out = e == cudaSuccess ? ready : NULL;
    pthread_mutex_unlock(&d->record_lock);
    return cuda_told(d, "recording", e, err);
}

cdad_status cuda_replay(cdad_device *base, void *recorded, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cdad_status status = cuda_enter(d, err);
    if (status != CDAD_OK)
        return status;
    /* Recorded products use cuBLAS' workspace, too: a replay is not to come between the kernels of another thread's product. */
    pthread_mutex_lock(&d->cublas_lock);
    const cudaError_t e = cudaGraphLaunch((cudaGraphExec_t)recorded, d->work.stream);
    pthread_mutex_unlock(&d->cublas_lock);
    return cuda_told(d, "replay", e, err);
}

void cuda_forget(cdad_device *base, void *recorded) {
    if (cuda_enter(cuda_cast(base), NULL) == CDAD_OK)
        cudaGraphExecDestroy((cudaGraphExec_t)recorded);
}
