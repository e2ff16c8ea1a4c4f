/* conv2d: x [N,H,W,C], w [O,R,S,C], b [O] -> y [N,P,Q,O] as one matrix product with the unfolded image.
 *
 * With upsample = 2 the image is enlarged (nearest) as it is unfolded. The gradient of the input is the
 * product of dy, unfolded, and the kernel turned by 180 degrees (Dumoulin & Visin 2016, section 4). With a stride
 * above 1 the pixels are done by their place in the stride: each kind meets only some of the kernel, and no zero
 * between gradients is multiplied. The gradient of the weight is the product of dy and the unfolded input. */
#include <string.h>

#include "base/memory.h"
#include "ops/narrow.h"
#include "ops/ops.h"
#include "ops/window.h"
#include "ops/winograd.h"

enum { UPSAMPLE = CDAD_WINDOW_END, WINOGRAD, PRECISION };                    /* of conv2d */
enum { HEIGHT = CDAD_WINDOW_END, WIDTH, TURNED_WINOGRAD, TURNED_PRECISION }; /* of grad_input: the image's size */
enum { ROWS = PRECISION + 1, COLS }; /* of grad_weight: those of conv2d, and the kernel's size */

static const cdad_attr_spec conv2d_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("upsample", 1), CDAD_WINOGRAD_ATTR,
                                              CDAD_PRECISION_ATTR, CDAD_ATTRS_END};

static cdad_status check_upsample(const char *op, const cdad_attr *attr, cdad_error *err) {
    const int64_t up = attr[UPSAMPLE].i;
    CDAD_FAIL_IF(up != 1 && up != 2, err, CDAD_INVALID, "%s: upsample is %lld, 1 or 2 is wanted", op,
                 (long long)up);
    CDAD_FAIL_IF(up == 2 && attr[CDAD_STRIDE].i != 1, err, CDAD_INVALID,
                 "%s: upsample 2 wants stride 1, not %lld", op, (long long)attr[CDAD_STRIDE].i);
    return CDAD_OK;
}

static cdad_status infer_conv2d(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *x = &args->in[0], *w = &args->in[1], *b = cdad_optional_shape(args, 2);
    CDAD_TRY(cdad_want_ndim(x, 4, "conv2d", "input", "[N,H,W,C]", err));
    CDAD_TRY(cdad_want_ndim(w, 4, "conv2d", "weight", "[O,R,S,C]", err));
    CDAD_FAIL_IF(x->dim[3] != w->dim[3], err, CDAD_SHAPE,
                 "conv2d: input has %lld channels, weight wants %lld", (long long)x->dim[3],
                 (long long)w->dim[3]);
    if (b)
        CDAD_TRY(cdad_want_shape(b, cdad_shape_make(1, w->dim[0]), "conv2d", "bias", err));
    CDAD_TRY(check_upsample("conv2d", args->attr, err));
    CDAD_TRY(cdad_winograd_check("conv2d", args->attr[WINOGRAD].i, w->dim[1], w->dim[2], args->attr[CDAD_STRIDE].i, err));
    const int64_t up = args->attr[UPSAMPLE].i;
    int64_t P, Q;
    CDAD_TRY(cdad_window_positions("conv2d", args->attr, x->dim[1] * up, x->dim[2] * up, w->dim[1], w->dim[2],
                                   &P, &Q, err));
    args->out[0] = cdad_shape_make(4, x->dim[0], P, Q, w->dim[0]);
    return CDAD_OK;
}

static cdad_status grad_of_input(cdad_graph *g, const cdad_node *node, cdad_value dy, cdad_value *dx,
                                 cdad_error *err) {
    const cdad_shape x = *cdad_graph_shape(g, node->in[0]);
    const int64_t up = node->attr[UPSAMPLE].i;
    cdad_attr attr[CDAD_MAX_ATTRS] = {0};
    memcpy(attr, node->attr, CDAD_WINDOW_END * sizeof *attr);
    attr[HEIGHT].i = x.dim[1] * up;
    attr[WIDTH].i = x.dim[2] * up;
    attr[TURNED_WINOGRAD].i = node->attr[WINOGRAD].i;
    attr[TURNED_PRECISION].i = node->attr[PRECISION].i;
    CDAD_TRY(
        cdad_graph_add(g, &cdad_op_conv2d_grad_input, 2, (cdad_value[]){dy, node->in[1]}, attr, dx, err));
    return up == 1 ? CDAD_OK : cdad_node_add(g, &cdad_op_upsample2x_grad, 1, dx, dx, err, NULL);
}

