/* Sparse random test vectors of signs: a feature has one in each of a few equal parts of the vectors (Nelson, Nguyen, "OSNAP", FOCS 2013). */
#ifndef CDAD_CONTINUAL_SIGNS_H
#define CDAD_CONTINUAL_SIGNS_H

#include <stdint.h>

/* Where a random word puts its sign in part i of `parts` of n vectors, which is not empty: 2t, a 1 in vector t, or 2t + 1, a -1. */
static inline int32_t cdad_sign_place(uint32_t word, int64_t i, int64_t parts, int64_t n) {
    const int64_t first = i * n / parts, width = (i + 1) * n / parts - first;
    return (int32_t)(2 * (first + ((int64_t)(word >> 1) * width >> 31)) + (word & 1));
}

#endif
