/* Features of low rank as a factor: rows of floats A [n,d] that stand for the Gram matrix A^T A, or nearly so.
 *
 * Gram matrices of the factor's smaller side are summed in double from products in double, so singular values down
 * to 1e-8 of the largest survive: as far as float32 features hold them. (Demmel, Veselic, "Jacobi's method is more
 * accurate than QR", SIAM J. Matrix Anal. 1992, for why rounding the rows of S U^T to float32 keeps small ones.)
 *
 * Where cdad_factor_may_narrow of its threshold, a stream that is factored again and again does so in products of float32,
 * on the pool: its energies are off by some 1e-7 of the total, less than a thousandth of what gamma leaves. */
#ifndef CDAD_CONTINUAL_FACTOR_H
#define CDAD_CONTINUAL_FACTOR_H

#include "kernels/kernels.h"

/* The energy below which a direction is float32's rounding of the others, of the total. */
#define CDAD_FACTOR_NOISE 0x1p-46 /* FLT_EPSILON^2 */

/* Of a Gram matrix G that A^T A lies below. */
typedef struct cdad_factor {
    const float *A; /* [n,d] */
    int64_t n, d;
    double lost; /* the trace of G - A^T A */
    /* [checks,d], where checks > 0: vectors w whose w w^T have the identity as the expectation of their sum, independent of A, and
     * their products with G - A^T A. */
    const float *tests, *rests;
    int64_t checks;
    float *spent; /* A where it may be overwritten, or NULL */
} cdad_factor;

/* Whether products of float32 do for a basis of gamma. */
int cdad_factor_may_narrow(double gamma);

/* M [least,least], least = min(n,d): A A^T when n <= d, else A^T A. Work is cut by shape and polls for a stop. narrow: products
 * are of float32. */
CDAD_MUST_USE cdad_status cdad_factor_gram(const cdad_context *ctx, const float *A, int64_t n, int64_t d, int narrow, double *M,
                                           cdad_error *err);

/* CDAD_NOT_FINITE or CDAD_INVALID: U [d,k] holds no finite values with orthonormal columns (to 1e-4). */
CDAD_MUST_USE cdad_status cdad_factor_check_basis(const cdad_context *ctx, const float *U, int64_t d, int64_t k,
                                                  cdad_error *err);

/* A[0..k) = W^T A in place, W [n,k] column major, k <= n <= d; narrow: by products of float32. CDAD_NO_MEMORY leaves A as it was, CDAD_CANCELLED may
 * not: *begun says whether A has changed. */
CDAD_MUST_USE cdad_status cdad_factor_rotate(const cdad_context *ctx, float *A, int64_t n, int64_t d, const double *W,
                                             int64_t k, int narrow, int *begun, cdad_error *err);

/* Eq. 6 (see cdad_basis_extend) of G. Shares are taken of |A|^2 + lost: not of an
 * energy summed before A was rounded to float32, which is off by more than the small directions have. A direction u counts for
 * |A u|^2, or with checks, n <= d, for an estimate of u^T G u: that, and the sum of (w^T u)(u^T (G - A^T A) w). Of n < d rows
 * no [d,d] matrix is made: the residual's directions come from its n x n Gram matrix. Directions below
 * CDAD_FACTOR_NOISE are not added. */
CDAD_MUST_USE cdad_status cdad_factor_basis(const cdad_context *ctx, const cdad_factor *f, double gamma, const float *U_old,
                                            int64_t k_old, int64_t most, float **U, int64_t *k, double *energy,
                                            cdad_error *err);

/* more[j], j < k: what the checks say that direction j, row j of V [k,d], holds beside |A v|^2. */
CDAD_MUST_USE cdad_status cdad_factor_rests(const cdad_factor *f, const float *V, int64_t k, double *more, cdad_error *err);

/* *energy: the share of G's energy in the span of U [d,k], orthonormal, told as above; 1 where there is none. */
CDAD_MUST_USE cdad_status cdad_factor_share(const cdad_factor *f, const float *U, int64_t k, double *energy, cdad_error *err);

#endif
