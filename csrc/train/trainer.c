/* The training step. */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

struct cdad_trainer {
    cdad_denoiser_config config;
    cdad_params *params;
    cdad_graph *graph;
    cdad_program *program;
    cdad_training_graph values;
    cdad_program *teacher; /* predicts with `taught_by`; NULL where the configuration does not distil */
    const float *taught_by;
    float *taught; /* what it predicts, which the step's program may not overwrite */
    float teacher_weight;
    cdad_optimizer *optimizer; /* or NULL */
    int64_t n_handed, *handed; /* the parameter of each gradient, in the order in which they come */
    cdad_value *written;       /* the gradients that go straight into the optimiser's block, or NULL */
    const cdad_context *ctx; /* of the step that runs */
    int64_t used;            /* gradients that it has used */
    float *sums;             /* where their magnitudes go */
    int squares;
    cdad_batching batching;
    int64_t part;            /* of the batch: the one that runs */
    cdad_sum_fn sum;         /* over shards, or NULL */
    void *sum_arg;
    uint64_t seed;
    float *noise, *t, *signal, *sigma; /* of the whole batch */
    int64_t *timesteps;
};

void cdad_trainer_free(cdad_trainer *t) {
    if (!t)
        return;
    cdad_program_free(t->program);
    cdad_program_free(t->teacher);
    cdad_device_free(t->params ? t->params->device : NULL, t->taught);
    cdad_graph_free(t->graph);
    cdad_optimizer_free(t->optimizer);
    cdad_free(t->handed);
    cdad_free(t->written);
    cdad_free(t->noise);
    cdad_free(t->t);
    cdad_free(t->signal);
    cdad_free(t->sigma);
    cdad_free(t->timesteps);
    cdad_free(t);
}

void cdad_trainer_share(cdad_trainer *t, cdad_sum_fn sum, void *arg) {
    t->sum = sum;
    t->sum_arg = arg;
}

cdad_optimizer *cdad_trainer_optimizer(const cdad_trainer *t) { return t->optimizer; }

int64_t cdad_trainer_arena_bytes(const cdad_trainer *t) { return cdad_program_arena_bytes(t->program); }

int64_t cdad_trainer_workspace_bytes(const cdad_trainer *t) {
    const int64_t step = cdad_program_workspace_bytes(t->program);
    const int64_t teacher = t->teacher ? cdad_program_workspace_bytes(t->teacher) : 0;
    return step > teacher ? step : teacher;
}

int64_t cdad_trainer_taught_bytes(const cdad_trainer *t) {
    return t->teacher ? cdad_shape_count(cdad_graph_shape(t->graph, t->values.prediction)) * (int64_t)sizeof(float) : 0;
}

double cdad_trainer_flops(const cdad_trainer *t) {
    return (double)t->batching.accumulate * cdad_program_flops(t->program);
}

void cdad_trainer_drawn(const cdad_trainer *t, const float **noise, const int64_t **timesteps) {
    *noise = t->noise;
    *timesteps = t->timesteps;
}

/* Where the optimiser's block holds the gradient of parameter i. */
static float *gradient_block(const cdad_trainer *t, int64_t i) {
    return t->optimizer->grads + t->params->items[i].offset;
}

/* Parts whose gradients are added up: each is its mean's share of the whole batch's. */
static int64_t shares(const cdad_trainer *t) { return t->batching.accumulate * t->batching.shards; }

int cdad_trainer_holds_gradients(const cdad_trainer *t) {
    return t->optimizer && (t->optimizer->config.clip_norm > 0 || shares(t) > 1);
}

/* The optimiser's block of gradients, into which the program writes where nothing is added up before. */
static cdad_status take_block(cdad_trainer *t, cdad_error *err) {
    CDAD_FAIL_IF(!t->optimizer, err, CDAD_INVALID, "a trainer without an optimizer has no room for gradients");
    CDAD_TRY(cdad_optimizer_block(t->optimizer, err));
    for (int64_t i = 0; t->written && i < t->n_handed; i++)
        CDAD_TRY(cdad_program_bind(t->program, t->written[i], gradient_block(t, t->handed[i]), err));
    return CDAD_OK;
}

/* Samples that the graph takes. */
static int64_t samples(const cdad_trainer *t) { return t->batching.n / t->batching.accumulate; }

/* Plans the losses and the gradient of every parameter. Where all are held and one part is all, gradients go straight
 * into the optimiser's block; else they are handed over one by one, to be added up or used. */
