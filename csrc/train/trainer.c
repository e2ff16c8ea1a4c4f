/* The training step. */
#include "train/trainer.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/philox.h"

/* What a step runs: of all parameters that move, as they are protected when it is planned. */
typedef struct step_plan {
    cdad_graph *graph;
    cdad_training_graph values;
    cdad_program *program;
    cdad_program *teacher; /* predicts with `taught_by`; NULL where the configuration does not distil */
    int64_t n, n_handed;   /* gradients: those that are handed over, in the order in which they come, then those that are written */
    int64_t *handed;       /* [n] the parameter of each */
    cdad_value *grads;     /* [n] */
    cdad_value *along;     /* [n] directions in whose coordinates a gradient may be made, or CDAD_NONE */
    int written;           /* all go straight into the optimiser's block */
    cdad_shared *small;    /* or where those of biases and the like go, to be used at the end; NULL: there are none */
    int64_t *small_at;     /* [n] their places in it */
    int64_t *ranks;        /* [params->n] of the directions, 0: none; FROZEN: no gradient */
    unsigned char *given;  /* [params->n] whose gradients come in coordinates */
    int64_t *places;       /* [params->n] where a block of all gradients has each one's, or NO_PLACE: it is frozen, or no part of the model */
    int64_t held;          /* numbers of that block */
} step_plan;

enum { FROZEN = -1, NO_PLACE = -1 };

struct cdad_trainer {
    cdad_denoiser_config config;
    cdad_params *params;
    step_plan plan;
    const float *taught_by;
    float *taught; /* what it predicts, which the step's program may not overwrite */
    float teacher_weight;
    cdad_optimizer *optimizer; /* or NULL */
    const cdad_context *ctx; /* of the step that runs */
    int64_t used;            /* gradients that it has used */
    cdad_shared *sums;       /* where their magnitudes go; NULL before the first */
    int squares;
    cdad_batching batching;
    int64_t part;            /* of the batch: the one that runs */
    cdad_sum_fn sum;         /* over shards, or NULL */
    void *sum_arg;
    uint64_t seed;
    float *noise, *t, *signal, *sigma; /* of the whole batch */
    int64_t *timesteps;
};

static void free_plan(step_plan *p) {
    cdad_program_free(p->program);
    cdad_program_free(p->teacher);
    cdad_graph_free(p->graph);
    cdad_shared_drop(p->small);
    cdad_free(p->small_at);
    cdad_free(p->handed);
    cdad_free(p->grads);
    cdad_free(p->along);
    cdad_free(p->ranks);
    cdad_free(p->given);
    cdad_free(p->places);
    *p = (step_plan){0};
}

