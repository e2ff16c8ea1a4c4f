/* Group norm and layer norm, forward and backward. */
#include "kernel_check.h"

int cdad_test_norm(void);

typedef struct norm_case {
    int64_t N, HW, C, G; /* layer norm: rows, 1, channels, 1 */
    double eps;
    int silu;
    double *x, *gamma, *beta, *dy, *y, *mean, *rstd;
} norm_case;

/* One group of one sample, by the definition. */
static void reference_group(norm_case *c, int64_t n, int64_t group) {
    const int64_t per = c->C / c->G, count = c->HW * per;
    const double *x = c->x + n * c->HW * c->C + group * per;
    double sum = 0.0, squares = 0.0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i / per * c->C + i % per];
    const double mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++) {
        const double d = x[i / per * c->C + i % per] - mean;
        squares += d * d;
    }
    const double rstd = 1.0 / sqrt(squares / (double)count + c->eps);
    c->mean[n * c->G + group] = mean;
    c->rstd[n * c->G + group] = rstd;
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = i / per * c->C + i % per, channel = group * per + i % per;
        const double v = (x[at] - mean) * rstd * c->gamma[channel] + c->beta[channel];
        c->y[n * c->HW * c->C + group * per + at] = c->silu ? v / (1.0 + exp(-v)) : v;
    }
}

/* sum of y * dy: its gradients are those of the kernels. */
static double loss(void *arg) {
    norm_case *c = arg;
    double sum = 0.0;
    for (int64_t n = 0; n < c->N; n++)
        for (int64_t g = 0; g < c->G; g++)
            reference_group(c, n, g);
    for (int64_t i = 0; i < c->N * c->HW * c->C; i++)
        sum += c->y[i] * c->dy[i];
    return sum;
}

typedef struct norm_data {
    float *x, *gamma, *beta, *dy, *y, *mean, *rstd, *dx, *dgamma, *dbeta;
} norm_data;

/* The same inputs, results of their own. */
static norm_data make_results(const norm_data *like, const norm_case *c) {
    norm_data d = *like;
    d.y = floats(c->N * c->HW * c->C);
    d.dx = floats(c->N * c->HW * c->C);
    d.mean = floats(c->N * c->G);
    d.rstd = floats(c->N * c->G);
    d.dgamma = floats(c->C);
    d.dbeta = floats(c->C);
    return d;
}

/* Inputs are noise around 2: a mean that is not small against the spread. */
static norm_data make_data(const norm_case *c) {
    const int64_t n = c->N * c->HW * c->C;
    const norm_data inputs = {.x = noise(n, 1, 2.0f, 1.5f),
                              .gamma = noise(c->C, 2, 1.0f, 0.5f),
                              .beta = noise(c->C, 3, 0.0f, 1.0f),
                              .dy = noise(n, 4, 0.0f, 1.0f)};
    return make_results(&inputs, c);
}

static void free_results(norm_data *d) {
    float *all[] = {d->y, d->mean, d->rstd, d->dx, d->dgamma, d->dbeta};
    for (int i = 0; i < 6; i++)
        cdad_free(all[i]);
}

static void free_data(norm_data *d) {
    float *all[] = {d->x, d->gamma, d->beta, d->dy};
    for (int i = 0; i < 4; i++)
        cdad_free(all[i]);
    free_results(d);
}

static void make_reference(norm_case *c, const norm_data *d) {
    const int64_t n = c->N * c->HW * c->C;
    c->x = widen(d->x, n);
    c->gamma = widen(d->gamma, c->C);
    c->beta = widen(d->beta, c->C);
    c->dy = widen(d->dy, n);
    c->y = doubles(n);
    c->mean = doubles(c->N * c->G);
    c->rstd = doubles(c->N * c->G);
    loss(c);
}

static void free_reference(norm_case *c) {
    double *all[] = {c->x, c->gamma, c->beta, c->dy, c->y, c->mean, c->rstd};
    for (int i = 0; i < 7; i++)
        cdad_free(all[i]);
}

