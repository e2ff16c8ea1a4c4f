/* Where many values stand among few sorted ones: what every threshold-free measure needs to know of the normal pixels,
 * without sorting them. */
#ifndef CDAD_METRICS_PLACES_H
#define CDAD_METRICS_PLACES_H

#include <stdint.h>

#include "base/context.h"
#include "base/status.h"

/* Of n values, `floats` or, where that is NULL, `doubles`, those with skip[i] == 0 are counted by their place among k strictly
 * rising marks: counts[2i+1] are equal to mark i, counts[2i] lie below it and above the one before, counts[2k] above all.
 * Nothing may be NaN. n < 2^32. */
CDAD_MUST_USE cdad_status cdad_count_places(const cdad_context *ctx, int64_t *counts, const float *floats,
                                            const double *doubles, const unsigned char *skip, int64_t n,
                                            const double *marks, int64_t k, cdad_error *err);

#endif
