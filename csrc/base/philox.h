/* Counter-based random numbers: Philox4x32-10 (Salmon et al. 2011).
 *
 * A value depends on (seed, stream, index) only, so it is the same on every device, for every batch
 * composition and after every resume. */
#ifndef CDAD_BASE_PHILOX_H
#define CDAD_BASE_PHILOX_H

#include <stdint.h>
#include <string.h>

/* The four 32-bit words of block `index`. */
void cdad_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);

/* Standard normal floats number first .. first+n-1 of the stream (Box-Muller, four a block). */
void cdad_random_normal(float *dst, int64_t n, uint64_t seed, uint64_t stream, int64_t first);

/* Uniform floats in [0, 1), likewise. */
void cdad_random_uniform(float *dst, int64_t n, uint64_t seed, uint64_t stream, int64_t first);

/* An integer in [0, bound) for element `index` of the stream; bound >= 1. */
int64_t cdad_random_below(int64_t bound, uint64_t seed, uint64_t stream, int64_t index);

/* A seed for what is rounded at random while sums grow: of their total so far, it is another one for each add, also of what came before, whose
 * roundings would otherwise be the same and add up. */
static inline uint32_t cdad_seed_of(double total) {
    uint64_t bits;
    memcpy(&bits, &total, sizeof bits);
    return (uint32_t)(bits ^ bits >> 32);
}

/* A stream number made from a name (FNV-1a), so that streams do not depend on order. */
uint64_t cdad_stream_of_name(const char *name);

#endif
