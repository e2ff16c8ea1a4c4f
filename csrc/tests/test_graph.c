/* Graphs and programs: recording, gradients, planned memory, taps, errors, cancellation, failing allocations. */
#include <math.h>
#include <unistd.h>

#include "graph/places.h"
#include "graph_check.h"

int cdad_test_graph(void);

#define SHAPE(...) ((const int64_t[]){__VA_ARGS__}), (int)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

static cdad_graph *new_graph(void) {
    cdad_graph *g = NULL;
    if (cdad_graph_new(&g, NULL) != CDAD_OK)
        abort();
    return g;
}

static cdad_value input(cdad_graph *g, const char *name, const int64_t *dim, int ndim) {
    cdad_shape s = {.ndim = ndim};
    cdad_value v = CDAD_NONE;
    memcpy(s.dim, dim, (size_t)ndim * sizeof *dim);
    CHECK_OK(cdad_graph_input(g, name, s, &v, err));
    return v;
}

static cdad_value node(cdad_graph *g, const char *op, cdad_value a, cdad_value b) {
    cdad_value out = CDAD_NONE;
    CHECK_OK(cdad_node_add(g, cdad_op_find(op), b == CDAD_NONE ? 1 : 2, (cdad_value[]){a, b}, &out, err, NULL));
    return out;
}

static cdad_value reshape(cdad_graph *g, cdad_value x, double rows, double columns) {
    cdad_value out = CDAD_NONE;
    CHECK_OK(cdad_node_add(g, &cdad_op_reshape, 1, &x, &out, err, "ndim", 2.0, "d0", rows, "d1", columns, NULL));
    return out;
}

static void test_recording(void) {
    cdad_graph *g = new_graph();
    const cdad_shape w23 = cdad_shape_make(2, (int64_t)2, (int64_t)3), w32 = cdad_shape_make(2, (int64_t)3, (int64_t)2);
    const float six[6] = {1, 2, 3, 4, 5, 6};
    cdad_value w, again, c, out;
    CHECK_OK(cdad_graph_param(g, "w", w23, &w, err));
    CHECK_OK(cdad_graph_param(g, "w", w23, &again, err));
    CHECK(w == again && g->n_values == 1, "a parameter's second use makes another value");
    CHECK_FAILS(CDAD_SHAPE, "parameter w is [3,2] here and [2,3] elsewhere", cdad_graph_param(g, "w", w32, &out, err));
    CHECK_OK(cdad_graph_const(g, w23, six, &c, err));
    CHECK(g->values[c].data != six && same(g->values[c].data, six, 6), "a constant is not copied");
    CHECK_FAILS(CDAD_SHAPE, "[2,0]", cdad_graph_input(g, "x", cdad_shape_make(2, (int64_t)2, (int64_t)0), &out, err));
    CHECK_FAILS(CDAD_SHAPE, "does not fit",
                cdad_graph_input(g, "x", cdad_shape_make(2, (int64_t)1 << 40, (int64_t)1 << 40), &out, err));
    CHECK_FAILS(CDAD_SHAPE, "6 dimensions", cdad_graph_input(g, "x", (cdad_shape){.ndim = 6}, &out, err));

    const cdad_value x = input(g, "x", SHAPE(4, 3));
    const int64_t values = g->n_values;
    CHECK_FAILS(CDAD_INVALID, "add: 1 inputs; 2 to 2", cdad_graph_add(g, &cdad_op_add, 1, &x, NULL, &out, err));
    CHECK_FAILS(CDAD_INVALID, "add: input 1 is no value",
                cdad_graph_add(g, &cdad_op_add, 2, (cdad_value[]){x, 99}, NULL, &out, err));
    CHECK_FAILS(CDAD_INVALID, "add: input 0 is missing",
                cdad_graph_add(g, &cdad_op_add, 2, (cdad_value[]){CDAD_NONE, x}, NULL, &out, err));
    CHECK_FAILS(CDAD_SHAPE, "add: ", cdad_graph_add(g, &cdad_op_add, 2, (cdad_value[]){x, c}, NULL, &out, err));
    CHECK_FAILS(CDAD_SHAPE, "linear: bias",
                cdad_graph_add(g, &cdad_op_linear, 3, (cdad_value[]){x, w, c}, NULL, &out, err));
    CHECK_FAILS(CDAD_SHAPE, "mse: target", cdad_graph_add(g, &cdad_op_mse, 2, (cdad_value[]){x, c}, NULL, &out, err));
    CHECK_FAILS(CDAD_SHAPE, "conv2d: ", cdad_graph_add(g, &cdad_op_conv2d, 2, (cdad_value[]){x, w}, NULL, &out, err));
    CHECK_FAILS(CDAD_SHAPE, "reshape: [4,3] cannot become [5,-1]",
                cdad_node_add(g, &cdad_op_reshape, 1, &x, &out, err, "ndim", 2.0, "d0", 5.0, "d1", -1.0, NULL));
    CHECK_FAILS(CDAD_INVALID, "reshape has no attribute axis",
                cdad_node_add(g, &cdad_op_reshape, 1, &x, &out, err, "axis", 1.0, NULL));
    CHECK_FAILS(CDAD_INVALID, "reshape: ndim is 1.5",
                cdad_node_add(g, &cdad_op_reshape, 1, &x, &out, err, "ndim", 1.5, NULL));
    CHECK_FAILS(CDAD_INVALID, "affine: a is not finite",
                cdad_node_add(g, &cdad_op_affine, 1, &x, &out, err, "a", HUGE_VAL, NULL));
    CHECK(g->n_values == values && g->n_nodes == 0, "a refused node leaves values behind");
    CHECK(cdad_graph_shape(g, reshape(g, x, 2, -1))->dim[1] == 6, "reshape to [2,-1]");
    cdad_graph_free(g);
    cdad_graph_free(NULL);
}

