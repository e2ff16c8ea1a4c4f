/* Randomised subspace iteration. */
#include "continual/leading.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"
#include "continual/basis.h"
#include "continual/factor.h"
#include "continual/gram.h"
#include "continual/linalg.h"
#include "continual/signs.h"

enum {
    LEAST = 768, /* a narrower eigenproblem is soon solved whole */
    BLOCK = 256, /* directions tried at once, at most */
    SIGNS = 8,   /* of each feature in a block of random combinations of a Gram matrix' rows */
    STRIP = 256, /* columns that a task combines: of a block they fit into the second-level cache */
    PASSES = 2   /* of orthogonalisation, at most */
};

static const double CHECKED_SHARE = 0.25; /* of what a sketch lost, that its leading directions hold: a third is common */
static const double CHECKED_LIMIT = 0.8;  /* of so few directions that a sketch has, more may be sought */
static const double NEAR = 0.98; /* cosines whose squares' sum is below 0.02's keep a Cholesky factor close to the identity */
static const double STEEPEST = 1e30; /* 1 over the length of a row, which float holds */
static const double FINEST = 0x1p-12; /* 1 - gamma: float32's noise is 1/2000 of it */
static const uint64_t SEED = 0x6c656164;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

int cdad_leading_applies(int64_t side, double gamma) { return side >= LEAST && 1 - gamma >= FINEST; }

/* Directions are rows: Q [k_old + l, d] holds U_old's columns, then those found. */
typedef struct {
    const cdad_context *ctx;
    cdad_leading_of of;
    int64_t k_old;
    float *Q, *Y; /* Y: G's products with the rows of Q from k_old on */
    float *Z;     /* [.,n], where there are features: a block's products with them */
    int rounded;  /* a span is sought in products of features that are rounded to bfloat16 */
} span;

static cdad_mat rows_of(const float *data, int64_t width) { return (cdad_mat){.data = data, .rs = width, .cs = 1}; }
static cdad_mat turned(const float *data, int64_t width) { return (cdad_mat){.data = data, .rs = 1, .cs = width}; }

static cdad_status multiply_with(const span *s, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C, cdad_epilogue with,
                                 cdad_error *err) {
    const cdad_kernels *kernels = s->ctx->kernels;
    void *scratch;
    CDAD_FAIL_IF(s->ctx->poll && s->ctx->poll(s->ctx->poll_arg), err, CDAD_CANCELLED, "stopped while a basis was sought");
    CDAD_TRY(cdad_alloc(&scratch, kernels->gemm_scratch(M, N, K, cdad_pool_threads(s->ctx->pool)), err));
    kernels->gemm(s->ctx, M, N, K, A, B, C, N, &with, scratch);
    cdad_free(scratch);
    return CDAD_OK;
}
/* C [M,N] = A B, or C + A B. */
static cdad_status multiply(const span *s, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B, float *C,
                            int accumulate, cdad_error *err) {
    return multiply_with(s, M, N, K, A, B, C, (cdad_epilogue){.accumulate = accumulate}, err);
}

/* x [b,d] -= its parts along the first `done` rows of Q. */
static cdad_status take_off(const span *s, float *x, int64_t b, int64_t done, cdad_error *err) {
    cdad_status status;
    const int64_t d = s->of.d;
    float *parts = NULL;
    if (done == 0)
        return CDAD_OK;
    CDAD_TRY_DONE(cdad_alloc((void **)&parts, b * done * (int64_t)sizeof *parts, err));
    CDAD_TRY_DONE(multiply(s, b, done, d, rows_of(x, d), turned(s->Q, d), parts, 0, err));
    for (int64_t i = 0; i < b * done; i++)
        parts[i] = -parts[i];
    CDAD_TRY_DONE(multiply(s, b, d, done, rows_of(parts, done), rows_of(s->Q, d), x, 1, err));
done:
    cdad_free(parts);
    return status;
}

