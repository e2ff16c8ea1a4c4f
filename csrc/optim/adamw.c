/* AdamW with projection and penalty. */
#include "optim/adamw.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "continual/basis.h"
#include "continual/projection.h"

/* Frees what parameter i's protection owns, and takes `how` over. */
static void replace(cdad_optimizer *o, int64_t i, cdad_protection how) {
    cdad_free(o->protection[i].complement);
    cdad_device_free(o->params->device, o->protection[i].mirror);
    o->protection[i] = how;
}

void cdad_optimizer_free(cdad_optimizer *o) {
    if (!o)
        return;
    cdad_device *device = o->params->device;
    cdad_optimizer_reset(o);
    cdad_shared_drop(o->followed);
    cdad_device_free(device, o->ema);
    cdad_free(o->protection);
    cdad_free(o->tether_rates);
    cdad_free(o->moving);
    cdad_free(o->small);
    if (o->squares != o->sums)
        cdad_free(o->squares);
    cdad_device_free(device, o->sums);
    cdad_free(o);
}

/* Also where rounding to float has put it: what never decays would be divided by 0. */
static int is_decay(double x) { return x >= 0 && (float)x < 1; }

cdad_status cdad_optimizer_new(cdad_optimizer **out, const cdad_params *params, const cdad_optimizer_config *config,
                               cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_optimizer *o = NULL;
    *out = NULL;
    CDAD_FAIL_IF(!(config->lr >= 0 && isfinite(config->lr)) || !is_decay(config->beta1) || !is_decay(config->beta2) ||
                     !((float)config->eps > 0) || !(config->weight_decay >= 0 && isfinite(config->weight_decay)) ||
                     !(config->clip_norm >= 0) || !is_decay(config->ema_decay),
                 err, CDAD_INVALID,
                 "AdamW wants lr >= 0, betas and ema_decay in [0,1), eps > 0, weight_decay and clip_norm >= 0, as float32 has them");
    const int64_t bytes = params->total * (int64_t)sizeof(float);
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o, sizeof *o, err));
    o->config = *config;
    o->params = params;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->protection, params->n * (int64_t)sizeof *o->protection, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->tether_rates, params->n * (int64_t)sizeof *o->tether_rates, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&o->moving, params->n * (int64_t)sizeof *o->moving, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&o->small, params->n * (int64_t)sizeof *o->small, err));
    for (int64_t i = 0; i < params->n; i++)
        o->moving[i] = params->items[i].count;
    CDAD_TRY_DONE(cdad_device_alloc(params->device, (void **)&o->sums, params->n * (int64_t)sizeof *o->sums, err));
    o->squares = o->sums;
    if (params->device) {
        o->squares = NULL; /* not the device's to free */
        CDAD_TRY_DONE(cdad_alloc((void **)&o->squares, params->n * (int64_t)sizeof *o->squares, err));
    }
    if (config->ema_decay > 0) {
        CDAD_TRY_DONE(cdad_device_alloc(params->device, (void **)&o->ema, bytes, err));
        CDAD_TRY_DONE(cdad_device_copy(params->device, o->ema, params->values, bytes, err));
    }
    *out = o;
    o = NULL;
done:
    cdad_optimizer_free(o);
    return status;
}

void cdad_optimizer_reset(cdad_optimizer *o) {
    cdad_moment_free(&o->m);
    cdad_moment_free(&o->v);
    cdad_shared_drop(o->gradients);
    o->gradients = NULL;
    o->grads = NULL;
    o->held = 0;
    cdad_device_free(o->params->device, o->scratch);
    o->scratch = NULL;
    o->scratch_bytes = 0;
    for (int64_t i = 0; o->moving && i < o->params->n; i++) {
        replace(o, i, (cdad_protection){0});
        o->moving[i] = o->params->items[i].count;
    }
    o->age = 0;
}

