/* Planning by lifetimes: values whose lifetimes do not meet share memory. */
#include "graph/places.h"

#include <stdlib.h>

#include "base/memory.h"

static cdad_status use(cdad_program *p, unsigned char *kept, cdad_value v, const char *what, int64_t i,
                       cdad_error *err) {
    CDAD_FAIL_IF(v < 0 || v >= p->n_values, err, CDAD_INVALID, "%s %lld is no value of the graph", what, (long long)i);
    p->places[v].used = kept[v] = 1;
    return CDAD_OK;
}

/* Keeps the nodes that the outputs and handovers need, in order, merged where that can be; kept [n_values], zero. */
static cdad_status select_nodes(cdad_program *p, unsigned char *kept, int64_t n_outputs, const cdad_value *outputs,
                                const cdad_program_options *options, cdad_error *err) {
    const cdad_graph *g = p->g;
    for (int64_t i = 0; i < n_outputs; i++)
        CDAD_TRY(use(p, kept, outputs[i], "output", i, err));
    for (int64_t i = 0; i < options->n_handovers; i++)
        CDAD_TRY(use(p, kept, options->handovers[i].value, "handover", i, err));
    for (int64_t k = g->n_nodes - 1; k >= 0; k--) {
        const cdad_node *node = &g->nodes[k];
        int used = 0;
        for (int j = 0; j < node->op->n_out; j++)
            used |= p->places[node->out[j]].used;
        if (!used)
            continue;
        p->n_steps++;
        for (int i = 0; i < node->n_in; i++)
            if (node->in[i] != CDAD_NONE)
                p->places[node->in[i]].used = 1;
        for (int j = 0; j < node->op->n_out; j++)
            p->places[node->out[j]].used = 1;
    }
    CDAD_TRY(cdad_alloc_zero((void **)&p->steps, p->n_steps * (int64_t)sizeof *p->steps, err));
    int64_t at = 0;
    for (int64_t k = 0; k < g->n_nodes; k++)
        if (p->places[g->nodes[k].out[0]].used)
            p->steps[at++] = (cdad_step){.node = k, .out = g->nodes[k].out[0], .sum = CDAD_NONE};
    CDAD_TRY(cdad_fuse(g, p->steps, &p->n_steps, kept, err));
    for (int64_t v = 0; v < g->n_values; v++) /* what lay between merged steps is computed no more */
        p->places[v].used &= g->values[v].kind != CDAD_VALUE_NODE;
    for (int64_t t = 0; t < p->n_steps; t++)
        for (int j = 0; j < g->nodes[p->steps[t].node].op->n_out; j++)
            p->places[cdad_step_output(g, &p->steps[t], j)].used = 1;
    return cdad_alloc_zero((void **)&p->taps, p->n_steps * (int64_t)sizeof *p->taps, err);
}

