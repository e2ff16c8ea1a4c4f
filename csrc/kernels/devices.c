/* Devices by name. */
#include "kernels/devices.h"

#include <string.h>

cdad_status cdad_device_open(const char *name, cdad_device **out, cdad_error *err) {
    *out = NULL;
    if (strcmp(name, "cpu") == 0)
        return CDAD_OK;
    if (strcmp(name, "emulated") == 0)
        return cdad_emulated_open(out, err);
    return cdad_fail(err, CDAD_INVALID, "there is no device '%s': 'cpu', 'cuda' or 'cuda:N' is wanted", name);
}
