/* Collecting significant representations. */
#include "train/collector.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "base/memory.h"
#include "ops/window.h"

typedef struct weight_tap {
    int64_t param;          /* index in params */
    cdad_unfold unfold;     /* of a convolution's input; R = 0 for a plain matrix */
    int64_t d;
    cdad_stream_plan plan;
    cdad_stream *stream;    /* opened by the first features, so that a plan costs nothing; NULL with a twin */
    int64_t twin;           /* an earlier tap that reads the same features, or -1: its stream is used */
} weight_tap;

struct cdad_collector {
    cdad_sampler *sampler;
    const cdad_params *params;
    weight_tap *taps;
    int64_t n;
    int ended; /* the taps are removed and the streams freed */
};

static void free_stream(weight_tap *tap) {
    cdad_stream_free(tap->stream);
    tap->stream = NULL;
}

static void end(cdad_collector *c) {
    for (int64_t i = 0; i < c->n; i++) {
        const cdad_status ignored =
            cdad_sampler_tap(c->sampler, c->params->items[c->taps[i].param].name, NULL, NULL, 0, NULL);
        (void)ignored; /* it can only fail for a name that the sampler does not know */
        free_stream(&c->taps[i]);
    }
    c->ended = 1;
}

void cdad_collector_free(cdad_collector *c) {
    if (!c)
        return;
    if (!c->ended)
        end(c);
    cdad_free(c->taps);
    cdad_free(c);
}

int cdad_collector_ended(const cdad_collector *c) { return c->ended; }

static cdad_status open_stream(weight_tap *tap, cdad_error *err) {
    return tap->stream ? CDAD_OK : cdad_stream_open(&tap->stream, &tap->plan, err);
}

static cdad_status add_features(weight_tap *tap, const cdad_context *ctx, const float *input, const cdad_shape *shape,
                                cdad_error *err) {
    if (tap->unfold.R == 0) {
        const cdad_mat X = {.data = input, .rs = tap->d, .cs = 1};
        return cdad_stream_add(tap->stream, ctx, X, cdad_shape_count(shape) / tap->d, err);
    }
    const cdad_mat X = {.data = input, .unfold = &tap->unfold};
    return cdad_stream_add(tap->stream, ctx, X, tap->unfold.N * tap->unfold.P * tap->unfold.Q, err);
}

/* Those of a device whose memory does not hold the stream's sum, too, go to the host. */
static cdad_status take_features(void *arg, const cdad_context *ctx, const cdad_node *node, const float *input,
                                 const cdad_shape *shape, cdad_error *err) {
    weight_tap *tap = arg;
    const cdad_context host = cdad_context_of_host(ctx);
    const int64_t bytes = cdad_shape_count(shape) * (int64_t)sizeof(float);
    float *copy = NULL;
    (void)node;
    CDAD_TRY(open_stream(tap, err));
    cdad_status status = add_features(tap, ctx, input, shape, err);
    if (status != CDAD_NO_MEMORY || !ctx->device)
        return status;
    CDAD_TRY_DONE(cdad_alloc((void **)&copy, bytes, err));
    CDAD_TRY_DONE(cdad_device_download(ctx->device, copy, input, bytes, err));
    status = add_features(tap, &host, copy, shape, err);
done:
    cdad_free(copy);
    return status;
}

/* The earlier tap on the same features as `node`, or -1. */
static int64_t find_twin(const cdad_collector *c, const cdad_graph *g, const cdad_node *node) {
    for (int64_t i = 0; i < c->n; i++) {
        const cdad_graph *other_graph;
        const cdad_node *other =
            cdad_sampler_weight_node(c->sampler, c->params->items[c->taps[i].param].name, &other_graph);
        if (other_graph == g && other->in[0] == node->in[0] && other->op == node->op &&
            memcmp(other->attr, node->attr, sizeof node->attr) == 0 &&
            cdad_shape_span(cdad_graph_shape(g, other->in[1]), 1, cdad_graph_shape(g, other->in[1])->ndim) ==
                cdad_shape_span(cdad_graph_shape(g, node->in[1]), 1, cdad_graph_shape(g, node->in[1])->ndim))
            return c->taps[i].twin >= 0 ? c->taps[i].twin : i;
    }
    return -1;
}

