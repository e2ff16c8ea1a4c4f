/* Sketches: test vectors, sums, and the factor made of them. */
#include "continual/sketch.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "base/philox.h"
#include "continual/linalg.h"
#include "continual/signs.h"

enum {
    SIGNS = 8,               /* of a feature, in as many equal parts of the test vectors */
    WORDS = 12,              /* random numbers of a feature: its signs', the check's */
    ROWS = 768,              /* added at once: about a second of one thread where features are widest */
    ROUNDED_LEAST = 2048,    /* narrower features take no time */
    GATHERED_BYTES = 64 << 20, /* and on a device */
    STRIP = 256,             /* columns of Y that are widened at a time */
    HIGH = 256               /* rows of A that are made at a time in float32, of those of Y that they have a part in */
};

static const uint64_t SEED = 0x736b6574;
static const double ROUNDED_FINEST = 0x1p-10; /* 1 - gamma, beside which the noise of 16 bits is little */

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t all_vectors(const cdad_sketch *s) { return s->vectors + CDAD_SKETCH_CHECKS; }
static int64_t sums_bytes(const cdad_sketch *s) { return all_vectors(s) * s->d * (int64_t)sizeof(float); }
static int64_t vectors_of(int64_t d, int64_t rank) { return min64(rank + (rank + 1) / 2, d); }
static int64_t signs_bytes(int64_t d, int64_t vectors) { /* each feature has a sign in a unit vector or SIGNS others, and in a check */
    return (2 * (vectors + CDAD_SKETCH_CHECKS) + (1 + (vectors == d ? 1 : SIGNS)) * d) * (int64_t)sizeof(int32_t);
}

int64_t cdad_sketch_bytes(int64_t d, int64_t rank) {
    const cdad_sketch s = {.d = d, .vectors = vectors_of(d, rank)};
    return sums_bytes(&s) + signs_bytes(d, s.vectors);
}

static void leave_device(cdad_sketch *s) {
    cdad_device_free(s->device, s->there);
    cdad_device_free(s->device, s->signs_there);
    s->there = s->signs_there = NULL;
}

void cdad_sketch_reset(cdad_sketch *s) {
    leave_device(s);
    cdad_free(s->Y);
    cdad_free(s->signs);
    *s = (cdad_sketch){0};
}

/* ---- test vectors ---- */

/* The test vectors that feature j has a sign in, as 2t where it is 1 and 2t + 1 where it is -1; returns how many. */
static int signs_of(const cdad_sketch *s, int64_t j, int64_t at[SIGNS + 1]) {
    uint32_t words[WORDS];
    int n = 0;
    for (int w = 0; w < WORDS; w += 4)
        cdad_philox(SEED, (uint64_t)s->vectors, (uint64_t)(j * WORDS + w) / 4, words + w);
    for (int b = 0; b < SIGNS && s->vectors < s->d; b++)
        if (b * s->vectors / SIGNS < (b + 1) * s->vectors / SIGNS)
            at[n++] = cdad_sign_place(words[b], b, SIGNS, s->vectors);
    if (s->vectors == s->d)
        at[n++] = 2 * j;
    at[n++] = 2 * s->vectors + cdad_sign_place(words[SIGNS], 0, 1, CDAD_SKETCH_CHECKS);
    return n;
}

/* By test vector, in the order of the features. */
static cdad_status make_signs(cdad_sketch *s, cdad_error *err) {
    const int64_t lists = 2 * all_vectors(s);
    int64_t at[SIGNS + 1];
    int32_t *places, *next; /* where the next one of a list goes */
    CDAD_TRY(cdad_alloc_zero((void **)&next, lists * (int64_t)sizeof *next, err));
    const cdad_status status = cdad_alloc((void **)&s->signs, signs_bytes(s->d, s->vectors), err);
    if (status == CDAD_OK) {
        places = s->signs + lists;
        for (int64_t j = 0; j < s->d; j++)
            for (int i = signs_of(s, j, at) - 1; i >= 0; i--)
                next[at[i]]++;
        int32_t end = 0;
        for (int64_t l = 0; l < lists; l++) {
            const int32_t count = next[l];
            next[l] = end;
            s->signs[l] = end += count;
        }
        for (int64_t j = 0; j < s->d; j++)
            for (int i = signs_of(s, j, at) - 1; i >= 0; i--)
                places[next[at[i]]++] = (int32_t)j;
    }
    cdad_free(next);
    return status;
}

