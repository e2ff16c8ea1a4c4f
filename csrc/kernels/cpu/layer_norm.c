/* Layer norm, forward and backward. A task is ROWS rows. */
#include <math.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"

#define ROWS 64
#define BLOCK 256 /* columns of partial sums that are added side by side */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct layer_job {
    float *y, *mean, *rstd, *dx, *partial; /* partial [tiles, 2, C] */
    const float *x, *dy, *gamma, *beta;
    int64_t n, C;
    float eps;
} layer_job;

#define LOAD(p) v_load_n((p) + i, m) /* within V_EACH */
#define STORE(p, v) v_store_n((p) + i, v, m)

static void layer_norm_task(void *arg, int64_t task, int worker) {
    const layer_job *j = arg;
    const float *gamma = j->gamma, *beta = j->beta;
    const int64_t C = j->C;
    const double inverse = 1.0 / (double)C;
    (void)worker;
    for (int64_t r = task * ROWS; r < min64(j->n, (task + 1) * ROWS); r++) {
        const float *x = j->x + r * C;
        float *y = j->y + r * C;
        vf s = {0}, l = {0}, q = {0};
        V_EACH(0, C, s += LOAD(x);)
        const float near = v_sum(s) / (float)C;
        V_EACH(0, C, {
            const vf d = m < VL ? v_first_n(LOAD(x) - near, m) : LOAD(x) - near;
            l += d;
            q += d * d;
        })
        /* A sum of floats leaves some of the mean, which may be more than the values' spread. */
        const double left = (double)v_sum(l) * inverse, variance = (double)v_sum(q) * inverse - left * left;
        const float mean = (float)((double)near + left);
        const float rstd = (float)(1.0 / sqrt((variance < 0.0 ? 0.0 : variance) + (double)j->eps));
        j->mean[r] = mean;
        j->rstd[r] = rstd;
        if (gamma)
            V_EACH(0, C, STORE(y, (LOAD(x) - mean) * rstd * LOAD(gamma) + LOAD(beta));)
        else
            V_EACH(0, C, STORE(y, (LOAD(x) - mean) * rstd);)
    }
}

void CDAD_K(layer_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                        const float *gamma, const float *beta, int64_t n, int64_t C, float eps) {
    layer_job j = {
        .y = y, .mean = mean, .rstd = rstd, .x = x, .gamma = gamma, .beta = beta, .n = n, .C = C, .eps = eps};
    cdad_pool_run(ctx->pool, (n + ROWS - 1) / ROWS, layer_norm_task, &j);
}

V_INLINE void gradient_tile(int affine, const layer_job *j, int64_t tile) {
    const int64_t C = j->C;
    const float *gamma = j->gamma;
    float *dgamma = j->partial + tile * 2 * C, *dbeta = dgamma + C;
    if (affine)
        memset(dgamma, 0, (size_t)(2 * C) * sizeof *dgamma);
    for (int64_t r = tile * ROWS; r < min64(j->n, (tile + 1) * ROWS); r++) {
        const float *x = j->x + r * C, *dy = j->dy + r * C, mean = j->mean[r], rstd = j->rstd[r];
        float *dx = j->dx + r * C;
        vf s1 = {0}, s2 = {0};
        V_EACH(0, C, {
            const vf xhat = (LOAD(x) - mean) * rstd, d = LOAD(dy);
            const vf dg = affine ? d * LOAD(gamma) : d;
            s1 += dg;
            s2 += dg * xhat;
            if (affine) {
                STORE(dgamma, LOAD(dgamma) + d * xhat);
                STORE(dbeta, LOAD(dbeta) + d);
            }
        })
        const float m1 = v_sum(s1) / (float)C, m2 = v_sum(s2) / (float)C;
        V_EACH(0, C, {
            const vf xhat = (LOAD(x) - mean) * rstd, d = LOAD(dy);
            STORE(dx, rstd * ((affine ? d * LOAD(gamma) : d) - m1 - xhat * m2));
        })
    }
}

static void layer_norm_grad_task(void *arg, int64_t task, int worker) {
    const layer_job *j = arg;
    (void)worker;
    if (j->gamma)
        gradient_tile(1, j, task);
    else
        gradient_tile(0, j, task);
}

int64_t CDAD_K(layer_norm_grad_scratch)(int64_t n, int64_t C) {
    return cdad_align_up((n + ROWS - 1) / ROWS * 2 * C * (int64_t)sizeof(float));
}

/* y [C] = sum over tiles of x [tiles, 2, C], in order. */
static void sum_tiles(float *restrict y, const float *restrict x, int64_t tiles, int64_t C) {
    for (int64_t c = 0; c < C; c += BLOCK) {
        const int64_t w = min64(BLOCK, C - c);
        double sum[BLOCK] = {0};
        for (int64_t t = 0; t < tiles; t++)
            for (int64_t k = 0; k < w; k++)
                sum[k] += (double)x[t * 2 * C + c + k];
        for (int64_t k = 0; k < w; k++)
            y[c + k] = (float)sum[k];
    }
}

void CDAD_K(layer_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                             const float *mean, const float *rstd, const float *gamma, const float *dy,
                             int64_t n, int64_t C, void *scratch) {
    layer_job j = {.dx = dx,
                   .partial = scratch,
                   .mean = (float *)(uintptr_t)mean,
                   .rstd = (float *)(uintptr_t)rstd,
                   .x = x,
                   .dy = dy,
                   .gamma = dgamma ? gamma : NULL,
                   .n = n,
                   .C = C};
    const int64_t tiles = (n + ROWS - 1) / ROWS;
    cdad_pool_run(ctx->pool, tiles, layer_norm_grad_task, &j);
    if (!dgamma)
        return;
    sum_tiles(dgamma, j.partial, tiles, C);
    sum_tiles(dbeta, j.partial + C, tiles, C);
}