cdad_status cdad_optimizer_block(cdad_optimizer *o, int64_t n, cdad_error *err) {
    if (o->grads && o->held == n)
        return CDAD_OK;
    cdad_shared_drop(o->gradients);
    o->gradients = NULL;
    o->grads = NULL;
    CDAD_TRY(cdad_shared_new(&o->gradients, o->params->device, n * (int64_t)sizeof(float), err));
    o->grads = cdad_shared_data(o->gradients);
    o->held = n;
    return CDAD_OK;
}

float *cdad_optimizer_gradient(const cdad_optimizer *o, int64_t i) {
    const int64_t at = o->places ? o->places[i] : o->params->items[i].offset;
    return at < 0 ? NULL : o->grads + at;
}

/* Whether steps leave parameter i where it is: it is frozen, or there is no gradient of it. */
static int stays(const cdad_optimizer *o, int64_t i) { return o->protection[i].frozen || (o->places && o->places[i] < 0); }

static cdad_moment_format second_format(const cdad_optimizer *o) {
    return o->config.moments == CDAD_MOMENT_8BIT ? CDAD_MOMENT_8BIT : CDAD_MOMENT_FLOAT32;
}

int64_t cdad_optimizer_moment_bytes(const cdad_optimizer *o) {
    const int64_t n = o->params->n;
    return cdad_moment_bytes(o->moving, n, o->config.moments) + cdad_moment_bytes(o->moving, n, second_format(o));
}

cdad_status cdad_optimizer_moments(cdad_optimizer *o, cdad_error *err) {
    const cdad_moment_format formats[] = {o->config.moments, second_format(o)};
    cdad_moment *const kept[] = {&o->m, &o->v};
    cdad_moment made[2] = {{0}, {0}};
    cdad_status status = CDAD_OK;
    if (cdad_moment_fits(&o->m, o->moving))
        return CDAD_OK;
    for (int k = 0; k < 2; k++) {
        CDAD_TRY_DONE(cdad_moment_new(&made[k], o->params->device, o->moving, o->params->n, formats[k], k == 0, err));
        if (kept[k]->memory)
            CDAD_TRY_DONE(cdad_moment_take(&made[k], kept[k], err));
    }
    for (int k = 0; k < 2; k++) {
        cdad_moment_free(kept[k]);
        *kept[k] = made[k];
        made[k] = (cdad_moment){0};
    }
done:
    cdad_moment_free(&made[0]);
    cdad_moment_free(&made[1]);
    return status;
}

/* A weight [O, ...] as a matrix of O rows. */
static int64_t row_width(const cdad_param *p) { return p->count / p->shape.dim[0]; }

/* The place of a parameter that may have directions U [d,rank], or none; negative: none is called so. */
static cdad_status find(const cdad_optimizer *o, const char *param, const float *U, int64_t rank, int64_t *i,
                        cdad_error *err) {
    *i = cdad_params_find(o->params, param);
    CDAD_FAIL_IF(*i < 0, err, CDAD_INVALID, "the model has no parameter %s", param);
    if (!U)
        return CDAD_OK;
    CDAD_FAIL_IF(o->params->items[*i].shape.ndim < 2, err, CDAD_INVALID,
                 "%s is no weight matrix: it cannot have a basis", param);
    const int64_t d = row_width(&o->params->items[*i]);
    CDAD_FAIL_IF(rank < 0 || rank > d, err, CDAD_SHAPE, "%s: a basis of rank %" PRId64 " for features of width %" PRId64,
                 param, rank, d);
    return CDAD_OK;
}

/* Whether AdamW works in the coordinates of a weight's free directions. */
static int in_coordinates(const cdad_optimizer *o, int64_t i) {
    return o->protection[i].onto && o->config.projection == CDAD_PROJECT_UPDATE;
}

