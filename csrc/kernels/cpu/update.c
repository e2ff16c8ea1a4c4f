/* The optimiser's kernels. */
#include <float.h>
#include <math.h>

#include "kernels/bfloat16.h"
#include "kernels/cpu/backend.h"
#include "kernels/dynamic8.h"

#define TILE 2048  /* its moments as floats fit an L1 cache; whole blocks of 8 bit */
#define ALONE 8192 /* elements that do not pay for waking a thread */
#define SUM_TILE 65536
#define SUM_TILES 256 /* side by side */
#define LANES 16      /* sums of a tile side by side: one waits for the one before it */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct update_job {
    float *w, *e, *du;
    void *m, *v;
    const float *g;
    int64_t n;
    cdad_adamw h;
} update_job;

/* Scalar code on purpose: the compiler makes vectors of it, and square root and division round the same. */
static void add_tile(float *restrict w, float *restrict e, const float *restrict du, int64_t n, float ema_decay) {
    const float rest = 1.0f - ema_decay;
    for (int64_t i = 0; du && i < n; i++)
        w[i] += du[i];
    for (int64_t i = 0; e && i < n; i++)
        e[i] += rest * (w[i] - e[i]);
}

/* to = g + the penalty's gradient; g and w begin at the parameter's element `at`. */
static inline void pull_tile(float *restrict to, const float *restrict g, const float *restrict w, const cdad_pull *p,
                             int64_t at, int64_t n) {
    const float *restrict importance = p->importance + at, *restrict anchor = p->anchor + at;
    const float strength = p->strength;
    for (int64_t i = 0; i < n; i++)
        to[i] = g[i] + strength * (importance[i] * (w[i] - anchor[i]));
}

static void widen(float *restrict to, const uint16_t *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        to[i] = cdad_from_bf16(from[i]);
}

static void round_to_bf16(uint16_t *restrict to, const float *restrict from, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        to[i] = cdad_to_bf16(from[i]);
}

/* Of a moment that decays, without denormals: 0.9 times the last of them rounds to itself, so that it would stay one, and every
 * step of its vector take 15 to 20 times as long. */
static inline float decayed(float moment) { return fabsf(moment) < FLT_MIN ? 0.0f : moment; }

/* One pass over a tile. The biases are factors that no element divides by:
 * (m / bias1) / (sqrt(v / bias2) + eps) = m * root / bias1 / (sqrt(v) + eps * root), root = sqrt(bias2). */
V_INLINE void update_tile(int give, int average, float *restrict w, float *restrict m, float *restrict v,
                          float *restrict e, float *restrict du, const float *g, int64_t n, const cdad_adamw *h) {
    const float rest1 = 1.0f - h->beta1, rest2 = 1.0f - h->beta2, rest = 1.0f - h->ema_decay;
    const float root = sqrtf(h->bias2), eps = h->eps * root, rate = -h->lr * (root / h->bias1);
    const float beta1 = h->beta1, beta2 = h->beta2, grad_scale = h->grad_scale, decay = -h->lr * h->weight_decay;
    for (int64_t i = 0; i < n; i++) {
        const float scaled = g[i] * grad_scale;
        m[i] = decayed(beta1 * m[i] + rest1 * scaled);
        v[i] = decayed(beta2 * v[i] + rest2 * (scaled * scaled));
        const float d = rate * (m[i] / (sqrtf(v[i]) + eps)) + decay * w[i];
        if (give)
            du[i] = d;
        else
            w[i] += d;
        if (average)
            e[i] += rest * (w[i] - e[i]);
    }
}

static void adamw_task(void *arg, int64_t task, int worker) {
    const update_job *j = arg;
    const cdad_adamw *h = &j->h;
    const int64_t begin = task * TILE, n = min64(j->n - begin, TILE), block = begin / CDAD_BLOCK8;
    uint16_t *const half_m = h->m_is_bf16 ? (uint16_t *)j->m + begin : NULL;
    uint8_t *const codes_m = h->m_most ? (uint8_t *)j->m + begin : NULL, *const codes_v = h->v_most ? (uint8_t *)j->v + begin : NULL;
    float wide_m[TILE], wide_v[TILE], pulled[TILE], du[TILE];
    float *m = half_m || codes_m ? wide_m : (float *)j->m + begin, *v = codes_v ? wide_v : (float *)j->v + begin;
    float *w = j->w + begin, *e = j->e ? j->e + begin : NULL;
    const float *const given = j->g + begin, *g = h->pull.importance ? pulled : given;
    (void)worker;
    if (h->pull.importance)
        pull_tile(pulled, given, w, &h->pull, begin, n);
    if (half_m)
        widen(wide_m, half_m, n);
    if (codes_m)
        cdad_decode8(1, wide_m, codes_m, h->m_most + block, n);
    if (codes_v)
        cdad_decode8(0, wide_v, codes_v, h->v_most + block, n);
    if (j->du || h->path) {
        update_tile(1, 0, w, m, v, NULL, du, g, n, h);
        for (int64_t i = 0; h->path && i < n; i++)
            h->path[begin + i] -= given[i] * du[i];
        if (j->du)
            memcpy(j->du + begin, du, (size_t)n * sizeof *du); /* which may be g */
        else
            add_tile(w, e, du, n, h->ema_decay);
    } else if (e)
        update_tile(0, 1, w, m, v, e, NULL, g, n, h);
    else
        update_tile(0, 0, w, m, v, NULL, NULL, g, n, h);
    if (half_m)
        round_to_bf16(half_m, wide_m, n);
    if (codes_m)
        cdad_encode8(1, codes_m, h->m_most + block, wide_m, n);
    if (codes_v)
        cdad_encode8(0, codes_v, h->v_most + block, wide_v, n);
}

