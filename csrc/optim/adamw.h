/* AdamW over a parameter store (Loshchilov & Hutter 2019), with clipping, freezing, the projection of protected
 * weights (paper, Eq. 7), a quadratic penalty, a tether, SI's path integral and an optional moving average. */
#ifndef CDAD_OPTIM_ADAMW_H
#define CDAD_OPTIM_ADAMW_H

#include "kernels/kernels.h"
#include "nn/params.h"
#include "optim/moments.h"

typedef enum {
    CDAD_PROJECT_GRADIENT, /* the paper's text: G - U U^T G before AdamW, whose scaling and decay leave the subspace */
    CDAD_PROJECT_UPDATE    /* AdamW, its moments and all, in coordinates of what the basis leaves free: X_old dW = 0 to
                            * rounding; no decay on protected weights */
} cdad_projection_mode;

typedef struct cdad_optimizer_config {
    double lr, beta1, beta2, eps, weight_decay;
    double clip_norm; /* of the whole gradient; 0: no clipping */
    double ema_decay; /* at step t, t / (9 + t) at the most; 0: no moving average */
    cdad_projection_mode projection;
    cdad_precision precision; /* of products with directions */
    cdad_moment_format moments; /* BFLOAT16: of the first moment alone, a sixth less memory for weights and moments; 8BIT: of both,
                                 * half */
} cdad_optimizer_config;

/* How a parameter is treated. CDAD_PROJECT_UPDATE: the weight [O,d] of a layer moves by C V, with V [rank,d] directions and
 * AdamW's steps, and its moments, in C [O,rank] (as of low-rank gradients in Zhao et al. 2024, GaLore). CDAD_PROJECT_GRADIENT: the gradient goes off the basis, or, where that is narrower, onto its complement. */
typedef struct cdad_protection {
    int frozen;
    const float *basis; /* [d,rank], or `onto` [rank,d], row major, or NULL: what is protected, or where updates go; borrowed,
                         * `complement` or `mirror` */
    int64_t rank;
    int onto;           /* updates go onto the span, not off it */
    float *complement;  /* owned, or NULL */
    float *mirror;      /* on a device: the basis there, owned */
} cdad_protection;

/* Blocks lie where the parameters do. What only steps need is there from the first one after cdad_optimizer_reset on. */
typedef struct cdad_optimizer {
    cdad_optimizer_config config;
    const cdad_params *params;
    cdad_moment m, v;            /* the first moment and the second: cdad_optimizer_moments */
    float *ema;                  /* a block in the layout of params->values, or NULL */
    float *grads;                /* all gradients at once, or NULL: cdad_optimizer_block */
    cdad_shared *gradients;      /* what holds them */
    int64_t held;                /* numbers that it holds */
    const int64_t *places;       /* [params->n] where the block has each one's gradient, negative: there is none; NULL: where
                                  * params->values has the parameter; borrowed */
    cdad_protection *protection; /* [params->n] */
    cdad_update *small;          /* [params->n] room for those that share a launch */
    int64_t n_small;             /* of this step, so far */
    int64_t *moving;             /* [params->n] numbers that AdamW moves, and keeps moments of: none of what is frozen */
    const unsigned char *given;  /* [params->n] whose gradients come as such coordinates, or NULL: none; borrowed */
    cdad_pull pull;              /* a quadratic penalty; its blocks, in the layout of params->values, are borrowed */
    const float *tether;         /* what weights are drawn back to, in the layout of params->values, or NULL; borrowed */
    double *tether_rates;        /* [params->n] */
    float *path;                 /* the path integral, in the layout of params->values, or NULL: cdad_optimizer_follow */
    cdad_shared *followed;       /* what holds it */
    void *scratch;               /* of a projection, then a gradient that is used as it comes */
    int64_t scratch_bytes, update_offset;
    double *sums;                /* [params->n]: of each gradient's squares in this step */
    double *squares;             /* the same on the host; `sums` itself where that is there */
    double lr_scale;             /* of this step */
    int64_t step; /* finished steps */
    int64_t age;  /* of them since the moments were last forgotten: for AdamW's bias correction */
} cdad_optimizer;

CDAD_MUST_USE cdad_status cdad_optimizer_new(cdad_optimizer **out, const cdad_params *params,
                                             const cdad_optimizer_config *config, cdad_error *err);
void cdad_optimizer_free(cdad_optimizer *o); /* NULL is allowed */

/* Protects a weight's old features by their basis U [d,rank], row major, orthonormal, of the host, or NULL: borrowed, it must outlive its
 * use. A failure leaves the parameter's protection as it was. */
