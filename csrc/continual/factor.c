/* Gram matrices, rotations and bases of factors. */
#include "continual/factor.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "continual/basis.h"
#include "continual/gram.h"
#include "continual/leading.h"
#include "continual/linalg.h"

enum {
    TILE = 256,       /* rows and columns of a tile of a Gram matrix, at most, */
    TILE_STEP = 32,
    TILE_LEAST = 64,
    TILES = 4,        /* and of how many beside each other they are smaller */
    DEPTH = 512,      /* elements that a tile sums at a time */
    COLUMNS = 256,    /* columns that a task rotates */
    STRIP = 2048,     /* columns that are rotated at once in float32 */
    TASKS_A_POLL = 2, /* of each worker: at the widest 6 GFLOP, tens of milliseconds */
    CHUNK = 256       /* rows of a basis that are widened to double at a time */
};

static const double ORTHONORMAL_TOLERANCE = 1e-4;
static const double NARROW_FINEST = 0x1p-11; /* 1 - gamma: thousands of times the rounding of products in float32 */
/* Energies that fall further than this leave their directions, found from their squares, less orthonormal than float32. */
static const double STEEP = 1e-7;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static cdad_status alloc_doubles(double **out, int64_t rows, int64_t cols, cdad_error *err) {
    int64_t count;
    CDAD_TRY(cdad_size_mul(rows, cols, &count, err));
    return cdad_alloc((void **)out, count * (int64_t)sizeof(double), err);
}

int cdad_factor_may_narrow(double gamma) { return 1 - gamma >= NARROW_FINEST; }

static int64_t workers(const cdad_context *ctx) { return ctx->pool ? cdad_pool_threads(ctx->pool) : 1; }

static cdad_status check_stop(const cdad_context *ctx, cdad_error *err) {
    CDAD_FAIL_IF(ctx->poll && ctx->poll(ctx->poll_arg), err, CDAD_CANCELLED, "stopped while features were factored");
    return CDAD_OK;
}

/* dst [rows,cols] = src, whose rows are ld apart. */
static void widen(double *dst, const float *src, int64_t ld, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            dst[i * cols + j] = (double)src[i * ld + j];
}

/* ---- Gram matrices ---- */

typedef struct {
    const float *A;
    int64_t n, d, tile, first_task;
    int by_rows;     /* A A^T, else A^T A */
    double *M;       /* [side,side]; NULL: only how far M is from the identity is wanted */
    double *scratch; /* 2*TILE*DEPTH a worker; without M a tile more */
    double *off;     /* a task; without M */
} gram_job;

/* Task t counts the tiles of the upper half by block columns: (0,0), (0,1), (1,1), (0,2), ... */
static void gram_task(void *arg, int64_t task, int worker) {
    const gram_job *job = arg;
    const int64_t side = job->by_rows ? job->n : job->d, inner = job->by_rows ? job->d : job->n, d = job->d;
    const int64_t tile = job->tile, doubles = 2 * TILE * DEPTH + (job->M ? 0 : TILE * TILE);
    int64_t bi = job->first_task + task, bj = 0;
    while (bi > bj)
        bi -= ++bj;
    const int64_t height = min64(tile, side - bi * tile), width = min64(tile, side - bj * tile);
    double *X = job->scratch + (int64_t)worker * doubles, *Y = bi == bj ? X : X + TILE * DEPTH;
    const int64_t ld = job->M ? side : tile;
    double *C = job->M ? job->M + bi * tile * side + bj * tile : X + 2 * TILE * DEPTH;
    for (int64_t at = 0; at < inner; at += DEPTH) {
        const int64_t depth = min64(DEPTH, inner - at);
        if (job->by_rows) { /* X [height,depth], Y [width,depth] */
            widen(X, job->A + bi * tile * d + at, d, height, depth);
            if (bi != bj)
                widen(Y, job->A + bj * tile * d + at, d, width, depth);
            cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)height, (int)width, (int)depth, 1, X, (int)depth,
                        Y, (int)depth, at > 0, C, (int)ld);
        } else { /* X [depth,height], Y [depth,width] */
            widen(X, job->A + at * d + bi * tile, d, depth, height);
            if (bi != bj)
                widen(Y, job->A + at * d + bj * tile, d, depth, width);
            cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)height, (int)width, (int)depth, 1, X, (int)height,
                        Y, (int)width, at > 0, C, (int)ld);
        }
    }
    if (job->M)
        return;
    double off = 0;
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < width; j++) {
            const double x = fabs(C[i * ld + j] - (bi == bj && i == j));
            off = x > off ? x : off;
        }
    job->off[job->first_task + task] = off;
}

