/* Significant representations of a whole model: a stream for every weight, fed by taps while the model samples
 * reconstructions of a task's images (paper, Algorithm 1). Features are consumed as soon as they exist; none is
 * stored. */
#ifndef CDAD_TRAIN_COLLECTOR_H
#define CDAD_TRAIN_COLLECTOR_H

#include "continual/stream.h"
#include "diffusion/sampler.h"

typedef struct cdad_collector cdad_collector;

/* Taps every conv and linear weight of `params` (those with two or more dimensions) in `sampler`, which must
 * outlive the collector; what the sampler runs is collected from now on. Weights that read the same features
 * (q and k) share one stream. */
CDAD_MUST_USE cdad_status cdad_collector_new(cdad_collector **out, cdad_sampler *sampler, const cdad_params *params,
                                             cdad_stream_method method, double gamma, cdad_error *err);
void cdad_collector_free(cdad_collector *c); /* NULL is allowed; removes the taps */

/* The basis of one parameter's features, U [d,k] row-major. */
typedef struct cdad_weight_basis {
    float *U; /* as a result: freed by cdad_free; NULL for parameters that have none */
    int64_t d, k;
    double energy; /* share of this task's energy that U keeps */
    double capped; /* share that it would keep too, but for max_share */
} cdad_weight_basis;

/* old [params->n]: the bases of the earlier tasks (U NULL: none); out [params->n]: the joint bases (Eq. 6),
 * solved side by side on the pool. No basis grows beyond max_share of its width, in (0, 1], and at least one direction:
 * of the new ones those with the most energy stay; the old all do. */
CDAD_MUST_USE cdad_status cdad_collector_bases(const cdad_collector *c, const cdad_context *ctx,
                                               const cdad_weight_basis *old, double max_share,
                                               cdad_weight_basis *out, cdad_error *err);

#endif
