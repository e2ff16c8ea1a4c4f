/* DDIM sampling. */
#include "diffusion/sampler.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

struct cdad_sampler {
    const cdad_denoiser_config config;
    cdad_params *params;
    int64_t n, latent_count; /* elements of the batch's latents */
    cdad_graph *condition_graph, *unet_graph;
    cdad_program *condition, *unet; /* condition: NULL without one */
    cdad_value image, tau;                              /* of condition_graph */
    cdad_value x, t, context, control, prediction;      /* of unet_graph */
    float *tau_data;                                    /* of the condition, which the U-Net's program may not overwrite */
    float *state, *x0, *predicted, *uncond_prediction, *timesteps; /* of the host */
    const float *fed;                                   /* the context that the U-Net's program has */
};

void cdad_sampler_free(cdad_sampler *s) {
    if (!s)
        return;
    cdad_program_free(s->condition);
    cdad_program_free(s->unet);
    cdad_graph_free(s->condition_graph);
    cdad_graph_free(s->unet_graph);
    cdad_device_free(s->params ? s->params->device : NULL, s->tau_data);
    cdad_free(s->state);
    cdad_free(s->x0);
    cdad_free(s->predicted);
    cdad_free(s->uncond_prediction);
    cdad_free(s->timesteps);
    cdad_free(s);
}

static cdad_status build_programs(cdad_sampler *s, const cdad_context *ctx, cdad_error *err) {
    const cdad_denoiser_config *c = &s->config;
    cdad_builder b;
    const cdad_program_options shared = {.workspace = s->params->workspace};
    CDAD_TRY(cdad_graph_new(&s->condition_graph, err));
    if (c->condition != CDAD_CONDITION_NONE) {
        cdad_builder_init(&b, s->condition_graph, s->params, err);
        s->image = cdad_image_input(&b, c, "image", s->n);
        s->tau = cdad_condition_build(&b, c, s->image);
        CDAD_TRY(b.status);
        const cdad_program_options apart = {.workspace = s->params->workspace, .n_external = 1, .external = &s->tau};
        CDAD_TRY(cdad_program_new(&s->condition, s->condition_graph, 1, &s->tau, &apart, ctx, err));
        CDAD_TRY(cdad_device_alloc(ctx->device, (void **)&s->tau_data, cdad_sampler_condition_bytes(s), err));
        CDAD_TRY(cdad_program_bind(s->condition, s->tau, s->tau_data, err));
    }

    CDAD_TRY(cdad_graph_new(&s->unet_graph, err));
    cdad_builder_init(&b, s->unet_graph, s->params, err);
    s->x = cdad_latent_input(&b, c, "x", s->n);
    s->t = cdad_build_input(&b, "t", cdad_shape_make(1, s->n));
    s->context = cdad_context_input(&b, c, s->n);
    s->control = CDAD_NONE;
    if (c->condition != CDAD_CONDITION_NONE)
        s->control = cdad_build_input(&b, "control",
                                      cdad_shape_make(4, s->n, c->latent_h, c->latent_w, c->unet.model_channels));
    s->prediction = cdad_denoise_build(&b, c, s->x, s->t, s->context, s->control);
    CDAD_TRY(b.status);
    CDAD_FAIL_IF(c->unet.out_channels != c->unet.in_channels, err, CDAD_SHAPE,
                 "a U-Net of %lld channels that gives %lld denoises nothing", (long long)c->unet.in_channels,
                 (long long)c->unet.out_channels);
    CDAD_TRY(cdad_program_new(&s->unet, s->unet_graph, 1, &s->prediction, &shared, ctx, err));
    return s->condition ? cdad_program_bind(s->unet, s->control, s->tau_data, err) : CDAD_OK;
}

cdad_status cdad_sampler_new(cdad_sampler **out, const cdad_denoiser_config *c, cdad_params *params, int64_t n,
                             const cdad_context *ctx, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_sampler *s = NULL;
    const int64_t known = params->n;
    *out = NULL;
    CDAD_FAIL_IF(n < 1, err, CDAD_INVALID, "a batch has at least one sample");
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&s, sizeof *s, err));
    memcpy((void *)(uintptr_t)&s->config, c, sizeof *c);
    s->params = params;
    s->n = n;
    s->latent_count = n * c->latent_h * c->latent_w * c->unet.in_channels;
    CDAD_TRY_DONE(build_programs(s, ctx, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s->state, s->latent_count * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s->x0, s->latent_count * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s->predicted, s->latent_count * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s->uncond_prediction, s->latent_count * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&s->timesteps, n * (int64_t)sizeof(float), err));
    *out = s;
    s = NULL;
done:
    if (status != CDAD_OK)
        cdad_params_forget(params, known);
    cdad_sampler_free(s);
    return status;
}

static cdad_status bind_weights(cdad_sampler *s, const float *weights, cdad_error *err) {
    const float *base = weights ? weights : s->params->values;
    CDAD_FAIL_IF(!base, err, CDAD_INVALID, "the parameters are not allocated yet");
    if (s->condition)
        CDAD_TRY(cdad_params_bind(s->params, base, s->condition_graph, s->condition, err));
    return cdad_params_bind(s->params, base, s->unet_graph, s->unet, err);
}