/* Describes a weight's tap and plans its stream; nothing is tapped yet. */
static cdad_status plan_tap(cdad_collector *c, int64_t param, const cdad_collecting *how, cdad_error *err) {
    const cdad_param *p = &c->params->items[param];
    const cdad_graph *g;
    const cdad_node *node = p->shape.ndim >= 2 ? cdad_sampler_weight_node(c->sampler, p->name, &g) : NULL;
    CDAD_FAIL_IF(!node, err, CDAD_INVALID, "the sampler's model has no weight %s", p->name);
    weight_tap *tap = &c->taps[c->n];
    const cdad_shape *input = cdad_graph_shape(g, node->in[0]);
    *tap = (weight_tap){.param = param, .d = p->count / p->shape.dim[0], .twin = find_twin(c, g, node)};
    int64_t rows = cdad_shape_count(input) / tap->d;
    if (p->shape.ndim == 4) {
        tap->unfold = cdad_conv2d_unfold(node->attr, input, &p->shape, cdad_graph_shape(g, node->out[0]));
        rows = tap->unfold.N * tap->unfold.P * tap->unfold.Q;
    }
    if (tap->twin >= 0) {
        tap->plan = c->taps[tap->twin].plan;
        tap->plan.bytes = 0;
    } else {
        cdad_stream_hints hints = {0};
        CDAD_TRY(cdad_size_mul(rows, how->runs, &hints.columns, err));
        CDAD_TRY(cdad_stream_plan_make(&tap->plan, tap->d, how->method, how->gamma, &hints, err));
    }
    c->n++;
    return CDAD_OK;
}

/* Makes the plans fit together; weights that share a stream share its plan. */
static cdad_status fit_plans(cdad_collector *c, int64_t memory, cdad_error *err) {
    cdad_stream_plan *plans;
    int64_t n = 0;
    CDAD_TRY(cdad_alloc((void **)&plans, c->n * (int64_t)sizeof *plans, err));
    for (int64_t i = 0; i < c->n; i++)
        if (c->taps[i].twin < 0)
            plans[n++] = c->taps[i].plan;
    cdad_stream_plans_fit(plans, n, memory);
    n = 0;
    for (int64_t i = 0; i < c->n; i++)
        if (c->taps[i].twin < 0) {
            c->taps[i].plan = plans[n++];
        } else {
            c->taps[i].plan = c->taps[c->taps[i].twin].plan;
            c->taps[i].plan.bytes = 0;
        }
    cdad_free(plans);
    return CDAD_OK;
}

cdad_status cdad_collector_new(cdad_collector **out, cdad_sampler *sampler, const cdad_params *params,
                               const cdad_collecting *how, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_collector *c = NULL;
    *out = NULL;
    CDAD_FAIL_IF(how->runs < 0 || how->memory < 0, err, CDAD_INVALID,
                 "collector: %" PRId64 " runs, %" PRId64 " bytes: neither may be negative", how->runs, how->memory);
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&c, sizeof *c, err));
    c->sampler = sampler;
    c->params = params;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&c->taps, params->n * (int64_t)sizeof *c->taps, err));
    for (int64_t i = 0; i < params->n; i++)
        if (how->wanted ? how->wanted[i] : params->items[i].shape.ndim >= 2)
            CDAD_TRY_DONE(plan_tap(c, i, how, err));
    if (how->memory > 0)
        CDAD_TRY_DONE(fit_plans(c, how->memory, err));
    for (int64_t i = 0; i < c->n; i++)
        if (c->taps[i].twin < 0)
            CDAD_TRY_DONE(cdad_sampler_tap(sampler, params->items[c->taps[i].param].name, take_features, &c->taps[i],
                                           cdad_stream_takes(&c->taps[i].plan, params->device), err));
    *out = c;
    c = NULL;
done:
    cdad_collector_free(c);
    return status;
}

const cdad_stream_plan *cdad_collector_plan(const cdad_collector *c, int64_t param) {
    for (int64_t i = 0; i < c->n; i++)
        if (c->taps[i].param == param)
            return &c->taps[i].plan;
    return NULL;
}

typedef struct solve_job {
    const cdad_collector *c;
    const cdad_context *ctx;
    const cdad_weight_basis *old;
    cdad_weight_basis *out;
    double max_share;
    int64_t max_added; /* 0: any */
    const int64_t *order; /* taps with a stream, widest first */
    cdad_error *errors;   /* [n] */
    atomic_int stopped;   /* by the caller's poll: a signal is told once */
} solve_job;

/* The poll of one of the pool's threads. */
typedef struct solve_poll {
    solve_job *job;
    int asks; /* it is the caller's thread */
} solve_poll;

static int is_stopped(void *arg) {
    const solve_poll *p = arg;
    const cdad_context *ctx = p->job->ctx;
    if (p->asks && !atomic_load(&p->job->stopped) && ctx->poll && ctx->poll(ctx->poll_arg))
        atomic_store(&p->job->stopped, 1);
    return atomic_load(&p->job->stopped);
}

/* Cuts the newest directions, which stand by falling energy, off a basis of more than `most`. */
static cdad_status cap(const cdad_context *ctx, const cdad_stream *stream, cdad_weight_basis *b, int64_t most,
                       cdad_error *err) {
    const double all = b->energy;
    float *U = NULL;
    if (b->k <= most)
        return CDAD_OK;
    CDAD_TRY(cdad_alloc((void **)&U, b->d * most * (int64_t)sizeof *U, err));
    for (int64_t i = 0; i < b->d; i++)
        memcpy(U + i * most, b->U + i * b->k, (size_t)most * sizeof *U);
    cdad_free(b->U);
    b->U = U;
    b->k = most;
    CDAD_TRY(cdad_stream_share(stream, ctx, U, most, &b->energy, err));
    b->capped = all > b->energy ? all - b->energy : 0;
    return CDAD_OK;
}

