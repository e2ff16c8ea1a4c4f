/* The tiny autoencoders of the TAESD family (madebyollin/taesd): plain conv/ReLU blocks; tensor names are the
 * modules' indices in the original nn.Sequential, under the scopes "encoder." and "decoder.". */
#include "models/models.h"

#include <stdio.h>

/* Indexed layers: `at` is the next module's index. */
typedef struct sequence {
    cdad_builder *b;
    const cdad_tiny_ae_config *c;
    int at;
} sequence;

static cdad_value relu(cdad_builder *b, cdad_value x) { return cdad_build_unary(b, "relu", x); }

static cdad_value conv(sequence *s, cdad_value x, cdad_conv_spec spec) {
    char name[32];
    snprintf(name, sizeof name, "%d", s->at++);
    spec.kernel = 3;
    spec.pad = 1;
    return cdad_build_conv2d(s->b, x, name, spec);
}

/* ReLU(conv-ReLU-conv-ReLU-conv(x) + x); the pooled branch first adds 1x1, GroupNorm(4), ReLU, 1x1 of x. */
static cdad_value block(sequence *s, cdad_value x, int pooled) {
    cdad_builder *b = s->b;
    const int64_t width = s->c->channels;
    const size_t scope = cdad_scope_open(b, "%d", s->at++);
    if (pooled) {
        cdad_value p = cdad_build_conv2d(b, x, "pool.0", (cdad_conv_spec){.out = 4 * width, .kernel = 1});
        p = relu(b, cdad_build_group_norm(b, p, "pool.1", 4, 1e-5, 0));
        p = cdad_build_conv2d(b, p, "pool.3", (cdad_conv_spec){.out = width, .kernel = 1});
        x = cdad_build_add(b, x, p);
    }
    const cdad_conv_spec spec = {.out = width, .kernel = 3, .pad = 1, .bias = 1};
    cdad_value h = relu(b, cdad_build_conv2d(b, x, "conv.0", spec));
    h = relu(b, cdad_build_conv2d(b, h, "conv.2", spec));
    h = cdad_build_conv2d(b, h, "conv.4", spec);
    cdad_scope_close(b, scope);
    return relu(b, cdad_build_add(b, h, x));
}

cdad_value cdad_tiny_ae_encode_build(cdad_builder *b, const cdad_tiny_ae_config *c, cdad_value image,
                                     cdad_value features[3]) {
    const cdad_shape *shape = cdad_build_shape(b, image);
    if (shape->dim[1] % 8 || shape->dim[2] % 8)
        cdad_build_fail(b, CDAD_SHAPE, "tiny autoencoder: an image of %lld x %lld is no multiple of 8",
                        (long long)shape->dim[1], (long long)shape->dim[2]);
    sequence s = {b, c, 0};
    const size_t scope = cdad_scope_open(b, "encoder");
    cdad_value h = conv(&s, image, (cdad_conv_spec){.out = c->channels, .bias = 1});
    h = block(&s, h, 0);
    for (int level = 0; level < 3; level++) {
        h = conv(&s, h, (cdad_conv_spec){.out = c->channels, .stride = 2});
        for (int i = 0; i < 3; i++)
            h = block(&s, h, c->midblock && level == 2);
        if (features)
            features[level] = h;
    }
    h = conv(&s, h, (cdad_conv_spec){.out = c->latent_channels, .bias = 1});
    cdad_scope_close(b, scope);
    return h;
}

cdad_value cdad_tiny_ae_decode_build(cdad_builder *b, const cdad_tiny_ae_config *c, cdad_value latent) {
    sequence s = {b, c, 1}; /* module 0 is the clamp */
    const size_t scope = cdad_scope_open(b, "decoder");
    cdad_value h = cdad_build_affine(b, latent, 1.0 / 3.0, 0.0);
    h = cdad_build_affine(b, cdad_build_unary(b, "tanh", h), 3.0, 0.0);
    h = relu(b, conv(&s, h, (cdad_conv_spec){.out = c->channels, .bias = 1}));
    s.at++; /* the ReLU */
    for (int level = 0; level < 3; level++) {
        for (int i = 0; i < 3; i++)
            h = block(&s, h, c->midblock && level == 0);
        s.at++; /* the upsampling */
        h = conv(&s, h, (cdad_conv_spec){.out = c->channels, .upsample = 2});
    }
    h = block(&s, h, 0);
    h = conv(&s, h, (cdad_conv_spec){.out = 3, .bias = 1});
    cdad_scope_close(b, scope);
    return h;
}
