/* The part of cuBLAS that is called, found at run time: no header or library of it is needed to build. */
#ifndef CDAD_KERNELS_CUDA_CUBLAS_H
#define CDAD_KERNELS_CUDA_CUBLAS_H

#include "kernels/cuda/cuda.h"

/* Values of cuBLAS's enumerations. */
enum {
    CUBLAS_N = 0,
    CUBLAS_T = 1,
    CUBLAS_FLOAT = 0,          /* CUDA_R_32F */
    CUBLAS_BFLOAT16 = 14,      /* CUDA_R_16BF */
    CUBLAS_COMPUTE_FLOAT = 68, /* CUBLAS_COMPUTE_32F */
    CUBLAS_COMPUTE_BF16 = 75,  /* CUBLAS_COMPUTE_32F_FAST_16BF: floats, rounded to bfloat16 on their way */
    CUBLAS_COMPUTE_TF32 = 77,  /* CUBLAS_COMPUTE_32F_FAST_TF32 */
    CUBLAS_DEFAULT = -1,       /* CUBLAS_GEMM_DEFAULT */
    CUBLAS_ALLOC_FAILED = 3    /* CUBLAS_STATUS_ALLOC_FAILED */
};

/* D [m,n] = A B + bias + C, column-major: a bias for every row, C like D or NULL. */
typedef struct cuda_fused {
    int op_a, op_b, m, n, k, type, lda, ldb, ldd, compute;
    const void *A, *B;
    const float *bias, *C;
    float *D;
    void *workspace;
    size_t workspace_bytes;
    cudaStream_t stream;
} cuda_fused;

typedef struct cuda_cublas {
    int (*create)(void **handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*set_workspace)(void *handle, void *memory, size_t bytes);
    int (*gemm)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha, const void *A, int type_a,
                int lda, long long stride_a, const void *B, int type_b, int ldb, long long stride_b, const void *beta,
                void *C, int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm);
    /* By cuBLASLt, whose handle is a device's; NULL where it is not found. Not every product can be: another status than 0. */
    int (*start_fused)(void **handle);
    int (*fused)(void *handle, const cuda_fused *p);
} cuda_cublas;

/* Loads it once; NULL with why not in `text`, else where it was found. folders: see cdad_cuda_table. */
const cuda_cublas *cuda_cublas_load(const char *folders, char *text, size_t bytes);

#endif