/* By the side alone, so that the number of threads changes no sum. */
static int64_t tile_of(int64_t side) {
    const int64_t wanted = (side + TILES - 1) / TILES;
    return min64(max64((wanted + TILE_STEP - 1) / TILE_STEP * TILE_STEP, TILE_LEAST), TILE);
}

static cdad_status gram_tiles(const cdad_context *ctx, gram_job *job, cdad_error *err) {
    cdad_status status;
    const int64_t side = job->by_rows ? job->n : job->d, tile = tile_of(side), blocks = (side + tile - 1) / tile;
    const int64_t tasks = blocks * (blocks + 1) / 2, at_once = TASKS_A_POLL * workers(ctx) * (TILE / tile) * (TILE / tile);
    CDAD_TRY_DONE(alloc_doubles(&job->scratch, workers(ctx), 2 * TILE * DEPTH + (job->M ? 0 : TILE * TILE), err));
    job->tile = tile;
    for (job->first_task = 0; job->first_task < tasks; job->first_task += at_once) {
        CDAD_TRY_DONE(check_stop(ctx, err));
        cdad_pool_run(ctx->pool, min64(at_once, tasks - job->first_task), gram_task, job);
    }
done:
    cdad_free(job->scratch);
    return status;
}

cdad_status cdad_factor_gram(const cdad_context *ctx, const float *A, int64_t n, int64_t d, int narrow, double *M,
                             cdad_error *err) {
    if (narrow) {
        cdad_gram g;
        CDAD_TRY(n <= d ? cdad_gram_of(&g, ctx, cdad_mat_transposed(A, d), d, n, err) : cdad_gram_of(&g, ctx, cdad_mat_rows(A, d), n, d, err));
        cdad_gram_expand(&g, M);
        cdad_gram_reset(&g);
        return CDAD_OK;
    }
    gram_job job = {.A = A, .n = n, .d = d, .by_rows = n <= d, .M = M};
    const int64_t side = min64(n, d);
    CDAD_TRY(gram_tiles(ctx, &job, err));
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = i + 1; j < side; j++)
            M[j * side + i] = M[i * side + j];
    return CDAD_OK;
}

cdad_status cdad_factor_check_basis(const cdad_context *ctx, const float *U, int64_t d, int64_t k, cdad_error *err) {
    cdad_status status;
    const int64_t blocks = (k + tile_of(k) - 1) / tile_of(k), tasks = blocks * (blocks + 1) / 2;
    gram_job job = {.A = U, .n = d, .d = k};
    double off = 0;
    for (int64_t i = 0; i < d * k; i++)
        CDAD_FAIL_IF(!isfinite(U[i]), err, CDAD_NOT_FINITE, "basis: row %" PRId64 ", column %" PRId64 " is %g", i / k,
                     i % k, (double)U[i]);
    CDAD_TRY_DONE(alloc_doubles(&job.off, tasks, 1, err));
    CDAD_TRY_DONE(gram_tiles(ctx, &job, err));
    for (int64_t i = 0; i < tasks; i++)
        off = fmax(off, job.off[i]);
    if (!(off <= ORTHONORMAL_TOLERANCE))
        status = cdad_fail(err, CDAD_INVALID, "basis: columns are not orthonormal (off by %.2g, limit %.2g)", off,
                           ORTHONORMAL_TOLERANCE);
done:
    cdad_free(job.off);
    return status;
}

/* ---- rotation ---- */

typedef struct {
    float *A;
    int64_t n, d, k, first_task;
    const double *W;
    double *scratch; /* (n + k)*COLUMNS a worker */
} rotate_job;

static void rotate_task(void *arg, int64_t task, int worker) {
    const rotate_job *job = arg;
    const int64_t first = (job->first_task + task) * COLUMNS, width = min64(COLUMNS, job->d - first);
    double *X = job->scratch + (int64_t)worker * (job->n + job->k) * COLUMNS, *Y = X + job->n * COLUMNS;
    widen(X, job->A + first, job->d, job->n, width);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)job->k, (int)width, (int)job->n, 1, job->W,
                (int)job->n, X, (int)width, 0, Y, (int)width);
    for (int64_t i = 0; i < job->k; i++)
        for (int64_t j = 0; j < width; j++)
            job->A[i * job->d + first + j] = (float)Y[i * width + j];
}

