/* Matrix products and depthwise convolutions of every table, against sums in double and against themselves at
 * other batch sizes and thread counts. */
#include "kernel_check.h"

int cdad_test_gemm(void);

static const cdad_kernels *portable;
static cdad_precision precision; /* of the products under test */

/* n values in [-1, 1). */
static float *unit(int64_t n, uint32_t seed) { return noise(n, seed, 0.0f, 1.0f); }

static void run(const cdad_kernels *kernels, int threads, int64_t M, int64_t N, int64_t K, cdad_mat A,
                cdad_mat B, float *C, int64_t ldc, const float *bias, int accumulate) {
    cdad_context ctx = {.pool = pools[threads], .kernels = kernels};
    void *scratch = zeros(kernels->gemm_scratch(M, N, K, threads));
    const cdad_epilogue with = {.bias = bias, .accumulate = accumulate, .precision = precision};
    kernels->gemm(&ctx, M, N, K, A, B, C, ldc, &with, scratch);
    cdad_free(scratch);
}

static cdad_mat plain(const float *data, int64_t rows, int64_t cols, int transposed) {
    return (cdad_mat){data, transposed ? 1 : cols, transposed ? rows : 1, NULL};
}

static double element(cdad_mat m, int64_t i, int64_t j) {
    const float x = m.unfold ? unfolded(m.unfold, m.data, i, j) : m.data[i * m.rs + j * m.cs];
    return precision == CDAD_BFLOAT16 ? rounded(x) : x;
}

/* Against sums in double; also that columns past N are left alone, and that the tables agree. */
static void check_values(const char *what, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B,
                         int with_bias, int accumulate) {
    int64_t ldc = N + 3;
    float *before = unit(M * ldc, 3), *bias = unit(N, 4), *C = floats(M * ldc), *other = floats(M * ldc);
    memcpy(C, before, (size_t)(M * ldc) * sizeof(float));
    memcpy(other, before, (size_t)(M * ldc) * sizeof(float));
    run(table, 2, M, N, K, A, B, C, ldc, with_bias ? bias : NULL, accumulate);
    run(portable, 1, M, N, K, A, B, other, ldc, with_bias ? bias : NULL, accumulate);
    double worst = 0.0, between = 0.0;
    int kept = 1;
    for (int64_t i = 0; i < M; i++) {
        for (int64_t j = 0; j < N; j++) {
            double sum = with_bias ? bias[j] : 0.0, size;
            sum += accumulate ? before[i * ldc + j] : 0.0;
            size = fabs(sum) + 1e-30;
            for (int64_t k = 0; k < K; k++) {
                double product = element(A, i, k) * element(B, k, j);
                sum += product;
                size += fabs(product);
            }
            worst = fmax(worst, fabs(C[i * ldc + j] - sum) / size);
            between = fmax(between, fabs((double)C[i * ldc + j] - other[i * ldc + j]) / size);
        }
        kept &= same(C + i * ldc + N, before + i * ldc + N, ldc - N);
    }
    const char *form = with_bias ? accumulate ? "C + AB + bias" : "AB + bias" : accumulate ? "C + AB" : "AB";
    CHECK(worst < 1e-6 && between < 2e-6 && kept,
          "%s, %s, precision %d, %lldx%lldx%lld: error %.2g, against portable %.2g of the terms' size%s", what, form, (int)precision,
          (long long)M, (long long)N, (long long)K, worst, between, kept ? "" : ", and wrote past column N");
    cdad_free(before);
    cdad_free(bias);
    cdad_free(C);
    cdad_free(other);
}

