/* Streams: one interface to the two ways of accumulating features. */
#include "continual/stream.h"

#include <inttypes.h>
#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "continual/basis.h"
#include "continual/features.h"
#include "continual/gram.h"
#include "continual/isvd.h"
#include "continual/linalg.h"

struct cdad_stream {
    cdad_stream_method method;
    double gamma;
    int64_t d, rows;
    int torn; /* an add was stopped half-way */
    cdad_gram gram;
    cdad_isvd isvd;
};

cdad_status cdad_stream_new(cdad_stream **out, int64_t d, cdad_stream_method method, double gamma,
                            cdad_error *err) {
    *out = NULL;
    CDAD_FAIL_IF(d < 1 || d > CDAD_LINALG_MAX, err, CDAD_SHAPE,
                 "stream: features of width %" PRId64 ", expected 1 to %d", d, CDAD_LINALG_MAX);
    CDAD_FAIL_IF(!(gamma > 0 && gamma <= 1), err, CDAD_INVALID,
                 "stream: energy threshold gamma is %g, expected above 0 and at most 1", gamma);
    CDAD_FAIL_IF(method != CDAD_STREAM_EXACT && method != CDAD_STREAM_ISVD, err, CDAD_INVALID,
                 "stream: method %d is unknown", (int)method);
    cdad_stream *s;
    cdad_status status;
    CDAD_TRY(cdad_alloc_zero((void **)&s, (int64_t)sizeof *s, err));
    s->method = method;
    s->gamma = gamma;
    s->d = d;
    cdad_isvd_init(&s->isvd, d);
    if (method == CDAD_STREAM_EXACT)
        CDAD_TRY_DONE(cdad_gram_init(&s->gram, d, err));
    *out = s;
    return CDAD_OK;
done:
    cdad_stream_free(s);
    return status;
}

void cdad_stream_free(cdad_stream *s) {
    if (!s)
        return;
    cdad_gram_reset(&s->gram);
    cdad_isvd_reset(&s->isvd);
    cdad_free(s);
}

int64_t cdad_stream_width(const cdad_stream *s) { return s->d; }
int64_t cdad_stream_rows(const cdad_stream *s) { return s->rows; }

static cdad_status check_whole(const cdad_stream *s, cdad_error *err) {
    CDAD_FAIL_IF(s->torn, err, CDAD_INVALID,
                 "stream: an add was stopped half-way: begin a new stream or set a saved state");
    return CDAD_OK;
}

static cdad_status check_stop(const cdad_context *ctx, cdad_error *err) {
    CDAD_FAIL_IF(ctx->poll && ctx->poll(ctx->poll_arg), err, CDAD_CANCELLED, "stream: stopped");
    return CDAD_OK;
}

cdad_status cdad_stream_add(cdad_stream *s, const cdad_context *ctx, cdad_mat X, int64_t rows,
                            cdad_error *err) {
    CDAD_TRY(check_whole(s, err));
    CDAD_FAIL_IF(rows < 0, err, CDAD_SHAPE, "stream: %" PRId64 " rows", rows);
    CDAD_TRY(cdad_features_check(ctx, X, rows, s->d, err));
    CDAD_TRY(check_stop(ctx, err));
    if (rows == 0)
        return CDAD_OK;
    if (s->method == CDAD_STREAM_EXACT) {
        const cdad_status status = cdad_gram_add(&s->gram, ctx, X, rows, err);
        s->torn = status == CDAD_CANCELLED;
        CDAD_TRY(status);
    } else {
        CDAD_TRY(cdad_isvd_add(&s->isvd, ctx, X, rows, s->gamma, err));
    }
    s->rows += rows;
    return CDAD_OK;
}

cdad_status cdad_stream_merge(cdad_stream *s, const cdad_stream *other, cdad_error *err) {
    CDAD_TRY(check_whole(s, err));
    CDAD_TRY(check_whole(other, err));
    CDAD_FAIL_IF(s->method != CDAD_STREAM_EXACT || other->method != CDAD_STREAM_EXACT, err, CDAD_INVALID,
                 "stream: only exact streams can be merged");
    CDAD_FAIL_IF(s->d != other->d, err, CDAD_SHAPE,
                 "stream: merging features of width %" PRId64 " into width %" PRId64, other->d, s->d);
    cdad_gram_merge(&s->gram, &other->gram);
    s->rows += other->rows;
    return CDAD_OK;
}

/* *G [d,d]: the Gram matrix, or under the paper's rule that of its directions. */
static cdad_status gram_matrix(const cdad_stream *s, double **G, cdad_error *err) {
    const int64_t d = s->d, k = s->isvd.k;
    double *U = NULL;
    cdad_status status;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)G, d * d * (int64_t)sizeof **G, err));
    if (s->method == CDAD_STREAM_EXACT) {
        cdad_gram_expand(&s->gram, *G);
    } else if (k > 0) {
        CDAD_TRY_DONE(cdad_alloc((void **)&U, k * d * (int64_t)sizeof *U, err));
        for (int64_t i = 0; i < k * d; i++)
            U[i] = (double)s->isvd.U[i];
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, (int)d, (int)d, (int)k, 1, U, (int)d, U, (int)d,
                    0, *G, (int)d);
    }
done:
    cdad_free(U);
    return status;
}