static cdad_status rotate_narrow(const cdad_context *ctx, float *A, int64_t n, int64_t d, const double *W, int64_t k, int *begun,
                                 cdad_error *err) {
    cdad_status status;
    const int64_t strip = min64(STRIP, d), threads = workers(ctx);
    /* the last strip may be narrower, and want more: its product goes another way */
    const int64_t bytes = max64(ctx->kernels->gemm_scratch(k, strip, n, threads), ctx->kernels->gemm_scratch(k, d % strip, n, threads));
    const cdad_epilogue plain = {0};
    float *narrow = NULL, *X = NULL; /* W^T [k,n], and the strip as it was */
    void *scratch = NULL;
    CDAD_TRY_DONE(cdad_alloc((void **)&narrow, k * n * (int64_t)sizeof *narrow, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&X, n * strip * (int64_t)sizeof *X, err));
    CDAD_TRY_DONE(cdad_alloc(&scratch, bytes, err));
    for (int64_t i = 0; i < k * n; i++)
        narrow[i] = (float)W[i];
    for (int64_t at = 0; at < d; at += strip) {
        const int64_t width = min64(strip, d - at);
        CDAD_TRY_DONE(check_stop(ctx, err));
        for (int64_t i = 0; i < n; i++)
            memcpy(X + i * width, A + i * d + at, (size_t)width * sizeof *X);
        *begun = 1;
        ctx->kernels->gemm(ctx, k, width, n, cdad_mat_rows(narrow, n), cdad_mat_rows(X, width), A + at, d, &plain, scratch);
    }
done:
    cdad_free(narrow);
    cdad_free(X);
    cdad_free(scratch);
    return status;
}

cdad_status cdad_factor_rotate(const cdad_context *ctx, float *A, int64_t n, int64_t d, const double *W, int64_t k,
                               int narrow, int *begun, cdad_error *err) {
    cdad_status status;
    *begun = 0;
    if (narrow)
        return rotate_narrow(ctx, A, n, d, W, k, begun, err);
    const int64_t tasks = (d + COLUMNS - 1) / COLUMNS, at_once = TASKS_A_POLL * workers(ctx);
    rotate_job job = {.A = A, .n = n, .d = d, .k = k, .W = W};
    CDAD_TRY_DONE(alloc_doubles(&job.scratch, workers(ctx), (n + k) * COLUMNS, err));
    for (job.first_task = 0; job.first_task < tasks; job.first_task += at_once) {
        CDAD_TRY_DONE(check_stop(ctx, err));
        *begun = 1;
        cdad_pool_run(ctx->pool, min64(at_once, tasks - job.first_task), rotate_task, &job);
    }
done:
    cdad_free(job.scratch);
    return status;
}

/* ---- bases ---- */

/* R [n,d] -= (R U) U^T, and so its rows' parts in the span of U [d,k] are gone but for float32's rounding of what is
 * left. Twice: U is orthonormal to float32's rounding only, and what that leaves is squared. */
static cdad_status take_off(float *R, int64_t n, int64_t d, const float *U, int64_t k, cdad_error *err) {
    cdad_status status;
    double *coefficients = NULL, *rows = NULL, *part = NULL;
    CDAD_TRY_DONE(alloc_doubles(&coefficients, n, k, err));
    CDAD_TRY_DONE(alloc_doubles(&rows, CHUNK, k, err));
    CDAD_TRY_DONE(alloc_doubles(&part, n, CHUNK, err));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t at = 0; at < d; at += CHUNK) {
            const int64_t width = min64(CHUNK, d - at);
            widen(rows, U + at * k, k, width, k);
            widen(part, R + at, d, n, width);
            cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)n, (int)k, (int)width, 1, part, (int)width, rows,
                        (int)k, at > 0, coefficients, (int)k);
        }
        for (int64_t at = 0; at < d; at += CHUNK) {
            const int64_t width = min64(CHUNK, d - at);
            widen(rows, U + at * k, k, width, k);
            widen(part, R + at, d, n, width);
            cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)n, (int)width, (int)k, -1, coefficients, (int)k,
                        rows, (int)k, 1, part, (int)width);
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j < width; j++)
                    R[i * d + at + j] = (float)part[i * width + j];
        }
    }
done:
    cdad_free(coefficients);
    cdad_free(rows);
    cdad_free(part);
    return status;
}

