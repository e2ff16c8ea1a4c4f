/* Where a convolution has so few channels that it is computed straight from the image, without unfolding it. */
#ifndef CDAD_OPS_NARROW_H
#define CDAD_OPS_NARROW_H

#include "ops/support.h"

/* Whether the convolution that `u` unfolds, to O channels, is, by kernels that can. A function of a sample's own shape: the batch has no
 * say, or its size would change bits. */
int cdad_narrow_choose(const cdad_kernels *kernels, const cdad_unfold *u, int64_t O);
/* Whether the gradient of its weight is. */
int cdad_narrow_choose_grad_weight(const cdad_kernels *kernels, const cdad_unfold *u, int64_t O);

#endif
