/* The table of one instruction set. */
#include "kernels/cpu/backend.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define SLOT(name) .name = CDAD_K(name)

extern const cdad_kernels CDAD_K(kernels);
const cdad_kernels CDAD_K(kernels) = {
    .name = TEXT(CDAD_ISA),
    SLOT(gemm),
    SLOT(gemm_scratch),
    SLOT(winograd),
    SLOT(winograd_scratch),
    SLOT(winograd_grad),
    SLOT(winograd_grad_scratch),
    SLOT(narrow_conv2d),
    SLOT(narrow_conv2d_scratch),
    SLOT(narrow_conv2d_grad_weight),
    SLOT(narrow_conv2d_grad_weight_scratch),
    SLOT(depthwise_conv2d),
    SLOT(depthwise_conv2d_grad),
    SLOT(max_pool2d),
    SLOT(max_pool2d_grad),
    SLOT(activation),
    SLOT(activation_grad),
    SLOT(affine),
    SLOT(binary),
    SLOT(reduce),
    SLOT(reduce_scratch),
    SLOT(geglu),
    SLOT(geglu_grad),
    SLOT(group_norm),
    SLOT(group_norm_grad),
    SLOT(layer_norm),
    SLOT(layer_norm_grad),
    SLOT(layer_norm_grad_scratch),
    SLOT(attention),
    SLOT(attention_grad),
    SLOT(attention_scratch),
    SLOT(upsample2x),
    SLOT(upsample2x_grad),
    SLOT(resize_bilinear),
    SLOT(copy_columns),
    SLOT(timestep_embedding),
    SLOT(mse),
    SLOT(mse_grad),
    SLOT(sum_squares),
    SLOT(sum_squares_pulled),
    SLOT(add_magnitudes),
    SLOT(adamw),
    SLOT(add_to),
};
