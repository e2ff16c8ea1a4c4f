/* The devices that there are: the host, one for planning, an emulated one for tests, and CUDA's. */
#ifndef CDAD_KERNELS_DEVICES_H
#define CDAD_KERNELS_DEVICES_H

#include <stddef.h>

#include "base/device.h"
#include "kernels/cuda/entry.h"

/* "cpu" (*out is NULL), "planned", "emulated", "cuda" or "cuda:N". A device is opened at its first use and stays. CDAD_INVALID: no
 * such name; CDAD_NO_DEVICE: it is not there, and the message says why. folders: of cuBLAS, see cdad_cuda_table. */
CDAD_MUST_USE cdad_status cdad_device_open(const char *name, const char *folders, cdad_device **out, cdad_error *err);

/* The CUDA backend's table (kernels/cuda_loader.c) and the path of its shared object, which is loaded once: CDAD_CUDA_LIBRARY
 * or beside the core. CDAD_NO_DEVICE says why there is none; `path` is where it was looked for. */
CDAD_MUST_USE cdad_status cdad_cuda_load(const cdad_cuda_table **out, char *path, size_t bytes, cdad_error *err);

/* The CPU's kernels behind the device's interface (kernels/emulated.c). Its memory has addresses that the host may
 * neither read nor write, and its kernels take no others: what mixes them up fails in tests, without a GPU. */
CDAD_MUST_USE cdad_status cdad_emulated_open(cdad_device **out, cdad_error *err);

/* A device that stores nothing, with the host's kernels (kernels/planned.c). Models are made there as on any other device, and
 * tell what memory they would take; a program does not run there. */
CDAD_MUST_USE cdad_status cdad_planned_open(cdad_device **out, cdad_error *err);

#endif
