/* What the tests of graphs and of training share: failing allocations and a plain evaluation of a graph. */
#ifndef CDAD_TESTS_GRAPH_CHECK_H
#define CDAD_TESTS_GRAPH_CHECK_H

#include "base/philox.h"
#include "graph/program.h"
#include "kernels/kernels.h"
#include "ops/ops.h"
#include "check.h"

/* Runs `call` (which uses `err`) with its first allocation failing, then its second, ... until it needs no more;
 * `after_failure` must hold after each. */
#define EACH_ALLOCATION_FAILS(call, after_failure)                                                      \
    do {                                                                                                \
        cdad_error e_ = {0}, *err = &e_;                                                                \
        cdad_status s_ = CDAD_NO_MEMORY;                                                                \
        for (int64_t i_ = 1; s_ == CDAD_NO_MEMORY; i_++) {                                              \
            cdad_alloc_fail_after(i_);                                                                  \
            s_ = (call);                                                                                \
            cdad_alloc_fail_after(0);                                                                   \
            if (s_ == CDAD_NO_MEMORY)                                                                   \
                CHECK(strstr(e_.message, "out of memory") && (after_failure), "allocation %" PRId64, i_); \
        }                                                                                               \
        CHECK(s_ == CDAD_OK, "status %d: %s", s_, e_.message);                                          \
    } while (0)

/* Zeroed; a test program that has no memory left ends. */
static inline int64_t count_of(const cdad_graph *g, cdad_value v) {
    return cdad_shape_count(cdad_graph_shape(g, v));
}
/* Whether the caller binds the value's memory. */
static inline int is_bound(const cdad_graph *g, int64_t v) {
    return g->values[v].kind == CDAD_VALUE_INPUT || g->values[v].kind == CDAD_VALUE_PARAM;
}

static inline void run_node(const cdad_graph *g, const cdad_node *node, const cdad_context *ctx,
                            float *const *values) {
    const float *in[CDAD_MAX_INPUTS];
    float *out[CDAD_MAX_OUTPUTS];
    cdad_shape in_shape[CDAD_MAX_INPUTS], out_shape[CDAD_MAX_OUTPUTS];
    for (int i = 0; i < node->n_in; i++) {
        const cdad_value v = node->in[i];
        in[i] = v == CDAD_NONE ? NULL : values[v];
        in_shape[i] = v == CDAD_NONE ? (cdad_shape){.ndim = -1} : *cdad_graph_shape(g, v);
    }
    for (int j = 0; j < node->op->n_out; j++) {
        out[j] = values[node->out[j]];
        out_shape[j] = *cdad_graph_shape(g, node->out[j]);
    }
    const cdad_infer sizes = {.n_in = node->n_in, .in = in_shape, .attr = node->attr, .out = out_shape};
    const int64_t bytes =
        node->op->scratch ? node->op->scratch(&sizes, ctx->kernels, cdad_pool_threads(ctx->pool)) : 0;
    void *scratch = zeros(bytes);
    const cdad_call call = {.n_in = node->n_in,
                            .in = in,
                            .in_shape = in_shape,
                            .out = out,
                            .out_shape = out_shape,
                            .attr = node->attr,
                            .scratch = scratch};
    CHECK_OK(node->op->run(ctx, &call, err));
    cdad_free(scratch);
}

/* The value that holds a node's ids, which have to be places of a table; CDAD_NONE: it has none. */
static inline cdad_value ids_of(const cdad_node *node) {
    if (strcmp(node->op->name, "token_embedding") == 0)
        return node->in[0];
    return strcmp(node->op->name, "token_embedding_grad") == 0 ? node->in[1] : CDAD_NONE;
}

/* Every value in memory of its own, all nodes in order: what any program of `g` must give, bit by bit. Inputs and
 * parameters are normal, a function of `seed`; ids are zero. */
static inline float **evaluate(const cdad_graph *g, const cdad_context *ctx, uint64_t seed) {
    float **values = zeros(g->n_values * (int64_t)sizeof *values);
    for (int64_t v = 0; v < g->n_values; v++) {
        const int64_t n = count_of(g, (cdad_value)v);
        values[v] = floats(n);
        if (is_bound(g, v))
            cdad_random_normal(values[v], n, seed, (uint64_t)v, 0);
        else if (g->values[v].kind == CDAD_VALUE_CONST)
            memcpy(values[v], g->values[v].data, (size_t)n * sizeof(float));
    }
    for (int64_t k = 0; k < g->n_nodes; k++) {
        const cdad_value ids = ids_of(&g->nodes[k]);
        if (ids != CDAD_NONE && is_bound(g, ids))
            memset(values[ids], 0, (size_t)count_of(g, ids) * sizeof(float));
    }
    for (int64_t k = 0; k < g->n_nodes; k++)
        run_node(g, &g->nodes[k], ctx, values);
    return values;
}

