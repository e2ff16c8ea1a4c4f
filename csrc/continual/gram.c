/* Accumulating a Gram matrix by fixed tiles. */
#include "continual/gram.h"

#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

enum {
    TILE = 2 * CDAD_GRAM_SIDE, /* columns: strips of two tiles, 384 rows deep, and the tile fit into the second-level cache */
    DEPTH = 384,               /* rows that are one chain of float32 sums */
    MOST_DEPTHS = 4,           /* of them that are added in float32 before they go to the doubles, */
    MOST_BYTES_DEPTHS = 16,    /* in whole numbers, which are multiplied faster than doubles are fetched and stored, */
    PANEL_BYTES = 40 << 20,    /* where their panels take no more than this */
    TILES_A_POLL = 96,         /* of MOST_DEPTHS: at most 10 GFLOP between polls, tens of milliseconds */
    ROUNDED_LEAST = 768,       /* narrower features are multiplied in no time */
    BYTES_COLUMNS = 6          /* times as many features as their width: the fewer, the more is missed, see gram.h */
};

/* 1 - gamma: a hundred times what rounding to bfloat16 changes in all, and twenty times what whole numbers do at the worst */
static const double ROUNDED_FINEST = 0x1p-11, BYTES_FINEST = 0x1p-10;

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Of the tiles of columns from j on. */
static int64_t leading(const cdad_gram *g, int64_t j) { return min64(TILE, g->d - j / TILE * TILE); }

/* Element (i, j) of a tile of the upper half, in which rows are leading(g, j) apart. */
static double *element(const cdad_gram *g, int64_t i, int64_t j) {
    const int64_t bi = i / TILE, row = TILE * (bi * g->d - TILE * (bi * (bi - 1) / 2));
    const int64_t tile = row + min64(TILE, g->d - bi * TILE) * TILE * (j / TILE - bi);
    return g->upper + tile + i % TILE * leading(g, j) + j % TILE;
}

static int64_t stored(int64_t d) {
    int64_t count = 0;
    for (int64_t first = 0; first < d; first += TILE)
        count += min64(TILE, d - first) * (d - first);
    return count;
}

int cdad_gram_may_round(int64_t side, double gamma) {
    return side >= ROUNDED_LEAST && 1 - gamma >= ROUNDED_FINEST && cdad_kernels_select(NULL)->gram_rounds_fast();
}

cdad_gram_rounding cdad_gram_rounding_for(int64_t d, double gamma, int64_t columns) {
    if (cdad_gram_may_round(d, gamma))
        return CDAD_GRAM_BFLOAT16;
    return d >= ROUNDED_LEAST && 1 - gamma >= BYTES_FINEST && columns / BYTES_COLUMNS >= d && cdad_kernels_select(NULL)->gram_bytes_tile
               ? CDAD_GRAM_BYTES
               : CDAD_GRAM_PLAIN;
}

int64_t cdad_gram_bytes(int64_t d) { return stored(d) * (int64_t)sizeof(double); }

cdad_status cdad_gram_init(cdad_gram *g, int64_t d, cdad_gram_rounding rounding, cdad_error *err) {
    g->d = d;
    g->rounding = rounding;
    return cdad_alloc_zero((void **)&g->upper, cdad_gram_bytes(d), err);
}

void cdad_gram_reset(cdad_gram *g) {
    cdad_free(g->upper);
    cdad_device_free(g->device, g->there);
    *g = (cdad_gram){0};
}

static int is_bf16(const cdad_gram *g) { return g->rounding == CDAD_GRAM_BFLOAT16; }

typedef struct {
    const cdad_gram *g;
    const cdad_kernels *kernels;
    const float *panels;
    int64_t rows, first_task;
    int bytes;      /* what the panels hold: whole numbers */
    float *scratch; /* TILE*TILE floats a worker */
} add_job;

/* Task t counts the tiles of the upper half by block columns: (0,0), (0,1), (1,1), (0,2), ... */
static void add_task(void *arg, int64_t task, int worker) {
    const add_job *job = arg;
    const cdad_gram *g = job->g;
    int64_t bi = job->first_task + task, bj = 0;
    while (bi > bj)
        bi -= ++bj;
    double *to = element(g, bi * TILE, bj * TILE);
    const int64_t ldg = leading(g, bj * TILE);
    float *scratch = job->scratch + (int64_t)worker * TILE * TILE;
    if (job->bytes)
        job->kernels->gram_bytes_tile(to, ldg, job->panels, job->rows, g->d, bi * TILE, bj * TILE, TILE, scratch);
    else
        job->kernels->gram_tile(to, ldg, job->panels, job->rows, g->d, bi * TILE, bj * TILE, TILE, is_bf16(g), scratch);
}

