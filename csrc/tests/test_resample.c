/* The choice of a table; kernels that move, pool and resample. */
#include "kernel_check.h"

int cdad_test_resample(void);

static void test_select(void) {
    CHECK(cdad_kernels_select(table->name) == table, "a table is not found by its name");
    CHECK(cdad_kernels_select(NULL) == cdad_kernels_at(0), "the best table comes first");
    CHECK(cdad_kernels_select("portable") && !cdad_kernels_select("sse9") && !cdad_kernels_at(-1) &&
              !cdad_kernels_at(99),
          "unknown tables");
}

static void test_upsample(void) {
    enum { N = 3, H = 5, W = 7, C = 19, SIZE = N * H * W * C };
    float *x = noise(SIZE, 1, 0.0f, 1.0f), *dy = noise(4 * SIZE, 2, 0.0f, 1.0f), *y = floats(4 * SIZE);
    float *dx = floats(SIZE), *first = floats(SIZE);
    double *want = doubles(SIZE);
    EACH_POOL({
        int wrong = 0;
        table->upsample2x(ctx, y, x, N, H, W, C);
        table->upsample2x_grad(ctx, dx, dy, N, H, W, C);
        memset(want, 0, SIZE * sizeof(double));
        for (int64_t i = 0; i < 4 * SIZE; i++) {
            const int64_t c = i % C, q = i / C % (2 * W), p = i / C / (2 * W) % (2 * H),
                          n = i / C / (4 * W * H);
            const int64_t at = ((n * H + p / 2) * W + q / 2) * C + c;
            wrong += y[i] != x[at];
            want[at] += (double)dy[i];
        }
        const double error = worst(dx, want, SIZE, 1.0);
        CHECK(!wrong && error < 3e-7, "upsampling: %d wrong, gradient's error %.2g", wrong, error);
        CHECK(threads == 1 || same(dx, first, SIZE), "upsampling: %d threads change it", threads);
        memcpy(first, dx, SIZE * sizeof(float));
    })
    cdad_free(x);
    cdad_free(dy);
    cdad_free(y);
    cdad_free(dx);
    cdad_free(first);
    cdad_free(want);
}

/* The weight of input i in output o along one axis: the triangle of half-pixel centres, edges repeated. */
static double weight(int64_t i, int64_t in, int64_t o, int64_t out) {
    const double at = fmin(fmax(((double)o + 0.5) * (double)in / (double)out - 0.5, 0.0), (double)(in - 1));
    return fmax(0.0, 1.0 - fabs(at - (double)i));
}

static void test_resize(void) {
    static const int64_t shapes[][5] = {
        {5, 7, 3, 11, 4}, {1, 1, 5, 3, 2}, {8, 8, 1, 256, 64}, {9, 6, 33, 9, 6}, {6, 9, 2, 1, 1}};
    enum { N = 3 };
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const int64_t H = shapes[k][0], W = shapes[k][1], C = shapes[k][2], P = shapes[k][3],
                      Q = shapes[k][4];
        float *x = noise(N * H * W * C, 3, 0.0f, 1.0f), *y = floats(N * P * Q * C),
              *other = floats(N * P * Q * C);
        double *want = doubles(N * P * Q * C);
        for (int64_t i = 0; i < N * P * Q * C; i++) {
            const int64_t c = i % C, q = i / C % Q, p = i / C / Q % P, n = i / C / Q / P;
            for (int64_t h = 0; h < H; h++)
                for (int64_t w = 0; w < W; w++)
                    want[i] +=
                        weight(h, H, p, P) * weight(w, W, q, Q) * (double)x[((n * H + h) * W + w) * C + c];
        }
        EACH_POOL({
            table->resize_bilinear(ctx, threads == 1 ? y : other, x, N, H, W, C, P, Q);
            CHECK(threads == 1 || same(y, other, N * P * Q * C), "resizing %zu: %d threads change it", k,
                  threads);
        })
        const cdad_context one = {.kernels = table};
        for (int64_t n = 0; n < N; n++)
            table->resize_bilinear(&one, other + n * P * Q * C, x + n * H * W * C, 1, H, W, C, P, Q);
        const double error = worst(y, want, N * P * Q * C, 1.0);
        CHECK(error < 3e-7 && same(y, other, N * P * Q * C),
              "resizing %zu: error %.2g, or samples alone differ", k, error);
        cdad_free(x);
        cdad_free(y);
        cdad_free(other);
        cdad_free(want);
    }
}