/* loss = mean((x*x + x*s)^2 / 4 elements): x is read three times, the gradient stops at s = stop(x). */
static void test_backward(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    const cdad_value x = input(g, "x", SHAPE(2, 2)), unused = input(g, "unused", SHAPE(3)), zero = input(g, "zero", SHAPE(2, 2));
    const cdad_value s = node(g, "stop_gradient", x, CDAD_NONE);
    const cdad_value y = node(g, "add", node(g, "mul", x, x), node(g, "mul", x, s));
    const cdad_value loss = node(g, "mse", y, zero);
    const cdad_value wanted[] = {x, unused, loss, s};
    cdad_value grads[4];
    CHECK_FAILS(CDAD_SHAPE, "this one is [2,2]", cdad_graph_backward(g, y, 1, wanted, 0, grads, err));
    CHECK_FAILS(CDAD_INVALID, "the loss is no value", cdad_graph_backward(g, 99, 1, wanted, 0, grads, err));
    CHECK_FAILS(CDAD_INVALID, "wanted value 0", cdad_graph_backward(g, loss, 1, (cdad_value[]){99}, 0, grads, err));
    CHECK_OK(cdad_graph_backward(g, loss, 4, wanted, 0, grads, err));
    CHECK(grads[1] == CDAD_NONE, "a gradient of what the loss does not depend on");
    cdad_program *p = NULL;
    const cdad_value outputs[] = {grads[0], grads[2], grads[3]};
    CHECK_OK(cdad_program_new(&p, g, 3, outputs, NULL, ctx, err));
    const float data[4] = {1.0f, -2.0f, 0.5f, 3.0f}, zeros4[4] = {0};
    CHECK_OK(cdad_program_bind(p, x, data, err));
    CHECK_OK(cdad_program_bind(p, zero, zeros4, err));
    CHECK_OK(cdad_program_run(p, ctx, err));
    for (int i = 0; i < 4; i++) { /* y = 2 x^2, dloss/dy = y/2, dy/dx = 2x + s, dy/ds = x */
        const float v = data[i], dx = v * v * 3.0f * v, ds = v * v * v;
        CHECK(cdad_program_data(p, grads[0])[i] == dx && cdad_program_data(p, grads[3])[i] == ds,
              "gradients of %g: %g, %g", (double)v, (double)cdad_program_data(p, grads[0])[i],
              (double)cdad_program_data(p, grads[3])[i]);
    }
    CHECK(cdad_program_data(p, grads[2])[0] == 1.0f, "the loss' own gradient");
    cdad_program_free(p);

    const cdad_value second = node(g, "mse", grads[0], zero); /* gradient ops are not differentiated again */
    CHECK_FAILS(CDAD_INVALID, "mse_grad has no gradient", cdad_graph_backward(g, second, 1, &x, 0, grads, err));
    cdad_graph_free(g);
}

typedef struct chance {
    uint64_t seed;
    int64_t drawn;
} chance;

static int64_t draw(chance *c, int64_t below) { return cdad_random_below(below, c->seed, 7, c->drawn++); }

/* A value of 24 elements. */
static cdad_value draw_value(chance *c, const cdad_graph *g) {
    for (;;) {
        const cdad_value v = (cdad_value)draw(c, g->n_values);
        if (count_of(g, v) == 24)
            return v;
    }
}

/* A value that can be a right operand for `left`: of its shape or of one element; often `left` itself. */
static cdad_value draw_operand(chance *c, const cdad_graph *g, cdad_value left) {
    for (int i = 0; i < 10; i++) {
        const cdad_value v = (cdad_value)draw(c, g->n_values);
        if (count_of(g, v) == 1 || cdad_shape_equal(cdad_graph_shape(g, v), cdad_graph_shape(g, left)))
            return v;
    }
    return left;
}

/* Additions, products, activations and views of 24 elements in three shapes, some of them in blocks. */
static cdad_graph *random_graph(chance *c) {
    static const char *const unary[] = {"silu", "tanh", "stop_gradient"}, *const binary[] = {"add", "sub", "mul"};
    static const double rows[] = {4, 24, 2};
    cdad_graph *g = new_graph();
    cdad_value v;
    float data[24];
    cdad_random_normal(data, 24, c->seed, 8, 0);
    input(g, "a", SHAPE(4, 6));
    input(g, "b", SHAPE(24, 1));
    input(g, "one", SHAPE(1));
    CHECK_OK(cdad_graph_param(g, "w", cdad_shape_make(2, (int64_t)2, (int64_t)12), &v, err));
    CHECK_OK(cdad_graph_const(g, cdad_shape_make(2, (int64_t)4, (int64_t)6), data, &v, err));
    for (int i = 0; i < 30; i++) {
        if (i % 7 == 1)
            cdad_graph_block_open(g);
        else if (i % 7 == 6)
            cdad_graph_block_close(g);
        const cdad_value x = draw_value(c, g);
        const int64_t kind = draw(c, 3);
        if (kind == 0) {
            const int64_t shape = draw(c, 3);
            reshape(g, x, rows[shape], 24 / rows[shape]);
        } else if (kind == 1) {
            node(g, unary[draw(c, 3)], x, CDAD_NONE);
        } else { /* tanh keeps products from growing without end */
            node(g, "tanh", node(g, binary[draw(c, 3)], x, draw_operand(c, g, x)), CDAD_NONE);
        }
    }
    cdad_graph_block_close(g);
    return g;
}

