/* Moving blocks of columns (the last dimension): concat, slice, and pad_columns, the transpose of slice. */
#include "ops/ops.h"
#include "ops/support.h"

enum { BEGIN, END };
enum { PAD_BEGIN, PAD_WIDTH };

static const cdad_attr_spec slice_attrs[] = {CDAD_INT("begin", 0), CDAD_INT("end", 0), CDAD_ATTRS_END};
static const cdad_attr_spec pad_attrs[] = {CDAD_INT("begin", 0), CDAD_INT("width", 0), CDAD_ATTRS_END};

/* x_i [...,C_i] -> y [...,sum C_i] */
static cdad_status infer_concat(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *first = &args->in[0];
    cdad_shape y = *first;
    CDAD_FAIL_IF(first->ndim < 1, err, CDAD_SHAPE, "concat: input 0 has no dimension");
    for (int i = 1; i < args->n_in; i++) {
        cdad_shape x = args->in[i];
        char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
        CDAD_FAIL_IF(x.ndim < 0, err, CDAD_INVALID, "concat: input %d is missing", i);
        if (x.ndim == first->ndim)
            x.dim[x.ndim - 1] = cdad_shape_last(first);
        CDAD_FAIL_IF(!cdad_shape_equal(&x, first), err, CDAD_SHAPE,
                     "concat: inputs 0 and %d are %s and %s; they may differ in the last dimension only", i,
                     cdad_shape_text(first, a), cdad_shape_text(&args->in[i], b));
        y.dim[y.ndim - 1] += cdad_shape_last(&args->in[i]);
    }
    args->out[0] = y;
    return CDAD_OK;
}

static cdad_status grad_concat(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                               const unsigned char *want, cdad_value *din, cdad_error *err) {
    int64_t end = 0;
    for (int i = 0; i < node->n_in; i++) {
        const int64_t begin = end;
        end += cdad_shape_last(cdad_graph_shape(g, node->in[i]));
        if (want[i])
            CDAD_TRY(cdad_node_add(g, &cdad_op_slice, 1, &dout[0], &din[i], err, "begin", (double)begin,
                                   "end", (double)end, NULL));
    }
    return CDAD_OK;
}

static cdad_status run_concat(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const int64_t rows = cdad_shape_rows(&call->out_shape[0]), width = cdad_shape_last(&call->out_shape[0]);
    float *to = call->out[0];
    for (int i = 0; i < call->n_in; i++) {
        const int64_t w = cdad_shape_last(&call->in_shape[i]);
        const cdad_runs runs = cdad_columns(rows, w, width, w);
        ctx->kernels->copy_runs(ctx, to, call->in[i], &runs);
        to += w;
    }
    return CDAD_OK;
}

const cdad_op cdad_op_concat = {
    .name = "concat",
    .min_in = 2,
    .max_in = CDAD_MAX_INPUTS,
    .n_out = 1,
    .infer = infer_concat,
    .grad = grad_concat,
    .run = run_concat,
};

/* x [...,C] -> y [...,end-begin] */
static cdad_status infer_slice(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t begin = args->attr[BEGIN].i, end = args->attr[END].i;
    CDAD_FAIL_IF(x->ndim < 1, err, CDAD_SHAPE, "slice: input has no dimension");
    CDAD_FAIL_IF(begin < 0 || begin >= end || end > cdad_shape_last(x), err, CDAD_SHAPE,
                 "slice: columns %lld to %lld of %lld", (long long)begin, (long long)end,
                 (long long)cdad_shape_last(x));
    args->out[0] = *x;
    args->out[0].dim[x->ndim - 1] = end - begin;
    return CDAD_OK;
}

static cdad_status grad_slice(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                              const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    return cdad_node_add(g, &cdad_op_pad_columns, 1, &dout[0], &din[0], err, "begin",
                         (double)node->attr[BEGIN].i, "width",
                         (double)cdad_shape_last(cdad_graph_shape(g, node->in[0])), NULL);
}

static cdad_status run_slice(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const int64_t rows = cdad_shape_rows(&call->out_shape[0]), w = cdad_shape_last(&call->out_shape[0]);
    const cdad_runs runs = cdad_columns(rows, w, w, cdad_shape_last(&call->in_shape[0]));
    ctx->kernels->copy_runs(ctx, call->out[0], call->in[0] + call->attr[BEGIN].i, &runs);
    return CDAD_OK;
}

const cdad_op cdad_op_slice = {
    .name = "slice",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .attrs = slice_attrs,
    .infer = infer_slice,
    .grad = grad_slice,
    .run = run_slice,
};

/* x [...,C] -> y [...,width], zero but for columns begin .. begin+C-1 */
static cdad_status infer_pad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    const int64_t begin = args->attr[PAD_BEGIN].i, width = args->attr[PAD_WIDTH].i;
    CDAD_FAIL_IF(x->ndim < 1, err, CDAD_SHAPE, "pad_columns: input has no dimension");
    CDAD_FAIL_IF(begin < 0 || begin > width - cdad_shape_last(x), err, CDAD_SHAPE,
                 "pad_columns: %lld columns from number %lld on do not fit into %lld",
                 (long long)cdad_shape_last(x), (long long)begin, (long long)width);
    args->out[0] = *x;
    args->out[0].dim[x->ndim - 1] = width;
    return CDAD_OK;
}

static cdad_status run_pad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    const cdad_shape *x = &call->in_shape[0], *y = &call->out_shape[0];
    CDAD_TRY(cdad_device_zero(ctx->device, call->out[0], cdad_shape_count(y) * (int64_t)sizeof(float), err));
    const cdad_runs runs = cdad_columns(cdad_shape_rows(x), cdad_shape_last(x), cdad_shape_last(y), cdad_shape_last(x));
    ctx->kernels->copy_runs(ctx, call->out[0] + call->attr[PAD_BEGIN].i, call->in[0], &runs);
    return CDAD_OK;
}

const cdad_op cdad_op_pad_columns = {
    .name = "pad_columns",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = pad_attrs,
    .infer = infer_pad,
    .run = run_pad,
};
