/* The list of ops. */
#include <string.h>

#include "ops/ops.h"

static const cdad_op *const ops[] = {
    &cdad_op_linear,
    &cdad_op_linear_grad_input,
    &cdad_op_linear_grad_weight,
    &cdad_op_conv2d,
    &cdad_op_conv2d_grad_input,
    &cdad_op_conv2d_grad_weight,
    &cdad_op_depthwise_conv2d,
    &cdad_op_depthwise_conv2d_grad_input,
    &cdad_op_depthwise_conv2d_grad_weight,
    &cdad_op_max_pool2d,
    &cdad_op_max_pool2d_grad,
    &cdad_op_silu,
    &cdad_op_relu,
    &cdad_op_relu6,
    &cdad_op_gelu,
    &cdad_op_quick_gelu,
    &cdad_op_tanh,
    &cdad_op_sigmoid,
    &cdad_op_exp,
    &cdad_op_sqrt,
    &cdad_op_activation_grad,
    &cdad_op_affine,
    &cdad_op_add,
    &cdad_op_sub,
    &cdad_op_mul,
    &cdad_op_reduce_sum,
    &cdad_op_reduce_to,
    &cdad_op_broadcast_to,
    &cdad_op_geglu,
    &cdad_op_geglu_grad,
    &cdad_op_group_norm,
    &cdad_op_group_norm_grad,
    &cdad_op_layer_norm,
    &cdad_op_layer_norm_grad,
    &cdad_op_normalize_grad,
    &cdad_op_attention,
    &cdad_op_attention_grad,
    &cdad_op_upsample2x,
    &cdad_op_upsample2x_grad,
    &cdad_op_resize_bilinear,
    &cdad_op_concat,
    &cdad_op_slice,
    &cdad_op_pad_columns,
    &cdad_op_reshape,
    &cdad_op_stop_gradient,
    &cdad_op_depth_to_space,
    &cdad_op_space_to_depth,
    &cdad_op_timestep_embedding,
    &cdad_op_token_embedding,
    &cdad_op_token_embedding_grad,
    &cdad_op_mse,
    &cdad_op_mse_grad,
};

enum { COUNT = sizeof ops / sizeof *ops };

const cdad_op *cdad_op_at(int i) { return i >= 0 && i < COUNT ? ops[i] : NULL; }

const cdad_op *cdad_op_find(const char *name) {
    for (int i = 0; i < COUNT; i++)
        if (strcmp(ops[i]->name, name) == 0)
            return ops[i];
    return NULL;
}
