/* The published iterative SVD. */
#include "continual/isvd.h"

#include <inttypes.h>
#include <string.h>

#include "base/memory.h"
#include "continual/basis.h"
#include "continual/features.h"
#include "continual/linalg.h"

int64_t cdad_isvd_bytes(int64_t d) { return d * (d + 1) * (int64_t)sizeof(float); }

void cdad_isvd_init(cdad_isvd *v, int64_t d) { *v = (cdad_isvd){.d = d, .share = 1}; }

void cdad_isvd_reset(cdad_isvd *v) {
    cdad_free(v->U);
    cdad_free(v->values);
    cdad_isvd_init(v, v->d);
}

cdad_status cdad_isvd_resize(cdad_isvd *v, int64_t k, cdad_error *err) {
    cdad_isvd sized = {.d = v->d, .k = k, .share = 1};
    cdad_status status;
    int64_t count;
    CDAD_TRY_DONE(cdad_size_mul(k, v->d, &count, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&sized.U, count * (int64_t)sizeof *sized.U, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&sized.values, k * (int64_t)sizeof *sized.values, err));
    cdad_isvd_reset(v);
    *v = sized;
    return CDAD_OK;
done:
    cdad_isvd_reset(&sized);
    return status;
}

typedef struct {
    const cdad_isvd *v;
    const cdad_context *ctx;
    cdad_mat X;
    int64_t rows;
} block;

static void fill_block(void *arg, float *A) /* A [d,k+rows], column major */
{
    const block *b = arg;
    const int64_t d = b->v->d, k = b->v->k;
    if (k > 0)
        memcpy(A, b->v->U, (size_t)(k * d) * sizeof *A);
    cdad_features_gather(b->ctx, A + k * d, b->X, 0, b->rows, d);
}

cdad_status cdad_isvd_add(cdad_isvd *v, const cdad_context *ctx, cdad_mat X, int64_t rows, double gamma,
                          cdad_error *err) {
    cdad_status status;
    const int64_t columns = v->k + rows, least = columns < v->d ? columns : v->d;
    float *A = NULL, *square = NULL, *s = NULL;
    double *energies = NULL, total = 0, kept = 0;
    float *U;
    int64_t count;
    block b = {.v = v, .ctx = ctx, .X = X, .rows = rows};
    CDAD_FAIL_IF(columns > INT32_MAX / v->d, err, CDAD_SHAPE,
                 "isvd: a block of %" PRId64 " rows and width %" PRId64 " is beyond LAPACK's 2^31 elements",
                 rows, v->d);
    CDAD_FAIL_IF(5 * least * least + 10 * least > INT32_MAX, err, CDAD_SHAPE,
                 "isvd: a block of %" PRId64 " rows and width %" PRId64 " needs more than 2^31 elements of LAPACK's workspace (sgesdd)", rows,
                 v->d);
    CDAD_TRY_DONE(cdad_size_mul(v->d, columns, &count, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&A, count * (int64_t)sizeof *A, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&square, least * least * (int64_t)sizeof *square, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s, least * (int64_t)sizeof *s, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&energies, least * (int64_t)sizeof *energies, err));
    CDAD_TRY_DONE(cdad_svd_left(A, v->d, columns, square, s, &U, fill_block, &b, err));
    for (int64_t i = 0; i < least; i++)
        total += energies[i] = (double)s[i] * (double)s[i];
    const int64_t k = cdad_energy_rank(energies, least, 0, total, gamma, CDAD_RANK_BELOW);
    for (int64_t i = 0; i < k; i++)
        kept += energies[i];
    if (k > 0)
        CDAD_TRY_DONE(cdad_reorthonormalise(U, v->d, k, err));
    CDAD_TRY_DONE(cdad_isvd_resize(v, k, err));
    memcpy(v->U, U, (size_t)(k * v->d) * sizeof *U);
    memcpy(v->values, s, (size_t)k * sizeof *s);
    v->share = total > 0 ? kept / total : 1;
done:
    cdad_free(A);
    cdad_free(square);
    cdad_free(s);
    cdad_free(energies);
    return status;
}
