/* Elementwise, broadcasting, moving and optimiser kernels, and the elementary functions below them. */
#include "kernel_check.h"

#define CDAD_ISA portable
#define CDAD_VBYTES 16
#include "kernels/cpu/vmath.h"

int cdad_test_kernels(void);

enum { N = 3, BIG = 40001 }; /* samples; a size of several tiles with a tail */

static double activation(cdad_activation act, double x) {
    switch (act) {
    case CDAD_ACT_SILU:
        return x / (1.0 + exp(-x));
    case CDAD_ACT_RELU:
        return x > 0.0 ? x : 0.0;
    case CDAD_ACT_RELU6:
        return fmin(fmax(x, 0.0), 6.0);
    case CDAD_ACT_GELU:
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case CDAD_ACT_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case CDAD_ACT_TANH:
        return tanh(x);
    case CDAD_ACT_SIGMOID:
        return 1.0 / (1.0 + exp(-x));
    case CDAD_ACT_EXP:
        return exp(x);
    case CDAD_ACT_SQRT:
        return sqrt(x);
    default:
        return NAN;
    }
}

static float unit_in_last_place(float x) {
    x = fabsf(x);
    return x < 0x1p-126f ? 0x1p-149f : nextafterf(x, HUGE_VALF) - x;
}

/* Every 4099th float in [-last, last] through y = act(x): the largest error in units in the last place. */
static double sweep_ulp(cdad_activation act, float last) {
    const cdad_context ctx = {.pool = pools[2], .kernels = table};
    uint32_t bits;
    memcpy(&bits, &last, sizeof bits);
    const int64_t half = bits / 4099 + 1;
    float *x = floats(2 * half), *y = floats(2 * half);
    double most = 0.0;
    for (int64_t i = 0; i < half; i++) {
        const uint32_t pattern = (uint32_t)i * 4099;
        memcpy(&x[2 * i], &pattern, sizeof pattern);
        x[2 * i + 1] = -x[2 * i];
    }
    table->activation(&ctx, y, x, 2 * half, act);
    for (int64_t i = 0; i < 2 * half; i++) {
        const double want = activation(act, (double)x[i]);
        if (fabs(want) > 0x1.ffffffp127) { /* rounds to infinity */
            most = y[i] == HUGE_VALF ? most : HUGE_VAL;
            continue;
        }
        const double e = fabs((double)y[i] - want) / (double)unit_in_last_place((float)want);
        most = e <= most ? most : isnan(e) ? HUGE_VAL : e;
    }
    cdad_free(x);
    cdad_free(y);
    return most;
}

static void test_functions(void) {
    const double e = sweep_ulp(CDAD_ACT_EXP, 3e38f), t = sweep_ulp(CDAD_ACT_TANH, 3e38f);
    const double s = sweep_ulp(CDAD_ACT_SIGMOID, 87.0f);
    CHECK(e <= 2.0, "exp is %.2f ulp off", e);
    CHECK(t <= 3.0, "tanh is %.2f ulp off", t);
    CHECK(s <= 4.0, "sigmoid is %.2f ulp off", s);

    const float edge[] = {0.0f,      -0.0f,     HUGE_VALF, -HUGE_VALF, NAN,
                          88.72283f, 88.72284f, -103.9f,   -104.0f,    -1e30f};
    float y[10];
    const cdad_context ctx = {.kernels = table};
    table->activation(&ctx, y, edge, 10, CDAD_ACT_EXP);
    CHECK(y[0] == 1.0f && y[1] == 1.0f && y[2] == HUGE_VALF && y[3] == 0.0f && isnan(y[4]) &&
              isfinite(y[5]) && y[6] == HUGE_VALF && y[7] == 0x1p-149f && y[8] == 0.0f && y[9] == 0.0f,
          "exp at the edges: %g %g %g %g %g %g %g %g %g %g", (double)y[0], (double)y[1], (double)y[2],
          (double)y[3], (double)y[4], (double)y[5], (double)y[6], (double)y[7], (double)y[8], (double)y[9]);
    table->activation(&ctx, y, edge, 5, CDAD_ACT_TANH);
    CHECK(y[0] == 0.0f && !signbit(y[0]) && signbit(y[1]) && y[2] == 1.0f && y[3] == -1.0f && isnan(y[4]),
          "tanh at the edges: %g %g %g %g %g", (double)y[0], (double)y[1], (double)y[2], (double)y[3],
          (double)y[4]);
    table->activation(&ctx, y, edge, 5, CDAD_ACT_SIGMOID);
    CHECK(y[0] == 0.5f && y[2] == 1.0f && y[3] == 0.0f && isnan(y[4]), "sigmoid at the edges: %g %g %g %g",
          (double)y[0], (double)y[2], (double)y[3], (double)y[4]);
    for (int act = CDAD_ACT_NONE + 1; act < CDAD_ACT_COUNT; act++) {
        table->activation(&ctx, y, edge + 4, 1, (cdad_activation)act);
        CHECK(isnan(y[0]), "activation %d makes %g of NaN", act, (double)y[0]);
    }
}

