/* max_pool2d: x [N,H,W,C] -> y [N,P,Q,C], the largest value in a window of kernel x kernel pixels; places outside of the
 * image are left out. A gradient goes to the first of several largest values, row by row. */
#include "ops/ops.h"
#include "ops/window.h"

enum { KERNEL = CDAD_WINDOW_END };

static const cdad_attr_spec pool_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("kernel", 0), CDAD_ATTRS_END};

/* The shape of the result of pooling x. */
static cdad_status pooled(const cdad_shape *x, const cdad_attr *attr, const char *op, cdad_shape *y,
                          cdad_error *err) {
    const int64_t kernel = attr[KERNEL].i;
    int64_t P, Q;
    CDAD_TRY(cdad_want_ndim(x, 4, op, "input", "[N,H,W,C]", err));
    CDAD_FAIL_IF(kernel < 1, err, CDAD_INVALID, "%s: kernel is %lld, at least 1 is wanted", op, (long long)kernel);
    CDAD_TRY(cdad_window_positions(op, attr, x->dim[1], x->dim[2], kernel, kernel, &P, &Q, err));
    *y = cdad_shape_make(4, x->dim[0], P, Q, x->dim[3]);
    return CDAD_OK;
}

static cdad_unfold unfold_of(const cdad_attr *attr, const cdad_shape *x, const cdad_shape *y) {
    return cdad_window_unfold(attr, x, y, attr[KERNEL].i, attr[KERNEL].i, 1);
}

static cdad_status infer_pool(const cdad_infer *args, cdad_error *err) {
    return pooled(&args->in[0], args->attr, "max_pool2d", &args->out[0], err);
}

static cdad_status grad_pool(cdad_graph *g, const cdad_node *node, const cdad_value *dout, const unsigned char *want,
                             cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_graph_add(g, &cdad_op_max_pool2d_grad, 2, (cdad_value[]){dout[0], node->in[0]}, node->attr, din, err);
}

static cdad_status run_pool(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_unfold u = unfold_of(call->attr, &call->in_shape[0], &call->out_shape[0]);
    ctx->kernels->max_pool2d(ctx, call->out[0], call->in[0], &u);
    return CDAD_OK;
}

const cdad_op cdad_op_max_pool2d = {
    .name = "max_pool2d",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attrs = pool_attrs,
    .infer = infer_pool,
    .grad = grad_pool,
    .run = run_pool,
};

/* dy [N,P,Q,C], x [N,H,W,C] -> dx [N,H,W,C] */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    cdad_shape y;
    CDAD_TRY(pooled(&args->in[1], args->attr, "max_pool2d_grad", &y, err));
    CDAD_TRY(cdad_want_shape(&args->in[0], y, "max_pool2d_grad", "gradient", err));
    args->out[0] = args->in[1];
    return CDAD_OK;
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_unfold u = unfold_of(call->attr, &call->in_shape[1], &call->in_shape[0]);
    ctx->kernels->max_pool2d_grad(ctx, call->out[0], call->in[1], call->in[0], &u);
    return CDAD_OK;
}

const cdad_op cdad_op_max_pool2d_grad = {
    .name = "max_pool2d_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = pool_attrs,
    .infer = infer_grad,
    .run = run_grad,
};
