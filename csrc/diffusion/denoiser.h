/* The conditional denoiser: U-Net and anomaly-masked network, or ControlNet, as one model, and its graphs. */
#ifndef CDAD_DIFFUSION_DENOISER_H
#define CDAD_DIFFUSION_DENOISER_H

#include "diffusion/schedule.h"
#include "models/models.h"

typedef enum { CDAD_PREDICT_EPSILON, CDAD_PREDICT_V } cdad_prediction_type;

typedef enum {
    CDAD_AMN_AS_WRITTEN, /* Eq. 12: ||E_no(E_lo(x~) + e_p) - E_lo(x)||^2, gradients into both terms */
    CDAD_AMN_NORMALIZED  /* the target normalised over its channels, no gradient into it: does not collapse */
} cdad_amn_target;

/* By what the denoiser is told of the image. */
typedef enum {
    CDAD_CONDITION_AMN,        /* the masked network */
    CDAD_CONDITION_CONTROLNET, /* ablation: a ControlNet, and no L_amn */
    CDAD_CONDITION_NONE        /* ablation: nothing, and no L_amn */
} cdad_condition;

typedef enum {
    CDAD_OBJECTIVE_LOSS,  /* L */
    CDAD_OBJECTIVE_OUTPUT /* ||prediction||^2 over the batch: what MAS measures (Aljundi et al. 2018) */
} cdad_objective;

typedef struct cdad_denoiser_config {
    cdad_unet_config unet;
    cdad_condition condition;
    cdad_amn_config amn;         /* of CDAD_CONDITION_AMN */
    cdad_hint_config controlnet; /* of CDAD_CONDITION_CONTROLNET */
    int64_t image_h, image_w, latent_h, latent_w;
    int64_t context_length; /* tokens of the context; used when unet.context_dim > 0 */
    cdad_prediction_type prediction;
    cdad_amn_target amn_target;
    cdad_precision precision; /* of products */
    cdad_schedule schedule;
    /* Training timesteps are uniform in 0 .. T-1, but this share of them in focus_low .. T-1: where the sampler is. */
    double focus;
    int64_t focus_low;
    cdad_objective objective; /* of the training graph */
    int distills;             /* the loss has a term for a teacher's prediction */
} cdad_denoiser_config;

/* Inputs and results of the training graph; every value is per batch of N samples. */
typedef struct cdad_training_graph {
    cdad_value latent, noise, t;        /* z [N,h,w,c], eps [N,h,w,c], t [N] */
    cdad_value signal, sigma;           /* sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t): [N,1,1,1] */
    cdad_value image, perturbed;        /* x (of L_amn), x~ (of the condition) [N,H,W,3], or CDAD_NONE */
    cdad_value context;                 /* [N,L,d] or CDAD_NONE */
    cdad_value teacher, teacher_weight; /* another model's prediction [N,h,w,c], and its term's weight [1], or CDAD_NONE */
    cdad_value noised;                  /* q_sample(z, t) */
    cdad_value prediction;              /* eps or v [N,h,w,c] */
    cdad_value condition, local;        /* of x~, and E_lo(x) [N,h,w,model_channels], or CDAD_NONE */
    cdad_value loss, loss_cdm, loss_amn; /* [1]; loss: the objective; loss_amn may be CDAD_NONE */
} cdad_training_graph;

/* L = L_CDM + L_amn (paper, Eqs. 11 to 13), with distills + teacher_weight * mse(prediction, teacher). */
cdad_status cdad_training_build(cdad_builder *b, const cdad_denoiser_config *c, int64_t n, cdad_training_graph *out);

/* What of the condition depends on the image alone, tau(image) or a ControlNet's hint: image [N,H,W,3] ->
 * [N,h,w,model_channels]. CDAD_CONDITION_NONE has none and fails. */
cdad_value cdad_condition_build(cdad_builder *b, const cdad_denoiser_config *c, cdad_value image);

/* The U-Net under its condition, which cdad_condition_build gives, or CDAD_NONE; x, t, context: see cdad_unet_build. */
cdad_value cdad_denoise_build(cdad_builder *b, const cdad_denoiser_config *c, cdad_value x, cdad_value t,
                              cdad_value context, cdad_value condition);

/* The input values that a denoiser graph for n samples needs. */
cdad_value cdad_latent_input(cdad_builder *b, const cdad_denoiser_config *c, const char *name, int64_t n);
cdad_value cdad_image_input(cdad_builder *b, const cdad_denoiser_config *c, const char *name, int64_t n);
cdad_value cdad_context_input(cdad_builder *b, const cdad_denoiser_config *c, int64_t n);

#endif
