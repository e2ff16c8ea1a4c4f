/* Checked calls of LAPACK. */
#include "continual/linalg.h"

#include <inttypes.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"

static cdad_status check_info(const char *routine, lapack_int info, cdad_error *err) {
    if (info == 0)
        return CDAD_OK;
    if (info == LAPACK_WORK_MEMORY_ERROR || info == LAPACK_TRANSPOSE_MEMORY_ERROR)
        return cdad_fail(err, CDAD_NO_MEMORY, "%s: no memory for the workspace", routine);
    if (info < 0)
        return cdad_fail(err, CDAD_LAPACK, "%s: argument %d is not valid or not finite", routine, (int)-info);
    return cdad_fail(err, CDAD_LAPACK, "%s: no convergence (info %d)", routine, (int)info);
}

static cdad_status alloc_doubles(double **out, int64_t rows, int64_t cols, cdad_error *err) {
    int64_t count;
    CDAD_TRY(cdad_size_mul(rows, cols, &count, err));
    return cdad_alloc((void **)out, count * (int64_t)sizeof(double), err);
}

/* Eigenvalues of the tridiagonal matrix, ascending, by the fast root-free QL, else by plain QL. */
static cdad_status tridiagonal_values(const cdad_eigen *e, double *off, cdad_error *err) {
    const size_t bytes = (size_t)e->n * sizeof(double);
    memcpy(e->values, e->diag, bytes);
    memcpy(off, e->off, bytes);
    lapack_int info = LAPACKE_dsterf((lapack_int)e->n, e->values, off);
    if (info > 0) {
        memcpy(e->values, e->diag, bytes);
        memcpy(off, e->off, bytes);
        info = LAPACKE_dsteqr(LAPACK_COL_MAJOR, 'N', (lapack_int)e->n, e->values, off, NULL, 1);
    }
    return check_info("eigenvalues (dsterf, dsteqr)", info, err);
}

cdad_status cdad_eigen_init(cdad_eigen *e, double *A, int64_t n, cdad_error *err) {
    cdad_status status;
    double *off = NULL;
    *e = (cdad_eigen){.n = n, .A = A};
    CDAD_TRY_DONE(alloc_doubles(&e->diag, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&e->off, n, 1, err)); /* n - 1 are used; dstemr wants n */
    CDAD_TRY_DONE(alloc_doubles(&e->tau, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&e->values, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&off, n, 1, err));
    e->off[n - 1] = 0;
    CDAD_TRY_DONE(check_info(
        "tridiagonal reduction (dsytrd)",
        LAPACKE_dsytrd(LAPACK_COL_MAJOR, 'U', (lapack_int)n, A, (lapack_int)n, e->diag, e->off, e->tau),
        err));
    CDAD_TRY_DONE(tridiagonal_values(e, off, err));
    for (int64_t i = 0; i < n / 2; i++) {
        const double small = e->values[i];
        e->values[i] = e->values[n - 1 - i];
        e->values[n - 1 - i] = small;
    }
done:
    cdad_free(off);
    if (status != CDAD_OK)
        cdad_eigen_reset(e);
    return status;
}

void cdad_eigen_reset(cdad_eigen *e) {
    cdad_free(e->diag);
    cdad_free(e->off);
    cdad_free(e->tau);
    cdad_free(e->values);
    *e = (cdad_eigen){0};
}

/* The k largest by MRRR: O(n k). Where they are most of all, all: then eigenvalues come by dqds, much faster than by the
 * bisection that a range of them takes. *found = 0 when it did not deliver. */
static cdad_status vectors_mrrr(const cdad_eigen *e, int64_t k, double *V, int *found, cdad_error *err) {
    cdad_status status;
    const lapack_int n = (lapack_int)e->n;
    const int all = 2 * k > n;
    const int64_t wanted = all ? n : k;
    double *diag = NULL, *off = NULL, *values = NULL, *Z = NULL;
    lapack_int *support = NULL, count = 0, accurate = 1;
    CDAD_TRY_DONE(alloc_doubles(&diag, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&off, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&values, n, 1, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&support, 2 * wanted * (int64_t)sizeof *support, err));
    if (wanted > k)
        CDAD_TRY_DONE(alloc_doubles(&Z, n, n, err));
    memcpy(diag, e->diag, (size_t)n * sizeof *diag);
    memcpy(off, e->off, (size_t)n * sizeof *off);
    const lapack_int info = LAPACKE_dstemr(LAPACK_COL_MAJOR, 'V', all ? 'A' : 'I', n, diag, off, 0, 0,
                                           (lapack_int)(n - wanted + 1), n, &count, values, Z ? Z : V,
                                           /* ldz = */ n, /* nzc = */ (lapack_int)wanted, support, &accurate);
    *found = info == 0 && count == wanted;
    if (info < 0)
        status = check_info("eigenvectors (dstemr)", info, err);
    else if (*found && Z)
        memcpy(V, Z + (n - k) * n, (size_t)(n * k) * sizeof *V);
done:
    cdad_free(diag);
    cdad_free(off);
    cdad_free(values);
    cdad_free(support);
    cdad_free(Z);
    return status;
}

/* All by implicit QL, of which the last k are kept: slower and n x n more memory, but it hardly ever fails.
 */
