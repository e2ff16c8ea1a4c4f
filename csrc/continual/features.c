/* Checking and gathering feature vectors. */
#include "continual/features.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"

enum {
    GATHER_ROWS = 16,    /* rows a task copies */
    SCAN_FLOATS = 65536, /* floats a task scans, about */
    LANES = 16           /* independent sums, so that the scan vectorises without reordering a sum */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Row i of the unfolded image: see cdad_unfold. */
static void gather_unfolded_row(float *dst, const float *image, const cdad_unfold *u, int64_t i) {
    const int64_t n = i / (u->P * u->Q), p = i / u->Q % u->P, q = i % u->Q;
    for (int64_t r = 0; r < u->R; r++) {
        for (int64_t s = 0; s < u->S; s++, dst += u->C) {
            const int64_t y = p * u->stride + r - u->pad_t, x = q * u->stride + s - u->pad_l;
            const int64_t row = y / u->up, col = x / u->up;
            if (y < 0 || x < 0 || row >= u->H || col >= u->W)
                memset(dst, 0, (size_t)u->C * sizeof *dst);
            else
                memcpy(dst, image + ((n * u->H + row) * u->W + col) * u->C, (size_t)u->C * sizeof *dst);
        }
    }
}

typedef struct {
    float *dst;
    cdad_mat X;
    int64_t first, rows, d;
} gather_job;

static void gather_task(void *arg, int64_t task, int worker) {
    const gather_job *g = arg;
    const int64_t end = min64((task + 1) * GATHER_ROWS, g->rows);
    (void)worker;
    for (int64_t i = task * GATHER_ROWS; i < end; i++) {
        float *dst = g->dst + i * g->d;
        const int64_t row = g->first + i;
        if (g->X.unfold)
            gather_unfolded_row(dst, g->X.data, g->X.unfold, row);
        else
            for (int64_t j = 0; j < g->d; j++)
                dst[j] = g->X.data[row * g->X.rs + j * g->X.cs];
    }
}

void cdad_features_gather(const cdad_context *ctx, float *dst, cdad_mat X, int64_t first, int64_t rows,
                          int64_t d) {
    gather_job g = {.dst = dst, .X = X, .first = first, .rows = rows, .d = d};
    cdad_pool_run(ctx->pool, (rows + GATHER_ROWS - 1) / GATHER_ROWS, gather_task, &g);
}

/* In double no sum of squares of finite floats overflows, so the sum is finite exactly when they all are. */
static double sum_squares(const float *x, int64_t n, int64_t stride) {
    double lane[LANES] = {0};
    double sum = 0;
    int64_t i = 0;
    if (stride == 1) {
        for (; i + LANES <= n; i += LANES)
            for (int k = 0; k < LANES; k++)
                lane[k] += (double)x[i + k] * (double)x[i + k];
    }
    for (; i < n; i++)
        sum += (double)x[i * stride] * (double)x[i * stride];
    for (int k = 0; k < LANES; k++)
        sum += lane[k];
    return sum;
}

typedef struct {
    const float *data;
    int64_t rows, d, rs, cs, rows_a_task;
    double *sums; /* one a task */
} scan_job;

static void scan_task(void *arg, int64_t task, int worker) {
    const scan_job *s = arg;
    const int64_t end = min64((task + 1) * s->rows_a_task, s->rows);
    double sum = 0;
    (void)worker;
    for (int64_t i = task * s->rows_a_task; i < end; i++)
        sum += sum_squares(s->data + i * s->rs, s->d, s->cs);
    s->sums[task] = sum;
}

static cdad_status report_first(const scan_job *s, int is_image, cdad_error *err) {
    for (int64_t i = 0; i < s->rows; i++)
        for (int64_t j = 0; j < s->d; j++) {
            const float x = s->data[i * s->rs + j * s->cs];
            if (!isfinite(x))
                return cdad_fail(err, CDAD_NOT_FINITE, "features: %s %" PRId64 ", %s %" PRId64 " is %g",
                                 is_image ? "pixel" : "row", i, is_image ? "channel" : "column", j,
                                 (double)x);
        }
    return cdad_fail(err, CDAD_NOT_FINITE, "features: changed while they were read");
}

/* sum: of the squares of what is read. */
static cdad_status check_range(double sum, const cdad_unfold *u, cdad_error *err) {
    if (u) /* a tap (r, s) reads a pixel once, or up * up times */
        sum *= (double)(u->R * u->S * u->up * u->up);
    CDAD_FAIL_IF(sum > (double)FLT_MAX, err, CDAD_NOT_FINITE,
                 "features: the sum of squares %g is beyond the range of float32", sum);
    return CDAD_OK;
}

/* n floats of the device. */
static cdad_status check_there(const cdad_context *ctx, const float *x, int64_t n, const cdad_unfold *u, cdad_error *err) {
    cdad_status status = CDAD_OK;
    double *there = NULL, sum = 0;
    CDAD_TRY_DONE(cdad_device_alloc(ctx->device, (void **)&there, (int64_t)sizeof *there, err));
    ctx->kernels->sum_squares(ctx, there, x, n);
    CDAD_TRY_DONE(cdad_device_check(ctx->device, 0, err));
    CDAD_TRY_DONE(cdad_device_download(ctx->device, &sum, there, (int64_t)sizeof sum, err));
    status = isfinite(sum) ? check_range(sum, u, err) : cdad_fail(err, CDAD_NOT_FINITE, "features: not all are finite");
done:
    cdad_device_free(ctx->device, there);
    return status;
}

cdad_status cdad_features_check(const cdad_context *ctx, cdad_mat X, int64_t rows, int64_t d,
                                cdad_error *err) {
    const cdad_unfold *u = X.unfold;
    scan_job s = {.data = X.data, .rows = rows, .d = d, .rs = X.rs, .cs = X.cs};
    if (u) {
        CDAD_FAIL_IF(u->N * u->P * u->Q != rows || u->R * u->S * u->C != d, err, CDAD_SHAPE,
                     "features: an unfolding of %" PRId64 " rows and %" PRId64 " columns, expected %" PRId64
                     " and %" PRId64,
                     u->N * u->P * u->Q, u->R * u->S * u->C, rows, d);
        s.rows = u->N * u->H * u->W;
        s.d = s.rs = u->C;
        s.cs = 1;
    }
    if (s.rows == 0)
        return CDAD_OK;
    const int dense = s.cs == 1 && s.rs == s.d;
    CDAD_FAIL_IF(ctx->device && !dense, err, CDAD_INVALID, "features: on a device they lie without gaps");
    if (ctx->device)
        return check_there(ctx, s.data, s.rows * s.d, u, err);
    if (dense) {
        double all;
        ctx->kernels->sum_squares(ctx, &all, s.data, s.rows * s.d);
        return isfinite(all) ? check_range(all, u, err) : report_first(&s, u != NULL, err);
    }
    s.rows_a_task = s.d < SCAN_FLOATS ? SCAN_FLOATS / s.d : 1;
    const int64_t tasks = (s.rows + s.rows_a_task - 1) / s.rows_a_task;
    CDAD_TRY(cdad_alloc((void **)&s.sums, tasks * (int64_t)sizeof *s.sums, err));
    cdad_pool_run(ctx->pool, tasks, scan_task, &s);
    double sum = 0;
    for (int64_t i = 0; i < tasks; i++)
        sum += s.sums[i];
    cdad_free(s.sums);
    if (!isfinite(sum))
        return report_first(&s, u != NULL, err);
    return check_range(sum, u, err);
}