cdad_status cdad_sketch_init(cdad_sketch *s, int64_t d, int64_t rank, double gamma, cdad_error *err) {
    cdad_status status;
    *s = (cdad_sketch){.d = d, .vectors = vectors_of(d, rank)};
    s->rounded = d >= ROUNDED_LEAST && s->vectors < d && 1 - gamma >= ROUNDED_FINEST;
    CDAD_TRY_DONE(make_signs(s, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&s->Y, sums_bytes(s), err));
    return CDAD_OK;
done:
    cdad_sketch_reset(s);
    return status;
}

/* The product of test vector t with x [d]. */
static double product(const cdad_sketch *s, int64_t t, const float *x) {
    const int32_t *places = s->signs + 2 * all_vectors(s);
    double sum = 0;
    int32_t at = t > 0 ? s->signs[2 * t - 1] : 0;
    for (; at < s->signs[2 * t]; at++)
        sum += (double)x[places[at]];
    for (; at < s->signs[2 * t + 1]; at++)
        sum -= (double)x[places[at]];
    return sum;
}

/* ---- sums ---- */

static cdad_status go_there(cdad_sketch *s, cdad_device *device, cdad_error *err) {
    CDAD_FAIL_IF(s->there && s->device != device, err, CDAD_INVALID, "features of %s come after features of %s", device->name,
                 s->device->name);
    if (s->there)
        return CDAD_OK;
    s->device = device;
    cdad_status status = cdad_device_mirror(device, &s->signs_there, s->signs, signs_bytes(s->d, s->vectors), err);
    if (status == CDAD_OK)
        status = cdad_device_alloc_zero(device, &s->there, CDAD_ALIGN + sums_bytes(s), err);
    if (status != CDAD_OK)
        leave_device(s);
    return status;
}

cdad_status cdad_sketch_add(cdad_sketch *s, const cdad_context *ctx, cdad_mat X, int64_t rows, int *begun, cdad_error *err) {
    const int64_t M = all_vectors(s), most = ctx->device ? max64(GATHERED_BYTES / (s->d * (int64_t)sizeof(float)), 1) : ROWS;
    const int64_t depth = min64(most, rows), last = (rows - 1) % depth + 1;
    const int threads = cdad_pool_threads(ctx->pool), was_there = s->there != NULL;
    float *Y = s->Y;
    double *total = &s->total;
    const int32_t *signs = s->signs;
    cdad_status status;
    void *scratch = NULL;
    *begun = 0;
    CDAD_FAIL_IF(ctx->device && !X.unfold && (X.cs != 1 || X.rs != s->d), err, CDAD_INVALID, "on a device features lie row by row");
    /* the last rows may be fewer, and want more: their product goes another way */
    CDAD_TRY_DONE(cdad_device_alloc(ctx->device, &scratch, max64(ctx->kernels->sketch_scratch(depth, s->d, M, s->rounded, threads),
                                                                 ctx->kernels->sketch_scratch(last, s->d, M, s->rounded, threads)), err));
    if (ctx->device) {
        CDAD_TRY_DONE(go_there(s, ctx->device, err));
        total = s->there;
        Y = (float *)(void *)((char *)s->there + CDAD_ALIGN);
        signs = s->signs_there;
    }
    for (int64_t first = 0; first < rows; first += depth) {
        if (ctx->poll && ctx->poll(ctx->poll_arg)) {
            status = cdad_fail(err, CDAD_CANCELLED, "stopped while features were added");
            goto done;
        }
        *begun = 1;
        ctx->kernels->sketch_add(ctx, Y, total, X, first, min64(depth, rows - first), s->d, signs, M, s->rounded, scratch);
    }
    if (ctx->device) {
        status = cdad_device_check(ctx->device, 0, err);
        s->spoiled = status != CDAD_OK;
        status = cdad_device_half_way(status, err);
    }
done:
    cdad_device_free(ctx->device, scratch);
    if (status != CDAD_OK && !*begun && !was_there)
        leave_device(s);
    return status;
}

cdad_status cdad_sketch_settle(cdad_sketch *s, cdad_error *err) {
    cdad_status status = CDAD_OK;
    float *row = NULL;
    double total;
    if (!s->there)
        return CDAD_OK;
    CDAD_TRY(cdad_alloc((void **)&row, s->d * (int64_t)sizeof *row, err));
    CDAD_TRY_DONE(cdad_device_download(s->device, &total, s->there, (int64_t)sizeof total, err));
    for (int64_t t = 0; t < all_vectors(s); t++) {
        const char *from = (char *)s->there + CDAD_ALIGN + t * s->d * (int64_t)sizeof *row;
        status = cdad_device_download(s->device, row, from, s->d * (int64_t)sizeof *row, err);
        if (status != CDAD_OK) {
            status = t > 0 ? cdad_device_half_way(status, err) : status;
            goto done;
        }
        for (int64_t j = 0; j < s->d; j++)
            s->Y[t * s->d + j] += row[j];
    }
    s->total += total;
    leave_device(s);
done:
    cdad_free(row);
    return status;
}

