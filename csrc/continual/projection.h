/* Projection of an update off the protected subspace ("One-for-More", CVPR 2025, Eq. 7). */
#ifndef CDAD_CONTINUAL_PROJECTION_H
#define CDAD_CONTINUAL_PROJECTION_H

#include "kernels/kernels.h"

/* Bytes of scratch for cdad_project: CDAD_SHAPE when they do not fit an int64_t. */
CDAD_MUST_USE cdad_status cdad_project_scratch(const cdad_context *ctx, int64_t O, int64_t d, int64_t k,
                                               int64_t *bytes, cdad_error *err);

/* dW [O,d] <- dW - (dW U) U^T, in place; U [d,k] orthonormal, row major. A row of dW holds an output's
 * weights, so features x in the span of U see dW x = 0: what is left inside is rounding, measured 1e-7 to
 * 3e-7 of the norm that dW came with. A second pass would relate that to the norm of the result, but adding
 * the update to float32 weights rounds it by more than either. k = 0 leaves dW as it is. */
void cdad_project(const cdad_context *ctx, float *dW, int64_t O, const float *U, int64_t d, int64_t k,
                  void *scratch);

#endif
