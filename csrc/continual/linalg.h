/* Dense factorisations in the form that the bases need: checked calls of LAPACK, with a second algorithm
 * where the first may fail to converge.
 *
 * Matrices are column major with leading dimension = rows; a row-major matrix is read as its transpose. The
 * BLAS library runs in the calling thread alone, so results do not depend on the number of threads. All
 * functions return CDAD_NO_MEMORY when LAPACK finds no workspace and CDAD_LAPACK when none converges. */
#ifndef CDAD_CONTINUAL_LINALG_H
#define CDAD_CONTINUAL_LINALG_H

#include "base/status.h"

/* The widest matrix: its element count and LAPACK's workspaces stay within 32-bit integers. */
#define CDAD_LINALG_MAX 32768

/* A symmetric eigenproblem A = Q T Q^T, T tridiagonal: eigenvalues first, vectors of the largest later. */
typedef struct cdad_eigen {
    int64_t n;
    double *A;                /* [n,n], borrowed: holds Q's reflectors */
    double *diag, *off, *tau; /* T, and the scales of the reflectors */
    double *values;           /* [n], descending */
} cdad_eigen;

/* Reduces A [n,n] (upper triangle in LAPACK's sense; destroyed, must outlive `e`) and finds its eigenvalues.
 * On failure `e` is empty. */
CDAD_MUST_USE cdad_status cdad_eigen_init(cdad_eigen *e, double *A, int64_t n, cdad_error *err);
void cdad_eigen_reset(cdad_eigen *e);

/* V [n,k]: the eigenvectors of the k largest eigenvalues, in their order, orthonormal. 0 <= k <= n. */
CDAD_MUST_USE cdad_status cdad_eigen_vectors(const cdad_eigen *e, int64_t k, double *V, cdad_error *err);

/* A [m,n], m >= n >= 1 -> R in its upper triangle and Q's reflectors below, scales in tau [n]. */
CDAD_MUST_USE cdad_status cdad_qr(double *A, int64_t m, int64_t n, double *tau, cdad_error *err);

/* C [m,n] <- Q C, Q^T C, C Q or C Q^T with Q from cdad_qr(A [m or n, k]). side L or R, trans N or T. */
CDAD_MUST_USE cdad_status cdad_qr_apply(char side, char trans, const double *A, int64_t k, const double *tau,
                                        double *C, int64_t m, int64_t n, cdad_error *err);

/* A [n,n], symmetric, positive definite = R^T R -> R^-1 in its upper triangle; column major. *found = 0: it is not positive
 * definite; else *found stays. */
CDAD_MUST_USE cdad_status cdad_inverse_cholesky(double *A, int64_t n, int *found, cdad_error *err);

/* U [m,n], m >= n, orthonormal to a few roundings -> orthonormal to float32's rounding, same span. */
CDAD_MUST_USE cdad_status cdad_reorthonormalise(float *U, int64_t m, int64_t n, cdad_error *err);

/* Left singular vectors of A [m,n] and its singular values s [min(m,n)], descending. `square` is room for
 * min(m,n)^2 floats. *U [m,min(m,n)] is A when m >= n, else `square`. A is made by fill(arg, A) before each
 * attempt, since one that fails destroys it. */
typedef void (*cdad_fill_fn)(void *arg, float *A);
CDAD_MUST_USE cdad_status cdad_svd_left(float *A, int64_t m, int64_t n, float *square, float *s, float **U,
                                        cdad_fill_fn fill, void *arg, cdad_error *err);

#endif
