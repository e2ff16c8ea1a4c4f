/* Incremental streams, sketches and their plans: against Gram matrices and spectra in double, and by their bounds. */
#include "continual/factor.h"
#include "continual/lowrank.h"
#include "continual/sketch.h"
#include "stream_check.h"

int cdad_test_streams(void);

static cdad_stream *new_sketch(int64_t d, double gamma, int64_t rank) {
    const cdad_stream_hints hints = {.rank = rank};
    cdad_stream_plan plan;
    cdad_stream *s;
    CHECK_OK(cdad_stream_plan_make(&plan, d, CDAD_STREAM_SKETCH, gamma, &hints, err));
    CHECK_OK(cdad_stream_open(&s, &plan, err));
    return s;
}

/* A stream of either kind: rank 0 is incremental. */
static cdad_stream *new_kind(int64_t d, double gamma, int64_t rank) {
    return rank > 0 ? new_sketch(d, gamma, rank) : new_stream(d, CDAD_STREAM_INCREMENTAL, gamma);
}

static void test_cut(void) {
    static const double energies[6] = {100, 50, 9, 4, 1, 0};
    static const struct {
        double allowed, noise;
        int64_t k;
        double energy, spectral;
    } cases[] = {
        {0, 0, 5, 0, 0},       /* the zero goes */
        {1, 0, 4, 1, 1},       /* what is allowed goes */
        {4.9, 0, 4, 1, 1},     /* 1 + 4 would be too much */
        {5, 0, 3, 5, 4},       /* but no longer is */
        {0, 9, 2, 14, 9},      /* noise goes whatever is allowed */
        {200, 0, 0, 164, 100}, /* all may go */
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        cdad_lowrank_loss loss;
        const int64_t k = cdad_lowrank_cut(energies, 6, cases[c].allowed, cases[c].noise, &loss);
        CHECK(k == cases[c].k, "case %zu: %" PRId64 " stay", c, k);
        CHECK(loss.energy == cases[c].energy && loss.spectral == cases[c].spectral, "case %zu: lost %g, %g", c,
              loss.energy, loss.spectral);
    }
}

/* Products of float32 give what those of double give: also where the last strip of columns is as narrow as few rows are. */
static void test_narrow_products(const cdad_context *ctx) {
    static const int64_t shapes[][3] = {{3400, 4096 + 17, 18}, {70, 2048, 33}, {9, 40, 9}, {60, 20, 0}};
    for (size_t c = 0; c < sizeof shapes / sizeof *shapes; c++) {
        const int64_t n = shapes[c][0], d = shapes[c][1], k = shapes[c][2], side = n < d ? n : d;
        float *A = normal(n * d, 51), *B = normal(n * d, 51), *w = normal(n * k, 52);
        double *W = doubles(n * k), worst = 0;
        int begun;
        for (int64_t i = 0; i < n * k; i++)
            W[i] = (double)w[i] / sqrt((double)n);
        if (side < 100) {
            double *M = doubles(side * side), *N = doubles(side * side);
            CHECK_OK(cdad_factor_gram(ctx, A, n, d, 0, M, err));
            CHECK_OK(cdad_factor_gram(ctx, A, n, d, 1, N, err));
            for (int64_t i = 0; i < side * side; i++)
                worst = fmax(worst, fabs(M[i] - N[i]));
            CHECK(worst > 0 && worst < 3e-6 * (double)(n > d ? n : d), "case %zu: a Gram matrix is off by %g", c, worst);
            cdad_free(M);
            cdad_free(N);
        }
        if (k > 0) {
            worst = 0;
            CHECK_OK(cdad_factor_rotate(ctx, A, n, d, W, k, 0, &begun, err));
            CHECK_OK(cdad_factor_rotate(ctx, B, n, d, W, k, 1, &begun, err));
            for (int64_t i = 0; i < k * d; i++)
                worst = fmax(worst, fabs((double)A[i] - (double)B[i]));
            CHECK(begun && worst > 0 && worst < 1e-5, "case %zu: rotated rows are off by %g", c, worst);
        }
        cdad_free(A);
        cdad_free(B);
        cdad_free(w);
        cdad_free(W);
    }
}

