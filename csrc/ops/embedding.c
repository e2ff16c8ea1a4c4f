/* Embeddings: of timesteps by sines, of tokens by a table.
 *
 * timestep_embedding: t [N] -> [N,dim], cos, then sin of t at dim/2 frequencies (Ho et al. 2020). */
#include "ops/ops.h"
#include "ops/support.h"

enum { DIM };

static const cdad_attr_spec embedding_attrs[] = {CDAD_INT("dim", 0), CDAD_ATTRS_END};

static cdad_status infer_embedding(const cdad_infer *args, cdad_error *err) {
    const int64_t dim = args->attr[DIM].i;
    CDAD_TRY(cdad_want_ndim(&args->in[0], 1, "timestep_embedding", "t", "[N]", err));
    CDAD_FAIL_IF(dim < 2 || dim % 2, err, CDAD_INVALID,
                 "timestep_embedding: dim is %lld, an even number is wanted", (long long)dim);
    args->out[0] = cdad_shape_make(2, args->in[0].dim[0], dim);
    return CDAD_OK;
}

static cdad_status run_embedding(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    ctx->kernels->timestep_embedding(ctx, call->out[0], call->in[0], call->in_shape[0].dim[0],
                                     call->attr[DIM].i);
    return CDAD_OK;
}

const cdad_op cdad_op_timestep_embedding = {
    .name = "timestep_embedding",
    .min_in = 1,
    .max_in = 1,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = embedding_attrs,
    .infer = infer_embedding,
    .run = run_embedding,
};

/* token_embedding: ids [N,L], whole numbers, and table [V,C] -> [N,L,C]. The ids have no gradient. */
static cdad_status infer_tokens(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *ids = &args->in[0], *table = &args->in[1];
    CDAD_TRY(cdad_want_ndim(ids, 2, "token_embedding", "ids", "[N,L]", err));
    CDAD_TRY(cdad_want_ndim(table, 2, "token_embedding", "table", "[V,C]", err));
    args->out[0] = cdad_shape_make(3, ids->dim[0], ids->dim[1], table->dim[1]);
    return CDAD_OK;
}

static cdad_status grad_tokens(cdad_graph *g, const cdad_node *node, const cdad_value *dout, const unsigned char *want,
                               cdad_value *din, cdad_error *err) {
    const double rows = (double)cdad_graph_shape(g, node->in[1])->dim[0];
    if (!want[1])
        return CDAD_OK;
    return cdad_node_add(g, &cdad_op_token_embedding_grad, 2, (cdad_value[]){dout[0], node->in[0]}, &din[1], err, "rows",
                         rows, NULL);
}

static cdad_status check_ids(const char *op, int valid, int64_t rows, cdad_error *err) {
    CDAD_FAIL_IF(!valid, err, CDAD_INVALID, "%s: an id is not one of 0 .. %lld", op, (long long)rows - 1);
    return CDAD_OK;
}

static cdad_status run_tokens(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    const cdad_shape *table = &call->in_shape[1];
    const int valid = ctx->kernels->gather_rows(ctx, call->out[0], call->in[1], call->in[0],
                                                cdad_shape_count(&call->in_shape[0]), table->dim[0], table->dim[1]);
    return check_ids("token_embedding", valid, table->dim[0], err);
}

const cdad_op cdad_op_token_embedding = {
    .name = "token_embedding",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_WAITS,
    .infer = infer_tokens,
    .grad = grad_tokens,
    .run = run_tokens,
};

static const cdad_attr_spec tokens_grad_attrs[] = {CDAD_INT("rows", 0), CDAD_ATTRS_END};

/* dy [N,L,C], ids [N,L] -> dtable [rows,C] */
static cdad_status infer_tokens_grad(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0];
    const int64_t rows = args->attr[0].i;
    CDAD_TRY(cdad_want_ndim(dy, 3, "token_embedding_grad", "gradient", "[N,L,C]", err));
    CDAD_TRY(cdad_want_shape(&args->in[1], cdad_shape_make(2, dy->dim[0], dy->dim[1]), "token_embedding_grad", "ids",
                             err));
    CDAD_FAIL_IF(rows < 1, err, CDAD_INVALID, "token_embedding_grad: a table of %lld rows", (long long)rows);
    args->out[0] = cdad_shape_make(2, rows, dy->dim[2]);
    return CDAD_OK;
}

static cdad_status run_tokens_grad(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    const cdad_shape *table = &call->out_shape[0];
    const int valid = ctx->kernels->scatter_rows(ctx, call->out[0], call->in[0], call->in[1],
                                                 cdad_shape_count(&call->in_shape[1]), table->dim[0], table->dim[1]);
    return check_ids("token_embedding_grad", valid, table->dim[0], err);
}

const cdad_op cdad_op_token_embedding_grad = {
    .name = "token_embedding_grad",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_WAITS,
    .attrs = tokens_grad_attrs,
    .infer = infer_tokens_grad,
    .run = run_tokens_grad,
};
