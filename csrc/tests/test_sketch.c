/* Sketches: sketch_add on every table against sums in double, the factor against G, and bases against the fewest directions. */
#include "continual/sketch.h"
#include "kernel_check.h"
#include "stream_check.h"

int cdad_test_sketch(void);

static const cdad_unfold image = {3, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1}; /* 189 rows of width 45 */

/* Test vector t is +1 at (t + 3 i) % d and -1 at (t + 3 i + 1) % d, t % 4 of each. */
static int32_t *signs_for(int64_t M, int64_t d) {
    int32_t *signs = zeros((2 * M + 6 * M) * (int64_t)sizeof *signs), *places = signs + 2 * M, n = 0;
    for (int64_t t = 0; t < M; t++)
        for (int s = 0; s < 2; s++) {
            for (int64_t i = 0; i < t % 4; i++)
                places[n++] = (int32_t)((t + 3 * i + s) % d);
            signs[2 * t + s] = n;
        }
    return signs;
}

static void check_add(cdad_mat X, const float *plain, int64_t first, int64_t rows, int64_t d) {
    enum { M = 37 };
    int32_t *signs = signs_for(M, d);
    float *Y = noise(M * d, 3, 0, 1), *want = floats(M * d);
    double worst_of = 0, squares = 0;
    for (int64_t r = first; r < first + rows; r++)
        for (int64_t j = 0; j < d; j++)
            squares += (double)plain[r * d + j] * (double)plain[r * d + j];
    EACH_POOL(float *found = floats(M * d); double told = 7; void *scratch = zeros(table->sketch_scratch(rows, d, M, 0, threads));
              memcpy(found, Y, (size_t)(M * d) * sizeof *Y);
              table->sketch_add(ctx, found, &told, X, first, rows, d, signs, M, 0, scratch);
              CHECK(fabs(told - 7 - squares) < 1e-12 * (7 + squares), "squares %.15g, should be %.15g", told - 7, squares);
              if (threads == 1) memcpy(want, found, (size_t)(M * d) * sizeof *Y);
              CHECK(same(want, found, M * d), "%d threads change bits", threads); cdad_free(found); cdad_free(scratch);)
    for (int64_t t = 0; t < M; t++)
        for (int64_t j = 0; j < d; j++) {
            double sum = (double)Y[t * d + j];
            for (int64_t r = first; r < first + rows; r++) {
                double z = 0;
                for (int64_t i = 0; i < t % 4; i++)
                    z += (double)plain[r * d + (t + 3 * i) % d] - (double)plain[r * d + (t + 3 * i + 1) % d];
                sum += z * (double)plain[r * d + j];
            }
            worst_of = fmax(worst_of, fabs((double)want[t * d + j] - sum));
        }
    CHECK(worst_of < 1e-4, "%" PRId64 " rows, width %" PRId64 ": off by %g", rows, d, worst_of);
    cdad_free(signs);
    cdad_free(Y);
    cdad_free(want);
}

static void test_add(void) {
    static const int64_t widths[] = {1, 31, 130};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        const int64_t d = widths[w];
        float *X = noise(90 * d, (uint32_t)d, 0.1f, 1), *columns = floats(90 * d);
        for (int64_t i = 0; i < 90; i++)
            for (int64_t j = 0; j < d; j++)
                columns[j * 90 + i] = X[i * d + j];
        check_add((cdad_mat){.data = X, .rs = d, .cs = 1}, X, 1, 89, d);
        check_add((cdad_mat){.data = X, .rs = d, .cs = 1}, X, 0, 1, d);
        check_add((cdad_mat){.data = columns, .rs = 1, .cs = 90}, X, 13, 50, d);
        cdad_free(X);
        cdad_free(columns);
    }
    const cdad_unfold *u = &image;
    const int64_t rows = u->N * u->P * u->Q, d = u->R * u->S * u->C;
    float *pixels = noise(u->N * u->H * u->W * u->C, 5, 0, 1), *X = floats(rows * d);
    for (int64_t i = 0; i < rows * d; i++)
        X[i] = unfolded(u, pixels, i / d, i % d);
    check_add((cdad_mat){.data = pixels, .unfold = u}, X, 5, 180, d);
    cdad_free(pixels);
    cdad_free(X);
}