CDAD_MUST_USE cdad_status cdad_optimizer_protect(cdad_optimizer *o, const char *param, int frozen, const float *U,
                                                 int64_t rank, cdad_error *err);
/* Updates of a weight go onto directions V [rank,d], as above: instead of all that a basis leaves free. */
CDAD_MUST_USE cdad_status cdad_optimizer_confine(cdad_optimizer *o, const char *param, const float *V, int64_t rank,
                                                 cdad_error *err);
/* From now on each step adds the gradient of strength/2 * sum_i importance_i (w_i - anchor_i)^2 to the loss's, before
 * clipping; both blocks are borrowed. importance NULL: no penalty. What is frozen is not pulled. Steps fail where a weight
 * that is projected has a penalty: the projection would undo a part of it. */
void cdad_optimizer_penalize(cdad_optimizer *o, const float *importance, const float *anchor, double strength);
/* From now on each step also draws what it moves back to `anchor`, in the layout of params->values and borrowed, by the share
 * lr rate / (1 + lr rate) of the way, after AdamW's update: a proximal step of rate/2 |w - anchor|^2 (Li et al. 2018, L2-SP), decoupled
 * from the moments as decay is. It keeps a change within the span of its updates. rates [params->n]; anchor NULL: no more. */
void cdad_optimizer_tether(cdad_optimizer *o, const float *anchor, const double *rates);
/* From now on path_i -= g_i dw_i at each step, with g the loss's gradient without penalty and clipping, and dw the weight's
 * change (Zenke et al. 2017, Eq. 3), in a block of zeros where the parameters lie. on 0: no more, and the block goes. */
CDAD_MUST_USE cdad_status cdad_optimizer_follow(cdad_optimizer *o, int on, cdad_error *err);
/* Forgets moments and protections, as at the end of a task, and gives back all memory that only steps need. */
void cdad_optimizer_reset(cdad_optimizer *o);

/* The moments of what is protected now: zeros at first, and of parameters whose protection has changed how many numbers move since.
 * Steps do it themselves. A failure leaves them as they were. */
CDAD_MUST_USE cdad_status cdad_optimizer_moments(cdad_optimizer *o, cdad_error *err);
/* The block that holds all gradients at once, `n` numbers, zeros at first; what it held is lost where n changes. */
CDAD_MUST_USE cdad_status cdad_optimizer_block(cdad_optimizer *o, int64_t n, cdad_error *err);
/* Where it holds that of parameter i, or NULL: there is none. */
float *cdad_optimizer_gradient(const cdad_optimizer *o, int64_t i);

/* The directions [*rank,d] in whose coordinates AdamW works for parameter i, where the parameters lie, or NULL: in none. */
const float *cdad_optimizer_directions(const cdad_optimizer *o, int64_t i, int64_t *rank);
/* Operations of the products with directions and bases in a step, with what is protected now. */
double cdad_optimizer_flops(const cdad_optimizer *o);
/* Bytes of the moments, with what is protected now. */
int64_t cdad_optimizer_moment_bytes(const cdad_optimizer *o);
/* Bytes of scratch that a step takes with what is protected now. */
CDAD_MUST_USE cdad_status cdad_optimizer_scratch(const cdad_optimizer *o, const cdad_context *ctx, int64_t *bytes,
                                                 cdad_error *err);

/* One step with learning rate config.lr * lr_scale from o->grads, which are there, and overwritten. *grad_norm is the norm
 * before clipping. A gradient that is not finite fails with its parameter's name and changes nothing. */
CDAD_MUST_USE cdad_status cdad_optimizer_step(cdad_optimizer *o, const cdad_context *ctx, double lr_scale,
                                              double *grad_norm, cdad_error *err);

/* The same step parameter by parameter, for gradients that are used as they come, in any order; without clipping, whose
 * factor is known only when all are there. Nothing is allocated between begin and end. */
CDAD_MUST_USE cdad_status cdad_optimizer_begin(cdad_optimizer *o, const cdad_context *ctx, double lr_scale,
                                               cdad_error *err);
/* Parameter i; the gradient is only read, of what is frozen, or has none, not at all; on a device one of less than CDAD_SMALL8 numbers
 * at the end, until when it has to stay. One that is not finite fails with its name: here, where the parameter stays as it was, or, on a
 * device, at the end. */
CDAD_MUST_USE cdad_status cdad_optimizer_use(cdad_optimizer *o, const cdad_context *ctx, int64_t i, const float *grad,
                                             cdad_error *err);
CDAD_MUST_USE cdad_status cdad_optimizer_end(cdad_optimizer *o, const cdad_context *ctx, double *grad_norm, cdad_error *err);

#endif
