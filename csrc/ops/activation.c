/* Activations: one op object each, one gradient op that is told which. */
#include "ops/ops.h"
#include "ops/support.h"

static const cdad_attr_spec grad_attrs[] = {CDAD_INT("kind", CDAD_ACT_SILU), CDAD_ATTRS_END};

static cdad_status run_activation(const cdad_context *ctx, const cdad_call *call, cdad_activation kind) {
    ctx->kernels->activation(ctx, call->out[0], call->in[0], cdad_shape_count(&call->out_shape[0]), kind);
    return CDAD_OK;
}

static cdad_status add_grad(cdad_graph *g, const cdad_node *node, cdad_value dy, cdad_value *dx,
                            cdad_activation kind, cdad_error *err) {
    return cdad_node_add(g, &cdad_op_activation_grad, 2, (cdad_value[]){dy, node->in[0]}, dx, err, "kind",
                         (double)kind, NULL);
}

#define ACTIVATION(NAME, KIND)                                                                       \
    static cdad_status grad_##NAME(cdad_graph *g, const cdad_node *node, const cdad_value *dout,     \
                                   const unsigned char *want, cdad_value *din, cdad_error *err) {    \
        (void)want;                                                                                  \
        return add_grad(g, node, dout[0], &din[0], KIND, err);                                       \
    }                                                                                                \
    static cdad_status run_##NAME(const cdad_context *ctx, const cdad_call *call, cdad_error *err) { \
        (void)err;                                                                                   \
        return run_activation(ctx, call, KIND);                                                      \
    }                                                                                                \
    const cdad_op cdad_op_##NAME = {                                                                 \
        .name = #NAME,                                                                               \
        .min_in = 1,                                                                                 \
        .max_in = 1,                                                                                 \
        .n_out = 1,                                                                                  \
        .flags = CDAD_OP_IN_PLACE,                                                                   \
        .activation = KIND,                                                                          \
        .infer = cdad_infer_unary,                                                                   \
        .grad = grad_##NAME,                                                                         \
        .run = run_##NAME,                                                                           \
    }

ACTIVATION(silu, CDAD_ACT_SILU);
ACTIVATION(relu, CDAD_ACT_RELU);
ACTIVATION(relu6, CDAD_ACT_RELU6);
ACTIVATION(gelu, CDAD_ACT_GELU);
ACTIVATION(quick_gelu, CDAD_ACT_QUICK_GELU);
ACTIVATION(tanh, CDAD_ACT_TANH);
ACTIVATION(sigmoid, CDAD_ACT_SIGMOID);
ACTIVATION(exp, CDAD_ACT_EXP);
ACTIVATION(sqrt, CDAD_ACT_SQRT);

/* dy, x -> dx = dy * act'(x) */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    const int64_t kind = args->attr[0].i;
    CDAD_FAIL_IF(kind <= CDAD_ACT_NONE || kind >= CDAD_ACT_COUNT, err, CDAD_INVALID,
                 "activation_grad: there is no activation %lld", (long long)kind);
    CDAD_TRY(cdad_want_shape(&args->in[1], args->in[0], "activation_grad", "input", err));
    args->out[0] = args->in[0];
    return CDAD_OK;
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    ctx->kernels->activation_grad(ctx, call->out[0], call->in[1], call->in[0],
                                  cdad_shape_count(&call->out_shape[0]), (cdad_activation)call->attr[0].i);
    return CDAD_OK;
}

const cdad_op cdad_op_activation_grad = {
    .name = "activation_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_IN_PLACE,
    .attrs = grad_attrs,
    .infer = infer_grad,
    .run = run_grad,
};