static inline void free_values(const cdad_graph *g, float **values) {
    for (int64_t v = 0; v < g->n_values; v++)
        cdad_free(values[v]);
    cdad_free(values);
}

/* Plans `outputs`, the first n_external of which are external, and compares a run's results with evaluate(), for
 * two seeds; the second runs with `other`. Returns the bytes of the arena. */
static inline int64_t check_program(const cdad_graph *g, const cdad_context *ctx, const cdad_context *other,
                                    int64_t n_outputs, const cdad_value *outputs, int64_t n_external,
                                    const char *what) {
    cdad_program *p = NULL;
    const cdad_program_options options = {.n_external = n_external, .external = outputs};
    CHECK_OK(cdad_program_new(&p, g, n_outputs, outputs, &options, ctx, err));
    if (!p)
        return 0;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        float **want = evaluate(g, ctx, seed), **held = zeros(g->n_values * (int64_t)sizeof *held);
        for (int64_t v = 0; v < g->n_values; v++)
            if (is_bound(g, v)) {
                held[v] = floats(count_of(g, (cdad_value)v));
                memcpy(held[v], want[v], (size_t)count_of(g, (cdad_value)v) * sizeof(float));
                CHECK_OK(cdad_program_bind(p, (cdad_value)v, held[v], err));
            }
        for (int64_t i = 0; i < n_external; i++) {
            held[outputs[i]] = floats(count_of(g, outputs[i]));
            CHECK_OK(cdad_program_bind(p, outputs[i], held[outputs[i]], err));
        }
        CHECK_OK(cdad_program_run(p, seed == 1 ? ctx : other, err));
        for (int64_t i = 0; i < n_outputs; i++)
            CHECK(same(cdad_program_data(p, outputs[i]), want[outputs[i]], count_of(g, outputs[i])),
                  "%s, seed %d: output %" PRId64 " (value %d) is wrong", what, (int)seed, i, outputs[i]);
        for (int64_t v = 0; v < g->n_values; v++) {
            CHECK(!held[v] || same(held[v], want[v], count_of(g, (cdad_value)v)),
                  "%s, seed %d: bound memory of value %" PRId64 " is wrong", what, (int)seed, v);
            cdad_free(held[v]);
        }
        cdad_free(held);
        free_values(g, want);
    }
    const int64_t bytes = cdad_program_arena_bytes(p);
    cdad_program_free(p);
    return bytes;
}

typedef struct hand_check {
    const cdad_handover *handovers;
    float **want, **held;
    const cdad_graph *g;
    int64_t handed;
} hand_check;

/* What is handed over is right, and what it spares can be ruined. */
static inline cdad_status check_handed(void *arg, const cdad_context *ctx, int64_t i, const float *data,
                                       cdad_error *err) {
    hand_check *c = arg;
    const cdad_handover *h = &c->handovers[i];
    (void)ctx;
    (void)err;
    CHECK(same(data, c->want[h->value], count_of(c->g, h->value)), "handover %" PRId64 " is wrong", i);
    for (int64_t k = 0; k < count_of(c->g, h->spares); k++)
        c->held[h->spares][k] = NAN;
    c->handed++;
    return CDAD_OK;
}

/* A program of `output` with handovers gives them and the output as evaluate() does, though each parameter that a
 * handover spares is ruined by then. Returns the bytes of the arena. */
static inline int64_t check_handovers(const cdad_graph *g, const cdad_context *ctx, cdad_value output, int64_t n,
                                      const cdad_handover *handovers) {
    cdad_program *p = NULL;
    hand_check c = {.handovers = handovers, .g = g, .want = evaluate(g, ctx, 1),
                    .held = zeros(g->n_values * (int64_t)sizeof *c.held)};
    const cdad_program_options options = {.n_handovers = n, .handovers = handovers};
    CHECK_OK(cdad_program_new(&p, g, 1, &output, &options, ctx, err));
    for (int64_t v = 0; v < g->n_values; v++)
        if (is_bound(g, v)) {
            c.held[v] = floats(count_of(g, (cdad_value)v));
            memcpy(c.held[v], c.want[v], (size_t)count_of(g, (cdad_value)v) * sizeof(float));
            CHECK_OK(cdad_program_bind(p, (cdad_value)v, c.held[v], err));
        }
    cdad_program_hand_to(p, check_handed, &c);
    CHECK_OK(cdad_program_run(p, ctx, err));
    CHECK(c.handed == n, "%" PRId64 " of %" PRId64 " values are handed over", c.handed, n);
    CHECK(same(cdad_program_data(p, output), c.want[output], count_of(g, output)), "the output is wrong");
    const int64_t bytes = cdad_program_arena_bytes(p);
    cdad_program_free(p);
    free_values(g, c.held);
    free_values(g, c.want);
    return bytes;
}

#endif