static void test_plan(void) {
    static const struct {
        int64_t d;
        double gamma;
        int64_t columns, memory, rank;
        cdad_stream_method method;
        int64_t planned_rank;
    } cases[] = {
        {1280, 0.999, 0, 0, 0, CDAD_STREAM_EXACT, 1280},
        {1280, 0.9999, 10, 0, 0, CDAD_STREAM_EXACT, 1280}, /* narrow: however few come */
        {1280, 0.99999, 0, 0, 0, CDAD_STREAM_INCREMENTAL, 1280},
        {1280, 1, 0, 0, 0, CDAD_STREAM_INCREMENTAL, 1280},
        {4096, 0.999, 10, 0, 0, CDAD_STREAM_EXACT, 4096},
        {5760, 0.999, 5760, 0, 0, CDAD_STREAM_INCREMENTAL, 5760},
        {5760, 0.999, 5761, 0, 0, CDAD_STREAM_EXACT, 5760},
        {6144, 0.999, 0, 0, 0, CDAD_STREAM_EXACT, 6144},
        {6145, 0.999, 0, 0, 0, CDAD_STREAM_SKETCH, 768},
        {11520, 0.999, 11520, 0, 0, CDAD_STREAM_INCREMENTAL, 11520},
        {11520, 0.999, 11521, 0, 0, CDAD_STREAM_SKETCH, 1024},
        {23040, 0.999, 0, 0, 0, CDAD_STREAM_SKETCH, 1024},
        {23040, 0.999, 0, 100 << 20, 0, CDAD_STREAM_SKETCH, 730},
        {23040, 0.999, 0, 100 << 20, 300, CDAD_STREAM_SKETCH, 300},
    };
    cdad_stream_plan plan;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const cdad_stream_hints hints = {cases[c].columns, cases[c].memory, cases[c].rank};
        CHECK_OK(cdad_stream_plan_make(&plan, cases[c].d, CDAD_STREAM_AUTO, cases[c].gamma, &hints, err));
        CHECK(plan.method == cases[c].method && plan.rank == cases[c].planned_rank && plan.chosen,
              "case %zu: method %d, rank %" PRId64, c, plan.method, plan.rank);
        CHECK(cases[c].memory == 0 || plan.bytes <= cases[c].memory, "case %zu: %" PRId64 " bytes", c, plan.bytes);
    }
    const int fast = cdad_kernels_select(NULL)->gram_rounds_fast(), whole = !fast && cdad_kernels_select(NULL)->gram_bytes_tile;
    static const struct {
        int64_t d;
        double gamma;
        int64_t columns;
        cdad_stream_method method;
        int rounds, to_whole; /* where the processor gains by it */
    } rounding[] = {
        {768, 0.999, 0, CDAD_STREAM_AUTO, 1, 0},       {767, 0.999, 9000, CDAD_STREAM_AUTO, 0, 0},
        {1280, 0.9995, 9000, CDAD_STREAM_AUTO, 1, 0},  {1280, 0.9996, 9000, CDAD_STREAM_AUTO, 0, 0},
        {1280, 0.999, 9000, CDAD_STREAM_EXACT, 0, 0},  {11520, 0.999, 90000, CDAD_STREAM_AUTO, 0, 0},
        {1280, 0.999, 7680, CDAD_STREAM_AUTO, 1, 1},   {1280, 0.999, 7679, CDAD_STREAM_AUTO, 1, 0},
        {1280, 0.9991, 7680, CDAD_STREAM_AUTO, 1, 0},
    };
    for (size_t c = 0; c < sizeof rounding / sizeof *rounding; c++) {
        const cdad_stream_hints come = {.columns = rounding[c].columns};
        CHECK_OK(cdad_stream_plan_make(&plan, rounding[c].d, rounding[c].method, rounding[c].gamma, &come, err));
        const cdad_gram_rounding want = fast && rounding[c].rounds      ? CDAD_GRAM_BFLOAT16
                                        : whole && rounding[c].to_whole ? CDAD_GRAM_BYTES
                                                                        : CDAD_GRAM_PLAIN;
        CHECK(plan.rounding == want, "rounding case %zu: %d", c, (int)plan.rounding);
    }
    CHECK_OK(cdad_stream_plan_make(&plan, 11520, CDAD_STREAM_EXACT, 0.999, NULL, err));
    CHECK(plan.method == CDAD_STREAM_EXACT && !plan.chosen && plan.bytes >= 4ll * 11520 * 11520 &&
              plan.bytes < 5ll * 11520 * 11520,
          "%" PRId64 " bytes", plan.bytes);
    CHECK_OK(cdad_stream_plan_make(&plan, 40, CDAD_STREAM_SKETCH, 0.999, NULL, err));
    CHECK(plan.rank == 40, "a sketch of %" PRId64 " directions of width 40", plan.rank);
    const cdad_stream_hints negative = {.columns = -1};
    CHECK_FAILS(CDAD_INVALID, "-1 columns",
                cdad_stream_plan_make(&plan, 40, CDAD_STREAM_AUTO, 0.9, &negative, err));
    CHECK_FAILS(CDAD_INVALID, "method 5", cdad_stream_plan_make(&plan, 40, (cdad_stream_method)5, 0.9, NULL, err));

    /* 36, 81 and 36 MB of exact streams; the last was not chosen and stays. */
    cdad_stream_plan plans[3];
    CHECK_OK(cdad_stream_plan_make(&plans[0], 3000, CDAD_STREAM_AUTO, 0.999, NULL, err));
    CHECK_OK(cdad_stream_plan_make(&plans[1], 4500, CDAD_STREAM_AUTO, 0.999, NULL, err));
    CHECK_OK(cdad_stream_plan_make(&plans[2], 3000, CDAD_STREAM_EXACT, 0.999, NULL, err));
    const cdad_stream_hints come = {.columns = 4500};
    cdad_stream_plan few;
    CHECK_OK(cdad_stream_plan_make(&few, 4500, CDAD_STREAM_AUTO, 0.999, &come, err));
    CHECK(few.method == CDAD_STREAM_INCREMENTAL, "method %d", few.method);
    CHECK(few.wait == 4500 && few.bytes == 4ll * 4500 * 4500, "%" PRId64 " wait, %" PRId64 " bytes", few.wait, few.bytes);
    int64_t sum = few.bytes;
    CHECK(cdad_stream_plans_fit(&few, 1, sum - 1) < sum && few.method == CDAD_STREAM_SKETCH &&
              few.wait == CDAD_LOWRANK_WAIT,
          "an incremental stream does not give way");
    sum = plans[0].bytes + plans[1].bytes + plans[2].bytes;
    CHECK(cdad_stream_plans_fit(plans, 3, sum) == sum && plans[1].method == CDAD_STREAM_EXACT, "what fits was changed");
    sum = cdad_stream_plans_fit(plans, 3, sum - 1);
    CHECK(plans[0].method == CDAD_STREAM_EXACT && plans[1].method == CDAD_STREAM_SKETCH && plans[1].rank == 562,
          "the widest: rank %" PRId64, plans[1].rank);
    CHECK(sum == plans[0].bytes + plans[1].bytes + plans[2].bytes, "%" PRId64 " bytes", sum);
    sum = cdad_stream_plans_fit(plans, 3, 50 << 20);
    CHECK(sum <= 50 << 20 && plans[0].method == CDAD_STREAM_SKETCH && plans[0].rank >= 64, "%" PRId64 " bytes", sum);
    sum = cdad_stream_plans_fit(plans, 3, 1);
    CHECK(sum > 1 && plans[0].rank >= 64 && plans[0].rank < 128 && plans[2].method == CDAD_STREAM_EXACT,
          "%" PRId64 " bytes, rank %" PRId64, sum, plans[0].rank);
}

