/* Growing an orthonormal basis by the energy that lies outside of it. */
#include "continual/basis.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "continual/linalg.h"

static const double ORTHONORMAL_TOLERANCE = 1e-4;

int64_t cdad_energy_rank(const double *energies, int64_t n, double before, double total, double gamma,
                         cdad_rank_rule rule) {
    double sum = before;
    int64_t k = 0;
    if (!(total > 0))
        return 0;
    if (rule == CDAD_RANK_REACH) {
        while (k < n && sum < gamma * total)
            sum += energies[k++];
        return k;
    }
    while (k < n && (sum += energies[k]) < gamma * total)
        k++;
    return k > 0 || n == 0 ? k : 1;
}

/* Householder vectors of a basis: Q's first k columns span it, the others its orthogonal complement. */
static cdad_status factor(const float *U, int64_t d, int64_t k, double **reflectors, double **tau,
                          cdad_error *err) {
    double *A;
    int64_t count;
    CDAD_TRY(cdad_size_mul(d, k, &count, err));
    CDAD_TRY(cdad_alloc((void **)reflectors, count * (int64_t)sizeof **reflectors, err));
    CDAD_TRY(cdad_alloc((void **)tau, k * (int64_t)sizeof **tau, err));
    A = *reflectors;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < k; j++) {
            const float x = U[i * k + j];
            CDAD_FAIL_IF(!isfinite(x), err, CDAD_NOT_FINITE,
                         "basis: row %" PRId64 ", column %" PRId64 " is %g", i, j, (double)x);
            A[i + j * d] = (double)x;
        }
    CDAD_TRY(cdad_qr(A, d, k, *tau, err));
    for (int64_t j = 0; j < k; j++) /* the basis is orthonormal exactly when |R| = I */
        for (int64_t i = 0; i <= j; i++)
            CDAD_FAIL_IF(!(fabs(fabs(A[i + j * d]) - (i == j)) <= ORTHONORMAL_TOLERANCE), err, CDAD_INVALID,
                         "basis: columns %" PRId64 " and %" PRId64
                         " are not orthonormal (off by %.2g, limit %.2g)",
                         i, j, fabs(fabs(A[i + j * d]) - (i == j)), ORTHONORMAL_TOLERANCE);
    return CDAD_OK;
}

static int64_t count_above(const double *energies, int64_t n, double noise) {
    int64_t k = 0;
    while (k < n && energies[k] > noise)
        k++;
    return k;
}

cdad_status cdad_basis_join(const float *U_old, int64_t k_old, const double *V, int64_t added, int64_t d, float **U,
                            int64_t *k, cdad_error *err) {
    int64_t count;
    *k = k_old + added;
    CDAD_TRY(cdad_size_mul(d, *k, &count, err));
    CDAD_TRY(cdad_alloc((void **)U, count * (int64_t)sizeof **U, err));
    for (int64_t i = 0; i < d; i++) {
        float *row = *U + i * *k;
        if (k_old > 0)
            memcpy(row, U_old + i * k_old, (size_t)k_old * sizeof *row);
        for (int64_t j = 0; j < added; j++)
            row[k_old + j] = (float)V[i + j * d];
    }
    return CDAD_OK;
}

cdad_status cdad_basis_extend(double *G, int64_t d, double total, double noise, double gamma, const float *U_old,
                              int64_t k_old, int64_t most, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status;
    const int64_t rest = d - k_old; /* the width of the residual */
    double *reflectors = NULL, *tau = NULL, *V = NULL;
    double kept = 0;
    int64_t added = 0, count;
    cdad_eigen eigen = {0};
    *U = NULL;
    CDAD_FAIL_IF(k_old < 0 || k_old > d, err, CDAD_SHAPE,
                 "old basis: %" PRId64 " columns, expected 0 to %" PRId64, k_old, d);
    if (k_old > 0) {
        CDAD_TRY_DONE(factor(U_old, d, k_old, &reflectors, &tau, err));
        /* In the coordinates of Q the residual is the trailing block of Q^T G Q. */
        CDAD_TRY_DONE(cdad_qr_apply('L', 'T', reflectors, k_old, tau, G, d, d, err));
        CDAD_TRY_DONE(cdad_qr_apply('R', 'N', reflectors, k_old, tau, G, d, d, err));
        for (int64_t i = 0; i < k_old; i++)
            kept += G[i * d + i];
        for (int64_t i = 0; i < rest; i++) /* the block moves to the front; rows only ever move back */
            memmove(G + i * rest, G + (k_old + i) * d + k_old, (size_t)rest * sizeof *G);
    }
    if (rest > 0 && total > 0 && kept < gamma * total) {
        CDAD_TRY_DONE(cdad_eigen_init(&eigen, G, rest, err));
        added = cdad_energy_rank(eigen.values, count_above(eigen.values, rest, noise * total), kept, total, gamma,
                                 CDAD_RANK_REACH);
        added = added < most ? added : most;
        CDAD_TRY_DONE(cdad_size_mul(d, added, &count, err));
        CDAD_TRY_DONE(cdad_alloc_zero((void **)&V, count * (int64_t)sizeof *V, err));
        CDAD_TRY_DONE(cdad_eigen_vectors(&eigen, added, V, err)); /* [rest,added], dense */
        for (int64_t j = added - 1; j >= 0; j--) { /* spread to [d,added], zero in the old coordinates */
            memmove(V + j * d + k_old, V + j * rest, (size_t)rest * sizeof *V);
            memset(V + j * d, 0, (size_t)k_old * sizeof *V);
        }
        if (k_old > 0)
            CDAD_TRY_DONE(cdad_qr_apply('L', 'N', reflectors, k_old, tau, V, d, added, err));
        for (int64_t j = 0; j < added; j++)
            kept += eigen.values[j];
    }
    *energy = total > 0 ? fmin(kept / total, 1) : 1;
    CDAD_TRY_DONE(cdad_basis_join(U_old, k_old, V, added, d, U, k, err));
done:
    cdad_eigen_reset(&eigen);
    cdad_free(V);
    cdad_free(tau);
    cdad_free(reflectors);
    return status;
}

cdad_status cdad_basis_complement(const float *U, int64_t d, int64_t k, float **Q, cdad_error *err) {
    cdad_status status;
    const int64_t rest = d - k;
    double *reflectors = NULL, *tau = NULL, *C = NULL;
    int64_t count;
    *Q = NULL;
    CDAD_FAIL_IF(k < 0 || k >= d, err, CDAD_SHAPE, "basis: %" PRId64 " columns, expected 0 to %" PRId64, k, d - 1);
    CDAD_TRY_DONE(cdad_size_mul(d, rest, &count, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&C, count * (int64_t)sizeof *C, err));
    for (int64_t j = 0; j < rest; j++) /* Q's last columns are its product with the last unit vectors */
        C[j * d + k + j] = 1;
    if (k > 0) {
        CDAD_TRY_DONE(factor(U, d, k, &reflectors, &tau, err));
        CDAD_TRY_DONE(cdad_qr_apply('L', 'N', reflectors, k, tau, C, d, rest, err));
    }
    CDAD_TRY_DONE(cdad_alloc((void **)Q, count * (int64_t)sizeof **Q, err));
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < rest; j++)
            (*Q)[i * rest + j] = (float)C[j * d + i];
done:
    cdad_free(C);
    cdad_free(tau);
    cdad_free(reflectors);
    return status;
}
