/* Products of a matrix with itself, against sums in double, on every table. */
#include "continual/gram.h"
#include "kernel_check.h"

int cdad_test_gram(void);

static const cdad_unfold image = {3, 20, 17, 11, 20, 17, 3, 3, 1, 1, 1, 1}; /* 1020 rows of width 99 */

/* G [d,d] of rows first .. first+rows-1, by tiles of `side`; two threads share the packing. */
static double *gram(cdad_mat X, int64_t first, int64_t rows, int64_t d, int64_t side, int bf16) {
    double *G = doubles(d * d);
    float *panels = zeros(table->gram_panels(rows, d, bf16)), *scratch = floats(side * side);
    EACH_POOL(table->gram_pack(ctx, panels, X, first, rows, d, bf16);)
    for (int64_t i = 0; i < d * d; i++)
        G[i] = 7;
    for (int64_t i = 0; i < d; i += side)
        for (int64_t j = i; j < d; j += side)
            table->gram_tile(G + i * d + j, d, panels, rows, d, i, j, side, bf16, scratch);
    cdad_free(panels);
    cdad_free(scratch);
    return G;
}

static void check(cdad_mat X, const float *plain, int64_t first, int64_t rows, int64_t d, int bf16) {
    double *G = gram(X, first, rows, d, CDAD_GRAM_SIDE, bf16), *other = gram(X, first, rows, d, 2 * CDAD_GRAM_SIDE, bf16);
    double worst_of = 0;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            double want = 7;
            for (int64_t r = first; i <= j && r < first + rows; r++)
                want += bf16 ? (double)rounded(plain[r * d + i]) * (double)rounded(plain[r * d + j])
                             : (double)plain[r * d + i] * (double)plain[r * d + j];
            worst_of = fmax(worst_of, fabs(G[i * d + j] - want));
            CHECK(i <= j || G[i * d + j] == 7, "below the diagonal");
            CHECK(G[i * d + j] == other[i * d + j], "(%" PRId64 ", %" PRId64 ") depends on the tile", i, j);
        }
    CHECK(worst_of < 4e-4, "%" PRId64 " rows, width %" PRId64 ", bf16 %d: off by %g", rows, d, bf16, worst_of);
    cdad_free(G);
    cdad_free(other);
}

static void test_gram(void) {
    static const int64_t widths[] = {1, 95, 97, 203};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        const int64_t d = widths[w];
        float *X = noise(800 * d, (uint32_t)d, 0.1f, 1), *columns = floats(800 * d);
        for (int64_t i = 0; i < 800; i++)
            for (int64_t j = 0; j < d; j++)
                columns[j * 800 + i] = X[i * d + j];
        for (int bf16 = 0; bf16 < 2; bf16++) {
            check((cdad_mat){.data = X, .rs = d, .cs = 1}, X, 1, 799, d, bf16);
            check((cdad_mat){.data = columns, .rs = 1, .cs = 800}, X, 13, 385, d, bf16);
        }
        cdad_free(X);
        cdad_free(columns);
    }
    const cdad_unfold *u = &image;
    const int64_t rows = u->N * u->P * u->Q, d = u->R * u->S * u->C;
    float *pixels = noise(u->N * u->H * u->W * u->C, 5, 0, 1), *X = floats(rows * d);
    for (int64_t i = 0; i < rows * d; i++)
        X[i] = unfolded(u, pixels, i / d, i % d);
    for (int bf16 = 0; bf16 < 2; bf16++)
        check((cdad_mat){.data = pixels, .unfold = u}, X, 5, 700, d, bf16);
    cdad_free(pixels);
    cdad_free(X);
}

/* ---- whole numbers ---- */

enum { BLOCK = 384 }; /* rows that have steps of their own */

