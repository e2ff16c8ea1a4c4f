/* A layer's input features of one task, taken in block by block in bounded memory, and the basis made of
 * them.
 *
 * CDAD_STREAM_EXACT gives what one SVD of all features together would give (to float32's precision, see
 * gram.h); memory 4 d^2 bytes however many images come. CDAD_STREAM_ISVD is the paper's rule (see isvd.h).
 *
 * A stream is not locked: one thread at a time. Only cdad_stream_add uses ctx's pool, so that the bases of
 * several streams may be solved side by side by its tasks. Factorisations do not poll. Features of different
 * tasks go into different streams: the basis of the earlier tasks is given to cdad_stream_basis. */
#ifndef CDAD_CONTINUAL_STREAM_H
#define CDAD_CONTINUAL_STREAM_H

#include "kernels/kernels.h"

typedef enum { CDAD_STREAM_EXACT, CDAD_STREAM_ISVD } cdad_stream_method;

typedef struct cdad_stream cdad_stream;

/* d: width of the feature vectors, 1 to 32768 (CDAD_SHAPE); gamma: share of the energy to keep, in (0, 1]
 * (CDAD_INVALID). *out is NULL on failure. */
CDAD_MUST_USE cdad_status cdad_stream_new(cdad_stream **out, int64_t d, cdad_stream_method method,
                                          double gamma, cdad_error *err);
void cdad_stream_free(cdad_stream *s); /* NULL is allowed */

int64_t cdad_stream_width(const cdad_stream *s);
int64_t cdad_stream_rows(const cdad_stream *s); /* feature vectors taken in so far */

/* Takes in X [rows,d], a matrix or an image still to be unfolded; one call is one block of the paper's rule.
 * Bits do not depend on the number of threads. CDAD_SHAPE: an unfolding of another size; CDAD_NOT_FINITE:
 * names the first NaN or infinity. A failure leaves the stream as it was, but CDAD_CANCELLED may have taken
 * in part of an exact block: the stream then refuses all but cdad_stream_state_set and cdad_stream_free. */
CDAD_MUST_USE cdad_status cdad_stream_add(cdad_stream *s, const cdad_context *ctx, cdad_mat X, int64_t rows,
                                          cdad_error *err);

/* s also holds what `other` holds: exact streams of one width, else CDAD_INVALID / CDAD_SHAPE. */
CDAD_MUST_USE cdad_status cdad_stream_merge(cdad_stream *s, const cdad_stream *other, cdad_error *err);

/* Eq. 6, see cdad_basis_extend: U_old [d,k_old] (NULL when k_old is 0) is kept bit by bit, *U [d,*k] row
 * major is freed by cdad_free, *energy is the share of this stream's energy that *U keeps. Under the paper's
 * rule energies are gone: without U_old the result is its U and the share that the last cut kept; with U_old
 * its directions count as features of equal weight. */
CDAD_MUST_USE cdad_status cdad_stream_basis(const cdad_stream *s, const cdad_context *ctx, const float *U_old,
                                            int64_t k_old, float **U, int64_t *k, double *energy,
                                            cdad_error *err);

/* *energy: the share of this stream's energy that lies in the span of U [d,k], k >= 1. */
CDAD_MUST_USE cdad_status cdad_stream_share(const cdad_stream *s, const cdad_context *ctx, const float *U, int64_t k,
                                            double *energy, cdad_error *err);

/* *values [*n], descending, freed by cdad_free: the singular values of all features together, n = min(rows,
 * d); under the paper's rule those kept from the last block. */
CDAD_MUST_USE cdad_status cdad_stream_singular_values(const cdad_stream *s, const cdad_context *ctx,
                                                      float **values, int64_t *n, cdad_error *err);

/* The stream's content as doubles, exact to the bit: cdad_stream_state_size(s) of them. Exact: rows, then the
 * upper triangle of G by rows. The paper's rule: rows, k, the kept share, k singular values, U [k,d]. */
CDAD_MUST_USE cdad_status cdad_stream_state_size(const cdad_stream *s, int64_t *n, cdad_error *err);
void cdad_stream_state_get(const cdad_stream *s, double *state);

/* Replaces the content; `n` doubles of a stream of the same width and method. CDAD_INVALID when they are not,
 * and the stream is as it was. */
CDAD_MUST_USE cdad_status cdad_stream_state_set(cdad_stream *s, const double *state, int64_t n,
                                                cdad_error *err);

#endif
