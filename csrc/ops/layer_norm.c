/* layer_norm: x [...,C] normalised over its last dimension (Ba et al. 2016), then gamma [C] and beta [C]
 * unless both are absent. Outputs y, and of each row the mean and 1/standard deviation. */
#include "ops/ops.h"
#include "ops/support.h"

enum { EPS };

static const cdad_attr_spec norm_attrs[] = {CDAD_FLOAT("eps", 1e-5), CDAD_ATTRS_END};

static cdad_status infer_norm(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0], *gamma = cdad_optional_shape(args, 1),
                     *beta = cdad_optional_shape(args, 2);
    CDAD_FAIL_IF(x->ndim < 1, err, CDAD_SHAPE, "layer_norm: input has no dimension, [...,C] is wanted");
    CDAD_FAIL_IF(!gamma != !beta, err, CDAD_INVALID,
                 "layer_norm: gamma and beta are given both or not at all");
    if (gamma) {
        const cdad_shape channels = cdad_shape_make(1, cdad_shape_last(x));
        CDAD_TRY(cdad_want_shape(gamma, channels, "layer_norm", "gamma", err));
        CDAD_TRY(cdad_want_shape(beta, channels, "layer_norm", "beta", err));
    }
    CDAD_FAIL_IF(!((float)args->attr[EPS].f > 0.0f), err, CDAD_INVALID,
                 "layer_norm: eps is %g, more than 0 is wanted in float32", args->attr[EPS].f);
    args->out[0] = *x;
    args->out[1] = args->out[2] = cdad_shape_make(1, cdad_shape_rows(x));
    return CDAD_OK;
}

static cdad_status grad_norm(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                             const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    CDAD_TRY(cdad_want_first_output(node, dout, err));
    const cdad_value gamma = cdad_optional_value(node, 1);
    const cdad_value in[] = {dout[0], node->in[0], node->out[1], node->out[2], gamma};
    if (gamma == CDAD_NONE)
        return cdad_graph_add(g, &cdad_op_normalize_grad, 4, in, NULL, din, err);
    return cdad_graph_add(g, &cdad_op_layer_norm_grad, 5, in, NULL, din, err);
}

static cdad_status run_norm(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[0];
    ctx->kernels->layer_norm(ctx, call->out[0], call->out[1], call->out[2], call->in[0],
                             cdad_optional_data(call, 1), cdad_optional_data(call, 2), cdad_shape_rows(x),
                             cdad_shape_last(x), (float)call->attr[EPS].f);
    return CDAD_OK;
}

const cdad_op cdad_op_layer_norm = {
    .name = "layer_norm",
    .min_in = 1,
    .max_in = 3,
    .n_out = 3,
    .attrs = norm_attrs,
    .infer = infer_norm,
    .grad = grad_norm,
    .run = run_norm,
};

/* The checks of both gradient ops: dy, x, mean, rstd. */
static cdad_status check_grad(const cdad_infer *args, const char *op, cdad_error *err) {
    const cdad_shape *x = &args->in[1];
    CDAD_FAIL_IF(x->ndim < 1, err, CDAD_SHAPE, "%s: input has no dimension, [...,C] is wanted", op);
    const cdad_shape statistics = cdad_shape_make(1, cdad_shape_rows(x));
    CDAD_TRY(cdad_want_shape(&args->in[0], *x, op, "gradient", err));
    CDAD_TRY(cdad_want_shape(&args->in[2], statistics, op, "mean", err));
    CDAD_TRY(cdad_want_shape(&args->in[3], statistics, op, "rstd", err));
    args->out[0] = *x;
    return CDAD_OK;
}

/* dy, x, mean, rstd -> dx */
static cdad_status infer_normalize_grad(const cdad_infer *args, cdad_error *err) {
    return check_grad(args, "normalize_grad", err);
}

/* dy, x, mean, rstd, gamma -> dx, dgamma, dbeta */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    CDAD_TRY(check_grad(args, "layer_norm_grad", err));
    CDAD_TRY(cdad_want_shape(&args->in[4], cdad_shape_make(1, cdad_shape_last(&args->in[1])),
                             "layer_norm_grad", "gamma", err));
    args->out[1] = args->out[2] = args->in[4];
    return CDAD_OK;
}

static int64_t scratch_grad(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    (void)threads;
    const cdad_shape *x = &args->in[1];
    return kernels->layer_norm_grad_scratch(cdad_shape_rows(x), cdad_shape_last(x));
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[1];
    const int affine = call->n_in == 5;
    ctx->kernels->layer_norm_grad(ctx, call->out[0], affine ? call->out[1] : NULL,
                                  affine ? call->out[2] : NULL, call->in[1], call->in[2], call->in[3],
                                  affine ? call->in[4] : NULL, call->in[0], cdad_shape_rows(x),
                                  cdad_shape_last(x), call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_layer_norm_grad = {
    .name = "layer_norm_grad",
    .min_in = 5,
    .max_in = 5,
    .n_out = 3,
    .flags = CDAD_OP_NO_GRAD,
    .infer = infer_grad,
    .scratch = scratch_grad,
    .run = run_grad,
};

const cdad_op cdad_op_normalize_grad = {
    .name = "normalize_grad",
    .min_in = 4,
    .max_in = 4,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .infer = infer_normalize_grad,
    .scratch = scratch_grad,
    .run = run_grad,
};