/* The normal distribution as this file's flags compile it: other tables reach it through GELU. */
static void test_normal(void) {
    double cdf = 0.0, tail = 0.0, density = 0.0;
    for (uint32_t bits = 0x00800000; bits < 0x41200000; bits += 1021 * 4) { /* to 10 */
        float lane[4];
        vf pdf;
        for (uint32_t k = 0; k < 4; k++)
            memcpy(&lane[k], &(uint32_t){bits + 1021 * k}, sizeof(float));
        lane[2] = -lane[2];
        lane[3] = -lane[3];
        const vf y = v_normal(v_load(lane), &pdf);
        for (int k = 0; k < 4; k++) {
            const double x = (double)lane[k], want = 0.5 * erfc(-x / sqrt(2.0));
            const double e = fabs((double)y[k] - want);
            const double d = fabs((double)pdf[k] - exp(-0.5 * x * x) / sqrt(2.0 * acos(-1.0)));
            cdf = e <= cdf ? cdf : isnan(e) ? HUGE_VAL : e;
            density = d <= density ? density : isnan(d) ? HUGE_VAL : d;
            tail = fabs(x) > 4.0 || e / want <= tail ? tail : e / want;
        }
    }
    CHECK(cdf <= 1.3e-7 && tail <= 2e-4 && density <= 7e-8,
          "the normal distribution is off by %.2g, %.2g of itself, density %.2g", cdf, tail, density);
    vf pdf;
    const vf edge = v_normal((vf){HUGE_VALF, -HUGE_VALF, NAN, -0.0f}, &pdf);
    CHECK(edge[0] == 1.0f && edge[1] == 0.0f && isnan(edge[2]) && edge[3] == 0.5f && pdf[0] == 0.0f && pdf[1] == 0.0f &&
              isnan(pdf[2]),
          "the normal distribution at the edges: %g %g %g %g, %g %g %g", (double)edge[0], (double)edge[1],
          (double)edge[2], (double)edge[3], (double)pdf[0], (double)pdf[1], (double)pdf[2]);
}