static int earlier(const void *a, const void *b) {
    const handover *x = a, *y = b;
    if (x->step != y->step)
        return x->step < y->step ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

/* First and last use of every value, before any memory is shared. */
static cdad_status find_lifetimes(cdad_program *p, int64_t n_outputs, const cdad_value *outputs,
                                  const cdad_program_options *options, cdad_error *err) {
    const cdad_graph *g = p->g;
    for (int64_t v = 0; v < p->n_values; v++) {
        place *q = &p->places[v];
        q->root = (cdad_value)v;
        q->first = q->last = -1;
        q->offset = -1;
        q->bytes = cdad_align_up(cdad_shape_count(&g->values[v].shape) * (int64_t)sizeof(float));
    }
    for (int64_t t = 0; t < p->n_steps; t++) {
        const cdad_step *s = &p->steps[t];
        const cdad_node *node = &g->nodes[s->node];
        for (int i = 0; i <= node->n_in; i++)
            if (cdad_step_input(g, s, i) != CDAD_NONE)
                p->places[cdad_step_input(g, s, i)].last = t;
        for (int j = 0; j < node->op->n_out; j++)
            p->places[cdad_step_output(g, s, j)].first = p->places[cdad_step_output(g, s, j)].last = t;
    }
    for (int64_t t = p->n_steps - 1; t >= 0; t--) { /* what reads a view reads what it shows, maybe a parameter */
        const cdad_node *node = &g->nodes[p->steps[t].node];
        if ((node->op->flags & CDAD_OP_VIEW) && p->places[node->out[0]].last > p->places[node->in[0]].last)
            p->places[node->in[0]].last = p->places[node->out[0]].last;
    }
    CDAD_TRY(cdad_alloc((void **)&p->handovers, options->n_handovers * (int64_t)sizeof *p->handovers, err));
    for (int64_t i = 0; i < options->n_handovers; i++) {
        const cdad_handover *h = &options->handovers[i];
        place *q = &p->places[h->value];
        q->handed = 1;
        if (h->spares != CDAD_NONE && p->places[h->spares].last > q->last)
            q->last = p->places[h->spares].last;
        p->handovers[p->n_handovers++] = (handover){.value = h->value, .number = i, .step = q->last};
    }
    qsort(p->handovers, (size_t)p->n_handovers, sizeof *p->handovers, earlier);
    for (int64_t i = 0; i < n_outputs; i++)
        p->places[outputs[i]].last = p->n_steps; /* readable after the run */
    return CDAD_OK;
}

/* Lets views share, and in-place ops take over, the memory of input 0. */
static void share_memory(cdad_program *p) {
    const cdad_graph *g = p->g;
    for (int64_t t = 0; t < p->n_steps; t++) {
        const cdad_step *s = &p->steps[t];
        const cdad_node *node = &g->nodes[s->node];
        const unsigned flags = node->op->flags;
        if (!(flags & (CDAD_OP_VIEW | CDAD_OP_IN_PLACE)))
            continue;
        place *out = &p->places[s->out];
        place *root = &p->places[p->places[node->in[0]].root];
        if (out->external || out->bytes != root->bytes)
            continue;
        const int in_arena = g->values[root->root].kind == CDAD_VALUE_NODE && !root->external;
        if (!(flags & CDAD_OP_VIEW)) {
            int read_twice = 0; /* by another input of this very node */
            for (int i = 1; i < node->n_in; i++)
                read_twice |= node->in[i] != CDAD_NONE && p->places[node->in[i]].root == root->root;
            if (!in_arena || root->last > t || root->handed || read_twice)
                continue; /* handed over after the step that reads it last */
        }
        out->root = root->root;
        root->handed |= out->handed;
        if (out->last > root->last)
            root->last = out->last;
    }
}

typedef struct block {
    cdad_value root;
    int64_t bytes, first, last, offset;
} block;

static int larger_first(const void *a, const void *b) {
    const block *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    return x->root < y->root ? -1 : x->root > y->root;
}

static int by_offset(const void *a, const void *b) {
    const block *x = a, *y = b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Offline packing, largest first: each block takes the lowest gap among the placed blocks that live with it. */
static cdad_status pack_arena(cdad_program *p, cdad_error *err) {
    cdad_status status = CDAD_OK;
    block *blocks = NULL, *alive = NULL;
    int64_t n = 0;
    CDAD_TRY_DONE(cdad_alloc((void **)&blocks, p->n_values * (int64_t)sizeof *blocks, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&alive, p->n_values * (int64_t)sizeof *alive, err));
    for (int64_t v = 0; v < p->n_values; v++) {
        const place *q = &p->places[v];
        if (q->used && !q->external && q->root == v && p->g->values[v].kind == CDAD_VALUE_NODE)
            blocks[n++] = (block){.root = (cdad_value)v, .bytes = q->bytes, .first = q->first, .last = q->last};
    }
    qsort(blocks, (size_t)n, sizeof *blocks, larger_first);
    for (int64_t i = 0; i < n; i++) {
        int64_t m = 0, offset = 0;
        for (int64_t j = 0; j < i; j++)
            if (blocks[j].first <= blocks[i].last && blocks[i].first <= blocks[j].last)
                alive[m++] = blocks[j];
        qsort(alive, (size_t)m, sizeof *alive, by_offset);
        for (int64_t j = 0; j < m && offset + blocks[i].bytes > alive[j].offset; j++)
            if (alive[j].offset + alive[j].bytes > offset)
                offset = alive[j].offset + alive[j].bytes;
        blocks[i].offset = offset;
        p->places[blocks[i].root].offset = offset;
        if (offset + blocks[i].bytes > p->arena_bytes)
            p->arena_bytes = offset + blocks[i].bytes;
    }
done:
    cdad_free(blocks);
    cdad_free(alive);
    return status;
}

cdad_status cdad_program_place(cdad_program *p, int64_t n_outputs, const cdad_value *outputs,
                               const cdad_program_options *options, cdad_error *err) {
    cdad_status status = CDAD_OK;
    unsigned char *kept = NULL;
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&p->places, p->n_values * (int64_t)sizeof *p->places, err));
    CDAD_TRY_DONE(cdad_alloc_zero((void **)&kept, p->n_values, err));
    CDAD_TRY_DONE(select_nodes(p, kept, n_outputs, outputs, options, err));
    for (int64_t i = 0; i < options->n_external; i++)
        p->places[options->external[i]].external = 1;
    CDAD_TRY_DONE(find_lifetimes(p, n_outputs, outputs, options, err));
    share_memory(p);
    CDAD_TRY_DONE(pack_arena(p, err));
done:
    cdad_free(kept);
    return status;
}