static int same_results(const norm_data *a, const norm_data *b, int64_t n, int64_t groups, int64_t C) {
    return same(a->y, b->y, n) && same(a->mean, b->mean, groups) && same(a->rstd, b->rstd, groups) &&
           same(a->dx, b->dx, n) && same(a->dgamma, b->dgamma, C) && same(a->dbeta, b->dbeta, C);
}

static void check_values(const char *what, norm_case *c, norm_data *d, int affine) {
    const int64_t n = c->N * c->HW * c->C, points = 60000 / n + 12;
    const double y = worst(d->y, c->y, n, 1.0), mean = worst(d->mean, c->mean, c->N * c->G, 1.0);
    const double rstd = worst(d->rstd, c->rstd, c->N * c->G, 0.0);
    CHECK(y < 2e-6 && mean < 5e-7 && rstd < 1e-6,
          "%s [%lld,%lld,%lld] in %lld: errors %.2g, mean %.2g, rstd %.2g", what, (long long)c->N,
          (long long)c->HW, (long long)c->C, (long long)c->G, y, mean, rstd);
    const double dx = worst_gradient(d->dx, c->x, n, points, loss, c);
    const double dgamma = affine ? worst_gradient(d->dgamma, c->gamma, c->C, 12, loss, c) : 0.0;
    const double dbeta = affine ? worst_gradient(d->dbeta, c->beta, c->C, 12, loss, c) : 0.0;
    CHECK(dx < 2e-6 && dgamma < 2e-6 && dbeta < 2e-6,
          "%s [%lld,%lld,%lld] in %lld: errors of dx %.2g, dgamma %.2g, dbeta %.2g", what, (long long)c->N,
          (long long)c->HW, (long long)c->C, (long long)c->G, dx, dgamma, dbeta);
}

static void run_group(const cdad_context *ctx, norm_data *d, const norm_case *c, int64_t from, int64_t N) {
    void *scratch = zeros(table->group_norm_scratch(N, c->HW, c->C, c->G));
    const int64_t at = from * c->HW * c->C, g = from * c->G;
    table->group_norm(ctx, d->y + at, d->mean + g, d->rstd + g, d->x + at, d->gamma, d->beta, N, c->HW, c->C,
                      c->G, (float)c->eps, c->silu, scratch);
    memcpy(d->dx + at, d->dy + at, (size_t)(N * c->HW * c->C) * sizeof(float)); /* dx in place of dy */
    table->group_norm_grad(ctx, d->dx + at, d->dgamma, d->dbeta, d->x + at, d->mean + g, d->rstd + g,
                           d->gamma, d->beta, d->dx + at, N, c->HW, c->C, c->G, c->silu, scratch);
    cdad_free(scratch);
}

static void test_group_norm(void) {
    static const int64_t shapes[][4] = {{3, 5, 1, 1},    {3, 35, 12, 3},  {3, 63, 6, 6},    {3, 65, 320, 32},
                                        {3, 70, 130, 2}, {3, 200, 96, 1}, {3, 129, 70, 10}, {3, 16, 64, 64}};
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
        const int64_t *s = shapes[i / 2];
        norm_case c = {.N = s[0], .HW = s[1], .C = s[2], .G = s[3], .eps = (double)1e-5f, .silu = (int)i % 2};
        const int64_t sample = c.HW * c.C;
        norm_data d = make_data(&c), other = make_results(&d, &c);
        make_reference(&c, &d);
        EACH_POOL({
            run_group(ctx, threads == 1 ? &d : &other, &c, 0, c.N);
            CHECK(threads == 1 || same_results(&d, &other, c.N * sample, c.N * c.G, c.C),
                  "group norm %zu: %d threads change it", i, threads);
        })
        check_values("group norm", &c, &d, 1);
        const cdad_context two = {.pool = pools[2], .kernels = table};
        float *dgamma = floats(c.C);
        for (int64_t n = 0; n < c.N; n++) {
            run_group(&two, &other, &c, n, 1);
            for (int64_t k = 0; k < c.C; k++)
                dgamma[k] += other.dgamma[k];
        }
        CHECK(same(dgamma, d.dgamma, c.C) && same(other.dx, d.dx, c.N * sample) &&
                  same(other.y, d.y, c.N * sample),
              "group norm %zu: samples alone differ from those in a batch", i);
        cdad_free(dgamma);
        free_reference(&c);
        free_results(&other);
        free_data(&d);
    }
}