static cdad_status grad_of_weight(cdad_graph *g, const cdad_node *node, cdad_value dy, cdad_value *dw,
                                  cdad_error *err) {
    const cdad_shape w = *cdad_graph_shape(g, node->in[1]);
    cdad_attr attr[CDAD_MAX_ATTRS] = {0};
    memcpy(attr, node->attr, ROWS * sizeof *attr);
    attr[ROWS].i = w.dim[1];
    attr[COLS].i = w.dim[2];
    return cdad_graph_add(g, &cdad_op_conv2d_grad_weight, 2, (cdad_value[]){dy, node->in[0]}, attr, dw, err);
}

static cdad_status grad_conv2d(cdad_graph *g, const cdad_node *node, const cdad_value *dout,
                               const unsigned char *want, cdad_value *din, cdad_error *err) {
    if (want[0])
        CDAD_TRY(grad_of_input(g, node, dout[0], &din[0], err));
    if (want[1])
        CDAD_TRY(grad_of_weight(g, node, dout[0], &din[1], err));
    if (want[2])
        CDAD_TRY(cdad_node_reduce_to(g, dout[0], *cdad_graph_shape(g, node->in[2]), &din[2], err));
    return CDAD_OK;
}

/* The image as a factor: nothing to unfold for a 1x1 kernel that reads every pixel once. */
static cdad_mat image_matrix(const float *x, const cdad_unfold *u) {
    const int plain = u->R == 1 && u->S == 1 && u->stride == 1 && u->up == 1 && u->pad_t == 0 && u->pad_l == 0 &&
                      u->P == u->H && u->Q == u->W;
    return plain ? cdad_mat_rows(x, u->C) : (cdad_mat){.data = x, .unfold = u};
}

/* y [N,P,Q,O] */
static cdad_pixels dense_pixels(float *y, const cdad_unfold *u, int64_t O) {
    return (cdad_pixels){.data = y, .image = u->P * u->Q * O, .row = u->Q * O, .pixel = O};
}

/* A weight [O,R,S,C] as Winograd's kernel reads it. */
static cdad_mat taps(const float *w, const cdad_shape *shape) {
    return (cdad_mat){.data = w, .rs = 1, .cs = cdad_shape_span(shape, 1, 4)};
}

static int64_t scratch_conv2d(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *w = &args->in[1];
    const cdad_unfold u = cdad_conv2d_unfold(args->attr, &args->in[0], w, &args->out[0]);
    const int m = cdad_winograd_choose(kernels, args->attr[WINOGRAD].i, args->attr[PRECISION].i, &u, w->dim[0]);
    if (!m && cdad_narrow_choose(kernels, &u, w->dim[0]))
        return kernels->narrow_conv2d_scratch(&u, w->dim[0], threads);
    return m ? kernels->winograd_scratch(&u, w->dim[0], m, threads)
             : kernels->gemm_scratch(cdad_shape_rows(&args->out[0]), w->dim[0], cdad_shape_span(w, 1, 4), threads);
}

cdad_unfold cdad_conv2d_unfold(const cdad_attr *attr, const cdad_shape *x, const cdad_shape *w,
                               const cdad_shape *y) {
    return cdad_window_unfold(attr, x, y, w->dim[1], w->dim[2], attr[UPSAMPLE].i);
}

static cdad_status run_conv2d(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *w = &call->in_shape[1];
    const cdad_unfold u = cdad_conv2d_unfold(call->attr, &call->in_shape[0], w, &call->out_shape[0]);
    const int64_t M = cdad_shape_rows(&call->out_shape[0]), O = w->dim[0], K = cdad_shape_span(w, 1, 4);
    const int m = cdad_winograd_choose(ctx->kernels, call->attr[WINOGRAD].i, call->attr[PRECISION].i, &u, O);
    const cdad_epilogue with = cdad_call_epilogue(call, cdad_optional_data(call, 2), call->attr[PRECISION].i);
    if (m)
        ctx->kernels->winograd(ctx, call->out[0], call->in[0], taps(call->in[1], w), 3 * u.C, u.C, &with, &u, O, m,
                               call->scratch);
    else if (cdad_narrow_choose(ctx->kernels, &u, O))
        ctx->kernels->narrow_conv2d(ctx, dense_pixels(call->out[0], &u, O), call->in[0],
                                    cdad_mat_transposed(call->in[1], K), &with, &u, O, call->scratch);
    else
        ctx->kernels->gemm(ctx, M, O, K, image_matrix(call->in[0], &u), cdad_mat_transposed(call->in[1], K),
                           call->out[0], O, &with, call->scratch);
    return CDAD_OK;
}

