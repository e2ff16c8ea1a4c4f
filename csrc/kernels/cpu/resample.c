/* Moving and resampling: enlarging, bilinear resizing, columns, rows, the embedding of timesteps. */
#include <math.h>

#include "kernels/cpu/backend.h"

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct image_job {
    float *y;
    const float *x;
    int64_t H, W, C, P, Q;
} image_job;

static void upsample_task(void *arg, int64_t task, int worker) {
    const image_job *j = arg; /* task: an input row */
    const size_t pixel = (size_t)j->C * sizeof(float);
    const float *x = j->x + task * j->W * j->C;
    float *y = j->y + task * 4 * j->W * j->C;
    (void)worker;
    for (int64_t w = 0; w < j->W; w++) {
        memcpy(y + 2 * w * j->C, x + w * j->C, pixel);
        memcpy(y + (2 * w + 1) * j->C, x + w * j->C, pixel);
    }
    memcpy(y + 2 * j->W * j->C, y, 2 * (size_t)j->W * pixel);
}

void CDAD_K(upsample2x)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
                        int64_t C) {
    image_job j = {.y = y, .x = x, .W = W, .C = C};
    cdad_pool_run(ctx->pool, N * H, upsample_task, &j);
}

static void upsample_grad_task(void *arg, int64_t task, int worker) {
    const image_job *j = arg; /* task: a row of dx; x is dy */
    const int64_t C = j->C, row = 2 * j->W * C;
    const float *dy = j->x + task * 2 * row;
    float *dx = j->y + task * j->W * C;
    (void)worker;
    for (int64_t w = 0; w < j->W; w++)
        for (int64_t c = 0; c < C; c++) {
            const float *at = dy + 2 * w * C + c;
            dx[w * C + c] = (at[0] + at[C]) + (at[row] + at[row + C]);
        }
}

void CDAD_K(upsample2x_grad)(const cdad_context *ctx, float *dx, const float *dy, int64_t N, int64_t H, int64_t W,
                             int64_t C) {
    image_job j = {.y = dx, .x = dy, .W = W, .C = C};
    cdad_pool_run(ctx->pool, N * H, upsample_grad_task, &j);
}

/* Where output i of `out` reads among `in`: two neighbours and the second one's weight (align_corners = False). */
static inline void source(int64_t i, int64_t in, int64_t out, int64_t *lo, int64_t *hi, float *weight) {
    double at = ((double)i + 0.5) * (double)in / (double)out - 0.5;
    if (at < 0)
        at = 0;
    *lo = min64((int64_t)at, in - 1);
    *hi = min64(*lo + 1, in - 1);
    *weight = (float)(at - (double)*lo);
}

static void resize_task(void *arg, int64_t task, int worker) {
    const image_job *j = arg; /* task: an output row */
    const int64_t n = task / j->P, p = task % j->P, C = j->C;
    int64_t h0, h1, w0, w1;
    float a, b;
    (void)worker;
    source(p, j->H, j->P, &h0, &h1, &a);
    const float *top = j->x + (n * j->H + h0) * j->W * C, *bottom = j->x + (n * j->H + h1) * j->W * C;
    float *y = j->y + task * j->Q * C;
    for (int64_t q = 0; q < j->Q; q++) {
        source(q, j->W, j->Q, &w0, &w1, &b);
        for (int64_t c = 0; c < C; c++) {
            const float t = top[w0 * C + c] + b * (top[w1 * C + c] - top[w0 * C + c]);
            const float u = bottom[w0 * C + c] + b * (bottom[w1 * C + c] - bottom[w0 * C + c]);
            y[q * C + c] = t + a * (u - t);
        }
    }
}

void CDAD_K(resize_bilinear)(const cdad_context *ctx, float *y, const float *x, int64_t N, int64_t H, int64_t W,
                             int64_t C, int64_t P, int64_t Q) {
    image_job j = {.y = y, .x = x, .H = H, .W = W, .C = C, .P = P, .Q = Q};
    cdad_pool_run(ctx->pool, N * P, resize_task, &j);
}

typedef struct copy_job {
    float *dst;
    const float *src;
    cdad_runs runs;
    int64_t n, part; /* of all runs; of a task */
} copy_job;

