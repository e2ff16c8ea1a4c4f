/* attention: q [N,T,E], k and v [N,S,E] -> softmax(scale * q k^T + mask) v by heads, [N,T,E] (Vaswani et al.
 * 2017), and the log of each row's sum of exponentials, [N,heads,T]. With a mask, tokens form a grid and do
 * not see their neighbourhood of mask_h x mask_w (You et al. 2022, UniAD, section 3.2). When causal, a token sees itself
 * and those before it. */
#include <math.h>

#include "ops/ops.h"
#include "ops/support.h"

enum { HEADS, GRID_H, GRID_W, MASK_H, MASK_W, SCALE, CAUSAL, PRECISION };

static const cdad_attr_spec attention_attrs[] = {
    CDAD_INT("heads", 1),  CDAD_INT("grid_h", 0), CDAD_INT("grid_w", 0),
    CDAD_INT("mask_h", 0), CDAD_INT("mask_w", 0), CDAD_FLOAT("scale", 0.0), /* 0: 1/sqrt(E/heads) */
    CDAD_INT("causal", 0), CDAD_PRECISION_ATTR, CDAD_ATTRS_END};

static cdad_status check_mask(const cdad_attr *attr, int64_t T, int64_t S, const char *op, cdad_error *err) {
    const int64_t h = attr[MASK_H].i, w = attr[MASK_W].i, rows = attr[GRID_H].i, cols = attr[GRID_W].i;
    const int64_t causal = attr[CAUSAL].i;
    CDAD_FAIL_IF(causal != 0 && causal != 1, err, CDAD_INVALID, "%s: causal is %lld, 0 or 1 is wanted", op,
                 (long long)causal);
    CDAD_FAIL_IF(causal && T != S, err, CDAD_SHAPE, "%s: causal with %lld queries and %lld keys", op, (long long)T,
                 (long long)S);
    if (h == 0 && w == 0)
        return CDAD_OK;
    CDAD_FAIL_IF(h < 1 || w < 1 || h % 2 == 0 || w % 2 == 0, err, CDAD_INVALID,
                 "%s: a mask of %lld x %lld, odd sizes (or none) are wanted", op, (long long)h, (long long)w);
    CDAD_FAIL_IF(rows < 1 || cols < 1 || T != S || T % cols || T / cols != rows, err, CDAD_SHAPE,
                 "%s: %lld queries and %lld keys are no grid of %lld x %lld tokens", op, (long long)T,
                 (long long)S, (long long)rows, (long long)cols);
    return CDAD_OK;
}

/* The checks of both ops: q, k, v and the attributes. */
static cdad_status check(const cdad_shape *q, const cdad_shape *k, const cdad_shape *v, const cdad_attr *attr,
                         const char *op, cdad_error *err) {
    const int64_t heads = attr[HEADS].i;
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT], c[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(q->ndim != 3 || k->ndim != 3 || q->dim[0] != k->dim[0] || q->dim[2] != k->dim[2] ||
                     !cdad_shape_equal(k, v),
                 err, CDAD_SHAPE, "%s: q, k, v are %s, %s, %s; [N,T,E], [N,S,E], [N,S,E] are wanted", op,
                 cdad_shape_text(q, a), cdad_shape_text(k, b), cdad_shape_text(v, c));
    CDAD_FAIL_IF(heads < 1 || q->dim[2] % heads, err, CDAD_SHAPE,
                 "%s: %lld features cannot be cut into %lld heads", op, (long long)q->dim[2],
                 (long long)heads);
    CDAD_FAIL_IF(!(attr[SCALE].f >= 0.0), err, CDAD_INVALID, "%s: scale is %g, 0 or more is wanted", op,
                 attr[SCALE].f);
    return check_mask(attr, q->dim[1], k->dim[1], op, err);
}