static void test_activations(void) {
    float *x = noise(BIG, 1, 0.0f, 8.0f), *dy = noise(BIG, 2, 0.0f, 1.0f), *y = floats(BIG),
          *other = floats(BIG);
    double *want = doubles(BIG), *slope = doubles(BIG);
    for (int act = CDAD_ACT_NONE + 1; act < CDAD_ACT_COUNT; act++) {
        const cdad_activation a = (cdad_activation)act;
        for (int64_t i = 0; i < BIG; i++) {
            x[i] = a == CDAD_ACT_SQRT ? fabsf(x[i]) + 0.1f : x[i];
            if ((a == CDAD_ACT_RELU || a == CDAD_ACT_RELU6) &&
                (fabsf(x[i]) < 1e-3f || fabsf(x[i] - 6.0f) < 1e-3f))
                x[i] = 1.0f; /* away from the kinks */
            const double v = (double)x[i], eps = 1e-4;
            want[i] = activation(a, v);
            slope[i] = (double)dy[i] * (activation(a, v + eps) - activation(a, v - eps)) / (2.0 * eps);
        }
        EACH_POOL({
            float *out = threads == 1 ? y : other;
            table->activation(ctx, out, x, BIG, a);
            CHECK(out == y || same(other, y, BIG), "activation %d: %d threads change it", act, threads);
        })
        const double error = worst(y, want, BIG, 1.0);
        CHECK(error < 3e-7, "activation %d: error %.2g", act, error);
        const cdad_context one = {.pool = pools[1], .kernels = table};
        memcpy(other, x, sizeof(float) * BIG);
        table->activation(&one, other + 7, other + 7, 30, a); /* in place, and elsewhere in a vector */
        CHECK(same(other + 7, y + 7, 30) && same(other, x, 7) && same(other + 37, x + 37, BIG - 37),
              "activation %d: depends on the place, or writes past the end", act);
        EACH_POOL({
            float *out = threads == 1 ? y : other;
            table->activation_grad(ctx, out, x, dy, BIG, a);
            CHECK(out == y || same(other, y, BIG), "gradient of activation %d: %d threads change it", act,
                  threads);
        })
        const double grad = worst(y, slope, BIG, 1.0);
        CHECK(grad < 2e-6, "gradient of activation %d: error %.2g", act, grad);
        memcpy(other, dy, sizeof(float) * BIG);
        table->activation_grad(&one, other + 7, x + 7, other + 7, 30, a);
        CHECK(same(other + 7, y + 7, 30) && same(other, dy, 7) && same(other + 37, dy + 37, BIG - 37),
              "gradient of activation %d: depends on the place, or writes past the end", act);
    }
    cdad_free(x);
    cdad_free(dy);
    cdad_free(y);
    cdad_free(other);
    cdad_free(want);
    cdad_free(slope);
}

static void test_linear(void) {
    float *x = noise(BIG, 3, 0.0f, 3.0f), *w = noise(BIG, 4, 0.0f, 3.0f), *y = floats(BIG),
          *first = floats(BIG);
    double *want = doubles(3 * BIG), *lerp = want + BIG, *sum = lerp + BIG;
    for (int64_t i = 0; i < BIG; i++) {
        want[i] = (double)x[i] * 1.7 - 0.3;
        sum[i] = (double)x[i] + (double)w[i];
        lerp[i] = 0.9 * (double)x[i] + 0.1 * (double)w[i];
    }
    for (int kind = 0; kind < 3; kind++)
        EACH_POOL({
            memcpy(y, x, sizeof(float) * BIG); /* affine in place; the others always are */
            if (kind == 0)
                table->affine(ctx, y, y, BIG, 1.7f, -0.3f);
            else if (kind == 1)
                table->add_to(ctx, w, y, NULL, BIG, 0.9f);
            else
                table->add_to(ctx, y, NULL, w, BIG, 0.9f);
            CHECK(threads == 1 || same(y, first, BIG), "linear kernel %d: %d threads change it", kind,
                  threads);
            memcpy(first, y, sizeof(float) * BIG);
            const double error = worst(y, want + kind * BIG, BIG, 1.0);
            CHECK(error < 3e-7, "linear kernel %d: error %.2g", kind, error);
        })
    cdad_free(x);
    cdad_free(w);
    cdad_free(y);
    cdad_free(first);
    cdad_free(want);
}

static void test_geglu(void) {
    static const int64_t widths[] = {1, 19, 320, 16400};
    for (int i = 0; i < 4; i++) {
        const int64_t D = widths[i], n = 60 / (i + 1), rows = 2 * n * D;
        float *x = noise(rows, 5, 0.0f, 4.0f), *dy = noise(n * D, 6, 0.0f, 1.0f), *y = floats(n * D);
        float *dx = floats(rows), *y1 = floats(n * D), *dx1 = floats(rows);
        double *want = doubles(n * D), *slope = doubles(rows);
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < D; c++) {
                const double a = (double)x[r * 2 * D + c], g = (double)x[r * 2 * D + D + c],
                             d = (double)dy[r * D + c];
                want[r * D + c] = a * activation(CDAD_ACT_GELU, g);
                slope[r * 2 * D + c] = d * activation(CDAD_ACT_GELU, g);
                slope[r * 2 * D + D + c] =
                    d * a * (0.5 * erfc(-g / sqrt(2.0)) + g * exp(-0.5 * g * g) / sqrt(2.0 * acos(-1.0)));
            }
        EACH_POOL({
            table->geglu(ctx, threads == 1 ? y : y1, x, n, D);
            table->geglu_grad(ctx, threads == 1 ? dx : dx1, x, dy, n, D);
            CHECK(threads == 1 || (same(y, y1, n * D) && same(dx, dx1, rows)), "geglu: %d threads change it",
                  threads);
        })
        const double error = worst(y, want, n * D, 4.0), grad = worst(dx, slope, rows, 4.0);
        CHECK(error < 3e-7 && grad < 5e-7, "geglu %lld: errors %.2g, %.2g", (long long)D, error, grad);
        const cdad_context one = {.kernels = table};
        table->geglu(&one, y1, x + (n - 1) * 2 * D, 1, D);
        table->geglu_grad(&one, dx1, x + (n - 1) * 2 * D, dy + (n - 1) * D, 1, D);
        CHECK(same(y1, y + (n - 1) * D, D) && same(dx1, dx + (n - 1) * 2 * D, 2 * D),
              "geglu: a row alone differs");
        cdad_free(x);
        cdad_free(dy);
        cdad_free(y);
        cdad_free(y1);
        cdad_free(dx);
        cdad_free(dx1);
        cdad_free(want);
        cdad_free(slope);
    }
}

