/* Vectors of CDAD_VBYTES bytes by GCC's and Clang's vector extensions.
 *
 * Every file of this folder is compiled once an instruction set (CDAD_ISA = portable, avx2, avx512), and
 * CDAD_K(name) gives a function its name in that build. Products and sums fuse where the set has FMA
 * (-ffp-contract=fast); tails go through padded copies, so that they round as full vectors do. */
#ifndef CDAD_KERNELS_CPU_SIMD_H
#define CDAD_KERNELS_CPU_SIMD_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#define CDAD_CAT2(a, b) a##_##b
#define CDAD_CAT(a, b) CDAD_CAT2(a, b)
#define CDAD_K(name) CDAD_CAT(cdad_##name, CDAD_ISA)

#define VL ((int64_t)(CDAD_VBYTES / 4)) /* floats in a vector */

typedef float vf __attribute__((vector_size(CDAD_VBYTES)));
typedef int32_t vi __attribute__((vector_size(CDAD_VBYTES)));

static inline vf v_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline void v_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf v_set1(float x) { return x - (vf){0}; }
/* The first n floats, the rest zero, and stores of the first n; n in [0, VL]. A whole vector goes past masks. */
#if defined(__AVX512F__) && CDAD_VBYTES == 64
static inline __mmask16 v_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
static inline vf v_load_n(const float *p, int64_t n) {
    return n == VL ? v_load(p) : (vf)_mm512_maskz_loadu_ps(v_lanes(n), p);
}
static inline void v_store_n(float *p, vf v, int64_t n) {
    if (n == VL)
        v_store(p, v);
    else
        _mm512_mask_storeu_ps(p, v_lanes(n), (__m512)v);
}
static inline vf v_first_n(vf v, int64_t n) { return (vf)_mm512_maskz_mov_ps(v_lanes(n), (__m512)v); }
#elif defined(__AVX__) && CDAD_VBYTES == 32
static inline vi v_lanes(int64_t n) { return (vi){0, 1, 2, 3, 4, 5, 6, 7} < (int32_t)n; }
static inline vf v_load_n(const float *p, int64_t n) {
    return n == VL ? v_load(p) : (vf)_mm256_maskload_ps(p, (__m256i)v_lanes(n));
}
static inline void v_store_n(float *p, vf v, int64_t n) {
    if (n == VL)
        v_store(p, v);
    else
        _mm256_maskstore_ps(p, (__m256i)v_lanes(n), (__m256)v);
}
static inline vf v_first_n(vf v, int64_t n) { return (vf)((vi)v & v_lanes(n)); }
#else
static inline vf v_load_n(const float *p, int64_t n) {
    vf v = {0};
    if (n == VL)
        return v_load(p);
    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
}
static inline void v_store_n(float *p, vf v, int64_t n) {
    if (n == VL)
        v_store(p, v);
    else
        memcpy(p, &v, (size_t)n * sizeof(float));
}
static inline vf v_first_n(vf v, int64_t n) {
    vf first = {0};
    memcpy(&first, &v, (size_t)n * sizeof(float));
    return first;
}
#endif
/* mask ? a : b, mask lanes all ones or zero (the result of a comparison). */
static inline vf v_select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
/* a > b ? a : b, and a < b ? a : b: b where one is NaN, as the instructions have it. */
#if defined(__AVX512F__) && CDAD_VBYTES == 64
static inline vf v_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vf v_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__) && CDAD_VBYTES == 32
static inline vf v_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vf v_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
static inline vf v_max(vf a, vf b) { return v_select(a > b, a, b); }
static inline vf v_min(vf a, vf b) { return v_select(a < b, a, b); }
#endif
/* Sum of the lanes, by halves: a fixed tree. */
static inline float v_sum(vf v) {
#if defined(__AVX512F__) && CDAD_VBYTES == 64
    const __m256 half = _mm512_castps512_ps256((__m512)v) + _mm512_extractf32x8_ps((__m512)v, 1);
#elif defined(__AVX__) && CDAD_VBYTES == 32
    const __m256 half = (__m256)v;
#endif
#if defined(__AVX__) && CDAD_VBYTES >= 32
    __m128 x = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
    x += _mm_movehl_ps(x, x);
    return x[0] + x[1];
#else
    float x[CDAD_VBYTES / 4];
    memcpy(x, &v, sizeof v);
    for (int64_t h = VL / 2; h > 0; h /= 2)
        for (int64_t i = 0; i < h; i++)
            x[i] += x[i + h];
    return x[0];
#endif
}

/* Before a loop over an array of vectors, of at most 16 turns: arrays stay in registers only when every loop
 * over them is unrolled before they are laid out. */
#ifdef __clang__
#define V_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V_UNROLL _Pragma("GCC unroll 16")
#endif

/* For functions whose first arguments are numbers at every call: a copy for each. */
#define V_INLINE static inline __attribute__((always_inline))

/* Runs the statements for i = begin, begin + VL, ... with `m` valid lanes. The tail, the only one with less than VL, is
 * apart, so that the loop has plain loads and stores. */
#define V_EACH(begin, end, ...)                       \
    {                                                 \
        const int64_t end_ = (end);                   \
        int64_t i = (begin);                          \
        for (; i + VL <= end_; i += VL) {             \
            const int64_t m = VL;                     \
            __VA_ARGS__                               \
        }                                             \
        if (i < end_) {                               \
            const int64_t m = end_ - i;               \
            __VA_ARGS__                               \
        }                                             \
    }

#endif