/* The same of the columns of V [d,m], column major, in double. */
static cdad_status take_off_columns(double *V, int64_t m, const float *U, int64_t d, int64_t k, cdad_error *err) {
    cdad_status status;
    double *coefficients = NULL, *rows = NULL;
    CDAD_TRY_DONE(alloc_doubles(&coefficients, k, m, err)); /* column major */
    CDAD_TRY_DONE(alloc_doubles(&rows, CHUNK, k, err));     /* row major: column major its transpose [k,CHUNK] */
    for (int pass = 0; pass < 2; pass++)
        for (int back = 0; back < 2; back++)
            for (int64_t at = 0; at < d; at += CHUNK) {
                const int64_t width = min64(CHUNK, d - at);
                widen(rows, U + at * k, k, width, k);
                if (!back)
                    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (int)k, (int)m, (int)width, 1, rows, (int)k,
                                V + at, (int)d, at > 0, coefficients, (int)k);
                else
                    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, (int)width, (int)m, (int)k, -1, rows, (int)k,
                                coefficients, (int)k, 1, V + at, (int)d);
            }
done:
    cdad_free(coefficients);
    cdad_free(rows);
    return status;
}

/* The first m columns of V [d,m], column major, nearly orthonormal, become so to double's rounding. */
static cdad_status orthonormalise(double *V, int64_t d, int64_t m, double *room, cdad_error *err) {
    cdad_status status;
    double *tau = NULL;
    CDAD_TRY_DONE(alloc_doubles(&tau, m, 1, err));
    memcpy(room, V, (size_t)(d * m) * sizeof *V);
    CDAD_TRY_DONE(cdad_qr(room, d, m, tau, err));
    memset(V, 0, (size_t)(d * m) * sizeof *V);
    for (int64_t j = 0; j < m; j++) /* R is the identity but for roundings and signs: Q's columns keep V's directions */
        V[j + j * d] = copysign(1, room[j + j * d]);
    CDAD_TRY_DONE(cdad_qr_apply('L', 'N', room, m, tau, V, d, m, err));
done:
    cdad_free(tau);
    return status;
}

static double sum_squares(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

/* C [n,m] = X [n,d] Y^T, Y [m,d], or with `turned` [d,m]. */
static cdad_status multiply(const float *X, int64_t n, const float *Y, int64_t m, int64_t d, int turned, double *C, cdad_error *err) {
    cdad_status status;
    double *x = NULL, *y = NULL;
    CDAD_TRY_DONE(alloc_doubles(&x, n, CHUNK, err));
    CDAD_TRY_DONE(alloc_doubles(&y, m, CHUNK, err));
    for (int64_t at = 0; at < d; at += CHUNK) {
        const int64_t width = min64(CHUNK, d - at);
        widen(x, X + at, d, n, width);
        if (turned)
            widen(y, Y + at * m, m, width, m);
        else
            widen(y, Y + at, d, m, width);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, turned ? CblasNoTrans : CblasTrans, (int)n, (int)m, (int)width, 1, x, (int)width, y,
                    (int)(turned ? m : width), at > 0, C, (int)m);
    }
done:
    cdad_free(x);
    cdad_free(y);
    return status;
}

/* more[j]: what the checks say that direction j of V has beside |A v|^2; V [k,d], or `turned` [d,k]. */
static cdad_status rests_of(const cdad_factor *f, const float *V, int64_t k, int turned, double *more, cdad_error *err) {
    cdad_status status;
    double *tests = NULL, *rests = NULL;
    CDAD_TRY_DONE(alloc_doubles(&tests, f->checks, k, err));
    CDAD_TRY_DONE(alloc_doubles(&rests, f->checks, k, err));
    CDAD_TRY_DONE(multiply(f->tests, f->checks, V, k, f->d, turned, tests, err));
    CDAD_TRY_DONE(multiply(f->rests, f->checks, V, k, f->d, turned, rests, err));
    for (int64_t j = 0; j < k; j++) {
        more[j] = 0;
        for (int64_t i = 0; i < f->checks; i++)
            more[j] += tests[i * k + j] * rests[i * k + j];
    }
done:
    cdad_free(tests);
    cdad_free(rests);
    return status;
}

cdad_status cdad_factor_rests(const cdad_factor *f, const float *V, int64_t k, double *more, cdad_error *err) {
    return rests_of(f, V, k, 0, more, err);
}