/* Rows that one float32 sum takes in, of all. */
static int64_t depth_of(const cdad_gram *g, int64_t rows, int bytes) {
    const int64_t depths = PANEL_BYTES / (DEPTH * g->d * (bytes ? 1 : is_bf16(g) ? 2 : 4));
    return min64(DEPTH * (depths < 1 ? 1 : min64(depths, bytes ? MOST_BYTES_DEPTHS : MOST_DEPTHS)), rows);
}

static cdad_status add_there(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows, cdad_error *err) {
    const int64_t depth = depth_of(g, rows, 0);
    cdad_status status = CDAD_OK;
    void *scratch = NULL;
    CDAD_FAIL_IF(g->there && g->device != ctx->device, err, CDAD_INVALID, "features of %s come after features of %s",
                 ctx->device->name, g->device->name);
    CDAD_FAIL_IF(!X.unfold && X.cs != 1, err, CDAD_INVALID, "on a device features lie row by row");
    CDAD_TRY_DONE(cdad_device_alloc(ctx->device, &scratch, ctx->kernels->gram_scratch(depth, g->d, is_bf16(g)), err));
    if (!g->there)
        CDAD_TRY_DONE(cdad_device_alloc_zero(ctx->device, (void **)&g->there, g->d * g->d * (int64_t)sizeof(double), err));
    g->device = ctx->device;
    for (int64_t first = 0; first < rows; first += depth)
        ctx->kernels->gram_add(ctx, g->there, X, first, min64(depth, rows - first), g->d, is_bf16(g), scratch);
    status = cdad_device_check(ctx->device, 0, err);
    g->spoiled = status != CDAD_OK;
    status = cdad_device_half_way(status, err);
done:
    cdad_device_free(ctx->device, scratch);
    return status;
}

cdad_status cdad_gram_settle(cdad_gram *g, cdad_error *err) {
    cdad_status status = CDAD_OK;
    double *rows = NULL;
    if (!g->there)
        return CDAD_OK;
    CDAD_TRY(cdad_alloc((void **)&rows, min64(TILE, g->d) * g->d * (int64_t)sizeof *rows, err));
    for (int64_t first = 0; first < g->d; first += TILE) {
        const int64_t n = min64(TILE, g->d - first);
        status = cdad_device_download(g->device, rows, g->there + first * g->d, n * g->d * (int64_t)sizeof *rows, err);
        if (status != CDAD_OK) {
            status = first > 0 ? cdad_device_half_way(status, err) : status;
            goto done;
        }
        for (int64_t i = first; i < first + n; i++)
            for (int64_t j = i; j < g->d; j++)
                *element(g, i, j) += rows[(i - first) * g->d + j];
    }
    cdad_device_free(g->device, g->there);
    g->there = NULL;
done:
    cdad_free(rows);
    return status;
}

/* The products of what is in the panels. */
static cdad_status add_tiles(add_job *job, const cdad_context *ctx, cdad_error *err) {
    const int64_t blocks = (job->g->d + TILE - 1) / TILE, tasks = blocks * (blocks + 1) / 2;
    const int64_t threads = cdad_pool_threads(ctx->pool), least = TILES_A_POLL * MOST_DEPTHS * DEPTH / max64(job->rows, MOST_DEPTHS * DEPTH);
    const int64_t at_once = (least + threads - 1) / threads * threads;
    for (job->first_task = 0; job->first_task < tasks; job->first_task += at_once) {
        CDAD_FAIL_IF(ctx->poll && ctx->poll(ctx->poll_arg), err, CDAD_CANCELLED, "stopped while features were added");
        cdad_pool_run(ctx->pool, min64(at_once, tasks - job->first_task), add_task, job);
    }
    return CDAD_OK;
}

