/* Group norm (with SiLU) and layer norm, forward and backward. */
#include <math.h>

#include "base/memory.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/vmath.h"

#define BLOCK 64 /* channels that are summed side by side */
#define ROWS 64  /* rows that are summed in float before they go into a double */
#define WIDTH 32 /* channels that a group norm task has at least: whole cache lines */
#define WIDEST 256

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- group norm: a task is some whole groups of one sample ---- */

typedef struct group_job {
    float *y, *mean, *rstd, *dx, *sums; /* sums [N,C,2]: of dy', of dy' * xhat */
    const float *x, *dy, *gamma, *beta;
    int64_t N, HW, C, G, width; /* channels of a task: a multiple of C / G */
    float eps;
    int silu;
} group_job;

/* Whole groups, and whole vectors of any instruction set where groups are not too wide for that. */
static int64_t task_width(int64_t C, int64_t G) {
    const int64_t per = C / G;
    int64_t whole = per;
    while (whole % 16)
        whole += per;
    const int64_t unit = whole <= WIDEST ? whole : per;
    return min64(C, (WIDTH + unit - 1) / unit * unit);
}

static int64_t group_tasks(const group_job *j) { return j->N * ((j->C + j->width - 1) / j->width); }

/* sum[k] = sum over rows of (x[r, k] - shift[k])^power for n vectors of columns, the last one of `lanes` columns. */
static inline __attribute__((always_inline)) void vector_sums(int n, double *sum, const float *x, const float *shift,
                                                              int64_t rows, int64_t C, int64_t lanes, int power) {
    float part[BLOCK];
    for (int64_t k = 0; k < (n - 1) * VL + lanes; k++)
        sum[k] = 0.0;
    for (int64_t begin = 0; begin < rows; begin += ROWS) {
        const int64_t end = min64(rows, begin + ROWS);
        vf acc[4];
        V_UNROLL for (int i = 0; i < n; i++)
            acc[i] = (vf){0};
        for (int64_t r = begin; r < end; r++) {
            V_UNROLL for (int i = 0; i < n; i++) {
                vf v = n > 1 ? v_load(x + r * C + i * VL) : v_load_n(x + r * C, lanes);
                if (power == 2) {
                    v -= v_load(shift + i * VL);
                    v *= v;
                }
                acc[i] += v;
            }
        }
        V_UNROLL for (int i = 0; i < n; i++)
            v_store(part + i * VL, acc[i]);
        for (int64_t k = 0; k < (n - 1) * VL + lanes; k++)
            sum[k] += (double)part[k];
    }
}

/* The same for w <= BLOCK columns; shift has BLOCK of them. */
static inline __attribute__((always_inline)) void column_sums(double *sum, const float *x, const float *shift,
                                                              int64_t rows, int64_t C, int64_t w, int power) {
    int64_t k = 0;
    for (; k + 4 * VL <= w; k += 4 * VL)
        vector_sums(4, sum + k, x + k, shift + k, rows, C, VL, power);
    for (; k < w; k += VL)
        vector_sums(1, sum + k, x + k, shift + k, rows, C, min64(VL, w - k), power);
}

/* totals[g] = sum over the channels of group g of this task, by column_sums. */
static void group_sums(const group_job *j, double *totals, const float *x, const float *mean, int64_t w,
                       int power) {
    const int64_t per = j->C / j->G;
    for (int64_t g = 0; g < w / per; g++)
        totals[g] = 0.0;
    for (int64_t c = 0; c < w; c += BLOCK) {
        double sum[BLOCK];
        float shift[BLOCK] = {0};
        const int64_t b = min64(BLOCK, w - c);
        for (int64_t k = 0; k < b && mean; k++)
            shift[k] = mean[(c + k) / per];
        if (power == 1)
            column_sums(sum, x + c, shift, j->HW, j->C, b, 1);
        else
            column_sums(sum, x + c, shift, j->HW, j->C, b, 2);
        for (int64_t k = 0; k < b; k++)
            totals[(c + k) / per] += sum[k];
    }
}

static inline vf normalized(vf x, const float *a, const float *b, int silu) {
    const vf v = x * v_load(a) + v_load(b);
    return silu ? v * v_sigmoid(v) : v;
}