/* *energy: what the checks say that directions U [d,k] have beside |A U|^2. */
static cdad_status rest_within(const cdad_factor *f, const float *U, int64_t k, double *energy, cdad_error *err) {
    cdad_status status;
    double *more = NULL;
    *energy = 0;
    if (f->checks == 0 || k == 0)
        return CDAD_OK;
    CDAD_TRY_DONE(alloc_doubles(&more, k, 1, err));
    CDAD_TRY_DONE(rests_of(f, U, k, 1, more, err));
    for (int64_t j = 0; j < k; j++)
        *energy += more[j];
    *energy = fmin(fmax(*energy, 0), f->lost);
done:
    cdad_free(more);
    return status;
}

/* energies[j] += the same of direction R^T w / sqrt(energies[j]), w [n] column j of W [n,k] column major. */
static cdad_status add_rests(const cdad_factor *f, const float *R, const double *W, int64_t k, double *energies, cdad_error *err) {
    cdad_status status;
    const int64_t n = f->n, c = f->checks;
    double *rows = NULL, *tests = NULL, *rests = NULL; /* [n,c], then [k,c] of both */
    if (c == 0 || k == 0)
        return CDAD_OK;
    CDAD_TRY_DONE(alloc_doubles(&rows, n, c, err));
    CDAD_TRY_DONE(alloc_doubles(&tests, k, c, err));
    CDAD_TRY_DONE(alloc_doubles(&rests, k, c, err));
    for (int side = 0; side < 2; side++) {
        CDAD_TRY_DONE(multiply(R, n, side ? f->rests : f->tests, c, f->d, 0, rows, err));
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)k, (int)c, (int)n, 1, W, (int)n, rows, (int)c, 0,
                    side ? rests : tests, (int)c);
    }
    for (int64_t j = 0; j < k; j++) {
        double more = 0;
        for (int64_t i = 0; i < c; i++)
            more += tests[j * c + i] * rests[j * c + i];
        energies[j] += more / energies[j];
    }
done:
    cdad_free(rows);
    cdad_free(tests);
    cdad_free(rests);
    return status;
}

/* The n x n way, n <= d; |A|^2 was total - lost. */
static cdad_status basis_by_rows(const cdad_context *ctx, const cdad_factor *f, double total, double gamma, const float *U_old,
                                 int64_t k_old, int64_t most, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status = CDAD_OK;
    const int64_t n = f->n, d = f->d;
    const float *A = f->A;
    float *own = NULL; /* A's residual outside of U_old */
    double *M = NULL, *V = NULL, *W = NULL, *part = NULL, *room = NULL, *energies = NULL, kept = 0;
    int64_t added = 0, count;
    cdad_eigen eigen = {0};
    if (k_old > 0) {
        float *R = f->spent;
        CDAD_TRY_DONE(cdad_factor_check_basis(ctx, U_old, d, k_old, err));
        if (!R) {
            CDAD_TRY_DONE(cdad_size_mul(n, d, &count, err));
            CDAD_TRY_DONE(cdad_alloc((void **)&own, count * (int64_t)sizeof *own, err));
            if (count > 0) /* else A may be NULL */
                memcpy(own, A, (size_t)count * sizeof *own);
            R = own;
        }
        CDAD_TRY_DONE(rest_within(f, U_old, k_old, &kept, err));
        CDAD_TRY_DONE(take_off(R, n, d, U_old, k_old, err));
        kept = fmax(kept + total - f->lost - sum_squares(R, n * d), 0);
        A = R;
    }
    if (n > 0 && k_old < d && total > 0 && kept < gamma * total) {
        int64_t above = 0;
        CDAD_TRY_DONE(alloc_doubles(&M, n, n, err));
        CDAD_TRY_DONE(cdad_factor_gram(ctx, A, n, d, 0, M, err));
        CDAD_TRY_DONE(cdad_eigen_init(&eigen, M, n, err));
        while (above < min64(min64(n, d - k_old), most) && eigen.values[above] > CDAD_FACTOR_NOISE * total)
            above++;
        CDAD_TRY_DONE(alloc_doubles(&energies, above, 1, err));
        memcpy(energies, eigen.values, (size_t)above * sizeof *energies);
        if (f->checks > 0) {
            CDAD_TRY_DONE(alloc_doubles(&W, n, above, err));
            CDAD_TRY_DONE(cdad_eigen_vectors(&eigen, above, W, err));
            CDAD_TRY_DONE(add_rests(f, A, W, above, energies, err));
        }
        added = cdad_energy_rank(energies, above, kept, total, gamma, CDAD_RANK_REACH);
        for (int64_t j = 0; j < added; j++)
            kept += energies[j];
    }
    if (added > 0) {
        if (!W) {
            CDAD_TRY_DONE(alloc_doubles(&W, n, added, err));
            CDAD_TRY_DONE(cdad_eigen_vectors(&eigen, added, W, err));
        }
        CDAD_TRY_DONE(alloc_doubles(&V, d, added, err));
        CDAD_TRY_DONE(alloc_doubles(&part, n, CHUNK, err));
        for (int64_t j = 0; j < added; j++)
            for (int64_t i = 0; i < n; i++)
                W[i + j * n] /= sqrt(eigen.values[j]);
        for (int64_t at = 0; at < d; at += CHUNK) { /* V = A^T W S^-1 */
            const int64_t width = min64(CHUNK, d - at);
            widen(part, A + at, d, n, width);
            cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, (int)width, (int)added, (int)n, 1, part, (int)width,
                        W, (int)n, 0, V + at, (int)d);
        }
        if (k_old > 0)
            CDAD_TRY_DONE(take_off_columns(V, added, U_old, d, k_old, err));
        if (eigen.values[added - 1] < STEEP * eigen.values[0]) {
            CDAD_TRY_DONE(alloc_doubles(&room, d, added, err));
            CDAD_TRY_DONE(orthonormalise(V, d, added, room, err));
        }
    }
    *energy = total > 0 ? fmin(kept / total, 1) : 1;
    CDAD_TRY_DONE(cdad_basis_join(U_old, k_old, V, added, d, U, k, err));