void cdad_trainer_free(cdad_trainer *t) {
    if (!t)
        return;
    free_plan(&t->plan);
    cdad_device_free(t->params ? t->params->device : NULL, t->taught);
    cdad_shared_drop(t->sums);
    cdad_optimizer_free(t->optimizer);
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

cdad_shared *cdad_trainer_sums(const cdad_trainer *t) { return t->sums; }

int64_t cdad_trainer_arena_bytes(const cdad_trainer *t) { return cdad_program_arena_bytes(t->plan.program); }

/* Samples that the graph takes. */
static int64_t samples(const cdad_trainer *t) { return t->batching.n / t->batching.accumulate; }

int64_t cdad_trainer_workspace_bytes(const cdad_trainer *t) {
    const int64_t step = cdad_program_workspace_bytes(t->plan.program);
    const int64_t teacher = t->plan.teacher ? cdad_program_workspace_bytes(t->plan.teacher) : 0;
    return step > teacher ? step : teacher;
}

int64_t cdad_trainer_taught_bytes(const cdad_trainer *t) {
    const cdad_denoiser_config *const c = &t->config;
    return c->distills ? samples(t) * c->latent_h * c->latent_w * c->unet.out_channels * (int64_t)sizeof(float) : 0;
}

int64_t cdad_trainer_gradient_bytes(const cdad_trainer *t) {
    return cdad_trainer_holds_gradients(t) ? t->plan.held * (int64_t)sizeof(float) : 0;
}

double cdad_trainer_flops(const cdad_trainer *t) {
    const double projections = t->optimizer ? cdad_optimizer_flops(t->optimizer) : 0;
    return (double)t->batching.accumulate * cdad_program_flops(t->plan.program) + projections;
}

void cdad_trainer_drawn(const cdad_trainer *t, const float **noise, const int64_t **timesteps) {
    *noise = t->noise;
    *timesteps = t->timesteps;
}

/* Parts whose gradients are added up: each is its mean's share of the whole batch's. */
static int64_t shares(const cdad_trainer *t) { return t->batching.accumulate * t->batching.shards; }

int cdad_trainer_holds_gradients(const cdad_trainer *t) {
    return t->optimizer && (t->optimizer->config.clip_norm > 0 || shares(t) > 1);
}

/* What a plan is to be made for: with `within`, of what moves, and as it moves; else every parameter's whole gradient. */
static void wanted_ranks(const cdad_trainer *t, int within, int64_t *ranks) {
    for (int64_t i = 0; i < t->params->n; i++) {
        ranks[i] = 0;
        if (!within || !t->optimizer)
            continue;
        if (t->optimizer->protection[i].frozen)
            ranks[i] = FROZEN;
        else
            (void)cdad_optimizer_directions(t->optimizer, i, &ranks[i]);
    }
}

/* The directions [rank,...] of a weight, as an input. */
static cdad_status add_directions(cdad_graph *g, const cdad_param *p, int64_t rank, cdad_value *out, cdad_error *err) {
    cdad_shape shape = p->shape;
    shape.dim[0] = rank;
    return cdad_graph_input(g, p->name, shape, out, err);
}

/* Adds the gradients of what moves. `wanted` has room for all parameters. */
static cdad_status add_gradients(const cdad_trainer *t, step_plan *p, cdad_value *wanted, cdad_error *err) {
    cdad_graph *const g = p->graph;
    cdad_value share = p->values.loss; /* of the batch's mean */
    const int64_t n_values = g->n_values;
    for (int64_t v = 0; v < n_values; v++) {
        const int64_t i = g->values[v].kind == CDAD_VALUE_PARAM ? cdad_params_find(t->params, g->values[v].name) : -1;
        if (i < 0 || p->ranks[i] == FROZEN)
            continue;
        p->along[p->n] = CDAD_NONE;
        if (p->ranks[i] > 0)
            CDAD_TRY(add_directions(g, &t->params->items[i], p->ranks[i], &p->along[p->n], err));
        wanted[p->n] = (cdad_value)v;
        p->handed[p->n++] = i;
    }
    if (shares(t) > 1)
        CDAD_TRY(cdad_node_add(g, cdad_op_find("affine"), 1, &p->values.loss, &share, err, "a", 1.0 / (double)shares(t), NULL));
    CDAD_TRY(cdad_graph_backward_along(g, share, p->n, wanted, p->along, t->batching.recompute, p->grads, err));
    for (int64_t j = 0; j < p->n; j++) {
        const cdad_param *const item = &t->params->items[p->handed[j]];
        CDAD_FAIL_IF(p->grads[j] == CDAD_NONE, err, CDAD_INVALID, "the loss does not depend on %s", item->name);
        p->given[p->handed[j]] = !cdad_shape_equal(cdad_graph_shape(g, p->grads[j]), &item->shape);
        if (!p->given[p->handed[j]])
            p->along[j] = CDAD_NONE;
        p->places[p->handed[j]] = cdad_shape_count(cdad_graph_shape(g, p->grads[j]));
    }
    for (int64_t i = 0; i < t->params->n; i++) { /* from sizes to places, aligned as parameters are: whole gradients lie like these */
        const int64_t size = p->places[i];
        p->places[i] = size > 0 ? p->held : NO_PLACE;
        p->held += cdad_align_up(size * (int64_t)sizeof(float)) / (int64_t)sizeof(float);
    }
    return CDAD_OK;
}

/* array[k] = what array[order[k]] was. */
static cdad_status permute(void *array, size_t element, const int64_t *order, int64_t n, cdad_error *err) {
    char *was, *const now = array;
    CDAD_TRY(cdad_alloc((void **)&was, n * (int64_t)element, err));
    memcpy(was, array, (size_t)n * element);
    for (int64_t k = 0; k < n; k++)
        memcpy(now + (size_t)k * element, was + (size_t)order[k] * element, element);
    cdad_free(was);
    return CDAD_OK;
}

static int64_t size_of(const step_plan *p, int64_t j) { return cdad_shape_count(cdad_graph_shape(p->graph, p->grads[j])); }

/* Whether gradient j is one of those that wait for the end, as a launch for each would take longer than what it does. */
static int waits(const step_plan *p, int64_t j, const cdad_context *ctx) {
    return ctx->kernels->adamw_each && !p->given[p->handed[j]] && size_of(p, j) < CDAD_SMALL8;
}

/* Which gradients are handed over, and which are written: those to the end of the lists. */
static cdad_status sort_gradients(const cdad_trainer *t, step_plan *p, cdad_value *wanted, const cdad_context *ctx, cdad_error *err) {
    cdad_status status;
    int64_t *order = NULL, end = 0, held = 0;
    p->written = cdad_trainer_holds_gradients(t) && t->batching.accumulate == 1;
    if (p->written)
        return CDAD_OK; /* n_handed is 0 */
    CDAD_TRY_DONE(cdad_alloc((void **)&order, p->n * (int64_t)sizeof *order, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&p->small_at, p->n * (int64_t)sizeof *p->small_at, err));
    for (int last = 0; last < 2; last++)
        for (int64_t j = 0; j < p->n; j++)
            if (waits(p, j, ctx) == last) {
                p->n_handed += !last;
                order[end++] = j;
            }
    CDAD_TRY_DONE(permute(p->handed, sizeof *p->handed, order, p->n, err));
    CDAD_TRY_DONE(permute(p->grads, sizeof *p->grads, order, p->n, err));
    CDAD_TRY_DONE(permute(p->along, sizeof *p->along, order, p->n, err));
    CDAD_TRY_DONE(permute(wanted, sizeof *wanted, order, p->n, err));
    for (int64_t j = p->n_handed; j < p->n; j++) {
        p->small_at[j] = held;
        held += cdad_align_up(size_of(p, j) * (int64_t)sizeof(float)) / (int64_t)sizeof(float);
    }
    if (held)
        CDAD_TRY_DONE(cdad_shared_new(&p->small, t->params->device, held * (int64_t)sizeof(float), err));
done:
    cdad_free(order);
    return status;
}

static float *small_gradient(const step_plan *p, int64_t j) { return (float *)cdad_shared_data(p->small) + p->small_at[j]; }

/* Makes the program of the losses and gradients. Where all are held and one part is all, gradients go straight into the
 * optimiser's block; else they are handed over one by one, to be added up or used, or, on a device, small ones all at the end. */
static cdad_status plan_program(const cdad_trainer *t, step_plan *p, cdad_value *wanted, const cdad_context *ctx, cdad_error *err) {
    const cdad_training_graph *const v = &p->values;
    const int64_t losses = v->loss_amn == CDAD_NONE ? 2 : 3;
    cdad_status status;
    cdad_value *outputs = NULL;
    cdad_handover *handovers = NULL;
    CDAD_TRY_DONE(sort_gradients(t, p, wanted, ctx, err));
    const int64_t written = p->n - p->n_handed;
    CDAD_TRY_DONE(cdad_alloc((void **)&outputs, (p->n + losses) * (int64_t)sizeof *outputs, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&handovers, p->n * (int64_t)sizeof *handovers, err));
    const cdad_value of_losses[] = {v->loss, v->loss_cdm, v->loss_amn};
    memcpy(outputs, of_losses, (size_t)losses * sizeof *outputs);
    memcpy(outputs + losses, p->grads + p->n_handed, (size_t)written * sizeof *outputs);
    for (int64_t j = 0; j < p->n_handed; j++)
        handovers[j] = (cdad_handover){.value = p->grads[j], .spares = wanted[j]};
    const cdad_program_options how = {.n_external = written,
                                      .external = p->grads + p->n_handed,
                                      .n_handovers = p->n_handed,
                                      .handovers = handovers,
                                      .workspace = t->params->workspace};
    CDAD_TRY_DONE(cdad_program_new(&p->program, p->graph, losses + written, outputs, &how, ctx, err));
    CDAD_TRY_DONE(cdad_params_bind(t->params, t->params->values, p->graph, p->program, err));
    if (t->config.distills) {
        const cdad_program_options apart = {.n_external = 1, .external = &v->prediction, .workspace = t->params->workspace};
        CDAD_TRY_DONE(cdad_program_new(&p->teacher, p->graph, 1, &v->prediction, &apart, ctx, err));
    }
done:
    cdad_free(outputs);
    cdad_free(handovers);
    return status;
}

/* Plans a step anew where it was planned for other protections; a failure leaves the plan that is there. */
static cdad_status plan(cdad_trainer *t, int within, const cdad_context *ctx, cdad_error *err) {
    const int64_t n = t->params->n;
    step_plan made = {0};
    cdad_status status;
    cdad_builder b;
    cdad_value *wanted = NULL;
    CDAD_TRY_DONE(cdad_alloc((void **)&made.ranks, n * (int64_t)sizeof *made.ranks, err));
    wanted_ranks(t, within, made.ranks);
    if (t->plan.ranks && memcmp(made.ranks, t->plan.ranks, (size_t)n * sizeof *made.ranks) == 0)
        goto done;
    CDAD_TRY_DONE(cdad_graph_new(&made.graph, err));
    cdad_builder_init(&b, made.graph, t->params, err);
    CDAD_TRY_DONE(cdad_training_build(&b, &t->config, samples(t), &made.values));
    CDAD_TRY_DONE(cdad_alloc((void **)&wanted, n * (int64_t)sizeof *wanted, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&made.handed, n * (int64_t)sizeof *made.handed, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&made.grads, n * (int64_t)sizeof *made.grads, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&made.along, n * (int64_t)sizeof *made.along, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&made.given, n, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&made.places, n * (int64_t)sizeof *made.places, err));
    CDAD_TRY_DONE(add_gradients(t, &made, wanted, err));
    CDAD_TRY_DONE(plan_program(t, &made, wanted, ctx, err));
    free_plan(&t->plan);
    t->plan = made;
    made = (step_plan){0};
    if (t->optimizer) {
        t->optimizer->given = t->plan.given;
        t->optimizer->places = t->plan.places;
    }
done:
    cdad_free(wanted);
    free_plan(&made);
    return status;
}

cdad_status cdad_trainer_prepare(cdad_trainer *t, const cdad_context *ctx, cdad_error *err) { return plan(t, 1, ctx, err); }

/* Binds the directions, and where gradients go straight to the optimiser's block of them, which is there then. */
static cdad_status bind_gradients(cdad_trainer *t, cdad_error *err) {
    const step_plan *const p = &t->plan;
    int64_t rank;
    for (int64_t j = 0; j < p->n; j++) {
        const int64_t i = p->handed[j];
        if (p->along[j] != CDAD_NONE)
            CDAD_TRY(cdad_program_bind(p->program, p->along[j], cdad_optimizer_directions(t->optimizer, i, &rank), err));
        if (j >= p->n_handed)
            CDAD_TRY(cdad_program_bind(p->program, p->grads[j],
                                       p->written ? cdad_optimizer_gradient(t->optimizer, i) : small_gradient(p, j), err));
    }
    return CDAD_OK;
}

cdad_status cdad_trainer_new(cdad_trainer **out, const cdad_denoiser_config *c, cdad_params *params,
                             const cdad_batching *batching, const cdad_optimizer_config *optimizer, uint64_t seed,
                             const cdad_context *ctx, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_trainer *t = NULL;
    cdad_graph *shapes = NULL;
    cdad_training_graph values;
    cdad_builder b;
    const int64_t n = batching->n, parts = batching->accumulate, known = params->n;
    const int fresh = !params->values;
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
    CDAD_TRY_DONE(cdad_graph_new(&shapes, err)); /* registers the parameters */
    cdad_builder_init(&b, shapes, params, err);
    CDAD_TRY_DONE(cdad_training_build(&b, c, samples(t), &values));
    if (fresh)
        CDAD_TRY_DONE(cdad_params_allocate(params, seed, err));
    if (optimizer) {
        cdad_optimizer_config as_trained = *optimizer;
        as_trained.precision = c->precision;
        CDAD_TRY_DONE(cdad_optimizer_new(&t->optimizer, params, &as_trained, err));
    }
    CDAD_TRY_DONE(plan(t, 1, ctx, err));
    if (c->distills)
        CDAD_TRY_DONE(cdad_device_alloc(ctx->device, (void **)&t->taught, cdad_trainer_taught_bytes(t), err));
    *out = t;
    t = NULL;
done:
    cdad_graph_free(shapes);
    cdad_trainer_free(t);
    if (status != CDAD_OK && fresh)
        cdad_params_release(params);
    if (status != CDAD_OK)
        cdad_params_forget(params, known);
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
    CDAD_TRY(cdad_program_read(t->plan.program, t->plan.values.loss, &loss, err));
    CDAD_TRY(cdad_program_read(t->plan.program, t->plan.values.loss_cdm, &loss_cdm, err));
    if (t->plan.values.loss_amn != CDAD_NONE)
        CDAD_TRY(cdad_program_read(t->plan.program, t->plan.values.loss_amn, &loss_amn, err));
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
               : cdad_program_feed(p, v, array + t->part * cdad_shape_count(cdad_graph_shape(t->plan.graph, v)), err);
}

static cdad_status bind_batch(const cdad_trainer *t, cdad_program *p, const batch_arrays *a, cdad_error *err) {
    const cdad_training_graph *v = &t->plan.values;
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
    const cdad_training_graph *v = &t->plan.values;
    if (!t->plan.teacher)
        return CDAD_OK;
    CDAD_TRY(cdad_program_feed(t->plan.program, v->teacher_weight, &t->teacher_weight, err));
    if (!t->taught_by)
        return feed_part(t, t->plan.program, v->teacher, a->latent, err);
    CDAD_TRY(cdad_params_bind(t->params, t->taught_by, t->plan.graph, t->plan.teacher, err));
    CDAD_TRY(bind_batch(t, t->plan.teacher, a, err));
    CDAD_TRY(cdad_program_bind(t->plan.teacher, v->prediction, t->taught, err));
    CDAD_TRY(cdad_program_run(t->plan.teacher, ctx, err));
    return cdad_program_bind(t->plan.program, v->teacher, t->taught, err);
}

/* Losses and gradients; `to` is handed the gradients of each part where they do not go straight into the optimiser's block. */
static cdad_status run(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                       const float *perturbed, const float *context, const float *noise, const int64_t *timesteps,
                       cdad_handover_fn to, cdad_step_result *result, cdad_error *err) {
    const batch_arrays a = {.latent = latent, .image = image, .perturbed = perturbed, .context = context, .noise = noise};
    const int64_t parts = t->batching.accumulate;
    *result = (cdad_step_result){0};
    CDAD_TRY(set_timesteps(t, timesteps, err));
    cdad_program_hand_to(t->plan.program, to, t);
    for (t->part = 0; t->part < parts; t->part++) {
        cdad_step_result r;
        CDAD_TRY(bind_batch(t, t->plan.program, &a, err));
        CDAD_TRY(run_teacher(t, ctx, &a, err));
        CDAD_TRY(cdad_program_run(t->plan.program, ctx, err));
        for (int64_t j = t->plan.n_handed; !t->plan.written && j < t->plan.n; j++)
            CDAD_TRY(to(t, ctx, j, small_gradient(&t->plan, j), err));
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
    const int64_t n = size_of(&t->plan, i);
    float *sum = cdad_optimizer_gradient(t->optimizer, t->plan.handed[i]);
    if (t->part == 0)
        return cdad_device_copy(ctx->device, sum, grad, n * (int64_t)sizeof *grad, err);
    ctx->kernels->add_to(ctx, sum, NULL, grad, n, 0.0f);
    return cdad_device_check(ctx->device, 0, err);
}

cdad_status cdad_trainer_gradients(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                                   const float *perturbed, const float *context, const float *noise,
                                   const int64_t *timesteps, cdad_step_result *result, cdad_error *err) {
    CDAD_FAIL_IF(!t->optimizer, err, CDAD_INVALID, "a trainer without an optimizer has no room for gradients");
    CDAD_TRY(plan(t, 0, ctx, err));
    CDAD_TRY(cdad_optimizer_block(t->optimizer, t->plan.held, err));
    CDAD_TRY(bind_gradients(t, err));
    return run(t, ctx, latent, image, perturbed, context, noise, timesteps, keep_gradient, result, err);
}

static cdad_status add_magnitudes(void *arg, const cdad_context *ctx, int64_t i, const float *grad, cdad_error *err) {
    const cdad_trainer *t = arg;
    const cdad_param *p = &t->params->items[t->plan.handed[i]];
    float *const sums = cdad_shared_data(t->sums);
    (void)err;
    ctx->kernels->add_magnitudes(ctx, sums + p->offset, grad, p->count, t->squares);
    return CDAD_OK;
}

cdad_status cdad_trainer_magnitudes(cdad_trainer *t, const cdad_context *ctx, const float *latent, const float *image,
                                    const float *perturbed, const float *context, const float *noise,
                                    const int64_t *timesteps, int squares, cdad_step_result *result, cdad_error *err) {
    CDAD_FAIL_IF(shares(t) > 1 || (t->optimizer && t->optimizer->config.clip_norm > 0), err, CDAD_INVALID,
                 "magnitudes want gradients that come one by one: a trainer that neither clips nor accumulates nor shares");
    CDAD_TRY(plan(t, 0, ctx, err));
    if (!t->sums)
        CDAD_TRY(cdad_shared_new(&t->sums, t->params->device, t->params->total * (int64_t)sizeof(float), err));
    t->squares = squares;
    CDAD_TRY(bind_gradients(t, err));
    CDAD_TRY(run(t, ctx, latent, image, perturbed, context, noise, timesteps, add_magnitudes, result, err));
    return cdad_device_check(ctx->device, 0, err);
}

cdad_status cdad_trainer_teach(cdad_trainer *t, const float *weights, double weight, cdad_error *err) {
    CDAD_FAIL_IF(!t->plan.teacher, err, CDAD_INVALID, "this trainer was not made to distil");
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
    CDAD_TRY(cdad_optimizer_use(t->optimizer, ctx, t->plan.handed[i], grad, err));
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
        return t->sum(t->sum_arg, t->optimizer->grads, t->plan.held, err);
    cdad_status status = CDAD_OK;
    if (t->plan.n > 0)
        status = cdad_device_upload(ctx->device, cdad_optimizer_gradient(t->optimizer, t->plan.handed[0]), &no_number, sizeof no_number,
                                    &other);
    if (status == CDAD_OK)
        status = t->sum(t->sum_arg, t->optimizer->grads, t->plan.held, &other);
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
    CDAD_FAIL_IF(!(lr_scale >= 0 && isfinite(lr_scale)), err, CDAD_INVALID, "lr_scale is %g; 0 or more, and finite, is wanted", lr_scale);
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
    CDAD_TRY(plan(t, 1, ctx, err)); /* what may lack memory comes before what other processes wait for */
    CDAD_TRY(cdad_optimizer_moments(t->optimizer, err));
    if (cdad_trainer_holds_gradients(t))
        CDAD_TRY(cdad_optimizer_block(t->optimizer, t->plan.held, err));
    CDAD_TRY(bind_gradients(t, err));
    if (cdad_trainer_holds_gradients(t)) {
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
    for (int64_t i = 0; status == CDAD_OK && i < t->params->n; i++) /* what has no gradient has an average */
        if (t->plan.places[i] == NO_PLACE)
            status = cdad_optimizer_use(t->optimizer, ctx, i, NULL, err);
    if (status == CDAD_OK)
        status = cdad_optimizer_end(t->optimizer, ctx, &result->grad_norm, err);
    if (status != CDAD_OK && t->used > 0)
        return cdad_fail_in(err, "a part of the weights was updated already: go on from a checkpoint");
    return status;
}
