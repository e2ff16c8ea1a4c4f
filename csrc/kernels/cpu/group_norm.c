/* Group norm (with SiLU), forward and backward. A task is some whole groups of one sample; within it, two vectors of
 * channels go down the rows side by side, their sums in registers. */
#include <math.h>

#include "kernels/cpu/backend.h"
#include "kernels/cpu/vmath.h"

#define BLOCK 64      /* channels whose numbers are laid out together */
#define ROWS 64       /* rows that are summed in float before they go into a double */
#define WIDTH 32      /* channels that a task has at least: whole cache lines */
#define WIDEST 256    /* channels that it has at most, unless groups are wider */
#define ELEMENTS 4096 /* that a task has at least, up to that: less does not pay for a thread's waking */
#define FAR 64.0      /* of the variance: the square of a distance from the mean that costs it bits */
#define TASKS 16      /* of wider ones there are at least so many: rows of whole samples are read faster than parts */

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct group_job {
    float *y, *mean, *rstd, *dx, *sum, *sum_xhat; /* sums [N,C]: of dy' = dy through SiLU, of dy' * xhat */
    const float *x, *dy, *gamma, *beta;
    int64_t N, HW, C, G, width; /* channels of a task: a multiple of C / G */
    float eps;
    int silu;
} group_job;

/* Whole groups, and whole vectors of any instruction set where groups are not too wide for that. A group's bits do not
 * depend on it. */
static int64_t task_width(int64_t N, int64_t HW, int64_t C, int64_t G) {
    const int64_t per = C / G;
    int64_t whole = per;
    while (whole % 16)
        whole += per;
    const int64_t unit = whole <= WIDEST ? whole : per;
    int64_t width = (WIDTH + unit - 1) / unit * unit;
    while (width + unit <= min64(C, WIDEST) && (width * HW < ELEMENTS || N * C >= TASKS * (width + unit)))
        width += unit;
    return min64(C, width);
}

static int64_t group_tasks(const group_job *j) { return j->N * ((j->C + j->width - 1) / j->width); }

/* What a task is about. */
typedef struct part {
    int64_t n, c0, w, g0, per, at; /* sample, first channel, channels, first group, channels of one; of [N,HW,C] */
} part;

static part part_of(const group_job *j, int64_t task) {
    const int64_t parts = (j->C + j->width - 1) / j->width, n = task / parts, c0 = task % parts * j->width;
    const int64_t per = j->C / j->G;
    return (part){n, c0, min64(j->width, j->C - c0), c0 / per, per, n * j->HW * j->C + c0};
}

/* CALL for the vectors of w channels from k = 0 on: `n` at a time, the last one of `lanes` channels. */
#define EACH_VECTORS(w, CALL)                    \
    {                                            \
        int64_t k = 0;                           \
        for (; k + 2 * VL <= (w); k += 2 * VL) { \
            enum { n = 2 };                      \
            const int64_t lanes = VL;            \
            CALL;                                \
        }                                        \
        for (; k + VL <= (w); k += VL) {         \
            enum { n = 1 };                      \
            const int64_t lanes = VL;            \
            CALL;                                \
        }                                        \
        if (k < (w)) {                           \
            enum { n = 1 };                      \
            const int64_t lanes = (w)-k;         \
            CALL;                                \
        }                                        \
    }

static inline vf load(const float *p, int n, int i, int64_t lanes) {
    return n > 1 ? v_load(p + i * VL) : v_load_n(p, lanes);
}
static inline void store(float *p, vf v, int n, int i, int64_t lanes) {
    if (n > 1)
        v_store(p + i * VL, v);
    else
        v_store_n(p, v, lanes);
}

static inline void add_lanes(double *sum, vf v, int64_t lanes) {
    float x[CDAD_VBYTES / 4];
    v_store(x, v);
    for (int64_t k = 0; k < lanes; k++)
        sum[k] += (double)x[k];
}

/* first[k] += sum over rows of x[r, k] - shift[k], and second[k] of its square, for n vectors. Even and odd rows apart: sums
 * wait for sums. */
