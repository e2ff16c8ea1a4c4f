/* Streaming a weighted basis. */
#include "continual/lowrank.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "continual/features.h"
#include "continual/linalg.h"

enum {
    ROWS_A_TASK = 16,
    PACKED_HEAD = 5
};

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of k directions and the features that may wait beside them. */
static int64_t room(int64_t k, int64_t wait) { return k + (k > wait ? k : wait); }

void cdad_lowrank_init(cdad_lowrank *v, int64_t d, int64_t wait, double share, int narrow) {
    *v = (cdad_lowrank){.d = d, .wait = wait, .share = share, .narrow = narrow};
}

void cdad_lowrank_reset(cdad_lowrank *v) {
    cdad_free(v->A);
    cdad_lowrank_init(v, v->d, v->wait, v->share, v->narrow);
}

int64_t cdad_lowrank_cut(const double *energies, int64_t n, double allowed, double noise, cdad_lowrank_loss *loss) {
    double tail = 0;
    int64_t k = n;
    while (k > 0 && (energies[k - 1] <= noise || tail + energies[k - 1] <= allowed))
        tail += energies[--k];
    *loss = (cdad_lowrank_loss){.energy = tail, .spectral = k < n ? energies[k] : 0};
    return k;
}

int64_t cdad_lowrank_bytes(int64_t d, int64_t wait, int64_t columns) {
    int64_t rows = room(d, wait);
    if (columns > 0)
        rows = min64(rows, columns);
    return rows * d * (int64_t)sizeof(float);
}

/* Room for `rows` rows: twice what there was, but never more than can wait. */
static cdad_status reserve(cdad_lowrank *v, int64_t rows, cdad_error *err) {
    int64_t capacity = min64(v->capacity * 2, room(v->k, v->wait)), count;
    float *A;
    if (rows <= v->capacity)
        return CDAD_OK;
    capacity = capacity > rows ? capacity : rows;
    CDAD_TRY(cdad_size_mul(capacity, v->d, &count, err));
    CDAD_TRY(cdad_alloc((void **)&A, count * (int64_t)sizeof *A, err));
    if (v->n > 0)
        memcpy(A, v->A, (size_t)(v->n * v->d) * sizeof *A);
    cdad_free(v->A);
    v->A = A;
    v->capacity = capacity;
    return CDAD_OK;
}

typedef struct {
    const float *X;
    int64_t rows, d;
    double *sums; /* [rows] */
} energy_job;

static void energy_task(void *arg, int64_t task, int worker) {
    const energy_job *job = arg;
    (void)worker;
    for (int64_t i = task * ROWS_A_TASK; i < min64((task + 1) * ROWS_A_TASK, job->rows); i++) {
        const float *x = job->X + i * job->d;
        double lane[8] = {0}; /* independent sums, so that the loop vectorises without reordering one */
        int64_t j = 0;
        for (; j + 8 <= job->d; j += 8)
            for (int l = 0; l < 8; l++)
                lane[l] += (double)x[j + l] * (double)x[j + l];
        for (; j < job->d; j++)
            lane[0] += (double)x[j] * (double)x[j];
        job->sums[i] = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    }
}

/* Sums of squares of the rows X [rows,d]: sums [rows] has each, the result all. */
static double energies_of(const cdad_context *ctx, const float *X, int64_t rows, int64_t d, double *sums) {
    energy_job job = {.X = X, .rows = rows, .d = d, .sums = sums};
    double all = 0;
    cdad_pool_run(ctx->pool, (rows + ROWS_A_TASK - 1) / ROWS_A_TASK, energy_task, &job);
    for (int64_t i = 0; i < rows; i++)
        all += sums[i];
    return all;
}

/* Rows k..n are taken into the directions. A failure leaves `v` as it was, or torn. */
static cdad_status refactor(cdad_lowrank *v, const cdad_context *ctx, cdad_error *err) {
    cdad_status status;
    const int64_t n = v->n, d = v->d, least = min64(n, d);
    double *M = NULL, *W = NULL, *sums = NULL;
    cdad_eigen eigen = {0};
    cdad_lowrank_loss loss;
    CDAD_TRY_DONE(cdad_alloc((void **)&sums, n * (int64_t)sizeof *sums, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&M, least * least * (int64_t)sizeof *M, err));
    CDAD_TRY_DONE(cdad_factor_gram(ctx, v->A, n, d, v->narrow, M, err));
    CDAD_TRY_DONE(cdad_eigen_init(&eigen, M, least, err));
    for (int64_t i = 0; i < least; i++)
        eigen.values[i] = fmax(eigen.values[i], 0);
    const int64_t k = cdad_lowrank_cut(eigen.values, least, fmax(v->share * v->total - v->loss.energy, 0),
                                       CDAD_FACTOR_NOISE * v->total, &loss);
    CDAD_TRY_DONE(cdad_alloc((void **)&W, least * k * (int64_t)sizeof *W, err));
    CDAD_TRY_DONE(cdad_eigen_vectors(&eigen, k, W, err));
    if (n <= d) {
        const double before = v->narrow ? energies_of(ctx, v->A, n, d, sums) : 0;
        CDAD_TRY_DONE(cdad_factor_rotate(ctx, v->A, n, d, W, k, v->narrow, &v->torn, err));
        v->torn = 0;
        if (v->narrow) { /* the eigenvalues' rounding would add up */
            loss.energy = fmax(before - energies_of(ctx, v->A, k, d, sums), 0);
            loss.spectral = fmin(loss.spectral, loss.energy);
        }
    } else {
        for (int64_t j = 0; j < k; j++)
            for (int64_t i = 0; i < d; i++)
                v->A[j * d + i] = (float)(sqrt(eigen.values[j]) * W[i + j * d]);
    }
    v->k = v->n = k;
    v->loss.energy += loss.energy;
    v->loss.spectral += loss.spectral;
done:
    cdad_eigen_reset(&eigen);
    cdad_free(M);
    cdad_free(W);
    cdad_free(sums);
    return status;
}