static cdad_status plan(cdad_trainer *t, const cdad_context *ctx, cdad_error *err) {
    cdad_graph *g = t->graph;
    const cdad_training_graph *v = &t->values;
    cdad_status status = CDAD_OK;
    cdad_value *wanted = NULL, *outputs = NULL;
    cdad_handover *handovers = NULL;
    int64_t n = 0;
    for (int64_t i = 0; i < g->n_values; i++)
        n += g->values[i].kind == CDAD_VALUE_PARAM;
    CDAD_TRY_DONE(cdad_alloc((void **)&wanted, n * (int64_t)sizeof *wanted, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&outputs, (n + 3) * (int64_t)sizeof *outputs, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&handovers, n * (int64_t)sizeof *handovers, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&t->handed, n * (int64_t)sizeof *t->handed, err));
    n = 0;
    for (int64_t i = 0; i < g->n_values; i++)
        if (g->values[i].kind == CDAD_VALUE_PARAM)
            wanted[n++] = (cdad_value)i;
    const int64_t losses = v->loss_amn == CDAD_NONE ? 2 : 3;
    cdad_value *const grads = outputs + losses;
    outputs[0] = v->loss;
    outputs[1] = v->loss_cdm;
    if (losses > 2)
        outputs[2] = v->loss_amn;
    cdad_value share = v->loss; /* of the batch's mean */
    if (shares(t) > 1)
        CDAD_TRY_DONE(cdad_node_add(g, cdad_op_find("affine"), 1, &v->loss, &share, err, "a", 1.0 / (double)shares(t), NULL));
    CDAD_TRY_DONE(cdad_graph_backward(g, share, n, wanted, t->batching.recompute, grads, err));
    for (int64_t i = 0; i < n; i++) {
        if (grads[i] == CDAD_NONE) {
            status = cdad_fail(err, CDAD_INVALID, "the loss does not depend on %s", g->values[wanted[i]].name);
            goto done;
        }
        t->handed[i] = cdad_params_find(t->params, g->values[wanted[i]].name);
        handovers[i] = (cdad_handover){.value = grads[i], .spares = wanted[i]};
    }
    t->n_handed = n;
    if (cdad_trainer_holds_gradients(t) && t->batching.accumulate == 1) {
        const cdad_program_options all = {.n_external = n, .external = grads, .workspace = t->params->workspace};
        CDAD_TRY_DONE(cdad_program_new(&t->program, g, n + losses, outputs, &all, ctx, err));
        CDAD_TRY_DONE(cdad_alloc((void **)&t->written, n * (int64_t)sizeof *t->written, err));
        memcpy(t->written, grads, (size_t)n * sizeof *grads);
    } else {
        const cdad_program_options one_by_one = {.n_handovers = n, .handovers = handovers, .workspace = t->params->workspace};
        CDAD_TRY_DONE(cdad_program_new(&t->program, g, losses, outputs, &one_by_one, ctx, err));
    }
    CDAD_TRY_DONE(cdad_params_bind(t->params, t->params->values, g, t->program, err));
    if (t->config.distills) {
        const cdad_program_options apart = {.n_external = 1, .external = &v->prediction, .workspace = t->params->workspace};
        CDAD_TRY_DONE(cdad_program_new(&t->teacher, g, 1, &v->prediction, &apart, ctx, err));
        CDAD_TRY_DONE(cdad_device_alloc(ctx->device, (void **)&t->taught, cdad_trainer_taught_bytes(t), err));
        CDAD_TRY_DONE(cdad_program_bind(t->teacher, v->prediction, t->taught, err));
    }
done:
    cdad_free(wanted);
    cdad_free(outputs);
    cdad_free(handovers);
    return status;
}

