/* Devices by name. */
#include "kernels/devices.h"

#include <stdlib.h>
#include <string.h>

static cdad_status open_cuda(int number, const char *folders, cdad_device **out, cdad_error *err) {
    const cdad_cuda_table *table;
    char path[512];
    CDAD_TRY(cdad_cuda_load(&table, path, sizeof path, err));
    return table->open(number, folders, out, err);
}

cdad_status cdad_device_open(const char *name, const char *folders, cdad_device **out, cdad_error *err) {
    *out = NULL;
    if (strcmp(name, "cpu") == 0)
        return CDAD_OK;
    if (strcmp(name, "planned") == 0)
        return cdad_planned_open(out, err);
    if (strcmp(name, "emulated") == 0)
        return cdad_emulated_open(out, err);
    if (strcmp(name, "cuda") == 0)
        return open_cuda(0, folders, out, err);
    char *end = NULL;
    const long number = strncmp(name, "cuda:", 5) == 0 ? strtol(name + 5, &end, 10) : -1;
    CDAD_FAIL_IF(!end || end == name + 5 || *end || number < 0 || number >= CDAD_CUDA_MAX_DEVICES, err, CDAD_INVALID,
                 "there is no device '%s': 'cpu', 'cuda' or 'cuda:N' is wanted", name);
    return open_cuda((int)number, folders, out, err);
}
