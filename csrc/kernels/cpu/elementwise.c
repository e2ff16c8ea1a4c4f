/* Elementwise kernels. A tail goes through a padded vector, so that an element's bits do not depend on where it
 * stands. */
#include <math.h>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/vmath.h"

#define TILE 16384 /* elements of a task */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t tiles_of(int64_t n) { return (n + TILE - 1) / TILE; }

#define LOAD(p) v_load_n((p) + i, m) /* within V_EACH */
#define STORE(p, v) v_store_n((p) + i, v, m)

typedef struct unary_job {
    float *y;
    const float *x, *dy;
    int64_t n;
    cdad_activation act;
    float a, b;
} unary_job;

/* y[i] = act(x[i]), begin <= i < end */
static void activate_range(float *y, const float *x, int64_t begin, int64_t end, cdad_activation act) {
    switch (act) {
    case CDAD_ACT_SILU:
        V_EACH(begin, end, { const vf v = LOAD(x); STORE(y, v * v_sigmoid(v)); })
        break;
    case CDAD_ACT_RELU:
        V_EACH(begin, end, { const vf v = LOAD(x); STORE(y, v_select(v < 0.0f, v_set1(0.0f), v)); })
        break;
    case CDAD_ACT_RELU6:
        V_EACH(begin, end, {
            const vf v = LOAD(x);
            STORE(y, v_select(v > 6.0f, v_set1(6.0f), v_select(v < 0.0f, v_set1(0.0f), v)));
        })
        break;
    case CDAD_ACT_GELU:
        V_EACH(begin, end, {
            vf pdf;
            const vf v = LOAD(x);
            STORE(y, v * v_normal(v, &pdf));
        })
        break;
    case CDAD_ACT_QUICK_GELU:
        V_EACH(begin, end, { const vf v = LOAD(x); STORE(y, v * v_sigmoid(v * 1.702f)); })
        break;
    case CDAD_ACT_TANH:
        V_EACH(begin, end, STORE(y, v_tanh(LOAD(x)));)
        break;
    case CDAD_ACT_SIGMOID:
        V_EACH(begin, end, STORE(y, v_sigmoid(LOAD(x)));)
        break;
    case CDAD_ACT_EXP:
        V_EACH(begin, end, STORE(y, v_exp(LOAD(x)));)
        break;
    case CDAD_ACT_SQRT:
        for (int64_t i = begin; i < end; i++)
            y[i] = sqrtf(x[i]);
        break;
    case CDAD_ACT_NONE:
    case CDAD_ACT_COUNT:
        break;
    }
}

static void activation_task(void *arg, int64_t task, int worker) {
    const unary_job *j = arg;
    (void)worker;
    activate_range(j->y, j->x, task * TILE, min64(j->n, (task + 1) * TILE), j->act);
}

void CDAD_K(activate)(float *x, int64_t n, cdad_activation act) { activate_range(x, x, 0, n, act); }

void CDAD_K(activation)(const cdad_context *ctx, float *y, const float *x, int64_t n, cdad_activation act) {
    unary_job job = {.y = y, .x = x, .n = n, .act = act};
    cdad_pool_run(ctx->pool, tiles_of(n), activation_task, &job);
}

static void activation_grad_task(void *arg, int64_t task, int worker) {
    const unary_job *j = arg;
    const int64_t begin = task * TILE, end = min64(j->n, begin + TILE);
    const float *x = j->x, *dy = j->dy;
    float *y = j->y;
    const vf zero = v_set1(0.0f);
    (void)worker;
    switch (j->act) {
    case CDAD_ACT_SILU:
        V_EACH(begin, end, {
            const vf v = LOAD(x);
            const vf s = v_sigmoid(v);
            STORE(y, LOAD(dy) * (s + v * s * (1.0f - s)));
        })
        break;
    case CDAD_ACT_RELU:
        V_EACH(begin, end, STORE(y, v_select(LOAD(x) > 0.0f, LOAD(dy), zero));)
        break;
    case CDAD_ACT_RELU6:
        V_EACH(begin, end, { const vf v = LOAD(x); STORE(y, v_select((v > 0.0f) & (v < 6.0f), LOAD(dy), zero)); })
        break;
    case CDAD_ACT_GELU:
        V_EACH(begin, end, {
            vf pdf;
            const vf v = LOAD(x), cdf = v_normal(v, &pdf);
            STORE(y, LOAD(dy) * (cdf + v * pdf));
        })
        break;
    case CDAD_ACT_QUICK_GELU:
        V_EACH(begin, end, {
            const vf v = LOAD(x);
            const vf s = v_sigmoid(v * 1.702f);
            STORE(y, LOAD(dy) * (s + v * 1.702f * s * (1.0f - s)));
        })
        break;
    case CDAD_ACT_TANH:
        V_EACH(begin, end, { const vf t = v_tanh(LOAD(x)); STORE(y, LOAD(dy) * (1.0f - t * t)); })
        break;
    case CDAD_ACT_SIGMOID:
        V_EACH(begin, end, { const vf s = v_sigmoid(LOAD(x)); STORE(y, LOAD(dy) * (s * (1.0f - s))); })
        break;
    case CDAD_ACT_EXP:
        V_EACH(begin, end, STORE(y, LOAD(dy) * v_exp(LOAD(x)));)
        break;
    case CDAD_ACT_SQRT:
        for (int64_t i = begin; i < end; i++)
            y[i] = dy[i] * 0.5f / sqrtf(x[i]);
        break;
    case CDAD_ACT_NONE:
    case CDAD_ACT_COUNT:
        break;
    }
}