const cdad_op cdad_op_conv2d = {
    .name = "conv2d",
    .min_in = 2,
    .max_in = 3,
    .n_out = 1,
    .flags = CDAD_OP_EPILOGUE | CDAD_OP_LINEAR,
    .attrs = conv2d_attrs,
    .infer = infer_conv2d,
    .grad = grad_conv2d,
    .scratch = scratch_conv2d,
    .flops = cdad_flops_forward,
    .run = run_conv2d,
};

/* dy [N,P,Q,O], w [O,R,S,C] -> dx [N,height,width,C] */
static const cdad_attr_spec grad_input_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("height", 0),
                                                  CDAD_INT("width", 0), CDAD_WINOGRAD_ATTR, CDAD_PRECISION_ATTR,
                                                  CDAD_ATTRS_END};

static cdad_status infer_grad_input(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *w = &args->in[1];
    const int64_t H = args->attr[HEIGHT].i, W = args->attr[WIDTH].i;
    CDAD_TRY(cdad_want_ndim(dy, 4, "conv2d_grad_input", "gradient", "[N,P,Q,O]", err));
    CDAD_TRY(cdad_want_ndim(w, 4, "conv2d_grad_input", "weight", "[O,R,S,C]", err));
    CDAD_FAIL_IF(H < 1 || W < 1, err, CDAD_INVALID, "conv2d_grad_input: an image of %lld x %lld",
                 (long long)H, (long long)W);
    int64_t P, Q;
    CDAD_TRY(cdad_winograd_check("conv2d_grad_input", args->attr[TURNED_WINOGRAD].i, w->dim[1], w->dim[2],
                                 args->attr[CDAD_STRIDE].i, err));
    CDAD_TRY(cdad_window_positions("conv2d_grad_input", args->attr, H, W, w->dim[1], w->dim[2], &P, &Q, err));
    CDAD_TRY(cdad_want_shape(dy, cdad_shape_make(4, dy->dim[0], P, Q, w->dim[0]), "conv2d_grad_input",
                             "gradient", err));
    args->out[0] = cdad_shape_make(4, dy->dim[0], H, W, w->dim[3]);
    return CDAD_OK;
}

/* Along one side: the pixels first, first + stride, ... (n of them), and the kernel's rows tap, tap + stride, ... (taps
 * of them), which are all that reach these pixels. Among themselves they are a convolution of stride 1 with `pad`. */
typedef struct phase {
    int64_t first, n, tap, taps, pad;
} phase;

static phase phase_of(int64_t first, int64_t extent, int64_t kernel, int64_t stride, int64_t pad) {
    phase p = {.first = first, .n = (extent - first + stride - 1) / stride, .tap = (first + pad) % stride};
    p.taps = p.tap < kernel ? (kernel - p.tap + stride - 1) / stride : 0;
    p.pad = p.taps - 1 - (first + pad - p.tap) / stride;
    return p;
}

static phase phase_h(const cdad_attr *attr, const cdad_shape *w, int64_t first) {
    return phase_of(first, attr[HEIGHT].i, w->dim[1], attr[CDAD_STRIDE].i, attr[CDAD_PAD_T].i);
}
static phase phase_w(const cdad_attr *attr, const cdad_shape *w, int64_t first) {
    return phase_of(first, attr[WIDTH].i, w->dim[2], attr[CDAD_STRIDE].i, attr[CDAD_PAD_L].i);
}

/* Those that have pixels: of a stride beyond the image most have none. */
static int64_t phase_count(const cdad_attr *attr, int extent) {
    return attr[CDAD_STRIDE].i < attr[extent].i ? attr[CDAD_STRIDE].i : attr[extent].i;
}