cdad_status cdad_trainer_new(cdad_trainer **out, const cdad_denoiser_config *c, cdad_params *params,
                             const cdad_batching *batching, const cdad_optimizer_config *optimizer, uint64_t seed,
                             const cdad_context *ctx, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_trainer *t = NULL;
    cdad_builder b;
    const int64_t n = batching->n, parts = batching->accumulate;
    *out = NULL;
    CDAD_FAIL_IF(n < 1, err, CDAD_INVALID, "a batch has at least one sample");
    CDAD_FAIL_IF(parts < 1 || n % parts, err, CDAD_INVALID, "a batch of %lld cannot be cut into %lld equal parts",
                 (long long)n, (long long)parts);
    const int64_t shards = batching->shards ? batching->shards : 1;
    CDAD_FAIL_IF(shards < 1 || batching->shard < 0 || batching->shard >= shards, err, CDAD_INVALID,
                 "shard %lld of %lld: one of 0 .. shards - 1 is wanted", (long long)batching->shard, (long long)shards);
    int64_t all;
    CDAD_TRY(cdad_size_mul(n, shards, &all, err));
    CDAD_FAIL_IF((parts > 1 || shards > 1) && c->objective == CDAD_OBJECTIVE_OUTPUT, err, CDAD_INVALID,
                 "the squared norm of a batch's predictions is no mean over its samples: it cannot be added up");
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&t, sizeof *t, err));
    t->config = *c;
    t->params = params;
    t->batching = *batching;
    t->batching.shards = shards;
    t->seed = seed;
    const int64_t latent = n * c->latent_h * c->latent_w * c->unet.in_channels;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&t->noise, latent * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&t->t, n * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&t->signal, n * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc((void **)&t->sigma, n * (int64_t)sizeof(float), err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&t->timesteps, n * (int64_t)sizeof(int64_t), err));
    CDAD_TRY_DONE(cdad_graph_new(&t->graph, err));
    cdad_builder_init(&b, t->graph, params, err);
    CDAD_TRY_DONE(cdad_training_build(&b, c, samples(t), &t->values));
    if (!params->values)
        CDAD_TRY_DONE(cdad_params_allocate(params, seed, err));
    if (optimizer)
        CDAD_TRY_DONE(cdad_optimizer_new(&t->optimizer, params, optimizer, err));
    CDAD_TRY_DONE(plan(t, ctx, err));
    *out = t;
    t = NULL;
done:
    cdad_trainer_free(t);
    return status;
}

static cdad_status set_timesteps(cdad_trainer *t, const int64_t *timesteps, cdad_error *err) {
    const cdad_schedule *s = &t->config.schedule;
    for (int64_t i = 0; i < t->batching.n; i++) {
        const int64_t step = timesteps[i];
        CDAD_FAIL_IF(step < 0 || step >= s->num_train_timesteps, err, CDAD_INVALID,
                     "timestep %lld is not in 0 .. %lld", (long long)step, (long long)s->num_train_timesteps - 1);
        t->t[i] = (float)step;
        t->signal[i] = (float)sqrt(s->alphas_cumprod[step]);
        t->sigma[i] = (float)sqrt(1.0 - s->alphas_cumprod[step]);
    }
    return CDAD_OK;
}

static cdad_status read_losses(const cdad_trainer *t, cdad_step_result *result, cdad_error *err) {
    float loss, loss_cdm, loss_amn = 0.0f;
    CDAD_TRY(cdad_program_read(t->program, t->values.loss, &loss, err));
    CDAD_TRY(cdad_program_read(t->program, t->values.loss_cdm, &loss_cdm, err));
    if (t->values.loss_amn != CDAD_NONE)
        CDAD_TRY(cdad_program_read(t->program, t->values.loss_amn, &loss_amn, err));
    result->loss = (double)loss;
    result->loss_cdm = (double)loss_cdm;
    result->loss_amn = (double)loss_amn;
    CDAD_FAIL_IF(!isfinite(result->loss), err, CDAD_NOT_FINITE, "the loss is not finite (L_CDM %g, L_amn %g)",
                 result->loss_cdm, result->loss_amn);
    return CDAD_OK;
}

/* The arrays of a whole batch; timesteps have been set. */
typedef struct batch_arrays {
    const float *latent, *image, *perturbed, *context, *noise;
} batch_arrays;

/* Feeds what the part that runs has of an array; v may be CDAD_NONE. */
static cdad_status feed_part(const cdad_trainer *t, cdad_program *p, cdad_value v, const float *array, cdad_error *err) {
    return v == CDAD_NONE
               ? CDAD_OK
               : cdad_program_feed(p, v, array + t->part * cdad_shape_count(cdad_graph_shape(t->graph, v)), err);
}

static cdad_status bind_batch(const cdad_trainer *t, cdad_program *p, const batch_arrays *a, cdad_error *err) {
    const cdad_training_graph *v = &t->values;
    CDAD_FAIL_IF(v->context != CDAD_NONE && !a->context, err, CDAD_INVALID, "this model wants a context");
    CDAD_TRY(feed_part(t, p, v->latent, a->latent, err));
    CDAD_TRY(feed_part(t, p, v->noise, a->noise, err));
    CDAD_TRY(feed_part(t, p, v->t, t->t, err));
    CDAD_TRY(feed_part(t, p, v->signal, t->signal, err));
    CDAD_TRY(feed_part(t, p, v->sigma, t->sigma, err));
    CDAD_TRY(feed_part(t, p, v->image, a->image, err));
    CDAD_TRY(feed_part(t, p, v->perturbed, a->perturbed, err));
    return feed_part(t, p, v->context, a->context, err);
}

