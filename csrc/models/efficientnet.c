/* EfficientNet-Lite0 (Tan & Le 2019; the lite variant has ReLU6 and no squeeze-and-excitation) as a feature
 * extractor, up to its stride-16 blocks. Batch norms are folded into the weights by the loader. */
#include "models/models.h"

typedef struct stage {
    int64_t repeats, kernel, stride, expand, out;
    int feature; /* index in features[] of the stage's output, or -1 */
} stage;

static const stage stages[] = {
    {1, 3, 1, 1, 16, -1}, {2, 3, 2, 6, 24, 0},  {2, 5, 2, 6, 40, 1},
    {3, 3, 2, 6, 80, -1}, {3, 5, 1, 6, 112, 2},
};

/* The padding that TensorFlow calls SAME: all of an odd rest goes to the end. */
static void same_padding(int64_t size, int64_t kernel, int64_t stride, double *begin, double *end) {
    const int64_t out = (size + stride - 1) / stride;
    const int64_t total = (out - 1) * stride + kernel - size;
    *begin = (double)(total > 0 ? total / 2 : 0);
    *end = (double)(total > 0 ? total - total / 2 : 0);
}

static cdad_value conv_same(cdad_builder *b, const char *op, cdad_value x, const char *name, cdad_shape weight,
                            int64_t out, int64_t kernel, int64_t stride) {
    const size_t scope = cdad_scope_open(b, "%s", name);
    const cdad_init init = {CDAD_INIT_UNIFORM, 0.1f};
    const cdad_value w = cdad_build_param(b, "weight", weight, init);
    const cdad_value bias = cdad_build_param(b, "bias", cdad_shape_make(1, out), init);
    cdad_scope_close(b, scope);
    const cdad_shape *s = cdad_build_shape(b, x);
    double top, bottom, left, right;
    same_padding(s->dim[1], kernel, stride, &top, &bottom);
    same_padding(s->dim[2], kernel, stride, &left, &right);
    return cdad_build_op(b, op, 3, CDAD_IN(x, w, bias), "stride", (double)stride, "pad_t", top, "pad_l", left,
                         "pad_b", bottom, "pad_r", right, NULL);
}

static cdad_value conv(cdad_builder *b, cdad_value x, const char *name, int64_t out, int64_t kernel,
                       int64_t stride) {
    return conv_same(b, "conv2d", x, name, cdad_shape_make(4, out, kernel, kernel, cdad_build_channels(b, x)), out,
                     kernel, stride);
}

static cdad_value relu6(cdad_builder *b, cdad_value x) { return cdad_build_unary(b, "relu6", x); }

/* Mobile inverted bottleneck: expand, depthwise, project; a residual when shapes agree. */
static cdad_value bottleneck(cdad_builder *b, cdad_value x, const stage *s, int64_t stride) {
    const int64_t in = cdad_build_channels(b, x), wide = in * s->expand;
    cdad_value h = x;
    if (s->expand > 1)
        h = relu6(b, conv(b, h, "expand", wide, 1, 1));
    h = relu6(b, conv_same(b, "depthwise_conv2d", h, "depthwise", cdad_shape_make(3, s->kernel, s->kernel, wide),
                           wide, s->kernel, stride));
    h = conv(b, h, "project", s->out, 1, 1);
    return stride == 1 && in == s->out ? cdad_build_add(b, h, x) : h;
}

cdad_value cdad_efficientnet_lite0_build(cdad_builder *b, cdad_value image, cdad_value features[3]) {
    cdad_value h = relu6(b, conv(b, image, "stem", 32, 3, 2));
    int64_t block = 0;
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        const stage *s = &stages[i];
        for (int64_t k = 0; k < s->repeats; k++) {
            const size_t scope = cdad_scope_open(b, "blocks.%lld", (long long)block++);
            h = bottleneck(b, h, s, k == 0 ? s->stride : 1);
            cdad_scope_close(b, scope);
        }
        if (s->feature >= 0)
            features[s->feature] = h;
    }
    return h;
}