/* Adds what a node computes to the outputs, unless it is there. */
static void add_output(const cdad_graph *g, cdad_value v, cdad_value *outputs, int64_t *n) {
    for (int64_t i = 0; i < *n; i++)
        if (outputs[i] == v)
            return;
    if (v != CDAD_NONE && g->values[v].kind == CDAD_VALUE_NODE)
        outputs[(*n)++] = v;
}

/* However a program shares and reuses memory, its results are those of the plain evaluation. */
static void test_random_graphs(const cdad_context *ctx, const cdad_context *other) {
    for (uint64_t seed = 0; seed < 60; seed++) {
        chance c = {.seed = seed};
        cdad_graph *g = random_graph(&c);
        cdad_value outputs[8], grads[5];
        const cdad_value leaves[] = {0, 1, 2, 3, 4};
        int64_t n = 0;
        char what[32];
        snprintf(what, sizeof what, "random graph %d", (int)seed);
        for (int64_t left = 1 + draw(&c, 4); left > 0; left--)
            add_output(g, draw_value(&c, g), outputs, &n);
        check_program(g, ctx, other, n, outputs, n > 0 ? draw(&c, n + 1) : 0, what);

        cdad_value last = (cdad_value)(g->n_values - 1), target = draw_operand(&c, g, last);
        if (count_of(g, target) == 1)
            target = last;
        const cdad_value loss = node(g, "mse", node(g, "silu", last, CDAD_NONE), target);
        CHECK_OK(cdad_graph_backward(g, loss, 5, leaves, 0, grads, err));
        for (int i = (n = 0); i < 5; i++)
            add_output(g, grads[i], outputs, &n);
        const int64_t external = n;
        add_output(g, loss, outputs, &n);
        check_program(g, ctx, other, n, outputs, external, what);
        cdad_graph_free(g);
    }
}

static int64_t arena_of(const cdad_graph *g, cdad_value output, const cdad_context *ctx) {
    cdad_program *p = NULL;
    CHECK_OK(cdad_program_new(&p, g, 1, &output, NULL, ctx, err));
    const int64_t bytes = p ? cdad_program_arena_bytes(p) : -1;
    cdad_program_free(p);
    return bytes;
}

static void test_arena(const cdad_context *ctx) {
    enum { N = 1000, BYTES = 4032 }; /* rounded up to 64 */
    cdad_graph *g = new_graph();
    const cdad_value x = input(g, "x", SHAPE(10, 100)), w = input(g, "w", SHAPE(100, 100));
    cdad_value y = x, z = x;
    for (int i = 0; i < 8; i++)
        y = node(g, i % 2 ? "silu" : "stop_gradient", i % 3 ? y : reshape(g, y, 10, 100), CDAD_NONE);
    CHECK(arena_of(g, y, ctx) == BYTES, "a chain in place takes %" PRId64 " bytes", arena_of(g, y, ctx));
    for (int i = 0; i < 8; i++)
        z = node(g, "linear", z, w);
    CHECK(arena_of(g, z, ctx) == 2 * BYTES, "a chain of products takes %" PRId64 " bytes", arena_of(g, z, ctx));
    CHECK(arena_of(g, node(g, "add", y, z), ctx) == 3 * BYTES, "two chains take %" PRId64 " bytes",
          arena_of(g, (cdad_value)(g->n_values - 1), ctx));
    CHECK(arena_of(g, reshape(g, x, 100, 10), ctx) == 0, "a view of an input takes memory");
    cdad_graph_free(g);
}

/* Gradients from blocks that run again have the bits of those from kept activations. */
static void test_recomputing(const cdad_context *ctx, const cdad_context *other) {
    for (uint64_t seed = 0; seed < 40; seed++) {
        const cdad_value leaves[] = {0, 1, 2, 3, 4};
        cdad_value grads[2][5], outputs[6];
        float **values[2];
        cdad_graph *g[2];
        int64_t n = 0;
        for (int again = 0; again < 2; again++) {
            chance c = {.seed = seed};
            g[again] = random_graph(&c);
            const cdad_value last = (cdad_value)(g[again]->n_values - 1);
            const cdad_value loss = node(g[again], "mse", node(g[again], "silu", last, CDAD_NONE), last);
            CHECK_OK(cdad_graph_backward(g[again], loss, 5, leaves, again, grads[again], err));
            values[again] = evaluate(g[again], ctx, 1);
        }
        for (int i = 0; i < 5; i++) {
            const cdad_value a = grads[0][i], b = grads[1][i];
            CHECK((a == CDAD_NONE) == (b == CDAD_NONE), "seed %d: gradient %d", (int)seed, i);
            CHECK(a == CDAD_NONE || same(values[0][a], values[1][b], count_of(g[0], a)), "seed %d: gradient %d", (int)seed, i);
            add_output(g[1], b, outputs, &n);
        }
        check_program(g[1], ctx, other, n, outputs, n / 2, "recomputing");
        for (int again = 0; again < 2; again++) {
            free_values(g[again], values[again]);
            cdad_graph_free(g[again]);
        }
    }
}