/* Rounded to 16 bits sums are off by some 1e-5 of the lengths whose product they are, also of columns that are all the same, where roundings
 * to the nearest would add up, and of such in which one value is nearly all (`largest` times the others). */
static void check_rounded_add(float scale, float largest) {
    enum { ROWS = 771, M = 37, D = 2100 };
    int32_t *signs = signs_for(M, D);
    const int32_t *places = signs + 2 * M;
    float *X = noise(ROWS * D, 11, 0, 1), *want = floats(M * D);
    double *Z = zeros(ROWS * (int64_t)sizeof *Z), *lengths = zeros(D * (int64_t)sizeof *lengths);
    for (int64_t r = 0; r < ROWS; r++)
        for (int64_t j = 1; j < D; j += 3) {
            X[r * D + j] = 1 - 0.001f * (float)(j % 700);
            if (r == 5)
                X[r * D + j + 1] *= largest;
        }
    for (int64_t i = 0; i < ROWS * D; i++) {
        X[i] *= scale;
        lengths[i % D] += (double)X[i] * (double)X[i];
    }
    EACH_POOL(float *found = floats(M * D); double squares = 0; void *scratch = zeros(table->sketch_scratch(ROWS, D, M, 1, threads));
              table->sketch_add(ctx, found, &squares, (cdad_mat){.data = X, .rs = D, .cs = 1}, 0, ROWS, D, signs, M, 1, scratch);
              if (threads == 1) memcpy(want, found, (size_t)(M * D) * sizeof *want);
              CHECK(same(want, found, M * D), "%d threads change bits", threads); cdad_free(found); cdad_free(scratch);
              double worst = 0, mean = 0;
              for (int64_t t = 1; t < M && threads == 1; t++) {
                  double length = 0;
                  for (int64_t r = 0; r < ROWS; r++) {
                      Z[r] = 0;
                      for (int32_t at = signs[2 * t - 1]; at < signs[2 * t + 1]; at++)
                          Z[r] += (double)X[r * D + places[at]] * (at < signs[2 * t] ? 1 : -1);
                      length += Z[r] * Z[r];
                  }
                  for (int64_t j = 0; j < D && length > 0; j++) {
                      double sum = 0;
                      for (int64_t r = 0; r < ROWS; r++)
                          sum += Z[r] * (double)X[r * D + j];
                      const double off = fabs((double)want[t * D + j] - sum) / sqrt(length * lengths[j]);
                      mean += off / (M * D);
                      worst = fmax(worst, off);
                  }
              }
              CHECK(worst < 8e-5 && mean < 6e-6, /* at the worst two values that are all of their columns are off by a step, a 32766th, each */
                     "%s: off by %.2g of the lengths, %.2g on average", table->name, worst, mean);)
    cdad_free(signs);
    cdad_free(lengths);
    cdad_free(Z);
    cdad_free(X);
    cdad_free(want);
}

/* Also where the product of two steps would be too small for a float, and where the squares of a combination's values would be too large. */
static void test_rounded_add(void) {
    check_rounded_add(1, 3000);
    check_rounded_add(1e-19f, 3000);
    check_rounded_add(3.7e17f, 1);
}

/* Roundings are for wide features, and for bases that leave them far below what is left out. */
static void test_what_may_round(void) {
    static const struct {
        int64_t d, rank;
        double gamma;
        int rounded;
    } cases[] = {{2048, 300, 0.999, 1}, {2048, 300, 0.9995, 0}, {2047, 300, 0.999, 0}, {2048, 2048, 0.999, 0}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        cdad_sketch s;
        CHECK_OK(cdad_sketch_init(&s, cases[c].d, cases[c].rank, cases[c].gamma, err));
        CHECK(s.rounded == cases[c].rounded, "case %zu: %d", c, s.rounded);
        cdad_sketch_reset(&s);
    }
}

