/* Streams: one interface to the ways of accumulating features. */
#include "continual/stream.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "continual/basis.h"
#include "continual/factor.h"
#include "continual/features.h"
#include "continual/gram.h"
#include "continual/isvd.h"
#include "continual/leading.h"
#include "continual/linalg.h"
#include "continual/lowrank.h"
#include "continual/sketch.h"

/* Of what gamma leaves, an incremental stream drops one part in 4. That is the tail far beyond the directions of a
 * basis, of which there were 0.5 % more than of one part in 16, in a third of the time. */
enum { DROPPED_SHARE = 4 };

struct cdad_stream {
    cdad_stream_plan plan;
    int64_t rows;
    int torn; /* an add was stopped half-way */
    cdad_gram gram;
    cdad_isvd isvd;
    cdad_lowrank lowrank;
    cdad_sketch sketch;
};

static int is(const cdad_stream *s, cdad_stream_method method) { return s->plan.method == method; }
static int has_factor(const cdad_stream *s) { return is(s, CDAD_STREAM_INCREMENTAL) || is(s, CDAD_STREAM_SKETCH); }

/* What a stream that has_factor stands for; a sketch's is made here, and freed by free_factor. */
static cdad_status factor_of(const cdad_stream *s, const cdad_context *ctx, cdad_factor *f, cdad_error *err) {
    if (is(s, CDAD_STREAM_SKETCH))
        return cdad_sketch_factor(&s->sketch, ctx, f, err);
    *f = cdad_lowrank_factor(&s->lowrank);
    return CDAD_OK;
}

static void free_factor(const cdad_stream *s, cdad_factor *f) {
    if (is(s, CDAD_STREAM_SKETCH))
        cdad_sketch_factor_free(f);
}

/* Where what was added on a device is, or NULL. */
static const cdad_device *elsewhere(const cdad_stream *s) {
    return s->gram.there ? s->gram.device : s->sketch.there ? s->sketch.device : NULL;
}

cdad_status cdad_stream_open(cdad_stream **out, const cdad_stream_plan *plan, cdad_error *err) {
    cdad_stream *s;
    cdad_status status;
    *out = NULL;
    CDAD_TRY(cdad_alloc_zero((void **)&s, (int64_t)sizeof *s, err));
    s->plan = *plan;
    cdad_isvd_init(&s->isvd, plan->d);
    cdad_lowrank_init(&s->lowrank, plan->d, plan->wait, (1 - plan->gamma) / DROPPED_SHARE, cdad_factor_may_narrow(plan->gamma));
    if (plan->method == CDAD_STREAM_EXACT)
        CDAD_TRY_DONE(cdad_gram_init(&s->gram, plan->d, plan->rounding, err));
    if (plan->method == CDAD_STREAM_SKETCH)
        CDAD_TRY_DONE(cdad_sketch_init(&s->sketch, plan->d, plan->rank, plan->gamma, err));
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
    cdad_lowrank_reset(&s->lowrank);
    cdad_sketch_reset(&s->sketch);
    cdad_free(s);
}

const cdad_stream_plan *cdad_stream_planned(const cdad_stream *s) { return &s->plan; }
int64_t cdad_stream_width(const cdad_stream *s) { return s->plan.d; }
int64_t cdad_stream_rows(const cdad_stream *s) { return s->rows; }

static cdad_status check_whole(const cdad_stream *s, cdad_error *err) {
    CDAD_FAIL_IF(s->torn || s->lowrank.torn, err, CDAD_INVALID,
                 "stream: an add was stopped half-way: begin a new stream or set a saved state");
    return CDAD_OK;
}

/* What is computed of all features is computed on the host. */
static cdad_status check_host(const cdad_stream *s, const cdad_context *ctx, cdad_error *err) {
    CDAD_FAIL_IF(ctx->device, err, CDAD_INVALID, "stream: it lies on the host, and cannot work on %s", ctx->device->name);
    CDAD_FAIL_IF(elsewhere(s), err, CDAD_INVALID, "stream: its features are still on %s", elsewhere(s)->name);
    return CDAD_OK;
}