/* A chain of 6 blocks of 4 activations, whose gradients read their inputs. */
static void test_memory_of_blocks(const cdad_context *ctx) {
    enum { BYTES = 4032 };
    int64_t bytes[2];
    for (int again = 0; again < 2; again++) {
        cdad_graph *g = new_graph();
        const cdad_value x = input(g, "x", SHAPE(10, 100));
        cdad_value y = x, dx;
        for (int i = 0; i < 24; i++) {
            if (i % 4 == 0)
                cdad_graph_block_open(g);
            y = node(g, "silu", y, CDAD_NONE);
        }
        cdad_graph_block_close(g);
        CHECK_OK(cdad_graph_backward(g, node(g, "mse", y, x), 1, &x, again, &dx, err));
        bytes[again] = arena_of(g, dx, ctx);
        cdad_graph_free(g);
    }
    CHECK(bytes[0] / BYTES >= 23 && bytes[1] / BYTES <= 11, "%" PRId64 " bytes, recomputing %" PRId64, bytes[0], bytes[1]);
}

/* A gradient that an op could take over in place as the last to read it, and a parameter that is read through a view. */
static void test_handovers_of_what_is_shared(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    const cdad_value x = input(g, "x", SHAPE(2, 3)), t = input(g, "t", SHAPE(2, 3));
    cdad_value w, p, flat, grads[2], view;
    CHECK_OK(cdad_graph_param(g, "w", cdad_shape_make(2, (int64_t)2, (int64_t)3), &w, err));
    CHECK_OK(cdad_graph_param(g, "p", cdad_shape_make(2, (int64_t)2, (int64_t)3), &p, err));
    const cdad_value sum = node(g, "add", node(g, "mul", x, w), p), loss = node(g, "mse", sum, t);
    CHECK_OK(cdad_graph_backward(g, loss, 2, (cdad_value[]){w, p}, 0, grads, err));
    check_handovers(g, ctx, loss, 2, (cdad_handover[]){{grads[0], w}, {grads[1], p}});
    check_handovers(g, ctx, grads[0], 1, &(cdad_handover){grads[1], p});
    cdad_graph_free(g);

    g = new_graph();
    const cdad_value other = input(g, "x", SHAPE(2, 3));
    CHECK_OK(cdad_graph_param(g, "w", cdad_shape_make(1, (int64_t)6), &flat, err));
    CHECK_OK(cdad_node_add(g, &cdad_op_reshape, 1, &flat, &view, err, "ndim", 2.0, "d0", 2.0, "d1", 3.0, NULL));
    CHECK_OK(cdad_graph_backward(g, node(g, "mse", node(g, "mul", other, view), other), 1, &flat, 0, grads, err));
    const cdad_value late = node(g, "tanh", view, CDAD_NONE);
    check_handovers(g, ctx, node(g, "add", late, late), 1, &(cdad_handover){grads[0], flat});
    cdad_graph_free(g);
}

/* A parameter that is read after its gradient is there is not spared before. */
static void test_handovers(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    const cdad_value x = input(g, "x", SHAPE(4, 3));
    cdad_value w, y, loss, late, both, grad;
    CHECK_OK(cdad_graph_param(g, "w", cdad_shape_make(2, (int64_t)3, (int64_t)3), &w, err));
    CHECK_OK(cdad_node_add(g, &cdad_op_linear, 2, (cdad_value[]){x, w}, &y, err, NULL));
    CHECK_OK(cdad_node_add(g, &cdad_op_mse, 2, (cdad_value[]){y, x}, &loss, err, NULL));
    CHECK_OK(cdad_graph_backward(g, loss, 1, &w, 0, &grad, err));
    late = node(g, "tanh", w, CDAD_NONE);
    both = node(g, "add", late, late);
    check_handovers(g, ctx, both, 1, &(cdad_handover){.value = grad, .spares = w});
    cdad_graph_free(g);
    test_handovers_of_what_is_shared(ctx);
}