/* y = x * a + b by channels, then SiLU; w channels of one row. */
static inline void normalize_row(float *y, const float *x, const float *a, const float *b, int64_t w,
                                 int silu) {
    int64_t k = 0;
    for (; k + VL <= w; k += VL)
        v_store(y + k, normalized(v_load(x + k), a + k, b + k, silu));
    if (k < w)
        v_store_n(y + k, normalized(v_load_n(x + k, w - k), a + k, b + k, silu), w - k);
}

static void group_norm_task(void *arg, int64_t task, int worker) {
    const group_job *j = arg;
    const int64_t parts = (j->C + j->width - 1) / j->width, n = task / parts, c0 = task % parts * j->width;
    const int64_t w = min64(j->width, j->C - c0), per = j->C / j->G, g0 = c0 / per;
    const double count = (double)(j->HW * per);
    const float *x = j->x + n * j->HW * j->C + c0;
    float *y = j->y + n * j->HW * j->C + c0, *mean = j->mean + n * j->G + g0, *rstd = j->rstd + n * j->G + g0;
    double totals[WIDTH];
    (void)worker;
    group_sums(j, totals, x, NULL, w, 1);
    for (int64_t g = 0; g < w / per; g++)
        mean[g] = (float)(totals[g] / count);
    group_sums(j, totals, x, mean, w, 2);
    for (int64_t g = 0; g < w / per; g++)
        rstd[g] = (float)(1.0 / sqrt(totals[g] / count + (double)j->eps));
    for (int64_t c = 0; c < w; c += BLOCK) {
        float a[BLOCK] = {0}, b[BLOCK] = {0};
        const int64_t m = min64(BLOCK, w - c);
        for (int64_t k = 0; k < m; k++) {
            a[k] = rstd[(c + k) / per] * j->gamma[c0 + c + k];
            b[k] = j->beta[c0 + c + k] - mean[(c + k) / per] * a[k];
        }
        for (int64_t r = 0; r < j->HW; r++)
            normalize_row(y + r * j->C + c, x + r * j->C + c, a, b, m, j->silu);
    }
}

void CDAD_K(group_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                        const float *gamma, const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G,
                        float eps, int silu) {
    group_job j = {.y = y,
                   .mean = mean,
                   .rstd = rstd,
                   .x = x,
                   .gamma = gamma,
                   .beta = beta,
                   .N = N,
                   .HW = HW,
                   .C = C,
                   .G = G,
                   .width = task_width(C, G),
                   .eps = eps,
                   .silu = silu};
    cdad_pool_run(ctx->pool, group_tasks(&j), group_norm_task, &j);
}

/* One row of a block: dy' (through SiLU) to `out`, dy' and dy' * xhat added to the sums. */
static inline void gradient_row(const group_job *j, float *out, float *s1, float *s2, const float *x,
                                const float *dy, const float *mean, const float *rstd, const float *gamma,
                                const float *beta, int64_t w) {
    for (int64_t k = 0; k < w; k += VL) {
        const int64_t m = min64(VL, w - k);
        const vf v = v_load_n(x + k, m);
        vf d = v_load_n(dy + k, m);
        const vf xhat = (v - v_load(mean + k)) * v_load(rstd + k);
        if (j->silu) {
            const vf pre = xhat * v_load(gamma + k) + v_load(beta + k), s = v_sigmoid(pre);
            d = d * (s + pre * s * (1.0f - s));
        }
        v_store(s1 + k, v_load(s1 + k) + d);
        v_store(s2 + k, v_load(s2 + k) + d * xhat);
        v_store_n(out + k, d, m);
    }
}

/* dx = rstd * (dy' gamma - m1 - xhat * m2); dx holds dy'. */
static inline void input_gradient_row(float *dx, const float *x, const float *mean, const float *rstd,
                                      const float *gamma, const float *m1, const float *m2, int64_t w) {
    for (int64_t k = 0; k < w; k += VL) {
        const int64_t m = min64(VL, w - k);
        const vf v = v_load_n(x + k, m), d = v_load_n(dx + k, m);
        const vf r = v_load(rstd + k), xhat = (v - v_load(mean + k)) * r;
        const vf result = r * (d * v_load(gamma + k) - v_load(m1 + k) - xhat * v_load(m2 + k));
        v_store_n(dx + k, result, m);
    }
}

/* What a block of channels needs, spread out from groups to channels. */
typedef struct block_params {
    float mean[BLOCK], rstd[BLOCK], gamma[BLOCK], beta[BLOCK], m1[BLOCK], m2[BLOCK];
} block_params;

