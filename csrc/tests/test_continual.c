/* Streaming bases and projection: against sums and spectra computed here in double, and by their guarantees. */
#include <float.h>
#include <math.h>

#include "continual/basis.h"
#include "continual/isvd.h"
#include "continual/projection.h"
#include "stream_check.h"

int cdad_test_continual(void);

/* Q spans what U leaves free: going onto Q gives `off`, which is `dW` [O,d] gone off U. */
static void check_complement(const cdad_context *ctx, const float *U, int64_t d, int64_t k, const float *dW,
                             const float *off, int64_t O) {
    float *Q, *onto;
    int64_t bytes;
    void *scratch;
    CHECK_OK(cdad_basis_complement(U, d, k, &Q, err));
    CHECK(orthonormality(Q, d, d - k) <= 1e-6, "complement: %g", orthonormality(Q, d, d - k));
    CHECK_OK(cdad_project_scratch(ctx, O, d, d - k, &bytes, err));
    CHECK_OK(cdad_alloc(&scratch, bytes, err));
    CHECK_OK(cdad_alloc((void **)&onto, O * d * (int64_t)sizeof *onto, err));
    memcpy(onto, dW, (size_t)(O * d) * sizeof *onto);
    cdad_project(ctx, onto, O, cdad_mat_rows(Q, d - k), d, d - k, CDAD_PROJECT_ONTO, scratch);
    for (int64_t i = 0; i < O * d; i++)
        CHECK(fabsf(onto[i] - off[i]) < 3e-6f, "rank %" PRId64 ", element %" PRId64 ": %g, off the basis %g", k, i,
              (double)onto[i], (double)off[i]);
    /* The same by coordinates, in memory of their own and in the gradient's, added to other values. */
    float *C = floats(O * d), *in_place = floats(O * d), *W = floats(O * d);
    memcpy(in_place, dW, (size_t)(O * d) * sizeof *dW);
    cdad_coordinates(ctx, C, dW, O, cdad_mat_rows(Q, d - k), d, d - k, CDAD_FLOAT32, scratch);
    cdad_coordinates(ctx, in_place, in_place, O, cdad_mat_rows(Q, d - k), d, d - k, CDAD_FLOAT32, scratch);
    CHECK(!memcmp(C, in_place, (size_t)(O * (d - k)) * sizeof *C), "rank %" PRId64 ": other coordinates in place", k);
    for (int64_t i = 0; i < O * d; i++)
        W[i] = 1.0f;
    cdad_add_coordinates(ctx, W, C, O, cdad_mat_rows(Q, d - k), d, d - k, CDAD_FLOAT32, scratch);
    for (int64_t i = 0; i < O * d; i++)
        CHECK(fabsf(W[i] - 1.0f - onto[i]) < 2e-6f, "rank %" PRId64 ", element %" PRId64 ": %g by coordinates", k, i,
              (double)(W[i] - 1.0f));
    cdad_free(C);
    cdad_free(in_place);
    cdad_free(W);
    cdad_free(onto);
    cdad_free(scratch);
    cdad_free(Q);
}

