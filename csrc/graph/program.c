/* Making, feeding and running programs. */
#include "graph/places.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"

#define POLL_SECONDS 0.02

static void forget(cdad_program *p) {
    if (p->last.made)
        p->device->forget(p->device, p->last.made);
    p->last.made = NULL;
}

void cdad_program_free(cdad_program *p) {
    if (!p)
        return;
    forget(p);
    cdad_free(p->last.data);
    for (int64_t v = 0; p->kept && v < p->n_values; v++)
        cdad_device_free(p->device, p->kept[v]);
    cdad_free(p->kept);
    cdad_free(p->tapped);
    cdad_free(p->places);
    cdad_free(p->data);
    cdad_free(p->steps);
    cdad_free(p->taps);
    cdad_free(p->handovers);
    cdad_workspace_clear(&p->own);
    cdad_free(p);
}

/* Of the inputs and outputs of a node; absent inputs have ndim -1. */
static void shapes_of(const cdad_graph *g, const cdad_node *node, cdad_shape *in, cdad_shape *out) {
    for (int i = 0; i < node->n_in; i++)
        in[i] = node->in[i] == CDAD_NONE ? (cdad_shape){.ndim = -1} : g->values[node->in[i]].shape;
    for (int j = 0; j < node->op->n_out; j++)
        out[j] = g->values[node->out[j]].shape;
}

/* The most scratch that a step wants with these kernels and so many threads. */
static void plan_scratch(cdad_program *p, const cdad_context *ctx) {
    const cdad_graph *g = p->g;
    const int threads = cdad_pool_threads(ctx->pool);
    if (p->kernels == ctx->kernels && p->host_kernels == ctx->host_kernels && p->threads == threads)
        return;
    int64_t most = 0;
    for (int64_t t = 0; t < p->n_steps; t++) {
        const cdad_node *node = &g->nodes[p->steps[t].node];
        if (!node->op->scratch)
            continue;
        cdad_shape in[CDAD_MAX_INPUTS], out[CDAD_MAX_OUTPUTS];
        shapes_of(g, node, in, out);
        const cdad_infer args = {.n_in = node->n_in, .in = in, .attr = node->attr, .out = out};
        const int64_t bytes = node->op->scratch(&args, ctx->kernels, threads);
        if (bytes > most)
            most = bytes;
    }
    p->scratch_bytes = most;
    p->kernels = ctx->kernels;
    p->host_kernels = ctx->host_kernels;
    p->threads = threads;
}

/* Finds memory for the arena and scratch, and where every value is, as far as it is known: others may have moved the workspace. */
static cdad_status take_places(cdad_program *p, const cdad_context *ctx, cdad_error *err) {
    plan_scratch(p, ctx);
    const cdad_status status = cdad_workspace_reserve(p->workspace, cdad_program_workspace_bytes(p), err);
    char *const base = p->workspace->data; /* NULL: there is no memory */
    p->scratch = base ? base + cdad_align_up(p->arena_bytes) : NULL;
    for (int64_t v = 0; v < p->n_values; v++) {
        const place *root = &p->places[p->places[v].root];
        if (root->offset >= 0)
            p->data[v] = base ? (float *)(base + root->offset) : NULL;
        else if (p->g->values[root->root].kind == CDAD_VALUE_CONST)
            p->data[v] = p->kept ? p->kept[root->root] : p->g->values[root->root].data;
        else if (root->root != (cdad_value)v)
            p->data[v] = p->data[root->root];
    }
    return status;
}

/* Copies the constants that are used to the device. */
static cdad_status keep_constants(cdad_program *p, cdad_error *err) {
    if (!p->device)
        return CDAD_OK;
    CDAD_TRY(cdad_alloc_zero((void **)&p->kept, p->n_values * (int64_t)sizeof *p->kept, err));
    for (int64_t v = 0; v < p->n_values; v++) {
        const cdad_value_info *info = &p->g->values[v];
        if (info->kind == CDAD_VALUE_CONST && p->places[v].used)
            CDAD_TRY(cdad_device_mirror(p->device, (void **)&p->kept[v], info->data,
                                        cdad_shape_count(&info->shape) * (int64_t)sizeof(float), err));
    }
    return CDAD_OK;
}

