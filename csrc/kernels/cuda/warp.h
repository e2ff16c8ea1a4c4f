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
/* The same, of 16-bit elements, turned: r[m]: the elements of rows 2t (the low half) and 2t+1 in column g of matrix m. */
__device__ inline void cuda_load_matrices_turned(uint32_t r[4], const void *row) {
    const unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
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

/* Products of warpgroups, which are four warps of neighbouring numbers from a multiple of four on; compute capability 9.0 alone, as code
 * for "90a". They go on by themselves: from a cuda_group_fence on, which comes after the last write to registers that they take, to the
 * cuda_groups_wait<N> that waits for all but the N latest cuda_group_close, nobody writes what they read or reads what they write.
 *
 * B [8,N] of TF32, or [16,N] of bf16, is a part of a tile [N,32] or [N,64] in shared memory: rows of 128 bytes, from a multiple of 1024
 * bytes on, the 16-byte pieces of row n in the order piece ^ n % 8. */
typedef uint64_t cuda_tile;
/* The tile's first rows of B; those of step k are cuda_tile_step(tile, k). */
__device__ inline cuda_tile cuda_tile_at(const void *tile) {
    const uint64_t at = (uint64_t)__cvta_generic_to_shared(tile);
    /* its address; how far eight rows are from the next; swizzled within 128 bytes: all but the last counted in 16 bytes */
    return (at & 0x3FFFF) >> 4 | UINT64_C(1) << 16 | (uint64_t)(1024 >> 4) << 32 | UINT64_C(1) << 62;
}
__device__ inline cuda_tile cuda_tile_step(cuda_tile tile, int step) { return tile + (uint64_t)(2 * step); }

#define CUDA_C4(c, j) "+f"(c[j][0]), "+f"(c[j][1]), "+f"(c[j][2]), "+f"(c[j][3])
#define CUDA_C16(c, j) CUDA_C4(c, j), CUDA_C4(c, j + 1), CUDA_C4(c, j + 2), CUDA_C4(c, j + 3)
#define CUDA_C64(c) CUDA_C16(c, 0), CUDA_C16(c, 4), CUDA_C16(c, 8), CUDA_C16(c, 12)
#define CUDA_C64_NAMES \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
    "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
/* Adds to C; `numbers`: the scales of A and B and, of bf16, that B's columns are contiguous. */
#define CUDA_GROUP_MMA_128(factors, numbers)                                                                     \
    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n128" factors " {" CUDA_C64_NAMES "},\n"                       \
                 "{%64,%65,%66,%67}, %68, p, " numbers "; }"                                                     \
                 : CUDA_C64(c)                                                                                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define CUDA_GROUP_MMA_160(factors, numbers)                                                                     \
    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;\n"                                                        \
                 "wgmma.mma_async.sync.aligned.m64n160" factors " {" CUDA_C64_NAMES ",\n"                        \
                 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79},\n"                           \
                 "{%80,%81,%82,%83}, %84, p, " numbers "; }"                                                     \
                 : CUDA_C64(c), CUDA_C16(c, 16)                                                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
/* C [64,N] += A B, A [64,8] of TF32 or [64,16] of bf16: a warp has 16 rows of A and C, in N / 8 fragments of C. */
template <int N, bool BF16> __device__ inline void cuda_group_mma(float c[N / 8][4], const uint32_t a[4], cuda_tile b) {
    static_assert(N == 128 || N == 160, "a size that is not written down");
    if constexpr (N == 128 && BF16)
        CUDA_GROUP_MMA_128("k16.f32.bf16.bf16", "1, 1, 0");
    else if constexpr (N == 128)
        CUDA_GROUP_MMA_128("k8.f32.tf32.tf32", "1, 1");
    else if constexpr (BF16)
        CUDA_GROUP_MMA_160("k16.f32.bf16.bf16", "1, 1, 0");
    else
        CUDA_GROUP_MMA_160("k8.f32.tf32.tf32", "1, 1");
}
/* For two fragments of A, which the compiler is told of, so that it writes them before. */
__device__ inline void cuda_group_fence(uint32_t a[4], uint32_t b[4]) {
    asm volatile("wgmma.fence.sync.aligned;"
                 : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3]), "+r"(b[0]), "+r"(b[1]), "+r"(b[2]), "+r"(b[3])::"memory");
}
__device__ inline void cuda_group_close(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> __device__ inline void cuda_groups_wait(void) { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
/* Shows the warpgroups' products what this thread has written to shared memory, or copied there and waited for; a barrier follows. */
__device__ inline void cuda_show_groups(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Where it lies in shared memory. */
__device__ inline unsigned cuda_shared_address(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }
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
        const cudaStream_t on_stream = (stream); /* asked for first: it makes its device the current one */      \
        cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes));              \
        kernel<<<(blocks), (threads), (bytes), on_stream>>>(__VA_ARGS__);                                        \
    } while (0)
#endif

#endif