/* Takes `how` over; a failure frees what it owns. */
static cdad_status treat(cdad_optimizer *o, int64_t i, cdad_protection how, cdad_error *err) {
    cdad_device *device = o->params->device;
    if (device && how.basis) {
        const int64_t bytes = row_width(&o->params->items[i]) * how.rank * (int64_t)sizeof(float);
        const cdad_status status = cdad_device_mirror(device, (void **)&how.mirror, how.basis, bytes, err);
        if (status != CDAD_OK) {
            cdad_device_free(device, how.mirror);
            cdad_free(how.complement);
            return status;
        }
        how.basis = how.mirror;
    }
    replace(o, i, how);
    const cdad_param *p = &o->params->items[i];
    o->moving[i] = how.frozen ? 0 : in_coordinates(o, i) ? p->shape.dim[0] * how.rank : p->count;
    return CDAD_OK;
}

/* *rows [d-k,d]: the complement of U [d,k], a direction a row. */
static cdad_status complement_rows(const float *U, int64_t d, int64_t k, float **rows, cdad_error *err) {
    const int64_t n = d - k;
    float *Q;
    *rows = NULL;
    CDAD_TRY(cdad_basis_complement(U, d, k, &Q, err));
    const cdad_status status = cdad_alloc((void **)rows, n * d * (int64_t)sizeof **rows, err);
    for (int64_t i = 0; status == CDAD_OK && i < n; i++)
        for (int64_t j = 0; j < d; j++)
            (*rows)[i * d + j] = Q[j * n + i];
    cdad_free(Q);
    return status;
}

cdad_status cdad_optimizer_protect(cdad_optimizer *o, const char *param, int frozen, const float *U, int64_t rank,
                                   cdad_error *err) {
    int64_t i;
    CDAD_TRY(find(o, param, U, rank, &i, err));
    cdad_protection how = {.frozen = frozen, .basis = U, .rank = rank};
    const int64_t d = U ? row_width(&o->params->items[i]) : 0;
    if (U && rank == d) {
        how = (cdad_protection){.frozen = 1};
    } else if (U && rank > 0 && (o->config.projection == CDAD_PROJECT_UPDATE || rank > d - rank)) {
        CDAD_TRY(complement_rows(U, d, rank, &how.complement, err));
        how.basis = how.complement;
        how.rank = d - rank;
        how.onto = 1;
    }
    return treat(o, i, how, err);
}

cdad_status cdad_optimizer_confine(cdad_optimizer *o, const char *param, const float *V, int64_t rank, cdad_error *err) {
    int64_t i;
    CDAD_TRY(find(o, param, V, rank, &i, err));
    return treat(o, i, rank > 0 ? (cdad_protection){.basis = V, .rank = rank, .onto = 1} : (cdad_protection){.frozen = 1},
                 err);
}

void cdad_optimizer_penalize(cdad_optimizer *o, const float *importance, const float *anchor, double strength) {
    o->pull = (cdad_pull){.importance = importance, .anchor = anchor, .strength = (float)strength};
}

void cdad_optimizer_tether(cdad_optimizer *o, const float *anchor, const double *rates) {
    o->tether = anchor;
    if (anchor)
        memcpy(o->tether_rates, rates, (size_t)o->params->n * sizeof *rates);
}

cdad_status cdad_optimizer_follow(cdad_optimizer *o, int on, cdad_error *err) {
    cdad_shared_drop(o->followed);
    o->followed = NULL;
    o->path = NULL;
    if (!on)
        return CDAD_OK;
    CDAD_TRY(cdad_shared_new(&o->followed, o->params->device, o->params->total * (int64_t)sizeof(float), err));
    o->path = cdad_shared_data(o->followed);
    return CDAD_OK;
}

/* Scratch for the projections and, after them, where gradients come one by one, for the largest of those that are projected. */
static cdad_status plan_scratch(const cdad_optimizer *o, const cdad_context *ctx, int64_t *after, int64_t *bytes_out,
                                cdad_error *err) {
    const int one_by_one = !(o->config.clip_norm > 0);
    int64_t most = 0, largest = 0;
    for (int64_t i = 0; i < o->params->n; i++) {
        const cdad_param *p = &o->params->items[i];
        int64_t bytes = 0;
        if (!o->protection[i].basis)
            continue;
        CDAD_FAIL_IF(o->pull.importance || o->path, err, CDAD_INVALID,
                     "%s is protected by a basis: it cannot have a penalty or a path integral too", p->name);
        CDAD_TRY(cdad_project_scratch(ctx, p->shape.dim[0], row_width(p), o->protection[i].rank, &bytes, err));
        most = bytes > most ? bytes : most;
        largest = p->count > largest ? p->count : largest;
    }
    *after = cdad_align_up(most);
    *bytes_out = *after + (one_by_one ? largest * (int64_t)sizeof(float) : 0);
    return CDAD_OK;
}