done:
    cdad_eigen_reset(&eigen);
    cdad_free(energies);
    cdad_free(part);
    cdad_free(room);
    cdad_free(V);
    cdad_free(W);
    cdad_free(M);
    cdad_free(own);
    return status;
}

cdad_status cdad_factor_basis(const cdad_context *ctx, const cdad_factor *f, double gamma, const float *U_old, int64_t k_old,
                              int64_t most, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status;
    const int64_t n = f->n, d = f->d;
    double *G = NULL;
    const double total = sum_squares(f->A, n * d) + f->lost;
    int found = 0;
    *U = NULL;
    CDAD_FAIL_IF(k_old < 0 || k_old > d, err, CDAD_SHAPE,
                 "old basis: %" PRId64 " columns, expected 0 to %" PRId64, k_old, d);
    if ((f->checks == 0 || (2 * n <= d && f->lost <= (1 - gamma) * total)) && cdad_leading_applies(min64(n, d - k_old), gamma)) {
        const cdad_leading_of of = {.A = f->A, .n = n, .d = d, .total = total, .lost = f->lost, .checked = f->checks > 0 ? f : NULL};
        if (k_old > 0)
            CDAD_TRY(cdad_factor_check_basis(ctx, U_old, d, k_old, err));
        CDAD_TRY(cdad_leading_basis(ctx, of, gamma, U_old, k_old, most, &found, U, k, energy, err));
        if (found)
            return CDAD_OK;
    }
    if (n <= d)
        return basis_by_rows(ctx, f, total, gamma, U_old, k_old, most, U, k, energy, err);
    CDAD_TRY_DONE(alloc_doubles(&G, d, d, err));
    CDAD_TRY_DONE(cdad_factor_gram(ctx, f->A, n, d, 0, G, err));
    CDAD_TRY_DONE(cdad_basis_extend(G, d, total, CDAD_FACTOR_NOISE, gamma, U_old, k_old, most, U, k, energy, err));
done:
    cdad_free(G);
    return status;
}

cdad_status cdad_factor_share(const cdad_factor *f, const float *U, int64_t k, double *energy, cdad_error *err) {
    cdad_status status;
    const double total = sum_squares(f->A, f->n * f->d) + f->lost;
    double kept, *inside = NULL; /* [n,k] */
    CDAD_TRY_DONE(rest_within(f, U, k, &kept, err));
    CDAD_TRY_DONE(alloc_doubles(&inside, f->n, k, err));
    CDAD_TRY_DONE(multiply(f->A, f->n, U, k, f->d, 1, inside, err));
    for (int64_t i = 0; i < f->n * k; i++)
        kept += inside[i] * inside[i];
    *energy = total > 0 ? fmin(fmax(kept, 0) / total, 1) : 1;
done:
    cdad_free(inside);
    return status;
}