static void spread_params(const group_job *j, block_params *p, int64_t n, int64_t c0, int64_t m) {
    const int64_t per = j->C / j->G;
    memset(p, 0, sizeof *p);
    for (int64_t k = 0; k < m; k++) {
        p->mean[k] = j->mean[n * j->G + (c0 + k) / per];
        p->rstd[k] = j->rstd[n * j->G + (c0 + k) / per];
        p->gamma[k] = j->gamma[c0 + k];
        p->beta[k] = j->beta[c0 + k];
    }
}

static void group_norm_grad_task(void *arg, int64_t task, int worker) {
    const group_job *j = arg;
    const int64_t parts = (j->C + j->width - 1) / j->width, n = task / parts, c0 = task % parts * j->width;
    const int64_t w = min64(j->width, j->C - c0), per = j->C / j->G;
    const int64_t sample = n * j->HW * j->C;
    const double count = (double)(j->HW * per);
    double m1[WIDTH] = {0}, m2[WIDTH] = {0};
    block_params p;
    (void)worker;
    for (int64_t c = 0; c < w; c += BLOCK) {
        const int64_t m = min64(BLOCK, w - c);
        double s1[BLOCK] = {0}, s2[BLOCK] = {0};
        spread_params(j, &p, n, c0 + c, m);
        for (int64_t begin = 0; begin < j->HW; begin += ROWS) {
            float f1[BLOCK] = {0}, f2[BLOCK] = {0};
            for (int64_t r = begin; r < min64(j->HW, begin + ROWS); r++) {
                const int64_t at = sample + r * j->C + c0 + c;
                gradient_row(j, j->dx + at, f1, f2, j->x + at, j->dy + at, p.mean, p.rstd, p.gamma, p.beta,
                             m);
            }
            for (int64_t k = 0; k < m; k++) {
                s1[k] += (double)f1[k];
                s2[k] += (double)f2[k];
            }
        }
        for (int64_t k = 0; k < m; k++) {
            m1[(c + k) / per] += s1[k] * (double)p.gamma[k] / count;
            m2[(c + k) / per] += s2[k] * (double)p.gamma[k] / count;
            j->sums[(n * j->C + c0 + c + k) * 2] = (float)s1[k];
            j->sums[(n * j->C + c0 + c + k) * 2 + 1] = (float)s2[k];
        }
    }
    for (int64_t c = 0; c < w; c += BLOCK) {
        const int64_t m = min64(BLOCK, w - c);
        spread_params(j, &p, n, c0 + c, m);
        for (int64_t k = 0; k < m; k++) {
            p.m1[k] = (float)m1[(c + k) / per];
            p.m2[k] = (float)m2[(c + k) / per];
        }
        for (int64_t r = 0; r < j->HW; r++) {
            const int64_t at = sample + r * j->C + c0 + c;
            input_gradient_row(j->dx + at, j->x + at, p.mean, p.rstd, p.gamma, p.m1, p.m2, m);
        }
    }
}

void CDAD_K(group_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                             const float *mean, const float *rstd, const float *gamma, const float *beta,
                             const float *dy, int64_t N, int64_t HW, int64_t C, int64_t G, int silu,
                             void *scratch) {
    group_job j = {.dx = dx,
                   .mean = (float *)(uintptr_t)mean,
                   .rstd = (float *)(uintptr_t)rstd,
                   .sums = scratch,
                   .x = x,
                   .dy = dy,
                   .gamma = gamma,
                   .beta = beta,
                   .N = N,
                   .HW = HW,
                   .C = C,
                   .G = G,
                   .width = task_width(C, G),
                   .silu = silu};
    cdad_pool_run(ctx->pool, group_tasks(&j), group_norm_grad_task, &j);
    for (int64_t c = 0; c < C; c++) {
        float db = 0.0f, dg = 0.0f;
        for (int64_t n = 0; n < N; n++) {
            db += j.sums[(n * C + c) * 2];
            dg += j.sums[(n * C + c) * 2 + 1];
        }
        dbeta[c] = db;
        dgamma[c] = dg;
    }
}

/* ---- layer norm: a task is ROWS rows ---- */

typedef struct layer_job {
    float *y, *mean, *rstd, *dx, *partial; /* partial [tiles, 2, C] */
    const float *x, *dy, *gamma, *beta;
    int64_t n, C;
    float eps;
} layer_job;