/* G [d,d] as gram_bytes_tile makes it; NULL where gram_bytes_pack leaves the rows to float32. */
static double *gram_by_bytes(cdad_mat X, int64_t first, int64_t rows, int64_t d, int64_t side) {
    double *G = doubles(d * d);
    float *panels = zeros(table->gram_bytes_panels(rows, d)), *scratch = floats(side * side);
    int fine = 1;
    EACH_POOL(fine &= table->gram_bytes_pack(ctx, panels, X, first, rows, d, 9);)
    for (int64_t i = 0; i < d * d; i++)
        G[i] = 7;
    for (int64_t i = 0; fine && i < d; i += side)
        for (int64_t j = i; j < d; j += side)
            table->gram_bytes_tile(G + i * d + j, d, panels, rows, d, i, j, side, scratch);
    cdad_free(panels);
    cdad_free(scratch);
    if (!fine) {
        cdad_free(G);
        return NULL;
    }
    return G;
}

/* Of rows whose columns hold whole steps, up to 63 in each block, nothing is rounded. */
static void exact_case(const cdad_mat *X, const float *plain, int64_t first, int64_t rows, int64_t d) {
    double *G = gram_by_bytes(*X, first, rows, d, CDAD_GRAM_SIDE), *other = gram_by_bytes(*X, first, rows, d, 2 * CDAD_GRAM_SIDE);
    CHECK(G && other, "whole steps are too coarse");
    for (int64_t i = 0; G && other && i < d; i++)
        for (int64_t j = 0; j < d; j++) {
            double want = 7, size = 7; /* steps are rounded to float32 */
            for (int64_t r = first; i <= j && r < first + rows; r++) {
                want += (double)plain[r * d + i] * (double)plain[r * d + j];
                size += fabs((double)plain[r * d + i] * (double)plain[r * d + j]);
            }
            CHECK(fabs(G[i * d + j] - want) <= 4e-7 * size, "(%" PRId64 ", %" PRId64 ") is %.9g, not %.9g", i, j, G[i * d + j], want);
            CHECK(G[i * d + j] == other[i * d + j], "(%" PRId64 ", %" PRId64 ") depends on the tile", i, j);
        }
    cdad_free(G);
    cdad_free(other);
}

static void test_whole_steps(void) {
    static const int64_t widths[] = {1, 15, 97, 203};
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
        const int64_t d = widths[w], all = 2 * BLOCK + 14;
        float *X = noise(all * d, (uint32_t)d, 0.1f, 63), *columns = floats(all * d);
        for (int64_t i = 0; i < all; i++)
            for (int64_t j = 0; j < d; j++) {
                const float step = ldexpf(1, (int)(j % 7) - 3); /* a power of two, so that it and its 63rd part are exact */
                const float value = (i - 13) % BLOCK == j % 14 ? 63 : truncf(X[i * d + j]);
                columns[j * all + i] = X[i * d + j] = value * step;
            }
        exact_case(&(cdad_mat){.data = X, .rs = d, .cs = 1}, X, 13, 2 * BLOCK + 1, d);
        exact_case(&(cdad_mat){.data = columns, .rs = 1, .cs = all}, X, 13, 27, d);
        exact_case(&(cdad_mat){.data = columns, .rs = 1, .cs = all}, X, 13, BLOCK, d);
        cdad_free(X);
        cdad_free(columns);
    }
}

/* Errors of products are within what independent ones of a step's size make, and have no direction; squares are float32's. */
static void test_rounded_steps(void) {
    const cdad_unfold *u = &image;
    const int64_t rows = u->N * u->P * u->Q, d = u->R * u->S * u->C;
    float *pixels = noise(u->N * u->H * u->W * u->C, 5, 0.3f, 1), *X = floats(rows * d);
    double sum = 0, squares = 0, worst_of = 0, largest = 0;
    for (int64_t i = 0; i < rows * d; i++)
        X[i] = unfolded(u, pixels, i / d, i % d);
    double *G = gram_by_bytes((cdad_mat){.data = pixels, .unfold = u}, 0, rows, d, CDAD_GRAM_SIDE);
    CHECK(G != NULL, "too coarse");
    for (int64_t i = 0; G && i < d; i++)
        for (int64_t j = i; j < d; j++) {
            double want = 7;
            for (int64_t r = 0; r < rows; r++)
                want += (double)X[r * d + i] * (double)X[r * d + j];
            const double off = G[i * d + j] - want;
            if (i == j)
                worst_of = fmax(worst_of, fabs(off) / want);
            else {
                sum += off;
                squares += off * off;
                largest = fmax(largest, fabs(off));
            }
        }
    const double n = (double)d * (double)(d - 1) / 2, deviation = sqrt(squares / n);
    /* two factors, values of 0.6 and less as a root of the mean of squares, steps of 1.3/63, roundings of a half of it at the most */
    CHECK(deviation > 0 && deviation < sqrt(2 * (double)rows) * 0.65 * 1.3 / 63 / 2, "deviation %g", deviation);
    CHECK(fabs(sum / n) < 6 * deviation / sqrt(n), "errors of mean %g", sum / n);
    CHECK(largest < 6 * deviation, "an error of %g", largest);
    CHECK(worst_of < 1e-6, "squares are off by %g", worst_of);
    cdad_free(G);
    /* a row as large as all others together */
    for (int64_t j = 0; j < d; j++)
        X[17 * d + j] *= 30;
    CHECK((G = gram_by_bytes((cdad_mat){.data = X, .rs = d, .cs = 1}, 0, rows, d, CDAD_GRAM_SIDE)) == NULL, "one row's steps serve all");
    cdad_free(G);
    cdad_free(pixels);
    cdad_free(X);
}