static void copy_task(void *arg, int64_t task, int worker) {
    const copy_job *j = arg;
    (void)worker;
    const cdad_runs *r = &j->runs;
    for (int64_t i = task * j->part; i < min64(j->n, (task + 1) * j->part); i++) {
        const int64_t c = i % r->n[2], b = i / r->n[2] % r->n[1], a = i / r->n[2] / r->n[1];
        memcpy(j->dst + a * r->to[0] + b * r->to[1] + c * r->to[2], j->src + a * r->from[0] + b * r->from[1] + c * r->from[2],
               (size_t)r->w * sizeof(float));
    }
}

void CDAD_K(copy_runs)(const cdad_context *ctx, float *dst, const float *src, const cdad_runs *runs) {
    copy_job j = {.dst = dst, .src = src, .runs = *runs, .n = runs->n[0] * runs->n[1] * runs->n[2],
                  .part = runs->w < 16384 ? 16384 / runs->w : 1};
    cdad_pool_run(ctx->pool, (j.n + j.part - 1) / j.part, copy_task, &j);
}

typedef struct rows_job {
    float *out; /* y or dtable */
    const float *from, *ids;
    int64_t n, rows, C;
} rows_job;

enum { ROWS_BLOCK = 64 }; /* rows gathered by a task; columns summed by one */

static int are_rows(const float *ids, int64_t n, int64_t rows) {
    for (int64_t i = 0; i < n; i++)
        if (!(ids[i] >= 0.0f && ids[i] < (float)rows && ids[i] == truncf(ids[i])))
            return 0;
    return 1;
}

static void gather_task(void *arg, int64_t task, int worker) {
    const rows_job *j = arg;
    (void)worker;
    for (int64_t i = task * ROWS_BLOCK; i < min64(j->n, (task + 1) * ROWS_BLOCK); i++)
        memcpy(j->out + i * j->C, j->from + (int64_t)j->ids[i] * j->C, (size_t)j->C * sizeof(float));
}

int CDAD_K(gather_rows)(const cdad_context *ctx, float *y, const float *table, const float *ids, int64_t n,
                        int64_t rows, int64_t C) {
    rows_job j = {.out = y, .from = table, .ids = ids, .n = n, .C = C};
    if (!are_rows(ids, n, rows))
        return 0;
    cdad_pool_run(ctx->pool, (n + ROWS_BLOCK - 1) / ROWS_BLOCK, gather_task, &j);
    return 1;
}

static void scatter_task(void *arg, int64_t task, int worker) {
    const rows_job *j = arg; /* task: a block of columns */
    const int64_t first = task * ROWS_BLOCK, last = min64(j->C, first + ROWS_BLOCK);
    (void)worker;
    for (int64_t r = 0; r < j->rows; r++)
        memset(j->out + r * j->C + first, 0, (size_t)(last - first) * sizeof(float));
    for (int64_t i = 0; i < j->n; i++)
        for (int64_t c = first; c < last; c++)
            j->out[(int64_t)j->ids[i] * j->C + c] += j->from[i * j->C + c];
}

int CDAD_K(scatter_rows)(const cdad_context *ctx, float *dtable, const float *dy, const float *ids, int64_t n,
                         int64_t rows, int64_t C) {
    rows_job j = {.out = dtable, .from = dy, .ids = ids, .n = n, .rows = rows, .C = C};
    if (!are_rows(ids, n, rows))
        return 0;
    cdad_pool_run(ctx->pool, (C + ROWS_BLOCK - 1) / ROWS_BLOCK, scatter_task, &j);
    return 1;
}

void CDAD_K(timestep_embedding)(const cdad_context *ctx, float *y, const float *t, int64_t N, int64_t D) {
    const int64_t half = D / 2;
    (void)ctx;
    for (int64_t n = 0; n < N; n++) {
        for (int64_t i = 0; i < half; i++) {
            /* the frequency is rounded to float first, as PyTorch's is */
            const float f = (float)exp(-log(10000.0) * (double)i / (double)half);
            const float angle = t[n] * f;
            y[n * D + i] = (float)cos((double)angle);
            y[n * D + half + i] = (float)sin((double)angle);
        }
        if (D % 2)
            y[n * D + D - 1] = 0.0f;
    }
}