V_INLINE void add_moments(int n, double *first, double *second, const float *x, const float *shift, int64_t rows,
                          int64_t C, int64_t lanes) {
    vf sum[2][2], square[2][2], s[2];
    int64_t r = 0;
    V_UNROLL for (int i = 0; i < n; i++) {
        s[i] = v_load(shift + i * VL);
        sum[0][i] = sum[1][i] = square[0][i] = square[1][i] = (vf){0};
    }
    for (; r + 2 <= rows; r += 2)
        V_UNROLL for (int odd = 0; odd < 2; odd++)
            V_UNROLL for (int i = 0; i < n; i++) {
                const vf v = load(x + (r + odd) * C, n, i, lanes) - s[i];
                sum[odd][i] += v;
                square[odd][i] += v * v;
            }
    V_UNROLL for (int i = 0; i < n; i++) {
        if (r < rows) {
            const vf v = load(x + r * C, n, i, lanes) - s[i];
            sum[0][i] += v;
            square[0][i] += v * v;
        }
        add_lanes(first + i * VL, sum[0][i] + sum[1][i], lanes);
        add_lanes(second + i * VL, square[0][i] + square[1][i], lanes);
    }
}

/* Of the groups of this task: the sums of x - near[group] and of its square, in one pass. */
static void group_moments(const group_job *j, const part *p, const float *near, double *first, double *second) {
    for (int64_t g = 0; g < p->w / p->per; g++)
        first[g] = second[g] = 0.0;
    for (int64_t c = 0; c < p->w; c += BLOCK) {
        double sum[BLOCK] = {0}, square[BLOCK] = {0};
        float shift[BLOCK] = {0};
        const int64_t w = min64(BLOCK, p->w - c);
        for (int64_t k = 0; k < w; k++)
            shift[k] = near[(c + k) / p->per];
        for (int64_t r = 0; r < j->HW; r += ROWS) {
            const float *x = j->x + p->at + r * j->C + c;
            EACH_VECTORS(w, add_moments(n, sum + k, square + k, x + k, shift + k, min64(ROWS, j->HW - r), j->C, lanes))
        }
        for (int64_t k = 0; k < w; k++) {
            first[(c + k) / p->per] += sum[k];
            second[(c + k) / p->per] += square[k];
        }
    }
}

/* A group's values are taken from its first one, which is as near to them as they are to each other, so that a mean far
 * from zero costs the variance nothing. Where that one stands apart, they are taken from the mean in a second pass. */
static void group_statistics(const group_job *j, const part *p, float *mean, float *rstd) {
    const double count = (double)(j->HW * p->per);
    const int64_t groups = p->w / p->per;
    double first[WIDEST], second[WIDEST];
    float near[WIDEST];
    for (int64_t g = 0; g < groups; g++)
        near[g] = j->x[p->at + g * p->per];
    for (int pass = 0, again = 1; pass < 2 && again; pass++) {
        again = 0;
        group_moments(j, p, near, first, second);
        for (int64_t g = 0; g < groups; g++) {
            const double off = first[g] / count, variance = fmax(0.0, second[g] / count - off * off);
            mean[g] = (float)((double)near[g] + off);
            rstd[g] = (float)(1.0 / sqrt(variance + (double)j->eps));
            if (off * off > FAR * variance) { /* the others come out the same again */
                near[g] = mean[g];
                again = 1;
            }
        }
    }
}

/* The numbers of a block of channels: xhat gamma + beta = (x - mean) * slope + beta. With beta - mean * slope in one
 * number, what that rounds away would stay where x is the mean. */
typedef struct block_params {
    float mean[BLOCK], slope[BLOCK], beta[BLOCK];
} block_params;

static void lay_out(const group_job *j, const part *p, int64_t c, int64_t w, block_params *b) {
    int64_t group = p->n * j->G + p->g0 + c / p->per, of_it = c % p->per;
    if (w < BLOCK)
        memset(b, 0, sizeof *b);
    for (int64_t k = 0; k < w; k++, of_it++) {
        const int64_t channel = p->c0 + c + k;
        if (of_it == p->per) {
            of_it = 0;
            group++;
        }
        b->mean[k] = j->mean[group];
        b->slope[k] = j->rstd[group] * j->gamma[channel];
        b->beta[k] = j->beta[channel];
    }
}

/* y by channels, then SiLU. */
V_INLINE void normalize(int n, int silu, float *y, const float *x, const float *mean, const float *slope, const float *beta,
                        int64_t rows, int64_t C, int64_t lanes) {
    vf m[2], a[2], b[2];
    V_UNROLL for (int i = 0; i < n; i++) {
        m[i] = v_load(mean + i * VL);
        a[i] = v_load(slope + i * VL);
        b[i] = v_load(beta + i * VL);
    }
    for (int64_t r = 0; r < rows; r++)
        V_UNROLL for (int i = 0; i < n; i++) {
            const vf v = (load(x + r * C, n, i, lanes) - m[i]) * a[i] + b[i];
            store(y + r * C, silu ? v * v_sigmoid(v) : v, n, i, lanes);
        }
}

