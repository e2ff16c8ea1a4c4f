/* The significant representation of a task: the orthonormal basis U of a layer's input features that is
 * protected from later updates, grown from task to task ("One-for-More", CVPR 2025, Eq. 6; Saha et al.,
 * "Gradient Projection Memory", ICLR 2021, Eq. 8-9). */
#ifndef CDAD_CONTINUAL_BASIS_H
#define CDAD_CONTINUAL_BASIS_H

#include "base/status.h"

/* Which number of directions an energy threshold gamma asks for. */
typedef enum {
    CDAD_RANK_REACH, /* the smallest k whose share of the energy is >= gamma: the paper's text */
    CDAD_RANK_BELOW  /* the largest k whose share is < gamma, at least 1: the published code; one fewer */
} cdad_rank_rule;

/* The k of `rule` for n energies >= 0, descending, on top of `before`, out of `total`. 0 when total is 0. */
int64_t cdad_energy_rank(const double *energies, int64_t n, double before, double total, double gamma,
                         cdad_rank_rule rule);

/* Eq. 6: keeps U_old [d,k_old] bit by bit as the first columns and adds the fewest orthonormal directions of the
 * residual (I - U U^T) G (I - U U^T) that bring the share of G's energy inside the joint basis to >= gamma.
 *
 * G [d,d] symmetric, positive semi-definite up to rounding; destroyed. total: the energy that shares are taken of,
 * G's trace or more where G is known to lack some. noise: the share of it below which an eigenvalue is rounding: for
 * a Gram matrix of float32 products, whose errors' norm is about that, FLT_EPSILON / sqrt(d). U_old may be NULL when
 * k_old is 0. *U [d,*k] row major, k_old <= *k <= d, freed by cdad_free; NULL on failure. At most `most` directions
 * are added. *energy: the share that *U keeps (1 when G is zero, which adds nothing). Directions of less energy than
 * the noise are not added, so *energy may stay below a gamma that is within noise * d of 1: 1.2e-7 sqrt(d) after
 * float32 products. CDAD_SHAPE: k_old not in [0,d]; CDAD_NOT_FINITE: a NaN or infinity in U_old; CDAD_INVALID: U_old
 * is not orthonormal to 1e-4. */
CDAD_MUST_USE cdad_status cdad_basis_extend(double *G, int64_t d, double total, double noise, double gamma,
                                            const float *U_old, int64_t k_old, int64_t most, float **U, int64_t *k,
                                            double *energy, cdad_error *err);

/* *U [d,*k], *k = k_old + added, row major, freed by cdad_free: U_old [d,k_old] bit by bit, then the columns of V [d,added],
 * column major, as float32. */
CDAD_MUST_USE cdad_status cdad_basis_join(const float *U_old, int64_t k_old, const double *V, int64_t added, int64_t d,
                                          float **U, int64_t *k, cdad_error *err);

/* *Q [d,d-k] row major, orthonormal: the complement of U [d,k], 0 <= k < d, so that I - U U^T = Q Q^T. Freed by
 * cdad_free; NULL on failure. Errors of U as above. */
CDAD_MUST_USE cdad_status cdad_basis_complement(const float *U, int64_t d, int64_t k, float **Q, cdad_error *err);

#endif
