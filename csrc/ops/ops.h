/* Every op, by family. What an op computes stands in its file; attributes and shapes are in its shape rule.
 * Gradient ops are ops too: they are not differentiated again (CDAD_OP_NO_GRAD). */
#ifndef CDAD_OPS_OPS_H
#define CDAD_OPS_OPS_H

#include "graph/op.h"

/* linear.c */
extern const cdad_op cdad_op_linear, cdad_op_linear_grad_input, cdad_op_linear_grad_weight;
/* conv2d.c */
extern const cdad_op cdad_op_conv2d, cdad_op_conv2d_grad_input, cdad_op_conv2d_grad_weight;
/* depthwise.c */
extern const cdad_op cdad_op_depthwise_conv2d, cdad_op_depthwise_conv2d_grad_input,
    cdad_op_depthwise_conv2d_grad_weight;
/* max_pool.c */
extern const cdad_op cdad_op_max_pool2d, cdad_op_max_pool2d_grad;
/* activation.c */
extern const cdad_op cdad_op_silu, cdad_op_relu, cdad_op_relu6, cdad_op_gelu, cdad_op_quick_gelu,
    cdad_op_tanh, cdad_op_sigmoid, cdad_op_exp, cdad_op_sqrt, cdad_op_activation_grad;
/* arithmetic.c */
extern const cdad_op cdad_op_affine, cdad_op_add, cdad_op_sub, cdad_op_mul;
/* reduce.c */
extern const cdad_op cdad_op_reduce_sum, cdad_op_reduce_to, cdad_op_broadcast_to;
/* geglu.c */
extern const cdad_op cdad_op_geglu, cdad_op_geglu_grad;
/* group_norm.c */
extern const cdad_op cdad_op_group_norm, cdad_op_group_norm_grad;
/* layer_norm.c */
extern const cdad_op cdad_op_layer_norm, cdad_op_layer_norm_grad, cdad_op_normalize_grad;
/* attention.c */
extern const cdad_op cdad_op_attention, cdad_op_attention_grad;
/* resample.c */
extern const cdad_op cdad_op_upsample2x, cdad_op_upsample2x_grad, cdad_op_resize_bilinear;
/* columns.c */
extern const cdad_op cdad_op_concat, cdad_op_slice, cdad_op_pad_columns;
/* layout.c */
extern const cdad_op cdad_op_reshape, cdad_op_stop_gradient, cdad_op_depth_to_space, cdad_op_space_to_depth;
/* embedding.c */
extern const cdad_op cdad_op_timestep_embedding, cdad_op_token_embedding, cdad_op_token_embedding_grad;
/* loss.c */
extern const cdad_op cdad_op_mse, cdad_op_mse_grad;

#endif