cdad_status cdad_optimizer_scratch(const cdad_optimizer *o, const cdad_context *ctx, int64_t *bytes, cdad_error *err) {
    int64_t after;
    return plan_scratch(o, ctx, &after, bytes, err);
}

static cdad_status reserve_scratch(cdad_optimizer *o, const cdad_context *ctx, cdad_error *err) {
    int64_t most;
    CDAD_TRY(plan_scratch(o, ctx, &o->update_offset, &most, err));
    if (most <= o->scratch_bytes)
        return CDAD_OK;
    cdad_device_free(ctx->device, o->scratch);
    o->scratch = NULL;
    o->scratch_bytes = 0;
    CDAD_TRY(cdad_device_alloc(ctx->device, &o->scratch, most, err));
    o->scratch_bytes = most;
    return CDAD_OK;
}

/* The directions of a protection as a matrix [d,rank]. */
static cdad_mat span_of(const cdad_protection *q, int64_t d) {
    return q->onto ? cdad_mat_transposed(q->basis, d) : cdad_mat_rows(q->basis, q->rank);
}

const float *cdad_optimizer_directions(const cdad_optimizer *o, int64_t i, int64_t *rank) {
    const cdad_protection *q = &o->protection[i];
    const int there = !q->frozen && in_coordinates(o, i);
    *rank = there ? q->rank : 0;
    return there ? q->basis : NULL;
}

static int comes_projected(const cdad_optimizer *o, int64_t i) { return o->given && o->given[i]; }

/* Of the projection of parameter i, into the subspace and back out of it. */
static double projection_flops(const cdad_optimizer *o, int64_t i) {
    const cdad_protection *q = &o->protection[i];
    return q->frozen || !q->basis ? 0 : (comes_projected(o, i) ? 2.0 : 4.0) * (double)o->params->items[i].count * (double)q->rank;
}

double cdad_optimizer_flops(const cdad_optimizer *o) {
    double sum = 0;
    for (int64_t i = 0; i < o->params->n; i++)
        sum += projection_flops(o, i);
    return sum;
}

/* What AdamW takes for parameter i's gradient: itself, or in `own`, which may be its memory, the gradient projected. */
static const float *prepare(cdad_optimizer *o, const cdad_context *ctx, int64_t i, const float *grad, float *own) {
    const cdad_param *p = &o->params->items[i];
    const cdad_protection *q = &o->protection[i];
    if (!q->basis || q->rank == 0 || comes_projected(o, i))
        return grad;
    if (in_coordinates(o, i)) {
        cdad_coordinates(ctx, own, grad, p->shape.dim[0], span_of(q, row_width(p)), row_width(p), q->rank,
                         o->config.precision, o->scratch);
        return own;
    }
    const cdad_runs all = cdad_columns(1, p->count, 0, 0);
    if (own != grad)
        ctx->kernels->copy_runs(ctx, own, grad, &all);
    cdad_project(ctx, own, p->shape.dim[0], span_of(q, row_width(p)), row_width(p), q->rank, q->onto ? CDAD_PROJECT_ONTO : CDAD_PROJECT_OFF,
                 o->scratch);
    return own;
}

/* The penalty of parameter i. */
static cdad_pull pull_of(const cdad_optimizer *o, int64_t i) {
    return cdad_pull_at(o->pull, o->params->items[i].offset);
}

