/* Packing: rows of A or columns of B, plain or gathered from an image, into panels. */
#include "kernels/cpu/gemm.h"

#define INLINE static inline __attribute__((always_inline))

/* Up to this many channels, the taps of one kernel row are copied as one run before they are interleaved. */
#define SHORT_C 32

typedef float v4 __attribute__((vector_size(16)));

static const float zeros[GEMM_KC];

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t clamp_i(int64_t x, int64_t lo, int64_t hi) { return x < lo ? lo : x > hi ? hi : x; }

static inline v4 load4(const float *p) {
    v4 v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* dst[j*width + i] = lane[i][j], i < 4, j < 4; only the lanes i < stored are stored. */
INLINE void transpose4(float *dst, int64_t width, v4 a, v4 b, v4 c, v4 d, size_t stored) {
    v4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    v4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    v4 row0 = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
    v4 row1 = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
    v4 row2 = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5);
    v4 row3 = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
    memcpy(dst, &row0, stored * sizeof(float));
    memcpy(dst + width, &row1, stored * sizeof(float));
    memcpy(dst + 2 * width, &row2, stored * sizeof(float));
    memcpy(dst + 3 * width, &row3, stored * sizeof(float));
}

/* dst[k*width + i] = lane[i][k], i < width, k < n; width is even. */
INLINE void interleave(float *dst, int64_t width, const float *const *lane, int64_t n) {
    int64_t k = 0, i;
    for (; k + 4 <= n; k += 4, dst += 4 * width) {
        for (i = 0; i + 4 <= width; i += 4)
            transpose4(dst + i, width, load4(lane[i] + k), load4(lane[i + 1] + k), load4(lane[i + 2] + k),
                       load4(lane[i + 3] + k), 4);
        if (i < width) {
            v4 a = load4(lane[i] + k), b = load4(lane[i + 1] + k);
            transpose4(dst + i, width, a, b, a, b, 2);
        }
    }
    for (; k < n; k++, dst += width)
        for (i = 0; i < width; i++)
            dst[i] = lane[i][k];
}

/* Runs are short: a call of memcpy would cost more than the copy. */
INLINE void copy_run(float *dst, const float *src, int64_t n) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        memcpy(dst + i, src + i, 4 * sizeof(float));
    if (n & 2) {
        memcpy(dst + i, src + i, 2 * sizeof(float));
        i += 2;
    }
    if (n & 1)
        dst[i] = src[i];
}

/* Element (lane, k) is src[lane*lane_stride + k*k_stride]. */
INLINE void pack_plain(float *dst, int64_t width, const float *src, int64_t lane_stride, int64_t k_stride,
                       int64_t lanes, int64_t kc) {
    if (k_stride == 1) {
        const float *lane[GEMM_MR > GEMM_NR ? GEMM_MR : GEMM_NR];
        for (int64_t i = 0; i < width; i++)
            lane[i] = i < lanes ? src + i * lane_stride : zeros;
        interleave(dst, width, lane, kc);
    } else if (lane_stride == 1 && lanes == width) {
        for (int64_t k = 0; k < kc; k++)
            memcpy(dst + k * width, src + k * k_stride, (size_t)width * sizeof(float));
    } else if (lane_stride == 1) {
        memset(dst, 0, (size_t)(kc * width) * sizeof(float));
        for (int64_t k = 0; k < kc; k++)
            copy_run(dst + k * width, src + k * k_stride, lanes);
    } else {
        for (int64_t k = 0; k < kc; k++, dst += width) {
            for (int64_t i = 0; i < lanes; i++)
                dst[i] = src[i * lane_stride + k * k_stride];
            for (int64_t i = lanes; i < width; i++)
                dst[i] = 0.0f;
        }
    }
}

/* n columns, from number `begin` of kernel row r on, of one row of the unfolded matrix, whose window begins
 * at (top, left) of `image`, for up = 1: taps side by side in a kernel row are so in the image. */
INLINE void unfold_row(float *dst, const cdad_unfold *u, const float *image, int64_t top, int64_t left,
                       int64_t r, int64_t begin, int64_t n) {
    int64_t row = u->S * u->C;
    int64_t first = clamp_i(-left, 0, u->S) * u->C, last = clamp_i(u->W - left, 0, u->S) * u->C;
    for (; n > 0; r++, begin = 0) {
        int64_t end = min_i(row, begin + n), h = top + r;
        int inside = h >= 0 && h < u->H;
        int64_t from = inside ? clamp_i(first, begin, end) : end;
        int64_t to = inside ? clamp_i(last, from, end) : end;
        int64_t base = (h * u->W + left) * u->C;
        for (int64_t j = begin; j < from; j++)
            dst[j - begin] = 0.0f;
        copy_run(dst + (from - begin), image + base + from, to - from);
        for (int64_t j = to; j < end; j++)
            dst[j - begin] = 0.0f;
        dst += end - begin;
        n -= end - begin;
    }
}