/* A sketch of X [rows,d], by blocks of 100. */
static cdad_sketch sketch_of(const cdad_context *ctx, const float *X, int64_t rows, int64_t d, int64_t rank) {
    cdad_sketch s;
    int begun;
    CHECK_OK(cdad_sketch_init(&s, d, rank, 0.999, err));
    for (int64_t i = 0; i < rows; i += 100)
        CHECK_OK(cdad_sketch_add(&s, ctx, dense(X + i * d, d), rows - i < 100 ? rows - i : 100, &begun, err));
    return s;
}

/* G - A^T A is positive semi-definite, its trace is what is lost, and the checks' products with it are what they say, but for a factor by
 * which they tell of all directions what is lost. */
static void test_factor(const cdad_context *ctx) {
    enum { ROWS = 700, D = 130 };
    static const struct {
        int64_t rank, directions;
        float decay;
        double lost; /* at most */
    } cases[] = {{10, D, 0.9f, 0.15}, {30, D, 0.9f, 0.005}, {30, D, 0.97f, 0.25}, {60, 7, 0.1f, 1e-6}, {90, D, 0.97f, 1e-5}, {130, D, 0.99f, 1e-5}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        float *X = low_rank(ROWS, D, cases[c].directions, cases[c].decay, 300 + c);
        double *G = gram_of(X, ROWS, D), *rests = doubles(CDAD_SKETCH_CHECKS * D), total = 0, left = 0, off = 0, size = 0, told = 0;
        cdad_sketch s = sketch_of(ctx, X, ROWS, D, cases[c].rank);
        cdad_factor f;
        CHECK_OK(cdad_sketch_factor(&s, ctx, &f, err));
        for (int64_t i = 0; i < D; i++)
            total += G[i * D + i];
        for (int64_t i = 0; i < D; i++)
            for (int64_t j = 0; j < D; j++)
                for (int64_t r = 0; r < f.n; r++)
                    G[i * D + j] -= (double)f.A[r * D + i] * (double)f.A[r * D + j];
        for (int64_t w = 0; w < f.checks; w++)
            for (int64_t i = 0; i < D; i++) {
                double rest = 0;
                for (int64_t j = 0; j < D; j++)
                    rest += G[i * D + j] * (double)f.tests[w * D + j];
                rests[w * D + i] = rest;
                told += rest * (double)f.tests[w * D + i];
                size += f.tests[w * D + i] * f.tests[w * D + i];
            }
        for (int64_t i = 0; i < f.checks * D; i++)
            off = fmax(off, fabs(rests[i] * f.lost / told - (double)f.rests[i]));
        CHECK(f.n <= D && f.checks == CDAD_SKETCH_CHECKS && size == D, "%" PRId64 " rows, %g signs", f.n, size);
        CHECK(off < 3e-6 * total || f.lost < 1e-5 * total, "case %zu: rests are off by %g of %g", c, off, total);
        CHECK(fabs(told / f.lost - 1) < 0.4 || f.lost < 1e-5 * total, "case %zu: they tell of %g times what is lost", c, told / f.lost);
        cdad_free(rests);
        double *values = decompose(G, D);
        for (int64_t i = 0; i < D; i++)
            left += values[i];
        CHECK(values[D - 1] > -1e-7 * total, "case %zu: a direction of %g of %g is overstated", c, values[D - 1], total);
        CHECK(fabs(s.total - total) < 1e-12 * total && fabs(f.lost - left) < 1e-6 * total, "case %zu: lost %g, %g", c, f.lost, left);
        CHECK(f.lost / total < cases[c].lost, "case %zu: lost %g", c, f.lost / total);
        cdad_sketch_factor_free(&f);
        cdad_sketch_reset(&s);
        cdad_free(values);
        cdad_free(G);
        cdad_free(X);
    }
}

