/* Counting places: the marks' range is cut into equal bins, a value's bin leaves a few marks to search. The values of a
 * chunk are brought into the order of their bins first, so that marks and counts are met in order, not all over memory.
 * Values come in any order, so what is decided for each is computed without branches wherever that is possible. */
#include "metrics/places.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/pool.h"

enum {
    CHUNK = 1 << 20, /* values of a task */
    BINS = 1 << 20,  /* at most */
    GROUP = 1024,    /* bins that a chunk's values are not ordered within */
    GROUPS = BINS / GROUP,
    BELOW = GROUPS, /* no groups: below the first mark, above the last one, not counted */
    ABOVE,
    SKIPPED,
    KINDS,
    FEW = 4,  /* marks that are compared all at once */
    CROWD = 8 /* with more marks than a share of 1/CROWD of the values, one worker: each has counts of its own */
};

typedef struct place_job {
    const float *floats;
    const double *doubles;
    const unsigned char *skip;
    int64_t n, k, bins, places;
    double low, high, scale;
    double *marks;      /* [k + FEW]: infinity at the end */
    uint32_t *first;    /* [bins + 1]: a bin's first mark */
    uint32_t *counts;   /* [workers, places] */
    double *ordered;    /* [workers, CHUNK] */
    uint16_t *group_of; /* [workers, CHUNK] */
} place_job;

/* Of x not below the first mark nor above the last: rounding keeps the order. Of any other, some bin. */
static inline int32_t bin_of(const place_job *j, double x) {
    const double top = (double)(j->bins - 1);
    double at = (x - j->low) * j->scale;
    at = at < top ? at : top;
    return (int32_t)(at > 0.0 ? at : 0.0);
}

/* Of x not below the first mark nor above the last. */
static inline int64_t place_of(const place_job *j, double x) {
    const int32_t bin = bin_of(j, x);
    int64_t at = j->first[bin], left = j->first[bin + 1] - at;
    while (left > FEW) { /* the first mark that is not below x */
        const int64_t half = left / 2, below = j->marks[at + half] < x;
        at += below ? half + 1 : 0;
        left = below ? left - half - 1 : half;
    }
    const double *marks = j->marks + at;
    for (int i = 0; i < FEW; i++) /* marks of the next bins are not below x */
        at += marks[i] < x;
    return 2 * at + (j->marks[at] == x);
}

static inline double value_at(const place_job *j, int64_t i) {
    return j->floats ? (double)j->floats[i] : j->doubles[i];
}

static inline uint16_t group_of(const place_job *j, double x, unsigned char skip) {
    int32_t group = bin_of(j, x) / GROUP;
    group = x < j->low ? BELOW : group;
    group = x > j->high ? ABOVE : group;
    return (uint16_t)(skip ? SKIPPED : group);
}

static void count_task(void *arg, int64_t task, int worker) {
    const place_job j = *(const place_job *)arg;
    uint32_t *counts = j.counts + worker * j.places, at[KINDS] = {0}, sum = 0;
    double *ordered = j.ordered + worker * CHUNK;
    uint16_t *group = j.group_of + worker * CHUNK;
    const int64_t first = task * CHUNK, n = first + CHUNK < j.n ? CHUNK : j.n - first;
    for (int64_t i = 0; i < n; i++)
        group[i] = group_of(&j, value_at(&j, first + i), j.skip[first + i]);
    for (int64_t i = 0; i < n; i++)
        at[group[i]]++;
    counts[0] += at[BELOW];
    counts[j.places - 1] += at[ABOVE];
    for (int g = 0; g < KINDS; g++) { /* where the group begins, for now */
        const uint32_t size = at[g];
        at[g] = sum;
        sum += size;
    }
    const uint32_t counted = at[BELOW];
    for (int64_t i = 0; i < n; i++)
        ordered[at[group[i]]++] = value_at(&j, first + i);
    for (uint32_t i = 0; i < counted; i++)
        counts[place_of(&j, ordered[i])]++;
}

static void fill_bins(place_job *j, const double *marks) {
    const double range = j->k ? marks[j->k - 1] - marks[0] : 0.0;
    j->low = j->k ? marks[0] : INFINITY; /* without marks, below and above are one place */
    j->high = j->k ? marks[j->k - 1] : -INFINITY;
    j->scale = range > 0.0 ? (double)j->bins / range : 0.0;
    if (!isfinite(j->scale)) /* marks so near each other: one bin holds them all */
        j->scale = 0.0;
    for (int64_t i = 0; i < j->k + FEW; i++)
        j->marks[i] = i < j->k ? marks[i] : INFINITY;
    for (int64_t i = 0, bin = 0; i <= j->k; i++)
        for (const int64_t to = i < j->k ? bin_of(j, marks[i]) : j->bins; bin < to; bin++)
            j->first[bin + 1] = (uint32_t)i;
}

cdad_status cdad_count_places(const cdad_context *ctx, int64_t *counts, const float *floats, const double *doubles,
                              const unsigned char *skip, int64_t n, const double *marks, int64_t k, cdad_error *err) {
    cdad_pool *pool = k > n / CROWD ? NULL : ctx->pool;
    const int64_t workers = pool ? cdad_pool_threads(pool) : 1;
    cdad_status status = CDAD_OK;
    place_job j = {.floats = floats, .doubles = doubles, .skip = skip, .n = n, .k = k,
                   .bins = k < BINS ? k + 1 : BINS, .places = 2 * k + 1};
    CDAD_FAIL_IF(n >= INT64_C(1) << 32, err, CDAD_INVALID, "%" PRId64 " values; less than 2^32 are wanted", n);
    for (int64_t i = 1; i < k; i++)
        CDAD_FAIL_IF(!(marks[i - 1] < marks[i]), err, CDAD_INVALID, "marks %" PRId64 " and %" PRId64 " do not rise",
                     i - 1, i);
    CDAD_TRY_DONE(cdad_alloc((void **)&j.marks, (k + FEW) * (int64_t)sizeof *j.marks, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&j.first, (j.bins + 1) * (int64_t)sizeof *j.first, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&j.counts, workers * j.places * (int64_t)sizeof *j.counts, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&j.ordered, workers * CHUNK * (int64_t)sizeof *j.ordered, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&j.group_of, workers * CHUNK * (int64_t)sizeof *j.group_of, err));
    fill_bins(&j, marks);
    cdad_pool_run(pool, (n + CHUNK - 1) / CHUNK, count_task, &j);
    memset(counts, 0, (size_t)j.places * sizeof *counts);
    for (int64_t w = 0; w < workers; w++)
        for (int64_t i = 0; i < j.places; i++)
            counts[i] += j.counts[w * j.places + i];
done:
    cdad_free(j.marks);
    cdad_free(j.first);
    cdad_free(j.counts);
    cdad_free(j.ordered);
    cdad_free(j.group_of);
    return status;
}