cdad_status cdad_program_new(cdad_program **out, const cdad_graph *g, int64_t n_outputs, const cdad_value *outputs,
                             const cdad_program_options *options, const cdad_context *ctx, cdad_error *err) {
    cdad_status status = CDAD_OK;
    cdad_program *p = NULL;
    const cdad_program_options none = {0};
    options = options ? options : &none;
    *out = NULL;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&p, sizeof *p, err));
    p->g = g;
    p->device = p->own.device = ctx->device;
    p->workspace = options->workspace ? options->workspace : &p->own;
    p->n_values = g->n_values;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&p->data, p->n_values * (int64_t)sizeof *p->data, err));
    CDAD_TRY_DONE(cdad_program_place(p, n_outputs, outputs, options, err));
    CDAD_TRY_DONE(keep_constants(p, err));
    CDAD_TRY_DONE(take_places(p, ctx, err));
    *out = p;
    p = NULL;
done:
    cdad_program_free(p);
    return status;
}

cdad_status cdad_program_bind(cdad_program *p, cdad_value v, const float *data, cdad_error *err) {
    CDAD_FAIL_IF(v < 0 || v >= p->n_values, err, CDAD_INVALID, "value %d is not in this program", v);
    const cdad_value_kind kind = p->g->values[v].kind;
    CDAD_FAIL_IF(kind != CDAD_VALUE_INPUT && kind != CDAD_VALUE_PARAM && !p->places[v].external, err, CDAD_INVALID,
                 "value %d is computed: it cannot be bound", v);
    p->data[v] = (float *)(uintptr_t)data; /* inputs are never written: only external outputs are */
    return CDAD_OK;
}

static cdad_status feed(cdad_program *p, cdad_value v, const float *data, int is_there, cdad_error *err) {
    CDAD_TRY(cdad_program_bind(p, v, data, err));
    if (!p->device)
        return CDAD_OK;
    const cdad_value_info *info = &p->g->values[v];
    const int64_t bytes = cdad_shape_count(&info->shape) * (int64_t)sizeof(float);
    CDAD_FAIL_IF(info->kind == CDAD_VALUE_NODE, err, CDAD_INVALID, "value %d is computed: it cannot be fed", v);
    p->data[v] = NULL; /* if the copy fails */
    if (!p->kept[v])
        CDAD_TRY(cdad_device_alloc(p->device, (void **)&p->kept[v], bytes, err));
    CDAD_TRY(is_there ? cdad_device_copy(p->device, p->kept[v], data, bytes, err)
                      : cdad_device_upload(p->device, p->kept[v], data, bytes, err));
    p->data[v] = p->kept[v];
    return CDAD_OK;
}

cdad_status cdad_program_feed(cdad_program *p, cdad_value v, const float *data, cdad_error *err) {
    return feed(p, v, data, 0, err);
}

cdad_status cdad_program_feed_there(cdad_program *p, cdad_value v, const float *data, cdad_error *err) {
    return feed(p, v, data, 1, err);
}

cdad_status cdad_program_read(const cdad_program *p, cdad_value v, float *to, cdad_error *err) {
    const float *data = cdad_program_data(p, v);
    CDAD_FAIL_IF(!data, err, CDAD_INVALID, "value %d is not in this program", v);
    return cdad_device_download(p->device, to, data, cdad_shape_count(&p->g->values[v].shape) * (int64_t)sizeof(float),
                                err);
}

float *cdad_program_data(const cdad_program *p, cdad_value v) {
    return v >= 0 && v < p->n_values ? p->data[v] : NULL;
}

int cdad_program_uses(const cdad_program *p, cdad_value v) {
    return v >= 0 && v < p->n_values && p->places[v].used;
}

