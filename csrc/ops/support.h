/* What the op families share: attribute lists, checks with one wording, matrix operands, broadcasting. */
#ifndef CDAD_OPS_SUPPORT_H
#define CDAD_OPS_SUPPORT_H

#include <stddef.h>

#include "graph/graph.h"
#include "kernels/kernels.h"

/* clang-format off */
#define CDAD_INT(name, fallback) {name, CDAD_ATTR_INT, fallback}
#define CDAD_FLOAT(name, fallback) {name, CDAD_ATTR_FLOAT, fallback}
#define CDAD_ATTRS_END {NULL, CDAD_ATTR_INT, 0.0}
/* clang-format on */

/* An optional input: its shape and its data, or NULL when it is absent. */
static inline const cdad_shape *cdad_optional_shape(const cdad_infer *args, int i) {
    return i < args->n_in && args->in[i].ndim >= 0 ? &args->in[i] : NULL;
}
static inline const float *cdad_optional_data(const cdad_call *call, int i) {
    return i < call->n_in ? call->in[i] : NULL;
}
static inline cdad_value cdad_optional_value(const cdad_node *node, int i) {
    return i < node->n_in ? node->in[i] : CDAD_NONE;
}

/* Checks of an op's input `what` ("weight"); `layout` says what is wanted ("[O,R,S,C]"). */
CDAD_MUST_USE cdad_status cdad_want_ndim(const cdad_shape *s, int ndim, const char *op, const char *what,
                                         const char *layout, cdad_error *err);
CDAD_MUST_USE cdad_status cdad_want_shape(const cdad_shape *s, cdad_shape want, const char *op,
                                          const char *what, cdad_error *err);

/* The shape rule of elementwise ops with one input. */
CDAD_MUST_USE cdad_status cdad_infer_unary(const cdad_infer *args, cdad_error *err);

/* For gradient rules of ops whose further outputs are statistics: an error when one of them has one. */
CDAD_MUST_USE cdad_status cdad_want_first_output(const cdad_node *node, const cdad_value *dout,
                                                 cdad_error *err);

/* A shape as attributes: the whole list of ops that are told their output's shape. */
extern const cdad_attr_spec cdad_shape_attrs[];
CDAD_MUST_USE cdad_status cdad_shape_from_attrs(const cdad_attr *attr, const char *op, cdad_shape *out,
                                                cdad_error *err);
/* Adds a node of such an op. */
CDAD_MUST_USE cdad_status cdad_node_add_shaped(cdad_graph *g, const cdad_op *op, cdad_value in,
                                               cdad_shape shape, cdad_value *out, cdad_error *err);

/* The sum of the gradient `dy` over the dimensions in which a value of shape `target` was repeated. */
CDAD_MUST_USE cdad_status cdad_node_reduce_to(cdad_graph *g, cdad_value dy, cdad_shape target,
                                              cdad_value *out, cdad_error *err);

/* Whether `part` can be repeated to fill `full` by NumPy's rules, and how. */
int cdad_broadcast_fits(const cdad_shape *part, const cdad_shape *full);
cdad_broadcast cdad_broadcast_of(const cdad_shape *part, const cdad_shape *full);

/* The product of all dimensions but the last; the last. */
static inline int64_t cdad_shape_rows(const cdad_shape *s) { return cdad_shape_span(s, 0, s->ndim - 1); }
static inline int64_t cdad_shape_last(const cdad_shape *s) { return s->dim[s->ndim - 1]; }

/* Operations of a linear map: every row of its larger side meets every element of its weight. Of y = f(x, w), of
 * dx = f(dy, w), and of dw = f(dy, x). */
double cdad_flops_forward(const cdad_infer *args);
double cdad_flops_grad_input(const cdad_infer *args);
double cdad_flops_grad_weight(const cdad_infer *args);

/* The attribute of products: a cdad_precision. */
#define CDAD_PRECISION_ATTR CDAD_INT("precision", 0)

/* What a call adds to its products; `bias` may be NULL. */
static inline cdad_epilogue cdad_call_epilogue(const cdad_call *call, const float *bias, int64_t precision) {
    return (cdad_epilogue){.bias = bias, .sum = call->sum, .act = (cdad_activation)call->act,
                           .precision = (cdad_precision)precision};
}

#endif
