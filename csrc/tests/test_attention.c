/* Attention, forward and backward. */
#include "kernel_check.h"

int cdad_test_attention(void);

/* Dense in double: q [N,T,L*D], k, v [N,S,L*D]. */
typedef struct attention_case {
    cdad_attention_dims d;
    double *q, *k, *v, *dout, *out, *lse;
} attention_case;

static int sees(const cdad_attention_dims *d, int64_t t, int64_t s) {
    if (d->causal && s > t)
        return 0;
    return d->mask_h <= 0 || llabs(t / d->grid_w - s / d->grid_w) > d->mask_h / 2 ||
           llabs(t % d->grid_w - s % d->grid_w) > d->mask_w / 2;
}

/* By the definition; returns the sum of out * dout, whose gradients are those of the kernel. */
static double loss(void *arg) {
    attention_case *c = arg;
    const cdad_attention_dims *d = &c->d;
    const int64_t wide = d->L * d->D;
    double total = 0.0, *p = doubles(d->S);
    for (int64_t n = 0; n < d->N; n++)
        for (int64_t l = 0; l < d->L; l++)
            for (int64_t t = 0; t < d->T; t++) {
                const int64_t at = (n * d->T + t) * wide + l * d->D, keys = n * d->S * wide + l * d->D;
                double max = -HUGE_VAL, sum = 0.0;
                for (int64_t s = 0; s < d->S; s++) {
                    p[s] = 0.0;
                    for (int64_t i = 0; i < d->D; i++)
                        p[s] += c->q[at + i] * c->k[keys + s * wide + i];
                    p[s] = sees(d, t, s) ? p[s] * (double)d->scale : -HUGE_VAL;
                    max = fmax(max, p[s]);
                }
                for (int64_t s = 0; s < d->S; s++)
                    sum += p[s] = p[s] == -HUGE_VAL ? 0.0 : exp(p[s] - max);
                c->lse[(n * d->L + l) * d->T + t] = sum > 0.0 ? max + log(sum) : -HUGE_VAL;
                for (int64_t i = 0; i < d->D; i++) {
                    double o = 0.0;
                    for (int64_t s = 0; s < d->S && sum > 0.0; s++)
                        o += p[s] / sum * c->v[keys + s * wide + i];
                    c->out[at + i] = o;
                    total += o * c->dout[at + i];
                }
            }
    cdad_free(p);
    return total;
}

/* Rows of the inputs have strides of q_rs, k_rs, v_rs; what lies between them is NaN and must not be read. */
typedef struct attention_data {
    float *q, *k, *v, *dout, *out, *lse, *dq, *dk, *dv;
} attention_data;

static float *strided(int64_t rows, int64_t wide, int64_t rs, uint32_t seed) {
    float *dense = noise(rows * wide, seed, 0.0f, 1.0f), *x = floats(rows * rs);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < rs; i++)
            x[r * rs + i] = i < wide ? dense[r * wide + i] : NAN;
    cdad_free(dense);
    return x;
}

static double *dense_of(const float *x, int64_t rows, int64_t wide, int64_t rs) {
    double *y = doubles(rows * wide);
    for (int64_t i = 0; i < rows * wide; i++)
        y[i] = (double)x[i / wide * rs + i % wide];
    return y;
}

static attention_data make_results(const attention_data *like, const cdad_attention_dims *d) {
    attention_data a = *like;
    a.out = floats(d->N * d->T * d->L * d->D);
    a.dq = floats(d->N * d->T * d->L * d->D);
    a.dk = floats(d->N * d->S * d->L * d->D);
    a.dv = floats(d->N * d->S * d->L * d->D);
    a.lse = floats(d->N * d->L * d->T);
    return a;
}

static attention_data make_data(const cdad_attention_dims *d) {
    const int64_t wide = d->L * d->D;
    const attention_data inputs = {.q = strided(d->N * d->T, wide, d->q_rs, 1),
                                   .k = strided(d->N * d->S, wide, d->k_rs, 2),
                                   .v = strided(d->N * d->S, wide, d->v_rs, 3),
                                   .dout = noise(d->N * d->T * wide, 4, 0.0f, 1.0f)};
    return make_results(&inputs, d);
}

static void free_results(attention_data *a) {
    float *all[] = {a->out, a->lse, a->dq, a->dk, a->dv};
    for (int i = 0; i < 5; i++)
        cdad_free(all[i]);
}

static void free_data(attention_data *a) {
    float *all[] = {a->q, a->k, a->v, a->dout};
    for (int i = 0; i < 4; i++)
        cdad_free(all[i]);
    free_results(a);
}