/* Sums up the squares of parameter i's prepared gradient, with the penalty's. */
static cdad_status measure(cdad_optimizer *o, const cdad_context *ctx, int64_t i, const float *grad, cdad_error *err) {
    const cdad_param *p = &o->params->items[i];
    const cdad_pull pull = pull_of(o, i);
    if (pull.importance)
        ctx->kernels->sum_squares_pulled(ctx, o->sums + i, grad, o->params->values + p->offset, p->count, &pull);
    else
        ctx->kernels->sum_squares(ctx, o->sums + i, grad, o->moving[i]);
    return cdad_device_check(ctx->device, 0, err);
}

static cdad_status check_finite(const cdad_optimizer *o, int64_t i, cdad_error *err) {
    CDAD_FAIL_IF(!isfinite(o->squares[i]), err, CDAD_NOT_FINITE, "the gradient of %s is not finite", o->params->items[i].name);
    return CDAD_OK;
}

/* The norm of this step's gradients, all of which have been measured. Waits for a device. */
static cdad_status take_norm(cdad_optimizer *o, double *norm, cdad_error *err) {
    const int64_t n = o->params->n;
    double sum = 0.0;
    if (o->params->device)
        CDAD_TRY(cdad_device_download(o->params->device, o->squares, o->sums, n * (int64_t)sizeof *o->sums, err));
    for (int64_t i = 0; i < n; i++) {
        CDAD_TRY(check_finite(o, i, err));
        sum += o->squares[i];
    }
    *norm = sqrt(sum);
    return CDAD_OK;
}

/* Whether parameter i's update is one of those by one launch: as short as biases are, moved as it is, its moments not in 8 bit. */
static int shares_launch(const cdad_optimizer *o, const cdad_context *ctx, int64_t i) {
    return ctx->kernels->adamw_each && !stays(o, i) && !o->protection[i].basis && o->moving[i] < CDAD_SMALL8;
}

/* The share of parameter i's way to the tether's anchor that it does not go. */
static float kept_by_tether(const cdad_optimizer *o, int64_t i) {
    const float lr = (float)(o->config.lr * o->lr_scale);
    return (float)(1.0 / (1.0 + lr * o->tether_rates[i]));
}

/* Puts such a parameter, and its gradient, on the list. */
static void list_small(cdad_optimizer *o, int64_t i, const float *grad) {
    float *most;
    o->small[o->n_small++] = (cdad_update){.at = o->params->items[i].offset,
                                           .n = o->moving[i],
                                           .g = grad,
                                           .m = cdad_moment_of(&o->m, i, &most),
                                           .v = cdad_moment_of(&o->v, i, &most),
                                           .squares = o->sums + i,
                                           .stays = o->tether ? kept_by_tether(o, i) : 1.0f};
}

static void measure_small(cdad_optimizer *o, const cdad_context *ctx) {
    if (o->n_small)
        ctx->kernels->sum_squares_each(ctx, o->params->values, o->small, o->n_small, &o->pull);
}

/* Readies a step. */
static cdad_status begin(cdad_optimizer *o, const cdad_context *ctx, double lr_scale, cdad_error *err) {
    CDAD_FAIL_IF(!isfinite((float)(o->config.lr * lr_scale)), err, CDAD_INVALID, "lr %g times %g is no learning rate", o->config.lr, lr_scale);
    o->lr_scale = lr_scale;
    o->n_small = 0;
    CDAD_TRY(cdad_optimizer_moments(o, err));
    CDAD_TRY(cdad_device_zero(ctx->device, o->sums, o->params->n * (int64_t)sizeof *o->sums, err));
    return reserve_scratch(o, ctx, err);
}

static void end(cdad_optimizer *o) {
    o->age++;
    o->step++;
}

