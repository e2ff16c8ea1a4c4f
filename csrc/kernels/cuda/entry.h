/* The one entry of the CUDA backend's shared object, and what it gives. The first member never moves: a core that was
 * built from other headers reads it to say so. */
#ifndef CDAD_KERNELS_CUDA_ENTRY_H
#define CDAD_KERNELS_CUDA_ENTRY_H

#include "base/device.h"

#define CDAD_CUDA_ENTRY "cdad_cuda_entry"
#define CDAD_CUDA_MAX_DEVICES 16

/* What is there, for `cdad doctor`. */
typedef struct cdad_cuda_probe {
    int driver, runtime; /* CUDA versions, 1000 * major + 10 * minor; driver 0: there is none */
    int n_devices;
    char error[256]; /* why there is no device, or "" */
    struct {
        char name[128];
        int major, minor;
        int64_t bytes;
    } devices[CDAD_CUDA_MAX_DEVICES];
    char cublas[512]; /* where it was found, or why not */
    int has_cublas;
} cdad_cuda_probe;

typedef struct cdad_cuda_table {
    const char *abi;     /* a digest of the headers that it was built from */
    const char *archs;   /* for people: "80 90 100 ptx" */
    /* folders: where to look for cuBLAS, ':' between; "" beside the usual places. */
    cdad_status (*open)(int number, const char *folders, cdad_device **out, cdad_error *err);
    void (*probe)(const char *folders, cdad_cuda_probe *out);
} cdad_cuda_table;

typedef const cdad_cuda_table *(*cdad_cuda_entry_fn)(void);

#endif