/* Scratch holds the turned weight, then what the narrow convolution wants, or a phase's pixels (where there is more
 * than one phase) and what the product wants. */
static int64_t turned_bytes(const cdad_shape *w) {
    return cdad_align_up(cdad_shape_count(w) * (int64_t)sizeof(float));
}

static int64_t phase_bytes(const cdad_shape *dy, const cdad_shape *w, const cdad_attr *attr) {
    if (attr[CDAD_STRIDE].i == 1)
        return 0;
    const int64_t rows = dy->dim[0] * phase_h(attr, w, 0).n * phase_w(attr, w, 0).n;
    return cdad_align_up(rows * w->dim[3] * (int64_t)sizeof(float));
}

/* The gradient dy as a phase unfolds it. */
static cdad_unfold phase_unfold(const cdad_shape *dy, phase h, phase v) {
    return (cdad_unfold){.N = dy->dim[0], .H = dy->dim[1], .W = dy->dim[2], .C = dy->dim[3], .P = h.n, .Q = v.n,
                         .R = h.taps, .S = v.taps, .stride = 1, .pad_t = h.pad, .pad_l = v.pad, .up = 1};
}

/* 0: directly. Winograd's way is for one phase alone, and turns the weight as it reads it. */
static int turned_winograd(const cdad_kernels *kernels, const cdad_attr *attr, const cdad_shape *dy, const cdad_shape *w, cdad_unfold *u) {
    *u = phase_unfold(dy, phase_h(attr, w, 0), phase_w(attr, w, 0));
    return attr[CDAD_STRIDE].i == 1 ? cdad_winograd_choose(kernels, attr[TURNED_WINOGRAD].i, attr[TURNED_PRECISION].i, u, w->dim[3]) : 0;
}

static int64_t scratch_grad_input(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *dy = &args->in[0], *w = &args->in[1];
    int64_t most = 0;
    cdad_unfold u;
    const int m = turned_winograd(kernels, args->attr, dy, w, &u);
    if (m)
        return kernels->winograd_scratch(&u, w->dim[3], m, threads);
    for (int64_t a = 0; a < phase_count(args->attr, HEIGHT); a++)
        for (int64_t b = 0; b < phase_count(args->attr, WIDTH); b++) {
            const phase h = phase_h(args->attr, w, a), v = phase_w(args->attr, w, b);
            const int64_t C = w->dim[3];
            u = phase_unfold(dy, h, v);
            const int64_t bytes =
                cdad_narrow_choose(kernels, &u, C)
                    ? kernels->narrow_conv2d_scratch(&u, C, threads)
                    : phase_bytes(dy, w, args->attr) +
                          kernels->gemm_scratch(u.N * u.P * u.Q, C, u.R * u.S * u.C, threads);
            most = bytes > most ? bytes : most;
        }
    return turned_bytes(w) + most;
}

/* w [O,R,S,C] -> the phase's part of it, turned by 180 degrees: [h.taps,v.taps,O,C]. */
static const float *turned_weight(const cdad_context *ctx, const cdad_call *call, phase h, phase v) {
    const cdad_shape *w = &call->in_shape[1];
    const int64_t O = w->dim[0], R = w->dim[1], S = w->dim[2], C = w->dim[3], stride = call->attr[CDAD_STRIDE].i;
    if (R * S == 1)
        return call->in[1];
    const int64_t last = (h.tap + (h.taps - 1) * stride) * S + v.tap + (v.taps - 1) * stride; /* of the phase's taps */
    const cdad_runs turned = {{h.taps, v.taps, O}, {v.taps * O * C, O * C, C}, {-stride * S * C, -stride * C, R * S * C}, C};
    ctx->kernels->copy_runs(ctx, call->scratch, call->in[1] + last * C, &turned);
    return call->scratch;
}

static void finish_phases(const cdad_context *ctx, const cdad_call *call) {
    const cdad_shape *x = &call->out_shape[0];
    const cdad_broadcast same = cdad_broadcast_of(x, x);
    if (call->sum)
        ctx->kernels->binary(ctx, call->out[0], call->out[0], call->sum, &same, CDAD_BINARY_ADD);
    if (call->act)
        ctx->kernels->activation(ctx, call->out[0], call->out[0], cdad_shape_count(x), (cdad_activation)call->act);
}

