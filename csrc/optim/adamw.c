/* AdamW with projection. */
#include "optim/adamw.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "continual/basis.h"
#include "continual/projection.h"
#include "kernels/kernels.h"

void cdad_optimizer_free(cdad_optimizer *o) {
    if (!o)
        return;
    cdad_free(o->grads);
    cdad_free(o->m);
    cdad_free(o->v);
    cdad_free(o->ema);
    for (int64_t i = 0; o->protection && i < o->params->n; i++)
        cdad_free(o->protection[i].complement);
    cdad_free(o->protection);
    cdad_free(o->scratch);
    cdad_free(o);
}

cdad_status cdad_optimizer_new(cdad_optimizer **out, const cdad_params *params, const cdad_optimizer_config *config,
                               cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_optimizer *o = NULL;
    *out = NULL;
    CDAD_FAIL_IF(!(config->lr >= 0) || !(config->beta1 >= 0 && config->beta1 < 1) ||
                     !(config->beta2 >= 0 && config->beta2 < 1) || !(config->eps > 0) ||
                     !(config->weight_decay >= 0) || !(config->clip_norm >= 0) ||
                     !(config->ema_decay >= 0 && config->ema_decay < 1),
                 err, CDAD_INVALID,
                 "AdamW wants lr >= 0, betas and ema_decay in [0,1), eps > 0, weight_decay and clip_norm >= 0");
    const int64_t bytes = params->total * (int64_t)sizeof(float);
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o, sizeof *o, err));
    o->config = *config;
    o->params = params;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->grads, bytes, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->m, bytes, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->v, bytes, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&o->protection, params->n * (int64_t)sizeof *o->protection, err));
    if (config->ema_decay > 0) {
        CDAD_TRY_DONE(cdad_alloc((void **)&o->ema, bytes, err));
        memcpy(o->ema, params->values, (size_t)bytes);
    }
    *out = o;
    o = NULL;
done:
    cdad_optimizer_free(o);
    return status;
}

/* A weight [O, ...] as a matrix of O rows. */
static int64_t row_width(const cdad_param *p) { return p->count / p->shape.dim[0]; }

cdad_status cdad_optimizer_protect(cdad_optimizer *o, const char *param, int frozen, const float *U, int64_t rank,
                                   cdad_error *err) {
    const int64_t i = cdad_params_find(o->params, param);
    CDAD_FAIL_IF(i < 0, err, CDAD_INVALID, "the model has no parameter %s", param);
    CDAD_FAIL_IF(U && o->params->items[i].shape.ndim < 2, err, CDAD_INVALID,
                 "%s is no weight matrix: it cannot have a basis", param);
    const int64_t d = row_width(&o->params->items[i]);
    CDAD_FAIL_IF(U && (rank < 0 || rank > d), err, CDAD_SHAPE, "%s: a basis of rank %" PRId64 " for features of width %" PRId64,
                 param, rank, d);
    cdad_protection how = {.frozen = frozen, .basis = U, .rank = rank};
    if (U && rank < d && rank > d - rank) {
        CDAD_TRY(cdad_basis_complement(U, d, rank, &how.complement, err));
        how.basis = how.complement;
        how.rank = d - rank;
    }
    cdad_free(o->protection[i].complement);
    o->protection[i] = how;
    return CDAD_OK;
}

void cdad_optimizer_reset(cdad_optimizer *o) {
    const size_t bytes = (size_t)o->params->total * sizeof(float);
    memset(o->m, 0, bytes);
    memset(o->v, 0, bytes);
    o->age = 0;
}

static cdad_status reserve_scratch(cdad_optimizer *o, const cdad_context *ctx, cdad_error *err) {
    int64_t most = 0;
    for (int64_t i = 0; i < o->params->n; i++) {
        const cdad_param *p = &o->params->items[i];
        int64_t bytes = 0;
        if (!o->protection[i].basis)
            continue;
        CDAD_TRY(cdad_project_scratch(ctx, p->shape.dim[0], row_width(p), o->protection[i].rank, &bytes, err));
        if (bytes > most)
            most = bytes;
    }
    if (most <= o->scratch_bytes)
        return CDAD_OK;
    cdad_free(o->scratch);
    o->scratch = NULL;
    o->scratch_bytes = 0;
    CDAD_TRY(cdad_alloc(&o->scratch, most, err));
    o->scratch_bytes = most;
    return CDAD_OK;
}

