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

void cdad_project(const cdad_context *ctx, float *dW, int64_t O, const float *U, int64_t d, int64_t k,
                  cdad_projection_side side, void *scratch) {
    const cdad_kernels *kernels = ctx->kernels;
    const int off = side == CDAD_PROJECT_OFF;
    float *inside = scratch; /* [O,k] */
    void *gemm_scratch = (char *)scratch + cdad_align_up(O * k * (int64_t)sizeof(float));
    const cdad_mat basis = {.data = U, .rs = k, .cs = 1}, basis_t = {.data = U, .rs = 1, .cs = k};
    const cdad_mat update = {.data = dW, .rs = d, .cs = 1}, coefficients = {.data = inside, .rs = k, .cs = 1};
    kernels->gemm(ctx, O, k, d, update, basis, inside, k, NULL, gemm_scratch);
    if (off)
        kernels->affine(ctx, inside, inside, O * k, -1, 0);
    const cdad_epilogue with = {.accumulate = off};
    kernels->gemm(ctx, O, d, k, coefficients, basis_t, dW, d, &with, gemm_scratch);
}
