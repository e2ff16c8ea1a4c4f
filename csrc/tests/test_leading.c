/* Leading directions: against the spectrum in double, and by what they promise. */
#include "continual/basis.h"
#include "continual/leading.h"
#include "stream_check.h"

int cdad_test_leading(void);

enum { LEAST = 768 };

/* X [rows,d], the spread of direction i falling as 1/(i+1), each direction spread over the coordinates. */
static float *spread(int64_t rows, int64_t d, int64_t rank, uint64_t stream) {
    float *X = floats(rows * d), *left = normal(rows * rank, stream), *right = normal(rank * d, stream + 1000);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t r = 0; r < rank; r++)
            left[i * rank + r] /= (float)(r + 1);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)d, (int)rank, 1, left, (int)rank, right, (int)d, 0,
                X, (int)d);
    cdad_free(left);
    cdad_free(right);
    return X;
}

/* The fewest directions beside U_old [d,k_old] that hold gamma of X's energy. */
static int64_t fewest(const float *X, int64_t rows, int64_t d, const float *U_old, int64_t k_old, double gamma) {
    float *U;
    int64_t k;
    double *G = gram_of(X, rows, d), total = 0, energy;
    for (int64_t i = 0; i < d; i++)
        total += G[i * d + i];
    CHECK_OK(cdad_basis_extend(G, d, total, 0, gamma, U_old, k_old, d, &U, &k, &energy, err));
    cdad_free(U);
    cdad_free(G);
    return k;
}

/* G in float, or the features themselves, few or many: the span reaches gamma, as it says, with hardly a direction more
 * than the fewest; the old basis stays; threads change no bit. */
static void test_leading(const cdad_context *ctx, const cdad_context *serial) {
    static const struct {
        int64_t n, d;
        int gram;
        double gamma;
        float decay; /* 0: as in spread() */
    } cases[] = {{900, 400, 1, 0.99, 0},     {500, 400, 0, 0.99, 0},     {390, 400, 0, 0.99, 0},
                 {300, 700, 0, 0.99, 0},     {300, 700, 0, 0.9, 0}, /* then a block has combinations that are all but the same */
                 {900, 400, 1, 0.999, 0.8f}, {390, 400, 0, 0.999, 0.7f}, {300, 700, 0, 0.999, 0.75f}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int64_t n = cases[c].n, d = cases[c].d;
        const double gamma = cases[c].gamma;
        const float decay = cases[c].decay;
        float *X = decay > 0 ? low_rank(n, d, 200, decay, 300 + c) : spread(n, d, 200, 300 + c), *narrow = floats(d * d), *old = NULL, *U, *again;
        double *G = gram_of(X, n, d), total = 0, energy, energy_again;
        int64_t k_old = 0, k, k_again;
        int found;
        for (int64_t i = 0; i < d * d; i++)
            narrow[i] = (float)G[i];
        for (int64_t i = 0; i < d; i++)
            total += G[i * d + i];
        cdad_leading_of of = {.A = cases[c].gram ? narrow : X, .n = cases[c].gram ? 0 : n, .d = d, .total = total};
        for (int with_old = 0; with_old < 2; with_old++) {
            CHECK_OK(cdad_leading_basis(ctx, of, gamma, old, k_old, d, &found, &U, &k, &energy, err));
            CHECK(found && U, "case %zu: not found", c);
            CHECK_OK(cdad_leading_basis(serial, of, gamma, old, k_old, d, &found, &again, &k_again, &energy_again, err));
            CHECK(k == k_again && energy == energy_again && same(U, again, d * k), "case %zu: threads change bits", c);
            const double share = share_kept(X, n, d, U, k);
            const int64_t best = fewest(X, n, d, old, k_old, gamma);
            CHECK(orthonormality(U, d, k) <= 1e-6, "case %zu: %g", c, orthonormality(U, d, k));
            CHECK(energy >= gamma && share >= energy - 1e-6 && share <= energy + 1e-4, "case %zu: kept %.8f, said %.8f", c, share,
                  energy);
            CHECK(k >= best && (double)k <= 1.03 * (double)best + 1, "case %zu: rank %" PRId64 ", %" PRId64 " would do", c, k, best);
            for (int64_t i = 0; i < d; i++)
                CHECK(k_old == 0 || !memcmp(U + i * k, old + i * k_old, (size_t)k_old * sizeof *U), "case %zu: old row %" PRId64,
                      c, i);
            cdad_free(again);
            if (!with_old) { /* 20 directions of other features are known */
                cdad_free(U);
                float *Y = spread(n, d, 20, 400 + c);
                double *H = gram_of(Y, n, d);
                CHECK_OK(cdad_basis_extend(H, d, 1, 0, 1, NULL, 0, 20, &old, &k_old, &energy, err));
                cdad_free(H);
                cdad_free(Y);
            } else {
                /* Of what U holds already nothing is added, and at most as many as are allowed. */
                CHECK_OK(cdad_leading_basis(ctx, of, gamma - 1e-5, U, k, d, &found, &again, &k_again, &energy_again, err));
                CHECK(found && k_again == k, "case %zu: %" PRId64 " added to what was known", c, k_again - k);
                cdad_free(again);
                CHECK_OK(cdad_leading_basis(ctx, of, gamma, old, k_old, 5, &found, &again, &k_again, &energy_again, err));
                CHECK(found && k_again == k_old + 5 && energy_again < gamma, "case %zu: rank %" PRId64 " of at most 5 more", c,
                      k_again);
                const double five = share_kept(X, n, d, again, k_again);
                CHECK(fabs(five - energy_again) < 1e-4, "case %zu: kept %g, said %g", c, five, energy_again);
                cdad_free(again);
                cdad_free(U);
            }
        }
        cdad_free(old);
        cdad_free(narrow);
        cdad_free(G);
        cdad_free(X);
    }
}