/* Appends rows of X, and their energy where it is not in the total yet. A failure leaves `v` as it was, or torn. */
static cdad_status append(cdad_lowrank *v, const cdad_context *ctx, cdad_mat X, int64_t rows, int counted,
                          cdad_error *err) {
    cdad_status status;
    const double total = v->total;
    int64_t n = v->n;
    double *sums = NULL;
    int part = 0; /* of X is in the directions already */
    CDAD_TRY_DONE(cdad_alloc((void **)&sums, min64(rows, room(v->d, v->wait)) * (int64_t)sizeof *sums, err));
    for (int64_t taken = 0, count; taken < rows; taken += count) {
        if (v->n >= room(v->k, v->wait)) {
            CDAD_TRY_DONE(refactor(v, ctx, err));
            if (taken == 0)
                n = v->n;
            else
                part = 1;
        }
        if (ctx->poll && ctx->poll(ctx->poll_arg)) {
            status = cdad_fail(err, CDAD_CANCELLED, "stopped while features were added");
            goto done;
        }
        count = min64(rows - taken, room(v->k, v->wait) - v->n);
        CDAD_TRY_DONE(reserve(v, v->n + count, err));
        cdad_features_gather(ctx, v->A + v->n * v->d, X, taken, count, v->d);
        if (!counted)
            energies_of(ctx, v->A + v->n * v->d, count, v->d, sums);
        for (int64_t i = 0; i < count && !counted; i++)
            v->total += sums[i];
        v->n += count;
    }
done:
    if (status != CDAD_OK && part)
        v->torn = 1;
    if (status != CDAD_OK && !v->torn) {
        v->n = n;
        v->total = total;
    }
    cdad_free(sums);
    return status;
}

cdad_status cdad_lowrank_add(cdad_lowrank *v, const cdad_context *ctx, cdad_mat X, int64_t rows, cdad_error *err) {
    return append(v, ctx, X, rows, 0, err);
}

cdad_status cdad_lowrank_merge(cdad_lowrank *v, const cdad_context *ctx, const cdad_lowrank *w, cdad_error *err) {
    const cdad_mat X = {.data = w->A, .rs = w->d, .cs = 1};
    if (v->n >= room(v->k, v->wait)) /* a cut of what waits may take what v alone allows */
        CDAD_TRY(refactor(v, ctx, err));
    const cdad_lowrank before = *v;
    v->total += w->total;
    v->loss.energy += w->loss.energy;
    v->loss.spectral += w->loss.spectral;
    const cdad_status status = append(v, ctx, X, w->n, 1, err);
    if (status != CDAD_OK && !v->torn) {
        v->total = before.total;
        v->loss = before.loss;
    }
    return status;
}

cdad_factor cdad_lowrank_factor(const cdad_lowrank *v) {
    return (cdad_factor){.A = v->A, .n = v->n, .d = v->d, .lost = v->loss.energy};
}

int64_t cdad_lowrank_packed(const cdad_lowrank *v) { return PACKED_HEAD + v->n * v->d; }

void cdad_lowrank_pack(const cdad_lowrank *v, double *packed) {
    *packed++ = (double)v->k;
    *packed++ = (double)v->n;
    *packed++ = v->total;
    *packed++ = v->loss.energy;
    *packed++ = v->loss.spectral;
    for (int64_t i = 0; i < v->n * v->d; i++)
        packed[i] = (double)v->A[i];
}

static int is_count(double x, double limit) { return x >= 0 && x <= limit && x == floor(x); }

cdad_status cdad_lowrank_unpack(cdad_lowrank *v, const double *packed, int64_t n, cdad_error *err) {
    cdad_lowrank read = {.d = v->d, .wait = v->wait, .share = v->share, .narrow = v->narrow};
    const int whole = n >= PACKED_HEAD && is_count(packed[0], (double)v->d) &&
                      is_count(packed[1], (double)n) && packed[1] >= packed[0] &&
                      n == PACKED_HEAD + (int64_t)packed[1] * v->d && packed[2] >= 0 && packed[3] >= 0 && packed[4] >= 0;
    CDAD_FAIL_IF(!whole, err, CDAD_INVALID,
                 "stream state: %" PRId64 " values do not hold at most %" PRId64 " directions of width %" PRId64, n,
                 v->d, v->d);
    read.k = (int64_t)packed[0];
    read.n = (int64_t)packed[1];
    read.total = packed[2];
    read.loss = (cdad_lowrank_loss){.energy = packed[3], .spectral = packed[4]};
    packed += PACKED_HEAD;
    for (int64_t i = 0; i < read.n * v->d; i++)
        CDAD_FAIL_IF((double)(float)packed[i] != packed[i], err, CDAD_INVALID,
                     "stream state: value %" PRId64 " is %g, no float32", PACKED_HEAD + i, packed[i]);
    CDAD_TRY(cdad_alloc((void **)&read.A, read.n * v->d * (int64_t)sizeof *read.A, err));
    for (int64_t i = 0; i < read.n * v->d; i++)
        read.A[i] = (float)packed[i];
    read.capacity = read.n;
    cdad_lowrank_reset(v);
    *v = read;
    return CDAD_OK;
}