cdad_status cdad_gram_add(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows, cdad_error *err) {
    cdad_status status;
    const cdad_kernels *kernels = ctx->kernels;
    const int bytes = g->rounding == CDAD_GRAM_BYTES && kernels->gram_bytes_pack;
    const int64_t depth = depth_of(g, rows, 0), deep = bytes ? depth_of(g, rows, 1) : depth;
    const uint32_t seed = bytes ? cdad_seed_of(cdad_gram_trace(g)) : 0;
    float *panels = NULL;
    add_job job = {.g = g, .kernels = kernels};
    if (ctx->device)
        return add_there(g, ctx, X, rows, err);
    CDAD_TRY_DONE(cdad_alloc((void **)&job.scratch, cdad_pool_threads(ctx->pool) * TILE * TILE * (int64_t)sizeof(float), err));
    int64_t size = kernels->gram_panels(depth, g->d, is_bf16(g));
    if (bytes && kernels->gram_bytes_panels(deep, g->d) > size)
        size = kernels->gram_bytes_panels(deep, g->d);
    CDAD_TRY_DONE(cdad_alloc((void **)&panels, size, err));
    job.panels = panels;
    for (int64_t first = 0; first < rows; first += deep) {
        const int64_t end = min64(first + deep, rows);
        job.rows = end - first;
        job.bytes = bytes && kernels->gram_bytes_pack(ctx, panels, X, first, job.rows, g->d, seed);
        for (int64_t at = first; at < end; at += job.rows) {
            if (!job.bytes) {
                job.rows = min64(depth, end - at);
                kernels->gram_pack(ctx, panels, X, at, job.rows, g->d, is_bf16(g));
            }
            CDAD_TRY_DONE(add_tiles(&job, ctx, err));
        }
    }
done:
    cdad_free(panels);
    cdad_free(job.scratch);
    return status;
}

cdad_status cdad_gram_of(cdad_gram *g, const cdad_context *ctx, cdad_mat X, int64_t rows, int64_t d, cdad_error *err) {
    cdad_status status;
    *g = (cdad_gram){0};
    CDAD_TRY(cdad_gram_init(g, d, CDAD_GRAM_PLAIN, err));
    status = cdad_gram_add(g, ctx, X, rows, err);
    if (status != CDAD_OK)
        cdad_gram_reset(g);
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

/* Block row bi of full [d,d], of doubles or of floats, and the column that mirrors it. By tiles, so that the transposed writes stay in the cache. */
#define EXPAND(g, full, type, bi)                                                                    \
    for (int64_t bj = bi; bj < (g)->d; bj += TILE)                                                   \
        for (int64_t i = bi; i < min64(bi + TILE, (g)->d); i++) {                                    \
            const double *row = element(g, i, bj) - bj;                                              \
            for (int64_t j = bi == bj ? i : bj; j < min64(bj + TILE, (g)->d); j++)                   \
                (full)[i * (g)->d + j] = (full)[j * (g)->d + i] = (type)row[j];                      \
        }

void cdad_gram_expand(const cdad_gram *g, double *full) {
    for (int64_t bi = 0; bi < g->d; bi += TILE)
        EXPAND(g, full, double, bi)
}

typedef struct {
    const cdad_gram *g;
    float *full;
} expand_job;

static void expand_task(void *arg, int64_t task, int worker) {
    const expand_job *job = arg;
    (void)worker;
    EXPAND(job->g, job->full, float, task * TILE)
}

void cdad_gram_expand_narrow(const cdad_gram *g, const cdad_context *ctx, float *full) {
    expand_job job = {.g = g, .full = full};
    cdad_pool_run(ctx->pool, (g->d + TILE - 1) / TILE, expand_task, &job);
}

void cdad_gram_pack(const cdad_gram *g, double *packed) {
    for (int64_t i = 0; i < g->d; i++)
        for (int64_t j = i, n; j < g->d; packed += n, j += n) {
            n = leading(g, j) - j % TILE;
            memcpy(packed, element(g, i, j), (size_t)n * sizeof *packed);
        }
}

void cdad_gram_unpack(cdad_gram *g, const double *packed) {
    cdad_device_free(g->device, g->there);
    g->there = NULL;
    g->spoiled = 0;
    for (int64_t i = 0; i < g->d; i++)
        for (int64_t j = i, n; j < g->d; packed += n, j += n) {
            n = leading(g, j) - j % TILE;
            memcpy(element(g, i, j), packed, (size_t)n * sizeof *packed);
        }
}
