/* Counting values by their place among marks, against the definition. */
#include <float.h>
#include <math.h>

#include "base/pool.h"
#include "metrics/places.h"
#include "check.h"

int cdad_test_places(void);

/* n values of which every third is skipped; some hit marks, some are infinite. Spread 0: all values and marks are near one. */
static void check_case(int64_t n, int64_t k, double spread, int as_floats, int threads) {
    cdad_pool *pool;
    double *values = doubles(n), *marks = doubles(k + 1);
    float *floats_ = floats(n);
    unsigned char *skip = zeros(n + 1);
    int64_t *counts = zeros((2 * k + 1) * 8), *want = zeros((2 * k + 1) * 8);
    uint32_t state = 7;
    memset(want, 0, (size_t)(2 * k + 1) * 8);
    for (int64_t i = 0; i < k; i++)
        marks[i] = spread > 0 ? spread * (double)(i * i) : 1.0 + DBL_EPSILON * (double)i;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        const double u = state * 0x1p-32 * 1.2 - 0.1;
        values[i] = spread > 0 ? spread * u * (double)(k * k) : 1.0 + DBL_EPSILON * floor(u * (double)k);
        if (k && i % 5 == 0)
            values[i] = marks[state % (uint32_t)k];
        if (i % 31 == 4)
            values[i] = i % 2 ? INFINITY : -INFINITY;
        floats_[i] = (float)values[i];
        skip[i] = i % 3 == 0;
        const double x = as_floats ? (double)floats_[i] : values[i];
        int64_t at = 0;
        while (at < k && marks[at] < x)
            at++;
        want[2 * at + (at < k && marks[at] == x)] += !skip[i];
    }
    CHECK(cdad_pool_new(&pool, threads, NULL) == CDAD_OK, "no pool");
    const cdad_context ctx = {.pool = pool};
    CHECK_OK(cdad_count_places(&ctx, counts, as_floats ? floats_ : NULL, values, skip, n, marks, k, err));
    CHECK(memcmp(counts, want, (size_t)(2 * k + 1) * 8) == 0, "%lld values, %lld marks, spread %g: wrong counts",
          (long long)n, (long long)k, spread);
    if (k > 1) {
        marks[1] = marks[0];
        CHECK_FAILS(CDAD_INVALID, "do not rise", cdad_count_places(&ctx, counts, NULL, values, skip, n, marks, k, err));
    }
    cdad_pool_free(pool);
    void *owned[] = {values, marks, floats_, skip, counts, want};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        cdad_free(owned[i]);
}

int cdad_test_places(void) {
    check_case(0, 0, 1.0, 0, 1);
    check_case(100, 0, 1.0, 1, 1);
    check_case(1000, 1, 1.0, 0, 2);
    check_case(1000, 3, 0.0, 0, 1);
    check_case(20000, 37, 0x1p-10, 1, 2);
    check_case(20000, 900, 1e300, 0, 2);
    check_case(20000, 900, 1e-310, 0, 4);
    check_case(2200000, 5, 3.0, 1, 2);
    return failures;
}
