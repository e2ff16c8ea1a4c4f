/* mse: a, b [N,...] -> the mean of (a-b)^2 over all elements [1], and over each sample's [N]. */
#include "ops/ops.h"
#include "ops/support.h"

static cdad_status infer_mse(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *a = &args->in[0];
    CDAD_FAIL_IF(a->ndim < 1, err, CDAD_SHAPE, "mse: input has no dimension, [N,...] is wanted");
    CDAD_TRY(cdad_want_shape(&args->in[1], *a, "mse", "target", err));
    args->out[0] = cdad_shape_make(1, (int64_t)1);
    args->out[1] = cdad_shape_make(1, a->dim[0]);
    return CDAD_OK;
}

static cdad_status grad_mse(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                            const unsigned char *want, cdad_value *din, cdad_error *err) {
    const cdad_value a = node->in[0], b = node->in[1];
    CDAD_TRY(cdad_want_first_output(node, dout, err));
    if (want[0])
        CDAD_TRY(cdad_node_add(g, &cdad_op_mse_grad, 3, (cdad_value[]){a, b, dout[0]}, &din[0], err, NULL));
    if (want[1])
        CDAD_TRY(cdad_node_add(g, &cdad_op_mse_grad, 3, (cdad_value[]){b, a, dout[0]}, &din[1], err, NULL));
    return CDAD_OK;
}

static cdad_status run_mse(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *a = &call->in_shape[0];
    ctx->kernels->mse(ctx, call->out[0], call->out[1], call->in[0], call->in[1], a->dim[0],
                      cdad_shape_span(a, 1, a->ndim));
    return CDAD_OK;
}

const cdad_op cdad_op_mse = {
    .name = "mse",
    .min_in = 2,
    .max_in = 2,
    .n_out = 2,
    .infer = infer_mse,
    .grad = grad_mse,
    .run = run_mse,
};

/* a, b [N,...], g [1] -> da */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *a = &args->in[0];
    CDAD_FAIL_IF(a->ndim < 1, err, CDAD_SHAPE, "mse_grad: input has no dimension, [N,...] is wanted");
    CDAD_TRY(cdad_want_shape(&args->in[1], *a, "mse_grad", "target", err));
    CDAD_TRY(cdad_want_shape(&args->in[2], cdad_shape_make(1, (int64_t)1), "mse_grad", "gradient", err));
    args->out[0] = *a;
    return CDAD_OK;
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *a = &call->in_shape[0];
    ctx->kernels->mse_grad(ctx, call->out[0], call->in[0], call->in[1], call->in[2], a->dim[0],
                           cdad_shape_span(a, 1, a->ndim));
    return CDAD_OK;
}

const cdad_op cdad_op_mse_grad = {
    .name = "mse_grad",
    .min_in = 3,
    .max_in = 3,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .infer = infer_grad,
    .run = run_grad,
};
