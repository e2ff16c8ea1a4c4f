/* The optimiser's kernels. */
#include <math.h>

#include "kernels/cpu/backend.h"

#define TILE 16384
#define SUM_TILE 65536

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct update_job {
    float *du, *m, *v;
    const float *w, *g;
    int64_t n;
    cdad_adamw h;
} update_job;

/* Scalar code on purpose: the compiler makes vectors of it, square root and division round the same in both. */
static void adamw_task(void *arg, int64_t task, int worker) {
    const update_job *j = arg;
    const cdad_adamw h = j->h;
    (void)worker;
    for (int64_t i = task * TILE; i < min64(j->n, (task + 1) * TILE); i++) {
        const float g = j->g[i] * h.grad_scale;
        const float m = h.beta1 * (j->m[i] - g) + g, v = h.beta2 * (j->v[i] - g * g) + g * g;
        j->m[i] = m;
        j->v[i] = v;
        const float step = (m / h.bias1) / (sqrtf(v / h.bias2) + h.eps);
        j->du[i] = -h.lr * (h.weight_decay * j->w[i] + step);
    }
}

void CDAD_K(adamw_update)(const cdad_context *ctx, float *du, float *m, float *v, const float *w, const float *g,
                          int64_t n, const cdad_adamw *h) {
    update_job job = {.du = du, .m = m, .v = v, .w = w, .g = g, .n = n, .h = *h};
    cdad_pool_run(ctx->pool, (n + TILE - 1) / TILE, adamw_task, &job);
}

double CDAD_K(sum_squares)(const cdad_context *ctx, const float *x, int64_t n, int *finite) {
    double total = 0.0;
    (void)ctx;
    for (int64_t begin = 0; begin < n; begin += SUM_TILE) {
        double lanes[8] = {0};
        const int64_t end = min64(n, begin + SUM_TILE), full = begin + (end - begin) / 8 * 8;
        for (int64_t i = begin; i < full; i += 8)
            for (int k = 0; k < 8; k++)
                lanes[k] += (double)x[i + k] * (double)x[i + k];
        for (int64_t i = full; i < end; i++)
            lanes[i - full] += (double)x[i] * (double)x[i];
        total += ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    }
    *finite = isfinite(total) != 0; /* squares of floats cannot overflow a double: only NaN and inf can */
    return total;
}
