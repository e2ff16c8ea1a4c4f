/* What every computation is given: threads, kernels, a way to stop it, and who asks for its time. */
#ifndef CDAD_BASE_CONTEXT_H
#define CDAD_BASE_CONTEXT_H

#include "base/pool.h"
#include "base/profile.h"

struct cdad_kernels;

typedef struct cdad_context {
    cdad_pool *pool;
    const struct cdad_kernels *kernels;
    /* Called from the computing thread at least every 50 ms of work (NULL: never); non-zero means stop. */
    int (*poll)(void *arg);
    void *poll_arg;
    cdad_profile *profile; /* NULL: nobody asks where the time goes */
} cdad_context;

#endif