/* Samples from .. from+N-1, forward and backward. */
static void run(const cdad_context *ctx, attention_data *a, cdad_attention_dims d, int64_t from, int64_t N) {
    const int64_t wide = d.L * d.D, q = from * d.T * wide, k = from * d.S * wide, stats = from * d.L * d.T;
    const float *query = a->q + from * d.T * d.q_rs, *key = a->k + from * d.S * d.k_rs;
    const float *value = a->v + from * d.S * d.v_rs;
    d.N = N;
    void *scratch = zeros(table->attention_scratch(&d, cdad_pool_threads(ctx->pool)));
    table->attention(ctx, a->out + q, a->lse + stats, query, key, value, &d, scratch);
    table->attention_grad(ctx, a->dq + q, a->dk + k, a->dv + k, query, key, value, a->out + q, a->lse + stats,
                          a->dout + q, &d, scratch);
    cdad_free(scratch);
}

static int same_results(const attention_data *a, const attention_data *b, const cdad_attention_dims *d) {
    const int64_t wide = d->L * d->D, q = d->N * d->T * wide, k = d->N * d->S * wide;
    return same(a->out, b->out, q) && same(a->lse, b->lse, d->N * d->L * d->T) && same(a->dq, b->dq, q) &&
           same(a->dk, b->dk, k) && same(a->dv, b->dv, k);
}

static void check_case(cdad_attention_dims d) {
    const int64_t wide = d.L * d.D, nq = d.N * d.T * wide, nk = d.N * d.S * wide, rows = d.N * d.L * d.T;
    attention_data a = make_data(&d), other = make_results(&a, &d);
    attention_case c = {.d = d,
                        .q = dense_of(a.q, d.N * d.T, wide, d.q_rs),
                        .k = dense_of(a.k, d.N * d.S, wide, d.k_rs),
                        .v = dense_of(a.v, d.N * d.S, wide, d.v_rs),
                        .dout = widen(a.dout, nq),
                        .out = doubles(nq),
                        .lse = doubles(rows)};
    char what[120];
    snprintf(what, sizeof what, "attention N %lld T %lld S %lld L %lld D %lld mask %lldx%lld causal %d",
             (long long)d.N, (long long)d.T, (long long)d.S, (long long)d.L, (long long)d.D, (long long)d.mask_h,
             (long long)d.mask_w, d.causal);
    EACH_POOL({
        run(ctx, threads == 1 ? &a : &other, d, 0, d.N);
        CHECK(threads == 1 || same_results(&a, &other, &d), "%s: %d threads change it", what, threads);
    })
    const cdad_context two = {.pool = pools[2], .kernels = table};
    for (int64_t n = 0; n < d.N; n++)
        run(&two, &other, d, n, 1);
    CHECK(same_results(&a, &other, &d), "%s: samples alone differ from those in a batch", what);

    loss(&c);
    int hidden = 1;
    for (int64_t i = 0; i < rows; i++) /* -inf has no error: compared, then left out */
        if (c.lse[i] == -HUGE_VAL) {
            hidden &= a.lse[i] == -HUGE_VALF;
            a.lse[i] = 0.0f;
            c.lse[i] = 0.0;
        }
    const double out = worst_rms(a.out, c.out, nq), lse = worst(a.lse, c.lse, rows, 1.0);
    CHECK(hidden && out < 3e-6 && lse < 1e-6, "%s: errors %.2g, lse %.2g, hidden rows %s", what, out, lse,
          hidden ? "right" : "wrong");
    const int64_t points = 1000000 / (rows * d.S * d.D) + 5;
    const double dq = worst_gradient(a.dq, c.q, nq, points, loss, &c);
    const double dk = worst_gradient(a.dk, c.k, nk, points, loss, &c);
    const double dv = worst_gradient(a.dv, c.v, nk, points, loss, &c);
    CHECK(dq < 5e-6 && dk < 5e-6 && dv < 5e-6, "%s: errors of dq %.2g, dk %.2g, dv %.2g", what, dq, dk, dv);
    double *all[] = {c.q, c.k, c.v, c.dout, c.out, c.lse};
    for (int i = 0; i < 6; i++)
        cdad_free(all[i]);
    free_results(&other);
    free_data(&a);
}

static cdad_attention_dims dims(int64_t T, int64_t S, int64_t L, int64_t D, int64_t gap) {
    return (cdad_attention_dims){.N = 3,
                                 .T = T,
                                 .S = S,
                                 .L = L,
                                 .D = D,
                                 .q_rs = L * D + gap,
                                 .k_rs = L * D + 2 * gap,
                                 .v_rs = L * D + 3 * gap,
                                 .scale = 1.0f / sqrtf((float)D)};
}

static void test_values(void) {
    static const int64_t shapes[][5] = {{1, 1, 1, 1, 0},    {7, 5, 2, 4, 1},   {5, 77, 2, 40, 0},
                                        {66, 65, 1, 5, 3},  {9, 13, 1, 80, 0}, {3, 19, 1, 160, 2},
                                        {64, 64, 1, 32, 0}, {2, 200, 3, 17, 0}, {205, 270, 1, 5, 0}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_case(dims(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], shapes[i][4]));
}