/* G of odd blocks, three layouts and any number of threads is X^T X; d spans two tiles. */
static void test_gram(const cdad_context *ctx, const cdad_context *serial) {
    enum { D = 333, ROWS = 1201, CUT = 700 };
    float *X = normal(ROWS * D, 1), *transposed = floats(ROWS * D);
    cdad_stream *s = new_stream(D, CDAD_STREAM_EXACT, 0.9), *t = new_stream(D, CDAD_STREAM_EXACT, 0.9);
    for (int64_t i = 0; i < ROWS; i++)
        for (int64_t j = 0; j < D; j++)
            transposed[j * ROWS + i] = X[i * D + j];
    CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), CUT, err));
    CHECK_OK(cdad_stream_add(s, ctx, dense(X + CUT * D, D), 0, err));
    CHECK_OK(cdad_stream_add(s, ctx, dense(X + CUT * D, D), ROWS - CUT, err));
    CHECK_OK(cdad_stream_add(t, serial, dense(X, D), CUT, err));
    CHECK_OK(cdad_stream_add(t, serial, ((cdad_mat){.data = transposed + CUT, .rs = 1, .cs = ROWS}),
                             ROWS - CUT, err));
    CHECK(same_state(s, t, 0), "threads or layout change bits");
    CHECK(cdad_stream_rows(s) == ROWS && cdad_stream_width(s) == D, "%" PRId64 " rows", cdad_stream_rows(s));

    int64_t n;
    double *state = state_of(s, &n), *g = state + 1, off = 0;
    for (int64_t i = 0; i < D; i++)
        for (int64_t j = i; j < D; j++, g++) {
            double dot = 0;
            for (int64_t r = 0; r < ROWS; r++)
                dot += (double)X[r * D + i] * (double)X[r * D + j];
            off = fmax(off, fabs(dot - *g));
        }
    CHECK(off < 1e-6 * ROWS, "G is off by %g", off);
    cdad_free(state);
    cdad_stream_free(s);
    cdad_stream_free(t);
    cdad_free(X);
    cdad_free(transposed);
}

/* An image unfolded inside gives the bits of its unfolded matrix; every kind of unfolding. */
static void test_unfolded(const cdad_context *ctx) {
    static const cdad_unfold kinds[] = {
        {2, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1},  /* 3x3, padded */
        {2, 9, 7, 5, 4, 3, 3, 2, 2, 0, 0, 1},  /* stride 2, not padded */
        {1, 4, 5, 3, 8, 10, 3, 3, 1, 1, 1, 2}, /* upsampled first */
    };
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        const cdad_unfold *u = &kinds[kind];
        const int64_t rows = u->N * u->P * u->Q, d = u->R * u->S * u->C;
        float *image = normal(u->N * u->H * u->W * u->C, 2), *X = floats(rows * d), *x = X;
        for (int64_t n = 0; n < u->N; n++)
            for (int64_t pq = 0; pq < u->P * u->Q; pq++)
                for (int64_t rs = 0; rs < u->R * u->S; rs++)
                    for (int64_t c = 0; c < u->C; c++, x++) {
                        const int64_t y0 = pq / u->Q * u->stride + rs / u->S - u->pad_t;
                        const int64_t x0 = pq % u->Q * u->stride + rs % u->S - u->pad_l;
                        if (y0 >= 0 && x0 >= 0 && y0 < u->H * u->up && x0 < u->W * u->up)
                            *x = image[((n * u->H + y0 / u->up) * u->W + x0 / u->up) * u->C + c];
                    }
        cdad_stream *s = new_stream(d, CDAD_STREAM_EXACT, 0.9), *t = new_stream(d, CDAD_STREAM_EXACT, 0.9);
        CHECK_OK(cdad_stream_add(s, ctx, (cdad_mat){.data = image, .unfold = u}, rows, err));
        CHECK_OK(cdad_stream_add(t, ctx, dense(X, d), rows, err));
        CHECK(same_state(s, t, 0), "unfolding %zu", kind);
        CHECK_FAILS(CDAD_SHAPE, "unfolding",
                    cdad_stream_add(s, ctx, (cdad_mat){.data = image, .unfold = u}, rows + 1, err));
        cdad_stream_free(s);
        cdad_stream_free(t);
        cdad_free(image);
        cdad_free(X);
    }
}

/* Columns of known length along known axes, more rows than columns and fewer: spectrum, ranks and directions.
 */
