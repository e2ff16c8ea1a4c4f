/* Gradients in coordinates of directions are the whole ones' coordinates, where they take fewer operations; others are whole. */
#include <math.h>

#include "graph_check.h"

int cdad_test_coordinates(void);

enum { N = 2, C = 6 };

typedef struct layer {
    const char *what;
    int64_t side, O, k;
    double stride, upsample;
    int linear, twice, in_coordinates;
} layer;

static const layer layers[] = {
    {"linear", 4, 8, 3, 1, 1, 1, 0, 1},
    {"linear, more directions than its columns' share", 4, 8, 5, 1, 1, 1, 0, 0},
    {"linear, all directions", 4, 8, C, 1, 1, 1, 0, 0},
    {"a weight that two ops read", 4, 8, 3, 1, 1, 1, 1, 0},
    {"convolution", 2, 16, 5, 1, 1, 0, 0, 1},
    {"convolution with strides", 4, 16, 5, 2, 1, 0, 0, 1},
    {"convolution of an enlarged image", 2, 16, 5, 1, 2, 0, 0, 1},
    {"convolution of many pixels", 12, 16, 40, 1, 1, 0, 0, 0},
    {"convolution, all directions", 1, 16, 9 * C, 1, 1, 0, 0, 0},
};

static int64_t width_of(const layer *l) { return l->linear ? C : 9 * C; }

static cdad_shape rows_of(const layer *l, int64_t rows) {
    return l->linear ? cdad_shape_make(2, rows, (int64_t)C) : cdad_shape_make(4, rows, (int64_t)3, (int64_t)3, (int64_t)C);
}

static cdad_value layer_node(cdad_graph *g, const layer *l, cdad_value x, cdad_value w) {
    cdad_value y = CDAD_NONE;
    if (l->linear)
        CHECK_OK(cdad_node_add(g, cdad_op_find("linear"), 2, (cdad_value[]){x, w}, &y, err, NULL));
    else
        CHECK_OK(cdad_node_add(g, cdad_op_find("conv2d"), 2, (cdad_value[]){x, w}, &y, err, "stride", l->stride, "pad_t", 1.0, "pad_l", 1.0,
                               "pad_b", 1.0, "pad_r", 1.0, "upsample", l->upsample, NULL));
    return y;
}

static cdad_value of(cdad_graph *g, const char *op, cdad_value a, cdad_value b) {
    cdad_value out = CDAD_NONE;
    CHECK_OK(cdad_node_add(g, cdad_op_find(op), b == CDAD_NONE ? 1 : 2, (cdad_value[]){a, b}, &out, err, NULL));
    return out;
}

static float *normal_of(const cdad_shape *s, uint64_t stream) {
    float *x = floats(cdad_shape_count(s));
    cdad_random_normal(x, cdad_shape_count(s), 1, stream, 0);
    return x;
}

/* The weight's gradient, [O,k] where `along` and in coordinates, else [O,d]; its shape in *made. */
static float *gradient(const layer *l, int along, int recompute, const cdad_context *ctx, cdad_shape *made) {
    const cdad_shape image = cdad_shape_make(4, (int64_t)N, l->side, l->side, (int64_t)C);
    cdad_graph *g = NULL;
    cdad_program *p = NULL;
    cdad_value x, w, V, t, grad = CDAD_NONE;
    CHECK_OK(cdad_graph_new(&g, err));
    CHECK_OK(cdad_graph_input(g, "x", image, &x, err));
    CHECK_OK(cdad_graph_param(g, "w", rows_of(l, l->O), &w, err));
    CHECK_OK(cdad_graph_input(g, "V", rows_of(l, l->k), &V, err));
    cdad_graph_block_open(g); /* within it what the gradient reads */
    const cdad_value input = of(g, "silu", x, CDAD_NONE);
    cdad_value y = of(g, "silu", layer_node(g, l, input, w), CDAD_NONE);
    cdad_graph_block_close(g);
    if (l->twice)
        y = of(g, "mul", y, layer_node(g, l, x, w));
    cdad_graph_block_open(g);
    y = of(g, "silu", y, CDAD_NONE);
    cdad_graph_block_close(g);
    CHECK_OK(cdad_graph_input(g, "t", *cdad_graph_shape(g, y), &t, err));
    CHECK_OK(cdad_graph_backward_along(g, of(g, "mse", y, t), 1, &w, along ? &V : NULL, recompute, &grad, err));
    *made = *cdad_graph_shape(g, grad);
    CHECK_OK(cdad_program_new(&p, g, 1, &grad, NULL, ctx, err));
    const cdad_value leaves[] = {x, w, V, t};
    float *held[4];
    for (int i = 0; i < 4; i++) {
        held[i] = normal_of(cdad_graph_shape(g, leaves[i]), (uint64_t)i);
        if (cdad_program_uses(p, leaves[i]))
            CHECK_OK(cdad_program_bind(p, leaves[i], held[i], err));
    }
    CHECK_OK(cdad_program_run(p, ctx, err));
    float *result = floats(cdad_shape_count(made));
    CHECK_OK(cdad_program_read(p, grad, result, err));
    for (int i = 0; i < 4; i++)
        cdad_free(held[i]);
    cdad_program_free(p);
    cdad_graph_free(g);
    return result;
}

static void check_layer(const layer *l, int recompute, const cdad_context *ctx) {
    const int64_t O = l->O, k = l->k, d = width_of(l);
    const cdad_shape weight = rows_of(l, O), rows = rows_of(l, k);
    cdad_shape made;
    float *const whole = gradient(l, 0, recompute, ctx, &made), *const got = gradient(l, 1, recompute, ctx, &made);
    float *const V = normal_of(&rows, 2);
    if (l->in_coordinates) {
        double error = 0, size = 0;
        CHECK(made.ndim == 2 && made.dim[0] == O && made.dim[1] == k, "%s", l->what);
        for (int64_t o = 0; o < O; o++)
            for (int64_t j = 0; j < k; j++) {
                double want = 0;
                for (int64_t i = 0; i < d; i++)
                    want += (double)whole[o * d + i] * (double)V[j * d + i];
                error = fmax(error, fabs(want - (double)got[o * k + j]));
                size = fmax(size, fabs(want));
            }
        CHECK(size > 0 && error < 1e-5 * size, "%s: %g of %g", l->what, error, size);
    } else {
        CHECK(cdad_shape_equal(&made, &weight) && same(whole, got, O * d), "%s", l->what);
    }
    cdad_free(whole);
    cdad_free(got);
    cdad_free(V);
}

int cdad_test_coordinates(void) {
    const cdad_context ctx = {.kernels = cdad_kernels_select(NULL)};
    for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
        for (int recompute = 0; recompute < 2; recompute++)
            check_layer(&layers[i], recompute, &ctx);
    return failures;
}
