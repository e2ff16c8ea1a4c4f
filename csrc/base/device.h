/* Where values live and kernels run: the host, which is NULL here, or a device whose memory the host may not touch.
 *
 * Devices live as long as the process. A device does what it is told in the order of the calls, from whichever thread;
 * calls may return before it is done. */
#ifndef CDAD_BASE_DEVICE_H
#define CDAD_BASE_DEVICE_H

#include <stdint.h>

#include "base/status.h"

struct cdad_kernels;
typedef struct cdad_device cdad_device;

/* Bytes that are allocated: now, and at most since the peak was last forgotten. */
typedef struct cdad_device_memory {
    int64_t used, peak;
} cdad_device_memory;

struct cdad_device {
    const char *name; /* "emulated", "cuda:0" */
    const char *text; /* for people: "NVIDIA H100 80GB HBM3" */
    const struct cdad_kernels *kernels;
    int is_planned; /* memory has addresses and sizes, and holds nothing: nothing runs there (kernels/planned.c) */

    /* CDAD_ALIGN-aligned; `bytes` 0 gives a valid pointer. What was queued before may still use what is released. */
    cdad_status (*alloc)(cdad_device *d, void **out, int64_t bytes, cdad_error *err);
    void (*release)(cdad_device *d, void *p);

    cdad_status (*upload)(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);   /* `from` may then change */
    cdad_status (*download)(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err); /* `to` is then there */
    cdad_status (*copy)(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
    cdad_status (*zero)(cdad_device *d, void *to, int64_t bytes, cdad_error *err);

    /* Kernels return nothing: what failed since the last call is told here. `wait`: after all that was queued is done,
     * else as far as it is known. */
    cdad_status (*check)(cdad_device *d, int wait, cdad_error *err);

    cdad_device_memory (*memory)(cdad_device *d, int forget_peak); /* forget_peak: after telling it */
    int64_t limit; /* bytes that may be allocated, 0: as many as there are */
    int64_t uploaded, downloaded; /* bytes asked for so far; of threads side by side: written by cdad_device_upload and its kin */

    /* From `record` to `recorded`, kernels, copies and zeros that this thread asks for are recorded, not done; what waits for
     * the device, or allocates, may not be asked for. `recorded` follows in any case; *out NULL: it failed. `replay` queues
     * what was recorded, with the addresses and numbers of then. All NULL: the device cannot. */
    cdad_status (*record)(cdad_device *d, cdad_error *err);
    cdad_status (*recorded)(cdad_device *d, void **out, cdad_error *err);
    cdad_status (*replay)(cdad_device *d, void *recording, cdad_error *err);
    void (*forget)(cdad_device *d, void *recording);

    /* Beside what other libraries queue on the same device, in `stream`, a handle of its runtime: `ours_first`: all that
     * was queued here so far comes before what is queued there from now on; else the other way round. stream NULL, with
     * `ours_first`: the host waits. */
    cdad_status (*order)(cdad_device *d, void *stream, int ours_first, cdad_error *err);
    int dlpack_type, dlpack_number; /* as what other libraries know it; type 0: its memory is not shared */
};

/* The stream in which other libraries work unless told otherwise, as CUDA's runtime and DLPack number it. */
#define CDAD_DEFAULT_STREAM ((void *)1)

/* The same for any device, the host included. */
/* CDAD_NO_MEMORY: there is no more, or its limit would be passed. */
CDAD_MUST_USE cdad_status cdad_device_alloc(cdad_device *d, void **out, int64_t bytes, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_device_alloc_zero(cdad_device *d, void **out, int64_t bytes, cdad_error *err);
void cdad_device_free(cdad_device *d, void *p); /* NULL is allowed */
CDAD_MUST_USE cdad_status cdad_device_upload(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_device_download(cdad_device *d, void *to, const void *from, int64_t bytes,
                                               cdad_error *err);
CDAD_MUST_USE cdad_status cdad_device_copy(cdad_device *d, void *to, const void *from, int64_t bytes, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_device_zero(cdad_device *d, void *to, int64_t bytes, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_device_check(cdad_device *d, int wait, cdad_error *err);

/* What a failure is called where part of the work was done before: CDAD_NO_MEMORY would say that nothing was. */
cdad_status cdad_device_half_way(cdad_status status, cdad_error *err);

/* Memory of the device `d` that holds what `from` (of the host) does; *to is allocated where it is NULL. */
CDAD_MUST_USE cdad_status cdad_device_mirror(cdad_device *d, void **to, const void *from, int64_t bytes, cdad_error *err);

#endif
