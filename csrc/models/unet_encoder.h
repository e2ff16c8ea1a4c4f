/* The half of the U-Net that a ControlNet has a copy of: embedding of the timesteps, input blocks, middle block. */
#ifndef CDAD_MODELS_UNET_ENCODER_H
#define CDAD_MODELS_UNET_ENCODER_H

#include "models/models.h"

typedef struct cdad_unet_encoded {
    cdad_value emb; /* [N,4*model_channels], already through the SiLU that opens every emb_layers */
    int n_skips;
    cdad_value skips[CDAD_MAX_SKIPS]; /* outputs of input_blocks.0, input_blocks.1, ... */
    cdad_value middle;
} cdad_unet_encoded;

/* x [N,h,w,in], t [N], context as for cdad_unet_build; `first` (or CDAD_NONE) is added to the first convolution's output. In
 * the builder's scope. */
void cdad_unet_encode_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t, cdad_value context,
                            cdad_value first, cdad_unet_encoded *out);

#endif
