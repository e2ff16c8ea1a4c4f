/* Rounding up or down at random, by a hash of a value's place: errors are as good as independent of the values and of each other, so
 * what they add to a sum falls as the root of its length. */
#ifndef CDAD_KERNELS_CPU_DITHER_H
#define CDAD_KERNELS_CPU_DITHER_H

#include "kernels/cpu/simd.h"

typedef uint32_t vu __attribute__((vector_size(CDAD_VBYTES)));

/* In [0, 1), of 16 bits: what is added before rounding down. */
static inline vf dither(vu place) {
    place ^= place >> 16;
    place *= 0x7feb352du;
    place ^= place >> 15;
    place *= 0x846ca68bu;
    return __builtin_convertvector((vi)(place >> 16), vf) * 0x1p-16f;
}

/* Places of lanes `lane` on in row 0, and what a row further adds to them. */
enum { DITHER_ROW = (int)0x85ebca6bu };
static inline vu dither_lanes(uint32_t lane) {
    vu place;
    for (int i = 0; i < VL; i++)
        place[i] = (lane + (uint32_t)i) * 0x9e3779b9u;
    return place;
}
#endif
