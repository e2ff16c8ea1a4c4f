/* Depthwise convolution and its gradients, vectorised over channels.
 *
 * The result and dx are the same computation: a pixel is a sum, in the order of (r, s), over the taps that
 * lie inside the source. dw and db are summed along a row first, then over the rows (n, p) in order: a fixed
 * tree that keeps long sums accurate. */
#include <stddef.h>

#include "kernels/cpu/backend.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4 }; /* vectors of channels that a task keeps in registers */

/* Taps first, first + step, ... (count of them) read the source at from, from + move, ... along one axis. */
typedef struct axis {
    int64_t first, step, count, from, move;
} axis;

typedef struct depthwise_job {
    const float *source, *w, *bias;
    float *out;
    const cdad_unfold *u;
    int64_t rows, cols;               /* of out */
    int64_t source_rows, source_cols;
    int backward;                     /* out is dx, source is dy */
} depthwise_job;

typedef struct weight_job {
    const float *x, *dy;
    float *dw, *db;
    const cdad_unfold *u;
} weight_job;

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_i(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* y[at] reads x[at*stride + r - pad]. */
static axis forward_axis(int64_t at, int64_t taps, int64_t stride, int64_t pad, int64_t extent) {
    int64_t base = at * stride - pad, first = max_i(0, -base);
    return (axis){first, 1, max_i(0, min_i(taps, extent - base) - first), base + first, 1};
}

/* dx[at] reads dy[p] for every r with p*stride + r - pad = at. */
static axis backward_axis(int64_t at, int64_t taps, int64_t stride, int64_t pad, int64_t extent) {
    int64_t first = (at + pad) % stride, from = (at + pad) / stride, skip = max_i(0, from - (extent - 1));
    int64_t count = min_i(first < taps ? ceil_div(taps - first, stride) : 0, from + 1);
    return (axis){first + skip * stride, stride, max_i(0, count - skip), from - skip, -1};
}

/* The positions q of the result, [*q0, *q1), whose tap s lies inside the source. */
static void tap_range(int64_t s, int64_t stride, int64_t pad, int64_t extent, int64_t positions, int64_t *q0,
                      int64_t *q1) {
    *q0 = s >= pad ? 0 : ceil_div(pad - s, stride);
    *q1 = extent + pad - s <= 0 ? 0 : min_i(positions, ceil_div(extent + pad - s, stride));
}

/* The channels to do at once where `left` are left: 4, 2 or 1 vectors, or the last few. */
static int64_t tile_width(int64_t left) {
    return left >= TILE * VL ? TILE * VL : left >= 2 * VL ? 2 * VL : min_i(left, VL);
}

/* One pixel, `vectors` vectors of channels from c on, each of n channels (n < VL for the last few only). */
INLINE void pixel(const depthwise_job *job, float *out, const float *image, axis ah, axis aw, int64_t c,
                  int vectors, int64_t n) {
    const cdad_unfold *u = job->u;
    vf acc[TILE];
    V_UNROLL for (int i = 0; i < vectors; i++)
        acc[i] = (vf){0};
    for (int64_t a = 0; a < ah.count; a++)
        for (int64_t b = 0; b < aw.count; b++) {
            int64_t h = ah.from + a * ah.move, w = aw.from + b * aw.move;
            int64_t r = ah.first + a * ah.step, s = aw.first + b * aw.step;
            const float *from = image + (h * job->source_cols + w) * u->C + c;
            const float *weight = job->w + (r * u->S + s) * u->C + c;
            V_UNROLL for (int i = 0; i < vectors; i++)
                acc[i] += v_load_n(from + i * VL, n) * v_load_n(weight + i * VL, n);
        }
    V_UNROLL for (int i = 0; i < vectors; i++) {
        if (job->bias)
            acc[i] += v_load_n(job->bias + c + i * VL, n);
        v_store_n(out + c + i * VL, acc[i], n);
    }
}

/* Task: one row of `out`. Channels outermost, so that a tile's weights stay in the first-level cache. */
static void run_row(void *arg, int64_t task, int worker) {
    (void)worker;
    const depthwise_job *job = arg;
    const cdad_unfold *u = job->u;
    int64_t image = task / job->rows, at = task % job->rows;
    axis (*make)(int64_t, int64_t, int64_t, int64_t, int64_t) = job->backward ? backward_axis : forward_axis;
    const float *source = job->source + image * job->source_rows * job->source_cols * u->C;
    axis ah = make(at, u->R, u->stride, u->pad_t, job->source_rows);
    for (int64_t c = 0; c < u->C;) {
        int64_t width = tile_width(u->C - c);
        for (int64_t col = 0; col < job->cols; col++) {
            axis aw = make(col, u->S, u->stride, u->pad_l, job->source_cols);
            float *out = job->out + (task * job->cols + col) * u->C;
            if (width == TILE * VL)
                pixel(job, out, source, ah, aw, c, TILE, VL);
            else if (width == 2 * VL)
                pixel(job, out, source, ah, aw, c, 2, VL);
            else
                pixel(job, out, source, ah, aw, c, 1, width);
        }
        c += width;
    }
}

/* sum over (n, p, q) of dy * x at tap (r, s), or of dy alone when r < 0; channels c on. */
INLINE void weight_sum(const weight_job *job, float *out, int64_t r, int64_t s, int64_t c, int vectors,
                       int64_t n) {
    const cdad_unfold *u = job->u;
    int64_t p0 = 0, p1 = u->P, q0 = 0, q1 = u->Q;
    if (r >= 0) {
        tap_range(r, u->stride, u->pad_t, u->H, u->P, &p0, &p1);
        tap_range(s, u->stride, u->pad_l, u->W, u->Q, &q0, &q1);
    }
    vf total[TILE];
    V_UNROLL for (int i = 0; i < vectors; i++)
        total[i] = (vf){0};
    for (int64_t image = 0; image < u->N; image++)
        for (int64_t p = p0; p < p1; p++) {
            vf row[TILE];
            V_UNROLL for (int i = 0; i < vectors; i++)
                row[i] = (vf){0};
            for (int64_t q = q0; q < q1; q++) {
                const float *dy = job->dy + ((image * u->P + p) * u->Q + q) * u->C + c;
                if (r < 0) {
                    V_UNROLL for (int i = 0; i < vectors; i++)
                        row[i] += v_load_n(dy + i * VL, n);
                    continue;
                }
                int64_t h = p * u->stride + r - u->pad_t, w = q * u->stride + s - u->pad_l;
                const float *x = job->x + ((image * u->H + h) * u->W + w) * u->C + c;
                V_UNROLL for (int i = 0; i < vectors; i++)
                    row[i] += v_load_n(dy + i * VL, n) * v_load_n(x + i * VL, n);
            }
            V_UNROLL for (int i = 0; i < vectors; i++)
                total[i] += row[i];
        }
    V_UNROLL for (int i = 0; i < vectors; i++)
        v_store_n(out + c + i * VL, total[i], n);
}

/* Task: one tap (the last one: the bias) and one tile of channels. */
static void run_weight(void *arg, int64_t task, int worker) {
    (void)worker;
    const weight_job *job = arg;
    const cdad_unfold *u = job->u;
    int64_t taps = job->dw ? u->R * u->S : 0, tiles = ceil_div(u->C, TILE * VL);
    int64_t tap = task / tiles, c = task % tiles * TILE * VL, end = min_i(u->C, c + TILE * VL);
    int64_t r = tap < taps ? tap / u->S : -1, s = tap < taps ? tap % u->S : 0;
    float *out = tap < taps ? job->dw + tap * u->C : job->db;
    while (c < end) {
        int64_t width = tile_width(end - c);
        if (width == TILE * VL)
            weight_sum(job, out, r, s, c, TILE, VL);
        else if (width == 2 * VL)
            weight_sum(job, out, r, s, c, 2, VL);
        else
            weight_sum(job, out, r, s, c, 1, width);
        c += width;
    }
}

void CDAD_K(depthwise_conv2d)(const cdad_context *ctx, float *y, const float *x, const float *w,
                              const float *bias, const cdad_unfold *u) {
    depthwise_job job = {.source = x, .w = w, .bias = bias, .out = y, .u = u, .backward = 0,
                         .rows = u->P, .cols = u->Q, .source_rows = u->H, .source_cols = u->W};
    cdad_pool_run(ctx->pool, u->N * u->P, run_row, &job);
}

void CDAD_K(depthwise_conv2d_grad)(const cdad_context *ctx, float *dx, float *dw, float *db, const float *x,
                                   const float *w, const float *dy, const cdad_unfold *u) {
    if (dx) {
        depthwise_job job = {.source = dy, .w = w, .bias = NULL, .out = dx, .u = u, .backward = 1,
                             .rows = u->H, .cols = u->W, .source_rows = u->P, .source_cols = u->Q};
        cdad_pool_run(ctx->pool, u->N * u->H, run_row, &job);
    }
    int64_t sums = (dw ? u->R * u->S : 0) + (db ? 1 : 0);
    if (sums > 0) {
        weight_job job = {.x = x, .dy = dy, .dw = dw, .db = db, .u = u};
        cdad_pool_run(ctx->pool, sums * ceil_div(u->C, TILE * VL), run_weight, &job);
    }
}
