/* geglu: x [...,2D] -> x[..., :D] * gelu(x[..., D:]) (Shazeer 2020, "GLU variants improve transformer"). */
#include "ops/ops.h"
#include "ops/support.h"

static cdad_status infer_geglu(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(x->ndim < 1 || cdad_shape_last(x) % 2, err, CDAD_SHAPE,
                 "geglu: input is %s, [...,2D] is wanted", cdad_shape_text(x, text));
    args->out[0] = *x;
    args->out[0].dim[x->ndim - 1] /= 2;
    return CDAD_OK;
}

static cdad_status grad_geglu(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                              const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_node_add(g, &cdad_op_geglu_grad, 2, (cdad_value[]){dout[0], node->in[0]}, &din[0], err, NULL);
}

static cdad_status run_geglu(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *y = &call->out_shape[0];
    ctx->kernels->geglu(ctx, call->out[0], call->in[0], cdad_shape_rows(y), cdad_shape_last(y));
    return CDAD_OK;
}

const cdad_op cdad_op_geglu = {
    .name = "geglu",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .infer = infer_geglu,
    .grad = grad_geglu,
    .run = run_geglu,
};

/* dy [...,D], x [...,2D] -> dx [...,2D] */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    cdad_shape y;
    const cdad_infer forward = {.n_in = 1, .in = &args->in[1], .attr = args->attr, .out = &y};
    CDAD_TRY(infer_geglu(&forward, err));
    CDAD_TRY(cdad_want_shape(&args->in[0], y, "geglu_grad", "gradient", err));
    args->out[0] = args->in[1];
    return CDAD_OK;
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *dy = &call->in_shape[0];
    ctx->kernels->geglu_grad(ctx, call->out[0], call->in[1], call->in[0], cdad_shape_rows(dy),
                             cdad_shape_last(dy));
    return CDAD_OK;
}

const cdad_op cdad_op_geglu_grad = {
    .name = "geglu_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .infer = infer_grad,
    .run = run_grad,
};
