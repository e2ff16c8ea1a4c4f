/* Feature vectors as they come: a strided matrix or an image still to be unfolded, read by tiles of rows. */
#ifndef CDAD_CONTINUAL_FEATURES_H
#define CDAD_CONTINUAL_FEATURES_H

#include "kernels/kernels.h"

/* X must have `rows` rows of width d: CDAD_SHAPE when an unfolding says otherwise, CDAD_NOT_FINITE naming the
 * first NaN or infinity (on a device none is named, and X is dense), or when the sum of squares leaves the range of float32. Nothing is
 * unfolded. */
CDAD_MUST_USE cdad_status cdad_features_check(const cdad_context *ctx, cdad_mat X, int64_t rows, int64_t d,
                                              cdad_error *err);

/* dst [rows,d] = rows first .. first+rows-1 of X. Checks nothing. */
void cdad_features_gather(const cdad_context *ctx, float *dst, cdad_mat X, int64_t first, int64_t rows,
                          int64_t d);

#endif