static cdad_status solve_one(const solve_job *job, const cdad_context *ctx, const weight_tap *tap, const cdad_stream *stream,
                             cdad_error *err) {
    const cdad_weight_basis *old = &job->old[tap->param];
    cdad_weight_basis *out = &job->out[tap->param];
    const int64_t k_old = old->U ? old->k : 0, share = (int64_t)(job->max_share * (double)tap->d);
    int64_t most = share < 1 ? 1 : share;
    if (job->max_added > 0 && job->max_added < most - k_old)
        most = k_old + job->max_added;
    out->d = tap->d;
    CDAD_TRY(cdad_stream_basis(stream, ctx, old->U, k_old, &out->U, &out->k, &out->energy, err));
    return cap(ctx, stream, out, most > k_old ? most : k_old, err);
}

/* Whether two weights that read the same features have the same basis so far, as they do unless one was given another. */
static int same_basis(const cdad_weight_basis *a, const cdad_weight_basis *b) {
    if (!a->U || !b->U)
        return !a->U && !b->U;
    return a->k == b->k && memcmp(a->U, b->U, (size_t)(a->d * a->k) * sizeof *a->U) == 0;
}

static cdad_status copy_basis(cdad_weight_basis *to, const cdad_weight_basis *from, cdad_error *err) {
    float *U;
    CDAD_TRY(cdad_alloc((void **)&U, from->d * from->k * (int64_t)sizeof *U, err));
    memcpy(U, from->U, (size_t)(from->d * from->k) * sizeof *U);
    *to = *from;
    to->U = U;
    return CDAD_OK;
}

/* The bases of all weights that read a stream's features; the stream is freed then, as bases of many weights take as much
 * memory as their streams. */
static void solve(void *arg, int64_t task, int worker) {
    solve_job *job = arg;
    const int64_t first = job->order[task];
    weight_tap *taps = job->c->taps;
    solve_poll poll = {.job = job, .asks = worker == 0};
    cdad_context ctx = *job->ctx;
    ctx.poll = is_stopped;
    ctx.poll_arg = &poll;
    for (int64_t i = first; i < job->c->n; i++) {
        cdad_error *err = &job->errors[i];
        const int64_t a = taps[first].param, b = taps[i].param;
        if (i != first && taps[i].twin != first)
            continue;
        err->status = i != first && job->out[a].U && same_basis(&job->old[a], &job->old[b])
                          ? copy_basis(&job->out[b], &job->out[a], err)
                          : solve_one(job, &ctx, &taps[i], taps[first].stream, err);
    }
    free_stream(&taps[first]);
}

cdad_status cdad_collector_bases(cdad_collector *c, const cdad_context *ctx, const cdad_weight_basis *old,
                                 double max_share, int64_t max_added, cdad_weight_basis *out, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_error *errors = NULL;
    int64_t *order = NULL;
    int64_t n = 0;
    memset(out, 0, (size_t)c->params->n * sizeof *out);
    CDAD_FAIL_IF(c->ended, err, CDAD_INVALID, "collector: bases have been made of its features already");
    CDAD_FAIL_IF(!(max_share > 0 && max_share <= 1), err, CDAD_INVALID, "a basis is capped at a share of 0 < share <= 1");
    CDAD_FAIL_IF(max_added < 0, err, CDAD_INVALID, "a basis is to grow by %" PRId64 " directions at most; 0 or more is wanted", max_added);
    for (int64_t i = 0; i < c->n; i++)
        if (c->taps[i].twin < 0) {
            CDAD_TRY_DONE(open_stream(&c->taps[i], err));
            CDAD_TRY_DONE(cdad_stream_settle(c->taps[i].stream, err));
        }
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&errors, c->n * (int64_t)sizeof *errors, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&order, c->n * (int64_t)sizeof *order, err));
    for (int64_t i = 0; i < c->n; i++) { /* insertion sort: a few hundred weights */
        if (c->taps[i].twin >= 0)
            continue;
        int64_t at = n++;
        for (; at > 0 && c->taps[order[at - 1]].d < c->taps[i].d; at--)
            order[at] = order[at - 1];
        order[at] = i;
    }
    solve_job job = {.c = c, .ctx = ctx, .old = old, .out = out, .max_share = max_share, .max_added = max_added,
                     .order = order, .errors = errors};
    cdad_pool_run(ctx->pool, n, solve, &job);
    end(c);
    for (int64_t i = 0; i < c->n; i++)
        if (errors[i].status != CDAD_OK) {
            status = cdad_fail(err, errors[i].status, "%s: %s", c->params->items[c->taps[i].param].name,
                               errors[i].message);
            break;
        }
done:
    if (status != CDAD_OK)
        for (int64_t i = 0; i < c->params->n; i++) {
            cdad_free(out[i].U);
            out[i].U = NULL;
        }
    cdad_free(errors);
    cdad_free(order);
    return status;
}
