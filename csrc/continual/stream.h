/* A layer's input features of one task, taken in block by block in bounded memory, and the basis made of
 * them.
 *
 * CDAD_STREAM_EXACT gives what one SVD of all features together would give (to float32's precision, see
 * gram.h); memory 4 d^2 bytes however many images come. CDAD_STREAM_INCREMENTAL keeps a weighted basis,
 * CDAD_STREAM_SKETCH products with random vectors, and both say what they lost (see lowrank.h, sketch.h). CDAD_STREAM_ISVD is the paper's rule (see
 * isvd.h). CDAD_STREAM_AUTO is one of the first three (see plan.h).
 *
 * A stream is not locked: one thread at a time. The bases of several streams may be solved side by side by tasks of ctx's pool, which
 * work alone then, and whose ctx polls from all of them.
 * Features of different tasks go into different streams: the basis of the earlier tasks is given to
 * cdad_stream_basis. */
#ifndef CDAD_CONTINUAL_STREAM_H
#define CDAD_CONTINUAL_STREAM_H

#include "continual/plan.h"
#include "kernels/kernels.h"

typedef struct cdad_stream cdad_stream;

/* *out is NULL on failure. The plan is one of cdad_stream_plan_make or cdad_stream_plans_fit. */
CDAD_MUST_USE cdad_status cdad_stream_open(cdad_stream **out, const cdad_stream_plan *plan, cdad_error *err);
void cdad_stream_free(cdad_stream *s); /* NULL is allowed */

const cdad_stream_plan *cdad_stream_planned(const cdad_stream *s);

int64_t cdad_stream_width(const cdad_stream *s);
int64_t cdad_stream_rows(const cdad_stream *s); /* feature vectors taken in so far */

/* What is known of the energy (sum of squares) of all features so far. */
typedef struct cdad_stream_energy {
    double total;
    double lost;     /* of it, no longer in the stream: what a basis of all that is left misses at most */
    double spectral; /* of it, in any one direction at most */
} cdad_stream_energy;

/* Exact streams lose nothing; of the paper's rule nothing is known: NaN. Of a sketch its factor is made for it: seconds where it is
 * wide. */
CDAD_MUST_USE cdad_status cdad_stream_energies(const cdad_stream *s, const cdad_context *ctx, cdad_stream_energy *out, cdad_error *err);

/* Takes in X [rows,d], a matrix or an image still to be unfolded; one call is one block of the paper's rule. Bits do
 * not depend on the number of threads. CDAD_SHAPE: an unfolding of another size; CDAD_NOT_FINITE: names the first
 * NaN or infinity. A failure leaves the stream as it was, but CDAD_CANCELLED may have taken in part of a block, and
 * so may any failure of a large block of an incremental stream: the stream then refuses all but
 * cdad_stream_state_set and cdad_stream_free. */
CDAD_MUST_USE cdad_status cdad_stream_add(cdad_stream *s, const cdad_context *ctx, cdad_mat X, int64_t rows,
                                          cdad_error *err);

/* Whether features may lie on the device (NULL: the host): those of an exact stream or a sketch may, whose sum is kept there, in 8 d^2 or
 * as many bytes as the sketch has, until cdad_stream_settle. */
int cdad_stream_takes(const cdad_stream_plan *plan, const cdad_device *device);
/* Brings to the host what lies on a device, if anything does: all but cdad_stream_add and cdad_stream_state_set refuses to work before. */
CDAD_MUST_USE cdad_status cdad_stream_settle(cdad_stream *s, cdad_error *err);

/* s also holds what `other` holds: two exact streams to double's rounding, two sketches of one rank to float32's, which grows with the number of adds, two incremental
 * streams within their losses, which add up. Widths or ranks that differ: CDAD_SHAPE; other pairs: CDAD_INVALID. Failures are those of
 * cdad_stream_add. */
CDAD_MUST_USE cdad_status cdad_stream_merge(cdad_stream *s, const cdad_context *ctx, const cdad_stream *other,
                                            cdad_error *err);

/* Eq. 6, see cdad_basis_extend: U_old [d,k_old] (NULL when k_old is 0) is kept bit by bit, *U [d,*k] row major is
 * freed by cdad_free, *energy is the share of this stream's energy that *U keeps. Of an incremental stream
 * it is the share that *U keeps for certain, of all energy, the lost one included; of a sketch an estimate (see sketch.h), and one of
 * too low a rank ends below gamma, with `rank` directions. Under the paper's rule energies are gone: without
 * U_old the result is its U and the share that the last cut kept; with U_old its directions count as features of
 * equal weight. */
CDAD_MUST_USE cdad_status cdad_stream_basis(const cdad_stream *s, const cdad_context *ctx, const float *U_old,
                                            int64_t k_old, float **U, int64_t *k, double *energy,
                                            cdad_error *err);

/* *energy: the share of this stream's energy that lies in the span of U [d,k], k >= 1; of an incremental stream
 * what it kept counts, of a sketch it is an estimate. CDAD_INVALID: under the paper's rule, which forgets energies. */
CDAD_MUST_USE cdad_status cdad_stream_share(const cdad_stream *s, const cdad_context *ctx, const float *U, int64_t k,
                                            double *energy, cdad_error *err);

/* *values [*n], descending, freed by cdad_free: the singular values of all features together, n = min(rows, d); of an
 * incremental stream or a sketch those of what they stand for, which are no larger; under the paper's rule those kept from the last block. */
CDAD_MUST_USE cdad_status cdad_stream_singular_values(const cdad_stream *s, const cdad_context *ctx,
                                                      float **values, int64_t *n, cdad_error *err);

/* The stream's content as doubles, exact to the bit: cdad_stream_state_size(s) of them. Exact: rows, then the
 * upper triangle of G by rows. Incremental and sketch: rows, then see cdad_lowrank_pack, cdad_sketch_pack. The paper's rule: rows, k,
 * the kept share, k singular values, U [k,d]. */
CDAD_MUST_USE cdad_status cdad_stream_state_size(const cdad_stream *s, int64_t *n, cdad_error *err);
void cdad_stream_state_get(const cdad_stream *s, double *state);

/* Replaces the content; `n` doubles of a stream of the same width and method (and rank, of a sketch). CDAD_INVALID
 * when they are not, and the stream is as it was. */
CDAD_MUST_USE cdad_status cdad_stream_state_set(cdad_stream *s, const double *state, int64_t n,
                                                cdad_error *err);

#endif