static cdad_status isvd_basis(const cdad_isvd *v, float **U, int64_t *k, double *energy, cdad_error *err) {
    CDAD_TRY(cdad_alloc((void **)U, v->k * v->d * (int64_t)sizeof **U, err));
    for (int64_t i = 0; i < v->d; i++)
        for (int64_t j = 0; j < v->k; j++)
            (*U)[i * v->k + j] = v->U[j * v->d + i];
    *k = v->k;
    *energy = v->share;
    return CDAD_OK;
}

cdad_status cdad_stream_basis(const cdad_stream *s, const cdad_context *ctx, const float *U_old,
                              int64_t k_old, float **U, int64_t *k, double *energy, cdad_error *err) {
    double *G = NULL;
    cdad_status status;
    *U = NULL;
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    if (s->method == CDAD_STREAM_ISVD && k_old == 0) {
        status = isvd_basis(&s->isvd, U, k, energy, err);
    } else {
        CDAD_TRY_DONE(gram_matrix(s, &G, err));
        CDAD_TRY_DONE(cdad_basis_extend(G, s->d, s->gamma, U_old, k_old, U, k, energy, err));
    }
done:
    cdad_free(G);
    return status;
}

cdad_status cdad_stream_share(const cdad_stream *s, const cdad_context *ctx, const float *U, int64_t k,
                              double *energy, cdad_error *err) {
    const double nothing = 1e-300; /* so small a share asks for no direction beside U's */
    double *G = NULL;
    float *same = NULL;
    int64_t n;
    cdad_status status;
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    CDAD_TRY_DONE(gram_matrix(s, &G, err));
    CDAD_TRY_DONE(cdad_basis_extend(G, s->d, nothing, U, k, &same, &n, energy, err));
done:
    cdad_free(G);
    cdad_free(same);
    return status;
}

cdad_status cdad_stream_singular_values(const cdad_stream *s, const cdad_context *ctx, float **values,
                                        int64_t *n, cdad_error *err) {
    const int exact = s->method == CDAD_STREAM_EXACT;
    const int64_t count = !exact ? s->isvd.k : s->rows < s->d ? s->rows : s->d;
    double *G = NULL;
    cdad_eigen eigen = {0};
    cdad_status status;
    *values = NULL;
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    if (exact && count > 0) {
        CDAD_TRY_DONE(gram_matrix(s, &G, err));
        CDAD_TRY_DONE(cdad_eigen_init(&eigen, G, s->d, err));
    }
    CDAD_TRY_DONE(cdad_alloc((void **)values, count * (int64_t)sizeof **values, err));
    for (int64_t i = 0; i < count; i++)
        (*values)[i] = exact ? (float)sqrt(fmax(eigen.values[i], 0)) : s->isvd.values[i];
    *n = count;
done:
    cdad_eigen_reset(&eigen);
    cdad_free(G);
    return status;
}

cdad_status cdad_stream_state_size(const cdad_stream *s, int64_t *n, cdad_error *err) {
    CDAD_TRY(check_whole(s, err));
    *n = s->method == CDAD_STREAM_EXACT ? 1 + s->d * (s->d + 1) / 2 : 3 + s->isvd.k * (s->d + 1);
    return CDAD_OK;
}

void cdad_stream_state_get(const cdad_stream *s, double *state) {
    *state++ = (double)s->rows;
    if (s->method == CDAD_STREAM_EXACT) {
        cdad_gram_pack(&s->gram, state);
        return;
    }
    *state++ = (double)s->isvd.k;
    *state++ = s->isvd.share;
    for (int64_t i = 0; i < s->isvd.k; i++)
        *state++ = (double)s->isvd.values[i];
    for (int64_t i = 0; i < s->isvd.k * s->d; i++)
        *state++ = (double)s->isvd.U[i];
}

static int is_count(double x, double limit) { return x >= 0 && x <= limit && x == floor(x); }

cdad_status cdad_stream_state_set(cdad_stream *s, const double *state, int64_t n, cdad_error *err) {
    const int64_t d = s->d;
    for (int64_t i = 0; i < n; i++)
        CDAD_FAIL_IF(!isfinite(state[i]), err, CDAD_INVALID, "stream state: value %" PRId64 " is %g", i,
                     state[i]);
    CDAD_FAIL_IF(n < 1 || !is_count(state[0], 0x1p53), err, CDAD_INVALID, "stream state: no row count");
    if (s->method == CDAD_STREAM_EXACT) {
        CDAD_FAIL_IF(n != 1 + d * (d + 1) / 2, err, CDAD_INVALID,
                     "stream state: %" PRId64 " values, expected %" PRId64 " for width %" PRId64, n,
                     1 + d * (d + 1) / 2, d);
        cdad_gram_unpack(&s->gram, state + 1);
    } else {
        CDAD_FAIL_IF(n < 3 || !is_count(state[1], (double)d) || n != 3 + (int64_t)state[1] * (d + 1), err,
                     CDAD_INVALID, "stream state: %" PRId64 " values do not hold a basis of width %" PRId64,
                     n, d);
        const int64_t k = (int64_t)state[1];
        CDAD_TRY(cdad_isvd_resize(&s->isvd, k, err));
        s->isvd.share = state[2];
        for (int64_t i = 0; i < k; i++)
            s->isvd.values[i] = (float)state[3 + i];
        for (int64_t i = 0; i < k * d; i++)
            s->isvd.U[i] = (float)state[3 + k + i];
    }
    s->rows = (int64_t)state[0];
    s->torn = 0;
    return CDAD_OK;
}
