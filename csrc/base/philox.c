/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). */
#include "base/philox.h"

#include <math.h>

/* Two key words, four counter words: ten rounds. */
static void philox_block(uint32_t k0, uint32_t k1, uint32_t c[4]) {
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        const uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)b;
        c[3] = (uint32_t)a;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

void cdad_philox(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]) {
    out[0] = (uint32_t)index;
    out[1] = (uint32_t)(index >> 32);
    out[2] = (uint32_t)stream;
    out[3] = (uint32_t)(stream >> 32);
    philox_block((uint32_t)seed, (uint32_t)(seed >> 32), out);
}

/* (0,1): never zero, so that its logarithm is finite. */
static double open_unit(uint32_t word) { return ((double)word + 0.5) * (1.0 / 4294967296.0); }

/* The four normal values of a block. */
static void normal_block(uint64_t seed, uint64_t stream, uint64_t index, float out[4]) {
    uint32_t word[4];
    cdad_philox(seed, stream, index, word);
    for (int pair = 0; pair < 2; pair++) {
        const double radius = sqrt(-2.0 * log(open_unit(word[2 * pair])));
        const double angle = 6.283185307179586 * open_unit(word[2 * pair + 1]);
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

static void uniform_block(uint64_t seed, uint64_t stream, uint64_t index, float out[4]) {
    uint32_t word[4];
    cdad_philox(seed, stream, index, word);
    for (int i = 0; i < 4; i++)
        out[i] = (float)(word[i] >> 8) * (1.0f / 16777216.0f);
}

typedef void (*block_fn)(uint64_t seed, uint64_t stream, uint64_t index, float out[4]);

/* Values first .. first+n-1 of a sequence that is made by blocks of four. */
static void fill(float *dst, int64_t n, uint64_t seed, uint64_t stream, int64_t first, block_fn block) {
    float values[4];
    for (int64_t i = 0; i < n; i++) {
        const uint64_t at = (uint64_t)first + (uint64_t)i;
        if (i == 0 || at % 4 == 0)
            block(seed, stream, at / 4, values);
        dst[i] = values[at % 4];
    }
}

void cdad_random_normal(float *dst, int64_t n, uint64_t seed, uint64_t stream, int64_t first) {
    fill(dst, n, seed, stream, first, normal_block);
}

void cdad_random_uniform(float *dst, int64_t n, uint64_t seed, uint64_t stream, int64_t first) {
    fill(dst, n, seed, stream, first, uniform_block);
}

int64_t cdad_random_below(int64_t bound, uint64_t seed, uint64_t stream, int64_t index) {
    uint32_t word[4];
    cdad_philox(seed, stream, (uint64_t)index, word);
    const uint64_t wide = (uint64_t)word[0] << 32 | word[1];
    return (int64_t)(((__uint128_t)wide * (uint64_t)bound) >> 64);
}

uint64_t cdad_stream_of_name(const char *name) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001B3u;
    return hash;
}
