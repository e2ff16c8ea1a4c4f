/* warp.h's functions for a C++ compiler: the lanes of a warp show each other what they hold. */
#ifndef CDAD_KERNELS_CUDA_ON_HOST_WARP_H
#define CDAD_KERNELS_CUDA_ON_HOST_WARP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ON_HOST_WORDS = 6, ON_HOST_SHARED = 227 << 10 };
typedef uint32_t on_host_words[ON_HOST_WORDS];

/* What the 32 lanes have given, in their turn; valid until this lane's next call but one. */
const on_host_words *on_host_show(const uint32_t *mine, int n);
void on_host_copy_later(void *to, const void *from, bool there);
void on_host_copies_close(void);
void on_host_copies_wait(int but);
void on_host_multiply_later(float (*c)[4], const uint32_t *a, const unsigned char *b, int n, bool bf16);
void on_host_products_close(void);
void on_host_products_wait(int but);
extern unsigned char on_host_shared[ON_HOST_SHARED];
void on_host_want_shared(int64_t bytes); /* more than there is ends the process */

static inline uint32_t on_host_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float on_host_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t __float_as_uint(float x) { return on_host_bits(x); }
static inline float __uint_as_float(uint32_t bits) { return on_host_float(bits); }

/* Ties away from zero, as cvt.rna does. */
static inline uint32_t cuda_tf32(float x) {
    const uint32_t bits = on_host_bits(x);
    return (bits & 0x7F800000u) != 0x7F800000u ? (bits + 0x1000u) & ~0x1FFFu : bits;
}
static inline uint32_t on_host_bf16(float x) {
    const uint32_t bits = on_host_bits(x);
    return (bits & 0x7F800000u) != 0x7F800000u ? (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16 : bits >> 16 | (bits & 0xFFFFu ? 1 : 0);
}
static inline uint32_t cuda_bf16x2(float low, float high) { return on_host_bf16(low) | on_host_bf16(high) << 16; }

/* The hardware drops what a factor has beyond TF32. */
static inline void cuda_mma_tf32(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const on_host_words *all = on_host_show(mine, 6);
    const int lane = (int)threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 8; k++)
            c[i] += on_host_float(all[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2] & ~0x1FFFu) *
                    on_host_float(all[column * 4 + k % 4][4 + k / 4] & ~0x1FFFu);
    }
}
static inline void cuda_mma_bf16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const on_host_words *all = on_host_show(mine, 6);
    const int lane = (int)threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            const uint32_t left = all[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] >> k % 2 * 16;
            const uint32_t right = all[column * 4 + k % 8 / 2][4 + k / 8] >> k % 2 * 16;
            c[i] += on_host_float(left << 16) * on_host_float(right << 16);
        }
    }
}

/* Addresses that the hardware refuses end the process. */
static inline const on_host_words *on_host_show_rows(const void *row) {
    if ((uintptr_t)row % 16)
        abort();
    const uint32_t mine[2] = {(uint32_t)(uintptr_t)row, (uint32_t)((uint64_t)(uintptr_t)row >> 32)};
    return on_host_show(mine, 2);
}
static inline const unsigned char *on_host_row(const on_host_words &words) {
    return (const unsigned char *)(uintptr_t)(words[0] | (uint64_t)words[1] << 32);
}
static inline void cuda_load_matrices(uint32_t r[4], const void *row) {
    const on_host_words *all = on_host_show_rows(row);
    const int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++)
        memcpy(&r[m], on_host_row(all[8 * m + lane / 4]) + lane % 4 * 4, 4);
}
static inline void cuda_load_matrices_turned(uint32_t r[4], const void *row) {
    const on_host_words *all = on_host_show_rows(row);
    const int lane = (int)threadIdx.x % 32;
    for (int m = 0; m < 4; m++) {
        uint16_t two[2];
        for (int i = 0; i < 2; i++)
            memcpy(&two[i], on_host_row(all[8 * m + lane % 4 * 2 + i]) + lane / 4 * 2, 2);
        r[m] = two[0] | (uint32_t)two[1] << 16;
    }
}

static inline float cuda_exp2(float x) { return exp2f(x); }

static inline float cuda_swap(float x, int mask) {
    const uint32_t mine = on_host_bits(x);
    return on_host_float(on_host_show(&mine, 1)[(threadIdx.x % 32) ^ (unsigned)mask][0]);
}

static inline void cuda_copy_async(void *to, const void *from, bool there) {
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16)
        abort();
    on_host_copy_later(to, from, there);
}
static inline void cuda_copies_close(void) { on_host_copies_close(); }
template <int N> void cuda_copies_wait(void) { on_host_copies_wait(N); }

typedef const unsigned char *cuda_tile;
static inline cuda_tile cuda_tile_at(const void *tile) {
    if ((uintptr_t)tile % 1024)
        abort();
    return (cuda_tile)tile;
}
static inline cuda_tile cuda_tile_step(cuda_tile tile, int step) { return tile + 32 * step; }
template <int N, bool BF16> void cuda_group_mma(float c[N / 8][4], const uint32_t a[4], cuda_tile b) {
    on_host_multiply_later(c, a, b, N, BF16);
}
static inline void cuda_group_fence(uint32_t *, uint32_t *) {}
static inline void cuda_group_close(void) { on_host_products_close(); }
template <int N> void cuda_groups_wait(void) { on_host_products_wait(N); }
static inline void cuda_show_groups(void) {}
static inline unsigned cuda_shared_address(const void *p) { return (unsigned)(uintptr_t)p; }

#endif
