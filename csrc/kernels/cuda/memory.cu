/* Memory of a CUDA device, and what moves to and from it.
 *
 * Allocations come from a pool of the driver's, in the order of the work: what is released is used again without asking
 * the system, and goes back to it when memory is short. Uploads go through pinned memory in slots, so that the caller may
 * go on (and change what it gave) while they and what was queued before them are done; so do downloads. */
#include <stdio.h>
#include <string.h>

#include "kernels/cuda/device.h"

enum {
    DIRECT_BYTES = 64 << 10, /* what the driver has pinned memory of its own for */
    SHARED_BYTES = 1 << 20,  /* what is worth starting threads for */
    HELPERS = 3
};

cdad_status cuda_memory_open(cuda_device *d, cdad_error *err) {
    cudaMemPoolProps how = cudaMemPoolProps();
    uint64_t keep = UINT64_MAX; /* bytes that stay in the pool when nothing uses them */
    cdad_status status;
    how.allocType = cudaMemAllocationTypePinned;
    how.location.type = cudaMemLocationTypeDevice;
    how.location.id = d->number;
    if ((!d->pool && (status = cuda_told(d, "a memory pool", cudaMemPoolCreate(&d->pool, &how), err)) != CDAD_OK) ||
        (status = cuda_told(d, "a memory pool", cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrReleaseThreshold, &keep),
                            err)) != CDAD_OK)
        return status;
    for (int i = 0; i < CUDA_SLOTS; i++) {
        cudaError_t e = d->slots[i].memory ? cudaSuccess : cudaMallocHost((void **)&d->slots[i].memory, CUDA_SLOT_BYTES);
        if (e == cudaSuccess && !d->slots[i].free)
            e = cudaEventCreateWithFlags(&d->slots[i].free, cudaEventDisableTiming);
        if (e != cudaSuccess)
            return cuda_told(d, "pinned memory", e, err);
    }
    return CDAD_OK;
}

cdad_status cuda_memory_alloc(cdad_device *base, void **out, int64_t bytes, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const size_t wanted = (size_t)cuda_max(bytes, CDAD_ALIGN);
    const cdad_status status = cuda_enter(d, err);
    *out = NULL;
    if (status != CDAD_OK)
        return status;
    cudaError_t e = cudaMallocFromPoolAsync(out, wanted, d->pool, d->work.stream);
    if (e == cudaErrorMemoryAllocation) { /* pieces that are too small for it may be in the way */
        cudaGetLastError(); /* not a launch's failure */
        cudaStreamSynchronize(d->work.stream);
        cudaMemPoolTrimTo(d->pool, 0);
        e = cudaMallocFromPoolAsync(out, wanted, d->pool, d->work.stream);
    }
    if (e == cudaSuccess)
        return CDAD_OK;
    size_t left = 0, total = 0;
    *out = NULL;
    cudaGetLastError();
    cudaMemGetInfo(&left, &total);
    return cuda_fail(err, e == cudaErrorMemoryAllocation ? CDAD_NO_MEMORY : CDAD_NO_DEVICE,
                     "%s: %.1f MiB cannot be had, %.1f MiB are in use here, %.1f of %.1f MiB are free: %s", d->name,
                     (double)bytes / 1048576.0, (double)cuda_memory(base, 0).used / 1048576.0, (double)left / 1048576.0,
                     (double)total / 1048576.0, cudaGetErrorString(e));
}

void cuda_memory_release(cdad_device *base, void *p) {
    cuda_device *d = cuda_cast(base);
    if (cuda_enter(d, NULL) == CDAD_OK) /* in a forked child the memory is not its own */
        cudaFreeAsync(p, d->work.stream);
}

cdad_device_memory cuda_memory(cdad_device *base, int forget_peak) {
    cuda_device *d = cuda_cast(base);
    uint64_t used = 0, peak = 0, none = 0;
    cdad_device_memory memory = {0, 0};
    if (cuda_enter(d, NULL) != CDAD_OK)
        return memory;
    cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemCurrent, &used);
    cudaMemPoolGetAttribute(d->pool, cudaMemPoolAttrUsedMemHigh, &peak);
    if (forget_peak)
        cudaMemPoolSetAttribute(d->pool, cudaMemPoolAttrUsedMemHigh, &none);
    memory.used = (int64_t)used;
    memory.peak = (int64_t)peak;
    return memory;
}

struct byte_copy {
    char *to;
    const char *from;
    size_t bytes;
};
static void *copy_in_thread(void *arg) {
    const byte_copy *p = (const byte_copy *)arg;
    memcpy(p->to, p->from, p->bytes);
    return NULL;
}

/* memcpy to or from pinned memory: one thread alone moves an eighth of what goes over the bus at the same time. */
static void copy_bytes(char *to, const char *from, size_t bytes) {
    pthread_t helpers[HELPERS];
    byte_copy copies[HELPERS];
    int n = 0;
    const size_t each = bytes / (HELPERS + 1) / 4096 * 4096;
    for (; n < HELPERS && bytes >= SHARED_BYTES; n++) {
        copies[n] = {to + n * each, from + n * each, each};
        if (pthread_create(&helpers[n], NULL, copy_in_thread, &copies[n]) != 0)
            break;
    }
    memcpy(to + n * each, from + n * each, bytes - n * each);
    for (int i = 0; i < n; i++)
        pthread_join(helpers[i], NULL);
}