/* Features of which most are zeros, copies or multiples of others span less than is sought at once: what is said is true all the same, and
 * hardly a direction more is taken than the fewest. */
static void test_dependent(const cdad_context *ctx) {
    static const struct {
        int64_t n, d, live;
        int gram, kinds;
    } ways[] = {{900, 400, 40, 1, 4}, {500, 400, 40, 0, 4}, {300, 700, 40, 0, 4}, {700, 1280, 250, 1, 1} /* a block and some more are sought */};
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (int kind = 0; kind < ways[w].kinds; kind++) {
            const int64_t n = ways[w].n, d = ways[w].d, live = ways[w].live;
            float *X = normal(n * d, 540 + 10 * w + (uint64_t)kind), *narrow = floats(d * d), *old = NULL, *U;
            double total = 0, energy;
            int64_t k_old = 0, k;
            int found;
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = 0; j < d; j++) {
                    float *x = X + i * d + j;
                    if (kind == 0) /* dead channels */
                        *x = j < live ? fmaxf(*x, 0) : 0;
                    else if (kind == 1) /* channels that are others' multiples */
                        *x = j < live ? *x : X[i * d + j % live] * (float)(1 + j / live);
                    else if (kind == 2) /* rows that come again */
                        *x = X[i % live * d + j];
                    else if (i >= live) /* rows of nothing */
                        *x = 0;
                    total += (double)*x * (double)*x;
                }
            double *G = gram_of(X, n, d);
            for (int64_t i = 0; i < d * d; i++)
                narrow[i] = (float)G[i];
            const cdad_leading_of of = {.A = ways[w].gram ? narrow : X, .n = ways[w].gram ? 0 : n, .d = d, .total = total};
            for (int with_old = 0; with_old < 2; with_old++) {
                CHECK_OK(cdad_leading_basis(ctx, of, 0.99, old, k_old, d, &found, &U, &k, &energy, err));
                CHECK(found && U, "way %zu, kind %d: not found", w, kind);
                const double share = found ? share_kept(X, n, d, U, k) : 0;
                const int64_t best = fewest(X, n, d, old, k_old, 0.99);
                CHECK(energy >= 0.99 && fabs(share - energy) < 1e-6 && orthonormality(U, d, k) <= 1e-6,
                      "way %zu, kind %d: kept %.7f, said %.7f", w, kind, share, energy);
                CHECK(k >= best && k <= best + 2, "way %zu, kind %d: rank %" PRId64 ", %" PRId64 " would do", w, kind, k, best);
                if (!with_old) /* half of them are known */
                    CHECK_OK(cdad_basis_extend(G, d, 1, 0, 1, NULL, 0, live / 2, &old, &k_old, &energy, err));
                cdad_free(U);
            }
            cdad_free(old);
            cdad_free(G);
            cdad_free(narrow);
            cdad_free(X);
        }
}