static void test_spectrum(const cdad_context *ctx) {
    enum { D = 6 };
    static const float lengths[D] = {30, 10, 3, 1, 0.1f, 0}; /* energies 900 100 9 1 0.01, together 1010.01 */
    static const struct {
        double gamma;
        int64_t rank;
    } cases[] = {
        {0.5, 1}, {0.95, 2}, {0.999, 3}, {0.9999, 4}, {1, 5},
    };
    float X[D * D] = {0}, *values, *U;
    int64_t n, k;
    double energy;
    for (int i = 0; i < D; i++)
        X[i * D + (i + 2) % D] = lengths[i];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        cdad_stream *s = new_stream(D, CDAD_STREAM_EXACT, cases[c].gamma);
        for (int i = 0; i < D; i++)
            CHECK_OK(cdad_stream_add(s, ctx, dense(X + i * D, D), 1, err));
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
        CHECK(k == cases[c].rank, "rank %" PRId64 " at %g", k, cases[c].gamma);
        CHECK(energy >= cases[c].gamma - 1e-6 && energy <= 1, "energy %g at %g", energy, cases[c].gamma);
        for (int64_t j = 0; j < k; j++)
            CHECK(fabsf(fabsf(U[(j + 2) % D * k + j]) - 1) < 1e-6f, "direction %" PRId64, j);
        cdad_free(U);
        CHECK_OK(cdad_stream_singular_values(s, ctx, &values, &n, err));
        CHECK(n == D, "%" PRId64 " singular values", n);
        for (int64_t j = 0; j < n; j++)
            CHECK(fabsf(values[j] - lengths[j]) < 1e-5f * lengths[0], "singular value %g", (double)values[j]);
        cdad_free(values);
        cdad_stream_free(s);
    }
    cdad_stream *few = new_stream(D, CDAD_STREAM_EXACT, 0.999);
    CHECK_OK(cdad_stream_add(few, ctx, dense(X, D), 2, err));
    CHECK_OK(cdad_stream_singular_values(few, ctx, &values, &n, err));
    CHECK(n == 2 && fabsf(values[1] - lengths[1]) < 1e-5f, "%" PRId64 " singular values of two rows", n);
    cdad_free(values);
    cdad_stream_free(few);
}

/* Six tasks, one after another: the guarantees of Eq. 6 and Eq. 7 that training relies on. */
static void test_tasks(const cdad_context *ctx, cdad_stream_method method) {
    enum { D = 90, ROWS = 400, RANK = 14, TASKS = 6, O = 11 };
    static const double gamma = 0.99;
    float *U = NULL, *X[TASKS];
    int64_t k = 0, bytes;
    for (int t = 0; t < TASKS; t++) {
        cdad_stream *s = new_stream(D, method, gamma);
        float *next;
        int64_t k_next;
        double energy;
        X[t] = low_rank(ROWS, D, RANK, 0.8f, (uint64_t)t + 10);
        CHECK_OK(cdad_stream_add(s, ctx, dense(X[t], D), ROWS / 2, err));
        CHECK_OK(cdad_stream_add(s, ctx, dense(X[t] + ROWS / 2 * D, D), ROWS - ROWS / 2, err));
        CHECK_OK(cdad_stream_basis(s, ctx, U, k, &next, &k_next, &energy, err));
        CHECK(k_next >= k && k_next <= D && k_next <= k + RANK, "task %d: rank %" PRId64 " after %" PRId64, t,
              k_next, k);
        CHECK(orthonormality(next, D, k_next) <= 1e-6, "task %d: %g", t, orthonormality(next, D, k_next));
        for (int64_t i = 0; i < D && k > 0; i++)
            CHECK(!memcmp(next + i * k_next, U + i * k, (size_t)k * sizeof *U), "task %d: old basis changed",
                  t);
        if (method != CDAD_STREAM_ISVD) {
            const double share = energy_share(X[t], ROWS, D, next, k_next, k_next);
            CHECK(share >= gamma - 1e-6 && share >= energy - 1e-6 && share - energy < (1 - gamma) / 4 + 1e-5,
                  "task %d: kept %g, said %g", t, share, energy);
            CHECK(method != CDAD_STREAM_EXACT || k_next == k || energy_share(X[t], ROWS, D, next, k_next, k_next - 1) < gamma,
                  "task %d: rank %" PRId64 " is not the smallest", t, k_next);
        }
        cdad_free(U);
        U = next;
        k = k_next;
        cdad_stream_free(s);
    }
    float *dW = normal(O * D, 99), *before = normal(O * D, 99);
    void *scratch;
    CHECK_OK(cdad_project_scratch(ctx, O, D, k, &bytes, err));
    CHECK_OK(cdad_alloc(&scratch, bytes, err));
    cdad_project(ctx, dW, O, cdad_mat_rows(U, k), D, k, CDAD_PROJECT_OFF, scratch);
    CHECK(energy_share(dW, O, D, U, k, k) < 1e-11, "inside the basis: %g",
          sqrt(energy_share(dW, O, D, U, k, k)));
    double lost = 0, inside = 0;
    for (int64_t i = 0; i < O * D; i++)
        lost += (double)(before[i] - dW[i]) * (double)(before[i] - dW[i]),
            inside += (double)before[i] * (double)before[i];
    CHECK(fabs(lost / inside - energy_share(before, O, D, U, k, k)) < 1e-6,
          "the projection takes more than Eq. 7");
    for (int t = 0; t < TASKS && method != CDAD_STREAM_ISVD;
         t++) { /* each task: its energy share outside at most */
        double with = 0, without = 0, x2 = 0, w2 = 0;
        for (int64_t r = 0; r < ROWS; r++)
            for (int64_t o = 0; o < O; o++) {
                double a = 0, b = 0;
                for (int64_t j = 0; j < D; j++) {
                    a += (double)X[t][r * D + j] * (double)dW[o * D + j];
                    b += (double)X[t][r * D + j] * (double)before[o * D + j];
                }
                with += a * a, without += b * b;
            }
        for (int64_t i = 0; i < ROWS * D; i++)
            x2 += (double)X[t][i] * (double)X[t][i];
        for (int64_t i = 0; i < O * D; i++)
            w2 += (double)dW[i] * (double)dW[i];
        CHECK(with <= (1 - gamma + 1e-6) * x2 * w2 && with < 0.05 * without, "task %d: %g of %g", t, with,
              without);
    }
    check_complement(ctx, U, D, k, before, dW, O);
    cdad_free(scratch);
    cdad_free(dW);
    cdad_free(before);
    cdad_free(U);
    for (int t = 0; t < TASKS; t++)
        cdad_free(X[t]);
}

