/* The input features of chosen weights, kept as rows while a model samples: for measurements, where a collector
 * would consume them. Memory grows with what is recorded. */
#ifndef CDAD_TRAIN_RECORDER_H
#define CDAD_TRAIN_RECORDER_H

#include "diffusion/sampler.h"

typedef struct cdad_recorder cdad_recorder;

/* Taps the weights of these numbers in `params` (two or more dimensions, each once) in `sampler`, which must outlive
 * the recorder; what the sampler runs is recorded from now on. CDAD_INVALID: another number, or one twice. */
CDAD_MUST_USE cdad_status cdad_recorder_new(cdad_recorder **out, cdad_sampler *sampler, const cdad_params *params,
                                            const int64_t *chosen, int64_t n, cdad_error *err);
void cdad_recorder_free(cdad_recorder *r); /* NULL is allowed; removes the taps */

/* The rows [*rows,*d] of the i-th chosen weight since the last clear, images unfolded; good until the next run. */
const float *cdad_recorder_rows(const cdad_recorder *r, int64_t i, int64_t *rows, int64_t *d);
void cdad_recorder_clear(cdad_recorder *r);

#endif