static cdad_status vectors_ql(const cdad_eigen *e, int64_t k, double *V, cdad_error *err) {
    cdad_status status;
    const int64_t n = e->n;
    double *diag = NULL, *off = NULL, *Z = NULL;
    CDAD_TRY_DONE(alloc_doubles(&diag, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&off, n, 1, err));
    CDAD_TRY_DONE(alloc_doubles(&Z, n, n, err));
    memcpy(diag, e->diag, (size_t)n * sizeof *diag);
    memcpy(off, e->off, (size_t)n * sizeof *off);
    CDAD_TRY_DONE(
        check_info("eigenvectors (dstemr, dsteqr)",
                   LAPACKE_dsteqr(LAPACK_COL_MAJOR, 'I', (lapack_int)n, diag, off, Z, (lapack_int)n), err));
    memcpy(V, Z + (n - k) * n, (size_t)(n * k) * sizeof *V);
done:
    cdad_free(diag);
    cdad_free(off);
    cdad_free(Z);
    return status;
}

cdad_status cdad_eigen_vectors(const cdad_eigen *e, int64_t k, double *V, cdad_error *err) {
    const int64_t n = e->n;
    int found = 0;
    if (k == 0)
        return CDAD_OK;
    CDAD_TRY(vectors_mrrr(e, k, V, &found, err));
    if (!found)
        CDAD_TRY(vectors_ql(e, k, V, err));
    for (int64_t j = 0; j < k / 2; j++) /* ascending -> descending */
        cblas_dswap((lapack_int)n, V + j * n, 1, V + (k - 1 - j) * n, 1);
    return check_info("eigenvectors (dormtr)",
                      LAPACKE_dormtr(LAPACK_COL_MAJOR, 'L', 'U', 'N', (lapack_int)n, (lapack_int)k, e->A,
                                     (lapack_int)n, e->tau, V, (lapack_int)n),
                      err);
}

cdad_status cdad_qr(double *A, int64_t m, int64_t n, double *tau, cdad_error *err) {
    return check_info("QR (dgeqrf)",
                      LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (lapack_int)m, (lapack_int)n, A, (lapack_int)m, tau),
                      err);
}

cdad_status cdad_qr_apply(char side, char trans, const double *A, int64_t k, const double *tau, double *C,
                          int64_t m, int64_t n, cdad_error *err) {
    const lapack_int lda = (lapack_int)(side == 'L' ? m : n);
    return check_info("QR (dormqr)",
                      LAPACKE_dormqr(LAPACK_COL_MAJOR, side, trans, (lapack_int)m, (lapack_int)n,
                                     (lapack_int)k, A, lda, tau, C, (lapack_int)m),
                      err);
}

cdad_status cdad_inverse_cholesky(double *A, int64_t n, int *found, cdad_error *err) {
    lapack_int info = LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'U', (lapack_int)n, A, (lapack_int)n);
    if (info == 0)
        info = LAPACKE_dtrtri(LAPACK_COL_MAJOR, 'U', 'N', (lapack_int)n, A, (lapack_int)n);
    if (info > 0) {
        *found = 0;
        return CDAD_OK;
    }
    return check_info("Cholesky (dpotrf, dtrtri)", info, err);
}

cdad_status cdad_reorthonormalise(float *U, int64_t m, int64_t n, cdad_error *err) {
    cdad_status status;
    double *A = NULL, *Q = NULL, *tau = NULL;
    CDAD_TRY_DONE(alloc_doubles(&A, m, n, err));
    CDAD_TRY_DONE(alloc_doubles(&Q, m, n, err));
    CDAD_TRY_DONE(alloc_doubles(&tau, n, 1, err));
    for (int64_t i = 0; i < m * n; i++)
        A[i] = (double)U[i];
    CDAD_TRY_DONE(cdad_qr(A, m, n, tau, err));
    memset(Q, 0, (size_t)(m * n) * sizeof *Q);
    for (int64_t j = 0; j < n; j++) /* R is the identity but for roundings and signs: Q's columns are U's */
        Q[j + j * m] = 1;
    CDAD_TRY_DONE(cdad_qr_apply('L', 'N', A, n, tau, Q, m, n, err));
    for (int64_t i = 0; i < m * n; i++)
        U[i] = (float)Q[i];
done:
    cdad_free(A);
    cdad_free(Q);
    cdad_free(tau);
    return status;
}

cdad_status cdad_svd_left(float *A, int64_t m, int64_t n, float *square, float *s, float **U,
                          cdad_fill_fn fill, void *arg, cdad_error *err) {
    const int tall = m >= n;
    const lapack_int rows = (lapack_int)m, cols = (lapack_int)n, least = tall ? cols : rows;
    float *rest = NULL; /* sgesvd's unconverged superdiagonal */
    *U = tall ? A : square;
    fill(arg, A);
    lapack_int info =
        LAPACKE_sgesdd(LAPACK_COL_MAJOR, 'O', rows, cols, A, rows, s, square, /* ldu = */ rows, square,
                       /* ldvt = */ least);
    if (info > 0) {
        CDAD_TRY(cdad_alloc((void **)&rest, least * (int64_t)sizeof *rest, err));
        fill(arg, A);
        info = LAPACKE_sgesvd(LAPACK_COL_MAJOR, tall ? 'O' : 'S', 'N', rows, cols, A, rows, s, square, rows,
                              square, least, rest);
        cdad_free(rest);
    }
    return check_info("SVD (sgesdd, sgesvd)", info, err);
}
