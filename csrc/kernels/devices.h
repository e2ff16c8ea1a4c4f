/* The devices that there are: the host, an emulated one for tests, and CUDA's. */
#ifndef CDAD_KERNELS_DEVICES_H
#define CDAD_KERNELS_DEVICES_H

#include "base/device.h"

/* "cpu" (*out is NULL), "emulated", "cuda" or "cuda:N". A device is opened at its first use and stays. CDAD_INVALID: no
 * such name; CDAD_NO_DEVICE: it is not there, and the message says why. */
CDAD_MUST_USE cdad_status cdad_device_open(const char *name, cdad_device **out, cdad_error *err);

/* The CPU's kernels behind the device's interface (kernels/emulated.c). Its memory has addresses that the host may
 * neither read nor write, and its kernels take no others: what mixes them up fails in tests, without a GPU. */
CDAD_MUST_USE cdad_status cdad_emulated_open(cdad_device **out, cdad_error *err);

/* Bytes that are allocated on the emulated device. */
int64_t cdad_emulated_bytes(void);

#endif