cdad_status cdad_program_tap(cdad_program *p, cdad_value weight, cdad_tap_fn fn, void *arg, int there, cdad_error *err) {
    int found = 0;
    for (int64_t t = 0; t < p->n_steps; t++) {
        const cdad_node *node = &p->g->nodes[p->steps[t].node];
        if (node->n_in < 2 || node->in[1] != weight || (node->op->flags & CDAD_OP_NO_GRAD))
            continue;
        p->taps[t] = (tap){fn, arg, there};
        found = 1;
    }
    CDAD_FAIL_IF(!found, err, CDAD_INVALID, "no node of this program reads the weight (value %d)", weight);
    return CDAD_OK;
}

/* Operations of the products of a node with these shapes. */
static double flops_of(const cdad_node *node, const cdad_shape *in, cdad_shape *out) {
    const cdad_infer args = {.n_in = node->n_in, .in = in, .attr = node->attr, .out = out};
    return node->op->flops ? node->op->flops(&args) : 0.0;
}

/* Adds what a node did to the context's profile. */
static cdad_status record(const cdad_graph *g, const cdad_node *node, const cdad_context *ctx, const cdad_call *call,
                          double start, cdad_error *err) {
    cdad_event event = {.op = node->op->name, .start = start, .seconds = cdad_clock() - start};
    cdad_shape out[CDAD_MAX_OUTPUTS];
    int64_t elements = 0;
    for (int i = 0; i < node->n_in; i++) {
        const cdad_value_info *info = node->in[i] == CDAD_NONE ? NULL : &g->values[node->in[i]];
        elements += info ? cdad_shape_count(&info->shape) : 0;
        if (info && info->kind == CDAD_VALUE_PARAM && !event.name[0])
            snprintf(event.name, sizeof event.name, "%s", info->name);
    }
    for (int j = 0; j < node->op->n_out; j++) {
        out[j] = call->out_shape[j];
        elements += cdad_shape_count(&out[j]);
    }
    elements += call->sum ? cdad_shape_count(&out[0]) : 0;
    event.bytes = elements * (int64_t)sizeof(float);
    cdad_shape_text(&out[0], event.shape);
    event.flops = flops_of(node, call->in_shape, out);
    return cdad_profile_add(ctx->profile, &event, err);
}

static cdad_status run_tap(cdad_program *p, const tap *to, const cdad_context *ctx, const cdad_node *node,
                           const float *input, const cdad_shape *shape, cdad_error *err) {
    if (!p->device || to->there)
        return to->fn(to->arg, ctx, node, input, shape, err);
    const int64_t bytes = cdad_shape_count(shape) * (int64_t)sizeof(float);
    const cdad_context host = cdad_context_of_host(ctx);
    if (bytes > p->tapped_bytes) {
        cdad_free(p->tapped);
        p->tapped_bytes = 0;
        CDAD_TRY(cdad_alloc((void **)&p->tapped, bytes, err));
        p->tapped_bytes = bytes;
    }
    CDAD_TRY(cdad_device_download(p->device, p->tapped, input, bytes, err));
    return to->fn(to->arg, &host, node, p->tapped, shape, err);
}

/* Runs the node; what failed on a device is told with its name and shape. */
static cdad_status run_node(const cdad_program *p, const cdad_node *node, const cdad_context *ctx, const cdad_call *call,
                            cdad_error *err) {
    char shape[CDAD_SHAPE_TEXT], where[CDAD_SHAPE_TEXT + 64];
    if (!p->device)
        return node->op->run(ctx, call, err);
    cdad_status status = node->op->run(ctx, call, err);
    if (status == CDAD_OK)
        status = cdad_device_check(p->device, ctx->profile != NULL, err);
    if (status == CDAD_OK)
        return CDAD_OK;
    snprintf(where, sizeof where, "%s %s on %s", node->op->name, cdad_shape_text(&call->out_shape[0], shape), p->device->name);
    return cdad_fail_in(err, where);
}

