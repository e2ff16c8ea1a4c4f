/* Counting places: the marks' range is cut into equal bins, a value's bin leaves a few marks to search. The values of a
 * chunk are brought into the order of their bins first, so that marks and counts are met in order, not all over memory. */
#include "metrics/places.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"

enum {
    CHUNK = 1 << 20, /* values of a task */
    BINS = 1 << 20,  /* at most */
    GROUP = 1024,     /* bins that a chunk's values are not ordered within */
    GROUPS = BINS / GROUP,
    FEW = 4,         /* marks that are searched one by one */
    CROWD = 8        /* with more marks than a share of 1/CROWD of the values, one worker: each has counts of its own */
};

typedef struct place_job {
    const float *floats;
    const double *doubles, *marks;
    const unsigned char *skip;
    int64_t n, k, bins, places;
    double low, scale;
    uint32_t *first;  /* [bins + 1]: a bin's first mark */
    uint32_t *counts; /* [workers, places] */
    double *ordered;  /* [workers, CHUNK] */
} place_job;

/* Of x not below the first mark nor above the last. Rounding keeps the order. */
static inline int64_t bin_of(const place_job *j, double x) {
    const double at = (x - j->low) * j->scale;
    return at < (double)j->bins ? (int64_t)at : j->bins - 1;
}

/* Of x not below the first mark nor above the last. */
static inline int64_t place_of(const place_job *j, double x) {
    const int64_t bin = bin_of(j, x);
    int64_t at = j->first[bin], left = j->first[bin + 1] - at;
    while (left > FEW) { /* the first mark that is not below x */
        const int64_t half = left / 2, below = j->marks[at + half] < x;
        at += below ? half + 1 : 0;
        left = below ? left - half - 1 : half;
    }
    for (const int64_t end = at + left; at < end && j->marks[at] < x;)
        at++;
    return 2 * at + (at < j->k && j->marks[at] == x);
}

static inline double value_at(const place_job *j, int64_t i) { return j->floats ? (double)j->floats[i] : j->doubles[i]; }

static void count_task(void *arg, int64_t task, int worker) {
    const place_job *j = arg;
    uint32_t *counts = j->counts + worker * j->places, end_of[GROUPS] = {0}, below = 0, above = 0, sum = 0;
    double *ordered = j->ordered + worker * CHUNK;
    const int64_t first = task * CHUNK, end = first + CHUNK < j->n ? first + CHUNK : j->n;
    const double low = j->low, high = j->k ? j->marks[j->k - 1] : j->low;
    for (int64_t i = first; i < end; i++) {
        const double x = value_at(j, i);
        if (j->skip[i])
            continue;
        if (j->k == 0 || x < low)
            below++;
        else if (x > high)
            above++;
        else
            end_of[bin_of(j, x) / GROUP]++;
    }
    counts[0] += below;
    counts[j->places - 1] += above;
    for (int64_t g = 0; g < GROUPS; g++) { /* where the group begins, for now */
        const uint32_t size = end_of[g];
        end_of[g] = sum;
        sum += size;
    }
    for (int64_t i = first; i < end; i++) {
        const double x = value_at(j, i);
        if (!j->skip[i] && j->k > 0 && x >= low && x <= high)
            ordered[end_of[bin_of(j, x) / GROUP]++] = x;
    }
    for (uint32_t i = 0; i < sum; i++)
        counts[place_of(j, ordered[i])]++;
}

static void fill_bins(place_job *j) {
    const double range = j->k ? j->marks[j->k - 1] - j->marks[0] : 0.0;
    j->low = j->k ? j->marks[0] : 0.0;
    j->scale = range > 0.0 ? (double)j->bins / range : 0.0;
    if (!isfinite(j->scale)) /* marks so near each other: one bin holds them all */
        j->scale = 0.0;
    for (int64_t i = 0, bin = 0; i <= j->k; i++)
        for (const int64_t to = i < j->k ? bin_of(j, j->marks[i]) : j->bins; bin < to; bin++)
            j->first[bin + 1] = (uint32_t)i;
}

cdad_status cdad_count_places(const cdad_context *ctx, int64_t *counts, const float *floats, const double *doubles,
                              const unsigned char *skip, int64_t n, const double *marks, int64_t k, cdad_error *err) {
    cdad_pool *pool = k > n / CROWD ? NULL : ctx->pool;
    const int64_t workers = pool ? cdad_pool_threads(pool) : 1;
    cdad_status status = CDAD_OK;
    place_job j = {.floats = floats, .doubles = doubles, .marks = marks, .skip = skip, .n = n, .k = k,
                   .bins = k < BINS ? k + 1 : BINS, .places = 2 * k + 1};
    CDAD_FAIL_IF(n >= INT64_C(1) << 32, err, CDAD_INVALID, "%" PRId64 " values; less than 2^32 are wanted", n);
    for (int64_t i = 1; i < k; i++)
        CDAD_FAIL_IF(!(marks[i - 1] < marks[i]), err, CDAD_INVALID, "marks %" PRId64 " and %" PRId64 " do not rise",
                     i - 1, i);
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&j.first, (j.bins + 1) * (int64_t)sizeof *j.first, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&j.counts, workers * j.places * (int64_t)sizeof *j.counts, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&j.ordered, workers * CHUNK * (int64_t)sizeof *j.ordered, err));
    fill_bins(&j);
    cdad_pool_run(pool, (n + CHUNK - 1) / CHUNK, count_task, &j);
    memset(counts, 0, (size_t)j.places * sizeof *counts);
    for (int64_t w = 0; w < workers; w++)
        for (int64_t i = 0; i < j.places; i++)
            counts[i] += j.counts[w * j.places + i];
done:
    cdad_free(j.first);
    cdad_free(j.counts);
    cdad_free(j.ordered);
    return status;
}
