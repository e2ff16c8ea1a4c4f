/* Moments in 8 bit: the codes, AdamW's steps with them beside float64, and moments from one way into another. */
#include <float.h>

#include "kernels/bfloat16.h"
#include "kernels/dynamic8.h"
#include "kernel_check.h"
#include "nn/params.h"
#include "optim/moments.h"

int cdad_test_moments(void);

enum { N = 3 * 2048 + 300, BLOCKS = (N + CDAD_BLOCK8 - 1) / CDAD_BLOCK8 };

static int bins(int decade, int is_signed) { return (is_signed ? 1 : 2) << decade; }

/* The published map: a decade's bins have its middle; in units of the block's largest. */
static double value_of(int code, int is_signed) {
    const int magnitude = is_signed ? code & 0x7f : code;
    int decade = 0;
    if (code == (is_signed ? CDAD_ONE8_SIGNED : CDAD_ONE8_UNSIGNED))
        return 1.0;
    if (magnitude == 0)
        return 0.0;
    while (magnitude >= 2 * bins(decade, is_signed))
        decade++;
    const int n = bins(decade, is_signed);
    const double value = pow(10.0, decade - 6) * (0.1 + 0.9 * (magnitude - n + 0.5) / n);
    return is_signed && code & 0x80 ? -value : value;
}

/* How far a quotient may be from what its code stands for: half a bin, and below the first decade half its first value with a
 * sign, without the whole one. */
static double bound_of(double quotient, int is_signed) {
    const double x = fabs(quotient) * (1 + 1e-6);
    int decade = 0;
    if (x < 1e-7)
        return is_signed ? 1e-7 : 0.325e-6;
    while (decade < 6 && x >= pow(10.0, decade - 6))
        decade++;
    return 1.01 * 0.45 * pow(10.0, decade - 6) / bins(decade, is_signed);
}

static float value8(int code, int is_signed) { return is_signed ? cdad_value8_signed(code) : cdad_value8_unsigned(code); }
static int code8(float x, int is_signed) { return is_signed ? cdad_code8_signed(x) : cdad_code8_unsigned(x); }

static void test_codes(void) {
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        for (int code = 0; code < 256; code++) {
            const double want = value_of(code, is_signed), found = (double)value8(code, is_signed);
            CHECK(fabs(found - want) <= 2e-4 * fabs(want), "code %d stands for %g, %g is wanted", code, found, want);
            CHECK(code8(value8(code, is_signed), is_signed) == code, "the value of code %d, %g, has the code %d", code, found,
                  code8(value8(code, is_signed), is_signed));
        }
        for (int i = 0; i <= 100000; i++) {
            const float x = (float)(exp(-20.0 * (i % 1000) / 1000.0) * (1 - i / 1e6)) * (is_signed && i % 3 ? -1.0f : 1.0f);
            const double error = fabs((double)value8(code8(x, is_signed), is_signed) - (double)x);
            CHECK(error <= bound_of((double)x, is_signed), "%g, signed %d, has an error of %g", (double)x, is_signed, error);
        }
        CHECK(code8(1e-30f, is_signed) == (is_signed ? 0 : 2) && code8(0.0f, is_signed) == 0 && code8(NAN, is_signed) == 0,
              "small numbers, signed %d", is_signed);
    }
}

/* Codes and largest to floats. */
static void decode(int is_signed, double *to, const uint8_t *codes, const float *most) {
    for (int64_t i = 0; i < N; i++)
        to[i] = (double)most[i / CDAD_BLOCK8] * (double)value8(codes[i], is_signed);
}

static void check_kept(int is_signed, const uint8_t *codes, const float *most, const double *want, const char *what) {
    double *found = doubles(N);
    decode(is_signed, found, codes, most);
    for (int64_t begin = 0; begin < N; begin += CDAD_BLOCK8) {
        const int64_t end = begin + CDAD_BLOCK8 < N ? begin + CDAD_BLOCK8 : N;
        double largest = 0.0;
        for (int64_t i = begin; i < end; i++)
            largest = fabs(want[i]) > fabs(largest) ? want[i] : largest;
        const double scale = (double)most[begin / CDAD_BLOCK8];
        CHECK(fabs(scale - largest) <= 2e-6 * fabs(largest), "%s: the largest of a block is %g, not %g", what, largest, scale);
        for (int64_t i = begin; i < end; i++)
            CHECK(fabs(found[i] - want[i]) <= fabs(largest) * (bound_of(want[i] / largest, is_signed) + 1e-6),
                  "%s: %g is kept as %g, the largest is %g", what, want[i], found[i], largest);
    }
    cdad_free(found);
}