/* A single large image, where a mean of 100 and a spread of 0.1 would ruin E[x^2] - E[x]^2. */
static void test_large_mean(void) {
    norm_case c = {.N = 1, .HW = 4096, .C = 32, .G = 8, .eps = 1e-6};
    norm_data d = make_data(&c);
    for (int64_t i = 0; i < c.HW * c.C; i++)
        d.x[i] = 100.0f + 0.1f * d.dy[i];
    make_reference(&c, &d);
    const cdad_context two = {.pool = pools[2], .kernels = table};
    run_group(&two, &d, &c, 0, 1);
    const double rstd = worst(d.rstd, c.rstd, c.G, 0.0), y = worst(d.y, c.y, c.HW * c.C, 1.0);
    CHECK(rstd < 1e-5 && y < 5e-4, "group norm around 100: errors of rstd %.2g, y %.2g", rstd, y);
    free_reference(&c);
    free_data(&d);
}

static void run_layer(const cdad_context *ctx, norm_data *d, const norm_case *c, int64_t from, int64_t n,
                      int affine) {
    void *scratch = zeros(table->layer_norm_grad_scratch(n, c->C));
    const int64_t at = from * c->C;
    const float *gamma = affine ? d->gamma : NULL, *beta = affine ? d->beta : NULL;
    float *dgamma = affine ? d->dgamma : NULL, *dbeta = affine ? d->dbeta : NULL;
    table->layer_norm(ctx, d->y + at, d->mean + from, d->rstd + from, d->x + at, gamma, beta, n, c->C,
                      (float)c->eps);
    table->layer_norm_grad(ctx, d->dx + at, dgamma, dbeta, d->x + at, d->mean + from, d->rstd + from, gamma,
                           d->dy + at, n, c->C, scratch);
    cdad_free(scratch);
}

static void test_layer_norm(void) {
    static const int64_t shapes[][2] = {{1, 5}, {5, 3}, {200, 77}, {65, 320}, {3, 1029}};
    for (size_t i = 0; i < 2 * sizeof shapes / sizeof *shapes; i++) {
        const int affine = (int)i % 2;
        norm_case c = {.N = shapes[i / 2][0], .HW = 1, .C = shapes[i / 2][1], .G = 1, .eps = (double)1e-5f};
        const int64_t n = c.N * c.C;
        norm_data d = make_data(&c), other = make_results(&d, &c);
        for (int64_t k = 0; k < c.C && !affine; k++) {
            d.gamma[k] = 1.0f;
            d.beta[k] = 0.0f;
        }
        make_reference(&c, &d);
        EACH_POOL({
            run_layer(ctx, threads == 1 ? &d : &other, &c, 0, c.N, affine);
            CHECK(threads == 1 || same_results(&d, &other, n, c.N, c.C),
                  "layer norm %zu: %d threads change it", i, threads);
        })
        check_values("layer norm", &c, &d, affine);
        const cdad_context one = {.kernels = table};
        for (int64_t r = 0; r < c.N; r++)
            run_layer(&one, &other, &c, r, 1, affine);
        CHECK(same(other.y, d.y, n) && same(other.dx, d.dx, n), "layer norm %zu: rows alone differ", i);
        free_reference(&c);
        free_results(&other);
        free_data(&d);
    }
}

int cdad_test_norm(void) {
    on_every_table(test_group_norm);
    on_every_table(test_large_mean);
    on_every_table(test_layer_norm);
    return failures;
}
