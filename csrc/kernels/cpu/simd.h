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
/* The first n floats, the rest zero; n in [0, VL]. A whole vector goes past memcpy, which is a call here. */
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
/* The first n lanes, the rest zero. */
static inline vf v_first_n(vf v, int64_t n) {
    vf first = {0};
    memcpy(&first, &v, (size_t)n * sizeof(float));
    return first;
}
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
    float x[CDAD_VBYTES / 4];
    memcpy(x, &v, sizeof v);
    for (int64_t h = VL / 2; h > 0; h /= 2)
        for (int64_t i = 0; i < h; i++)
            x[i] += x[i + h];
    return x[0];
}

/* Before a loop over an array of vectors, of at most 16 turns: arrays stay in registers only when every loop
 * over them is unrolled before they are laid out. */
#ifdef __clang__
#define V_UNROLL _Pragma("clang loop unroll(full)")
#else
#define V_UNROLL _Pragma("GCC unroll 16")
#endif

#endif