static cdad_attention_dims dims_of(const cdad_shape *q, const cdad_shape *k, const cdad_attr *attr) {
    const int64_t E = q->dim[2], D = E / attr[HEADS].i;
    const double scale = attr[SCALE].f;
    return (cdad_attention_dims){.N = q->dim[0],
                                 .T = q->dim[1],
                                 .S = k->dim[1],
                                 .L = attr[HEADS].i,
                                 .D = D,
                                 .q_rs = E,
                                 .k_rs = E,
                                 .v_rs = E,
                                 .grid_h = attr[GRID_H].i,
                                 .grid_w = attr[GRID_W].i,
                                 .mask_h = attr[MASK_H].i,
                                 .mask_w = attr[MASK_W].i,
                                 .causal = (int)attr[CAUSAL].i,
                                 .precision = (cdad_precision)attr[PRECISION].i,
                                 .scale = (float)(scale > 0.0 ? scale : 1.0 / sqrt((double)D))};
}

static cdad_status infer_attention(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *q = &args->in[0];
    CDAD_TRY(check(q, &args->in[1], &args->in[2], args->attr, "attention", err));
    args->out[0] = *q;
    args->out[1] = cdad_shape_make(3, q->dim[0], args->attr[HEADS].i, q->dim[1]);
    return CDAD_OK;
}

static cdad_status grad_attention(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                                  const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    CDAD_TRY(cdad_want_first_output(node, dout, err));
    const cdad_value in[] = {dout[0], node->in[0], node->in[1], node->in[2], node->out[0], node->out[1]};
    return cdad_graph_add(g, &cdad_op_attention_grad, 6, in, node->attr, din, err);
}

static int64_t scratch_attention(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_attention_dims dims = dims_of(&args->in[0], &args->in[1], args->attr);
    return kernels->attention_scratch(&dims, threads);
}

static cdad_status run_attention(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_attention_dims dims = dims_of(&call->in_shape[0], &call->in_shape[1], call->attr);
    ctx->kernels->attention(ctx, call->out[0], call->out[1], call->in[0], call->in[1], call->in[2], &dims,
                            call->scratch);
    return CDAD_OK;
}

/* Scores and their product with v: two products, every query with every key, masked or not. */
static double products(const cdad_shape *q, const cdad_shape *k) {
    return 2.0 * (double)cdad_shape_count(q) * (double)k->dim[1];
}
static double flops_attention(const cdad_infer *args) { return 2.0 * products(&args->in[0], &args->in[1]); }

const cdad_op cdad_op_attention = {
    .name = "attention",
    .min_in = 3,
    .max_in = 3,
    .n_out = 2,
    .attrs = attention_attrs,
    .infer = infer_attention,
    .grad = grad_attention,
    .scratch = scratch_attention,
    .flops = flops_attention,
    .run = run_attention,
};

/* dout, q, k, v, out, lse -> dq, dk, dv */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *q = &args->in[1], *k = &args->in[2];
    CDAD_TRY(check(q, k, &args->in[3], args->attr, "attention_grad", err));
    CDAD_TRY(cdad_want_shape(&args->in[0], *q, "attention_grad", "gradient", err));
    CDAD_TRY(cdad_want_shape(&args->in[4], *q, "attention_grad", "out", err));
    CDAD_TRY(cdad_want_shape(&args->in[5], cdad_shape_make(3, q->dim[0], args->attr[HEADS].i, q->dim[1]),
                             "attention_grad", "lse", err));
    args->out[0] = *q;
    args->out[1] = args->out[2] = *k;
    return CDAD_OK;
}

static int64_t scratch_grad(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_attention_dims dims = dims_of(&args->in[1], &args->in[2], args->attr);
    return kernels->attention_scratch(&dims, threads);
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_attention_dims dims = dims_of(&call->in_shape[1], &call->in_shape[2], call->attr);
    ctx->kernels->attention_grad(ctx, call->out[0], call->out[1], call->out[2], call->in[1], call->in[2],
                                 call->in[3], call->in[4], call->in[5], call->in[0], &dims, call->scratch);
    return CDAD_OK;
}

/* The scores again, and the gradients of scores, q, k and v. */
static double flops_grad(const cdad_infer *args) { return 5.0 * products(&args->in[1], &args->in[2]); }

const cdad_op cdad_op_attention_grad = {
    .name = "attention_grad",
    .min_in = 6,
    .max_in = 6,
    .n_out = 3,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = attention_attrs,
    .infer = infer_grad,
    .scratch = scratch_grad,
    .flops = flops_grad,
    .run = run_grad,
};