/* Of sums that may be rounded the factor comes by products in float32: it is that of products in double but for roundings. */
static void test_narrow_factor(const cdad_context *ctx) {
    enum { ROWS = 400, D = 2100, RANK = 200 };
    float *X = low_rank(ROWS, D, 300, 0.985f, 340);
    cdad_sketch s = sketch_of(ctx, X, ROWS, D, RANK);
    cdad_factor narrow, wide;
    CHECK(s.rounded, "sums of width %d are not rounded", D);
    CHECK_OK(cdad_sketch_factor(&s, ctx, &narrow, err));
    s.rounded = 0;
    CHECK_OK(cdad_sketch_factor(&s, ctx, &wide, err));
    double off = 0, size = 0;
    for (int64_t i = 0; i < wide.n * D; i++) {
        const double difference = (double)narrow.A[i] - (double)wide.A[i];
        off += difference * difference;
        size += (double)wide.A[i] * (double)wide.A[i];
    }
    CHECK(narrow.n == wide.n && off > 0 && off < 1e-7 * size, "off by %g of the energy", off / size);
    CHECK(fabs(narrow.lost - wide.lost) < 1e-5 * s.total, "lost %g, %g of %g", narrow.lost, wide.lost, s.total);
    cdad_sketch_factor_free(&narrow);
    cdad_sketch_factor_free(&wide);
    cdad_sketch_reset(&s);
    cdad_free(X);
}

/* Bases of sketches hold what they say, and need hardly more directions than the fewest, also beside an old basis. */
static void test_bases(const cdad_context *ctx) {
    enum { ROWS = 2000, LEADING = 1600 };
    static const struct {
        int64_t d, rank;
        float decay;
        double gamma;
        int exhausted; /* it has too few directions */
    } cases[] = {{400, 120, 0.97f, 0.99, 0}, {400, 120, 0.97f, 0.9, 0}, {400, 60, 0.97f, 0.99, 1}, {400, 350, 0.985f, 0.999, 0},
                 {400, 20, 0.5f, 1, 1}, {LEADING, 520, 0.99f, 0.99, 0}, {LEADING, 520, 0.998f, 0.8, 0}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const int64_t D = cases[c].d;
        const double gamma = cases[c].gamma, near = D < LEADING ? 0.1 : 0.03;
        float *X = low_rank(ROWS, D, D, cases[c].decay, 320 + c), *U, *V;
        double *G = gram_of(X, ROWS, D), energy, again, *values = decompose(G, D), total = 0, best = 0;
        int64_t k, n, fewest = 0;
        const cdad_stream_hints hints = {.rank = cases[c].rank};
        cdad_stream_plan plan;
        cdad_stream *s;
        CHECK_OK(cdad_stream_plan_make(&plan, D, CDAD_STREAM_SKETCH, gamma, &hints, err));
        CHECK_OK(cdad_stream_open(&s, &plan, err));
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
        for (int64_t i = 0; i < D; i++)
            total += values[i];
        while (fewest < D && best < gamma * total)
            best += values[fewest++];
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
        const double share = share_kept(X, ROWS, D, U, k);
        CHECK(orthonormality(U, D, k) <= 1e-6, "case %zu: %g", c, orthonormality(U, D, k));
        CHECK(fabs(share - energy) < near * (1 - share) + 1e-6, "case %zu: kept %.7f, said %.7f", c, share, energy);
        CHECK(cases[c].exhausted ? k <= cases[c].rank
                                 : energy >= gamma && k >= fewest - 1 && (double)k <= 1.05 * (double)fewest + 1,
              "case %zu: rank %" PRId64 ", %" PRId64 " would do, kept %g", c, k, fewest, energy);
        CHECK_OK(cdad_stream_share(s, ctx, U, k, &again, err));
        /* leading directions hold a little more than the combinations that they were found as */
        CHECK(again > energy - 1e-6 && again < energy + (D < LEADING ? 1e-6 : 0.02 * (1 - energy)),
              "case %zu: the share is %.8f, it was %.8f", c, again, energy);
        /* Every other direction is known, and one that nothing has. */
        const int64_t some = k / 2 + 1;
        float *old = floats(D * some);
        for (int64_t i = 0; i < D; i++)
            for (int64_t j = 0; j < some - 1; j++)
                old[i * some + j] = U[i * k + 2 * j];
        double along = 0;
        for (int64_t i = 0; i < D; i++)
            old[i * some + some - 1] = (float)G[i + (D - 1) * D];
        for (int64_t j = 0; j < some - 1; j++) { /* orthogonal to the others */
            along = 0;
            for (int64_t i = 0; i < D; i++)
                along += (double)old[i * some + j] * (double)old[i * some + some - 1];
            for (int64_t i = 0; i < D; i++)
                old[i * some + some - 1] -= (float)along * old[i * some + j];
        }
        along = 0;
        for (int64_t i = 0; i < D; i++)
            along += (double)old[i * some + some - 1] * (double)old[i * some + some - 1];
        for (int64_t i = 0; i < D; i++)
            old[i * some + some - 1] /= (float)sqrt(along);
        CHECK_OK(cdad_stream_basis(s, ctx, old, some, &V, &n, &energy, err));
        for (int64_t i = 0; i < D; i++)
            CHECK(!memcmp(V + i * n, old + i * some, (size_t)some * sizeof *V), "case %zu: row %" PRId64 " of the old basis", c, i);
        const double joint = share_kept(X, ROWS, D, V, n);
        CHECK(orthonormality(V, D, n) <= 1e-6, "case %zu: %g", c, orthonormality(V, D, n));
        CHECK(fabs(joint - energy) < near * (1 - joint) + 1e-6, "case %zu: kept %.7f, said %.7f", c, joint, energy);
        CHECK(cases[c].exhausted || (n > some && (double)n <= 1.05 * (double)fewest + 3), "case %zu: rank %" PRId64 ", %" PRId64, c, n, k);
        cdad_free(old);
        cdad_free(U);
        cdad_free(V);
        cdad_free(values);
        cdad_free(G);
        cdad_stream_free(s);
        cdad_free(X);
    }
}

