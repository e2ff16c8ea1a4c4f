/* Layers on the graph: each adds its nodes and registers its parameters under the builder's scope.
 *
 * The first failure is kept in the builder; every later call returns CDAD_NONE at once, so that a model reads
 * as a plain sequence of layers and is checked once at its end. */
#ifndef CDAD_NN_LAYERS_H
#define CDAD_NN_LAYERS_H

#include <stddef.h>

#include "kernels/kernels.h"
#include "nn/params.h"

#define CDAD_NAME_BYTES 192

typedef struct cdad_builder {
    cdad_graph *g;
    cdad_params *params;
    cdad_error *err;
    cdad_status status;
    cdad_precision precision;    /* of the products of linear maps, convolutions and attention from now on */
    char scope[CDAD_NAME_BYTES]; /* "unet.input_blocks.0." */
} cdad_builder;

void cdad_builder_init(cdad_builder *b, cdad_graph *g, cdad_params *params, cdad_error *err);

/* Adds a printf-formatted part and a dot to the scope; returns the length to give to cdad_scope_close. */
size_t cdad_scope_open(cdad_builder *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void cdad_scope_close(cdad_builder *b, size_t length);

const cdad_shape *cdad_build_shape(const cdad_builder *b, cdad_value v);
int64_t cdad_build_channels(const cdad_builder *b, cdad_value v); /* the last dimension; 0 after a failure */
void cdad_build_fail(cdad_builder *b, cdad_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Values. */
cdad_value cdad_build_input(cdad_builder *b, const char *name, cdad_shape shape);
cdad_value cdad_build_const(cdad_builder *b, cdad_shape shape, const float *data);
cdad_value cdad_build_param(cdad_builder *b, const char *name, cdad_shape shape, cdad_init init);

/* Any op by name: attributes as (name, double) pairs ended by NULL. */
cdad_value cdad_build_op(cdad_builder *b, const char *op, int n_in, const cdad_value *in, ...);
#define CDAD_IN(...) ((const cdad_value[]){__VA_ARGS__})
cdad_value cdad_build_unary(cdad_builder *b, const char *op, cdad_value x);
cdad_value cdad_build_add(cdad_builder *b, cdad_value a, cdad_value c);
cdad_value cdad_build_affine(cdad_builder *b, cdad_value x, double scale, double shift);
cdad_value cdad_build_reshape(cdad_builder *b, cdad_value x, cdad_shape shape);
cdad_value cdad_build_tokens(cdad_builder *b, cdad_value x); /* [N,H,W,C] -> [N,H*W,C] */

typedef struct cdad_conv_spec {
    int64_t out, kernel;
    int64_t stride;     /* 0 means 1 */
    int64_t pad;        /* on every side, unless pad_end_only */
    int pad_end_only;   /* pad below and to the right only (the KL autoencoder's downsampling) */
    int64_t upsample;   /* 2: nearest upsampling in front; 0 means 1 */
    int bias;
    const cdad_init *init; /* of the weight; NULL: U(+-1/sqrt(fan_in)), PyTorch's default */
} cdad_conv_spec;

cdad_value cdad_build_conv2d(cdad_builder *b, cdad_value x, const char *name, cdad_conv_spec spec);
/* `init` as above. */
cdad_value cdad_build_linear(cdad_builder *b, cdad_value x, const char *name, int64_t out, int bias,
                             const cdad_init *init);
cdad_value cdad_build_group_norm(cdad_builder *b, cdad_value x, const char *name, int64_t groups, double eps,
                                 int silu);
cdad_value cdad_build_layer_norm(cdad_builder *b, cdad_value x, const char *name, double eps);
/* Without the affine part: zero mean, unit variance over the channels. */
cdad_value cdad_build_normalize(cdad_builder *b, cdad_value x, double eps);

extern const cdad_init cdad_init_zero;

#endif