/* y [b,d] = G x, outside of U_old. */
static cdad_status apply(const span *s, const float *x, float *y, int64_t b, cdad_error *err) {
    const int64_t n = s->of.n, d = s->of.d;
    if (n == 0) {
        CDAD_TRY(multiply(s, b, d, d, rows_of(x, d), rows_of(s->of.A, d), y, 0, err));
    } else {
        const cdad_epilogue with = {.precision = s->rounded ? CDAD_BFLOAT16 : CDAD_FLOAT32};
        CDAD_TRY(multiply_with(s, b, n, d, rows_of(x, d), turned(s->of.A, d), s->Z, with, err));
        CDAD_TRY(multiply_with(s, b, d, n, rows_of(s->Z, n), rows_of(s->of.A, d), y, with, err));
    }
    return take_off(s, y, b, s->k_old, err);
}

static double dot(const float *x, const float *y, int64_t n) {
    double lane[8] = {0}, sum = 0; /* independent sums, so that the loop vectorises without reordering one */
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int l = 0; l < 8; l++)
            lane[l] += (double)x[i + l] * (double)y[i + l];
    for (; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    for (int l = 0; l < 8; l++)
        sum += lane[l];
    return sum;
}

/* Whether rows, by the products M [b,b] that they have after parts were taken off, were orthogonal before as far as one pass of float32
 * can tell: of lengths `before` (1 / `scale` now) and of other rows next to nothing is lost. */
static int nearly_orthogonal(const double *M, const double *scale, const double *before, int64_t b) {
    double off = 0;
    int near = 1;
    for (int64_t i = 0; i < b; i++) {
        near = near && M[i * b + i] > NEAR * before[i];
        for (int64_t j = 0; j < i; j++)
            off += M[i * b + j] * M[i * b + j] * scale[i] * scale[i] * scale[j] * scale[j];
    }
    return near && off < (1 - NEAR) * (1 - NEAR);
}

/* R = the inverse of the Cholesky factor of M [b,b] with rows and columns scaled, those by 0 as if they were unit vectors. */
static cdad_status scaled_factor(const double *M, const double *scale, int64_t b, double *R, int *found, cdad_error *err) {
    for (int64_t i = 0; i < b; i++)
        for (int64_t j = 0; j < b; j++)
            R[i * b + j] = i == j ? 1 + 1e-13 : M[i * b + j] * scale[i] * scale[j];
    return cdad_inverse_cholesky(R, b, found, err);
}

/* Rows done .. done+b-1 of Q become orthonormal, and orthogonal to those before, in the order that they have, but for *dependent of them, which
 * have nothing that others lack but roundings, and become 0. `room` [b,d]. *found = 0 where rounding forbids. */
static cdad_status orthonormalise(span *s, int64_t done, int64_t b, float *room, int64_t *dependent, int *found, cdad_error *err) {
    cdad_status status;
    const int64_t d = s->of.d;
    float *q = s->Q + done * d, *T = NULL;
    double *M = NULL, *R = NULL, *scale = NULL, *before = NULL;
    int enough = 0;
    CDAD_TRY_DONE(cdad_alloc((void **)&M, b * b * (int64_t)sizeof *M, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&R, b * b * (int64_t)sizeof *R, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&before, b * (int64_t)sizeof *before, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&scale, b * (int64_t)sizeof *scale, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&T, b * b * (int64_t)sizeof *T, err));
    for (int pass = 0; pass < PASSES && !enough; pass++) {
        const int last = pass == PASSES - 1;
        for (int64_t i = 0; i < b; i++)
            before[i] = dot(q + i * d, q + i * d, d);
        CDAD_TRY_DONE(take_off(s, q, b, done, err));
        CDAD_TRY_DONE(cdad_factor_gram(s->ctx, q, b, d, 0, M, err));
        for (int64_t i = 0; i < b; i++) { /* the pass before made rows long and independent, where they are more than roundings */
            scale[i] = M[i * b + i] > (last ? before[i] / 4 : 0) ? 1 / sqrt(M[i * b + i]) : 0;
            *found = *found && isfinite(M[i * b + i]) && scale[i] < STEEPEST;
        }
        enough = nearly_orthogonal(M, scale, before, b);
        if (*found)
            CDAD_TRY_DONE(scaled_factor(M, scale, b, R, found, err));
        if (!*found)
            break;
        int again = 0;
        for (int64_t i = 0; i < b && last; i++)
            if (R[i * b + i] > 2) { /* 1 over what a row has beyond those before it */
                scale[i] = 0;
                again = 1;
            }
        if (again)
            CDAD_TRY_DONE(scaled_factor(M, scale, b, R, found, err));
        if (!*found)
            break;
        for (int64_t i = 0; i < b; i++) /* row i of the result: rows 0..i of q by column i of R^-1 */
            for (int64_t j = 0; j < b; j++)
                T[i * b + j] = j <= i ? (float)(R[i * b + j] * scale[j]) : 0;
        CDAD_TRY_DONE(multiply(s, b, d, b, rows_of(T, b), rows_of(q, d), room, 0, err));
        memcpy(q, room, (size_t)(b * d) * sizeof *q);
    }
    *dependent = 0;
    for (int64_t i = 0; i < b; i++)
        *dependent += scale[i] == 0;
done:
    cdad_free(M);
    cdad_free(R);
    cdad_free(scale);
    cdad_free(before);
    cdad_free(T);
    return status;
}