/* AdamW's numbers for the step that runs. */
static cdad_adamw numbers(const cdad_optimizer *o, double grad_scale) {
    const cdad_optimizer_config *c = &o->config;
    const double t = (double)(o->age + 1);
    return (cdad_adamw){.lr = (float)(c->lr * o->lr_scale),
                        .beta1 = (float)c->beta1,
                        .beta2 = (float)c->beta2,
                        .eps = (float)c->eps,
                        .weight_decay = (float)c->weight_decay,
                        .bias1 = (float)(1.0 - pow((double)(float)c->beta1, t)), /* of the betas that the kernel uses */
                        .bias2 = (float)(1.0 - pow((double)(float)c->beta2, t)),
                        .grad_scale = (float)grad_scale,
                        .ema_decay = (float)fmin(c->ema_decay, t / (9.0 + t)), /* what was before goes while steps are few */
                        .m_is_bf16 = c->moments == CDAD_MOMENT_BFLOAT16};
}

/* Moves parameter i and its average by its prepared gradient; du: room for an update, or `grad`. */
static void move(cdad_optimizer *o, const cdad_context *ctx, int64_t i, const float *grad, float *du, cdad_adamw h) {
    const cdad_param *p = &o->params->items[i];
    const cdad_protection *q = &o->protection[i];
    const int still = stays(o, i);
    const int64_t at = p->offset;
    float *w = o->params->values + at, *e = o->ema ? o->ema + at : NULL;
    void *const m = cdad_moment_of(&o->m, i, &h.m_most), *const v = cdad_moment_of(&o->v, i, &h.v_most);
    h.pull = pull_of(o, i);
    h.path = o->path ? o->path + at : NULL;
    if (q->basis && o->config.projection == CDAD_PROJECT_UPDATE)
        h.weight_decay = 0.0f; /* decay moves the weight inside the protected subspace */
    if (!still && !in_coordinates(o, i)) {
        ctx->kernels->adamw(ctx, w, m, v, o->tether ? NULL : e, NULL, grad, p->count, &h);
        if (!o->tether)
            return;
    } else if (!still) {
        ctx->kernels->adamw(ctx, w, m, v, NULL, du, grad, o->moving[i], &h);
        cdad_add_coordinates(ctx, w, du, p->shape.dim[0], span_of(q, row_width(p)), row_width(p), q->rank,
                             o->config.precision, o->scratch);
    }
    if (!still && o->tether) /* as an average of the anchor goes towards what it averages */
        ctx->kernels->add_to(ctx, (float *)(uintptr_t)(o->tether + at), w, NULL, p->count, kept_by_tether(o, i));
    if (e)
        ctx->kernels->add_to(ctx, w, e, NULL, p->count, h.ema_decay);
}

static void move_small(cdad_optimizer *o, const cdad_context *ctx, cdad_adamw h) {
    h.pull = o->pull;
    h.path = o->path;
    h.anchor = o->tether;
    if (o->n_small)
        ctx->kernels->adamw_each(ctx, o->params->values, o->ema, o->small, o->n_small, &h);
}

/* Adds what was done with parameter i to an event: weight and both moments are read and written, the gradient read,
 * projections are products. */
static void count_work(const cdad_optimizer *o, int64_t i, cdad_event *event) {
    const cdad_param *p = &o->params->items[i];
    if (stays(o, i))
        return;
    event->bytes += o->moving[i] * ((int64_t)sizeof(float) + 2 * cdad_moment_element(o->moving[i], o->m.format) +
                                    2 * cdad_moment_element(o->moving[i], o->v.format));
    event->bytes += p->count * 2 * (int64_t)sizeof(float);
    event->bytes += p->count * (int64_t)sizeof(float) * ((o->pull.importance ? 2 : 0) + (o->path ? 2 : 0) + (o->tether ? 3 : 0));
    event->flops += projection_flops(o, i);
}

cdad_status cdad_optimizer_begin(cdad_optimizer *o, const cdad_context *ctx, double lr_scale, cdad_error *err) {
    CDAD_FAIL_IF(o->config.clip_norm > 0, err, CDAD_INVALID, "clipping wants all gradients at once");
    return begin(o, ctx, lr_scale, err);
}