void CDAD_K(activation_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n,
                             cdad_activation act) {
    unary_job job = {.y = dx, .x = x, .dy = dy, .n = n, .act = act};
    cdad_pool_run(ctx->pool, tiles_of(n), activation_grad_task, &job);
}

static void affine_task(void *arg, int64_t task, int worker) {
    const unary_job *j = arg;
    const int64_t begin = task * TILE, end = min64(j->n, begin + TILE);
    (void)worker;
    V_EACH(begin, end, STORE(j->y, LOAD(j->x) * j->a + j->b);)
}

void CDAD_K(affine)(const cdad_context *ctx, float *y, const float *x, int64_t n, float a, float b) {
    unary_job job = {.y = y, .x = x, .n = n, .a = a, .b = b};
    cdad_pool_run(ctx->pool, tiles_of(n), affine_task, &job);
}

typedef struct geglu_job {
    float *y;
    const float *x, *dy;
    int64_t n, D, rows; /* rows a task */
} geglu_job;

static void geglu_task(void *arg, int64_t task, int worker) {
    const geglu_job *j = arg;
    (void)worker;
    for (int64_t r = task * j->rows; r < min64(j->n, (task + 1) * j->rows); r++) {
        const float *a = j->x + r * 2 * j->D, *gate = a + j->D;
        float *y = j->y + r * j->D;
        V_EACH(0, j->D, {
            vf pdf;
            const vf v = LOAD(gate);
            STORE(y, LOAD(a) * (v * v_normal(v, &pdf)));
        })
    }
}

void CDAD_K(geglu)(const cdad_context *ctx, float *y, const float *x, int64_t n, int64_t D) {
    geglu_job job = {.y = y, .x = x, .n = n, .D = D, .rows = D < TILE ? TILE / D : 1};
    cdad_pool_run(ctx->pool, (n + job.rows - 1) / job.rows, geglu_task, &job);
}

static void geglu_grad_task(void *arg, int64_t task, int worker) {
    const geglu_job *j = arg;
    (void)worker;
    for (int64_t r = task * j->rows; r < min64(j->n, (task + 1) * j->rows); r++) {
        const float *a = j->x + r * 2 * j->D, *gate = a + j->D, *dy = j->dy + r * j->D;
        float *da = j->y + r * 2 * j->D, *dgate = da + j->D;
        V_EACH(0, j->D, {
            vf pdf;
            const vf v = LOAD(gate), g = LOAD(dy), cdf = v_normal(v, &pdf);
            const vf dg = g * LOAD(a) * (cdf + v * pdf);
            STORE(da, g * (v * cdf));
            STORE(dgate, dg);
        })
    }
}

void CDAD_K(geglu_grad)(const cdad_context *ctx, float *dx, const float *x, const float *dy, int64_t n, int64_t D) {
    geglu_job job = {.y = dx, .x = x, .dy = dy, .n = n, .D = D, .rows = D < TILE ? TILE / D : 1};
    cdad_pool_run(ctx->pool, (n + job.rows - 1) / job.rows, geglu_grad_task, &job);
}

/* The dimensions of a broadcast with neighbours merged: row major over dim[], b at sum(i * stride). */
typedef struct merged {
    int n;
    int64_t dim[5], stride[5];
} merged;

static merged merge(const cdad_broadcast *bc) {
    merged m = {0};
    for (int i = 0; i < 5; i++) {
        if (bc->dim[i] == 1)
            continue;
        if (m.n > 0 && m.stride[m.n - 1] == bc->stride[i] * bc->dim[i] &&
            (bc->stride[i] != 0 || m.stride[m.n - 1] == 0)) {
            m.dim[m.n - 1] *= bc->dim[i];
            m.stride[m.n - 1] = bc->stride[i];
        } else {
            m.dim[m.n] = bc->dim[i];
            m.stride[m.n++] = bc->stride[i];
        }
    }
    if (m.n == 0)
        m = (merged){.n = 1, .dim = {1}, .stride = {1}};
    return m;
}

typedef struct binary_job {
    float *y;
    const float *a, *b;
    merged m;
    int64_t inner, runs, rows; /* length of a run, number of runs, runs a task */
    int64_t inner_stride;      /* of b along a run: 1 or 0, or anything in the general case */
    cdad_binary op;
} binary_job;