/* *energy: of the first k_old rows of Q. */
static cdad_status known_energy(span *s, double *energy, cdad_error *err) {
    cdad_status status = CDAD_OK;
    const int64_t d = s->of.d, k_old = s->k_old;
    s->k_old = 0; /* nothing is taken off */
    *energy = 0;
    for (int64_t at = 0; at < k_old; at += BLOCK) {
        const int64_t b = min64(BLOCK, k_old - at);
        CDAD_TRY_DONE(apply(s, s->Q + at * d, s->Y, b, err));
        *energy += dot(s->Q + at * d, s->Y, b * d);
    }
done:
    s->k_old = k_old;
    return status;
}

/* x[i] = 1 or -1 */
static void random_signs(float *x, int64_t n, uint64_t stream) {
    uint32_t words[4] = {0};
    for (int64_t i = 0; i < n; i++) {
        if (i % 128 == 0)
            cdad_philox(SEED, stream, (uint64_t)(i / 128), words);
        x[i] = words[i / 32 % 4] >> i % 32 & 1 ? 1 : -1;
    }
}

typedef struct {
    const float *G;
    float *y;
    int64_t d, b;
    const int32_t *places; /* [d,signs]: 2t where feature j counts for row t, 2t + 1 where against it */
    int signs;
} combine_job;

static void combine_strip(void *arg, int64_t task, int worker) {
    const combine_job *job = arg;
    const int64_t first = task * STRIP, width = min64(STRIP, job->d - first);
    (void)worker;
    for (int64_t t = 0; t < job->b; t++)
        memset(job->y + t * job->d + first, 0, (size_t)width * sizeof *job->y);
    for (int64_t j = 0; j < job->d; j++)
        for (int i = 0; i < job->signs; i++) {
            const int32_t place = job->places[j * job->signs + i];
            const float *x = job->G + j * job->d + first;
            float *y = job->y + place / 2 * job->d + first;
            if (place % 2)
                for (int64_t c = 0; c < width; c++)
                    y[c] -= x[c];
            else
                for (int64_t c = 0; c < width; c++)
                    y[c] += x[c];
        }
}

/* q [b,d] = G's products with random vectors, outside of U_old: sparse ones where G is at hand, as such products take next to no time; else
 * dense, made in y. */