static void test_mse(void) {
    for (int64_t m = 1; m < 30000; m = m * 13 + 4) {
        float *a = noise(N * m, 7, 1.0f, 1.0f), *b = noise(N * m, 8, 0.0f, 2.0f), y, per[N], alone, g = 0.7f;
        float *da = floats(N * m), *da1 = floats(N * m);
        double *slope = doubles(N * m), want[N + 1] = {0};
        for (int64_t i = 0; i < N * m; i++) {
            const double d = (double)a[i] - (double)b[i];
            want[i / m] += d * d / (double)m;
            want[N] += d * d / (double)(N * m);
            slope[i] = 0.7 * 2.0 * d / (double)(N * m);
        }
        EACH_POOL({
            float y1, per1[N];
            table->mse(ctx, threads == 1 ? &y : &y1, threads == 1 ? per : per1, a, b, N, m);
            table->mse_grad(ctx, threads == 1 ? da : da1, a, b, &g, N, m);
            CHECK(threads == 1 || (y == y1 && same(per, per1, N) && same(da, da1, N * m)),
                  "mse: %d threads change it", threads);
        })
        const cdad_context one = {.kernels = table};
        for (int64_t n = 0; n < N; n++) {
            table->mse(&one, &y, &alone, a + n * m, b + n * m, 1, m);
            CHECK(alone == per[n] && y == per[n], "mse: sample %lld alone differs", (long long)n);
        }
        table->mse(&one, &y, per, a, b, N, m);
        const double error = worst(per, want, N, 0.0), total = worst(&y, want + N, 1, 0.0);
        const double grad = worst_rms(da, slope, N * m);
        CHECK(error < 3e-7 && total < 3e-7 && grad < 1e-6, "mse %lld: errors %.2g %.2g %.2g", (long long)m,
              error, total, grad);
        cdad_free(a);
        cdad_free(b);
        cdad_free(da);
        cdad_free(da1);
        cdad_free(slope);
    }
}

static const cdad_broadcast broadcasts[] = {
    {{1, 1, 1, 1, 1}, {0, 0, 0, 0, 0}},       {{1, 3, 5, 7, 11}, {385, 385, 77, 11, 1}}, /* the same shape */
    {{1, 1, 3, 1500, 37}, {0, 0, 0, 0, 1}},                                              /* a bias [C] */
    {{1, 1, 3, 1500, 1}, {0, 0, 0, 0, 0}},                                               /* one number */
    {{1, 1, 1, 1, 40000}, {0, 0, 0, 0, 0}},   /* one number, several tiles */
    {{1, 3, 30, 20, 130}, {0, 130, 0, 0, 1}}, /* [N,1,1,C] */
    {{1, 1, 1, 3, 20011}, {0, 0, 0, 1, 0}},   /* one number a sample */
    {{1, 1, 3, 1, 20011}, {0, 0, 0, 0, 1}},   /* a sample's shape */
    {{1, 3, 9, 8, 7}, {0, 72, 8, 1, 0}},      /* [N,H,W,1] */
    {{1, 3, 9, 8, 7}, {0, 56, 0, 7, 1}},      /* [N,1,W,C] */
    {{1, 3, 9, 8, 7}, {0, 0, 8, 1, 0}},       /* [1,H,W,1] */
    {{1, 3, 9, 8, 7}, {0, 9, 1, 0, 0}},       /* [N,H,1,1] */
    {{2, 3, 9, 8, 7}, {27, 0, 3, 0, 0}},      /* [2,1,9,1,1], strided */
    {{2, 3, 4, 8, 7}, {28, 0, 7, 0, 1}},      /* [2,1,4,1,7] */
    {{1, 1, 3, 9, 20}, {0, 0, 180, 1, 9}},    /* the right operand is transposed */
};