void cdad_sketch_merge(cdad_sketch *s, const cdad_sketch *t) {
    for (int64_t i = 0, n = all_vectors(s) * s->d; i < n; i++)
        s->Y[i] += t->Y[i];
    s->total += t->total;
}

/* ---- the factor ---- */

typedef struct {
    const cdad_sketch *s;
    double *H;       /* [vectors,vectors]: Omega^T G Omega; then, column major, R^-1 in its upper triangle */
    float *A;        /* R^-T Y [vectors,d] */
    double *scratch; /* vectors*STRIP a worker */
    double *kept;    /* |A|^2, a strip or a row */
    int *finite;     /* a row of Y */
} factor_job;

/* Of row `task` of Y, which may be a check's. */
static void core_task(void *arg, int64_t task, int worker) {
    const factor_job *job = arg;
    const int64_t m = job->s->vectors, d = job->s->d;
    (void)worker;
    job->finite[task] = 1;
    for (int64_t j = 0; j < d; j++)
        job->finite[task] &= isfinite(job->s->Y[task * d + j]) != 0;
    for (int64_t t = 0; t < m && task < m; t++)
        job->H[task * m + t] = product(job->s, t, job->s->Y + task * job->s->d);
}

static void strip_task(void *arg, int64_t task, int worker) {
    const factor_job *job = arg;
    const int64_t m = job->s->vectors, d = job->s->d, first = task * STRIP, width = min64(STRIP, d - first);
    double *strip = job->scratch + (int64_t)worker * m * STRIP; /* [m,width], that is, column major its transpose */
    double kept = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < width; j++)
            strip[i * width + j] = (double)job->s->Y[i * d + first + j];
    cblas_dtrmm(CblasColMajor, CblasRight, CblasUpper, CblasNoTrans, CblasNonUnit, (int)width, (int)m, 1, job->H, (int)m, strip,
                (int)width);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < width; j++) {
            const float a = (float)strip[i * width + j];
            job->A[i * d + first + j] = a;
            kept += (double)a * (double)a;
        }
    job->kept[task] = kept;
}

static void kept_task(void *arg, int64_t task, int worker) {
    const factor_job *job = arg;
    const int64_t d = job->s->d;
    double lane[8] = {0};
    (void)worker;
    for (int64_t j = 0; j < d; j++)
        lane[j % 8] += (double)job->A[task * d + j] * (double)job->A[task * d + j];
    job->kept[task] = lane[0] + lane[1] + lane[2] + lane[3] + lane[4] + lane[5] + lane[6] + lane[7];
}

/* The same products in float32. Where the sums were rounded their noise is far larger than this one's; where they were not, it is some 1e-6 of
 * the energy at most, beside the ROUNDED_FINEST that gamma leaves. */
static cdad_status multiply_narrow(const factor_job *job, const cdad_context *ctx, cdad_error *err) {
    cdad_status status;
    const int64_t m = job->s->vectors, d = job->s->d;
    const cdad_epilogue with = {0};
    float *T = NULL;
    void *scratch = NULL;
    CDAD_TRY_DONE(cdad_alloc((void **)&T, m * m * (int64_t)sizeof *T, err));
    CDAD_TRY_DONE(cdad_alloc(&scratch, ctx->kernels->gemm_scratch(min64(HIGH, m), d, m, cdad_pool_threads(ctx->pool)), err));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++)
            T[i * m + j] = j <= i ? (float)job->H[i * m + j] : 0;
    for (int64_t i = 0; i < m; i += HIGH) {
        const int64_t end = min64(i + HIGH, m);
        ctx->kernels->gemm(ctx, end - i, d, end, cdad_mat_rows(T + i * m, m), cdad_mat_rows(job->s->Y, d), job->A + i * d, d, &with, scratch);
    }
    cdad_pool_run(ctx->pool, m, kept_task, (void *)(uintptr_t)job);
done:
    cdad_free(T);
    cdad_free(scratch);
    return status;
}