V_INLINE void normalize_block(int silu, const group_job *j, int64_t at, const block_params *b, int64_t w) {
    for (int64_t r = 0; r < j->HW; r += ROWS) {
        const int64_t from = at + r * j->C, rows = min64(ROWS, j->HW - r);
        EACH_VECTORS(w, normalize(n, silu, j->y + from + k, j->x + from + k, b->mean + k, b->slope + k, b->beta + k, rows,
                                  j->C, lanes))
    }
}

static void group_norm_task(void *arg, int64_t task, int worker) {
    const group_job *j = arg;
    const part p = part_of(j, task);
    (void)worker;
    group_statistics(j, &p, j->mean + p.n * j->G + p.g0, j->rstd + p.n * j->G + p.g0);
    for (int64_t c = 0; c < p.w; c += BLOCK) {
        const int64_t w = min64(BLOCK, p.w - c);
        block_params b;
        lay_out(j, &p, c, w, &b);
        if (j->silu)
            normalize_block(1, j, p.at + c, &b, w);
        else
            normalize_block(0, j, p.at + c, &b, w);
    }
}

void CDAD_K(group_norm)(const cdad_context *ctx, float *y, float *mean, float *rstd, const float *x,
                        const float *gamma, const float *beta, int64_t N, int64_t HW, int64_t C, int64_t G,
                        float eps, int silu, void *scratch) {
    (void)scratch;
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
                   .width = task_width(N, HW, C, G),
                   .eps = eps,
                   .silu = silu};
    cdad_pool_run(ctx->pool, group_tasks(&j), group_norm_task, &j);
}

/* s1[k] += sum over rows of dy', s2[k] += of dy' * (x - mean). With SiLU, dy' goes to `out`; without, dy' is dy. */
V_INLINE void add_gradients(int n, int silu, float *out, double *s1, double *s2, const float *x, const float *dy,
                            const float *mean, const float *slope, const float *beta, int64_t rows, int64_t C,
                            int64_t lanes) {
    vf m[2], a[2], b[2], sum[2], product[2];
    V_UNROLL for (int i = 0; i < n; i++) {
        m[i] = v_load(mean + i * VL);
        a[i] = v_load(slope + i * VL);
        b[i] = v_load(beta + i * VL);
        sum[i] = product[i] = (vf){0};
    }
    for (int64_t r = 0; r < rows; r++)
        V_UNROLL for (int i = 0; i < n; i++) {
            const vf centred = load(x + r * C, n, i, lanes) - m[i];
            vf d = load(dy + r * C, n, i, lanes);
            if (silu) {
                const vf v = centred * a[i] + b[i], s = v_sigmoid(v);
                d = d * (s + v * s * (1.0f - s));
                store(out + r * C, d, n, i, lanes);
            }
            sum[i] += d;
            product[i] += d * centred;
        }
    V_UNROLL for (int i = 0; i < n; i++) {
        add_lanes(s1 + i * VL, sum[i], lanes);
        add_lanes(s2 + i * VL, product[i], lanes);
    }
}

V_INLINE void add_block(int silu, const group_job *j, int64_t at, const block_params *b, double *s1, double *s2,
                        int64_t w) {
    for (int64_t r = 0; r < j->HW; r += ROWS) {
        const int64_t from = at + r * j->C, rows = min64(ROWS, j->HW - r);
        EACH_VECTORS(w, add_gradients(n, silu, j->dx + from + k, s1 + k, s2 + k, j->x + from + k, j->dy + from + k,
                                      b->mean + k, b->slope + k, b->beta + k, rows, j->C, lanes))
    }
}

/* dx = dy' * slope - ((x - mean) * a + b). dx may be dy'. */
V_INLINE void input_gradients(int n, float *dx, const float *x, const float *dy, const float *mean, const float *slope,
                              const float *a, const float *b, int64_t rows, int64_t C, int64_t lanes) {
    vf m[2], s[2], A[2], B[2];
    V_UNROLL for (int i = 0; i < n; i++) {
        m[i] = v_load(mean + i * VL);
        s[i] = v_load(slope + i * VL);
        A[i] = v_load(a + i * VL);
        B[i] = v_load(b + i * VL);
    }
    for (int64_t r = 0; r < rows; r++)
        V_UNROLL for (int i = 0; i < n; i++) {
            const vf rest = (load(x + r * C, n, i, lanes) - m[i]) * A[i] + B[i];
            store(dx + r * C, load(dy + r * C, n, i, lanes) * s[i] - rest, n, i, lanes);
        }
}

