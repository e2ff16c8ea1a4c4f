/* Products of a matrix with itself: packed once for both sides, then multiplied by tiles of the upper half. */
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

/* Columns packed together: whole panels of either width. */
#define GROUP (3 * GEMM_NR)
_Static_assert(CDAD_GRAM_SIDE % GROUP == 0 || GROUP % CDAD_GRAM_SIDE == 0, "tiles begin with panels");
_Static_assert(GROUP % GEMM_MR == 0 && GEMM_NR % GEMM_STEP == 0, "a group holds whole panels of both kinds");

static inline int64_t min_i(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t padded(int64_t d) { return (d + GROUP - 1) / GROUP * GROUP; }

/* A block of k: the panels of GEMM_NR columns side by side, then those of A's width, a whole GEMM_KC apart. */
static inline int64_t block_size(int64_t d, gemm_form form) { return 2 * padded(d) * gemm_steps(form, GEMM_KC); }

typedef struct {
    float *panels;
    cdad_mat X;
    int64_t first, rows, d;
    gemm_form form;
} pack_job;

/* Of the columns of a group, from B's panels. */
static void turn(float *a, const float *b, int64_t steps, gemm_form form) {
#if GEMM_AMX
    for (int64_t p = 0; form == GEMM_TILES && p < GROUP; p += GEMM_NR)
        CDAD_K(gemm_turn_amx)(a + p * steps, b + p * steps, steps);
#endif
    for (int64_t i = 0; form != GEMM_TILES && i < GROUP; i += GEMM_STEP) { /* the same columns, narrower panels */
        const float *from = b + i / GEMM_NR * GEMM_NR * steps + i % GEMM_NR;
        float *to = a + i / GEMM_MR * GEMM_MR * steps + i % GEMM_MR;
        for (int64_t s = 0; s < steps; s++)
            memcpy(to + s * GEMM_MR, from + s * GEMM_NR, GEMM_STEP * sizeof *to);
    }
}

static void pack_group(void *arg, int64_t group, int worker) {
    const pack_job *job = arg;
    (void)worker;
    for (int64_t k = 0; k < job->rows; k += GEMM_KC) {
        const int64_t kc = min_i(GEMM_KC, job->rows - k), steps = gemm_steps(job->form, kc);
        float *block = job->panels + k / GEMM_KC * block_size(job->d, job->form);
        float *b = block + group * GROUP * steps, *a = b + padded(job->d) * steps;
        for (int64_t p = 0; p < GROUP; p += GEMM_NR) {
            const int64_t column = group * GROUP + p;
            float *panel = b + p * steps;
            if (column >= job->d) {
                memset(panel, 0, (size_t)(GEMM_NR * steps) * sizeof *panel);
                continue;
            }
            CDAD_K(gemm_panel)(job->form, 0, panel, &job->X, column, min_i(GEMM_NR, job->d - column), job->first + k, kc);
        }
        turn(a, b, steps, job->form);
    }
}

static void pack_panels(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d,
                        gemm_form form) {
    pack_job job = {.panels = panels, .X = X, .first = first, .rows = rows, .d = d, .form = form};
    cdad_pool_run(ctx->pool, padded(d) / GROUP, pack_group, &job);
}

static void add_tile(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0, int64_t side,
                     gemm_form form, float *scratch) {
    const int64_t i1 = min_i(i0 + side, d), j1 = min_i(j0 + side, d), MR = gemm_rows(form);
    const gemm_tile_fn tile = gemm_tile_of(form);
    gemm_begin(form);
    for (int64_t k = 0; k < rows; k += GEMM_KC) {
        const int64_t steps = gemm_steps(form, min_i(GEMM_KC, rows - k));
        const float *b = panels + k / GEMM_KC * block_size(d, form), *a = b + padded(d) * steps;
        for (int64_t j = j0; j < j1; j += GEMM_NR)
            for (int64_t i = i0; i < i1 && i < j + GEMM_NR; i += MR) {
                float *c = scratch + (i - i0) * side + (j - j0);
                tile(steps, a + i * steps, b + j * steps, min_i(MR, i1 - i), min_i(GEMM_NR, j1 - j), c, side, k > 0 ? c : NULL, NULL,
                     NULL);
            }
    }
    gemm_end(form);
    for (int64_t i = i0; i < i1; i++) {
        double *g = G + (i - i0) * ldg - j0;
        const float *c = scratch + (i - i0) * side - j0;
        for (int64_t j = i > j0 ? i : j0; j < j1; j++)
            g[j] += (double)c[j];
    }
}

static gemm_form form_of(int bf16) { return bf16 ? GEMM_WORDS : GEMM_FLOATS; }

/* With AMX, too: a whole GEMM_KC is as many words in tiles. */
int64_t CDAD_K(gram_panels)(int64_t rows, int64_t d, int bf16) {
    return (rows + GEMM_KC - 1) / GEMM_KC * block_size(d, form_of(bf16)) * (int64_t)sizeof(float);
}
void CDAD_K(gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16) {
    pack_panels(ctx, panels, X, first, rows, d, form_of(bf16));
}
void CDAD_K(gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0, int64_t side,
                       int bf16, float *scratch) {
    add_tile(G, ldg, panels, rows, d, i0, j0, side, form_of(bf16), scratch);
}
int CDAD_K(gram_rounds_fast)(void) { return CDAD_K(gemm_dots_pay)(); }

#if GEMM_AMX
static gemm_form amx_form_of(int bf16) { return bf16 ? GEMM_TILES : GEMM_FLOATS; }

void CDAD_K(amx_gram_pack)(const cdad_context *ctx, float *panels, cdad_mat X, int64_t first, int64_t rows, int64_t d, int bf16) {
    pack_panels(ctx, panels, X, first, rows, d, amx_form_of(bf16));
}
void CDAD_K(amx_gram_tile)(double *G, int64_t ldg, const float *panels, int64_t rows, int64_t d, int64_t i0, int64_t j0,
                           int64_t side, int bf16, float *scratch) {
    add_tile(G, ldg, panels, rows, d, i0, j0, side, amx_form_of(bf16), scratch);
}
int CDAD_K(amx_gram_rounds_fast)(void) { return 1; }
#endif
