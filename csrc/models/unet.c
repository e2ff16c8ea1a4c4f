/* Stable Diffusion 1.x's U-Net. Names and order follow LDM's openaimodel.py (Rombach et al. 2022). */
#include "models/unet_encoder.h"

static int has_attention(const cdad_unet_config *c, int64_t downsampling) {
    for (int64_t i = 0; i < c->n_attention; i++)
        if (c->attention_resolutions[i] == downsampling)
            return 1;
    return 0;
}

static cdad_value conv3x3(cdad_builder *b, cdad_value x, const char *name, int64_t out, const cdad_init *init) {
    return cdad_build_conv2d(b, x, name, (cdad_conv_spec){.out = out, .kernel = 3, .pad = 1, .bias = 1, .init = init});
}

static cdad_value conv1x1(cdad_builder *b, cdad_value x, const char *name, int64_t out, const cdad_init *init) {
    return cdad_build_conv2d(b, x, name, (cdad_conv_spec){.out = out, .kernel = 1, .bias = 1, .init = init});
}

/* x [N,h,w,c], with the channels of `skip` (or CDAD_NONE) behind its own, emb [N,4*model_channels], already through SiLU ->
 * [N,h,w,out] */
static cdad_value res_block(cdad_builder *b, const cdad_unet_config *c, int index, cdad_value x, cdad_value skip,
                            cdad_value emb, int64_t out) {
    const size_t scope = cdad_scope_open(b, "%d", index);
    cdad_graph_block_open(b->g);
    if (skip != CDAD_NONE)
        x = cdad_build_op(b, "concat", 2, CDAD_IN(x, skip), NULL);
    cdad_value h = cdad_build_group_norm(b, x, "in_layers.0", c->norm_groups, 1e-5, 1);
    h = conv3x3(b, h, "in_layers.2", out, NULL);
    const cdad_value shift = cdad_build_linear(b, emb, "emb_layers.1", out, 1, NULL);
    const int64_t n = cdad_build_shape(b, x)->dim[0];
    h = cdad_build_add(b, h, cdad_build_reshape(b, shift, cdad_shape_make(4, n, (int64_t)1, (int64_t)1, out)));
    h = cdad_build_group_norm(b, h, "out_layers.0", c->norm_groups, 1e-5, 1);
    h = conv3x3(b, h, "out_layers.3", out, &cdad_init_zero);
    if (cdad_build_channels(b, x) != out)
        x = conv1x1(b, x, "skip_connection", out, NULL);
    h = cdad_build_add(b, h, x);
    cdad_graph_block_close(b->g);
    cdad_scope_close(b, scope);
    return h;
}

/* x [N,T,C]; keys and values from context, or from x itself */
static cdad_value attention(cdad_builder *b, const char *name, cdad_value x, cdad_value context, int64_t heads) {
    const size_t scope = cdad_scope_open(b, "%s", name);
    const int64_t width = cdad_build_channels(b, x);
    const cdad_value q = cdad_build_linear(b, x, "to_q", width, 0, NULL);
    const cdad_value k = cdad_build_linear(b, context, "to_k", width, 0, NULL);
    const cdad_value v = cdad_build_linear(b, context, "to_v", width, 0, NULL);
    cdad_value y = cdad_build_op(b, "attention", 3, CDAD_IN(q, k, v), "heads", (double)heads, "precision",
                                 (double)b->precision, NULL);
    y = cdad_build_linear(b, y, "to_out.0", width, 1, NULL);
    cdad_scope_close(b, scope);
    return y;
}

static cdad_value spatial_transformer(cdad_builder *b, const cdad_unet_config *c, int index, cdad_value x,
                                      cdad_value context) {
    const size_t outer = cdad_scope_open(b, "%d", index);
    cdad_graph_block_open(b->g);
    const cdad_shape shape = *cdad_build_shape(b, x);
    const int64_t width = cdad_build_channels(b, x);
    cdad_value h = cdad_build_group_norm(b, x, "norm", c->norm_groups, 1e-6, 0);
    h = conv1x1(b, h, "proj_in", width, NULL);
    h = cdad_build_tokens(b, h);
    const size_t inner = cdad_scope_open(b, "transformer_blocks.0");
    cdad_value y = cdad_build_layer_norm(b, h, "norm1", 1e-5);
    h = cdad_build_add(b, attention(b, "attn1", y, y, c->num_heads), h);
    if (c->context_dim > 0) {
        y = cdad_build_layer_norm(b, h, "norm2", 1e-5);
        h = cdad_build_add(b, attention(b, "attn2", y, context, c->num_heads), h);
    }
    y = cdad_build_layer_norm(b, h, "norm3", 1e-5);
    y = cdad_build_linear(b, y, "ff.net.0.proj", 8 * width, 1, NULL);
    y = cdad_build_unary(b, "geglu", y);
    y = cdad_build_linear(b, y, "ff.net.2", width, 1, NULL);
    h = cdad_build_add(b, y, h);
    cdad_scope_close(b, inner);
    h = cdad_build_reshape(b, h, shape);
    h = conv1x1(b, h, "proj_out", width, &cdad_init_zero);
    h = cdad_build_add(b, h, x);
    cdad_graph_block_close(b->g);
    cdad_scope_close(b, outer);
    return h;
}