static int64_t offset_of(const merged *m, int64_t run) {
    int64_t offset = 0;
    for (int i = m->n - 2; i > 0; i--) { /* no division where it has two dimensions */
        offset += run % m->dim[i] * m->stride[i];
        run /= m->dim[i];
    }
    return m->n > 1 ? offset + run * m->stride[0] : 0;
}

static inline vf apply(cdad_binary op, vf a, vf b) {
    return op == CDAD_BINARY_ADD ? a + b : op == CDAD_BINARY_SUB ? a - b : a * b;
}

/* begin .. end of one run; constant op and stride let the compiler make one loop for each case. */
static inline void binary_run(float *y, const float *a, const float *b, int64_t stride, int64_t begin, int64_t end,
                              cdad_binary op) {
    if (stride == 1) {
        V_EACH(begin, end, STORE(y, apply(op, LOAD(a), LOAD(b)));)
    } else if (stride == 0) {
        const vf s = v_set1(*b);
        V_EACH(begin, end, STORE(y, apply(op, LOAD(a), s));)
    } else {
        V_EACH(begin, end, {
            float lanes[CDAD_VBYTES / 4] = {0};
            for (int64_t k = 0; k < m; k++)
                lanes[k] = b[(i + k) * stride];
            STORE(y, apply(op, LOAD(a), v_load(lanes)));
        })
    }
}

static void binary_task(void *arg, int64_t task, int worker) {
    const binary_job *j = arg;
    const int whole = j->runs == 1; /* one run is cut by tiles, many by runs */
    (void)worker;
    for (int64_t r = whole ? 0 : task * j->rows; r < (whole ? 1 : min64(j->runs, (task + 1) * j->rows)); r++) {
        const int64_t begin = whole ? task * TILE : 0, end = whole ? min64(j->inner, begin + TILE) : j->inner;
        const float *a = j->a + r * j->inner, *b = j->b + offset_of(&j->m, r);
        float *y = j->y + r * j->inner;
        if (j->op == CDAD_BINARY_ADD)
            binary_run(y, a, b, j->inner_stride, begin, end, CDAD_BINARY_ADD);
        else if (j->op == CDAD_BINARY_SUB)
            binary_run(y, a, b, j->inner_stride, begin, end, CDAD_BINARY_SUB);
        else
            binary_run(y, a, b, j->inner_stride, begin, end, CDAD_BINARY_MUL);
    }
}

void CDAD_K(binary)(const cdad_context *ctx, float *y, const float *a, const float *b, const cdad_broadcast *bc,
                    cdad_binary op) {
    binary_job job = {.y = y, .a = a, .b = b, .m = merge(bc), .op = op, .runs = 1};
    job.inner = job.m.dim[job.m.n - 1];
    job.inner_stride = job.m.stride[job.m.n - 1];
    for (int i = 0; i < job.m.n - 1; i++)
        job.runs *= job.m.dim[i];
    job.rows = job.inner < TILE ? TILE / job.inner : 1;
    cdad_pool_run(ctx->pool, job.runs == 1 ? tiles_of(job.inner) : (job.runs + job.rows - 1) / job.rows, binary_task,
                  &job);
}

typedef struct mse_job {
    float *y, *per;
    const float *a, *b, *g;
    int64_t n, m;
} mse_job;

/* One sample: lanes in float by tiles, tiles in double. */
static void mse_task(void *arg, int64_t task, int worker) {
    const mse_job *j = arg;
    const float *a = j->a + task * j->m, *b = j->b + task * j->m;
    double sum = 0.0;
    (void)worker;
    for (int64_t begin = 0; begin < j->m; begin += 1024) {
        const int64_t end = min64(j->m, begin + 1024);
        vf s = v_set1(0.0f);
        V_EACH(begin, end, { const vf d = LOAD(a) - LOAD(b); s = s + d * d; })
        sum += (double)v_sum(s);
    }
    j->per[task] = (float)(sum / (double)j->m);
}

void CDAD_K(mse)(const cdad_context *ctx, float *y, float *per, const float *a, const float *b, int64_t n,
                 int64_t m) {
    mse_job job = {.per = per, .a = a, .b = b, .n = n, .m = m};
    cdad_pool_run(ctx->pool, n, mse_task, &job);
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)per[i];
    y[0] = (float)(sum / (double)n);
}

static void mse_grad_task(void *arg, int64_t task, int worker) {
    const mse_job *j = arg;
    const int64_t begin = task * TILE, end = min64(j->n, begin + TILE);
    const float scale = j->g[0] * 2.0f / (float)j->n;
    (void)worker;
    V_EACH(begin, end, STORE(j->y, (LOAD(j->a) - LOAD(j->b)) * scale);)
}

void CDAD_K(mse_grad)(const cdad_context *ctx, float *da, const float *a, const float *b, const float *g, int64_t n,
                      int64_t m) {
    mse_job job = {.y = da, .a = a, .b = b, .g = g, .n = n * m};
    cdad_pool_run(ctx->pool, tiles_of(job.n), mse_grad_task, &job);
}
