/* Memory of the host and of devices, in one wording. */
#include "base/device.h"

#include <string.h>

#include "base/memory.h"

cdad_status cdad_device_alloc(cdad_device *d, void **out, int64_t bytes, cdad_error *err) {
    *out = NULL;
    if (!d)
        return cdad_alloc(out, bytes, err);
    if (d->limit > 0) {
        const int64_t used = d->memory(d, 0).used;
        CDAD_FAIL_IF(bytes > d->limit - used, err, CDAD_NO_MEMORY,
                     "%s: %.1f MiB more than the %.1f MiB in use would pass the limit of %.1f MiB", d->name,
                     (double)bytes / 1048576.0, (double)used / 1048576.0, (double)d->limit / 1048576.0);
    }
    return d->alloc(d, out, bytes, err);
}

cdad_status cdad_device_alloc_zero(cdad_device *d, void **out, int64_t bytes, cdad_error *err) {
    if (!d)
        return cdad_alloc_zero(out, bytes, err);
    CDAD_TRY(cdad_device_alloc(d, out, bytes, err));
    const cdad_status status = d->zero(d, *out, bytes, err);
    if (status != CDAD_OK) {
        d->release(d, *out);
        *out = NULL;
    }
    return status;
}

void cdad_device_free(cdad_device *d, void *p) {
    if (!d)
        cdad_free(p);
    else if (p)
        d->release(d, p);
}

cdad_status cdad_device_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    if (d) {
        __atomic_fetch_add(&d->uploaded, bytes, __ATOMIC_RELAXED);
        return d->upload(d, to, from, bytes, err);
    }
    memcpy(to, from, (size_t)bytes);
    return CDAD_OK;
}

cdad_status cdad_device_download(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    if (d) {
        __atomic_fetch_add(&d->downloaded, bytes, __ATOMIC_RELAXED);
        return d->download(d, to, from, bytes, err);
    }
    memcpy(to, from, (size_t)bytes);
    return CDAD_OK;
}

cdad_status cdad_device_copy(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err) {
    if (d)
        return d->copy(d, to, from, bytes, err);
    memcpy(to, from, (size_t)bytes);
    return CDAD_OK;
}

cdad_status cdad_device_zero(cdad_device *d, void *to, int64_t bytes, cdad_error *err) {
    if (d)
        return d->zero(d, to, bytes, err);
    memset(to, 0, (size_t)bytes);
    return CDAD_OK;
}

cdad_status cdad_device_check(cdad_device *d, int wait, cdad_error *err) { return d ? d->check(d, wait, err) : CDAD_OK; }

cdad_status cdad_device_half_way(cdad_status status, cdad_error *err) {
    if (status != CDAD_NO_MEMORY)
        return status;
    const cdad_error found = err ? *err : (cdad_error){0};
    return cdad_fail(err, CDAD_NO_DEVICE, "%s", found.message);
}

cdad_status cdad_device_mirror(cdad_device *d, void **to, const void *from, int64_t bytes, cdad_error *err) {
    if (!*to)
        CDAD_TRY(cdad_device_alloc(d, to, bytes, err));
    return cdad_device_upload(d, *to, from, bytes, err);
}