/* H becomes R^-1 with R^T R = H + shift: as much as its noise, which differs on its two sides, or as little as makes it positive; and then
 * twice that, so that no direction of noise is left with next to nothing, by which it would be divided. */
static cdad_status invert(double *H, int64_t m, cdad_error *err) {
    double apart = 0, trace = 0, shift, *diagonal;
    int found = 0, last = 0;
    for (int64_t i = 0; i < m; i++) {
        trace += H[i * m + i];
        for (int64_t j = 0; j < i; j++) {
            const double a = H[i + j * m], b = H[j + i * m];
            apart += 2 * (a - b) * (a - b);
            H[i + j * m] = (a + b) / 2;
        }
    }
    shift = sqrt(apart / (double)m) + 0x1p-25 * trace / sqrt((double)m) + 1e-300; /* unit vectors' two sides are the same */
    CDAD_TRY(cdad_alloc((void **)&diagonal, m * (int64_t)sizeof *diagonal, err));
    for (int64_t i = 0; i < m; i++)
        diagonal[i] = H[i * m + i];
    cdad_status status = CDAD_OK;
    for (; status == CDAD_OK && !(found && last); shift *= found ? 2 : 4) {
        last = found;
        for (int64_t i = 0; i < m; i++) { /* the lower triangle, column major, stays as it is */
            for (int64_t j = 0; j < i; j++)
                H[j + i * m] = H[i + j * m];
            H[i + i * m] = diagonal[i] + shift;
        }
        found = 1;
        status = cdad_inverse_cholesky(H, m, &found, err);
    }
    cdad_free(diagonal);
    return status;
}

typedef struct {
    const cdad_sketch *s;
    const float *A;
    double *inside;  /* [CHECKS,vectors]: the checks' products with A^T */
    double *scratch; /* (vectors + CHECKS)*STRIP a worker */
    float *rests;
} rests_job;

/* Of row `task` of A. */
static void inside_task(void *arg, int64_t task, int worker) {
    const rests_job *job = arg;
    const int64_t m = job->s->vectors;
    (void)worker;
    for (int64_t w = 0; w < CDAD_SKETCH_CHECKS; w++)
        job->inside[w * m + task] = product(job->s, m + w, job->A + task * job->s->d);
}

static void rests_task(void *arg, int64_t task, int worker) {
    enum { N = CDAD_SKETCH_CHECKS };
    const rests_job *job = arg;
    const int64_t m = job->s->vectors, d = job->s->d, first = task * STRIP, width = min64(STRIP, d - first);
    double *wide = job->scratch + (int64_t)worker * (m + N) * STRIP, *part = wide + m * STRIP;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < width; j++)
            wide[i * width + j] = (double)job->A[i * d + first + j];
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < width; j++)
            part[i * width + j] = (double)job->s->Y[(m + i) * d + first + j];
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, N, (int)width, (int)m, -1, job->inside, (int)m, wide, (int)width, 1, part,
                (int)width);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < width; j++)
            job->rests[i * d + first + j] = (float)part[i * width + j];
}

/* rests [CHECKS,d] = what the checks' products with G have beyond those with A^T A; scaled so that they tell of all directions together
 * what is known of them, `lost`. */
static cdad_status find_rests(const cdad_sketch *s, const cdad_context *ctx, const float *A, double lost, float *rests, cdad_error *err) {
    enum { N = CDAD_SKETCH_CHECKS };
    cdad_status status;
    const int64_t m = s->vectors, d = s->d;
    rests_job job = {.s = s, .A = A, .rests = rests};
    double told = 0;
    CDAD_TRY_DONE(cdad_alloc((void **)&job.inside, N * m * (int64_t)sizeof *job.inside, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&job.scratch, cdad_pool_threads(ctx->pool) * (m + N) * STRIP * (int64_t)sizeof *job.scratch, err));
    cdad_pool_run(ctx->pool, m, inside_task, &job);
    cdad_pool_run(ctx->pool, (d + STRIP - 1) / STRIP, rests_task, &job);
    for (int64_t w = 0; w < N; w++)
        told += product(s, m + w, rests + w * d);
    const float scale = told > 0 ? (float)fmin(lost / told, 2) : 0; /* beyond it is roundings that they tell of */
    for (int64_t i = 0; i < N * d; i++)
        rests[i] *= scale;
done:
    cdad_free(job.inside);
    cdad_free(job.scratch);
    return status;
}

