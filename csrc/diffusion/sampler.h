/* Reconstruction: noise the latent of an image to the last timestep, then denoise it by DDIM (eta 0) under the
 * condition tau(image). The condition is computed once an image, not at every step; with equal contexts on
 * both sides guidance is the identity and the U-Net runs once. */
#ifndef CDAD_DIFFUSION_SAMPLER_H
#define CDAD_DIFFUSION_SAMPLER_H

#include "diffusion/denoiser.h"
#include "graph/program.h"

typedef struct cdad_sampler cdad_sampler;

/* Programs for batches of n; `params` must outlive the sampler. */
CDAD_MUST_USE cdad_status cdad_sampler_new(cdad_sampler **out, const cdad_denoiser_config *c, cdad_params *params,
                                           int64_t n, const cdad_context *ctx, cdad_error *err);
void cdad_sampler_free(cdad_sampler *s); /* NULL is allowed */

typedef struct cdad_sampling {
    int64_t steps;        /* DDIM steps */
    int64_t skip;         /* leave out this many of the noisiest steps: start nearer to the image */
    int64_t stop;         /* run so many steps and return the x0 predicted there; 0: all, and return x */
    int is_there;         /* the image lies where the sampler runs */
    double guidance;      /* 1, or with `uncond` the weight of the conditional side */
    const float *uncond;  /* [N,L,d] or NULL */
    const float *weights; /* a block in the layout of params->values, where they lie; NULL: params->values */
} cdad_sampling;

/* Called after every step with x [N,h,w,c] and the predicted x0; `step` counts from 0. NULL: not called. */
typedef void (*cdad_sampling_watch)(void *arg, int64_t step, const float *x, const float *x0);

/* image [N,H,W,3], start x_T [N,h,w,c], context [N,L,d] or NULL -> out [N,h,w,c]. With a second start `twin` (or NULL),
 * out is the mean of what both give, under the one condition; only the first is watched. */
CDAD_MUST_USE cdad_status cdad_sampler_denoise(cdad_sampler *s, const cdad_context *ctx, float *out,
                                               const float *image, const float *start, const float *twin,
                                               const float *context, const cdad_sampling *how,
                                               cdad_sampling_watch watch, void *watch_arg, cdad_error *err);

/* x_T = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise at the timestep from which `how` starts (the last one,
 * T - 1, when nothing is skipped). The noise of a sample depends on (seed, stream of the sample, element) only. */
CDAD_MUST_USE cdad_status cdad_sampler_start(const cdad_denoiser_config *c, float *x_T, const float *latent,
                                             int64_t n, const cdad_sampling *how, uint64_t seed,
                                             const int64_t *streams, cdad_error *err);

/* The first node that reads a parameter as its weight, and its graph; NULL: none. */
const cdad_node *cdad_sampler_weight_node(const cdad_sampler *s, const char *param, const cdad_graph **graph);
/* Feeds fn with the input of every node that reads the weight, at every run, as cdad_program_tap does; fn NULL removes the tap. */
CDAD_MUST_USE cdad_status cdad_sampler_tap(cdad_sampler *s, const char *param, cdad_tap_fn fn, void *arg, int there,
                                           cdad_error *err);
int64_t cdad_sampler_workspace_bytes(const cdad_sampler *s); /* its programs run one at a time, in params->workspace */
int64_t cdad_sampler_condition_bytes(const cdad_sampler *s); /* of what the condition's program gives, kept apart */
/* Operations of the products, of the condition and of an evaluation of the U-Net. */
void cdad_sampler_flops(const cdad_sampler *s, double *condition, double *unet);

#endif
