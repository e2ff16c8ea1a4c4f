/* Merging steps into the epilogue of a product. */
#include "graph/fuse.h"

#include "base/memory.h"

typedef struct plan {
    const cdad_graph *g;
    cdad_step *steps;
    int64_t *step_of; /* [n_values]: the step that computes it, or -1 */
    int *readers;     /* [n_values]: inputs of steps; more than one where it is kept */
} plan;

/* The step whose output 0 is v, when it has an epilogue and nobody else reads v. */
static cdad_step *free_epilogue(const plan *p, cdad_value v) {
    const int64_t s = p->step_of[v];
    if (s < 0 || p->readers[v] != 1 || p->steps[s].out != v || p->steps[s].act)
        return NULL;
    return p->g->nodes[p->steps[s].node].op->flags & CDAD_OP_EPILOGUE ? &p->steps[s] : NULL;
}

/* Whether the step that computes in[i] takes over the sum `node`. The other operand has to be there before. */
static int merge_sum(const plan *p, const cdad_node *node, int i) {
    const cdad_value v = node->in[i], other = node->in[1 - i];
    cdad_step *s = free_epilogue(p, v);
    if (!s || s->sum != CDAD_NONE || p->step_of[other] >= p->step_of[v] ||
        !cdad_shape_equal(cdad_graph_shape(p->g, v), cdad_graph_shape(p->g, other)))
        return 0;
    s->sum = other;
    s->out = node->out[0];
    return 1;
}

static int merge_activation(const plan *p, const cdad_node *node) {
    cdad_step *s = free_epilogue(p, node->in[0]);
    if (!s)
        return 0;
    s->act = node->op->activation;
    s->out = node->out[0];
    return 1;
}

cdad_status cdad_fuse(const cdad_graph *g, cdad_step *steps, int64_t *n_steps, const unsigned char *kept,
                      cdad_error *err) {
    cdad_status status = CDAD_OK;
    plan p = {.g = g, .steps = steps};
    const cdad_op *add = cdad_op_find("add");
    int64_t n = 0;
    CDAD_TRY_DONE(cdad_alloc((void **)&p.step_of, g->n_values * (int64_t)sizeof *p.step_of, err));
    CDAD_TRY_DONE(cdad_alloc((void **)&p.readers, g->n_values * (int64_t)sizeof *p.readers, err));
    for (int64_t v = 0; v < g->n_values; v++) {
        p.step_of[v] = -1;
        p.readers[v] = kept[v] ? 2 : 0;
    }
    for (int64_t t = 0; t < *n_steps; t++) {
        const cdad_node *node = &g->nodes[steps[t].node];
        for (int i = 0; i < node->n_in; i++)
            if (node->in[i] != CDAD_NONE)
                p.readers[node->in[i]]++;
    }
    for (int64_t t = 0; t < *n_steps; t++) {
        const cdad_node *node = &g->nodes[steps[t].node];
        int64_t merged = -1;
        for (int i = 0; node->op == add && i < 2 && merged < 0; i++)
            if (merge_sum(&p, node, i))
                merged = p.step_of[node->in[i]];
        if (node->op->activation && merge_activation(&p, node))
            merged = p.step_of[node->in[0]];
        if (merged < 0) {
            merged = n;
            steps[n++] = steps[t];
        }
        for (int j = 0; j < node->op->n_out; j++)
            p.step_of[node->out[j]] = merged;
    }
    *n_steps = n;
done:
    cdad_free(p.step_of);
    cdad_free(p.readers);
    return status;
}
