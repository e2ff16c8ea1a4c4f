/* ResNets (He et al. 2016) and wide ones (Zagoruyko & Komodakis 2016) as feature extractors, in torchvision's form, whose
 * bottlenecks have their stride in the 3x3 convolution. Batch norms are folded into the weights by the loader. */
#include "models/models.h"

static cdad_value conv(cdad_builder *b, cdad_value x, const char *name, int64_t out, int64_t kernel, int64_t stride) {
    return cdad_build_conv2d(
        b, x, name,
        (cdad_conv_spec){.out = out, .kernel = kernel, .stride = stride, .pad = kernel / 2, .bias = 1});
}

static cdad_value relu(cdad_builder *b, cdad_value x) { return cdad_build_unary(b, "relu", x); }

/* Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the planes, beside x or a 1x1 convolution of it. */
static cdad_value block(cdad_builder *b, const cdad_resnet_config *c, cdad_value x, int64_t planes, int64_t stride) {
    const int64_t out = c->bottleneck ? 4 * planes : planes, inner = planes * c->widening;
    cdad_value h;
    if (c->bottleneck) {
        h = relu(b, conv(b, x, "conv1", inner, 1, 1));
        h = relu(b, conv(b, h, "conv2", inner, 3, stride));
        h = conv(b, h, "conv3", out, 1, 1);
    } else {
        h = relu(b, conv(b, x, "conv1", planes, 3, stride));
        h = conv(b, h, "conv2", out, 3, 1);
    }
    if (stride != 1 || cdad_build_channels(b, x) != out)
        x = conv(b, x, "downsample.0", out, 1, stride);
    return relu(b, cdad_build_add(b, h, x));
}

void cdad_resnet_build(cdad_builder *b, const cdad_resnet_config *c, cdad_value image,
                       cdad_value features[CDAD_RESNET_STAGES + 1]) {
    const cdad_value stem = relu(b, conv(b, image, "conv1", c->channels, 7, 2));
    cdad_value h = cdad_build_op(b, "max_pool2d", 1, &stem, "kernel", 3.0, "stride", 2.0, "pad_t", 1.0, "pad_l", 1.0,
                                 "pad_b", 1.0, "pad_r", 1.0, NULL);
    for (int stage = 0; stage < CDAD_RESNET_STAGES; stage++) {
        for (int64_t i = 0; i < c->blocks[stage]; i++) {
            const size_t scope = cdad_scope_open(b, "layer%d.%lld", stage + 1, (long long)i);
            h = block(b, c, h, c->channels << stage, stage > 0 && i == 0 ? 2 : 1);
            cdad_scope_close(b, scope);
        }
        features[stage] = h;
    }
    features[CDAD_RESNET_STAGES] = stem;
}