static void test_mask(void) {
    static const int64_t masks[][4] = {{7, 9, 3, 5}, {9, 9, 7, 7}, {4, 3, 1, 1},
                                       {3, 3, 3, 3}, {3, 4, 9, 9}, {1, 5, 1, 3}, {18, 17, 5, 7}};
    for (size_t i = 0; i < sizeof masks / sizeof *masks; i++) {
        const int64_t tokens = masks[i][0] * masks[i][1];
        cdad_attention_dims d = dims(tokens, tokens, 2, 6, 1);
        d.grid_h = masks[i][0];
        d.grid_w = masks[i][1];
        d.mask_h = masks[i][2];
        d.mask_w = masks[i][3];
        check_case(d);
    }
}

static void test_causal(void) {
    static const int64_t tokens[] = {1, 5, 77, 210};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
        cdad_attention_dims d = dims(tokens[i], tokens[i], 2, 6, 1);
        d.causal = 1;
        check_case(d);
    }
    cdad_attention_dims both = dims(20, 20, 1, 5, 0);
    both.causal = 1;
    both.grid_h = 4;
    both.grid_w = 5;
    both.mask_h = both.mask_w = 3;
    check_case(both);
}

/* Scores that spread widely, with the largest in the last tile: sums must follow the running maximum. */
static void test_large_scores(void) {
    cdad_attention_dims d = dims(4, 150, 1, 8, 0);
    attention_data a = make_data(&d);
    const cdad_context one = {.kernels = table};
    for (int64_t s = 0; s < d.S; s++)
        for (int64_t i = 0; i < d.D; i++)
            a.k[s * d.D + i] = (float)s * (i == 0 ? 100.0f : 0.0f);
    for (int64_t t = 0; t < d.T; t++)
        a.q[t * d.D] = 1.0f;
    run(&one, &a, d, 0, 1);
    CHECK(same(a.out, a.v + 149 * d.D, d.D) && a.lse[0] == 14900.0f * d.scale,
          "the largest score does not win");
    free_data(&a);
}

/* A key whose score is x below the largest, and which alone has a value, has the weight e^-x / (1 + e^-x). */
static void test_small_weights(void) {
    enum { rows = 1000 };
    cdad_attention_dims d = dims(rows, 2, 1, 1, 0);
    attention_data a = make_data(&d);
    const cdad_context one = {.kernels = table};
    const float key[] = {0.0f, -1.0f}, value[] = {0.0f, 1.0f};
    memcpy(a.k, key, sizeof key);
    memcpy(a.v, value, sizeof value);
    for (int t = 0; t < rows; t++)
        a.q[t] = (float)t * 0.0871f;
    run(&one, &a, d, 0, 1);
    double off = 0.0; /* beyond what x times a rounded log2(e), rounded, gives */
    for (int t = 0; t < rows; t++) {
        const double p = exp(-(double)a.q[t]), want = p / (1.0 + p);
        off = fmax(off, fabs(a.out[t] / want - 1.0) - (double)a.q[t] * 1.25 * 0x1p-24);
    }
    CHECK(off < 3.5e-7, "small weights are %.2g off", off);
    a.q[0] = 88.0f;
    a.q[1] = 1e30f;
    run(&one, &a, d, 0, 1);
    CHECK(a.out[0] == 0.0f && a.out[1] == 0.0f, "weights below the smallest: %g, %g", (double)a.out[0],
          (double)a.out[1]);
    free_data(&a);
}

/* A NaN anywhere comes out wherever it is seen, and not elsewhere. */
static void test_not_finite(void) {
    static const int64_t keys[] = {0, 1, 63, 64, 149};
    const cdad_attention_dims d = dims(5, 150, 1, 8, 0);
    const cdad_context one = {.kernels = table};
    for (size_t i = 0; i < 5; i++)
        for (int where = 0; where < 3; where++) {
            attention_data a = make_data(&d);
            (where == 0 ? a.q : where == 1 ? a.k : a.v)[(where == 0 ? 2 : keys[i]) * d.D + 3] = NAN;
            run(&one, &a, d, 0, 1);
            for (int64_t t = 0; t < d.T; t++)
                for (int64_t c = 0; c < d.D; c++) {
                    const int want = where == 0 ? t == 2 : where == 1 ? 1 : c == 3;
                    CHECK(!isnan(a.out[t * d.D + c]) == !want, "NaN in %s of key %lld: out[%lld,%lld] is %g",
                          where == 0   ? "q"
                          : where == 1 ? "k"
                                       : "v",
                          (long long)keys[i], (long long)t, (long long)c, (double)a.out[t * d.D + c]);
                }
            free_data(&a);
        }
}

int cdad_test_attention(void) {
    on_every_table(test_values);
    on_every_table(test_mask);
    on_every_table(test_causal);
    on_every_table(test_large_scores);
    on_every_table(test_small_weights);
    on_every_table(test_not_finite);
    return failures;
}
