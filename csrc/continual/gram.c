/* Accumulating a Gram matrix by fixed tiles. */
#include "continual/gram.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "continual/features.h"

enum {
    TILE = 320,       /* columns: an output tile of floats is 400 KiB, which the second-level cache holds */
    ROWS = 512,       /* rows a tile of products sums in float32 */
    TILES_A_POLL = 32 /* at most 3.4 GFLOP between polls: tens of milliseconds */
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Its leading dimension is d - bi*TILE. */
static double *block_row(const cdad_gram *g, int64_t bi) {
    return g->upper + TILE * (bi * g->d - TILE * (bi * (bi - 1) / 2));
}

/* Element (i, j), i <= j. */
static double *element(const cdad_gram *g, int64_t i, int64_t j) {
    const int64_t first = i / TILE * TILE;
    return block_row(g, i / TILE) + (i - first) * (g->d - first) + (j - first);
}

static int64_t stored(int64_t d) {
    int64_t count = 0;
    for (int64_t first = 0; first < d; first += TILE)
        count += min64(TILE, d - first) * (d - first);
    return count;
}

int64_t cdad_gram_bytes(int64_t d) { return stored(d) * (int64_t)sizeof(double); }

cdad_status cdad_gram_init(cdad_gram *g, int64_t d, cdad_error *err) {
    g->d = d;
    return cdad_alloc_zero((void **)&g->upper, cdad_gram_bytes(d), err);
}

void cdad_gram_reset(cdad_gram *g) {
    cdad_free(g->upper);
    *g = (cdad_gram){0};
}

typedef struct {
    const cdad_gram *g;
    const float *X; /* the tile's rows, leading dimension ld */
    int64_t rows, ld, first_task;
    float *scratch; /* TILE*TILE floats a worker */
} add_job;

/* Task t counts the tiles of the upper half by block columns: (0,0), (0,1), (1,1), (0,2), ... */
static void add_task(void *arg, int64_t task, int worker) {
    const add_job *job = arg;
    const cdad_gram *g = job->g;
    int64_t bi = job->first_task + task, bj = 0;
    while (bi > bj)
        bi -= ++bj;
    const int64_t height = min64(TILE, g->d - bi * TILE), width = min64(TILE, g->d - bj * TILE);
    const float *A = job->X + bi * TILE, *B = job->X + bj * TILE;
    float *C = job->scratch + (int64_t)worker * TILE * TILE;
    if (bi == bj)
        cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)height, (int)job->rows, 1, A, (int)job->ld, 0,
                    C, TILE);
    else
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)height, (int)width, (int)job->rows, 1, A,
                    (int)job->ld, B, (int)job->ld, 0, C, TILE);
    double *total = element(g, bi * TILE, bj * TILE);
    for (int64_t i = 0; i < height; i++, total += g->d - bi * TILE)
        for (int64_t j = bi == bj ? i : 0; j < width; j++)
            total[j] += (double)C[i * TILE + j];
}

cdad_status cdad_gram_add(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows, cdad_error *err) {
    cdad_status status;
    const int64_t blocks = (g->d + TILE - 1) / TILE, tasks = blocks * (blocks + 1) / 2;
    const int in_place = !X.unfold && X.cs == 1 && X.rs >= g->d && X.rs <= INT32_MAX;
    float *panel = NULL;
    const int64_t workers = ctx->pool ? cdad_pool_threads(ctx->pool) : 1;
    add_job job = {.g = g, .ld = in_place ? X.rs : g->d};
    CDAD_TRY_DONE(cdad_alloc((void **)&job.scratch, workers * TILE * TILE * (int64_t)sizeof(float), err));
    if (!in_place)
        CDAD_TRY_DONE(cdad_alloc((void **)&panel, ROWS * g->d * (int64_t)sizeof(float), err));
    for (int64_t first = 0; first < rows; first += ROWS) {
        job.rows = min64(ROWS, rows - first);
        job.X = in_place ? X.data + first * X.rs : panel;
        if (!in_place)
            cdad_features_gather(ctx, panel, X, first, job.rows, g->d);
        for (job.first_task = 0; job.first_task < tasks; job.first_task += TILES_A_POLL) {
            if (ctx->poll && ctx->poll(ctx->poll_arg)) {
                status = cdad_fail(err, CDAD_CANCELLED, "stopped while features were added");
                goto done;
            }
            cdad_pool_run(ctx->pool, min64(TILES_A_POLL, tasks - job.first_task), add_task, &job);
        }
    }
done:
    cdad_free(panel);
    cdad_free(job.scratch);
    return status;
}

void cdad_gram_merge(cdad_gram *g, const cdad_gram *h) {
    for (int64_t i = 0, n = stored(g->d); i < n; i++)
        g->upper[i] += h->upper[i];
}

double cdad_gram_trace(const cdad_gram *g) {
    double sum = 0;
    for (int64_t i = 0; i < g->d; i++)
        sum += *element(g, i, i);
    return sum;
}

void cdad_gram_expand(const cdad_gram *g, double *full) {
    /* By blocks, so that the transposed writes stay in the cache. */
    for (int64_t bi = 0; bi < g->d; bi += TILE)
        for (int64_t bj = bi; bj < g->d; bj += TILE)
            for (int64_t i = bi; i < min64(bi + TILE, g->d); i++) {
                const double *row = element(g, i, bi) - bi;
                for (int64_t j = bi == bj ? i : bj; j < min64(bj + TILE, g->d); j++)
                    full[i * g->d + j] = full[j * g->d + i] = row[j];
            }
}

void cdad_gram_pack(const cdad_gram *g, double *packed) {
    for (int64_t i = 0; i < g->d; packed += g->d - i, i++)
        memcpy(packed, element(g, i, i), (size_t)(g->d - i) * sizeof *packed);
}

void cdad_gram_unpack(cdad_gram *g, const double *packed) {
    for (int64_t i = 0; i < g->d; packed += g->d - i, i++)
        memcpy(element(g, i, i), packed, (size_t)(g->d - i) * sizeof *packed);
}