/* Steps beside AdamW in double, which begins with what is kept; the update is of the moments before they are rounded. */
static void test_steps(void) {
    cdad_adamw h = {.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .weight_decay = 0.1f, .grad_scale = 0.5f};
    float *w = noise(N, 1, 0.0f, 1.0f), *g = floats(N), *du = floats(N), *first = floats(N);
    double *m = doubles(N), *v = doubles(N), *want = doubles(N);
    uint8_t *codes[2][2];
    float *most[2][2];
    EACH_POOL({
        const int k = threads > 1;
        for (int which = 0; which < 2; which++) {
            codes[k][which] = zeros(N);
            most[k][which] = floats(BLOCKS);
        }
        for (int step = 0; step < 6; step++) {
            for (int64_t i = 0; i < N; i++) /* of many sizes; one block has none, another only small ones */
                g[i] = i / CDAD_BLOCK8 == 2 ? 0.0f : sinf((float)(i * (step + 3))) * expf(-(float)(i % 41) * 0.4f - (i / CDAD_BLOCK8 == 3) * 30);
            h.bias1 = 1.0f - powf(0.9f, (float)step + 1);
            h.bias2 = 1.0f - powf(0.999f, (float)step + 1);
            h.m_most = most[k][0];
            h.v_most = most[k][1];
            decode(1, m, codes[k][0], most[k][0]);
            decode(0, v, codes[k][1], most[k][1]);
            table->adamw(ctx, w, codes[k][0], codes[k][1], NULL, du, g, N, &h);
            for (int64_t i = 0; i < N; i++) {
                const double scaled = 0.5 * (double)g[i];
                m[i] = 0.9f * m[i] + (1.0 - 0.9f) * scaled;
                v[i] = 0.999f * v[i] + (1.0 - 0.999f) * scaled * scaled;
                want[i] = -1e-2f * (m[i] / (double)h.bias1 / (sqrt(v[i] / (double)h.bias2) + 1e-8f) + 0.1f * (double)w[i]);
            }
            CHECK(worst(du, want, N, 1e-2) < 1e-4, "step %d: error %.2g", step, worst(du, want, N, 1e-2));
            check_kept(1, codes[k][0], most[k][0], m, "first moment");
            check_kept(0, codes[k][1], most[k][1], v, "second moment");
            for (int64_t i = 0; i < N; i++)
                CHECK(codes[k][1][i] != 0 || v[i] < 1.2e-38, "a second moment of %g is kept as zero", v[i]);
        }
        CHECK(threads == 1 || (same(du, first, N) && memcmp(codes[0][0], codes[1][0], N) == 0 &&
                               memcmp(codes[0][1], codes[1][1], N) == 0 && same(most[0][0], most[1][0], BLOCKS)),
              "%d threads change a step", threads);
        memcpy(first, du, sizeof(float) * N);
        for (int which = 0; which < 2 && threads > 1; which++) {
            cdad_free(codes[1][which]);
            cdad_free(most[1][which]);
        }
    })
    /* A second moment beyond float's range stops its own element, and makes no number of the block less than one. */
    const cdad_context one = {.kernels = table};
    h.m_most = most[0][0];
    h.v_most = most[0][1];
    g[5] = 1e30f;
    table->adamw(&one, w, codes[0][0], codes[0][1], NULL, du, g, N, &h);
    table->adamw(&one, w, codes[0][0], codes[0][1], NULL, du, g, N, &h);
    for (int64_t i = 0; i < N; i++)
        CHECK(isfinite(du[i]), "an update of %g", (double)du[i]);
    for (int which = 0; which < 2; which++) {
        cdad_free(codes[0][which]);
        cdad_free(most[0][which]);
    }
    void *const all[] = {w, g, du, first, m, v, want};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        cdad_free(all[i]);
}