/* Many equal values, and a NaN: a window's first largest value takes the gradient. */
static void test_max_pool(void) {
    static const cdad_unfold shapes[] = {
        {.N = 3, .H = 9, .W = 12, .C = 70, .P = 5, .Q = 6, .R = 3, .S = 3, .stride = 2, .pad_t = 1, .pad_l = 1, .up = 1},
        {.N = 2, .H = 5, .W = 4, .C = 3, .P = 3, .Q = 2, .R = 4, .S = 4, .stride = 2, .pad_t = 3, .pad_l = 2, .up = 1},
        {.N = 1, .H = 1, .W = 1, .C = 16, .P = 1, .Q = 1, .R = 1, .S = 1, .stride = 1, .up = 1}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        const cdad_unfold *u = &shapes[k];
        const int64_t in = u->N * u->H * u->W * u->C, out = u->N * u->P * u->Q * u->C;
        float *x = noise(in, 6, 0.0f, 3.0f), *dy = noise(out, 7, 0.0f, 1.0f), *y = floats(out), *dx = floats(in);
        float *want = floats(out), *want_dx = floats(in);
        for (int64_t i = 0; i < in; i++)
            x[i] = truncf(x[i]);
        x[in / 2] = NAN;
        for (int64_t i = 0; i < out; i++) {
            const int64_t c = i % u->C, q = i / u->C % u->Q, p = i / u->C / u->Q % u->P, n = i / u->C / u->Q / u->P;
            int64_t best = -1;
            for (int64_t tap = 0; tap < u->R * u->S; tap++) {
                const int64_t h = p * u->stride + tap / u->S - u->pad_t, w = q * u->stride + tap % u->S - u->pad_l;
                const int64_t at = ((n * u->H + h) * u->W + w) * u->C + c;
                if (h < 0 || h >= u->H || w < 0 || w >= u->W)
                    continue;
                if (best < 0 || x[at] > x[best] || isnan(x[at]))
                    best = at;
            }
            want[i] = x[best];
            want_dx[best] += dy[i];
        }
        EACH_POOL({
            table->max_pool2d(ctx, y, x, u);
            table->max_pool2d_grad(ctx, dx, x, dy, u);
            CHECK(same(y, want, out) && same(dx, want_dx, in), "pooling %zu by %d threads is wrong", k, threads);
        })
        cdad_free(x);
        cdad_free(dy);
        cdad_free(y);
        cdad_free(dx);
        cdad_free(want);
        cdad_free(want_dx);
    }
}

static void test_copy_runs(void) {
    enum { A = 3, B = 4, C = 5, W = 6 };
    const cdad_runs runs = {{A, B, C}, {B * C * W, -C * W, 2 * W}, {W, A * W, A * B * W}, W};
    float *src = noise(A * B * C * W, 4, 0.0f, 1.0f);
    EACH_POOL({
        float *dst = noise(A * B * 2 * C * W, 5, 0.0f, 1.0f);
        int wrong = 0;
        table->copy_runs(ctx, dst + (B - 1) * C * W, src, &runs);
        for (int a = 0; a < A; a++)
            for (int b = 0; b < B; b++)
                for (int c = 0; c < C; c++)
                    wrong += !same(dst + (B - 1 + a * B - b) * C * W + c * 2 * W, src + ((c * B + b) * A + a) * W, W);
        CHECK(!wrong, "copying runs, %d threads: %d are wrong", threads, wrong);
        cdad_free(dst);
    })
    cdad_free(src);
}