/* What is reported of an incremental stream is true of X [rows,d], all that it has seen. */
static void check_bounds(const cdad_context *ctx, const cdad_stream *s, const float *X, int64_t rows, const char *what) {
    const int64_t d = cdad_stream_width(s);
    const cdad_stream_plan *plan = cdad_stream_planned(s);
    const cdad_stream_energy e = energies_of(s, ctx);
    double *V = gram_of(X, rows, d), total = 0, left = 0, energy, best = 0;
    int64_t n, k, fewest = 0;
    float *U;
    for (int64_t i = 0; i < d; i++)
        total += V[i * d + i];
    double *values = decompose(V, d), *state = state_of(s, &n), *B = state + 6;
    const int64_t held = (n - 6) / d;
    for (int64_t i = 0; i < held * d; i++)
        left += B[i] * B[i];
    CHECK(fabs(e.total - total) < 1e-12 * total, "%s: total energy %.15g, should be %.15g", what, e.total, total);
    CHECK(fabs(e.total - left - e.lost) < 1e-6 * total, "%s: lost %g, measured %g", what, e.lost, e.total - left);
    CHECK(held <= cdad_lowrank_bytes(d, plan->wait, 0) / (d * (int64_t)sizeof(float)), "%s: %" PRId64 " rows", what, held);
    CHECK(e.lost <= (1 - plan->gamma) / 4 * total * (1 + 1e-9) + 1e-11 * total, "%s: lost %g", what, e.lost / total);
    for (int64_t j = 0; j < d; j += d > 200 ? 23 : 1) { /* |X v|^2 - |B v|^2 along the features' own directions */
        double inside = 0;
        for (int64_t i = 0; i < held; i++) {
            double dot = 0;
            for (int64_t l = 0; l < d; l++)
                dot += B[i * d + l] * V[l + j * d];
            inside += dot * dot;
        }
        const double gone = values[j] - inside;
        CHECK(gone > -1e-6 * total && gone <= e.spectral + 1e-6 * total, "%s: direction %" PRId64 " lost %g of %g", what,
              j, gone, e.spectral);
    }
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    const double share = share_kept(X, rows, d, U, k);
    CHECK(orthonormality(U, d, k) <= 1e-6, "%s: %g", what, orthonormality(U, d, k));
    CHECK(share >= energy - 1e-6 && share <= energy + e.lost / total + 1e-6, "%s: kept %g, said %g", what, share, energy);
    CHECK(energy >= plan->gamma - 1e-9, "%s: kept %g", what, energy);
    while (fewest < d && best < plan->gamma * total) /* hardly more directions than a decomposition of everything needs */
        best += values[fewest++];
    CHECK(k >= fewest && (double)k <= 1.05 * (double)fewest + 1, "%s: rank %" PRId64 ", %" PRId64 " would do", what, k, fewest);
    cdad_free(U);
    cdad_free(state);
    cdad_free(values);
    cdad_free(V);
}