static cdad_status run_step(cdad_program *p, int64_t t, const cdad_context *ctx, cdad_error *err) {
    const cdad_graph *g = p->g;
    const cdad_step *s = &p->steps[t];
    const cdad_node *node = &g->nodes[s->node];
    const float *in[CDAD_MAX_INPUTS];
    float *out[CDAD_MAX_OUTPUTS];
    cdad_shape in_shape[CDAD_MAX_INPUTS], out_shape[CDAD_MAX_OUTPUTS];
    for (int i = 0; i < node->n_in; i++) {
        const cdad_value v = node->in[i];
        in[i] = v == CDAD_NONE ? NULL : p->data[v];
        in_shape[i] = v == CDAD_NONE ? (cdad_shape){.ndim = -1} : g->values[v].shape;
    }
    for (int j = 0; j < node->op->n_out; j++) {
        out[j] = p->data[cdad_step_output(g, s, j)];
        out_shape[j] = g->values[node->out[j]].shape;
    }
    if (p->taps[t].fn)
        CDAD_TRY(run_tap(p, &p->taps[t], ctx, node, in[0], &in_shape[0], err));
    const cdad_call call = {.n_in = node->n_in,
                            .in = in,
                            .in_shape = in_shape,
                            .out = out,
                            .out_shape = out_shape,
                            .attr = node->attr,
                            .scratch = p->scratch,
                            .sum = s->sum == CDAD_NONE ? NULL : p->data[s->sum],
                            .act = s->act};
    if (!ctx->profile || node->op->flags & CDAD_OP_VIEW)
        return run_node(p, node, ctx, &call, err);
    const double start = cdad_clock();
    CDAD_TRY(run_node(p, node, ctx, &call, err));
    return record(g, node, ctx, &call, start, err);
}

void cdad_program_hand_to(cdad_program *p, cdad_handover_fn fn, void *arg) {
    p->hand_to = fn;
    p->hand_to_arg = arg;
}

/* Those that are due after step t, of which `next` is the first; moves it on. */
static cdad_status hand_over(const cdad_program *p, int64_t t, int64_t *next, const cdad_context *ctx, cdad_error *err) {
    for (; *next < p->n_handovers && p->handovers[*next].step <= t; ++*next) {
        const handover *h = &p->handovers[*next];
        if (p->hand_to)
            CDAD_TRY(p->hand_to(p->hand_to_arg, ctx, h->number, p->data[h->value], err));
    }
    return CDAD_OK;
}

/* Of two products, one after the other, the factor that is the first of the second, or NULL: the first does not read it. */
static const float *read_again(const cdad_program *p, int64_t t) {
    const cdad_node *before = &p->g->nodes[p->steps[t - 1].node], *node = &p->g->nodes[p->steps[t].node];
    if (!(before->op->flags & node->op->flags & CDAD_OP_PRODUCT))
        return NULL;
    for (int i = 0; i < before->n_in; i++)
        if (before->in[i] == node->in[0])
            return p->data[node->in[0]];
    return NULL;
}

/* Steps `from` .. to-1 and what is due after each; *next: the next handover. */
static cdad_status run_steps(cdad_program *p, int64_t from, int64_t to, int64_t *next, const cdad_context *ctx, cdad_error *err) {
    double polled = cdad_clock();
    cdad_context own = *ctx;
    int64_t handed = -1; /* what *next was before the step before */
    for (int64_t t = from; t < to; t++) {
        own.again = t > from && handed == *next && !p->taps[t].fn ? read_again(p, t) : NULL;
        handed = *next;
        CDAD_TRY(run_step(p, t, &own, err));
        CDAD_TRY(hand_over(p, t, next, ctx, err));
        if (!ctx->poll)
            continue;
        const double now = cdad_clock();
        if (now - polled < POLL_SECONDS)
            continue;
        polled = now;
        CDAD_FAIL_IF(ctx->poll(ctx->poll_arg), err, CDAD_CANCELLED, "cancelled");
    }
    return CDAD_OK;
}

/* Steps from the first on that can be recorded: up to one that waits, or the first handover, whose receiver may do anything. */
static int64_t recordable(const cdad_program *p, const cdad_context *ctx) {
    int64_t n = p->n_steps;
    if (!p->device || !p->device->record || ctx->profile)
        return 0;
    if (p->hand_to && p->n_handovers)
        n = p->handovers[0].step > 0 ? p->handovers[0].step : 0;
    for (int64_t t = 0; t < n; t++)
        if (p->taps[t].fn || p->g->nodes[p->steps[t].node].op->flags & CDAD_OP_WAITS)
            return t;
    return n;
}

