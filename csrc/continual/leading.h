/* A basis that reaches an energy threshold, without the whole eigenproblem: for wide features of which a fraction of the
 * directions holds nearly all energy.
 *
 * Random combinations of the features, a block at a time, until what they span holds gamma of the energy; then one step
 * of subspace iteration and the eigenproblem within its span (Rayleigh-Ritz; Halko, Martinsson, Tropp, "Finding structure
 * with randomness", SIAM Review 2011; blocks by their captured energy: Yu, Gu, Li, "Efficient randomized algorithms for
 * the fixed-precision low-rank matrix approximation", SIAM J. Matrix Anal. 2018). Products are float32, on the pool, but that
 * features one by one are rounded to bfloat16 while a span is sought, where cdad_gram_may_round;
 * their cost is some 8 d^2 l, l the width of the span, where a decomposition's 9 d^3 are bound by memory.
 *
 * Of n <= d/2 features the n x n Gram matrix of their products with each other takes G's place. Where checks tell what directions hold beside,
 * directions are sought as if that were a quarter of what is lost; if it turns out to be less, and they do not do, nothing was found.
 *
 * Nothing is estimated but what checks tell: the energy of a direction u is u^T G u, computed, and the sum of those kept reaches gamma or the
 * method says that it did not find. What is approximate is which directions: hardly more than the fewest are needed.
 * float32 leaves energies below some 1e-7 of the largest to chance, which is why gamma is bounded. Random numbers are a
 * function of the shape; bits do not depend on the threads. */
#ifndef CDAD_CONTINUAL_LEADING_H
#define CDAD_CONTINUAL_LEADING_H

#include "continual/factor.h"

/* What the directions are taken of. */
typedef struct cdad_leading_of {
    const float *A; /* features [n,d], which stand for G = A^T A; or G [d,d] itself, both halves, and n = 0 */
    int64_t n, d;
    double total; /* the energy that shares are taken of */
    double lost;  /* of it, what A lacks */
    const cdad_factor *checked; /* NULL; or, of n <= d/2, the factor that A is, whose checks tell what directions hold beside */
} cdad_leading_of;

/* Whether the method is worth trying: of features of which min(n,d), or d of a Gram matrix, is `side`. */
int cdad_leading_applies(int64_t side, double gamma);

/* Eq. 6 as in cdad_basis_extend. *found = 0: more directions than pay are needed, or rounding came in between; *U is NULL
 * then, and what of.checked lets be overwritten may be without its part in the span of U_old [d,k_old], which is orthonormal, as checked
 * before. Polls for a stop. */
CDAD_MUST_USE cdad_status cdad_leading_basis(const cdad_context *ctx, cdad_leading_of of, double gamma,
                                             const float *U_old, int64_t k_old, int64_t most, int *found, float **U,
                                             int64_t *k, double *energy, cdad_error *err);

#endif
