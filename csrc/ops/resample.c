/* Changing an image's size: upsample2x (nearest), resize_bilinear. */
#include "ops/ops.h"
#include "ops/support.h"

enum { HEIGHT, WIDTH };

static const cdad_attr_spec resize_attrs[] = {CDAD_INT("h", 0), CDAD_INT("w", 0), CDAD_ATTRS_END};

/* x [N,H,W,C] -> y [N,2H,2W,C] */
static cdad_status infer_upsample(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    CDAD_TRY(cdad_want_ndim(x, 4, "upsample2x", "input", "[N,H,W,C]", err));
    args->out[0] = cdad_shape_make(4, x->dim[0], 2 * x->dim[1], 2 * x->dim[2], x->dim[3]);
    return CDAD_OK;
}

static cdad_status grad_upsample(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                                 const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)node;
    (void)want;
    return cdad_node_add(g, &cdad_op_upsample2x_grad, 1, &dout[0], &din[0], err, NULL);
}

static cdad_status run_upsample(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[0];
    ctx->kernels->upsample2x(ctx, call->out[0], call->in[0], x->dim[0], x->dim[1], x->dim[2], x->dim[3]);
    return CDAD_OK;
}

const cdad_op cdad_op_upsample2x = {
    .name = "upsample2x",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .infer = infer_upsample,
    .grad = grad_upsample,
    .run = run_upsample,
};

/* dy [N,2H,2W,C] -> dx [N,H,W,C] */
static cdad_status infer_upsample_grad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0];
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(dy->ndim != 4 || dy->dim[1] % 2 || dy->dim[2] % 2, err, CDAD_SHAPE,
                 "upsample2x_grad: gradient is %s, [N,2H,2W,C] is wanted", cdad_shape_text(dy, text));
    args->out[0] = cdad_shape_make(4, dy->dim[0], dy->dim[1] / 2, dy->dim[2] / 2, dy->dim[3]);
    return CDAD_OK;
}

static cdad_status run_upsample_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *dx = &call->out_shape[0];
    ctx->kernels->upsample2x_grad(ctx, call->out[0], call->in[0], dx->dim[0], dx->dim[1], dx->dim[2],
                                  dx->dim[3]);
    return CDAD_OK;
}

const cdad_op cdad_op_upsample2x_grad = {
    .name = "upsample2x_grad",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .infer = infer_upsample_grad,
    .run = run_upsample_grad,
};

/* x [N,H,W,C] -> y [N,h,w,C] */
static cdad_status infer_resize(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t h = args->attr[HEIGHT].i, w = args->attr[WIDTH].i;
    CDAD_TRY(cdad_want_ndim(x, 4, "resize_bilinear", "input", "[N,H,W,C]", err));
    CDAD_FAIL_IF(h < 1 || w < 1, err, CDAD_INVALID,
                 "resize_bilinear: to %lld x %lld, at least 1 x 1 is wanted", (long long)h, (long long)w);
    args->out[0] = cdad_shape_make(4, x->dim[0], h, w, x->dim[3]);
    return CDAD_OK;
}

static cdad_status run_resize(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[0];
    ctx->kernels->resize_bilinear(ctx, call->out[0], call->in[0], x->dim[0], x->dim[1], x->dim[2], x->dim[3],
                                  call->attr[HEIGHT].i, call->attr[WIDTH].i);
    return CDAD_OK;
}

const cdad_op cdad_op_resize_bilinear = {
    .name = "resize_bilinear",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = resize_attrs,
    .infer = infer_resize,
    .run = run_resize,
};