static cdad_status run_condition(cdad_sampler *s, const cdad_context *ctx, const float *image, int is_there,
                                 cdad_error *err) {
    if (!s->condition)
        return CDAD_OK;
    CDAD_TRY(is_there ? cdad_program_feed_there(s->condition, s->image, image, err)
                      : cdad_program_feed(s->condition, s->image, image, err));
    return cdad_program_run(s->condition, ctx, err);
}

/* The prediction for x at t, to the host. */
static cdad_status run_unet(cdad_sampler *s, const cdad_context *ctx, const float *x, int64_t t,
                            const float *context, float *prediction, cdad_error *err) {
    for (int64_t i = 0; i < s->n; i++)
        s->timesteps[i] = (float)t;
    CDAD_TRY(cdad_program_feed(s->unet, s->x, x, err));
    CDAD_TRY(cdad_program_feed(s->unet, s->t, s->timesteps, err));
    if (s->context != CDAD_NONE) {
        CDAD_FAIL_IF(!context, err, CDAD_INVALID, "this model wants a context");
        if (context != s->fed)
            CDAD_TRY(cdad_program_feed(s->unet, s->context, context, err));
        s->fed = context;
    }
    CDAD_TRY(cdad_program_run(s->unet, ctx, err));
    return cdad_program_read(s->unet, s->prediction, prediction, err);
}

/* One deterministic DDIM step from alpha_bar a to the one before (eta 0; Song et al. 2021, Eq. 12). */
static void ddim_step(const cdad_sampler *s, const float *prediction, double a, double a_before) {
    const float signal = (float)sqrt(a), sigma = (float)sqrt(1.0 - a);
    const float signal_before = (float)sqrt(a_before), sigma_before = (float)sqrt(1.0 - a_before);
    const int v = s->config.prediction == CDAD_PREDICT_V;
    for (int64_t i = 0; i < s->latent_count; i++) {
        const float x = s->state[i], p = prediction[i];
        const float eps = v ? signal * p + sigma * x : p;
        const float x0 = v ? signal * x - sigma * p : (x - sigma * p) / signal;
        s->x0[i] = x0;
        s->state[i] = signal_before * x0 + sigma_before * eps;
    }
}

static cdad_status check_sampling(const cdad_sampling *how, cdad_error *err) {
    CDAD_FAIL_IF(how->steps < 1 || how->steps >= CDAD_MAX_TIMESTEPS, err, CDAD_INVALID, "%lld sampling steps",
                 (long long)how->steps);
    CDAD_FAIL_IF(how->skip < 0 || how->skip >= how->steps, err, CDAD_INVALID,
                 "%lld of %lld sampling steps cannot be skipped", (long long)how->skip, (long long)how->steps);
    CDAD_FAIL_IF(how->stop < 0 || how->stop > how->steps - how->skip, err, CDAD_INVALID,
                 "stop after %lld of %lld sampling steps", (long long)how->stop, (long long)(how->steps - how->skip));
    return CDAD_OK;
}

/* From one start, under the condition that was run last. *result stands until the next run. */
static cdad_status denoise_from(cdad_sampler *s, const cdad_context *ctx, const float **result, const float *start,
                                const float *context, const cdad_sampling *how, const int64_t *timesteps,
                                cdad_sampling_watch watch, void *watch_arg, cdad_error *err) {
    const cdad_schedule *schedule = &s->config.schedule;
    memcpy(s->state, start, (size_t)s->latent_count * sizeof(float));
    const int64_t run = how->stop ? how->stop : how->steps - how->skip;
    for (int64_t step = 0; step < run; step++) {
        const int64_t i = how->steps - how->skip - 1 - step;
        if (how->uncond)
            CDAD_TRY(run_unet(s, ctx, s->state, timesteps[i], how->uncond, s->uncond_prediction, err));
        CDAD_TRY(run_unet(s, ctx, s->state, timesteps[i], context, s->predicted, err));
        const float *prediction = s->predicted;
        if (how->uncond) {
            const float g = (float)how->guidance;
            for (int64_t k = 0; k < s->latent_count; k++)
                s->uncond_prediction[k] += g * (prediction[k] - s->uncond_prediction[k]);
            prediction = s->uncond_prediction;
        }
        const double before = schedule->alphas_cumprod[i > 0 ? timesteps[i - 1] : 0];
        ddim_step(s, prediction, schedule->alphas_cumprod[timesteps[i]], before);
        if (watch)
            watch(watch_arg, step, s->state, s->x0);
    }
    *result = how->stop ? s->x0 : s->state;
    return CDAD_OK;
}

/* Whether both sides of the guidance have the same context, bit for bit: it is the identity then. */
static int is_unguided(const cdad_sampler *s, const float *context, const float *uncond) {
    const int64_t count = s->n * s->config.context_length * s->config.unet.context_dim;
    return context && uncond && memcmp(context, uncond, (size_t)count * sizeof(float)) == 0;
}

