/* Projecting updates. */
#include "continual/projection.h"

#include "base/memory.h"

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

cdad_status cdad_project_scratch(const cdad_context *ctx, int64_t O, int64_t d, int64_t k, int64_t *bytes,
                                 cdad_error *err) {
    const int threads = ctx->pool ? cdad_pool_threads(ctx->pool) : 1;
    int64_t inside;
    CDAD_TRY(cdad_size_mul(O, k, &inside, err));
    *bytes =
        cdad_align_up(inside * (int64_t)sizeof(float)) +
        max64(ctx->kernels->gemm_scratch(O, k, d, threads), ctx->kernels->gemm_scratch(O, d, k, threads));
    return CDAD_OK;
}

/* out [O,n] = A [O,m] B [m,n] and what `with` adds. */
static void product(const cdad_context *ctx, float *out, const float *A, cdad_mat B, int64_t O, int64_t n, int64_t m, cdad_epilogue with,
                    void *scratch) {
    const cdad_mat left = {.data = A, .rs = m, .cs = 1};
    ctx->kernels->gemm(ctx, O, n, m, left, B, out, n, &with, scratch);
}

static void *after_inside(void *scratch, int64_t O, int64_t k) {
    return (char *)scratch + cdad_align_up(O * k * (int64_t)sizeof(float));
}

static cdad_mat turned(cdad_mat U) { return (cdad_mat){.data = U.data, .rs = U.cs, .cs = U.rs}; }

void cdad_project(const cdad_context *ctx, float *dW, int64_t O, cdad_mat U, int64_t d, int64_t k,
                  cdad_projection_side side, void *scratch) {
    const int off = side == CDAD_PROJECT_OFF;
    float *inside = scratch; /* [O,k] */
    product(ctx, inside, dW, U, O, k, d, (cdad_epilogue){0}, after_inside(scratch, O, k));
    if (off)
        ctx->kernels->affine(ctx, inside, inside, O * k, -1, 0);
    product(ctx, dW, inside, turned(U), O, d, k, (cdad_epilogue){.accumulate = off}, after_inside(scratch, O, k));
}

void cdad_coordinates(const cdad_context *ctx, float *C, const float *G, int64_t O, cdad_mat U, int64_t d, int64_t k,
                      cdad_precision precision, void *scratch) {
    float *out = C == G ? scratch : C;
    product(ctx, out, G, U, O, k, d, (cdad_epilogue){.precision = precision}, after_inside(scratch, O, k));
    const cdad_runs all = cdad_columns(1, O * k, 0, 0);
    if (C == G)
        ctx->kernels->copy_runs(ctx, C, out, &all);
}

void cdad_add_coordinates(const cdad_context *ctx, float *W, const float *C, int64_t O, cdad_mat U, int64_t d, int64_t k,
                          cdad_precision precision, void *scratch) {
    const cdad_epilogue with = {.accumulate = 1, .precision = precision, .split = 1};
    product(ctx, W, C, turned(U), O, d, k, with, after_inside(scratch, O, k));
}