static cdad_status combine(const span *s, float *q, float *y, int64_t b, uint64_t stream, cdad_error *err) {
    cdad_status status;
    const int64_t d = s->of.d;
    const int signs = (int)min64(SIGNS, b);
    int32_t *places = NULL;
    uint32_t words[SIGNS];
    if (s->of.n > 0) {
        random_signs(y, b * d, stream);
        return apply(s, y, q, b, err);
    }
    CDAD_TRY_DONE(cdad_alloc((void **)&places, d * signs * (int64_t)sizeof *places, err));
    for (int64_t j = 0; j < d; j++) {
        for (int w = 0; w < SIGNS; w += 4)
            cdad_philox(SEED, stream, (uint64_t)(j * SIGNS + w) / 4, words + w);
        for (int i = 0; i < signs; i++)
            places[j * signs + i] = cdad_sign_place(words[i], i, signs, b);
    }
    combine_job job = {.G = s->of.A, .y = q, .d = d, .b = b, .places = places, .signs = signs};
    cdad_pool_run(s->ctx->pool, (d + STRIP - 1) / STRIP, combine_strip, &job);
    CDAD_TRY_DONE(take_off(s, q, b, s->k_old, err));
done:
    cdad_free(places);
    return status;
}

/* Rows of Q, *l of them, that hold what gamma asks for beside `kept`, and their products Y. */
static cdad_status find_span(span *s, int64_t limit, double wanted, double kept, int64_t *l, int *found, cdad_error *err) {
    const int64_t d = s->of.d;
    const double lost = s->of.lost / s->of.total, target = 1 - wanted / s->of.total - lost;
    double before = 1, more = (double)limit / 4; /* directions that are likely to be missing */
    int64_t dependent;
    for (*l = 0; kept < wanted && *found;) {
        const int64_t most = min64(BLOCK, limit / (*l == 0 ? 4 : 8)), b = min64(((int64_t)more + 31) / 32 * 32, most), next = *l + b;
        float *q = s->Q + (s->k_old + *l) * d, *y = s->Y + *l * d;
        *found = next <= limit;
        if (!*found)
            break;
        CDAD_TRY(combine(s, q, y, b, (uint64_t)*l, err));
        CDAD_TRY(orthonormalise(s, s->k_old + *l, b, y, &dependent, found, err));
        CDAD_TRY(apply(s, q, y, b, err));
        kept += dot(q, y, b * d);
        /* What is missing falls about as a power of the width, the first till there are two: where that leads too far, an early end is cheaper. */
        const double missing = 1 - kept / s->of.total - lost;
        if (kept < wanted) {
            const double power = *l > 0 ? log(before / missing) / log((double)next / (double)*l) : 1;
            const double all = power > 0 ? (double)next * pow(missing / target, 1 / power) : INFINITY;
            *found = *found && (*l == 0 || all < 1.25 * (double)limit);
            more = fmax(fmin(1.03 * all, (double)limit) - (double)next, 1);
        }
        before = missing;
        *l = next;
    }
    return CDAD_OK;
}

/* M [l,l]: G within the span of Q's rows. */
static cdad_status project(const span *s, int64_t l, double *M, cdad_error *err) {
    cdad_status status;
    const int64_t n = s->of.n, d = s->of.d;
    const float *q = s->Q + s->k_old * d;
    float *inside = NULL;
    if (n > 0) { /* l < n */
        CDAD_TRY(multiply(s, l, n, d, rows_of(q, d), turned(s->of.A, d), s->Z, 0, err));
        return cdad_factor_gram(s->ctx, s->Z, l, n, 0, M, err);
    }
    CDAD_TRY_DONE(cdad_alloc((void **)&inside, l * l * (int64_t)sizeof *inside, err));
    CDAD_TRY_DONE(apply(s, q, s->Y, l, err));
    CDAD_TRY_DONE(multiply(s, l, l, d, rows_of(q, d), turned(s->Y, d), inside, 0, err));
    for (int64_t i = 0; i < l; i++)
        for (int64_t j = 0; j < l; j++)
            M[i * l + j] = ((double)inside[i * l + j] + (double)inside[j * l + i]) / 2;
done:
    cdad_free(inside);
    return status;
}