static void test_plain(void) {
    static const int64_t shapes[][3] = {
        {1, 1, 1},     {7, 13, 5}, {65, 33, 300}, {129, 47, 1031}, {3, 200, 17}, {200, 3, 9},  {12, 32, 384},
        {13, 33, 385}, {5, 9, 0},  {0, 4, 3},     {4, 0, 3},       {1, 150, 40}, {150, 1, 40}, {24, 64, 768},
    };
    static const char *const layouts[] = {"NN", "NT", "TN", "TT"};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        int64_t M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
        float *a = unit(M * K, 1), *b = unit(K * N, 2);
        for (int layout = 0; layout < 4; layout++) {
            int form = ((int)i + layout) % 4;
            check_values(layouts[layout], M, N, K, plain(a, M, K, layout / 2), plain(b, K, N, layout % 2),
                         form % 2, form / 2);
        }
        cdad_free(a);
        cdad_free(b);
    }
    float *a = unit(2 * 3 * 40 * 50, 5), *b = unit(5 * 60 * 50, 6);
    check_values("no unit stride", 40, 60, 50, (cdad_mat){a, 300, 6, NULL}, (cdad_mat){b, 300, 5, NULL}, 1,
                 1);
    cdad_free(a);
    cdad_free(b);
    if (precision == CDAD_BFLOAT16 && table == portable) /* under sanitizers it takes minutes */
        return;
    /* Longer than what is packed at once; and a gradient that is cut along k. */
    a = unit(3 * 600000, 7), b = unit(600000 * 2, 8);
    check_values("long NN", 3, 2, 600000, plain(a, 3, 600000, 0), plain(b, 600000, 2, 0), 1, 1);
    check_values("long TN", 3, 2, 600000, plain(a, 3, 600000, 1), plain(b, 600000, 2, 0), 1, 1);
    check_values("long TN", 2, 3, 600000, plain(b, 2, 600000, 1), plain(a, 600000, 3, 0), 0, 0);
    cdad_free(a);
    cdad_free(b);
}

/*                        N  H   W   C   P   Q   R  S  stride pad_t pad_l up */
static const cdad_unfold unfolds[] = {
    {2, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1},    {1, 8, 8, 52, 8, 8, 3, 3, 1, 1, 1, 1},
    {3, 10, 11, 17, 5, 6, 3, 3, 2, 0, 1, 1}, {2, 6, 5, 33, 6, 5, 1, 1, 1, 0, 0, 1},
    {1, 13, 9, 3, 13, 9, 5, 3, 1, 2, 1, 1},  {1, 14, 14, 3, 7, 7, 7, 7, 2, 3, 3, 1},
    {2, 5, 4, 17, 10, 8, 3, 3, 1, 1, 1, 2},  {1, 5, 6, 40, 10, 12, 5, 3, 1, 2, 1, 2},
    {2, 9, 7, 5, 4, 5, 3, 2, 1, -1, -2, 1},  {1, 8, 9, 36, 5, 9, 1, 2, 1, -3, 0, 1},
    {1, 2, 2, 8, 2, 2, 5, 5, 1, 2, 2, 1},    {2, 3, 3, 48, 2, 2, 2, 2, 1, 0, 0, 1},
    {2, 9, 7, 64, 9, 7, 3, 3, 1, 1, 1, 1},   {2, 5, 4, 32, 10, 8, 3, 3, 1, 1, 1, 2},
    {3, 9, 8, 96, 4, 4, 3, 3, 2, 0, 1, 1},
};
enum { UNFOLDS = sizeof unfolds / sizeof *unfolds };

/* A gathered operand gives the bits of the same operand written out, on either side. */
static void test_unfold(void) {
    for (int i = 0; i < UNFOLDS; i++) {
        const cdad_unfold *u = &unfolds[i];
        int64_t pixels = u->N * u->P * u->Q, columns = u->R * u->S * u->C, O = 19 + 30 * (i % 3);
        float *x = unit(u->N * u->H * u->W * u->C, 11), *w = unit(O * columns, 12);
        float *dy = unit(pixels * O, 13);
        float *written = floats(pixels * columns), *y = floats(pixels * O), *y2 = floats(pixels * O);
        float *dw = floats(O * columns), *dw2 = floats(O * columns);
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t c = 0; c < columns; c++)
                written[p * columns + c] = unfolded(u, x, p, c);
        cdad_mat gathered = {x, 0, 0, u}, matrix = plain(written, pixels, columns, 0);
        cdad_mat weights = plain(w, columns, O, 1), dy_t = plain(dy, O, pixels, 1);
        run(table, 2, pixels, O, columns, gathered, weights, y, O, NULL, 0);
        run(table, 1, pixels, O, columns, matrix, weights, y2, O, NULL, 0);
        CHECK(same(y, y2, pixels * O), "unfolded A, case %d: other bits than its matrix", i);
        run(table, 2, O, columns, pixels, dy_t, gathered, dw, columns, NULL, 0);
        run(table, 1, O, columns, pixels, dy_t, matrix, dw2, columns, NULL, 0);
        CHECK(same(dw, dw2, O * columns), "unfolded B, case %d: other bits than its matrix", i);
        if (i % 4 == 0) {
            check_values("unfolded A", pixels, O, columns, gathered, weights, 1, 0);
            check_values("unfolded B", O, columns, pixels, dy_t, gathered, 0, 1);
        }
        void *owned[] = {x, w, dy, written, y, y2, dw, dw2};
        for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
            cdad_free(owned[j]);
    }
    /* Many pixels, few weights: the gathered operand of a sum that is cut along k. */
    cdad_unfold u = {4, 64, 64, 3, 64, 64, 3, 3, 1, 1, 1, 1};
    int64_t pixels = u.N * u.P * u.Q;
    float *x = unit(pixels * u.C, 14), *dy = unit(pixels * 7, 15);
    check_values("unfolded B, sliced", 7, 27, pixels, plain(dy, 7, pixels, 1), (cdad_mat){x, 0, 0, &u}, 0, 0);
    cdad_free(x);
    cdad_free(dy);
}