/* Binds the teacher's prediction; without a teacher any finite values, which the weight 0 takes out. */
static cdad_status run_teacher(cdad_trainer *t, const cdad_context *ctx, const batch_arrays *a, cdad_error *err) {
    const cdad_training_graph *v = &t->values;
    if (!t->teacher)
        return CDAD_OK;
    CDAD_TRY(cdad_program_feed(t->program, v->teacher_weight, &t->teacher_weight, err));
    if (!t->taught_by)
        return feed_part(t, t->program, v->teacher, a->latent, err);
    CDAD_TRY(cdad_params_bind(t->params, t->taught_by, t->graph, t->teacher, err));
    CDAD_TRY(bind_batch(t, t->teacher, a, err));
    CDAD_TRY(cdad_program_run(t->teacher, ctx, err));
    return cdad_program_bind(t->program, v->teacher, t->taught, err);
}

/* Losses and gradients; `to` is handed the gradients of each part where they come one by one. */
static cdad_status run(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                       const float *perturbed, const float *context, const float *noise, const int64_t *timesteps,
                       cdad_handover_fn to, cdad_step_result *result, cdad_error *err) {
    const batch_arrays a = {.latent = latent, .image = image, .perturbed = perturbed, .context = context, .noise = noise};
    const int64_t parts = t->batching.accumulate;
    *result = (cdad_step_result){0};
    CDAD_TRY(set_timesteps(t, timesteps, err));
    cdad_program_hand_to(t->program, to, t);
    for (t->part = 0; t->part < parts; t->part++) {
        cdad_step_result r;
        CDAD_TRY(bind_batch(t, t->program, &a, err));
        CDAD_TRY(run_teacher(t, ctx, &a, err));
        CDAD_TRY(cdad_program_run(t->program, ctx, err));
        CDAD_TRY(read_losses(t, &r, err));
        result->loss += r.loss / (double)parts;
        result->loss_cdm += r.loss_cdm / (double)parts;
        result->loss_amn += r.loss_amn / (double)parts;
    }
    return CDAD_OK;
}

/* Puts a gradient into the optimiser's block, or adds it to those of earlier parts. */
static cdad_status keep_gradient(void *arg, const cdad_context *ctx, int64_t i, const float *grad, cdad_error *err) {
    const cdad_trainer *t = arg;
    const int64_t n = t->params->items[t->handed[i]].count;
    float *sum = gradient_block(t, t->handed[i]);
    if (t->part == 0)
        return cdad_device_copy(ctx->device, sum, grad, n * (int64_t)sizeof *grad, err);
    ctx->kernels->add_to(ctx, sum, NULL, grad, n, 0.0f);
    return cdad_device_check(ctx->device, 0, err);
}

cdad_status cdad_trainer_gradients(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                                   const float *perturbed, const float *context, const float *noise,
                                   const int64_t *timesteps, cdad_step_result *result, cdad_error *err) {
    CDAD_TRY(take_block(t, err));
    return run(t, ctx, latent, image, perturbed, context, noise, timesteps, keep_gradient, result, err);
}

static cdad_status add_magnitudes(void *arg, const cdad_context *ctx, int64_t i, const float *grad, cdad_error *err) {
    const cdad_trainer *t = arg;
    const cdad_param *p = &t->params->items[t->handed[i]];
    (void)err;
    ctx->kernels->add_magnitudes(ctx, t->sums + p->offset, grad, p->count, t->squares);
    return CDAD_OK;
}

cdad_status cdad_trainer_magnitudes(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                                    const float *perturbed, const float *context, const float *noise,
                                    const int64_t *timesteps, int squares, float *sums, cdad_step_result *result,
                                    cdad_error *err) {
    CDAD_FAIL_IF(shares(t) > 1 || (t->optimizer && t->optimizer->config.clip_norm > 0), err, CDAD_INVALID,
                 "magnitudes want gradients that come one by one: a trainer that neither clips nor accumulates nor shares");
    t->sums = sums;
    t->squares = squares;
    return run(t, ctx, latent, image, perturbed, context, noise, timesteps, add_magnitudes, result, err);
}

