/* The denoiser's graphs: condition, and training losses. */
#include "diffusion/denoiser.h"

cdad_value cdad_latent_input(cdad_builder *b, const cdad_denoiser_config *c, const char *name, int64_t n) {
    return cdad_build_input(b, name, cdad_shape_make(4, n, c->latent_h, c->latent_w, c->unet.in_channels));
}

cdad_value cdad_image_input(cdad_builder *b, const cdad_denoiser_config *c, const char *name, int64_t n) {
    return cdad_build_input(b, name, cdad_shape_make(4, n, c->image_h, c->image_w, (int64_t)3));
}

cdad_value cdad_context_input(cdad_builder *b, const cdad_denoiser_config *c, int64_t n) {
    return c->unet.context_dim > 0
               ? cdad_build_input(b, "context", cdad_shape_make(3, n, c->context_length, c->unet.context_dim))
               : CDAD_NONE;
}

/* Images come in [0,1]; the networks see [-1,1]. */
static cdad_value seen(cdad_builder *b, const cdad_denoiser_config *c, cdad_value image) {
    b->precision = c->precision;
    return cdad_build_affine(b, image, 2.0, -1.0);
}

/* Checks that features of an image have the latent's size. */
static cdad_value as_latent(cdad_builder *b, const cdad_denoiser_config *c, const char *what, cdad_value features) {
    const cdad_shape *s = cdad_build_shape(b, features);
    if (b->status == CDAD_OK && (s->dim[1] != c->latent_h || s->dim[2] != c->latent_w))
        cdad_build_fail(b, CDAD_SHAPE, "%s: strides give %lld x %lld features for a latent of %lld x %lld", what,
                        (long long)s->dim[1], (long long)s->dim[2], (long long)c->latent_h, (long long)c->latent_w);
    return features;
}

static cdad_value local_features(cdad_builder *b, const cdad_denoiser_config *c, cdad_value image) {
    return as_latent(b, c, "amn", cdad_amn_local_build(b, &c->amn, seen(b, c, image)));
}

cdad_value cdad_condition_build(cdad_builder *b, const cdad_denoiser_config *c, cdad_value image) {
    switch (c->condition) {
    case CDAD_CONDITION_AMN:
        return cdad_amn_nonlocal_build(b, &c->amn, local_features(b, c, image));
    case CDAD_CONDITION_CONTROLNET:
        return as_latent(b, c, "controlnet",
                         cdad_controlnet_hint_build(b, &c->controlnet, c->unet.model_channels, seen(b, c, image)));
    case CDAD_CONDITION_NONE:
        cdad_build_fail(b, CDAD_INVALID, "this denoiser has no condition");
        break;
    }
    return CDAD_NONE;
}

cdad_value cdad_denoise_build(cdad_builder *b, const cdad_denoiser_config *c, cdad_value x, cdad_value t,
                              cdad_value context, cdad_value condition) {
    cdad_control control = {.first = condition};
    b->precision = c->precision;
    if (c->condition == CDAD_CONDITION_CONTROLNET)
        cdad_controlnet_build(b, &c->unet, x, t, context, condition, &control);
    return cdad_unet_build(b, &c->unet, x, t, context, &control);
}

/* a*x + b*y with per-sample coefficients [N,1,1,1] */
static cdad_value mix(cdad_builder *b, cdad_value a, cdad_value x, const char *op, cdad_value c, cdad_value y) {
    return cdad_build_op(b, op, 2,
                         CDAD_IN(cdad_build_op(b, "mul", 2, CDAD_IN(x, a), NULL),
                                 cdad_build_op(b, "mul", 2, CDAD_IN(y, c), NULL)),
                         NULL);
}