/* Lanes are pixels of the result: each reads runs of C channels. */
static void unfold_a(float *dst, const cdad_unfold *u, const float *x, int64_t m0, int64_t rows, int64_t k0,
                     int64_t kc) {
    const float *image[GEMM_MR], *lane[GEMM_MR];
    int64_t top[GEMM_MR], left[GEMM_MR];
    int64_t q = m0 % u->Q, p = m0 / u->Q % u->P, n = m0 / u->Q / u->P;
    for (int64_t i = 0; i < rows; i++) {
        image[i] = x + n * u->H * u->W * u->C;
        top[i] = p * u->stride - u->pad_t;
        left[i] = q * u->stride - u->pad_l;
        if (++q == u->Q) {
            q = 0;
            if (++p == u->P) {
                p = 0;
                n++;
            }
        }
    }
    for (int64_t i = rows; i < GEMM_MR; i++)
        lane[i] = zeros;

    if (u->C <= SHORT_C && u->up == 1) {
        float line[GEMM_MR][GEMM_KC];
        int64_t r = k0 / (u->S * u->C), begin = k0 % (u->S * u->C);
        for (int64_t i = 0; i < rows; i++) {
            unfold_row(line[i], u, image[i], top[i], left[i], r, begin, kc);
            lane[i] = line[i];
        }
        interleave(dst, GEMM_MR, lane, kc);
        return;
    }
    int64_t tap = k0 / u->C, c = k0 % u->C, r = tap / u->S, s = tap % u->S;
    for (int64_t k = 0; k < kc;) {
        int64_t run = min_i(u->C - c, kc - k);
        for (int64_t i = 0; i < rows; i++) {
            int64_t h = gemm_source(top[i] + r, u->H, u), w = gemm_source(left[i] + s, u->W, u);
            lane[i] = h < 0 || w < 0 ? zeros : image[i] + (h * u->W + w) * u->C + c;
        }
        interleave(dst + k * GEMM_MR, GEMM_MR, lane, run);
        k += run;
        c = 0;
        if (++s == u->S) {
            s = 0;
            r++;
        }
    }
}

/* One tap (r, s), channels c .. c+len-1, of the pixels k0 .. k0+kc-1. */
INLINE void unfold_tap(float *dst, const cdad_unfold *u, const float *x, int64_t r, int64_t s, int64_t c,
                       int64_t len, int64_t k0, int64_t kc) {
    int64_t q = k0 % u->Q, p = k0 / u->Q % u->P, n = k0 / u->Q / u->P;
    for (int64_t k = 0; k < kc;) {
        int64_t end = min_i(kc, k + u->Q - q), h = gemm_source(p * u->stride + r - u->pad_t, u->H, u);
        int64_t row = (n * u->H + h) * u->W;
        for (int64_t at = q * u->stride + s - u->pad_l; k < end; k++, at += u->stride, dst += GEMM_NR) {
            int64_t w = gemm_source(at, u->W, u);
            copy_run(dst, h < 0 || w < 0 ? zeros : x + (row + w) * u->C + c, len);
        }
        q = 0;
        if (++p == u->P) {
            p = 0;
            n++;
        }
    }
}

/* Lanes are (r, s, c), k counts pixels. */
static void unfold_b(float *dst, const cdad_unfold *u, const float *x, int64_t n0, int64_t cols, int64_t k0,
                     int64_t kc) {
    if (cols < GEMM_NR)
        memset(dst, 0, (size_t)(kc * GEMM_NR) * sizeof(float));
    int64_t tap = n0 / u->C, c = n0 % u->C;
    for (int64_t j = 0; j < cols; tap++, c = 0) {
        int64_t len = min_i(u->C - c, cols - j), r = tap / u->S, s = tap % u->S;
        if (len == GEMM_NR)
            unfold_tap(dst, u, x, r, s, c, GEMM_NR, k0, kc);
        else
            unfold_tap(dst + j, u, x, r, s, c, len, k0, kc);
        j += len;
    }
}

void CDAD_K(gemm_pack_a)(float *panel, const cdad_mat *A, int64_t m0, int64_t rows, int64_t k0, int64_t kc) {
    if (A->unfold)
        unfold_a(panel, A->unfold, A->data, m0, rows, k0, kc);
    else
        pack_plain(panel, GEMM_MR, A->data + m0 * A->rs + k0 * A->cs, A->rs, A->cs, rows, kc);
}