cdad_status cdad_stream_energies(const cdad_stream *s, const cdad_context *ctx, cdad_stream_energy *out, cdad_error *err) {
    cdad_factor f;
    CDAD_TRY(check_host(s, ctx, err));
    CDAD_TRY(check_whole(s, err));
    if (is(s, CDAD_STREAM_EXACT)) {
        *out = (cdad_stream_energy){.total = cdad_gram_trace(&s->gram)};
    } else if (is(s, CDAD_STREAM_ISVD)) {
        *out = (cdad_stream_energy){.total = NAN, .lost = NAN, .spectral = NAN};
    } else if (is(s, CDAD_STREAM_INCREMENTAL)) {
        const cdad_lowrank *v = &s->lowrank;
        *out = (cdad_stream_energy){.total = v->total, .lost = v->loss.energy, .spectral = v->loss.spectral};
    } else {
        CDAD_TRY(factor_of(s, ctx, &f, err));
        *out = (cdad_stream_energy){.total = s->sketch.total, .lost = f.lost, .spectral = f.lost};
        free_factor(s, &f);
    }
    return CDAD_OK;
}

int cdad_stream_takes(const cdad_stream_plan *plan, const cdad_device *device) {
    const cdad_kernels *k = device ? device->kernels : NULL;
    return !k || (plan->method == CDAD_STREAM_EXACT && k->gram_add) || (plan->method == CDAD_STREAM_SKETCH && k->sketch_add);
}

cdad_status cdad_stream_settle(cdad_stream *s, cdad_error *err) {
    const cdad_status status =
        is(s, CDAD_STREAM_SKETCH) ? cdad_sketch_settle(&s->sketch, err) : cdad_gram_settle(&s->gram, err);
    s->torn |= status != CDAD_OK && status != CDAD_NO_MEMORY;
    return status;
}

static cdad_status check_stop(const cdad_context *ctx, cdad_error *err) {
    CDAD_FAIL_IF(ctx->poll && ctx->poll(ctx->poll_arg), err, CDAD_CANCELLED, "stream: stopped");
    return CDAD_OK;
}

cdad_status cdad_stream_add(cdad_stream *s, const cdad_context *ctx, cdad_mat X, int64_t rows,
                            cdad_error *err) {
    CDAD_FAIL_IF(!cdad_stream_takes(&s->plan, ctx->device), err, CDAD_INVALID, "stream: it lies on the host, and cannot work on %s",
                 ctx->device->name);
    CDAD_TRY(check_whole(s, err));
    CDAD_FAIL_IF(rows < 0, err, CDAD_SHAPE, "stream: %" PRId64 " rows", rows);
    CDAD_TRY(cdad_features_check(ctx, X, rows, s->plan.d, err));
    CDAD_TRY(check_stop(ctx, err));
    if (rows == 0)
        return CDAD_OK;
    if (s->plan.method == CDAD_STREAM_EXACT) {
        const cdad_status status = cdad_gram_add(&s->gram, ctx, X, rows, err);
        s->torn = status == CDAD_CANCELLED || s->gram.spoiled;
        CDAD_TRY(status);
    } else if (is(s, CDAD_STREAM_SKETCH)) {
        int begun;
        const cdad_status status = cdad_sketch_add(&s->sketch, ctx, X, rows, &begun, err);
        s->torn = (status == CDAD_CANCELLED && begun) || s->sketch.spoiled;
        CDAD_TRY(status);
    } else if (is(s, CDAD_STREAM_INCREMENTAL)) {
        CDAD_TRY(cdad_lowrank_add(&s->lowrank, ctx, X, rows, err));
    } else {
        CDAD_TRY(cdad_isvd_add(&s->isvd, ctx, X, rows, s->plan.gamma, err));
    }
    s->rows += rows;
    return CDAD_OK;
}

