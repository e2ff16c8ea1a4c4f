/* What every C test uses: checks that count failures, and memory. */
#ifndef CDAD_TESTS_CHECK_H
#define CDAD_TESTS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static int failures; /* failed checks of this file */
static const char *check_of = ""; /* what is under test, for messages */

#define CHECK(cond, ...)                                                      \
    do {                                                                      \
        if (!(cond)) {                                                        \
            failures++;                                                       \
            printf("%s:%d: %s%s: ", __FILE__, __LINE__, check_of, #cond);     \
            printf(__VA_ARGS__);                                              \
            printf("\n");                                                     \
        }                                                                     \
    } while (0)

/* `expr` uses `err`. */
#define CHECK_OK(expr)                                         \
    do {                                                       \
        cdad_error e_ = {0}, *err = &e_;                       \
        const cdad_status s_ = (expr);                         \
        CHECK(s_ == CDAD_OK, "status %d: %s", s_, e_.message); \
    } while (0)

#define CHECK_FAILS(code, text, expr)                                                                        \
    do {                                                                                                     \
        cdad_error e_ = {0}, *err = &e_;                                                                     \
        const cdad_status s_ = (expr);                                                                       \
        CHECK(s_ == (code) && e_.status == s_ && strstr(e_.message, text), "status %d: %s", s_, e_.message); \
    } while (0)

/* Zeroed; a test program that has no memory left ends. */
static inline void *zeros(int64_t bytes) {
    void *p;
    if (cdad_alloc_zero(&p, bytes, NULL) != CDAD_OK)
        abort();
    return p;
}
static inline float *floats(int64_t n) { return zeros(n * (int64_t)sizeof(float)); }
static inline double *doubles(int64_t n) { return zeros(n * (int64_t)sizeof(double)); }

/* The same n floats, bit by bit. */
static inline int same(const void *a, const void *b, int64_t n) {
    return memcmp(a, b, (size_t)n * sizeof(float)) == 0;
}

#endif
