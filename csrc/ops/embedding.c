/* timestep_embedding: t [N] -> [N,dim], cos, then sin of t at dim/2 frequencies (Ho et al. 2020). */
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