/* Narrow features (the d x d side is smaller), wide ones (the other), by either method: the same bits whoever computes. Incremental
 * streams: also however they are cut into blocks, and within the bounds; sketches: to float32's rounding. */
static void test_blocks_and_bounds(const cdad_context *ctx, const cdad_context *serial, int bounds) {
    static const struct {
        int64_t d, rows, rank;
        float decay;
        double gamma;
        int64_t limit; /* 0: incremental */
    } cases[] = {
        {60, 1500, 60, 0.93f, 0.99, 0},    {60, 1500, 60, 0.93f, 0.99, 20},  {500, 1000, 60, 0.93f, 0.999, 0},
        {500, 1000, 300, 0.985f, 0.99, 0}, {500, 1000, 300, 0.985f, 0.99, 80}, {500, 1000, 300, 0.995f, 0.99, 25},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int64_t d = cases[c].d, rows = cases[c].rows;
        float *X = low_rank(rows, d, cases[c].rank, cases[c].decay, 100 + c);
        cdad_stream *s = new_kind(d, cases[c].gamma, cases[c].limit), *t = new_kind(d, cases[c].gamma, cases[c].limit);
        char what[32];
        snprintf(what, sizeof what, "case %zu", c);
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, d), rows, err));
        for (int64_t i = 0; i < rows; i += 37)
            CHECK_OK(cdad_stream_add(t, serial, dense(X + i * d, d), rows - i < 37 ? rows - i : 37, err));
        CHECK(same_state(s, t, cases[c].limit > 0 ? 1e-6 : 0), "%s: blocks or threads change bits", what);
        CHECK(cdad_stream_rows(t) == rows, "%s: %" PRId64 " rows", what, cdad_stream_rows(t));
        if (cases[c].limit > 0) {
            cdad_stream_free(t);
            t = new_sketch(d, cases[c].gamma, cases[c].limit);
            CHECK_OK(cdad_stream_add(t, serial, dense(X, d), rows, err));
            CHECK(same_state(s, t, 0), "%s: threads change bits", what);
        } else if (bounds) {
            check_bounds(ctx, s, X, rows, what);
        }
        cdad_stream_free(s);
        cdad_stream_free(t);
        cdad_free(X);
    }
}