/* A value that is not finite reaches the row or column it belongs to, and no other. */
static void test_not_finite(void) {
    int64_t M = 29, N = 45, K = 400;
    float *a = unit(M * K, 21), *b = unit(K * N, 22), *C = floats(M * N);
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++)
        for (int in_a = 0; in_a < 2; in_a++) {
            float *at = in_a ? &a[28 * K + 399] : &b[390 * N + 44], old = *at;
            *at = bad[i];
            run(table, 1, M, N, K, plain(a, M, K, 0), plain(b, K, N, 0), C, N, NULL, 0);
            int wrong = 0;
            for (int64_t m = 0; m < M; m++)
                for (int64_t n = 0; n < N; n++)
                    wrong += isfinite(C[m * N + n]) == (in_a ? m == 28 : n == 44);
            CHECK(wrong == 0, "%g in %s: %d elements are wrong", bad[i], in_a ? "A" : "B", wrong);
            *at = old;
        }
    cdad_free(a);
    cdad_free(b);
    cdad_free(C);
}

/* Rows computed in any batch, by any number of threads, have the same bits. */
static void test_invariance(void) {
    int64_t M = 211, N = 67, K = 1000;
    float *a = unit(M * K, 31), *b = unit(K * N, 32), *bias = unit(N, 33);
    float *C = floats(M * N), *part = floats(M * N);
    for (int layout = 0; layout < 2; layout++) {
        cdad_mat B = plain(b, K, N, layout);
        run(table, 1, M, N, K, plain(a, M, K, 0), B, C, N, bias, 0);
        static const int64_t ranges[][2] = {{0, 1},  {5, 1},   {210, 1},  {3, 2},
                                            {7, 13}, {20, 64}, {100, 68}, {1, 210}};
        for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
            int64_t first = ranges[i][0], rows = ranges[i][1];
            run(table, 1, rows, N, K, plain(a + first * K, rows, K, 0), B, part, N, bias, 0);
            CHECK(same(part, C + first * N, rows * N), "rows %lld..%lld alone have other bits",
                  (long long)first, (long long)(first + rows - 1));
        }
    }
    for (int transposed = 0; transposed < 2; transposed++) {
        cdad_mat A = plain(a, M, K, transposed), B = plain(b, K, N, 0);
        run(table, 1, M, N, K, A, B, C, N, bias, 0);
        for (int threads = 2; threads <= 4; threads += 2) {
            run(table, threads, M, N, K, A, B, part, N, bias, 0);
            CHECK(same(part, C, M * N), "%d threads: other bits", threads);
        }
    }
    cdad_free(a);
    cdad_free(b);

    int64_t long_k = 20000; /* sliced */
    a = unit(17 * long_k, 34), b = unit(long_k * N, 35);
    run(table, 1, 17, N, long_k, plain(a, 17, long_k, 1), plain(b, long_k, N, 0), C, N, NULL, 0);
    for (int threads = 2; threads <= 4; threads += 2) {
        run(table, threads, 17, N, long_k, plain(a, 17, long_k, 1), plain(b, long_k, N, 0), part, N, NULL, 0);
        CHECK(same(part, C, 17 * N), "sliced, %d threads: other bits", threads);
    }
    /* A long forward product is not sliced, however few rows it has: those of one image, or of many. */
    int64_t many = 1000, row_k = 13000;
    float *rows = unit(many * row_k, 38), *all = floats(many * N);
    run(table, 2, many, N, row_k, plain(rows, many, row_k, 0), plain(b, row_k, N, 1), all, N, NULL, 0);
    run(table, 1, 8, N, row_k, plain(rows, 8, row_k, 0), plain(b, row_k, N, 1), part, N, NULL, 0);
    CHECK(same(part, all, 8 * N), "8 long rows alone have other bits");
    cdad_free(rows);
    cdad_free(all);
    cdad_free(a);
    cdad_free(b);
    cdad_free(bias);
    cdad_free(C);
    cdad_free(part);

    cdad_unfold u = {3, 12, 12, 48, 12, 12, 3, 3, 1, 1, 1, 1}, one = u;
    one.N = 1;
    int64_t O = 80, k = 9 * u.C, size = 12 * 12 * O;
    float *x = unit(3 * 144 * u.C, 36), *w = unit(O * k, 37), *y = floats(3 * size), *alone = floats(size);
    cdad_mat weights = plain(w, k, O, 1);
    run(table, 4, 3 * 144, O, k, (cdad_mat){x, 0, 0, &u}, weights, y, O, NULL, 0);
    for (int64_t n = 0; n < 3; n++) {
        cdad_mat image = {x + n * 144 * u.C, 0, 0, &one};
        run(table, 1, 144, O, k, image, weights, alone, O, NULL, 0);
        CHECK(same(alone, y + n * size, size), "image %lld alone has other bits", (long long)n);
    }
    cdad_free(x);
    cdad_free(w);
    cdad_free(y);
    cdad_free(alone);
}

