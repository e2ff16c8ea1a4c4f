/* A training step as one call: draw timesteps and noise, run forward and backward, update the weights. */
#ifndef CDAD_TRAIN_TRAINER_H
#define CDAD_TRAIN_TRAINER_H

#include "base/shared.h"
#include "diffusion/denoiser.h"
#include "graph/program.h"
#include "optim/adamw.h"

typedef struct cdad_trainer cdad_trainer;

/* loss: the objective; loss_amn: 0 without the masked network. */
typedef struct cdad_step_result {
    double loss, loss_cdm, loss_amn, grad_norm;
} cdad_step_result;

/* How a step goes through its batch: in less memory, for more time. */
typedef struct cdad_batching {
    int64_t n;          /* samples of a step */
    int64_t accumulate; /* into so many equal parts they are cut, whose gradients are added up: activations of one part live at
                         * a time. More than 1: the gradients of all parameters are held */
    int recompute;      /* blocks run again in the backward pass: of their activations, those of one block live at a time */
    int64_t shard, shards; /* the n samples are number `shard` of so many equal parts of a step's batch, which other processes have;
                            * shards 0: 1. More than 1: the gradients of all parameters are held, for cdad_trainer_share */
} cdad_batching;

/* Adds up the gradients of all parameters [n], in place, over the processes that share a batch; where the parameters lie. */
typedef cdad_status (*cdad_sum_fn)(void *arg, float *grads, int64_t n, cdad_error *err);

/* Allocates `params` if they are not allocated (seeded by `seed`). optimizer NULL: for cdad_trainer_magnitudes alone, without
 * the memory of moments and gradients. */
CDAD_MUST_USE cdad_status cdad_trainer_new(cdad_trainer **out, const cdad_denoiser_config *c, cdad_params *params,
                                           const cdad_batching *batching, const cdad_optimizer_config *optimizer,
                                           uint64_t seed, const cdad_context *ctx, cdad_error *err);
void cdad_trainer_free(cdad_trainer *t); /* NULL is allowed */
cdad_optimizer *cdad_trainer_optimizer(const cdad_trainer *t); /* NULL: there is none */

/* Plans a step of what moves now, which steps do too where protections have changed: before memory and operations are asked for. */
CDAD_MUST_USE cdad_status cdad_trainer_prepare(cdad_trainer *t, const cdad_context *ctx, cdad_error *err);

/* How a batch's shards are added up, once a step, before clipping, from now on (sum NULL: not); a trainer with shards takes no step
 * without. A shard whose losses are not finite adds what is no number, so that the others fail as it does instead of waiting. */
void cdad_trainer_share(cdad_trainer *t, cdad_sum_fn sum, void *arg);

/* latent [N,h,w,c] of the clean images x, image x and perturbed x~ [N,H,W,3], context [N,L,d] or NULL. Timesteps
 * and noise depend on (seed, number of the step, sample's place in the whole batch) only. Losses that are not finite fail
 * (CDAD_NOT_FINITE) and leave weights and moments as they were, and so do gradients where they are clipped or added up.
 * Else each gradient is used as soon as it is there, so that all of them never exist at once: one that is not finite
 * fails when others were used already, and the message says so. */
CDAD_MUST_USE cdad_status cdad_trainer_step(cdad_trainer *t, const cdad_context *ctx, const float *latent,
                                            const float *image, const float *perturbed, const float *context,
                                            double lr_scale, cdad_step_result *result, cdad_error *err);

/* What the last step drew: noise, like latent, and timesteps [N]; zeros before the first one. Borrowed; the
 * next step overwrites them. */
void cdad_trainer_drawn(const cdad_trainer *t, const float **noise, const int64_t **timesteps);

/* Losses and gradients without an update, with given timesteps and noise: for parity tests. Gradients are left in
 * the optimiser's block. */
CDAD_MUST_USE cdad_status cdad_trainer_gradients(cdad_trainer *t, const cdad_context *ctx, const float *latent,
                                                 const float *image, const float *perturbed, const float *context,
                                                 const float *noise, const int64_t *timesteps,
                                                 cdad_step_result *result, cdad_error *err);

/* Adds |gradient| or, with `squares`, its squares, element by element, to the trainer's sums, with given timesteps and noise: of one
 * sample where n is 1, as importances are defined. A failure leaves some of the parameters' sums with this gradient, and some without.
 * Only for a trainer that uses gradients as they come. */
CDAD_MUST_USE cdad_status cdad_trainer_magnitudes(cdad_trainer *t, const cdad_context *ctx, const float *latent,
                                                  const float *image, const float *perturbed, const float *context,
                                                  const float *noise, const int64_t *timesteps, int squares,
                                                  cdad_step_result *result, cdad_error *err);
/* What holds the sums, in the layout of params->values, where they lie; NULL: there are none yet. They begin with zeros. */
cdad_shared *cdad_trainer_sums(const cdad_trainer *t);

/* From the next step on the loss has the term weight * mse(prediction, what the model predicts with `weights`, a block in
 * the layout of params->values). It is borrowed; NULL: no term. CDAD_INVALID: the configuration does not distil. */
CDAD_MUST_USE cdad_status cdad_trainer_teach(cdad_trainer *t, const float *weights, double weight, cdad_error *err);

int64_t cdad_trainer_arena_bytes(const cdad_trainer *t);
int64_t cdad_trainer_workspace_bytes(const cdad_trainer *t); /* with its kernels' scratch; of params->workspace */
int cdad_trainer_holds_gradients(const cdad_trainer *t);     /* of all that moves at once, in a step */
int64_t cdad_trainer_gradient_bytes(const cdad_trainer *t);  /* of what it holds so, with what is protected now */
int64_t cdad_trainer_taught_bytes(const cdad_trainer *t);    /* of a teacher's prediction, kept apart */
double cdad_trainer_flops(const cdad_trainer *t); /* of the products of a step, but for a teacher's */

#endif
