/* Loading the CUDA backend's shared object, which lies beside the core. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/entry.h"
#include "kernels/devices.h"

static const char NAME[] = "_cuda.so";

/* The core's own folder, with a slash; "" when it cannot be known. */
static void own_folder(char *path, size_t bytes) {
    Dl_info info;
    static const char here = 0;
    path[0] = 0;
    if (!dladdr(&here, &info) || !info.dli_fname)
        return;
    snprintf(path, bytes, "%s", info.dli_fname);
    char *slash = strrchr(path, '/');
    if (slash)
        slash[1] = 0;
    else
        path[0] = 0;
}

/* The table of the shared object at `path`; loaded once. */
static cdad_status load(const char *path, const cdad_cuda_table **out, cdad_error *err) {
    CDAD_FAIL_IF(access(path, R_OK) != 0, err, CDAD_NO_DEVICE, "this build of cdad has no CUDA backend: %s is not there", path);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CDAD_FAIL_IF(!library, err, CDAD_NO_DEVICE, "the CUDA backend cannot be loaded: %s", dlerror());
    const cdad_cuda_entry_fn entry = (cdad_cuda_entry_fn)(uintptr_t)dlsym(library, CDAD_CUDA_ENTRY);
    CDAD_FAIL_IF(!entry, err, CDAD_NO_DEVICE, "%s is no CUDA backend: it has no %s", path, CDAD_CUDA_ENTRY);
    const cdad_cuda_table *table = entry();
    CDAD_FAIL_IF(strcmp(table->abi, CDAD_DEVICE_ABI) != 0, err, CDAD_NO_DEVICE,
                 "the CUDA backend %s (%s) was built for another version of cdad's core (%s): build both again", path,
                 table->abi, CDAD_DEVICE_ABI);
    *out = table;
    return CDAD_OK;
}

cdad_status cdad_cuda_load(const cdad_cuda_table **out, char *path, size_t bytes, cdad_error *err) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const cdad_cuda_table *table;
    static char where[512];
    cdad_status status = CDAD_OK;
    pthread_mutex_lock(&mutex);
    if (!table) {
        const char *given = getenv("CDAD_CUDA_LIBRARY");
        own_folder(where, sizeof where);
        if (given && *given)
            snprintf(where, sizeof where, "%s", given);
        else
            snprintf(where + strlen(where), sizeof where - strlen(where), "%s", NAME);
        status = load(where, &table, err);
    }
    snprintf(path, bytes, "%s", where);
    *out = table;
    pthread_mutex_unlock(&mutex);
    return status;
}
