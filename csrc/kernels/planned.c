/* The planned device: an allocation is a range of addresses without any access rights and without memory behind it. */
#include <pthread.h>
#include <sys/mman.h>

#include "kernels/devices.h"
#include "kernels/kernels.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static cdad_device_memory memory;

enum { HEAD = 4096 }; /* before an allocation, a page that holds how much is mapped */

static cdad_status planned_alloc(cdad_device *d, void **out, int64_t bytes, cdad_error *err) {
    *out = NULL;
    CDAD_FAIL_IF(bytes < 0 || bytes > INT64_MAX / 2, err, CDAD_SHAPE, "an allocation of %lld bytes", (long long)bytes);
    const size_t mapped = HEAD + (size_t)bytes + 1; /* at least one byte: no two allocations have the same address */
    char *p = mmap(NULL, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CDAD_FAIL_IF(p == MAP_FAILED, err, CDAD_NO_MEMORY, "%s: no addresses for %lld bytes", d->name, (long long)bytes);
    if (mprotect(p, HEAD, PROT_READ | PROT_WRITE) != 0) {
        munmap(p, mapped);
        return cdad_fail(err, CDAD_NO_MEMORY, "%s: no memory for a page", d->name);
    }
    *(size_t *)(void *)p = mapped;
    pthread_mutex_lock(&mutex);
    memory.used += bytes;
    memory.peak = memory.used > memory.peak ? memory.used : memory.peak;
    pthread_mutex_unlock(&mutex);
    *out = p + HEAD;
    return CDAD_OK;
}

static void planned_release(cdad_device *d, void *p) {
    char *head = (char *)p - HEAD;
    const size_t mapped = *(size_t *)(void *)head;
    (void)d;
    pthread_mutex_lock(&mutex);
    memory.used -= (int64_t)mapped - HEAD - 1;
    pthread_mutex_unlock(&mutex);
    munmap(head, mapped);
}

static cdad_device_memory planned_memory(cdad_device *d, int forget_peak) {
    (void)d;
    pthread_mutex_lock(&mutex);
    const cdad_device_memory now = memory;
    memory.peak = forget_peak ? memory.used : memory.peak;
    pthread_mutex_unlock(&mutex);
    return now;
}

/* What is written is lost. */
static cdad_status planned_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    (void)d, (void)to, (void)from, (void)bytes, (void)err;
    return CDAD_OK;
}

static cdad_status planned_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    (void)to, (void)from;
    return cdad_fail(err, CDAD_INVALID, "%lld bytes are only %s: there is nothing to read", (long long)bytes, d->name);
}

static cdad_status planned_zero(cdad_device *d, void *to, int64_t bytes, cdad_error *err) {
    (void)d, (void)to, (void)bytes, (void)err;
    return CDAD_OK;
}

static cdad_status planned_check(cdad_device *d, int wait, cdad_error *err) {
    (void)d, (void)wait, (void)err;
    return CDAD_OK;
}

static cdad_status planned_order(cdad_device *d, void *stream, int ours_first, cdad_error *err) {
    (void)d, (void)stream, (void)ours_first, (void)err;
    return CDAD_OK;
}

cdad_status cdad_planned_open(cdad_device **out, cdad_error *err) {
    static cdad_device device = {.name = "planned",
                                 .text = "sizes alone: what lies there has no memory",
                                 .is_planned = 1,
                                 .alloc = planned_alloc,
                                 .release = planned_release,
                                 .upload = planned_upload,
                                 .download = planned_download,
                                 .copy = planned_upload,
                                 .zero = planned_zero,
                                 .check = planned_check,
                                 .memory = planned_memory,
                                 .order = planned_order};
    (void)err;
    device.kernels = cdad_kernels_select(NULL); /* whose scratch is planned */
    *out = &device;
    return CDAD_OK;
}
