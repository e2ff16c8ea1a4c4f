/* Elementary functions on vectors. Errors are against float64 over the whole range (tests/test_kernels.c). */
#ifndef CDAD_KERNELS_CPU_VMATH_H
#define CDAD_KERNELS_CPU_VMATH_H

#include "kernels/cpu/simd.h"

static inline vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vf v_copysign(vf magnitude, vf sign) {
    return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & ~0x7fffffff));
}

/* e^c = p * 2^n with p near one, for c that neither e^c nor 2^n overflows at. */
static inline vf v_exp_parts(vf c, vi *n) {
    const vf magic = v_set1(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf whole = (c * 1.44269504f + magic) - magic;
    vf r = c - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    *n = __builtin_convertvector(whole, vi);
    return p * (r * r) + r + 1.0f;
}

/* e^x, at most 2 ulp; 0 below the smallest denormal, inf above the largest float, NaN for NaN. */
static inline vf v_exp(vf x) {
    const vf high = v_set1(88.7228390f), low = v_set1(-104.0f);
    vi n;
    vf p = v_exp_parts(v_min(v_max(x, low), high), &n); /* NaN becomes a bound here, and NaN again at the end */
    const vi half = n >> 1;                             /* times 2^n in two steps, so that denormals come out */
    p = p * (vf)((half + 127) << 23) * (vf)((n - half + 127) << 23);
    p = v_select(x > high, v_set1(__builtin_inff()), p);
    return v_select(x == x, p, x);
}

/* e^x for x <= 0: no overflow to mind, and 0 below -87.7, among the denormals. Off by at most 2 ulp and 1.25 |x| 2^-24,
 * which is about what rounding x costs. NaN for NaN. */
static inline vf v_exp_below(vf x) {
    const vf magic = v_set1(12582912.0f + 127.0f); /* 1.5 * 2^23, and a float's bias: rounds to n, biased */
    const vf c = v_max(v_set1(-88.0f), x);         /* a NaN stays; n is at least -127, where 2^n comes out as 0 */
    const vf biased = c * 1.44269504f + magic;
    const vf r = c * 1.44269504f - (biased - magic);
    vf p = r * 1.32647273e-3f + 9.67151299e-3f; /* 2^r, exact at 0 */
    p = p * r + 5.55073358e-2f;
    p = p * r + 2.40222424e-1f;
    p = p * r + 6.93147004e-1f;
    return (p * r + 1.0f) * (vf)((vi)biased << 23);
}

/* 1 / (1 + e^-x), at most 4 ulp; 0 below -88.4. A NaN gets through v_min and v_max as their second operand. */
static inline vf v_sigmoid(vf x) {
    vi n;
    const vf p = v_exp_parts(v_max(v_set1(-87.0f), v_min(v_set1(88.9f), -x)), &n);
    return 1.0f / (1.0f + p * (vf)((n + 127) << 23)); /* n = 128, the most: infinity */
}

/* erf, at most 2 ulp (two polynomials, joined at 0.921875). */
static inline vf v_erf(vf x) {
    const vf t = v_abs(x), s = x * x;
    vf r = t * -1.72853470e-5f + 3.83197126e-4f;
    const vf u = t * -3.88396438e-3f + 2.42546219e-2f;
    r = r * s + u;
    r = r * t + -1.06777877e-1f;
    r = r * t + -6.34846687e-1f;
    r = r * t + -1.28717512e-1f;
    r = r * t - t;
    const vf large = v_copysign(1.0f - v_exp(r), x);
    vf q = s * -5.96761703e-4f + 4.99119423e-3f;
    q = q * s + -2.67681349e-2f;
    q = q * s + 1.12819925e-1f;
    q = q * s + -3.76125336e-1f;
    q = q * s + 1.28379166e-1f;
    q = q * x + x;
    return v_select(t > 0.921875f, v_select(t > 4.0f, v_copysign(v_set1(1.0f), x), large), q);
}

/* tanh, at most 3 ulp */
static inline vf v_tanh(vf x) {
    const vf t = v_abs(x), s = x * x;
    vf p = s * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * s + -5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s + -3.33332819422e-1f;
    p = p * s * x + x;
    const vf y = v_select(t > 0.625f, 1.0f - 2.0f / (v_exp(t + t) + 1.0f), p);
    return v_select(x == x, v_copysign(y, x), x);
}

/* The normal distribution's cumulative function and density, for GELU. */
static inline vf v_normal_cdf(vf x) { return 0.5f + 0.5f * v_erf(x * 0.70710678118654752f); }
static inline vf v_normal_pdf(vf x) { return v_exp(x * x * -0.5f) * 0.3989422804014327f; }

#endif
