/* Products with sparse test vectors, and what they add to a sketch. */
#include "base/philox.h"
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_shorts.h"

enum { LANES = 8 }; /* independent sums of a row */

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

typedef struct {
    cdad_mat X;
    int64_t first, rows, d, M;
    const int32_t *signs;
    float *gathered, *Z; /* [rows,d] and [M,rows] */
    float *panels;       /* VL*d floats a worker */
    double *squares;     /* one a row */
} test_job;

static void gather(float *line, const cdad_mat *X, int64_t row, int64_t d) {
    if (X->unfold)
        CDAD_K(gemm_unfold_line)(line, X->unfold, X->data, row, 0, d);
    else if (X->cs == 1)
        memcpy(line, X->data + row * X->rs, (size_t)d * sizeof *line);
    else
        for (int64_t j = 0; j < d; j++)
            line[j] = X->data[row * X->rs + j * X->cs];
}

static double squares_of(const float *x, int64_t n) {
    double lane[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lane[l] += (double)x[i + l] * (double)x[i + l];
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (int l = 0; l < LANES; l++)
        sum += lane[l];
    return sum;
}

/* VL rows side by side, so that an entry of a test vector is one operation of all. */
static void test_rows(void *arg, int64_t task, int worker) {
    const test_job *job = arg;
    const int64_t d = job->d, begin = task * VL, n = min_i(VL, job->rows - begin);
    const int32_t *ends = job->signs, *places = ends + 2 * job->M;
    float *panel = job->panels + (int64_t)worker * VL * d;
    for (int64_t i = 0; i < n; i++) {
        float *line = job->gathered + (begin + i) * d;
        gather(line, &job->X, job->first + begin + i, d);
        job->squares[begin + i] = squares_of(line, d);
        for (int64_t j = 0; j < d; j++)
            panel[j * VL + i] = line[j];
    }
    for (int64_t i = n; i < VL; i++)
        for (int64_t j = 0; j < d; j++)
            panel[j * VL + i] = 0;
    int64_t at = 0;
    for (int64_t t = 0; t < job->M; t++) {
        vf sum = {0}, other = {0}; /* two, as one would wait for itself */
        for (; at + 1 < ends[2 * t]; at += 2) {
            sum += v_load(panel + places[at] * VL);
            other += v_load(panel + places[at + 1] * VL);
        }
        for (; at < ends[2 * t]; at++)
            sum += v_load(panel + places[at] * VL);
        for (; at + 1 < ends[2 * t + 1]; at += 2) {
            sum -= v_load(panel + places[at] * VL);
            other -= v_load(panel + places[at + 1] * VL);
        }
        for (; at < ends[2 * t + 1]; at++)
            sum -= v_load(panel + places[at] * VL);
        v_store_n(job->Z + t * job->rows + begin, sum + other, n);
    }
}

static int64_t own_bytes(int64_t rows, int64_t d, int64_t M, int threads) {
    return aligned(rows * (int64_t)sizeof(double)) +
           aligned((rows * d + M * rows + threads * VL * d) * (int64_t)sizeof(float));
}

/* Gathers and tests the rows in own_bytes of scratch. */
static void test(const cdad_context *ctx, test_job *job, double *squares, void *scratch) {
    job->squares = scratch;
    job->gathered = (float *)((char *)scratch + aligned(job->rows * (int64_t)sizeof(double)));
    job->Z = job->gathered + job->rows * job->d;
    job->panels = job->Z + job->M * job->rows;
    cdad_pool_run(ctx->pool, (job->rows + VL - 1) / VL, test_rows, job);
    for (int64_t i = 0; i < job->rows; i++)
        *squares += job->squares[i];
}

#if SHORTS_PAY
static void add_shorts(const cdad_context *ctx, float *Y, double *squares, test_job job, char *scratch) {
    const int64_t begin = job.first, rows = job.rows;
    void *panels = scratch + own_bytes(min_i(SHORTS_KC, rows), job.d, job.M, cdad_pool_threads(ctx->pool));
    const uint32_t seed = cdad_seed_of(*squares);
    for (int64_t k = 0; k < rows; k += SHORTS_KC) {
        job.first = begin + k;
        job.rows = min_i(SHORTS_KC, rows - k);
        test(ctx, &job, squares, scratch);
        CDAD_K(shorts_pack)(ctx, panels, job.Z, job.gathered, job.M, job.d, k, job.rows, seed);
    }
    CDAD_K(shorts_add)(ctx, Y, panels, job.M, job.d, rows);
}
#endif

int64_t CDAD_K(sketch_scratch)(int64_t rows, int64_t d, int64_t M, int rounded, int threads) {
    (void)rounded;
#if SHORTS_PAY
    if (rounded)
        return own_bytes(min_i(SHORTS_KC, rows), d, M, threads) + CDAD_K(shorts_panels)(M, d, rows);
#endif
    return own_bytes(rows, d, M, threads) + CDAD_K(gemm_scratch)(M, d, rows, threads);
}

void CDAD_K(sketch_add)(const cdad_context *ctx, float *Y, double *squares, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                        const int32_t *signs, int64_t M, int rounded, void *scratch) {
    test_job job = {.X = X, .first = first, .rows = rows, .d = d, .M = M, .signs = signs};
    const cdad_epilogue adding = {.accumulate = 1};
    (void)rounded;
#if SHORTS_PAY
    if (rounded) {
        add_shorts(ctx, Y, squares, job, scratch);
        return;
    }
#endif
    test(ctx, &job, squares, scratch);
    CDAD_K(gemm)(ctx, M, d, rows, cdad_mat_rows(job.Z, rows), cdad_mat_rows(job.gathered, d), Y, d, &adding,
                 (char *)scratch + own_bytes(rows, d, M, cdad_pool_threads(ctx->pool)));
}
