/* Maximum pooling and its gradient, vectorised over channels. */
#include <math.h>

#include "kernels/cpu/backend.h"

enum { BLOCK = 64 }; /* channels of a task of the gradient: whole vectors */
_Static_assert(BLOCK % (CDAD_VBYTES / 4) == 0, "a block is whole vectors");

typedef struct pool_job {
    float *out; /* y or dx */
    const float *x, *dy;
    const cdad_unfold *u;
} pool_job;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* The pixels of the image, [begin, end), that window `at` covers along one axis. */
typedef struct span {
    int64_t begin, end;
} span;

static inline span span_of(int64_t at, int64_t stride, int64_t pad, int64_t taps, int64_t extent) {
    const int64_t begin = at * stride - pad;
    return (span){max64(begin, 0), min64(begin + taps, extent)};
}

/* Where v is the larger; a NaN is larger than all else. */
static inline vi beats(vf v, vf most) { return (v > most) | (v != v); }

/* Task: one row of the result. */
static void forward_row(void *arg, int64_t task, int worker) {
    const pool_job *j = arg;
    const cdad_unfold *u = j->u;
    const int64_t n = task / u->P, C = u->C;
    const span rows = span_of(task % u->P, u->stride, u->pad_t, u->R, u->H);
    (void)worker;
    for (int64_t q = 0; q < u->Q; q++) {
        const span cols = span_of(q, u->stride, u->pad_l, u->S, u->W);
        float *y = j->out + (task * u->Q + q) * C;
        V_EACH(0, C, {
            vf most = v_set1(-INFINITY);
            for (int64_t h = rows.begin; h < rows.end; h++)
                for (int64_t w = cols.begin; w < cols.end; w++) {
                    const vf v = v_load_n(j->x + ((n * u->H + h) * u->W + w) * C + i, m);
                    most = v_select(beats(v, most), v, most);
                }
            v_store_n(y + i, most, m);
        })
    }
}

/* Adds dy of one window, `m` channels from c on, to where the first of its largest values is. */
static inline void backward_window(const pool_job *j, int64_t n, span rows, span cols, const float *dy, int64_t c,
                                   int64_t m) {
    const cdad_unfold *u = j->u;
    vf most = v_set1(-INFINITY);
    vi which = (vi){0}, tap = (vi){0};
    for (int64_t h = rows.begin; h < rows.end; h++)
        for (int64_t w = cols.begin; w < cols.end; w++, tap += 1) {
            const vf v = v_load_n(j->x + ((n * u->H + h) * u->W + w) * u->C + c, m);
            const vi better = beats(v, most);
            most = v_select(better, v, most);
            which = (tap & better) | (which & ~better);
        }
    const vf g = v_load_n(dy + c, m);
    tap = (vi){0};
    for (int64_t h = rows.begin; h < rows.end; h++)
        for (int64_t w = cols.begin; w < cols.end; w++, tap += 1) {
            float *dx = j->out + ((n * u->H + h) * u->W + w) * u->C + c;
            v_store_n(dx, v_load_n(dx, m) + v_select(which == tap, g, (vf){0}), m);
        }
}

/* Task: a block of one sample's channels. Windows overlap, so they follow one another. */
static void backward_block(void *arg, int64_t task, int worker) {
    const pool_job *j = arg;
    const cdad_unfold *u = j->u;
    const int64_t C = u->C, blocks = (C + BLOCK - 1) / BLOCK, n = task / blocks;
    const int64_t first = task % blocks * BLOCK, last = min64(C, first + BLOCK);
    (void)worker;
    for (int64_t at = n * u->H * u->W; at < (n + 1) * u->H * u->W; at++)
        memset(j->out + at * C + first, 0, (size_t)(last - first) * sizeof(float));
    for (int64_t p = 0; p < u->P; p++) {
        const span rows = span_of(p, u->stride, u->pad_t, u->R, u->H);
        for (int64_t q = 0; q < u->Q; q++) {
            const span cols = span_of(q, u->stride, u->pad_l, u->S, u->W);
            const float *dy = j->dy + ((n * u->P + p) * u->Q + q) * C;
            V_EACH(first, last, backward_window(j, n, rows, cols, dy, i, m);)
        }
    }
}

void CDAD_K(max_pool2d)(const cdad_context *ctx, float *y, const float *x, const cdad_unfold *u) {
    pool_job job = {.out = y, .x = x, .u = u};
    cdad_pool_run(ctx->pool, u->N * u->P, forward_row, &job);
}

void CDAD_K(max_pool2d_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy,
                             const cdad_unfold *u) {
    pool_job job = {.out = dx, .x = x, .dy = dy, .u = u};
    cdad_pool_run(ctx->pool, u->N * ((u->C + BLOCK - 1) / BLOCK), backward_block, &job);
}
