/* Finding cuBLAS, beside the package (NVIDIA's wheels), in the toolkit, or where the loader looks; and products of cuBLASLt. */
#ifndef CDAD_CUDA_ON_HOST
#include "kernels/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <initializer_list>

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
        snprintf(text, bytes, "%s is neither in NVIDIA's wheels (pip install 'cdad[cuda13]') nor in a CUDA 13 toolkit", LIBRARY);
    return library;
}

/* Of cublasLt.h: attributes, values and a struct. */
enum { LT_OP_A = 3, LT_OP_B = 4, LT_EPILOGUE = 7, LT_BIAS = 8, LT_EPILOGUE_BIAS = 4, LT_MOST_WORKSPACE = 1, LT_ALIGNMENT_A = 5 };
typedef struct lt_choice {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int status;
    float waves;
    int reserved[4];
} lt_choice;

static struct {
    int (*create)(void **handle);
    int (*product)(void **product, int compute, int scale_type);
    int (*end_product)(void *product);
    int (*set)(void *product, int attribute, const void *value, size_t bytes);
    int (*layout)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t ld);
    int (*end_layout)(void *layout);
    int (*wishes)(void **wishes);
    int (*end_wishes)(void *wishes);
    int (*wish)(void *wishes, int attribute, const void *value, size_t bytes);
    int (*choose)(void *handle, void *product, void *a, void *b, void *c, void *d, void *wishes, int most, lt_choice *choices, int *n);
    int (*multiply)(void *handle, void *product, const void *alpha, const void *A, void *a, const void *B, void *b, const void *beta,
                    const void *C, void *c, void *D, void *d, const void *algorithm, void *workspace, size_t bytes, cudaStream_t stream);
} lt;

/* The library brings cuBLASLt along. */
static bool find_fused(void *library) {
    static const char *const names[] = {"Create", "MatmulDescCreate", "MatmulDescDestroy", "MatmulDescSetAttribute",
                                        "MatrixLayoutCreate", "MatrixLayoutDestroy", "MatmulPreferenceCreate",
                                        "MatmulPreferenceDestroy", "MatmulPreferenceSetAttribute", "MatmulAlgoGetHeuristic", "Matmul"};
    void *found[sizeof names / sizeof *names];
    char name[64];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "cublasLt%s", names[i]);
        if (!(found[i] = dlsym(library, name)))
            return false;
    }
    static_assert(sizeof found == sizeof lt, "a name for each");
    memcpy(&lt, found, sizeof lt);
    return true;
}

static int start_fused(void **handle) { return lt.create(handle); }

/* The largest power of two, up to 256, that divides an address: what cuBLASLt may count on. */
static uint32_t alignment(const void *p) {
    uint32_t bytes = 256;
    while ((uintptr_t)p % bytes)
        bytes /= 2;
    return bytes;
}

static int multiply_fused(void *handle, const cuda_fused *p) {
    const int epilogue = LT_EPILOGUE_BIAS;
    const float one = 1.0f, beta = p->C ? 1.0f : 0.0f;
    const float *C = p->C ? p->C : p->D;
    const uint32_t of_d = alignment(p->D), of_bias = alignment(p->bias); /* NULL's is the largest */
    const uint32_t alignments[] = {alignment(p->A), alignment(p->B), alignment(C), of_d < of_bias ? of_d : of_bias};
    void *product = NULL, *a = NULL, *b = NULL, *d = NULL, *wishes = NULL;
    lt_choice choice;
    int n = 0, status = lt.product(&product, p->compute, CUBLAS_FLOAT);
    status = status ? status : lt.set(product, LT_OP_A, &p->op_a, sizeof p->op_a);
    status = status ? status : lt.set(product, LT_OP_B, &p->op_b, sizeof p->op_b);
    if (p->bias) {
        status = status ? status : lt.set(product, LT_EPILOGUE, &epilogue, sizeof epilogue);
        status = status ? status : lt.set(product, LT_BIAS, &p->bias, sizeof p->bias);
    }
    status = status ? status : lt.layout(&a, p->type, (uint64_t)(p->op_a ? p->k : p->m), (uint64_t)(p->op_a ? p->m : p->k), p->lda);
    status = status ? status : lt.layout(&b, p->type, (uint64_t)(p->op_b ? p->n : p->k), (uint64_t)(p->op_b ? p->k : p->n), p->ldb);
    status = status ? status : lt.layout(&d, CUBLAS_FLOAT, (uint64_t)p->m, (uint64_t)p->n, p->ldd);
    status = status ? status : lt.wishes(&wishes);
    status = status ? status : lt.wish(wishes, LT_MOST_WORKSPACE, &p->workspace_bytes, sizeof p->workspace_bytes);
    for (int i = 0; i < 4; i++)
        status = status ? status : lt.wish(wishes, LT_ALIGNMENT_A + i, &alignments[i], sizeof alignments[i]);
    status = status ? status : lt.choose(handle, product, a, b, d, d, wishes, 1, &choice, &n);
    if (!status)
        status = n < 1 || choice.status
                     ? -1
                     : lt.multiply(handle, product, &one, p->A, a, p->B, b, &beta, C, d, p->D, d, choice.algorithm, p->workspace,
                                   p->workspace_bytes, p->stream);
    if (wishes)
        lt.end_wishes(wishes);
    for (void *layout : {a, b, d})
        if (layout)
            lt.end_layout(layout);
    if (product)
        lt.end_product(product);
    return status;
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
            loaded.start_fused = find_fused(library) ? start_fused : NULL;
            loaded.fused = multiply_fused;
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
