/* Projection of updates off the protected subspace ("One-for-More", CVPR 2025, Eq. 7), and updates inside a subspace. */
#ifndef CDAD_CONTINUAL_PROJECTION_H
#define CDAD_CONTINUAL_PROJECTION_H

#include "kernels/kernels.h"

/* Bytes of scratch for what follows: CDAD_SHAPE when they do not fit an int64_t. */
CDAD_MUST_USE cdad_status cdad_project_scratch(const cdad_context *ctx, int64_t O, int64_t d, int64_t k,
                                               int64_t *bytes, cdad_error *err);

typedef enum {
    CDAD_PROJECT_OFF, /* dW - (dW U) U^T: what lies in the span is taken away */
    CDAD_PROJECT_ONTO /* (dW U) U^T: what lies in the span stays */
} cdad_projection_side;

/* Projects dW [O,d] in place; U [d,k], of any strides, orthonormal. A row of dW holds an output's weights, so features x
 * in the span that is taken away see dW x = 0: what is left inside is rounding, measured 1e-7 to 3e-7 of the norm
 * that dW came with. A second pass would relate that to the norm of the result, but adding the update to float32
 * weights rounds it by more than either. */
void cdad_project(const cdad_context *ctx, float *dW, int64_t O, cdad_mat U, int64_t d, int64_t k,
                  cdad_projection_side side, void *scratch);

/* Coordinates C [O,k] = G U of a gradient G [O,d] in such directions U; C may be G's memory, whose first O*k elements they then
 * take. And the way back, W [O,d] += C U^T. A precision that rounds does so to G, U and C, but not to U on the way back, of which it keeps
 * 16 bits at least: a change of the weights that leaves the span is still some 2e-6 of it at most. */
void cdad_coordinates(const cdad_context *ctx, float *C, const float *G, int64_t O, cdad_mat U, int64_t d, int64_t k,
                      cdad_precision precision, void *scratch);
void cdad_add_coordinates(const cdad_context *ctx, float *W, const float *C, int64_t O, cdad_mat U, int64_t d, int64_t k,
                          cdad_precision precision, void *scratch);

#endif
