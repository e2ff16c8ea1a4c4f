/* The models: each a function that adds its layers to a graph. Tensor names are the originals'. */
#ifndef CDAD_MODELS_MODELS_H
#define CDAD_MODELS_MODELS_H

#include "nn/layers.h"

#define CDAD_MAX_LEVELS 8
#define CDAD_MAX_SKIPS 64

/* Stable Diffusion 1.x's U-Net (LDM's openaimodel.UNetModel with spatial transformers). */
typedef struct cdad_unet_config {
    int64_t in_channels, out_channels, model_channels;
    int64_t n_levels, channel_mult[CDAD_MAX_LEVELS];
    int64_t num_res_blocks;
    int64_t n_attention, attention_resolutions[CDAD_MAX_LEVELS]; /* downsampling factors with attention */
    int64_t num_heads;
    int64_t context_dim; /* 0: no cross-attention layers */
    int64_t norm_groups;
} cdad_unet_config;

/* What is added within the U-Net: by the masked network to the first convolution's output, by a ControlNet to each skip
 * connection and to the middle block's output. */
typedef struct cdad_control {
    cdad_value first;                 /* [N,h,w,model_channels] or CDAD_NONE */
    int n_skips;                      /* 0: no ControlNet */
    cdad_value skips[CDAD_MAX_SKIPS]; /* as input_blocks.0, input_blocks.1, ... give them */
    cdad_value middle;
} cdad_control;

/* x [N,h,w,in], t [N], context [N,L,context_dim] or CDAD_NONE -> [N,h,w,out]. Scope "unet.". */
cdad_value cdad_unet_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t,
                           cdad_value context, const cdad_control *control);

/* 3x3 convolutions with SiLU between them, by which an image is read at the latent's size. */
typedef struct cdad_hint_config {
    int64_t n_hidden, hidden[CDAD_MAX_LEVELS]; /* widths before the last: 16,16,32,32,96,96,256 */
    int64_t strides[CDAD_MAX_LEVELS];          /* of the hidden convolutions; the last has stride 1 */
    int keep_variance;                         /* init: std 1.7/sqrt(fan_in), for training from scratch */
} cdad_hint_config;

/* image [N,H,W,3] -> [N,h,w,channels]; `last` (or NULL) is the last weight's initial value. Scope "input_hint_block.". */
cdad_value cdad_hint_build(cdad_builder *b, const cdad_hint_config *c, int64_t channels, int bias, const cdad_init *last,
                           cdad_value image);

/* The anomaly-masked network tau (paper, section 3.3). */
typedef struct cdad_amn_config {
    int64_t channels;                             /* of the output: the U-Net's model_channels */
    cdad_hint_config hint;                        /* E_lo */
    int64_t n_layers, num_heads, dim_feedforward; /* of E_no */
    int64_t neighbor_h, neighbor_w;               /* the masked window */
} cdad_amn_config;

/* E_lo: image [N,H,W,3] -> [N,h,w,channels]. Scope "amn.". */
cdad_value cdad_amn_local_build(cdad_builder *b, const cdad_amn_config *c, cdad_value image);
/* E_no(E_lo + e_p): local features [N,h,w,channels] -> [N,h,w,channels]. */
cdad_value cdad_amn_nonlocal_build(cdad_builder *b, const cdad_amn_config *c, cdad_value local);

/* A ControlNet's reading of the image: [N,H,W,3] -> hint [N,h,w,channels], the U-Net's model_channels. Scope "control.". */
cdad_value cdad_controlnet_hint_build(cdad_builder *b, const cdad_hint_config *c, int64_t channels, cdad_value image);
/* What a ControlNet for such a U-Net adds to it, for the U-Net's own inputs and the hint. Scope "control.". */
void cdad_controlnet_build(cdad_builder *b, const cdad_unet_config *c, cdad_value x, cdad_value t, cdad_value context,
                           cdad_value hint, cdad_control *out);

