/* The optimiser's kernels. */
#include <math.h>

#include "kernels/cpu/backend.h"

#define TILE 16384
#define SUM_TILE 65536
#define SUM_TILES 256 /* side by side */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct update_job {
    float *du, *m, *v;
    const float *w, *g;
    int64_t n;
    cdad_adamw h;
} update_job;

/* Scalar code on purpose: the compiler makes vectors of it, and square root and division round the same. */
static void adamw_task(void *arg, int64_t task, int worker) {
    const update_job *j = arg;
    const cdad_adamw h = j->h;
    const float rest1 = 1.0f - h.beta1, rest2 = 1.0f - h.beta2;
    (void)worker;
    for (int64_t i = task * TILE; i < min64(j->n, (task + 1) * TILE); i++) {
        const float g = j->g[i] * h.grad_scale;
        const float m = h.beta1 * j->m[i] + rest1 * g, v = h.beta2 * j->v[i] + rest2 * (g * g);
        j->m[i] = m;
        j->v[i] = v;
        const float step = (m / h.bias1) / (sqrtf(v / h.bias2) + h.eps);
        j->du[i] = -h.lr * (h.weight_decay * j->w[i] + step);
    }
}

void CDAD_K(adamw_update)(const cdad_context *ctx, float *du, float *m, float *v, const float *w,
                          const float *g, int64_t n, const cdad_adamw *h) {
    update_job job = {.du = du, .m = m, .v = v, .w = w, .g = g, .n = n, .h = *h};
    cdad_pool_run(ctx->pool, (n + TILE - 1) / TILE, adamw_task, &job);
}

typedef struct sum_job {
    const float *x;
    int64_t n;
    double *tile; /* [tasks] */
} sum_job;

static void sum_task(void *arg, int64_t task, int worker) {
    const sum_job *j = arg;
    const int64_t begin = task * SUM_TILE, end = min64(j->n, begin + SUM_TILE),
                  full = begin + (end - begin) / 8 * 8;
    const float *x = j->x;
    double lanes[8] = {0};
    (void)worker;
    for (int64_t i = begin; i < full; i += 8)
        for (int k = 0; k < 8; k++)
            lanes[k] += (double)x[i + k] * (double)x[i + k];
    for (int64_t i = full; i < end; i++)
        lanes[i - full] += (double)x[i] * (double)x[i];
    j->tile[task] =
        ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
}

double CDAD_K(sum_squares)(const cdad_context *ctx, const float *x, int64_t n, int *finite) {
    double total = 0.0, tile[SUM_TILES];
    for (int64_t begin = 0; begin < n; begin += SUM_TILES * SUM_TILE) {
        sum_job job = {.x = x + begin, .n = min64(n - begin, SUM_TILES * SUM_TILE), .tile = tile};
        const int64_t tasks = (job.n + SUM_TILE - 1) / SUM_TILE;
        cdad_pool_run(ctx->pool, tasks, sum_task, &job);
        for (int64_t t = 0; t < tasks; t++)
            total += tile[t];
    }
    *finite = isfinite(total) != 0; /* squares of floats cannot overflow a double: only NaN and inf can */
    return total;
}
