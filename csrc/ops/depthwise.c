/* depthwise_conv2d: x [N,H,W,C], w [R,S,C], b [C] -> y [N,P,Q,C], each channel with its own kernel. */
#include <string.h>

#include "ops/ops.h"
#include "ops/window.h"

enum { HEIGHT = CDAD_WINDOW_END, WIDTH }; /* of grad_input: the image's size */
enum { ROWS = CDAD_WINDOW_END, COLS };    /* of grad_weight: the kernel's size */

static const cdad_attr_spec depthwise_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_ATTRS_END};
static const cdad_attr_spec grad_input_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("height", 0),
                                                  CDAD_INT("width", 0), CDAD_ATTRS_END};
static const cdad_attr_spec grad_weight_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("rows", 0),
                                                   CDAD_INT("cols", 0), CDAD_ATTRS_END};

static cdad_status infer_depthwise(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0], *w = &args->in[1], *b = cdad_optional_shape(args, 2);
    CDAD_TRY(cdad_want_ndim(x, 4, "depthwise_conv2d", "input", "[N,H,W,C]", err));
    CDAD_TRY(cdad_want_ndim(w, 3, "depthwise_conv2d", "weight", "[R,S,C]", err));
    CDAD_FAIL_IF(x->dim[3] != w->dim[2], err, CDAD_SHAPE,
                 "depthwise_conv2d: input has %lld channels, weight has %lld", (long long)x->dim[3],
                 (long long)w->dim[2]);
    if (b)
        CDAD_TRY(cdad_want_shape(b, cdad_shape_make(1, w->dim[2]), "depthwise_conv2d", "bias", err));
    int64_t P, Q;
    CDAD_TRY(cdad_window_positions("depthwise_conv2d", args->attr, x->dim[1], x->dim[2], w->dim[0], w->dim[1],
                                   &P, &Q, err));
    args->out[0] = cdad_shape_make(4, x->dim[0], P, Q, x->dim[3]);
    return CDAD_OK;
}

/* Adds a gradient op with the node's window and two more attributes. */
static cdad_status add_grad(cdad_graph *g, const cdad_op *op, const cdad_node *node, cdad_value dy,
                            cdad_value other, int64_t first, int64_t second, cdad_value *out,
                            cdad_error *err) {
    cdad_attr attr[CDAD_MAX_ATTRS] = {0};
    memcpy(attr, node->attr, CDAD_WINDOW_END * sizeof *attr);
    attr[CDAD_WINDOW_END].i = first;
    attr[CDAD_WINDOW_END + 1].i = second;
    return cdad_graph_add(g, op, 2, (cdad_value[]){dy, other}, attr, out, err);
}

static cdad_status grad_depthwise(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                                  const unsigned char *want, cdad_value *din, cdad_error *err) {
    const cdad_shape x = *cdad_graph_shape(g, node->in[0]), w = *cdad_graph_shape(g, node->in[1]);
    if (want[0])
        CDAD_TRY(add_grad(g, &cdad_op_depthwise_conv2d_grad_input, node, dout[0], node->in[1], x.dim[1],
                          x.dim[2], &din[0], err));
    if (want[1])
        CDAD_TRY(add_grad(g, &cdad_op_depthwise_conv2d_grad_weight, node, dout[0], node->in[0], w.dim[0],
                          w.dim[1], &din[1], err));
    if (want[2])
        CDAD_TRY(cdad_node_reduce_to(g, dout[0], *cdad_graph_shape(g, node->in[2]), &din[2], err));
    return CDAD_OK;
}

static cdad_status run_depthwise(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *w = &call->in_shape[1];
    const cdad_unfold u =
        cdad_window_unfold(call->attr, &call->in_shape[0], &call->out_shape[0], w->dim[0], w->dim[1], 1);
    ctx->kernels->depthwise_conv2d(ctx, call->out[0], call->in[0], call->in[1], cdad_optional_data(call, 2),
                                   &u);
    return CDAD_OK;
}

