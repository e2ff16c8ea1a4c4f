/* The narrow convolution and its weight's gradient of every table against sums in double, and against themselves at
 * other batch sizes and thread counts. */
#include "kernel_check.h"

int cdad_test_conv_narrow(void);

enum { GAP = 3 }; /* floats between the pixels of y, and between its rows: not to be written */
static const float untouched = 77.0f;

typedef struct conv { /* w [O,R,S,C] */
    cdad_unfold u;
    int64_t O, K;
    float *x, *w, *bias, *dy;
} conv;

static conv conv_new(cdad_unfold u, int64_t O) {
    const int64_t K = u.R * u.S * u.C;
    return (conv){.u = u, .O = O, .K = K, .x = noise(u.N * u.H * u.W * u.C, 1, 0.2f, 1.0f),
                  .w = noise(O * K, 2, 0.0f, 1.0f), .bias = noise(O, 3, 0.0f, 1.0f),
                  .dy = noise(u.N * u.P * u.Q * O, 4, 0.1f, 1.0f)};
}
static void conv_free(conv *c) {
    cdad_free(c->x);
    cdad_free(c->w);
    cdad_free(c->bias);
    cdad_free(c->dy);
}

/* What pixel (n, p, q) reads for column k. */
static double read_at(const conv *c, int64_t n, int64_t p, int64_t q, int64_t k) {
    const cdad_unfold *u = &c->u;
    const int64_t h = p * u->stride + k / u->C / u->S - u->pad_t, w = q * u->stride + k / u->C % u->S - u->pad_l;
    return h < 0 || h >= u->H || w < 0 || w >= u->W ? 0.0 : (double)c->x[((n * u->H + h) * u->W + w) * u->C + k % u->C];
}

/* y in double, dense, and dw. */
static void reference(const conv *c, double *y, double *dw) {
    const cdad_unfold *u = &c->u;
    for (int64_t i = 0; i < u->N * u->P * u->Q; i++)
        for (int64_t o = 0; o < c->O; o++)
            y[i * c->O + o] = (double)c->bias[o];
    for (int64_t i = 0; i < c->O * c->K; i++)
        dw[i] = 0.0;
    for (int64_t i = 0; i < u->N * u->P * u->Q; i++)
        for (int64_t k = 0; k < c->K; k++) {
            const double x = read_at(c, i / u->Q / u->P, i / u->Q % u->P, i % u->Q, k);
            for (int64_t o = 0; o < c->O; o++) {
                y[i * c->O + o] += x * (double)c->w[o * c->K + k];
                dw[o * c->K + k] += x * (double)c->dy[i * c->O + o];
            }
        }
}

/* Scratch that holds NaN. */
static void *soiled(int64_t bytes) {
    void *const memory = zeros(bytes);
    memset(memory, 0xff, (size_t)bytes);
    return memory;
}

static int64_t row_size(const conv *c) { return c->u.Q * (c->O + GAP) + GAP; }

/* y with gaps: [N,P,row_size] */
static float *forward(const conv *c, int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = table};
    const int64_t rows = c->u.N * c->u.P, size = row_size(c);
    float *y = floats(rows * size);
    for (int64_t i = 0; i < rows * size; i++)
        y[i] = untouched;
    void *scratch = soiled(table->narrow_conv2d_scratch(&c->u, c->O, threads));
    table->narrow_conv2d(&ctx, (cdad_pixels){.data = y, .image = c->u.P * size, .row = size, .pixel = c->O + GAP}, c->x,
                         (cdad_mat){.data = c->w, .rs = 1, .cs = c->K}, &(cdad_epilogue){.bias = c->bias}, &c->u, c->O,
                         scratch);
    cdad_free(scratch);
    return y;
}

static float *grad_weight(const conv *c, int threads) {
    const cdad_context ctx = {.pool = pools[threads], .kernels = table};
    float *dw = floats(c->O * c->K);
    void *scratch = soiled(table->narrow_conv2d_grad_weight_scratch(&c->u, c->O, threads));
    table->narrow_conv2d_grad_weight(&ctx, dw, c->dy, c->x, &c->u, c->O, scratch);
    cdad_free(scratch);
    return dw;
}

/* Moves the pixels of y together; the number of gaps that were written. */
static int64_t close_gaps(const conv *c, float *y) {
    const int64_t size = row_size(c);
    int64_t written = 0, n = 0;
    for (int64_t i = 0; i < c->u.N * c->u.P * size; i++) {
        const int64_t at = i % size;
        if (at < c->u.Q * (c->O + GAP) && at % (c->O + GAP) < c->O)
            y[n++] = y[i];
        else
            written += y[i] != untouched;
    }
    return written;
}