cdad_status cdad_sampler_denoise(cdad_sampler *s, const cdad_context *ctx, float *out, const float *image,
                                 const float *start, const float *twin, const float *context,
                                 const cdad_sampling *given, cdad_sampling_watch watch, void *watch_arg,
                                 cdad_error *err) {
    int64_t timesteps[CDAD_MAX_TIMESTEPS];
    cdad_sampling sampling = *given;
    const cdad_sampling *how = &sampling;
    if (is_unguided(s, context, given->uncond))
        sampling.uncond = NULL;
    CDAD_FAIL_IF(!given->uncond && given->guidance != 1, err, CDAD_INVALID, "guidance by %g wants an unconditional context",
                 given->guidance);
    CDAD_TRY(check_sampling(how, err));
    CDAD_TRY(cdad_ddim_timesteps(&s->config.schedule, how->steps, timesteps, err));
    CDAD_TRY(bind_weights(s, how->weights, err));
    CDAD_TRY(run_condition(s, ctx, image, how->is_there, err));
    s->fed = NULL; /* it may be other numbers in the same place */
    const float *result;
    CDAD_TRY(denoise_from(s, ctx, &result, start, context, how, timesteps, watch, watch_arg, err));
    memcpy(out, result, (size_t)s->latent_count * sizeof(float));
    if (!twin)
        return CDAD_OK;
    CDAD_TRY(denoise_from(s, ctx, &result, twin, context, how, timesteps, NULL, NULL, err));
    for (int64_t k = 0; k < s->latent_count; k++)
        out[k] = 0.5f * (out[k] + result[k]);
    return CDAD_OK;
}

cdad_status cdad_sampler_start(const cdad_denoiser_config *c, float *x_T, const float *latent, int64_t n,
                               const cdad_sampling *how, uint64_t seed, const int64_t *streams, cdad_error *err) {
    int64_t timesteps[CDAD_MAX_TIMESTEPS];
    CDAD_TRY(check_sampling(how, err));
    CDAD_TRY(cdad_ddim_timesteps(&c->schedule, how->steps, timesteps, err));
    const int64_t t =
        how->skip ? timesteps[how->steps - how->skip - 1] : c->schedule.num_train_timesteps - 1;
    const double a = c->schedule.alphas_cumprod[t];
    const float signal = (float)sqrt(a), sigma = (float)sqrt(1.0 - a);
    const int64_t per = c->latent_h * c->latent_w * c->unet.in_channels;
    for (int64_t i = 0; i < n; i++) {
        float *x = x_T + i * per;
        cdad_random_normal(x, per, seed, (uint64_t)streams[i], 0);
        for (int64_t k = 0; k < per; k++)
            x[k] = signal * latent[i * per + k] + sigma * x[k];
    }
    return CDAD_OK;
}

/* The value of a parameter in one of the graphs, or CDAD_NONE. */
static cdad_value find_param(const cdad_graph *g, const char *name) {
    for (int64_t v = 0; v < g->n_values; v++)
        if (g->values[v].kind == CDAD_VALUE_PARAM && strcmp(g->values[v].name, name) == 0)
            return (cdad_value)v;
    return CDAD_NONE;
}

const cdad_node *cdad_sampler_weight_node(const cdad_sampler *s, const char *param, const cdad_graph **graph) {
    const cdad_graph *graphs[2] = {s->condition_graph, s->unet_graph};
    for (int i = 0; i < 2; i++) {
        const cdad_value v = find_param(graphs[i], param);
        for (int64_t k = 0; v != CDAD_NONE && k < graphs[i]->n_nodes; k++)
            if (graphs[i]->nodes[k].n_in > 1 && graphs[i]->nodes[k].in[1] == v) {
                *graph = graphs[i];
                return &graphs[i]->nodes[k];
            }
    }
    *graph = NULL;
    return NULL;
}

cdad_status cdad_sampler_tap(cdad_sampler *s, const char *param, cdad_tap_fn fn, void *arg, int there, cdad_error *err) {
    const cdad_value in_condition = find_param(s->condition_graph, param);
    if (in_condition != CDAD_NONE)
        return cdad_program_tap(s->condition, in_condition, fn, arg, there, err);
    const cdad_value in_unet = find_param(s->unet_graph, param);
    CDAD_FAIL_IF(in_unet == CDAD_NONE, err, CDAD_INVALID, "the model has no parameter %s", param);
    return cdad_program_tap(s->unet, in_unet, fn, arg, there, err);
}

int64_t cdad_sampler_workspace_bytes(const cdad_sampler *s) {
    const int64_t unet = cdad_program_workspace_bytes(s->unet);
    const int64_t condition = s->condition ? cdad_program_workspace_bytes(s->condition) : 0;
    return condition > unet ? condition : unet;
}

int64_t cdad_sampler_condition_bytes(const cdad_sampler *s) {
    return s->condition ? cdad_shape_count(cdad_graph_shape(s->condition_graph, s->tau)) * (int64_t)sizeof(float) : 0;
}

void cdad_sampler_flops(const cdad_sampler *s, double *condition, double *unet) {
    *condition = s->condition ? cdad_program_flops(s->condition) : 0.0;
    *unet = cdad_program_flops(s->unet);
}
