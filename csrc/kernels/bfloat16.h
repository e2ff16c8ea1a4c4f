/* bfloat16: the upper half of a float. */
#ifndef CDAD_KERNELS_BFLOAT16_H
#define CDAD_KERNELS_BFLOAT16_H

#include <string.h>

#include "kernels/kernels.h"

CDAD_EVERYWHERE float cdad_from_bf16(uint16_t half) {
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* To nearest even; NaN stays. */
CDAD_EVERYWHERE uint16_t cdad_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value == value ? (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : (uint16_t)(bits >> 16 | 0x40);
}

#endif
