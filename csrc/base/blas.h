/* CBLAS and LAPACKE under their plain names, from whichever OpenBLAS the build chose.
 *
 * The library of scipy-openblas32 (CDAD_BLAS_SCIPY) puts `scipy_` before every symbol, so that it can live in
 * one process with other copies of OpenBLAS; what the core calls is mapped here, one function a line.
 * Integers are 32 bits wide: callers bound their dimensions before they narrow them to lapack_int. */
#ifndef CDAD_BASE_BLAS_H
#define CDAD_BASE_BLAS_H

#include <cblas.h>
#include <lapacke.h>

#undef I /* <complex.h>, which the headers above include, takes this name */

_Static_assert(sizeof(blasint) == 4 && sizeof(lapack_int) == 4, "an OpenBLAS with 32-bit integers is needed");

#ifdef CDAD_BLAS_SCIPY
#define cblas_dgemm scipy_cblas_dgemm
#define cblas_dswap scipy_cblas_dswap
#define cblas_dsyrk scipy_cblas_dsyrk
#define cblas_dtrmm scipy_cblas_dtrmm
#define cblas_sgemm scipy_cblas_sgemm
#define cblas_sgemv scipy_cblas_sgemv
#define cblas_ssyrk scipy_cblas_ssyrk
#define LAPACKE_dgeqrf scipy_LAPACKE_dgeqrf
#define LAPACKE_dgesdd scipy_LAPACKE_dgesdd
#define LAPACKE_dorgqr scipy_LAPACKE_dorgqr
#define LAPACKE_dormqr scipy_LAPACKE_dormqr
#define LAPACKE_dormtr scipy_LAPACKE_dormtr
#define LAPACKE_dpotrf scipy_LAPACKE_dpotrf
#define LAPACKE_dstemr scipy_LAPACKE_dstemr
#define LAPACKE_dsteqr scipy_LAPACKE_dsteqr
#define LAPACKE_dsterf scipy_LAPACKE_dsterf
#define LAPACKE_dsyevd scipy_LAPACKE_dsyevd
#define LAPACKE_dsytrd scipy_LAPACKE_dsytrd
#define LAPACKE_dtrtri scipy_LAPACKE_dtrtri
#define LAPACKE_sgeqrf scipy_LAPACKE_sgeqrf
#define LAPACKE_sgesdd scipy_LAPACKE_sgesdd
#define LAPACKE_sgesvd scipy_LAPACKE_sgesvd
#define LAPACKE_sorgqr scipy_LAPACKE_sorgqr
#define LAPACKE_ssyevd scipy_LAPACKE_ssyevd
#define LAPACKE_ssyevr scipy_LAPACKE_ssyevr
#define openblas_get_config scipy_openblas_get_config
#define openblas_get_corename scipy_openblas_get_corename
#define openblas_set_num_threads scipy_openblas_set_num_threads
#endif

#endif