/* Noise is no direction: three rows, over and over, are three directions whatever the test vectors of so many widths make of them. */
static void test_noise(const cdad_context *ctx) {
    enum { ROWS = 699, SEEDS = 40 };
    for (int64_t seed = 0; seed < SEEDS; seed++) {
        const int64_t d = 64 + seed, rank = seed % 2 ? 20 : d;
        float *three = normal(3 * d, 400 + (uint64_t)seed), *X = floats(ROWS * d);
        for (int64_t i = 0; i < ROWS; i++)
            memcpy(X + i * d, three + i % 3 * d, (size_t)d * sizeof *X);
        cdad_sketch s = sketch_of(ctx, X, ROWS, d, rank);
        cdad_factor f;
        CHECK_OK(cdad_sketch_factor(&s, ctx, &f, err));
        double *G = gram_of(X, ROWS, d), total = s.total;
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++)
                for (int64_t r = 0; r < f.n; r++)
                    G[i * d + j] -= (double)f.A[r * d + i] * (double)f.A[r * d + j];
        double *values = decompose(G, d);
        CHECK(values[d - 1] > -1e-5 * total, "width %" PRId64 ": overstated by %g", d, -values[d - 1] / total);
        CHECK(f.lost < 1e-5 * total, "width %" PRId64 ": lost %g", d, f.lost / total);
        cdad_sketch_factor_free(&f);
        cdad_sketch_reset(&s);
        cdad_free(values);
        cdad_free(G);
        cdad_free(X);
        cdad_free(three);
    }
}

