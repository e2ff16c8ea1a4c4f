/* Where a convolution is computed by Winograd's minimal filtering, and where directly. */
#ifndef CDAD_OPS_WINOGRAD_H
#define CDAD_OPS_WINOGRAD_H

#include "ops/support.h"

/* The attribute of convolutions: -1 by the cost model, 0 directly, 2 or 4 by F(2x2,3x3) or F(4x4,3x3). */
#define CDAD_WINOGRAD_ATTR CDAD_INT("winograd", -1)

/* Directly from now on, wherever the attribute leaves it open. Before any graph is compiled. */
void cdad_winograd_disable(void);

/* The attribute is one of the above, and fits a kernel of R x S with this stride. */
CDAD_MUST_USE cdad_status cdad_winograd_check(const char *op, int64_t attr, int64_t R, int64_t S, int64_t stride,
                                              cdad_error *err);

/* 0, by kernels that have no other way too, 2 or 4; root mean square errors are at most 1, 2 and 4 times those of the direct sums. A function of a sample's own
 * shape: the batch has no say, or its size would change bits. Direct products in bfloat16 cost half;
 * Winograd's are in float32, since its transforms would amplify the rounding. */
int cdad_winograd_choose(const cdad_kernels *kernels, int64_t attr, int64_t precision, const cdad_unfold *u, int64_t O);

/* The same for the gradient of the weight, a sum over the batch, whose size does have a say. */
int cdad_winograd_choose_grad(const cdad_kernels *kernels, int64_t attr, int64_t precision, const cdad_unfold *u, int64_t O);

#endif
