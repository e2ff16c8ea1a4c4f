/* Layers on the graph. */
#include "nn/layers.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const cdad_init cdad_init_zero = {CDAD_INIT_CONST, 0.0f};
static const cdad_init init_one = {CDAD_INIT_CONST, 1.0f};

void cdad_builder_init(cdad_builder *b, cdad_graph *g, cdad_params *params, cdad_error *err) {
    *b = (cdad_builder){.g = g, .params = params, .err = err};
}

size_t cdad_scope_open(cdad_builder *b, const char *format, ...) {
    const size_t length = strlen(b->scope);
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(b->scope + length, sizeof b->scope - length, format, list);
    va_end(list);
    if (n < 0 || length + (size_t)n + 2 > sizeof b->scope) {
        b->scope[length] = 0;
        cdad_build_fail(b, CDAD_INVALID, "a parameter name grows longer than %d characters", CDAD_NAME_BYTES);
        return length;
    }
    memcpy(b->scope + length + n, ".", 2);
    return length;
}

void cdad_scope_close(cdad_builder *b, size_t length) { b->scope[length] = 0; }

const cdad_shape *cdad_build_shape(const cdad_builder *b, cdad_value v) {
    static const cdad_shape none = {0};
    return b->status != CDAD_OK || v == CDAD_NONE ? &none : cdad_graph_shape(b->g, v);
}

int64_t cdad_build_channels(const cdad_builder *b, cdad_value v) {
    const cdad_shape *s = cdad_build_shape(b, v);
    return s->ndim ? s->dim[s->ndim - 1] : 0;
}

void cdad_build_fail(cdad_builder *b, cdad_status status, const char *format, ...) {
    if (b->status != CDAD_OK)
        return;
    char text[256];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    b->status = cdad_fail(b->err, status, "%s", text);
}

/* Keeps a failure, with the scope in which it arose. */
static cdad_value keep(cdad_builder *b, cdad_status status, cdad_value v) {
    if (status == CDAD_OK)
        return v;
    b->status = b->scope[0] ? cdad_fail_in(b->err, b->scope) : status;
    return CDAD_NONE;
}

cdad_value cdad_build_input(cdad_builder *b, const char *name, cdad_shape shape) {
    cdad_value v = CDAD_NONE;
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const cdad_status status = cdad_graph_input(b->g, name, shape, &v, b->err);
    return keep(b, status, v);
}

cdad_value cdad_build_const(cdad_builder *b, cdad_shape shape, const float *data) {
    cdad_value v = CDAD_NONE;
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const cdad_status status = cdad_graph_const(b->g, shape, data, &v, b->err);
    return keep(b, status, v);
}

cdad_value cdad_build_param(cdad_builder *b, const char *name, cdad_shape shape, cdad_init init) {
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    char full[2 * CDAD_NAME_BYTES];
    snprintf(full, sizeof full, "%s%s", b->scope, name);
    cdad_value v = CDAD_NONE;
    cdad_status status = cdad_params_register(b->params, full, shape, init, b->err);
    if (status == CDAD_OK)
        status = cdad_graph_param(b->g, full, shape, &v, b->err);
    return keep(b, status, v);
}

cdad_value cdad_build_op(cdad_builder *b, const char *name, int n_in, const cdad_value *in, ...) {
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const cdad_op *op = cdad_op_find(name);
    if (!op) {
        cdad_build_fail(b, CDAD_INVALID, "there is no op %s", name);
        return CDAD_NONE;
    }
    cdad_attr attrs[CDAD_MAX_ATTRS];
    cdad_attr_defaults(op, attrs);
    cdad_status status = CDAD_OK;
    va_list list;
    va_start(list, in);
    for (const char *attr; status == CDAD_OK && (attr = va_arg(list, const char *));)
        status = cdad_attr_set(op, attrs, attr, va_arg(list, double), b->err);
    va_end(list);
    cdad_value out[CDAD_MAX_OUTPUTS] = {CDAD_NONE};
    if (status == CDAD_OK)
        status = cdad_graph_add(b->g, op, n_in, in, attrs, out, b->err);
    return keep(b, status, out[0]);
}

cdad_value cdad_build_unary(cdad_builder *b, const char *op, cdad_value x) {
    return cdad_build_op(b, op, 1, &x, NULL);
}

cdad_value cdad_build_add(cdad_builder *b, cdad_value a, cdad_value c) {
    return cdad_build_op(b, "add", 2, CDAD_IN(a, c), NULL);
}

