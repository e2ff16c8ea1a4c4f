/* The convolutions by which the masked network and a ControlNet read an image: ControlNet's input_hint_block (Zhang et al.
 * 2023), which the paper's E_lo takes over without the biases. */
#include "models/models.h"

#include <math.h>
#include <stdio.h>

cdad_value cdad_hint_build(cdad_builder *b, const cdad_hint_config *c, int64_t channels, int bias, const cdad_init *last,
                           cdad_value image) {
    const size_t scope = cdad_scope_open(b, "input_hint_block");
    cdad_graph_block_open(b->g);
    cdad_value h = image;
    for (int64_t i = 0; i <= c->n_hidden; i++) {
        const int64_t fan_in = 9 * cdad_build_channels(b, h);
        const cdad_init keeping = {CDAD_INIT_NORMAL, 1.7f / sqrtf((float)(fan_in > 0 ? fan_in : 1))};
        const cdad_init *init = c->keep_variance ? &keeping : NULL;
        char name[32];
        snprintf(name, sizeof name, "%lld", (long long)(2 * i));
        h = cdad_build_conv2d(b, h, name,
                              (cdad_conv_spec){.out = i < c->n_hidden ? c->hidden[i] : channels,
                                               .kernel = 3,
                                               .pad = 1,
                                               .stride = i < c->n_hidden ? c->strides[i] : 1,
                                               .bias = bias,
                                               .init = i == c->n_hidden && last ? last : init});
        if (i < c->n_hidden)
            h = cdad_build_unary(b, "silu", h);
    }
    cdad_graph_block_close(b->g);
    cdad_scope_close(b, scope);
    return h;
}