/* Ten directions, each a fifth of the one before: energies down to 3e-13 of the first. */
static void test_small_singular_values(const cdad_context *ctx) {
    enum { ROWS = 900, RANK = 10 };
    static const int64_t widths[] = {40, 500};
    for (int w = 0; w < 2; w++) {
        const int64_t d = widths[w];
        float *X = floats(ROWS * d), *values, *U;
        double energy, *G;
        int64_t n, k;
        float *left = normal(ROWS * RANK, 200), *right = normal(RANK * d, 201);
        for (int64_t i = 0; i < ROWS; i++) /* one direction each d / RANK columns: exactly of rank 10, not to float32's rounding */
            for (int64_t j = 0; j < d; j++) {
                const int64_t r = j * RANK / d;
                X[i * d + j] = left[i * RANK + r] * right[r * d + j] * powf(0.2f, (float)r);
            }
        G = gram_of(X, ROWS, d);
        double *expected = decompose(G, d);
        cdad_stream *s = new_stream(d, CDAD_STREAM_INCREMENTAL, 1);
        for (int64_t i = 0; i < ROWS; i += 300)
            CHECK_OK(cdad_stream_add(s, ctx, dense(X + i * d, d), 300, err));
        CHECK_OK(cdad_stream_singular_values(s, ctx, &values, &n, err));
        for (int64_t i = 0; i < RANK; i++)
            CHECK(fabs((double)values[i] / sqrt(expected[i]) - 1) < 1e-3, "width %" PRId64 ": value %" PRId64 " is %g, not %g",
                  d, i, (double)values[i], sqrt(expected[i]));
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
        CHECK(k == RANK, "width %" PRId64 ": rank %" PRId64, d, k);
        cdad_free(U);
        cdad_free(values);
        cdad_stream_free(s);
        cdad_free(expected);
        cdad_free(G);
        cdad_free(left);
        cdad_free(right);
        cdad_free(X);
    }
}

/* Old bases where no d x d matrix is made: kept bit by bit, joined to reach gamma, refused when they are none. */
static void test_old_basis(const cdad_context *ctx) {
    enum { D = 700, ROWS = 400, RANK = 40 };
    float *X = low_rank(ROWS, D, RANK, 0.9f, 210), *Y = low_rank(ROWS, D, RANK, 0.9f, 211), *old, *U, *again;
    cdad_stream *a = new_stream(D, CDAD_STREAM_INCREMENTAL, 0.99), *b = new_stream(D, CDAD_STREAM_INCREMENTAL, 0.99),
                *exact = new_stream(D, CDAD_STREAM_EXACT, 0.99);
    int64_t k_old, k, k_exact;
    double energy;
    CHECK_OK(cdad_stream_add(a, ctx, dense(X, D), ROWS, err));
    for (int64_t i = 0; i < ROWS * D; i++) /* half of it known */
        Y[i] += X[i];
    CHECK_OK(cdad_stream_add(b, ctx, dense(Y, D), ROWS, err));
    CHECK_OK(cdad_stream_add(exact, ctx, dense(Y, D), ROWS, err));
    CHECK_OK(cdad_stream_basis(a, ctx, NULL, 0, &old, &k_old, &energy, err));
    CHECK_OK(cdad_stream_basis(b, ctx, old, k_old, &U, &k, &energy, err));
    const double share = share_kept(Y, ROWS, D, U, k);
    CHECK(orthonormality(U, D, k) <= 1e-6, "%g", orthonormality(U, D, k));
    CHECK(share >= 0.99 && energy >= 0.99 && fabs(share - energy) < 0.01 / 4 + 1e-6, "kept %g, said %g", share, energy);
    for (int64_t i = 0; i < D; i++)
        CHECK(!memcmp(U + i * k, old + i * k_old, (size_t)k_old * sizeof *U), "row %" PRId64 " of the old basis", i);
    CHECK_OK(cdad_stream_basis(exact, ctx, old, k_old, &again, &k_exact, &energy, err));
    CHECK(k >= k_exact && k <= k_exact + 2 && k > k_old, "rank %" PRId64 ", exact %" PRId64, k, k_exact);
    cdad_free(again);
    CHECK_OK(cdad_stream_basis(b, ctx, U, k, &again, &k_exact, &energy, err));
    CHECK(k_exact == k && energy >= 0.99, "what is known added %" PRId64 " directions", k_exact - k);
    cdad_free(again);
    again = NULL;
    CHECK_FAILS(CDAD_SHAPE, "701 columns", cdad_stream_basis(b, ctx, U, D + 1, &again, &k, &energy, err));
    old[k_old + 1] += 0.01f;
    CHECK_FAILS(CDAD_INVALID, "not orthonormal", cdad_stream_basis(b, ctx, old, k_old, &again, &k, &energy, err));
    old[k_old + 1] = NAN;
    CHECK_FAILS(CDAD_NOT_FINITE, "row 1, column 1", cdad_stream_basis(b, ctx, old, k_old, &again, &k, &energy, err));
    CHECK(again == NULL, "a basis that was refused");
    cdad_stream_free(a);
    cdad_stream_free(b);
    cdad_stream_free(exact);
    cdad_free(old);
    cdad_free(U);
    cdad_free(X);
    cdad_free(Y);
}

