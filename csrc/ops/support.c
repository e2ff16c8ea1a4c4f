/* What the op families share. */
#include "ops/support.h"

#include "ops/ops.h"

enum { NDIM, D0 };

const cdad_attr_spec cdad_shape_attrs[] = {CDAD_INT("ndim", 0), CDAD_INT("d0", 0), CDAD_INT("d1", 0),
                                           CDAD_INT("d2", 0),   CDAD_INT("d3", 0), CDAD_INT("d4", 0),
                                           CDAD_ATTRS_END};

cdad_status cdad_want_ndim(const cdad_shape *s, int ndim, const char *op, const char *what,
                           const char *layout, cdad_error *err) {
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(s->ndim != ndim, err, CDAD_SHAPE, "%s: %s is %s, %s is wanted", op, what,
                 cdad_shape_text(s, text), layout);
    return CDAD_OK;
}

cdad_status cdad_want_shape(const cdad_shape *s, cdad_shape want, const char *op, const char *what,
                            cdad_error *err) {
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(!cdad_shape_equal(s, &want), err, CDAD_SHAPE, "%s: %s is %s, %s is wanted", op, what,
                 cdad_shape_text(s, a), cdad_shape_text(&want, b));
    return CDAD_OK;
}

cdad_status cdad_infer_unary(const cdad_infer *args, cdad_error *err) {
    (void)err;
    args->out[0] = args->in[0];
    return CDAD_OK;
}

cdad_status cdad_want_first_output(const cdad_node *node, const cdad_value *dout, cdad_error *err) {
    for (int j = 1; j < node->op->n_out; j++)
        CDAD_FAIL_IF(dout[j] != CDAD_NONE, err, CDAD_INVALID,
                     "output %d has no gradient; only output 0 has one", j);
    return CDAD_OK;
}

cdad_status cdad_shape_from_attrs(const cdad_attr *attr, const char *op, cdad_shape *out, cdad_error *err) {
    const int64_t ndim = attr[NDIM].i;
    CDAD_FAIL_IF(ndim < 0 || ndim > CDAD_MAX_DIMS, err, CDAD_INVALID,
                 "%s: ndim is %lld, 0 to %d are possible", op, (long long)ndim, CDAD_MAX_DIMS);
    *out = (cdad_shape){.ndim = (int)ndim};
    for (int i = 0; i < out->ndim; i++)
        out->dim[i] = attr[D0 + i].i;
    return CDAD_OK;
}

cdad_status cdad_node_add_shaped(cdad_graph *g, const cdad_op *op, cdad_value in, cdad_shape shape,
                                 cdad_value *out, cdad_error *err) {
    cdad_attr attr[CDAD_MAX_ATTRS] = {[NDIM] = {.i = shape.ndim}};
    for (int i = 0; i < shape.ndim; i++)
        attr[D0 + i].i = shape.dim[i];
    return cdad_graph_add(g, op, 1, &in, attr, out, err);
}

cdad_status cdad_node_reduce_to(cdad_graph *g, cdad_value dy, cdad_shape target, cdad_value *out,
                                cdad_error *err) {
    if (!cdad_shape_equal(cdad_graph_shape(g, dy), &target))
        return cdad_node_add_shaped(g, &cdad_op_reduce_to, dy, target, out, err);
    *out = dy;
    return CDAD_OK;
}

/* Dimension i from the last one on; 1 past the first. */
static int64_t dim_from_end(const cdad_shape *s, int i) { return i < s->ndim ? s->dim[s->ndim - 1 - i] : 1; }

int cdad_broadcast_fits(const cdad_shape *part, const cdad_shape *full) {
    int fits = part->ndim <= full->ndim;
    for (int i = 0; i < part->ndim && fits; i++)
        fits = dim_from_end(part, i) == 1 || dim_from_end(part, i) == dim_from_end(full, i);
    return fits;
}

cdad_broadcast cdad_broadcast_of(const cdad_shape *part, const cdad_shape *full) {
    cdad_broadcast bc;
    int64_t stride = 1;
    for (int i = 0; i < CDAD_MAX_DIMS; i++) {
        const int64_t n = dim_from_end(full, i), m = dim_from_end(part, i);
        bc.dim[CDAD_MAX_DIMS - 1 - i] = n;
        bc.stride[CDAD_MAX_DIMS - 1 - i] = m == n ? stride : 0;
        stride *= m;
    }
    return bc;
}

static double meet(const cdad_shape *rows, const cdad_shape *weight) {
    return 2.0 * (double)cdad_shape_rows(rows) * (double)cdad_shape_count(weight);
}

double cdad_flops_forward(const cdad_infer *args) { return meet(&args->out[0], &args->in[1]); }
double cdad_flops_grad_input(const cdad_infer *args) { return meet(&args->in[0], &args->in[1]); }
double cdad_flops_grad_weight(const cdad_infer *args) { return meet(&args->in[0], &args->out[0]); }
