/* The binary interface of DLPack, versions 0 and 1: https://dmlc.github.io/dlpack/latest/c_api.html */
#ifndef CDAD_PYTHON_DLPACK_H
#define CDAD_PYTHON_DLPACK_H

#include <stdint.h>

enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3, DL_EXT_DEV = 12 };
enum { DL_FLOAT = 2 }; /* a code */
enum { DL_READ_ONLY = 1, DL_IS_COPIED = 2 }; /* flags */

typedef struct dl_tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t ndim;
    uint8_t code, bits; /* the type of the elements */
    uint16_t lanes;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: dense, row by row */
    uint64_t byte_offset;
} dl_tensor;

/* In a capsule "dltensor", which its consumer renames "used_dltensor": from then on it calls the deleter, once, in any
 * thread. */
typedef struct dl_managed {
    dl_tensor tensor;
    void *manager;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

/* In a capsule "dltensor_versioned", then "used_dltensor_versioned". Of another major version only these fields before
 * `flags` are known. */
typedef struct dl_versioned {
    uint32_t major, minor;
    void *manager;
    void (*deleter)(struct dl_versioned *self);
    uint64_t flags;
    dl_tensor tensor;
} dl_versioned;

#define DL_PLAIN_NAME "dltensor"
#define DL_VERSIONED_NAME "dltensor_versioned"

#endif