const cdad_op cdad_op_depthwise_conv2d = {
    .name = "depthwise_conv2d",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .attrs = depthwise_attrs,
    .infer = infer_depthwise,
    .grad = grad_depthwise,
    .flops = cdad_flops_forward,
    .run = run_depthwise,
};

/* dy [N,P,Q,C], w [R,S,C] -> dx [N,height,width,C] */
static cdad_status infer_grad_input(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *w = &args->in[1];
    const int64_t H = args->attr[HEIGHT].i, W = args->attr[WIDTH].i;
    CDAD_TRY(cdad_want_ndim(dy, 4, "depthwise_conv2d_grad_input", "gradient", "[N,P,Q,C]", err));
    CDAD_TRY(cdad_want_ndim(w, 3, "depthwise_conv2d_grad_input", "weight", "[R,S,C]", err));
    CDAD_FAIL_IF(H < 1 || W < 1, err, CDAD_INVALID, "depthwise_conv2d_grad_input: an image of %lld x %lld",
                 (long long)H, (long long)W);
    int64_t P, Q;
    CDAD_TRY(cdad_window_positions("depthwise_conv2d_grad_input", args->attr, H, W, w->dim[0], w->dim[1], &P,
                                   &Q, err));
    CDAD_TRY(cdad_want_shape(dy, cdad_shape_make(4, dy->dim[0], P, Q, w->dim[2]),
                             "depthwise_conv2d_grad_input", "gradient", err));
    args->out[0] = cdad_shape_make(4, dy->dim[0], H, W, w->dim[2]);
    return CDAD_OK;
}

static cdad_status run_grad_input(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *w = &call->in_shape[1];
    const cdad_unfold u =
        cdad_window_unfold(call->attr, &call->out_shape[0], &call->in_shape[0], w->dim[0], w->dim[1], 1);
    ctx->kernels->depthwise_conv2d_grad(ctx, call->out[0], NULL, NULL, NULL, call->in[1], call->in[0], &u);
    return CDAD_OK;
}

const cdad_op cdad_op_depthwise_conv2d_grad_input = {
    .name = "depthwise_conv2d_grad_input",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = grad_input_attrs,
    .infer = infer_grad_input,
    .flops = cdad_flops_grad_input,
    .run = run_grad_input,
};

/* dy [N,P,Q,C], x [N,H,W,C] -> dw [rows,cols,C] */
static cdad_status infer_grad_weight(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *x = &args->in[1];
    const int64_t R = args->attr[ROWS].i, S = args->attr[COLS].i;
    CDAD_TRY(cdad_want_ndim(x, 4, "depthwise_conv2d_grad_weight", "input", "[N,H,W,C]", err));
    CDAD_FAIL_IF(R < 1 || S < 1, err, CDAD_INVALID, "depthwise_conv2d_grad_weight: a kernel of %lld x %lld",
                 (long long)R, (long long)S);
    int64_t P, Q;
    CDAD_TRY(cdad_window_positions("depthwise_conv2d_grad_weight", args->attr, x->dim[1], x->dim[2], R, S, &P,
                                   &Q, err));
    CDAD_TRY(cdad_want_shape(dy, cdad_shape_make(4, x->dim[0], P, Q, x->dim[3]),
                             "depthwise_conv2d_grad_weight", "gradient", err));
    args->out[0] = cdad_shape_make(3, R, S, x->dim[3]);
    return CDAD_OK;
}

static cdad_status run_grad_weight(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *dw = &call->out_shape[0];
    const cdad_unfold u =
        cdad_window_unfold(call->attr, &call->in_shape[1], &call->in_shape[0], dw->dim[0], dw->dim[1], 1);
    ctx->kernels->depthwise_conv2d_grad(ctx, NULL, call->out[0], NULL, call->in[1], NULL, call->in[0], &u);
    return CDAD_OK;
}

const cdad_op cdad_op_depthwise_conv2d_grad_weight = {
    .name = "depthwise_conv2d_grad_weight",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = grad_weight_attrs,
    .infer = infer_grad_weight,
    .flops = cdad_flops_grad_weight,
    .run = run_grad_weight,
};