static void test_merge(const cdad_context *ctx) {
    enum { D = 300, ROWS = 1400, PARTS = 3 };
    static const int64_t limits[] = {0, 90};
    float *X = low_rank(ROWS, D, 200, 0.98f, 230);
    for (int l = 0; l < 2; l++) {
        cdad_stream *whole = new_kind(D, 0.99, limits[l]), *one = new_kind(D, 0.99, limits[l]), *other;
        CHECK_OK(cdad_stream_add(one, ctx, dense(X, D), ROWS, err));
        for (int64_t part = 0, first = 0, end; part < PARTS; part++, first = end) {
            end = (part + 1) * ROWS / PARTS;
            other = new_kind(D, 0.99, limits[l]);
            CHECK_OK(cdad_stream_add(other, ctx, dense(X + first * D, D), end - first, err));
            const cdad_stream_energy a = energies_of(whole, ctx), b = energies_of(other, ctx);
            CHECK_OK(cdad_stream_merge(whole, ctx, other, err));
            CHECK(l == 1 || energies_of(whole, ctx).lost >= a.lost + b.lost, "losses do not add up");
            cdad_stream_free(other);
        }
        CHECK(cdad_stream_rows(whole) == ROWS, "%" PRId64 " rows", cdad_stream_rows(whole));
        CHECK(l == 0 || same_state(whole, one, 1e-6), "merged sketches are not that of all");
        const cdad_stream_energy e = energies_of(whole, ctx);
        float *U;
        int64_t k;
        double energy, total = 0;
        for (int64_t i = 0; i < ROWS * D; i++)
            total += (double)X[i] * (double)X[i];
        CHECK(fabs(e.total - total) < 1e-12 * total, "total energy %g, should be %g", e.total, total);
        CHECK_OK(cdad_stream_basis(whole, ctx, NULL, 0, &U, &k, &energy, err));
        const double share = share_kept(X, ROWS, D, U, k);
        CHECK(l == 1 || (share >= energy - 1e-6 && share <= energy + e.lost / total + 1e-6), "kept %g, said %g", share, energy);
        CHECK(l == 0 || fabs(share - energy) < 0.001, "sketches: kept %g, said %g", share, energy);
        cdad_free(U);
        cdad_stream *exact = new_stream(D, CDAD_STREAM_EXACT, 0.99), *wide = new_kind(D + 1, 0.99, limits[l]);
        cdad_stream *unlike = new_kind(D, 0.99, limits[1 - l]), *isvd = new_stream(D, CDAD_STREAM_ISVD, 0.99);
        CHECK_FAILS(CDAD_INVALID, "merged", cdad_stream_merge(whole, ctx, exact, err));
        CHECK_FAILS(CDAD_INVALID, "merged", cdad_stream_merge(exact, ctx, whole, err));
        CHECK_FAILS(CDAD_INVALID, "merged", cdad_stream_merge(whole, ctx, unlike, err));
        CHECK_FAILS(CDAD_INVALID, "merged", cdad_stream_merge(isvd, ctx, whole, err));
        CHECK_FAILS(CDAD_INVALID, "itself", cdad_stream_merge(whole, ctx, whole, err));
        CHECK_FAILS(CDAD_SHAPE, "width 301", cdad_stream_merge(whole, ctx, wide, err));
        cdad_stream_free(isvd);
        cdad_stream_free(unlike);
        cdad_stream_free(exact);
        cdad_stream_free(wide);
        cdad_stream_free(one);
        cdad_stream_free(whole);
    }
    cdad_stream *few = new_sketch(D, 0.99, 20), *more = new_sketch(D, 0.99, 21);
    CHECK_FAILS(CDAD_SHAPE, "a sketch of rank 21 into rank 20", cdad_stream_merge(few, ctx, more, err));
    cdad_stream_free(few);
    cdad_stream_free(more);
    cdad_free(X);
}