/* White features need nearly all directions: it says so, and streams solve the whole problem. */
static void test_not_found(const cdad_context *ctx) {
    enum { N = 1600, D = 400 };
    float *X = normal(N * D, 500), *U;
    int64_t k;
    double energy, total = 0;
    int found;
    for (int64_t i = 0; i < N * D; i++)
        total += (double)X[i] * (double)X[i];
    const cdad_leading_of of = {.A = X, .n = N, .d = D, .total = total};
    CHECK_OK(cdad_leading_basis(ctx, of, 0.99, NULL, 0, D, &found, &U, &k, &energy, err));
    CHECK(!found && !U, "%" PRId64 " directions of white features", k);
    const cdad_leading_of none = {.A = X, .n = 0, .d = D, .total = 0};
    CHECK_OK(cdad_leading_basis(ctx, none, 0.99, NULL, 0, D, &found, &U, &k, &energy, err));
    CHECK(found && k == 0 && energy == 1, "rank %" PRId64 " of nothing", k);
    cdad_free(U);
    cdad_free(X);
    CHECK(!cdad_leading_applies(LEAST - 1, 0.999) && cdad_leading_applies(LEAST, 0.999) && !cdad_leading_applies(LEAST, 0.9999),
          "where it applies");
}

/* Streams wide enough: what they say is true, exact or waiting, rounded or not, with an old basis. */
static void test_streams(const cdad_context *ctx) {
    enum { ROWS = 1000, D = LEAST };
    static const double gamma = 0.99;
    float *X = spread(ROWS, 2 * LEAST, 200, 510), *Y = floats(ROWS * D), *U, *V;
    int64_t k, k_old;
    double energy;
    for (int64_t i = 0; i < ROWS; i++)
        memcpy(Y + i * D, X + i * 2 * LEAST, D * sizeof *Y);
    for (int rounding = CDAD_GRAM_PLAIN; rounding <= CDAD_GRAM_BYTES; rounding++) {
        const double close = rounding == CDAD_GRAM_BYTES ? 2e-4 : 2e-5; /* of 7 bits there are few features here */
        cdad_stream_plan plan;
        cdad_stream *s;
        CHECK_OK(cdad_stream_plan_make(&plan, D, CDAD_STREAM_EXACT, gamma, NULL, err));
        plan.rounding = (cdad_gram_rounding)rounding; /* bfloat16 is emulated where the processor has none, and whole numbers are plain */
        CHECK_OK(cdad_stream_open(&s, &plan, err));
        CHECK_OK(cdad_stream_add(s, ctx, dense(Y, D), ROWS, err));
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k_old, &energy, err));
        const double share = share_kept(Y, ROWS, D, U, k_old);
        CHECK(energy >= gamma && fabs(share - energy) < close, "rounding %d: kept %.7f, said %.7f", rounding, share, energy);
        const int64_t best = fewest(Y, ROWS, D, NULL, 0, gamma);
        CHECK(llabs(k_old - best) <= 2, "rounding %d: rank %" PRId64 ", %" PRId64 " would do", rounding, k_old, best);
        for (int64_t i = 0; i < D; i++) /* every other direction is known */
            for (int64_t j = 0; j < k_old / 2; j++)
                U[i * (k_old / 2) + j] = U[i * k_old + 2 * j];
        CHECK_OK(cdad_stream_basis(s, ctx, U, k_old / 2, &V, &k, &energy, err));
        CHECK(k <= best + 3 && energy >= gamma && fabs(share_kept(Y, ROWS, D, V, k) - energy) < close,
              "rounding %d: rank %" PRId64 ", kept %g", rounding, k, energy);
        cdad_free(V);
        V = NULL;
        U[3] += 0.1f;
        CHECK_FAILS(CDAD_INVALID, "not orthonormal", cdad_stream_basis(s, ctx, U, k_old / 2, &V, &k, &energy, err));
        CHECK(V == NULL, "a basis that was refused");
        cdad_free(U);
        cdad_stream_free(s);
    }
    const cdad_stream_hints hints = {.columns = ROWS};
    cdad_stream_plan plan;
    cdad_stream *s, *t;
    CHECK_OK(cdad_stream_plan_make(&plan, 2 * LEAST, CDAD_STREAM_INCREMENTAL, gamma, &hints, err));
    CHECK_OK(cdad_stream_open(&s, &plan, err));
    CHECK_OK(cdad_stream_add(s, ctx, dense(X, 2 * LEAST), ROWS, err));
    const cdad_stream_energy e = energies_of(s, ctx);
    CHECK(e.lost == 0 && plan.bytes == 4ll * ROWS * 2 * LEAST, "lost %g while waiting", e.lost);
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    const double share = share_kept(X, ROWS, 2 * LEAST, U, k);
    CHECK(energy >= gamma && fabs(share - energy) < 1e-5, "kept %.7f, said %.7f", share, energy);
    cdad_free(U);
    /* A stream that expects less takes the state all the same, and both go on. */
    int64_t n;
    double *state = state_of(s, &n);
    t = new_stream(2 * LEAST, CDAD_STREAM_INCREMENTAL, gamma);
    CHECK_OK(cdad_stream_state_set(t, state, n, err));
    CHECK(same_state(s, t, 0), "the state is another");
    for (int other = 0; other < 2; other++) {
        CHECK_OK(cdad_stream_add(other ? t : s, ctx, dense(X, 2 * LEAST), 300, err));
        CHECK(energies_of(other ? t : s, ctx).lost <= (1 - gamma) / 4 * 1.3 * e.total, "lost too much");
    }
    cdad_free(state);
    cdad_stream_free(t);
    cdad_stream_free(s);
    cdad_free(X);
    cdad_free(Y);
}