cdad_status cdad_optimizer_use(cdad_optimizer *o, const cdad_context *ctx, int64_t i, const float *grad,
                               cdad_error *err) {
    const cdad_param *p = &o->params->items[i];
    float *own = (float *)((char *)o->scratch + o->update_offset);
    cdad_event event = {.op = "optimizer", .start = cdad_clock()};
    cdad_adamw h = numbers(o, 1.0);
    if (shares_launch(o, ctx, i)) {
        list_small(o, i, grad);
        return CDAD_OK;
    }
    if (!stays(o, i)) {
        grad = prepare(o, ctx, i, grad, own);
        CDAD_TRY(measure(o, ctx, i, grad, err));
        if (ctx->device)
            h.squares = o->sums + i; /* looked at there, as the host is not to wait */
        else
            CDAD_TRY(check_finite(o, i, err));
    }
    move(o, ctx, i, grad, own, h);
    if (!ctx->profile)
        return CDAD_OK;
    CDAD_TRY(cdad_device_check(ctx->device, 1, err));
    event.seconds = cdad_clock() - event.start;
    snprintf(event.name, sizeof event.name, "%s", p->name);
    cdad_shape_text(&p->shape, event.shape);
    count_work(o, i, &event);
    return cdad_profile_add(ctx->profile, &event, err);
}

/* Adds an event of all that is small, `start` being when its updates began. */
static cdad_status profile_small(const cdad_optimizer *o, const cdad_context *ctx, double start, cdad_error *err) {
    cdad_event event = {.op = "optimizer", .start = start};
    if (!ctx->profile || o->n_small == 0)
        return CDAD_OK;
    CDAD_TRY(cdad_device_check(ctx->device, 1, err));
    event.seconds = cdad_clock() - start;
    for (int64_t i = 0; i < o->params->n; i++)
        if (shares_launch(o, ctx, i))
            count_work(o, i, &event);
    return cdad_profile_add(ctx->profile, &event, err);
}

cdad_status cdad_optimizer_end(cdad_optimizer *o, const cdad_context *ctx, double *grad_norm, cdad_error *err) {
    const double start = cdad_clock();
    measure_small(o, ctx);
    move_small(o, ctx, numbers(o, 1.0));
    CDAD_TRY(cdad_device_check(ctx->device, 0, err));
    CDAD_TRY(profile_small(o, ctx, start, err));
    CDAD_TRY(take_norm(o, grad_norm, err));
    end(o);
    return CDAD_OK;
}

cdad_status cdad_optimizer_step(cdad_optimizer *o, const cdad_context *ctx, double lr_scale, double *grad_norm,
                                cdad_error *err) {
    const cdad_params *params = o->params;
    const double clip = o->config.clip_norm;
    cdad_event event = {.op = "optimizer", .start = cdad_clock()};
    CDAD_TRY(begin(o, ctx, lr_scale, err));
    for (int64_t i = 0; i < params->n; i++) {
        if (stays(o, i))
            continue;
        float *grad = cdad_optimizer_gradient(o, i);
        if (shares_launch(o, ctx, i))
            list_small(o, i, grad);
        else
            CDAD_TRY(measure(o, ctx, i, prepare(o, ctx, i, grad, grad), err));
    }
    measure_small(o, ctx);
    CDAD_TRY(take_norm(o, grad_norm, err));
    const cdad_adamw h = numbers(o, clip > 0 && *grad_norm > clip ? clip / *grad_norm : 1.0);
    for (int64_t i = 0; i < params->n; i++) {
        float *grad = stays(o, i) ? NULL : cdad_optimizer_gradient(o, i);
        if (!shares_launch(o, ctx, i))
            move(o, ctx, i, grad, grad, h);
        count_work(o, i, &event);
    }
    move_small(o, ctx, h);
    CDAD_TRY(cdad_device_check(ctx->device, ctx->profile != NULL, err));
    end(o);
    if (!ctx->profile)
        return CDAD_OK;
    event.seconds = cdad_clock() - event.start;
    return cdad_profile_add(ctx->profile, &event, err);
}