/* Features inside the old basis up to rounding see exactly zero updates; an empty basis takes nothing. */
static void test_projection(const cdad_context *ctx) {
    enum { D = 40, ROWS = 30, RANK = 5, O = 7 };
    float *X = low_rank(ROWS, D, RANK, 1, 50), *dW = normal(O * D, 51), *before = normal(O * D, 51), *U;
    cdad_stream *s = new_stream(D, CDAD_STREAM_EXACT, 1);
    int64_t k, bytes;
    double energy;
    void *scratch;
    CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    CHECK(k == RANK && energy > 1 - 1e-6, "rank %" PRId64 ", energy %g: rounding taken for features", k,
          energy);
    CHECK_OK(cdad_project_scratch(ctx, O, D, k, &bytes, err));
    CHECK_OK(cdad_alloc(&scratch, bytes, err));
    cdad_project(ctx, dW, O, cdad_mat_rows(U, 0), D, 0, CDAD_PROJECT_OFF, scratch);
    CHECK(!memcmp(dW, before, O * D * sizeof *dW), "no basis, and yet projected");
    check_complement(ctx, U, D, 0, dW, dW, O);
    float *Q;
    CHECK_FAILS(CDAD_SHAPE, "expected 0 to 39", cdad_basis_complement(U, D, D, &Q, err));
    cdad_project(ctx, dW, O, cdad_mat_rows(U, k), D, k, CDAD_PROJECT_OFF, scratch);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t o = 0; o < O; o++) {
            double dot = 0, x2 = 0, w2 = 0;
            for (int64_t j = 0; j < D; j++) {
                dot += (double)X[r * D + j] * (double)dW[o * D + j];
                x2 += (double)X[r * D + j] * (double)X[r * D + j];
                w2 += (double)before[o * D + j] * (double)before[o * D + j];
            }
            CHECK(fabs(dot) < 3e-6 * sqrt(x2 * w2), "an old feature sees %g", dot / sqrt(x2 * w2));
        }
    CHECK_FAILS(CDAD_SHAPE, "", cdad_project_scratch(ctx, INT64_MAX / 2, D, 4, &bytes, err));
    cdad_free(scratch);
    cdad_free(X);
    cdad_free(dW);
    cdad_free(before);
    cdad_free(U);
    cdad_stream_free(s);
}