static int64_t offset(const cdad_broadcast *bc, int64_t i) {
    int64_t at = 0;
    for (int k = 4; k >= 0; k--) {
        at += i % bc->dim[k] * bc->stride[k];
        i /= bc->dim[k];
    }
    return at;
}

static int64_t count(const cdad_broadcast *bc) {
    return bc->dim[0] * bc->dim[1] * bc->dim[2] * bc->dim[3] * bc->dim[4];
}

static void test_binary(void) {
    for (size_t k = 0; k < sizeof broadcasts / sizeof *broadcasts; k++) {
        const cdad_broadcast *bc = &broadcasts[k];
        const int64_t n = count(bc);
        float *a = noise(n, 9, 0.0f, 2.0f), *b = noise(n, 10, 0.0f, 2.0f), *y = floats(n), *want = floats(n);
        for (int op = 0; op < 3; op++) {
            for (int64_t i = 0; i < n; i++) {
                const float right = b[offset(bc, i)];
                want[i] = op == CDAD_BINARY_ADD   ? a[i] + right
                          : op == CDAD_BINARY_SUB ? a[i] - right
                                                  : a[i] * right;
            }
            EACH_POOL({
                memcpy(y, a, (size_t)n * sizeof(float));
                table->binary(ctx, y, y, b, bc, (cdad_binary)op); /* in place */
                CHECK(same(y, want, n), "binary %d, broadcast %zu, %d threads: wrong", op, k, threads);
            })
        }
        cdad_free(a);
        cdad_free(b);
        cdad_free(y);
        cdad_free(want);
    }
}

static void test_reduce(void) {
    for (size_t k = 0; k < sizeof broadcasts / sizeof *broadcasts - 1;
         k++) { /* the transposed one has no dense y */
        cdad_broadcast bc = broadcasts[k];
        int64_t n = count(&bc), results = 1;
        for (int i = 4; i >= 0; i--) {
            const int kept = bc.stride[i] != 0;
            bc.stride[i] = kept ? results : 0;
            results *= kept ? bc.dim[i] : 1;
        }
        float *x = noise(n, 11, 0.5f, 1.0f), *y = floats(results), *first = floats(results);
        double *want = doubles(results);
        void *scratch = zeros(table->reduce_scratch(&bc));
        for (int64_t i = 0; i < n; i++)
            want[offset(&bc, i)] += (double)x[i];
        EACH_POOL({
            memset(y, 0xff, (size_t)results * sizeof(float));
            table->reduce(ctx, y, x, &bc, scratch);
            CHECK(threads == 1 || same(y, first, results), "reduce %zu: %d threads change it", k, threads);
            memcpy(first, y, (size_t)results * sizeof(float));
        })
        const double error = worst(y, want, results, (double)n / (double)results);
        CHECK(error < 1.5e-7, "reduce %zu: error %.2g", k, error);
        for (int d = 0; d < 4; d++) /* samples along the first dimension, where that is kept */
            if (bc.dim[d] > 1) {
                const int64_t samples = bc.dim[d];
                cdad_broadcast one = bc;
                one.dim[d] = 1;
                const cdad_context ctx = {.pool = pools[2], .kernels = table};
                for (int64_t s = 0; s < samples && bc.stride[d]; s++) {
                    table->reduce(&ctx, y, x + s * (n / samples), &one, scratch);
                    CHECK(same(y, first + s * (results / samples), results / samples),
                          "reduce %zu: sample %lld alone differs", k, (long long)s);
                }
                break;
            }
        cdad_free(x);
        cdad_free(y);
        cdad_free(first);
        cdad_free(want);
        cdad_free(scratch);
    }
}