/* One piece, at most a slot. */
static cudaError_t upload_piece(cuda_device *d, void *to, const void *from, size_t bytes) {
    pthread_mutex_lock(&d->slots_lock);
    const int slot = d->next_slot;
    d->next_slot = (slot + 1) % CUDA_SLOTS;
    cudaError_t e = cudaEventSynchronize(d->slots[slot].free);
    if (e == cudaSuccess) {
        copy_bytes((char *)d->slots[slot].memory, (const char *)from, bytes);
        e = cudaMemcpyAsync(to, d->slots[slot].memory, bytes, cudaMemcpyHostToDevice, d->work.stream);
    }
    if (e == cudaSuccess)
        e = cudaEventRecord(d->slots[slot].free, d->work.stream);
    pthread_mutex_unlock(&d->slots_lock);
    return e;
}

cdad_status cuda_upload(cdad_device *base, void *to, const void *from, int64_t bytes, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cdad_status status = cuda_enter(d, err);
    cudaError_t e = cudaSuccess;
    if (status != CDAD_OK)
        return status;
    if (cuda_is_recording(d))
        return cuda_fail(err, CDAD_INVALID, "%s: an upload cannot be recorded", d->name);
    for (int64_t at = 0; at < bytes && e == cudaSuccess; at += CUDA_SLOT_BYTES)
        e = upload_piece(d, (char *)to + at, (const char *)from + at, (size_t)cuda_min(bytes - at, CUDA_SLOT_BYTES));
    return cuda_told(d, "upload", e, err);
}

/* By way of pinned memory, in which pieces arrive while those before them are taken out: to other memory the driver copies at a tenth of the
 * rate. */
static cudaError_t download_pieces(cuda_device *d, char *to, const char *from, int64_t bytes) {
    const int64_t pieces = (bytes + CUDA_SLOT_BYTES - 1) / CUDA_SLOT_BYTES;
    const cudaStream_t stream = cuda_queue_of(d)->stream;
    cudaError_t e = cudaSuccess;
    pthread_mutex_lock(&d->slots_lock);
    for (int64_t piece = 0, sent = 0; piece < pieces && e == cudaSuccess; piece++) {
        for (; sent < pieces && sent < piece + CUDA_SLOTS && e == cudaSuccess; sent++) {
            const auto &slot = d->slots[(d->next_slot + sent) % CUDA_SLOTS];
            const int64_t at = sent * CUDA_SLOT_BYTES;
            e = cudaEventSynchronize(slot.free);
            if (e == cudaSuccess)
                e = cudaMemcpyAsync(slot.memory, from + at, (size_t)cuda_min(bytes - at, CUDA_SLOT_BYTES), cudaMemcpyDeviceToHost, stream);
            if (e == cudaSuccess)
                e = cudaEventRecord(slot.free, stream);
        }
        const auto &slot = d->slots[(d->next_slot + piece) % CUDA_SLOTS];
        const int64_t at = piece * CUDA_SLOT_BYTES;
        if (e == cudaSuccess)
            e = cudaEventSynchronize(slot.free);
        if (e == cudaSuccess)
            copy_bytes(to + at, (const char *)slot.memory, (size_t)cuda_min(bytes - at, CUDA_SLOT_BYTES));
    }
    d->next_slot = (int)((d->next_slot + pieces) % CUDA_SLOTS);
    pthread_mutex_unlock(&d->slots_lock);
    return e;
}

cdad_status cuda_download(cdad_device *base, void *to, const void *from, int64_t bytes, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cdad_status status = cuda_enter(d, err);
    if (status != CDAD_OK)
        return status;
    if (cuda_is_recording(d))
        return cuda_fail(err, CDAD_INVALID, "%s: a download cannot be recorded", d->name);
    if (bytes > DIRECT_BYTES)
        return cuda_told(d, "download", download_pieces(d, (char *)to, (const char *)from, bytes), err);
    cudaError_t e = cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToHost, cuda_queue_of(d)->stream);
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(cuda_queue_of(d)->stream);
    return cuda_told(d, "download", e, err);
}

cdad_status cuda_copy(cdad_device *base, void *to, const void *from, int64_t bytes, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cdad_status status = cuda_enter(d, err);
    if (status != CDAD_OK)
        return status;
    return cuda_told(d, "copy", cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, cuda_queue_of(d)->stream),
                     err);
}

cdad_status cuda_zero(cdad_device *base, void *to, int64_t bytes, cdad_error *err) {
    cuda_device *d = cuda_cast(base);
    const cdad_status status = cuda_enter(d, err);
    if (status != CDAD_OK)
        return status;
    return cuda_told(d, "zeros", cudaMemsetAsync(to, 0, (size_t)bytes, cuda_queue_of(d)->stream), err);
}