static void check_basis(const cdad_context *ctx, const cdad_stream *s, const float *old, int64_t k_old,
                        int64_t d, int64_t expected, const char *what) {
    float *U;
    int64_t k = -1;
    double energy = -1;
    CHECK_OK(cdad_stream_basis(s, ctx, old, k_old, &U, &k, &energy, err));
    CHECK(k == expected && energy > 1 - 1e-6, "%s: rank %" PRId64 ", energy %g", what, k, energy);
    if (U)
        CHECK(orthonormality(U, d, k) <= 1e-6, "%s: %g", what, orthonormality(U, d, k));
    cdad_free(U);
}

static void test_edges(const cdad_context *ctx) {
    enum { D = 12 };
    float *X = normal(3 * D * D, 60), *zeros = floats(D * D), *all, identity[D * D] = {0};
    int64_t k;
    double energy;
    for (int i = 0; i < D; i++)
        identity[i * D + i] = 1;
    for (int method = CDAD_STREAM_EXACT; method <= CDAD_STREAM_SKETCH; method++) {
        cdad_stream *s = new_stream(D, (cdad_stream_method)method, 1);
        check_basis(ctx, s, NULL, 0, D, 0, "nothing added");
        CHECK_OK(cdad_stream_add(s, ctx, dense(zeros, D), D, err));
        check_basis(ctx, s, NULL, 0, D, 0, "zeros");
        check_basis(ctx, s, identity, D, D, D, "zeros, full old basis");
        cdad_stream_free(s);
    }
    cdad_stream *s = new_stream(D, CDAD_STREAM_EXACT, 1);
    CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), 3 * D, err));
    check_basis(ctx, s, NULL, 0, D, D, "full rank");
    check_basis(ctx, s, identity, D, D, D, "nothing is left outside");
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &all, &k, &energy, err));
    cdad_stream *one = new_stream(D, CDAD_STREAM_EXACT, 0.5); /* of which the old basis holds all already */
    CHECK_OK(cdad_stream_add(one, ctx, dense(X, D), 1, err));
    check_basis(ctx, one, all, D, D, D, "a feature inside the old basis");
    cdad_stream *narrow = new_stream(1, CDAD_STREAM_EXACT, 0.9);
    CHECK_OK(cdad_stream_add(narrow, ctx, dense(X, 1), 5, err));
    check_basis(ctx, narrow, NULL, 0, 1, 1, "width 1");
    cdad_stream_free(narrow);
    cdad_stream_free(one);
    cdad_stream_free(s);
    cdad_free(all);
    cdad_free(X);
    cdad_free(zeros);
}

