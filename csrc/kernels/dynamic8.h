/* Numbers in 8 bit by blocks: dynamic quantisation (Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization), one
 * arithmetic for the host and devices.
 *
 * A block of CDAD_BLOCK8 numbers is kept as the one of the largest magnitude, a float, and a code for each quotient by that. The
 * decade [10^(i-7), 10^(i-6)), i = 0 .. 6, has 2^i bins of one width, and a code stands for the middle of its bin: 7 bits of code
 * for the magnitude, 2^i + bin, and the top bit for the sign. Numbers that have no sign (AdamW's second moment) have twice the
 * bins: 2^(i+1) + bin. Code 0 is zero; the code that is left over (0x80 with a sign, else 1) is one: the largest keeps its bits,
 * negative ones too.
 *
 * Of numbers without a sign those below the first decade, but above zero, get its first code: a second moment of zero beside a
 * first one that is not would make a step of any size (Li et al. 2023, Memory Efficient Optimizers with 4-bit States). */
#ifndef CDAD_KERNELS_DYNAMIC8_H
#define CDAD_KERNELS_DYNAMIC8_H

#include <string.h>

#include "kernels/kernels.h"

enum {
    CDAD_BLOCK8 = 256,
    CDAD_ONE8_SIGNED = 0x80,
    CDAD_ONE8_UNSIGNED = 1
};

/* A code's place is 2^i + bin + 1/2; what it stands for is 10^(i-6) (0.1 + 0.9 (bin + 1/2) / 2^i) = 10^(i-6) (0.9 f - 0.8) of
 * its block's largest magnitude, with place = 2^i f. The 0.9 has so few bits that the product is exact: the values are the
 * same bits whether product and sum fuse or not. */
CDAD_EVERYWHERE float cdad_middle8(float place) {
    uint32_t bits, fraction;
    float f;
    memcpy(&bits, &place, sizeof bits);
    fraction = (bits & 0x007fffff) | 0x3f800000;
    memcpy(&f, &fraction, sizeof f);
    float value = 0x1.ccccp-1f * f - 0.8f;
    const int i = (int)(bits >> 23) - 127;
    value *= i & 1 ? 1e-5f : 1e-6f;
    value = i & 2 ? value * 1e2f : value;
    return i & 4 ? value * 1e4f : value;
}
CDAD_EVERYWHERE float cdad_value8_signed(int code) {
    const int magnitude = code & 0x7f;
    const float middle = cdad_middle8((float)magnitude + 0.5f), value = magnitude == 0 ? 0.0f : code & 0x80 ? -middle : middle;
    return code == CDAD_ONE8_SIGNED ? 1.0f : value;
}
CDAD_EVERYWHERE float cdad_value8_unsigned(int code) {
    const float middle = cdad_middle8(0.5f * (float)code + 0.25f), value = code == 0 ? 0.0f : middle;
    return code == CDAD_ONE8_UNSIGNED ? 1.0f : value;
}

/* Of a magnitude x in [0,1] of decade i, with a sign: 2^i + its place among the bins, a real number. With x = 10^(i-6) y that is
 * 2^i (1 + (y - 0.1) / 0.9). Below the first decade less than 1. */
CDAD_EVERYWHERE float cdad_place8(float x) {
    float y = x, begin = 64.0f * 8 / 9;
    begin = y < 1e-4f ? begin * 0.0625f : begin, y = y < 1e-4f ? y * 1e4f : y;
    begin = y < 1e-2f ? begin * 0.25f : begin, y = y < 1e-2f ? y * 1e2f : y;
    begin = y < 1e-1f ? begin * 0.5f : begin, y = y < 1e-1f ? y * 1e1f : y;
    return begin * (1.25f * y + 1.0f);
}

/* The code of x, a quotient by the block's largest, which rounding may have put above 1. What is no number is 0. */
CDAD_EVERYWHERE int cdad_code8_signed(float x) {
    const float magnitude = x < 0.0f ? -x : x, place = cdad_place8(magnitude);
    const int negative = x < 0.0f ? 0x80 : 0;
    const int bin = place < 128.0f ? (int)place : 127;
    const int code = place >= 127.75f && !negative ? CDAD_ONE8_SIGNED : bin | negative; /* halfway from the last bin's middle */
    return magnitude >= 0.275e-6f ? code : 0; /* halfway to the first bin's */
}
CDAD_EVERYWHERE int cdad_code8_unsigned(float x) {
    const float place = 2.0f * cdad_place8(x);
    const int bin = place < 2.0f ? 2 : place < 256.0f ? (int)place : 255;
    const int code = place >= 255.75f ? CDAD_ONE8_UNSIGNED : bin;
    return x > 0.0f ? code : 0;
}

/* Numbers by magnitude, the negative one of two: their bits, with the sign last. */
CDAD_EVERYWHERE uint32_t cdad_rank8(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits << 1 | bits >> 31;
}
/* The block's largest number, made finite, from its rank; returned is what the numbers are multiplied by to be quotients: 0
 * where the largest is a denormal number, and the block then zero. */
CDAD_EVERYWHERE float cdad_inverse8(uint32_t rank, float *largest) {
    const uint32_t magnitude = rank >> 1 < 0x7f7fffff ? rank >> 1 : 0x7f7fffff, bits = magnitude | rank << 31;
    memcpy(largest, &bits, sizeof bits);
    return magnitude >= 0x00800000 ? 1.0f / *largest : 0.0f;
}

/* n numbers from their codes and the blocks' largest, and back. Inlined, with is_signed a number, so that compilers make
 * vectors of the loops. */
__attribute__((always_inline)) static inline void cdad_decode8(int is_signed, float *__restrict to, const uint8_t *__restrict codes,
                                                              const float *__restrict most, int64_t n) {
    for (int64_t begin = 0; begin < n; begin += CDAD_BLOCK8) {
        const float largest = most[begin / CDAD_BLOCK8];
        const int64_t end = begin + CDAD_BLOCK8 < n ? begin + CDAD_BLOCK8 : n;
        for (int64_t i = begin; i < end; i++)
            to[i] = largest * (is_signed ? cdad_value8_signed(codes[i]) : cdad_value8_unsigned(codes[i]));
    }
}

__attribute__((always_inline)) static inline void cdad_encode8(int is_signed, uint8_t *__restrict codes, float *__restrict most,
                                                              const float *__restrict from, int64_t n) {
    for (int64_t begin = 0; begin < n; begin += CDAD_BLOCK8) {
        const int64_t end = begin + CDAD_BLOCK8 < n ? begin + CDAD_BLOCK8 : n;
        uint32_t rank = 0;
        for (int64_t i = begin; i < end; i++)
            rank = cdad_rank8(from[i]) > rank ? cdad_rank8(from[i]) : rank;
        const float inverse = cdad_inverse8(rank, &most[begin / CDAD_BLOCK8]);
        for (int64_t i = begin; i < end; i++)
            codes[i] = (uint8_t)(is_signed ? cdad_code8_signed(from[i] * inverse) : cdad_code8_unsigned(from[i] * inverse));
    }
}

#endif
