/* What products do beside multiplying: sums, activations, factors in bfloat16, of every table. */
#include "kernel_check.h"

int cdad_test_epilogue(void);

typedef enum { DIRECT, NARROW, TWO, FOUR } way;
static const char *const names[] = {"direct", "narrow", "F(2,3)", "F(4,3)"};

/* y = 3x3 convolution of stride 1 of x. */
static void convolve(way how, float *y, const float *x, const float *w, const cdad_unfold *u, int64_t O,
                     const cdad_epilogue *with, int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = table};
    const int64_t C = u->C, K = 9 * C, M = u->N * u->P * u->Q;
    const cdad_mat weights = {.data = w, .rs = 1, .cs = K};
    void *scratch = zeros(how == DIRECT   ? table->gemm_scratch(M, O, K, threads)
                          : how == NARROW ? table->narrow_conv2d_scratch(u, O, threads)
                                          : table->winograd_scratch(u, O, how == TWO ? 2 : 4, threads));
    const cdad_pixels pixels = {.data = y, .image = u->P * u->Q * O, .row = u->Q * O, .pixel = O};
    if (how == DIRECT)
        table->gemm(&ctx, M, O, K, (cdad_mat){.data = x, .unfold = u}, weights, y, O, with, scratch);
    else if (how == NARROW)
        table->narrow_conv2d(&ctx, pixels, x, weights, with, u, O, scratch);
    else
        table->winograd(&ctx, y, x, weights, 3 * C, C, with, u, O, how == TWO ? 2 : 4, scratch);
    cdad_free(scratch);
}

/* A sum and an activation give the bits that they give afterwards. */
static void test_convolutions(void) {
    static const struct {
        cdad_unfold u;
        int64_t O;
    } cases[] = {
        {{2, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1}, 37},
        {{1, 16, 17, 8, 16, 17, 3, 3, 1, 1, 1, 1}, 32},
        {{3, 6, 6, 130, 6, 6, 3, 3, 1, 1, 1, 1}, 70},
    };
    const cdad_context ctx = {.pool = pools[2], .kernels = table};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const cdad_unfold *u = &cases[i].u;
        const int64_t O = cases[i].O, n = u->N * u->P * u->Q * O;
        float *x = noise(u->N * u->H * u->W * u->C, 1, 0.0f, 1.0f), *w = noise(O * 9 * u->C, 2, 0.0f, 0.3f);
        float *bias = noise(O, 3, 0.0f, 1.0f), *sum = noise(n, 4, 0.0f, 2.0f);
        float *plain = floats(n), *added = floats(n), *active = floats(n);
        for (way how = DIRECT; how <= FOUR; how++) {
            cdad_epilogue with = {.bias = bias};
            convolve(how, plain, x, w, u, O, &with, 2);
            for (int64_t k = 0; k < n; k++)
                plain[k] += sum[k];
            with.sum = sum;
            convolve(how, added, x, w, u, O, &with, 2);
            CHECK(same(added, plain, n), "%s, case %zu: a sum has other bits than afterwards", names[how], i);
            with.act = CDAD_ACT_SILU;
            convolve(how, active, x, w, u, O, &with, 1);
            table->activation(&ctx, added, added, n, CDAD_ACT_SILU);
            CHECK(same(active, added, n), "%s, case %zu: the activation has other bits than afterwards", names[how], i);
        }
        void *owned[] = {x, w, bias, sum, plain, added, active};
        for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
            cdad_free(owned[j]);
    }
}

/* A sum and an activation of a product that is cut along k. */
static void test_sliced(void) {
    const cdad_context ctx = {.pool = pools[2], .kernels = table};
    const int64_t M = 17, N = 45, K = 20000;
    float *a = noise(K * M, 1, 0.0f, 1.0f), *b = noise(K * N, 2, 0.0f, 1.0f), *sum = noise(M * N, 3, 0.0f, 50.0f);
    float *plain = floats(M * N), *all = floats(M * N);
    void *scratch = zeros(table->gemm_scratch(M, N, K, 2));
    const cdad_mat A = {.data = a, .rs = 1, .cs = M}, B = {.data = b, .rs = N, .cs = 1};
    table->gemm(&ctx, M, N, K, A, B, plain, N, NULL, scratch);
    table->gemm(&ctx, M, N, K, A, B, all, N, &(cdad_epilogue){.sum = sum, .act = CDAD_ACT_RELU}, scratch);
    for (int64_t k = 0; k < M * N; k++)
        plain[k] = fmaxf(0.0f, plain[k] + sum[k]);
    CHECK(same(all, plain, M * N), "a sliced product: the epilogue is wrong");
    void *owned[] = {a, b, sum, plain, all, scratch};
    for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
        cdad_free(owned[j]);
}

/* ---- bfloat16 --------------------------------------------------------------------------------------------------- */