/* Records the steps 0 .. n-1. 0: it cannot be, as when others wait for the device meanwhile; nothing was done then. Without polls, which
 * may run any Python in this thread. */
static int record_steps(cdad_program *p, int64_t n, const cdad_context *ctx) {
    cdad_context quiet = *ctx;
    int64_t none = p->n_handovers;
    quiet.poll = NULL;
    cdad_status status = p->device->record(p->device, NULL);
    if (status == CDAD_OK)
        status = run_steps(p, 0, n, &none, &quiet, NULL);
    const cdad_status made = p->device->recorded(p->device, &p->last.made, NULL);
    if (status == CDAD_OK && made == CDAD_OK)
        return 1;
    forget(p);
    return 0;
}

/* Steps 0 .. n-1, recorded when all is where it was the time before: the first run is without, as it loads what kernels need. */
static cdad_status run_recorded(cdad_program *p, int64_t n, const cdad_context *ctx, cdad_error *err) {
    const size_t bytes = (size_t)p->n_values * sizeof *p->data;
    int64_t none = p->n_handovers;
    if (!p->last.data || p->last.steps != n || p->last.scratch != p->scratch || memcmp(p->last.data, p->data, bytes) != 0) {
        forget(p);
        if (!p->last.data)
            CDAD_TRY(cdad_alloc((void **)&p->last.data, (int64_t)bytes, err));
        memcpy(p->last.data, p->data, bytes);
        p->last.scratch = p->scratch;
        p->last.steps = n;
        return run_steps(p, 0, n, &none, ctx, err);
    }
    CDAD_TRY(cdad_device_check(p->device, 0, err)); /* what failed before is no recording's */
    if (!p->last.made && !record_steps(p, n, ctx))
        return run_steps(p, 0, n, &none, ctx, err);
    const cdad_status status = p->device->replay(p->device, p->last.made, err);
    if (status != CDAD_NO_MEMORY)
        return status;
    forget(p); /* step by step it takes less */
    return run_steps(p, 0, n, &none, ctx, err);
}

cdad_status cdad_program_run(cdad_program *p, const cdad_context *ctx, cdad_error *err) {
    CDAD_FAIL_IF(ctx->device != p->device, err, CDAD_INVALID, "a program that was planned for %s runs on %s",
                 p->device ? p->device->name : "cpu", ctx->device ? ctx->device->name : "cpu");
    CDAD_FAIL_IF(p->device && p->device->is_planned, err, CDAD_INVALID, "nothing runs on the device '%s'", p->device->name);
    for (int64_t v = 0; v < p->n_values; v++) {
        const cdad_value_info *info = &p->g->values[v];
        if (p->places[v].used && (info->kind == CDAD_VALUE_INPUT || info->kind == CDAD_VALUE_PARAM ||
                                  p->places[v].external))
            CDAD_FAIL_IF(!p->data[v], err, CDAD_INVALID, "nothing is bound to %s",
                         info->name ? info->name : "an output");
    }
    CDAD_TRY(take_places(p, ctx, err));
    const int64_t recorded = recordable(p, ctx);
    int64_t next = 0;
    CDAD_TRY(hand_over(p, -1, &next, ctx, err));
    if (recorded > 0)
        CDAD_TRY(run_recorded(p, recorded, ctx, err));
    return run_steps(p, recorded, p->n_steps, &next, ctx, err);
}

int64_t cdad_program_arena_bytes(const cdad_program *p) { return p->arena_bytes; }
int64_t cdad_program_workspace_bytes(const cdad_program *p) { return cdad_align_up(p->arena_bytes) + p->scratch_bytes; }

double cdad_program_flops(const cdad_program *p) {
    cdad_shape in[CDAD_MAX_INPUTS], out[CDAD_MAX_OUTPUTS];
    double sum = 0.0;
    for (int64_t t = 0; t < p->n_steps; t++) {
        const cdad_node *node = &p->g->nodes[p->steps[t].node];
        shapes_of(p->g, node, in, out);
        sum += flops_of(node, in, out);
    }
    return sum;
}

int cdad_program_is_recorded(const cdad_program *p) { return p->last.made != NULL; }