static cdad_status run_phase(const cdad_context *ctx, const cdad_call *call, phase h, phase v, cdad_error *err) {
    const cdad_shape *dy = &call->in_shape[0], *w = &call->in_shape[1];
    const int64_t N = dy->dim[0], O = w->dim[0], C = w->dim[3], stride = call->attr[CDAD_STRIDE].i;
    const int64_t H = call->attr[HEIGHT].i, W = call->attr[WIDTH].i;
    char *pixels = (char *)call->scratch + turned_bytes(w);
    float *dx = stride == 1 ? call->out[0] : (float *)pixels;
    const cdad_unfold u = phase_unfold(dy, h, v);
    const cdad_epilogue dense = cdad_call_epilogue(call, NULL, call->attr[TURNED_PRECISION].i);
    const cdad_epilogue with = stride == 1 ? dense : (cdad_epilogue){.precision = dense.precision};
    if (cdad_narrow_choose(ctx->kernels, &u, C)) {
        const cdad_pixels to = {.data = call->out[0] + (h.first * W + v.first) * C, .image = H * W * C,
                                .row = stride * W * C, .pixel = stride * C};
        ctx->kernels->narrow_conv2d(ctx, to, call->in[0], cdad_mat_rows(turned_weight(ctx, call, h, v), C), &with, &u,
                                    C, pixels);
        return CDAD_OK;
    }
    if (h.taps * v.taps == 0)
        CDAD_TRY(cdad_device_zero(ctx->device, dx, N * h.n * v.n * C * (int64_t)sizeof *dx, err));
    else
        ctx->kernels->gemm(ctx, N * h.n * v.n, C, h.taps * v.taps * O, image_matrix(call->in[0], &u),
                           cdad_mat_rows(turned_weight(ctx, call, h, v), C), dx, C, &with,
                           pixels + phase_bytes(dy, w, call->attr));
    const cdad_runs apart = {{N, h.n, v.n}, {H * W * C, stride * W * C, stride * C}, {h.n * v.n * C, v.n * C, C}, C};
    if (stride > 1)
        ctx->kernels->copy_runs(ctx, call->out[0] + (h.first * W + v.first) * C, dx, &apart);
    return CDAD_OK;
}

static cdad_status run_grad_input(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    const cdad_shape *w = &call->in_shape[1];
    const int64_t C = w->dim[3];
    cdad_unfold u;
    const int m = turned_winograd(ctx->kernels, call->attr, &call->in_shape[0], w, &u);
    if (m) {
        const cdad_mat turned = {.data = call->in[1] + 8 * C, .rs = cdad_shape_span(w, 1, 4), .cs = 1};
        const cdad_epilogue with = cdad_call_epilogue(call, NULL, 0);
        ctx->kernels->winograd(ctx, call->out[0], call->in[0], turned, -3 * C, -C, &with, &u, C, m, call->scratch);
        return CDAD_OK;
    }
    for (int64_t a = 0; a < phase_count(call->attr, HEIGHT); a++)
        for (int64_t b = 0; b < phase_count(call->attr, WIDTH); b++)
            CDAD_TRY(run_phase(ctx, call, phase_h(call->attr, w, a), phase_w(call->attr, w, b), err));
    if (call->attr[CDAD_STRIDE].i > 1) /* several phases: what one product adds at its end is added at theirs */
        finish_phases(ctx, call);
    return CDAD_OK;
}

const cdad_op cdad_op_conv2d_grad_input = {
    .name = "conv2d_grad_input",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD | CDAD_OP_EPILOGUE,
    .attrs = grad_input_attrs,
    .infer = infer_grad_input,
    .scratch = scratch_grad_input,
    .flops = cdad_flops_grad_input,
    .run = run_grad_input,
};

/* dy [N,P,Q,O], x [N,H,W,C] -> dw [O,rows,cols,C] */
static const cdad_attr_spec grad_weight_attrs[] = {CDAD_WINDOW_ATTRS, CDAD_INT("upsample", 1), CDAD_WINOGRAD_ATTR,
                                                   CDAD_PRECISION_ATTR, CDAD_INT("rows", 0), CDAD_INT("cols", 0), CDAD_ATTRS_END};

