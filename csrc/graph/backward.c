/* Reverse-mode differentiation as a rewrite of the graph.
 *
 * Nodes are visited once, last to first. A value's contributions are summed in the order in which they arise,
 * so the sum's bits are fixed by the graph. Recomputing is a part of the rewrite: a block is copied behind what comes before
 * its gradients, and gradient rules are shown the copy. The planner then sees shorter lives, and drops what of a copy
 * no gradient reads. */
#include <string.h>

#include "base/memory.h"
#include "graph/graph.h"

/* What is known of the values that were there before the gradients: [n_values] each. */
typedef struct walk {
    cdad_graph *g;
    unsigned char *needed; /* on a path from a wanted value */
    cdad_value *grad_of;   /* or CDAD_NONE */
    cdad_value *shown;     /* what gradient rules read: the value itself, or that of its block's copy */
    cdad_value *along;     /* of a weight whose gradient is made in coordinates, the directions, or CDAD_NONE */
} walk;

/* Adds `contribution` to the gradient of `v`. */
static cdad_status accumulate(const walk *w, cdad_value v, cdad_value contribution, cdad_error *err) {
    cdad_graph *g = w->g;
    char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(w->along[v] == CDAD_NONE && !cdad_shape_equal(cdad_graph_shape(g, v), cdad_graph_shape(g, contribution)), err, CDAD_SHAPE,
                 "a gradient of shape %s for a value of shape %s",
                 cdad_shape_text(cdad_graph_shape(g, contribution), a), cdad_shape_text(cdad_graph_shape(g, v), b));
    if (w->grad_of[v] == CDAD_NONE) {
        w->grad_of[v] = contribution;
        return CDAD_OK;
    }
    const cdad_value in[2] = {w->grad_of[v], contribution};
    return cdad_node_add(g, cdad_op_find("add"), 2, in, &w->grad_of[v], err, NULL);
}

/* The node as gradient rules are shown it. */
static cdad_node shown_node(const walk *w, const cdad_node *node) {
    cdad_node copy = *node;
    for (int i = 0; i < node->n_in; i++)
        if (node->in[i] != CDAD_NONE)
            copy.in[i] = w->shown[node->in[i]];
    for (int j = 0; j < node->op->n_out; j++)
        copy.out[j] = w->shown[node->out[j]];
    return copy;
}

/* The attribute of that name, or 0 where the op has none. */
static double attr_named(const cdad_node *node, const char *name) {
    for (int i = 0; node->op->attrs && node->op->attrs[i].name; i++)
        if (strcmp(node->op->attrs[i].name, name) == 0)
            return node->op->attrs[i].type == CDAD_ATTR_INT ? (double)node->attr[i].i : node->attr[i].f;
    return 0.0;
}

/* dC of a linear op's weight, which moves by C V: with its output z for V, dC = dy^T z. */
static cdad_status in_coordinates(cdad_graph *g, const cdad_node *node, cdad_value dy, cdad_value V, cdad_value *dC, cdad_error *err) {
    cdad_value z;
    CDAD_TRY(cdad_graph_add(g, node->op, 2, (cdad_value[]){node->in[0], V}, node->attr, &z, err));
    return cdad_node_add(g, cdad_op_find("linear_grad_weight"), 2, (cdad_value[]){dy, z}, dC, err, "precision",
                         attr_named(node, "precision"), NULL);
}

/* Whether a weight's gradient is to be made in coordinates of V: counts operations of both ways. */
static int is_worth_it(const cdad_graph *g, cdad_value weight, cdad_value V) {
    const cdad_node *reader = NULL;
    for (int64_t k = 0; k < g->n_nodes; k++)
        for (int i = 0; i < g->nodes[k].n_in; i++)
            if (g->nodes[k].in[i] == weight) {
                if (reader || i != 1 || !(g->nodes[k].op->flags & CDAD_OP_LINEAR))
                    return 0;
                reader = &g->nodes[k];
            }
    if (!reader)
        return 0;
    const cdad_shape *w = cdad_graph_shape(g, weight), *y = cdad_graph_shape(g, reader->out[0]);
    const double O = (double)w->dim[0], d = (double)cdad_shape_span(w, 1, w->ndim), k = (double)cdad_graph_shape(g, V)->dim[0];
    const double N = (double)cdad_shape_span(y, 0, y->ndim - 1);
    return k < d && N * k * (d + O) < O * d * (N + k);
}