cdad_value cdad_build_affine(cdad_builder *b, cdad_value x, double scale, double shift) {
    return cdad_build_op(b, "affine", 1, &x, "a", scale, "b", shift, NULL);
}

cdad_value cdad_build_reshape(cdad_builder *b, cdad_value x, cdad_shape s) {
    return cdad_build_op(b, "reshape", 1, &x, "ndim", (double)s.ndim, "d0", (double)s.dim[0], "d1", (double)s.dim[1],
                         "d2", (double)s.dim[2], "d3", (double)s.dim[3], "d4", (double)s.dim[4], NULL);
}

cdad_value cdad_build_tokens(cdad_builder *b, cdad_value x) {
    const cdad_shape s = *cdad_build_shape(b, x);
    return cdad_build_reshape(b, x, cdad_shape_make(3, s.dim[0], s.dim[1] * s.dim[2], s.dim[3]));
}

static cdad_init default_init(int64_t fan_in) {
    return (cdad_init){CDAD_INIT_UNIFORM, 1.0f / sqrtf((float)(fan_in > 0 ? fan_in : 1))};
}

/* weight [w], optional bias [out], in the scope `name`. */
static void weight_and_bias(cdad_builder *b, const char *name, cdad_shape w, int64_t fan_in, int bias,
                            const cdad_init *init, cdad_value *weight, cdad_value *offset) {
    const size_t scope = cdad_scope_open(b, "%s", name);
    *weight = cdad_build_param(b, "weight", w, init ? *init : default_init(fan_in));
    *offset = CDAD_NONE;
    if (bias)
        *offset = cdad_build_param(b, "bias", cdad_shape_make(1, w.dim[0]),
                                   init && init->scale == 0.0f ? cdad_init_zero : default_init(fan_in));
    cdad_scope_close(b, scope);
}

cdad_value cdad_build_conv2d(cdad_builder *b, cdad_value x, const char *name, cdad_conv_spec spec) {
    const int64_t c = cdad_build_channels(b, x), k = spec.kernel;
    cdad_value w, bias;
    weight_and_bias(b, name, cdad_shape_make(4, spec.out, k, k, c), k * k * c, spec.bias, spec.init, &w, &bias);
    const double before = spec.pad_end_only ? 0.0 : (double)spec.pad, after = (double)spec.pad;
    return cdad_build_op(b, "conv2d", 3, CDAD_IN(x, w, bias), "stride", (double)(spec.stride ? spec.stride : 1),
                         "pad_t", before, "pad_l", before, "pad_b", after, "pad_r", after, "upsample",
                         (double)(spec.upsample ? spec.upsample : 1), "precision", (double)b->precision, NULL);
}

cdad_value cdad_build_linear(cdad_builder *b, cdad_value x, const char *name, int64_t out, int bias,
                             const cdad_init *init) {
    const int64_t k = cdad_build_channels(b, x);
    cdad_value w, offset;
    weight_and_bias(b, name, cdad_shape_make(2, out, k), k, bias, init, &w, &offset);
    return cdad_build_op(b, "linear", 3, CDAD_IN(x, w, offset), "precision", (double)b->precision, NULL);
}

static void norm_params(cdad_builder *b, cdad_value x, const char *name, cdad_value *gamma, cdad_value *beta) {
    const cdad_shape shape = cdad_shape_make(1, cdad_build_channels(b, x));
    const size_t scope = cdad_scope_open(b, "%s", name);
    *gamma = cdad_build_param(b, "weight", shape, init_one);
    *beta = cdad_build_param(b, "bias", shape, cdad_init_zero);
    cdad_scope_close(b, scope);
}

cdad_value cdad_build_group_norm(cdad_builder *b, cdad_value x, const char *name, int64_t groups, double eps,
                                 int silu) {
    cdad_value gamma, beta;
    norm_params(b, x, name, &gamma, &beta);
    return cdad_build_op(b, "group_norm", 3, CDAD_IN(x, gamma, beta), "groups", (double)groups, "eps", eps, "silu",
                         (double)silu, NULL);
}

cdad_value cdad_build_layer_norm(cdad_builder *b, cdad_value x, const char *name, double eps) {
    cdad_value gamma, beta;
    norm_params(b, x, name, &gamma, &beta);
    return cdad_build_op(b, "layer_norm", 3, CDAD_IN(x, gamma, beta), "eps", eps, NULL);
}

cdad_value cdad_build_normalize(cdad_builder *b, cdad_value x, double eps) {
    return cdad_build_op(b, "layer_norm", 3, CDAD_IN(x, CDAD_NONE, CDAD_NONE), "eps", eps, NULL);
}