/* The fewest directions within the span of Q's l rows; *V [*added,d], which may be none. */
static cdad_status choose(span *s, int64_t l, double gamma, int64_t most, double *kept, float **V, int64_t *added, int *found,
                          cdad_error *err) {
    cdad_status status;
    const int64_t d = s->of.d;
    double *M = NULL, *W = NULL;
    float *weights = NULL;
    cdad_eigen eigen = {0};
    CDAD_TRY_DONE(cdad_alloc((void **)&M, l * l * (int64_t)sizeof *M, err));
    CDAD_TRY_DONE(project(s, l, M, err));
    CDAD_TRY_DONE(cdad_eigen_init(&eigen, M, l, err));
    const int64_t k = cdad_energy_rank(eigen.values, l, *kept, s->of.total, gamma, CDAD_RANK_REACH);
    *added = min64(k, most);
    for (int64_t j = 0; j < k; j++) {
        *found = *found && eigen.values[j] > 0;
        *kept += j < *added ? eigen.values[j] : 0;
    }
    *found = *found && (k > *added || *kept >= gamma * s->of.total);
    if (!*found)
        goto done;
    CDAD_TRY_DONE(cdad_alloc((void **)&W, l * *added * (int64_t)sizeof *W, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&weights, l * *added * (int64_t)sizeof *weights, err));
    CDAD_TRY_DONE(cdad_alloc((void **)V, *added * d * (int64_t)sizeof **V, err));
    CDAD_TRY_DONE(cdad_eigen_vectors(&eigen, *added, W, err));
    for (int64_t i = 0; i < l * *added; i++)
        weights[i] = (float)W[i];
    CDAD_TRY_DONE(multiply(s, *added, d, l, rows_of(weights, l), rows_of(s->Q + s->k_old * d, d), *V, 0, err));
done:
    cdad_eigen_reset(&eigen);
    cdad_free(M);
    cdad_free(W);
    cdad_free(weights);
    return status;
}

/* *to [rows,cols] -> [cols,rows] */
static void turn(float *to, const float *from, int64_t rows, int64_t cols) {
    enum { TILE = 32 };
    for (int64_t i0 = 0; i0 < rows; i0 += TILE)
        for (int64_t j0 = 0; j0 < cols; j0 += TILE)
            for (int64_t i = i0; i < min64(i0 + TILE, rows); i++)
                for (int64_t j = j0; j < min64(j0 + TILE, cols); j++)
                    to[j * rows + i] = from[i * cols + j];
}

/* *U [d,*k]: U_old, and beside it the rows of Q from k_old on. */
static cdad_status join(const span *s, const float *U_old, int64_t added, float **U, int64_t *k, cdad_error *err) {
    const int64_t d = s->of.d, k_old = s->k_old;
    *k = k_old + added;
    CDAD_TRY(cdad_alloc((void **)U, d * *k * (int64_t)sizeof **U, err));
    turn(*U, s->Q, *k, d);
    for (int64_t i = 0; i < d && k_old > 0; i++)
        memcpy(*U + i * *k, U_old + i * k_old, (size_t)k_old * sizeof **U);
    return CDAD_OK;
}

