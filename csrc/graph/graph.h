/* The static graph: values and the nodes that compute them, in an order in which they can run.
 *
 * A model is built once for a batch shape; cdad_graph_backward adds the nodes of the gradients;
 * cdad_program_new (graph/program.h) gives every value its place in memory and runs it. */
#ifndef CDAD_GRAPH_GRAPH_H
#define CDAD_GRAPH_GRAPH_H

#include "graph/op.h"

typedef enum {
    CDAD_VALUE_INPUT, /* memory bound by the caller for each run */
    CDAD_VALUE_PARAM, /* memory of a parameter store */
    CDAD_VALUE_CONST, /* data owned by the graph */
    CDAD_VALUE_NODE   /* output of a node */
} cdad_value_kind;

typedef struct cdad_value_info {
    cdad_value_kind kind;
    cdad_shape shape;
    int node, output; /* CDAD_VALUE_NODE */
    char *name;       /* INPUT and PARAM */
    float *data;      /* CONST */
} cdad_value_info;

typedef struct cdad_node {
    const cdad_op *op;
    int n_in;
    cdad_value in[CDAD_MAX_INPUTS];
    cdad_value out[CDAD_MAX_OUTPUTS];
    cdad_attr attr[CDAD_MAX_ATTRS];
    int block; /* its number; 0: in none */
} cdad_node;

typedef struct cdad_graph {
    cdad_value_info *values;
    int64_t n_values, values_capacity;
    cdad_node *nodes;
    int64_t n_nodes, nodes_capacity;
    int block, n_blocks; /* block: of nodes that are added now */
} cdad_graph;

CDAD_MUST_USE cdad_status cdad_graph_new(cdad_graph **out, cdad_error *err);
void cdad_graph_free(cdad_graph *g); /* NULL is allowed */

CDAD_MUST_USE cdad_status cdad_graph_input(cdad_graph *g, const char *name, cdad_shape shape, cdad_value *out,
                                           cdad_error *err);
/* The PARAM value of that name, made at its first use; another shape at a later use is an error. */
CDAD_MUST_USE cdad_status cdad_graph_param(cdad_graph *g, const char *name, cdad_shape shape, cdad_value *out,
                                           cdad_error *err);
CDAD_MUST_USE cdad_status cdad_graph_const(cdad_graph *g, cdad_shape shape, const float *data, cdad_value *out,
                                           cdad_error *err);

/* Adds a node; `attrs` holds one value for each of op->attrs (NULL: all fallbacks). out [op->n_out]. */
CDAD_MUST_USE cdad_status cdad_graph_add(cdad_graph *g, const cdad_op *op, int n_in, const cdad_value *in,
                                         const cdad_attr *attrs, cdad_value *out, cdad_error *err);

/* The same for ops/ and nn/: `op` is an op's object, inputs are listed, attributes are given by
 * (name, value) pairs ended by NULL; values are passed as double. Returns output 0.
 *   CDAD_TRY(cdad_node_add(g, &cdad_op_conv2d, 3, (cdad_value[]){x, w, b}, &y, err, "stride", 2.0, NULL)); */
CDAD_MUST_USE cdad_status cdad_node_add(cdad_graph *g, const cdad_op *op, int n_in, const cdad_value *in,
                                        cdad_value *out, cdad_error *err, ...);

/* Nodes that are added between the two are a block: what the backward pass can run again as a whole, instead of keeping what
 * lies within. Blocks do not nest. */
static inline void cdad_graph_block_open(cdad_graph *g) { g->block = ++g->n_blocks; }
static inline void cdad_graph_block_close(cdad_graph *g) { g->block = 0; }

static inline const cdad_shape *cdad_graph_shape(const cdad_graph *g, cdad_value v) { return &g->values[v].shape; }

/* Sets the attributes of `op` by name in `attrs` [CDAD_MAX_ATTRS], unset ones to their fallbacks. */
CDAD_MUST_USE cdad_status cdad_attr_set(const cdad_op *op, cdad_attr *attrs, const char *name, double value,
                                        cdad_error *err);
void cdad_attr_defaults(const cdad_op *op, cdad_attr *attrs);

/* graph/backward.c: reverse-mode differentiation as a rewrite. Adds the nodes that compute
 * grads[i] = d loss / d wanted[i] (CDAD_NONE where loss does not depend on it); `loss` has one element. With `recompute`,
 * of a block only what it reads from outside lives from the forward to the backward pass, which begins a block's gradients
 * with copies of its nodes (Chen et al. 2016, "Training deep nets with sublinear memory cost"): no bit of a result changes. */
CDAD_MUST_USE cdad_status cdad_graph_backward(cdad_graph *g, cdad_value loss, int64_t n_wanted, const cdad_value *wanted,
                                              int recompute, cdad_value *grads, cdad_error *err);

/* The same with directions along[i], V [k,...] for a weight [O,...] that moves by C V with C [O,k], or CDAD_NONE: where k is less than
 * the product of the other dimensions, one linear op alone reads the weight, and it takes fewer operations, grads[i] is [O,k], the gradient's coordinates d loss / d C, made from the
 * op's output for V instead of the weight: as many numbers as are wanted, and no product of the weight's size. */
CDAD_MUST_USE cdad_status cdad_graph_backward_along(cdad_graph *g, cdad_value loss, int64_t n_wanted, const cdad_value *wanted,
                                                    const cdad_value *along, int recompute, cdad_value *grads, cdad_error *err);

#endif