/* Checks the results of a program for `outputs`, and returns its number of steps. */
static int64_t steps_of(const cdad_graph *g, const cdad_context *ctx, int64_t n_outputs, const cdad_value *outputs) {
    cdad_program *p = NULL;
    check_program(g, ctx, ctx, n_outputs, outputs, 0, "fused");
    CHECK_OK(cdad_program_new(&p, g, n_outputs, outputs, NULL, ctx, err));
    const int64_t steps = p ? p->n_steps : -1;
    cdad_program_free(p);
    return steps;
}
#define CHECK_STEPS(wanted, ...)                                                                               \
    CHECK(steps_of(g, ctx, sizeof((cdad_value[]){__VA_ARGS__}) / sizeof(cdad_value), (cdad_value[]){__VA_ARGS__}) == (wanted), \
          "other than " #wanted " steps for " #__VA_ARGS__)

/* Sums and activations that only follow a product run with it. */
static void test_fusing(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    const cdad_value x = input(g, "x", SHAPE(4, 3)), w = input(g, "w", SHAPE(3, 3)), row = input(g, "row", SHAPE(3));
    const cdad_value y = node(g, "linear", x, w), z = node(g, "add", x, y), a = node(g, "relu", z, CDAD_NONE);
    CHECK_STEPS(1, a);
    CHECK_STEPS(2, a, z); /* what is wanted itself is computed */
    CHECK_STEPS(3, a, y);
    const cdad_value first = node(g, "linear", a, w), second = node(g, "linear", x, w);
    const cdad_value both = node(g, "add", first, second), broadcast = node(g, "add", second, row);
    CHECK_STEPS(3, both); /* the later product adds the earlier one */
    CHECK_STEPS(2, broadcast);
    const cdad_value squared = node(g, "add", first, first), late = node(g, "silu", second, CDAD_NONE);
    CHECK_STEPS(3, squared);
    const cdad_value early = node(g, "linear", second, w), behind = node(g, "add", early, late);
    CHECK_STEPS(3, behind); /* `early` adds `late`, which comes before it; `second` is read twice */
    cdad_graph_free(g);

    /* The gradients of an image that convolutions of both strides read are summed up by the later one. */
    g = new_graph();
    const cdad_value image = input(g, "image", SHAPE(2, 6, 5, 4)), kernel = input(g, "kernel", SHAPE(7, 3, 3, 4));
    cdad_value strided, dense, loss, total, grads[2];
    CHECK_OK(cdad_node_add(g, &cdad_op_conv2d, 2, (cdad_value[]){image, kernel}, &strided, err, "stride", 2.0, NULL));
    CHECK_OK(cdad_node_add(g, &cdad_op_conv2d, 2, (cdad_value[]){image, kernel}, &dense, err, NULL));
    loss = node(g, "mse", strided, node(g, "tanh", strided, CDAD_NONE));
    total = node(g, "add", loss, node(g, "mse", dense, node(g, "tanh", dense, CDAD_NONE)));
    CHECK_OK(cdad_graph_backward(g, total, 2, (cdad_value[]){image, kernel}, 0, grads, err));
    check_program(g, ctx, ctx, 2, grads, 0, "gradients by both strides");
    cdad_graph_free(g);
}

static void test_binding(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    cdad_program *p = NULL;
    const cdad_value x = input(g, "picture", SHAPE(2, 2)), idle = input(g, "idle", SHAPE(2, 2));
    const cdad_value y = node(g, "silu", x, CDAD_NONE), view = reshape(g, y, 4, 1), z = node(g, "tanh", view, CDAD_NONE);
    const cdad_value unread = node(g, "silu", idle, CDAD_NONE), outputs[] = {view, z, x, reshape(g, x, 4, 1)};
    CHECK_FAILS(CDAD_INVALID, "output 0 is no value",
                cdad_program_new(&p, g, 1, (cdad_value[]){99}, NULL, ctx, err));
    CHECK_FAILS(CDAD_INVALID, "handover 0 is no value",
                cdad_program_new(&p, g, 1, outputs,
                                 &(cdad_program_options){.n_handovers = 1, .handovers = &(cdad_handover){99, CDAD_NONE}},
                                 ctx, err));
    CHECK(!p, "a program in spite of an error");
    const cdad_program_options options = {.n_external = 1, .external = outputs};
    CHECK_OK(cdad_program_new(&p, g, 4, outputs, &options, ctx, err));
    CHECK(p->n_steps == 4, "%" PRId64 " nodes; 4 are needed", p->n_steps);
    CHECK(cdad_program_uses(p, y) && !cdad_program_uses(p, idle) && !cdad_program_uses(p, -1) &&
              !cdad_program_uses(p, 99),
          "what the program uses");
    CHECK(!cdad_program_data(p, unread) && !cdad_program_data(p, -1) && !cdad_program_data(p, 99), "data of no value");

    float data[4] = {1, -2, 3, -4}, copy[4], result[4] = {0};
    memcpy(copy, data, sizeof copy);
    CHECK_FAILS(CDAD_INVALID, "nothing is bound to picture", cdad_program_run(p, ctx, err));
    CHECK_OK(cdad_program_bind(p, x, data, err));
    CHECK_FAILS(CDAD_INVALID, "nothing is bound to an output", cdad_program_run(p, ctx, err));
    CHECK_FAILS(CDAD_INVALID, "is computed: it cannot be bound", cdad_program_bind(p, y, data, err));
    CHECK_FAILS(CDAD_INVALID, "value 99 is not in this program", cdad_program_bind(p, 99, data, err));
    CHECK_FAILS(CDAD_INVALID, "value -1 is not in this program", cdad_program_bind(p, CDAD_NONE, data, err));
    CHECK_OK(cdad_program_bind(p, view, result, err));
    CHECK_OK(cdad_program_run(p, ctx, err));
    CHECK(cdad_program_data(p, view) == result && cdad_program_data(p, x) == data &&
              cdad_program_data(p, outputs[3]) == data,
          "bound memory, or a view of it, is elsewhere");
    float **want = evaluate(g, ctx, 1);
    memcpy(want[x], data, sizeof data);
    for (int64_t k = 0; k < g->n_nodes; k++)
        run_node(g, &g->nodes[k], ctx, want);
    CHECK(same(result, want[y], 4) && same(cdad_program_data(p, z), want[z], 4) && same(data, copy, 4),
          "a bound output is wrong, or an input was written");
    free_values(g, want);
    cdad_program_free(p);
    cdad_program_free(NULL);
    cdad_graph_free(g);
}

typedef struct tap_log {
    const float *input;
    const cdad_graph *g;
    cdad_value reads[4]; /* input 0 of the nodes seen */
    float first[4];      /* its first element */
    int calls, fail_at, wrong;
} tap_log;

static cdad_status log_tap(void *arg, const cdad_context *ctx, const cdad_node *at, const float *data,
                           const cdad_shape *shape, cdad_error *err) {
    tap_log *log = arg;
    (void)ctx;
    CDAD_FAIL_IF(log->calls + 1 == log->fail_at, err, CDAD_LAPACK, "the tap fails");
    log->wrong += at->op != &cdad_op_linear || !cdad_shape_equal(shape, cdad_graph_shape(log->g, at->in[0]));
    if (log->calls < 4) {
        log->reads[log->calls] = at->in[0];
        log->first[log->calls] = data[0];
    }
    log->calls++;
    return CDAD_OK;
}

/* Stays long enough for the next poll to be due. */
static cdad_status slow_tap(void *arg, const cdad_context *ctx, const cdad_node *at, const float *data,
                            const cdad_shape *shape, cdad_error *err) {
    (void)ctx, (void)at, (void)data, (void)shape, (void)err;
    ++*(int *)arg;
    usleep(30000);
    return CDAD_OK;
}

static int count_polls(void *arg) { return ++*(int *)arg == 2; }

/* Two layers with one weight, and their gradients: taps see what the forward layers read, and nothing else. */
static void test_taps_and_polls(const cdad_context *ctx) {
    cdad_graph *g = new_graph();
    cdad_program *p = NULL;
    cdad_value w, grads[2];
    const cdad_value x = input(g, "x", SHAPE(5, 3));
    CHECK_OK(cdad_graph_param(g, "w", cdad_shape_make(2, (int64_t)3, (int64_t)3), &w, err));
    const cdad_value y = node(g, "linear", x, w), h = node(g, "silu", y, CDAD_NONE), z = node(g, "linear", h, w);
    const cdad_value loss = node(g, "mse", z, x);
    CHECK_OK(cdad_graph_backward(g, loss, 2, (cdad_value[]){x, w}, 0, grads, err));
    CHECK_OK(cdad_program_new(&p, g, 2, grads, NULL, ctx, err));
    float **want = evaluate(g, ctx, 5);
    CHECK_OK(cdad_program_bind(p, x, want[x], err));
    CHECK_OK(cdad_program_bind(p, w, want[w], err));

    tap_log log = {.g = g};
    CHECK_FAILS(CDAD_INVALID, "reads the weight", cdad_program_tap(p, loss, log_tap, &log, 0, err));
    CHECK_OK(cdad_program_tap(p, w, log_tap, &log, 0, err));
    CHECK_OK(cdad_program_run(p, ctx, err));
    CHECK(log.calls == 2 && !log.wrong && log.reads[0] == x && log.reads[1] == h && log.first[0] == want[x][0] &&
              log.first[1] == want[h][0],
          "%d calls of a tap, %d wrong", log.calls, log.wrong);
    log = (tap_log){.g = g, .fail_at = 2};
    CHECK_FAILS(CDAD_LAPACK, "the tap fails", cdad_program_run(p, ctx, err));
    CHECK_OK(cdad_program_tap(p, w, NULL, NULL, 0, err));
    CHECK_OK(cdad_program_run(p, ctx, err));
    CHECK(log.calls == 1, "a removed tap is called");

    int taps = 0, polls = 0;
    cdad_context polled = *ctx;
    polled.poll = count_polls;
    polled.poll_arg = &polls;
    CHECK_OK(cdad_program_tap(p, w, slow_tap, &taps, 0, err));
    CHECK_FAILS(CDAD_CANCELLED, "cancelled", cdad_program_run(p, &polled, err));
    CHECK(taps == 2 && polls == 2, "cancelled after %d taps, %d polls", taps, polls);
    CHECK_OK(cdad_program_run(p, &polled, err)); /* polls 3 and on do not cancel */
    CHECK(same(cdad_program_data(p, grads[1]), want[grads[1]], 9), "a run after a cancelled one is wrong");
    free_values(g, want);
    cdad_program_free(p);
    cdad_graph_free(g);
}

/* Small values of the layouts that ops want, so that many draws fit together. */
static cdad_shape draw_shape(chance *c) {
    static const cdad_shape shapes[] = {
        {4, {2, 4, 4, 8}}, {4, {2, 4, 4, 8}}, {4, {8, 3, 3, 8}}, {4, {2, 2, 2, 8}}, {4, {2, 8, 8, 8}}, {4, {2, 4, 4, 1}},
        {3, {3, 3, 8}},    {3, {2, 16, 8}},   {3, {2, 16, 8}},   {3, {2, 3, 8}},    {3, {2, 2, 16}},   {2, {8, 8}},
        {2, {2, 8}},       {2, {2, 2}},       {1, {8}},          {1, {8}},          {1, {2}},          {1, {1}},
        {0, {0}},          {5, {1, 2, 1, 4, 3}},
    };
    return shapes[draw(c, sizeof shapes / sizeof *shapes)];
}

/* "op: what is wrong"; a gradient op may speak of the op whose gradient it is. */
static int names(const char *message, const char *op) {
    const size_t length = strcspn(message, ":");
    return length > 0 && strncmp(message, op, length) == 0 && (op[length] == 0 || op[length] == '_');
}

/* The op on inputs of these shapes, and its gradient: they run within their memory, as the sanitizers see. */
static void run_any(const cdad_context *ctx, const cdad_op *op, const cdad_infer *args) {
    cdad_graph *g = new_graph();
    cdad_value in[CDAD_MAX_INPUTS], out[CDAD_MAX_OUTPUTS], grads[CDAD_MAX_INPUTS];
    for (int k = 0; k < args->n_in; k++) {
        in[k] = CDAD_NONE;
        if (args->in[k].ndim >= 0)
            CHECK_OK(cdad_graph_input(g, "x", args->in[k], &in[k], err));
    }
    CHECK_OK(cdad_graph_add(g, op, args->n_in, in, args->attr, out, err));
    const int64_t leaves = out[0];
    const cdad_value wanted[CDAD_MAX_INPUTS] = {0, 1, 2, 3, 4, 5, 6, 7};
    if (op->grad && args->out[0].ndim > 0)
        CHECK_OK(cdad_graph_backward(g, node(g, "mse", out[0], out[0]), leaves, wanted, 0, grads, err));
    free_values(g, evaluate(g, ctx, 3));
    cdad_graph_free(g);
}

/* Any shapes and attributes: an op refuses them by its name, or runs. */
static void test_any_op(const cdad_context *ctx) {
    chance c = {.seed = 11};
    for (int i = 0; cdad_op_at(i); i++) {
        const cdad_op *op = cdad_op_at(i);
        int accepted = 0;
        CHECK(cdad_op_find(op->name) == op, "%s is not found by its name", op->name);
        CHECK(!op->grad == !!(op->flags & (CDAD_OP_NO_GRAD | CDAD_OP_STOP)), "%s: a gradient rule or a flag", op->name);
        for (int round = 0; round < 5000 && accepted < 8; round++) {
            cdad_error err = {0};
            cdad_shape in[CDAD_MAX_INPUTS], out[CDAD_MAX_OUTPUTS] = {{0}};
            cdad_attr attrs[CDAD_MAX_ATTRS];
            const cdad_infer args = {.n_in = op->min_in + (int)draw(&c, op->max_in - op->min_in + 1),
                                     .in = in, .attr = attrs, .out = out};
            for (int k = 0; k < args.n_in; k++)
                in[k] = k >= op->min_in && draw(&c, 4) == 0 ? (cdad_shape){.ndim = -1} : draw_shape(&c);
            cdad_attr_defaults(op, attrs);
            for (int k = 0; op->attrs && op->attrs[k].name; k++)
                if (draw(&c, 3) == 0 && op->attrs[k].type == CDAD_ATTR_INT)
                    attrs[k].i = draw(&c, 8) ? draw(&c, 6) - 1 : (draw(&c, 2) ? 1 : -1) * (int64_t)9e15;
            if (op->infer(&args, &err) != CDAD_OK) {
                CHECK(names(err.message, op->name), "%s: %s", op->name, err.message);
            } else if (cdad_shape_check(&out[0], NULL) == CDAD_OK && cdad_shape_count(&out[0]) < 1 << 16) {
                accepted++;
                run_any(ctx, op, &args);
            }
        }
        CHECK(accepted > 0 || !op->grad, "%s: no shapes were found that it takes", op->name);
    }
    CHECK(!cdad_op_find("no such op") && !cdad_op_at(-1), "unknown ops");
}

/* Builds, differentiates, plans and runs a small graph; owns nothing when it returns. */
static cdad_status build_and_run(const cdad_context *ctx, const float *x_data, const float *w_data, float *dw,
                                 cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_graph *g = NULL;
    cdad_program *p = NULL;
    cdad_value x, w, c, y, loss, grad;
    CDAD_TRY_DONE(cdad_graph_new(&g, err));
    CDAD_TRY_DONE(cdad_graph_input(g, "x", cdad_shape_make(2, (int64_t)4, (int64_t)3), &x, err));
    CDAD_TRY_DONE(cdad_graph_param(g, "w", cdad_shape_make(2, (int64_t)3, (int64_t)3), &w, err));
    CDAD_TRY_DONE(cdad_graph_const(g, cdad_shape_make(1, (int64_t)3), x_data, &c, err));
    CDAD_TRY_DONE(cdad_node_add(g, &cdad_op_linear, 2, (cdad_value[]){x, w}, &y, err, NULL));
    for (int i = 0; i < 9; i++) {
        CDAD_TRY_DONE(cdad_node_add(g, &cdad_op_add, 2, (cdad_value[]){y, c}, &y, err, NULL));
        CDAD_TRY_DONE(cdad_node_add(g, &cdad_op_tanh, 1, &y, &y, err, NULL));
    }
    CDAD_TRY_DONE(cdad_node_add(g, &cdad_op_mse, 2, (cdad_value[]){y, x}, &loss, err, NULL));
    CDAD_TRY_DONE(cdad_graph_backward(g, loss, 1, &w, 0, &grad, err));
    CDAD_TRY_DONE(cdad_program_new(&p, g, 1, &grad, &(cdad_program_options){.n_external = 1, .external = &grad}, ctx, err));
    CDAD_TRY_DONE(cdad_program_bind(p, x, x_data, err));
    CDAD_TRY_DONE(cdad_program_bind(p, w, w_data, err));
    CDAD_TRY_DONE(cdad_program_bind(p, grad, dw, err));
    CDAD_TRY_DONE(cdad_program_run(p, ctx, err));
done:
    cdad_program_free(p);
    cdad_graph_free(g);
    return status;
}

static void test_no_memory(const cdad_context *ctx, const cdad_context *other) {
    float x[12], w[9], dw[9] = {0}, again[9] = {0};
    cdad_random_normal(x, 12, 1, 2, 0);
    cdad_random_normal(w, 9, 1, 3, 0);
    CHECK_OK(build_and_run(ctx, x, w, dw, err));
    EACH_ALLOCATION_FAILS(build_and_run(ctx, x, w, again, err), again[0] == 0.0f);
    CHECK(same(dw, again, 9), "another gradient after failures");

    /* More threads than at planning: the run needs more scratch, and works once it gets it. */
    cdad_graph *g = new_graph();
    cdad_program *p = NULL;
    const cdad_value a = input(g, "a", SHAPE(4, 3)), b = input(g, "b", SHAPE(3, 3)), y = node(g, "linear", a, b);
    CHECK_OK(cdad_program_new(&p, g, 1, &y, NULL, ctx, err));
    CHECK_OK(cdad_program_bind(p, a, x, err));
    CHECK_OK(cdad_program_bind(p, b, w, err));
    CHECK_OK(cdad_program_run(p, ctx, err));
    float kept[12];
    memcpy(kept, cdad_program_data(p, y), sizeof kept);
    const int64_t before = cdad_program_workspace_bytes(p);
    EACH_ALLOCATION_FAILS(cdad_program_run(p, other, err), !cdad_program_data(p, y));
    CHECK(same(kept, cdad_program_data(p, y), 12) && cdad_program_workspace_bytes(p) > before, "%" PRId64 " bytes",
          cdad_program_workspace_bytes(p));
    cdad_program_free(p);
    cdad_graph_free(g);
}

/* Two programs in one workspace: it is as large as the larger one, and each gives what it gives alone, whatever ran before. */
static void test_sharing_a_workspace(const cdad_context *ctx) {
    enum { SMALL = 300, LARGE = 400 };
    float x[3 * LARGE], w[9], alone[2][3 * LARGE];
    cdad_random_normal(x, 3 * LARGE, 1, 2, 0);
    cdad_random_normal(w, 9, 1, 3, 0);
    cdad_workspace shared = {.device = ctx->device};
    const cdad_program_options options = {.workspace = &shared};
    cdad_graph *g[2];
    cdad_program *p[2], *own;
    cdad_value in[2][2], out[2];
    for (int i = 0; i < 2; i++) {
        const int64_t rows = i ? LARGE : SMALL;
        g[i] = new_graph();
        in[i][0] = input(g[i], "x", SHAPE(rows, 3));
        in[i][1] = input(g[i], "w", SHAPE(3, 3));
        out[i] = node(g[i], "linear", in[i][0], in[i][1]);
        out[i] = node(g[i], "silu", out[i], CDAD_NONE);
        for (int shares = 0; shares < 2; shares++) {
            cdad_program **made = shares ? &p[i] : &own;
            CHECK_OK(cdad_program_new(made, g[i], 1, &out[i], shares ? &options : NULL, ctx, err));
            CHECK_OK(cdad_program_bind(*made, in[i][0], x, err));
            CHECK_OK(cdad_program_bind(*made, in[i][1], w, err));
        }
        CHECK_OK(cdad_program_run(own, ctx, err));
        memcpy(alone[i], cdad_program_data(own, out[i]), (size_t)(3 * rows) * sizeof(float));
        CHECK(shared.bytes == cdad_program_workspace_bytes(p[i]) &&
                  shared.bytes == cdad_program_workspace_bytes(own) &&
                  shared.bytes >= 3 * rows * (int64_t)sizeof(float), "%" PRId64 " bytes", shared.bytes);
        cdad_program_free(own);
    }
    for (int run = 0; run < 4; run++) {
        const int i = run % 2; /* the first one's places have moved since it was planned */
        CHECK_OK(cdad_program_run(p[i], ctx, err));
        CHECK(same(alone[i], cdad_program_data(p[i], out[i]), i ? 3 * LARGE : 3 * SMALL), "program %d, run %d", i, run);
    }
    /* Without memory nothing is there; the smaller program then runs again, and the larger one where there is memory. */
    cdad_workspace_clear(&shared);
    EACH_ALLOCATION_FAILS(cdad_program_run(p[1], ctx, err), !cdad_program_data(p[1], out[1]) && shared.bytes == 0);
    cdad_workspace_clear(&shared);
    CHECK_OK(cdad_program_run(p[0], ctx, err));
    CHECK(same(alone[0], cdad_program_data(p[0], out[0]), 3 * SMALL) && shared.bytes == cdad_program_workspace_bytes(p[0]),
          "%" PRId64 " bytes after a failure", shared.bytes);
    for (int i = 0; i < 2; i++) {
        cdad_program_free(p[i]);
        cdad_graph_free(g[i]);
    }
    cdad_workspace_clear(&shared);
}

int cdad_test_graph(void) {
    cdad_context ctx = {.kernels = cdad_kernels_select(NULL)}, other = ctx;
    CHECK_OK(cdad_pool_new(&other.pool, 3, err));
    test_recording();
    test_backward(&ctx);
    test_random_graphs(&ctx, &other);
    test_arena(&ctx);
    test_recomputing(&ctx, &other);
    test_memory_of_blocks(&ctx);
    test_handovers(&ctx);
    test_fusing(&ctx);
    test_binding(&ctx);
    test_taps_and_polls(&ctx);
    test_any_op(&ctx);
    test_no_memory(&ctx, &other);
    test_sharing_a_workspace(&ctx);
    cdad_pool_free(other.pool);
    return failures;
}
