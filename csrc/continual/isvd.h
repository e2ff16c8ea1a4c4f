/* Iterative SVD: the rule of "One-for-More" (CVPR 2025, Eq. 9, Algorithm 1) as its authors published it.
 *
 * Block after block, the left singular vectors of [U, M] are cut to the rank that CDAD_RANK_BELOW asks for. U
 * goes in without its singular values, so what earlier blocks weighed is forgotten and they fade; and a block
 * is held whole: d*(k + rows) floats and an SVD. Kept for comparison with the paper; cdad_gram is exact. */
#ifndef CDAD_CONTINUAL_ISVD_H
#define CDAD_CONTINUAL_ISVD_H

#include "kernels/kernels.h"

typedef struct cdad_isvd {
    int64_t d, k;
    float *U;      /* [k,d]: a direction a row */
    float *values; /* [k]: singular values of the last [U, M] */
    double share;  /* of the energy of the last [U, M] that the k directions keep; 1 when there is none */
} cdad_isvd;

/* Of a basis of full rank; a block that is being added takes d*(k + rows) floats more. */
int64_t cdad_isvd_bytes(int64_t d);

void cdad_isvd_init(cdad_isvd *v, int64_t d);
void cdad_isvd_reset(cdad_isvd *v);

/* One block M = X^T, X [rows,d], already checked, rows >= 1. On failure `v` is as it was. */
CDAD_MUST_USE cdad_status cdad_isvd_add(cdad_isvd *v, const cdad_context *ctx, cdad_mat X, int64_t rows,
                                        double gamma, cdad_error *err);

/* Room for k directions, contents undefined: for a state to be read in. On failure `v` is as it was. */
CDAD_MUST_USE cdad_status cdad_isvd_resize(cdad_isvd *v, int64_t k, cdad_error *err);

#endif