static void test_copy_columns(void) {
    static const int64_t widths[] = {1, 5, 64, 20000};
    for (int k = 0; k < 4; k++) {
        const int64_t w = widths[k], n = 20000 / w + 7, from = w + 3, to = w + 5;
        float *src = noise(n * from, 4, 0.0f, 1.0f);
        EACH_POOL({
            float *dst = noise(n * to, 5, 0.0f, 1.0f), *before = noise(n * to, 5, 0.0f, 1.0f);
            int wrong = 0;
            const cdad_runs runs = cdad_columns(n, w, to, from);
            table->copy_runs(ctx, dst, src, &runs);
            for (int64_t i = 0; i < n; i++)
                wrong += !same(dst + i * to, src + i * from, w) ||
                         !same(dst + i * to + w, before + i * to + w, to - w);
            CHECK(!wrong, "copying %lld columns, %d threads: %d rows are wrong", (long long)w, threads,
                  wrong);
            cdad_free(dst);
            cdad_free(before);
        })
        cdad_free(src);
    }
}

static void test_rows(void) {
    enum { N = 150, ROWS = 40, C = 70 };
    float ids[N], *from = noise(ROWS * C, 8, 0.0f, 1.0f), *dy = noise(N * C, 9, 0.0f, 1.0f), *y = floats(N * C);
    float *dtable = floats(ROWS * C), *want = floats(ROWS * C);
    for (int64_t i = 0; i < N; i++)
        ids[i] = (float)(i * i % ROWS);
    for (int64_t i = 0; i < N * C; i++)
        want[(int64_t)ids[i / C] * C + i % C] += dy[i];
    EACH_POOL({
        int wrong = !table->gather_rows(ctx, y, from, ids, N, ROWS, C);
        for (int64_t i = 0; i < N; i++)
            wrong += !same(y + i * C, from + (int64_t)ids[i] * C, C);
        CHECK(!wrong, "gathering by %d threads: %d rows are wrong", threads, wrong);
        CHECK(table->scatter_rows(ctx, dtable, dy, ids, N, ROWS, C) && same(dtable, want, ROWS * C),
              "scattering by %d threads is wrong", threads);
        static const float no_rows[] = {-1.0f, 40.0f, 3.5f, NAN, 1e30f};
        for (int k = 0; k < 5; k++) {
            ids[77] = no_rows[k];
            CHECK(!table->gather_rows(ctx, y, from, ids, N, ROWS, C) &&
                      !table->scatter_rows(ctx, dtable, dy, ids, N, ROWS, C),
                  "row %g of %d", (double)no_rows[k], ROWS);
        }
        ids[77] = (float)(77 * 77 % ROWS);
    })
    cdad_free(from);
    cdad_free(dy);
    cdad_free(y);
    cdad_free(dtable);
    cdad_free(want);
}

static void test_timestep_embedding(void) {
    static const int64_t widths[] = {320, 7};
    const float t[] = {0.0f, 1.0f, 501.0f, 999.0f};
    const cdad_context ctx = {.pool = pools[2], .kernels = table};
    for (int k = 0; k < 2; k++) {
        const int64_t D = widths[k], half = D / 2;
        float y[4 * 320];
        double want[4 * 320] = {0};
        for (int64_t i = 0; i < 4 * half; i++) {
            const double f = pow(10000.0, -(double)(i % half) / (double)half);
            want[i / half * D + i % half] = cos((double)t[i / half] * f);
            want[i / half * D + half + i % half] = sin((double)t[i / half] * f);
        }
        table->timestep_embedding(&ctx, y, t, 4, D);
        const double error = worst(y, want, 4 * D, 1.0); /* angles up to 999 are floats */
        CHECK(error < 7e-5, "embedding of width %lld: error %.2g", (long long)D, error);
    }
}

int cdad_test_resample(void) {
    on_every_table(test_select);
    on_every_table(test_upsample);
    on_every_table(test_resize);
    on_every_table(test_max_pool);
    on_every_table(test_copy_columns);
    on_every_table(test_copy_runs);
    on_every_table(test_rows);
    on_every_table(test_timestep_embedding);
    return failures;
}