cdad_status cdad_stream_merge(cdad_stream *s, const cdad_context *ctx, const cdad_stream *other, cdad_error *err) {
    CDAD_TRY(check_host(s, ctx, err));
    CDAD_TRY(check_host(other, ctx, err));
    CDAD_TRY(check_whole(s, err));
    CDAD_TRY(check_whole(other, err));
    CDAD_FAIL_IF(s == other, err, CDAD_INVALID, "stream: merging a stream with itself");
    CDAD_FAIL_IF(s->plan.method != other->plan.method || is(s, CDAD_STREAM_ISVD), err, CDAD_INVALID,
                 "stream: two exact streams can be merged, two incremental ones or two sketches, no others");
    CDAD_FAIL_IF(s->plan.d != other->plan.d, err, CDAD_SHAPE,
                 "stream: merging features of width %" PRId64 " into width %" PRId64, other->plan.d, s->plan.d);
    CDAD_FAIL_IF(s->plan.rank != other->plan.rank, err, CDAD_SHAPE, "stream: merging a sketch of rank %" PRId64 " into rank %" PRId64,
                 other->plan.rank, s->plan.rank);
    CDAD_TRY(check_stop(ctx, err));
    if (is(s, CDAD_STREAM_EXACT))
        cdad_gram_merge(&s->gram, &other->gram);
    else if (is(s, CDAD_STREAM_SKETCH))
        cdad_sketch_merge(&s->sketch, &other->sketch);
    else
        CDAD_TRY(cdad_lowrank_merge(&s->lowrank, ctx, &other->lowrank, err));
    s->rows += other->rows;
    return CDAD_OK;
}

