/* Sums over dimensions, and repeating along them: reduce_sum for models; reduce_to and broadcast_to, each the
 * transpose of the other, for gradients. */
#include "ops/ops.h"
#include "ops/support.h"

enum { AXES };

static const cdad_attr_spec sum_attrs[] = {CDAD_INT("axes", 0), CDAD_ATTRS_END};

/* axes: a bit mask of the dimensions to sum over; they stay as 1. */
static cdad_status infer_sum(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t axes = args->attr[AXES].i;
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(axes < 1 || axes >> x->ndim, err, CDAD_INVALID,
                 "reduce_sum: axes is %lld, a mask of the dimensions of %s is wanted", (long long)axes,
                 cdad_shape_text(x, text));
    args->out[0] = *x;
    for (int i = 0; i < x->ndim; i++)
        if (axes >> i & 1)
            args->out[0].dim[i] = 1;
    return CDAD_OK;
}

static cdad_status grad_sum(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                            const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_node_add_shaped(g, &cdad_op_broadcast_to, dout[0], *cdad_graph_shape(g, node->in[0]), &din[0],
                                err);
}

static int64_t scratch_reduce(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    (void)threads;
    const cdad_broadcast bc = cdad_broadcast_of(&args->out[0], &args->in[0]);
    return kernels->reduce_scratch(&bc);
}

static cdad_status run_reduce(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_broadcast bc = cdad_broadcast_of(&call->out_shape[0], &call->in_shape[0]);
    ctx->kernels->reduce(ctx, call->out[0], call->in[0], &bc, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_reduce_sum = {
    .name = "reduce_sum",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attrs = sum_attrs,
    .infer = infer_sum,
    .grad = grad_sum,
    .scratch = scratch_reduce,
    .run = run_reduce,
};

static cdad_status infer_reduce_to(const cdad_infer *args, cdad_error *err) {
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_TRY(cdad_shape_from_attrs(args->attr, "reduce_to", &args->out[0], err));
    CDAD_FAIL_IF(!cdad_broadcast_fits(&args->out[0], &args->in[0]), err, CDAD_SHAPE,
                 "reduce_to: %s cannot be broadcast into the input's shape %s",
                 cdad_shape_text(&args->out[0], a), cdad_shape_text(&args->in[0], b));
    return CDAD_OK;
}

const cdad_op cdad_op_reduce_to = {
    .name = "reduce_to",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = cdad_shape_attrs,
    .infer = infer_reduce_to,
    .scratch = scratch_reduce,
    .run = run_reduce,
};

static cdad_status infer_broadcast_to(const cdad_infer *args, cdad_error *err) {
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_TRY(cdad_shape_from_attrs(args->attr, "broadcast_to", &args->out[0], err));
    CDAD_FAIL_IF(!cdad_broadcast_fits(&args->in[0], &args->out[0]), err, CDAD_SHAPE,
                 "broadcast_to: the input %s cannot be broadcast into %s", cdad_shape_text(&args->in[0], a),
                 cdad_shape_text(&args->out[0], b));
    return CDAD_OK;
}

static cdad_status run_broadcast_to(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    const cdad_broadcast bc = cdad_broadcast_of(&call->in_shape[0], &call->out_shape[0]);
    CDAD_TRY(cdad_device_zero(ctx->device, call->out[0], cdad_shape_count(&call->out_shape[0]) * (int64_t)sizeof(float),
                              err));
    ctx->kernels->binary(ctx, call->out[0], call->out[0], call->in[0], &bc, CDAD_BINARY_ADD);
    return CDAD_OK;
}

const cdad_op cdad_op_broadcast_to = {
    .name = "broadcast_to",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = cdad_shape_attrs,
    .infer = infer_broadcast_to,
    .run = run_broadcast_to,
};