static void check_config(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value context) {
    const cdad_shape *s = cdad_build_shape(b, x);
    if (c->n_levels < 1 || c->n_levels > CDAD_MAX_LEVELS || c->num_res_blocks < 1 || c->model_channels < 1 ||
        c->num_heads < 1 || c->norm_groups < 1)
        cdad_build_fail(b, CDAD_INVALID, "unet: channel_mult has 1 to %d levels; blocks, channels, heads and groups "
                        "are at least 1", CDAD_MAX_LEVELS);
    else if (c->n_levels * (c->num_res_blocks + 1) > CDAD_MAX_SKIPS)
        cdad_build_fail(b, CDAD_INVALID, "unet: more than %d skip connections", CDAD_MAX_SKIPS);
    else if (s->ndim == 4 && (s->dim[1] % (1 << (c->n_levels - 1)) || s->dim[2] % (1 << (c->n_levels - 1))))
        cdad_build_fail(b, CDAD_SHAPE, "unet: a latent of %lld x %lld cannot be halved %lld times",
                        (long long)s->dim[1], (long long)s->dim[2], (long long)c->n_levels - 1);
    else if (c->context_dim > 0 && context == CDAD_NONE)
        cdad_build_fail(b, CDAD_INVALID, "unet: context_dim is %lld but there is no context",
                        (long long)c->context_dim);
}

/* The shared embedding of the timesteps, already through the SiLU that opens every emb_layers. */
static cdad_value time_embedding(cdad_builder *b, const cdad_unet_config *c, cdad_value t) {
    cdad_value e = cdad_build_op(b, "timestep_embedding", 1, &t, "dim", (double)c->model_channels, NULL);
    e = cdad_build_linear(b, e, "time_embed.0", 4 * c->model_channels, 1, NULL);
    e = cdad_build_unary(b, "silu", e);
    e = cdad_build_linear(b, e, "time_embed.2", 4 * c->model_channels, 1, NULL);
    return cdad_build_unary(b, "silu", e);
}

void cdad_unet_encode_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t, cdad_value context,
                            cdad_value first, cdad_unet_encoded *out) {
    cdad_unet_encoded e = {.emb = CDAD_NONE, .middle = CDAD_NONE};
    *out = e;
    check_config(b, c, x, context);
    if (b->status != CDAD_OK)
        return;
    e.emb = time_embedding(b, c, t);

    int64_t block = 0, downsampling = 1;
    size_t scope = cdad_scope_open(b, "input_blocks.0");
    cdad_value h = conv3x3(b, x, "0", c->model_channels, NULL);
    cdad_scope_close(b, scope);
    if (first != CDAD_NONE)
        h = cdad_build_add(b, h, first);
    e.skips[e.n_skips++] = h;
    for (int64_t level = 0; level < c->n_levels; level++) {
        const int64_t width = c->channel_mult[level] * c->model_channels;
        for (int64_t i = 0; i < c->num_res_blocks; i++) {
            scope = cdad_scope_open(b, "input_blocks.%lld", (long long)++block);
            h = res_block(b, c, 0, h, CDAD_NONE, e.emb, width);
            if (has_attention(c, downsampling))
                h = spatial_transformer(b, c, 1, h, context);
            cdad_scope_close(b, scope);
            e.skips[e.n_skips++] = h;
        }
        if (level == c->n_levels - 1)
            break;
        scope = cdad_scope_open(b, "input_blocks.%lld", (long long)++block);
        h = cdad_build_conv2d(b, h, "0.op",
                              (cdad_conv_spec){.out = width, .kernel = 3, .stride = 2, .pad = 1, .bias = 1});
        cdad_scope_close(b, scope);
        e.skips[e.n_skips++] = h;
        downsampling *= 2;
    }

    scope = cdad_scope_open(b, "middle_block");
    const int64_t middle = cdad_build_channels(b, h);
    h = res_block(b, c, 0, h, CDAD_NONE, e.emb, middle);
    h = spatial_transformer(b, c, 1, h, context);
    e.middle = res_block(b, c, 2, h, CDAD_NONE, e.emb, middle);
    cdad_scope_close(b, scope);
    *out = e;
}

/* The value with its control added, if there is one. */
static cdad_value controlled(cdad_builder *b, cdad_value h, cdad_value control) {
    return control == CDAD_NONE ? h : cdad_build_add(b, h, control);
}

cdad_value cdad_unet_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t,
                           cdad_value context, const cdad_control *control) {
    cdad_unet_encoded e;
    const size_t root = cdad_scope_open(b, "unet");
    cdad_unet_encode_build(b, c, x, t, context, control->first, &e);
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const int with_skips = control->n_skips > 0;
    cdad_value h = controlled(b, e.middle, with_skips ? control->middle : CDAD_NONE);
    int n_skip = e.n_skips;
    int64_t block = 0, downsampling = (int64_t)1 << (c->n_levels - 1);
    for (int64_t level = c->n_levels - 1; level >= 0; level--) {
        const int64_t width = c->channel_mult[level] * c->model_channels;
        for (int64_t i = 0; i <= c->num_res_blocks; i++) {
            const size_t scope = cdad_scope_open(b, "output_blocks.%lld", (long long)block++);
            const cdad_value skip = controlled(b, e.skips[n_skip - 1], with_skips ? control->skips[n_skip - 1] : CDAD_NONE);
            n_skip--;
            h = res_block(b, c, 0, h, skip, e.emb, width);
            int module = 1;
            if (has_attention(c, downsampling))
                h = spatial_transformer(b, c, module++, h, context);
            if (level > 0 && i == c->num_res_blocks) {
                const size_t up = cdad_scope_open(b, "%d", module);
                h = cdad_build_conv2d(
                    b, h, "conv", (cdad_conv_spec){.out = width, .kernel = 3, .pad = 1, .upsample = 2, .bias = 1});
                cdad_scope_close(b, up);
                downsampling /= 2;
            }
            cdad_scope_close(b, scope);
        }
    }
    h = cdad_build_group_norm(b, h, "out.0", c->norm_groups, 1e-5, 1);
    h = conv3x3(b, h, "out.2", c->out_channels, &cdad_init_zero);
    cdad_scope_close(b, root);
    return h;
}
