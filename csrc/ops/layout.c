/* The same elements in another shape or order: reshape, stop_gradient, depth_to_space, space_to_depth. */
#include "ops/ops.h"

#include "ops/support.h"

/* Copies only where the planner could not let the output share the input's memory. */
static cdad_status run_view(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_runs all = cdad_columns(1, cdad_shape_count(&call->out_shape[0]), 0, 0);
    if (call->out[0] != call->in[0])
        ctx->kernels->copy_runs(ctx, call->out[0], call->in[0], &all);
    return CDAD_OK;
}

/* One dimension may be -1: what the others leave. */
static cdad_status infer_reshape(const cdad_infer *args, cdad_error *err) {
    cdad_shape y;
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_TRY(cdad_shape_from_attrs(args->attr, "reshape", &y, err));
    int64_t left = cdad_shape_count(&args->in[0]);
    int open = -1, fits = 1;
    for (int i = 0; i < y.ndim && fits; i++) {
        if (y.dim[i] == -1 && open < 0)
            open = i;
        else if ((fits = y.dim[i] > 0 && left % y.dim[i] == 0))
            left /= y.dim[i];
    }
    CDAD_FAIL_IF(!fits || (open < 0 && left != 1), err, CDAD_SHAPE, "reshape: %s cannot become %s",
                 cdad_shape_text(&args->in[0], a), cdad_shape_text(&y, b));
    if (open >= 0)
        y.dim[open] = left;
    args->out[0] = y;
    return CDAD_OK;
}

static cdad_status grad_reshape(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                                const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_node_add_shaped(g, &cdad_op_reshape, dout[0], *cdad_graph_shape(g, node->in[0]), &din[0],
                                err);
}

const cdad_op cdad_op_reshape = {
    .name = "reshape",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_VIEW,
    .attrs = cdad_shape_attrs,
    .infer = infer_reshape,
    .grad = grad_reshape,
    .run = run_view,
};

const cdad_op cdad_op_stop_gradient = {
    .name = "stop_gradient",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_VIEW | CDAD_OP_STOP,
    .infer = cdad_infer_unary,
    .run = run_view,
};

enum { BLOCK };

static const cdad_attr_spec block_attrs[] = {CDAD_INT("block", 2), CDAD_ATTRS_END};

/* x [N,H,W,block*block*C] -> y [N,H*block,W*block,C]: channel (u,v,c) of a pixel becomes c of pixel (u,v). */
static cdad_status infer_to_space(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t block = args->attr[BLOCK].i;
    CDAD_TRY(cdad_want_ndim(x, 4, "depth_to_space", "input", "[N,H,W,C]", err));
    CDAD_FAIL_IF(block < 1 || x->dim[3] % block || x->dim[3] / block % block, err, CDAD_SHAPE,
                 "depth_to_space: %lld channels are no multiple of block %lld squared", (long long)x->dim[3],
                 (long long)block);
    args->out[0] =
        cdad_shape_make(4, x->dim[0], x->dim[1] * block, x->dim[2] * block, x->dim[3] / (block * block));
    return CDAD_OK;
}

static cdad_status infer_to_depth(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t block = args->attr[BLOCK].i;
    CDAD_TRY(cdad_want_ndim(x, 4, "space_to_depth", "input", "[N,H,W,C]", err));
    CDAD_FAIL_IF(block < 1 || x->dim[1] % block || x->dim[2] % block, err, CDAD_SHAPE,
                 "space_to_depth: an image of %lld x %lld is no multiple of block %lld", (long long)x->dim[1],
                 (long long)x->dim[2], (long long)block);
    args->out[0] =
        cdad_shape_make(4, x->dim[0], x->dim[1] / block, x->dim[2] / block, x->dim[3] * block * block);
    return CDAD_OK;
}

/* Row u of each block: block*C floats a pixel of `depth` [N,H,W,block*block*C], one run in the image. */
static void move_blocks(const cdad_context *ctx, float *out, const float *in, const cdad_shape *depth,
                        int64_t block, int to_space) {
    const int64_t rows = depth->dim[0] * depth->dim[1], W = depth->dim[2], width = depth->dim[3];
    const int64_t run = width / block;
    const cdad_runs to_flat = {{rows, block, W}, {block * W * run, W * run, run}, {W * width, run, width}, run};
    const cdad_runs to_deep = {{rows, block, W}, {W * width, run, width}, {block * W * run, W * run, run}, run};
    ctx->kernels->copy_runs(ctx, out, in, to_space ? &to_flat : &to_deep);
}

static cdad_status run_to_space(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    move_blocks(ctx, call->out[0], call->in[0], &call->in_shape[0], call->attr[BLOCK].i, 1);
    return CDAD_OK;
}

static cdad_status run_to_depth(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    move_blocks(ctx, call->out[0], call->in[0], &call->out_shape[0], call->attr[BLOCK].i, 0);
    return CDAD_OK;
}

static cdad_status grad_to_space(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                                 const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_graph_add(g, &cdad_op_space_to_depth, 1, &dout[0], node->attr, &din[0], err);
}

const cdad_op cdad_op_depth_to_space = {
    .name = "depth_to_space",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attrs = block_attrs,
    .infer = infer_to_space,
    .grad = grad_to_space,
    .run = run_to_space,
};

const cdad_op cdad_op_space_to_depth = {
    .name = "space_to_depth",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = block_attrs,
    .infer = infer_to_depth,
    .run = run_to_depth,
};
