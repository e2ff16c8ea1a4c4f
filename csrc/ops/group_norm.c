/* group_norm: x [N,...,C] normalised over each sample's groups of channels (Wu & He 2018), then gamma [C] and
 * beta [C], then SiLU if asked. Outputs y, mean [N,groups] and 1/standard deviation [N,groups]. */
#include "ops/ops.h"
#include "ops/support.h"

enum { GROUPS, SILU, EPS }; /* the gradient has no eps */

static const cdad_attr_spec norm_attrs[] = {CDAD_INT("groups", 32), CDAD_INT("silu", 0),
                                            CDAD_FLOAT("eps", 1e-5), CDAD_ATTRS_END};
static const cdad_attr_spec grad_attrs[] = {CDAD_INT("groups", 32), CDAD_INT("silu", 0), CDAD_ATTRS_END};

/* The checks of both ops; `what` begins messages. */
static cdad_status check(const cdad_shape *x, const cdad_shape *gamma, const cdad_shape *beta,
                         const cdad_attr *attr, const char *what, cdad_error *err) {
    const int64_t groups = attr[GROUPS].i, silu = attr[SILU].i;
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(x->ndim < 2, err, CDAD_SHAPE, "%s: input is %s, [N,...,C] is wanted", what,
                 cdad_shape_text(x, text));
    const int64_t C = cdad_shape_last(x);
    CDAD_FAIL_IF(groups < 1 || C % groups, err, CDAD_SHAPE,
                 "%s: %lld channels cannot be cut into %lld groups", what, (long long)C, (long long)groups);
    CDAD_FAIL_IF(silu != 0 && silu != 1, err, CDAD_INVALID, "%s: silu is %lld, 0 or 1 is wanted", what,
                 (long long)silu);
    CDAD_FAIL_IF(cdad_shape_count(gamma) != C || gamma->ndim != 1, err, CDAD_SHAPE,
                 "%s: gamma is %s, [%lld] is wanted", what, cdad_shape_text(gamma, text), (long long)C);
    CDAD_FAIL_IF(!cdad_shape_equal(beta, gamma), err, CDAD_SHAPE, "%s: beta is %s, [%lld] is wanted", what,
                 cdad_shape_text(beta, text), (long long)C);
    return CDAD_OK;
}

static cdad_status infer_norm(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0];
    CDAD_TRY(check(x, &args->in[1], &args->in[2], args->attr, "group_norm", err));
    CDAD_FAIL_IF(!((float)args->attr[EPS].f > 0.0f), err, CDAD_INVALID,
                 "group_norm: eps is %g, more than 0 is wanted in float32", args->attr[EPS].f);
    args->out[0] = *x;
    args->out[1] = args->out[2] = cdad_shape_make(2, x->dim[0], args->attr[GROUPS].i);
    return CDAD_OK;
}

static cdad_status grad_norm(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                             const unsigned char *want, cdad_value *din, cdad_error *err) {
    (void)want;
    CDAD_TRY(cdad_want_first_output(node, dout, err));
    const cdad_value in[] = {dout[0], node->in[0], node->out[1], node->out[2], node->in[1], node->in[2]};
    return cdad_graph_add(g, &cdad_op_group_norm_grad, 6, in, node->attr, din, err);
}

static int64_t scratch_of(const cdad_shape *x, const cdad_attr *attr, const struct cdad_kernels *kernels) {
    return kernels->group_norm_scratch(x->dim[0], cdad_shape_span(x, 1, x->ndim - 1), cdad_shape_last(x), attr[GROUPS].i);
}

static int64_t scratch_norm(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    (void)threads;
    return scratch_of(&args->in[0], args->attr, kernels);
}

static cdad_status run_norm(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[0];
    ctx->kernels->group_norm(ctx, call->out[0], call->out[1], call->out[2], call->in[0], call->in[1],
                             call->in[2], x->dim[0], cdad_shape_span(x, 1, x->ndim - 1), cdad_shape_last(x),
                             call->attr[GROUPS].i, (float)call->attr[EPS].f, (int)call->attr[SILU].i, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_group_norm = {
    .name = "group_norm",
    .min_in = 3,
    .max_in = 3,
    .n_out = 3,
    .attrs = norm_attrs,
    .infer = infer_norm,
    .grad = grad_norm,
    .scratch = scratch_norm,
    .run = run_norm,
};

/* dy, x, mean, rstd, gamma, beta -> dx, dgamma, dbeta */
static cdad_status infer_grad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[1], *gamma = &args->in[4];
    CDAD_TRY(check(x, gamma, &args->in[5], args->attr, "group_norm_grad", err));
    CDAD_TRY(cdad_want_shape(&args->in[0], *x, "group_norm_grad", "gradient", err));
    const cdad_shape statistics = cdad_shape_make(2, x->dim[0], args->attr[GROUPS].i);
    CDAD_TRY(cdad_want_shape(&args->in[2], statistics, "group_norm_grad", "mean", err));
    CDAD_TRY(cdad_want_shape(&args->in[3], statistics, "group_norm_grad", "rstd", err));
    args->out[0] = *x;
    args->out[1] = args->out[2] = *gamma;
    return CDAD_OK;
}

static int64_t scratch_grad(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    (void)threads;
    return scratch_of(&args->in[1], args->attr, kernels);
}

static cdad_status run_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *x = &call->in_shape[1];
    ctx->kernels->group_norm_grad(ctx, call->out[0], call->out[1], call->out[2], call->in[1], call->in[2],
                                  call->in[3], call->in[4], call->in[5], call->in[0], x->dim[0],
                                  cdad_shape_span(x, 1, x->ndim - 1), cdad_shape_last(x),
                                  call->attr[GROUPS].i, (int)call->attr[SILU].i, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_group_norm_grad = {
    .name = "group_norm_grad",
    .min_in = 6,
    .max_in = 6,
    .n_out = 3,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_IN_PLACE,
    .attrs = grad_attrs,
    .infer = infer_grad,
    .scratch = scratch_grad,
    .run = run_grad,
};
