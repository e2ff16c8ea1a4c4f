/* linear: y = x w^T + b over the last dimension. */
#include "ops/ops.h"
#include "ops/support.h"

enum { PRECISION };

static const cdad_attr_spec linear_attrs[] = {CDAD_PRECISION_ATTR, CDAD_ATTRS_END};

static cdad_status infer_linear(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0], *w = &args->in[1], *b = cdad_optional_shape(args, 2);
    CDAD_TRY(cdad_want_ndim(w, 2, "linear", "weight", "[O,K]", err));
    CDAD_FAIL_IF(x->ndim < 1, err, CDAD_SHAPE, "linear: input has no dimension, [...,K] is wanted");
    CDAD_FAIL_IF(cdad_shape_last(x) != w->dim[1], err, CDAD_SHAPE,
                 "linear: input has %lld features, weight wants %lld", (long long)cdad_shape_last(x),
                 (long long)w->dim[1]);
    if (b)
        CDAD_TRY(cdad_want_shape(b, cdad_shape_make(1, w->dim[0]), "linear", "bias", err));
    args->out[0] = *x;
    args->out[0].dim[x->ndim - 1] = w->dim[0];
    return CDAD_OK;
}

static cdad_status grad_linear(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                               const unsigned char *want, cdad_value *din, cdad_error *err) {
    const cdad_value x = node->in[0], w = node->in[1], dy = dout[0];
    if (want[0])
        CDAD_TRY(cdad_graph_add(g, &cdad_op_linear_grad_input, 2, (cdad_value[]){dy, w}, node->attr, &din[0], err));
    if (want[1])
        CDAD_TRY(cdad_graph_add(g, &cdad_op_linear_grad_weight, 2, (cdad_value[]){dy, x}, node->attr, &din[1], err));
    if (want[2])
        CDAD_TRY(cdad_node_reduce_to(g, dy, *cdad_graph_shape(g, node->in[2]), &din[2], err));
    return CDAD_OK;
}

static int64_t scratch_linear(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *x = &args->in[0], *w = &args->in[1];
    return kernels->gemm_scratch(cdad_shape_rows(x), w->dim[0], w->dim[1], threads);
}

static cdad_status run_linear(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const int64_t M = cdad_shape_rows(&call->in_shape[0]), O = call->in_shape[1].dim[0],
                  K = call->in_shape[1].dim[1];
    const cdad_epilogue with = cdad_call_epilogue(call, cdad_optional_data(call, 2), call->attr[PRECISION].i);
    ctx->kernels->gemm(ctx, M, O, K, cdad_mat_rows(call->in[0], K), cdad_mat_transposed(call->in[1], K),
                       call->out[0], O, &with, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_linear = {
    .name = "linear",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .flags = CDAD_OP_EPILOGUE | CDAD_OP_PRODUCT | CDAD_OP_LINEAR,
    .attrs = linear_attrs,
    .infer = infer_linear,
    .grad = grad_linear,
    .scratch = scratch_linear,
    .flops = cdad_flops_forward,
    .run = run_linear,
};

/* dy [...,O], w [O,K] -> dx [...,K] = dy w */
static cdad_status infer_grad_input(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *w = &args->in[1];
    CDAD_TRY(cdad_want_ndim(w, 2, "linear_grad_input", "weight", "[O,K]", err));
    CDAD_FAIL_IF(dy->ndim < 1 || cdad_shape_last(dy) != w->dim[0], err, CDAD_SHAPE,
                 "linear_grad_input: gradient has %lld features, weight gives %lld",
                 (long long)(dy->ndim ? cdad_shape_last(dy) : 0), (long long)w->dim[0]);
    args->out[0] = *dy;
    args->out[0].dim[dy->ndim - 1] = w->dim[1];
    return CDAD_OK;
}

static int64_t scratch_grad_input(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *dy = &args->in[0], *w = &args->in[1];
    return kernels->gemm_scratch(cdad_shape_rows(dy), w->dim[1], w->dim[0], threads);
}

static cdad_status run_grad_input(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const int64_t M = cdad_shape_rows(&call->in_shape[0]), O = call->in_shape[1].dim[0],
                  K = call->in_shape[1].dim[1];
    const cdad_epilogue with = cdad_call_epilogue(call, NULL, call->attr[PRECISION].i);
    ctx->kernels->gemm(ctx, M, K, O, cdad_mat_rows(call->in[0], O), cdad_mat_rows(call->in[1], K),
                       call->out[0], K, &with, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_linear_grad_input = {
    .name = "linear_grad_input",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_EPILOGUE | CDAD_OP_PRODUCT,
    .attrs = linear_attrs,
    .infer = infer_grad_input,
    .scratch = scratch_grad_input,
    .flops = cdad_flops_grad_input,
    .run = run_grad_input,
};

/* dy [...,O], x [...,K] -> dw [O,K] = dy^T x */
static cdad_status infer_grad_weight(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *x = &args->in[1];
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(dy->ndim < 1 || x->ndim < 1 || cdad_shape_rows(dy) != cdad_shape_rows(x), err, CDAD_SHAPE,
                 "linear_grad_weight: gradient %s and input %s differ in their rows", cdad_shape_text(dy, a),
                 cdad_shape_text(x, b));
    args->out[0] = cdad_shape_make(2, cdad_shape_last(dy), cdad_shape_last(x));
    return CDAD_OK;
}

static int64_t scratch_grad_weight(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *dw = &args->out[0];
    return kernels->gemm_scratch(dw->dim[0], dw->dim[1], cdad_shape_rows(&args->in[0]), threads);
}

static cdad_status run_grad_weight(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const int64_t M = cdad_shape_rows(&call->in_shape[0]), O = call->out_shape[0].dim[0],
                  K = call->out_shape[0].dim[1];
    const cdad_epilogue with = cdad_call_epilogue(call, NULL, call->attr[PRECISION].i);
    ctx->kernels->gemm(ctx, O, K, M, cdad_mat_transposed(call->in[0], O), cdad_mat_rows(call->in[1], K),
                       call->out[0], K, &with, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_linear_grad_weight = {
    .name = "linear_grad_weight",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_PRODUCT,
    .attrs = linear_attrs,
    .infer = infer_grad_weight,
    .scratch = scratch_grad_weight,
    .flops = cdad_flops_grad_weight,
    .run = run_grad_weight,
};