/* Both optimiser kernels in double; several steps, so that the moments are not zero. */
static void test_adamw(void) {
    const cdad_adamw h = {.lr = 1e-2f,
                          .beta1 = 0.9f,
                          .beta2 = 0.999f,
                          .eps = 1e-8f,
                          .weight_decay = 0.1f,
                          .bias1 = 0.271f,
                          .bias2 = 0.002997f,
                          .grad_scale = 0.5f};
    float *w = noise(BIG, 12, 0.0f, 1.0f), *g = noise(BIG, 13, 0.0f, 2.0f), *m = noise(BIG, 14, 0.0f, 0.1f);
    float *v = noise(BIG, 15, 0.1f, 0.1f), *state[2][3];
    double *want = doubles(3 * BIG);
    for (int64_t i = 0; i < BIG; i++) {
        const double scaled = (double)g[i] * 0.5, m1 = 0.9f * (double)m[i] + (1.0 - 0.9f) * scaled;
        const double v1 = 0.999f * (double)v[i] + (1.0 - 0.999f) * scaled * scaled;
        want[BIG + i] = m1;
        want[2 * BIG + i] = v1;
        want[i] = -1e-2f * (m1 / 0.271f / (sqrt(v1 / 0.002997f) + 1e-8f) + 0.1f * (double)w[i]);
    }
    EACH_POOL({
        float **s = state[threads > 1];
        for (int k = 0; k < 3; k++)
            s[k] = floats(BIG);
        memcpy(s[0], g, sizeof(float) * BIG);
        memcpy(s[1], m, sizeof(float) * BIG);
        memcpy(s[2], v, sizeof(float) * BIG);
        table->adamw(ctx, w, s[1], s[2], NULL, s[0], s[0], BIG, &h); /* du in place of g */
        for (int k = 0; k < 3; k++) {
            const double error = worst(s[k], want + k * BIG, BIG, k == 0 ? 1e-2 : 1e-1);
            CHECK(error < 5e-7, "adamw result %d: error %.2g", k, error);
            CHECK(threads == 1 || same(s[k], state[0][k], BIG), "adamw result %d: %d threads change it", k,
                  threads);
        }
        for (int k = 0; k < 3 && threads > 1; k++)
            cdad_free(s[k]);
    })
    const cdad_context one = {.kernels = table};
    table->adamw(&one, w + 5, m + 5, v + 5, NULL, g + 5, g + 5, 9, &h);
    CHECK(same(g + 5, state[0][0] + 5, 9) && same(m + 5, state[0][1] + 5, 9) &&
              same(v + 5, state[0][2] + 5, 9),
          "adamw depends on the place");
    /* An update that is applied at once is the one that is given out. */
    float *e = noise(BIG, 17, 0.0f, 1.0f), *du = floats(BIG), *w2 = floats(BIG), *e2 = floats(BIG);
    cdad_adamw averaged = h;
    averaged.ema_decay = 0.9f;
    memcpy(w2, w, sizeof(float) * BIG);
    memcpy(e2, e, sizeof(float) * BIG);
    memcpy(m, state[0][1], sizeof(float) * BIG);
    memcpy(v, state[0][2], sizeof(float) * BIG);
    table->adamw(&one, w2, m, v, NULL, du, g, BIG, &averaged);
    table->add_to(&one, w2, e2, du, BIG, 0.9f);
    table->adamw(&one, w, state[0][1], state[0][2], e, NULL, g, BIG, &averaged);
    CHECK(same(w, w2, BIG) && same(e, e2, BIG) && same(m, state[0][1], BIG) && same(v, state[0][2], BIG),
          "an update applied at once is another");
    for (int64_t i = 0; i < BIG; i++)
        want[i] = (double)w[i];
    table->add_to(&one, w, e, NULL, BIG, 0.5f);
    for (int64_t i = 0; i < BIG; i++)
        want[BIG + i] = 0.5 * ((double)e2[i] + (double)w2[i]);
    CHECK(worst(w, want, BIG, 1.0) == 0.0 && worst(e, want + BIG, BIG, 1.0) < 3e-7, "an average without an update");
    /* A first moment in bfloat16: the same from the float that it stands for, then rounded to nearest even. */
    uint16_t *half = zeros(sizeof(uint16_t) * BIG);
    averaged.m_is_bf16 = 1;
    for (int64_t i = 0; i < BIG; i++) {
        half[i] = (uint16_t)(0x3c00 + i % 777 + (i % 2 << 15));
        const uint32_t bits = (uint32_t)half[i] << 16;
        memcpy(m + i, &bits, sizeof bits);
    }
    memcpy(state[0][1], v, sizeof(float) * BIG);
    table->adamw(&one, w, half, v, NULL, w2, g, BIG, &averaged);
    averaged.m_is_bf16 = 0;
    table->adamw(&one, w, m, state[0][1], NULL, du, g, BIG, &averaged);
    CHECK(same(w2, du, BIG) && same(v, state[0][1], BIG), "a first moment in bfloat16 gives another update");
    for (int64_t i = 0; i < BIG; i++) {
        const uint32_t kept = (uint32_t)half[i] << 16;
        float back, other;
        memcpy(&back, &kept, sizeof back);
        const uint32_t neighbour = kept + (fabsf(back) < fabsf(m[i]) ? 0x10000 : -0x10000);
        memcpy(&other, &neighbour, sizeof other);
        const float near = fabsf(back - m[i]), far = fabsf(other - m[i]);
        CHECK(near < far || (near == far && half[i] % 2 == 0), "%.9g is rounded to %.9g", (double)m[i], (double)back);
    }
    cdad_free(half);
    cdad_free(e);
    cdad_free(du);
    cdad_free(w2);
    cdad_free(e2);
    for (int k = 0; k < 3; k++)
        cdad_free(state[0][k]);
    cdad_free(w);
    cdad_free(g);
    cdad_free(m);
    cdad_free(v);
    cdad_free(want);
}