static int close_to(const float *got, const double *want, const double *size, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= 1e-6 * size[i]))
            return 0;
    return 1;
}

typedef struct sums { /* a result in double, and the size of its terms */
    double *value, *size;
    int64_t n;
} sums;

static sums sums_new(int64_t n) {
    sums s = {zeros(n * 8), zeros(n * 8), n};
    memset(s.value, 0, (size_t)n * 8);
    memset(s.size, 0, (size_t)n * 8);
    return s;
}
static void sums_add(sums *s, int64_t i, double term) {
    s->value[i] += term;
    s->size[i] += fabs(term);
}
static int sums_match(sums *s, const float *got) {
    int ok = close_to(got, s->value, s->size, s->n);
    cdad_free(s->value);
    cdad_free(s->size);
    return ok;
}

static void test_depthwise_case(const cdad_unfold *u) {
    int64_t nx = u->N * u->H * u->W * u->C, ny = u->N * u->P * u->Q * u->C, nw = u->R * u->S * u->C, C = u->C;
    float *x = unit(nx, 41), *w = unit(nw, 42), *bias = unit(C, 43), *dy = unit(ny, 44);
    float *y = floats(ny), *dx = floats(nx), *dw = floats(nw), *db = floats(C);
    float *y2 = floats(ny), *dx2 = floats(nx), *dw2 = floats(nw), *db2 = floats(C);
    sums sy = sums_new(ny), sdx = sums_new(nx), sdw = sums_new(nw), sdb = sums_new(C);
    for (int64_t i = 0; i < ny; i++) {
        int64_t c = i % C, q = i / C % u->Q, p = i / C / u->Q % u->P, n = i / C / u->Q / u->P;
        sums_add(&sy, i, bias[c]);
        sums_add(&sdb, c, dy[i]);
        for (int64_t t = 0; t < u->R * u->S; t++) {
            int64_t h = p * u->stride + t / u->S - u->pad_t, v = q * u->stride + t % u->S - u->pad_l;
            if (h < 0 || h >= u->H || v < 0 || v >= u->W)
                continue;
            int64_t at = ((n * u->H + h) * u->W + v) * C + c;
            sums_add(&sy, i, (double)x[at] * w[t * C + c]);
            sums_add(&sdx, at, (double)dy[i] * w[t * C + c]);
            sums_add(&sdw, t * C + c, (double)dy[i] * x[at]);
        }
    }
    cdad_context ctx = {.pool = pools[1], .kernels = table}, threaded = {.pool = pools[4], .kernels = table};
    table->depthwise_conv2d(&ctx, y, x, w, bias, u);
    table->depthwise_conv2d_grad(&ctx, dx, dw, db, x, w, dy, u);
    int ok_y = sums_match(&sy, y), ok_dx = sums_match(&sdx, dx), ok_dw = sums_match(&sdw, dw);
    int ok_db = sums_match(&sdb, db);
    CHECK(ok_y && ok_dx && ok_dw && ok_db, "depthwise %lldx%lldx%lld, %lldx%lld, stride %lld: wrong%s%s%s%s",
          (long long)u->H, (long long)u->W, (long long)C, (long long)u->R, (long long)u->S,
          (long long)u->stride, ok_y ? "" : " y", ok_dx ? "" : " dx", ok_dw ? "" : " dw", ok_db ? "" : " db");

    table->depthwise_conv2d(&threaded, y2, x, w, bias, u);
    table->depthwise_conv2d_grad(&threaded, dx2, NULL, NULL, x, w, dy, u);
    table->depthwise_conv2d_grad(&threaded, NULL, dw2, NULL, x, w, dy, u);
    table->depthwise_conv2d_grad(&threaded, NULL, NULL, db2, x, w, dy, u);
    CHECK(same(y, y2, ny) && same(dx, dx2, nx) && same(dw, dw2, nw) && same(db, db2, C),
          "depthwise: other bits by 4 threads, or one gradient at a time");
    cdad_unfold one = *u;
    one.N = 1;
    int64_t last = (u->N - 1) * u->P * u->Q * C, last_x = (u->N - 1) * u->H * u->W * C;
    table->depthwise_conv2d(&ctx, y2, x + last_x, w, bias, &one);
    table->depthwise_conv2d_grad(&ctx, dx2, NULL, NULL, x + last_x, w, dy + last, &one);
    CHECK(same(y2, y + last, ny - last) && same(dx2, dx + last_x, nx - last_x),
          "depthwise: an image alone has other bits");
    void *owned[] = {x, w, bias, dy, y, dx, dw, db, y2, dx2, dw2, db2};
    for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
        cdad_free(owned[j]);
}