/* *G [d,d]: the Gram matrix, or under the paper's rule that of its directions. */
static cdad_status gram_matrix(const cdad_stream *s, double **G, cdad_error *err) {
    const int64_t d = s->plan.d, k = s->isvd.k;
    double *U = NULL;
    cdad_status status;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)G, d * d * (int64_t)sizeof **G, err));
    if (s->plan.method == CDAD_STREAM_EXACT) {
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

/* Eq. 6 of an exact stream by its leading directions alone, where they are few enough. */
static cdad_status leading_basis(const cdad_stream *s, const cdad_context *ctx, const float *U_old, int64_t k_old,
                                 int *found, float **U, int64_t *k, double *energy, cdad_error *err) {
    cdad_status status;
    const int64_t d = s->plan.d;
    cdad_leading_of of = {.d = d, .total = cdad_gram_trace(&s->gram)};
    float *G = NULL;
    if (k_old > 0)
        CDAD_TRY_DONE(cdad_factor_check_basis(ctx, U_old, d, k_old, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&G, d * d * (int64_t)sizeof *G, err));
    cdad_gram_expand_narrow(&s->gram, ctx, G);
    of.A = G;
    CDAD_TRY_DONE(cdad_leading_basis(ctx, of, s->plan.gamma, U_old, k_old, d, found, U, k, energy, err));
done:
    cdad_free(G);
    return status;
}

cdad_status cdad_stream_basis(const cdad_stream *s, const cdad_context *ctx, const float *U_old,
                              int64_t k_old, float **U, int64_t *k, double *energy, cdad_error *err) {
    const int64_t d = s->plan.d;
    double *G = NULL, total = 0;
    cdad_factor f = {0};
    cdad_status status;
    *U = NULL;
    CDAD_TRY_DONE(check_host(s, ctx, err));
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    if (has_factor(s)) {
        CDAD_TRY_DONE(factor_of(s, ctx, &f, err));
        status = cdad_factor_basis(ctx, &f, s->plan.gamma, U_old, k_old, s->plan.rank, U, k, energy, err);
    } else if (s->plan.method == CDAD_STREAM_ISVD && k_old == 0) {
        status = isvd_basis(&s->isvd, U, k, energy, err);
    } else {
        int found = 0;
        if (s->plan.method == CDAD_STREAM_EXACT && k_old >= 0 && cdad_leading_applies(d - k_old, s->plan.gamma))
            CDAD_TRY_DONE(leading_basis(s, ctx, U_old, k_old, &found, U, k, energy, err));
        if (found)
            goto done;
        CDAD_TRY_DONE(gram_matrix(s, &G, err));
        for (int64_t i = 0; i < d; i++)
            total += G[i * d + i];
        CDAD_TRY_DONE(cdad_basis_extend(G, d, total, (double)FLT_EPSILON / sqrt((double)d), s->plan.gamma, U_old, k_old, d,
                                        U, k, energy, err));
    }
done:
    free_factor(s, &f);
    cdad_free(G);
    return status;
}

cdad_status cdad_stream_share(const cdad_stream *s, const cdad_context *ctx, const float *U, int64_t k,
                              double *energy, cdad_error *err) {
    const double nothing = 1e-300; /* so small a share asks for no direction beside U's */
    const int64_t d = s->plan.d;
    double *G = NULL, total = 0;
    float *same = NULL;
    int64_t n;
    cdad_factor f = {0};
    cdad_status status;
    CDAD_TRY_DONE(check_host(s, ctx, err));
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    if (s->plan.method == CDAD_STREAM_ISVD) {
        status = cdad_fail(err, CDAD_INVALID, "the paper's rule keeps no energies: no share can be told");
        goto done;
    }
    if (has_factor(s)) {
        CDAD_TRY_DONE(factor_of(s, ctx, &f, err));
        status = cdad_factor_share(&f, U, k, energy, err);
        goto done;
    }
    CDAD_TRY_DONE(gram_matrix(s, &G, err));
    for (int64_t i = 0; i < d; i++)
        total += G[i * d + i];
    CDAD_TRY_DONE(cdad_basis_extend(G, d, total, 0, nothing, U, k, 0, &same, &n, energy, err));
done:
    free_factor(s, &f);
    cdad_free(G);
    cdad_free(same);
    return status;
}

cdad_status cdad_stream_singular_values(const cdad_stream *s, const cdad_context *ctx, float **values,
                                        int64_t *n, cdad_error *err) {
    const int64_t d = s->plan.d;
    const int stored = s->plan.method == CDAD_STREAM_ISVD;
    int64_t count = stored ? s->isvd.k : s->rows < d ? s->rows : d;
    double *G = NULL;
    cdad_eigen eigen = {0};
    cdad_factor f = {0};
    cdad_status status;
    *values = NULL;
    CDAD_TRY_DONE(check_host(s, ctx, err));
    CDAD_TRY_DONE(check_whole(s, err));
    CDAD_TRY_DONE(check_stop(ctx, err));
    if (has_factor(s) && count > 0) {
        CDAD_TRY_DONE(factor_of(s, ctx, &f, err));
        const int64_t side = f.n < d ? f.n : d;
        count = count < side ? count : side;
    }
    if (has_factor(s) && count > 0) {
        const int64_t side = f.n < d ? f.n : d;
        CDAD_TRY_DONE(cdad_alloc((void **)&G, side * side * (int64_t)sizeof *G, err));
        CDAD_TRY_DONE(cdad_factor_gram(ctx, f.A, f.n, d, 0, G, err));
        CDAD_TRY_DONE(cdad_eigen_init(&eigen, G, side, err));
    } else if (!stored && count > 0) {
        CDAD_TRY_DONE(gram_matrix(s, &G, err));
        CDAD_TRY_DONE(cdad_eigen_init(&eigen, G, d, err));
    }
    CDAD_TRY_DONE(cdad_alloc((void **)values, count * (int64_t)sizeof **values, err));
    for (int64_t i = 0; i < count; i++)
        (*values)[i] = stored ? s->isvd.values[i] : (float)sqrt(fmax(eigen.values[i], 0));
    *n = count;
done:
    cdad_eigen_reset(&eigen);
    free_factor(s, &f);
    cdad_free(G);
    return status;
}

cdad_status cdad_stream_state_size(const cdad_stream *s, int64_t *n, cdad_error *err) {
    CDAD_FAIL_IF(elsewhere(s), err, CDAD_INVALID, "stream: its features are still on %s", elsewhere(s)->name);
    CDAD_TRY(check_whole(s, err));
    const int64_t d = s->plan.d;
    *n = is(s, CDAD_STREAM_EXACT)         ? 1 + d * (d + 1) / 2
         : is(s, CDAD_STREAM_SKETCH)      ? 1 + cdad_sketch_packed(&s->sketch)
         : is(s, CDAD_STREAM_INCREMENTAL) ? 1 + cdad_lowrank_packed(&s->lowrank)
                                          : 3 + s->isvd.k * (d + 1);
    return CDAD_OK;
}

void cdad_stream_state_get(const cdad_stream *s, double *state) {
    *state++ = (double)s->rows;
    if (s->plan.method == CDAD_STREAM_EXACT) {
        cdad_gram_pack(&s->gram, state);
        return;
    }
    if (is(s, CDAD_STREAM_SKETCH)) {
        cdad_sketch_pack(&s->sketch, state);
        return;
    }
    if (is(s, CDAD_STREAM_INCREMENTAL)) {
        cdad_lowrank_pack(&s->lowrank, state);
        return;
    }
    *state++ = (double)s->isvd.k;
    *state++ = s->isvd.share;
    for (int64_t i = 0; i < s->isvd.k; i++)
        *state++ = (double)s->isvd.values[i];
    for (int64_t i = 0; i < s->isvd.k * s->plan.d; i++)
        *state++ = (double)s->isvd.U[i];
}

static int is_count(double x, double limit) { return x >= 0 && x <= limit && x == floor(x); }

cdad_status cdad_stream_state_set(cdad_stream *s, const double *state, int64_t n, cdad_error *err) {
    const int64_t d = s->plan.d;
    for (int64_t i = 0; i < n; i++)
        CDAD_FAIL_IF(!isfinite(state[i]), err, CDAD_INVALID, "stream state: value %" PRId64 " is %g", i,
                     state[i]);
    CDAD_FAIL_IF(n < 1 || !is_count(state[0], 0x1p53), err, CDAD_INVALID, "stream state: no row count");
    if (is(s, CDAD_STREAM_SKETCH)) {
        CDAD_TRY(cdad_sketch_unpack(&s->sketch, state + 1, n - 1, err));
    } else if (is(s, CDAD_STREAM_INCREMENTAL)) {
        CDAD_TRY(cdad_lowrank_unpack(&s->lowrank, state + 1, n - 1, err));
    } else if (s->plan.method == CDAD_STREAM_EXACT) {
        CDAD_FAIL_IF(n != 1 + d * (d + 1) / 2, err, CDAD_INVALID,
                     "stream state: %" PRId64 " values, expected %" PRId64 " for width %" PRId64, n,
                     1 + d * (d + 1) / 2, d);
        cdad_gram_unpack(&s->gram, state + 1);
    } else {
        CDAD_FAIL_IF(n < 3 || !is_count(state[1], (double)d) || n != 3 + (int64_t)state[1] * (d + 1), err,
                     CDAD_INVALID, "stream state: %" PRId64 " values do not hold a basis of width %" PRId64,
                     n, d);
        const int64_t k = (int64_t)state[1];
        for (int64_t i = 3; i < n; i++)
            CDAD_FAIL_IF((double)(float)state[i] != state[i], err, CDAD_INVALID,
                         "stream state: value %" PRId64 " is %g, no float32", i, state[i]);
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