static void test_refusals(const cdad_context *ctx) {
    enum { D = 8, ROWS = 20 };
    float *X = normal(ROWS * D, 70), *U = NULL;
    cdad_stream *s = new_stream(D, CDAD_STREAM_EXACT, 0.9), *kept = new_stream(D, CDAD_STREAM_EXACT, 0.9);
    int64_t k, n;
    double energy;
    cdad_stream_plan plan;
    CHECK_FAILS(CDAD_SHAPE, "width 0", cdad_stream_plan_make(&plan, 0, CDAD_STREAM_EXACT, 0.9, NULL, err));
    CHECK_FAILS(CDAD_SHAPE, "width 40000", cdad_stream_plan_make(&plan, 40000, CDAD_STREAM_EXACT, 0.9, NULL, err));
    CHECK_FAILS(CDAD_INVALID, "gamma is 0", cdad_stream_plan_make(&plan, D, CDAD_STREAM_EXACT, 0, NULL, err));
    CHECK_FAILS(CDAD_INVALID, "gamma is 1.5", cdad_stream_plan_make(&plan, D, CDAD_STREAM_EXACT, 1.5, NULL, err));
    CHECK_FAILS(CDAD_INVALID, "gamma is nan", cdad_stream_plan_make(&plan, D, CDAD_STREAM_EXACT, NAN, NULL, err));

    CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    CHECK_OK(cdad_stream_add(kept, ctx, dense(X, D), ROWS, err));
    cdad_stream *unfolded = new_stream(9 * D, CDAD_STREAM_EXACT, 0.9),
                *columns = new_stream(ROWS, CDAD_STREAM_ISVD, 0.9);
    X[13 * D + 6] = NAN;
    CHECK_FAILS(CDAD_NOT_FINITE, "row 13, column 6 is nan", cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    const cdad_unfold u = {1, 5, 4, 8, 5, 4, 1, 1, 1, 0, 0, 1};
    CHECK_FAILS(CDAD_NOT_FINITE, "pixel 13, channel 6 is nan",
                cdad_stream_add(s, ctx, (cdad_mat){.data = X, .unfold = &u}, ROWS, err));
    CHECK_FAILS(CDAD_NOT_FINITE, "row 6, column 13 is nan",
                cdad_stream_add(columns, ctx, (cdad_mat){.data = X, .rs = 1, .cs = D}, D, err));
    X[13 * D + 6] = -INFINITY;
    CHECK_FAILS(CDAD_NOT_FINITE, "is -inf", cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    X[13 * D + 6] = 1e25f;
    CHECK_FAILS(CDAD_NOT_FINITE, "beyond the range", cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    X[13 * D + 6] = 1e19f; /* its square fits, but not the nine that a 3x3 unfolding may read */
    const cdad_unfold u3 = {1, 5, 4, 8, 5, 4, 3, 3, 1, 1, 1, 1};
    CHECK_FAILS(CDAD_NOT_FINITE, "beyond the range",
                cdad_stream_add(unfolded, ctx, (cdad_mat){.data = X, .unfold = &u3}, ROWS, err));
    cdad_stream_free(unfolded);
    cdad_stream_free(columns);
    CHECK_FAILS(CDAD_SHAPE, "-1 rows", cdad_stream_add(s, ctx, dense(X, D), -1, err));
    CHECK(same_state(s, kept, 0), "a refused block left traces");

    float old[D * 2] = {1, 0, 0, 1};
    CHECK_FAILS(CDAD_SHAPE, "9 columns", cdad_stream_basis(s, ctx, X, D + 1, &U, &k, &energy, err));
    old[5] = 0.1f;
    CHECK_FAILS(CDAD_INVALID, "not orthonormal", cdad_stream_basis(s, ctx, old, 2, &U, &k, &energy, err));
    old[5] = NAN;
    CHECK_FAILS(CDAD_NOT_FINITE, "row 2, column 1", cdad_stream_basis(s, ctx, old, 2, &U, &k, &energy, err));
    CHECK(U == NULL, "a basis that was refused");

    cdad_stream *wide = new_stream(D + 1, CDAD_STREAM_EXACT, 0.9),
                *isvd = new_stream(D, CDAD_STREAM_ISVD, 0.9);
    CHECK_FAILS(CDAD_SHAPE, "width 9", cdad_stream_merge(s, ctx, wide, err));
    CHECK_FAILS(CDAD_INVALID, "exact", cdad_stream_merge(s, ctx, isvd, err));
    double *state = state_of(s, &n);
    CHECK_FAILS(CDAD_INVALID, "36 values", cdad_stream_state_set(s, state, n - 1, err));
    CHECK_FAILS(CDAD_INVALID, "width", cdad_stream_state_set(wide, state, n, err));
    CHECK_FAILS(CDAD_INVALID, "values", cdad_stream_state_set(isvd, state, n, err));
    state[4] = NAN;
    CHECK_FAILS(CDAD_INVALID, "value 4", cdad_stream_state_set(s, state, n, err));
    CHECK(same_state(s, kept, 0), "a refused state left traces");

    cdad_context stopping = *ctx;
    stopping.poll = count_down;
    stop_at_poll = 1;
    CHECK_FAILS(CDAD_CANCELLED, "stopped", cdad_stream_add(s, &stopping, dense(X, D), 1, err));
    stop_at_poll = 1;
    CHECK_FAILS(CDAD_CANCELLED, "stopped", cdad_stream_basis(s, &stopping, NULL, 0, &U, &k, &energy, err));
    X[13 * D + 6] = 0;
    stop_at_poll = 2;
    CHECK_FAILS(CDAD_CANCELLED, "stopped", cdad_stream_add(s, &stopping, dense(X, D), ROWS, err));
    CHECK_FAILS(CDAD_INVALID, "half-way", cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    CHECK_FAILS(CDAD_INVALID, "half-way", cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    CHECK_FAILS(CDAD_INVALID, "half-way", cdad_stream_merge(kept, ctx, s, err));
    cdad_free(state);
    state = state_of(kept, &n);
    CHECK_OK(cdad_stream_state_set(s, state, n, err));
    CHECK(same_state(s, kept, 0), "a state did not mend the stream");
    cdad_free(state);
    cdad_stream_free(wide);
    cdad_stream_free(isvd);
    cdad_stream_free(kept);
    cdad_stream_free(s);
    cdad_free(X);
}

/* Two halves merged are the whole; a saved state goes on as its stream would have. */
static void test_merge_and_state(const cdad_context *ctx) {
    enum { D = 45, ROWS = 128 };
    float *X = low_rank(ROWS, D, 20, 0.9f, 80);
    cdad_stream *whole = new_stream(D, CDAD_STREAM_EXACT, 0.9), *a = new_stream(D, CDAD_STREAM_EXACT, 0.9);
    cdad_stream *b = new_stream(D, CDAD_STREAM_EXACT, 0.9);
    const cdad_mat first = dense(X, D), second = dense(X + ROWS / 2 * D, D);
    CHECK_OK(cdad_stream_add(whole, ctx, first, ROWS / 2, err));
    CHECK_OK(cdad_stream_add(whole, ctx, second, ROWS / 2, err));
    CHECK_OK(cdad_stream_add(a, ctx, first, ROWS / 2, err));
    CHECK_OK(cdad_stream_add(b, ctx, second, ROWS / 2, err));
    CHECK_OK(cdad_stream_merge(a, ctx, b, err));
    CHECK(same_state(whole, a, 1e-15), "two halves are not the whole");
    cdad_stream_free(whole);
    cdad_stream_free(a);
    cdad_stream_free(b);
    for (int method = CDAD_STREAM_EXACT; method <= CDAD_STREAM_SKETCH; method++) {
        int64_t n;
        cdad_stream *s = new_stream(D, (cdad_stream_method)method, 0.9),
                    *t = new_stream(D, (cdad_stream_method)method, 0.9);
        CHECK_OK(cdad_stream_add(s, ctx, first, ROWS / 2, err));
        double *state = state_of(s, &n);
        CHECK_OK(cdad_stream_state_set(t, state, n, err));
        CHECK_OK(cdad_stream_add(s, ctx, second, ROWS / 2, err));
        CHECK_OK(cdad_stream_add(t, ctx, second, ROWS / 2, err));
        CHECK(same_state(s, t, 0), "method %d: a saved state goes on otherwise", method);
        cdad_free(state);
        cdad_stream_free(s);
        cdad_stream_free(t);
    }
    cdad_free(X);
}

/* The published rule on axes: one rank short of the threshold, and earlier blocks fade. */
static void test_isvd(const cdad_context *ctx) {
    enum { D = 4 };
    static const float first[D * D] = {3, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0.1f, 0, 0, 0, 0, 0.01f},
                                 late[D] = {0, 0, 0, 100};
    cdad_stream *s = new_stream(D, CDAD_STREAM_ISVD, 0.99);
    float *U, *values;
    int64_t k, n;
    double energy;
    CHECK_OK(cdad_stream_add(s, ctx, dense(first, D), D,
                             err)); /* shares 0.8991, 0.9990: the first alone is < 0.99 */
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    CHECK(k == 1 && fabsf(fabsf(U[0]) - 1) < 1e-6f && fabs(energy - 9 / 10.0101) < 1e-6,
          "rank %" PRId64 ", kept %g", k, energy);
    cdad_free(U);
    CHECK_OK(cdad_stream_singular_values(s, ctx, &values, &n, err));
    CHECK(n == 1 && fabsf(values[0] - 3) < 1e-5f, "%" PRId64 " values", n);
    cdad_free(values);
    CHECK_OK(
        cdad_stream_add(s, ctx, dense(late, D), 1, err)); /* share 0.9999 at once: one is kept all the same */
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    CHECK(k == 1 && fabsf(fabsf(U[3]) - 1) < 1e-6f && fabsf(U[0]) < 1e-6f, "rank %" PRId64 ": %g %g", k,
          (double)U[0], (double)U[3]);
    cdad_free(U);
    cdad_stream_free(s);
    cdad_isvd wide;
    cdad_isvd_init(&wide, 23040);
    CHECK_FAILS(CDAD_SHAPE, "sgesdd", cdad_isvd_add(&wide, ctx, dense(NULL, 23040), 23000, 0.9, err));
    cdad_isvd_reset(&wide);
}

static void test_no_memory(const cdad_context *ctx) {
    enum { D = 10, ROWS = 30 };
    float *X = normal(ROWS * D, 90);
    const cdad_mat strided = {.data = X, .rs = 1, .cs = ROWS};
    for (int m = CDAD_STREAM_EXACT; m <= CDAD_STREAM_SKETCH; m++) {
        const cdad_stream_method method = (cdad_stream_method)m;
        cdad_stream *s = new_stream(D, method, 0.9), *kept = new_stream(D, method, 0.9), *other;
        float *old, *U, *values;
        int64_t k_old, k, n;
        double energy;
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS / 10, err));
        CHECK_OK(cdad_stream_add(kept, ctx, dense(X, D), ROWS / 10, err));
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &old, &k_old, &energy, err));
        EACH_ALLOCATION_FAILS(cdad_stream_open(&other, cdad_stream_planned(s), NULL), other == NULL);
        cdad_stream_free(other);
        EACH_ALLOCATION_FAILS(cdad_stream_add(s, ctx, strided, ROWS, NULL), same_state(s, kept, 0));
        EACH_ALLOCATION_FAILS(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, NULL), U == NULL);
        cdad_free(U);
        EACH_ALLOCATION_FAILS(cdad_stream_basis(s, ctx, old, k_old, &U, &k, &energy, NULL), U == NULL);
        CHECK(k > k_old, "rank %" PRId64 " after %" PRId64, k, k_old);
        cdad_free(U);
        EACH_ALLOCATION_FAILS(cdad_stream_singular_values(s, ctx, &values, &n, NULL), values == NULL);
        cdad_free(values);
        double *state = state_of(kept, &n);
        if (method != CDAD_STREAM_EXACT) { /* an exact state needs no memory */
            EACH_ALLOCATION_FAILS(cdad_stream_state_set(s, state, n, NULL), cdad_stream_rows(s) > ROWS);
        }
        cdad_free(state);
        cdad_free(old);
        cdad_stream_free(s);
        cdad_stream_free(kept);
    }
    cdad_free(X);
}

int cdad_test_continual(void) {
    cdad_pool *pool = NULL;
    CHECK_OK(cdad_pool_new(&pool, 3, err));
    const cdad_context serial = {.kernels = cdad_kernels_select(NULL)};
    cdad_context ctx = serial;
    ctx.pool = pool;
    test_gram(&ctx, &serial);
    test_unfolded(&ctx);
    test_spectrum(&ctx);
    for (int method = CDAD_STREAM_EXACT; method <= CDAD_STREAM_SKETCH; method++)
        test_tasks(&ctx, (cdad_stream_method)method);
    test_projection(&ctx);
    test_edges(&ctx);
    test_refusals(&ctx);
    test_merge_and_state(&ctx);
    test_isvd(&ctx);
    test_no_memory(&ctx);
    cdad_pool_free(pool);
    return failures;
}