/* The norm of all gradients that will be used, summed parameter by parameter. */
static cdad_status gradient_norm(const cdad_optimizer *o, const cdad_context *ctx, double *norm, cdad_error *err) {
    double sum = 0.0;
    for (int64_t i = 0; i < o->params->n; i++) {
        const cdad_param *p = &o->params->items[i];
        if (o->protection[i].frozen)
            continue;
        int finite = 1;
        sum += ctx->kernels->sum_squares(ctx, o->grads + p->offset, p->count, &finite);
        CDAD_FAIL_IF(!finite, err, CDAD_NOT_FINITE, "the gradient of %s is not finite", p->name);
    }
    *norm = sqrt(sum);
    return CDAD_OK;
}

static void project(cdad_optimizer *o, const cdad_context *ctx, int64_t i) {
    const cdad_param *p = &o->params->items[i];
    const cdad_protection *q = &o->protection[i];
    if (q->basis && q->rank > 0)
        cdad_project(ctx, o->grads + p->offset, p->shape.dim[0], q->basis, row_width(p), q->rank,
                     q->complement ? CDAD_PROJECT_ONTO : CDAD_PROJECT_OFF, o->scratch);
}

/* Adds the step to the profile: weight, gradient and both moments are read and written, projections are products. */
static cdad_status record(const cdad_optimizer *o, const cdad_context *ctx, double start, cdad_error *err) {
    cdad_event event = {.op = "optimizer", .start = start, .seconds = cdad_clock() - start};
    for (int64_t i = 0; i < o->params->n; i++) {
        const cdad_param *p = &o->params->items[i];
        if (o->protection[i].frozen)
            continue;
        event.bytes += 8 * p->count * (int64_t)sizeof(float);
        if (o->protection[i].basis)
            event.flops += 4.0 * (double)p->count * (double)o->protection[i].rank *
                           (o->config.projection == CDAD_PROJECT_UPDATE ? 2.0 : 1.0);
    }
    return cdad_profile_add(ctx->profile, &event, err);
}

cdad_status cdad_optimizer_step(cdad_optimizer *o, const cdad_context *ctx, double lr_scale, double *grad_norm,
                                cdad_error *err) {
    const cdad_optimizer_config *c = &o->config;
    const cdad_kernels *k = ctx->kernels;
    const double start = cdad_clock();
    CDAD_TRY(reserve_scratch(o, ctx, err));
    for (int64_t i = 0; i < o->params->n; i++)
        if (!o->protection[i].frozen)
            project(o, ctx, i);
    CDAD_TRY(gradient_norm(o, ctx, grad_norm, err));
    const double scale = c->clip_norm > 0 && *grad_norm > c->clip_norm ? c->clip_norm / *grad_norm : 1.0;
    const double t = (double)++o->age;
    o->step++;
    const cdad_adamw base = {.lr = (float)(c->lr * lr_scale),
                             .beta1 = (float)c->beta1,
                             .beta2 = (float)c->beta2,
                             .eps = (float)c->eps,
                             .weight_decay = (float)c->weight_decay,
                             .bias1 = (float)(1.0 - pow((double)(float)c->beta1, t)), /* of the betas that the kernel uses */
                             .bias2 = (float)(1.0 - pow((double)(float)c->beta2, t)),
                             .grad_scale = (float)scale};
    for (int64_t i = 0; i < o->params->n; i++) {
        const cdad_param *p = &o->params->items[i];
        if (o->protection[i].frozen)
            continue;
        const int protect_update = o->protection[i].basis && c->projection == CDAD_PROJECT_UPDATE;
        cdad_adamw h = base;
        if (protect_update)
            h.weight_decay = 0.0f; /* decay moves the weight inside the protected subspace */
        float *w = o->params->values + p->offset, *g = o->grads + p->offset;
        k->adamw_update(ctx, g, o->m + p->offset, o->v + p->offset, w, g, p->count, &h);
        if (protect_update)
            project(o, ctx, i);
        k->add_to(ctx, w, g, p->count);
    }
    if (o->ema)
        k->lerp_to(ctx, o->ema, o->params->values, o->params->total, (float)c->ema_decay);
    return ctx->profile ? record(o, ctx, start, err) : CDAD_OK;
}