cdad_status cdad_trainer_teach(cdad_trainer *t, const float *weights, double weight, cdad_error *err) {
    CDAD_FAIL_IF(!t->teacher, err, CDAD_INVALID, "this trainer was not made to distil");
    t->taught_by = weights;
    t->teacher_weight = weights ? (float)weight : 0.0f;
    return CDAD_OK;
}

/* Gradients come after the losses, so that losses that are not finite change nothing. */
static cdad_status use_gradient(void *arg, const cdad_context *ctx, int64_t i, const float *grad, cdad_error *err) {
    cdad_trainer *t = arg;
    cdad_step_result losses;
    if (t->used == 0)
        CDAD_TRY(read_losses(t, &losses, err));
    CDAD_TRY(cdad_optimizer_use(t->optimizer, ctx, t->handed[i], grad, err));
    t->used++;
    return CDAD_OK;
}

/* Not between a step's first update and its last. */
static int poll_before_updates(void *arg) {
    const cdad_trainer *t = arg;
    return t->used == 0 && t->ctx->poll(t->ctx->poll_arg);
}

/* Of a step that ended in `ran` here, which it returns unless it is the sum that fails. */
static cdad_status add_shards(cdad_trainer *t, const cdad_context *ctx, cdad_status ran, cdad_error *err) {
    static const float no_number = NAN;
    cdad_error other = {0};
    if (t->batching.shards == 1 || (ran != CDAD_OK && ran != CDAD_NOT_FINITE))
        return ran;
    if (ran == CDAD_OK)
        return t->sum(t->sum_arg, t->optimizer->grads, t->params->total, err);
    cdad_status status = CDAD_OK; /* each parameter: some are frozen, and not looked at */
    for (int64_t i = 0; i < t->params->n && status == CDAD_OK; i++)
        status = cdad_device_upload(ctx->device, gradient_block(t, i), &no_number, sizeof no_number, &other);
    if (status == CDAD_OK)
        status = t->sum(t->sum_arg, t->optimizer->grads, t->params->total, &other);
    if (status == CDAD_OK)
        return ran;
    *err = other;
    return status;
}

cdad_status cdad_trainer_step(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                              const float *perturbed, const float *context, double lr_scale,
                              cdad_step_result *result, cdad_error *err) {
    const cdad_denoiser_config *c = &t->config;
    CDAD_FAIL_IF(!t->optimizer, err, CDAD_INVALID, "a trainer without an optimizer takes no steps");
    CDAD_FAIL_IF(t->batching.shards > 1 && !t->sum, err, CDAD_INVALID, "nothing adds up the gradients of the batch's shards");
    const int64_t per = c->latent_h * c->latent_w * c->unet.in_channels;
    const int64_t n = t->batching.n; /* samples drawn before this process's of this step: */
    const int64_t first = (t->optimizer->step * t->batching.shards + t->batching.shard) * n;
    const uint64_t noise_stream = cdad_stream_of_name("noise"), time_stream = cdad_stream_of_name("timestep");
    const uint64_t focus_stream = cdad_stream_of_name("focus");
    for (int64_t i = 0; i < n; i++) {
        const int64_t focused = (double)cdad_random_below(1 << 20, t->seed, focus_stream, first + i) <
                                c->focus * (double)(1 << 20);
        const int64_t low = focused ? c->focus_low : 0;
        t->timesteps[i] = low + cdad_random_below(c->schedule.num_train_timesteps - low, t->seed, time_stream, first + i);
    }
    cdad_random_normal(t->noise, n * per, t->seed, noise_stream, first * per);
    if (cdad_trainer_holds_gradients(t)) {
        CDAD_TRY(take_block(t, err));
        const cdad_status ran = run(t, ctx, latent, image, perturbed, context, t->noise, t->timesteps, keep_gradient, result, err);
        CDAD_TRY(add_shards(t, ctx, ran, err));
        return cdad_optimizer_step(t->optimizer, ctx, lr_scale, &result->grad_norm, err);
    }
    cdad_context whole = *ctx;
    if (ctx->poll) {
        whole.poll = poll_before_updates;
        whole.poll_arg = t;
    }
    t->ctx = ctx;
    t->used = 0;
    CDAD_TRY(cdad_optimizer_begin(t->optimizer, ctx, lr_scale, err));
    cdad_status status = run(t, &whole, latent, image, perturbed, context, t->noise, t->timesteps, use_gradient, result, err);
    if (status == CDAD_OK)
        status = cdad_optimizer_end(t->optimizer, &result->grad_norm, err);
    if (status != CDAD_OK && t->used > 0)
        return cdad_fail_in(err, "a part of the weights was updated already: go on from a checkpoint");
    return status;
}
