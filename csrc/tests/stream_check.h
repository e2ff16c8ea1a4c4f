/* What the tests of streams share: features, states, and what a basis must be. */
#ifndef CDAD_TESTS_STREAM_CHECK_H
#define CDAD_TESTS_STREAM_CHECK_H

#include <math.h>

#include "base/blas.h"
#include "base/philox.h"
#include "continual/linalg.h"
#include "continual/stream.h"
#include "check.h"

static inline float *normal(int64_t n, uint64_t stream) {
    float *x = floats(n);
    cdad_random_normal(x, n, 7, stream, 0);
    return x;
}

/* X [rows,d] of rank `rank`, the spread of its directions falling by `decay` from each to the next. */
static inline float *low_rank(int64_t rows, int64_t d, int64_t rank, float decay, uint64_t stream) {
    float *X = floats(rows * d), *left = normal(rows * rank, stream),
          *right = normal(rank * d, stream + 1000);
    for (int64_t i = 0; i < rows; i++) {
        float scale = 1;
        for (int64_t r = 0; r < rank; r++, scale *= decay)
            for (int64_t j = 0; j < d; j++)
                X[i * d + j] += scale * left[i * rank + r] * right[r * d + j];
    }
    cdad_free(left);
    cdad_free(right);
    return X;
}

static inline cdad_mat dense(const float *X, int64_t d) { return (cdad_mat){.data = X, .rs = d, .cs = 1}; }

static inline cdad_stream *new_stream(int64_t d, cdad_stream_method method, double gamma) {
    cdad_stream_plan plan;
    cdad_stream *s;
    CHECK_OK(cdad_stream_plan_make(&plan, d, method, gamma, NULL, err));
    CHECK_OK(cdad_stream_open(&s, &plan, err));
    return s;
}

static inline double *state_of(const cdad_stream *s, int64_t *n) {
    void *state;
    CHECK_OK(cdad_stream_state_size(s, n, err));
    CHECK_OK(cdad_alloc(&state, *n * (int64_t)sizeof(double), err));
    cdad_stream_state_get(s, state);
    return state;
}

/* tolerance: of the largest value, but the first two, counts and totals, which are much larger. */
static inline int same_state(const cdad_stream *a, const cdad_stream *b, double tolerance) {
    int64_t n, m;
    double *x = state_of(a, &n), *y = state_of(b, &m), largest = 0, off = 0;
    for (int64_t i = 2; i < n && n == m; i++) {
        largest = fmax(largest, fabs(x[i]));
        off = fmax(off, fabs(x[i] - y[i]));
    }
    const int same = n == m && x[0] == y[0] && (n < 2 || fabs(x[1] - y[1]) <= tolerance * fabs(x[1])) && off <= tolerance * largest;
    cdad_free(x);
    cdad_free(y);
    return same;
}

static inline cdad_stream_energy energies_of(const cdad_stream *s, const cdad_context *ctx) {
    cdad_stream_energy e = {0};
    CHECK_OK(cdad_stream_energies(s, ctx, &e, err));
    return e;
}

/* max |U^T U - I| over U [d,k] */
static inline double orthonormality(const float *U, int64_t d, int64_t k) {
    double off = 0;
    for (int64_t a = 0; a < k; a++)
        for (int64_t b = a; b < k; b++) {
            double dot = 0;
            for (int64_t i = 0; i < d; i++)
                dot += (double)U[i * k + a] * (double)U[i * k + b];
            off = fmax(off, fabs(dot - (a == b)));
        }
    return off;
}

/* Share of X's energy inside the first `use` columns of U [d,k]. */
static inline double energy_share(const float *X, int64_t rows, int64_t d, const float *U, int64_t k, int64_t use) {
    double inside = 0, total = 0;
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t a = 0; a < use; a++) {
            double dot = 0;
            for (int64_t j = 0; j < d; j++)
                dot += (double)X[i * d + j] * (double)U[j * k + a];
            inside += dot * dot;
        }
        for (int64_t j = 0; j < d; j++)
            total += (double)X[i * d + j] * (double)X[i * d + j];
    }
    return inside / total;
}

/* X^T X in double. */
static inline double *gram_of(const float *X, int64_t rows, int64_t d) {
    double *G = doubles(d * d), *wide = doubles(rows * d);
    for (int64_t i = 0; i < rows * d; i++)
        wide[i] = (double)X[i];
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, (int)d, (int)d, (int)rows, 1, wide, (int)d, wide, (int)d, 0, G,
                (int)d);
    cdad_free(wide);
    return G;
}

/* Share of X's energy inside U [d,k]. */
static inline double share_kept(const float *X, int64_t rows, int64_t d, const float *U, int64_t k) {
    double *wide = doubles(rows * d + d * k), *basis = wide + rows * d, *inside = doubles(rows * k), total = 0, kept = 0;
    for (int64_t i = 0; i < rows * d; i++) {
        wide[i] = (double)X[i];
        total += wide[i] * wide[i];
    }
    for (int64_t i = 0; i < d * k; i++)
        basis[i] = (double)U[i];
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)k, (int)d, 1, wide, (int)d, basis, (int)k, 0,
                inside, (int)k);
    for (int64_t i = 0; i < rows * k; i++)
        kept += inside[i] * inside[i];
    cdad_free(wide);
    cdad_free(inside);
    return kept / total;
}

/* The eigenvalues of G [d,d], descending; G becomes the eigenvectors, a column each. */
static inline double *decompose(double *G, int64_t d) {
    cdad_eigen eigen;
    double *V = doubles(d * d), *values = doubles(d);
    CHECK_OK(cdad_eigen_init(&eigen, G, d, err));
    CHECK_OK(cdad_eigen_vectors(&eigen, d, V, err));
    memcpy(values, eigen.values, (size_t)d * sizeof *values);
    memcpy(G, V, (size_t)(d * d) * sizeof *V);
    cdad_eigen_reset(&eigen);
    cdad_free(V);
    return values;
}

static int stop_at_poll; /* the poll that says stop */

static inline int count_down(void *arg) {
    (void)arg;
    return --stop_at_poll == 0;
}

/* Runs `call` with its first allocation failing, then its second, ... until it needs no more. */
#define EACH_ALLOCATION_FAILS(call, after_failure)                              \
    do {                                                                        \
        cdad_status s_ = CDAD_NO_MEMORY;                                        \
        for (int64_t i_ = 1; s_ == CDAD_NO_MEMORY && i_ < 99; i_++) {           \
            cdad_alloc_fail_after(i_);                                          \
            s_ = (call);                                                        \
            cdad_alloc_fail_after(0);                                           \
            if (s_ == CDAD_NO_MEMORY)                                           \
                CHECK(after_failure, "allocation %" PRId64 " left traces", i_); \
        }                                                                       \
        CHECK(s_ == CDAD_OK, "status %d", s_);                                  \
    } while (0)

#endif
