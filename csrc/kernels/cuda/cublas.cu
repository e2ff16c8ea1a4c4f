/* Finding cuBLAS: beside the package (NVIDIA's wheels), in the toolkit, or where the loader looks. */
#ifndef CDAD_CUDA_ON_HOST
#include "kernels/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char LIBRARY[] = "libcublas.so.13";

static void *open_in(const char *folder, size_t length, char *text, size_t bytes) {
    if (length == 0 || length + sizeof LIBRARY + 1 > bytes)
        return NULL;
    snprintf(text, bytes, "%.*s/%s", (int)length, folder, LIBRARY);
    return dlopen(text, RTLD_NOW | RTLD_LOCAL);
}

static void *open_library(const char *folders, char *text, size_t bytes) {
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH"};
    char folder[400];
    void *library = NULL;
    for (const char *at = folders; *at && !library;) {
        const size_t length = strcspn(at, ":");
        library = open_in(at, length, text, bytes);
        at += length + (at[length] == ':');
    }
    for (int i = 0; i < 2 && !library; i++) {
        const char *root = getenv(variables[i]);
        if (!root || !*root)
            continue;
        snprintf(folder, sizeof folder, "%s/lib64", root);
        library = open_in(folder, strlen(folder), text, bytes);
    }
    if (!library)
        library = open_in("/usr/local/cuda/lib64", strlen("/usr/local/cuda/lib64"), text, bytes);
    if (library)
        return library;
    library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library)
        snprintf(text, bytes, "%s", LIBRARY);
    else
        snprintf(text, bytes, "%s is neither in NVIDIA's wheels (pip install cdad[cuda13]) nor in a CUDA 13 toolkit", LIBRARY);
    return library;
}

const cuda_cublas *cuda_cublas_load(const char *folders, char *text, size_t bytes) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static cuda_cublas loaded;
    static char where[512];
    pthread_mutex_lock(&mutex);
    if (!loaded.gemm) {
        void *library = open_library(folders, where, sizeof where);
        if (library) {
            loaded.create = (int (*)(void **))dlsym(library, "cublasCreate_v2");
            loaded.set_stream = (int (*)(void *, cudaStream_t))dlsym(library, "cublasSetStream_v2");
            loaded.set_workspace = (int (*)(void *, void *, size_t))dlsym(library, "cublasSetWorkspace_v2");
            loaded.gemm = (decltype(loaded.gemm))dlsym(library, "cublasGemmStridedBatchedEx");
        }
        if (library && (!loaded.create || !loaded.set_stream || !loaded.set_workspace || !loaded.gemm)) {
            const size_t end = strlen(where);
            snprintf(where + end, sizeof where - end, " lacks a function that is needed");
            loaded = cuda_cublas();
        }
    }
    snprintf(text, bytes, "%s", where);
    const cuda_cublas *found = loaded.gemm ? &loaded : NULL;
    pthread_mutex_unlock(&mutex);
    return found;
}
#endif
