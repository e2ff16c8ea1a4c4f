/* Products of a matrix with itself: packed once for both sides, then multiplied by tiles of the upper half. */
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

/* Columns packed together: whole panels of either width. */
#define GROUP (3 * GEMM_NR)
_Static_assert(CDAD_GRAM_SIDE % GROUP == 0 || GROUP % CDAD_GRAM_SIDE == 0, "tiles begin with panels");
_Static_assert(GROUP % GEMM_MR == 0 && GEMM_NR % GEMM_STEP == 0, "a group holds whole panels of both kinds");

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t d) { return (d + GROUP - 1) / GROUP * GROUP; }
static inline int64_t steps_of(int64_t kc, int bf16) { return bf16 ? (kc + 1) / 2 : kc; }

/* A block of k: the panels of GEMM_NR columns side by side, then those of GEMM_MR, a whole GEMM_KC apart. */
static inline int64_t block_size(int64_t d, int bf16) { return 2 * padded(d) * steps_of(GEMM_KC, bf16); }

int64_t CDAD_K(gram_panels)(int64_t rows, int64_t d, int bf16) {
    return (rows + GEMM_KC - 1) / GEMM_KC * block_size(d, bf16) * (int64_t)sizeof(float);
}

typedef struct {
    float *panels;
    cdad_mat X;
    int64_t first, rows, d;
    int bf16;
} pack_job;

static void pack_group(void *arg, int64_t group, int worker) {
    const pack_job *job = arg;
    float wide[GEMM_KC * GEMM_NR];
    (void)worker;
    for (int64_t k = 0; k < job->rows; k += GEMM_KC) {
        const int64_t kc = min_i(GEMM_KC, job->rows - k), steps = steps_of(kc, job->bf16);
        float *block = job->panels + k / GEMM_KC * block_size(job->d, job->bf16);
        float *b = block + group * GROUP * steps, *a = b + padded(job->d) * steps;
        for (int64_t p = 0; p < GROUP; p += GEMM_NR) {
            const int64_t column = group * GROUP + p;
            float *panel = b + p * steps;
            if (column >= job->d) {
                memset(panel, 0, (size_t)(GEMM_NR * steps) * sizeof *panel);
                continue;
            }
            CDAD_K(gemm_pack_b)(job->bf16 ? wide : panel, &job->X, column, min_i(GEMM_NR, job->d - column), job->first + k, kc);
            if (job->bf16)
                CDAD_K(gemm_words)(panel, wide, GEMM_NR, kc);
        }
        for (int64_t i = 0; i < GROUP; i += GEMM_STEP) { /* the same columns, narrower panels */
            const float *from = b + i / GEMM_NR * GEMM_NR * steps + i % GEMM_NR;
            float *to = a + i / GEMM_MR * GEMM_MR * steps + i % GEMM_MR;
            for (int64_t s = 0; s < steps; s++)
                memcpy(to + s * GEMM_MR, from + s * GEMM_NR, GEMM_STEP * sizeof *to);
        }
    }
}

void CDAD_K(gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                       int bf16) {
    pack_job job = {.panels = panels, .X = X, .first = first, .rows = rows, .d = d, .bf16 = bf16};
    cdad_pool_run(ctx->pool, padded(d) / GROUP, pack_group, &job);
}

void CDAD_K(gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                       int64_t side, int bf16, float *scratch) {
    const int64_t i1 = min_i(i0 + side, d), j1 = min_i(j0 + side, d);
    for (int64_t k = 0; k < rows; k += GEMM_KC) {
        const int64_t steps = steps_of(min_i(GEMM_KC, rows - k), bf16);
        const float *b = panels + k / GEMM_KC * block_size(d, bf16), *a = b + padded(d) * steps;
        for (int64_t j = j0; j < j1; j += GEMM_NR)
            for (int64_t i = i0; i < i1 && i < j + GEMM_NR; i += GEMM_MR) {
                float *c = scratch + (i - i0) * side + (j - j0);
                (bf16 ? CDAD_K(gemm_tile_bf16) : CDAD_K(gemm_tile))(steps, a + i * steps, b + j * steps, min_i(GEMM_MR, i1 - i),
                                                                    min_i(GEMM_NR, j1 - j), c, side, k > 0 ? c : NULL, NULL,
                                                                    NULL);
            }
    }
    for (int64_t i = i0; i < i1; i++) {
        double *g = G + (i - i0) * ldg - j0;
        const float *c = scratch + (i - i0) * side - j0;
        for (int64_t j = i > j0 ? i : j0; j < j1; j++)
            g[j] += (double)c[j];
    }
}

int CDAD_K(gram_rounds_fast)(void) { return CDAD_K(gemm_has_dots)(); }