void CDAD_K(gemm_pack_b)(float *panel, const cdad_mat *B, int64_t n0, int64_t cols, int64_t k0, int64_t kc) {
    if (B->unfold)
        unfold_b(panel, B->unfold, B->data, n0, cols, k0, kc);
    else
        pack_plain(panel, GEMM_NR, B->data + k0 * B->rs + n0 * B->cs, B->cs, B->rs, cols, kc);
}

/* The upper half of a float, rounded to nearest even. Denormals become zero, as for the processor's dot products; a NaN
 * stays one. */
static inline uint32_t bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t size = bits & 0x7fffffff;
    const uint32_t rounded = size < 0x800000 ? bits & 0x80000000 : bits + 0x7fff + (bits >> 16 & 1);
    return (size > 0x7f800000 ? bits | 0x400000 : rounded) >> 16;
}

/* Steps side by side: even [width], odd [width] or NULL. */
INLINE void words(float *restrict to, const float *restrict even, const float *restrict odd, int64_t width) {
    for (int64_t i = 0; i < width; i++) {
        const uint32_t word = bf16(even[i]) | (odd ? bf16(odd[i]) << 16 : 0);
        memcpy(to + i, &word, sizeof word);
    }
}

/* to [(kc+1)/2, width] words = the panel of floats [kc, width], width GEMM_MR or GEMM_NR. */
static void to_words(float *to, const float *panel, int64_t width, int64_t kc) {
    for (; kc >= 2; kc -= 2, panel += 2 * width, to += width) {
        if (width == GEMM_MR)
            words(to, panel, panel + GEMM_MR, GEMM_MR);
        else
            words(to, panel, panel + GEMM_NR, GEMM_NR);
    }
    if (kc)
        words(to, panel, NULL, width);
}

void CDAD_K(gemm_panel)(gemm_form form, int rows, float *panel, const cdad_mat *m, int64_t l0, int64_t n, int64_t k0, int64_t kc) {
    float wide[GEMM_KC * (GEMM_MR > GEMM_NR ? GEMM_MR : GEMM_NR)];
#if GEMM_AMX
    if (form == GEMM_TILES) {
        CDAD_K(gemm_panel_amx)(rows, panel, m, l0, n, k0, kc);
        return;
    }
#endif
    float *floats = form == GEMM_WORDS ? wide : panel;
    if (rows)
        CDAD_K(gemm_pack_a)(floats, m, l0, n, k0, kc);
    else
        CDAD_K(gemm_pack_b)(floats, m, l0, n, k0, kc);
    if (form == GEMM_WORDS)
        to_words(panel, wide, rows ? GEMM_MR : GEMM_NR, kc);
}

void CDAD_K(gemm_unfold_line)(float *line, const cdad_unfold *u, const float *x, int64_t m, int64_t k0, int64_t kc) {
    const float *image = x + m / u->Q / u->P * u->H * u->W * u->C;
    const int64_t top = m / u->Q % u->P * u->stride - u->pad_t, left = m % u->Q * u->stride - u->pad_l;
    if (u->up == 1) {
        unfold_row(line, u, image, top, left, k0 / (u->S * u->C), k0 % (u->S * u->C), kc);
        return;
    }
    int64_t tap = k0 / u->C, c = k0 % u->C;
    for (int64_t k = 0; k < kc; tap++, c = 0) {
        const int64_t run = min_i(u->C - c, kc - k), h = gemm_source(top + tap / u->S, u->H, u), w = gemm_source(left + tap % u->S, u->W, u);
        if (h < 0 || w < 0)
            memset(line + k, 0, (size_t)run * sizeof *line);
        else
            memcpy(line + k, image + (h * u->W + w) * u->C + c, (size_t)run * sizeof *line);
        k += run;
    }
}

void CDAD_K(gemm_unpack)(float *to, int64_t rs, const float *panel, int64_t lanes, int64_t kc) {
    const int64_t i4 = lanes / 4 * 4, k4 = kc / 4 * 4;
    for (int64_t i = 0; i < i4; i += 4)
        for (int64_t k = 0; k < k4; k += 4) {
            const float *from = panel + k * GEMM_NR + i;
            transpose4(to + i * rs + k, rs, load4(from), load4(from + GEMM_NR), load4(from + 2 * GEMM_NR),
                       load4(from + 3 * GEMM_NR), 4);
        }
    for (int64_t i = 0; i < lanes; i++)
        for (int64_t k = i < i4 ? k4 : 0; k < kc; k++)
            to[i * rs + k] = panel[k * GEMM_NR + i];
}
