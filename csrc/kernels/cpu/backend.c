/* The table of one instruction set; that of AVX-512 and AMX comes with AVX-512's. */
#include "kernels/cpu/backend.h"
#include "kernels/cpu/gemm.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define SLOT(name) .name = CDAD_K(name)

/* Those that are the same with AMX. */
#define PLAIN_SLOTS \
    SLOT(gram_panels), \
    SLOT(sketch_add), \
    SLOT(sketch_scratch), \
    SLOT(winograd), \
    SLOT(winograd_scratch), \
    SLOT(winograd_grad), \
    SLOT(winograd_grad_scratch), \
    SLOT(narrow_conv2d), \
    SLOT(narrow_conv2d_scratch), \
    SLOT(narrow_conv2d_grad_weight), \
    SLOT(narrow_conv2d_grad_weight_scratch), \
    SLOT(depthwise_conv2d), \
    SLOT(depthwise_conv2d_grad), \
    SLOT(max_pool2d), \
    SLOT(max_pool2d_grad), \
    SLOT(activation), \
    SLOT(activation_grad), \
    SLOT(affine), \
    SLOT(binary), \
    SLOT(reduce), \
    SLOT(reduce_scratch), \
    SLOT(geglu), \
    SLOT(geglu_grad), \
    SLOT(group_norm), \
    SLOT(group_norm_grad), \
    SLOT(group_norm_scratch), \
    SLOT(layer_norm), \
    SLOT(layer_norm_grad), \
    SLOT(layer_norm_grad_scratch), \
    SLOT(attention), \
    SLOT(attention_grad), \
    SLOT(attention_scratch), \
    SLOT(upsample2x), \
    SLOT(upsample2x_grad), \
    SLOT(resize_bilinear), \
    SLOT(copy_runs), \
    SLOT(timestep_embedding), \
    SLOT(gather_rows), \
    SLOT(scatter_rows), \
    SLOT(mse), \
    SLOT(mse_grad), \
    SLOT(sum_squares), \
    SLOT(sum_squares_pulled), \
    SLOT(add_magnitudes), \
    SLOT(adamw), \
    SLOT(add_to)

extern const cdad_kernels CDAD_K(kernels);
const cdad_kernels CDAD_K(kernels) = {
    .name = TEXT(CDAD_ISA),
    SLOT(gemm),
    SLOT(gemm_scratch),
    SLOT(gram_pack),
    SLOT(gram_tile),
    SLOT(gram_rounds_fast),
#if CDAD_VBYTES == 32
    SLOT(gram_bytes_panels),
    SLOT(gram_bytes_pack),
    SLOT(gram_bytes_tile),
#endif
    SLOT(bf16_speed),
    PLAIN_SLOTS,
};

#if GEMM_AMX
extern const cdad_kernels cdad_kernels_amx;
const cdad_kernels cdad_kernels_amx = {
    .name = "amx",
    .gemm = CDAD_K(amx_gemm),
    .gemm_scratch = CDAD_K(amx_gemm_scratch),
    .gram_pack = CDAD_K(amx_gram_pack),
    .gram_tile = CDAD_K(amx_gram_tile),
    .gram_rounds_fast = CDAD_K(amx_gram_rounds_fast),
    .bf16_speed = CDAD_K(amx_bf16_speed),
    PLAIN_SLOTS,
};
#endif