/* dx = rstd * (dy' gamma - m1 - xhat * m2), m1 and m2 the group's means of dy' gamma and dy' gamma xhat. */
static void group_norm_grad_task(void *arg, int64_t task, int worker) {
    const group_job *j = arg;
    const part p = part_of(j, task);
    const double count = (double)(j->HW * p.per);
    double m1[WIDEST] = {0}, m2[WIDEST] = {0};
    block_params b;
    (void)worker;
    for (int64_t c = 0; c < p.w; c += BLOCK) {
        const int64_t w = min64(BLOCK, p.w - c);
        double s1[BLOCK] = {0}, s2[BLOCK] = {0};
        lay_out(j, &p, c, w, &b);
        if (j->silu)
            add_block(1, j, p.at + c, &b, s1, s2, w);
        else
            add_block(0, j, p.at + c, &b, s1, s2, w);
        for (int64_t k = 0; k < w; k++) {
            const int64_t g = (c + k) / p.per, channel = p.c0 + c + k;
            s2[k] *= (double)j->rstd[p.n * j->G + p.g0 + g];
            m1[g] += s1[k] * (double)j->gamma[channel] / count;
            m2[g] += s2[k] * (double)j->gamma[channel] / count;
            j->sum[p.n * j->C + channel] = (float)s1[k];
            j->sum_xhat[p.n * j->C + channel] = (float)s2[k];
        }
    }
    for (int64_t c = 0; c < p.w; c += BLOCK) {
        const int64_t w = min64(BLOCK, p.w - c);
        float A[BLOCK] = {0}, B[BLOCK] = {0};
        lay_out(j, &p, c, w, &b);
        for (int64_t k = 0; k < w; k++) {
            const int64_t g = (c + k) / p.per;
            const double rstd = (double)j->rstd[p.n * j->G + p.g0 + g];
            A[k] = (float)(rstd * rstd * m2[g]);
            B[k] = (float)(rstd * m1[g]);
        }
        for (int64_t r = 0; r < j->HW; r += ROWS) {
            const int64_t from = p.at + r * j->C + c, rows = min64(ROWS, j->HW - r);
            const float *dy = j->silu ? j->dx : j->dy;
            EACH_VECTORS(w, input_gradients(n, j->dx + from + k, j->x + from + k, dy + from + k, b.mean + k,
                                            b.slope + k, A + k, B + k, rows, j->C, lanes))
        }
    }
}

/* y [C] = sum over n of x [N,C], in order. */
static void sum_samples(float *restrict y, const float *restrict x, int64_t N, int64_t C) {
    memset(y, 0, (size_t)C * sizeof *y);
    for (int64_t n = 0; n < N; n++)
        for (int64_t c = 0; c < C; c++)
            y[c] += x[n * C + c];
}

void CDAD_K(group_norm_grad)(const cdad_context *ctx, float *dx, float *dgamma, float *dbeta, const float *x,
                             const float *mean, const float *rstd, const float *gamma, const float *beta,
                             const float *dy, int64_t N, int64_t HW, int64_t C, int64_t G, int silu,
                             void *scratch) {
    group_job j = {.dx = dx,
                   .mean = (float *)(uintptr_t)mean,
                   .rstd = (float *)(uintptr_t)rstd,
                   .sum = scratch,
                   .sum_xhat = (float *)scratch + N * C,
                   .x = x,
                   .dy = dy,
                   .gamma = gamma,
                   .beta = beta,
                   .N = N,
                   .HW = HW,
                   .C = C,
                   .G = G,
                   .width = task_width(N, HW, C, G),
                   .silu = silu};
    cdad_pool_run(ctx->pool, group_tasks(&j), group_norm_grad_task, &j);
    sum_samples(dbeta, j.sum, N, C);
    sum_samples(dgamma, j.sum_xhat, N, C);
}

int64_t CDAD_K(group_norm_scratch)(int64_t N, int64_t HW, int64_t C, int64_t G) {
    (void)HW, (void)G;
    return 2 * N * C * (int64_t)sizeof(float); /* the gradient's */
}