/* LDM's KL autoencoder (AutoencoderKL). */
typedef struct cdad_vae_config {
    int64_t ch, n_levels, ch_mult[CDAD_MAX_LEVELS];
    int64_t num_res_blocks, z_channels, norm_groups;
} cdad_vae_config;

/* image [N,H,W,3] in [-1,1] -> moments [N,h,w,2z] (mean, log variance) after quant_conv. */
cdad_value cdad_vae_encode_build(cdad_builder *b, const cdad_vae_config *c, cdad_value image);
/* z [N,h,w,z] (unscaled) -> image [N,H,W,3]. */
cdad_value cdad_vae_decode_build(cdad_builder *b, const cdad_vae_config *c, cdad_value z);

/* The tiny autoencoders (madebyollin's TAESD family), 8x. */
typedef struct cdad_tiny_ae_config {
    int64_t channels, latent_channels; /* 64; 4 (TAESD), 16, 32 (TAEF2) */
    int midblock;                      /* the variant with pooled branches at the lowest resolution */
} cdad_tiny_ae_config;

/* image [N,H,W,3] in [0,1] -> latent [N,H/8,W/8,latent]; `features` (NULL: not wanted) takes the activations
 * after the three levels' blocks at 1/2, 1/4 and 1/8 of the resolution. */
cdad_value cdad_tiny_ae_encode_build(cdad_builder *b, const cdad_tiny_ae_config *c, cdad_value image,
                                     cdad_value features[3]);
cdad_value cdad_tiny_ae_decode_build(cdad_builder *b, const cdad_tiny_ae_config *c, cdad_value latent);

/* A fixed autoencoder that needs no weights: the first `latent_channels` coefficients, lowest frequencies
 * first, of an orthonormal DCT over patch x patch x 3 (luma and two opponent colours). */
typedef struct cdad_dct_config {
    int64_t patch, latent_channels;
} cdad_dct_config;

cdad_value cdad_dct_encode_build(cdad_builder *b, const cdad_dct_config *c, cdad_value image);
cdad_value cdad_dct_decode_build(cdad_builder *b, const cdad_dct_config *c, cdad_value latent);

/* EfficientNet-Lite0 with batch norms folded, as a feature extractor. image [N,H,W,3] normalised as the weights
 * want; features after the last block of stride 4, 8 and 16. */
cdad_value cdad_efficientnet_lite0_build(cdad_builder *b, cdad_value image, cdad_value features[3]);

/* CLIP's text transformer. */
typedef struct cdad_clip_text_config {
    int64_t vocab_size, width, n_layers, num_heads, dim_feedforward; /* ViT-L/14: 49408, 768, 12, 12, 3072 */
} cdad_clip_text_config;

/* ids [N,L], whole numbers, L the number of learned positions (77) -> [N,L,width], all tokens after the last norm. Scope
 * "text_model.". */
cdad_value cdad_clip_text_build(cdad_builder *b, const cdad_clip_text_config *c, cdad_value ids);

#define CDAD_RESNET_STAGES 4

/* ResNets with batch norms folded, as feature extractors. */
typedef struct cdad_resnet_config {
    int64_t blocks[CDAD_RESNET_STAGES];
    int bottleneck;    /* blocks of three convolutions, with four times the planes at their end, not of two */
    int64_t widening;  /* of a bottleneck's 3x3 convolution: 1, or 2 in wide_resnet50_2 */
    int64_t channels;  /* of the stem, and planes of the first stage: 64 */
} cdad_resnet_config;

/* image [N,H,W,3] normalised as the weights want; features after layer1 to layer4 (strides 4, 8, 16 and 32), then the
 * stem's (stride 2, before the pooling). */
void cdad_resnet_build(cdad_builder *b, const cdad_resnet_config *c, cdad_value image,
                       cdad_value features[CDAD_RESNET_STAGES + 1]);

#endif
