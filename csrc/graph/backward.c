/* Reverse-mode differentiation as a rewrite of the graph.
 *
 * Nodes are visited once, last to first. A value's contributions are summed in the order in which they arise,
 * so the sum's bits are fixed by the graph. */
#include <string.h>

#include "base/memory.h"
#include "graph/graph.h"


/* Adds `contribution` to the gradient of `v`. */
static cdad_status accumulate(cdad_graph *g, cdad_value *grad_of, cdad_value v, cdad_value contribution,
                              cdad_error *err) {
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(!cdad_shape_equal(cdad_graph_shape(g, v), cdad_graph_shape(g, contribution)), err, CDAD_SHAPE,
                 "a gradient of shape %s for a value of shape %s",
                 cdad_shape_text(cdad_graph_shape(g, contribution), a), cdad_shape_text(cdad_graph_shape(g, v), b));
    if (grad_of[v] == CDAD_NONE) {
        grad_of[v] = contribution;
        return CDAD_OK;
    }
    const cdad_value in[2] = {grad_of[v], contribution};
    return cdad_node_add(g, cdad_op_find("add"), 2, in, &grad_of[v], err, NULL);
}

/* The gradient of one node's outputs becomes that of its inputs. */
static cdad_status visit(cdad_graph *g, int64_t node_index, const unsigned char *needed, cdad_value *grad_of,
                         cdad_error *err) {
    const cdad_node node = g->nodes[node_index]; /* a copy: the array may move while nodes are added */
    cdad_value dout[CDAD_MAX_OUTPUTS], din[CDAD_MAX_INPUTS];
    unsigned char want[CDAD_MAX_INPUTS] = {0};
    int any_out = 0, any_in = 0;
    for (int j = 0; j < node.op->n_out; j++) {
        dout[j] = grad_of[node.out[j]];
        any_out |= dout[j] != CDAD_NONE;
    }
    for (int i = 0; i < node.n_in; i++) {
        din[i] = CDAD_NONE;
        want[i] = node.in[i] != CDAD_NONE && needed[node.in[i]];
        any_in |= want[i];
    }
    if (!any_out || !any_in || (node.op->flags & CDAD_OP_STOP))
        return CDAD_OK;
    CDAD_FAIL_IF(node.op->flags & CDAD_OP_NO_GRAD, err, CDAD_INVALID, "%s has no gradient", node.op->name);
    if (node.op->grad(g, &node, dout, want, din, err) != CDAD_OK)
        return cdad_fail_in(err, node.op->name);
    for (int i = 0; i < node.n_in; i++)
        if (want[i] && din[i] != CDAD_NONE)
            CDAD_TRY(accumulate(g, grad_of, node.in[i], din[i], err));
    return CDAD_OK;
}

cdad_status cdad_graph_backward(cdad_graph *g, cdad_value loss, int64_t n_wanted, const cdad_value *wanted,
                                cdad_value *grads, cdad_error *err) {
    CDAD_FAIL_IF(loss < 0 || loss >= g->n_values, err, CDAD_INVALID, "the loss is no value of this graph");
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(cdad_shape_count(cdad_graph_shape(g, loss)) != 1, err, CDAD_SHAPE,
                 "a loss has one element; this one is %s", cdad_shape_text(cdad_graph_shape(g, loss), text));
    cdad_status status = CDAD_OK;
    const int64_t n_values = g->n_values, n_nodes = g->n_nodes;
    unsigned char *needed = NULL; /* on a path from a wanted value */
    cdad_value *grad_of = NULL;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&needed, n_values, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&grad_of, n_values * (int64_t)sizeof *grad_of, err));
    for (int64_t v = 0; v < n_values; v++)
        grad_of[v] = CDAD_NONE;
    for (int64_t i = 0; i < n_wanted; i++) {
        if (wanted[i] < 0 || wanted[i] >= n_values) {
            status = cdad_fail(err, CDAD_INVALID, "wanted value %lld is no value of this graph", (long long)i);
            goto done;
        }
        needed[wanted[i]] = 1;
    }
    for (int64_t k = 0; k < n_nodes; k++) {
        const cdad_node *node = &g->nodes[k];
        int any = 0;
        for (int i = 0; i < node->n_in; i++)
            any |= node->in[i] != CDAD_NONE && needed[node->in[i]];
        for (int j = 0; any && !(node->op->flags & CDAD_OP_STOP) && j < node->op->n_out; j++)
            needed[node->out[j]] = 1;
    }
    const float one = 1.0f;
    CDAD_TRY_DONE(cdad_graph_const(g, *cdad_graph_shape(g, loss), &one, &grad_of[loss], err));
    for (int64_t k = n_nodes - 1; k >= 0; k--)
        CDAD_TRY_DONE(visit(g, k, needed, grad_of, err));
    for (int64_t i = 0; i < n_wanted; i++)
        grads[i] = grad_of[wanted[i]];
done:
    cdad_free(needed);
    cdad_free(grad_of);
    return status;
}
