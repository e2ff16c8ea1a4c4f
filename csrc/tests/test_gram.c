/* Products of a matrix with itself, against sums in double, on every table. */
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

int cdad_test_gram(void) { return on_every_table(test_gram); }