/* The gradient of one node's outputs becomes that of its inputs. */
static cdad_status visit(const walk *w, int64_t node_index, cdad_error *err) {
    cdad_graph *g = w->g;
    const cdad_node node = g->nodes[node_index]; /* a copy: the array may move while nodes are added */
    const cdad_node shown = shown_node(w, &node);
    cdad_value dout[CDAD_MAX_OUTPUTS], din[CDAD_MAX_INPUTS];
    unsigned char want[CDAD_MAX_INPUTS] = {0};
    cdad_value along = CDAD_NONE;
    int any_out = 0, any_in = 0;
    for (int j = 0; j < node.op->n_out; j++) {
        dout[j] = w->grad_of[node.out[j]];
        any_out |= dout[j] != CDAD_NONE;
    }
    for (int i = 0; i < node.n_in; i++) {
        din[i] = CDAD_NONE;
        want[i] = node.in[i] != CDAD_NONE && w->needed[node.in[i]];
        any_in |= want[i];
    }
    if (!any_out || !any_in || (node.op->flags & CDAD_OP_STOP))
        return CDAD_OK;
    CDAD_FAIL_IF(node.op->flags & CDAD_OP_NO_GRAD, err, CDAD_INVALID, "%s has no gradient", node.op->name);
    if (node.op->flags & CDAD_OP_LINEAR)
        along = w->along[node.in[1]];
    if (along != CDAD_NONE)
        want[1] = 0;
    if (node.op->grad(g, &shown, dout, want, din, err) != CDAD_OK)
        return cdad_fail_in(err, node.op->name);
    if (along != CDAD_NONE) {
        CDAD_TRY(in_coordinates(g, &shown, dout[0], along, &din[1], err));
        want[1] = 1;
    }
    for (int i = 0; i < node.n_in; i++)
        if (want[i] && din[i] != CDAD_NONE)
            CDAD_TRY(accumulate(w, node.in[i], din[i], err));
    return CDAD_OK;
}

/* Adds a copy of the block that ends with node `last`, which is what gradient rules read from then on. */
static cdad_status copy_block(const walk *w, int64_t last, cdad_error *err) {
    cdad_graph *g = w->g;
    int64_t k = last;
    while (k > 0 && g->nodes[k - 1].block == g->nodes[last].block)
        k--;
    for (; k <= last; k++) {
        const cdad_node node = g->nodes[k], shown = shown_node(w, &node);
        cdad_value out[CDAD_MAX_OUTPUTS];
        CDAD_TRY(cdad_graph_add(g, node.op, node.n_in, shown.in, node.attr, out, err));
        for (int j = 0; j < node.op->n_out; j++)
            w->shown[node.out[j]] = out[j];
    }
    return CDAD_OK;
}

cdad_status cdad_graph_backward(cdad_graph *g, cdad_value loss, int64_t n_wanted, const cdad_value *wanted, int recompute,
                                cdad_value *grads, cdad_error *err) {
    return cdad_graph_backward_along(g, loss, n_wanted, wanted, NULL, recompute, grads, err);
}

cdad_status cdad_graph_backward_along(cdad_graph *g, cdad_value loss, int64_t n_wanted, const cdad_value *wanted,
                                      const cdad_value *along, int recompute, cdad_value *grads, cdad_error *err) {
    CDAD_FAIL_IF(loss < 0 || loss >= g->n_values, err, CDAD_INVALID, "the loss is no value of this graph");
    char text[CDAD_SHAPE_TEXT];
    CDAD_FAIL_IF(cdad_shape_count(cdad_graph_shape(g, loss)) != 1, err, CDAD_SHAPE,
                 "a loss has one element; this one is %s", cdad_shape_text(cdad_graph_shape(g, loss), text));
    cdad_status status = CDAD_OK;
    const int64_t n_values = g->n_values, n_nodes = g->n_nodes;
    walk w = {.g = g};
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&w.needed, n_values, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&w.grad_of, n_values * (int64_t)sizeof *w.grad_of, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&w.shown, n_values * (int64_t)sizeof *w.shown, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&w.along, n_values * (int64_t)sizeof *w.along, err));
    for (int64_t v = 0; v < n_values; v++) {
        w.grad_of[v] = w.along[v] = CDAD_NONE;
        w.shown[v] = (cdad_value)v;
    }
    for (int64_t i = 0; i < n_wanted; i++) {
        if (wanted[i] < 0 || wanted[i] >= n_values) {
            status = cdad_fail(err, CDAD_INVALID, "wanted value %lld is no value of this graph", (long long)i);
            goto done;
        }
        w.needed[wanted[i]] = 1;
        if (along && along[i] != CDAD_NONE && is_worth_it(g, wanted[i], along[i]))
            w.along[wanted[i]] = along[i];
    }
    for (int64_t k = 0; k < n_nodes; k++) {
        const cdad_node *node = &g->nodes[k];
        int any = 0;
        for (int i = 0; i < node->n_in; i++)
            any |= node->in[i] != CDAD_NONE && w.needed[node->in[i]];
        for (int j = 0; any && !(node->op->flags & CDAD_OP_STOP) && j < node->op->n_out; j++)
            w.needed[node->out[j]] = 1;
    }
    const float one = 1.0f;
    CDAD_TRY_DONE(cdad_graph_const(g, *cdad_graph_shape(g, loss), &one, &w.grad_of[loss], err));
    for (int64_t k = n_nodes - 1; k >= 0; k--) {
        const int block = g->nodes[k].block, ends = k == n_nodes - 1 || g->nodes[k + 1].block != block;
        /* What the last block computed is still there when its gradients begin: a copy would save nothing. */
        if (recompute && block > 0 && block < g->n_blocks && ends)
            CDAD_TRY_DONE(copy_block(&w, k, err));
        CDAD_TRY_DONE(visit(&w, k, err));
    }
    for (int64_t i = 0; i < n_wanted; i++)
        grads[i] = w.grad_of[wanted[i]];
done:
    cdad_free(w.needed);
    cdad_free(w.grad_of);
    cdad_free(w.shown);
    cdad_free(w.along);
    return status;
}
