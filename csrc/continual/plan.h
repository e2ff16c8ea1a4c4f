/* Which way a stream accumulates its features, decided and known in bytes before anything runs. */
#ifndef CDAD_CONTINUAL_PLAN_H
#define CDAD_CONTINUAL_PLAN_H

#include "base/status.h"
#include "continual/gram.h"

typedef enum {
    CDAD_STREAM_EXACT,       /* a Gram matrix, see gram.h */
    CDAD_STREAM_ISVD,        /* the paper's rule, see isvd.h */
    CDAD_STREAM_INCREMENTAL, /* a weighted basis of as many directions as gamma asks for, see lowrank.h */
    CDAD_STREAM_SKETCH,      /* products with random vectors, for bases of at most `rank` directions, see sketch.h */
    CDAD_STREAM_AUTO         /* one of the above: see cdad_stream_plan_make */
} cdad_stream_method;

/* What is known beforehand; 0: nothing. */
typedef struct cdad_stream_hints {
    int64_t columns; /* feature vectors that will come, about */
    int64_t memory;  /* bytes that a sketch may hold */
    int64_t rank;    /* directions that the basis of a sketch may have; goes before `memory` */
} cdad_stream_hints;

typedef struct cdad_stream_plan {
    int64_t d;
    cdad_stream_method method; /* never CDAD_STREAM_AUTO */
    double gamma;
    int64_t rank;  /* directions of a basis at most; d unless a sketch */
    int64_t wait;  /* features that an incremental stream collects before it factors them, at least */
    int64_t bytes; /* that the stream holds at most: `columns` features, or any number of them */
    cdad_gram_rounding rounding; /* of an exact stream's features before it multiplies them */
    int chosen;    /* by CDAD_STREAM_AUTO */
} cdad_stream_plan;

/* The plan of one stream. CDAD_STREAM_AUTO is
 *   incremental  where 1 - gamma is within four times the rounding of float32 products, 1.2e-7 sqrt(d): a Gram matrix
 *                would lose what gamma asks for;
 *   exact        up to d = 4096: 67 MB;
 *   incremental  for wider features of which no more than d come. They take less memory than a Gram matrix, so they wait
 *                until all are there, and a basis is sought in them as they are;
 *   exact        up to d = 6144: 151 MB;
 *   sketch       otherwise: 4 d^2 bytes grow to gigabytes, and so does an eigensolve's time where gamma asks for one.
 * An exact stream that it chose for features of width 768 and more takes products of bfloat16 where the processor has
 * them, twice as fast, and where 1 - gamma is at least 2^-11, gamma at most 0.9995; on one with AVX2 alone it takes products of whole
 * numbers of 7 bits, twice as fast, where 1 - gamma is at least 2^-10 and six times as many features will come as they are wide: see gram.h.
 * A sketch serves bases of up to d/8 directions, at least 256 and at most 1024, unless the hints say otherwise. hints may be
 * NULL. CDAD_SHAPE: d not in 1 to 32768; CDAD_INVALID: gamma not in (0, 1], an unknown method, or a negative hint. */
CDAD_MUST_USE cdad_status cdad_stream_plan_make(cdad_stream_plan *plan, int64_t d, cdad_stream_method method,
                                                double gamma, const cdad_stream_hints *hints, cdad_error *err);

/* Makes the n plans that CDAD_STREAM_AUTO chose fit `memory` bytes together, as far as they can: the widest exact
 * and incremental streams become sketches first, then the widest sketches lose half of their rank, down to 64.
 * Returns the bytes of all, which stay above `memory` where that was not enough. */
int64_t cdad_stream_plans_fit(cdad_stream_plan *plans, int64_t n, int64_t memory);

#endif