/* The moments of a store: large parameters, among them one that ends within a block, and small ones. */
static void test_ways(void) {
    static const int64_t sizes[] = {4096, 100, 5000, 4095, 1};
    cdad_params *p = NULL;
    cdad_moment kept, other;
    CHECK_OK(cdad_params_new(&p, err));
    for (int i = 0; i < 5; i++) {
        const char name[] = {(char)('a' + i), 0};
        CHECK_OK(cdad_params_register(p, name, cdad_shape_make(1, sizes[i]), (cdad_init){0}, err));
    }
    CHECK_OK(cdad_params_allocate(p, 0, err));
    const int64_t coded = 4096 + 64 + 5056 + 128, small = 448 + 16384 + 64; /* bytes, in multiples of 64 */
    CHECK(cdad_moment_bytes(sizes, 5, CDAD_MOMENT_8BIT) == coded + small, "%" PRId64 " bytes", cdad_moment_bytes(sizes, 5, CDAD_MOMENT_8BIT));
    CHECK(cdad_moment_bytes(sizes, 5, CDAD_MOMENT_FLOAT32) == 4 * p->total &&
              cdad_moment_bytes(sizes, 5, CDAD_MOMENT_BFLOAT16) == 2 * p->total,
          "bytes");
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        float *x = noise(p->total, 7, is_signed ? 0.0f : 1.0f, 1.0f), *most;
        CHECK_OK(cdad_moment_new(&kept, NULL, sizes, 5, CDAD_MOMENT_8BIT, is_signed, err));
        CHECK_OK(cdad_moment_new(&other, NULL, sizes, 5, CDAD_MOMENT_FLOAT32, is_signed, err));
        for (int k = 1; k <= 2; k++) {
            cdad_alloc_fail_after(k);
            CHECK_FAILS(CDAD_NO_MEMORY, "out of memory", cdad_moment_set(&kept, CDAD_MOMENT_FLOAT32, x, err));
            cdad_alloc_fail_after(0);
        }
        CHECK_OK(cdad_moment_set(&kept, CDAD_MOMENT_FLOAT32, x, err));
        CHECK_OK(cdad_moment_set(&other, CDAD_MOMENT_8BIT, cdad_moment_data(&kept), err));
        for (int i = 0; i < 5; i++) {
            const float *from = x + p->items[i].offset, *to = cdad_moment_of(&other, i, &most);
            CHECK(!most && (cdad_moment_of(&kept, i, &most), (most != NULL) == (i == 0 || i == 2)), "parameter %d", i);
            for (int64_t k = 0; k < sizes[i]; k++) {
                const double error = fabs((double)to[k] - (double)from[k]), largest = most ? fabs((double)most[k / CDAD_BLOCK8]) : 0;
                CHECK(most ? error <= largest * bound_of((double)from[k] / largest, is_signed) : error == 0, "%g is kept as %g",
                      (double)from[k], (double)to[k]);
            }
        }
        uint8_t *before = zeros(coded + small);
        uint8_t *const codes = cdad_moment_data(&kept);
        memcpy(before, codes, (size_t)(coded + small));
        memset(codes, 0, (size_t)(coded + small));
        CHECK_OK(cdad_moment_set(&kept, CDAD_MOMENT_FLOAT32, cdad_moment_data(&other), err));
        CHECK(memcmp(before, codes, (size_t)(coded + small)) == 0, "what was in 8 bit has other codes when it is again");
        memset(codes, 0, (size_t)(coded + small));
        CHECK_OK(cdad_moment_set(&kept, CDAD_MOMENT_8BIT, before, err));
        CHECK(memcmp(before, codes, (size_t)(coded + small)) == 0, "a block that is taken over changes");
        cdad_free(before);
        cdad_free(x);
        cdad_moment_free(&kept);
        cdad_moment_free(&other);
    }
    cdad_params_free(p);
}

/* What decays goes to zero, instead of to the denormal that the factor rounds to itself. */
static void test_decay(void) {
    const cdad_context one = {.kernels = table};
    for (int half = 0; half < 2; half++) {
        cdad_adamw h = {.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .bias1 = 1, .bias2 = 1, .grad_scale = 1, .m_is_bf16 = half};
        float *w = floats(N), *g = floats(N), *m = noise(N, 1, 0.0f, 1e-37f), *v = floats(N);
        uint16_t *halves = zeros(N * (int64_t)sizeof *halves);
        for (int64_t i = 0; i < N; i++) {
            halves[i] = cdad_to_bf16(m[i]);
            v[i] = FLT_MIN * (1.0f + (float)i / N);
        }
        for (int step = 0; step < 1000; step++) {
            table->adamw(&one, w, half ? (void *)halves : (void *)m, v, NULL, NULL, g, N, &h);
            for (int64_t i = 0; i < N; i++) {
                const float first = fabsf(half ? cdad_from_bf16(halves[i]) : m[i]);
                CHECK((first == 0 || first >= FLT_MIN) && (v[i] == 0 || v[i] >= FLT_MIN), "moments %d, step %d: %g and %g", half, step,
                      (double)first, (double)v[i]);
            }
        }
        for (int64_t i = 0; i < N; i++)
            CHECK(half || (m[i] == 0 && v[i] == 0), "moments of %g and %g are left", (double)m[i], (double)v[i]);
        cdad_free(w);
        cdad_free(g);
        cdad_free(m);
        cdad_free(v);
        cdad_free(halves);
    }
}

int cdad_test_moments(void) {
    test_codes();
    test_ways();
    on_every_table(test_steps);
    on_every_table(test_decay);
    return failures;
}