static cdad_status infer_grad_weight(const cdad_infer *args, cdad_error *err) {
    const cdad_shape *dy = &args->in[0], *x = &args->in[1];
    const int64_t R = args->attr[ROWS].i, S = args->attr[COLS].i, up = args->attr[UPSAMPLE].i;
    CDAD_TRY(cdad_want_ndim(dy, 4, "conv2d_grad_weight", "gradient", "[N,P,Q,O]", err));
    CDAD_TRY(cdad_want_ndim(x, 4, "conv2d_grad_weight", "input", "[N,H,W,C]", err));
    CDAD_TRY(check_upsample("conv2d_grad_weight", args->attr, err));
    CDAD_FAIL_IF(R < 1 || S < 1, err, CDAD_INVALID, "conv2d_grad_weight: a kernel of %lld x %lld",
                 (long long)R, (long long)S);
    CDAD_TRY(cdad_winograd_check("conv2d_grad_weight", args->attr[WINOGRAD].i, R, S, args->attr[CDAD_STRIDE].i, err));
    int64_t P, Q;
    CDAD_TRY(cdad_window_positions("conv2d_grad_weight", args->attr, x->dim[1] * up, x->dim[2] * up, R, S, &P,
                                   &Q, err));
    CDAD_TRY(cdad_want_shape(dy, cdad_shape_make(4, x->dim[0], P, Q, dy->dim[3]), "conv2d_grad_weight",
                             "gradient", err));
    args->out[0] = cdad_shape_make(4, dy->dim[3], R, S, x->dim[3]);
    return CDAD_OK;
}

/* 0: directly. */
static int grad_weight_winograd(const cdad_kernels *kernels, const cdad_attr *attr, const cdad_shape *dy, const cdad_shape *x, const cdad_shape *dw,
                                cdad_unfold *u) {
    *u = cdad_window_unfold(attr, x, dy, dw->dim[1], dw->dim[2], attr[UPSAMPLE].i);
    return cdad_winograd_choose_grad(kernels, attr[WINOGRAD].i, attr[PRECISION].i, u, dw->dim[0]);
}

static int64_t scratch_grad_weight(const cdad_infer *args, const struct cdad_kernels *kernels, int threads) {
    const cdad_shape *dw = &args->out[0];
    const int64_t O = dw->dim[0];
    cdad_unfold u;
    const int m = grad_weight_winograd(kernels, args->attr, &args->in[0], &args->in[1], dw, &u);
    if (m)
        return kernels->winograd_grad_scratch(&u, O, m, threads);
    return cdad_narrow_choose_grad_weight(kernels, &u, O)
               ? kernels->narrow_conv2d_grad_weight_scratch(&u, O, threads)
               : kernels->gemm_scratch(O, cdad_shape_span(dw, 1, 4), cdad_shape_rows(&args->in[0]), threads);
}

static cdad_status run_grad_weight(const cdad_context *ctx, const cdad_call *call, cdad_error *err) {
    (void)err;
    const cdad_shape *dy = &call->in_shape[0], *dw = &call->out_shape[0];
    const int64_t O = dw->dim[0], K = cdad_shape_span(dw, 1, 4);
    cdad_unfold u;
    const int m = grad_weight_winograd(ctx->kernels, call->attr, dy, &call->in_shape[1], dw, &u);
    if (m)
        ctx->kernels->winograd_grad(ctx, call->out[0], call->in[1], call->in[0], &u, O, m, call->scratch);
    else if (cdad_narrow_choose_grad_weight(ctx->kernels, &u, O))
        ctx->kernels->narrow_conv2d_grad_weight(ctx, call->out[0], call->in[0], call->in[1], &u, O, call->scratch);
    else {
        const cdad_epilogue with = cdad_call_epilogue(call, NULL, call->attr[PRECISION].i);
        ctx->kernels->gemm(ctx, O, K, cdad_shape_rows(dy), cdad_mat_transposed(call->in[0], O),
                           image_matrix(call->in[1], &u), call->out[0], K, &with, call->scratch);
    }
    return CDAD_OK;
}

const cdad_op cdad_op_conv2d_grad_weight = {
    .name = "conv2d_grad_weight",
    .min_in = 2,
    .max_in = 2,
    .n_out = 1,
    .flags = CDAD_OP_NO_GRAD,
    .attrs = grad_weight_attrs,
    .infer = infer_grad_weight,
    .scratch = scratch_grad_weight,
    .flops = cdad_flops_grad_weight,
    .run = run_grad_weight,
};