cdad_status cdad_sketch_factor(const cdad_sketch *s, const cdad_context *ctx, cdad_factor *f, cdad_error *err) {
    cdad_status status = CDAD_OK;
    const int64_t m = s->vectors, d = s->d, strips = (d + STRIP - 1) / STRIP, parts = s->rounded ? m : strips;
    factor_job job = {.s = s};
    float *tests = NULL, *rests = NULL;
    *f = (cdad_factor){.d = d};
    if (!(s->total > 0)) /* of nothing there are no directions */
        return CDAD_OK;
    CDAD_TRY_DONE(cdad_alloc((void **)&job.H, m * m * (int64_t)sizeof *job.H, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&job.A, m * d * (int64_t)sizeof *job.A, err));
    if (!s->rounded)
        CDAD_TRY_DONE(cdad_alloc((void **)&job.scratch, cdad_pool_threads(ctx->pool) * m * STRIP * (int64_t)sizeof *job.scratch, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&job.kept, parts * (int64_t)sizeof *job.kept, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&job.finite, all_vectors(s) * (int64_t)sizeof *job.finite, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&tests, CDAD_SKETCH_CHECKS * d * (int64_t)sizeof *tests, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&rests, CDAD_SKETCH_CHECKS * d * (int64_t)sizeof *rests, err));
    for (int64_t j = 0, at[SIGNS + 1]; j < d; j++) {
        const int64_t check = at[signs_of(s, j, at) - 1] - 2 * m;
        tests[check / 2 * d + j] = check % 2 ? -1 : 1;
    }
    cdad_pool_run(ctx->pool, all_vectors(s), core_task, &job);
    for (int64_t t = 0; t < all_vectors(s); t++)
        if (!job.finite[t]) {
            status = cdad_fail(err, CDAD_NOT_FINITE, "features: their sums are beyond the range of float32 (energy %g)", s->total);
            goto done;
        }
    CDAD_TRY_DONE(invert(job.H, m, err));
    if (ctx->poll && ctx->poll(ctx->poll_arg)) {
        status = cdad_fail(err, CDAD_CANCELLED, "stopped while features were factored");
        goto done;
    }
    if (s->rounded)
        CDAD_TRY_DONE(multiply_narrow(&job, ctx, err));
    else
        cdad_pool_run(ctx->pool, strips, strip_task, &job);
    double kept = 0;
    for (int64_t i = 0; i < parts; i++)
        kept += job.kept[i];
    const double lost = fmax(s->total - kept, 0);
    cdad_free(job.scratch);
    job.scratch = NULL;
    CDAD_TRY_DONE(find_rests(s, ctx, job.A, lost, rests, err));
    *f = (cdad_factor){.A = job.A, .n = m, .d = d, .lost = lost, .tests = tests, .rests = rests, .checks = CDAD_SKETCH_CHECKS,
                       .spent = job.A};
    job.A = tests = rests = NULL;
done:
    cdad_free(job.H);
    cdad_free(job.A);
    cdad_free(job.scratch);
    cdad_free(job.kept);
    cdad_free(job.finite);
    cdad_free(tests);
    cdad_free(rests);
    return status;
}

void cdad_sketch_factor_free(cdad_factor *f) {
    cdad_free(f->spent);
    cdad_free((void *)(uintptr_t)f->tests);
    cdad_free((void *)(uintptr_t)f->rests);
    *f = (cdad_factor){0};
}

/* ---- states ---- */

int64_t cdad_sketch_packed(const cdad_sketch *s) { return 1 + all_vectors(s) * s->d; }

void cdad_sketch_pack(const cdad_sketch *s, double *packed) {
    *packed++ = s->total;
    for (int64_t i = 0; i < all_vectors(s) * s->d; i++)
        packed[i] = (double)s->Y[i];
}

cdad_status cdad_sketch_unpack(cdad_sketch *s, const double *packed, int64_t n, cdad_error *err) {
    CDAD_FAIL_IF(n != cdad_sketch_packed(s) || packed[0] < 0, err, CDAD_INVALID,
                 "stream state: %" PRId64 " values are no sketch by %" PRId64 " test vectors of width %" PRId64, n, s->vectors, s->d);
    for (int64_t i = 1; i < n; i++)
        CDAD_FAIL_IF((double)(float)packed[i] != packed[i], err, CDAD_INVALID, "stream state: value %" PRId64 " is %g, no float32", i,
                     packed[i]);
    leave_device(s);
    s->spoiled = 0;
    s->total = packed[0];
    for (int64_t i = 1; i < n; i++)
        s->Y[i - 1] = (float)packed[i];
    return CDAD_OK;
}
