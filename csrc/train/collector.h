/* Significant representations of a whole model: a stream for every weight, fed by taps while the model samples
 * reconstructions of a task's images (paper, Algorithm 1). Features are consumed as soon as they exist; none is
 * stored. */
#ifndef CDAD_TRAIN_COLLECTOR_H
#define CDAD_TRAIN_COLLECTOR_H

#include "continual/stream.h"
#include "diffusion/sampler.h"

typedef struct cdad_collector cdad_collector;

typedef struct cdad_collecting {
    cdad_stream_method method;
    double gamma;
    int64_t runs;   /* of the model that are about to come, at most; 0: unknown */
    int64_t memory; /* bytes that all streams together may hold where CDAD_STREAM_AUTO chooses; 0: any */
    const unsigned char *wanted; /* [params->n] weights whose features are collected; NULL: of all */
} cdad_collecting;

/* Taps the conv and linear weights of `params` (those with two or more dimensions) in `sampler`, which must outlive
 * the collector; what the sampler runs is collected from now on. Memory is taken when features come. Weights that
 * read the same features (q and k) share one stream. */
CDAD_MUST_USE cdad_status cdad_collector_new(cdad_collector **out, cdad_sampler *sampler, const cdad_params *params,
                                             const cdad_collecting *how, cdad_error *err);
void cdad_collector_free(cdad_collector *c); /* NULL is allowed; removes the taps */
int cdad_collector_ended(const cdad_collector *c); /* bases have been made: it has no taps any more */

/* How a parameter's features are accumulated; bytes are 0 where an earlier parameter's stream is shared. NULL: it has
 * none. */
const cdad_stream_plan *cdad_collector_plan(const cdad_collector *c, int64_t param);

/* The basis of one parameter's features, U [d,k] row-major. */
typedef struct cdad_weight_basis {
    float *U; /* as a result: freed by cdad_free; NULL for parameters that have none */
    int64_t d, k;
    double energy; /* share of this task's energy that U keeps */
    double capped; /* share that it would keep too, but for the caps */
} cdad_weight_basis;

/* old [params->n]: the bases of the earlier tasks (U NULL: none); out [params->n]: the joint bases (Eq. 6),
 * solved side by side on the pool. No basis grows beyond max_share of its width, in (0, 1], and at least one direction,
 * nor by more than max_added directions (0: by any number): of the new ones those with the most energy stay; the old all do. A stream is freed as soon as its bases are made, and
 * the taps are removed: nothing is collected any more, and a second call fails. */
CDAD_MUST_USE cdad_status cdad_collector_bases(cdad_collector *c, const cdad_context *ctx,
                                               const cdad_weight_basis *old, double max_share,
                                               int64_t max_added, cdad_weight_basis *out, cdad_error *err);

#endif