static void test_resume_and_refusals(const cdad_context *ctx) {
    enum { D = 300, ROWS = 1000, CUT = 431 };
    static const int64_t limits[] = {0, 50};
    float *X = low_rank(ROWS, D, 200, 0.98f, 240);
    for (int l = 0; l < 2; l++) {
        cdad_stream *s = new_kind(D, 0.99, limits[l]), *t = new_kind(D, 0.99, limits[l]), *kept = new_kind(D, 0.99, limits[l]);
        int64_t n;
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), CUT, err));
        double *state = state_of(s, &n);
        CHECK_OK(cdad_stream_state_set(t, state, n, err));
        CHECK_OK(cdad_stream_state_set(kept, state, n, err));
        const float before = X[(ROWS - 1) * D + 7];
        X[(ROWS - 1) * D + 7] = NAN;
        CHECK_FAILS(CDAD_NOT_FINITE, "row 568, column 7", cdad_stream_add(s, ctx, dense(X + CUT * D, D), ROWS - CUT, err));
        CHECK(same_state(s, kept, 0), "a refused block left traces");
        X[(ROWS - 1) * D + 7] = before;
        CHECK_OK(cdad_stream_add(s, ctx, dense(X + CUT * D, D), ROWS - CUT, err));
        CHECK_OK(cdad_stream_add(t, ctx, dense(X + CUT * D, D), ROWS - CUT, err));
        CHECK(same_state(s, t, 0), "a saved state goes on otherwise");

        cdad_stream *narrow = new_kind(D - 1, 0.99, limits[l]), *few = new_kind(D, 0.99, 3);
        const char *no = limits[l] > 0 ? "are no sketch" : "do not hold";
        CHECK_FAILS(CDAD_INVALID, "of width 299", cdad_stream_state_set(narrow, state, n, err));
        CHECK_FAILS(CDAD_INVALID, "are no sketch by 5 test vectors", cdad_stream_state_set(few, state, n, err));
        CHECK_FAILS(CDAD_INVALID, no, cdad_stream_state_set(kept, state, n - 1, err));
        CHECK_FAILS(CDAD_INVALID, no, cdad_stream_state_set(kept, state, 3, err));
        const double value = state[n - 2];
        state[n - 2] = 1e-300;
        CHECK_FAILS(CDAD_INVALID, "no float32", cdad_stream_state_set(kept, state, n, err));
        state[n - 2] = value;
        state[limits[l] > 0 ? 1 : 4] = -1;
        CHECK_FAILS(CDAD_INVALID, no, cdad_stream_state_set(kept, state, n, err));
        cdad_free(state);
        cdad_stream_free(narrow);
        cdad_stream_free(few);
        cdad_stream_free(s);
        cdad_stream_free(t);
        cdad_stream_free(kept);
    }
    cdad_free(X);
}

/* Stopped at each poll: the stream is as it was or says that it is torn, and a saved state mends it. */
static void test_stopping(const cdad_context *ctx) {
    enum { D = 600, ROWS = 800, CUT = 250 };
    float *X = low_rank(ROWS, D, 300, 0.99f, 250);
    cdad_stream *s = new_stream(D, CDAD_STREAM_INCREMENTAL, 0.99), *kept = new_stream(D, CDAD_STREAM_INCREMENTAL, 0.99);
    cdad_context stopping = *ctx;
    int untouched = 0, torn = 0, done = 0;
    int64_t n, size;
    stopping.poll = count_down;
    CHECK_OK(cdad_stream_add(kept, ctx, dense(X, D), CUT, err));
    double *state = state_of(kept, &n);
    for (int at = 1; at < 200 && !done; at++) {
        CHECK_OK(cdad_stream_state_set(s, state, n, err));
        stop_at_poll = at;
        const cdad_status status = cdad_stream_add(s, &stopping, dense(X + CUT * D, D), ROWS - CUT, NULL);
        CHECK(status == CDAD_OK || status == CDAD_CANCELLED, "poll %d: status %d", at, status);
        done = status == CDAD_OK;
        if (!done && cdad_stream_state_size(s, &size, NULL) == CDAD_OK) {
            untouched++;
            CHECK(same_state(s, kept, 0) && cdad_stream_rows(s) == CUT, "poll %d left traces", at);
        } else if (!done) {
            torn++;
            CHECK_FAILS(CDAD_INVALID, "half-way", cdad_stream_add(s, ctx, dense(X, D), 1, err));
        }
    }
    CHECK(done && untouched > 2 && torn > 2, "%d untouched, %d torn", untouched, torn);
    cdad_free(state);
    cdad_stream_free(s);
    cdad_stream_free(kept);
    cdad_free(X);
}