/* What an incremental stream has lost is not what a basis may miss beside: it reaches gamma of what is left. */
static void test_after_losses(const cdad_context *ctx) {
    enum { ROWS = 64, BLOCKS = 17, D = 2200 };
    const double gamma = 0.9;
    float *X = normal(BLOCKS * ROWS * D, 580), *U;
    cdad_stream *s = new_stream(D, CDAD_STREAM_INCREMENTAL, gamma);
    int64_t k;
    double energy;
    for (int64_t i = 0; i < BLOCKS * ROWS * D; i++)
        X[i] *= powf((float)(1 + i % D), -0.6f);
    for (int64_t b = 0; b < BLOCKS; b++)
        CHECK_OK(cdad_stream_add(s, ctx, dense(X + b * ROWS * D, D), ROWS, err));
    const cdad_stream_energy e = energies_of(s, ctx);
    CHECK(e.lost > 0.01 * e.total && e.lost < 0.03 * e.total, "lost %g", e.lost / e.total);
    CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    const double share = share_kept(X, BLOCKS * ROWS, D, U, k);
    CHECK(energy >= gamma && share >= energy - 1e-6, "kept %g, said %g", share, energy);
    cdad_free(U);
    cdad_stream_free(s);
    cdad_free(X);
}

static void test_no_memory_and_stops(const cdad_context *ctx) {
    enum { N = 90, D = 80, WIDE = 200 };
    for (int wide = 0; wide < 2; wide++) {
        const int64_t d = wide ? WIDE : D;
        float *X = low_rank(N, d, 15, 0.7f, 520), *U, *old;
        int64_t k, k_old;
        double energy;
        int found, failures_seen = 0, stops = 0;
        cdad_leading_of of = {.A = X, .n = N, .d = d};
        for (int64_t i = 0; i < N * d; i++)
            of.total += (double)X[i] * (double)X[i];
        double *G = gram_of(X, N, d);
        CHECK_OK(cdad_basis_extend(G, d, 1, 0, 1, NULL, 0, 3, &old, &k_old, &energy, err));
        cdad_free(G);
        cdad_status status = CDAD_NO_MEMORY;
        for (int64_t i = 1; status == CDAD_NO_MEMORY && i < 2000; i += 3) {
            cdad_alloc_fail_after(i);
            status = cdad_leading_basis(ctx, of, 0.99, old, k_old, d, &found, &U, &k, &energy, NULL);
            cdad_alloc_fail_after(0);
            failures_seen += status == CDAD_NO_MEMORY;
            CHECK(status == CDAD_OK || !U, "allocation %" PRId64 " left a basis", i);
        }
        CHECK(status == CDAD_OK && found && failures_seen > 10, "status %d after %d failures", status, failures_seen);
        cdad_free(U);
        cdad_context stopping = *ctx;
        stopping.poll = count_down;
        status = CDAD_CANCELLED;
        for (int at = 1; status == CDAD_CANCELLED && at < 2000; at += 3) {
            stop_at_poll = at;
            status = cdad_leading_basis(&stopping, of, 0.99, old, k_old, d, &found, &U, &k, &energy, NULL);
            stops += status == CDAD_CANCELLED;
        }
        CHECK(status == CDAD_OK && stops > 3, "status %d after %d stops", status, stops);
        cdad_free(U);
        cdad_free(old);
        cdad_free(X);
    }
}

int cdad_test_leading(void) {
    cdad_pool *pool = NULL;
    CHECK_OK(cdad_pool_new(&pool, 3, err));
    const cdad_context serial = {.kernels = cdad_kernels_select(NULL)};
    cdad_context ctx = serial;
    ctx.pool = pool;
    test_leading(&ctx, &serial);
    test_dependent(&ctx);
    test_not_found(&ctx);
    test_streams(&ctx);
    test_after_losses(&ctx);
    test_no_memory_and_stops(&ctx);
    cdad_pool_free(pool);
    return failures;
}