static void layer_norm_task(void *arg, int64_t task, int worker) {
    const layer_job *j = arg;
    const int64_t C = j->C;
    (void)worker;
    for (int64_t r = task * ROWS; r < min64(j->n, (task + 1) * ROWS); r++) {
        const float *x = j->x + r * C;
        float *y = j->y + r * C;
        vf s = v_set1(0.0f), q = v_set1(0.0f);
        for (int64_t k = 0; k < C; k += VL)
            s = s + v_load_n(x + k, min64(VL, C - k));
        const float mean = v_sum(s) / (float)C;
        for (int64_t k = 0; k < C; k += VL) {
            const int64_t m = min64(VL, C - k);
            vf d = v_load_n(x + k, m) - v_set1(mean);
            if (m < VL)
                d = v_first_n(d, m);
            q = q + d * d;
        }
        const float rstd = (float)(1.0 / sqrt((double)v_sum(q) / (double)C + (double)j->eps));
        j->mean[r] = mean;
        j->rstd[r] = rstd;
        for (int64_t k = 0; k < C; k += VL) {
            const int64_t m = min64(VL, C - k);
            vf v = (v_load_n(x + k, m) - v_set1(mean)) * v_set1(rstd);
            if (j->gamma)
                v = v * v_load_n(j->gamma + k, m) + v_load_n(j->beta + k, m);
            v_store_n(y + k, v, m);
        }
    }
}

void CDAD_K(layer_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                        const float *gamma, const float *beta, int64_t n, int64_t C, float eps) {
    layer_job j = {
        .y = y, .mean = mean, .rstd = rstd, .x = x, .gamma = gamma, .beta = beta, .n = n, .C = C, .eps = eps};
    cdad_pool_run(ctx->pool, (n + ROWS - 1) / ROWS, layer_norm_task, &j);
}

static void layer_norm_grad_task(void *arg, int64_t task, int worker) {
    const layer_job *j = arg;
    const int64_t C = j->C;
    float *dgamma = j->partial + task * 2 * C, *dbeta = dgamma + C;
    (void)worker;
    if (j->gamma)
        memset(dgamma, 0, (size_t)(2 * C) * sizeof(float));
    for (int64_t r = task * ROWS; r < min64(j->n, (task + 1) * ROWS); r++) {
        const float *x = j->x + r * C, *dy = j->dy + r * C;
        float *dx = j->dx + r * C;
        const vf mean = v_set1(j->mean[r]), rstd = v_set1(j->rstd[r]);
        vf s1 = v_set1(0.0f), s2 = v_set1(0.0f);
        for (int64_t k = 0; k < C; k += VL) {
            const int64_t m = min64(VL, C - k);
            const vf xhat = (v_load_n(x + k, m) - mean) * rstd, d = v_load_n(dy + k, m);
            const vf dg = j->gamma ? d * v_load_n(j->gamma + k, m) : d;
            s1 = s1 + dg;
            s2 = s2 + dg * xhat;
            if (j->gamma) {
                v_store_n(dgamma + k, v_load_n(dgamma + k, m) + d * xhat, m);
                v_store_n(dbeta + k, v_load_n(dbeta + k, m) + d, m);
            }
        }
        const vf m1 = v_set1(v_sum(s1) / (float)C), m2 = v_set1(v_sum(s2) / (float)C);
        for (int64_t k = 0; k < C; k += VL) {
            const int64_t m = min64(VL, C - k);
            const vf xhat = (v_load_n(x + k, m) - mean) * rstd, d = v_load_n(dy + k, m);
            const vf dg = j->gamma ? d * v_load_n(j->gamma + k, m) : d;
            v_store_n(dx + k, rstd * (dg - m1 - xhat * m2), m);
        }
    }
}

int64_t CDAD_K(layer_norm_grad_scratch)(int64_t n, int64_t C) {
    return cdad_align_up((n + ROWS - 1) / ROWS * 2 * C * (int64_t)sizeof(float));
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
    for (int64_t c = 0; dgamma && c < C; c++) {
        double dg = 0.0, db = 0.0;
        for (int64_t t = 0; t < tiles; t++) {
            dg += (double)j.partial[t * 2 * C + c];
            db += (double)j.partial[t * 2 * C + C + c];
        }
        dgamma[c] = (float)dg;
        dbeta[c] = (float)db;
    }
}