static void test_depthwise(void) {
    static const cdad_unfold cases[] = {
        {2, 9, 7, 1, 9, 7, 3, 3, 1, 1, 1, 1},    {2, 8, 9, 96, 8, 9, 5, 5, 1, 2, 2, 1},
        {3, 11, 10, 17, 6, 5, 3, 3, 2, 1, 1, 1}, {2, 10, 12, 40, 5, 6, 5, 5, 2, 1, 1, 1},
        {1, 7, 7, 5, 4, 4, 3, 3, 2, 0, 1, 1},    {2, 3, 2, 100, 3, 2, 5, 3, 1, 2, 1, 1},
        {1, 6, 6, 64, 2, 2, 3, 3, 3, 0, 0, 1},   {2, 5, 5, 24, 3, 3, 3, 3, 1, 0, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        test_depthwise_case(&cases[i]);
}

/* Factors of which only the second is not of bfloat16 already: the product has it whole, or 16 bits of it. */
static void test_split(void) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {33, 70, 129}, {70, 33, 801}, {96, 64, 32}, {3, 40, 7}, {3, 2, 600000}, {2, 3, 600000}};
    const size_t count = sizeof shapes / sizeof *shapes - (table == portable ? 2 : 0); /* the last ones are longer than what is packed at once */
    for (size_t i = 0; i < count; i++)
        for (int layout = 0; layout < 4; layout++) {
            const int64_t M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
            float *a = unit(M * K, 41), *b = unit(K * N, 42), *bias = unit(N, 43), *C = unit(M * N, 44), *before = unit(M * N, 44);
            for (int64_t j = 0; j < M * K; j++)
                a[j] = (float)rounded(a[j]);
            const cdad_mat A = plain(a, M, K, layout / 2), B = plain(b, K, N, layout % 2);
            const cdad_epilogue with = {.accumulate = layout != 1, .bias = bias, .precision = CDAD_BFLOAT16, .split = 1};
            const cdad_context ctx = {.pool = pools[2], .kernels = table};
            void *scratch = zeros(table->gemm_scratch(M, N, K, 2));
            table->gemm(&ctx, M, N, K, A, B, C, N, &with, scratch);
            double worst = 0.0;
            for (int64_t m = 0; m < M; m++)
                for (int64_t n = 0; n < N; n++) {
                    double sum = (with.accumulate ? before[m * N + n] : 0.0) + bias[n], size = fabs(sum) + 1e-30;
                    for (int64_t k = 0; k < K; k++) {
                        const double product = (double)A.data[m * A.rs + k * A.cs] * B.data[k * B.rs + n * B.cs];
                        sum += product;
                        size += fabs(product);
                    }
                    worst = fmax(worst, fabs(C[m * N + n] - sum) / size);
                }
            CHECK(worst < 0x1p-17, "split, layout %d, %lldx%lldx%lld: error %.2g of the terms' size", layout, (long long)M, (long long)N,
                  (long long)K, worst);
            void *owned[] = {a, b, bias, C, before, scratch};
            for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
                cdad_free(owned[j]);
        }
}

static void test_table(void) {
    static const cdad_precision each[] = {CDAD_FLOAT32, CDAD_BFLOAT16};
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        precision = each[i];
        test_plain();
        test_unfold();
        test_not_finite();
        if (precision == CDAD_FLOAT32 || table != portable)
            test_invariance();
    }
    test_split();
    test_depthwise();
}

int cdad_test_gemm(void) {
    portable = cdad_kernels_select("portable");
    return on_every_table(test_table);
}
