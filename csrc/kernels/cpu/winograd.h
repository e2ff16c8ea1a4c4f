/* The transforms of Winograd's minimal filtering F(m x m, 3 x 3), m = 2 or 4, and their transposes, by vectors of
 * channels: y = A^T [(G w G^T) * (B^T x B)] A (Lavin & Gray 2016).
 *
 * The points are 0, +-1 and infinity for m = 2; 0, +-3/4, +-3/2 and infinity for m = 4: of six sets tried the one with the
 * smallest errors, half of those of the usual 0, +-1, +-2, and with B and A exact in binary. (How points change errors:
 * Barabasz et al. 2020.)
 *
 * One-dimensional transforms take rows or columns whose elements lie `step` apart. */
#ifndef CDAD_KERNELS_CPU_WINOGRAD_H
#define CDAD_KERNELS_CPU_WINOGRAD_H

#include "kernels/cpu/simd.h"
#include "kernels/kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { WINO_PLACES = 36 }; /* at most: (m + 2)^2 */

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Floats from place to place for panels of so many. A transform writes, or reads, a vector of every place in turn; were
 * these a multiple of 4 KiB apart, they would all meet in the same few lines of a first-level cache. */
static inline int64_t place_stride(int64_t floats) { return 16 * (ceil_div(floats, 16) | 1); }

/* u = G w, 3 -> n */
INLINE void filter_1d(int m, vf *u, const vf *w, int step) {
    if (m == 2) {
        const vf s = 0.5f * (w[0] + w[2 * step]), d = 0.5f * w[step];
        u[0] = w[0];
        u[step] = s + d;
        u[2 * step] = s - d;
        u[3 * step] = w[2 * step];
        return;
    }
    const vf w0 = w[0], w1 = w[step], w2 = w[2 * step];
    const vf s = (w0 + 0.5625f * w2) * (float)(-128.0 / 243), d = w1 * (float)(-96.0 / 243);
    const vf t = (w0 + 2.25f * w2) * (float)(32.0 / 243), e = w1 * (float)(48.0 / 243);
    u[0] = w0 * (float)(64.0 / 81);
    u[step] = s + d;
    u[2 * step] = s - d;
    u[3 * step] = t + e;
    u[4 * step] = t - e;
    u[5 * step] = w2;
}

/* v = B^T x, n -> n */
INLINE void image_1d(int m, vf *v, const vf *x, int step) {
    const vf x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
    if (m == 2) {
        v[0] = x[0] - x2;
        v[step] = x1 + x2;
        v[2 * step] = x2 - x1;
        v[3 * step] = x3 - x1;
        return;
    }
    const vf x0 = x[0], x4 = x[4 * step], x5 = x[5 * step];
    const vf s = x4 - 2.25f * x2, d = 0.75f * x3 - 1.6875f * x1;
    const vf t = x4 - 0.5625f * x2, e = 1.5f * x3 - 0.84375f * x1;
    v[0] = 1.265625f * x0 - 2.8125f * x2 + x4;
    v[step] = s + d;
    v[2 * step] = s - d;
    v[3 * step] = t + e;
    v[4 * step] = t - e;
    v[5 * step] = 1.265625f * x1 - 2.8125f * x3 + x5;
}

/* y = A^T z, n -> m */
INLINE void result_1d(int m, vf *y, const vf *z, int step) {
    const vf s = z[step] + z[2 * step], d = z[step] - z[2 * step];
    if (m == 2) {
        y[0] = z[0] + s;
        y[step] = d + z[3 * step];
        return;
    }
    const vf t = z[3 * step] + z[4 * step], e = z[3 * step] - z[4 * step], last = z[5 * step];
    y[0] = z[0] + s + t;
    y[step] = 0.75f * d + 1.5f * e;
    y[2 * step] = 0.5625f * s + 2.25f * t;
    y[3 * step] = 0.421875f * d + 3.375f * e + last;
}

/* w = G^T u, n -> 3 */
INLINE void filter_back_1d(int m, vf *w, const vf *u, int step) {
    const vf s = u[step] + u[2 * step], d = u[step] - u[2 * step];
    if (m == 2) {
        w[0] = u[0] + 0.5f * s;
        w[step] = 0.5f * d;
        w[2 * step] = 0.5f * s + u[3 * step];
        return;
    }
    const vf t = u[3 * step] + u[4 * step], e = u[3 * step] - u[4 * step];
    w[0] = u[0] * (float)(64.0 / 81) + s * (float)(-128.0 / 243) + t * (float)(32.0 / 243);
    w[step] = d * (float)(-96.0 / 243) + e * (float)(48.0 / 243);
    w[2 * step] = s * (float)(-72.0 / 243) + t * (float)(72.0 / 243) + u[5 * step];
}

/* z = A y, m -> n */
INLINE void result_back_1d(int m, vf *z, const vf *y, int step) {
    const vf y0 = y[0], y1 = y[step];
    z[0] = y0;
    if (m == 2) {
        z[step] = y0 + y1;
        z[2 * step] = y0 - y1;
        z[3 * step] = y1;
        return;
    }
    const vf y2 = y[2 * step], y3 = y[3 * step];
    const vf s = y0 + 0.5625f * y2, d = 0.75f * y1 + 0.421875f * y3;
    const vf t = y0 + 2.25f * y2, e = 1.5f * y1 + 3.375f * y3;
    z[step] = s + d;
    z[2 * step] = s - d;
    z[3 * step] = t + e;
    z[4 * step] = t - e;
    z[5 * step] = y3;
}

/* The n x n pixels that tile number `tile` of y reads from x, or `none` where it reaches over the border. */
INLINE void tile_pixels(const float **from, const cdad_unfold *u, const float *x, int m, int64_t tile, const float *none) {
    const int n = m + 2;
    const int64_t down = (u->P + m - 1) / m, across = (u->Q + m - 1) / m, image = tile / across / down;
    const int64_t top = tile / across % down * m - u->pad_t, left = tile % across * m - u->pad_l;
    x += image * u->H * u->W * u->C;
    for (int64_t r = 0; r < n; r++)
        for (int64_t s = 0; s < n; s++) {
            const int64_t h = top + r, w = left + s;
            const int inside = h >= 0 && w >= 0 && h < u->H * u->up && w < u->W * u->up;
            from[r * n + s] = inside ? x + (h / u->up * u->W + w / u->up) * u->C : none;
        }
}

/* to[place * stride + c] for channels c < kc, from the n x n pixels that a tile reads. */
INLINE void transform_pixels(int m, float *to, int64_t stride, const float *const *from, int64_t kc) {
    const int n = m + 2;
    for (int64_t c = 0; c < kc; c += VL) {
        const int64_t count = min_i(VL, kc - c);
        vf x[36], t[36];
        V_UNROLL for (int s = 0; s < n; s++) {
            V_UNROLL for (int r = 0; r < n; r++)
                x[r * n + s] = v_load_n(from[r * n + s] + c, count);
            image_1d(m, t + s, x + s, n);
        }
        V_UNROLL for (int r = 0; r < n; r++) {
            image_1d(m, x + r * n, t + r * n, 1);
            V_UNROLL for (int s = 0; s < n; s++)
                v_store_n(to + (r * n + s) * stride + c, x[r * n + s], count);
        }
    }
}

#endif
