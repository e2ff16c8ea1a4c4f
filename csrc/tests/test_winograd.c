/* Winograd's convolution of every table against the direct one, at sizes that take several groups of weights and
 * several chunks of pixels, and against itself at other batch sizes and thread counts; so are gradients of weights. */
#include "kernel_check.h"

int cdad_test_winograd(void);

typedef struct conv { /* w [O,3,3,C] */
    cdad_unfold u;
    int64_t O;
    float *x, *w, *bias;
} conv;

static conv conv_new(cdad_unfold u, int64_t O) {
    return (conv){.u = u, .O = O, .x = noise(u.N * u.H * u.W * u.C, 1, 0.0f, 1.0f),
                  .w = noise(O * 9 * u.C, 2, 0.0f, 1.0f), .bias = noise(O, 3, 0.0f, 1.0f)};
}
static void conv_free(conv *c) {
    cdad_free(c->x);
    cdad_free(c->w);
    cdad_free(c->bias);
}

static int64_t image_size(const conv *c) { return c->u.P * c->u.Q * c->O; }

static float *winograd(const conv *c, int m, int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = table};
    const int64_t C = c->u.C;
    float *y = floats(c->u.N * image_size(c));
    void *scratch = zeros(table->winograd_scratch(&c->u, c->O, m, threads));
    table->winograd(&ctx, y, c->x, (cdad_mat){.data = c->w, .rs = 1, .cs = 9 * C}, 3 * C, C,
                    &(cdad_epilogue){.bias = c->bias}, &c->u, c->O, m, scratch);
    cdad_free(scratch);
    return y;
}

static float *direct(const conv *c) {
    const cdad_context ctx = {.pool = pools[2], .kernels = table};
    const int64_t M = c->u.N * c->u.P * c->u.Q, K = 9 * c->u.C;
    float *y = floats(M * c->O);
    void *scratch = zeros(table->gemm_scratch(M, c->O, K, 2));
    table->gemm(&ctx, M, c->O, K, (cdad_mat){.data = c->x, .unfold = &c->u}, (cdad_mat){.data = c->w, .rs = 1, .cs = K},
                y, c->O, &(cdad_epilogue){.bias = c->bias}, scratch);
    cdad_free(scratch);
    return y;
}

static void check_case(cdad_unfold u, int64_t O) {
    conv c = conv_new(u, O);
    const int64_t n = u.N * image_size(&c);
    float *y = direct(&c);
    double *want = widen(y, n);
    for (int m = 2; m <= 4; m += 2) {
        float *all = winograd(&c, m, 2);
        const double e = worst_rms(all, want, n);
        CHECK(e < (m == 2 ? 5e-6 : 2e-5), "F(%d,3), %lldx%lldx%lld to %lld: error %.2g", m, (long long)u.H,
              (long long)u.W, (long long)u.C, (long long)O, e);
        for (int threads = 1; threads <= 4; threads += 3) {
            float *again = winograd(&c, m, threads);
            CHECK(same(again, all, n), "F(%d,3): other bits by %d threads", m, threads);
            cdad_free(again);
        }
        conv last = c;
        last.u.N = 1;
        last.x += (u.N - 1) * u.H * u.W * u.C;
        float *alone = winograd(&last, m, 1);
        CHECK(same(alone, all + n - image_size(&c), image_size(&c)), "F(%d,3): an image alone has other bits", m);
        cdad_free(alone);
        cdad_free(all);
    }
    cdad_free(y);
    cdad_free(want);
    conv_free(&c);
}

/* The gradient of the weight by Winograd (m > 0) or directly. */
static float *weight_gradient(const conv *c, const float *dy, int m, int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = table};
    const int64_t M = c->u.N * c->u.P * c->u.Q, K = 9 * c->u.C;
    float *dw = floats(c->O * K);
    void *scratch = zeros(m ? table->winograd_grad_scratch(&c->u, c->O, m, threads)
                            : table->gemm_scratch(c->O, K, M, threads));
    if (m)
        table->winograd_grad(&ctx, dw, c->x, dy, &c->u, c->O, m, scratch);
    else
        table->gemm(&ctx, c->O, K, M, (cdad_mat){.data = dy, .rs = 1, .cs = c->O},
                    (cdad_mat){.data = c->x, .unfold = &c->u}, dw, K, NULL, scratch);
    cdad_free(scratch);
    return dw;
}

static void check_gradient(cdad_unfold u, int64_t O) {
    conv c = conv_new(u, O);
    const int64_t n = O * 9 * u.C;
    float *dy = noise(u.N * image_size(&c), 4, 0.0f, 1.0f), *dw = weight_gradient(&c, dy, 0, 2);
    double *want = widen(dw, n);
    for (int m = 2; m <= 4; m += 2) {
        float *all = weight_gradient(&c, dy, m, 2);
        const double e = worst_rms(all, want, n);
        CHECK(e < (m == 2 ? 5e-6 : 2e-5), "gradient by F(%d,3), %lldx%lldx%lld to %lld: error %.2g", m, (long long)u.H,
              (long long)u.W, (long long)u.C, (long long)O, e);
        for (int threads = 1; threads <= 4; threads += 3) {
            float *again = weight_gradient(&c, dy, m, threads);
            CHECK(same(again, all, n), "gradient by F(%d,3): other bits by %d threads", m, threads);
            cdad_free(again);
        }
        cdad_free(all);
    }
    cdad_free(dy);
    cdad_free(dw);
    cdad_free(want);
    conv_free(&c);
}

static void test_table(void) {
    check_gradient((cdad_unfold){2, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1}, 7);
    check_gradient((cdad_unfold){3, 5, 4, 17, 10, 8, 3, 3, 1, 1, 1, 2}, 61);
    check_gradient((cdad_unfold){1, 6, 9, 130, 5, 9, 3, 3, 1, 0, 2, 1}, 40);
    check_gradient((cdad_unfold){4, 41, 37, 300, 41, 37, 3, 3, 1, 1, 1, 1}, 150); /* several chunks and blocks */
    /*                        N  H  W  C  P  Q   R  S  stride pad_t pad_l up */
    check_case((cdad_unfold){2, 9, 7, 5, 9, 7, 3, 3, 1, 1, 1, 1}, 7);
    check_case((cdad_unfold){3, 5, 4, 17, 10, 8, 3, 3, 1, 1, 1, 2}, 33);
    check_case((cdad_unfold){1, 6, 9, 130, 5, 9, 3, 3, 1, 0, 2, 1}, 40);
    check_case((cdad_unfold){2, 40, 37, 140, 40, 37, 3, 3, 1, 1, 1, 1}, 40); /* strips of several panels, two blocks */
    check_case((cdad_unfold){2, 20, 20, 1200, 20, 20, 3, 3, 1, 1, 1, 1}, 150); /* groups and chunks */
}

int cdad_test_winograd(void) { return on_every_table(test_table); }