/* Columns that are alike are not rounded alike: products of them would have the squares of their errors. */
static void test_errors_of_copies(void) {
    enum { ROWS = 8 * BLOCK, D = 160 };
    float *x = noise(ROWS, 9, 0.2f, 1), *X = floats(ROWS * D);
    double want = 0, sum = 0;
    for (int64_t i = 0; i < ROWS; i++) {
        want += (double)x[i] * (double)x[i];
        for (int64_t j = 0; j < D; j++)
            X[i * D + j] = x[i];
    }
    double *G = gram_by_bytes((cdad_mat){.data = X, .rs = D, .cs = 1}, 0, ROWS, D, CDAD_GRAM_SIDE);
    CHECK(G != NULL, "too coarse");
    for (int64_t i = 0; G && i < D; i++)
        for (int64_t j = i + 1; j < D; j++)
            sum += G[i * D + j] - 7 - want;
    const double step = 1.2 / 63, own = ROWS * step * step / 6; /* what the squares of errors would be */
    CHECK(fabs(sum / (D * (D - 1) / 2)) < own / 2, "off by %g, squares of errors are %g", sum / (D * (D - 1) / 2), own);
    cdad_free(G);
    cdad_free(x);
    cdad_free(X);
}

/* Of features that come again and again errors are others each time: in the sum they fall with the number. */
static void test_errors_of_repeats(void) {
    enum { ROWS = 300, D = 97, TIMES = 16 };
    float *X = noise(ROWS * D, 23, 0, 1);
    double *G = doubles(D * D), off[2] = {0};
    const cdad_context ctx = {.kernels = table, .pool = pools[2]};
    cdad_gram g = {0};
    CHECK_OK(cdad_gram_init(&g, D, CDAD_GRAM_BYTES, err));
    for (int t = 1; t <= TIMES; t++) {
        CHECK_OK(cdad_gram_add(&g, &ctx, (cdad_mat){.data = X, .rs = D, .cs = 1}, ROWS, err));
        cdad_gram_expand(&g, G);
        for (int64_t i = 0; i < D && (t == 1 || t == TIMES); i++)
            for (int64_t j = 0; j < i; j++) {
                double want = 0;
                for (int64_t r = 0; r < ROWS; r++)
                    want += (double)X[r * D + i] * (double)X[r * D + j];
                off[t > 1] += pow(G[i * D + j] / t - want, 2);
            }
    }
    const double share = sqrt(off[1] / off[0]); /* 1 / 4 */
    CHECK(off[0] > 0 && share > 0.15 && share < 0.4, "errors of %d times are %g of one's, each", TIMES, share);
    cdad_gram_reset(&g);
    cdad_free(G);
    cdad_free(X);
}

static void test_all(void) {
    test_gram();
    if (table->gram_bytes_tile) {
        test_whole_steps();
        test_rounded_steps();
        test_errors_of_copies();
        test_errors_of_repeats();
    }
}

int cdad_test_gram(void) { return on_every_table(test_all); }
