/* Elementary functions on vectors. Errors are against float64 over the whole range (tests/test_kernels.c). */
#ifndef CDAD_KERNELS_CPU_VMATH_H
#define CDAD_KERNELS_CPU_VMATH_H

#include "kernels/cpu/simd.h"

static inline vf v_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline vf v_copysign(vf magnitude, vf sign) {
    return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & ~0x7fffffff));
}

/* e^c = p * 2^n with p near one, for c that neither e^c nor 2^n overflows at. The low bits of `biased` hold n as a
 * float's exponent does: shifted left by 23 it is 2^n. */
static inline vf v_exp_parts(vf c, vi *biased) {
    const vf magic = v_set1(12582912.0f + 127.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    const vf sum = c * 1.44269504f + magic, whole = sum - magic;
    vf r = c - whole * 0.693359375f;
    r = r - whole * -2.12194440e-4f;
    vf p = r * 1.38144568e-3f + 8.36877991e-3f;
    p = p * r + 4.16683927e-2f;
    p = p * r + 1.66665196e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * r + 1.0f;
    *biased = (vi)sum;
    return p * r + 1.0f;
}

/* e^x, at most 2 ulp; 0 below the smallest denormal, inf above the largest float, NaN for NaN. */
static inline vf v_exp(vf x) {
    const vf high = v_set1(88.7228390f), low = v_set1(-104.0f);
    vi n;
    vf p = v_exp_parts(v_min(v_max(x, low), high), &n); /* NaN becomes a bound here, and NaN again at the end */
    n -= 0x4b400000 + 127;
    const vi half = n >> 1; /* times 2^n in two steps, so that denormals come out */
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
    return 1.0f / (1.0f + p * (vf)(n << 23)); /* the most: infinity */
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

/* The normal distribution's cumulative function, off by at most 1.3e-7 (by 2e-4 of itself down to -4), and density, by
 * 7e-8, for GELU. Both have the factor e^(-x^2/2); the tail's other one, Mills' ratio, is smooth: a polynomial up to
 * 5.5, where the tail is 2e-8. */
static inline vf v_normal(vf x, vf *density) {
    const vf e = v_exp_below(x * x * -0.5f), t = v_min(v_set1(5.5f), v_abs(x));
    vf p = t * -2.50986176e-7f + 6.43577368e-6f;
    p = p * t + -7.41569529e-5f;
    p = p * t + 5.14762884e-4f;
    p = p * t + -2.45370157e-3f;
    p = p * t + 8.76625162e-3f;
    p = p * t + -2.52148509e-2f;
    p = p * t + 6.17581457e-2f;
    p = p * t + -1.32747427e-1f;
    p = p * t + 2.49963373e-1f;
    p = p * t + -3.98940295e-1f;
    p = p * t + 0.5f;
    *density = e * 0.3989422804014327f;
    return v_select(x < 0.0f, e * p, 1.0f - e * p);
}

#endif
