/* ControlNet (Zhang et al. 2023; names of its cldm.py): a copy of the U-Net's encoder, which also sees an image, and whose
 * outputs are added to the U-Net's through convolutions that begin with zeros. */
#include "models/unet_encoder.h"

#include <stdio.h>

cdad_value cdad_controlnet_hint_build(cdad_builder *b, const cdad_hint_config *c, int64_t channels, cdad_value image) {
    const size_t scope = cdad_scope_open(b, "control");
    const cdad_value hint = cdad_hint_build(b, c, channels, 1, &cdad_init_zero, image);
    cdad_scope_close(b, scope);
    return hint;
}

static cdad_value zero_conv(cdad_builder *b, cdad_value x, const char *name) {
    return cdad_build_conv2d(
        b, x, name,
        (cdad_conv_spec){.out = cdad_build_channels(b, x), .kernel = 1, .bias = 1, .init = &cdad_init_zero});
}

void cdad_controlnet_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t, cdad_value context,
                           cdad_value hint, cdad_control *out) {
    cdad_unet_encoded e;
    const size_t scope = cdad_scope_open(b, "control");
    cdad_unet_encode_build(b, c, x, t, context, hint, &e);
    *out = (cdad_control){.first = CDAD_NONE, .n_skips = e.n_skips, .middle = CDAD_NONE};
    for (int i = 0; i < e.n_skips; i++) {
        char name[32];
        snprintf(name, sizeof name, "zero_convs.%d.0", i);
        out->skips[i] = zero_conv(b, e.skips[i], name);
    }
    out->middle = zero_conv(b, e.middle, "middle_block_out.0");
    cdad_scope_close(b, scope);
}
