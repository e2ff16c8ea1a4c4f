/* LDM's KL autoencoder (Rombach et al. 2022; ldm/modules/diffusionmodules/model.py). */
#include "models/models.h"

#include <stdio.h>

static cdad_value conv(cdad_builder *b, cdad_value x, const char *name, int64_t out, int64_t kernel) {
    return cdad_build_conv2d(
        b, x, name, (cdad_conv_spec){.out = out, .kernel = kernel, .pad = kernel / 2, .bias = 1});
}

static cdad_value res_block(cdad_builder *b, const cdad_vae_config *c, cdad_value x, const char *name, int64_t out) {
    const size_t scope = cdad_scope_open(b, "%s", name);
    cdad_value h = cdad_build_group_norm(b, x, "norm1", c->norm_groups, 1e-6, 1);
    h = conv(b, h, "conv1", out, 3);
    h = cdad_build_group_norm(b, h, "norm2", c->norm_groups, 1e-6, 1);
    h = conv(b, h, "conv2", out, 3);
    if (cdad_build_channels(b, x) != out)
        x = conv(b, x, "nin_shortcut", out, 1);
    cdad_scope_close(b, scope);
    return cdad_build_add(b, h, x);
}

static cdad_value middle(cdad_builder *b, const cdad_vae_config *c, cdad_value x) {
    const size_t scope = cdad_scope_open(b, "mid");
    const int64_t width = cdad_build_channels(b, x);
    x = res_block(b, c, x, "block_1", width);
    const size_t attn = cdad_scope_open(b, "attn_1");
    const cdad_shape shape = *cdad_build_shape(b, x);
    const cdad_value h = cdad_build_group_norm(b, x, "norm", c->norm_groups, 1e-6, 0);
    const cdad_value q = cdad_build_tokens(b, conv(b, h, "q", width, 1));
    const cdad_value k = cdad_build_tokens(b, conv(b, h, "k", width, 1));
    const cdad_value v = cdad_build_tokens(b, conv(b, h, "v", width, 1));
    cdad_value y = cdad_build_op(b, "attention", 3, CDAD_IN(q, k, v), "heads", 1.0, "precision", (double)b->precision, NULL);
    y = conv(b, cdad_build_reshape(b, y, shape), "proj_out", width, 1);
    cdad_scope_close(b, attn);
    x = res_block(b, c, cdad_build_add(b, y, x), "block_2", width);
    cdad_scope_close(b, scope);
    return x;
}

/* norm_out, SiLU, conv_out */
static cdad_value tail(cdad_builder *b, const cdad_vae_config *c, cdad_value x, int64_t out) {
    return conv(b, cdad_build_group_norm(b, x, "norm_out", c->norm_groups, 1e-6, 1), "conv_out", out, 3);
}

static int has_levels(cdad_builder *b, const cdad_vae_config *c) {
    if (c->n_levels < 1 || c->n_levels > CDAD_MAX_LEVELS)
        cdad_build_fail(b, CDAD_INVALID, "vae: ch_mult has 1 to %d levels", CDAD_MAX_LEVELS);
    return b->status == CDAD_OK;
}

cdad_value cdad_vae_encode_build(cdad_builder *b, const cdad_vae_config *c, cdad_value image) {
    if (!has_levels(b, c))
        return CDAD_NONE;
    const cdad_shape *s = cdad_build_shape(b, image);
    const int64_t factor = (int64_t)1 << (c->n_levels - 1);
    if (s->dim[1] % factor || s->dim[2] % factor)
        cdad_build_fail(b, CDAD_SHAPE, "vae: an image of %lld x %lld is no multiple of %lld", (long long)s->dim[1],
                        (long long)s->dim[2], (long long)factor);
    const size_t scope = cdad_scope_open(b, "encoder");
    cdad_value h = conv(b, image, "conv_in", c->ch, 3);
    for (int64_t level = 0; level < c->n_levels; level++) {
        const size_t down = cdad_scope_open(b, "down.%lld", (long long)level);
        for (int64_t i = 0; i < c->num_res_blocks; i++) {
            char name[32];
            snprintf(name, sizeof name, "block.%lld", (long long)i);
            h = res_block(b, c, h, name, c->ch * c->ch_mult[level]);
        }
        if (level < c->n_levels - 1)
            h = cdad_build_conv2d(b, h, "downsample.conv",
                                  (cdad_conv_spec){.out = cdad_build_channels(b, h),
                                                   .kernel = 3,
                                                   .stride = 2,
                                                   .pad = 1,
                                                   .pad_end_only = 1,
                                                   .bias = 1});
        cdad_scope_close(b, down);
    }
    h = tail(b, c, middle(b, c, h), 2 * c->z_channels);
    cdad_scope_close(b, scope);
    return conv(b, h, "quant_conv", 2 * c->z_channels, 1);
}

cdad_value cdad_vae_decode_build(cdad_builder *b, const cdad_vae_config *c, cdad_value z) {
    if (!has_levels(b, c))
        return CDAD_NONE;
    cdad_value h = conv(b, z, "post_quant_conv", c->z_channels, 1);
    const size_t scope = cdad_scope_open(b, "decoder");
    h = conv(b, h, "conv_in", c->ch * c->ch_mult[c->n_levels - 1], 3);
    h = middle(b, c, h);
    for (int64_t level = c->n_levels - 1; level >= 0; level--) {
        const size_t up = cdad_scope_open(b, "up.%lld", (long long)level);
        for (int64_t i = 0; i <= c->num_res_blocks; i++) {
            char name[32];
            snprintf(name, sizeof name, "block.%lld", (long long)i);
            h = res_block(b, c, h, name, c->ch * c->ch_mult[level]);
        }
        if (level > 0)
            h = cdad_build_conv2d(b, h, "upsample.conv",
                                  (cdad_conv_spec){.out = cdad_build_channels(b, h),
                                                   .kernel = 3,
                                                   .pad = 1,
                                                   .upsample = 2,
                                                   .bias = 1});
        cdad_scope_close(b, up);
    }
    h = tail(b, c, h, 3);
    cdad_scope_close(b, scope);
    return h;
}