/* Each allocation of a block that is factored several times fails in turn. */
static void test_no_memory(const cdad_context *ctx) {
    enum { D = 40, WIDE = 400, ROWS = 900, CUT = 250 };
    static const int64_t widths[] = {D, WIDE, D, WIDE};
    for (int w = 0; w < 4; w++) {
        const int64_t d = widths[w], limit = w < 2 ? 0 : 12;
        float *X = low_rank(ROWS, d, 30, 0.9f, 260), *old, *U, *values;
        cdad_stream *s = new_kind(d, 0.99, limit), *kept = new_kind(d, 0.99, limit), *part = new_kind(d, 0.99, limit);
        int64_t n, size, k, k_old;
        double energy;
        int untouched = 0, torn = 0;
        CHECK_OK(cdad_stream_add(kept, ctx, dense(X, d), CUT, err));
        double *state = state_of(kept, &n);
        for (int merging = 0; merging < 2; merging++) {
            cdad_status status = CDAD_NO_MEMORY;
            CHECK_OK(cdad_stream_state_set(part, state, n, err));
            for (int64_t i = 1; status == CDAD_NO_MEMORY && i < 200; i++) {
                CHECK_OK(cdad_stream_state_set(s, state, n, err));
                cdad_alloc_fail_after(i);
                status = merging ? cdad_stream_merge(s, ctx, part, NULL)
                                 : cdad_stream_add(s, ctx, dense(X + CUT * d, d), ROWS - CUT, NULL);
                cdad_alloc_fail_after(0);
                if (status == CDAD_NO_MEMORY && cdad_stream_state_size(s, &size, NULL) == CDAD_OK) {
                    untouched++;
                    CHECK(same_state(s, kept, 0), "allocation %" PRId64 " left traces", i);
                } else if (status == CDAD_NO_MEMORY) {
                    torn++;
                }
            }
            CHECK(status == CDAD_OK, "status %d", status);
        }
        CHECK(limit > 0 ? untouched > 0 && torn == 0 : untouched > 4 && torn > 4, "width %" PRId64 ": %d untouched, %d torn", d,
              untouched, torn);
        CHECK_OK(cdad_stream_basis(kept, ctx, NULL, 0, &old, &k_old, &energy, err));
        const int64_t some = k_old / 2;
        for (int64_t i = 0; i < d; i++)
            memmove(old + i * some, old + i * k_old, (size_t)some * sizeof *old);
        EACH_ALLOCATION_FAILS(cdad_stream_basis(s, ctx, old, some, &U, &k, &energy, NULL), U == NULL);
        CHECK(k > some, "rank %" PRId64, k);
        cdad_free(U);
        EACH_ALLOCATION_FAILS(cdad_stream_singular_values(s, ctx, &values, &k, NULL), values == NULL);
        cdad_free(values);
        cdad_free(old);
        cdad_free(state);
        cdad_stream_free(s);
        cdad_stream_free(kept);
        cdad_stream_free(part);
        cdad_free(X);
    }
}

int cdad_test_streams(void) {
    cdad_pool *pool = NULL, *wide = NULL;
    CHECK_OK(cdad_pool_new(&pool, 3, err));
    CHECK_OK(cdad_pool_new(&wide, 4, err));
    const cdad_context serial = {.kernels = cdad_kernels_select(NULL)};
    cdad_context ctx = serial, four = serial;
    ctx.pool = pool;
    four.pool = wide;
    test_cut();
    test_narrow_products(&serial);
    test_narrow_products(&ctx);
    test_plan();
    test_blocks_and_bounds(&ctx, &serial, 1);
    test_blocks_and_bounds(&ctx, &four, 0);
    test_small_singular_values(&ctx);
    test_old_basis(&ctx);
    test_merge(&ctx);
    test_resume_and_refusals(&ctx);
    test_stopping(&serial);
    test_no_memory(&ctx);
    cdad_pool_free(pool);
    cdad_pool_free(wide);
    return failures;
}
