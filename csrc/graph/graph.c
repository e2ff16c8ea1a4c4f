/* Recording: values, nodes, attributes. */
#include "graph/graph.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "base/memory.h"

cdad_status cdad_graph_new(cdad_graph **out, cdad_error *err) {
    return cdad_alloc_zero((void **)out, sizeof(cdad_graph), err);
}

void cdad_graph_free(cdad_graph *g) {
    if (!g)
        return;
    for (int64_t i = 0; i < g->n_values; i++) {
        cdad_free(g->values[i].name);
        cdad_free(g->values[i].data);
    }
    cdad_free(g->values);
    cdad_free(g->nodes);
    cdad_free(g);
}

/* Takes over info->name and info->data, also when it fails. */
static cdad_status value_push(cdad_graph *g, cdad_value_info *info, cdad_value *out, cdad_error *err) {
    cdad_status status = cdad_shape_check(&info->shape, err);
    if (status == CDAD_OK)
        status = cdad_grow((void **)&g->values, g->n_values, &g->values_capacity, sizeof *g->values, err);
    if (status != CDAD_OK) {
        cdad_free(info->name);
        cdad_free(info->data);
        return status;
    }
    *out = (cdad_value)g->n_values;
    g->values[g->n_values++] = *info;
    return CDAD_OK;
}

static cdad_status named_push(cdad_graph *g, cdad_value_kind kind, const char *name, cdad_shape shape,
                              cdad_value *out, cdad_error *err) {
    cdad_value_info info = {.kind = kind, .shape = shape, .node = -1};
    CDAD_TRY(cdad_strdup(&info.name, name, err));
    return value_push(g, &info, out, err);
}

cdad_status cdad_graph_input(cdad_graph *g, const char *name, cdad_shape shape, cdad_value *out, cdad_error *err) {
    return named_push(g, CDAD_VALUE_INPUT, name, shape, out, err);
}

cdad_status cdad_graph_param(cdad_graph *g, const char *name, cdad_shape shape, cdad_value *out, cdad_error *err) {
    for (int64_t i = 0; i < g->n_values; i++) {
        const cdad_value_info *v = &g->values[i];
        if (v->kind != CDAD_VALUE_PARAM || strcmp(v->name, name) != 0)
            continue;
        char a[CDAD_SHAPE_TEXT], b[CDAD_SHAPE_TEXT];
        CDAD_FAIL_IF(!cdad_shape_equal(&v->shape, &shape), err, CDAD_SHAPE,
                     "parameter %s is %s here and %s elsewhere in the graph", name, cdad_shape_text(&shape, a),
                     cdad_shape_text(&v->shape, b));
        *out = (cdad_value)i;
        return CDAD_OK;
    }
    return named_push(g, CDAD_VALUE_PARAM, name, shape, out, err);
}

cdad_status cdad_graph_const(cdad_graph *g, cdad_shape shape, const float *data, cdad_value *out, cdad_error *err) {
    cdad_value_info info = {.kind = CDAD_VALUE_CONST, .shape = shape, .node = -1};
    CDAD_TRY(cdad_shape_check(&shape, err));
    const int64_t bytes = cdad_shape_count(&shape) * (int64_t)sizeof(float);
    CDAD_TRY(cdad_alloc((void **)&info.data, bytes, err));
    memcpy(info.data, data, (size_t)bytes);
    return value_push(g, &info, out, err);
}

void cdad_attr_defaults(const cdad_op *op, cdad_attr *attrs) {
    memset(attrs, 0, CDAD_MAX_ATTRS * sizeof *attrs);
    for (int i = 0; op->attrs && op->attrs[i].name; i++) {
        if (op->attrs[i].type == CDAD_ATTR_INT)
            attrs[i].i = (int64_t)op->attrs[i].fallback;
        else
            attrs[i].f = op->attrs[i].fallback;
    }
}