static void test_sum_squares(void) {
    const int64_t n = 3 * 65536 + 77;
    float *x = noise(n, 16, 0.0f, 1e3f);
    double want = 0.0, first = 0.0;
    for (int64_t i = 0; i < n; i++)
        want += (double)x[i] * (double)x[i];
    EACH_POOL({
        double sum;
        table->sum_squares(ctx, &sum, x, n);
        first = threads == 1 ? sum : first;
        CHECK(sum == first && fabs(sum / want - 1.0) < 1e-13,
              "sum of squares %.17g, %.17g is wanted", sum, want);
    })
    const cdad_context one = {.kernels = table};
    const float bad[] = {NAN, HUGE_VALF, -HUGE_VALF, 3e38f};
    for (int i = 0; i < 4; i++) {
        x[n - 1 - i * 65536] = bad[i];
        double sum;
        table->sum_squares(&one, &sum, x, n);
        CHECK(isfinite(sum) == (i == 3), "%g among the values: %g", (double)bad[i], sum);
        x[n - 1 - i * 65536] = 0.0f;
    }
    double none = 1.0;
    table->sum_squares(&one, &none, x, 0);
    CHECK(none == 0.0, "a sum of none");
    cdad_free(x);
}

/* A penalty is a part of the gradient, but not of the path integral. */
static void test_penalty(void) {
    cdad_adamw h = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .bias1 = 0.1f, .bias2 = 0.001f,
                    .grad_scale = 0.5f, .ema_decay = 0.9f};
    float *g = noise(BIG, 31, 0.0f, 2.0f), *start = noise(BIG, 32, 0.0f, 1.0f), *sum = noise(BIG, 33, 1.0f, 1.0f);
    float *importance = noise(BIG, 34, 1.0f, 1.0f), *anchor = noise(BIG, 35, 0.0f, 1.0f), *pulled = floats(BIG);
    float *w[2], *m[2], *v[2], *path = floats(BIG), *kept = floats(BIG), *du = floats(BIG);
    double *want = doubles(BIG), squares = 0.0;
    const cdad_context one = {.kernels = table};
    const cdad_pull pull = {.importance = importance, .anchor = anchor, .strength = 3.0f};
    for (int64_t i = 0; i < BIG; i++) {
        const double total = (double)g[i] + 3.0 * (double)importance[i] * ((double)start[i] - (double)anchor[i]);
        pulled[i] = (float)total;
        squares += total * total;
    }
    for (int k = 0; k < 2; k++) {
        w[k] = floats(BIG);
        m[k] = floats(BIG);
        v[k] = floats(BIG);
        memcpy(w[k], start, sizeof(float) * BIG);
    }
    table->adamw(&one, w[0], m[0], v[0], NULL, NULL, pulled, BIG, &h);
    h.pull = pull;
    h.path = path;
    table->adamw(&one, w[1], m[1], v[1], NULL, NULL, g, BIG, &h);
    for (int64_t i = 0; i < BIG; i++)
        want[i] = (double)m[0][i];
    CHECK(worst(m[1], want, BIG, 1.0) < 1e-6, "a penalty's gradient: error %.2g", worst(m[1], want, BIG, 1.0));
    for (int64_t i = 0; i < BIG; i++)
        want[i] = (double)w[0][i];
    CHECK(worst(w[1], want, BIG, 1.0) < 1e-5, "a penalty's update: error %.2g", worst(w[1], want, BIG, 1.0));
    for (int64_t i = 0; i < BIG; i++)
        want[i] = -(double)g[i] * ((double)w[1][i] - (double)start[i]);
    CHECK(worst(path, want, BIG, 1.0) < 1e-6, "a path integral: error %.2g", worst(path, want, BIG, 1.0));
    EACH_POOL({
        double found;
        table->sum_squares_pulled(ctx, &found, g, start, BIG, &pull);
        CHECK(fabs(found / squares - 1.0) < 1e-6, "squares with a penalty: %g, %g is wanted", found, squares);
        memset(m[0], 0, sizeof(float) * BIG);
        memset(v[0], 0, sizeof(float) * BIG);
        memset(kept, 0, sizeof(float) * BIG);
        memcpy(w[0], start, sizeof(float) * BIG);
        memcpy(du, g, sizeof(float) * BIG);
        h.path = kept;
        table->adamw(ctx, w[0], m[0], v[0], NULL, du, du, BIG, &h); /* du in place of g */
        table->add_to(ctx, w[0], NULL, du, BIG, 0.0f);
        CHECK(same(w[0], w[1], BIG) && same(kept, path, BIG), "%d threads change a penalty", threads);
        for (int how = 0; how < 2; how++) {
            memcpy(du, sum, sizeof(float) * BIG);
            table->add_magnitudes(ctx, du, g, BIG, how);
            for (int64_t i = 0; i < BIG; i++)
                want[i] = (double)sum[i] + (how ? (double)g[i] * (double)g[i] : fabs((double)g[i]));
            CHECK(worst(du, want, BIG, 1.0) < 1e-6, "magnitudes, squares %d: error %.2g", how, worst(du, want, BIG, 1.0));
        }
    })
    importance[7] = NAN;
    table->sum_squares_pulled(&one, &squares, g, start, BIG, &pull);
    CHECK(!isfinite(squares), "a penalty that is not finite is not noticed");
    memcpy(kept, w[1], sizeof(float) * BIG);
    memcpy(du, g, sizeof(float) * BIG);
    h.squares = &squares;
    h.path = NULL;
    table->adamw(&one, w[1], m[1], v[1], NULL, NULL, g, BIG, &h);
    CHECK(same(w[1], kept, BIG), "a gradient that is not finite moves weights");
    table->adamw(&one, w[1], m[1], v[1], NULL, du, du, BIG, &h);
    CHECK(du[0] == 0.0f && du[BIG - 1] == 0.0f, "a gradient that is not finite gives an update");
    float *const all[] = {g, start, sum, importance, anchor, pulled, w[0], w[1], m[0], m[1], v[0], v[1], path, kept, du};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cdad_free(all[i]);
    cdad_free(want);
}

int cdad_test_kernels(void) {
    test_normal();
    on_every_table(test_functions);
    on_every_table(test_activations);
    on_every_table(test_linear);
    on_every_table(test_geglu);
    on_every_table(test_mse);
    on_every_table(test_binary);
    on_every_table(test_reduce);
    on_every_table(test_adamw);
    on_every_table(test_penalty);
    on_every_table(test_sum_squares);
    return failures;
}