static float *product(const cdad_kernels *kernels, int64_t M, int64_t N, int64_t K, cdad_mat A, cdad_mat B,
                      int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = kernels};
    float *C = floats(M * N);
    void *scratch = zeros(kernels->gemm_scratch(M, N, K, threads));
    kernels->gemm(&ctx, M, N, K, A, B, C, N, &(cdad_epilogue){.precision = CDAD_BFLOAT16}, scratch);
    cdad_free(scratch);
    return C;
}

/* The stated order of summation, bit by bit: blocks of 384 steps, pairs, the odd step first. */
static float one_element(const float *a, const float *b, int64_t K) {
    float total = 0.0f;
    for (int64_t k0 = 0; k0 < K; k0 += 384) {
        const int64_t end = k0 + 384 < K ? k0 + 384 : K;
        float sum = 0.0f;
        for (int64_t k = k0; k < end; k += 2) {
            if (k + 1 < end)
                sum = fmaf(rounded(a[k + 1]), rounded(b[k + 1]), sum);
            sum = fmaf(rounded(a[k]), rounded(b[k]), sum);
        }
        total = k0 ? total + sum : sum;
    }
    return total;
}

/* The same of AMX: groups of 32 steps, the even and the odd ones apart. */
static float one_element_amx(const float *a, const float *b, int64_t K) {
    float total = 0.0f;
    for (int64_t k0 = 0; k0 < K; k0 += 32) {
        float sums[2] = {0.0f, 0.0f};
        for (int64_t k = k0; k < K && k < k0 + 32; k++)
            sums[k % 2] = fmaf(rounded(a[k]), rounded(b[k]), sums[k % 2]);
        total += sums[0] + sums[1];
    }
    return total;
}

static void test_bf16(void) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {13, 33, 7}, {24, 64, 768}, {37, 40, 1031}, {130, 50, 385}, {16, 16, 32}};
    const int amx = strcmp(table->name, "amx") == 0;
    const cdad_kernels *portable = cdad_kernels_select("portable");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t M = shapes[i][0], N = shapes[i][1], K = shapes[i][2];
        float *a = noise(M * K, 1, 0.0f, 1.0f), *b = noise(N * K, 2, 0.0f, 1.0f);
        const cdad_mat A = {.data = a, .rs = K, .cs = 1}, B = {.data = b, .rs = 1, .cs = K};
        float *C = product(table, M, N, K, A, B, 2), *other = product(portable, M, N, K, A, B, 1);
        int right = 1;
        for (int64_t m = 0; m < M; m++)
            for (int64_t n = 0; n < N; n++)
                right &= C[m * N + n] == (amx ? one_element_amx : one_element)(a + m * K, b + n * K, K);
        CHECK(right, "bfloat16, %lldx%lldx%lld: not the stated sums", (long long)M, (long long)N, (long long)K);
        CHECK(amx || same(C, other, M * N), "bfloat16, %lldx%lldx%lld: other bits than portable", (long long)M, (long long)N,
              (long long)K);
        float *alone = product(table, 1, N, K, (cdad_mat){.data = a + (M - 1) * K, .rs = K, .cs = 1}, B, 4);
        CHECK(same(alone, C + (M - 1) * N, N), "bfloat16: the last row alone has other bits");
        void *owned[] = {a, b, C, other, alone};
        for (size_t j = 0; j < sizeof owned / sizeof *owned; j++)
            cdad_free(owned[j]);
    }
}

/* Values that rounding treats on its own, alone in a row of A, times one. */
static void test_bf16_values(void) {
    const float tie_down = 1.0f + 0x1p-8f, tie_up = 1.0f + 3 * 0x1p-8f, denormal = 0x1p-130f, largest = 0x1.fffffep127f;
    const float from[] = {1.0f, -1.0f, tie_down, tie_up, 0.0f, denormal, largest, INFINITY, -INFINITY, NAN, 0x1p-126f};
    const float to[] = {1.0f, -1.0f, 1.0f, 1.0f + 0x1p-6f, 0.0f, 0.0f, INFINITY, INFINITY, -INFINITY, NAN, 0x1p-126f};
    enum { COUNT = sizeof from / sizeof *from };
    const float one = 1.0f;
    float *C = product(table, COUNT, 1, 1, (cdad_mat){.data = from, .rs = 1, .cs = 1},
                       (cdad_mat){.data = &one, .rs = 1, .cs = 1}, 1);
    for (int i = 0; i < COUNT; i++)
        CHECK(isnan(to[i]) ? isnan(C[i]) : C[i] == to[i], "bfloat16 of %g: %g", (double)from[i], (double)C[i]);
    cdad_free(C);
}

static void test_table(void) {
    test_convolutions();
    test_sliced();
    test_bf16();
    test_bf16_values();
}

int cdad_test_epilogue(void) { return on_every_table(test_table); }
