/* affine: a*x + b with numbers a, b. add, sub, mul: a (op) b, b broadcast into a's shape. */
#include "ops/ops.h"
#include "ops/support.h"

enum { SCALE, SHIFT };

static const cdad_attr_spec affine_attrs[] = {CDAD_FLOAT("a", 1.0), CDAD_FLOAT("b", 0.0), CDAD_ATTRS_END};

static cdad_status grad_affine(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                               const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_node_add(g, &cdad_op_affine, 1, &dout[0], &din[0], err, "a", node->attr[SCALE].f, NULL);
}

static cdad_status run_affine(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    ctx->kernels->affine(ctx, call->out[0], call->in[0], cdad_shape_count(&call->out_shape[0]),
                         (float)call->attr[SCALE].f, (float)call->attr[SHIFT].f);
    return CDAD_OK;
}

const cdad_op cdad_op_affine = {
    .name = "affine",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_IN_PLACE,
    .attrs = affine_attrs,
    .infer = cdad_infer_unary,
    .grad = grad_affine,
    .run = run_affine,
};

static cdad_status infer_binary(const cdad_infer *args, const char *op, cdad_error *err) {
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(!cdad_broadcast_fits(&args->in[1], &args->in[0]), err, CDAD_SHAPE,
                 "%s: the right operand %s cannot be broadcast into the left one's shape %s", op,
                 cdad_shape_text(&args->in[1], b), cdad_shape_text(&args->in[0], a));
    args->out[0] = args->in[0];
    return CDAD_OK;
}

static cdad_status run_binary(const cdad_context *ctx, const cdad_call *call, cdad_binary kind) {
    const cdad_broadcast bc = cdad_broadcast_of(&call->in_shape[1], &call->in_shape[0]);
    ctx->kernels->binary(ctx, call->out[0], call->in[0], call->in[1], &bc, kind);
    return CDAD_OK;
}

static cdad_status grad_add(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                            const unsigned char *want, cdad_value *din, cdad_error *err) {
    if (want[0])
        din[0] = dout[0];
    return want[1] ? cdad_node_reduce_to(g, dout[0], *cdad_graph_shape(g, node->in[1]), &din[1], err)
                   : CDAD_OK;
}

static cdad_status grad_sub(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                            const unsigned char *want, cdad_value *din, cdad_error *err) {
    cdad_value db;
    CDAD_TRY(grad_add(g, node, dout, want, din, err));
    if (!want[1])
        return CDAD_OK;
    CDAD_TRY(cdad_node_add(g, &cdad_op_affine, 1, &din[1], &db, err, "a", -1.0, NULL));
    din[1] = db;
    return CDAD_OK;
}

static cdad_status grad_mul(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                            const unsigned char *want, cdad_value *din, cdad_error *err) {
    const cdad_value a = node->in[0], b = node->in[1];
    cdad_value product;
    if (want[0])
        CDAD_TRY(cdad_node_add(g, &cdad_op_mul, 2, (cdad_value[]){dout[0], b}, &din[0], err, NULL));
    if (!want[1])
        return CDAD_OK;
    CDAD_TRY(cdad_node_add(g, &cdad_op_mul, 2, (cdad_value[]){dout[0], a}, &product, err, NULL));
    return cdad_node_reduce_to(g, product, *cdad_graph_shape(g, b), &din[1], err);
}

#define BINARY(NAME, KIND)                                                                           \
    static cdad_status infer_##NAME(const cdad_infer *args, cdad_error *err) {                       \
        return infer_binary(args, #NAME, err);                                                       \
    }                                                                                                \
    static cdad_status run_##NAME(const cdad_context *ctx, const cdad_call *call, cdad_error *err) { \
        (void)err;                                                                                   \
        return run_binary(ctx, call, KIND);                                                          \
    }                                                                                                \
    const cdad_op cdad_op_##NAME = {                                                                 \
        .name = #NAME,                                                                               \
        .min_in = 2,                                                                                 \
        .max_in = 2,                                                                                 \
        .n_out = 1,                                                                                  \
        .flags = CDAD_OP_IN_PLACE,                                                                   \
        .infer = infer_##NAME,                                                                       \
        .grad = grad_##NAME,                                                                         \
        .run = run_##NAME,                                                                           \
    }

BINARY(add, CDAD_BINARY_ADD);
BINARY(sub, CDAD_BINARY_SUB);
BINARY(mul, CDAD_BINARY_MUL);