/* An old basis of more directions than there are test vectors leaves little to be told of, and that is told well. */
static void test_much_is_known(const cdad_context *ctx) {
    enum { ROWS = 1000, D = 300, SEEDS = 10 };
    for (int64_t seed = 0; seed < SEEDS; seed++) {
        float *X = low_rank(ROWS, D, D, 0.98f, 420 + (uint64_t)seed), *U, *V;
        double *G = gram_of(X, ROWS, D), energy, *values = decompose(G, D);
        const cdad_stream_hints hints = {.rank = 60};
        cdad_stream_plan plan;
        cdad_stream *s, *exact = new_stream(D, CDAD_STREAM_EXACT, 0.97);
        CHECK_OK(cdad_stream_plan_make(&plan, D, CDAD_STREAM_SKETCH, 0.97, &hints, err));
        CHECK_OK(cdad_stream_open(&s, &plan, err));
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
        CHECK_OK(cdad_stream_add(exact, ctx, dense(X, D), ROWS, err));
        for (int64_t known = 60; known <= D; known += 80) {
            float *old = floats(D * known);
            int64_t k, fewest;
            for (int64_t i = 0; i < D; i++)
                for (int64_t j = 0; j < known; j++)
                    old[i * known + j] = (float)G[i + j * D];
            CHECK_OK(cdad_stream_basis(exact, ctx, old, known, &V, &fewest, &energy, err));
            CHECK_OK(cdad_stream_basis(s, ctx, old, known, &U, &k, &energy, err));
            const double share = share_kept(X, ROWS, D, U, k);
            CHECK(fabs(share - energy) < 0.006, "%" PRId64 " known: kept %g, said %g", known, share, energy);
            CHECK(k >= fewest - 10 && k <= fewest + 20, "%" PRId64 " known: %" PRId64 ", %" PRId64 " would do", known, k, fewest);
            cdad_free(U);
            cdad_free(V);
            cdad_free(old);
        }
        cdad_stream_free(s);
        cdad_stream_free(exact);
        cdad_free(values);
        cdad_free(G);
        cdad_free(X);
    }
}

/* Sums that no float holds are told of, and nothing is made of them. */
static void test_too_large(const cdad_context *ctx) {
    enum { D = 60, ROWS = 10 };
    float *X = floats(ROWS * D), *U;
    cdad_stream *s = new_stream(D, CDAD_STREAM_SKETCH, 0.9);
    double energy;
    int64_t k;
    for (int64_t i = 0; i < ROWS; i++)
        X[i * D + 3] = 5e18f;
    for (int i = 0; i < 4; i++)
        CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
    CHECK_FAILS(CDAD_NOT_FINITE, "beyond the range of float32", cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
    cdad_stream_free(s);
    cdad_free(X);
}

/* Nothing, zeros, and one direction. */
static void test_little(const cdad_context *ctx) {
    enum { D = 90, ROWS = 40 };
    float *X = floats(ROWS * D), *U;
    const cdad_stream_hints hints = {.rank = 20};
    cdad_stream_plan plan;
    cdad_stream *s;
    double energy;
    int64_t k;
    CHECK_OK(cdad_stream_plan_make(&plan, D, CDAD_STREAM_SKETCH, 0.99, &hints, err));
    CHECK_OK(cdad_stream_open(&s, &plan, err));
    for (int step = 0; step < 3; step++) {
        if (step == 2)
            for (int64_t i = 0; i < ROWS; i++)
                X[i * D + 7] = 3e-20f * (float)(i + 1);
        if (step > 0)
            CHECK_OK(cdad_stream_add(s, ctx, dense(X, D), ROWS, err));
        CHECK_OK(cdad_stream_basis(s, ctx, NULL, 0, &U, &k, &energy, err));
        CHECK(k == (step == 2) && energy > 0.999999, "step %d: rank %" PRId64 ", energy %g", step, k, energy);
        CHECK(step < 2 || fabsf(fabsf(U[7]) - 1) < 1e-6f, "another direction: %g", (double)U[7]);
        cdad_free(U);
        CHECK_OK(cdad_stream_singular_values(s, ctx, &U, &k, err));
        CHECK(step < 2 ? k == 0 : k == 30 && U[0] > 0 && U[1] < 1e-3f * U[0], "step %d: %" PRId64 " values", step, k);
        cdad_free(U);
    }
    cdad_stream_free(s);
    cdad_free(X);
}

int cdad_test_sketch(void) {
    cdad_pool *pool = NULL;
    on_every_table(test_add);
    on_every_table(test_rounded_add);
    test_what_may_round();
    CHECK_OK(cdad_pool_new(&pool, 3, err));
    const cdad_context ctx = {.kernels = cdad_kernels_select(NULL), .pool = pool};
    test_factor(&ctx);
    test_narrow_factor(&ctx);
    test_bases(&ctx);
    test_noise(&ctx);
    test_much_is_known(&ctx);
    test_too_large(&ctx);
    test_little(&ctx);
    cdad_pool_free(pool);
    return failures;
}