cdad_status cdad_attr_set(const cdad_op *op, cdad_attr *attrs, const char *name, double value, cdad_error *err) {
    for (int i = 0; op->attrs && op->attrs[i].name; i++) {
        if (strcmp(op->attrs[i].name, name) != 0)
            continue;
        if (op->attrs[i].type == CDAD_ATTR_INT) {
            CDAD_FAIL_IF(!(fabs(value) < 9e15) || value != floor(value), err, CDAD_INVALID,
                         "%s: %s is %g; an integer is wanted", op->name, name, value);
            attrs[i].i = (int64_t)value;
        } else {
            CDAD_FAIL_IF(!isfinite(value), err, CDAD_INVALID, "%s: %s is not finite", op->name, name);
            attrs[i].f = value;
        }
        return CDAD_OK;
    }
    return cdad_fail(err, CDAD_INVALID, "%s has no attribute %s", op->name, name);
}

cdad_status cdad_graph_add(cdad_graph *g, const cdad_op *op, int n_in, const cdad_value *in,
                           const cdad_attr *attrs, cdad_value *out, cdad_error *err) {
    CDAD_FAIL_IF(n_in < op->min_in || n_in > op->max_in, err, CDAD_INVALID, "%s: %d inputs; %d to %d are wanted",
                 op->name, n_in, op->min_in, op->max_in);
    cdad_node node = {.op = op, .n_in = n_in, .block = g->block};
    cdad_shape in_shape[CDAD_MAX_INPUTS], out_shape[CDAD_MAX_OUTPUTS];
    for (int i = 0; i < n_in; i++) {
        CDAD_FAIL_IF(in[i] >= g->n_values || in[i] < CDAD_NONE, err, CDAD_INVALID,
                     "%s: input %d is no value of this graph", op->name, i);
        CDAD_FAIL_IF(in[i] == CDAD_NONE && i < op->min_in, err, CDAD_INVALID, "%s: input %d is missing", op->name, i);
        node.in[i] = in[i];
        in_shape[i] = in[i] == CDAD_NONE ? (cdad_shape){.ndim = -1} : g->values[in[i]].shape;
    }
    if (attrs)
        memcpy(node.attr, attrs, sizeof node.attr);
    else
        cdad_attr_defaults(op, node.attr);
    memset(out_shape, 0, sizeof out_shape);
    const cdad_infer args = {.n_in = n_in, .in = in_shape, .attr = node.attr, .out = out_shape};
    CDAD_TRY(op->infer(&args, err));

    CDAD_TRY(cdad_grow((void **)&g->nodes, g->n_nodes, &g->nodes_capacity, sizeof *g->nodes, err));
    for (int j = 0; j < op->n_out; j++) {
        cdad_value_info info = {
            .kind = CDAD_VALUE_NODE, .shape = out_shape[j], .node = (int)g->n_nodes, .output = j};
        const cdad_status status = value_push(g, &info, &node.out[j], err);
        if (status != CDAD_OK) {
            g->n_values -= j;
            return cdad_fail_in(err, op->name);
        }
        out[j] = node.out[j];
    }
    g->nodes[g->n_nodes++] = node;
    return CDAD_OK;
}

cdad_status cdad_node_add(cdad_graph *g, const cdad_op *op, int n_in, const cdad_value *in, cdad_value *out,
                          cdad_error *err, ...) {
    cdad_attr attrs[CDAD_MAX_ATTRS];
    cdad_attr_defaults(op, attrs);
    cdad_status status = CDAD_OK;
    va_list list;
    va_start(list, err);
    for (const char *name; status == CDAD_OK && (name = va_arg(list, const char *));)
        status = cdad_attr_set(op, attrs, name, va_arg(list, double), err);
    va_end(list);
    CDAD_TRY(status);
    cdad_value all[CDAD_MAX_OUTPUTS];
    CDAD_TRY(cdad_graph_add(g, op, n_in, in, attrs, all, err));
    *out = all[0];
    return CDAD_OK;
}