/* G's way, or that of features one by one. */
static cdad_status by_width(const cdad_context *ctx, cdad_leading_of of, double gamma, const float *U_old, int64_t k_old,
                            int64_t limit, int64_t most, int *found, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status;
    const int64_t d = of.d, side = of.n > 0 ? min64(of.n, d) : d;
    span s = {.ctx = ctx, .of = of, .k_old = k_old};
    double kept = 0;
    float *V = NULL;
    int64_t l = 0, added = 0, dependent = 0, count;
    CDAD_TRY_DONE(cdad_size_mul(k_old + limit + BLOCK, d, &count, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s.Q, count * (int64_t)sizeof *s.Q, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s.Y, (limit + BLOCK) * d * (int64_t)sizeof *s.Y, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s.Z, (limit + BLOCK) * of.n * (int64_t)sizeof *s.Z, err));
    if (k_old > 0) {
        turn(s.Q, U_old, d, k_old);
        CDAD_TRY_DONE(known_energy(&s, &kept, err));
    }
    s.rounded = of.n > 0 && cdad_gram_may_round(side, gamma);
    CDAD_TRY_DONE(find_span(&s, limit, gamma * of.total, kept, &l, found, err));
    if (*found && l > 0) {
        float *room = s.Y + l * d; /* BLOCK rows */
        memcpy(s.Q + k_old * d, s.Y, (size_t)(l * d) * sizeof *s.Q);
        for (int64_t at = 0; at < l && *found; at += BLOCK)
            CDAD_TRY_DONE(orthonormalise(&s, k_old + at, min64(BLOCK, l - at), room, &dependent, found, err));
        if (*found)
            CDAD_TRY_DONE(choose(&s, l, gamma, most, &kept, &V, &added, found, err));
    }
    if (*found && added > 0) { /* products in float32 leave V orthonormal to a few roundings */
        memcpy(s.Q + k_old * d, V, (size_t)(added * d) * sizeof *V);
        CDAD_TRY_DONE(orthonormalise(&s, k_old, added, V, &dependent, found, err));
        *found = *found && dependent == 0;
    }
    *energy = of.total > 0 ? fmin(kept / of.total, 1) : 1;
    if (*found)
        CDAD_TRY_DONE(join(&s, U_old, added, U, k, err));
done:
    cdad_free(s.Q);
    cdad_free(s.Y);
    cdad_free(s.Z);
    cdad_free(V);
    return status;
}

/* *G [n,n]: the products of the rows of A [n,d] with each other. */
static cdad_status gram_of_rows(const cdad_context *ctx, const float *A, int64_t n, int64_t d, float **G, cdad_error *err) {
    cdad_status status;
    cdad_gram g;
    CDAD_TRY(cdad_gram_of(&g, ctx, turned(A, d), d, n, err));
    CDAD_TRY_DONE(cdad_alloc((void **)G, n * n * (int64_t)sizeof **G, err));
    cdad_gram_expand_narrow(&g, ctx, *G);
done:
    cdad_gram_reset(&g);
    return status;
}

/* Of the *added directions that are rows of Q from k_old on, not of unit length yet, as few as reach gamma when what the checks say is counted;
 * without that all hold `least` and what was kept before. */
static cdad_status count_checked(const span *s, const cdad_factor *f, double gamma, double least, double *kept, int64_t *added,
                                 cdad_error *err) {
    cdad_status status;
    const int64_t d = s->of.d;
    double *energies = NULL, *more = NULL;
    CDAD_TRY_DONE(cdad_alloc((void **)&energies, *added * (int64_t)sizeof *energies, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&more, *added * (int64_t)sizeof *more, err));
    CDAD_TRY_DONE(cdad_factor_rests(f, s->Q + s->k_old * d, *added, more, err));
    for (int64_t j = 0; j < *added; j++) {
        const float *row = s->Q + (s->k_old + j) * d;
        energies[j] = dot(row, row, d);
        energies[j] += energies[j] > 0 ? more[j] / energies[j] : 0;
    }
    const double known = *kept;
    *added = cdad_energy_rank(energies, *added, known, s->of.total, gamma, CDAD_RANK_REACH);
    for (int64_t j = 0; j < *added; j++)
        *kept += energies[j];
    if (*kept < gamma * s->of.total) /* all were taken */
        *kept = fmax(*kept, known + least);
done:
    cdad_free(energies);
    cdad_free(more);
    return status;
}

/* *energy of the first k_old rows of Q by what the checks say. */
static cdad_status known_rests(const span *s, const cdad_factor *f, double *energy, cdad_error *err) {
    cdad_status status;
    double *more = NULL;
    CDAD_TRY_DONE(cdad_alloc((void **)&more, s->k_old * (int64_t)sizeof *more, err));
    CDAD_TRY_DONE(cdad_factor_rests(f, s->Q, s->k_old, more, err));
    *energy = 0;
    for (int64_t j = 0; j < s->k_old; j++)
        *energy += more[j];
    *energy = fmin(fmax(*energy, 0), f->lost);
done:
    cdad_free(more);
    return status;
}

