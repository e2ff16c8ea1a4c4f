/* What every computation is given: threads, kernels, a way to stop it, and who asks for its time. */
#ifndef CDAD_BASE_CONTEXT_H
#define CDAD_BASE_CONTEXT_H

#include <stddef.h>

#include "base/device.h"
#include "base/pool.h"
#include "base/profile.h"

struct cdad_kernels;

typedef struct cdad_context {
    cdad_pool *pool;
    const struct cdad_kernels *kernels;      /* of the device */
    cdad_device *device;                     /* NULL: the host */
    const struct cdad_kernels *host_kernels; /* beside a device: those of the host */
    /* Called from the computing thread at least every 50 ms of work (NULL: never); non-zero means stop. */
    int (*poll)(void *arg);
    void *poll_arg;
    cdad_profile *profile; /* NULL: nobody asks where the time goes */
    /* A product's first factor, where the product just before read it too, and nothing has run since: what a kernel made of it then is
     * still in its scratch. NULL: nothing is known. */
    const float *again;
} cdad_context;

/* The same, for work on the host. */
static inline cdad_context cdad_context_of_host(const cdad_context *ctx) {
    cdad_context host = *ctx;
    if (ctx->device) {
        host.device = NULL;
        host.kernels = ctx->host_kernels;
    }
    return host;
}

#endif
