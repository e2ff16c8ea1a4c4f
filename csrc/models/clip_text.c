/* CLIP's text transformer (Radford et al. 2021), as far as Stable Diffusion reads it: all tokens after the last norm.
 * Names are those of transformers' CLIPTextModel, which the checkpoints of Stable Diffusion 1.x hold. */
#include "models/models.h"

/* x [N,L,C]; a token sees itself and those before it */
static cdad_value self_attention(cdad_builder *b, const cdad_clip_text_config *c, cdad_value x) {
    const size_t scope = cdad_scope_open(b, "self_attn");
    const cdad_value q = cdad_build_linear(b, x, "q_proj", c->width, 1, NULL);
    const cdad_value k = cdad_build_linear(b, x, "k_proj", c->width, 1, NULL);
    const cdad_value v = cdad_build_linear(b, x, "v_proj", c->width, 1, NULL);
    cdad_value y = cdad_build_op(b, "attention", 3, CDAD_IN(q, k, v), "heads", (double)c->num_heads, "causal", 1.0, NULL);
    y = cdad_build_linear(b, y, "out_proj", c->width, 1, NULL);
    cdad_scope_close(b, scope);
    return y;
}

/* The sum of the tokens' rows and of their places'. */
static cdad_value embeddings(cdad_builder *b, const cdad_clip_text_config *c, cdad_value ids) {
    const cdad_init init = {CDAD_INIT_NORMAL, 0.02f};
    const size_t scope = cdad_scope_open(b, "embeddings");
    const cdad_value tokens =
        cdad_build_param(b, "token_embedding.weight", cdad_shape_make(2, c->vocab_size, c->width), init);
    const cdad_value places = cdad_build_param(b, "position_embedding.weight",
                                               cdad_shape_make(2, cdad_build_channels(b, ids), c->width), init);
    cdad_scope_close(b, scope);
    return cdad_build_add(b, cdad_build_op(b, "token_embedding", 2, CDAD_IN(ids, tokens), NULL), places);
}

cdad_value cdad_clip_text_build(cdad_builder *b, const cdad_clip_text_config *c, cdad_value ids) {
    const size_t root = cdad_scope_open(b, "text_model");
    cdad_value x = embeddings(b, c, ids);
    for (int64_t i = 0; i < c->n_layers; i++) {
        const size_t scope = cdad_scope_open(b, "encoder.layers.%lld", (long long)i);
        cdad_value y = self_attention(b, c, cdad_build_layer_norm(b, x, "layer_norm1", 1e-5));
        x = cdad_build_add(b, y, x);
        y = cdad_build_linear(b, cdad_build_layer_norm(b, x, "layer_norm2", 1e-5), "mlp.fc1", c->dim_feedforward, 1, NULL);
        y = cdad_build_linear(b, cdad_build_unary(b, "quick_gelu", y), "mlp.fc2", c->width, 1, NULL);
        x = cdad_build_add(b, y, x);
        cdad_scope_close(b, scope);
    }
    x = cdad_build_layer_norm(b, x, "final_layer_norm", 1e-5);
    cdad_scope_close(b, root);
    return x;
}
