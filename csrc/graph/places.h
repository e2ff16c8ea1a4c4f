/* What a program is made of, and its plan: which nodes run, and where every value lies. */
#ifndef CDAD_GRAPH_PLACES_H
#define CDAD_GRAPH_PLACES_H

#include "graph/fuse.h"
#include "graph/program.h"

typedef struct place {
    cdad_value root;     /* the value whose memory this one shares (itself when it shares none) */
    int64_t first, last; /* of a root: the first and last step that touch its memory */
    int64_t offset;      /* of a root in the arena; -1: not in the arena */
    int64_t bytes;
    unsigned char used, external, handed; /* handed: of a root, it or what shares its memory is handed over */
} place;

typedef struct tap {
    cdad_tap_fn fn; /* NULL: none */
    void *arg;
    int there;      /* it takes its input where the program runs */
} tap;

/* Of a device: what the steps did when they ran last, to be done again without asking for each of them. */
typedef struct recording {
    void *made;      /* by the device; NULL: not yet */
    int64_t steps;   /* from the first on: taps and handovers end it */
    float **data;    /* [n_values]: where values were; NULL: nothing has run */
    char *scratch;
} recording;

typedef struct handover {
    cdad_value value;
    int64_t number; /* in the options */
    int64_t step;   /* after which it happens; -1: before the first */
} handover;

struct cdad_program {
    const cdad_graph *g;
    cdad_device *device;
    place *places; /* [n_values] */
    float **data;  /* [n_values]: where a value is */
    float **kept;  /* on a device [n_values]: memory of constants and of what is fed; else NULL */
    float *tapped; /* on a device: a tap's input on the host */
    int64_t tapped_bytes;
    int64_t n_values;
    cdad_step *steps;
    tap *taps; /* [n_steps] */
    int64_t n_steps;
    cdad_workspace *workspace, own; /* workspace: another's, or its own */
    char *scratch;                  /* in the workspace, behind the arena */
    int64_t arena_bytes, scratch_bytes;
    const struct cdad_kernels *kernels, *host_kernels; /* for which scratch was sized; NULL: not yet */
    int threads;
    handover *handovers; /* [n_handovers], in the order of their steps */
    int64_t n_handovers;
    cdad_handover_fn hand_to;
    void *hand_to_arg;
    recording last;
};

/* Of a step: the value of input i, or, past the node's inputs, of what is added. */
static inline cdad_value cdad_step_input(const cdad_graph *g, const cdad_step *s, int i) {
    const cdad_node *node = &g->nodes[s->node];
    return i < node->n_in ? node->in[i] : s->sum;
}
static inline cdad_value cdad_step_output(const cdad_graph *g, const cdad_step *s, int j) {
    return j == 0 ? s->out : g->nodes[s->node].out[j];
}

/* Plans p->g: fills in the places, steps, taps (none), handovers and the arena's size. */
CDAD_MUST_USE cdad_status cdad_program_place(cdad_program *p, int64_t n_outputs, const cdad_value *outputs,
                                             const cdad_program_options *options, cdad_error *err);

#endif
