/* What the tests of kernels share: the table under test, pools, data, comparisons, numerical gradients. */
#ifndef CDAD_TESTS_KERNEL_CHECK_H
#define CDAD_TESTS_KERNEL_CHECK_H

#include <math.h>

#include "base/pool.h"
#include "kernels/kernels.h"
#include "check.h"

static const cdad_kernels *table; /* under test */
static cdad_pool *pools[5];       /* of 1, 2 and 4 threads */

/* Runs STATEMENTS with `threads` 1, 2 and 4 and `ctx` made for them. */
#define EACH_POOL(...)                                                                              \
    for (int threads = 1; threads <= 4; threads *= 2) {                                             \
        const cdad_context context_ = {.pool = pools[threads], .kernels = table}, *ctx = &context_; \
        __VA_ARGS__                                                                                 \
    }

/* Runs the test on every table of this machine; returns the number of failed checks. */
static inline int on_every_table(void (*test)(void)) {
    char name[32];
    check_of = name;
    for (int threads = 1; threads <= 4; threads *= 2)
        if (cdad_pool_new(&pools[threads], threads, NULL) != CDAD_OK)
            return 1;
    for (int i = 0; (table = cdad_kernels_at(i)); i++) {
        snprintf(name, sizeof name, "[%s] ", table->name);
        test();
    }
    check_of = "";
    for (int threads = 1; threads <= 4; threads *= 2)
        cdad_pool_free(pools[threads]);
    return failures;
}

/* n values in [middle - spread, middle + spread), a function of `seed`. */
static inline float *noise(int64_t n, uint32_t seed, float middle, float spread) {
    float *x = floats(n);
    uint32_t state = seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = middle + spread * ((float)(int32_t)state * 0x1p-31f);
    }
    return x;
}

/* Element (pixel, column) of the unfolded image, straight from the definition in kernels.h. */
static inline float unfolded(const cdad_unfold *u, const float *x, int64_t pixel, int64_t column) {
    int64_t n = pixel / (u->P * u->Q), p = pixel / u->Q % u->P, q = pixel % u->Q;
    int64_t r = column / (u->S * u->C), s = column / u->C % u->S, c = column % u->C;
    int64_t h = p * u->stride + r - u->pad_t, w = q * u->stride + s - u->pad_l;
    if (h < 0 || w < 0)
        return 0.0f;
    h /= u->up;
    w /= u->up;
    return h < u->H && w < u->W ? x[((n * u->H + h) * u->W + w) * u->C + c] : 0.0f;
}

/* The nearest of the two bfloat16 beside a normal number, the even one of two equally near; by comparing, not by bits. */
static inline float rounded(float x) {
    uint32_t bits;
    float low, high;
    memcpy(&bits, &x, sizeof bits);
    uint32_t down = bits & 0xffff0000, up = down + 0x10000;
    memcpy(&low, &down, sizeof low);
    memcpy(&high, &up, sizeof high);
    const double below = fabs((double)x - (double)low), above = fabs((double)high - (double)x);
    return below < above || (below == above && !(down & 0x10000)) ? low : high;
}

static inline double *widen(const float *x, int64_t n) {
    double *y = doubles(n);
    for (int64_t i = 0; i < n; i++)
        y[i] = (double)x[i];
    return y;
}

/* The largest |x - want| / (|want| + floor); infinite when an x is NaN. */
static inline double worst(const float *x, const double *want, int64_t n, double floor) {
    double most = 0.0;
    for (int64_t i = 0; i < n; i++) {
        const double e = fabs((double)x[i] - want[i]) / (fabs(want[i]) + floor);
        most = e <= most ? most : isnan(e) ? HUGE_VAL : e;
    }
    return most;
}

/* The largest |x - want| in units of the root mean square of `want`. */
static inline double worst_rms(const float *x, const double *want, int64_t n) {
    double squares = 0.0, most = 0.0;
    for (int64_t i = 0; i < n; i++)
        squares += want[i] * want[i];
    const double scale = sqrt(squares / (double)n) + 1e-12;
    for (int64_t i = 0; i < n; i++) {
        const double e = fabs((double)x[i] - want[i]) / scale;
        most = e <= most ? most : isnan(e) ? HUGE_VAL : e;
    }
    return most;
}

/* The largest difference of `grad` from central differences of loss(arg) in the parameters x [n], in units of
 * the gradient's largest element; at most `points` elements are tried, spread evenly. */
static inline double worst_gradient(const float *grad, double *x, int64_t n, int64_t points,
                                    double (*loss)(void *arg), void *arg) {
    const double eps = 1e-4;
    const int64_t step = n <= points ? 1 : n / points | 1;
    double scale = 1e-12, most = 0.0;
    for (int64_t i = 0; i < n; i++)
        scale = fmax(scale, fabs((double)grad[i]));
    for (int64_t i = 0; i < n; i += step) {
        const double kept = x[i];
        x[i] = kept + eps;
        const double up = loss(arg);
        x[i] = kept - eps;
        const double e = fabs((up - loss(arg)) / (2 * eps) - (double)grad[i]) / scale;
        x[i] = kept;
        most = e <= most ? most : isnan(e) ? HUGE_VAL : e;
    }
    return most;
}

#endif