/* The way of few features: leading combinations of the features, then the directions that they are. Those hold at least
 * the energy of the combinations. */
static cdad_status by_rows(const cdad_context *ctx, cdad_leading_of of, double gamma, const float *U_old, int64_t k_old,
                           int64_t most, int *found, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status;
    const int64_t n = of.n, d = of.d, limit = of.checked ? (int64_t)(CHECKED_LIMIT * (double)n) : n / 2;
    span s = {.ctx = ctx, .of = of, .k_old = k_old};
    float *own = NULL, *G = NULL, *W = NULL, *room = NULL;
    double kept = 0, held = 0, lost = of.lost; /* held: by combinations */
    int64_t added = 0, dependent = 0;
    CDAD_TRY_DONE(cdad_alloc((void **)&s.Q, (k_old + limit) * d * (int64_t)sizeof *s.Q, err));
    if (k_old > 0) {
        const double all = dot(of.A, of.A, n * d);
        float *rest = of.checked ? of.checked->spent : NULL;
        turn(s.Q, U_old, d, k_old);
        if (!rest) {
            CDAD_TRY_DONE(cdad_alloc((void **)&own, n * d * (int64_t)sizeof *own, err));
            rest = memcpy(own, of.A, (size_t)(n * d) * sizeof *own);
        }
        if (of.checked)
            CDAD_TRY_DONE(known_rests(&s, of.checked, &kept, err));
        lost -= kept;
        for (int pass = 0; pass < PASSES; pass++)
            CDAD_TRY_DONE(take_off(&s, rest, n, k_old, err));
        kept = fmax(kept + all - dot(rest, rest, n * d), 0);
        of.A = rest;
    }
    if (kept < gamma * of.total) {
        cdad_leading_of combinations = {.d = n, .total = of.total - kept, .lost = lost};
        const double wanted = gamma * of.total - kept - (of.checked ? CHECKED_SHARE * lost : 0);
        double share;
        CDAD_TRY_DONE(gram_of_rows(ctx, of.A, n, d, &G, err));
        combinations.A = G;
        CDAD_TRY_DONE(by_width(ctx, combinations, fmax(wanted, 0) / combinations.total, NULL, 0, limit, most, found, &W, &added,
                               &share, err));
        held = share * combinations.total;
        kept += of.checked ? 0 : held;
        *found = *found && (!of.checked || added > 0);
    }
    if (*found && added > 0) {
        CDAD_TRY_DONE(multiply(&s, added, d, n, turned(W, added), rows_of(of.A, d), s.Q + k_old * d, 0, err));
        const int all = added == most;
        if (of.checked)
            CDAD_TRY_DONE(count_checked(&s, of.checked, gamma, held, &kept, &added, err));
        *found = !of.checked || all || kept >= gamma * of.total;
        CDAD_TRY_DONE(cdad_alloc((void **)&room, added * d * (int64_t)sizeof *room, err));
        CDAD_TRY_DONE(orthonormalise(&s, k_old, added, room, &dependent, found, err));
        *found = *found && dependent == 0;
    }
    *energy = of.total > 0 ? fmin(kept / of.total, 1) : 1;
    if (*found)
        CDAD_TRY_DONE(join(&s, U_old, added, U, k, err));
done:
    cdad_free(s.Q);
    cdad_free(own);
    cdad_free(G);
    cdad_free(W);
    cdad_free(room);
    return status;
}

cdad_status cdad_leading_basis(const cdad_context *ctx, cdad_leading_of of, double gamma, const float *U_old,
                               int64_t k_old, int64_t most, int *found, float **U, int64_t *k, double *energy,
                               cdad_error *err) {
    const int64_t side = of.n > 0 ? min64(of.n, of.d) : of.d;
    *found = 1;
    *U = NULL;
    if (of.n > 0 && 2 * of.n <= of.d)
        return by_rows(ctx, of, gamma, U_old, k_old, most, found, U, k, energy, err);
    return by_width(ctx, of, gamma, U_old, k_old, min64(side, of.d - k_old) / 2, most, found, U, k, energy, err);
}