static void check_case(cdad_unfold u, int64_t O) {
    conv c = conv_new(u, O);
    const int64_t n = u.N * u.P * u.Q * O, size = u.N * u.P * row_size(&c);
    double *y_want = doubles(n), *dw_want = doubles(O * c.K);
    reference(&c, y_want, dw_want);
    float *y = forward(&c, 2), *dw = grad_weight(&c, 2);
    for (int threads = 1; threads <= 4; threads += 3) {
        float *y_again = forward(&c, threads), *dw_again = grad_weight(&c, threads);
        CHECK(same(y_again, y, size), "other bits by %d threads", threads);
        CHECK(same(dw_again, dw, O * c.K), "other bits of dw by %d threads", threads);
        cdad_free(y_again);
        cdad_free(dw_again);
    }
    conv last = c;
    last.u.N = 1;
    last.x += (u.N - 1) * u.H * u.W * u.C;
    float *alone = forward(&last, 1);
    CHECK(same(alone, y + size / u.N * (u.N - 1), size / u.N), "an image alone has other bits");
    cdad_free(alone);
    CHECK(close_gaps(&c, y) == 0, "%lldx%lldx%lld to %lld: wrote between the pixels", (long long)u.H, (long long)u.W,
          (long long)u.C, (long long)O);
    const double e = worst_rms(y, y_want, n), dw_e = worst_rms(dw, dw_want, O * c.K);
    CHECK(e < 5e-6, "%lldx%lldx%lld to %lld: error %.2g", (long long)u.H, (long long)u.W, (long long)u.C,
          (long long)O, e);
    CHECK(dw_e < 2e-5, "%lldx%lldx%lld to %lld: error of dw %.2g", (long long)u.H, (long long)u.W, (long long)u.C,
          (long long)O, dw_e);
    cdad_free(y);
    cdad_free(dw);
    cdad_free(y_want);
    cdad_free(dw_want);
    conv_free(&c);
}

static void test_table(void) {
    /*                        N   H   W   C   P   Q  R  S stride pad_t pad_l up */
    check_case((cdad_unfold){3, 9, 48, 3, 9, 48, 3, 3, 1, 1, 1, 1}, 16); /* reads one pixel past the edge */
    check_case((cdad_unfold){2, 12, 51, 4, 6, 26, 3, 3, 2, 1, 1, 1}, 32);
    check_case((cdad_unfold){2, 11, 50, 5, 5, 24, 3, 3, 2, 0, 0, 1}, 5);    /* the last column and row are not read */
    check_case((cdad_unfold){2, 7, 25, 16, 9, 27, 5, 3, 1, 3, 2, 1}, 40);
    check_case((cdad_unfold){2, 8, 30, 7, 6, 27, 2, 1, 1, -1, -2, 1}, 33);  /* begins inside of the image */
    check_case((cdad_unfold){2, 3, 3, 5, 6, 20, 3, 3, 1, 2, 9, 1}, 17);     /* pixels, rows that read nothing */
    check_case((cdad_unfold){2, 4, 2, 2, 4, 3, 3, 5, 1, 1, 2, 1}, 3);       /* a kernel wider than the image */
    check_case((cdad_unfold){2, 5, 40, 24, 5, 40, 1, 1, 1, 0, 0, 1}, 32);
    for (int64_t O = 1; O <= 4; O++) { /* so few that lanes are what is read: whole vectors and more */
        check_case((cdad_unfold){2, 6, 53, 64, 6, 53, 3, 3, 1, 1, 1, 1}, O);
        check_case((cdad_unfold){2, 5, 40, 21, 5, 40, 3, 3, 1, 1, 1, 1}, O);
        check_case((cdad_unfold){2, 7, 51, 48, 3, 26, 4, 1, 2, 0, 0, 1}, O);
    }
    check_case((cdad_unfold){2, 40, 16, 2, 40, 16, 3, 3, 1, 1, 1, 1}, 8);   /* several groups of rows a slice */
    check_case((cdad_unfold){1, 3, 300, 1, 2, 100, 2, 3, 3, 1, 0, 1}, 70);
    check_case((cdad_unfold){1, 20, 600, 1, 20, 300, 1, 2, 2, 0, 1, 1}, 20); /* rows longer than a group */
}

int cdad_test_conv_narrow(void) { return on_every_table(test_table); }
