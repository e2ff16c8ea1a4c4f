/* What the threads of a warp do together: products of tensor cores, and sums; and copies to shared memory that go on by themselves.
 *
 * Fragments lie as PTX says (m16n8k8 and m16n8k16), with g = lane / 4 and t = lane % 4:
 *   C [16,8]:          c[0] c[1]: row g, columns 2t and 2t+1;  c[2] c[3]: row g+8
 *   A [16,8] of TF32:  a[0]: row g, column t;      a[1]: row g+8;  a[2] a[3]: the same, column t+4
 *   B [8,8] of TF32:   b[0]: row t, column g;      b[1]: row t+4
 *   A [16,16] of bf16: a[0]: row g, columns 2t and 2t+1 (the low half);  a[1]: row g+8;  a[2] a[3]: the same, columns 2t+8 and 2t+9
 *   B [16,8] of bf16:  b[0]: rows 2t and 2t+1, column g;  b[1]: rows 2t+8 and 2t+9 */
#ifndef CDAD_KERNELS_CUDA_WARP_H
#define CDAD_KERNELS_CUDA_WARP_H

#include "kernels/cuda/cuda.h"

#ifdef CDAD_CUDA_ON_HOST
#include "kernels/cuda/on_host_warp.h"
#define CUDA_UNROLL
#else
#define CUDA_UNROLL _Pragma("unroll") /* so that arrays of a thread stay in registers */

/* x rounded to TF32, to nearest. */
__device__ inline uint32_t cuda_tf32(float x) {
    uint32_t y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}
/* Two floats, rounded to bfloat16 to nearest even; `low` in the low half. */
__device__ inline uint32_t cuda_bf16x2(float low, float high) {
    uint32_t y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

/* c += A B */
__device__ inline void cuda_mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void cuda_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 16-byte matrices of shared memory: lane i gives the address of row i % 8 of matrix i / 8, of 16 bytes, 16 apart; r[m]: the
 * four bytes at row g, bytes 4t and following of matrix m. */
__device__ inline void cuda_load_matrices(uint32_t r[4], const void *row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* 2^x, within 2^-22 of it; what is below float's normal numbers is 0. */
__device__ inline float cuda_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* x of the lane whose number differs by the bits of `mask`. */
__device__ inline float cuda_swap(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }

/* 16 bytes to shared memory, zeros where it is not `there` (`from` is then not read); done once cuda_copies_wait<N> is passed by, which
 * waits for all that was queued before the N latest cuda_copies_close: those are this thread's own, so that a barrier follows. */
__device__ inline void cuda_copy_async(void *to, const void *from, bool there) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(to);
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void cuda_copies_close(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ inline void cuda_copies_wait(void) { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
#endif

/* For a kernel whose shared memory is wanted at its launch: `bytes` of it, which CUDA_SHARED(name) declares there as unsigned char[]. */
#ifdef CDAD_CUDA_ON_HOST
#define CUDA_SHARED(name) unsigned char *const name = on_host_shared
#define CDAD_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...) \
    (on_host_want_shared(bytes), CDAD_LAUNCH_JOINED(kernel, blocks, threads, stream, __VA_ARGS__))
#else
#define CUDA_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define CDAD_LAUNCH_SHARED(kernel, blocks, threads, bytes, stream, ...)                                          \
    do {                                                                                                         \
        cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes));              \
        kernel<<<(blocks), (threads), (bytes), (stream)>>>(__VA_ARGS__);                                         \
    } while (0)
#endif

#endif