void CDAD_K(adamw)(const cdad_context *ctx, float *w, void *m, void *v, float *e, float *du, const float *g,
                   int64_t n, const cdad_adamw *h) {
    update_job job = {.w = w, .m = m, .v = v, .e = e, .du = du, .g = g, .n = n, .h = *h};
    if (h->squares && !isfinite(*h->squares)) {
        if (du)
            memset(du, 0, (size_t)n * sizeof *du);
        return;
    }
    cdad_pool_run(n > ALONE ? ctx->pool : NULL, (n + TILE - 1) / TILE, adamw_task, &job);
}

static void add_task(void *arg, int64_t task, int worker) {
    const update_job *j = arg;
    const int64_t begin = task * TILE;
    (void)worker;
    add_tile(j->w + begin, j->e ? j->e + begin : NULL, j->du ? j->du + begin : NULL, min64(j->n - begin, TILE),
             j->h.ema_decay);
}

void CDAD_K(add_to)(const cdad_context *ctx, float *w, float *e, const float *du, int64_t n, float ema_decay) {
    update_job job = {.w = w, .e = e, .du = (float *)(uintptr_t)du, .n = n, .h = {.ema_decay = ema_decay}};
    cdad_pool_run(n > ALONE ? ctx->pool : NULL, (n + TILE - 1) / TILE, add_task, &job);
}

typedef struct sum_job {
    const float *x, *w; /* w: NULL, or what `pull` pulls: squares of x with the penalty's gradient */
    const cdad_pull *pull;
    int64_t n, at; /* at: of x in the parameter */
    double *tile;  /* [tasks] */
} sum_job;

static void sum_task(void *arg, int64_t task, int worker) {
    const sum_job *j = arg;
    const int64_t begin = task * SUM_TILE, end = min64(j->n, begin + SUM_TILE);
    float pulled[TILE];
    double lanes[LANES] = {0};
    (void)worker;
    for (int64_t part = begin; part < end; part += TILE) { /* TILE is a multiple of the lanes */
        const int64_t n = min64(end - part, TILE), full = n / LANES * LANES;
        const float *x = j->x + part;
        if (j->w) {
            pull_tile(pulled, x, j->w + part, j->pull, j->at + part, n);
            x = pulled;
        }
        for (int64_t i = 0; i < full; i += LANES)
            for (int k = 0; k < LANES; k++)
                lanes[k] += (double)x[i + k] * (double)x[i + k];
        for (int64_t i = full; i < n; i++)
            lanes[i - full] += (double)x[i] * (double)x[i];
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++)
            lanes[k] += lanes[k + half];
    j->tile[task] = lanes[0];
}

static double sum_tiles(const cdad_context *ctx, const float *x, const float *w, const cdad_pull *pull, int64_t n) {
    double total = 0.0, tile[SUM_TILES];
    for (int64_t begin = 0; begin < n; begin += SUM_TILES * SUM_TILE) {
        sum_job job = {.x = x + begin, .w = w ? w + begin : NULL, .pull = pull, .at = begin,
                       .n = min64(n - begin, SUM_TILES * SUM_TILE), .tile = tile};
        const int64_t tasks = (job.n + SUM_TILE - 1) / SUM_TILE;
        cdad_pool_run(ctx->pool, tasks, sum_task, &job);
        for (int64_t t = 0; t < tasks; t++)
            total += tile[t];
    }
    return total; /* squares of floats cannot overflow a double: only NaN and inf can */
}

void CDAD_K(sum_squares)(const cdad_context *ctx, double *to, const float *x, int64_t n) {
    *to = sum_tiles(ctx, x, NULL, NULL, n);
}

void CDAD_K(sum_squares_pulled)(const cdad_context *ctx, double *to, const float *g, const float *w, int64_t n,
                                const cdad_pull *pull) {
    *to = sum_tiles(ctx, g, w, pull, n);
}

typedef struct magnitude_job {
    float *sum;
    const float *g;
    int64_t n;
    int squares;
} magnitude_job;

static void magnitude_task(void *arg, int64_t task, int worker) {
    const magnitude_job *j = arg;
    const int64_t begin = task * TILE, n = min64(j->n - begin, TILE);
    float *restrict sum = j->sum + begin;
    const float *restrict g = j->g + begin;
    (void)worker;
    if (j->squares)
        for (int64_t i = 0; i < n; i++)
            sum[i] += g[i] * g[i];
    else
        for (int64_t i = 0; i < n; i++)
            sum[i] += fabsf(g[i]);
}

void CDAD_K(add_magnitudes)(const cdad_context *ctx, float *sum, const float *g, int64_t n, int squares) {
    magnitude_job job = {.sum = sum, .g = g, .n = n, .squares = squares};
    cdad_pool_run(ctx->pool, (n + TILE - 1) / TILE, magnitude_task, &job);
}
