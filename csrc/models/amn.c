/* The anomaly-masked network tau: E_lo, a convolutional local encoder, and E_no, a transformer whose tokens do
 * not see their neighbourhood (paper, section 3.3; UniAD's neighbour-masked attention, You et al. 2022).
 *
 * The published checkpoints pack the projections of q, k and v in one matrix although q and k read x + e_p and v
 * reads x. Here they are three weights, each with its own input and so with its own basis; the loader splits
 * `in_proj_weight` into `q_proj`, `k_proj` and `v_proj`. */
#include "models/models.h"

#include <math.h>

#include "base/memory.h"

cdad_value cdad_amn_local_build(cdad_builder *b, const cdad_amn_config *c, cdad_value image) {
    const size_t scope = cdad_scope_open(b, "amn");
    const cdad_value h = cdad_hint_build(b, &c->hint, c->channels, 0, NULL, image);
    cdad_scope_close(b, scope);
    return h;
}

/* DETR's sine embedding, normalised to 2 pi, y before x: [1,H*W,C] */
static cdad_value position_embedding(cdad_builder *b, int64_t H, int64_t W, int64_t C) {
    float *e = NULL;
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    if (C % 4) {
        cdad_build_fail(b, CDAD_INVALID, "amn: %lld channels; the position embedding wants a multiple of 4",
                        (long long)C);
        return CDAD_NONE;
    }
    b->status = cdad_alloc((void **)&e, H * W * C * (int64_t)sizeof(float), b->err);
    if (b->status != CDAD_OK)
        return CDAD_NONE;
    const double two_pi = 6.283185307179586;
    const int64_t half = C / 2;
    for (int64_t y = 0; y < H; y++)
        for (int64_t x = 0; x < W; x++)
            for (int64_t i = 0; i < half; i++) {
                const double wave = pow(10000.0, 2.0 * (double)(i / 2) / (double)half);
                const double py = (double)(y + 1) / ((double)H + 1e-6) * two_pi / wave;
                const double px = (double)(x + 1) / ((double)W + 1e-6) * two_pi / wave;
                float *at = e + (y * W + x) * C;
                at[i] = (float)(i % 2 ? cos(py) : sin(py));
                at[half + i] = (float)(i % 2 ? cos(px) : sin(px));
            }
    const cdad_value v = cdad_build_const(b, cdad_shape_make(3, (int64_t)1, H * W, C), e);
    cdad_free(e);
    return v;
}

cdad_value cdad_amn_nonlocal_build(cdad_builder *b, const cdad_amn_config *c, cdad_value local) {
    const cdad_shape shape = *cdad_build_shape(b, local);
    const cdad_value position = position_embedding(b, shape.dim[1], shape.dim[2], shape.dim[3]);
    cdad_value x = cdad_build_tokens(b, local);
    for (int64_t i = 0; i < c->n_layers; i++) {
        const size_t scope = cdad_scope_open(b, "amn.encoder.layers.%lld", (long long)i);
        cdad_graph_block_open(b->g);
        const cdad_value placed = cdad_build_add(b, x, position);
        const cdad_value q = cdad_build_linear(b, placed, "self_attn.q_proj", c->channels, 1, NULL);
        const cdad_value k = cdad_build_linear(b, placed, "self_attn.k_proj", c->channels, 1, NULL);
        const cdad_value v = cdad_build_linear(b, x, "self_attn.v_proj", c->channels, 1, NULL);
        cdad_value y = cdad_build_op(b, "attention", 3, CDAD_IN(q, k, v), "heads", (double)c->num_heads, "grid_h",
                                     (double)shape.dim[1], "grid_w", (double)shape.dim[2], "mask_h",
                                     (double)c->neighbor_h, "mask_w", (double)c->neighbor_w, "precision",
                                     (double)b->precision, NULL);
        y = cdad_build_linear(b, y, "self_attn.out_proj", c->channels, 1, NULL);
        x = cdad_build_layer_norm(b, cdad_build_add(b, y, x), "norm1", 1e-5);
        y = cdad_build_linear(b, x, "linear1", c->dim_feedforward, 1, NULL);
        y = cdad_build_unary(b, "relu", y);
        y = cdad_build_linear(b, y, "linear2", c->channels, 1, NULL);
        x = cdad_build_layer_norm(b, cdad_build_add(b, y, x), "norm2", 1e-5);
        cdad_graph_block_close(b->g);
        cdad_scope_close(b, scope);
    }
    return cdad_build_reshape(b, x, shape);
}