/* tau(x~) and L_amn (Eq. 12). */
static void build_masked(cdad_builder *b, const cdad_denoiser_config *c, int64_t n, cdad_training_graph *g) {
    g->image = cdad_image_input(b, c, "image", n);
    g->perturbed = cdad_image_input(b, c, "perturbed", n);
    g->condition = cdad_condition_build(b, c, g->perturbed);
    g->local = local_features(b, c, g->image);
    cdad_value target = g->local;
    if (c->amn_target == CDAD_AMN_NORMALIZED)
        target = cdad_build_unary(b, "stop_gradient", cdad_build_normalize(b, g->local, 1e-5));
    g->loss_amn = cdad_build_op(b, "mse", 2, CDAD_IN(g->condition, target), NULL);
}

/* ||x||^2 over all elements of x [N,h,w,c]: [1] */
static cdad_value squared_norm(cdad_builder *b, cdad_value x) {
    const cdad_value squares = cdad_build_op(b, "mul", 2, CDAD_IN(x, x), NULL);
    return cdad_build_reshape(b, cdad_build_op(b, "reduce_sum", 1, &squares, "axes", 15.0, NULL),
                              cdad_shape_make(1, (int64_t)1));
}

/* Learning without forgetting (Li & Hoiem 2016), for a model that predicts a vector: its old prediction is the target. */
static cdad_value distillation(cdad_builder *b, const cdad_denoiser_config *c, int64_t n, cdad_training_graph *g) {
    g->teacher = cdad_latent_input(b, c, "teacher", n);
    g->teacher_weight = cdad_build_input(b, "teacher_weight", cdad_shape_make(1, (int64_t)1));
    const cdad_value distance = cdad_build_op(b, "mse", 2, CDAD_IN(g->prediction, g->teacher), NULL);
    return cdad_build_op(b, "mul", 2, CDAD_IN(distance, g->teacher_weight), NULL);
}

cdad_status cdad_training_build(cdad_builder *b, const cdad_denoiser_config *c, int64_t n, cdad_training_graph *out) {
    cdad_training_graph g = {.image = CDAD_NONE, .perturbed = CDAD_NONE, .condition = CDAD_NONE, .local = CDAD_NONE,
                             .loss_amn = CDAD_NONE, .teacher = CDAD_NONE, .teacher_weight = CDAD_NONE};
    const cdad_shape coefficient = cdad_shape_make(4, n, (int64_t)1, (int64_t)1, (int64_t)1);
    g.latent = cdad_latent_input(b, c, "latent", n);
    g.noise = cdad_latent_input(b, c, "noise", n);
    g.t = cdad_build_input(b, "t", cdad_shape_make(1, n));
    g.signal = cdad_build_input(b, "signal", coefficient);
    g.sigma = cdad_build_input(b, "sigma", coefficient);
    g.context = cdad_context_input(b, c, n);
    if (c->condition == CDAD_CONDITION_AMN) {
        build_masked(b, c, n, &g);
    } else if (c->condition == CDAD_CONDITION_CONTROLNET) {
        g.perturbed = cdad_image_input(b, c, "perturbed", n);
        g.condition = cdad_condition_build(b, c, g.perturbed);
    }

    g.noised = mix(b, g.signal, g.latent, "add", g.sigma, g.noise);
    g.prediction = cdad_denoise_build(b, c, g.noised, g.t, g.context, g.condition);
    /* v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z (Salimans & Ho 2022) */
    const cdad_value wanted =
        c->prediction == CDAD_PREDICT_V ? mix(b, g.signal, g.noise, "sub", g.sigma, g.latent) : g.noise;
    g.loss_cdm = cdad_build_op(b, "mse", 2, CDAD_IN(g.prediction, wanted), NULL);
    g.loss = g.loss_amn == CDAD_NONE ? g.loss_cdm : cdad_build_add(b, g.loss_cdm, g.loss_amn);
    if (c->distills)
        g.loss = cdad_build_add(b, g.loss, distillation(b, c, n, &g));
    if (c->objective == CDAD_OBJECTIVE_OUTPUT)
        g.loss = squared_norm(b, g.prediction);
    *out = g;
    return b->status;
}
